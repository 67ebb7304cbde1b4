"""Scale: how cost grows with events, keys, windows and rows, over nodes, and what Ray Data adds.

    make bench BENCH=scale        (RUNS=3, EVENTS=10000000, ROWS=1000000, UNIT=500000; about 25 minutes)

    growth  CPU time of a build of state and of reading a training set, all threads and the online store's share, as
            one thing grows and the others stay: events, keys, windows, rows; a line through each, and how many
            times the cost is for how many times the size. `a + b n^k` is fitted for events
    nodes   a build of eight partitions on clusters of one, two and four nodes, simulated by raylets of this machine:
            how many partitions the busiest node had
    ray     a training set of ROWS rows over EVENTS and four times as many events, by a Ray Data job of two actors in a
            cluster that runs already, beside the best hand-written query (offline_peers.py) over the same files.
            The slope is what more events cost; what is left at none is the fixed cost

PART=growth, nodes or ray runs one of them alone, AXIS=windows one axis. Every part runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from featurelib.aggregates import Aggregate, Avg, Count, Sum
from featurelib.clock import DAY, SystemClock
from featurelib.definitions import AggregateStep, DatasetDef, Definitions, FieldDef, NamedAggregate, PipelineDef
from featurelib.engine.read_plan import View, compile_views
from featurelib.settings import load_settings
from featurelib.stores.archive import Archive
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.online import StateName
from featurelib.stores.spine_reader import SpineReader
from jobs.backfill import Order, PartitionBuilder
from jobs.partitioned import map_partitions
from jobs.training_run import TrainingAsked, TrainingRun
from jobs.training_set import read_on_ray
from tests.load.bench_backfill import PARTITIONS, empty_log, fill, server_seconds
from tests.load.bench_engine import EVENTS, T0
from tests.load.bench_offline import fitted
from tests.load.harness import Figure, median, report
from tests.load.offline_input import Stores, stores
from tests.load.offline_peers import QUERIES, assert_alike
from tests.support.killed_builds import PlacedBuild
from tests.support.redis_server import RedisServer

RUNS = int(os.environ.get("RUNS", "3"))
MOST = int(os.environ.get("EVENTS", "10000000"))
ROWS = int(os.environ.get("ROWS", "1000000"))
UNIT = int(os.environ.get("UNIT", "500000"))
_SPAN = 90 * DAY
_NODES, _SPREAD_PARTITIONS = (1, 2, 4), 8
_WINDOW_HOURS = (720, 1, 6, 24, 48, 96, 168, 336)
"""The longest first: how far they reach decides how state is cut, so it stays."""


class Load(NamedTuple):
    """What is built or read."""

    events: int = 2 * UNIT
    keys: int = max(1, UNIT // 50)
    windows: int = 4
    rows: int = max(1, UNIT // 5)


AXES: dict[str, list[Load]] = {
    "events": [Load(events=UNIT * times) for times in (1, 2, 4, 8)],
    "keys": [Load(keys=max(1, UNIT * times // 200)) for times in (1, 4, 16, 64)],
    "windows": [Load(windows=windows) for windows in (1, 2, 4, 8)],
    "rows": [Load(rows=max(1, UNIT * times // 20)) for times in (1, 4, 16, 64)],
}
_READ_ONLY = {"rows"}
"""Nothing that is built depends on them."""


def definitions(windows: int) -> Definitions:
    """Payments, and a pipeline of four aggregates over each of so many windows."""
    made: dict[str, tuple[Aggregate, str]] = {}
    for hours in _WINDOW_HOURS[:windows]:
        window = f"{hours}h"
        made[f"n_{hours}h"] = Count(window=window), "int"
        made[f"sum_{hours}h"] = Sum("amount", window), "int"
        made[f"paid_{hours}h"] = Sum("price", window), "float"
        made[f"avg_{hours}h"] = Avg("price", window), "float"
    fields = tuple(FieldDef(name=name, type=kind) for name, (_, kind) in made.items())
    out = DatasetDef(name="Spending", index=True, fields=(EVENTS.key, *fields, EVENTS.timestamp))
    named = tuple(NamedAggregate(output=name, aggregate=one) for name, (one, _) in made.items())
    pipeline = PipelineDef(
        name="spending",
        input_datasets=("Payment",),
        output_dataset="Spending",
        steps=(AggregateStep(keys=("user",), aggregates=named),),
    )
    return Definitions(datasets=(EVENTS, out), pipelines=(pipeline,))


def view_of(windows: int) -> View:
    """How its output is read."""
    return compile_views(definitions(windows))[0]["Spending"]


# Growth


def growth() -> list[Figure]:
    """CPU time along each axis, and a fit through it."""
    chosen = os.environ.get("AXIS", " ".join(AXES)).split()
    with server_running() as server:
        costs = {name: [measured(server, name, load) for load in AXES[name]] for name in chosen}
    return [figure for name in chosen for figure in figures_of(name, costs[name])]


def measured(server: RedisServer, axis: str, load: Load) -> dict[str, float]:
    """Median CPU seconds of a build and of a read."""
    with tempfile.TemporaryDirectory(prefix="bs") as name:
        fill(Path(name), load.events, max(1, load.events // load.keys))
        works = ("read",) if axis in _READ_ONLY else ("build", "read")
        return {work: median([cpu_seconds(server, Path(name), work, load) for _ in range(RUNS)]) for work in works}


def cpu_seconds(server: RedisServer, folder: Path, work: str, load: Load) -> float:
    """CPU time of one run, in a process of its own, and of the online store meanwhile."""
    empty_log(server)
    before = server_seconds(server)
    (said,) = child(work, str(folder), server.url, json.dumps(load))
    return float(said) + server_seconds(server) - before


def work_at(folder: Path, url: str, load: Load, work: Callable[[Path, str, Load], None]) -> float:
    """CPU time that a piece of work takes."""
    os.environ |= {"THYME_DATA_DIR": str(folder / "data"), "THYME_ONLINE__REDIS_URL": url}
    os.environ |= {"THYME_ARCHIVE__URL": str(folder / "archive"), "THYME_PIPELINE__PARTITION_COUNT": str(PARTITIONS)}
    started = time.process_time()
    work(folder, url, load)
    return time.process_time() - started


def cut_of(folder: Path) -> list[int]:
    """Where the log ends, per partition."""
    return [int(offset) for offset in (folder / "cut").read_text().split()]


def order_of(folder: Path, windows: int) -> Order:
    """Build everything archived."""
    world, cut = definitions(windows), cut_of(folder)
    program = view_of(windows).program
    return Order(program.pipeline, world, StateName(program.ref, 2), cut, None, rows_expected=sum(cut))


def build(folder: Path, url: str, load: Load) -> None:  # the settings tell it
    """Build the state, one partition after the other."""
    builder = PartitionBuilder(order_of(folder, load.windows), load_settings())
    rows = sum(builder.build(partition).rows for partition in range(PARTITIONS))
    builder.close()
    assert rows == load.events, rows


def read(folder: Path, url: str, load: Load) -> None:
    """Read a spine of random keys and instants."""
    chosen, log = np.random.default_rng(17), Log(url, SystemClock())
    history = History(Archive(str(folder / "archive")), log)
    keys = pl.select(pl.concat_str(pl.lit("u"), pl.Series(chosen.integers(0, load.keys, load.rows)))).to_series()
    reader = SpineReader(history, {"Payment@1": cut_of(folder)})
    found = reader.frame(view_of(load.windows), keys, T0 + chosen.integers(0, _SPAN, load.rows))
    log.close()
    assert len(found) == load.rows, len(found)


def figures_of(axis: str, costs: Sequence[dict[str, float]]) -> list[Figure]:
    """What one axis costs."""
    sizes = [float(getattr(load, axis)) for load in AXES[axis]]
    others = ", ".join(f"{n:,} {name}" for name, n in Load()._asdict().items() if name != axis)
    figures: list[Figure] = []
    for work in costs[0]:
        took = [cost[work] for cost in costs]
        figures += [
            Figure(f"{work}: {size:,.0f} {axis}", each, "CPU s", None, others)
            for size, each in zip(sizes, took, strict=True)
        ]
        figures.append(_grown(f"{work}_growth, {axis}", sizes, took))
        if axis == "events":
            fit = fitted([size / 1e6 for size in sizes], took)
            note = f"CPU s = {fit.a:.2f} + {fit.b:.3f} n^k, n in millions; asked for: at most 1.1"
            figures.append(Figure(f"{work}_exponent, events", fit.k, "k", None, note))
    return figures


def _grown(name: str, sizes: Sequence[float], took: Sequence[float]) -> Figure:
    each, fixed = np.polyfit(sizes, took, 1).tolist()
    times = sizes[-1] / sizes[0]
    note = f"for {times:g} times as many; as a line: {fixed:.2f} s + {each:.2e} s each"
    return Figure(name, took[-1] / took[0], "x", times, note)


# Nodes


def nodes() -> list[Figure]:
    """How a build's partitions spread."""
    figures = []
    with server_running() as server, tempfile.TemporaryDirectory(prefix="bs") as name:
        load = Load(events=UNIT // 2)
        fill(Path(name), load.events, 100)
        for count in _NODES:
            empty_log(server)
            *parts, seconds = child("spread", name, server.url, json.dumps(load), str(count))
            figures.append(
                Figure(
                    f"partitions_on_the_busiest_node, of {count}",
                    max(parts),
                    "partitions",
                    _SPREAD_PARTITIONS / count,
                    f"{_SPREAD_PARTITIONS} in all; on nodes: {', '.join(map(str, parts))}; {seconds:.1f} s; peer: even",
                )
            )
    return figures


def spread(folder: Path, url: str, load: Load, count: int) -> list[float]:
    """Build on a simulated cluster: partitions per node, and seconds."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ |= {"THYME_DATA_DIR": str(folder / "data"), "THYME_ONLINE__REDIS_URL": url}
    os.environ |= {
        "THYME_ARCHIVE__URL": str(folder / "archive"),
        "THYME_PIPELINE__PARTITION_COUNT": str(_SPREAD_PARTITIONS),
    }
    each = _SPREAD_PARTITIONS // 2 // count + 1
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": each, "include_dashboard": False})
    for _ in range(count - 1):
        cluster.add_node(num_cpus=each)
    ray.init(address=cluster.address, log_to_driver=False)
    started = time.perf_counter()
    built = map_partitions(PlacedBuild, (order_of(folder, load.windows),), _SPREAD_PARTITIONS)
    seconds = time.perf_counter() - started
    ray.shutdown()  # type: ignore[no-untyped-call]
    cluster.shutdown()
    assert sum(one["rows"] for one in built) == load.events
    parts = sorted(Counter(one["node"] for one in built).values(), reverse=True)
    return [*parts, *[0] * (count - len(parts)), seconds]


# Ray


def on_ray() -> list[Figure]:
    """The slope between two sizes, beside the best query's."""
    took: list[dict[str, list[float]]] = []
    best: list[str] = []
    for events in (MOST, 4 * MOST):
        folder = Path(tempfile.mkdtemp(prefix="bs"))
        try:
            with stores(folder, events, ROWS) as made:
                runs = json.loads(child_text("ray-times", str(folder), made.redis_url, json.dumps(best)))
        finally:
            shutil.rmtree(folder)
        took.append(runs)
        best = best or [min(QUERIES, key=lambda name: median(took[0][name]))]
    ours = [median(runs["ours"]) for runs in took]
    peer = [median(runs[best[0]]) for runs in took]
    return ray_figures(ours, peer, best[0])


def ray_figures(ours: list[float], peer: list[float], query: str) -> list[Figure]:
    """Slopes and fixed costs."""
    more = 3 * MOST
    slope, theirs = (ours[1] - ours[0]) / more, (peer[1] - peer[0]) / more
    note = f"{ROWS:,} rows, 20 features; median of {RUNS}; peer: {query}"
    sizes = [f"{events / 1e6:g} M events" for events in (MOST, 4 * MOST)]
    return [
        *(
            Figure(f"training_set_on_ray, {size}", mine, "s", hand, note)
            for size, mine, hand in zip(sizes, ours, peer, strict=True)
        ),
        Figure("training_set_on_ray_slope", slope * 1e6, "s per M events", theirs * 1e6, f"from {' to '.join(sizes)}"),
        Figure("training_set_on_ray_slope_vs_best_query", slope / theirs, "x", 1.5, "peer: what is asked for"),
        Figure("training_set_on_ray_fixed", ours[0] - slope * MOST, "s", peer[0] - theirs * MOST, "at no events"),
    ]


def ray_times(folder: Path, url: str, queries: Sequence[str]) -> dict[str, list[float]]:
    """Seconds of a training set by Ray Data, and of queries, in turn; the numbers are compared."""
    import ray

    made = Stores(folder, url)
    settings = made.settings
    os.environ |= {"THYME_DATA_DIR": str(folder), "THYME_ONLINE__REDIS_URL": url}
    os.environ |= {
        "THYME_ARCHIVE__URL": settings.archive_url,
        "THYME_REGISTRY__URL": f"sqlite:///{folder}/registry.db",
        "THYME_PIPELINE__PARTITION_COUNT": str(settings.pipeline.partition_count),
    }
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    asked = TrainingAsked(output=str(folder / "ours"), spine=made.spine, featureset="Buyer", overwrite=True)
    asked = asked._replace(entity_column="user")

    def ours() -> None:
        TrainingRun(settings, SystemClock()).make(asked, lambda work: read_on_ray(settings, work), lambda _: None)

    def by_hand(name: str) -> None:
        QUERIES[name](made.files, made.spine, str(folder / "by_hand.parquet"))

    ways: dict[str, Callable[[], None]] = {"ours": ours}
    ways |= {name: lambda name=name: by_hand(name) for name in queries or QUERIES}  # type: ignore[misc]
    rounds = [{name: timed(run) for name, run in ways.items()} for _ in range(RUNS)]
    assert_alike(str(folder / "ours" / "*.parquet"), str(folder / "by_hand.parquet"), made.files)
    ray.shutdown()  # type: ignore[no-untyped-call]
    return {name: [one[name] for one in rounds] for name in ways}


def timed(run: Callable[[], None]) -> float:
    """Seconds by the clock."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


# Processes


@contextmanager
def server_running() -> Iterator[RedisServer]:
    """An online store."""
    server = RedisServer(Path(tempfile.mkdtemp(prefix="bs")))
    server.start()
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(server.directory)


def child(*arguments: str) -> list[Any]:
    """What one of these parts says, in a process of its own."""
    said: list[Any] = json.loads(child_text(*arguments))
    return said


def child_text(*arguments: str) -> str:
    """The last line that a process of its own printed."""
    command = [sys.executable, "-m", "tests.load.bench_scale", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()[-1]


def say(found: Any) -> None:
    """Tell the parent, and end."""
    print(json.dumps(found), flush=True)
    # Arrow's threads may still hold files of the archive, and abort a process that goes through its usual end.
    os._exit(0)


def main() -> None:
    """Measure and report."""
    parts = {"growth": growth, "nodes": nodes, "ray": on_ray}
    asked = os.environ.get("PART")
    report("scale", [figure for name, part in parts.items() if asked in (None, name) for figure in part()])


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["build" | "read" as name, folder, url, load]:
            say([work_at(Path(folder), url, Load(*json.loads(load)), build if name == "build" else read)])
        case ["spread", folder, url, load, count]:
            say(spread(Path(folder), url, Load(*json.loads(load)), int(count)))
        case ["ray-times", folder, url, queries]:
            say(ray_times(Path(folder), url, json.loads(queries)))
        case _:
            main()
