"""What the online store may hold: the hot log's age, both budgets, upkeep by schedule. Real servers, real tables."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis

from cluster.processes import wait_until
from featurelib.clock import DAY, HOUR, MINUTE, SECOND, parse_instant
from featurelib.definitions import DatasetDef, FieldDef, ref
from featurelib.engine.records import OFFSET
from featurelib.errors import LogFull, StoreUnavailable
from featurelib.settings import OnlineSettings, Settings
from featurelib.stores.archive import Archive
from featurelib.stores.audit import Audit, QueryRun
from featurelib.stores.budget import Budget, LogRoom, server_warnings
from featurelib.stores.fsync import FsyncFence
from featurelib.stores.intake import Intake
from featurelib.stores.log import Identity, Lateness, Log, Mark, Tail
from featurelib.stores.online import GroupCommit, OnlineStore, StateName
from featurelib.stores.registry import Registry
from jobs.maintain import ArchiveCopy, LogTrimming, Upkeep
from tests.support.clocks import MovedClock
from tests.support.patience import PATIENCE_S
from tests.support.redis_server import RedisServer

MB = 1 << 20
SALE = DatasetDef(
    name="Sale",
    fields=(
        FieldDef(name="shop", type="str", key=True),
        FieldDef(name="at", type="datetime", timestamp=True),
        FieldDef(name="note", type="str"),
    ),
)
NOISE = np.random.default_rng(7)


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock(parse_instant("2026-12-01"))


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(str(tmp_path / "archive"))


@pytest.fixture
def log(redis_server: RedisServer, clock: MovedClock) -> Iterator[Log]:
    made = Log(redis_server.url, clock, Budget(memory=None, log=MB))
    made.create(ref(SALE), 1)
    yield made
    made.close()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis_server.client() as made:
        yield made


def send(log: Log, count: int = 10, note_bytes: int = 1) -> None:
    """Records that no compression makes smaller."""
    rows = [{"shop": "s", "at": 1, "note": NOISE.bytes(note_bytes).hex()} for _ in range(count)]
    Intake(log, SALE, 1, Lateness(None, 0)).accept(rows)


def copy(log: Log, archive: Archive, url: str, clock: MovedClock) -> None:
    fence = FsyncFence(url)
    done = ArchiveCopy([SALE], log, archive, fence=fence, clock=clock, batch_rows=10_000).step()
    fence.close()
    assert done.caught_up


# Trimming.


def held(log: Log) -> list[int]:
    found = log.read(ref(SALE), 0, log.first_offset(ref(SALE), 0), 10_000)
    return [] if found is None else found[OFFSET].to_pylist()


def trimming(log: Log, archive: Archive, clock: MovedClock) -> LogTrimming:
    return LogTrimming([SALE], log, archive, keep_us=MINUTE, clock=clock)


def test_what_is_archived_and_old_leaves_the_log(log, archive, clock, redis_server):
    trim = trimming(log, archive, clock)
    for _ in range(3):
        send(log)
        copy(log, archive, redis_server.url, clock)
        trim.step(everything=False)
        clock.time += 25 * SECOND
    assert held(log) == list(range(30))  # the oldest was accepted 75 s ago, and nobody has looked since
    assert trim.step(everything=False) == 10
    assert held(log) == list(range(10, 30))
    clock.time += 60 * SECOND
    assert trim.step(everything=False) == 20
    assert held(log) == []


def test_what_is_not_archived_stays_however_old_it_is(log, archive, clock, redis_server):
    trim = trimming(log, archive, clock)
    send(log)
    copy(log, archive, redis_server.url, clock)
    send(log)
    trim.step(everything=False)
    clock.time += HOUR
    trim.step(everything=False)
    trim.step(everything=True)
    assert held(log) == list(range(10, 20))


def test_all_that_is_archived_goes_at_once_when_asked(log, archive, clock, redis_server):
    trim = trimming(log, archive, clock)
    send(log)
    copy(log, archive, redis_server.url, clock)
    assert trim.step(everything=False) == 0
    assert trim.step(everything=True) == 10
    assert held(log) == []
    assert log.first_offset(ref(SALE), 0) == log.head(ref(SALE), 0).next_offset == 10
    send(log, 5)
    assert held(log) == list(range(10, 15))


def test_an_archiver_that_begins_anew_trims_what_a_quiet_log_has_kept(log, archive, clock, redis_server):
    send(log)
    copy(log, archive, redis_server.url, clock)
    clock.time += HOUR
    assert trimming(log, archive, clock).step(everything=False) == 10


def test_a_log_says_of_an_offset_whether_it_was_trimmed_or_is_still_to_come(log, archive, clock, redis_server):
    assert log.tail(ref(SALE), 0, 0, 10) == Tail(None, trimmed=False)
    send(log)
    copy(log, archive, redis_server.url, clock)
    trimming(log, archive, clock).step(everything=True)
    assert log.tail(ref(SALE), 0, 3, 10) == Tail(None, trimmed=True)
    assert log.tail(ref(SALE), 0, 10, 10) == Tail(None, trimmed=False)
    send(log)
    assert log.tail(ref(SALE), 0, 3, 10).trimmed
    assert [log.tail(ref(SALE), 0, 10, rows).more for rows in (2, 9, 10, 99)] == [True, True, False, False]
    assert not log.tail(ref(SALE), 0, 12, 10).trimmed


# Budgets.


def test_a_log_at_its_budget_takes_nothing_and_loses_nothing(log, archive, clock, redis_server):
    send(log, 1_000, 600)
    clock.time += SECOND
    before = log.head(ref(SALE), 0)
    with pytest.raises(LogFull, match=r"the hot log holds 1\.\d MB of its 1\.0 MB .*nothing was taken"):
        send(log)
    identity = Identity("s", Mark(0), np.array([0], dtype=np.int64))
    with pytest.raises(LogFull):
        Intake(log, SALE, 1, Lateness(None, 0)).take([{"shop": "s"}], identity, [], "1")
    assert log.head(ref(SALE), 0) == before
    # A source that has nothing new moves its position all the same.
    Intake(log, SALE, 1, Lateness(None, 0)).take([], identity._replace(sequence=np.zeros(0, np.int64)), [], "1")
    assert log.head(ref(SALE), 0).marks == {"s": Mark(0)}
    copy(log, archive, redis_server.url, clock)
    trimming(log, archive, clock).step(everything=True)
    clock.time += SECOND
    send(log)
    assert log.head(ref(SALE), 0).next_offset == 1_010


def test_a_full_log_is_said_in_the_same_words_while_it_lasts(log, clock, client):
    send(log, 1_000, 600)
    said = set()
    for _ in range(3):
        clock.time += SECOND
        with pytest.raises(LogFull) as caught:
            log.require_room()
        said.add(str(caught.value))
        client.set("ballast", bytes(MB))
    assert len(said) == 1
    assert caught.value.status == 503
    assert caught.value.retryable


def test_a_log_looks_at_the_server_once_a_second_however_many_appends_there_are(log, clock, client):
    def looks() -> int:
        return client.info("commandstats")["cmdstat_info"]["calls"] - asked

    client.info("commandstats")
    asked = 0
    asked = looks()
    for _ in range(50):
        log.require_room()
    assert looks() - 1 == 1
    clock.time += SECOND
    log.require_room()
    log.require_room()
    assert looks() - 2 == 2
    clock.time -= HOUR  # a clock set back is no reason to look away for an hour
    log.require_room()
    assert looks() - 3 == 3


def counted(client: redis.Redis) -> int:
    """What counts for the server's maxmemory: not what waits to be written to its file, much of it on a slow disk."""
    memory = client.info("memory")
    return memory["used_memory"] - memory["mem_not_counted_for_evict"]


