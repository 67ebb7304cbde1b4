"""One platform that many things feed: PostgreSQL, Kafka, S3 and a webhook at once, and rides from files.

Readers of the four are killed, and every count is exact. The credentials of three of them stand in the environment of
``thyme up`` and in nothing that the platform says. Of the rides an entity is erased, in every process that knows it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import polars as pl
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from cluster.processes import wait_until
from featurelib.errors import ThymeError
from tests.support.amazon import Amazon
from tests.support.brokers import MockCluster, mock_cluster
from tests.support.patience import PATIENCE_S
from tests.support.platforms import Platform
from tests.support.towns import CITIES, RIDERS, town_on

# Waits end as soon as what they wait for is there: their bounds are for what never comes, however full the machine.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

DEADLINE_S = 240.0
START = datetime(2026, 4, 1, tzinfo=UTC)
MIDDLE = START + timedelta(seconds=1, milliseconds=500)
PLACES = ("ams", "ber", "cph")
PER_BURST = 12
PARTITIONS = 3
KILLS = 2
SECRETS = {
    "THYME_POSTGRES_PASSWORD": "Kept9QuietTable",
    "PARCELS_SECRET": "Kept9QuietBucket",
    "PAYMENTS_SECRET": "Kept9QuietHook",
}
SOURCES = {
    "Order": 'PostgresSource(table="orders", host={host!r}, database={database!r}, user={user!r}, '
    'password=Secret(env="THYME_POSTGRES_PASSWORD")), cursor="at", every="1s"',
    "Click": 'KafkaSource(topic="clicks", brokers={brokers!r})',
    "Parcel": 'S3JsonSource(bucket="parcels", prefix="in/", endpoint_url={amazon!r}, access_key_id="testing", '
    'secret_access_key=Secret(env="PARCELS_SECRET")), every="1s"',
    "Payment": 'WebhookSource(secret=Secret(env="PAYMENTS_SECRET"), path="items")',
}
HEAD = """
from datetime import datetime
from featurelib import (Count, KafkaSource, PostgresSource, S3JsonSource, Secret, Sum, WebhookSource,
                        dataset, feature, featureset, field, inputs, pipeline, source)
"""
FED = """
@source(SOURCE)
@dataset(version=1)
class NAME:
    place: str = field(key=True)
    cents: int = field()
    at: datetime = field(timestamp=True)

@dataset(index=True, version=1)
class NAMEStats:
    place: str = field(key=True)
    number: int = field()
    cents: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(NAME)
    def by_place_of_NAME(cls, rows):
        return rows.groupby("place").aggregate(number=Count(), cents=Sum(of="cents"))

@featureset
class NAMEFeatures:
    place: str = feature()
    number: int = feature(ref=NAMEStats.number)
    cents: int = feature(ref=NAMEStats.cents)
"""

Event = dict[str, Any]
Counts = dict[tuple[str, str], tuple[int, int]]


class Table(NamedTuple):
    """The database of the orders, and the user the platform reads it as."""

    url: str
    user: str

    @property
    def settings(self) -> dict[str, str]:
        parts = conninfo_to_dict(self.url)
        return {"host": str(parts["host"]), "database": str(parts["dbname"]), "user": self.user}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Up, with the credentials in its environment. The tests' definitions stand beside each other."""
    made = Platform(tmp_path_factory.mktemp("home"))
    made.environment |= SECRETS
    with made.running():
        yield made


@pytest.fixture
def table(postgres_server: Any, postgres_url: str) -> Iterator[Table]:
    """A table of orders that a user may read who needs a password."""
    user = f"reader_{conninfo_to_dict(postgres_url)['dbname']}"
    rules = Path(postgres_server.pgdata) / "pg_hba.conf"
    before = rules.read_text()
    with psycopg.connect(postgres_url, autocommit=True) as db:
        name = sql.Identifier(user)
        password = sql.Literal(SECRETS["THYME_POSTGRES_PASSWORD"])
        db.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, password))
        db.execute("CREATE TABLE orders (id serial PRIMARY KEY, place text, cents int, at timestamptz)")
        db.execute(sql.SQL("GRANT SELECT ON orders TO {}").format(name))
        rules.write_text(f"local all {user} scram-sha-256\n{before}")
        db.execute("SELECT pg_reload_conf()")
        try:
            yield Table(postgres_url, user)
        finally:
            rules.write_text(before)
            db.execute("SELECT pg_reload_conf()")
            db.execute("DROP TABLE orders")
            db.execute(sql.SQL("DROP ROLE {}").format(name))


