"""A world whose log, workers, archive and clock may fail at any point, and the rules by which it moves.

Hypothesis draws the moves (:class:`WorkerModel`). What must hold is computed from plain lists of the records accepted
(:mod:`tests.support.accepted`) by the oracle, never by the engine. Valkey and the Delta archive are real.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from featurelib.aggregates import Aggregate, Count, LastK, Max, Sum
from featurelib.clock import HOUR, MINUTE, to_datetime
from featurelib.definitions import (
    AggregateStep,
    ConnectorDef,
    DatasetDef,
    Definitions,
    FieldDef,
    FirstStep,
    JoinStep,
    NamedAggregate,
    PipelineDef,
    SourceDef,
    Step,
    ref,
)
from featurelib.engine.keys import KEY_GROUPS, groups_of, key_group
from featurelib.engine.program import Program
from featurelib.engine.records import Mark
from featurelib.errors import Fenced, StoreUnavailable
from featurelib.expr import col
from featurelib.settings import Settings
from featurelib.stores import online
from featurelib.stores.archive import Archive
from featurelib.stores.fenced import Write
from featurelib.stores.fsync import FsyncFence
from featurelib.stores.history import History
from featurelib.stores.intake import Intake
from featurelib.stores.log import Identity, Lateness, Log
from featurelib.stores.online import OnlineStore, StateName
from featurelib.stores.online_reader import Found, Lookup, OnlineReader
from featurelib.stores.point_in_time import PointInTime
from jobs.backfill import Order, PartitionBuilder
from jobs.inputs import input_partitions
from jobs.maintain import ArchiveCopy
from jobs.worker import PartitionWorker
from tests.support.accepted import Accepted, Row
from tests.support.clocks import MovedClock
from tests.support.oracle import Oracle
from tests.support.paths import same
from tests.support.redis_server import RedisServer

T0 = 1_700_006_400 * 1_000_000
PARTITIONS = 2
LATENESS = Lateness(max_lateness_us=6 * HOUR, max_clock_skew_us=5 * MINUTE)
BATCH_ROWS = 8
"""So few that a worker is nearly always somewhere between."""
ROUND_LIMIT = 2_000
"""Steps after which a worker that still reads does not get anywhere."""


def _text(name: str, *, key: bool = False) -> FieldDef:
    return FieldDef(name=name, type="str", key=key)


_AT = FieldDef(name="at", type="datetime", timestamp=True)
RIDES = DatasetDef(
    name="Ride",
    fields=(_text("rider", key=True), _text("city"), FieldDef(name="fare", type="int", optional=True), _AT),
)
RAIN = DatasetDef(name="Rain", fields=(_text("city", key=True), FieldDef(name="mm", type="int"), _AT))
WALLETS = DatasetDef(
    name="Wallet", fields=(_text("owner", key=True), _text("tier"), FieldDef(name="cents", type="int"), _AT)
)


def _keys(prefix: str, first: int, second: int) -> list[str]:
    """Some keys of two key groups, each near the beginning of its worker's: where commits are cut."""
    names = [f"{prefix}{number}" for number in range(2_000)]
    return [
        *[name for name in names if key_group(name) == 1][:first],
        *[name for name in names if key_group(name) == 33][:second],
    ]


RIDERS = _keys("rider", 3, 2)
OWNERS = _keys("owner", 4, 2)
CITIES = _keys("city", 3, 1)
TIERS = _keys("tier", 3, 1)
KEYS = {"rider": RIDERS, "city": CITIES, "tier": TIERS}


_SEEDS = st.integers(0, 999)
_WRITES = st.sampled_from((0, 1, 2, 2, 3, 3, 4, 5, 40))


class Shape(NamedTuple):
    """A pipeline of the model: its name, what it reads, and its steps."""

    name: str
    inputs: tuple[DatasetDef, ...]
    steps: tuple[Step, ...]

    @property
    def key(self) -> str:
        """Its key column."""
        (key,) = self.steps[-1].keys  # type: ignore[union-attr]
        return str(key)


