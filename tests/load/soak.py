"""Faults against a running load, counted exactly: ``make soak``.

Rides come from files and taps over HTTP, numbered, with a known answer, while processes are killed and frozen,
connections cut, the archive's disk is full or read-only, the source away, and what was sent is sent again. Afterwards
every count must be exact, online and point-in-time, every record in the archive once, every position at its log's
end, and no process there that should not be. Reads go on throughout; who could not be read is counted by fault.

    SOAK_SECONDS   how long the faults are spread over, at least (default 420)
    SOAK_EVENTS    how many events, at least (default 200,000)
    SOAK_ROUNDS    how often each kind of fault (default 4)
    SOAK_SEED      their order and pauses

Ends with ``N faults, N events, 0 lost, 0 doubled``, or with status 1.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx2
import psutil
import redis
from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table

from cluster import local
from cluster.processes import wait_until
from featurelib import ThymeClient
from featurelib.clock import SystemClock
from featurelib.errors import ThymeError
from featurelib.stores.log import Log
from featurelib.stores.online import OnlineStore, StateName
from tests.support.towns import CITIES, RIDERS, Town, running_town

LEASE_S = 4.0
DEADLINE_S = 180.0
_AWAY_S = 3.0
_TAPS = [f"t{number}" for number in range(20)]
_RUNNING = {"ray::PipelineWorker": 6, "ray::SourceReader": 2, "ray::Archiver": 1}
"""Three pipelines of two partitions, rides and rain, one archiver."""
_PROCESSES = (*_RUNNING, "ray::ServeReplica", "jobs.supervisor")
_LEFTS = {"by_rider@1": "Ride@1", "by_city@1": "Ride@1", "by_tap@1": "Tap@1"}
TAPS_MODULE = """
from datetime import datetime
from featurelib import Count, Sum, dataset, feature, featureset, field, inputs, pipeline

@dataset(version=1)
class Tap:
    tap: str = field(key=True)
    cents: int = field()
    at: datetime = field(timestamp=True)

@dataset(index=True, version=1)
class TapStats:
    tap: str = field(key=True)
    taps: int = field()
    cents: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Tap)
    def by_tap(cls, taps):
        return taps.groupby("tap").aggregate(taps=Count(), cents=Sum(of="cents"))

@featureset
class TapFeatures:
    tap: str = feature()
    taps: int = feature(ref=TapStats.taps)
    cents: int = feature(ref=TapStats.cents)
