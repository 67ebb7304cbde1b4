"""The hot log is trimmed by the archive alone: workers that stood still find what they missed, archives may be away."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from deltalake import DeltaTable

from cluster.processes import wait_until
from featurelib.clock import HOUR, SECOND, SystemClock
from featurelib.definitions import ref
from featurelib.engine.keys import key_group, owner_of_group
from featurelib.engine.records import OFFSET
from featurelib.errors import CorruptState, LogFull
from featurelib.settings import Settings
from featurelib.stores.archive import Archive
from featurelib.stores.budget import Budget
from featurelib.stores.history import Archived, History
from featurelib.stores.intake import Intake
from featurelib.stores.log import Log
from featurelib.stores.registry import Registry
from jobs.inputs import InputReader, input_partitions, lowest_positions
from jobs.maintain import ArchiveTask
from jobs.worker import PartitionWorker
from tests.support.clocks import MovedClock
from tests.support.patience import PATIENCE_S
from tests.support.redis_server import RedisServer
from tests.support.worlds import NEVER_LATE, RAIN, RIDES, T0, World, drain

BOTH = (RIDES, RAIN)


class Shelved:
    """A world whose log is archived and trimmed; workers read history as live ones do."""

    def __init__(self, url: str, key: str, seed: int, root: Path) -> None:
        self.world = World(url, key, seed)
        self.archive = Archive(str(root))
        self.root = str(root)

    def worker(self, groups: range = range(64), log: Log | None = None) -> PartitionWorker:
        log = log or self.world.log
        return PartitionWorker(
            self.world.program,
            self.world.state,
            groups,
            log=log,
            store=self.world.store,
            history=History(self.archive, log),
            batch_rows=64,
        )

    def trim(self) -> None:
        """Archive all, and leave nothing of it in the log."""
        self.world.archive(self.root)
        for dataset in BOTH:
            for part in range(2):
                self.world.log.trim(ref(dataset), part, self.archive.archived_offset(dataset, part))

    def entries(self) -> int:
        """Entries the log still holds."""
        log = self.world.log
        return sum(
            log.head(ref(dataset), part).next_offset - log.first_offset(ref(dataset), part)
            for dataset in BOTH
            for part in range(2)
        )


@pytest.fixture(params=[("rider", 1), ("city", 2)], ids=["keyed as the log", "keyed otherwise"])
def shelved(request: pytest.FixtureRequest, empty_redis_url: str, tmp_path: Path) -> Iterator[Shelved]:
    made = Shelved(empty_redis_url, *request.param, tmp_path / "archive")
    yield made
    made.world.close()


def test_a_worker_that_stood_still_finds_what_was_trimmed_in_the_archive(shelved: Shelved) -> None:
    world, worker = shelved.world, shelved.worker()
    worker.start()
    world.post_rain(20)
    world.post_rides(100)
    drain(worker)
    for _ in range(3):
        world.post_rain(20)
        world.post_rides(200)
        shelved.trim()
        assert shelved.entries() == 0
    world.post_rides(50)
    successor = shelved.worker()
    successor.start()
    assert successor.lag() == 3 * 220 + 50
    drain(successor)
    assert successor.lag() == 0
    assert world.check() > 0


def test_a_worker_that_stood_still_waits_for_nothing_when_all_it_missed_is_archived(shelved: Shelved) -> None:
    world = shelved.world
    world.post_rides(300)
    shelved.trim()
    worker = shelved.worker()
    worker.start()
    drain(worker)
    assert (worker.lag(), worker.wait(1)) == (0, False)
    world.check()


def test_counts_are_exact_while_the_log_is_trimmed_under_the_readers(shelved: Shelved) -> None:
    world = shelved.world
    workers = [shelved.worker(range(32)), shelved.worker(range(32, 64))]
    for worker in workers:
        worker.start()
    for _ in range(16):
        world.random.choice([world.post_rides, world.post_rides, world.post_rain])(world.random.randrange(1, 150))
        if world.random.random() < 0.5:
            shelved.trim()
        for worker in workers:
            for _ in range(world.random.randrange(3)):
                worker.step()
        if world.random.random() < 0.1:
            workers[0] = shelved.worker(range(32))
            workers[0].start()
    drain(*workers)
    assert world.check() > 0


def test_a_thread_that_trims_whatever_is_archived_takes_nothing_from_a_worker(shelved: Shelved) -> None:
    world, done = shelved.world, threading.Event()
    trimmer = Log(world.url, SystemClock())

    def trim_for_ever() -> None:
        while not done.is_set():
            for dataset in BOTH:
                snapshot = shelved.archive.snapshot(dataset)
                for part in range(2):
                    trimmer.trim(ref(dataset), part, snapshot.archived_offset(part))

    worker, thread = shelved.worker(), threading.Thread(target=trim_for_ever)
    worker.start()
    thread.start()
    try:
        for _ in range(6):
            world.post_rides(200)
            worker.step()
            world.archive(shelved.root)
            world.post_rides(100)
            worker.step()
        drain(worker)
    finally:
        done.set()
        thread.join()
        trimmer.close()
    world.check()


class _NoArchive:
    """For readers that must not need one."""

    def archived(self, dataset: object, partition: int, offset: int, max_rows: int) -> Archived:
        raise AssertionError((dataset, partition, offset, max_rows))


@pytest.mark.parametrize("shelved", [("rider", 3)], indirect=True, ids=["keyed as the log"])
def test_one_worker_in_place_of_many_reads_each_partition_where_its_own_groups_stand(shelved: Shelved) -> None:
    world = shelved.world
    halves = [shelved.worker(range(32)), shelved.worker(range(32, 64))]
    for half in halves:
        half.start()
    world.post_rain(10)
    world.post_rides(300)
    drain(*halves)
    shelved.trim()
    whole = shelved.worker()
    whole.start()
    assert whole.lag() == 0
    # Groups of one half never stood anywhere in the partition of the other.
    claims = {claim.group: claim.positions or [] for claim in world.store.claim(world.state, range(64))}
    partitions = input_partitions(world.program, world.log)
    ends = [world.log.head(*source.address).next_offset for source in partitions]
    assert claims[0][1] == claims[63][0] == 0
    assert lowest_positions(world.program, partitions, claims) == ends
    assert lowest_positions(world.program, partitions, world.store.progress(world.state).standings) == ends
    reader = InputReader(world.program, range(64), log=world.log, archive=_NoArchive(), batch_rows=64)
    assert reader.read([*reader.lefts, *reader.rights], claims) == {}
    assert reader.even(claims)


def test_a_group_that_has_not_begun_holds_a_pipeline_at_the_beginning(shelved: Shelved) -> None:
    world = shelved.world
    partitions = input_partitions(world.program, world.log)
    standings = {group: [5, 5, 5, 5] for group in range(63)}
    lefts = [5, 0] if world.key == "rider" else [0, 0]
    assert lowest_positions(world.program, partitions, standings) == [*lefts, 0, 0]


def test_what_was_erased_from_the_archive_is_passed_over(shelved: Shelved) -> None:
    world = shelved.world
    for hour in range(8):
        world.ride_at(T0 + hour * HOUR, "a", "x", 5)
    shelved.trim()
    part = owner_of_group(key_group("a"), 2)
    table = DeltaTable(shelved.archive.location(RIDES))
    table.delete(f"{OFFSET} in (0, 3, 6, 7)")
    reader = InputReader(
        world.program, range(64), log=world.log, archive=History(shelved.archive, world.log), batch_rows=3
    )
    positions = {group: [0, 0, 0, 0] for group in range(64)}
    seen: list[int] = []
    while batch := reader.read([part], positions):
        seen += batch[part][OFFSET].to_pylist()
        for each in positions.values():
            each[part] = seen[-1] + 1
    assert seen == [1, 2, 4, 5]
    assert reader.lag(positions) == 0
    world.ride_at(T0, "a", "x", 5)
    assert reader.wait(positions, 1_000)
    assert reader.read([part], positions)[part][OFFSET].to_pylist() == [8]


def test_an_offset_that_neither_log_nor_archive_holds_is_an_error_aloud(shelved: Shelved) -> None:
    world, worker = shelved.world, shelved.worker()
    worker.start()
    world.post_rides(50)
    shelved.trim()
    shutil.rmtree(shelved.root)
    with pytest.raises(CorruptState, match=r"neither log nor archive of Ride@1/[01] holds offset 0"):
        drain(worker)


# The archive away.


class Platform:
    """A log with a small budget, a registry for events, and an archiver over one folder."""

    def __init__(self, server: RedisServer, folder: Path, archive: Path, *, gather_ms: int = 0) -> None:
        self.settings = Settings(
            data_dir=folder,
            online={"redis_url": server.url, "log_budget_mb": 1, "hot_log_ms": 1},
            archive={"url": str(archive), "interval_ms": 1, "gather_ms": gather_ms},
        )
        self.clock = MovedClock(T0)
        self.log = Log(server.url, self.clock, Budget.of(self.settings.online))
        self.log.create(ref(RIDES), 2)
        self.registry = Registry(self.settings.registry_url, self.clock)
        self.registry.migrate()
        self.archive = Archive(str(archive))
        self.task = ArchiveTask([RIDES], self.settings)
        self.sent = 0

    def send(self, count: int = 500) -> None:
        """Records of about 200 bytes that LZ4 cannot make smaller."""
        rows = [{"rider": os.urandom(100).hex(), "city": "x", "fare": self.sent + i, "at": 1} for i in range(count)]
        self.sent += Intake(self.log, RIDES, 2, NEVER_LATE).accept(rows).accepted

    def drain(self) -> None:
        """Step until all that was sent is archived."""
        for _ in range(200):
            self.task.step()
            self.task.wait(threading.Event())
            if sum(self.archive.archived_offset(RIDES, part) for part in range(2)) == self.sent:
                return
        raise AssertionError(self.task.facts())

    def events(self) -> list[tuple[str, str]]:
        """Type and severity of what was told, in order."""
        return [(event.event_type, event.severity) for event in reversed(self.registry.events())]

    def fares(self) -> list[int]:
        """What history has, archived or not."""
        return sorted(History(self.archive, self.log).read(RIDES, 2)["fare"].to_pylist())

    def close(self) -> None:
        self.task.close()
        self.log.close()
        self.registry.close()


def outage_over(platform: Platform, mend: object) -> None:
    """Nothing is lost while the archive is away, and it is told of once when it goes and once when it comes."""
    platform.send()
    for _ in range(3):
        assert platform.task.step() is False
    platform.send()
    assert platform.events() == [("archive_unavailable", "error")]
    assert platform.fares() == list(range(platform.sent))
    assert callable(mend)
    mend()
    platform.drain()
    assert platform.events() == [("archive_unavailable", "error"), ("archive_unavailable", "info")]
    assert platform.fares() == list(range(platform.sent)) == list(range(1_000))


@pytest.fixture
def blocked(redis_server: RedisServer, tmp_path: Path) -> Iterator[Platform]:
    """The archive's folder is a file, which nobody can write below; a mode that forbids it would not stop root."""
    (tmp_path / "archive").write_text("in the way")
    made = Platform(redis_server, tmp_path, tmp_path / "archive")
    yield made
    made.close()


