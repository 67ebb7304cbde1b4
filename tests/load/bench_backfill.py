"""Backfill: how fast history becomes online state, and what memory it takes as history grows.

    make bench BENCH=backfill        (RUNS=3, EVENTS=10000000; about ten minutes)

A quarter, half and all of the events are built by two processes, one partition each, as the two actors of a backfill's
Ray job do it: read the archive, prepare, fold, write every key once into a real Redis on the same two cores. Ray's own
start is left out here and is some ten seconds. Events per second are by the clock, and beside it per two cores' worth
of CPU time of builders and server together, which a busy machine does not change. Memory is both builders' peaks,
summed; what both hold before they begin, imports above all, is told apart.

Limit, in the same run: the same archive read by the same two processes and nothing done with it. Each size is priced
before it is built, as `thyme backfill start --dry-run` does it; the price's fixed part for Ray's start is left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import psutil
import pyarrow as pa

from cluster.processes import collect_seldom
from featurelib.clock import DAY, SystemClock
from featurelib.definitions import Definitions, ref
from featurelib.engine.input_partitions import InputPartition
from featurelib.engine.keys import groups_of, key_groups, owner_of_group
from featurelib.engine.records import PARTITION, record_schema
from featurelib.settings import Settings
from featurelib.stores.archive import Archive
from featurelib.stores.backfill_price import START_S, BackfillAsked, Price, Pricing
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.online import OnlineStore, StateName
from jobs.backfill import Order, PartitionBuilder
from tests.load.bench_engine import EVENTS, T0, program_of, records_of, twenty
from tests.load.harness import Figure, median, report
from tests.support.redis_server import RedisServer

RUNS = int(os.environ.get("RUNS", "3"))
MOST = int(os.environ.get("EVENTS", "10000000"))
PARTITIONS = 2
EVENTS_PER_KEY = 100
_COMMIT_ROWS = 200_000
_SPAN = 90 * DAY


class Built(NamedTuple):
    """What one build took.

    Attributes:
        seconds: by the clock, both processes' start included.
        building_s: the same without their start, of the slower one.
        cpu_seconds: of both and the server.
        peak_mib: both processes' peaks, summed.
        keys: how many were written.
        state_bytes: what the server's memory grew by.
    """

    seconds: float
    building_s: float
    cpu_seconds: float
    peak_mib: float
    keys: int
    state_bytes: int


class Measured(NamedTuple):
    """One size: what was built, what reading alone took of CPU time, and what was said before."""

    events: int
    runs: list[Built]
    reading_s: list[float]
    priced: list[Price]


def fill(folder: Path, events: int, events_per_key: int = EVENTS_PER_KEY) -> None:
    """An archive as the platform leaves it: commits of 200,000 records, then compacted."""
    archive, chosen = Archive(str(folder / "archive")), np.random.default_rng(7)
    names = pl.Series([f"u{n}" for n in range(max(1, events // events_per_key))])
    owners = np.array([owner_of_group(int(group), PARTITIONS) for group in key_groups(names)])
    following = [0] * PARTITIONS
    commits = -(-events // _COMMIT_ROWS)
    for number in range(commits):
        rows = min(_COMMIT_ROWS, events - number * _COMMIT_ROWS)
        who = chosen.integers(0, len(names), rows)
        times = T0 + _SPAN * number // commits + np.sort(chosen.integers(0, _SPAN // commits, rows))
        records = records_of(names.gather(who), times, number)
        archive.append(EVENTS, _placed(records, owners[who], following))
    archive.compact(EVENTS)
    (folder / "cut").write_text(" ".join(map(str, following)))


def _placed(records: pa.Table, partitions: np.ndarray, following: list[int]) -> pa.Table:
    """The records with the log partition of their key, and its next offsets."""
    offsets = np.zeros(len(records), dtype=np.int64)
    for partition in range(PARTITIONS):
        mine = partitions == partition
        offsets[mine] = following[partition] + np.arange(int(mine.sum()))
        following[partition] += int(mine.sum())
    columns = {PARTITION: pa.array(partitions, pa.int32()), "__offset": pa.array(offsets)}
    schema = record_schema(EVENTS)
    return pa.table([columns.get(name, records[name]) for name in schema.names], schema=schema)


def order_of(folder: Path) -> Order:
    """Build everything archived."""
    program = program_of(twenty())
    cut = [int(offset) for offset in (folder / "cut").read_text().split()]
    definitions = Definitions(datasets=program.definitions.datasets)
    return Order(program.pipeline, definitions, StateName(program.ref, 2), cut, None, rows_expected=sum(cut))


def build_partition(folder: Path, url: str, partition: int) -> None:
    """In a process of its own: one partition."""
    settings = Settings(
        data_dir=folder / "data",
        online={"redis_url": url},
        archive={"url": str(folder / "archive")},
        pipeline={"partition_count": PARTITIONS},
    )
    collect_seldom()  # as the actor does
    builder = PartitionBuilder(order_of(folder), settings)
    started = time.perf_counter()
    built = builder.build(partition)
    seconds = time.perf_counter() - started
    builder.close()
    say(built.keys, seconds)


def read_partition(folder: Path, partition: int) -> None:
    """In a process of its own: the reading of one partition, and nothing else."""
    program = program_of(twenty())
    snapshot = Archive(str(folder / "archive")).snapshot(EVENTS)
    rows = 0
    for records in snapshot.batches(groups=groups_of(partition, PARTITIONS), columns=program.left_columns()):
        rows += len(records)
    say(rows)


def say(count: int, seconds: float = 0.0) -> None:
    """Tell what was done and how long it took, with CPU time and peak memory, and end."""
    print(count, time.process_time(), peak_mib(), seconds, flush=True)
    # Arrow's threads may still hold files of the archive, and abort a process that goes through its usual end.
    os._exit(0)


def peak_mib() -> float:
    """Peak memory of this process. What `getrusage` tells begins at its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def side_by_side(*arguments: str) -> tuple[float, list[list[float]]]:
    """Two processes, one per partition: seconds by the clock, and what each said."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "tests.load.bench_backfill", *arguments]
    running = [
        subprocess.Popen([*command, str(partition)], stdout=subprocess.PIPE, text=True)
        for partition in range(PARTITIONS)
    ]
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("a builder failed")
    return time.perf_counter() - started, [[float(word) for word in text.split()] for text in said]


def build(folder: Path, server: RedisServer) -> Built:
    """One build into an empty server."""
    empty_log(server)
    before, held = server_seconds(server), server_bytes(server)
    seconds, said = side_by_side("build", str(folder), server.url)
    cpu = sum(each[1] for each in said) + server_seconds(server) - before
    keys, peak = int(sum(each[0] for each in said)), sum(each[2] for each in said)
    building_s = max(each[3] for each in said)
    return Built(seconds, building_s, cpu, peak, keys, server_bytes(server) - held)


def empty_log(server: RedisServer) -> None:
    """Nothing but the log of the dataset, all of it archived."""
    server.client().flushall()
    log = Log(server.url, SystemClock())
    log.create(ref(EVENTS), PARTITIONS)
    log.close()


def price(folder: Path, server: RedisServer) -> Price:
    """What a build is said to take before it begins."""
    empty_log(server)
    log = Log(server.url, SystemClock())
    program = program_of(twenty())
    inputs = [InputPartition(EVENTS, partition) for partition in range(PARTITIONS)]
    asked = BackfillAsked(inputs, order_of(folder).cut, actors=PARTITIONS)
    said = Pricing(program, History(Archive(str(folder / "archive")), log)).price(asked)
    log.close()
    return said


def server_seconds(server: RedisServer) -> float:
    """CPU time of the server."""
    times = psutil.Process(server.pid).cpu_times()
    return float(times.user + times.system)


def server_bytes(server: RedisServer) -> int:
    """Memory of the server's data."""
    memory: Any = server.client().info("memory")
    return int(memory["used_memory"])


