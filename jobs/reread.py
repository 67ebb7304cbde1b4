"""Recorded questions answered again from history: of all records, of those known at an instant, of those a run saw.

A question asked of many runs is one spine: history is read once for all of them. What an answer holds is in the form
that its digests were made of.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from featurelib.clock import Instant
from featurelib.definitions import Definitions
from featurelib.engine.extractor import Row, Runner
from featurelib.engine.program import Program
from featurelib.engine.read_plan import ReadPlan, View, compile_plan, compile_views
from featurelib.engine.spine import Asked, Reading, Rows, feature_columns
from featurelib.errors import ThymeError
from featurelib.stores.audit import QueryRun
from featurelib.stores.digests import Digests
from featurelib.stores.online_reader import Lookup
from featurelib.stores.point_in_time import PointInTime
from featurelib.stores.positions import SeenBefore
from featurelib.stores.questions import Applied, Question
from featurelib.stores.registry import Registry
from featurelib.stores.spine_reader import programs_of

_VERSIONS_KEPT = 4
# Callers may name any features of a featureset, so there is no end of their sets.
_SLICES_KEPT = 1_000
Values = dict[str, Any]
"""Per feature what an answer gives, in order; of a batch a list each."""


class Told(NamedTuple):
    """A run, and what it was asked; ``at`` is the instant R it was answered as of."""

    run: QueryRun
    question: Question
    at: Instant

    @classmethod
    def of(cls, run: QueryRun) -> Told | None:
        """The run as it can be read again; ``None``: it was not answered from the online store, or left no question."""
        if run.inputs is None or run.read_at is None or run.is_erased:
            return None
        question = Question.from_recorded(run.inputs, run.entity_ids)
        return cls(run, question, run.read_at) if question.at is None and not question.instants else None

    @property
    def known_by(self) -> Instant:
        """When it was answered, by the clock that records are accepted by."""
        return self.at if self.run.positions and self.run.positions["clock"] == "wall" else self.run.created_at


Target = ReadPlan | View
"""What a run read: a featureset, or a dataset that was looked up."""


class Compiled:
    """The definitions of one registry version; what is read of them is compiled when it is first asked for."""

    def __init__(self, definitions: Definitions, runner: Runner) -> None:
        self.definitions = definitions
        self._runner = runner
        self._views, _ = compile_views(definitions)
        self._plans: dict[str, ReadPlan | None] = {}
        self._slices: dict[tuple[str, tuple[str, ...]], ReadPlan] = {}

    def target(self, question: Question) -> Target | None:
        """What a question reads; ``None``: it is not committed, or cannot be compiled."""
        if question.shape == "lookup":
            return self._views.get(question.target)
        plan = self.plan(question.target)
        return plan if plan is None or not question.features else self._narrowed(plan, question.features)

    def plan(self, featureset: str) -> ReadPlan | None:
        """The read plan of a featureset; ``None``: it is not committed, or cannot be compiled."""
        if featureset not in self._plans:
            self._plans[featureset] = self._compile(featureset)
        return self._plans[featureset]

    def _narrowed(self, plan: ReadPlan, features: tuple[str, ...]) -> ReadPlan:
        # One plan for all runs of a slice: runs of one plan are read together.
        key = (plan.featureset, features)
        if key not in self._slices:
            if len(self._slices) >= _SLICES_KEPT:
                self._slices.clear()
            self._slices[key] = plan.narrowed(features)
        return self._slices[key]

    def _compile(self, name: str) -> ReadPlan | None:
        featureset = self.definitions.featureset(name)
        if featureset is None:
            return None
        try:
            return compile_plan(featureset, self.definitions, self._views, self._runner)
        except ThymeError:  # what the replicas serve of it is an error too
            return None


class Versions:
    """Definitions of registry versions, compiled; those that did not change are the same ones.

    Args:
        registry: what is committed, and was.
        runner: runs extractors.
    """

    def __init__(self, registry: Registry, runner: Runner) -> None:
        self._registry = registry
        self._runner = runner
        self._kept: OrderedDict[int, Compiled] = OrderedDict()

    def at(self, version: int | None) -> Compiled:
        """Those of a version; ``None``: of today.

        Raises:
            StoreUnavailable: the registry does not answer.
        """
        version = self._registry.version() if version is None else version
        if version not in self._kept:
            definitions = self._registry.definitions_at(version)
            like = next((each for each in self._kept.values() if each.definitions == definitions), None)
            self._kept[version] = like or Compiled(definitions, self._runner)
        self._kept.move_to_end(version)
        while len(self._kept) > _VERSIONS_KEPT:
            self._kept.popitem(last=False)
        return self._kept[version]


def names_of(target: Target) -> Sequence[str]:
    """What an answer's values are of, in order."""
    return target.columns if isinstance(target, View) else target.feature_names


