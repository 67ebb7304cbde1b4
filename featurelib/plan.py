"""What a commit would do: a plan, as data. Shown by ``--dry-run`` and the services, executed as it is shown.

:func:`breaking_changes` alone decides what an existing ``(name, version)`` may become (decision 21).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from featurelib.clock import Instant, format_duration, format_instant
from featurelib.definitions import (
    AggregateStep,
    BackfillDef,
    Commit,
    DatasetDef,
    Definition,
    Definitions,
    FeatureServiceDef,
    FeaturesetDef,
    FirstStep,
    LatestStep,
    PipelineDef,
    Record,
    SourceDef,
    digest,
    ref,
)
from featurelib.errors import BreakingChange, DefinitionError, Problem
from featurelib.validation import SUPPORTED_CONNECTORS, definition_key, in_order, merged, validate
from featurelib.windows import AnyWindow


class StoreDefinition(Record):
    """Put the definition into the registry."""

    step: Literal["store_definition"] = "store_definition"
    definition: str
    digest: str


class CreateLog(Record):
    """Make the log of a dataset version; ``dataset`` is ``Name@version``."""

    step: Literal["create_log"] = "create_log"
    dataset: str


class StartIndex(Record):
    """Start to keep the newest row of each key of a dataset version that no pipeline fills."""

    step: Literal["start_index"] = "start_index"
    dataset: str


class StartJob(Record):
    """Start the workers of a pipeline version, folding history first as ``backfill`` says."""

    step: Literal["start_job"] = "start_job"
    pipeline: str
    backfill: BackfillDef


class StartSource(Record):
    """Begin to read the source of a dataset."""

    step: Literal["start_source"] = "start_source"
    dataset: str


class RestartSource(Record):
    """Go on reading with changed settings, from the position reached."""

    step: Literal["restart_source"] = "restart_source"
    dataset: str


Step = Annotated[
    StoreDefinition | CreateLog | StartIndex | StartJob | StartSource | RestartSource,
    Field(discriminator="step"),
]


class Changes(Record):
    """Definitions by key: ``kind:Name@version``, or ``kind:Name`` for featuresets and sources."""

    added: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()


class Plan(Record):
    """Everything a commit would do, in order. ``commit_id`` names the commit's content: equal content, equal id."""

    commit_id: str
    no_op: bool
    steps: tuple[Step, ...] = ()
    changes: Changes = Changes()


class CommitReceipt(Record):
    """What the definition service answers to a commit (decision 28)."""

    commit_id: str
    no_op: bool
    datasets: int
    pipelines: int
    featuresets: int
    sources: int
    feature_services: int = Field(default=0, exclude_if=lambda count: not count)
    jobs_created: int
    topics_created: tuple[str, ...]
    changes: Changes


class Break(NamedTuple):
    """One way in which a changed definition no longer means what it did. ``member`` is a field, feature or output."""

    code: str
    member: str
    message: str


class Considered(NamedTuple):
    """What a commit would do, and every break for which it is refused."""

    plan: Plan
    breaks: list[Problem]


def plan(current: Definitions, commit: Commit, connectors: Collection[str] = SUPPORTED_CONNECTORS) -> Plan:
    """Decide what a commit does to what is committed.

    Args:
        current: every committed definition, all versions.
        commit: what arrives.
        connectors: connector types the platform can read.

    Raises:
        DefinitionError: the commit has mistakes; all of them are listed.
        BreakingChange: an existing ``(name, version)`` would change its meaning; every break is listed.
    """
    considered = consider(current, commit, connectors)
    if considered.breaks:
        raise BreakingChange(considered.breaks)
    return considered.plan


def consider(current: Definitions, commit: Commit, connectors: Collection[str] = SUPPORTED_CONNECTORS) -> Considered:
    """Like :func:`plan`, for showing: breaks are listed beside the plan.

    Raises:
        DefinitionError: the commit has mistakes; all of them are listed.
    """
    mistakes = validate(commit, current, connectors)
    if mistakes:
        raise DefinitionError(mistakes)
    known = {definition_key(definition): definition for definition in current.all}
    broken = [problem for definition in commit.all for problem in _breaks(definition, known, current, commit)]
    changes = _changes(known, commit)
    changed = {*changes.added, *changes.updated}
    decided = Plan(
        commit_id=commit_id(commit),
        no_op=not changed,
        steps=tuple(_steps(known, merged(current, commit), [d for d in commit.all if definition_key(d) in changed])),
        changes=changes,
    )
    return Considered(decided, in_order(broken))


