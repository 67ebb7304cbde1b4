"""What a commit must satisfy, checked against everything that is already committed.

Pure: the SDK runs it before sending, the service runs it again on what arrives. Every mistake is a
:class:`Finding`; none stops the search for others.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from featurelib.aggregates import Aggregate, Avg, Count, LastK, Max, Min, Sum, result_type
from featurelib.declarations import did_you_mean
from featurelib.definitions import (
    AggregateStep,
    AssignStep,
    BackfillDef,
    Commit,
    DatasetDef,
    Definition,
    Definitions,
    ExtractorDef,
    FeatureDef,
    FeaturesetDef,
    FieldDef,
    FilterStep,
    JoinStep,
    NamedAggregate,
    PipelineDef,
    SourceDef,
    ref,
)
from featurelib.errors import Problem
from featurelib.inference import NUMBERS, UNKNOWN, Columns, Mistake, fits, infer, unknown_column
from featurelib.lineage import dataset_cycle, feature_cycle
from featurelib.sources import STREAMING
from featurelib.types import Scalar, element_type

SUPPORTED_CONNECTORS: frozenset[str] = frozenset({"files"})
"""Connector types this platform can read."""

_KEY_TYPES = frozenset({"str", "int", "bool", "datetime"})
_NUMERIC = (Sum, Avg, Min, Max)
_D = TypeVar("_D", bound=Definition)


class Finding(NamedTuple):
    """A mistake, with the key of :attr:`Commit.locations` under which the user's line is found.

    ``about`` is what is missing, as ``Class`` or ``Class.member``, when something is.
    """

    code: str
    key: str
    subject: str
    message: str
    hint: str = ""
    about: str = ""


def validate(commit: Commit, context: Definitions, connectors: Collection[str] = SUPPORTED_CONNECTORS) -> list[Problem]:
    """Every mistake of a commit.

    Args:
        commit: the definitions that arrive.
        context: what is committed already; the commit may refer to it.
        connectors: connector types the platform can read.

    Returns:
        The problems, in the order of the user's lines where they are known.
    """
    return problems(findings(commit, context, connectors), commit)


def problems(found: Iterable[Finding], commit: Commit) -> list[Problem]:
    """Findings with the user's file and line."""
    placed = []
    for finding in found:
        where = commit.locate(finding.key)
        file, line = (where.file, where.line) if where else (None, None)
        placed.append(Problem(finding.code, finding.subject, finding.message, finding.hint, file, line))
    return in_order(placed)


def in_order(found: Iterable[Problem]) -> list[Problem]:
    """By file and line, those without a place last; each once."""
    return sorted(dict.fromkeys(found), key=lambda p: (p.file is None, p.file or "", p.line or 0))


def merged(context: Definitions, commit: Definitions) -> Definitions:
    """What will be committed: the context with the commit laid over it, by name and version."""
    return Definitions(
        datasets=_laid_over(context.datasets, commit.datasets),
        pipelines=_laid_over(context.pipelines, commit.pipelines),
        featuresets=_laid_over(context.featuresets, commit.featuresets),
        sources=_laid_over(context.sources, commit.sources),
    )


def definition_key(definition: Definition) -> str:
    """``kind:Name@version``; ``kind:Name`` where there are no versions."""
    if isinstance(definition, SourceDef):
        return f"source:{definition.dataset}"
    if isinstance(definition, FeaturesetDef):
        return f"featureset:{definition.name}"
    return f"{definition.kind}:{ref(definition)}"


def findings(commit: Commit, context: Definitions, connectors: Collection[str]) -> Iterator[Finding]:
    """Every mistake, place unknown."""
    world = merged(context, commit)
    yield from _duplicates(commit)
    yield from _cycles(commit, world)
    yield from _versions_in_use(commit, context)
    for source in commit.sources:
        yield from _source(source, world, connectors)
    for dataset in commit.datasets:
        yield from _dataset(dataset, world)
    for pipeline in [*commit.pipelines, *_touched_pipelines(commit, context)]:
        yield from _Pipeline(pipeline, world).check()
    for featureset in [*commit.featuresets, *_touched_featuresets(commit, context)]:
        yield from _Featureset(featureset, world).check()


