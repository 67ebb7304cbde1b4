"""The graph of definitions: what feeds what, what depends on what, and whether it runs in a circle.

A node is ``kind:Name``: ``source:Transaction``, ``dataset:Transaction``, ``pipeline:by_user``,
``featureset:UserFeatures``, ``feature_service:prod/fraud``. An edge points the way the data goes. How columns become
columns and features is in :mod:`featurelib.column_lineage`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Literal, NamedTuple, Protocol

from featurelib.definitions import Definitions, ExtractorDef, FeatureDef, FeaturesetDef

EdgeType = Literal[
    "source_feeds", "pipeline_input", "pipeline_output", "featureset_lookup", "featureset_dep", "service_view"
]


class Edge(NamedTuple):
    """Data goes from ``start`` to ``end``."""

    start: str
    end: str
    type: EdgeType


class Arrow(Protocol):
    """What any graph here consists of."""

    @property
    def start(self) -> str:
        """Where the data comes from."""
        ...

    @property
    def end(self) -> str:
        """Where it goes."""
        ...


class Ingredient(NamedTuple):
    """A feature that others are made of, the featureset it is of, and what computes it, if anything does."""

    owner: FeaturesetDef
    feature: FeatureDef
    extractors: tuple[ExtractorDef, ...]


def made_of(featureset: FeaturesetDef, names: Iterable[str], definitions: Definitions) -> Iterator[Ingredient]:
    """What some features of a featureset are made of through extractors, themselves first; each once."""
    seen: set[tuple[str, str]] = set()
    waiting = deque((featureset, name) for name in names)
    while waiting:
        owner, name = waiting.popleft()
        feature = owner.feature(name)
        if feature is None or (owner.name, name) in seen:
            continue
        seen.add((owner.name, name))
        extractors = tuple(each for each in owner.extractors if name in each.outputs)
        yield Ingredient(owner, feature, extractors)
        for given in (given for each in extractors for given in each.inputs):
            other, _, local = given.rpartition(".")
            found = definitions.featureset(other) if other else owner
            if found is not None:
                waiting.append((found, local))


def edges(definitions: Definitions) -> tuple[Edge, ...]:
    """Every edge, each once, in a stable order; a featureset that names its own features has none to itself."""
    return tuple(sorted({edge for edge in _edges(definitions) if edge.start != edge.end}))


def dependents(definitions: Definitions, node: str) -> tuple[Edge, ...]:
    """The edges that leave a node: what breaks when it goes."""
    return tuple(edge for edge in edges(definitions) if edge.start == node)


def downstream(definitions: Definitions, node: str) -> frozenset[str]:
    """Every node that data from this one reaches."""
    return reached([node], edges(definitions))


def reached(starts: Iterable[str], arrows: Iterable[Arrow], *, backwards: bool = False) -> frozenset[str]:
    """Every node that arrows lead to from any of ``starts``, or, backwards, that leads to one of them."""
    following: dict[str, list[str]] = {}
    for arrow in arrows:
        start, end = (arrow.end, arrow.start) if backwards else (arrow.start, arrow.end)
        following.setdefault(start, []).append(end)
    found: set[str] = set()
    waiting = list(starts)
    while waiting:
        fresh = set(following.get(waiting.pop(), ())) - found
        found |= fresh
        waiting.extend(fresh)
    return frozenset(found)


def dataset_cycle(definitions: Definitions) -> list[str]:
    """Datasets and pipelines that feed themselves, first one repeated at the end; empty when none does."""
    graph: dict[str, set[str]] = {}
    for edge in edges(definitions):
        if edge.type in {"pipeline_input", "pipeline_output"}:
            graph.setdefault(edge.end, set()).add(edge.start)
    return cycle(graph)


def feature_cycle(featuresets: Iterable[FeaturesetDef]) -> list[str]:
    """Features computed from themselves, as ``Featureset.feature``; empty when none is."""
    graph: dict[str, set[str]] = {}
    for featureset in featuresets:
        for extractor in featureset.extractors:
            needed = {name if "." in name else f"{featureset.name}.{name}" for name in extractor.inputs}
            for output in extractor.outputs:
                graph.setdefault(f"{featureset.name}.{output}", set()).update(needed)
    return cycle(graph)


def cycle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """One cycle of a graph given as node → what it needs; empty when there is none."""
    try:
        TopologicalSorter({node: sorted(needed) for node, needed in sorted(graph.items())}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def _edges(definitions: Definitions) -> Iterator[Edge]:
    for source in definitions.sources:
        yield Edge(f"source:{source.dataset}", f"dataset:{source.dataset}", "source_feeds")
    for pipeline in definitions.pipelines:
        node = f"pipeline:{pipeline.name}"
        yield Edge(node, f"dataset:{pipeline.output_dataset}", "pipeline_output")
        yield from (Edge(f"dataset:{name}", node, "pipeline_input") for name in pipeline.input_datasets)
    for featureset in definitions.featuresets:
        yield from _featureset_edges(featureset, definitions)
    for service in definitions.feature_services:
        used = [view.featureset for view in service.views]
        used += [service.wildcard.featureset] if service.wildcard else []
        node = f"feature_service:{service.qualified_name}"
        yield from (Edge(f"featureset:{name}", node, "service_view") for name in used)


def _featureset_edges(featureset: FeaturesetDef, definitions: Definitions) -> Iterator[Edge]:
    node = f"featureset:{featureset.name}"
    for feature in featureset.features:
        if feature.lookup is not None:
            yield Edge(f"dataset:{feature.lookup.dataset}", node, "featureset_lookup")
    for extractor in featureset.extractors:
        for name in extractor.inputs:
            if "." in name:
                yield Edge(f"featureset:{name.split('.')[0]}", node, "featureset_dep")
        for dep in extractor.deps:
            kind = "dataset" if definitions.dataset(dep) else "featureset"
            yield Edge(f"{kind}:{dep}", node, "featureset_dep")
