"""How columns become columns and features: the graph below that of definitions.

A node is ``field:Dataset.column`` or ``feature:Featureset.name``. Values are followed, not choices: a filter's columns
decide which rows count and lead nowhere. A function of the user's over rows may use every column it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from featurelib.definitions import (
    AggregateStep,
    AssignStep,
    Definitions,
    DropStep,
    ExtractorDef,
    FeaturesetDef,
    JoinStep,
    NamedAggregate,
    PipelineDef,
    RenameStep,
    SelectStep,
    Step,
    TransformStep,
    UnionStep,
)
from featurelib.expr import columns_of

ColumnEdgeType = Literal["field_input", "feature_lookup", "feature_input", "feature_dep"]
Origins = Mapping[str, frozenset[str]]
"""By column, the nodes its values come from."""


class ColumnEdge(NamedTuple):
    """Values go from ``start`` to ``end``; ``via`` is the pipeline or extractor that takes them, if one does."""

    start: str
    end: str
    type: ColumnEdgeType
    via: str = ""


def column_edges(definitions: Definitions) -> tuple[ColumnEdge, ...]:
    """Every edge between columns and features, each once, in a stable order."""
    return tuple(sorted({*_pipeline_edges(definitions), *_feature_edges(definitions)}))


def field_node(dataset: str, column: str) -> str:
    """The node of a dataset's column."""
    return f"field:{dataset}.{column}"


def feature_node(featureset: str, feature: str) -> str:
    """The node of a feature."""
    return f"feature:{featureset}.{feature}"


def _pipeline_edges(definitions: Definitions) -> Iterator[ColumnEdge]:
    for pipeline in definitions.pipelines:
        output = definitions.dataset(pipeline.output_dataset)
        for column, origins in _origins(pipeline, definitions).items():
            if output is not None and output.field(column):
                end = field_node(output.name, column)
                yield from (ColumnEdge(start, end, "field_input", pipeline.name) for start in origins)


def _origins(pipeline: PipelineDef, definitions: Definitions) -> Origins:
    """Where the columns of a pipeline's output come from."""
    return _followed(pipeline.steps, _columns(pipeline.input_datasets[0], definitions), definitions)


def _columns(dataset: str, definitions: Definitions) -> Origins:
    found = definitions.dataset(dataset)
    return {field.name: frozenset({field_node(dataset, field.name)}) for field in (found.fields if found else ())}


def _followed(steps: Iterable[Step], columns: Origins, definitions: Definitions) -> Origins:
    for step in steps:
        columns = _after(step, columns, definitions)
    return columns


def _after(step: Step, columns: Origins, definitions: Definitions) -> Origins:
    match step:
        case AssignStep():
            after: Origins = {**columns, step.column: _union(columns, columns_of(step.value))}
        case TransformStep():
            after = {**columns, **dict.fromkeys((name for name, _ in step.columns), _union(columns, columns))}
        case RenameStep():
            names = dict(step.columns)
            after = {names.get(name, name): origins for name, origins in columns.items()}
        case SelectStep():
            after = {name: columns[name] for name in step.columns if name in columns}
        case DropStep():
            after = {name: origins for name, origins in columns.items() if name not in step.columns}
        case JoinStep():
            after = {**columns, **{name: frozenset({field_node(step.right, name)}) for name in step.fields}}
        case UnionStep():
            other = _followed(step.steps, _columns(step.dataset, definitions), definitions)
            after = {name: origins | other.get(name, frozenset()) for name, origins in columns.items()}
        case AggregateStep():
            kept = {key: columns.get(key, frozenset()) for key in step.keys}
            after = {**kept, **{named.output: _aggregated(named, columns) for named in step.aggregates}}
        case _:
            after = columns  # the other steps choose rows
    return after


def _aggregated(named: NamedAggregate, columns: Origins) -> frozenset[str]:
    aggregate = named.aggregate
    condition = columns_of(aggregate.where) if aggregate.where is not None else set()
    # A condition of an aggregate is part of its value, as in "how many refunds"; a count has nothing else.
    return _union(columns, {aggregate.of, *condition})


def _union(columns: Origins, names: Iterable[str]) -> frozenset[str]:
    return frozenset(origin for name in names for origin in columns.get(name, ()))


def _feature_edges(definitions: Definitions) -> Iterator[ColumnEdge]:
    for featureset in definitions.featuresets:
        for feature in featureset.features:
            if feature.lookup is not None:
                start = field_node(feature.lookup.dataset, feature.lookup.field)
                yield ColumnEdge(start, feature_node(featureset.name, feature.name), "feature_lookup")
        for extractor in featureset.extractors:
            yield from _extractor_edges(extractor, featureset, definitions)


def _extractor_edges(
    extractor: ExtractorDef, featureset: FeaturesetDef, definitions: Definitions
) -> Iterator[ColumnEdge]:
    for output in extractor.outputs:
        end = feature_node(featureset.name, output)
        for name in extractor.inputs:
            start = f"feature:{name}" if "." in name else feature_node(featureset.name, name)
            yield ColumnEdge(start, end, "feature_input", extractor.name)
        for dep in extractor.deps:
            # Which columns its code looks up is not declared: the dataset as a whole stands for them.
            if definitions.dataset(dep):
                yield ColumnEdge(f"dataset:{dep}", end, "feature_dep", extractor.name)
