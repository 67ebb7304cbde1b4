"""The declarations the API tests commit."""
# ruff: noqa: N805 - methods of a declaration take cls

from datetime import datetime

from featurelib import (
    Avg,
    Count,
    Last,
    LastK,
    Sum,
    dataset,
    extractor,
    extractor_inputs,
    extractor_outputs,
    feature,
    featureset,
    field,
    inputs,
    pipeline,
)


@dataset(index=True)
class Ride:
    ride: str = field(key=True)
    rider: int = field()
    city: str = field()
    fare: float = field()
    at: datetime = field(timestamp=True)


@dataset(index=True)
class City:
    city: str = field(key=True)
    country: str = field()
    opened: datetime = field()
    at: datetime = field(timestamp=True)


@dataset(index=True)
class RiderStats:
    rider: int = field(key=True)
    trips: int = field()
    spent: float = field()
    mean: float = field()
    last_city: str = field()
    last_at: datetime = field()
    cities: list[str] = field()
    until: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Ride)
    def by_rider(cls, rides):
        return rides.groupby("rider").aggregate(
            trips=Count(window="24h"),
            spent=Sum(of="fare", window="24h"),
            mean=Avg(of="fare", window="24h"),
            last_city=Last(of="city", window="24h"),
            last_at=Last(of="at", window="24h"),
            cities=LastK(of="city", window="24h", k=2),
        )


@featureset(entity_type="rider")
class Rider:
    rider: int = feature()
    trips: int = feature(ref=RiderStats.trips, default=0)
    spent: float = feature(ref=RiderStats.spent)
    cities: list[str] = feature(ref=RiderStats.cities)
    last_at: datetime = feature(ref=RiderStats.last_at)
    fee: float = feature(request=True, default=2.0)
    each: float = feature()
    hours_since: float = feature()

    @extractor
    @extractor_inputs("spent", "trips", "fee")
    @extractor_outputs("each")
    def each_trip(cls, ts, spent, trips, fee):
        return (spent or 0.0) / trips + fee if trips else None

    @extractor
    @extractor_inputs("last_at")
    @extractor_outputs("hours_since")
    def since(cls, ts, inputs):
        last = inputs["last_at"]
        return None if last is None else (ts - last).total_seconds() / 3600


@featureset(entity_type="rider", online_clock="event")
class RiderReplayed:
    rider: int = feature()
    trips: int = feature(ref=RiderStats.trips, default=0)
    busy: bool = feature()

    @extractor(deps=[Rider])
    @extractor_inputs(Rider.trips)
    @extractor_outputs("busy")
    def is_busy(cls, ts, trips):
        return trips > 1


@featureset(entity_type="rider")
class Quote:
    rider: int = feature()
    distance: float = feature(request=True)
    tip: int = feature(request=True, default=0)
    price: float = feature()

    @extractor
    @extractor_inputs("distance", "tip")
    @extractor_outputs("price")
    def price_of(cls, ts, distance, tip):
        return distance * 1.5 + tip


@featureset(entity_type="rider")
class Fragile:
    rider: int = feature()
    trips: int = feature(ref=RiderStats.trips, default=0)
    inverse: float = feature()

    @extractor
    @extractor_inputs("trips")
    @extractor_outputs("inverse")
    def invert(cls, ts, trips):
        return 1 / trips
