"""``thyme discover`` looks at real systems: a PostgreSQL table, a bucket, an Iceberg table, a Kafka topic."""

import json

import psycopg
import pyarrow as pa
import pytest
from psycopg.conninfo import conninfo_to_dict
from typer.testing import CliRunner

from featurelib.cli import app
from tests.support.amazon import REGION
from tests.support.brokers import mock_cluster

TYPES = {"trip": "str", "rider": "int", "fare": "float", "paid": "bool", "ended_at": "datetime"}
TRIPS = [
    {"trip": f"t{n}", "rider": n % 3, "fare": n + 0.5, "paid": n % 2 == 0, "ended_at": f"2026-03-01T0{n}:00:00Z"}
    for n in range(9)
]


@pytest.fixture
def discover(tmp_path, monkeypatch):
    """Run the command in an empty folder, where it compiles what it drafts; the tree of its JSON."""
    monkeypatch.chdir(tmp_path)

    def run(*options):
        result = CliRunner().invoke(app, ["discover", *map(str, options), "--json"])
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert {each["name"]: each["type"] for each in found["columns"]} == TYPES
        assert (found["key"], found["timestamp"]) == ("rider", "ended_at")
        return found["module"]

    return run


def test_a_table_is_read_by_the_cursor_that_it_has(discover, postgres_url):
    parts = conninfo_to_dict(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as db:
        db.execute("CREATE TABLE trips (trip text, rider int, fare float8, paid bool, ended_at timestamptz)")
        for trip in TRIPS:
            db.execute("INSERT INTO trips VALUES (%s, %s, %s, %s, %s)", list(trip.values()))
    place = {"--pg-host": parts["host"], "--pg-user": parts["user"], "--pg-database": parts["dbname"]}
    options = [part for pair in place.items() for part in pair]
    module = discover("--source-type", "postgres", "--pg-table", "trips", "--pg-password", "unused", *options)
    assert 'cursor="ended_at"' in module
    assert 'password=Secret(env="POSTGRES_PASSWORD")' in module
    assert "unused" not in module


def test_a_table_that_is_not_there_is_said(postgres_url):
    parts = conninfo_to_dict(postgres_url)
    place = ["--pg-host", parts["host"], "--pg-user", parts["user"], "--pg-database", parts["dbname"]]
    result = CliRunner().invoke(app, ["discover", "--source-type", "postgres", "--pg-table", "nothing", *place])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nothing does not exist" in result.stderr


def test_the_objects_of_a_bucket_are_read(discover, amazon, monkeypatch):
    bucket = amazon.client("s3")
    bucket.create_bucket(Bucket="discovered", CreateBucketConfiguration={"LocationConstraint": REGION})
    bucket.put_object(Bucket="discovered", Key="trips/1.jsonl", Body="\n".join(map(json.dumps, TRIPS)).encode())
    monkeypatch.setenv("THYME_S3_ENDPOINT_URL", amazon.url)
    options = ("--s3-bucket", "discovered", "--s3-prefix", "trips/", "--s3-region", REGION)
    assert f'S3JsonSource(bucket="discovered", prefix="trips/", region="{REGION}")' in discover(
        "--source-type", "s3json", *options
    )


def test_an_iceberg_table_is_read(discover, tmp_path, monkeypatch):
    from pyiceberg.catalog.sql import SqlCatalog

    uri, warehouse = f"sqlite:///{tmp_path}/catalog.db", f"file://{tmp_path}/warehouse"
    catalog = SqlCatalog("discovered", uri=uri, warehouse=warehouse)
    catalog.create_namespace("rides")
    rows = pa.Table.from_pylist(TRIPS)
    rows = rows.set_column(4, "ended_at", rows["ended_at"].cast(pa.timestamp("us", tz="UTC")))
    catalog.create_table("rides.trips", rows.schema).append(rows)
    catalog.close()
    monkeypatch.setenv("THYME_ICEBERG_CATALOG_URI", uri)
    monkeypatch.setenv("THYME_ICEBERG_WAREHOUSE", warehouse)
    assert 'database="rides"' in discover("--catalog", "discovered", "--database", "rides", "--table", "trips")


def test_a_topic_is_read(discover):
    with mock_cluster() as broker:
        broker.create("trips", 1)
        broker.produce("trips", [json.dumps(trip).encode() for trip in TRIPS])
        module = discover("--source-type", "kafka", "--kafka-brokers", broker.address, "--kafka-topic", "trips")
    assert "every=" not in module
    assert 'security_protocol="PLAINTEXT"' in module