def sizes() -> Iterator[tuple[int, Path]]:
    """Archives of a quarter, half and all of the events."""
    for events in (MOST // 4, MOST // 2, MOST):
        folder = Path(tempfile.mkdtemp(prefix="bf"))
        try:
            fill(folder, events)
            yield events, folder
        finally:
            shutil.rmtree(folder)


def main() -> None:
    """Measure and report."""
    measured: list[Measured] = []
    server = RedisServer(Path(tempfile.mkdtemp(prefix="bs")))
    server.start()
    try:
        for events, folder in sizes():
            measured.append(measure(events, folder, server))
            check(server, events, measured[-1].runs)
    finally:
        server.kill()
        shutil.rmtree(server.directory)
    report("backfill", [*(figure for one in measured for figure in figures_of(one)), *memory_of(measured)])


def measure(events: int, folder: Path, server: RedisServer) -> Measured:
    """Price, read and build one size, in turn."""
    priced, runs, reading = [], [], []
    for _ in range(RUNS):
        priced.append(price(folder, server))
        reading.append(sum(each[1] for each in side_by_side("read", str(folder))[1]))
        runs.append(build(folder, server))
    return Measured(events, runs, reading, priced)


def check(server: RedisServer, events: int, runs: list[Built]) -> None:
    """All of it is there."""
    store = OnlineStore(server.url)
    rows = store.progress(order_state()).rows
    store.close()
    if rows != events or len({run.keys for run in runs}) != 1:
        message = f"{rows} of {events} rows are in the state"
        raise RuntimeError(message)


def order_state() -> StateName:
    """The build that is measured."""
    return StateName(program_of(twenty()).ref, 2)


def figures_of(one: Measured) -> list[Figure]:
    """The figures of one size."""
    name = f"{one.events / 1e6:g} M events"
    note = f"median of {RUNS}, {one.runs[0].keys:,} keys, 20 features"
    speed = median([one.events / run.seconds for run in one.runs])
    cores = median([2 * one.events / run.cpu_seconds for run in one.runs])
    limit = median([2 * one.events / seconds for seconds in one.reading_s])
    return [
        Figure(f"backfill_events_per_s, {name}", speed, "events/s", None, note),
        Figure(f"per two cores' CPU time, {name}", cores, "events/s", limit, "peer: only reading the archive"),
        *price_of(one, name),
    ]


def price_of(one: Measured, name: str) -> list[Figure]:
    """What was said before, beside what it was."""
    seconds = [price.seconds - START_S for price in one.priced]
    ratios = [said / run.building_s for said, run in zip(seconds, one.runs, strict=True)]
    said, was = one.priced[-1], one.runs[-1]
    return [
        Figure(
            f"backfill_priced_s, {name}",
            median(seconds),
            "s",
            median([run.building_s for run in one.runs]),
            "peer: was",
        ),
        Figure(f"backfill_price_over_time, {name}", median(ratios), "x", None, "0.5 to 2 is promised"),
        Figure(f"backfill_priced_rows, {name}", said.rows, "rows", one.events, "peer: was"),
        Figure(f"backfill_priced_keys, {name}", said.keys, "keys", was.keys, "peer: was"),
        Figure(f"backfill_priced_state, {name}", said.state_bytes / 2**20, "MiB", was.state_bytes / 2**20, "peer: was"),
    ]


def memory_of(measured: list[Measured]) -> list[Figure]:
    """How memory grows with events."""
    idle = sum(each[2] for each in side_by_side("idle")[1])
    peaks = [max(run.peak_mib for run in one.runs) for one in measured]
    named = [f"backfill_peak_memory, {one.events / 1e6:g} M events" for one in measured]
    figures = [
        Figure(name, peak, "MiB", idle, "both builders; peer: before they begin")
        for name, peak in zip(named, peaks, strict=True)
    ]
    growth = peaks[-1] / peaks[0]
    return [*figures, Figure("backfill_memory_growth", growth, "x", None, "four times the events")]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["build", folder, url, partition]:
            build_partition(Path(folder), url, int(partition))
        case ["read", folder, partition]:
            read_partition(Path(folder), int(partition))
        case ["idle", _]:
            say(0)
        case _:
            main()
