"""What an answer is made of: of every feature its value, where it comes from, and why it is null.

An explanation is read from history, of the very records that the answer was read from, so it costs as much as a read of
the past. It is for people, not for models.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Literal, NamedTuple

import msgspec

from featurelib.clock import SECOND, Instant, format_instant
from featurelib.definitions import ExtractorDef, FeaturesetDef, ref
from featurelib.engine.extract import Slot
from featurelib.engine.read_plan import ReadPlan, View
from featurelib.engine.values import shown
from featurelib.stores.online_reader import Lookup
from featurelib.stores.questions import Question, Seen
from featurelib.stores.spine_reader import Evidence
from featurelib.types import Value
from serve_apps.current import Snapshot
from serve_apps.offline import Spines

Status = Literal["present", "default", "missing", "null"]
"""``missing``: no row of the key is known at the instant; ``default``: the feature's default stands in for a value."""

Source = Literal["entity", "request", "lookup", "extractor", "none"]
"""What fills a feature."""


class ExplainedRow(msgspec.Struct, omit_defaults=True):
    """The dataset row a value was looked up in; ``value`` is what the row holds, before it was cast."""

    dataset: str
    key: str
    column: str
    known: bool
    value: Any = None


class ExplainedExtractor(msgspec.Struct):
    """The extractor that made a value, and what it was given."""

    name: str
    version: int
    inputs: dict[str, Any]


class Explained(msgspec.Struct, omit_defaults=True):
    """One feature of an answer, or one column of a row.

    `effective_time` is the instant R that the value is of; `event_time` is of the newest record that changed the row
    by then, and `age_seconds` is from that to R. `why` says why there is no value of its own.
    """

    value: Any
    status: Status
    source: Source
    effective_time: str
    row: ExplainedRow | None = None
    event_time: str | None = None
    age_seconds: float | None = None
    pipeline: str | None = None
    extractor: ExplainedExtractor | None = None
    why: str | None = None


class Walked(NamedTuple):
    """How an answer came about: the definitions, what was read by, the entity, and the slots of a plan, all filled."""

    snapshot: Snapshot
    read: ReadPlan | View | None
    key: str
    slots: Sequence[Value] = ()


class Explainer:
    """Explains answers.

    Args:
        history: archive and log.
        threads: where history, which blocks, is waited for.
    """

    def __init__(self, history: Spines, threads: Executor) -> None:
        self._history = history
        self._threads = threads

    async def explain(
        self, question: Question, walked: Walked, seen: Seen, features: Mapping[str, Any] | None
    ) -> dict[str, Explained]:
        """An explanation per feature, or per column of the row that was looked up; empty of an unknown dataset.

        Args:
            question: what was asked.
            walked: how the answer came about.
            seen: what it was read from.
            features: what was answered.

        Raises:
            StoreUnavailable: the log or the archive does not answer.
        """
        if walked.read is None:
            return {}
        views = walked.read.views if isinstance(walked.read, ReadPlan) else (walked.read,)
        run = asyncio.get_running_loop().run_in_executor
        rows = await run(self._threads, self._rows, views, walked.key, question, seen)
        assert seen.read_at is not None  # of an answer with one entity
        if isinstance(walked.read, ReadPlan):
            return _Features(question, walked, walked.read, rows, seen.read_at).explained(features or {})
        return _columns(walked.read, rows[walked.read.dataset.name], features, seen.read_at, walked.key)

    def _rows(self, views: Sequence[View], key: str, question: Question, seen: Seen) -> dict[str, Evidence]:
        return {
            view.dataset.name: self._evidence(Lookup(view.program, key, seen.read_at or 0), place, question, seen)
            for place, view in enumerate(views)
        }

    def _evidence(self, lookup: Lookup, place: int, question: Question, seen: Seen) -> Evidence:
        if question.at is not None:
            return self._history.spine([lookup.program], question.knowledge, dict(seen.ends)).evidence(lookup)
        # Read online: of the records that the row reflects, of which there are none for a key never applied.
        applied = seen.applied[place]
        return Evidence(None, None) if applied is None else self._history.spine_below(lookup, applied).evidence(lookup)