def _by(key: str, aggregates: dict[str, Aggregate]) -> AggregateStep:
    named = tuple(NamedAggregate(output=output, aggregate=aggregate) for output, aggregate in aggregates.items())
    return AggregateStep(keys=(key,), aggregates=named)


_COUNTS: dict[str, Aggregate] = {
    "n": Count(),
    "n_2h": Count(window="2h"),
    "fares": Sum("fare"),
    "fares_2h": Sum("fare", "2h"),
}
SHAPES = [
    Shape("keyed_like_its_dataset", (RIDES,), (_by("rider", _COUNTS),)),
    Shape("keyed_otherwise", (RIDES,), (_by("city", _COUNTS | {"riders": LastK("rider", "2h", k=3)}),)),
    Shape(
        "joined",
        (RIDES, RAIN),
        (
            JoinStep(right="Rain", on="city", fields=("mm",)),
            _by("rider", {"n": Count(), "wet": Count(window="2h", where=col("mm") > 3), "mm": Sum("mm")}),
        ),
    ),
    Shape(
        "over_change_data",
        (WALLETS,),
        (_by("tier", {"n": Count(), "cents": Sum("cents"), "most": Max("cents", "2h"), "n_2h": Count(window="2h")}),),
    ),
    Shape(
        "first_of_each",
        (RIDES,),
        (FirstStep(keys=("rider",)), _by("city", {"n": Count(), "fares": Sum("fare"), "n_2h": Count(window="2h")})),
    ),
]


def _definitions(shape: Shape) -> Definitions:
    output = DatasetDef(name="Out", fields=(_text(shape.key, key=True), _AT))
    pipeline = PipelineDef(
        name=shape.name,
        input_datasets=tuple(dataset.name for dataset in shape.inputs),
        output_dataset="Out",
        steps=shape.steps,
    )
    source = SourceDef(dataset="Wallet", connector=ConnectorDef(type="none", config={}), cdc="upsert")
    return Definitions(datasets=(*shape.inputs, output), pipelines=(pipeline,), sources=(source,))


class Killed(StoreUnavailable):
    """The process that was at work is dead, or has lost the store."""


class MortalStore(OnlineStore):
    """A store whose process may die in the middle of a commit."""

    writes_left: int | None = None

    def __init__(self, redis_url: str) -> None:
        super().__init__(redis_url)
        whole = self._fenced.write

        def counted(writes: Iterable[Write], of: str) -> None:
            whole(writes if self.writes_left is None else islice(writes, self.writes_left), of)

        self._fenced.write = counted

    def commit(self, state: StateName, commits: Sequence[online.GroupCommit]) -> None:
        super().commit(state, commits)
        if self.writes_left is not None:
            self.writes_left = None
            raise Killed("in the middle of a commit")


class MortalLog(Log):
    """A log whose writer may die between the appends to two partitions."""

    appends_left: int | None = None

    def append(self, *arguments: Any, **options: Any) -> Any:
        if self.appends_left == 0:
            self.appends_left = None
            raise Killed("between two partitions")
        if self.appends_left is not None:
            self.appends_left -= 1
        return super().append(*arguments, **options)


class MortalArchive(Archive):
    """An archive whose writer may die when a commit is in, before it knows."""

    dies = False

    def append(self, *arguments: Any) -> int:
        written = super().append(*arguments)
        if self.dies:
            self.dies = False
            raise Killed("after the archive's commit")
        return written


