"""The extractors of a featureset: ordered once, then run for one entity at one instant, or for a whole batch.

A featureset and those it takes inputs from become one :class:`ExtractorGraph`: every value has a slot, every
extractor reads slots and fills slots, and runs once, however many others take its outputs. No I/O happens here. An
extractor that calls ``Dataset.lookup`` for a row nobody fetched yet stops the run; the caller fetches what is wanted
and resumes, so a look-up level costs one round trip, for a batch too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from featurelib.clock import Instant, to_datetime
from featurelib.definitions import Definitions, ExtractorDef, FeatureDef, FeaturesetDef, digest
from featurelib.engine.extractor import INLINE, Body, Row, RowMissing, Runner, Scope, Task, Typed, Wanted
from featurelib.errors import DefinitionError, Problem
from featurelib.types import Value

# Running 64 rows of plain extractors takes some milliseconds; between two turns an event loop serves others.
_ROWS_PER_TURN = 64


class Pause(NamedTuple):
    """A run stopped before ``step`` because this row is needed."""

    step: int
    wanted: Wanted


class Slot(NamedTuple):
    """One value of a run: a feature of the featureset or of one it depends on."""

    position: int
    featureset: str
    feature: FeatureDef


class _Step(NamedTuple):
    body: Body
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    vectorized: bool


class ExtractorGraph:
    """The extractors one featureset needs, compiled and in order.

    Attributes:
        slots: every value a run touches; those of the featureset's own features come first, in order.
        datasets: datasets that extractors may look up themselves.
        blocks: whether a run waits for other processes; an event loop then runs it in a thread.
        is_idle: whether a run runs nothing: no feature is made by an extractor.
        touched: positions of the slots that extractors read or fill.
    """

    def __init__(
        self, slots: tuple[Slot, ...], steps: tuple[_Step, ...], datasets: tuple[str, ...], *, blocks: bool = False
    ) -> None:
        self.slots = slots
        self.datasets = datasets
        self.blocks = blocks and bool(steps)
        self.touched = frozenset(slot for step in steps for slot in (*step.inputs, *step.outputs))
        self.is_idle = not steps
        self._steps = steps

    @classmethod
    def compile(cls, featureset: FeaturesetDef, definitions: Definitions, runner: Runner = INLINE) -> ExtractorGraph:
        """Order and load the extractors behind every feature of ``featureset``; ``runner`` says where they run.

        Raises:
            DefinitionError: inputs form a cycle or name something unknown.
            UserCodeError: a source does not compile, or a function does not take its inputs.
        """
        needed = _Closure(featureset, definitions)
        slots = tuple(
            Slot(position, owner.name, feature) for position, (owner, feature) in enumerate(needed.features.values())
        )
        index = {f"{slot.featureset}.{slot.feature.name}": slot for slot in slots}
        steps = tuple(_step(owner, extractor, index, definitions, runner) for owner, extractor in needed.extractors)
        used = {dep for _, extractor in needed.extractors for dep in extractor.deps if definitions.dataset(dep)}
        return cls(slots, steps, tuple(sorted(used)), blocks=runner.blocks)

    def narrowed(self, wanted: Collection[int]) -> tuple[ExtractorGraph, tuple[int, ...]]:
        """What some slots take: the graph of them and of what they are made of, and the places its slots had."""
        needed, steps = set(wanted), list[_Step]()
        for step in reversed(self._steps):
            if not needed.isdisjoint(step.outputs):
                needed.update(step.inputs, step.outputs)
                steps.append(step)
        kept = tuple(sorted(needed))
        place = {old: new for new, old in enumerate(kept)}
        slots = tuple(self.slots[old]._replace(position=new) for old, new in place.items())
        moved = tuple(
            step._replace(
                inputs=tuple(place[each] for each in step.inputs), outputs=tuple(place[o] for o in step.outputs)
            )
            for step in reversed(steps)
        )
        return ExtractorGraph(slots, moved, self.datasets, blocks=self.blocks), kept

    def run(self, values: list[Value], at: Instant, rows: Mapping[Wanted, Row], step: int = 0) -> Pause | None:
        """Run the extractors from ``step`` on, filling ``values`` (one per slot) in place.

        Args:
            values: entity ids, looked-up and requested values are in their slots already.
            at: the read instant; extractors see it as an aware UTC ``datetime``.
            rows: rows fetched for ``Dataset.lookup`` so far.
            step: where to resume; from a :class:`Pause`.

        Returns:
            What stopped the run, or ``None`` when every slot is filled.

        Raises:
            UserCodeError: an extractor raised, ran too long, or returned something of the wrong shape or type.
        """
        if step == len(self._steps):
            return None
        scope = Scope(rows, at, to_datetime(at))
        number = step
        try:
            for number in range(step, len(self._steps)):
                body, inputs, outputs, _ = self._steps[number]
                done = body.one([values[slot] for slot in inputs], scope)
                for slot, value in zip(outputs, done):  # noqa: B905  # one each; strict= takes 60 ns a call
                    values[slot] = value
        except RowMissing as missing:
            return Pause(number, missing.wanted)
        return None

    def batch(self, columns: list[list[Value]], instants: Sequence[Instant]) -> Batch:
        """Begin to run the extractors over many rows: ``columns`` (one list per slot) are filled in place.

        Args:
            columns: as ``values`` of :meth:`run`, one element per row.
            instants: the read instant of each row.
        """
        return Batch(self._steps, columns, instants)

    def run_batch(
        self,
        columns: list[list[Value]],
        instants: Sequence[Instant],
        fetch: Callable[[Sequence[Wanted]], Sequence[Row]] | None = None,
    ) -> None:
        """Run the extractors over many rows to the end.

        Args:
            columns: one list per slot, one element per row; filled in place.
            instants: the read instant of each row.
            fetch: gives the rows ``Dataset.lookup`` wants, in order; needed where :attr:`datasets` has any.

        Raises:
            UserCodeError: an extractor failed, for whichever row.
        """
        batch = self.batch(columns, instants)
        rows: dict[Wanted, Row] = {}
        while (wanted := batch.turn(rows)) is not None:
            if wanted:
                assert fetch is not None
                rows.update(zip(wanted, fetch(wanted), strict=True))


class Batch:
    """A run over many rows that stops to breathe. Scalar extractors run once per row, vectorized ones once."""

    def __init__(self, steps: tuple[_Step, ...], columns: list[list[Value]], instants: Sequence[Instant]) -> None:
        self._steps = steps
        self._columns = columns
        self._instants = instants
        self._number = 0
        self._todo = list(range(len(instants)))
        self._waiting: list[tuple[int, Wanted]] = []

    def turn(self, rows: Mapping[Wanted, Row]) -> list[Wanted] | None:
        """Run a share of the rows through one extractor.

        Args:
            rows: rows fetched for ``Dataset.lookup`` so far: all that were wanted.

        Returns:
            Rows to fetch before the next turn, often none; ``None`` when every slot of every row is filled.

        Raises:
            UserCodeError: the extractor failed.
        """
        if self._number == len(self._steps):
            return None
        step = self._steps[self._number]
        share = len(self._todo) if step.vectorized else _ROWS_PER_TURN
        now, self._todo = self._todo[:share], self._todo[share:]
        if now:
            self._run(step, now, rows)
        if self._todo:
            return []
        # Each row once, in the order first wanted: many entities may look up one row.
        wanted = list(dict.fromkeys(each for _, each in self._waiting))
        self._todo = [row for row, _ in self._waiting]
        self._waiting = []
        if not wanted:
            self._number += 1
            self._todo = list(range(len(self._instants)))
        return wanted

    def _run(self, step: _Step, now: Sequence[int], rows: Mapping[Wanted, Row]) -> None:
        given = [[column[row] for row in now] for column in (self._columns[slot] for slot in step.inputs)]
        part = step.body.many(given, [self._instants[row] for row in now], rows)
        self._waiting += [(now[place], wanted) for place, wanted in part.wanted]
        for slot, values in zip(step.outputs, part.columns, strict=True):
            column = self._columns[slot]
            for row, value in zip(now, values, strict=True):
                column[row] = value


class _Closure:
    """Features and extractors a featureset needs, extractors in an order that fills inputs first."""

    def __init__(self, featureset: FeaturesetDef, definitions: Definitions) -> None:
        self.features: dict[str, tuple[FeaturesetDef, FeatureDef]] = {}
        self.extractors: list[tuple[FeaturesetDef, ExtractorDef]] = []
        self._definitions = definitions
        self._root = featureset.name
        self._open: list[str] = []
        for feature in featureset.features:
            self.features[f"{featureset.name}.{feature.name}"] = (featureset, feature)
        for feature in featureset.features:
            self._need(featureset, feature.name)

    def _need(self, owner: FeaturesetDef, name: str) -> None:
        self._keep(owner, name)
        producer = next((e for e in owner.extractors if name in e.outputs), None)
        if producer is not None and (owner, producer) not in self.extractors:
            self._visit(owner, producer)

    def _keep(self, owner: FeaturesetDef, name: str) -> None:
        feature = owner.feature(name)
        if feature is None:
            raise self._problem(f"{owner.name}.{name}", "no such feature", "unknown_feature")
        self.features.setdefault(f"{owner.name}.{name}", (owner, feature))

    def _visit(self, owner: FeaturesetDef, extractor: ExtractorDef) -> None:
        label = f"{owner.name}.{extractor.name}"
        if label in self._open:
            path = " → ".join([*self._open[self._open.index(label) :], label])
            raise self._problem(label, f"extractors take each other's outputs: {path}", "extractor_cycle")
        self._open.append(label)
        for name in extractor.inputs:
            other, _, local = name.rpartition(".")
            self._need(self._featureset(other, label) if other else owner, local)
        self._open.pop()
        self.extractors.append((owner, extractor))
        for name in extractor.outputs:
            self._keep(owner, name)

    def _featureset(self, name: str, label: str) -> FeaturesetDef:
        found = self._definitions.featureset(name)
        if found is None:
            raise self._problem(label, f"takes an input of the unknown featureset {name!r}", "unknown_featureset")
        return found

    def _problem(self, subject: str, message: str, code: str) -> DefinitionError:
        return DefinitionError([Problem(code, subject, f"{message} (needed by featureset {self._root!r})")])


def _step(
    owner: FeaturesetDef,
    extractor: ExtractorDef,
    index: Mapping[str, Slot],
    definitions: Definitions,
    runner: Runner,
) -> _Step:
    inputs = [index[name if "." in name else f"{owner.name}.{name}"] for name in extractor.inputs]
    outputs = [index[f"{owner.name}.{name}"] for name in extractor.outputs]
    task = _task(owner, extractor, inputs, outputs, definitions)
    return _Step(
        runner.load(task),
        tuple(slot.position for slot in inputs),
        tuple(slot.position for slot in outputs),
        extractor.vectorized,
    )


def _task(
    owner: FeaturesetDef,
    extractor: ExtractorDef,
    inputs: Sequence[Slot],
    outputs: Sequence[Slot],
    definitions: Definitions,
) -> Task:
    label = f"{owner.name}.{extractor.name}"
    given = tuple(Typed(name, slot.feature.type) for name, slot in zip(extractor.inputs, inputs, strict=True))
    made = tuple(Typed(slot.feature.name, slot.feature.type) for slot in outputs)
    datasets = tuple(found for dep in extractor.deps if (found := definitions.dataset(dep)))
    # Types are part of it: the same text over a feature that was retyped is another extractor.
    parts = (label, digest(extractor), *given, *made, *map(digest, datasets))
    identity = hashlib.sha256(repr(parts).encode()).hexdigest()
    return Task(label, identity, extractor.code, given, made, datasets, extractor.vectorized)
