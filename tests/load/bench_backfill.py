"""Backfill: how fast history becomes online state, and what memory it takes as history grows.

    make bench BENCH=backfill        (RUNS=3, EVENTS=10000000; about ten minutes)

Each size is built by two processes, one partition each, as the two actors of a backfill's Ray job do it: read the
archive, prepare, fold, write every key once into a real Redis on the same two cores. Ray's own start is left out here
and is some ten seconds. Events per second are by the clock, and beside it per two cores' worth of CPU time of
builders and server together, which a busy machine does not change. Memory is the larger builder's peak.

Limit, in the same run: the same archive read by the same two processes and nothing done with it.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import psutil
import pyarrow as pa

from featurelib.clock import DAY, SystemClock
from featurelib.definitions import Definitions, ref
from featurelib.engine.keys import groups_of, key_groups, owner_of_group
from featurelib.engine.records import PARTITION, record_schema
from featurelib.settings import Settings
from featurelib.stores.archive import Archive
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
    """What one build took."""

    seconds: float
    cpu_seconds: float
    peak_mib: float
    keys: int


def fill(folder: Path, events: int) -> None:
    """An archive as the platform leaves it: commits of 200,000 records, then compacted."""
    archive, chosen = Archive(str(folder / "archive")), np.random.default_rng(7)
    names = pl.Series([f"u{n}" for n in range(max(1, events // EVENTS_PER_KEY))])
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
    builder = PartitionBuilder(order_of(folder), settings)
    built = builder.build(partition)
    builder.close()
    say(built.keys)


def read_partition(folder: Path, partition: int) -> None:
    """In a process of its own: the reading of one partition, and nothing else."""
    program = program_of(twenty())
    snapshot = Archive(str(folder / "archive")).snapshot(EVENTS)
    rows = 0
    for records in snapshot.batches(groups=groups_of(partition, PARTITIONS), columns=program.left_columns()):
        rows += len(records)
    say(rows)


def say(count: int) -> None:
    """Tell what was done, with CPU time and peak memory, and end."""
    print(count, time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)
    # Arrow's threads may still hold files of the archive, and abort a process that goes through its usual end.
    os._exit(0)


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
    server.client().flushall()
    log = Log(server.url, SystemClock())
    log.create(ref(EVENTS), PARTITIONS)
    log.close()
    before = server_seconds(server)
    seconds, said = side_by_side("build", str(folder), server.url)
    cpu = sum(each[1] for each in said) + server_seconds(server) - before
    return Built(seconds, cpu, max(each[2] for each in said), int(sum(each[0] for each in said)))


def server_seconds(server: RedisServer) -> float:
    """CPU time of the server."""
    times = psutil.Process(server.pid).cpu_times()
    return float(times.user + times.system)


def sizes() -> Iterator[tuple[int, Path]]:
    """Archives of a fifth, two fifths and all of the events."""
    for events in (MOST // 5, 2 * MOST // 5, MOST):
        folder = Path(tempfile.mkdtemp(prefix="bf"))
        try:
            fill(folder, events)
            yield events, folder
        finally:
            shutil.rmtree(folder)


def main() -> None:
    """Measure and report."""
    figures: list[Figure] = []
    server = RedisServer(Path(tempfile.mkdtemp(prefix="bs")))
    server.start()
    try:
        for events, folder in sizes():
            runs = [build(folder, server) for _ in range(RUNS)]
            reads = [side_by_side("read", str(folder))[1] for _ in range(RUNS)]
            figures += figures_of(events, runs, [sum(each[1] for each in said) for said in reads])
            check(server, events, runs)
    finally:
        server.kill()
        shutil.rmtree(server.directory)
    report("backfill", figures)


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


def figures_of(events: int, runs: list[Built], reading_s: list[float]) -> list[Figure]:
    """The figures of one size."""
    name, note = f"{events // 1_000_000} M events", f"median of {RUNS}, {runs[0].keys:,} keys, 20 features"
    speed = median([events / run.seconds for run in runs])
    cores = median([2 * events / run.cpu_seconds for run in runs])
    limit = median([2 * events / seconds for seconds in reading_s])
    return [
        Figure(f"backfill_events_per_s, {name}", speed, "events/s", None, note),
        Figure(f"per two cores' CPU time, {name}", cores, "events/s", limit, "peer: only reading the archive"),
        Figure(f"backfill_peak_memory, {name}", max(run.peak_mib for run in runs), "MiB", None, "of one builder"),
    ]


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["build", folder, url, partition]:
            build_partition(Path(folder), url, int(partition))
        case ["read", folder, partition]:
            read_partition(Path(folder), int(partition))
        case _:
            main()
