"""The engine's figures: folding, evaluating many rows, and what a read of a busy key costs.

    make bench BENCH=engine        (RUNS=5 by default; about five minutes)

Each part runs in a process of its own, so that its threads and its memory peak are its own:

    fold   one core, one partition, batches of 5,000 records over 10,000 keys: the engine alone, and a worker that
           reads a log and commits to a real Redis
    asof   200,000 (key, instant) rows over 5,000,000 events beside the same query written by hand in Polars
    state  bytes and time of a read of a key whose window holds 1,000 or 1,000,000 events; bytes of stored state
    reads  a key's 50 features: 5 views of 10 aggregates over 3 windows, at least 200 events in each, edges inside
           panes. The finish alone, of bytes at hand: the first read of a key, and reads of a key read before
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from featurelib.aggregates import Aggregate, Avg, Count, First, Last, LastK, Max, Min, Stddev, Sum
from featurelib.clock import DAY, HOUR, SECOND, SystemClock
from featurelib.definitions import AggregateStep, DatasetDef, Definitions, FieldDef, NamedAggregate, PipelineDef, ref
from featurelib.engine.asof import evaluate
from featurelib.engine.codec import decode_rows, encode, joined_rows
from featurelib.engine.kept_reads import KEPT_READS
from featurelib.engine.panes import BUFFER, TAIL, KeyState
from featurelib.engine.program import Program
from featurelib.engine.records import TIME, record_schema
from featurelib.expr import col
from featurelib.stores.log import Lateness, Log
from featurelib.stores.online import OnlineStore, StateName
from jobs.worker import PartitionWorker
from tests.load.harness import Figure, median, report
from tests.support.redis_server import RedisServer

RUNS = int(os.environ.get("RUNS", "5"))
T0 = 1_700_000_000 * SECOND
EVENTS = DatasetDef(
    name="Payment",
    fields=(
        FieldDef(name="user", type="str", key=True),
        FieldDef(name="amount", type="int"),
        FieldDef(name="price", type="float"),
        FieldDef(name="shop", type="str"),
        FieldDef(name="at", type="datetime", timestamp=True),
    ),
)
WINDOWS = {"1h": HOUR, "1d": DAY, "7d": 7 * DAY}


def program_of(aggregates: dict[str, Aggregate]) -> Program:
    """A pipeline of these aggregates over payments."""
    out = DatasetDef(name="Out", fields=(EVENTS.key, EVENTS.timestamp))
    named = tuple(NamedAggregate(output=name, aggregate=one) for name, one in aggregates.items())
    pipeline = PipelineDef(
        name="payments",
        input_datasets=("Payment",),
        output_dataset="Out",
        steps=(AggregateStep(keys=("user",), aggregates=named),),
    )
    return Program.compile(pipeline, Definitions(datasets=(EVENTS, out)))


def records_of(users: pl.Series, times: np.ndarray, seed: int, first_offset: int = 0) -> pa.Table:
    """Accepted records of one partition, in this order."""
    chosen = np.random.default_rng(seed)
    count = len(times)
    columns = {
        "user": users.cast(pl.String).to_arrow().cast(pa.string()),
        "amount": chosen.integers(1, 100_000, count),
        "price": chosen.integers(1, 100_000, count) / 100.0,
        "shop": pl.Series([f"shop{n}" for n in range(50)]).gather(chosen.integers(0, 50, count)).to_arrow(),
        "at": pa.array(times, pa.timestamp("us", tz="UTC")),
        "__time": times,
        "__accepted_at": times + SECOND,
        "__partition": np.zeros(count, dtype=np.int32),
        "__offset": np.arange(first_offset, first_offset + count),
        "__late": np.zeros(count, dtype=np.bool_),
        "__deleted": np.zeros(count, dtype=np.bool_),
        "__erased": np.zeros(count, dtype=np.bool_),
    }
    schema = record_schema(EVENTS)
    return pa.table([pa.array(columns[f.name]).cast(f.type) for f in schema], schema=schema)


# Folding


def twenty() -> dict[str, Aggregate]:
    """20 aggregates over 3 windows."""
    large = col("amount") > 50_000
    made: dict[str, Aggregate] = {}
    for window in WINDOWS:
        made |= {
            f"n_{window}": Count(window=window),
            f"large_{window}": Count(window=window, where=large),
            f"sum_{window}": Sum("amount", window),
            f"avg_{window}": Avg("price", window),
            f"min_{window}": Min("price", window),
            f"max_{window}": Max("price", window),
        }
    return {**made, "last_7d": Last("shop", "7d"), "shops_7d": LastK("shop", "7d", k=5)}


def three() -> dict[str, Aggregate]:
    """3 aggregates over one window."""
    return {"n": Count(window="7d"), "sum": Sum("amount", "7d"), "avg": Avg("price", "7d")}


def sixty() -> dict[str, Aggregate]:
    """20 aggregates that share nothing, each over 3 windows: 60 outputs."""
    some = [None, col("amount") > 50_000, col("shop") == "shop7"]
    made: dict[str, Aggregate] = {}
    for window in WINDOWS:
        for index, where in enumerate(some):
            made |= {
                f"n{index}_{window}": Count(window=window, where=where),
                f"sum{index}_{window}": Sum("amount", window, where=where),
                f"avg{index}_{window}": Avg("price", window, where=where),
                f"min{index}_{window}": Min("price", window, where=where),
                f"max{index}_{window}": Max("amount", window, where=where),
                f"last{index}_{window}": Last("shop", window, where=where),
            }
        made |= {f"std_{window}": Stddev("price", window), f"shops_{window}": LastK("shop", window, k=5)}
    return made


BATCH, KEYS, BATCHES = 5_000, 10_000, 40


def fold_batches(run: int) -> list[pa.Table]:
    """The batches of one run: time goes on from run to run."""
    chosen = np.random.default_rng(run)
    made = []
    for number in range(run * BATCHES, (run + 1) * BATCHES):
        users = pl.Series([f"u{n}" for n in chosen.integers(0, KEYS, BATCH).tolist()])
        times = T0 + number * 10 * 60 * SECOND + np.sort(chosen.integers(0, 600 * SECOND, BATCH))
        made.append(records_of(users, times, number, number * BATCH))
    return made


class Rates:
    """Events per second of several runs, by the clock and by this process's time on its core; the first warms up."""

    def __init__(self) -> None:
        self._clock: list[float] = []
        self._core: list[float] = []

    @contextmanager
    def run(self) -> Iterator[None]:
        """One run of all batches."""
        clock, core = time.perf_counter(), time.process_time()
        yield
        self._clock.append(BATCHES * BATCH / (time.perf_counter() - clock))
        self._core.append(BATCHES * BATCH / (time.process_time() - core))

    def figure(self, name: str) -> Figure:
        """Their medians."""
        note = f"median of {RUNS} runs of {BATCHES * BATCH:,} events; peer: per second of its own core's time"
        return Figure(f"fold, {name}", median(self._clock[1:]), "events/s", median(self._core[1:]), note)


