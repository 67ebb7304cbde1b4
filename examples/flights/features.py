"""The 2013 New York departures: three sources, one join, two pipelines, three featuresets.

Commit it with ``thyme commit examples/flights/features.py``; ``prepare.py`` beside it writes the files it reads.
"""

from datetime import datetime
from pathlib import Path
from typing import Optional

from featurelib import (
    Avg,
    Count,
    FileSource,
    Last,
    LastK,
    Max,
    Min,
    Sum,
    col,
    dataset,
    expect_column_values_to_be_between,
    expect_column_values_to_be_in_set,
    expectations,
    extractor,
    extractor_inputs,
    extractor_outputs,
    feature,
    featureset,
    field,
    inputs,
    pipeline,
    source,
)

FILES = Path(__file__).resolve().parents[2] / "build" / "flights"


@source(FileSource(path=str(FILES / "departures"), format="parquet"), cursor="departed_at", every="1s")
@dataset(version=1, description="One row per scheduled departure.", owner="ops@example.com", tags=["raw"])
class Departure:
    carrier: str = field(key=True)
    flight: int = field()
    tail_number: Optional[str] = field()
    origin: str = field()
    destination: str = field()
    distance: int = field()
    delay_minutes: Optional[float] = field()
    cancelled: bool = field()
    departed_at: datetime = field(timestamp=True)

    @expectations
    def quality(cls):
        return [
            expect_column_values_to_be_between(column="delay_minutes", min_value=-60, max_value=1500, mostly=0.95),
            expect_column_values_to_be_in_set(column="origin", values=["EWR", "JFK", "LGA"]),
        ]


@source(FileSource(path=str(FILES / "weather"), format="csv"), cursor="observed_at", every="1s", cdc="upsert")
@dataset(version=1, description="Hourly weather at the three airports.")
class Weather:
    origin: str = field(key=True)
    wind_speed: Optional[float] = field()
    visibility: Optional[float] = field()
    observed_at: datetime = field(timestamp=True)


@source(FileSource(path=str(FILES / "planes"), format="jsonl"), every="5s", cdc="upsert")
@dataset(index=True, version=1, description="The fleet register.")
class Plane:
    tail_number: str = field(key=True)
    manufacturer: str = field()
    model: str = field()
    seats: int = field()
    registered_at: datetime = field(timestamp=True)


@dataset(index=True, version=1)
class CarrierStats:
    carrier: str = field(key=True)
    departures_1h: int = field()
    departures_24h: int = field()
    departures_7d: int = field()
    late_24h: int = field()
    avg_delay_1h: float = field()
    avg_delay_24h: float = field()
    min_delay_7d: float = field()
    max_delay_7d: float = field()
    distance_24h: int = field()
    windy_24h: int = field()
    max_wind_24h: float = field()
    last_destination_24h: str = field()
    recent_origins_7d: list[str] = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Departure, Weather)
    def by_carrier(cls, departures):
        return (
            departures.filter(col("cancelled") == False)  # noqa: E712
            .join(Weather, on="origin", fields=["wind_speed"])
            .groupby("carrier")
            .aggregate(
                departures_1h=Count(window="1h"),
                departures_24h=Count(window="24h"),
                departures_7d=Count(window="7d"),
                late_24h=Count(window="24h", where=col("delay_minutes") > 15),
                avg_delay_1h=Avg(of="delay_minutes", window="1h"),
                avg_delay_24h=Avg(of="delay_minutes", window="24h"),
                min_delay_7d=Min(of="delay_minutes", window="7d"),
                max_delay_7d=Max(of="delay_minutes", window="7d"),
                distance_24h=Sum(of="distance", window="24h"),
                windy_24h=Count(window="24h", where=col("wind_speed") >= 15),
                max_wind_24h=Max(of="wind_speed", window="24h"),
                last_destination_24h=Last(of="destination", window="24h"),
                recent_origins_7d=LastK(of="origin", window="7d", k=3, dedup=True),
            )
        )