class _Features:
    """The features of one answer, and everything it takes to explain them."""

    def __init__(
        self, question: Question, walked: Walked, plan: ReadPlan, rows: Mapping[str, Evidence], at: Instant
    ) -> None:
        featureset = walked.snapshot.definitions.featureset(plan.featureset)
        assert featureset is not None  # it was just read
        self._featureset: FeaturesetDef = featureset
        self._inputs = question.inputs
        self._plan = plan
        self._key = walked.key
        self._rows = rows
        self._at = at
        self._made = {output: each for each in featureset.extractors for output in each.outputs}
        self._values = {
            _name(slot): _shown(slot.feature.type, walked.slots[slot.position]) for slot in plan.graph.slots
        }

    def explained(self, features: Mapping[str, Any]) -> dict[str, Explained]:
        """An explanation per feature, in order."""
        own = self._plan.graph.slots[: len(self._plan.feature_names)]
        return {slot.feature.name: self._one(slot, features[slot.feature.name]) for slot in own}

    def _one(self, slot: Slot, value: Any) -> Explained:
        feature = slot.feature
        if feature.lookup is not None:
            return self._looked_up(slot, value)
        if feature.request:
            return self._requested(slot, value)
        extractor = self._made.get(feature.name)
        if extractor is not None:
            return self._extracted(extractor, value)
        if feature == self._featureset.entity:
            return self._plain(value, "entity")
        return self._plain(value, "none", "nothing fills this feature: no look-up, no extractor, no request input")

    def _plain(self, value: Any, source: Source, why: str | None = None) -> Explained:
        status: Status = "null" if value is None else "present"
        return Explained(value, status, source, format_instant(self._at), why=why if value is None else None)

    def _requested(self, slot: Slot, value: Any) -> Explained:
        if any(name in self._inputs for name in (slot.feature.name, _name(slot))):
            return self._plain(value, "request", "null was sent")
        sent = self._plain(value, "request")
        return _replaced(sent, status="default", why="no input of this name was sent; the feature's default stands")

    def _extracted(self, extractor: ExtractorDef, value: Any) -> Explained:
        given = {name: self._values[name if "." in name else self._own(name)] for name in extractor.inputs}
        nulls = [name for name, each in given.items() if each is None]
        label = self._own(extractor.name)
        why = f"{label} returned null" + (f"; null among its inputs: {', '.join(nulls)}" if nulls else "")
        explained = self._plain(value, "extractor", why)
        return _replaced(explained, extractor=ExplainedExtractor(label, extractor.version, given))

    def _looked_up(self, slot: Slot, value: Any) -> Explained:
        lookup = slot.feature.lookup
        assert lookup is not None
        view = next(view for view in self._plan.views if view.dataset.name == lookup.dataset)
        found = _of_row(view, self._rows[lookup.dataset], lookup.field, self._key, self._at)
        found = _replaced(found, value=value)
        if found.status == "missing" and slot.feature.default is not None:
            return _replaced(found, status="default", why=f"{found.why}; the feature's default stands")
        return found

    def _own(self, name: str) -> str:
        return f"{self._featureset.name}.{name}"


def _columns(
    view: View, evidence: Evidence, row: Mapping[str, Any] | None, at: Instant, key: str
) -> dict[str, Explained]:
    """The columns of a row that was looked up."""
    names = list(row) if row is not None else view.columns
    explained = {name: _of_row(view, evidence, name, key, at) for name in names}
    return {name: _replaced(each, value=(row or {}).get(name)) for name, each in explained.items()}


def _of_row(view: View, evidence: Evidence, column: str, key: str, at: Instant) -> Explained:
    """A column of a row, with the value the row has."""
    dataset = ref(view.dataset)
    explained = Explained(None, "present", "lookup", format_instant(at), pipeline=view.pipeline)
    explained.row = ExplainedRow(dataset, key, column, known=evidence.row is not None)
    if evidence.event_time is not None:
        explained.event_time = format_instant(evidence.event_time)
        explained.age_seconds = (at - evidence.event_time) / SECOND
    if evidence.row is None:
        known = f"no record of {key!r} in {dataset} is dated at or before {explained.effective_time}"
        explained.status, explained.why = "missing", known if evidence.event_time is None else f"{key!r} was deleted"
        return explained
    held = key if column == view.dataset.key.name else evidence.row.get(column)
    show = view.shows.get(column)
    explained.row.value = explained.value = held if show is None or held is None else show(held)
    if held is None:
        explained.status = "null"
        explained.why = f"{dataset} knows {key!r}, but nothing that counts at {explained.effective_time} gives {column}"
    return explained


def _replaced(explained: Explained, **members: Any) -> Explained:
    return msgspec.structs.replace(explained, **members)


def _name(slot: Slot) -> str:
    return f"{slot.featureset}.{slot.feature.name}"


def _shown(type_name: str, value: Value) -> Value:
    show = shown(type_name)
    return value if show is None else show(value)
