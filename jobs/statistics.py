"""Statistics of every day: of the columns of what came in, and of the features that it made.

A day's values of a featureset are those that each entity had right after its last record of that day: a row per entity
that was active, read from history like any training set. A day is made anew while it lasts, once it is over, and once
more a day later for what came late; and whenever what its values are made by has changed, or something was erased.
What is far from the days before is told of, once when it begins and once when it is over.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from featurelib.clock import DAY, HOUR, SECOND, Clock, Instant, format_instant
from featurelib.definitions import DatasetDef, FeaturesetDef, digest, ref
from featurelib.engine.fold import KEY
from featurelib.engine.keys import KEY_GROUPS
from featurelib.engine.program import Program
from featurelib.engine.read_plan import ReadPlan
from featurelib.engine.records import DELETED, TIME
from featurelib.engine.spine import Reading, Rows, feature_columns, filled
from featurelib.engine.statistics import Summary, drift, summary_of
from featurelib.engine.table import feature_types
from featurelib.errors import InvalidRequest, ThymeError
from featurelib.metadata import Metadata
from featurelib.settings import MonitorSettings
from featurelib.stores.erasures import Erasures
from featurelib.stores.history import History
from featurelib.stores.point_in_time import PointInTime
from featurelib.stores.registry import NewEvent, Registry
from featurelib.stores.spine_reader import Cut, programs_of
from featurelib.stores.statistics import (
    DAY_ITSELF,
    ColumnDay,
    Drifted,
    Figures,
    Statistics,
    Subject,
    by_name,
)
from featurelib.types import Value
from jobs.reread import Compiled, Versions
from jobs.wanted import log_datasets

_log = structlog.get_logger(__name__)
EVENT = "feature_drift"
MOST_RECORDS = 1_000_000
"""Records of a dataset that a day's statistics are of, about: of more, those of some key groups. Some 300 MB."""

# What came late, but not very, counts when the day is made for good.
_SETTLED = HOUR
# Any order in which neighbours are far apart: the groups of a sample are not those of one worker.
_GROUPS = sorted(range(KEY_GROUPS), key=lambda group: zlib.crc32(str(group).encode()))
_MOST_TOLD = 1_000


class _Made(NamedTuple):
    """What the values of a subject are made by, as a digest, and of which datasets' records, by name."""

    definition: str
    datasets: frozenset[str]


class DueDay(NamedTuple):
    """A day of a subject that is to be made."""

    subject: Subject
    day: Instant
    definition: str