"""

Answers = dict[str, tuple[int, ...]]


class Disk:
    """Where the archive lies, and how to spoil it: a small file system of its own if this user may mount one."""

    def __init__(self, home: Path, megabytes: int) -> None:
        self.path = home / "disk"
        self.path.mkdir()
        options = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(self.path)]
        self.mounted = subprocess.run(options, check=False, capture_output=True).returncode == 0
        self.archive = self.path / "archive"

    def note(self) -> str:
        """How the two faults of the archive are made."""
        return "a tmpfs of its own" if self.mounted else "no right to mount: a file in the archive's place stands in"

    def close(self) -> None:
        """Unmount."""
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Nothing can be written."""
        if not self.mounted:
            with self._away():
                yield
            return
        assert wait_until(lambda: self._remount("ro"), 20.0)  # refused while a file is being written
        try:
            yield
        finally:
            assert wait_until(lambda: self._remount("rw"), 20.0)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Not a byte is free."""
        if not self.mounted:
            with self._away():
                yield
            return
        filler = self.path / "filler"
        stopping = threading.Event()
        filling = threading.Thread(target=_fill, args=(filler, stopping))
        filling.start()
        try:
            yield
        finally:
            stopping.set()
            filling.join()
            filler.unlink()

    def _remount(self, mode: str) -> bool:
        command = ["mount", "-o", f"remount,{mode}", str(self.path)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    @contextmanager
    def _away(self) -> Iterator[None]:
        hidden = self.path / "hidden"
        self.archive.rename(hidden)
        self.archive.write_text("")
        try:
            yield
        finally:
            self.archive.unlink()
            hidden.rename(self.archive)


def _fill(path: Path, stopping: threading.Event) -> None:
    with path.open("ab", buffering=0) as file:
        while True:
            try:
                file.write(b"\0" * 65_536)
            except OSError:
                if stopping.wait(0.02):
                    return


class Taps:
    """Taps posted with idempotency keys, again and again until they are taken; some once more later."""

    def __init__(self, client: ThymeClient) -> None:
        self._client = client
        self.sent: list[list[dict[str, object]]] = []
        self.again = 0

    def post(self, count: int, shift_s: int) -> None:
        """One new request."""
        first = sum(len(batch) for batch in self.sent)
        at = 1_700_000_000 + shift_s
        batch: list[dict[str, object]] = [
            {"tap": _TAPS[n % len(_TAPS)], "cents": n % 97, "at": at + n / 1_000} for n in range(first, first + count)
        ]
        self.sent.append(batch)
        self._send(len(self.sent) - 1)

    def repeat(self, count: int) -> None:
        """Requests that were answered, once more."""
        for number in range(max(0, len(self.sent) - 1 - count), len(self.sent) - 1):
            self._send(number)
            self.again += 1

    def close(self) -> None:
        """No more requests."""
        self._client.close()

    def expected(self) -> Answers:
        """Per tap (taps, cents)."""
        counts: Counter[str] = Counter()
        cents: Counter[str] = Counter()
        for event in (event for batch in self.sent for event in batch):
            counts[str(event["tap"])] += 1
            cents[str(event["tap"])] += int(str(event["cents"]))
        return {tap: (counts[tap], cents[tap]) for tap in counts}

    def _send(self, number: int) -> None:
        def taken() -> bool:
            try:
                self._client.log("Tap", self.sent[number], idempotency_key=f"taps-{number}")
            except ThymeError as error:
                if not error.retryable:
                    raise
                return False
            return True

        assert wait_until(taken, DEADLINE_S, every_s=0.2)


class Failure(NamedTuple):
    """A read that failed twice in a row."""

    at: float
    error: str


class Reads(threading.Thread):
    """Reads features all the time. One that fails is asked again at once, as a caller would; both failing counts."""

    def __init__(self, client: ThymeClient) -> None:
        super().__init__(daemon=True)
        self._client = client
        self._over = threading.Event()
        self.asked = 0
        self.slowest_s = 0.0
        self.failures: list[Failure] = []

    def run(self) -> None:
        """Until :meth:`finish`."""
        while not self._over.wait(0.05):
            began = time.monotonic()
            error = self._read() and self._read()
            self.asked += 1
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            if error:
                self.failures.append(Failure(began, error))

    def finish(self) -> None:
        """Stop reading."""
        self._over.set()
        self.join()
        self._client.close()

    def _read(self) -> str:
        try:
            self._client.query("CityFeatures", CITIES[self.asked % len(CITIES)])
        except (ThymeError, httpx2.HTTPError) as error:
            return f"{type(error).__name__}: {error}"
        return ""


class Soak:
    """A town under load, and what can happen to it."""

    def __init__(self, town: Town, disk: Disk, chosen: random.Random) -> None:
        self.town = town
        self.disk = disk
        self.chosen = chosen
        self.taps = Taps(town.platform.client())
        self.reads = Reads(town.platform.client())
        self.shift_s = 0
        self.began = time.monotonic()
        self.per_s = 0.0
        self.down: list[tuple[float, float]] = []
        """When the online store was away."""
        self._over = threading.Event()
        self._files = threading.Lock()
        self._posts = threading.Lock()
        self._threads = [threading.Thread(target=feed, daemon=True) for feed in (self._feed_files, self._feed_taps)]
        self._broken: list[BaseException] = []

    @property
    def events(self) -> int:
        """How many there were."""
        return self.town.rows + sum(len(batch) for batch in self.taps.sent)

    def begin(self) -> None:
        """Commit the taps' definitions and let events come."""
        module = self.town.platform.home / "taps.py"
        module.write_text(TAPS_MODULE)
        self.town.platform.thyme("commit", str(module))
        for thread in (*self._threads, self.reads):
            thread.start()

    def end(self) -> None:
        """No more events."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        self.per_s = self.events / (time.monotonic() - self.began)
        self.taps.close()
        self.reads.finish()
        if self._broken:
            raise self._broken[0]

    def _feed_files(self) -> None:
        while not self._over.wait(0.5):
            with self._files:
                self.town.drive(1, 700, self.shift_s)

    def _feed_taps(self) -> None:
        while not self._over.wait(0.4):
            try:
                with self._posts:
                    self.taps.post(100, self.shift_s)
            except (ThymeError, AssertionError) as error:  # told at the end: a thread cannot fail the run
                self._broken.append(error)
                return

    # Faults. Each returns once it is over; what it broke may take longer to come back.

    def kill(self, title: str, part: str | None = None, *, one: bool = False) -> int:
        """SIGKILL; returns how many processes there were."""
        found = self.town.platform.processes(title, part)
        hit = [self.chosen.choice(found)] if one and found else found
        for process in hit:
            with suppress(psutil.NoSuchProcess):  # it may end meanwhile, by itself
                process.kill()
        return len(hit)

    def worker_killed(self) -> int:
        """One worker of one pipeline."""
        return self.kill("ray::PipelineWorker", one=True)

    def driver_killed(self) -> int:
        """The supervisor's job, with its shell."""
        return self.kill("jobs.supervisor", "node")

    def replica_killed(self) -> int:
        """What answers requests."""
        return self.kill("ray::ServeReplica")

    def node_processes_killed(self) -> int:
        """Every worker process of the raylet: workers, readers, archiver, replicas."""
        return self.kill("ray::", "node")

    def head_killed(self) -> int:
        """GCS and the head's raylet."""
        return self.kill("gcs_server", "head") + self.kill("raylet/raylet", "head")

    def worker_frozen(self) -> int:
        """SIGSTOP for longer than a lease, then SIGCONT."""
        found = self.town.platform.processes("ray::PipelineWorker")
        if not found:
            return 0
        frozen = self.chosen.choice(found)
        try:
            frozen.send_signal(signal.SIGSTOP)
        except psutil.NoSuchProcess:  # it ended meanwhile: another one is frozen
            return 0
        threading.Event().wait(LEASE_S + 2.0)
        with suppress(psutil.NoSuchProcess):  # replaced
            frozen.send_signal(signal.SIGCONT)
        return 1

    def online_killed(self) -> int:
        """The server of online values and logs."""
        with self._online_is_down():
            return self.kill("", "online")

    def gcs_store_killed(self) -> int:
        """Ray's own server."""
        return self.kill("", "gcs-store")

    def connections_cut(self) -> int:
        """Every connection to the online store."""
        with self._online_is_down(), redis.Redis.from_url(self.town.platform.online_url()) as client:
            return int(client.client_kill_filter(_type="normal", skipme=True))

    @contextmanager
    def _online_is_down(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        with redis.Redis.from_url(self.town.platform.online_url()) as client:
            assert wait_until(lambda: _answers(client), DEADLINE_S, every_s=0.05)
        self.down.append((began - 1.0, time.monotonic() + 1.0))

    def archive_read_only(self) -> int:
        """For a few of its rounds."""
        with self.disk.read_only():
            threading.Event().wait(_AWAY_S)
        return 1

    def archive_full(self) -> int:
        """For a few of its rounds."""
        with self.disk.full():
            threading.Event().wait(_AWAY_S)
        return 1

    def delivered_again(self) -> int:
        """Requests sent again with their keys, and a file rewritten as it is."""
        with self._posts:
            before = self.taps.again
            self.taps.repeat(10)
        with self._files:
            newest = max((self.town.platform.home / "rides").glob("*.parquet"))
            newest.write_bytes(newest.read_bytes())
        return self.taps.again - before

    def source_fails(self) -> int:
        """The folder of the rides is away: every poll of it is an error."""
        rides = self.town.platform.home / "rides"
        with self._files:
            rides.rename(rides.with_name("hidden"))
            threading.Event().wait(_AWAY_S)
            rides.with_name("hidden").rename(rides)
        return 1

    def clock_jumps(self) -> int:
        """Events are dated days later or earlier from now on."""
        self.shift_s = self.chosen.randrange(-10, 11) * 86_400
        return 1


FAULTS: dict[str, Callable[[Soak], int]] = {
    "worker killed": Soak.worker_killed,
    "driver killed": Soak.driver_killed,
    "Serve replica killed": Soak.replica_killed,
    "worker processes of the raylet killed": Soak.node_processes_killed,
    "GCS process and head raylet killed": Soak.head_killed,
    "worker frozen beyond its lease": Soak.worker_frozen,
    "online store killed": Soak.online_killed,
    "GCS store killed": Soak.gcs_store_killed,
    "connections to the online store cut": Soak.connections_cut,
    "archive read-only": Soak.archive_read_only,
    "archive's disk full": Soak.archive_full,
    "delivered again": Soak.delivered_again,
    "source returns errors": Soak.source_fails,
    "clock of the events jumps": Soak.clock_jumps,
}


class Tally(NamedTuple):
    """What a kind of fault hit, and what became of reads until the next fault."""

    faults: Counter[str]
    processes: Counter[str]
    reads_failed: Counter[str]


def inject(soak: Soak, kinds: Sequence[str], pause_s: float) -> Tally:
    """These faults, in this order, most of them before the one before is mended."""
    tally = Tally(Counter(), Counter(), Counter())
    for kind in kinds:
        failed = len(soak.reads.failures)
        began = time.monotonic()
        hit = 0
        # A process that has not come back since the last fault cannot be killed: wait for it.
        while not hit and time.monotonic() - began < DEADLINE_S:
            hit = FAULTS[kind](soak)
            if not hit:
                threading.Event().wait(0.5)
        tally.faults[kind] += hit > 0
        tally.processes[kind] += hit
        settled = 30.0 if soak.chosen.random() < 0.3 else pause_s
        wait_until(lambda: local.status(soak.town.platform.settings).ready, settled, every_s=0.2)
        threading.Event().wait(max(0.0, soak.chosen.uniform(0.5, 1.5) * pause_s - (time.monotonic() - began)))
        tally.reads_failed[kind] += len(soak.reads.failures) - failed
        print(f"{time.monotonic() - soak.began:6.0f} s {soak.events:>8} events  {kind}: {hit}", flush=True)
    return tally


class Verdict(NamedTuple):
    """What was found afterwards; ``problems`` is empty if everything is as it must be."""

    lost: int
    doubled: int
    problems: list[str]


def judge(soak: Soak, census: Counter[str]) -> Verdict:
    """Wait until all is quiet, then look at everything."""
    town = soak.town
    problems = []
    if not wait_until(lambda: local.status(town.platform.settings).ready, DEADLINE_S):
        problems.append(f"the platform is not ready: {local.status(town.platform.settings).model_dump_json()}")
    wanted = expected(soak)
    wait_until(lambda: _served(soak) == wanted, DEADLINE_S, every_s=0.5)
    online, past = _served(soak), _past(soak)
    problems += [
        f"online {key}: {online.get(key)} instead of {row}" for key, row in wanted.items() if online.get(key) != row
    ]
    problems += [f"point-in-time {key}: {past.get(key)}" for key, row in wanted.items() if past.get(key) != row]
    # Rides of cities and rides of riders are the same ones.
    differences = [online.get(key, (0,))[0] - wanted[key][0] for key in (*CITIES, *_TAPS)]
    problems += _positions(town) + _archive(soak)
    if not wait_until(lambda: _census(town) == census, DEADLINE_S, every_s=0.5):
        problems.append(f"processes {dict(_census(town))}, not {dict(census)}")
    unexplained = [f for f in soak.reads.failures if not any(a <= f.at <= b for a, b in soak.down)]
    problems += [f"a read failed while the online store was there: {failure.error}" for failure in unexplained[:5]]
    return Verdict(sum(max(0, -d) for d in differences), sum(max(0, d) for d in differences), problems)


def expected(soak: Soak) -> Answers:
    """What the files and requests hold."""
    riders, cities = soak.town.expected()
    return {**riders, **cities, **soak.taps.expected()}


def _served(soak: Soak) -> Answers:
    try:
        riders, cities = soak.town.served()
        taps = soak.town.client.query_batch("TapFeatures", _TAPS).to_dict()
    except ThymeError:
        return {}
    return {**riders, **cities, **{row["tap"]: (row["taps"], row["cents"]) for row in taps}}


def _past(soak: Soak) -> Answers:
    """The same, point-in-time, at an instant after every event."""
    at = "2024-06-01T00:00:00Z"
    found: Answers = {}
    asked = [("RiderFeatures", RIDERS[:8], ("rides", "cents", "wet")), ("CityFeatures", CITIES, ("rides", "cents"))]
    for featureset, keys, columns in (*asked, ("TapFeatures", _TAPS[:8], ("taps", "cents"))):
        for key in keys:
            (row,) = soak.town.client.query(featureset, key, timestamp=at).to_dict()
            found[key] = tuple(row[column] for column in columns)
    # Each costs a read of the history: the keys not asked for are taken as served.
    return _served(soak) | found


def _positions(town: Town) -> list[str]:
    """Every group of every pipeline stands at the end of what it reads."""
    log, store = Log(town.platform.online_url(), SystemClock()), OnlineStore(town.platform.online_url())
    problems = []
    for pipeline, left in _LEFTS.items():
        ends = [head.next_offset for head in log.heads(left, log.partitions(left))]
        generation = store.generation(pipeline)
        standings = store.progress(StateName(pipeline, generation)).standings
        reached = [max(positions[index] for positions in standings.values()) for index in range(len(ends))]
        if len(standings) != 64 or reached != ends:
            problems.append(f"{pipeline} stands at {reached} in {len(standings)} groups; the log ends at {ends}")
    log.close()
    store.close()
    return problems


def _archive(soak: Soak) -> list[str]:
    """Every record once, from the first to the last."""
    taps = sum(len(batch) for batch in soak.taps.sent)
    return [
        problem
        for name, rows in (("Ride", soak.town.rows), ("Tap", taps))
        for problem in _archived(soak.disk.archive / name / "v1", rows)
    ]


def _archived(folder: Path, rows: int) -> list[str]:
    def offsets() -> dict[int, list[int]]:
        table = DeltaTable(str(folder)).to_pyarrow_table(columns=["__partition", "__offset"])
        found: dict[int, list[int]] = {}
        for part, offset in zip(table["__partition"].to_pylist(), table["__offset"].to_pylist(), strict=True):
            found.setdefault(part, []).append(offset)
        return found

    wait_until(lambda: sum(len(each) for each in offsets().values()) >= rows, DEADLINE_S, every_s=1.0)
    found = offsets()
    problems = [
        f"{folder.parent.name}/{part}: the archive's offsets are not 0..{len(held) - 1}, each once"
        for part, held in found.items()
        if sorted(held) != list(range(len(held)))
    ]
    total = sum(len(held) for held in found.values())
    return problems if total == rows else [*problems, f"{folder.parent.name}: {total} records archived, not {rows}"]


def _census(town: Town) -> Counter[str]:
    """How many processes of each kind there are."""
    return Counter({title: len(town.platform.processes(title, "node")) for title in _PROCESSES})


def _whole_census(town: Town) -> Counter[str]:
    """The census once all that is wanted runs: a moment later one may be replaced whose lease ran out."""
    taken: list[Counter[str]] = []

    def is_whole() -> bool:
        taken.append(_census(town))
        return taken[-1].items() >= _RUNNING.items()

    assert wait_until(is_whole, DEADLINE_S, every_s=0.5), taken[-1]
    return taken[-1]


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def table(tally: Tally) -> Table:
    """A line per kind of fault."""
    shown = Table("fault", "times", "processes, connections or requests hit", "reads failed until the next")
    for kind in FAULTS:
        if tally.faults[kind]:
            shown.add_row(kind, *(str(counter[kind]) for counter in tally))
    return shown


def run(
    home: Path, kinds: Sequence[str], seconds: float, events: int, chosen: random.Random
) -> tuple[Tally, Soak, Verdict]:
    """A platform of its own, these faults, and what was found afterwards."""
    disk = Disk(home, 512)
    environment = {"THYME_PIPELINE__LEASE_MS": str(int(LEASE_S * 1_000)), "THYME_ARCHIVE__URL": str(disk.archive)}
    try:
        with running_town(home, **environment) as town:
            soak = Soak(town, disk, chosen)
            soak.begin()
            assert wait_until(lambda: bool(_served(soak)), DEADLINE_S, every_s=0.5)
            census = _whole_census(town)
            tally = inject(soak, kinds, seconds / len(kinds))
            wait_until(lambda: soak.events >= events, DEADLINE_S)
            soak.end()
            return tally, soak, judge(soak, census)
    finally:
        disk.close()


def main() -> int:
    """Run; returns the exit status."""
    seconds = float(os.environ.get("SOAK_SECONDS", "420"))
    events = int(os.environ.get("SOAK_EVENTS", "200000"))
    rounds = int(os.environ.get("SOAK_ROUNDS", "4"))
    seed = int(os.environ.get("SOAK_SEED", str(random.randrange(10**6))))
    print(f"SOAK_SECONDS={seconds:.0f} SOAK_EVENTS={events} SOAK_ROUNDS={rounds} SOAK_SEED={seed}", flush=True)
    chosen = random.Random(seed)
    kinds = list(FAULTS) * rounds
    chosen.shuffle(kinds)
    with tempfile.TemporaryDirectory(prefix="thyme-soak-") as folder:
        tally, soak, verdict = run(Path(folder), kinds, seconds, events, chosen)
    Console(width=140).print(table(tally))
    print(f"archive: {soak.disk.note()}; clock: event times jump, the machine's clock does not")
    print(f"{soak.per_s:.0f} events/s; {soak.reads.asked} reads, ", end="")
    print(f"{len(soak.reads.failures)} failed, the slowest answer after {soak.reads.slowest_s:.1f} s")
    for problem in verdict.problems:
        print(problem)
    faults = sum(tally.faults.values())
    print(f"{faults} faults, {soak.events} events, {verdict.lost} lost, {verdict.doubled} doubled")
    return 1 if verdict.problems or faults < len(kinds) or soak.events < events else 0


if __name__ == "__main__":
    sys.exit(main())
