"""Definitions that the tests of the mock context share: purchases of a shop, and everything asked about them."""

# ruff: noqa: N805, UP045  # definitions as users write them

from datetime import datetime
from typing import Optional

import polars as pl

from featurelib import (
    ApproxDistinct,
    ApproxPercentile,
    Avg,
    Continuous,
    Count,
    Distinct,
    ExpDecaySum,
    FileSource,
    First,
    FirstK,
    Hopping,
    KafkaSource,
    Last,
    LastK,
    Lifetime,
    Max,
    Min,
    Quantile,
    Session,
    Stddev,
    Sum,
    TopK,
    Tumbling,
    Variance,
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


@source(KafkaSource(brokers="broker:9092", topic="purchases"), max_lateness="30m")
@dataset(version=1)
class Purchase:
    user: str = field(key=True)
    shop: str = field()
    amount: float = field(min=0)
    items: Optional[int] = field()
    at: datetime = field(timestamp=True)

    @expectations
    def sane(cls):
        return [
            expect_column_values_to_be_between(column="amount", min_value=0, max_value=100, mostly=0.5),
            expect_column_values_to_be_in_set(column="shop", values=["north", "south"]),
        ]


@dataset(index=True, version=1)
class Shop:
    shop: str = field(key=True)
    city: str = field()
    at: datetime = field(timestamp=True)


@dataset(index=True, version=1)
class Aggregates:
    user: str = field(key=True)
    count: int = field()
    with_items: int = field()
    large: int = field()
    total: float = field()
    mean: float = field()
    least: float = field()
    most: float = field()
    spread: float = field()
    deviation: float = field()
    rank: float = field()
    median: float = field()
    quantile: float = field()
    first: str = field()
    last: str = field()
    newest: list[str] = field()
    oldest: list[str] = field()
    shops: list[str] = field()
    about: int = field()
    favourite: list[str] = field()
    decayed: float = field()
    none: Optional[float] = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Purchase)
    def aggregates(cls, purchases):
        day = "1d"
        return purchases.groupby("user").aggregate(
            count=Count(window=day),
            with_items=Count(of="items", window=day),
            large=Count(window=day, where=col("amount") >= 20),
            total=Sum(of="amount", window=day),
            mean=Avg(of="amount", window=day),
            least=Min(of="amount", window=day),
            most=Max(of="amount", window=day),
            spread=Variance(of="amount", window=day),
            deviation=Stddev(of="amount", window=day),
            rank=ApproxPercentile(of="amount", window=day),
            median=ApproxPercentile(of="amount", window=day, pct=50),
            quantile=Quantile(of="amount", window=day, q=0.25),
            first=First(of="shop", window=day),
            last=Last(of="shop", window=day),
            newest=LastK(of="shop", window=day, k=2),
            oldest=FirstK(of="shop", window=day, k=2),
            shops=Distinct(of="shop", window=day),
            about=ApproxDistinct(of="shop", window=day),
            favourite=TopK(of="shop", window=day, k=1),
            decayed=ExpDecaySum(of="amount", window=day, half_life="1h"),
            none=Avg(of="amount", window=day, where=col("amount") > 1_000, default=None),
        )


@dataset(index=True, version=1)
class Windows:
    user: str = field(key=True)
    hour: int = field()
    ever: int = field()
    yesterday: int = field()
    closed: int = field()
    hops: int = field()
    session: int = field()
    newest_two: float = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Purchase)
    def windows(cls, purchases):
        return purchases.groupby("user").aggregate(
            hour=Count(window="1h"),
            ever=Count(),
            yesterday=Count(window=Continuous("1h", offset="1d")),
            closed=Count(window=Tumbling("1h")),
            hops=Count(window=Hopping("2h", "1h")),
            session=Count(window=Session("10m")),
            newest_two=Sum(of="amount", window=Lifetime(max_rows=2)),
        )


@dataset(index=True, version=1)
class CityTotals:
    city: str = field(key=True)
    total: float = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Purchase, Shop)
    def cities(cls, purchases, shops):
        return (
            purchases.filter(col("amount") > 0)
            .join(Shop, on="shop", fields=["city"])
            .assign(cents=col("amount") * 100)
            .groupby("city")
            .aggregate(total=Sum(of="cents"))
        )


@dataset(index=True, version=1)
class Pairs:
    pair: str = field(key=True)
    count: int = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Purchase)
    def pairs(cls, purchases):
        return purchases.groupby("user", "shop").aggregate(count=Count())


@featureset(entity_type="user")
class UserFeatures:
    user: str = feature()
    count: int = feature(ref=Aggregates.count, default=0)
    mean: float = feature(ref=Aggregates.mean, default=-1.0)
    last: Optional[str] = feature(ref=Aggregates.last)
    offered: float = feature(request=True, default=10.0)
    wanted: float = feature(request=True)
    base: float = feature()
    above: float = feature()
    below: float = feature()
    spread: float = feature()
    scaled: float = feature()
    city: Optional[str] = feature()
    read_at: datetime = feature()

    @extractor
    @extractor_inputs("mean", "offered")
    @extractor_outputs("base")
    def compute_base(cls, ts, mean, offered):
        return mean + offered

    @extractor
    @extractor_inputs("base", "wanted")
    @extractor_outputs("above")
    def compute_above(cls, ts, base, wanted):
        return base + wanted

    @extractor
    @extractor_inputs("base", "wanted")
    @extractor_outputs("below")
    def compute_below(cls, ts, base, wanted):
        return base - wanted

    @extractor
    @extractor_inputs("above", "below")
    @extractor_outputs("spread", "read_at")
    def compute_spread(cls, ts, above, below):
        return {"spread": above - below, "read_at": ts}

    @extractor(vectorized=True)
    @extractor_inputs("count", "wanted")
    @extractor_outputs("scaled")
    def scale(cls, ts, count, wanted):
        return count.cast(pl.Float64) * wanted

    @extractor(deps=[Shop])
    @extractor_inputs("last")
    @extractor_outputs("city")
    def find_city(cls, ts, last):
        row = Shop.lookup(ts, shop=last) if last else None
        return row["city"] if row else None


@featureset(entity_type="user")
class Derived:
    user: str = feature()
    doubled: float = feature()

    @extractor(deps=[UserFeatures])
    @extractor_inputs(UserFeatures.mean)
    @extractor_outputs("doubled")
    def double(cls, ts, mean):
        return mean * 2


@featureset(entity_type="pair")
class PairFeatures:
    pair: str = feature()
    count: int = feature(ref=Pairs.count, default=0)


@source(FileSource(path="accounts", format="csv"), cdc="upsert")
@dataset(index=True, version=1)
class Account:
    account: str = field(key=True)
    owner: str = field()
    balance: float = field()
    at: datetime = field(timestamp=True)


@dataset(index=True, version=1)
class Owners:
    owner: str = field(key=True)
    accounts: int = field()
    balance: float = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Account)
    def by_owner(cls, accounts):
        return accounts.groupby("owner").aggregate(accounts=Count(), balance=Sum(of="balance"))


@dataset(version=1, event_id="number")
class Order:
    user: str = field(key=True)
    number: str = field()
    amount: int = field()
    at: datetime = field(timestamp=True)


@dataset(index=True, version=1)
class Orders:
    user: str = field(key=True)
    total: int = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Order)
    def orders(cls, orders):
        return orders.groupby("user").aggregate(total=Sum(of="amount"))
