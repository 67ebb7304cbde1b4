"""Training sets of featuresets without a user's code: parts are read side by side, columns never become values."""

from __future__ import annotations

import threading
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurelib.definitions import Commit, FeatureDef, FeaturesetDef, LookupDef
from jobs import training_run, training_set
from jobs.training_set import PartitionReader
from tests.api.conftest import Platform
from tests.api.test_offline import take_trips
from tests.api.test_training_sets import ROWS, asked, made, spine, stored

ARROW = "application/vnd.apache.arrow.stream"


def looked_up(name: str, kind: str, of: str, **more: Any) -> FeatureDef:
    dataset, _, field = of.partition(".")
    return FeatureDef(name=name, type=kind, lookup=LookupDef(dataset=dataset, field=field), **more)


PLAIN = FeaturesetDef(
    name="Plain",
    entity_type="rider",
    features=(
        FeatureDef(name="rider", type="int"),
        looked_up("trips", "int", "ByRider.trips_1h", default=0),
        looked_up("fares", "float", "ByRider.fares_3h", default=1.25),
        looked_up("farthest", "float", "ByRider.km_max", default=-2.0),
        looked_up("toll", "decimal(2)", "ByRider.toll", optional=True),
        looked_up("cities", "list[str]", "ByRider.cities"),
        looked_up("last_at", "datetime", "ByRider.last_at", optional=True),
        looked_up("home", "str", "Newest.city", default="nowhere"),
        looked_up("of", "int", "Newest.rider"),
        FeatureDef(name="price", type="float", request=True, default=1.5),
    ),
)


@pytest.fixture
async def taken(platform: Platform, client: httpx2.AsyncClient) -> Platform:
    """A platform with trips, and a featureset of them that has no extractor."""
    await take_trips(platform, client)
    done = await client.post("/api/v1/commit", content=Commit(featuresets=(PLAIN,)).model_dump_json())
    assert done.status_code == 200, done.text
    await platform.services.current.refresh()
    return platform


async def answered(client: httpx2.AsyncClient, table: pa.Table) -> list[dict[str, Any]]:
    """What the query server answers to each row alone, as Arrow."""
    rows = []
    for row in table.to_pylist():
        given = {} if row["price"] is None else {"inputs": {"price": row["price"]}}
        queries = [{"entity_id": row["rider"], "timestamp": row["seen_at"].isoformat(), **given}]
        body = {"featureset": "Plain", "queries": queries}
        answer = await client.post("/features/offline", json=body, headers={"Accept": ARROW})
        assert answer.status_code == 200, answer.text
        rows += pa.ipc.open_stream(answer.content).read_all().drop_columns(["entity_id", "timestamp"]).to_pylist()
    return rows


async def test_each_row_is_what_the_query_server_answers(taken, client, tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "_ROWS_OF_A_PART", 9)
    given = spine()
    manifest = made(taken, asked(stored(given, tmp_path / "in"), tmp_path / "out", featureset="Plain"))
    rows = pq.read_table(tmp_path / "out" / "data.parquet")
    expected = await answered(client, given)
    assert rows.select(list(expected[0])).to_pylist() == expected
    assert (manifest.rows, manifest.complete_rows) == (ROWS, sum(None not in row.values() for row in expected))


async def test_parts_are_read_side_by_side_and_give_the_bytes_of_one_after_the_other(taken, tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "_ROWS_OF_A_PART", 9)
    monkeypatch.setattr(training_set, "_cores", lambda: 2)
    path = stored(spine(), tmp_path / "in")
    both = threading.Barrier(2)
    reading = PartitionReader.read

    def read_beside_another(reader: PartitionReader, partition: int) -> Any:
        if partition < 2:
            both.wait(30)
        return reading(reader, partition)

    with monkeypatch.context() as patched:
        patched.setattr(PartitionReader, "read", read_beside_another)
        side_by_side = made(taken, asked(path, tmp_path / "threads", featureset="Plain"))
    monkeypatch.setattr(training_set, "_cores", lambda: 1)
    alone = made(taken, asked(path, tmp_path / "alone", featureset="Plain"))
    assert side_by_side.rows_sha256 == alone.rows_sha256