def _laid_over(below: tuple[_D, ...], above: tuple[_D, ...]) -> tuple[_D, ...]:
    kept = {definition_key(each): each for each in below}
    kept.update({definition_key(each): each for each in above})
    return tuple(kept.values())


def _versions_in_use(commit: Commit, context: Definitions) -> Iterator[Finding]:
    """New versions of datasets that committed pipelines read: those pipelines would change logs under way."""
    for dataset in commit.datasets:
        held = context.dataset(dataset.name)
        if held is None or held.version == dataset.version:
            continue
        for pipeline in context.pipelines:
            if dataset.name in pipeline.input_datasets:
                text = (
                    f"version {dataset.version} of `{dataset.name}`: the pipeline `{pipeline.name}` reads {ref(held)}"
                )
                hint = "A running pipeline cannot change its input yet: give the new dataset a name of its own."
                yield Finding("dataset_version_in_use", f"dataset:{dataset.name}", dataset.name, text, hint)


def _touched_pipelines(commit: Commit, context: Definitions) -> Iterator[PipelineDef]:
    """Newest committed pipelines that the commit leaves out and whose datasets it changes."""
    changed, sent = {d.name for d in commit.datasets}, {p.name for p in commit.pipelines}
    for pipeline in context.pipelines:
        newest = context.pipeline(pipeline.name) is pipeline
        if newest and pipeline.name not in sent and changed & {*pipeline.input_datasets, pipeline.output_dataset}:
            yield pipeline


def _touched_featuresets(commit: Commit, context: Definitions) -> Iterator[FeaturesetDef]:
    changed = {d.name for d in commit.datasets}
    changed_sets, sent = {f.name for f in commit.featuresets}, {f.name for f in commit.featuresets}
    for featureset in context.featuresets:
        used = {feature.lookup.dataset for feature in featureset.features if feature.lookup}
        others = {name.split(".")[0] for e in featureset.extractors for name in e.inputs if "." in name}
        if featureset.name not in sent and (changed & used or changed_sets & others):
            yield featureset


def _duplicates(commit: Commit) -> Iterator[Finding]:
    for key, count in Counter(definition_key(definition) for definition in commit.all).items():
        if count > 1:
            kind, name = key.split("@", maxsplit=1)[0].split(":")
            text = f"the commit holds the {kind} `{key.split(':')[1]}` {count} times"
            yield Finding("duplicate_name", f"{kind}:{name}", name, text, "Rename one, or give it another version.")


def _cycles(commit: Commit, world: Definitions) -> Iterator[Finding]:
    circle = dataset_cycle(world)
    if circle:
        pipeline = next(node for node in circle if node.startswith("pipeline:"))
        path = " → ".join(node.split(":")[1] for node in reversed(circle))
        yield Finding("cycle", pipeline, pipeline.split(":")[1], f"data runs in a circle: {path}", "Cut it somewhere.")
    around = feature_cycle(world.featuresets)
    if around:
        owner, feature = around[0].split(".")
        maker = next(
            (e.name for f in commit.featuresets if f.name == owner for e in f.extractors if feature in e.outputs),
            feature,
        )
        text = f"features are computed from themselves: {' → '.join(reversed(around))}"
        yield Finding("cycle", f"featureset:{owner}.{maker}", f"{owner}.{maker}", text, "Cut it somewhere.")