def programs_read(target: Target) -> list[Program]:
    """Every pipeline that may be read for it."""
    return [target.program] if isinstance(target, View) else programs_of(target)


class Reread:
    """Answers questions again.

    Args:
        past: history.
        digests: what stands for extractors' look-ups in a run's record.
    """

    def __init__(self, past: PointInTime, digests: Digests) -> None:
        self._past = past
        self._digests = digests

    def latest(self, target: Target, told: Sequence[Told]) -> list[Values]:
        """Of all records that are there now, each as of its own instant.

        Raises:
            ThymeError: an id or an input does not fit, an extractor failed, or a store does not answer.
        """
        spine = self._past.spine(programs_read(target))
        return _values(target, told, spine.rows)

    def known(self, target: Target, told: Told) -> Values:
        """Of the records accepted when it was answered. Raises like :meth:`latest`."""

        def rows(view: View, asked: Sequence[Asked]) -> list[Row]:
            return self._past.rows(_lookups(view, asked), {}, told.known_by)

        return _values(target, [told], rows)[0]

    def as_served(self, target: Target, told: Told, before: SeenBefore) -> Values:
        """Of the records it was made of. Raises like :meth:`latest`."""
        applied = _by_pipeline(before)

        def rows(view: View, asked: Sequence[Asked]) -> list[Row]:
            return self._below(view, asked, applied.get(view.pipeline, [None] * len(asked)))

        def looked_up(view: View, asked: Sequence[Asked]) -> list[Row]:
            return self._marked(view, asked, told.run, before)

        return _values(target, [told], rows, looked_up)[0]

    def _below(self, view: View, asked: Sequence[Asked], applied: Sequence[Applied]) -> list[Row]:
        known = [place for place, offsets in enumerate(applied) if offsets is not None]
        lookups = _lookups(view, [asked[place] for place in known])
        rows: list[Row] = [None] * len(asked)
        for place, row in zip(known, self._past.rows_below(lookups, [applied[p] or () for p in known]), strict=True):
            rows[place] = row
        return rows

    def _marked(self, view: View, asked: Sequence[Asked], run: QueryRun, before: SeenBefore) -> list[Row]:
        """Rows that extractors look up: where the run stopped, and for what it looked up in the past as known then."""
        marks = [self._digests.mark(run.id, view.dataset.name, *each) for each in asked]
        now = [place for place, mark in enumerate(marks) if mark in before.marks]
        rows: dict[int, Row] = {}
        found = self._below(view, [asked[place] for place in now], [before.marks[marks[place]] for place in now])
        rows |= zip(now, found, strict=True)
        then = [place for place in range(len(asked)) if place not in rows]
        lookups = _lookups(view, [asked[place] for place in then])
        rows |= zip(then, self._past.rows(lookups, dict(before.seen.ends), run.created_at), strict=True)
        return [rows[place] for place in range(len(asked))]


def _values(target: Target, told: Sequence[Told], rows: Rows, looked_up: Rows | None = None) -> list[Values]:
    if isinstance(target, View):
        return _rows_shown(target, told, rows)
    readings = [_readings(target, each) for each in told]
    columns = feature_columns(target, [reading for each in readings for reading in each], rows, looked_up)
    found, start = [], 0
    for each, mine in zip(told, readings, strict=True):
        stop = start + len(mine)
        own: list[Any] = [column[start:stop] for column in columns]
        if each.question.shape == "features":
            own = target.answer([column[0] for column in own])
        found.append(dict(zip(target.feature_names, own, strict=True)))
        start = stop
    return found


def _rows_shown(view: View, told: Sequence[Told], rows: Rows) -> list[Values]:
    entities = [view.key_form.read(each.question.entity_ids[0]) for each in told]
    found = rows(view, [(entity.key, each.at) for entity, each in zip(entities, told, strict=True)])
    shown = [view.row(entity, row) or {} for entity, row in zip(entities, found, strict=True)]
    return [{name: row.get(name) for name in view.columns} for row in shown]


def _readings(plan: ReadPlan, told: Told) -> list[Reading]:
    question = told.question
    inputs = question.row_inputs or (question.inputs,) * len(question.entity_ids)
    return [
        Reading(plan.key_form.read(given), plan.requested(each or {}, nulls=question.nulls), told.at)
        for given, each in zip(question.entity_ids, inputs, strict=True)
    ]


def _lookups(view: View, asked: Sequence[Asked]) -> list[Lookup]:
    return [Lookup(view.program, key, at) for key, at in asked]


def _by_pipeline(before: SeenBefore) -> Mapping[str, list[Applied]]:
    width = len(before.seen.pipelines)
    return {name: before.seen.applied[place::width] for place, name in enumerate(before.seen.pipelines)}
