"""Declarations of every kind of read, for the tests of answers of many rows."""
# ruff: noqa: N805 - methods of a declaration take cls

from datetime import datetime
from decimal import Decimal

from featurelib import (
    Avg,
    Count,
    Last,
    LastK,
    Max,
    Session,
    Sum,
    Tumbling,
    col,
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
class Trip:
    rider: int = field(key=True)
    city: str = field()
    fare: float = field()
    km: int | None = field()
    toll: Decimal | None = field(scale=2)
    at: datetime = field(timestamp=True)


@dataset(index=True)
class Weather:
    city: str = field(key=True)
    rain: float = field()
    at: datetime = field(timestamp=True)


@dataset(index=True)
class ByRider:
    rider: int = field(key=True)
    trips_1h: int = field()
    fares_3h: float = field()
    mean_1d: float = field()
    km_max: int = field()
    toll: Decimal | None = field(scale=2)
    cities: list[str] = field()
    last_at: datetime | None = field()
    wet: int = field()
    hourly: float = field()
    streak: int = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Trip, Weather)
    def by_rider(cls, trips, weather):
        rained = trips.join(weather, on="city", fields=["rain"])
        return rained.groupby("rider").aggregate(
            trips_1h=Count(window="1h"),
            fares_3h=Sum(of="fare", window="3h"),
            mean_1d=Avg(of="fare", window="1d"),
            km_max=Max(of="km", window="1d", default=-1),
            toll=Last(of="toll", window="1d"),
            cities=LastK(of="city", window="1d", k=3),
            last_at=Last(of="at", window="3h"),
            wet=Count(window="1d", where=col("rain") > 1),
            hourly=Sum(of="fare", window=Tumbling("1h")),
            streak=Count(window=Session("30m")),
        )


@dataset(index=True)
class ByCity:
    city: str = field(key=True)
    trips: int = field()
    fares: float = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Trip)
    def by_city(cls, trips):
        return (
            trips.filter(col("fare") > 0)
            .groupby("city")
            .aggregate(trips=Count(window="3h"), fares=Sum(of="fare", window="3h"))
        )


@dataset(index=True)
class Newest:
    rider: int = field(key=True)
    city: str = field()
    fare: float = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Trip)
    def newest(cls, trips):
        return trips.select("rider", "city", "fare").groupby("rider").latest()


@dataset(index=True)
class Ending:
    city: str = field(key=True)
    riders: int = field()
    fares: float = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Newest)
    def ending(cls, newest):
        return newest.groupby("city").aggregate(riders=Count(), fares=Sum(of="fare"))


@featureset(entity_type="rider")
class Rider:
    rider: int = feature()
    trips_1h: int = feature(ref=ByRider.trips_1h, default=0)
    fares_3h: float = feature(ref=ByRider.fares_3h)
    mean_1d: float = feature(ref=ByRider.mean_1d, default=-1.0)
    km_max: int = feature(ref=ByRider.km_max)
    toll: Decimal | None = feature(ref=ByRider.toll, scale=2)
    cities: list[str] = feature(ref=ByRider.cities)
    last_at: datetime | None = feature(ref=ByRider.last_at)
    wet: int = feature(ref=ByRider.wet)
    hourly: float = feature(ref=ByRider.hourly)
    streak: int = feature(ref=ByRider.streak)
    fare: float = feature(ref=Trip.fare)
    home: str = feature(ref=Newest.city, default="nowhere")
    price: float = feature(request=True, default=1.5)
    cost: float | None = feature()
    since: float | None = feature()
    double: float | None = feature()
    city_trips: int = feature()
    city_riders: int = feature()

    @extractor
    @extractor_inputs("fares_3h", "price")
    @extractor_outputs("cost")
    def costs(cls, ts, fares, price):
        return None if fares is None else fares * price

    @extractor
    @extractor_inputs("last_at")
    @extractor_outputs("since")
    def since_last(cls, ts, last_at):
        return None if last_at is None else (ts - last_at).total_seconds()

    @extractor(vectorized=True)
    @extractor_inputs("fares_3h")
    @extractor_outputs("double")
    def doubled(cls, ts, fares):
        return fares * 2

    @extractor(deps=[ByCity, Ending])
    @extractor_inputs("home")
    @extractor_outputs("city_trips", "city_riders")
    def of_home(cls, ts, home):
        city, ending = ByCity.lookup(ts, city=home), Ending.lookup(ts, city=home)
        return (city["trips"] if city else 0), (ending["riders"] if ending else 0)


@featureset(entity_type="rider")
class Failing:
    rider: int = feature()
    trips_1h: int = feature(ref=ByRider.trips_1h, default=0)
    inverse: float = feature()

    @extractor
    @extractor_inputs("trips_1h")
    @extractor_outputs("inverse")
    def invert(cls, ts, trips):
        return 1 / trips


@featureset
class Toll:
    rider: int = feature()
    fare: float = feature(ref=Trip.fare)
    distance: float = feature(request=True)
