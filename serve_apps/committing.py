"""The door of definitions: a commit's body is read, judged as every commit is, and stored, or only shown as a plan.

Knows no HTTP. Methods block (SQL, user code): the routes call them in threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from featurelib.connectors import missing_driver
from featurelib.definitions import Commit, DatasetDef, Definitions, SourceDef, ref
from featurelib.engine.extractor import INLINE, Runner
from featurelib.engine.forecast import forecasts
from featurelib.engine.program import needed_by
from featurelib.engine.sizing import Load
from featurelib.errors import BreakingChange, DefinitionError, InvalidRequest, Problem
from featurelib.plan import CommitReceipt, Plan, StartIndex, StartJob, consider, plan
from featurelib.settings import Settings
from featurelib.stock import check_values, from_stock, read_commit
from featurelib.stock_protobuf import tree_of
from featurelib.stores.log import Log
from featurelib.stores.registry import Registry
from featurelib.validation import merged
from serve_apps.current import compile_all
from serve_apps.planning import PlanAnswer, answer_of, warnings_of

PROTOBUF = frozenset({"application/protobuf", "application/x-protobuf", "application/vnd.google.protobuf"})
"""Media types of a body that is ``thyme.CommitRequest``."""


class SentCommit(NamedTuple):
    """A commit as it came: its bytes, and whether they are protobuf."""

    body: bytes
    is_protobuf: bool = False


class CommitService:
    """What the commit routes answer with.

    Args:
        registry: what is committed.
        log: says whether a dataset has records already.
        settings: the memory budget that a plan is compared with.
        runner: where a commit's extractors are tried.
    """

    def __init__(self, registry: Registry, log: Log, settings: Settings, runner: Runner = INLINE) -> None:
        self._registry = registry
        self._log = log
        self._settings = settings
        self._runner = runner

    def commit(self, sent: SentCommit, committed_by: str | None) -> CommitReceipt:
        """Store a commit whole or not at all.

        Raises:
            InvalidRequest: the body is neither JSON nor the protobuf message.
            DefinitionError: listing every problem; nothing was committed.
            BreakingChange: listing every break; nothing was committed.
        """
        commit = read(sent, self._registry.definitions())
        return self._registry.commit(commit, self._decide, committed_by)

    def plan(self, sent: SentCommit, load: Load) -> PlanAnswer:
        """What a commit would do; nothing is stored. Breaks are listed, not raised.

        Args:
            sent: the commit.
            load: what the prediction assumes of the data.

        Raises:
            InvalidRequest: the body is neither JSON nor the protobuf message.
            DefinitionError: listing every problem.
        """
        current, latest = self._registry.definitions(), self._registry.latest_commit()
        commit = read(sent, current)
        considered = consider(current, commit)
        check_drivers(current, commit)
        refused = self._backfills(current, commit, considered.plan)
        considered = considered._replace(breaks=[*considered.breaks, *refused])
        predicted = []
        if not considered.breaks:
            # A commit that breaks what is there need not compile on it; what it breaks is said instead.
            check_readable(current, commit, self._runner)
            predicted = forecasts(commit, merged(current, commit), load)
        answer = answer_of(considered, latest.commit_id if latest else None, load, predicted)
        budget = self._settings.online.memory_mb
        return answer.model_copy(update={"warnings": warnings_of(commit, current, answer, budget)})

    def _decide(self, current: Definitions, commit: Commit) -> Plan:
        decided = decide(current, commit, self._runner)
        refused = self._backfills(current, commit, decided)
        if refused:
            raise BreakingChange(refused)
        return decided

    def _backfills(self, current: Definitions, commit: Commit, planned: Plan) -> list[Problem]:
        """What would start by folding history, where the commit refuses that; a new pipeline folds all that is kept."""
        if commit.backfill:
            return []
        held = {ref(dataset) for dataset in current.datasets if self._has_records(dataset)}
        world = merged(current, commit)
        return [_refused(name, sorted(reads & held)) for name, reads in _started(planned, world) if reads & held]

    def _has_records(self, dataset: DatasetDef) -> bool:
        partitions = self._log.partitions(ref(dataset))
        return any(head.next_offset for head in self._log.heads(ref(dataset), partitions)) if partitions else False


def read(sent: SentCommit, context: Definitions) -> Commit:
    """The commit in a body.

    Raises:
        InvalidRequest: the body is neither JSON nor the protobuf message.
        DefinitionError: what it says is malformed or not offered; every problem is listed.
    """
    try:
        if not sent.is_protobuf:
            return read_commit(sent.body, context)
        tree = tree_of(sent.body)
        check_values(tree)
        return from_stock(tree, context)
    except RecursionError:
        raise InvalidRequest("body: nested too deeply") from None


def decide(current: Definitions, commit: Commit, runner: Runner = INLINE) -> Plan:
    """What a commit would do; the rules every commit passes. ``runner`` says where its extractors are tried.

    Raises:
        DefinitionError: listing every problem.
        BreakingChange: listing every break.
    """
    decided = plan(current, commit)
    check_drivers(current, commit)
    check_readable(current, commit, runner)
    return decided


def check_drivers(current: Definitions, commit: Commit) -> None:
    """Refuse sources that this platform lacks a driver for.

    Raises:
        DefinitionError: names each, and what to install.
    """
    # A source that is committed already runs or says why not: the rest of its module must not wait for it.
    new = (source for source in commit.sources if source not in current.sources)
    absent = ((source, missing_driver(source.connector.type)) for source in new)
    problems = [_unread(commit, source, missing) for source, missing in absent if missing]
    if problems:
        raise DefinitionError(problems)


def check_readable(current: Definitions, commit: Commit, runner: Runner) -> None:
    """Compile as replicas will: a featureset that cannot be served is refused, not found out at the first read.

    Raises:
        DefinitionError: names each, and why.
    """
    _, _, broken = compile_all(merged(current, commit), runner)
    touched = {f.name for f in commit.featuresets} | {d.name for d in commit.datasets}
    problems = [_unreadable(commit, name, why) for name, why in broken.items() if name in touched]
    if problems:
        raise DefinitionError(problems)


def _started(planned: Plan, world: Definitions) -> Iterator[tuple[str, set[str]]]:
    """What a plan starts, and the dataset versions it reads: their logs go back as far as they are kept."""
    pipelines = {ref(pipeline): pipeline for pipeline in world.pipelines}
    for step in planned.steps:
        match step:
            case StartJob():
                needed = needed_by(pipelines[step.pipeline], world)
                yield step.pipeline, {ref(dataset) for dataset in needed.datasets}
            case StartIndex():
                yield f"the index of {step.dataset}", {step.dataset}


def _refused(name: str, datasets: list[str]) -> Problem:
    text = f"{name} would fold the history of {', '.join(datasets)}, and the commit says backfill: false"
    return Problem("backfill_refused", name, text, "Leave backfill: false out.")


def _unread(commit: Commit, source: SourceDef, missing: str) -> Problem:
    where = commit.locate(f"source:{source.dataset}")
    text, hint = f"this platform cannot read the source: {missing}", "Install it where the platform runs."
    file, line = (where.file, where.line) if where else (None, None)
    return Problem("missing_driver", source.dataset, text, hint, file=file, line=line)


def _unreadable(commit: Commit, name: str, why: str) -> Problem:
    where = commit.locate(f"featureset:{name}") or commit.locate(f"dataset:{name}")
    return Problem("not_servable", name, why, file=where.file if where else None, line=where.line if where else None)
