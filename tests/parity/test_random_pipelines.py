"""Random pipelines by every path over one real log, against the oracle: stream, backfill, past reads, MockContext."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurelib.clock import DAY, MINUTE, format_instant, parse_instant
from featurelib.definitions import DatasetDef, ref
from featurelib.engine.keys import key_group, owner_of_group
from featurelib.engine.panes import PanesMissing, pane_field
from featurelib.engine.program import Program
from featurelib.engine.records import DELETED, TIME, dataset_schema
from featurelib.settings import Settings
from featurelib.stores.archive import Archive
from featurelib.stores.history import History
from featurelib.stores.log import Lateness, Log
from featurelib.stores.online import OnlineStore, StateName
from featurelib.stores.online_reader import Lookup
from featurelib.stores.point_in_time import PointInTime
from featurelib.testing import MockContext
from jobs.backfill import Order, PartitionBuilder
from jobs.inputs import input_partitions
from jobs.worker import PartitionWorker
from tests.support.clocks import MovedClock
from tests.support.oracle import Record
from tests.support.paths import Answer, as_of_now, unlike
from tests.support.profiles import by_profile
from tests.support.random_pipelines import World, described, world
from tests.support.worlds import drain

SEEDS = range(10_000, 10_000 + by_profile(ci=20, soak=400))
PARTITIONS = 2
LATENESS = Lateness(max_lateness_us=DAY, max_clock_skew_us=5 * MINUTE)
Batch = list[tuple[str, Record]]


class Scene:
    """A world whose records go through a real log while a worker follows it."""

    def __init__(self, drawn: World, url: str, root: Path) -> None:
        self.world = drawn
        self.url = url
        self.clock = MovedClock()
        self.log = Log(url, self.clock)
        self.store = OnlineStore(url)
        self.random = random.Random(drawn.seed)
        self.program = Program.compile(drawn.pipeline, drawn.definitions)
        self.root = root
        self.archive = Archive(str(root / "archive"))
        self.history = History(self.archive, self.log)
        self.mock = MockContext(drawn.definitions, partitions=PARTITIONS)
        for name in drawn.records:
            self.log.create(ref(self.dataset(name)), PARTITIONS)

    def close(self) -> None:
        self.log.close()
        self.store.close()

    def dataset(self, name: str) -> DatasetDef:
        found = self.world.definitions.dataset(name)
        assert found is not None
        return found

    def post(self, batch: Batch) -> None:
        """Accept a batch, in the log and in the mock context alike."""
        self.clock.time = max(self.clock.time + 1, batch[-1][1]["__accepted_at"])
        for name in dict.fromkeys(name for name, _ in batch):
            records = [record for each, record in batch if each == name]
            self._append(self.dataset(name), records)
            given = [self._event(self.dataset(name), record) for record in records]
            self.mock.add_events(name, given, accepted_at=format_instant(self.clock.time))

    def _append(self, dataset: DatasetDef, records: Sequence[Record]) -> None:
        owner = {id(r): owner_of_group(key_group(str(r[dataset.key.name])), PARTITIONS) for r in records}
        for partition in range(PARTITIONS):
            mine = [r for r in records if owner[id(r)] == partition]
            if mine:
                self.log.append(ref(dataset), partition, _table(dataset, mine), lateness=LATENESS)

    def _event(self, dataset: DatasetDef, record: Record) -> dict[str, Any]:
        """The record as its source would send it."""
        row = {f.name: record[f.name] for f in dataset.fields} | {dataset.timestamp.name: format_instant(record[TIME])}
        row = {name: str(value) if name == "cost" and value is not None else value for name, value in row.items()}
        mode = self.world.definitions.cdc(dataset.name)
        if mode == "debezium":
            return {"op": "d", "before": row, "at": row["at"]} if record[DELETED] else {"op": "u", "after": row}
        return row | ({DELETED: True} if record[DELETED] else {})

    def worker(self) -> PartitionWorker:
        state = StateName(self.program.ref, 1)
        made = PartitionWorker(
            self.program,
            state,
            range(64),
            log=self.log,
            store=self.store,
            history=self.history,
            batch_rows=self.random.choice((1, 4, 64)),
        )
        made.start()
        return made

    def archive_some(self) -> None:
        for name in self.world.records:
            dataset = self.dataset(name)
            for partition in range(PARTITIONS):
                held = self.archive.archived_offset(dataset, partition)
                found = self.log.read(ref(dataset), partition, held, 10**6)
                if found is not None:
                    self.archive.append(dataset, found)

    def accepted(self) -> dict[str, list[Record]]:
        """What the log holds, as the oracle reads it."""
        return {name: _records(self.history.read(self.dataset(name), PARTITIONS)) for name in self.world.records}

    def stored(self, generation: int) -> list[Answer]:
        """The reads from a generation of stored state."""
        state = StateName(self.program.ref, generation)
        return [self._read(state, read.key, read.at) for read in self.world.reads]

    def _read(self, state: StateName, key: str, at: int) -> Answer:
        values = self.store.load(state, {key: self.program.read_fields(at)})[key]
        more: dict[Any, bytes | None] = {}
        while True:
            try:
                return self.program.finish(values, at, more)
            except PanesMissing as missing:
                names = [pane_field(pane) for pane in missing.panes]
                more |= dict(zip(missing.panes, self.store.load(state, {key: names})[key], strict=True))

    def build(self, generation: int) -> None:
        """A backfill of everything, aside of the stream's state."""
        cut = [self.log.head(*source.address).next_offset for source in input_partitions(self.program, self.log)]
        order = Order(
            self.world.pipeline, self.world.definitions, StateName(self.program.ref, generation), cut, since=None
        )
        settings = Settings(
            data_dir=self.root, online={"redis_url": self.url}, archive={"url": str(self.root / "archive")}
        )
        builder = PartitionBuilder(order, settings)
        for partition in range(settings.pipeline.partition_count):
            builder.build(partition)
        builder.close()

    def past(self) -> list[Answer]:
        reader = PointInTime(self.history, self.log)
        return reader.rows([Lookup(self.program, read.key, read.at) for read in self.world.reads])

    def mocked(self) -> list[Answer]:
        name = self.world.pipeline.output_dataset
        found = (self.mock.lookup(name, read.key, format_instant(read.at)) for read in self.world.reads)
        return [None if row is None else self._engine_row(row) for row in found]

    def _engine_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        types = self.program.fold.output_types
        return {name: _engine_value(row[name], types[name]) for name in self.program.outputs}


