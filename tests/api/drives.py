"""Declarations of featuresets that run no extractors, and of one that does."""
# ruff: noqa: N805 - methods of a declaration take cls

from datetime import datetime
from decimal import Decimal

from featurelib import (
    Count,
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
class Drive:
    driver: str = field(key=True)
    city: str = field()
    toll: Decimal = field(scale=2)
    at: datetime = field(timestamp=True)


@dataset(index=True)
class Tolls:
    driver: str = field(key=True)
    drives: int = field()
    paid: Decimal = field(scale=2)
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Drive)
    def tolls(cls, drives):
        return drives.groupby("driver").aggregate(
            drives=Count(window="1h"),
            paid=Sum(of="toll", window="1d"),
        )


@featureset
class Driver:
    driver: str = feature()
    drives: int = feature(ref=Tolls.drives, default=0)
    paid: Decimal | None = feature(ref=Tolls.paid, scale=2)
    city: str | None = feature(ref=Drive.city)
    bonus: float = feature(request=True, default=1.5)


@featureset(online_clock="event")
class DriverReplayed:
    driver: str = feature()
    drives: int = feature(ref=Tolls.drives, default=0)


@featureset
class DriverJudged:
    driver: str = feature()
    drives: int = feature(ref=Tolls.drives, default=0)
    asked_at: datetime | None = feature()

    @extractor
    @extractor_inputs("drives")
    @extractor_outputs("asked_at")
    def judge(cls, ts, drives):
        return ts