def engine_rates(program: Program) -> Rates:
    """Prepare, fold and encode."""
    states: dict[str, KeyState] = {}
    rates = Rates()
    for run in range(RUNS + 1):
        batches = fold_batches(run)
        with rates.run():
            fold_all(program, states, batches)
    return rates


def fold_all(program: Program, states: dict[str, KeyState], batches: Sequence[pa.Table]) -> None:
    """What a worker does with batches, without its log and its store."""
    for records in batches:
        for key, rows in program.rows_by_key(program.prepare(records, {})):
            state = states.get(key)
            if state is None:
                state = states[key] = program.new_state(1)
            state.add(rows)
            state.changes()


def worker_rates(program: Program, url: str) -> Rates:
    """A worker: read from the log, fold, commit to Redis."""
    log, store = Log(url, SystemClock()), OnlineStore(url)
    log.create(ref(EVENTS), 1)
    worker = PartitionWorker(
        program,
        StateName(program.ref, 1),
        range(64),
        log=log,
        store=store,
        history=None,  # type: ignore[arg-type]  # a pipeline without joins never reads back
        batch_rows=BATCH,
    )
    worker.start()
    rates = Rates()
    for run in range(RUNS + 1):
        for records in fold_batches(run):
            own = records.select([*(field.name for field in EVENTS.fields), TIME])
            log.append(ref(EVENTS), 0, own, lateness=Lateness(max_lateness_us=None, max_clock_skew_us=300 * SECOND))
        with rates.run():
            read = 0
            while read < BATCHES * BATCH:
                read += worker.step().read
    log.close()
    store.close()
    return rates