class Market:
    """The platform, the four systems that feed it, and what was put into them."""

    def __init__(self, platform: Platform, table: Table, brokers: MockCluster, amazon: Amazon) -> None:
        self.platform = platform
        self.client = platform.client()
        self.put: dict[str, list[Event]] = {name: [] for name in SOURCES}
        self._table = table
        self._brokers = brokers
        self._bucket = amazon.client("s3")
        self._bursts = 0

    def burst(self) -> None:
        """New events for each system. Four bursts share each instant: the later ones are ties of what was read."""
        self._bursts += 1
        numbers = range((self._bursts - 1) * PER_BURST, self._bursts * PER_BURST)
        at = (START + timedelta(seconds=self._bursts // 4)).isoformat()
        events = [{"place": PLACES[n * 7 % len(PLACES)], "cents": n % 89, "at": at} for n in numbers]
        for name, into in zip(SOURCES, (self._insert, self._produce, self._upload, self._deliver), strict=True):
            into(events)
            self.put[name] += events

    def expected(self, until: datetime | None = None) -> Counts:
        """Number and cents of each source and place, of events up to an instant."""
        found: Counts = {}
        for name, events in self.put.items():
            dated = [each for each in events if until is None or datetime.fromisoformat(each["at"]) <= until]
            for place in PLACES:
                mine = [each["cents"] for each in dated if each["place"] == place]
                found[name, place] = len(mine), sum(mine)
        return found

    def served(self, until: datetime | None = None) -> Counts:
        """The same as ``GET /features`` answers it."""
        found: Counts = {}
        for name in SOURCES:
            for place in PLACES:
                (row,) = self.client.query(f"{name}Features", place, timestamp=until).to_dict()
                found[name, place] = row["number"], row["cents"]
        return found

    def settles(self) -> None:
        """Wait until all that was put is served, now and as of the middle; fails with both when it never is."""
        for until in (None, MIDDLE):
            self._settles(until)

    def sources(self) -> dict[str, dict[str, Any]]:
        """What the platform says of each of these sources."""
        return _ours(self.client.sources())

    def printed(self) -> dict[str, dict[str, Any]]:
        """What `thyme status` prints of them."""
        return _ours(json.loads(self.platform.thyme("status", "--json"))["status"]["sources"])

    def _settles(self, until: datetime | None) -> None:
        def equal() -> bool:
            try:
                return self.served(until) == self.expected(until)
            except ThymeError:
                return False

        if not wait_until(equal, DEADLINE_S, every_s=0.2):
            assert self.served(until) == self.expected(until), self.client.sources()

    def _insert(self, events: list[Event]) -> None:
        with psycopg.connect(self._table.url) as db, db.cursor() as cursor:
            cursor.executemany("INSERT INTO orders (place, cents, at) VALUES (%(place)s, %(cents)s, %(at)s)", events)

    def _produce(self, events: list[Event]) -> None:
        for partition in range(PARTITIONS):
            mine = [json.dumps(each).encode() for each in events[partition::PARTITIONS]]
            self._brokers.produce("clicks", mine, partition)

    def _upload(self, events: list[Event]) -> None:
        lines = "".join(json.dumps(each) + "\n" for each in events).encode()
        self._bucket.put_object(Bucket="parcels", Key=f"in/{self._bursts:05}.jsonl", Body=lines)

    def _deliver(self, events: list[Event]) -> None:
        """Signed, and sent again as a sender does who heard no answer."""
        body = json.dumps({"items": events}).encode()
        signature = hmac.new(SECRETS["PAYMENTS_SECRET"].encode(), body, hashlib.sha256).hexdigest()
        headers = {"X-Signature-256": f"sha256={signature}", "Idempotency-Key": f"burst-{self._bursts}"}
        url = f"{self.client.config.api_base}/api/v1/webhooks/Payment"
        for _ in range(2):
            assert wait_until(
                lambda: httpx2.post(url, content=body, headers=headers, timeout=PATIENCE_S).is_success, DEADLINE_S
            )


def _ours(sources: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {each["dataset"]: each for each in sources if each["dataset"] in SOURCES}


@contextmanager
def market_on(platform: Platform, table: Table, amazon: Amazon) -> Iterator[Market]:
    """The definitions committed, and nothing put into their sources."""
    with mock_cluster() as brokers:
        brokers.create("clicks", PARTITIONS)
        amazon.client("s3").create_bucket(
            Bucket="parcels", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        places = {**table.settings, "brokers": brokers.address, "amazon": amazon.url}
        modules = [FED.replace("NAME", name).replace("SOURCE", text.format(**places)) for name, text in SOURCES.items()]
        (platform.home / "market.py").write_text(HEAD + "".join(modules))
        platform.thyme("commit", str(platform.home / "market.py"))
        made = Market(platform, table, brokers, amazon)
        with closing(made.client):
            yield made


def while_bursts_come(market: Market, fault: Callable[[], None]) -> None:
    """Let a fault happen while another thread puts one burst after the other."""
    enough = threading.Event()

    def feed() -> None:
        while not enough.is_set():
            market.burst()

    with ThreadPoolExecutor(1) as thread:
        feeding = thread.submit(feed)
        try:
            fault()
        finally:
            enough.set()
        feeding.result()


def kill_readers(market: Market) -> None:
    """Kill every reader, more than once, each time after all have taken rows that came since the last."""
    for _ in range(KILLS):
        before = {name: each["rows_in"] for name, each in market.sources().items() if name != "Payment"}

        def all_read(before: dict[str, int] = before) -> bool:
            now = market.sources()
            return all(now[name]["rows_in"] > rows for name, rows in before.items())

        assert wait_until(all_read, DEADLINE_S, every_s=0.1), market.sources()
        assert market.platform.kill("ray::SourceReader") >= len(before)


def rows_in(sources: dict[str, dict[str, Any]]) -> dict[str, int]:
    """By dataset, how many rows its source is said to have taken."""
    return {name: each["rows_in"] for name, each in sources.items() if name != "Payment"}


def said(market: Market) -> str:
    """Everything the platform says of its sources, to whoever asks."""
    base, key = market.client.config.api_base, market.client.config.api_key
    paths = ("status", "sources", "events?limit=1000", "jobs")
    answers = [
        httpx2.get(f"{base}/api/v1/{path}", headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE_S)
        for path in paths
    ]
    assert all(answer.is_success for answer in answers)
    platform = market.platform
    printed = [platform.thyme("status", "--json"), platform.thyme("status")]
    printed += [platform.thyme("logs", "-n", "1000", "--json"), platform.thyme("logs", "-n", "1000")]
    return "\n".join([*(answer.text for answer in answers), *printed])


def written(market: Market) -> Iterator[tuple[Path, bytes]]:
    """Every file the platform has written: stores, registry, logs, also those of Ray."""
    for folder in (market.platform.layout.data, market.platform.layout.short):
        yield from ((path, path.read_bytes()) for path in folder.rglob("*") if path.is_file())


def test_four_systems_feed_a_platform_whose_readers_are_killed_and_every_event_counts_once(
    platform: Platform, table: Table, amazon: Amazon
) -> None:
    with market_on(platform, table, amazon) as market:
        for _ in range(6):
            market.burst()
        market.settles()
        while_bursts_come(market, lambda: kill_readers(market))
        market.settles()
        market.burst()  # with what was read last these are ties, or one second on
        market.settles()

        # What is shown lags by a look of the supervisor and, of a webhook, of the reader of its log.
        numbers = {name: len(events) for name, events in market.put.items() if name != "Payment"}
        for ask in (market.sources, market.printed):
            assert wait_until(lambda ask=ask: rows_in(ask()) == numbers, DEADLINE_S), (rows_in(ask()), numbers)
            shown = ask()
            assert shown["Order"]["cursor_value"] == newest(market)
            assert shown["Click"]["cursor_value"].startswith("clicks/")
            assert shown["Parcel"]["cursor_value"].startswith("in/")
        assert market.client.events(event_type="job_restarted")
        told = said(market)
        assert not [name for name, secret in SECRETS.items() if secret in told]
        for path, data in written(market):
            assert not [name for name, secret in SECRETS.items() if secret.encode() in data], path


def newest(market: Market) -> str:
    """The cursor value of the newest order."""
    return max(each["at"] for each in market.put["Order"]).replace("+00:00", "Z")


def test_an_erasure_of_a_running_platform_completes_and_every_count_is_without_it(platform: Platform) -> None:
    erased = RIDERS[3]
    with town_on(platform) as town:
        town.settles()
        said = platform.thyme("erase", "Ride", "-e", erased, "--wait")
        rides = pl.read_parquet(platform.home / "rides" / "*.parquet").filter(pl.col("rider") != erased)
        left = {city: (count, cents) for city, count, cents in by_city(rides).rows()}
        assert town.served()[1] == {city: left[city] for city in CITIES}
        assert town.client.lookup("RiderStats", erased).to_dict() == []
        (receipt,) = town.client.erasures()
        assert receipt["state"] == "complete", said
        assert receipt["progress"]["archive_rows"] > 0
        # What comes later counts anew; what the source has read is not read again.
        town.drive(1, 400)
        again = pl.read_parquet(platform.home / "rides" / "00001.parquet").filter(pl.col("rider") == erased)
        assert len(again)
        assert wait_until(lambda: town.counts() == len(rides) + 400, DEADLINE_S, every_s=0.2)
        assert wait_until(lambda: town.served()[0][erased][0] is not None, DEADLINE_S, every_s=0.2)
        assert town.served()[0][erased][0] == len(again)


def by_city(rides: pl.DataFrame) -> pl.DataFrame:
    return rides.group_by("city").agg(pl.len(), pl.col("cents").sum())