def _source(source: SourceDef, world: Definitions, connectors: Collection[str]) -> Iterator[Finding]:
    key, kind = f"source:{source.dataset}", source.connector.type
    if world.dataset(source.dataset) is None:
        hint = did_you_mean(source.dataset, [d.name for d in world.datasets], "The commit")
        text = f"the source feeds `{source.dataset}`, which is not a dataset"
        yield Finding("unknown_dataset", key, source.dataset, text, hint, source.dataset)
    if kind not in connectors:
        text = f"this platform cannot read the connector `{kind}` yet"
        yield Finding("unsupported_connector", key, source.dataset, text, f"It reads {', '.join(sorted(connectors))}.")
    if kind in STREAMING and (source.cursor or source.every_us):
        text = f"{kind} pushes its records; cursor and every have no meaning for it"
        yield Finding("cursor_on_stream", key, source.dataset, text, "Leave both out.")
    if kind == "postgres" and source.cdc == "debezium":
        text, hint = "Debezium envelopes do not come from a PostgreSQL table", "Run Debezium and read its Kafka topic."
        yield Finding("invalid_cdc", key, source.dataset, text, hint)


def _dataset(dataset: DatasetDef, world: Definitions) -> Iterator[Finding]:
    key = f"dataset:{dataset.name}"
    yield from _roles(dataset, key)
    for name, count in Counter(column.name for column in dataset.fields).items():
        if count > 1:
            yield Finding(
                "duplicate_name", key, f"{dataset.name}.{name}", f"the column `{name}` is declared {count} times"
            )
        if name.startswith("__"):
            text = f"`{name}`: names with two leading underscores belong to the platform"
            yield Finding("reserved_name", f"{key}.{name}", f"{dataset.name}.{name}", text, "Rename the column.")
    yield from _expectations(dataset, key)
    yield from _feeding(dataset, key, world)


def _roles(dataset: DatasetDef, key: str) -> Iterator[Finding]:
    for role in ("key", "timestamp"):
        marked = [column.name for column in dataset.fields if getattr(column, role)]
        if len(marked) != 1:
            text = f"a dataset has exactly one {role} column; found {', '.join(marked) or 'none'}"
            yield Finding(f"{role}_count", key, dataset.name, text, f"Mark one column with field({role}=True).")
    for column in dataset.fields:
        place, subject = f"{key}.{column.name}", f"{dataset.name}.{column.name}"
        if column.key and column.optional:
            text = f"the key `{column.name}` is optional"
            yield Finding("optional_key", place, subject, text, "A key is never null.")
        if column.key and column.type not in _KEY_TYPES:
            text = f"a key is one of {', '.join(sorted(_KEY_TYPES))}; found {column.type}"
            yield Finding("key_type", place, subject, text)
        if column.timestamp and (column.type != "datetime" or column.optional):
            text = f"the event time is a datetime that is never null; found {_shown_type(column)}"
            yield Finding("timestamp_type", place, subject, text)


def _expectations(dataset: DatasetDef, key: str) -> Iterator[Finding]:
    columns = Columns(dataset.name, {column.name: column.type for column in dataset.fields})
    for rule in dataset.expectations:
        place = f"{key}.{rule.type}({rule.column})"
        if rule.column not in columns.types:
            yield _finding(unknown_column(rule.column, columns), place, f"{dataset.name}.{rule.type}")
        elif rule.type == "column_values_between" and columns.types[rule.column] not in NUMBERS:
            text = f"`{rule.column}` is {columns.types[rule.column]}; bounds hold for numbers"
            yield Finding("type_mismatch", place, f"{dataset.name}.{rule.type}", text)


def _feeding(dataset: DatasetDef, key: str, world: Definitions) -> Iterator[Finding]:
    makers = sorted({p.name for p in world.pipelines if p.output_dataset == dataset.name})
    if len(makers) > 1:
        text = f"several pipelines fill it: {', '.join(makers)}"
        yield Finding("two_producers", key, dataset.name, text, "Give each an output dataset of its own.")
    if makers and world.source(dataset.name):
        text = f"it has a source and is filled by the pipeline `{makers[0]}`"
        yield Finding("source_on_derived", key, dataset.name, text, "A dataset is fed by one of them.")
    for column in dataset.fields:
        if element_type(column.type) and not makers:
            text = f"`{column.name}` is {column.type}; a list is only ever the result of LastK"
            yield Finding("unsupported_type", f"{key}.{column.name}", f"{dataset.name}.{column.name}", text)


