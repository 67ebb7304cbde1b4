"""Declarations whose extractors do what user code may do, for the tests of serving them."""
# ruff: noqa: N805 - methods of a declaration take cls

import os
import threading
from datetime import datetime

import polars as pl

from featurelib import dataset, extractor, extractor_inputs, extractor_outputs, feature, featureset, field


@dataset(index=True)
class Shop:
    shop: str = field(key=True)
    rent: float = field()
    owner: str = field()
    at: datetime = field(timestamp=True)


calls = []


@featureset
class Whole:
    shop: str = feature()
    rent: float = feature(ref=Shop.rent)
    share: float = feature()
    rows: int = feature()
    call: int = feature()

    @extractor(vectorized=True)
    @extractor_inputs("rent")
    @extractor_outputs("share", "rows", "call")
    def share_of(cls, ts, rent):
        calls.append(len(rent))
        return {"share": rent / rent.max(), "rows": [len(rent)] * len(rent), "call": pl.Series([len(calls)] * len(ts))}


@featureset
class Owned:
    shop: str = feature()
    owner: str = feature(ref=Shop.owner)
    theirs: float = feature()

    @extractor(deps=[Shop])
    @extractor_inputs("owner")
    @extractor_outputs("theirs")
    def rent_of_owners_shop(cls, ts, owner):
        row = Shop.lookup(ts, shop=owner)
        return row["rent"] if row else None


@featureset
class Waiting:
    shop: str = feature()
    seconds: float = feature(request=True)
    y: float = feature()

    @extractor
    @extractor_inputs("seconds")
    @extractor_outputs("y")
    def wait(cls, ts, seconds):
        threading.Event().wait(seconds)
        return seconds


@featureset
class Looping:
    shop: str = feature()
    forever: bool = feature(request=True)
    y: float = feature()

    @extractor
    @extractor_inputs("forever")
    @extractor_outputs("y")
    def loop(cls, ts, forever):
        while forever:
            pass
        return 1.0


@featureset
class Ending:
    shop: str = feature()
    status: int = feature(request=True)
    y: float = feature()

    @extractor
    @extractor_inputs("status")
    @extractor_outputs("y")
    def end(cls, ts, status):
        if status:
            os._exit(status)
        return 1.0