def test_close_to_the_memory_limit_appends_are_refused_and_workers_still_commit(log, clock, client, redis_server):
    send(log)
    # What an earlier test left is freed by a thread of the server's own; the margin is for the server's buffers.
    assert wait_until(lambda: client.info("memory")["lazyfree_pending_objects"] == 0, PATIENCE_S, every_s=0.01)
    limit = counted(client) + 80 * MB
    client.config_set("maxmemory", limit)
    while counted(client) < 0.975 * limit:
        client.lpush("ballast", bytes(10_000))
    clock.time += SECOND
    with pytest.raises(LogFull, match=r"the online store uses .* \(online\.memory_mb, or the server's maxmemory\)"):
        send(log)
    store, state = OnlineStore(redis_server.url), StateName("by_shop@1", 1)
    (claim,) = store.claim(state, [0])
    store.commit(state, [GroupCommit(0, claim.epoch, [10], None, 10, {})])
    assert store.progress(state).standings == {0: [10]}
    store.close()
    client.delete("ballast")
    # The server frees what is large in a thread of its own.
    assert wait_until(lambda: counted(client) < 0.9 * limit, PATIENCE_S, every_s=0.01)
    clock.time += SECOND
    send(log)


@pytest.mark.parametrize("declared", [None, 64 * MB, 8 * MB])
def test_the_lower_of_the_declared_budget_and_the_servers_limit_counts(client, clock, declared):
    client.config_set("maxmemory", 32 * MB)
    usage = LogRoom(client, Budget(declared, MB), clock).usage()
    assert usage.memory_limit == min(declared or 32 * MB, 32 * MB)
    client.config_set("maxmemory", 0)
    assert LogRoom(client, Budget(declared, MB), clock).usage().memory_limit == declared


