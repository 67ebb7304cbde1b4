"""A small world: rides joined with rain, a log being filled, and what the state of a pipeline must be."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from featurelib.aggregates import Aggregate, Avg, Count, Last, LastK, Max, Min, Sum
from featurelib.clock import HOUR, SystemClock
from featurelib.definitions import (
    AggregateStep,
    AssignStep,
    DatasetDef,
    Definitions,
    FieldDef,
    FilterStep,
    JoinStep,
    NamedAggregate,
    PipelineDef,
    ref,
)
from featurelib.engine.keys import key_group, owner_of_group
from featurelib.engine.program import Program
from featurelib.engine.records import OFFSET, TIME, in_order, record_schema
from featurelib.expr import col
from featurelib.stores.archive import Archive
from featurelib.stores.history import History
from featurelib.stores.log import Lateness, Log
from featurelib.stores.online import OnlineStore, StateName
from jobs.worker import PartitionWorker

T0 = 1_700_000_000_000_000
NEVER_LATE = Lateness(max_lateness_us=None, max_clock_skew_us=300_000_000)
RIDES = DatasetDef(
    name="Ride",
    fields=(
        FieldDef(name="rider", type="str", key=True),
        FieldDef(name="city", type="str"),
        FieldDef(name="fare", type="int", optional=True),
        FieldDef(name="at", type="datetime", timestamp=True),
    ),
)
RAIN = DatasetDef(
    name="Rain",
    fields=(
        FieldDef(name="city", type="str", key=True),
        FieldDef(name="mm", type="int"),
        FieldDef(name="at", type="datetime", timestamp=True),
    ),
)
OUT = DatasetDef(
    name="Out",
    fields=(FieldDef(name="rider", type="str", key=True), FieldDef(name="at", type="datetime", timestamp=True)),
)


def named(output: str, aggregate: Aggregate) -> NamedAggregate:
    return NamedAggregate(output=output, aggregate=aggregate)


def aggregates() -> tuple[NamedAggregate, ...]:
    found = []
    for window in ("1h", "1d", ""):
        found += [
            named(f"n_{window}", Count(window=window)),
            named(f"wet_{window}", Count(window=window, where=col("mm") > 3)),
            named(f"fares_{window}", Sum("fare", window)),
            named(f"mean_{window}", Avg("fare", window)),
            named(f"low_{window}", Min("mm", window)),
            named(f"high_{window}", Max("mm", window)),
            named(f"last_{window}", Last("mm", window)),
            named(f"cities_{window}", LastK("city", window, k=2, dedup=True)),
        ]
    return tuple(found)


def pipeline(key: str) -> PipelineDef:
    return PipelineDef(
        name=f"by_{key}",
        input_datasets=("Ride", "Rain"),
        output_dataset="Out",
        steps=(
            FilterStep(predicate=(col("fare").fill_null(1) > 0).node),
            JoinStep(right="Rain", on="city", fields=("mm",)),
            AssignStep(column="mm", value=(col("mm") + 0).node),
            AggregateStep(keys=(key,), aggregates=aggregates()),
        ),
    )


class LogHistory:
    """History straight from the hot log, which nothing trims in these tests."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def read(
        self,
        dataset: DatasetDef,
        partitions: int,
        *,
        keys: Sequence[str] | None = None,
        groups: Sequence[int] | None = None,
        since: int | None = None,
        until: int | None = None,
        cut: Mapping[int, int] | None = None,
    ) -> pa.Table:
        assert keys is None
        assert groups is None
        assert until is None
        tables = [record_schema(dataset).empty_table()]
        for partition in range(partitions):
            table = self._log.read(ref(dataset), partition, 0, 10**9)
            if table is not None:
                table = table.select(tables[0].column_names)
                table = table.filter(pc.less(table[OFFSET], (cut or {}).get(partition, 10**9)))
                tables.append(table if since is None else table.filter(pc.greater_equal(table[TIME], since)))
        return in_order(pa.concat_tables(tables))


