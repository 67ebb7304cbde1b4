"""A world to erase entities from: every kind of pipeline over three datasets; and what MockContext says of it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from featurelib.clock import HOUR, Clock, SystemClock, format_instant
from featurelib.compile import compile_module
from featurelib.definitions import DatasetDef, Definitions, ref
from featurelib.engine.coerce import coerce_value
from featurelib.engine.keys import key_group, owner_of_group
from featurelib.engine.program import Program, pipelines_of
from featurelib.engine.records import arrow_type
from featurelib.stores.archive import Archive
from featurelib.stores.history import History
from featurelib.stores.intake import Intake, Taken
from featurelib.stores.log import Identity, Lateness, Log, Mark
from featurelib.stores.online import OnlineStore, StateName
from featurelib.stores.online_reader import Lookup
from featurelib.stores.point_in_time import PointInTime
from featurelib.testing import MockContext
from jobs.worker import PartitionWorker

T0 = 1_700_000_000_000_000
PARTITIONS = 2
NEVER_LATE = Lateness(max_lateness_us=None, max_clock_skew_us=300_000_000)
# Long enough that its bytes are found nowhere by accident.
RIDERS = ("rider-anna-lind", "rider-bert-osk", "rider-cleo-ray", "rider-dora-may")
CITIES = ("city-xanten", "city-ypres", "city-zagreb")
MODULE = """
from datetime import datetime
from featurelib import *

@dataset()
class Ride:
    rider: str = field(key=True)
    city: str = field()
    fare: int = field()
    at: datetime = field(timestamp=True)

@dataset(index=True)
class Rain:
    city: str = field(key=True)
    mm: int = field()
    at: datetime = field(timestamp=True)

@source(FileSource(path="cards", format="jsonl"), cdc="upsert")
@dataset()
class Card:
    rider: str = field(key=True)
    bank: str = field()
    at: datetime = field(timestamp=True)

@dataset(index=True)
class RiderStats:
    rider: str = field(key=True)
    n: int = field()
    spent: int = field()
    wet: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Ride, Rain)
    def by_rider(cls, rides):
        return rides.join(Rain, on="city", fields=["mm"]).groupby("rider").aggregate(
            n=Count(window="1d"), spent=Sum(of="fare"), wet=Sum(of="mm", window="1d"))

@dataset(index=True)
class CityStats:
    city: str = field(key=True)
    n: int = field()
    riders: list[str] = field()
    top: int = field()
    wet: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Ride, Rain)
    def by_city(cls, rides):
        return rides.join(Rain, on="city", fields=["mm"]).groupby("city").aggregate(
            n=Count(window="1d"), riders=LastK(of="rider", k=5), top=Max(of="fare"), wet=Sum(of="mm"))

@dataset(index=True)
class PairStats:
    pair: str = field(key=True)
    n: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Ride)
    def by_pair(cls, rides):
        return rides.groupby("rider", "city").aggregate(n=Count())

@dataset(index=True)
class RainStats:
    mm: int = field(key=True)
    n: int = field()
    spent: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Ride, Rain)
    def by_rain(cls, rides):
        return rides.join(Rain, on="city", fields=["mm"]).groupby("mm").aggregate(n=Count(), spent=Sum(of="fare"))

@dataset(index=True)
class NewestStats:
    city: str = field(key=True)
    n: int = field()
    spent: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Ride)
    def newest_by_city(cls, rides):
        return rides.groupby("fare").latest().groupby("city").aggregate(n=Count(), spent=Sum(of="fare"))

@dataset()
class Spent:
    rider: str = field(key=True)
    city: str = field()
    total: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Ride)
    def spent(cls, rides):
        return rides.groupby("rider").aggregate(total=Sum(of="fare"), city=Last(of="city"))

@dataset(index=True)
class SpentStats:
    city: str = field(key=True)
    riders: int = field()
    most: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Spent)
    def spent_by_city(cls, spent):
        return spent.groupby("city").aggregate(riders=Count(), most=Max(of="total"))

@dataset(index=True)
class BankStats:
    bank: str = field(key=True)
    n: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Card)
    def by_bank(cls, cards):
        return cards.groupby("bank").aggregate(n=Count())

@featureset
class RiderFeatures:
    rider: str = feature()
    n: int = feature(ref=RiderStats.n)
