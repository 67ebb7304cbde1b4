"""A town whose rides are ingested from files by a real platform, and what must have been counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import polars as pl

from cluster.processes import wait_until
from featurelib import ThymeClient
from featurelib.errors import ThymeError
from tests.support.platforms import Platform

MODULE = """
from datetime import datetime
from featurelib import Count, FileSource, Sum, col, dataset, feature, featureset, field, inputs, pipeline, source

@source(FileSource(path="rides", format="parquet"), every="1s")
@dataset(version=1)
class Ride:
    rider: str = field(key=True)
    city: str = field()
    cents: int = field()
    at: datetime = field(timestamp=True)

@source(FileSource(path="rain", format="csv"), every="1s")
@dataset(version=1)
class Rain:
    city: str = field(key=True)
    mm: int = field()
    at: datetime = field(timestamp=True)

@dataset(index=True, version=1)
class RiderStats:
    rider: str = field(key=True)
    rides: int = field()
    cents: int = field()
    wet: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Ride, Rain)
    def by_rider(cls, rides):
        return rides.join(Rain, on="city", fields=["mm"]).groupby("rider").aggregate(
            rides=Count(), cents=Sum(of="cents"), wet=Count(where=col("mm") > 0))

@dataset(index=True, version=1)
class CityStats:
    city: str = field(key=True)
    rides: int = field()
    cents: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Ride)
    def by_city(cls, rides):
        return rides.groupby("city").aggregate(rides=Count(), cents=Sum(of="cents"))

@featureset
class RiderFeatures:
    rider: str = feature()
    rides: int = feature(ref=RiderStats.rides)
    cents: int = feature(ref=RiderStats.cents)
    wet: int = feature(ref=RiderStats.wet)

@featureset
class CityFeatures:
    city: str = feature()
    rides: int = feature(ref=CityStats.rides)
    cents: int = feature(ref=CityStats.cents)
"""
FLEET_MODULE = (
    MODULE
    + """
@dataset(index=True, version=1)
class FleetStats:
    city: str = field(key=True)
    rides: int = field()
    cents: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Ride)
    def by_fleet(cls, rides):
        return rides.groupby("city").aggregate(rides=Count(), cents=Sum(of="cents"))

@featureset
class FleetFeatures:
    city: str = feature()
    rides: int = feature(ref=FleetStats.rides)
    cents: int = feature(ref=FleetStats.cents)
"""
)
"""The same, and a pipeline more: committed when many rides are in, it is far behind."""
CATCH_UP_ROWS = 50_000
CITIES = ["ams", "ber", "cph", "dub"]
RIDERS = [f"r{number}" for number in range(40)]
START_S = 1_700_000_000
DEADLINE_S = 240.0


class Town:
    """The platform, the files its sources read, and what must have been counted."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.client: ThymeClient = platform.client()
        self.rows = 0
        self._files = 0

    def drive(self, files: int, rows: int, shift_s: int = 0) -> None:
        """Write ride files, dated so much later; each appears whole, under its final name."""
        folder = self.platform.home / "rides"
        for _ in range(files):
            first = self.rows
            numbers = pl.int_range(first, first + rows, eager=True)
            frame = pl.DataFrame(
                {
                    "rider": [RIDERS[n * 7 % len(RIDERS)] for n in numbers],
                    "city": [CITIES[n * 13 // 3 % len(CITIES)] for n in numbers],
                    "cents": numbers % 997,
                    "at": pl.from_epoch(START_S + shift_s + numbers // 10, time_unit="s").dt.replace_time_zone("UTC"),
                }
            )
            path = folder / f"{self._files:05}.parquet"
            frame.write_parquet(path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
            self.rows += rows
            self._files += 1

    def expected(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        """Per rider (rides, cents, wet) and per city (rides, cents), from the files, in SQL-like Polars."""
        rides = pl.read_parquet(self.platform.home / "rides" / "*.parquet").sort("at")
        rain = pl.read_csv(self.platform.home / "rain" / "*.csv", try_parse_dates=True).with_columns(
            pl.col("at").dt.replace_time_zone("UTC").dt.cast_time_unit("us")
        )
        joined = rides.with_columns(pl.col("at").dt.cast_time_unit("us")).join_asof(
            rain.sort("at"), on="at", by="city", check_sortedness=False
        )
        by_rider = joined.group_by("rider").agg(pl.len(), pl.col("cents").sum(), (pl.col("mm") > 0).sum().alias("wet"))
        by_city = rides.group_by("city").agg(pl.len(), pl.col("cents").sum())
        return (
            {rider: tuple(numbers) for rider, *numbers in by_rider.rows()},
            {city: tuple(numbers) for city, *numbers in by_city.rows()},
        )

    def served(self) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
        riders = self.client.query_batch("RiderFeatures", RIDERS).to_dict()
        cities = self.client.query_batch("CityFeatures", CITIES).to_dict()
        return (
            {row["rider"]: (row["rides"], row["cents"], row["wet"]) for row in riders},
            {row["city"]: (row["rides"], row["cents"]) for row in cities},
        )

    def folded(self) -> int:
        """Rides the slower pipeline has folded, as the registry last heard; 0 while services restart."""
        try:
            return min(job["rows"] for job in self.client.jobs() if job["name"] in ("by_rider_job", "by_city_job"))
        except ThymeError:
            return 0

    def counts(self) -> int:
        """Rides counted over all cities; -1 while services restart."""
        try:
            return sum(row["rides"] for row in self.client.query_batch("CityFeatures", CITIES).to_dict())
        except ThymeError:
            return -1

    def settles(self) -> None:
        """Wait until what is served is what the files hold; fails with both when it never is."""
        wanted = self.expected()

        def equal() -> bool:
            try:
                return self.served() == wanted
            except ThymeError:
                return False

        if not wait_until(equal, DEADLINE_S, every_s=0.3):
            assert self.served() == wanted, self.client.jobs()


@contextmanager
def town_on(platform: Platform) -> Iterator[Town]:
    """The town's files and definitions on a platform that is up, which may hold other things too."""
    for folder in ("rides", "rain"):
        (platform.home / folder).mkdir()
    # Two of the four cities are wet from the second hour on.
    lines = ["city,mm,at"]
    for hour in range(12):
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(START_S + 3_600 * hour))
        lines += [f"{city},{int(hour > 0 and index % 2)},{at}" for index, city in enumerate(CITIES)]
    (platform.home / "rain" / "rain.csv").write_text("\n".join(lines) + "\n")
    (platform.home / "features.py").write_text(MODULE)
    platform.thyme("commit", str(platform.home / "features.py"))
    made = Town(platform)
    with closing(made.client):
        made.drive(1, 1_000)
        yield made


@contextmanager
def running_town(home: Path, **environment: str) -> Iterator[Town]:
    """A town on a platform of its own; that is stopped, and nothing left behind, at the end."""
    platform = Platform(home)
    platform.environment |= {"THYME_PIPELINE__CATCH_UP_ROWS": str(CATCH_UP_ROWS), **environment}
    with platform.running(), town_on(platform) as made:
        yield made