class World:
    """A log being filled, a pipeline over it, and what the state must be."""

    def __init__(self, url: str, key: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.url = url
        self.log = Log(url, SystemClock())
        self.store = OnlineStore(url)
        self.pipeline = pipeline(key)
        self.key = key
        self.program = Program.compile(self.pipeline, Definitions(datasets=(RIDES, RAIN, OUT)))
        self.state = StateName(self.program.ref, 1)
        self.rides: list[tuple[int, int, str, str, int | None]] = []
        self.rains: list[tuple[int, int, str, int]] = []
        for dataset in (RIDES, RAIN):
            self.log.create(ref(dataset), 2)

    def archive(self, root: str) -> History:
        """Copy everything accepted so far to an archive; returns both as one."""
        archive = Archive(root)
        for dataset in (RIDES, RAIN):
            for partition in range(2):
                table = self.log.read(ref(dataset), partition, archive.archived_offset(dataset, partition), 10**9)
                if table is not None:
                    archive.append(dataset, table)
        return History(archive, self.log)

    def close(self) -> None:
        self.log.close()
        self.store.close()

    def worker(self, groups: range = range(64)) -> PartitionWorker:
        return PartitionWorker(
            self.program,
            self.state,
            groups,
            log=self.log,
            store=self.store,
            history=LogHistory(self.log),
            batch_rows=64,
        )

    def post_rides(self, count: int) -> None:
        rows = []
        for _ in range(count):
            at = T0 + self.random.randrange(30 * HOUR)
            rows.append(
                (at, self.random.choice("abcdef"), self.random.choice("xyz"), self.random.choice([None, 0, 5, 7]))
            )
        for partition in range(2):
            mine = [r for r in rows if owner_of_group(key_group(r[1]), 2) == partition]
            table = rides_table(mine)
            if mine:
                done = self.log.append(ref(RIDES), partition, table, lateness=NEVER_LATE)
                accepted = self.log.head(ref(RIDES), partition).accepted_at_us
                first = done.next_offset - len(mine)
                order = [(accepted, partition, first + i) for i in range(len(mine))]
                self.rides += [(r[0], o, r[1], r[2], r[3]) for r, o in zip(mine, order, strict=True)]

    def ride_at(self, at: int, rider: str, city: str, fare: int | None) -> None:
        """One ride."""
        partition = owner_of_group(key_group(rider), 2)
        done = self.log.append(ref(RIDES), partition, rides_table([(at, rider, city, fare)]), lateness=NEVER_LATE)
        accepted = self.log.head(ref(RIDES), partition).accepted_at_us
        self.rides.append((at, (accepted, partition, done.next_offset - 1), rider, city, fare))

    def rain_at(self, at: int, city: str, mm: int) -> None:
        """One right record."""
        done = self.log.append(ref(RAIN), 0, _rains([(at, city, mm)]), lateness=NEVER_LATE)
        self.rains.append((at, done.next_offset - 1, city, mm))

    def read(self, key: str, at: int) -> dict[str, object]:
        """The stored row of a key that is known."""
        row = self.program.finish(self.store.load(self.state, {key: self.program.read_fields(at)})[key], at)
        assert row is not None
        return row

    def post_rain(self, count: int) -> None:
        rows = [
            (T0 + self.random.randrange(30) * HOUR, self.random.choice("xyz"), self.random.randrange(9))
            for _ in range(count)
        ]
        table = _rains(rows)
        done = self.log.append(ref(RAIN), 0, table, lateness=NEVER_LATE)
        first = done.next_offset - count
        self.rains += [(r[0], first + i, r[1], r[2]) for i, r in enumerate(rows)]

    def expected(self, key: str, at: int) -> dict[str, object] | None:
        """Lists and loops over everything accepted."""
        joined = []
        for time, order, rider, city, fare in sorted(self.rides, key=lambda ride: ride[:2]):
            if fare == 0 or (rider if self.key == "rider" else city) != key:
                continue
            rains = [rain for rain in self.rains if rain[2] == city and rain[0] <= time]
            joined.append((time, order, city, fare, max(rains)[3] if rains else None))
        if not any(time <= at for time, *_ in joined):
            return None
        row: dict[str, object] = {}
        for window, size in (("1h", HOUR), ("1d", 24 * HOUR), ("", None)):
            inside = [j for j in joined if j[0] <= at and (size is None or j[0] >= at - size)]
            fares = [j[3] for j in inside if j[3] is not None]
            wet = [j[4] for j in inside if j[4] is not None]
            cities = list(dict.fromkeys(j[2] for j in reversed(inside)))
            row |= {
                f"n_{window}": len(inside),
                f"wet_{window}": len([mm for mm in wet if mm > 3]),
                f"fares_{window}": sum(fares),
                f"mean_{window}": sum(fares) / len(fares) if fares else 0.0,
                f"low_{window}": min(wet, default=0),
                f"high_{window}": max(wet, default=0),
                f"last_{window}": inside[-1][4] if inside else None,
                f"cities_{window}": cities[:2],
            }
        return row

    def check(self) -> int:
        checked = 0
        for key in "abcdef" if self.key == "rider" else "xyz":
            for _ in range(6):
                at = T0 + self.random.choice([self.random.randrange(31 * HOUR), self.random.randrange(31) * HOUR])
                fields = self.program.read_fields(at)
                got = self.program.finish(self.store.load(self.state, {key: fields})[key], at)
                assert got == self.expected(key, at), (key, at)
                checked += 1
        return checked


RIDERS_OF_ONE_GROUP = [name for n in range(2_000) if key_group(name := f"r{n}") == key_group("r0")][:2]


def rides_table(rows: Sequence[tuple[int, str, str, int | None]]) -> pa.Table:
    return pa.table(
        {
            "rider": [r[1] for r in rows],
            "city": [r[2] for r in rows],
            "fare": pa.array([r[3] for r in rows], pa.int64()),
            "at": pa.array([r[0] for r in rows], pa.timestamp("us", tz="UTC")),
            TIME: pa.array([r[0] for r in rows], pa.int64()),
        }
    )


def _rains(rows: Sequence[tuple[int, str, int]]) -> pa.Table:
    return pa.table(
        {
            "city": [r[1] for r in rows],
            "mm": pa.array([r[2] for r in rows], pa.int64()),
            "at": pa.array([r[0] for r in rows], pa.timestamp("us", tz="UTC")),
            TIME: pa.array([r[0] for r in rows], pa.int64()),
        }
    )


def drain(*workers: PartitionWorker) -> None:
    while sum(worker.step().read for worker in workers):
        pass
