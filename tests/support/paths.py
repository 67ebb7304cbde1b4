"""The engine's ways to the rows of a random world, and the comparison with what the oracle reads."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from featurelib.clock import parse_instant
from featurelib.compile import validate
from featurelib.definitions import Commit, DatasetDef, Definitions
from featurelib.engine.asof import KNOWN, evaluate
from featurelib.engine.flow import Graph
from featurelib.engine.panes import PanesMissing, pane_field
from featurelib.engine.program import Program, states_of
from featurelib.engine.records import record_schema
from tests.support.oracle import Record
from tests.support.random_pipelines import Read, World, described, shrunk

RELATIVE = 1e-9
Answer = dict[str, Any] | None
Path = Callable[[World], list[Answer]]


class Difference(NamedTuple):
    """A read on which two paths disagree."""

    read: Read
    expected: Answer
    found: Answer


def table(dataset: DatasetDef, records: Sequence[Record]) -> pa.Table:
    """Records as the log would hold them."""
    schema = record_schema(dataset)
    columns = [pa.array([record.get(field.name) for record in records], field.type) for field in schema]
    return pa.table(columns, schema=schema)


def tables(world: World, accepted_by: int | None = None) -> dict[str, pa.Table]:
    """Every dataset's accepted records."""
    found = {}
    for name, records in world.records.items():
        kept = [r for r in records if accepted_by is None or r["__accepted_at"] <= accepted_by]
        found[name] = table(_dataset(world, name), kept)
    return found


def _dataset(world: World, name: str) -> DatasetDef:
    dataset = world.definitions.dataset(name)
    assert dataset is not None
    return dataset


def from_states(world: World) -> list[Answer]:
    """Each read from the state of its key, folded from everything at once."""
    program = Program.compile(world.pipeline, world.definitions)
    latest = states_of(program, tables(world))
    answers = []
    for read in world.reads:
        states = states_of(program, tables(world, read.at)) if read.as_served else latest
        state = states.get(read.key)
        answers.append(program.finish_state(state, read.at) if state is not None else None)
    return answers


def at_once(world: World) -> list[Answer]:
    """All reads in one evaluation; those as served, one by one over what was accepted."""
    program = Program.compile(world.pipeline, world.definitions)
    answers: list[Answer] = [None] * len(world.reads)
    latest = [place for place, read in enumerate(world.reads) if not read.as_served]
    batches = [(latest, tables(world)), *(([p], tables(world, r.at)) for p, r in enumerate(world.reads) if r.as_served)]
    for places, records in batches:
        reads = [world.reads[place] for place in places]
        shaped = program.shape_all(records)
        instants = np.array([read.at for read in reads], dtype=np.int64)
        rows = evaluate(program, shaped, [read.key for read in reads], instants).to_dicts()
        for place, row in zip(places, rows, strict=True):
            answers[place] = _in_micros(row) if row.pop(KNOWN) else None
    return answers