def commit_id(commit: Commit) -> str:
    """Names the content of a commit, whatever the order of its definitions."""
    content = Definitions(
        datasets=tuple(sorted(commit.datasets, key=definition_key)),
        # When it came is not part of what it says.
        pipelines=tuple(sorted(map(_undated, commit.pipelines), key=definition_key)),
        featuresets=tuple(sorted(commit.featuresets, key=definition_key)),
        sources=tuple(sorted(commit.sources, key=definition_key)),
        feature_services=tuple(sorted(commit.feature_services, key=definition_key)),
    )
    return digest(content)[:32]


def dated(commit: Commit, current: Definitions, now: Instant) -> Commit:
    """The commit with the instant written down from which pipelines without history count records.

    One that is committed already keeps the instant of its first commit.
    """
    known = {ref(pipeline): pipeline.backfill.from_us for pipeline in current.pipelines}

    def marked(pipeline: PipelineDef) -> PipelineDef:
        since = None if pipeline.backfill.enabled else known.get(ref(pipeline)) or now
        backfill = pipeline.backfill.model_copy(update={"from_us": since})
        return pipeline.model_copy(update={"backfill": backfill})

    return commit.model_copy(update={"pipelines": tuple(map(marked, commit.pipelines))})


def _undated(pipeline: PipelineDef) -> PipelineDef:
    return pipeline.model_copy(update={"backfill": pipeline.backfill.model_copy(update={"from_us": None})})


def breaking_changes(before: Definition, after: Definition) -> list[Break]:
    """Every way in which ``after`` changes the meaning of ``before``; empty when it only adds to it."""
    match before, after:
        case DatasetDef(), DatasetDef():
            return list(_dataset_breaks(before, after))
        case PipelineDef(), PipelineDef():
            return list(_pipeline_breaks(before, after))
        case FeaturesetDef(), FeaturesetDef():
            return list(_featureset_breaks(before, after))
        case SourceDef(), SourceDef() if before.cdc != after.cdc:
            return [Break("cdc_changed", "", f"cdc changes from {before.cdc} to {after.cdc}")]
        case FeatureServiceDef(), FeatureServiceDef():
            return list(_service_breaks(before, after))
    return []


def _dataset_breaks(before: DatasetDef, after: DatasetDef) -> Iterator[Break]:
    yield from _column_breaks(before, after)
    if before.index and after.index and {column.name for column in after.fields} - {c.name for c in before.fields}:
        # The index holds whole rows; state of one layout cannot be read with another.
        yield Break("index_changed", "", "a column is added to an indexed dataset")
    if before.index and not after.index:
        yield Break("index_removed", "", "the index is removed")
    if before.event_id is not None and before.event_id != after.event_id:
        # Records taken under the old identity would count again under another.
        yield Break("event_id_changed", "", f"event_id changes from {before.event_id} to {after.event_id}")
    if before.upsert != after.upsert:
        yield Break("upsert_changed", "", f"upsert changes from {before.upsert} to {after.upsert}")
    if _shorter(before.retention_us, after.retention_us):
        yield Break("retention_narrowed", "", "the retention becomes shorter")


def _column_breaks(before: DatasetDef, after: DatasetDef) -> Iterator[Break]:
    for role, code in (("key", "rekeyed"), ("timestamp", "timestamp_changed")):
        old, new = getattr(before, role).name, getattr(after, role).name
        if old != new:
            yield Break(code, new, f"the {role} changes from `{old}` to `{new}`")
    for column in before.fields:
        now = after.field(column.name)
        if now is None:
            yield Break("field_removed", column.name, f"the column `{column.name}` is removed")
        elif now.type != column.type:
            text = f"the column `{column.name}` changes from {column.type} to {now.type}"
            yield Break("field_retyped", column.name, text)
        elif column.optional and not now.optional:
            yield Break("field_required", column.name, f"the column `{column.name}` is no longer optional")


def _shorter(before: int | None, after: int | None) -> bool:
    return after is not None and (before is None or after < before)