def part_fold() -> list[Figure]:
    """Events per second on one core."""
    figures = []
    for name, made in (("20 aggregates over 3 windows", twenty()), ("20 accumulators, 60 outputs", sixty())):
        program = program_of(made)
        with redis_on_another_core() as url:
            figures.append(engine_rates(program).figure(f"engine: {name}"))
            figures.append(worker_rates(program, url).figure(f"worker with log and Redis: {name}"))
    return figures


@contextmanager
def redis_on_another_core() -> Iterator[str]:
    """A server that does not share this process's core."""
    with tempfile.TemporaryDirectory(prefix="tb") as folder:
        server = RedisServer(Path(folder))
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[-1]})
        server.start()
        os.sched_setaffinity(0, {cores[0]})
        try:
            yield server.url
        finally:
            os.sched_setaffinity(0, set(cores))
            server.kill()


# Many rows at once


ASOF_EVENTS, ASOF_KEYS, ASOF_PAIRS, SPAN = 5_000_000, 50_000, 200_000, 30 * DAY


def drawn_keys(chosen: np.random.Generator, count: int) -> pl.Series:
    """80 % even, 20 % skewed users."""
    even = chosen.integers(0, ASOF_KEYS, count)
    skewed = np.minimum(chosen.zipf(1.3, count) - 1, ASOF_KEYS - 1)
    numbers = pl.Series(np.where(chosen.random(count) < 0.8, even, skewed))
    return pl.select(pl.concat_str(pl.lit("u"), numbers)).to_series().alias("user")


def write_asof_input(folder: Path) -> None:
    """Records in the order an archive gives them, and the rows asked for."""
    chosen = np.random.default_rng(11)
    times = T0 + np.sort(chosen.integers(0, SPAN, ASOF_EVENTS))
    records: Any = pl.from_arrow(records_of(drawn_keys(chosen, ASOF_EVENTS), times, 11))
    records.write_parquet(folder / "records.parquet")
    asked = {"user": drawn_keys(chosen, ASOF_PAIRS), "t": T0 + chosen.integers(0, SPAN, ASOF_PAIRS)}
    pl.DataFrame(asked).write_parquet(folder / "asked.parquet")


def ten() -> dict[str, Aggregate]:
    """Sum, count and average over three windows, and the newest value."""
    made: dict[str, Aggregate] = {}
    for window in WINDOWS:
        made |= {
            f"sum_{window}": Sum("price", window),
            f"n_{window}": Count(window=window),
            f"avg_{window}": Avg("price", window),
        }
    return {**made, "last": Last("price")}


