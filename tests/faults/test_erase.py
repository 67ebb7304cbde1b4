"""Erasing an entity everywhere: at completion nothing of it is left, whatever died, and nothing else is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from featurelib.clock import SystemClock
from featurelib.definitions import Commit, ref
from featurelib.errors import Fenced, StoreUnavailable
from featurelib.stores import online
from featurelib.stores.append_file import AppendFile
from featurelib.stores.archive import Archive
from featurelib.stores.audit import Audit, QueryRun
from featurelib.stores.dead_letters import DeadLetters
from featurelib.stores.erasures import ErasureRecord, Erasures
from featurelib.stores.fsync import FsyncFence
from featurelib.stores.log import Log, key_digest
from featurelib.stores.online import OnlineStore, StateName
from featurelib.stores.registry import NewEvent, Registry
from jobs.erase import Eraser
from jobs.maintain import ArchiveCopy
from serve_apps.committing import decide
from tests.support.erasing import PARTITIONS, RIDERS, T0, Town, drain
from tests.support.redis_server import RedisServer

ANNA, BERT = RIDERS[:2]


class Platform:
    """The town with everything that erases: registry, archive copy, eraser."""

    def __init__(self, server: RedisServer, folder: Path) -> None:
        self.folder = folder
        self.server = server
        self.town = Town(server.url, folder)
        self.registry = Registry(f"sqlite:///{folder / 'registry.db'}", SystemClock())
        self.registry.migrate()
        definitions = self.town.definitions
        self.registry.commit(Commit(**dict(definitions)), decide, None)
        self.erasures = Erasures(self.registry.database, SystemClock())
        self.fence = FsyncFence(server.url)
        self.file = AppendFile(server.url)
        self.eraser = self.new_eraser()
        self.workers = self.town.workers()

    def close(self) -> None:
        self.town.close()
        self.registry.close()
        self.fence.close()
        self.file.close()

    def new_eraser(self) -> Eraser:
        town = self.town
        return Eraser(self.registry, town.log, town.store, town.archive, self.file, clock=SystemClock())

    def copy(self) -> None:
        """Everything in the logs goes to the archive."""
        datasets = [self.town.dataset(name) for name in self.town.posted]
        copier = ArchiveCopy(
            datasets, self.town.log, self.town.archive, fence=self.fence, clock=SystemClock(), batch_rows=10_000
        )
        while not copier.step().caught_up:
            pass

    def erase(self, name: str, keys: list[str], *, block: bool = False) -> str:
        erasure_id = f"00000000-0000-4000-8000-{len(self.erasures.list(1_000)):012d}"
        self.town.erase(name, keys, erasure=erasure_id, block=block)
        self.erasures.accept(
            ErasureRecord(
                id=erasure_id,
                dataset=name,
                entities=len(keys),
                digests=tuple(key_digest(name, key) for key in keys),
                tombstones={},
                block=block,
                created_at=T0,
            )
        )
        return erasure_id

    def finish(self, erasure_id: str) -> None:
        """Archive and erase until the receipt is complete, a bounded number of times."""
        for _ in range(2_000):
            self.copy()
            self.eraser.step()
            if self.erasures.get(erasure_id).state == "complete":
                return
        message = f"not complete: {self.erasures.get(erasure_id)}"
        raise AssertionError(message)

    def places_of(self, text: str) -> list[str]:
        """Where the bytes of a text are: keys and values of the server, files of server, archive and registry."""
        needle = text.encode()
        found = [str(path) for path in self._files() if needle in path.read_bytes()]
        with self.server.client() as client:
            found += [
                key.decode() for key in client.scan_iter(count=1_000) if needle in key or _holds(client, key, needle)
            ]
        return found

    def _files(self) -> Iterator[Path]:
        for root in (self.folder / "archive", self.server.directory):
            yield from (p for p in root.rglob("*") if p.is_file() and p.name != "server.log")
        yield from self.folder.glob("registry.db*")


def _holds(client: redis.Redis, key: bytes, needle: bytes) -> bool:
    # DUMP is what would go to disk, deleted entries of a stream included; but for compressed pieces.
    readers: dict[bytes, Callable[[], Any]] = {
        b"hash": lambda: client.hgetall(key),
        b"stream": lambda: client.xrange(key),
        b"set": lambda: client.smembers(key),
        b"zset": lambda: client.zrange(key, 0, -1),
        b"string": lambda: client.get(key),
    }
    return needle in client.dump(key) or needle.decode() in str(readers[client.type(key)]())


@pytest.fixture
def platform(redis_server: RedisServer, tmp_path: Path) -> Iterator[Platform]:
    made = Platform(redis_server, tmp_path)
    yield made
    made.close()


def posted(platform: Platform, rides: int = 60) -> None:
    town = platform.town
    town.post("Rain", town.some("Rain", 12))
    town.post("Ride", [town._row("Ride") | {"rider": ANNA}, *town.some("Ride", rides)])
    town.post("Card", town.some("Card", 10))


def test_at_completion_no_byte_of_the_entity_is_left_and_every_value_is_right(platform: Platform) -> None:
    posted(platform)
    drain(*platform.workers.values())
    platform.copy()
    audit = Audit(platform.registry.database)
    run = QueryRun(id="r1", kind="online", featureset="RiderFeatures", entity_ids=(ANNA, BERT), created_at=T0)
    audit.record([run.model_copy(update={"inputs": {"entity_ids": [ANNA]}, "error": f"overflow: {ANNA}"})])
    other = run.model_copy(update={"id": "r2", "entity_ids": (BERT,)})
    audit.record([other])
    event = NewEvent(event_type="value_overflow", source="t", subject="x", message=f"a read of {ANNA!r} failed")
    platform.registry.record_event(event.model_copy(update={"detail": {"entity_id": ANNA}}))
    platform.town.resend(platform.town.dataset("Ride"), [{"rider": ANNA, "city": "x", "fare": "dear"}], 5_000)
    assert platform.places_of(ANNA)
    for name in ("Ride", "Card"):
        erasure_id = platform.erase(name, [ANNA])
        drain(*platform.workers.values())
        platform.finish(erasure_id)
    assert platform.places_of(ANNA) == []
    assert platform.places_of(BERT)
    assert platform.town.check() > 20
    found = audit.get("r1")
    assert found is not None
    assert found.is_erased
    assert found.entity_ids[1] == BERT
    assert audit.get("r2") == other
    receipt = platform.erasures.get(erasure_id)
    assert receipt.completed_at is not None
    assert receipt.progress["archive_rows"] > 0


def test_an_erasure_waits_for_every_pipeline_and_says_for_which(platform: Platform) -> None:
    posted(platform)
    drain(*platform.workers.values())
    slow = platform.workers.pop("by_city")
    erasure_id = platform.erase("Ride", [ANNA])
    drain(*platform.workers.values())
    platform.copy()
    for _ in range(3):
        assert not platform.eraser.step()
    receipt = platform.erasures.get(erasure_id)
    assert (receipt.state, receipt.progress) == ("accepted", {"waiting_for": ["by_city@1"]})
    platform.town.check("by_rider", "by_pair")
    drain(slow)
    platform.finish(erasure_id)
    platform.town.check()


def test_a_worker_paused_before_the_tombstone_resurrects_nothing(platform: Platform) -> None:
    posted(platform)
    paused = platform.workers["by_pair"]
    paused.step()
    platform.erase("Ride", [ANNA])
    successor = platform.town.worker("by_pair")
    successor.start()
    drain(successor)
    with pytest.raises(Fenced):
        drain(paused)
    platform.town.check("by_pair")


@pytest.mark.parametrize("name", ["by_rider", "by_city", "by_pair", "by_rain", "newest_by_city", "spent_by_city"])
def test_a_worker_killed_between_the_writes_of_an_erasure_finishes_it(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    posted(platform, 120)
    worker = platform.workers[name]
    drain(worker)
    platform.town.erase("Ride", [ANNA, BERT])
    platform.town.erase("Rain", ["city-ypres"])
    monkeypatch.setattr(online, "_KEYS_OF_GROUP", 1)
    for kept in (1, 2, 5):
        with monkeypatch.context() as patch:
            patch.setattr(worker._store, "commit", dying_after(worker._store, kept))
            with pytest.raises(StoreUnavailable):
                drain(worker)
        worker = platform.town.worker(name)
        worker.start()
    drain(worker)
    assert platform.town.check(name) > 0


def dying_after(store: online.OnlineStore, writes: int) -> Callable[[StateName, list[online.GroupCommit]], None]:
    """The process dies when that many writes that change a key have reached the server."""

    def commit(state: StateName, commits: list[online.GroupCommit]) -> None:
        changing = [each for each in commits if each.changes or each.removed]
        sent = [write for each in changing for write in online._writes(state, [each])][:writes]
        store._fenced.write(sent, state.pipeline)
        raise StoreUnavailable("killed")

    return commit


class Killed(BaseException):
    """The process is gone."""


STEPS = [
    (Erasures, "move"),
    (Archive, "erase"),
    (Archive, "purge"),
    (Log, "trim"),
    (Log, "renew"),
    (DeadLetters, "delete"),
    (Audit, "erase"),
    (OnlineStore, "claim"),
    (Erasures, "move"),
    (Log, "forget_tombstones"),
    (AppendFile, "ask"),
]


def test_an_eraser_killed_at_every_step_goes_on(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    posted(platform, 20)
    drain(*platform.workers.values())
    platform.town.resend(platform.town.dataset("Ride"), [{"rider": ANNA, "city": "x", "fare": "dear"}], 5_000)
    erasure_id = platform.erase("Ride", [ANNA])
    drain(*platform.workers.values())
    platform.copy()
    for kind, method in STEPS:
        for when in ("before", "after"):
            with monkeypatch.context() as patch:
                patch.setattr(kind, method, dying(getattr(kind, method), when))
                with pytest.raises(Killed):
                    platform.finish(erasure_id)
            platform.eraser = platform.new_eraser()
    platform.finish(erasure_id)
    assert [place for place in platform.places_of(ANNA) if "BankStats" not in place and "Card" not in place] == []
    platform.town.check("by_rider", "by_city", "spent_by_city")


def dying(genuine: Callable[..., Any], when: str) -> Callable[..., None]:
    """The process dies before the call, or when it is done."""

    def call(*args: Any, **kwargs: Any) -> None:
        if when == "after":
            genuine(*args, **kwargs)
        raise Killed

    return call


def test_rows_a_source_sends_again_stay_erased(platform: Platform) -> None:
    town = platform.town
    rows = town.some("Ride", 30)
    town.post("Ride", rows)
    drain(*platform.workers.values())
    erasure_id = platform.erase("Ride", [ANNA])
    drain(*platform.workers.values())
    assert town.resend(town.dataset("Ride"), rows, 0).accepted == 0
    platform.finish(erasure_id)
    again = town.resend(town.dataset("Ride"), rows, 0)
    assert (again.accepted, again.duplicates) == (0, 30)
    drain(*platform.workers.values())
    town.check()


def test_later_records_count_anew_unless_the_entity_is_blocked(platform: Platform) -> None:
    town = platform.town
    town.post("Ride", town.some("Ride", 30))
    first = platform.erase("Ride", [ANNA])
    second = platform.erase("Ride", [BERT], block=True)
    drain(*platform.workers.values())
    platform.finish(first)
    platform.finish(second)
    fresh = [town._row("Ride") | {"rider": rider} for rider in (ANNA, BERT, ANNA, BERT)]
    taken = town.post("Ride", fresh)
    assert (taken.accepted, taken.erased, taken.duplicates, taken.lettered) == (2, 2, 0, 0)
    town.posted["Ride"] = [row for row in town.posted["Ride"] if row["rider"] != BERT]
    drain(*platform.workers.values())
    assert town.check("by_rider", "by_city") > 0
    platform.copy()
    assert [place for place in platform.places_of(BERT) if "Card" not in place and "BankStats" not in place] == []


def test_a_pipeline_that_begins_while_bytes_are_removed_is_folded_anew(platform: Platform) -> None:
    posted(platform)
    late = platform.workers.pop("by_city")
    platform.town.store.clear(StateName("by_city@1", 1), range(64))
    erasure_id = platform.erase("Ride", [ANNA])
    drain(*platform.workers.values())
    platform.copy()
    # As if it had been committed after the eraser had looked: it has read what is erased, not yet the tombstone.
    late = platform.town.worker("by_city", batch_rows=8)
    late.start()
    for _ in range(6):
        late.step()
    platform.erasures.move(erasure_id, "applied", {})
    assert platform.eraser.step()
    assert platform.erasures.get(erasure_id).progress["rebuilt"] == ["by_city@1#1"]
    with pytest.raises(Fenced):
        drain(late)
    anew = platform.town.worker("by_city")
    anew.start()
    drain(anew)
    assert platform.town.check("by_city") > 0


def test_tombstones_whose_request_died_get_a_receipt(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    posted(platform)
    erasure_id = "00000000-0000-4000-8000-00000000beef"
    platform.town.erase("Ride", [ANNA], erasure=erasure_id)
    drain(*platform.workers.values())
    platform.eraser.step()
    assert platform.erasures.list() == []
    monkeypatch.setattr("jobs.erase._ADOPT_EVERY", 0)
    platform.finish(erasure_id)
    assert platform.erasures.get(erasure_id).digests == (key_digest("Ride", ANNA),)


def test_the_log_says_which_offset_each_tombstone_has(platform: Platform) -> None:
    town = platform.town
    town.post("Ride", town.some("Ride", 20))
    before = [town.log.head(ref(town.dataset("Ride")), part).next_offset for part in range(PARTITIONS)]
    town.erase("Ride", list(RIDERS), erasure="e")
    found = town.log.tombstones(ref(town.dataset("Ride")), PARTITIONS)
    assert {each.key for each in found} == set(RIDERS)
    assert all(each.offset >= before[each.partition] for each in found)
    assert sum(head.next_offset for head in town.log.heads(ref(town.dataset("Ride")), PARTITIONS)) == 24