def _pipeline_breaks(before: PipelineDef, after: PipelineDef) -> Iterator[Break]:
    if before.input_datasets != after.input_datasets:
        text = f"the inputs change from {', '.join(before.input_datasets)} to {', '.join(after.input_datasets)}"
        yield Break("inputs_changed", "", text)
    if before.output_dataset != after.output_dataset:
        text = f"the output changes from {before.output_dataset} to {after.output_dataset}"
        yield Break("output_changed", "", text)
    if _meanings(before.steps[:-1]) != _meanings(after.steps[:-1]):
        yield Break("operators_changed", "", "the steps before the last one change")
    if before.keys != after.keys:
        text = f"the group keys change from {', '.join(before.keys)} to {', '.join(after.keys)}"
        yield Break("rekeyed", "", text)
    if before.backfill != after.backfill:
        yield Break("backfill_changed", "", f"it counts {_counts(after)}, and counted {_counts(before)}")
    yield from _last_step_breaks(before.last_step, after.last_step)


def _counts(pipeline: PipelineDef) -> str:
    told = pipeline.backfill
    dated_since = "" if told.since_us is None else f" dated since {format_instant(told.since_us)}"
    accepted = "" if told.enabled else " accepted after its commit"
    return f"records{dated_since}{accepted}" if dated_since or accepted else "all records"


def _meanings(steps: Iterable[Record]) -> list[str]:
    """Steps without the places of their code in the user's files, which mean nothing."""
    return [digest(step) for step in steps]


def _last_step_breaks(before: Record, after: Record) -> Iterator[Break]:
    if not isinstance(before, AggregateStep) or not isinstance(after, AggregateStep):
        if type(before) is not type(after):
            names = [step.op for step in (before, after) if isinstance(step, AggregateStep | LatestStep | FirstStep)]
            yield Break("operators_changed", "", f"the last step changes from {names[0]} to {names[1]}")
        return
    if before.emit != after.emit:
        yield Break("operators_changed", "", f"emit changes from {before.emit} to {after.emit}")
    now = {named.output: named.aggregate for named in after.aggregates}
    for named in before.aggregates:
        if named.output not in now:
            yield Break("aggregate_removed", named.output, f"the aggregate `{named.output}` is removed")
        elif named.aggregate != now[named.output]:
            code, text = _aggregate_change(named.aggregate, now[named.output])
            yield Break(code, named.output, f"`{named.output}` changes its {text}")
    held = {named.output for named in before.aggregates}
    for name in now:
        if name not in held:
            # State is laid out by accumulator: it must be built anew, beside the one that is served.
            yield Break("aggregate_added", name, f"the aggregate `{name}` is added to state that exists")


def _aggregate_change(before: Any, after: Any) -> tuple[str, str]:
    """The code and the words for what differs between two aggregates."""
    if before.type != after.type:
        return "operator_changed", f"operator from {before.type} to {after.type}"
    if before.window != after.window:
        return "window_changed", f"window from {_shown(before.window)} to {_shown(after.window)}"
    differing = [name for name in type(before).model_fields if getattr(before, name) != getattr(after, name)]
    return "operator_changed", " and ".join(differing)


def _shown(window: AnyWindow) -> str:
    """A window with all that tells it from another."""
    given = window.model_dump(exclude_defaults=True, exclude={"kind", "size_us", "stride_us", "gap_us"})
    options = (
        f"{name.removesuffix('_us')} {format_duration(value) if name.endswith('_us') else value}"
        for name, value in given.items()
    )
    return " ".join([str(window) or "lifetime", *options])


def _featureset_breaks(before: FeaturesetDef, after: FeaturesetDef) -> Iterator[Break]:
    for feature in before.features:
        now = after.feature(feature.name)
        if now is None:
            yield Break("feature_removed", feature.name, f"the feature `{feature.name}` is removed")
        elif now.type != feature.type:
            text = f"the feature `{feature.name}` changes from {feature.type} to {now.type}"
            yield Break("feature_retyped", feature.name, text)
        elif now.request != feature.request:
            text = f"the feature `{feature.name}` {'is now' if now.request else 'is no longer'} sent by the caller"
            yield Break("request_changed", feature.name, text)
    old, new = before.entity, after.entity
    if old and new and old.name != new.name and after.feature(old.name):
        yield Break("rekeyed", new.name, f"the entity id changes from `{old.name}` to `{new.name}`")
    if before.entity_type != after.entity_type:
        text = f"the entity type changes from {before.entity_type} to {after.entity_type}"
        yield Break("rekeyed", "", text)


