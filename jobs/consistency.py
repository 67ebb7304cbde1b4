"""The consistency monitor: what models were given against what is true of the same instant.

Every round takes a sample of the query runs answered from the online store since the round before, reads each again
from history as of its own instant, by today's definitions and of all records, and compares the digests. A feature that
differs is asked why, by reading it again in other ways:

version_change  by the definitions it was answered by it is the same
late_record     of the records it was made of it is the same, and those were all there were: others came later
not_applied     of the records it was made of it is the same, but more had been accepted: the pipeline was behind
backfill        likewise, while the pipeline's state was being built anew; or that has been built anew since, or was
                built of some of the records only
erasure         records it was made of were erased since
unknown         none of these: what was served was not what the records say

What is found is counted per feature and hour (stores/checks.py), and told of when it begins and when it is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import structlog

from featurelib.clock import HOUR, MINUTE, SECOND, Clock, Duration, Instant
from featurelib.errors import ThymeError
from featurelib.settings import MonitorSettings
from featurelib.stores.audit import QueryRun
from featurelib.stores.backfill_requests import BackfillRequests
from featurelib.stores.checks import MOST_WORST, Cause, Checks, Feature, Kind, Tally, Worst
from featurelib.stores.digests import Digests
from featurelib.stores.erasures import Erasures
from featurelib.stores.point_in_time import PointInTime
from featurelib.stores.positions import seen_before
from featurelib.stores.registry import NewEvent, Registry
from jobs.reread import Reread, Target, Told, Values, Versions, names_of, programs_read

_log = structlog.get_logger(__name__)
MARK = "consistency"
EVENT = "consistency_mismatch"
MOST_ENTITIES = 1_000
"""Entities of the largest run that is read again; a larger batch would be a round of its own."""

# What a monitor that was away did not look at is not made up for: rounds are of what is served now.
_LONGEST: Duration = 15 * MINUTE
# Below it the share of differences says little: one late record of 20 values is 5 %.
_FEWEST = 20
_ANYWHERE = -1

Severity = Literal["info", "warn", "error"]


class Round(NamedTuple):
    """What one round found: runs compared, runs that could not be, and a tally per feature and hour."""

    runs: int = 0
    failed: int = 0
    tallies: tuple[Tally, ...] = ()


class _Case(NamedTuple):
    """A run read again: by which definitions it was answered and is asked now, and what is true."""

    told: Told
    then: Target
    now: Target
    true: Values


class ConsistencyCheck:
    """Compares a sample of query runs per round.

    Args:
        registry: definitions, runs, and where findings go.
        past: reads history.
        digests: under the key that the runs were recorded with.
        versions: compiles definitions.
        settings: how many runs, how old, and what is told of.
        clock: the wall's.
    """

    def __init__(
        self,
        registry: Registry,
        past: PointInTime,
        digests: Digests,
        *,
        versions: Versions,
        settings: MonitorSettings,
        clock: Clock,
    ) -> None:
        self._registry = registry
        self._checks = Checks(registry.database)
        self._reread = Reread(past, digests)
        self._digests = digests
        self._versions = versions
        self._reasons = _Reasons(registry, self._reread, digests, clock)
        self._told = _Told(registry)
        self._settings = settings
        self._clock = clock

    def round(self) -> Round:
        """Compare what was served since the round before; the first round only begins.

        Raises:
            StoreUnavailable: a store does not answer. Runs of this round are not looked at again.
        """
        now = self._clock.now()
        until = now - self._settings.consistency_settle_s * SECOND
        since = self._checks.mark(MARK)
        if since is not None and since >= until:
            return Round()
        # First: what ends this process, if anything here does, is not met again by the next round.
        self._checks.move(MARK, until, now)
        if since is None:
            return Round()
        since = max(since, until - _LONGEST)
        runs = self._checks.sample(since, until, self._settings.consistency_runs, MOST_ENTITIES)
        done = self._compared(runs)
        if done.tallies:
            self._checks.add(done.tallies)
        self._checks.forget_old(now)
        self._told.of(done.tallies, self._settings.mismatch_rate)
        return done

    def _compared(self, runs: Sequence[QueryRun]) -> Round:
        today = self._versions.at(self._registry.version())
        groups: dict[tuple[str, str, tuple[str, ...]], list[_Asked]] = {}
        for told in filter(None, map(Told.of, runs)):
            then, now = self._versions.at(told.run.registry_version).target(told.question), today.target(told.question)
            if then is not None and now is not None:
                question = told.question
                key = (question.shape, question.target, question.features)
                groups.setdefault(key, []).append(_Asked(told, then, now))
        cases = [case for group in groups.values() for case in self._cases(group)]
        tallies = [tally for case in cases for tally in self._tallies(case)]
        asked = sum(map(len, groups.values()))
        return Round(len(cases), asked - len(cases), tuple(_by_hour(tallies)))

    def _cases(self, group: Sequence[_Asked]) -> list[_Case]:
        """The runs of one target with what is true of each; those of which that cannot be said are left out."""
        try:
            return self._read_together(group)
        except ThymeError as error:
            if error.retryable:
                raise
        found = []
        for asked in group:  # one of them fails: the others are compared all the same
            try:
                found += self._read_together([asked])
            except ThymeError as error:
                if error.retryable:
                    raise
                _log.info("run_not_compared", run=asked.told.run.id, target=asked.told.question.target, why=str(error))
        return found

    def _read_together(self, group: Sequence[_Asked]) -> list[_Case]:
        true = self._reread.latest(group[0].now, [each.told for each in group])
        return [_Case(*asked, values) for asked, values in zip(group, true, strict=True)]

    def _tallies(self, case: _Case) -> list[Tally]:
        run = case.told.run
        verdicts = self._digests.verdicts(run.id, run.digests, names_of(case.then), case.true)
        differ = [name for name, verdict in verdicts.items() if verdict == "different"]
        causes = self._reasons.of(case, differ) if differ else {}
        return [self._tally(case, name, causes.get(name)) for name, v in verdicts.items() if v != "unknown"]

    def _tally(self, case: _Case, name: str, why: _Why | None) -> Tally:
        run, question = case.told.run, case.told.question
        kind: Kind = "dataset" if question.shape == "lookup" else "featureset"
        tally = Tally(
            kind=kind,
            target=question.target,
            feature=name,
            hour=run.created_at // HOUR * HOUR,
            compared=1,
            updated_at=self._clock.now(),
        )
        if why is None:
            return tally
        worst = [
            Worst(mark=self._digests.entity(question.target, run.entity_ids[place]), run=run.id, place=place)
            for place in why.places
        ]
        # Of a batch nobody could reproduce it is not known which of its entities it was.
        nobody = Worst(mark=self._digests.entity(question.target, run.id), run=run.id, place=_ANYWHERE)
        return tally.model_copy(
            update={"different": 1, "causes": {why.cause: 1}, "worst": tuple(worst[:MOST_WORST] or [nobody])}
        )


class _Asked(NamedTuple):
    """A run, and what it read by the definitions of then and of now."""

    told: Told
    then: Target
    now: Target


class _Why(NamedTuple):
    """Why a value differs, and the places of the entities of which it does; none: not known of which."""

    cause: Cause
    places: tuple[int, ...]


class _Reasons:
    """Finds out why values differ."""

    def __init__(self, registry: Registry, reread: Reread, digests: Digests, clock: Clock) -> None:
        self._reread = reread
        self._digests = digests
        self._backfills = BackfillRequests(registry.database, clock)
        self._erasures = Erasures(registry.database, clock)

    def of(self, case: _Case, names: Sequence[str]) -> dict[str, _Why]:
        """Why, per feature of a run.

        Raises:
            StoreUnavailable: a store does not answer.
        """
        run, left = case.told.run, list(names)
        found: dict[str, _Why] = {}
        if case.then is not case.now:
            by_then = _tried(lambda: self._reread.latest(case.then, [case.told])[0])
            found |= {name: self._why(case, "version_change", name, by_then) for name in self._same(run, left, by_then)}
            left = [name for name in left if name not in found]
        before = seen_before(run) if left else None
        if before is not None:
            served = _tried(lambda: self._reread.as_served(case.then, case.told, before))
            again = self._same(run, left, served)
            if again:
                known = set(self._same(run, again, _tried(lambda: self._reread.known(case.then, case.told))))
                behind: Cause = "backfill" if self._was_built_anew(case, while_read=True) else "not_applied"
                for name in again:
                    found[name] = self._why(case, "late_record" if name in known else behind, name, served)
        rest: Cause = self._since(case) if len(found) < len(names) else "unknown"
        return found | {name: _Why(rest, _alone(case)) for name in names if name not in found}

    def _same(self, run: QueryRun, names: Sequence[str], values: Values | None) -> list[str]:
        """Those of the features of which these values are the ones that were served."""
        verdicts = self._digests.verdicts(run.id, run.digests, list(values or ()), values)
        return [name for name in names if verdicts.get(name) == "same"]

    def _why(self, case: _Case, cause: Cause, name: str, served: Values | None) -> _Why:
        if case.told.question.shape != "batch" or served is None:
            return _Why(cause, _alone(case))
        pairs = enumerate(zip(served[name], case.true[name], strict=True))
        return _Why(cause, tuple(place for place, (was, is_) in pairs if was != is_))

    def _since(self, case: _Case) -> Cause:
        """What has happened since to what a run read that nobody can read any more."""
        datasets = {dataset.name for program in programs_read(case.then) for dataset in program.sources}
        read_at = case.told.run.created_at
        if any(each.dataset in datasets and each.created_at >= read_at for each in self._erasures.list()):
            return "erasure"
        return "backfill" if self._was_built_anew(case, while_read=False) else "unknown"

    def _was_built_anew(self, case: _Case, *, while_read: bool) -> bool:
        """Whether a state that was read was being built anew then.

        Else, whether it is or has been since, or was built of some of the records only.
        """
        read_at = case.told.run.created_at
        for program in programs_read(case.then):
            found = self._backfills.latest(pipeline=program.ref)
            # Over before it was read: then what it built is what was read.
            going = [each for each in found if each.is_open or each.updated_at >= read_at]
            if any(not while_read or each.created_at <= read_at for each in going):
                return True
            served = next((each for each in found if each.state == "complete"), None)
            if not while_read and served is not None and (served.since is not None or served.until is not None):
                return True
        return False


class _Told:
    """Tells people of targets whose values differ: when that begins, gets worse, and is over."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._said: dict[str, Severity] = {}

    def of(self, tallies: Iterable[Tally], rate: float) -> None:
        """Look at what a round found."""
        by_target: dict[tuple[Kind, str], list[Tally]] = {}
        for tally in tallies:
            by_target.setdefault((tally.kind, tally.target), []).append(tally)
        for (_, target), found in by_target.items():
            severity = _severity(found, rate)
            if severity != self._last(target):
                self._registry.record_event(_event(target, severity, found))
                self._said[target] = severity

    def _last(self, target: str) -> Severity:
        # Another monitor before this one may have told of it.
        if target not in self._said:
            before = self._registry.events(limit=1, event_type=EVENT, subject=target)
            self._said[target] = before[0].severity if before else "info"
        return self._said[target]


