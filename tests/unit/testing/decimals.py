"""Definitions whose features are decimals, and an extractor that goes wrong in the way it is told."""

# ruff: noqa: N805  # the platform calls these methods with the class, as the stock syntax has it

from datetime import datetime
from decimal import Decimal

from featurelib import dataset, extractor, extractor_inputs, extractor_outputs, feature, featureset, field


@dataset(index=True)
class Bill:
    user: str = field(key=True)
    price: Decimal | None = field(scale=2)
    at: datetime = field(timestamp=True)


@featureset
class Prices:
    user: str = feature()
    price: Decimal | None = feature(ref=Bill.price)
    finer: Decimal = feature(ref=Bill.price, scale=3, default=Decimal("0.125"))
    share: Decimal = feature(request=True, scale=2, default=Decimal("1.5"))
    product: Decimal | None = feature(scale=4)
    halves: list[Decimal] = feature(scale=1)
    again: Decimal | None = feature(scale=2)

    @extractor
    @extractor_inputs("price", "share")
    @extractor_outputs("product", "halves")
    def multiplied(cls, ts, price, share):
        return None if price is None else price * share, (Decimal("0.5"), 1)

    @extractor(deps=[Bill])
    @extractor_inputs("user")
    @extractor_outputs("again")
    def looked_up(cls, ts, user):
        row = Bill.lookup(ts, key=user)
        return row["price"] if row else None


@featureset
class Mistaken:
    user: str = feature()
    how: str = feature(request=True)
    out: str = feature()

    @extractor(deps=[Bill])
    @extractor_inputs("user", "how")
    @extractor_outputs("out")
    def wrong(cls, ts, user, how):
        if how == "unnamed":
            Bill.lookup(ts, user)
        if how == "twice":
            Bill.lookup(ts, user=user, key=user)
        if how == "import":
            from polars import nothing_of_this_name  # noqa: F401  # it fails
        return "\ud800"