def _in_micros(value: Any) -> Any:
    """Instants of a frame as the engine's own."""
    if isinstance(value, dict):
        return {name: _in_micros(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_in_micros(member) for member in value]
    return parse_instant(value) if isinstance(value, datetime) else value


def streamed(world: World) -> list[Answer]:
    """Each read from stored bytes, after the records came in batches of random cuts; rows may be taken back."""
    program = Program.compile(world.pipeline, world.definitions)
    # A plain pipeline has a graph too: the worker's own way with it is what the parity tests run.
    graph = Graph(world.pipeline, world.definitions)
    keys: dict[str, _Stored] = {}
    for batch in batches(world):
        removed, added = program.shape_delta(graph.top.apply(batch))
        gone, come = dict(program.rows_by_key(removed)), dict(program.rows_by_key(added))
        for key in {**gone, **come}:
            keys.setdefault(key, _Stored(program)).change(gone.get(key, []), come.get(key, []))
    return [keys[read.key].read(read.at) if read.key in keys else None for read in world.reads]


def batches(world: World) -> list[dict[str, pa.Table]]:
    """The records in arrival order, cut at random."""
    chosen = random.Random(world.seed)
    arrived = [(r["__accepted_at"], name, r) for name, records in world.records.items() for r in records]
    arrived.sort(key=lambda arrival: arrival[0])
    made = []
    while arrived:
        size = chosen.choice((1, 3, 10, 1 + len(arrived) // 2))
        part, arrived = arrived[:size], arrived[size:]
        names = dict.fromkeys(name for _, name, _ in part)
        made.append({n: table(_dataset(world, n), [r for _, name, r in part if name == n]) for n in names})
    return made


class _Stored:
    """A key's state, and what a store would hold of it."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._state = program.new_state(1)
        self._fields: dict[bytes, bytes] = {}

    def change(self, removed: Sequence[Any], added: Sequence[Any]) -> None:
        self._state.replace(removed, list(added))
        self._fields.update(self._state.changes())

    def read(self, at: int) -> Answer:
        values = [self._fields.get(name) for name in self._program.read_fields(at)]
        more: dict[Any, bytes | None] = {}
        while True:
            try:
                return self._program.finish(values, at, more)
            except PanesMissing as missing:
                more |= {pane: self._fields.get(pane_field(pane)) for pane in missing.panes}


def as_of_now(world: World) -> World:
    """The world with its reads of everything accepted alone."""
    return replace(world, reads=tuple(read for read in world.reads if not read.as_served))


def differences(world: World, path: Path) -> list[Difference]:
    """Where a path disagrees with the oracle."""
    return unlike(world, world.expected(), path(world))


def unlike(world: World, expected: Sequence[Answer], found: Sequence[Answer]) -> list[Difference]:
    """The reads whose answers differ."""
    bounds = _loose(world)
    return [
        Difference(read, mine, theirs)
        for read, mine, theirs in zip(world.reads, expected, found, strict=True)
        if not _same_row(mine, theirs, bounds)
    ]


def report(world: World, path: Path) -> str:
    """A failing world, as small as it gets, with both values."""
    small = shrunk(world, lambda smaller: _fails(smaller, path))
    lines = [f"  expected {each.expected}\n  found    {each.found}" for each in differences(small, path)[:3]]
    return "\n".join([described(small), *lines])


def _fails(world: World, path: Path) -> bool:
    # A smaller world may be no valid definition any more: then it is not the failure that is looked for.
    return is_valid(world) and bool(differences(world, path))


def is_valid(world: World) -> bool:
    """Whether the world's definitions could be committed."""
    return not validate(Commit(**dict(world.definitions)), Definitions())


def _loose(world: World) -> set[str]:
    """Outputs that are estimates: compared to their bound."""
    named = getattr(world.pipeline.last_step, "aggregates", ())
    return {each.output for each in named if each.aggregate.type == "approx_distinct"}


def _same_row(mine: Answer, theirs: Answer, loose: set[str]) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    if set(mine) != set(theirs):
        return False
    return all(_near(mine[n], theirs[n]) if n in loose else same(mine[n], theirs[n]) for n in mine)


def _near(mine: Any, theirs: Any) -> bool:
    if mine is None or theirs is None:
        return mine is theirs
    return bool(abs(mine - theirs) <= 0.05 * abs(mine))


def same(mine: Any, theirs: Any) -> bool:
    """Equal: floats to 1e-9 relative, everything else exactly."""
    if isinstance(mine, list) and isinstance(theirs, list):
        return len(mine) == len(theirs) and all(same(a, b) for a, b in zip(mine, theirs, strict=True))
    exact = (bool, str, list)
    if mine is None or theirs is None or isinstance(mine, exact) or isinstance(theirs, exact):
        return type(mine) is type(theirs) and mine == theirs
    if isinstance(mine, float) or isinstance(theirs, float):
        return math.isclose(mine, theirs, rel_tol=RELATIVE, abs_tol=1e-9)
    return Decimal(mine) == Decimal(theirs)
