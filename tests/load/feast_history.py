"""Feast's ``get_historical_features``, in an environment of its own.

Feast joins rows with features that somebody else computed, and computes no windows: its source has the 20 features at
every event, made before the clock starts.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

import polars as pl

from tests.load import feast_peer

_SETTINGS = """
project: bench
provider: local
registry: registry.db
online_store: {type: sqlite, path: online.db}
offline_store: {type: dask}
entity_key_serialization_version: 3
"""
_RUN = """
import json, sys, time
from datetime import timedelta
import pandas as pd
from feast import Entity, FeatureStore, FeatureView, Field, FileSource
from feast.types import Float64
from feast.value_type import ValueType

runs = int(sys.argv[1])
names = [name for name in pd.read_parquet("source.parquet").columns if name not in ("user", "event_timestamp")]
user = Entity(name="user", join_keys=["user"], value_type=ValueType.STRING)
source = FileSource(name="source", path="source.parquet", timestamp_field="event_timestamp")
view = FeatureView(name="spending", entities=[user], ttl=timedelta(days=400), source=source,
                   schema=[Field(name=name, dtype=Float64) for name in names])
store = FeatureStore(".")
store.apply([user, view])
seconds = []
for _ in range(runs):
    started = time.perf_counter()
    asked = pd.read_parquet("asked.parquet")
    found = store.get_historical_features(asked, [f"spending:{name}" for name in names]).to_df()
    found.to_parquet("found.parquet")
    seconds.append(time.perf_counter() - started)
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 2**20
print(json.dumps([seconds, len(found), peak]))
"""


class Taken(NamedTuple):
    """What it took: seconds of each run, the rows it gave, and the process's memory peak."""

    seconds: list[float]
    rows: int
    peak_gib: float


def historical_features(folder: Path, features: pl.DataFrame, asked: pl.DataFrame, runs: int) -> Taken:
    """Join rows with features.

    Args:
        folder: of the feature repository; made.
        features: ``user``, ``t`` (µs) and a column per feature.
        asked: ``user`` and ``t``.
        runs: how often.
    """
    feast_peer.install()
    folder.mkdir()
    (folder / "feature_store.yaml").write_text(_SETTINGS)
    (folder / "run.py").write_text(_RUN)
    _dated(features).write_parquet(folder / "source.parquet")
    _dated(asked).write_parquet(folder / "asked.parquet")
    command = [str(feast_peer.ENVIRONMENT / "bin" / "python"), "run.py", str(runs)]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=True)
    return Taken(*json.loads(done.stdout.splitlines()[-1]))


def _dated(frame: pl.DataFrame) -> pl.DataFrame:
    moment = pl.from_epoch("t", time_unit="us").dt.replace_time_zone("UTC").alias("event_timestamp")
    return frame.with_columns(moment).drop("t")
