"""The main job's figures, each the median of RUNS runs on a platform of their own.

    make bench BENCH=main_job        (RUNS=5 by default; about a minute and a half each)

Control, in the same run: one plain Polars script that reads the same files and computes the same
aggregates per carrier and origin at the newest departure, once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import polars as pl

from featurelib import ThymeClient
from featurelib.errors import NotFound, ThymeError
from featurelib.stores.online import OnlineStore, StateName
from tests.load.harness import Figure, median, report
from tests.support.platforms import Platform

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "build" / "flights"
FLIGHTS = ROOT / "examples" / "flights"
DEPARTED = 328_521  # departures that were not cancelled: what both pipelines fold
PROBE = """
from datetime import datetime
from featurelib import Count, dataset, feature, featureset, field, inputs, pipeline

@dataset(version=1)
class Probe:
    name: str = field(key=True)
    at: datetime = field(timestamp=True)

@dataset(index=True, version=1)
class ProbeCount:
    name: str = field(key=True)
    seen_1h: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Probe)
    def count_probes(cls, probes):
        return probes.groupby("name").aggregate(seen_1h=Count(window="1h"))

@featureset
class ProbeFeatures:
    name: str = feature()
    seen_1h: int = feature(ref=ProbeCount.seen_1h, default=0)
"""


class Run(NamedTuple):
    """What one run measured."""

    demo_s: float
    folded_per_s: float
    up_to_answer_s: float
    commit_to_served_s: float
    down_s: float
    left_behind: int
    control_s: float


@contextmanager
def sampled_rows(platform: Platform) -> Iterator[list[tuple[float, int]]]:
    """Collects (seconds, rows folded by the slower pipeline) until the block ends."""
    samples: list[tuple[float, int]] = []
    done = threading.Event()

    def sample() -> None:
        store: OnlineStore | None = None
        while not done.wait(0.05):
            try:
                if store is None and not platform.is_up():
                    continue
                store = store or OnlineStore(platform.online_url())
                rows = min(store.progress(StateName(name, 1)).rows for name in ("by_carrier@1", "by_origin@1"))
            except (ThymeError, OSError):
                continue
            samples.append((time.monotonic(), rows))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def rate(samples: list[tuple[float, int]]) -> float:
    """Rows per second between 10 % and 90 % of them."""
    inside = [(at, rows) for at, rows in samples if 0.1 * DEPARTED <= rows <= 0.9 * DEPARTED]
    (first, low), (last, high) = inside[0], inside[-1]
    return (high - low) / (last - first)


def first_answer(platform: Platform) -> float:
    """Seconds from calling `thyme up` on a platform that was stopped to the first features it answers."""
    started = time.monotonic()
    up = subprocess.Popen([platform.binary("thyme"), "up"], env=platform.environment, stdout=subprocess.DEVNULL)
    with platform.client() as client:
        while True:
            try:
                (row,) = client.query("CarrierFeatures", "B6").to_dict()
            except (ThymeError, httpx2.HTTPError):
                time.sleep(0.1)
                continue
            assert row["departures_7d"] > 0
            answered = time.monotonic() - started
            break
    assert up.wait() == 0
    return answered


def commit_to_served(platform: Platform) -> float:
    """Seconds from committing a new pipeline to a read that shows an event it folded."""
    module = platform.home / "probe.py"
    module.write_text(PROBE)
    started = time.monotonic()
    platform.thyme("commit", str(module))
    with platform.client() as client:
        client.log("Probe", {"name": "p", "at": time.time()})
        while not _seen(client):
            time.sleep(0.02)
    return time.monotonic() - started


def _seen(client: ThymeClient) -> bool:
    try:
        return bool(client.query("ProbeFeatures", "p").to_dict()[0]["seen_1h"] == 1)
    except NotFound:
        return False  # this replica has not seen the commit yet


def control() -> float:
    """The same aggregates once, at the newest departure, by one plain Polars script."""
    started = time.monotonic()
    departures = pl.read_parquet(FILES / "departures" / "*.parquet").filter(~pl.col("cancelled")).sort("departed_at")
    weather = pl.read_csv(FILES / "weather" / "*.csv", try_parse_dates=True).with_columns(
        pl.col("observed_at").dt.cast_time_unit("us")
    )
    joined = departures.join_asof(
        weather.sort("observed_at"), left_on="departed_at", right_on="observed_at", by="origin", check_sortedness=False
    )
    newest = joined["departed_at"].max()
    for key, other in (("carrier", "origin"), ("origin", "carrier")):
        for hours in (1, 24, 168):
            inside = joined.filter(pl.col("departed_at") >= newest - pl.duration(hours=hours))
            delay = pl.col("delay_minutes")
            inside.group_by(key).agg(
                pl.len(),
                (delay > 15).sum().alias("late"),
                delay.mean().alias("avg"),
                delay.min().alias("min"),
                delay.max().alias("max"),
                pl.col("distance").sum(),
                pl.col("wind_speed").max(),
                pl.col(other).last(),
            )
    return time.monotonic() - started


def run() -> Run:
    """One run, in a home of its own."""
    with tempfile.TemporaryDirectory(prefix="thyme-bench-") as folder:
        platform = Platform(Path(folder))
        try:
            with sampled_rows(platform) as samples:
                started = time.monotonic()
                subprocess.run(
                    [sys.executable, str(FLIGHTS / "demo.py")],
                    env=platform.environment,
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                demo_s = time.monotonic() - started
            served_s = commit_to_served(platform)
            platform.thyme("down")
            answer_s = first_answer(platform)
        finally:
            started = time.monotonic()
            platform.thyme("down")
            down_s = time.monotonic() - started
        return Run(demo_s, rate(samples), answer_s, served_s, down_s, len(platform.left_behind()), control())


def main() -> None:
    """Measure and report."""
    sys.path.insert(0, str(FLIGHTS))
    from prepare import prepare

    prepare()
    runs: list[Any] = []
    for number in range(int(os.environ.get("RUNS", "5"))):
        runs.append(run())
        print(number + 1, runs[-1], file=sys.stderr)
    of = {name: median([getattr(one, name) for one in runs]) for name in Run._fields}
    control_s = of["control_s"]
    note = f"median of {len(runs)}"
    report(
        "main_job",
        [
            Figure("demo_s", of["demo_s"], "s", control_s, f"{note}; peer: one Polars script over the same files"),
            Figure("demo_vs_control", of["demo_s"] / control_s, "ratio", None, note),
            Figure("live_fold_rate", of["folded_per_s"], "departures/s", DEPARTED / control_s, note),
            Figure("live_fold_vs_control", of["folded_per_s"] / (DEPARTED / control_s), "ratio", None, note),
            Figure("up_to_first_answer_s", of["up_to_answer_s"], "s", None, note),
            Figure("commit_to_first_event_served_s", of["commit_to_served_s"], "s", None, note),
            Figure("down_s", of["down_s"], "s", None, note),
            Figure("left_behind", max(one.left_behind for one in runs), "processes and ports", None, "worst run"),
        ],
    )


if __name__ == "__main__":
    main()