class WorkerModel(RuleBasedStateMachine):
    """One pipeline over its datasets; every rule is something that may happen next."""

    shape: Shape
    server: RedisServer

    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        # One key a write: a commit of two keys is in chunks already.
        self._patch.setattr(online, "_KEYS_OF_GROUP", 1)
        with self.server.client() as client:
            client.flushall()
        self.folder = Path(tempfile.mkdtemp(prefix="thyme-model-"))
        self.loop = asyncio.new_event_loop()
        self.clock = MovedClock(T0 + 6 * HOUR)
        self.definitions = _definitions(self.shape)
        (pipeline,) = self.definitions.pipelines
        self.program = Program.compile(pipeline, self.definitions)
        self.accepted = {d.name: Accepted(d, PARTITIONS, LATENESS) for d in self.shape.inputs}
        self.stolen: list[tuple[DatasetDef, Any]] = []
        self.zombies: list[PartitionWorker] = []
        self.workers: list[PartitionWorker | None] = [None] * PARTITIONS
        self.stood: dict[tuple[int, int], list[int]] = {}
        self._open()
        for dataset in self.shape.inputs:
            self.log.create(ref(dataset), PARTITIONS)
        self.inputs = input_partitions(self.program, self.log)

    def _open(self) -> None:
        self.log = MortalLog(self.server.url, self.clock)
        self.store = MortalStore(self.server.url)
        self.archive = MortalArchive(str(self.folder / "archive"))
        self.fence = FsyncFence(self.server.url)
        self.reader = OnlineReader(self.server.url)

    def _close(self) -> None:
        self.log.close()
        self.store.close()
        self.fence.close()
        self.loop.run_until_complete(self.reader.close())

    def teardown(self) -> None:
        """Let everything be applied, look at everything, and take everything down."""
        try:
            self._finish()
        finally:
            self._close()
            self.loop.close()
            self._patch.undo()
            shutil.rmtree(self.folder)

    def _finish(self) -> None:
        for dataset in self.shape.inputs:
            self._send(dataset, 0, None)
        self.workers = [None] * len(self.workers)
        for partition in range(len(self.workers)):
            self._drain(self._worker(partition))
        ends = [len(self.accepted[i.dataset.name].partitions[i.partition]) for i in self.inputs]
        progress = self.store.progress(self._state())
        mine = [index for index, i in enumerate(self.inputs) if not self._reads_own() or i.dataset.name != "Ride"]
        assert progress.positions is not None
        assert [progress.positions[index] for index in mine] == [ends[index] for index in mine]
        self.read_all([T0 + half * 30 * MINUTE for half in (3, 16, 29, 33)])
        self.copy_to_the_archive(dies=False)
        self.look_at_the_archive()

    def _reads_own(self) -> bool:
        return self.program.keyed_like_its_dataset()

    # What happens to the input.

    @rule(
        which=st.integers(0, 1),
        count=st.integers(1, 30),
        seed=_SEEDS,
        again=st.sampled_from((0, 0, 3, 100)),
        cut=st.sampled_from((None, None, 0, 1)),
    )
    def source_sends(self, which: int, count: int, seed: int, again: int, cut: int | None) -> None:
        """A batch, some of it sent before; the reader may die between the partitions."""
        dataset = self.shape.inputs[which % len(self.shape.inputs)]
        self.accepted[dataset.name].feed += _rows(dataset, count, random.Random(seed))
        self._send(dataset, again, cut)

    def _send(self, dataset: DatasetDef, again: int, cut: int | None) -> None:
        accepted = self.accepted[dataset.name]
        first = max(0, accepted.resume() - again)
        rows = accepted.feed[first:]
        if not rows:
            return
        identity = Identity("feed", Mark(len(accepted.feed) - 1), np.arange(first, first + len(rows), dtype=np.int64))
        self.log.appends_left = cut
        try:
            self._intake(dataset).take([_raw(row) for row in rows], identity, [], "")
        except Killed:
            assert cut is not None
        self.log.appends_left = None
        accepted.send(first, self.clock.now(), range(PARTITIONS if cut is None else cut))

    @rule(which=st.integers(0, 1), count=st.integers(1, 5), seed=st.integers(0, 99))
    def people_post(self, which: int, count: int, seed: int) -> None:
        """Records without identity, all of them counted."""
        dataset = self.shape.inputs[which % len(self.shape.inputs)]
        rows = _rows(dataset, count, random.Random(seed))
        self._intake(dataset).accept([_raw(row) for row in rows])
        self.accepted[dataset.name].post(rows, self.clock.now())

    @rule(minutes=st.sampled_from((-180, -1, 7, 200)))
    def clock_jumps(self, minutes: int) -> None:
        """Forwards or backwards."""
        self.clock.time += minutes * MINUTE

    # What happens to workers.

    @rule(which=st.integers(0, 3), steps=st.integers(1, 6))
    def worker_steps(self, which: int, steps: int) -> None:
        """A worker that lives, or one that is started."""
        worker = self._worker(which)
        for _ in range(steps):
            worker.step()

    @rule(which=st.integers(0, 3), writes=_WRITES, seed=_SEEDS, same_process=st.booleans())
    def worker_is_killed_in_a_commit(self, which: int, writes: int, seed: int, *, same_process: bool) -> None:
        """After some writes of the commit reached the server: before, between chunks, or when it was done."""
        self._more_comes(seed)
        which %= len(self.workers)
        worker = self._worker(which)
        self.store.writes_left = writes
        try:
            worker.step()
        except Killed:
            self.workers[which] = None
            if same_process:  # the store was lost, not the process: it starts again
                worker.start()
                self.workers[which] = worker
        self.store.writes_left = None

    @rule(which=st.integers(0, 3), writes=st.integers(0, 70))
    def worker_is_killed_as_it_starts(self, which: int, writes: int) -> None:
        """A start commits too."""
        which %= len(self.workers)
        self.workers[which] = None
        self.store.writes_left = writes
        try:
            self._worker(which)
        except Killed:
            self.workers[which] = None
        self.store.writes_left = None

    @rule(which=st.integers(0, 3), steps=st.integers(0, 4), seed=_SEEDS)
    def worker_is_frozen_and_replaced(self, which: int, steps: int, seed: int) -> None:
        """Its successor starts and goes on; the frozen one lives."""
        self._more_comes(seed)
        which %= len(self.workers)
        self.zombies.append(self._worker(which))
        self.workers[which] = None
        successor = self._worker(which)
        for _ in range(steps):
            successor.step()

    @precondition(lambda self: self.zombies)
    @rule(which=st.integers(0, 9), seed=_SEEDS)
    def frozen_worker_wakes_up(self, which: int, seed: int) -> None:
        """It goes on where it was, and writes nothing."""
        self._more_comes(seed)
        zombie = self.zombies[which % len(self.zombies)]
        before = self._dump()
        try:
            zombie.step()
        except Fenced:
            self.zombies.remove(zombie)
        assert self._dump() == before

    def _more_comes(self, seed: int) -> None:
        """Some rows of the left side, so that there is something to do."""
        left = self.shape.inputs[0]
        self.accepted[left.name].feed += _rows(left, seed % 12, random.Random(seed))
        self._send(left, 0, None)

    @rule(count=st.sampled_from((1, 2, 4)))
    def workers_are_rescaled(self, count: int) -> None:
        """Others take the key groups over; those that had them are frozen."""
        self.zombies += [worker for worker in self.workers if worker is not None]
        self.workers = [None] * count
        for partition in range(count):
            self._worker(partition)

    @rule(all_die=st.booleans())
    def processes_or_connections_die(self, *, all_die: bool) -> None:
        """No process survives; or all do, and only the connections to the store are cut."""
        if all_die:
            self.workers = [None] * len(self.workers)
            self.zombies.clear()
            self.stolen.clear()
            self._close()
            self._open()
            return
        with self.server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        # An event loop that does not run meanwhile cannot notice.
        self.loop.run_until_complete(self.reader.close())
        self.reader = OnlineReader(self.server.url)

    @rule(finished=st.booleans(), partitions=st.integers(1, PARTITIONS))
    def state_is_rebuilt(self, *, finished: bool, partitions: int) -> None:
        """A backfill builds the next generation beside the served one; it may die before it is done."""
        served = self._state()
        fresh = served._replace(generation=served.generation + 1)
        self.store.clear(fresh, range(64))
        cut = [self.log.head(*each.address).next_offset for each in self.inputs]
        (pipeline,) = self.definitions.pipelines
        order = Order(pipeline, self.definitions, fresh, cut, None)
        builder = PartitionBuilder(order, self._settings())
        for partition in range(PARTITIONS if finished else partitions):
            builder.build(partition)
        if finished:
            self.store.switch_generation(self.program.ref, fresh.generation)
            # Nobody fences the workers of the old generation: they keep a state that nobody reads.
            self.zombies.clear()
            self.workers = [None] * len(self.workers)

    # What happens to the archive.

    @rule(dies=st.booleans())
    def copy_to_the_archive(self, *, dies: bool) -> None:
        """The archiver may die when its commit is in; the next one is told by the archive alone."""
        self.archive.dies = dies
        copy = ArchiveCopy(
            self.shape.inputs, self.log, self.archive, fence=self.fence, clock=self.clock, batch_rows=10_000
        )
        try:
            copy.step()
        except Killed:
            assert dies
        self.archive.dies = False

    @rule()
    def an_archiver_is_frozen_or_wakes_up(self) -> None:
        """It has read what is not archived, and sleeps before it writes."""
        if self.stolen:
            self.archive.append(*self.stolen.pop(0))
            return
        for dataset in self.shape.inputs:
            for part in range(PARTITIONS):
                table = self.log.read(ref(dataset), part, self.archive.archived_offset(dataset, part), 10_000)
                if table is not None:
                    self.stolen.append((dataset, table))

    @rule()
    def the_log_is_trimmed(self) -> None:
        """Only the archive gates it: workers that lag behind read on from there."""
        for dataset in self.shape.inputs:
            for part in range(PARTITIONS):
                self.log.trim(ref(dataset), part, self.archive.archived_offset(dataset, part))

    # What must hold.

    @invariant()
    def positions_never_go_back(self) -> None:
        """Those of every group; where workers take groups back as they start, to the lowest and no further."""
        state = self._state()
        held = {group: stand for group, (stand, _) in self._standings(state).items()}
        if self.program.plain and not self.program.rights:
            now = dict(held)
        else:
            now = {-1: [min(column) for column in zip(*held.values(), strict=True)]} if len(held) == KEY_GROUPS else {}
        for group, positions in now.items():
            before = self.stood.get((state.generation, group), [0] * len(positions))
            assert all(a >= b for a, b in zip(positions, before, strict=True)), (group, before, positions)
            self.stood[state.generation, group] = positions

    @rule(half_hours=st.integers(0, 30), offset=st.sampled_from((0, 0, 1, -1)))
    def online_reads_are_of_a_prefix(self, half_hours: int, offset: int) -> None:
        """Wherever a key's group stands: what is served is made of exactly the records below."""
        standings = self._standings(self._state())
        at = T0 + half_hours * 30 * MINUTE + offset
        keys = [key for key in KEYS[self.shape.key] if self._is_even(key_group(key), standings)]
        found = self._online(keys, at)
        for key in keys:
            positions, _ = standings[key_group(key)]
            assert _equal(found[key], self._oracle(positions).read(key, at)), (key, at, positions, found[key])

    def _is_even(self, group: int, standings: dict[int, tuple[list[int], bool]]) -> bool:
        """Whether no commit of the group is half done, nor right sides being read again by the worker it has."""
        if group not in standings:
            return False
        mine = next(groups for n in range(len(self.workers)) if group in (groups := groups_of(n, len(self.workers))))
        if not self.program.rights and self.program.plain:
            return not standings[group][1]
        stands = [standings.get(each) for each in mine]
        return stands[0] is not None and all(stand == stands[0] and not stand[1] for stand in stands)

    @rule(half_hours=st.integers(0, 30), offset=st.sampled_from((0, 0, 1, -1)))
    def point_in_time_reads_are_of_everything(self, half_hours: int, offset: int) -> None:
        """Whatever lies in the log, the archive, or both."""
        at = T0 + half_hours * 30 * MINUTE + offset
        self._compare(self._past(at), at)

    @rule(half_hours=st.integers(0, 30), offset=st.sampled_from((0, 0, 1, -1)))
    def a_row_says_of_which_records_it_is(self, half_hours: int, offset: int) -> None:
        """At any time, in the middle of whatever was cut short: read again of these records, it is the same row."""
        at = T0 + half_hours * 30 * MINUTE + offset
        lookups = [Lookup(self.program, key, at) for key in KEYS[self.shape.key]]
        found = self._found(lookups)
        assert all(each.row is None for each in found if each.applied is None)
        known = [(lookup, each) for lookup, each in zip(lookups, found, strict=True) if each.applied is not None]
        reader = PointInTime(History(self.archive, self.log), self.log)
        again = reader.rows_below([lookup for lookup, _ in known], [each.applied for _, each in known])
        for (lookup, each), row in zip(known, again, strict=True):
            assert _equal(each.row, row), (lookup.key, at, each, row)

    def read_all(self, instants: Iterable[int]) -> None:
        """Every key at these instants, online and point-in-time: both are the model's."""
        for at in instants:
            self._compare(self._online(KEYS[self.shape.key], at), at)
            self._compare(self._past(at), at)

    def _compare(self, found: dict[str, Any], at: int) -> None:
        oracle = self._oracle(None)
        stream = oracle.served()
        for key, row in found.items():
            assert _equal(row, oracle.finish(stream, key, at)), (key, at, row, oracle.finish(stream, key, at))

    @rule()
    def look_at_the_archive(self) -> None:
        """Every record once, without a gap, as the log accepted it."""
        for dataset in self.shape.inputs:
            rows = self.archive.read(dataset).to_pylist()
            for part, wanted in enumerate(self.accepted[dataset.name].partitions):
                mine = sorted((row for row in rows if row["__partition"] == part), key=lambda row: row["__offset"])
                assert [row["__offset"] for row in mine] == list(range(self.archive.archived_offset(dataset, part)))
                assert [_plain(row) for row in mine] == [_plain(row) for row in wanted[: len(mine)]], (part, mine)

    # How it is done.

    def _intake(self, dataset: DatasetDef) -> Intake:
        return Intake(self.log, dataset, PARTITIONS, LATENESS, self.definitions.cdc(dataset.name))

    def _state(self) -> StateName:
        return StateName(self.program.ref, self.store.generation(self.program.ref))

    def _worker(self, which: int) -> PartitionWorker:
        which %= len(self.workers)
        worker = self.workers[which]
        if worker is None:
            worker = PartitionWorker(
                self.program,
                self._state(),
                groups_of(which, len(self.workers)),
                log=self.log,
                store=self.store,
                history=History(self.archive, self.log),
                batch_rows=BATCH_ROWS,
            )
            worker.start()
            self.workers[which] = worker
        return worker

    def _drain(self, worker: PartitionWorker) -> None:
        for _ in range(ROUND_LIMIT):
            if not worker.step().read:
                return
        raise AssertionError(f"still reading after {ROUND_LIMIT} steps")

    def _settings(self) -> Settings:
        return Settings(
            data_dir=self.folder,
            online={"redis_url": self.server.url},
            pipeline={"partition_count": PARTITIONS, "batch_rows": BATCH_ROWS},
        )

    def _standings(self, state: StateName) -> dict[int, tuple[list[int], bool]]:
        """Per group that has begun: where it stands, and whether a commit of it was cut short."""
        claims = {}
        with self.server.client() as client:
            pipe = client.pipeline(transaction=False)
            for group in range(64):
                pipe.hmget(state.position(group), ["positions", "ahead"])
            for group, (positions, ahead) in enumerate(pipe.execute()):
                if positions is not None:
                    claims[group] = ([int(part) for part in positions.strip(b"[]").split(b",")], bool(ahead))
        return claims

    def _dump(self) -> dict[bytes, dict[bytes, bytes]]:
        """Everything that is stored of the pipeline's builds."""
        with self.server.client() as client:
            names = sorted(client.scan_iter(match=f"{{{self.program.ref}#*", count=1_000))
            pipe = client.pipeline(transaction=False)
            for name in names:
                pipe.hgetall(name)
            return dict(zip(names, pipe.execute(), strict=True))

    def _oracle(self, positions: Sequence[int] | None) -> Oracle:
        records = {}
        for name, accepted in self.accepted.items():
            cut = None
            if positions is not None:
                cut = {i.partition: positions[n] for n, i in enumerate(self.inputs) if i.dataset.name == name}
            records[name] = accepted.below(cut)
        (pipeline,) = self.definitions.pipelines
        return Oracle(pipeline, self.definitions, records, {})

    def _online(self, keys: Sequence[str], at: int) -> dict[str, Any]:
        found = self._found([Lookup(self.program, key, at) for key in keys])
        return {key: each.row for key, each in zip(keys, found, strict=True)}

    def _found(self, lookups: Sequence[Lookup]) -> list[Found]:
        async def read() -> list[Found]:
            await self.reader.refresh([self.program.ref])
            return await self.reader.rows(lookups)

        return self.loop.run_until_complete(read())

    def _past(self, at: int) -> dict[str, Any]:
        keys = KEYS[self.shape.key]
        reader = PointInTime(History(self.archive, self.log), self.log)
        return dict(zip(keys, reader.rows([Lookup(self.program, key, at) for key in keys]), strict=True))


