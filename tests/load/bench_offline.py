"""Training sets in process, beside the best queries by hand and Feast, and reads months back over the same archive.

    make bench BENCH=offline     (RUNS=5, EVENTS=10000000, ROWS=1000000, FIT=1,2,5,10,20; a quarter of an hour)

``EVENTS`` payments are logged and archived by the platform's own writers, 200,000 a commit, and compacted; ``ROWS``
rows ask for 20 windowed features of some user at some instant. Every way reads the archive's files and the spine's and
writes a file, in a process of its own, in turn; the rows are compared. Ours is the whole training set: spine checked
and split, history read, features, labels, Parquet, digests and manifest.

``FIT`` are millions of events, with a tenth as many rows: seconds against events, as ``a + b * n ** k``. Reads months
back go through the whole application, in process, one after the other.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np
import polars as pl

from featurelib.clock import DAY, SystemClock, format_instant
from featurelib.stores.registry import Registry
from jobs.training_run import TrainingAsked, TrainingRun
from jobs.training_set import read_here
from serve_apps.services import open_services
from serve_apps.web import Application
from tests.load.feast_history import Taken, historical_features
from tests.load.harness import Figure, median, report
from tests.load.offline_input import SPAN, T0, Stores, features, stores
from tests.load.offline_peers import QUERIES, assert_alike

RUNS = int(os.environ.get("RUNS", "5"))
EVENTS = int(os.environ.get("EVENTS", "10000000"))
ROWS = int(os.environ.get("ROWS", "1000000"))
FIT = [float(size) for size in os.environ.get("FIT", "1,2,5,10,20").split(",")]
READS = int(os.environ.get("READS", "300"))
# What Feast holds at once is rows times the events of a user: more would take minutes, and gigabytes.
FEAST_EVENTS, FEAST_ROWS = min(EVENTS, 200_000), min(ROWS, 5_000)
OURS = "training set"
_MILLION = 1_000_000


class Run(NamedTuple):
    """One run of one way: seconds by the clock, of its own cores' time, and its process's memory peak."""

    seconds: float
    cpu_seconds: float
    peak_gib: float


def training_set(made: Stores, output: Path) -> str:
    """Ours; returns the file of the rows."""
    shutil.rmtree(output, ignore_errors=True)
    asked = TrainingAsked(output=str(output), spine=made.spine, featureset="Buyer", entity_column="user")
    TrainingRun(made.settings, SystemClock()).make(asked, lambda work: read_here(made.settings, work))
    return str(output / "data.parquet")


def by_hand(name: str, made: Stores, output: Path) -> str:
    """A query; returns its file."""
    QUERIES[name](made.files, made.spine, str(output))
    return str(output)


def run_way(folder: str, url: str, name: str, output: str) -> None:
    """In a process of its own: one way, once. Tells what it took."""
    made = Stores(Path(folder), url)
    clock, core = time.perf_counter(), time.process_time()
    if name == OURS:
        training_set(made, Path(output))
    else:
        by_hand(name, made, Path(output))
    taken = Run(time.perf_counter() - clock, time.process_time() - core, peak_gib())
    print(json.dumps(taken), flush=True)
    # Arrow's threads may still hold files of the archive, and abort a process that goes through its usual end.
    os._exit(0)


def peak_gib() -> float:
    """This process's memory peak."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20


