"""One small pipeline per operator, over clicks."""

# ruff: noqa: N805, UP045  # definitions as users write them

from datetime import datetime
from typing import Optional

import polars as pl

from featurelib import Count, Last, Sum, Tumbling, col, dataset, field, inputs, pipeline


@dataset(version=1)
class Click:
    user: str = field(key=True)
    page: str = field()
    tags: list[str] = field()
    cost: int = field()
    at: datetime = field(timestamp=True)


@dataset(version=1)
class Visit:
    user: str = field(key=True)
    page: str = field()
    cost: int = field()
    at: datetime = field(timestamp=True)


@dataset(index=True, version=1)
class Page:
    page: str = field(key=True)
    title: str = field()
    at: datetime = field(timestamp=True)


def with_rate(frame: pl.DataFrame) -> pl.DataFrame:
    if frame["cost"].min() < 0:
        raise ValueError("a cost below zero")
    return frame.with_columns((pl.col("cost") * 2).alias("rate"))


def only_odd(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(pl.col("cost") % 2 == 1)


@dataset(index=True, version=1)
class Renamed:
    who: str = field(key=True)
    cost: int = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Click)
    def renamed(cls, clicks):
        shaped = clicks.rename(user="who", cost="price").select("who", "price", "page").drop("page")
        return shaped.groupby("who").aggregate(cost=Sum(of="price"))


@dataset(index=True, version=1)
class Deduped:
    user: str = field(key=True)
    pages: int = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Click)
    def deduped(cls, clicks):
        return clicks.dedup("user", "page").groupby("user").aggregate(pages=Count())


@dataset(index=True, version=1)
class Tagged:
    tag: str = field(key=True)
    clicks: int = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Click)
    def tagged(cls, clicks):
        return clicks.explode("tags").rename(tags="tag").groupby("tag").aggregate(clicks=Count())


@dataset(index=True, version=1)
class United:
    user: str = field(key=True)
    cost: int = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Visit, Click)
    def united(cls, visits, clicks):
        return visits.union(clicks.drop("tags")).groupby("user").aggregate(cost=Sum(of="cost"))


@dataset(index=True, version=1)
class Newest:
    user: str = field(key=True)
    page: str = field()
    cost: int = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Click)
    def newest(cls, clicks):
        return clicks.groupby("user").latest()


@dataset(index=True, version=1)
class Oldest:
    user: str = field(key=True)
    page: str = field()
    cost: int = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Click)
    def oldest(cls, clicks):
        return clicks.groupby("user").first()


@dataset(index=True, version=1)
class Transformed:
    user: str = field(key=True)
    rate: int = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Click)
    def transformed(cls, clicks):
        made = clicks.transform(with_rate, output_columns={"rate": int})
        return made.filter(only_odd).groupby("user").aggregate(rate=Sum(of="rate"))


@dataset(index=True, version=1)
class Titled:
    user: str = field(key=True)
    title: Optional[str] = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Click, Page)
    def titled(cls, clicks, pages):
        joined = clicks.join(Page, on="page", fields=["title"], within="1h")
        return joined.groupby("user").aggregate(title=Last(of="title"))


@dataset(index=True, version=1)
class PerPage:
    page: str = field(key=True)
    users: int = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Click)
    def per_page(cls, clicks):
        return clicks.groupby("user").latest().groupby("page").aggregate(users=Count())


@dataset(index=True, version=1)
class Spenders:
    big: bool = field(key=True)
    users: int = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Click)
    def spenders(cls, clicks):
        per_user = clicks.groupby("user").aggregate(cost=Sum(of="cost")).assign(big=col("cost") >= 10)
        return per_user.groupby("big").aggregate(users=Count())


@dataset(index=True, version=1)
class Hours:
    user: str = field(key=True)
    active: int = field()
    as_of: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Click)
    def hours(cls, clicks):
        hourly = clicks.groupby("user").aggregate(n=Count(window=Tumbling("1h")))
        return hourly.filter(col("n") > 1).groupby("user").aggregate(active=Count())