@dataset(index=True, version=1)
class OriginStats:
    origin: str = field(key=True)
    departures_1h: int = field()
    departures_24h: int = field()
    departures_7d: int = field()
    avg_delay_1h: float = field()
    max_delay_24h: float = field()
    miles_7d: float = field()
    last_carrier_1h: str = field()
    recent_carriers_24h: list[str] = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Departure)
    def by_origin(cls, departures):
        return (
            departures.filter(col("cancelled") == False)  # noqa: E712
            .assign(miles=col("distance") * 1.0)
            .groupby("origin")
            .aggregate(
                departures_1h=Count(window="1h"),
                departures_24h=Count(window="24h"),
                departures_7d=Count(window="7d"),
                avg_delay_1h=Avg(of="delay_minutes", window="1h"),
                max_delay_24h=Max(of="delay_minutes", window="24h"),
                miles_7d=Sum(of="miles", window="7d"),
                last_carrier_1h=Last(of="carrier", window="1h"),
                recent_carriers_24h=LastK(of="carrier", window="24h", k=5, dedup=True),
            )
        )


@featureset(entity_type="carrier", online_clock="event", description="Carrier punctuality", owner="ml@example.com")
class CarrierFeatures:
    carrier: str = feature()
    departures_1h: int = feature(ref=CarrierStats.departures_1h, default=0)
    departures_24h: int = feature(ref=CarrierStats.departures_24h, default=0)
    departures_7d: int = feature(ref=CarrierStats.departures_7d, default=0)
    late_24h: int = feature(ref=CarrierStats.late_24h, default=0)
    avg_delay_1h: float = feature(ref=CarrierStats.avg_delay_1h)
    avg_delay_24h: float = feature(ref=CarrierStats.avg_delay_24h)
    min_delay_7d: float = feature(ref=CarrierStats.min_delay_7d)
    max_delay_7d: float = feature(ref=CarrierStats.max_delay_7d)
    distance_24h: int = feature(ref=CarrierStats.distance_24h)
    windy_24h: int = feature(ref=CarrierStats.windy_24h)
    max_wind_24h: float = feature(ref=CarrierStats.max_wind_24h)
    last_destination_24h: str = feature(ref=CarrierStats.last_destination_24h)
    recent_origins_7d: list[str] = feature(ref=CarrierStats.recent_origins_7d)
    scheduled_minutes: float = feature(request=True, default=60.0)
    late_share_24h: float = feature()
    expected_minutes: float = feature()

    @extractor
    @extractor_inputs("late_24h", "departures_24h")
    @extractor_outputs("late_share_24h")
    def late_share(cls, ts, late, total):
        return late / total if total else 0.0

    @extractor
    @extractor_inputs("scheduled_minutes", "avg_delay_24h")
    @extractor_outputs("expected_minutes")
    def expected(cls, ts, scheduled, delay):
        return scheduled + (delay or 0.0)


@featureset(entity_type="carrier", online_clock="event", description="Whether to expect trouble")
class CarrierRisk:
    carrier: str = feature()
    departures_24h: int = feature(ref=CarrierStats.departures_24h, default=0)
    risky: bool = feature()

    @extractor(deps=[CarrierFeatures])
    @extractor_inputs(CarrierFeatures.late_share_24h)
    @extractor_outputs("risky")
    def is_risky(cls, ts, late_share):
        return late_share is not None and late_share > 0.25


@featureset(entity_type="airport", online_clock="event", description="How busy an airport is")
class OriginFeatures:
    origin: str = feature()
    departures_1h: int = feature(ref=OriginStats.departures_1h, default=0)
    departures_24h: int = feature(ref=OriginStats.departures_24h, default=0)
    departures_7d: int = feature(ref=OriginStats.departures_7d, default=0)
    avg_delay_1h: float = feature(ref=OriginStats.avg_delay_1h)
    max_delay_24h: float = feature(ref=OriginStats.max_delay_24h)
    miles_7d: float = feature(ref=OriginStats.miles_7d)
    last_carrier_1h: str = feature(ref=OriginStats.last_carrier_1h)
    recent_carriers_24h: list[str] = feature(ref=OriginStats.recent_carriers_24h)