"""
Row = dict[str, Any]


class Town:
    """Logs being filled, one worker per pipeline, and what was posted."""

    def __init__(self, url: str, folder: Path, seed: int = 0, clock: Clock | None = None) -> None:
        module = folder / "town.py"
        module.write_text(MODULE)
        self.random = random.Random(seed)
        self.definitions: Definitions = compile_module(module)
        self.log = Log(url, clock or SystemClock())
        self.store = OnlineStore(url)
        self.archive = Archive(str(folder / "archive"))
        self.history = History(self.archive, self.log)
        self.programs = {p.name: Program.compile(p, self.definitions) for p in pipelines_of(self.definitions)}
        self.posted: dict[str, list[Row]] = {"Ride": [], "Rain": [], "Card": []}
        self._instant = T0
        self._sent = 0
        for name in self.posted:
            self.log.create(ref(self.dataset(name)), PARTITIONS)

    def close(self) -> None:
        self.log.close()
        self.store.close()

    def dataset(self, name: str) -> DatasetDef:
        found = self.definitions.dataset(name)
        assert found is not None
        return found

    def worker(self, name: str, groups: range = range(64), batch_rows: int = 64) -> PartitionWorker:
        program = self.programs[name]
        return PartitionWorker(
            program,
            StateName(program.ref, self.store.generation(program.ref)),
            groups,
            log=self.log,
            store=self.store,
            history=self.history,
            batch_rows=batch_rows,
        )

    def workers(self) -> dict[str, PartitionWorker]:
        """A started worker for every pipeline."""
        made = {name: self.worker(name) for name in self.programs}
        for worker in made.values():
            worker.start()
        return made

    def post(self, name: str, rows: Sequence[Row]) -> Taken:
        """Through the door, as a numbered source would."""
        dataset = self.dataset(name)
        first, self._sent = self._sent, self._sent + len(rows)
        taken = self.resend(dataset, rows, first)
        self.posted[name] += rows
        return taken

    def resend(self, dataset: DatasetDef, rows: Sequence[Row], first: int) -> Taken:
        """Rows with their numbers in the source's stream."""
        door = Intake(self.log, dataset, PARTITIONS, NEVER_LATE, self.definitions.cdc(dataset.name))
        identity = Identity("feed", Mark(first + len(rows) - 1), pa.array(range(first, first + len(rows))).to_numpy())
        return door.take(rows, identity, [], "")

    def some(self, name: str, count: int) -> list[Row]:
        """Random rows, no two of one instant."""
        return [self._row(name) for _ in range(count)]

    def _row(self, name: str) -> Row:
        self._instant += self.random.randrange(1, HOUR // 2)
        # Now and then one that is older than what came before.
        at = self._instant - self.random.choice((0, 0, 0, 3 * HOUR)) + self.random.randrange(1, 1_000_000)
        chosen: Row = {"at": format_instant(at)}
        if name == "Rain":
            return chosen | {"city": self.random.choice(CITIES), "mm": self.random.randrange(4)}
        if name == "Card":
            return chosen | {"rider": self.random.choice(RIDERS), "bank": self.random.choice("pq")}
        return chosen | {
            "rider": self.random.choice(RIDERS),
            "city": self.random.choice(CITIES),
            "fare": self.random.randrange(1, 9),
        }

    def erase(self, name: str, keys: Sequence[str], *, erasure: str = "e1", block: bool = False) -> None:
        """Tombstones in the log; what was posted of these keys has never been."""
        dataset = self.dataset(name)
        for part in range(PARTITIONS):
            mine = [key for key in keys if owner_of_group(key_group(key), PARTITIONS) == part]
            if mine:
                column = pa.array([coerce_value(k, dataset.key) for k in mine], arrow_type(dataset.key.type))
                table = pa.table({dataset.key.name: column})
                self.log.erase(ref(dataset), part, table, erasure=erasure, block=block)
        column_name = dataset.key.name
        self.posted[name] = [row for row in self.posted[name] if row[column_name] not in keys]

    def mock(self) -> MockContext:
        """The same definitions over what was posted and not erased."""
        context = MockContext(definitions=self.definitions, partitions=PARTITIONS)
        for name, rows in self.posted.items():
            if rows:
                context.add_events(name, rows)
        return context

    def instants(self, count: int) -> list[int]:
        return [T0 + self.random.randrange(self._instant - T0 + 2 * HOUR) for _ in range(count)] + [
            self._instant + HOUR
        ]

    def keys(self, name: str) -> list[str]:
        """Every key the outputs of a pipeline may have."""
        pairs = [f"{rider}:{city}" for rider in RIDERS for city in CITIES]
        by_column = {"rider": list(RIDERS), "city": list(CITIES), "mm": list("0123"), "bank": ["p", "q"]}
        keys = self.programs[name].pipeline.keys
        return pairs if len(keys) > 1 else by_column[keys[0]]

    def check(self, *names: str) -> int:
        """Every value online and point-in-time is that of a world without the erased records."""
        context, checked = self.mock(), 0
        point_in_time = PointInTime(self.history, self.log)
        for name in names or self.programs:
            program = self.programs[name]
            output = program.pipeline.output_dataset
            if not self.dataset(output).index:
                continue
            asked = [Lookup(program, key, at) for key in self.keys(name) for at in self.instants(3)]
            past = point_in_time.rows(asked)
            for lookup, then in zip(asked, past, strict=True):
                row = context.lookup(output, lookup.key, format_instant(lookup.at))
                wanted = _shown(row, program)
                assert _shown(self.online(lookup), program) == wanted, ("online", name, lookup.key, lookup.at)
                assert _shown(then, program) == wanted, ("point in time", name, lookup.key, lookup.at)
                checked += wanted is not None
        return checked

    def online(self, lookup: Lookup) -> Mapping[str, Any] | None:
        program, key, at = lookup
        state = StateName(program.ref, self.store.generation(program.ref))
        return program.finish(self.store.load(state, {key: program.read_fields(at)})[key], at)


def _shown(row: Mapping[str, Any] | None, program: Program) -> Row | None:
    # An instant has another form at a client's.
    return None if row is None else {name: row[name] for name in program.outputs if name != "at"}


def drain(*workers: PartitionWorker) -> None:
    while sum(worker.step().read for worker in workers):
        pass