def test_an_archive_that_cannot_be_written_is_waited_for(blocked: Platform, tmp_path: Path) -> None:
    outage_over(blocked, (tmp_path / "archive").unlink)


def test_an_archiver_that_is_started_again_tells_nothing_twice(
    blocked: Platform, tmp_path: Path, redis_server: RedisServer
) -> None:
    with redis_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    blocked.send()
    for _ in range(3):
        blocked.task.start()
        blocked.task.step()
        blocked.task.close()
        blocked.task = ArchiveTask([RIDES], blocked.settings)
    assert blocked.events() == [("online_store_setup", "warn"), ("archive_unavailable", "error")]
    (tmp_path / "archive").unlink()
    blocked.task.start()
    blocked.drain()
    assert blocked.events()[2:] == [("archive_unavailable", "info")]


def test_a_log_over_its_budget_takes_no_more_until_the_archive_has_drained_it(
    blocked: Platform, tmp_path: Path
) -> None:
    with pytest.raises(LogFull, match=r"of its 1\.0 MB \(online\.log_budget_mb\)"):
        send_until_refused(blocked)
    assert blocked.events() == [("archive_unavailable", "error"), ("log_full", "error")]
    assert blocked.fares() == list(range(blocked.sent))
    (tmp_path / "archive").unlink()
    blocked.drain()
    blocked.task.step()
    blocked.clock.time += SECOND
    blocked.send()
    blocked.drain()
    assert blocked.fares() == list(range(blocked.sent))
    assert blocked.events()[2:] == [("archive_unavailable", "info"), ("log_full", "info")]


def test_records_that_may_gather_longer_are_archived_once_the_log_is_over_its_budget(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    platform = Platform(redis_server, tmp_path, tmp_path / "archive", gather_ms=3_600_000)
    platform.send()
    platform.task.step()
    platform.send()
    platform.task.step()
    assert platform.task.facts()["lag"] == {"Ride@1": 500}
    platform.send(8_000)

    def archived() -> bool:
        platform.task.step()
        return sum(platform.archive.archived_offset(RIDES, part) for part in range(2)) == platform.sent

    # The log's use is measured once a second.
    assert wait_until(archived, PATIENCE_S, every_s=0.1)
    assert platform.fares() == list(range(platform.sent))
    platform.close()


def send_until_refused(platform: Platform) -> None:
    """A second passes between two batches."""
    for _ in range(10):
        platform.send(2_000)
        platform.task.step()
        platform.clock.time += SECOND


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB; only root may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_below_the_archive_is_waited_for(
    redis_server: RedisServer, tmp_path: Path, small_disk: Path
) -> None:
    ballast = small_disk / "ballast"
    platform = Platform(redis_server, tmp_path, small_disk / "archive")
    try:
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(bytes(2 << 20))
        outage_over(platform, ballast.unlink)
    finally:
        platform.close()