class DailyStatistics:
    """Makes one day of one subject per step.

    Args:
        registry: definitions, and where statistics and events go.
        history: archive and log.
        past: reads features of the past.
        versions: compiles definitions.
        settings: how often, how far back, of how much.
        clock: the wall's.
    """

    def __init__(
        self,
        registry: Registry,
        history: History,
        past: PointInTime,
        *,
        versions: Versions,
        settings: MonitorSettings,
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._store = Statistics(registry.database)
        self._erasures = Erasures(registry.database, clock)
        self._versions = versions
        self._reader = _DayReader(history, past, settings.statistics_rows)
        self._told = _Told(registry, settings)
        self._settings = settings
        self._clock = clock
        self._unjudged = True

    def step(self) -> bool:
        """Make the day that is due first, the newest before all; False when none is.

        Raises:
            StoreUnavailable: a store does not answer; it stays due.
        """
        now = self._clock.now()
        compiled = self._versions.at(None)
        subjects = _subjects(compiled)
        due = self._due(subjects, now)
        if due is None:
            self._finish(subjects, now)
            return False
        columns = [*self._columns(due, compiled, now)]
        self._store.put(due.subject, due.day, columns)
        self._compare(due.subject, due.day)
        self._unjudged = True
        return True

    def _due(self, subjects: Mapping[Subject, _Made], now: Instant) -> DueDay | None:
        days, erasures = self._store.days(), self._erasures.list()
        # Whoever was erased is in no statistics either.
        erased = {
            subject: max((each.created_at for each in erasures if each.dataset in made.datasets), default=0)
            for subject, made in subjects.items()
        }
        today = now // DAY * DAY
        for day in range(today, today - self._settings.statistics_days * DAY, -DAY):
            for subject, made in subjects.items():
                before = days.get((subject, day))
                if before is None or before.definition != made.definition or before.made_at < erased[subject]:
                    return DueDay(subject, day, made.definition)
                if self._is_old(before, now):
                    return DueDay(subject, day, made.definition)
        return None

    def _is_old(self, made: Figures, now: Instant) -> bool:
        over = made.day + DAY + _SETTLED
        for final in (over, over + DAY):
            if made.made_at < final <= now:
                return True
        return now < over and now - made.made_at >= self._settings.statistics_every_s * SECOND

    def _columns(self, due: DueDay, compiled: Compiled, now: Instant) -> Iterator[ColumnDay]:
        made = self._made(due, compiled)
        rows = max((summary.rows for summary in made.values()), default=0)
        for name, summary in {DAY_ITSELF: Summary(rows=rows), **(made if rows else {})}.items():
            yield ColumnDay(
                kind=due.subject.kind,
                subject=due.subject.name,
                name=name,
                day=due.day,
                definition=due.definition,
                rows=summary.rows,
                nulls=summary.nulls,
                summary=summary,
                made_at=now,
            )

    def _made(self, due: DueDay, compiled: Compiled) -> dict[str, Summary]:
        try:
            return self._read(due, compiled)
        except ThymeError as error:
            if error.retryable:
                raise
            # A sum that overflows, say: it would again, and no other day be made.
            _log.warning("statistics_not_made", subject=due.subject.name, day=due.day, why=str(error))
            return {}

    def _read(self, due: DueDay, compiled: Compiled) -> dict[str, Summary]:
        subject = due.subject
        if subject.kind == "dataset":
            (dataset,) = [each for each in log_datasets(compiled.definitions) if ref(each) == subject.name]
            return self._reader.dataset(dataset, due.day)
        plan, featureset = compiled.plan(subject.name), compiled.definitions.featureset(subject.name)
        assert plan is not None
        assert featureset is not None
        return self._reader.featureset(plan, featureset, due.day)

    def _compare(self, subject: Subject, day: Instant) -> None:
        """Measure anew what a day that was made bears on: its own drift and that of the days after it."""
        span = self._settings.drift_days * DAY
        days = by_name(self._store.of(subject, day - span, day + span))
        self._store.set_drift(
            subject,
            [_drifted(mine, at, span) for mine in days.values() for at in sorted(mine) if at >= day],
        )

    def _finish(self, subjects: Iterable[Subject], now: Instant) -> None:
        if self._unjudged:
            oldest = now // DAY * DAY - self._settings.statistics_days * DAY
            self._store.forget(oldest, subjects)
            self._told.of(self._store.newest(before=now // DAY * DAY), now)
            self._unjudged = False


class _DayReader:
    """Reads what a day's statistics are of."""

    def __init__(self, history: History, past: PointInTime, most_entities: int) -> None:
        self._history = history
        self._past = past
        self._most_entities = most_entities

    def dataset(self, dataset: DatasetDef, day: Instant) -> dict[str, Summary]:
        """Of every column of the records dated within a day."""
        cut = self._past.ends_of([dataset])
        records = self._sampled(dataset, cut, day)
        records = records.filter(pc.invert(pc.fill_null(records[DELETED], False)))
        return {
            field.name: summary_of(
                field.type, pl.Series(pl.from_arrow(records[field.name])), identifies=field.name == dataset.key.name
            )
            for field in dataset.fields
        }

    def featureset(self, plan: ReadPlan, featureset: FeaturesetDef, day: Instant) -> dict[str, Summary]:
        """Of every feature but those that a request brings; of computed ones only where they can be computed."""
        spine = self._past.spine(programs_of(plan))
        readings = [*_readings(plan, self._population(plan, spine.cut, day))]
        columns, names = _columns(plan, featureset, readings, spine.rows)
        types = dict(zip(plan.feature_names, feature_types(plan), strict=True))
        return {
            name: summary_of(types[name], column, identifies=name == plan.entity_name)
            for name, column in zip(plan.feature_names, columns, strict=True)
            if name in names
        }

    def _population(self, plan: ReadPlan, cut: Cut, day: Instant) -> list[tuple[str, Instant]]:
        """The entities with a record on that day, and when the last one was; of many a sample, by key."""
        newest: dict[str, Instant] = {}
        for view in plan.views:
            records = {each.name: self._records(view.program, each, cut, day) for each in view.program.sources}
            shaped = view.program.shape_all(records).filter(pl.col(TIME).is_between(day, day + DAY - 1))
            last = shaped.group_by(KEY).agg(pl.col(TIME).max())
            for key, at in last.select(KEY, TIME).iter_rows():
                newest[key] = max(at, newest.get(key, at))
        # The same keys every day: what differs between days is then not who was chosen.
        return sorted(newest.items(), key=lambda each: zlib.crc32(each[0].encode()))[: self._most_entities]

    def _records(self, program: Program, dataset: DatasetDef, cut: Cut, day: Instant) -> pa.Table:
        if program.plain and dataset == program.left:
            # The keys of the program are the dataset's own, or any: only then do some groups stand for all.
            return self._sampled(dataset, cut, day, alike=program.keyed_like_its_dataset())
        offsets = cut[ref(dataset)]
        return self._history.read(dataset, len(offsets), until=day + DAY - 1, cut=dict(enumerate(offsets)))

    def _sampled(self, dataset: DatasetDef, cut: Cut, day: Instant, *, alike: bool = True) -> pa.Table:
        """Records dated within a day; where there may be very many, of some key groups."""
        offsets = cut[ref(dataset)]

        def read(groups: Sequence[int] | None) -> pa.Table:
            at = dict(enumerate(offsets))
            return self._history.read(dataset, len(at), groups=groups, since=day, until=day + DAY - 1, cut=at)

        if not alike or sum(offsets) <= MOST_RECORDS:
            return read(None)
        of_one = len(read(_GROUPS[:1]))
        return read(None if of_one * KEY_GROUPS <= MOST_RECORDS else sorted(_GROUPS[: 1 + MOST_RECORDS // of_one]))


class _Told:
    """Tells people of features that drift: when that begins, and when it is over."""

    def __init__(self, registry: Registry, settings: MonitorSettings) -> None:
        self._registry = registry
        self._settings = settings

    def of(self, newest: Iterable[Figures], now: Instant) -> None:
        """Look at the newest day of every column that is over."""
        events = self._registry.events(limit=_MOST_TOLD, event_type=EVENT)
        drifting = {event.subject: event.severity == "warn" for event in reversed(events)}
        for each in newest:
            if each.psi is None or each.made_at < each.day + DAY + _SETTLED or now - each.day > 2 * DAY:
                continue
            # Half of it ends what reaching it began: a feature at the threshold is not told of every day.
            said = drifting.get(_name(each), False)
            enough = min(each.rows, each.reference_rows or 0) >= self._settings.drift_rows
            drifts = enough and each.psi >= self._settings.drift_psi / (2 if said else 1)
            if drifts != said:
                self._registry.record_event(_event(each, drifts=drifts))


def _name(figures: Figures) -> str:
    return f"{figures.subject}.{figures.name}"


def _event(figures: Figures, *, drifts: bool) -> NewEvent:
    day = format_instant(figures.day)[:10]
    psi, js = figures.psi or 0.0, figures.js or 0.0
    what = f"is {psi:.2f} (PSI) from the days before" if drifts else f"is like the days before again ({psi:.2f} PSI)"
    return NewEvent(
        event_type="feature_drift",
        severity="warn" if drifts else "info",
        source="monitor",
        subject=_name(figures),
        message=f"{_name(figures)} of {day} {what}; `thyme stats {figures.subject.partition('@')[0]}` shows both",
        detail={"day": day, "psi": psi, "js": js, "rows": figures.rows, "reference_rows": figures.reference_rows},
    )


def _subjects(compiled: Compiled) -> dict[Subject, _Made]:
    """Everything that statistics are made of."""
    found: dict[Subject, _Made] = {}
    for featureset in compiled.definitions.featuresets:
        plan = compiled.plan(featureset.name)
        if plan is not None and plan.views:
            datasets = frozenset(each.name for program in programs_of(plan) for each in program.sources)
            found[Subject("featureset", featureset.name)] = _Made(_definition(plan, compiled), datasets)
    for dataset in log_datasets(compiled.definitions):
        made = _Made(digest(_without_words(dataset)), frozenset({dataset.name}))
        found[Subject("dataset", ref(dataset))] = made
    return found


def _definition(plan: ReadPlan, compiled: Compiled) -> str:
    names = sorted({slot.featureset for slot in plan.graph.slots})
    featuresets = [each for name in names if (each := compiled.definitions.featureset(name)) is not None]
    programs = sorted(programs_of(plan), key=lambda program: program.ref)
    parts = [digest(_without_words(each)) for each in featuresets]
    for program in programs:
        parts += [digest(program.pipeline), *(digest(_without_words(each)) for each in program.sources)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _without_words(definition: DatasetDef | FeaturesetDef) -> DatasetDef | FeaturesetDef:
    return definition.model_copy(update={"metadata": Metadata()})


def _readings(plan: ReadPlan, population: Iterable[tuple[str, Instant]]) -> Iterator[Reading]:
    """The rows of the spine; a key that no request could name is left out."""
    defaults = _defaults(plan) or []
    for key, at in population:
        try:
            yield Reading(plan.key_form.read(key), defaults, at)
        except InvalidRequest:
            continue


def _defaults(plan: ReadPlan) -> list[tuple[int, Value]] | None:
    """What a request that brings nothing brings; ``None``: it would be refused."""
    try:
        return plan.requested({})
    except InvalidRequest:
        return None


def _columns(
    plan: ReadPlan, featureset: FeaturesetDef, readings: Sequence[Reading], rows: Rows
) -> tuple[Sequence[Sequence[Value]], set[str]]:
    """The values of the features, and of which of them they are known."""
    requested = {feature.name for feature in featureset.features if feature.request}
    everything = set(plan.feature_names) - requested
    if not readings:
        return [[] for _ in plan.feature_names], everything
    try:
        if _defaults(plan) is not None:
            return feature_columns(plan, readings, rows), everything
    except ThymeError as error:
        if error.retryable:
            raise
        _log.info("features_not_computed", featureset=plan.featureset, why=str(error))
    read = {feature.name for feature in featureset.features if feature.lookup is not None}
    return filled(plan, readings, rows)[: len(plan.feature_names)], read | {plan.entity_name}


def _drifted(days: Mapping[Instant, ColumnDay], day: Instant, span: int) -> Drifted:
    mine = days[day]
    before = [each.summary for at, each in days.items() if day - span <= at < day]
    found = drift(mine.summary, before)
    if found is None:
        return Drifted(mine.name, day, None, None, None)
    return Drifted(mine.name, day, found.psi, found.js, found.reference_rows)