def by_hand(events: pl.DataFrame, spine: pl.DataFrame) -> pl.DataFrame:
    """The best plain query found: running totals per user, and one as-of join for all window edges at once.

    Cheaper than it is right: running totals of floats lose what is small beside everything before it.
    """
    running = events.select(
        "user",
        "t",
        "price",
        pl.col("price").cum_sum().over("user").alias("total"),
        pl.col("price").cum_count().cast(pl.Int64).over("user").alias("count"),
    )
    asked = spine.with_row_index("row")
    edges = [asked.with_columns(pl.lit(0).alias("edge"))]
    for number, size in enumerate(WINDOWS.values()):
        edges.append(asked.with_columns(pl.col("t") - size - 1, pl.lit(number + 1).alias("edge")))
    found = (
        pl.concat(edges)
        .sort("t")
        .join_asof(running, on="t", by="user", check_sortedness=False)
        .sort("edge", "row")
        .with_columns(pl.col("total", "count").fill_null(0))
    )
    at, *starts = found.partition_by("edge", maintain_order=True)
    columns = [at["price"].alias("last")]
    for window, start in zip(WINDOWS, starts, strict=True):
        total, count = at["total"] - start["total"], at["count"] - start["count"]
        mean = (total / count).zip_with(count > 0, pl.Series([0.0]))
        columns += [total.alias(f"sum_{window}"), count.alias(f"n_{window}"), mean.alias(f"avg_{window}")]
    return pl.DataFrame(columns)


def by_rolling(events: pl.DataFrame, spine: pl.DataFrame) -> pl.DataFrame:
    """The recipe a batch at every event starts from: rolling windows per user, here over events and asked rows."""
    asked = spine.with_row_index("row").with_columns(pl.lit(None, dtype=pl.Float64).alias("price"))
    both = pl.concat([events.select("user", "t", "price"), asked], how="diagonal").sort("user", "t", "row")
    columns = [both["row"], both.select(pl.col("price").forward_fill().over("user").alias("last")).to_series()]
    for window, size in WINDOWS.items():
        rolled = both.select(
            pl.col("price").rolling_sum_by("t", f"{size + 1}i").over("user").fill_null(0.0).alias(f"sum_{window}"),
            pl.col("price").is_not_null().cast(pl.Float64).rolling_sum_by("t", f"{size + 1}i").over("user").alias("n"),
        )
        columns += [rolled[f"sum_{window}"], rolled["n"].cast(pl.Int64).alias(f"n_{window}")]
        mean = (rolled[f"sum_{window}"] / rolled["n"]).zip_with(rolled["n"] > 0, pl.Series([0.0]))
        columns.append(mean.alias(f"avg_{window}"))
    return pl.DataFrame(columns).filter(pl.col("row").is_not_null()).sort("row").drop("row")


