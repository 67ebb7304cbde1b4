"""What the offline benchmarks read: payments archived by the platform's own writers, a featureset over them, a spine.

Everything is drawn from one seed, so every benchmark, and each of its processes, may make the same again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from featurelib.aggregates import Aggregate, Avg, Count, Sum
from featurelib.clock import DAY, HOUR, SECOND, SystemClock
from featurelib.definitions import (
    AggregateStep,
    Commit,
    DatasetDef,
    Definitions,
    FeatureDef,
    FeaturesetDef,
    FieldDef,
    LookupDef,
    NamedAggregate,
    PipelineDef,
    ref,
)
from featurelib.engine.keys import key_groups, owner_of_group
from featurelib.expr import col
from featurelib.plan import plan
from featurelib.settings import Settings
from featurelib.stores.archive import Archive
from featurelib.stores.log import Lateness, Log
from featurelib.stores.registry import Registry
from tests.support.redis_server import RedisServer

T0, SPAN = 1_700_000_000 * SECOND, 90 * DAY
PARTITIONS = 2
EVENTS_PER_KEY = 100
WINDOWS = {"1h": HOUR, "1d": DAY, "7d": 7 * DAY, "30d": 30 * DAY}
LARGE = 50_000
PAYMENT = DatasetDef(
    name="Payment",
    fields=(
        FieldDef(name="user", type="str", key=True),
        FieldDef(name="amount", type="int"),
        FieldDef(name="price", type="float"),
        FieldDef(name="shop", type="str"),
        FieldDef(name="at", type="datetime", timestamp=True),
    ),
)
_COMMIT_ROWS = 200_000


def features() -> dict[str, Aggregate]:
    """20 windowed features: five aggregates over each of four windows."""
    made: dict[str, Aggregate] = {}
    for window in WINDOWS:
        made |= {
            f"n_{window}": Count(window=window),
            f"large_{window}": Count(window=window, where=col("amount") > LARGE),
            f"sum_{window}": Sum("amount", window),
            f"paid_{window}": Sum("price", window),
            f"avg_{window}": Avg("price", window),
        }
    return made


def feature_type(name: str) -> str:
    """The type of one of them."""
    return "float" if name.startswith(("paid", "avg")) else "int"


def definitions() -> Definitions:
    """Payments, a pipeline with the 20 aggregates, and a featureset of them all."""
    names = list(features())
    out = DatasetDef(
        name="Spending",
        index=True,
        fields=(
            FieldDef(name="user", type="str", key=True),
            *(FieldDef(name=name, type=feature_type(name)) for name in names),
            FieldDef(name="at", type="datetime", timestamp=True),
        ),
    )
    pipeline = PipelineDef(
        name="spending",
        input_datasets=("Payment",),
        output_dataset="Spending",
        steps=(
            AggregateStep(
                keys=("user",),
                aggregates=tuple(NamedAggregate(output=name, aggregate=one) for name, one in features().items()),
            ),
        ),
    )
    looked_up = tuple(
        FeatureDef(name=name, type=feature_type(name), lookup=LookupDef(dataset="Spending", field=name))
        for name in names
    )
    featureset = FeaturesetDef(name="Buyer", features=(FeatureDef(name="user", type="str"), *looked_up))
    return Definitions(datasets=(PAYMENT, out), pipelines=(pipeline,), featuresets=(featureset,))


class Stores(NamedTuple):
    """Where the platform's settings point to."""

    folder: Path
    redis_url: str

    @property
    def settings(self) -> Settings:
        """As a platform of two workers has them."""
        return Settings(
            data_dir=self.folder,
            online={"redis_url": self.redis_url},
            archive={"url": str(self.folder / "archive")},
            registry={"url": f"sqlite:///{self.folder}/registry.db"},
            pipeline={"partition_count": PARTITIONS},
        )

    @property
    def files(self) -> list[str]:
        """The Parquet files of the archived payments."""
        return DeltaTable(Archive(str(self.folder / "archive")).location(PAYMENT)).file_uris()

    @property
    def spine(self) -> str:
        """The file of the spine."""
        return str(self.folder / "spine.parquet")