def once(made: Stores, name: str, output: Path) -> Run:
    """One way in a process of its own."""
    command = [sys.executable, "-m", "tests.load.bench_offline", str(made.folder), made.redis_url, name, str(output)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return Run(*json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def archived(events: int, rows: int) -> Iterator[Stores]:
    """The input, in a folder that is removed."""
    folder = Path(tempfile.mkdtemp(prefix="bo"))
    try:
        with stores(folder, events, rows) as made:
            yield made
    finally:
        shutil.rmtree(folder)


def in_turn(made: Stores) -> dict[str, list[Run]]:
    """Every way, in turn; their rows compared."""
    ways = {OURS: made.folder / "ours", **{name: made.folder / f"{n}.parquet" for n, name in enumerate(QUERIES)}}
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for number in range(RUNS):
        for name, output in ways.items():
            runs[name].append(once(made, name, output))
        if not number:
            for name in QUERIES:
                assert_alike(str(ways[OURS] / "data.parquet"), str(ways[name]), made.files)
    return runs


def way_figures(runs: dict[str, list[Run]]) -> list[Figure]:
    """Seconds and memory of every way, and ours against the fastest."""
    taken = {name: Run(*map(median, zip(*each, strict=True))) for name, each in runs.items()}
    best = min((taken[name] for name in QUERIES), key=lambda run: run.seconds)
    least = min(taken[name].cpu_seconds for name in QUERIES)
    note = f"{ROWS:,} rows, 20 features, {EVENTS:,} events; median of {RUNS}, in turn, a process each"
    figures = [Figure(f"{name}: seconds", run.seconds, "s", best.seconds, note) for name, run in taken.items()]
    figures += [Figure(f"{name}: CPU", run.cpu_seconds, "s", least, "") for name, run in taken.items()]
    ours = taken[OURS]
    return [
        *figures,
        Figure("training_set_time_vs_best_query", ours.seconds / best.seconds, "ratio", None, "asked for: at most 1.5"),
        Figure("the same of CPU time", ours.cpu_seconds / least, "ratio", None, "what other work leaves as it is"),
        *(
            Figure(f"{name}: memory peak", max(run.peak_gib for run in each), "GiB", None, "asked for: at most 4")
            for name, each in runs.items()
        ),
    ]


def feast_figures(ours: Sequence[Run]) -> list[Figure]:
    """Rows per second of Feast, beside ours of as many rows and of all."""
    with archived(FEAST_EVENTS, FEAST_ROWS) as made:
        small = [once(made, OURS, made.folder / "ours") for _ in range(RUNS)]
        feast = of_feast(made)
    theirs = feast.rows / median(feast.seconds)
    mine = ROWS / median([run.seconds for run in ours])
    same = FEAST_ROWS / median([run.seconds for run in small])
    note = f"Feast: {FEAST_ROWS:,} rows, {FEAST_EVENTS:,} events with finished features: it computes no windows"
    return [
        Figure("training_set_rows_per_s_vs_feast", mine / theirs, "times", theirs, f"{note}; asked for: at least 20"),
        Figure("training set, rows per second", mine, "rows/s", theirs, "peer: Feast"),
        Figure("the same of as few rows and events as Feast", same, "rows/s", theirs, "peer: Feast"),
        Figure("Feast: memory peak", feast.peak_gib, "GiB", None, ""),
    ]


def of_feast(made: Stores) -> Taken:
    """Feast's join of the spine with the features at every event."""
    chosen = np.random.default_rng(3)
    events = pl.scan_parquet(made.files).select("user", pl.col("__time").alias("t")).collect()
    # Only how many columns there are and of which type matters to a join.
    finished = events.with_columns(pl.Series(name, chosen.random(len(events))) for name in features())
    asked = pl.read_parquet(made.spine).select("user", pl.col("timestamp").dt.epoch("us").alias("t"))
    return historical_features(made.folder / "feast", finished, asked, RUNS)


class Fitted(NamedTuple):
    """``a + b * n ** k``."""

    a: float
    b: float
    k: float


def fitted(sizes: Sequence[float], seconds: Sequence[float]) -> Fitted:
    """The curve with the least relative errors: of each exponent the best line, of these the best."""
    n, taken = np.array(sizes), np.array(seconds)

    def line(k: float) -> tuple[float, Fitted]:
        terms = np.stack([np.ones(len(n)), n**k], axis=1) / taken[:, None]
        (a, b), *_ = np.linalg.lstsq(terms, np.ones(len(n)), rcond=None)
        return float(np.square(terms @ [a, b] - 1).sum()), Fitted(max(0.0, float(a)), float(b), k)

    return min(line(k) for k in np.arange(0.5, 1.6, 0.01).round(2).tolist())[1]


def fit_figures() -> list[Figure]:
    """Seconds and memory by size, and the fit. Sizes in turn: a machine that gets slower would bend the line."""
    sizes = [int(size * _MILLION) for size in FIT]
    with ExitStack() as opened:
        made = [opened.enter_context(archived(events, events // 10)) for events in sizes]
        rounds = [[once(each, OURS, each.folder / "ours") for each in made] for _ in range(RUNS)]
    figures, seconds, cores = [], [], []
    for size, runs in zip(FIT, zip(*rounds, strict=True), strict=True):
        seconds.append(median([run.seconds for run in runs]))
        cores.append(median([run.cpu_seconds for run in runs]))
        peak, note = max(run.peak_gib for run in runs), f"a tenth as many rows; median of {RUNS}, sizes in turn"
        figures += [
            Figure(f"training set of {size:g} M events", seconds[-1], "s", cores[-1], f"{note}; peer: CPU"),
            Figure(f"memory peak, {size:g} M events", peak, "GiB", None, ""),
        ]
    for what, taken in (("seconds", seconds), ("CPU", cores)):
        fit = fitted(FIT, taken)
        note = f"{what} = {fit.a:.2f} + {fit.b:.3f} n^k, n in millions; asked for: at most 1.1"
        figures.append(Figure(f"exponent k of {what} by events", fit.k, "", None, note))
    return figures


async def read_back(made: Stores) -> list[float]:
    """Milliseconds of point-in-time reads, each of another user, 20 to 60 days before the newest event."""
    registry = Registry(made.settings.registry_url, SystemClock())
    key = registry.create_key("reader", "bench")[1]
    registry.close()
    chosen = np.random.default_rng(5)
    users = pl.read_parquet(made.spine)["user"].unique(maintain_order=True).sample(READS + 20, seed=5).to_list()
    instants = (T0 + SPAN - chosen.integers(20 * DAY, 60 * DAY, len(users))).tolist()
    application = Application(lambda: open_services(made.settings, SystemClock()))
    taken = []
    async with application.running():
        transport = httpx2.ASGITransport(application)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://bench", headers=headers) as client:
            for user, at in zip(users, instants, strict=True):
                asked = {"featureset": "Buyer", "entity_id": user, "timestamp": format_instant(at)}
                started = time.perf_counter()
                answer = await client.get("/features", params=asked)
                taken.append((time.perf_counter() - started) * 1_000)
                answer.raise_for_status()
    return sorted(taken[20:])


def read_figures(made: Stores) -> list[Figure]:
    """Median and 99th percentile of reads months back."""
    taken = asyncio.run(read_back(made))
    note = f"{READS} reads of 20 features of other users, one after the other, over {EVENTS:,} events"
    return [
        Figure("GET /features months back, p50", median(taken), "ms", None, note),
        Figure("GET /features months back, p99", taken[int(len(taken) * 0.99)], "ms", None, "asked for: at most 150"),
    ]


def main() -> None:
    """Measure and report."""
    with archived(EVENTS, ROWS) as made:
        runs = in_turn(made)
        figures = [*way_figures(runs), *read_figures(made)]
    report("offline", [*figures, *feast_figures(runs[OURS]), *fit_figures()])


STEPS: dict[int, Callable[..., Any]] = {0: main, 4: run_way}

if __name__ == "__main__":
    STEPS[len(sys.argv) - 1](*sys.argv[1:])