def _rows(dataset: DatasetDef, count: int, chosen: random.Random) -> list[Row]:
    """Rows with ties, late ones and some of the future; of change data also deletes."""
    rows = []
    for _ in range(count):
        at = T0 + chosen.randrange(30) * 30 * MINUTE
        if dataset is RIDES:
            fare = chosen.choice((None, 1, 5, 7))
            rows.append({"rider": chosen.choice(RIDERS), "city": chosen.choice(CITIES), "fare": fare, "at": at})
        elif dataset is RAIN:
            rows.append({"city": chosen.choice(CITIES), "mm": chosen.randrange(9), "at": at})
        else:
            row = {
                "owner": chosen.choice(OWNERS),
                "tier": chosen.choice(TIERS),
                "cents": chosen.randrange(90),
                "at": at,
            }
            rows.append(row | {"at": at, "__deleted": chosen.random() < 0.2})
    return rows


def _raw(row: Row) -> Row:
    return row | {"at": to_datetime(row["at"])}


def _plain(row: Row) -> Row:
    """What a model knows of a record, instants as numbers."""
    return {name: row[name] for name in ("__time", "__accepted_at", "__offset", "__late")} | {
        "__deleted": bool(row["__deleted"]),
        **{name: value for name, value in row.items() if not name.startswith("__") and name != "at"},
    }


def _equal(found: Any, wanted: Any) -> bool:
    if found is None or wanted is None:
        return found is wanted
    return found.keys() == wanted.keys() and all(same(found[name], wanted[name]) for name in wanted)


def model_of(shape: Shape, server: RedisServer, without: Collection[str] = ()) -> Callable[[], WorkerModel]:
    """The state machine of one pipeline over a server that is its own, in which some rules never happen."""
    assert {rule.function.__name__ for rule in WorkerModel.setup_state().rules}.issuperset(without)
    never = dict.fromkeys(without)
    return type(f"Model_{shape.name}", (WorkerModel,), {"shape": shape, "server": server, **never})