def assert_alike(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    """Equal values; what is null for an unknown user here is zero there."""
    for name in ten():
        ours, theirs = found[name].fill_null(0), expected[name].fill_nan(0).fill_null(0)
        # Running totals carry the rounding of a user's whole history into a small window.
        far = (ours - theirs).abs() > 1e-9 * (ours.abs() + expected["sum_7d"].abs() + 1_000)
        assert not far.any(), (name, int(far.sum()))


def asof_paths(folder: Path) -> dict[str, Callable[[], Any]]:
    """The same rows by each way."""
    records, asked = pq.read_table(folder / "records.parquet"), pl.read_parquet(folder / "asked.parquet")
    records = records.cast(record_schema(EVENTS))
    program, keys, instants = program_of(ten()), asked["user"], asked["t"].to_numpy()

    @cache
    def events() -> Any:
        return pl.from_arrow(records.select(["user", "price", TIME]).rename_columns({TIME: "t"}))

    @cache
    def shaped() -> pl.DataFrame:
        return program.shape_all({"Payment": records})

    return {
        "by hand": lambda: by_hand(events(), asked),
        "by hand, rolling": lambda: by_rolling(events(), asked),
        "evaluate": lambda: evaluate(program, shaped(), keys, instants),
        "evaluate from records": lambda: evaluate(program, program.shape_all({"Payment": records}), keys, instants),
    }


def part_asof() -> list[Figure]:
    """Seconds and memory of each way, in turn; results compared."""
    with tempfile.TemporaryDirectory(prefix="tb") as name:
        write_asof_input(Path(name))
        seconds = child("asof-times", name)
        of = {way: median(times) for way, times in seconds.items()}
        base = float(child("asof-peak", name, "input"))
        peaks = {way: float(child("asof-peak", name, way)) for way in of}
    hand = min(of["by hand"], of["by hand, rolling"])
    note = f"200,000 rows over 5,000,000 events, 10 features; median of {RUNS}, in turn, all threads"
    return [
        *(Figure(f"asof, {way}", taken, "s", hand, note) for way, taken in of.items()),
        Figure("asof, evaluate / by hand", of["evaluate"] / hand, "ratio", None, "asked for: at most 1.5"),
        Figure(
            "asof, from records / by hand", of["evaluate from records"] / hand, "ratio", None, "keys and rows made too"
        ),
        *(
            Figure(f"asof, memory peak, {way}", peak, "GiB", base, "peer: the input alone")
            for way, peak in peaks.items()
        ),
    ]


def asof_times(folder: str) -> dict[str, list[float]]:
    """Seconds of every way, in turn, after one round that compares the results."""
    ways = asof_paths(Path(folder))
    answers = {name: run() for name, run in ways.items()}
    assert answers["evaluate"].equals(answers["evaluate from records"])
    for name in ("by hand", "by hand, rolling"):
        assert_alike(answers["evaluate"], answers[name])
    del answers
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(RUNS):
        for name, run in ways.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def asof_peak(folder: str, way: str) -> float:
    """This process's memory peak, GiB, after reading the input and going one way once."""
    ways = asof_paths(Path(folder))
    if way in ways:
        ways[way]()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# State


def state_of(program: Program, times: np.ndarray) -> KeyState:
    """The state of one key with an event at each of these instants."""
    state = program.new_state(1)
    for start in range(0, len(times), 50_000):
        part = times[start : start + 50_000]
        records = records_of(pl.Series(["u"] * len(part)), part, start, start)
        for _, rows in program.rows_by_key(program.prepare(records, {})):
            state.add(rows)
    return state


def stored(url: str, program: Program, name: str, state: KeyState) -> None:
    """Write a whole state as its key ``name``."""
    store = OnlineStore(url)
    changes = list(state.changes().items())
    key = StateName(program.ref, 1).key(name)
    for start in range(0, len(changes), 1_000):
        store._redis.hset(key, mapping=dict(changes[start : start + 1_000]))
    store.close()


def spread(count: int, span: int) -> np.ndarray:
    """Instants in the last ``span`` before T0, sorted."""
    return np.sort(T0 - np.random.default_rng(count).integers(0, span, count))


def part_state() -> list[Figure]:
    """Reads of quiet and busy keys, in turn, and the size of stored state."""
    programs = {"3 aggregates, one window": program_of(three()), "20 aggregates, 3 windows": program_of(twenty())}
    cases = {
        "1,000 events in 7 days": spread(1_000, 7 * DAY),
        "1,000,000 events in 7 days": spread(1_000_000, 7 * DAY),
        "1,000 events in one second": spread(1_000, SECOND),
        "1,000,000 events in one second": spread(1_000_000, SECOND),
    }
    with tempfile.TemporaryDirectory(prefix="tb") as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            figures = []
            for what, program in programs.items():
                for name, times in cases.items():
                    stored(server.url, program, f"{name}, {what}", state_of(program, times))
                figures += read_figures(server.url, program, [f"{name}, {what}" for name in cases])
            return [*figures, *size_figures(server, programs["20 aggregates, 3 windows"])]
        finally:
            server.kill()


def read_figures(url: str, program: Program, names: Sequence[str]) -> list[Figure]:
    """Bytes and time of reads; each round reads every key at the same instant."""
    store, state = OnlineStore(url), StateName(program.ref, 1)
    chosen = np.random.default_rng(5)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    fetched: dict[str, int] = dict.fromkeys(names, 0)
    for round_ in range(400):
        # Within the second, so that edges cut the densest part too.
        at = T0 - int(chosen.integers(0, SECOND)) if round_ % 2 else T0 - int(chosen.integers(0, HOUR))
        for name in names:
            started = time.perf_counter()
            fields = program.read_fields(at)
            values = store.load(state, {name: fields})[name]
            program.finish(values, at)
            seconds[name].append(time.perf_counter() - started)
            fetched[name] = max(fetched[name], sum(len(value) for value in values if value is not None))
    store.close()
    figures = []
    for name in names:
        peer = median(seconds[name.replace("1,000,000 events", "1,000 events")]) * 1e6
        figures += [
            Figure(
                f"read, {name}", median(seconds[name]) * 1e6, "µs", peer, "fetch and finish, 400 reads; peer: 1,000"
            ),
            Figure(
                f"bytes fetched, {name}", fetched[name], "bytes", None, "most of 400 reads; asked for: at most 65,536"
            ),
        ]
    return figures


def size_figures(server: RedisServer, program: Program) -> list[Figure]:
    """What Redis holds per key and event."""
    client = server.client()
    figures = []
    for events in (1, 10, 100, 1_000, 10_000):
        name = f"sized {events}"
        stored(server.url, program, name, state_of(program, spread(events, 7 * DAY)))
        used = client.memory_usage(StateName(program.ref, 1).key(name), samples=0)
        assert used
        figures.append(Figure(f"state of a key of {events:,} events", used, "bytes", None, "MEMORY USAGE, 7 days"))
        figures.append(Figure(f"the same per event, {events:,} events", used / events, "bytes", None, ""))
    client.close()
    return figures


# The finish of a request


def five_views() -> list[dict[str, Aggregate]]:
    """10 aggregates each, mixed, over an hour, a day and a week."""
    hour, day, week = WINDOWS
    large = col("amount") > 50_000
    each = {
        "n": lambda window: Count(window=window),
        "large": lambda window: Count(window=window, where=large),
        "sum": lambda window: Sum("amount", window),
        "paid": lambda window: Sum("price", window),
        "avg": lambda window: Avg("price", window),
        "least": lambda window: Min("price", window),
        "most": lambda window: Max("price", window),
        "smallest": lambda window: Min("amount", window),
        "largest": lambda window: Max("amount", window),
        "spread": lambda window: Stddev("price", window),
        "last": lambda window: Last("shop", window),
        "first": lambda window: First("amount", window),
    }
    chosen: list[dict[str, Sequence[str]]] = [
        {"n": WINDOWS, "sum": WINDOWS, "avg": (hour, week), "most": (day,), "last": (week,)},
        {"avg": WINDOWS, "least": (hour, week), "most": (hour, week), "spread": (day, week), "n": (hour,)},
        {"n": WINDOWS, "paid": WINDOWS, "large": WINDOWS, "last": (week,)},
        {"smallest": WINDOWS, "largest": WINDOWS, "sum": (hour,), "avg": (day,), "spread": (week,), "last": (hour,)},
        {"n": (hour, week), "paid": (day,), "avg": (week,), "smallest": (hour,), "largest": (day,), "spread": (week,),
         "last": (hour, week), "first": (day,)},
    ]  # fmt: skip
    return [{f"{name}_{w}": each[name](w) for name, windows in view.items() for w in windows} for view in chosen]


class Request:
    """The views of one key and what a store holds of them, read at the key's newest instants."""

    def __init__(self, times: np.ndarray) -> None:
        self._programs = [program_of(view) for view in five_views()]
        newest = T0 + np.arange(16) * 10 * SECOND
        self._held = [self._stored(program, times, newest) for program in self._programs]
        self.start = int(newest[-1])

    def _stored(self, program: Program, times: np.ndarray, newest: np.ndarray) -> dict[bytes, bytes]:
        state = state_of(program, times)
        state.flush()
        records = records_of(pl.Series(["u"] * len(newest)), newest, 3, len(times))
        for _, rows in program.rows_by_key(program.prepare(records, {})):
            state.add(rows)
        return state.changes()

    def asked(self, at: int, waiting: int = 16) -> list[list[bytes | None]]:
        """The bytes that a read fetches, with so many rows in the buffer."""
        found = []
        for program, held in zip(self._programs, self._held, strict=True):
            rows = joined_rows(held.get(BUFFER), held.get(TAIL))
            buffer = encode(decode_rows(rows)[:waiting] if rows is not None else [])
            found.append([{**held, BUFFER: buffer, TAIL: None}.get(name) for name in program.read_fields(at)])
        return found

    def finish(self, at: int, values: Sequence[Sequence[bytes | None]]) -> float:
        """Microseconds of the five finishes."""
        started = time.perf_counter()
        for program, own in zip(self._programs, values, strict=True):
            program.finish(own, at, None, "u")
        return (time.perf_counter() - started) * 1e6


def part_reads() -> list[Figure]:
    """Finishes of a request, and the bytes it fetches."""
    hour, day, _ = WINDOWS.values()
    chosen = np.random.default_rng(7)
    ages = [chosen.integers(0, hour, 230), chosen.integers(hour, day, 250), chosen.integers(day, 8 * day, 300)]
    histories = {
        "780 events in 8 days": np.sort(T0 - np.concatenate(ages)),
        "220 events an hour for 8 days": spread(220 * 24 * 8, 8 * day),
    }
    return [figure for name, times in histories.items() for figure in finish_figures(name, Request(times))]


def finish_figures(name: str, request: Request) -> list[Figure]:
    """Each kind of read, 300 times."""
    start, rounds = request.start, 300
    # Instants a few events apart; and a buffer that grows from 1 to 16 rows and is short again.
    on = [(start + n * 2_500_000, request.asked(start + n * 2_500_000)) for n in range(rounds)]
    growing = [(start, request.asked(start, 1 + n % 16)) for n in range(rounds)]
    both = [(at, request.asked(at, 1 + n % 16)) for n, (at, _) in enumerate(on)]
    kinds = {
        "read before, nothing new": [on[0]] * rounds,
        "read before, one event came": growing,
        "read before, 2.5 s later": on,
        "read before, 2.5 s later and one event came": both,
    }
    figures = [Figure(f"finish of 50 features, {name}, first read", median(first_reads(request, on)), "µs", None, "")]
    for kind, reads in kinds.items():
        taken = sorted(request.finish(at, values) for at, values in reads)
        slow, note = taken[-rounds // 10], f"median; peer: the slowest in ten of {rounds}"
        figures.append(Figure(f"finish of 50 features, {name}, {kind}", median(taken), "µs", slow, note))
    most = max(sum(len(value) for own in values for value in own if value is not None) for _, values in on)
    figures.append(Figure(f"bytes fetched for 50 features, {name}", most, "bytes", None, "asked for: at most 65,536"))
    return figures


def first_reads(request: Request, reads: Sequence[tuple[int, Any]]) -> list[float]:
    """Microseconds of reads that find nothing kept."""
    taken = []
    for at, values in reads:
        KEPT_READS.clear()
        taken.append(request.finish(at, values))
    return taken


PARTS: dict[str, Callable[[], list[Figure]]] = {
    "fold": part_fold,
    "asof": part_asof,
    "state": part_state,
    "reads": part_reads,
}
STEPS: dict[str, Callable[..., Any]] = {"asof-times": asof_times, "asof-peak": asof_peak}


def child(part: str, *arguments: str) -> Any:
    """What a part gives in a process of its own."""
    # Folding is measured on one core; Polars takes its number of threads from the environment, once.
    threads = {"POLARS_MAX_THREADS": "1"} if part == "fold" else {}
    command = [sys.executable, "-m", "tests.load.bench_engine", part, *arguments]
    done = subprocess.run(command, env={**os.environ, **threads}, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and report; with the name of a part, only that, as JSON."""
    if sys.argv[1:]:
        print(json.dumps({**PARTS, **STEPS}[sys.argv[1]](*sys.argv[2:])))
    else:
        report("engine", [Figure(*figure) for part in PARTS for figure in child(part)])


if __name__ == "__main__":
    main()