class _Pipeline:
    """Walks a pipeline's steps with the columns in scope."""

    def __init__(self, pipeline: PipelineDef, world: Definitions) -> None:
        self.pipeline = pipeline
        self.world = world
        self.subject = f"{pipeline.output_dataset}.{pipeline.name}"
        self.output = world.dataset(pipeline.output_dataset)
        self.columns: dict[str, str] = {}
        self.scope = pipeline.input_datasets[0] if pipeline.input_datasets else ""
        self.found: list[Finding] = []

    def check(self) -> list[Finding]:
        """Every mistake of the pipeline."""
        if not self._inputs_known() or not self._shape():
            return self.found
        left = self.world.dataset(self.scope)
        self.columns = {column.name: column.type for column in left.fields} if left else {}
        for index, step in enumerate(self.pipeline.steps):
            match step:
                case FilterStep():
                    self._condition(step.predicate, str(index), "filter")
                case AssignStep():
                    self.columns[step.column] = self._type(step.value, step.column, f"assign({step.column})")
                case JoinStep():
                    self._join(step, str(index))
                case AggregateStep():
                    self._aggregate(step, str(index))
        return self.found

    def _add(self, code: str, member: str, message: str, hint: str = "", about: str = "") -> None:
        key = f"pipeline:{self.pipeline.name}" + (f".{member}" if member else "")
        self.found.append(Finding(code, key, self.subject, message, hint, about))

    def _inputs_known(self) -> bool:
        names = [*self.pipeline.input_datasets, self.pipeline.output_dataset]
        if not self.pipeline.input_datasets:
            self._add("missing_inputs", "", "the pipeline names no input", "Write @inputs(SomeDataset).")
        for name in names:
            if self.world.dataset(name) is None:
                hint = did_you_mean(name, [d.name for d in self.world.datasets], "The commit")
                self._add("unknown_dataset", "", f"there is no dataset `{name}`", hint, name)
        rights = {step.right for step in self.pipeline.joins}
        for name in self.pipeline.input_datasets[1:]:
            if name not in rights:
                self._add("unused_input", "", f"the input `{name}` is never used", "Join it, or leave it out.", name)
        for name in self.pipeline.input_datasets:
            if self.world.producer(name) and name != self.pipeline.output_dataset:
                text = f"the input `{name}` is itself filled by a pipeline"
                self._add(
                    "chained_pipeline", "", text, "A pipeline reads datasets that have a source or are logged to."
                )
        self._cdc_known()
        if self.pipeline.name.endswith("_index"):
            text = f"`{self.pipeline.name}`: names that end in _index belong to the indexes of datasets"
            self._add("reserved_name", "", text, "Rename the pipeline.")
        if self.pipeline.backfill != BackfillDef():
            text = "`backfill=` is not obeyed yet: a new pipeline folds all history that is kept"
            self._add("unsupported_backfill", "", text, "Leave it out; `python -m jobs.backfill --since` rebuilds.")
        return bool(self.pipeline.input_datasets) and all(self.world.dataset(name) for name in names)

    def _cdc_known(self) -> None:
        # Counting every version of a row as a record of its own would be silently wrong (decision 13).
        for place, name in enumerate(self.pipeline.input_datasets):
            source = self.world.source(name)
            allowed = ("append",) if place == 0 else ("append", "upsert")
            if source is not None and source.cdc not in allowed:
                text = f"the input `{name}` is fed with cdc={source.cdc!r}, which this platform cannot fold yet"
                self._add("unsupported_cdc", "", text, f"Feed it with cdc of {', '.join(allowed)}.", name)

    def _shape(self) -> bool:
        steps = self.pipeline.steps
        if not steps or not isinstance(steps[-1], AggregateStep):
            self._add("no_aggregate", "", "the pipeline does not aggregate", "End it with .groupby(…).aggregate(…).")
            return False
        if any(isinstance(step, AggregateStep) for step in steps[:-1]):
            self._add("step_after_aggregate", "", "a step follows aggregate", "aggregate(…) is the last step.")
            return False
        return True

    def _type(self, node: object, member: str, what: str, names: Columns | None = None) -> str:
        mistakes: list[Mistake] = []
        found = infer(node, names or Columns(self.scope, self.columns), mistakes)  # type: ignore[arg-type]
        for mistake in mistakes:
            self._add(mistake.code, member, f"{what}: {mistake.message}", mistake.hint, mistake.about)
        return found

    def _condition(self, node: object, member: str, what: str) -> None:
        found = self._type(node, member, what)
        if found not in {"bool", UNKNOWN}:
            self._add("type_mismatch", member, f"{what} takes a condition; found {found}", "Compare it with something.")

    def _join(self, step: JoinStep, member: str) -> None:
        right, what = self.world.dataset(step.right), f"join({step.right})"
        if right is None:
            hint = did_you_mean(step.right, [d.name for d in self.world.datasets], "The commit")
            self._add("unknown_dataset", member, f"there is no dataset `{step.right}`", hint, step.right)
            return
        if [join.right for join in self.pipeline.joins].count(step.right) > 1:
            self._add(
                "duplicate_join", member, f"`{step.right}` is joined twice", "Bring all its columns over at once."
            )
        self._join_key(step, right, member, what)
        theirs = Columns(right.name, {column.name: column.type for column in right.fields})
        for name in step.fields:
            if name not in theirs.types:
                mistake = unknown_column(name, theirs)
                self._add(mistake.code, member, f"{what}: {mistake.message}", mistake.hint, mistake.about)
            elif name in self.columns:
                text = f"{what}: the left side has a column `{name}` already"
                self._add("duplicate_column", member, text, "Name the columns to bring over with fields=[…].")
            self.columns[name] = theirs.types.get(name, UNKNOWN)

    def _join_key(self, step: JoinStep, right: DatasetDef, member: str, what: str) -> None:
        key = next((column for column in right.fields if column.key), None)
        mine = self._column(step.on, member, f"{what} on")
        if key is not None and mine not in {key.type, UNKNOWN}:
            text = f"{what}: `{step.on}` is {mine}, the key `{right.name}.{key.name}` is {key.type}"
            self._add("key_type_mismatch", member, text, "Join columns of one type.")

    def _column(self, name: str, member: str, what: str) -> str:
        if name in self.columns:
            return self.columns[name]
        mistake = unknown_column(name, Columns(self.scope, self.columns))
        self._add(mistake.code, member, f"{what}: {mistake.message}", mistake.hint, mistake.about)
        return UNKNOWN

    def _aggregate(self, step: AggregateStep, member: str) -> None:
        assert self.output is not None  # _inputs_known() was true
        self._group_keys(step, self.output, member)
        for name, count in Counter(named.output for named in step.aggregates).items():
            if count > 1:
                self._add("duplicate_name", name, f"`{name}` is aggregated {count} times")
        for named in step.aggregates:
            self._named(named, self.output)
        filled = {named.output for named in step.aggregates}
        for column in self.output.fields:
            if not (column.key or column.timestamp or column.name in filled):
                text = f"the output column `{column.name}` is filled by no aggregate"
                hint = "Aggregate it, or leave the column out."
                self._add("unfilled_field", member, text, hint, f"{self.output.name}.{column.name}")

    def _group_keys(self, step: AggregateStep, output: DatasetDef, member: str) -> None:
        types = [self._column(name, member, "groupby") for name in step.keys]
        key = next((column for column in output.fields if column.key), None)
        if not types:
            self._add("no_group_key", member, "the aggregate has no group key", "Write .groupby(…) before it.")
            return
        for name, found in zip(step.keys, types, strict=True):
            if found not in _KEY_TYPES | {UNKNOWN}:
                self._add("key_type", member, f"groupby: `{name}` is {found}", f"A key is one of {sorted(_KEY_TYPES)}.")
        if key is None:
            return
        if len(types) > 1:
            if key.type != "str":
                text = f"several group keys make one text; the key `{output.name}.{key.name}` is {key.type}"
                self._add("key_type_mismatch", member, text, "Declare it as str.")
        elif step.keys[0] != key.name:
            text = f"groups are by `{step.keys[0]}`, the key of {output.name} is `{key.name}`"
            self._add("group_key_mismatch", member, text, f"Write .groupby({key.name!r}), or rename the key.")
        elif types[0] not in {key.type, UNKNOWN}:
            text = f"groups are by {types[0]}, the key `{output.name}.{key.name}` is {key.type}"
            self._add("key_type_mismatch", member, text, "Give both one type.")

    def _named(self, named: NamedAggregate, output: DatasetDef) -> None:
        name, aggregate = named.output, named.aggregate
        found = self._aggregate_type(name, aggregate)
        if aggregate.where is not None:
            self._condition(aggregate.where, name, f"{name}: where")
        column = output.field(name)
        if column is None or column.key or column.timestamp:
            open_to = [c.name for c in output.fields if not (c.key or c.timestamp)]
            hint = did_you_mean(name, open_to, output.name)
            text = f"`{name}` is not a column of {output.name} that an aggregate may fill"
            self._add("unknown_output", name, text, hint, f"{output.name}.{name}")
            return
        if not _fills(aggregate, found, column.type):
            text = f"`{name}` is declared {column.type}; {aggregate.type} gives {found}"
            self._add("output_type_mismatch", name, text, f"Declare it as {found}.")
        default = aggregate.default.value if aggregate.default else None
        if default is not None and not _holds(column.type, default):
            text = f"the default of `{name}` is {default!r}, which is no {column.type}"
            self._add("default_type", name, text, f"Give a default of type {column.type}.")

    def _aggregate_type(self, name: str, aggregate: Aggregate) -> str:
        if not aggregate.of:
            if not isinstance(aggregate, Count):
                self._add("missing_column", name, f"`{name}`: {aggregate.type} names no column", 'Write of="…".')
                return UNKNOWN
            return "int"
        found = self._column(aggregate.of, name, f"`{name}`")
        if isinstance(aggregate, _NUMERIC) and found not in NUMBERS:
            text = f"`{name}`: {aggregate.type} of `{aggregate.of}`, which is {found}"
            self._add("aggregate_type", name, text, f"{aggregate.type} takes int and float.")
            return UNKNOWN
        if found == UNKNOWN and not isinstance(aggregate, Count | Avg):
            return UNKNOWN
        return result_type(aggregate, found)


