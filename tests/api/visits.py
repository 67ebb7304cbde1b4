"""Declarations beside the Snowflake example: a composite key, every type, request values, an extractor that hangs."""
# ruff: noqa: N805 - methods of a declaration take cls

from datetime import datetime
from decimal import Decimal

from featurelib import (
    Count,
    FeatureService,
    Last,
    LastK,
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


@dataset(version=1)
class Visit:
    shop: str = field(key=True)
    visitor: int = field()
    paid: Decimal | None = field(scale=2)
    member: bool = field()
    at: datetime = field(timestamp=True)


@dataset(index=True, version=2)
class ByVisitor:
    pair: str = field(key=True)
    visits: int = field()
    paid: Decimal | None = field(scale=2)
    member: bool | None = field()
    last_at: datetime | None = field()
    visitors: list[int] = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Visit)
    def by_visitor(cls, visits):
        return visits.groupby("shop", "visitor").aggregate(
            visits=Count(window="1d"),
            paid=Last(of="paid", window="1d"),
            member=Last(of="member", window="1d"),
            last_at=Last(of="at", window="1d"),
            visitors=LastK(of="visitor", window="1d", k=2),
        )


@featureset
class Visitor:
    pair: str = feature()
    visits: int = feature(ref=ByVisitor.visits)


@featureset
class Offer:
    user: str = feature()
    price: float = feature(request=True)
    share: float = feature(request=True, default=0.5)
    discount: float = feature()
    constant: float = feature()

    @extractor
    @extractor_inputs("price", "share")
    @extractor_outputs("discount")
    def discounts(cls, ts, price, share):
        return price * share

    @extractor
    @extractor_inputs("user")
    @extractor_outputs("constant")
    def constants(cls, ts, user):
        return 7.0


@featureset
class Loan:
    user: str = feature()
    asked: float | None = feature(request=True)
    granted: float = feature()

    @extractor
    @extractor_inputs("asked")
    @extractor_outputs("granted")
    def grants(cls, ts, asked):
        return 1.0 if asked is None else asked / 2


@featureset
class Hanging:
    user: str = feature()
    never: float = feature()
    after: float = feature()
    constant: float = feature()

    @extractor
    @extractor_inputs("user")
    @extractor_outputs("never")
    def hangs(cls, ts, user):
        while True:
            pass

    @extractor
    @extractor_inputs("never")
    @extractor_outputs("after")
    def follows(cls, ts, never):
        return never + 1

    @extractor
    @extractor_inputs("user")
    @extractor_outputs("constant")
    def constants(cls, ts, user):
        return 7.0


@featureset
class Failing:
    user: str = feature()
    broken: float = feature()

    @extractor
    @extractor_inputs("user")
    @extractor_outputs("broken")
    def fails(cls, ts, user):
        raise RuntimeError("no luck")


offers = FeatureService("offers", [Offer, Hanging], join_keys={"user": str}, version=1)
elsewhere = FeatureService("elsewhere", [Offer], workspace="lab", version=1)
