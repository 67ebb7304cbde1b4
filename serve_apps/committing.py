"""The door of definitions: a commit's body is read, judged as every commit is, and stored, or only shown as a plan.

Knows no HTTP. Methods block (SQL, user code): the routes call them in threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

from featurelib.clock import Clock, SystemClock
from featurelib.connectors import missing_driver
from featurelib.definitions import Commit, DatasetDef, Definitions, SourceDef, digest, ref
from featurelib.engine.extractor import INLINE, Runner
from featurelib.engine.forecast import forecasts
from featurelib.engine.program import needed_by
from featurelib.engine.sizing import Load
from featurelib.errors import BreakingChange, DefinitionError, Forbidden, InvalidRequest, Problem
from featurelib.plan import CommitReceipt, Plan, StartIndex, StartJob, consider, dated, plan
from featurelib.settings import Settings
from featurelib.stock import check_values, from_stock, read_commit
from featurelib.stock_protobuf import tree_of
from featurelib.stores.log import Log
from featurelib.stores.registry import Registry
from featurelib.stores.secret_values import Place
from featurelib.stores.source_secrets import places_of
from featurelib.validation import merged
from serve_apps.current import compile_all
from serve_apps.planning import PlanAnswer, answer_of, warnings_of

PROTOBUF = frozenset({"application/protobuf", "application/x-protobuf", "application/vnd.google.protobuf"})
"""Media types of a body that is ``thyme.CommitRequest``."""


class SentCommit(NamedTuple):
    """A commit as it came: its bytes, and whether they are protobuf."""

    body: bytes
    is_protobuf: bool = False


class Rights(NamedTuple):
    """What is open to who commits."""

    may_read: Callable[[Place], bool] = lambda _: True
    """Whether they may read a secret of the platform."""
    may_edit: Callable[[str], bool] = lambda _: True
    """Whether they may change a workspace."""


class CommitService:
    """What the commit routes answer with.

    Args:
        registry: what is committed.
        log: says whether a dataset has records already.
        settings: the memory budget that a plan is compared with.
        runner: where a commit's extractors are tried.
        rights: what is open to the committer; left out, everything.
        clock: from when on pipelines without history count records.
    """

    def __init__(
        self,
        registry: Registry,
        log: Log,
        settings: Settings,
        runner: Runner = INLINE,
        rights: Rights | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._registry = registry
        self._log = log
        self._settings = settings
        self._runner = runner
        self._rights = rights or Rights()

    def commit(self, sent: SentCommit, committed_by: str | None) -> CommitReceipt:
        """Store a commit whole or not at all.

        Raises:
            InvalidRequest: the body is neither JSON nor the protobuf message.
            DefinitionError: listing every problem; nothing was committed.
            BreakingChange: listing every break; nothing was committed.
            Forbidden: it uses a secret or changes a workspace that is closed to the committer.
        """
        current = self._registry.definitions()
        commit = dated(read(sent, current), current, self._clock.now())
        return self._registry.commit(commit, self._decide, committed_by)

    def plan(self, sent: SentCommit, load: Load) -> PlanAnswer:
        """What a commit would do; nothing is stored. Breaks are listed, not raised.

        Args:
            sent: the commit.
            load: what the prediction assumes of the data.

        Raises:
            InvalidRequest: the body is neither JSON nor the protobuf message.
            DefinitionError: listing every problem.
            Forbidden: it uses a secret or changes a workspace that is closed to the committer.
        """
        current, latest = self._registry.definitions(), self._registry.latest_commit()
        commit = dated(read(sent, current), current, self._clock.now())
        check_rights(current, commit, self._rights)
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
        check_rights(current, commit, self._rights)
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


def check_rights(current: Definitions, commit: Commit, rights: Rights) -> None:
    """Refuse what is new or changed and uses secrets, or belongs to workspaces, that are closed to the committer.

    Whoever names the host that a password is sent to can have the password; so that takes the right to read it.

    Raises:
        Forbidden: names each secret or workspace.
    """
    sources = [source for source in commit.sources if not _is_connected_so(current.source(source.dataset), source)]
    secrets = {str(place) for source in sources for place in places_of(source).values() if not rights.may_read(place)}
    if secrets:
        _refuse("a source takes read_scope_role on the scopes of its secrets", secrets)
    known = {digest(service) for service in current.feature_services}
    changed = {service.workspace for service in commit.feature_services if digest(service) not in known}
    closed = {workspace for workspace in changed if not rights.may_edit(workspace)}
    if closed:
        _refuse("feature services takes the role editor on their workspaces", closed)


def _refuse(what: str, closed: set[str]) -> NoReturn:
    raise Forbidden(f"committing {what}; the key has none for {', '.join(sorted(closed))}")


def _is_connected_so(before: SourceDef | None, after: SourceDef) -> bool:
    return before is not None and before.connector == after.connector


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
            case StartJob() if step.backfill.enabled:
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
