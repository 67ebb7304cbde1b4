"""What the monitor found, as the routes show it: consistency of what was served, and statistics of days.

Knows no HTTP. Methods block (SQL): the routes call them in threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from featurelib.clock import DAY, HOUR, Clock, Duration, Instant, format_instant
from featurelib.definitions import DatasetDef, Definitions, ref
from featurelib.engine.statistics import Summary, drift, shown_summary
from featurelib.errors import InvalidRequest, NotFound
from featurelib.settings import MonitorSettings
from featurelib.stores.checks import Checks, Tally, Worst
from featurelib.stores.registry import Registry
from featurelib.stores.statistics import ColumnDay, Statistics, Subject, by_name

Json = dict[str, Any]
MOST_DAYS = 90
_SHOWN_DAYS = 7
_MARK = "consistency"


class Span(NamedTuple):
    """Days from one to another, both included, by an instant within each; ``None``: as is usual."""

    since: Instant | None = None
    until: Instant | None = None


class Monitoring:
    """What the routes answer with.

    Args:
        registry: what is committed, and where the monitor keeps what it finds.
        settings: the usual reference.
        clock: what "the last hours" are counted from.
    """

    def __init__(self, registry: Registry, settings: MonitorSettings, clock: Clock) -> None:
        self._registry = registry
        self._checks = Checks(registry.database)
        self._statistics = Statistics(registry.database)
        self._settings = settings
        self._clock = clock

    def consistency(self, target: str | None, hours: int) -> Json:
        """How often values served in the last hours differed from true ones, per feature, the worst first."""
        now = self._clock.now()
        since: Instant = (now - hours * HOUR) // HOUR * HOUR
        tallies = self._checks.of(since, target=target)
        checked = self._checks.mark(_MARK)
        entities = self._checks.entities(worst.run for tally in tallies for worst in tally.worst)
        return {
            "since": format_instant(since),
            "checked_until": None if checked is None else format_instant(checked),
            "features": [_tally(each, entities) for each in sorted(tallies, key=_by_rate)],
        }

    def featureset(self, name: str, span: Span, reference: Span, feature: str | None) -> Json:
        """Statistics of the features of a featureset.

        Raises:
            NotFound: it is not committed, or has no such feature.
            InvalidRequest: the days are too many, or in the wrong order.
        """
        found = self._registry.definitions().featureset(name)
        if found is None:
            raise NotFound(f"featureset {name[:128]!r} is not committed")
        names = [each.name for each in found.features]
        return self._shown(Subject("featureset", name), names, span, reference, feature)

    def dataset(self, name: str, version: int | None, span: Span, reference: Span, column: str | None) -> Json:
        """Statistics of the columns of a dataset. Raises like :meth:`featureset`."""
        found = _dataset(self._registry.definitions(), name, version)
        names = [each.name for each in found.fields]
        return self._shown(Subject("dataset", ref(found)), names, span, reference, column)

    def _shown(self, subject: Subject, names: Sequence[str], span: Span, reference: Span, only: str | None) -> Json:
        if only is not None and only not in names:
            raise NotFound(f"{subject.kind} {subject.name!r} has no {only[:128]!r}; it has {', '.join(names)}")
        until = _day(span.until if span.until is not None else self._clock.now())
        since = until - (_SHOWN_DAYS - 1) * DAY if span.since is None else _day(span.since)
        _check(since, until)
        days = by_name(self._statistics.of(subject, since, until, only))
        before = self._reference(subject, reference, only)
        wanted = [only] if only is not None else names
        return {
            "kind": subject.kind,
            "name": subject.name,
            "since": format_instant(since)[:10],
            "until": format_instant(until)[:10],
            "reference": self._shown_reference(reference),
            "columns": [_column(name, days[name], before) for name in wanted if name in days],
            "without": [name for name in wanted if name not in days],
        }

    def _reference(self, subject: Subject, span: Span, only: str | None) -> Mapping[str, list[Summary]] | None:
        if span.since is None and span.until is None:
            return None
        since, until = self._whole(span)
        found = by_name(self._statistics.of(subject, since, until, only))
        return {name: [each.summary for each in days.values()] for name, days in found.items()}

    def _shown_reference(self, span: Span) -> Json:
        if span.since is None and span.until is None:
            return {"days_before": self._settings.drift_days, "since": None, "until": None}
        since, until = self._whole(span)
        return {"days_before": None, "since": format_instant(since)[:10], "until": format_instant(until)[:10]}

    def _whole(self, span: Span) -> tuple[Instant, Instant]:
        if span.since is None or span.until is None:
            missing = "reference_since" if span.since is None else "reference_until"
            raise InvalidRequest(f"{missing}: missing; a reference has a first and a last day")
        since, until = _day(span.since), _day(span.until)
        _check(since, until, "reference_")
        return since, until


def _dataset(definitions: Definitions, name: str, version: int | None) -> DatasetDef:
    mine = [each for each in definitions.datasets if each.name == name and version in (None, each.version)]
    if not mine:
        of = "" if version is None else f" of version {version}"
        raise NotFound(f"dataset {name[:128]!r}{of} is not committed")
    return max(mine, key=lambda each: each.version)


def _day(instant: Instant) -> Instant:
    return instant // DAY * DAY


def _check(since: Instant, until: Instant, of: str = "") -> None:
    longest: Duration = MOST_DAYS * DAY
    if until < since:
        raise InvalidRequest(f"{of}until: it is a day before {of}since")
    if until - since >= longest:
        raise InvalidRequest(f"{of}since: expected at most {MOST_DAYS} days, found {(until - since) // DAY + 1}")


def _by_rate(tally: Tally) -> tuple[Any, ...]:
    return (-tally.causes.get("unknown", 0), -tally.different / max(tally.compared, 1), *tally.of)


def _tally(tally: Tally, entities: Mapping[str, Sequence[str]]) -> Json:
    return {
        "kind": tally.kind,
        "target": tally.target,
        "feature": tally.feature,
        "compared": tally.compared,
        "different": tally.different,
        "rate": tally.different / tally.compared if tally.compared else 0.0,
        "causes": dict(tally.causes),
        "worst": [_worst(each, entities.get(each.run, ())) for each in tally.worst],
    }


def _worst(worst: Worst, ids: Sequence[str]) -> Json:
    known = 0 <= worst.place < len(ids)
    return {"entity_id": ids[worst.place] if known else None, "query_run": worst.run, "times": worst.times}


def _column(name: str, days: Mapping[Instant, ColumnDay], before: Mapping[str, list[Summary]] | None) -> Json:
    reference = None if before is None else before.get(name, [])
    return {"name": name, "days": [_shown_day(each, reference) for _, each in sorted(days.items())]}


def _shown_day(day: ColumnDay, reference: Sequence[Summary] | None) -> Json:
    return {
        "day": format_instant(day.day)[:10],
        "complete": day.made_at >= day.day + DAY,
        "made_at": format_instant(day.made_at),
        **shown_summary(day.summary),
        "null_rate": day.nulls / day.rows if day.rows else 0.0,
        "drift": _drift(day, reference),
    }


def _drift(day: ColumnDay, reference: Sequence[Summary] | None) -> Json | None:
    if reference is None:
        figures = (day.psi, day.js, day.reference_rows)
        return None if day.psi is None else dict(zip(("psi", "js", "reference_rows"), figures, strict=True))
    found = drift(day.summary, reference)
    return None if found is None else {"psi": found.psi, "js": found.js, "reference_rows": found.reference_rows}