def _severity(found: Sequence[Tally], rate: float) -> Severity:
    if any(tally.causes.get("unknown") for tally in found):
        return "error"
    compared, different = (sum(getattr(tally, name) for tally in found) for name in ("compared", "different"))
    return "warn" if compared >= _FEWEST and different > rate * compared else "info"


def _event(target: str, severity: Severity, found: Sequence[Tally]) -> NewEvent:
    differing = sorted((tally for tally in found if tally.different), key=lambda tally: -tally.different)
    if severity == "info":
        message = f"{target}: what is served is what the records say again"
    else:
        parts = (f"{each.feature} {each.different} of {each.compared} ({_listed(each.causes)})" for each in differing)
        message = f"{target} was not what the records say: {', '.join(parts)}; `thyme consistency {target}` shows whose"
    detail = {each.feature: each.model_dump(mode="json", include=_IN_EVENTS) for each in differing}
    return NewEvent(
        event_type="consistency_mismatch",
        severity=severity,
        source="monitor",
        subject=target,
        message=message,
        detail={"features": detail},
    )


_IN_EVENTS = {"compared", "different", "causes", "worst"}


def _listed(causes: Mapping[str, int]) -> str:
    return ", ".join(f"{cause} {count}" for cause, count in sorted(causes.items()))


def _by_hour(tallies: Iterable[Tally]) -> list[Tally]:
    found: dict[tuple[Feature, Instant], Tally] = {}
    for each in tallies:
        place = (each.of, each.hour)
        found[place] = found[place].plus(each) if place in found else each
    return list(found.values())


def _alone(case: _Case) -> tuple[int, ...]:
    return (0,) if len(case.told.run.entity_ids) == 1 else ()


def _tried(read: Callable[[], Values]) -> Values | None:
    """What a way of reading gives; ``None``: it cannot be read so."""
    try:
        return read()
    except ThymeError as error:
        if error.retryable:
            raise
        return None