def _service_breaks(before: FeatureServiceDef, after: FeatureServiceDef) -> Iterator[Break]:
    given = set(after.feature_names)
    for name in before.feature_names:
        if name not in given:
            yield Break("feature_removed", name, f"the feature `{name}` is removed")
    old = {key.name: key.type for key in before.join_keys}
    new = {key.name: key.type for key in after.join_keys}
    if old != new:
        keys = (", ".join(f"{name}: {kind}" for name, kind in sorted(each.items())) for each in (old, new))
        yield Break("rekeyed", "", f"the join keys change from {' to '.join(keys)}")
    accepted = {parameter.name: parameter.type for parameter in after.request_context}
    for parameter in before.request_context:
        if accepted.get(parameter.name) != parameter.type:
            text = f"the request context no longer takes `{parameter.name}` as {parameter.type}"
            yield Break("request_changed", parameter.name, text)


_REMEDIES = {
    "dataset": "Give the dataset a new version.",
    "retention": "Commit with allow_retention_narrowing, or give the dataset a new version.",
    "pipeline": "Give the pipeline a new version.",
    "featureset": "Declare it under a new name.",
    "source": "Give the dataset a new version.",
    "feature_service": "Give the feature service a new version.",
}


def _breaks(
    definition: Definition, known: dict[str, Definition], current: Definitions, commit: Commit
) -> Iterator[Problem]:
    before = known.get(definition_key(definition)) or _without_source(definition, current)
    if before is None or (isinstance(definition, SourceDef) and _version_rises(definition.dataset, current, commit)):
        return
    name = _named(definition)
    for broken in breaking_changes(before, definition):
        if broken.code == "retention_narrowed" and commit.allow_retention_narrowing:
            continue
        where = commit.locate(f"{definition.kind}:{name}" + (f".{broken.member}" if broken.member else ""))
        yield Problem(
            code=broken.code,
            subject=f"{name}.{broken.member}" if broken.member else name,
            message=broken.message,
            hint=_REMEDIES["retention" if broken.code == "retention_narrowed" else definition.kind],
            file=where.file if where else None,
            line=where.line if where else None,
        )


def _named(definition: Definition) -> str:
    match definition:
        case SourceDef():
            return definition.dataset
        case FeatureServiceDef():
            return definition.qualified_name
    return definition.name


def _without_source(definition: Definition, current: Definitions) -> SourceDef | None:
    """What a dataset's first source changes: records sent so far were taken as ``append``."""
    if not isinstance(definition, SourceDef):
        return None
    dataset = current.dataset(definition.dataset)
    read = any(definition.dataset in pipeline.input_datasets for pipeline in current.pipelines)
    # An index is state too, and that of versions is laid out otherwise.
    indexed = dataset is not None and dataset.index
    return definition.model_copy(update={"cdc": "append"}) if read or indexed else None


def _version_rises(dataset: str, current: Definitions, commit: Commit) -> bool:
    old, new = current.dataset(dataset), commit.dataset(dataset)
    return old is not None and new is not None and new.version > old.version


def _changes(known: dict[str, Definition], commit: Commit) -> Changes:
    keys: dict[str, list[str]] = {"added": [], "updated": [], "unchanged": []}
    for definition in commit.all:
        key = definition_key(definition)
        before = known.get(key)
        if before is None:
            keys["added"].append(key)
        else:
            keys["unchanged" if digest(before) == digest(definition) else "updated"].append(key)
    return Changes(**{name: tuple(sorted(found)) for name, found in keys.items()})


def _steps(known: dict[str, Definition], world: Definitions, changed: list[Definition]) -> Iterator[Step]:
    """Stores first, then logs and indexes, then the jobs that read them, then the sources that fill them."""
    for definition in changed:
        yield StoreDefinition(definition=definition_key(definition), digest=digest(definition))
    for definition in changed:
        yield from _running(definition, known.get(definition_key(definition)), world)


def _running(definition: Definition, before: Definition | None, world: Definitions) -> Iterator[Step]:
    """What has to run because of a new or changed definition; :attr:`Definitions.all` orders the calls."""
    match definition:
        case DatasetDef() if world.producer(definition.name) is None:
            if before is None:
                yield CreateLog(dataset=ref(definition))
            if definition.index and not (isinstance(before, DatasetDef) and before.index):
                yield StartIndex(dataset=ref(definition))
        case PipelineDef() if before is None:
            yield StartJob(pipeline=ref(definition), backfill=definition.backfill)
        case SourceDef():
            if before is None:
                yield StartSource(dataset=definition.dataset)
            elif before.model_copy(update={"metadata": definition.metadata}) != definition:
                yield RestartSource(dataset=definition.dataset)