def _fills(aggregate: Aggregate, found: str, wanted: str) -> bool:
    """Whether the result may stand in the column; the stock SDK has no lists and declares LastK as ``str``."""
    return fits(found, wanted) or (isinstance(aggregate, LastK) and wanted == "str")


@dataclass
class _Featureset:
    """Checks one featureset."""

    featureset: FeaturesetDef
    world: Definitions
    found: list[Finding] = field(default_factory=list)

    def check(self) -> list[Finding]:
        """Every mistake of the featureset."""
        self._names()
        for feature in self.featureset.features:
            self._feature(feature)
        for extractor in self.featureset.extractors:
            self._extractor(extractor)
        self._producers()
        return self.found

    def _add(self, code: str, member: str, message: str, hint: str = "", about: str = "") -> None:
        name = self.featureset.name
        key, subject = (f"featureset:{name}.{member}", f"{name}.{member}") if member else (f"featureset:{name}", name)
        self.found.append(Finding(code, key, subject, message, hint, about))

    def _names(self) -> None:
        for name, count in Counter(feature.name for feature in self.featureset.features).items():
            if count > 1:
                self._add("duplicate_name", name, f"the feature `{name}` is declared {count} times")
        ids = Counter(feature.id for feature in self.featureset.features if feature.id is not None)
        for number in (number for number, count in ids.items() if count > 1):
            owners = [feature.name for feature in self.featureset.features if feature.id == number]
            self._add("duplicate_id", owners[-1], f"id={number} is used by {', '.join(owners)}", "Ids are unique.")

    def _feature(self, feature: FeatureDef) -> None:
        if feature.default is not None and not _holds(feature.type, feature.default):
            text = f"the default {feature.default!r} is no {feature.type}"
            self._add("default_type", feature.name, text, f"Give a default of type {feature.type}.")
        if feature.lookup is None:
            return
        if feature.request:
            text = "a feature is looked up or sent by the caller, not both"
            self._add("ref_and_request", feature.name, text, "Leave one of them out.")
        dataset = self.world.dataset(feature.lookup.dataset)
        if dataset is None:
            hint = did_you_mean(feature.lookup.dataset, [d.name for d in self.world.datasets], "The commit")
            text = f"there is no dataset `{feature.lookup.dataset}`"
            self._add("unknown_dataset", feature.name, text, hint, feature.lookup.dataset)
            return
        self._looked_up(feature, feature.lookup.field, dataset)

    def _looked_up(self, feature: FeatureDef, name: str, dataset: DatasetDef) -> None:
        column = dataset.field(name)
        if column is None:
            mistake = unknown_column(name, Columns(dataset.name, {c.name: c.type for c in dataset.fields}))
            self._add(mistake.code, feature.name, mistake.message, mistake.hint, mistake.about)
            return
        if not dataset.index:
            text, hint = f"{dataset.name} keeps no index to look up in", "Write @dataset(index=True, …)."
            self._add("not_indexed", feature.name, text, hint)
        if not any(fits(found, feature.type) for found in self._column_types(column, dataset)):
            text = f"the feature is {feature.type}, `{dataset.name}.{name}` is {column.type}"
            self._add("type_mismatch", feature.name, text, f"Declare it as {column.type}.")
        entity, key = self.featureset.entity, next((c for c in dataset.fields if c.key), None)
        if entity is not None and key is not None and entity.type != key.type:
            text = f"the entity id `{entity.name}` is {entity.type}, the key of {dataset.name} is {key.type}"
            self._add("key_type_mismatch", feature.name, text, f"Declare `{entity.name}` as {key.type}.")

    def _column_types(self, column: FieldDef, dataset: DatasetDef) -> list[str]:
        """The column's declared type, and what LastK really gives where a list is declared as ``str``."""
        maker = self.world.producer(dataset.name)
        made = maker.fold.aggregates if maker and maker.steps and isinstance(maker.steps[-1], AggregateStep) else ()
        listed = any(named.output == column.name and isinstance(named.aggregate, LastK) for named in made)
        return [
            column.type,
            *([f"list[{kind}]" for kind in ("int", "float", "str", "bool", "datetime")] if listed else []),
        ]

    def _extractor(self, extractor: ExtractorDef) -> None:
        self._code(extractor)
        for name in extractor.inputs:
            if "." in name:
                self._foreign_input(extractor, name)
            elif self.featureset.feature(name) is None:
                self._unknown_feature(extractor, name, "input")
        for name in extractor.outputs:
            feature = self.featureset.feature(name)
            if feature is None:
                self._unknown_feature(extractor, name, "output")
            elif feature.request:
                text = f"`{name}` is sent by the caller; an extractor cannot compute it"
                self._add("request_output", extractor.name, text, "Leave out request=True, or the output.")
        for dep in extractor.deps:
            if self.world.dataset(dep) is None and self.world.featureset(dep) is None:
                known = [*(d.name for d in self.world.datasets), *(f.name for f in self.world.featuresets)]
                hint = did_you_mean(dep, known, "The commit")
                text = f"deps: there is no dataset or featureset `{dep}`"
                self._add("unknown_dep", extractor.name, text, hint, dep)

    def _code(self, extractor: ExtractorDef) -> None:
        try:
            body = ast.parse(extractor.code.source).body
        except (SyntaxError, ValueError) as error:
            self._add("invalid_code", extractor.name, f"the text of the function is not Python: {error}")
            return
        entry = extractor.code.entry_point
        if not any(isinstance(node, ast.FunctionDef) and node.name == entry for node in body):
            self._add("invalid_code", extractor.name, f"the text defines no function `{entry}`")

    def _unknown_feature(self, extractor: ExtractorDef, name: str, role: str) -> None:
        known = [feature.name for feature in self.featureset.features]
        text = f"the {role} `{name}` is not a feature of {self.featureset.name}"
        hint = did_you_mean(name, known, self.featureset.name)
        about = f"{self.featureset.name}.{name}"
        self._add(f"unknown_extractor_{role}", extractor.name, text, hint, about)

    def _foreign_input(self, extractor: ExtractorDef, name: str) -> None:
        owner, _, feature = name.partition(".")
        other = self.world.featureset(owner)
        if other is None:
            hint = did_you_mean(owner, [f.name for f in self.world.featuresets], "The commit")
            text = f"the input `{name}` is of the unknown featureset `{owner}`"
            self._add("unknown_extractor_input", extractor.name, text, hint, owner)
            return
        if other.feature(feature) is None:
            hint = did_you_mean(feature, [f.name for f in other.features], owner)
            text = f"the input `{feature}` is not a feature of {owner}"
            self._add("unknown_extractor_input", extractor.name, text, hint, name)
        mine, theirs = self.featureset.entity, other.entity
        if mine is not None and theirs is not None and mine.type != theirs.type:
            text = f"{owner} has an entity id of type {theirs.type}, {self.featureset.name} of type {mine.type}"
            self._add("key_type_mismatch", extractor.name, text, "Both are read for the same entity id.")

    def _producers(self) -> None:
        """Every feature comes from exactly one place, and one of them is the entity id."""
        outputs = Counter(output for extractor in self.featureset.extractors for output in extractor.outputs)
        for name, count in outputs.items():
            feature = self.featureset.feature(name)
            looked_up = feature is not None and feature.lookup is not None
            if count > 1 or looked_up:
                text = (
                    f"`{name}` is computed by several extractors"
                    if count > 1
                    else f"`{name}` is looked up and computed"
                )
                self._add("two_producers", name, text, "Leave one of them out.")
        entity = self.featureset.entity
        if entity is None:
            text, hint = "no feature is the entity id", "Begin with a bare one: `user: str = feature()`."
            self._add("no_entity", "", text, hint)
            return
        for feature in self.featureset.features:
            made = feature.request or feature.lookup is not None or feature.name in outputs
            if not made and feature.name != entity.name:
                text = "nothing gives the feature a value"
                hint = "Look it up (ref=), request it (request=True), or make it an extractor's output."
                self._add("unproduced_feature", feature.name, text, hint, f"{self.featureset.name}.{feature.name}")


def _finding(mistake: Mistake, key: str, subject: str) -> Finding:
    return Finding(mistake.code, key, subject, mistake.message, mistake.hint, mistake.about)


def _shown_type(column: FieldDef) -> str:
    return f"Optional[{column.type}]" if column.optional else column.type


_HOLDS: dict[str, Callable[[Scalar], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "datetime": lambda value: isinstance(value, str),
}


def _holds(type_name: str, value: Scalar) -> bool:
    return type_name in _HOLDS and _HOLDS[type_name](value)
