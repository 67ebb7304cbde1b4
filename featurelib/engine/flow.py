"""A pipeline's steps as a graph of nodes, from the raw datasets to what its served aggregate sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featurelib.aggregates import First, Last
from featurelib.definitions import (
    AggregateStep,
    DatasetDef,
    DedupStep,
    Definitions,
    FilterCodeStep,
    FilterStep,
    FirstStep,
    JoinStep,
    LatestStep,
    NamedAggregate,
    PipelineDef,
    Step,
    TransformStep,
    UnionStep,
)
from featurelib.engine.counting import counting
from featurelib.engine.emissions import CHOSEN, EmitNode
from featurelib.engine.nodes import (
    CodeNode,
    DatasetNode,
    FirstNode,
    JoinNode,
    LatestNode,
    MapNode,
    Node,
    OrderedNode,
    SourceNode,
    UnionNode,
    VersionsNode,
    non_null,
    takes_back,
)
from featurelib.engine.operators import (
    ENGINE_COLUMNS,
    IDENTITY,
    UserFailure,
    is_stateless,
)


class Graph:
    """The nodes of one pipeline, and the raw datasets that feed them.

    Attributes:
        top: the node before the served aggregate.
        sources: every raw dataset read, the left one first.
        clocks: those of them whose newest record moves the pipeline's clock; right sides of joins do not.
        failures: rows that users' functions could not take; the caller empties it.
    """

    def __init__(self, pipeline: PipelineDef, definitions: Definitions) -> None:
        self._definitions = definitions
        self.sources: list[DatasetDef] = []
        self.clocks: list[DatasetDef] = []
        self.failures: list[UserFailure] = []
        self._depth_of_rights = 0
        self.top = self._steps(pipeline.input_datasets[0], pipeline.steps[:-1])

    def _dataset(self, name: str) -> Node:
        dataset = self._definitions.dataset(name)
        if dataset is None:
            raise KeyError(name)
        producer = self._definitions.producer(name)
        if producer is None:
            return self._source(dataset)
        limits = counting(producer.backfill)
        counted = () if limits is None else (FilterStep(predicate=limits),)
        steps = (*producer.steps[:-1], *counted, producer.steps[-1])
        return DatasetNode(self._steps(producer.input_datasets[0], steps), producer, dataset)

    def _source(self, dataset: DatasetDef) -> Node:
        cdc = self._definitions.cdc(dataset.name)
        if dataset not in self.sources:
            self.sources.append(dataset)
        if not self._depth_of_rights and dataset not in self.clocks:
            self.clocks.append(dataset)
        node = SourceNode(dataset, cdc)
        if cdc != "append":
            return VersionsNode(node, [dataset.key.name])
        return LatestNode(node, [dataset.key.name, dataset.timestamp.name]) if dataset.upsert else node

    def _steps(self, dataset: str, steps: Sequence[Step]) -> Node:
        node = self._dataset(dataset)
        left = self._definitions.dataset(dataset)
        assert left is not None
        for step in steps:
            node = self._step(node, step, left.timestamp.name)
        return node

    def _step(self, node: Node, step: Step, timestamp: str) -> Node:  # noqa: PLR0911  # a table
        match step:
            case JoinStep():
                return self._join(node, step)
            case UnionStep():
                return UnionNode([node, self._steps(step.dataset, step.steps)])
            case DedupStep():
                by = step.by or tuple(name for name in node.empty.columns if name not in ENGINE_COLUMNS)
                return self._first(node, by, timestamp, null_keys=True)
            case FirstStep():
                return self._first(node, step.keys, timestamp, null_keys=False)
            case LatestStep():
                return self._latest(node, step.keys, timestamp)
            case AggregateStep():
                return EmitNode(node, step, timestamp)
            case FilterCodeStep() | TransformStep() if takes_back(node):
                return CodeNode(node, [step], self.failures)
            case _ if is_stateless(step):
                return MapNode(node, [step], self.failures)
        message = f"no node runs {step.op}"
        raise TypeError(message)

    def _join(self, node: Node, step: JoinStep) -> Node:
        right = self._definitions.dataset(step.right)
        assert right is not None
        self._depth_of_rights += 1
        joined = JoinNode(node, self._dataset(step.right), right.key.name, step)
        self._depth_of_rights -= 1
        return joined

    def _first(self, node: Node, keys: tuple[str, ...], timestamp: str, *, null_keys: bool) -> Node:
        if not node.closes:
            return FirstNode(non_null(node, () if null_keys else keys), keys)
        return self._emitted(node, keys, First, timestamp, null_keys=null_keys)

    def _latest(self, node: Node, keys: tuple[str, ...], timestamp: str) -> Node:
        if not node.closes:
            return LatestNode(non_null(node, keys), keys)
        return self._emitted(node, keys, Last, timestamp, null_keys=False)

    def _emitted(self, node: Node, keys: tuple[str, ...], kind: Any, timestamp: str, *, null_keys: bool) -> Node:
        # Once a row ends, another row of its key counts again: the same as an aggregate whose value changes.
        others = [n for n in node.empty.columns if n not in (*keys, *ENGINE_COLUMNS, timestamp)]
        picked = {**{name: name for name in others}, **dict(zip(CHOSEN, IDENTITY, strict=True))}
        aggregates = tuple(NamedAggregate(output=name, aggregate=kind(of=of)) for name, of in picked.items())
        step = AggregateStep(keys=keys, aggregates=aggregates)
        columns = [name for name in node.empty.columns if name not in ENGINE_COLUMNS]
        return OrderedNode(EmitNode(node, step, timestamp, null_keys=null_keys, chosen=True), columns)
