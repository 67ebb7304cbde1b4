"""Declarations whose reads depend on more than the newest records of one dataset: joins, corrections, look-ups."""
# ruff: noqa: N805 - methods of a declaration take cls

from datetime import datetime

from featurelib import (
    Avg,
    Count,
    Last,
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
class Driver:
    driver: str = field(key=True)
    level: int = field()
    at: datetime = field(timestamp=True)


@dataset()
class Trip:
    trip: str = field(key=True)
    driver: str = field()
    car: str = field()
    fare: float = field()
    at: datetime = field(timestamp=True)


@dataset(index=True)
class Earned:
    driver: str = field(key=True)
    trips: int = field()
    fares: float = field()
    mean: float = field()
    until: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Trip)
    def by_driver(cls, trips):
        return trips.groupby("driver").aggregate(
            trips=Count(window="24h"), fares=Sum(of="fare", window="24h"), mean=Avg(of="fare", window="7d")
        )


@dataset(index=True)
class Car:
    car: str = field(key=True)
    trips: int = field()
    level: int = field()
    until: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Trip, Driver)
    def by_car(cls, trips, drivers):
        return (
            trips.join(drivers, on="driver")
            .groupby("car")
            .aggregate(trips=Count(window="7d"), level=Last(of="level", window="7d"))
        )


@dataset(index=True)
class Busy:
    car: str = field(key=True)
    distinct: int = field()
    until: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Trip)
    def first_of_each(cls, trips):
        return trips.dedup("car", "driver").groupby("car").aggregate(distinct=Count(window="7d"))


@featureset(entity_type="driver")
class Earning:
    driver: str = feature()
    trips: int = feature(ref=Earned.trips, default=0)
    fares: float = feature(ref=Earned.fares)
    mean: float = feature(ref=Earned.mean)
    level: int = feature(ref=Driver.level)


@featureset(entity_type="driver", online_clock="event")
class Replaying:
    driver: str = feature()
    trips: int = feature(ref=Earned.trips, default=0)
    fares: float = feature(ref=Earned.fares)


@featureset(entity_type="car")
class CarState:
    car: str = feature()
    trips: int = feature(ref=Car.trips, default=0)
    level: int = feature(ref=Car.level)
    distinct: int = feature(ref=Busy.distinct)


@featureset(entity_type="driver")
class Compared:
    driver: str = feature()
    fares: float = feature(ref=Earned.fares)
    level_now: int = feature()
    level_before: int = feature()

    @extractor(deps=[Driver])
    @extractor_inputs("driver")
    @extractor_outputs("level_now")
    def now(cls, ts, driver):
        row = Driver.lookup(ts, driver=driver)
        return row["level"] if row else None

    @extractor(deps=[Driver])
    @extractor_inputs("driver")
    @extractor_outputs("level_before")
    def before(cls, ts, driver):
        from datetime import timedelta

        row = Driver.lookup(ts - timedelta(hours=2), driver=driver)
        return row["level"] if row else None