@contextmanager
def stores(folder: Path, events: int, rows: int) -> Iterator[Stores]:
    """A log, an archive of so many payments, a registry with the definitions, and a spine of so many rows."""
    server = RedisServer(folder)
    server.start()
    try:
        made = Stores(folder, server.url)
        registry = Registry(made.settings.registry_url, SystemClock())
        registry.migrate()
        registry.commit(Commit(**dict(definitions())), plan, None)
        registry.close()
        archive_payments(made, events)
        pq.write_table(spine_of(events, rows), made.spine)
        yield made
    finally:
        server.kill()


def keys_drawn(chosen: np.random.Generator, events: int, count: int) -> pl.Series:
    """Users, a hundred events each on average: 80 % even, 20 % skewed."""
    keys = max(1, events // EVENTS_PER_KEY)
    even = chosen.integers(0, keys, count)
    skewed = np.minimum(chosen.zipf(1.3, count) - 1, keys - 1)
    numbers = pl.Series(np.where(chosen.random(count) < 0.8, even, skewed))
    return pl.select(pl.concat_str(pl.lit("u"), numbers)).to_series().alias("user")


def spine_of(events: int, rows: int) -> pa.Table:
    """Rows to ask for, in no order, with a label."""
    chosen = np.random.default_rng(13)
    columns = {
        "user": keys_drawn(chosen, events, rows).to_arrow().cast(pa.string()),
        "timestamp": pa.array(T0 + chosen.integers(0, SPAN, rows)).cast(pa.timestamp("us", "UTC")),
        "label": pa.array(chosen.random(rows) < 0.1),
    }
    return pa.table(columns)


def archive_payments(made: Stores, events: int) -> None:
    """Log and archive payments as ingestion and maintenance do: 200,000 a commit, compacted at the end."""
    log, archive = Log(made.redis_url, SystemClock()), Archive(str(made.folder / "archive"))
    log.create(ref(PAYMENT), PARTITIONS)
    chosen = np.random.default_rng(7)
    commits = -(-events // _COMMIT_ROWS)
    following = [0] * PARTITIONS
    for number in range(commits):
        count = min(_COMMIT_ROWS, events - number * _COMMIT_ROWS)
        times = T0 + SPAN * number // commits + np.sort(chosen.integers(0, SPAN // commits, count))
        records = _payments(chosen, events, times)
        archive.append(PAYMENT, _logged(log, records, following))
    log.close()
    archive.compact(PAYMENT)


def _payments(chosen: np.random.Generator, events: int, times: np.ndarray[Any, Any]) -> pa.Table:
    count = len(times)
    shops = pl.Series([f"shop{n}" for n in range(50)]).gather(chosen.integers(0, 50, count))
    return pa.table(
        {
            "user": keys_drawn(chosen, events, count).to_arrow().cast(pa.string()),
            "amount": chosen.integers(1, 100_000, count),
            "price": chosen.integers(1, 100_000, count) / 100.0,
            "shop": shops.to_arrow().cast(pa.string()),
            "at": pa.array(times).cast(pa.timestamp("us", "UTC")),
            "__time": times,
        }
    )


def _logged(log: Log, records: pa.Table, following: list[int]) -> pa.Table:
    """The records as the log accepted them; it forgets them, since the archive takes them next."""
    groups = key_groups(pl.Series(records["user"].to_pylist()))
    owners = np.array([owner_of_group(group, PARTITIONS) for group in range(64)])[groups]
    accepted = []
    for partition in range(PARTITIONS):
        mine = records.filter(pa.array(owners == partition))
        log.append(
            ref(PAYMENT), partition, mine, lateness=Lateness(max_lateness_us=None, max_clock_skew_us=300 * SECOND)
        )
        accepted.append(log.read(ref(PAYMENT), partition, following[partition], len(mine)))
        following[partition] += len(mine)
        log.trim(ref(PAYMENT), partition, following[partition])
    return pa.concat_tables(accepted)