def test_a_server_that_may_evict_or_is_limited_otherwise_is_warned_of(redis_server, client):
    assert server_warnings(redis_server.url, OnlineSettings()) == []
    client.config_set("maxmemory", 100 * MB)
    client.config_set("maxmemory-policy", "allkeys-lru")
    (evicting,) = server_warnings(redis_server.url, OnlineSettings())
    assert "maxmemory-policy allkeys-lru" in evicting
    client.config_set("maxmemory-policy", "noeviction")
    assert server_warnings(redis_server.url, OnlineSettings(memory_mb=100)) == []
    (other,) = server_warnings(redis_server.url, OnlineSettings(memory_mb=200))
    assert "maxmemory 100.0 MB, but online.memory_mb is 200" in other


def test_the_archive_goes_on_from_a_server_without_any_room(log, archive, clock, client, redis_server):
    send(log)
    copy(log, archive, redis_server.url, clock)
    send(log)
    client.config_set("maxmemory", 1)
    with pytest.raises(redis.OutOfMemoryError):
        client.set("more", "x")
    copy(log, archive, redis_server.url, clock)
    assert archive.archived_offset(SALE, 0) == 20
    assert trimming(log, archive, clock).step(everything=True) == 20


def test_a_server_that_takes_no_write_at_all_confirms_no_disk(client, redis_server):
    client.config_set("maxmemory", 1)
    fence = FsyncFence(redis_server.url)
    with pytest.raises(StoreUnavailable, match="took no write"):
        fence.wait(1_000)
    fence.close()


# Upkeep.


class Counted(Archive):
    """An archive that notes what is done to it."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.done: list[str] = []

    def compact(self, dataset):
        self.done.append("compact")
        return super().compact(dataset)

    def vacuum(self, dataset, retention_hours=168):
        self.done.append(f"vacuum {retention_hours}")
        return super().vacuum(dataset, retention_hours)


@pytest.fixture
def audit(tmp_path: Path, clock: MovedClock) -> Iterator[Audit]:
    registry = Registry(f"sqlite:///{tmp_path / 'registry.db'}", clock)
    registry.migrate()
    yield Audit(registry.database)
    registry.close()


def test_compaction_and_vacuum_come_by_the_clock(audit, clock, tmp_path):
    settings = Settings(archive={"compact_every_s": 60, "vacuum_every_s": 600, "history_hours": 5})
    archive = Counted(str(tmp_path / "archive"))
    upkeep = Upkeep([SALE], archive, audit, settings=settings, clock=clock)

    def after(seconds: int) -> list[str]:
        clock.time += seconds * SECOND
        archive.done.clear()
        while upkeep.step():
            pass
        return list(archive.done)

    assert after(0) == []
    assert after(60) == ["compact", "vacuum 5"]
    assert after(59) == []
    assert after(1) == ["compact"]
    assert after(600) == ["compact", "vacuum 5"]
    assert after(-3_600) == ["compact", "vacuum 5"]
    assert after(30) == []


def test_query_runs_are_forgotten_when_they_are_older_than_the_settings_say(audit, clock, tmp_path):
    for days in (0, 5, 9, 11, 400):
        audit.record([QueryRun(id=str(days), kind="online", featureset="F", created_at=clock.time - days * DAY)])
    settings = Settings(registry={"query_runs_days": 10})
    upkeep = Upkeep([SALE], Archive(str(tmp_path)), audit, settings=settings, clock=clock)
    assert upkeep.step()
    assert [run.id for run in audit.list()] == ["0", "5", "9"]
    clock.time += 2 * DAY
    upkeep.step()
    assert [run.id for run in audit.list()] == ["0", "5"]