def _engine_value(value: Any, kind: str) -> Any:
    if isinstance(value, list):
        return [_engine_value(each, kind) for each in value]
    if value is None or not ("datetime" in kind or "decimal" in kind):
        return value
    return parse_instant(value) if "datetime" in kind else Decimal(value)


def _table(dataset: DatasetDef, records: Sequence[Record]) -> pa.Table:
    schema = dataset_schema(dataset)
    columns = {field.name: pa.array([r[field.name] for r in records], field.type) for field in schema}
    columns[TIME] = pa.array([r[TIME] for r in records], pa.int64())
    columns[DELETED] = pa.array([r[DELETED] for r in records], pa.bool_())
    return pa.table(columns)


def _records(found: pa.Table) -> list[Record]:
    rows = found.to_pylist()
    return [{n: parse_instant(v) if isinstance(v, datetime) else v for n, v in row.items()} for row in rows]


@pytest.fixture
def scene(request: pytest.FixtureRequest, empty_redis_url: str, tmp_path: Path) -> Iterator[Scene]:
    drawn = as_of_now(world(request.param))
    sources = tuple(
        s.model_copy(update={"max_lateness_us": LATENESS.max_lateness_us}) for s in drawn.definitions.sources
    )
    drawn = replace(drawn, definitions=drawn.definitions.model_copy(update={"sources": sources}))
    made = Scene(drawn, empty_redis_url, tmp_path)
    yield made
    made.close()


def cut_at_random(scene: Scene) -> Iterator[Batch]:
    arrived = [(name, record) for name, records in scene.world.records.items() for record in records]
    arrived.sort(key=lambda arrival: arrival[1]["__accepted_at"])
    while arrived:
        size = scene.random.choice((1, 2, 7, 20))
        yield arrived[:size]
        arrived = arrived[size:]


@pytest.mark.parametrize("scene", SEEDS, indirect=True)
def test_every_path_reads_what_lists_and_loops_read(scene: Scene) -> None:
    worker = scene.worker()
    for batch in cut_at_random(scene):
        scene.post(batch)
        if scene.random.random() < 0.15:
            worker = scene.worker()  # the one before is fenced, as after a crash
        if scene.random.random() < 0.6:
            worker.step()
        if scene.random.random() < 0.1:
            scene.archive_some()
    drain(worker)
    scene.build(2)
    expected = replace(scene.world, records=scene.accepted()).expected()
    paths = {"stream": scene.stored(1), "backfill": scene.stored(2), "past": scene.past(), "mock": scene.mocked()}
    for name, found in paths.items():
        assert unlike(scene.world, expected, found) == [], f"{name}\n{described(scene.world)}"
