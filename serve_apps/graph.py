"""The lineage of everything committed, as nodes and edges: definitions, and below them columns and features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from featurelib.column_lineage import ColumnEdge, column_edges, feature_node, field_node
from featurelib.definitions import Definitions
from featurelib.errors import NotFound
from featurelib.lineage import Edge, edges, reached

Level = Literal["definition", "feature"]
Direction = Literal["upstream", "downstream", "both"]


class Node(NamedTuple):
    """A thing that data comes from or goes to. ``parent`` is the definition that a column or feature belongs to.

    ``versions`` are those of a dataset, pipeline or feature service; ``dtype`` is the type of a column or feature.
    """

    id: str
    kind: Literal["source", "dataset", "pipeline", "featureset", "feature_service", "field", "feature"]
    name: str
    parent: str | None = None
    dtype: str | None = None
    versions: tuple[int, ...] = ()


class Graph(NamedTuple):
    """Nodes in order of kind and name, and the edges between them."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge | ColumnEdge, ...]


def graph(definitions: Definitions, level: Level) -> Graph:
    """The whole graph; at the level of definitions without columns and features."""
    nodes = {node.id: node for node in _definition_nodes(definitions)}
    arrows: tuple[Edge | ColumnEdge, ...] = edges(definitions)
    if level == "feature":
        nodes |= {node.id: node for node in _inner_nodes(definitions)}
        arrows = (*arrows, *column_edges(definitions))
    # A featureset committed before what it names, or a dataset named as a dependency alone, has no node at the end.
    return Graph(tuple(nodes.values()), tuple(a for a in arrows if a.start in nodes and a.end in nodes))


def around(whole: Graph, name: str, direction: Direction) -> Graph:
    """What data of a node reaches, or comes from, and the node itself; of a definition, all it holds.

    ``name`` is a node's id, or a name alone, which means every node that has it.

    Raises:
        NotFound: there is no such node.
    """
    meant = {each.id for each in whole.nodes if name in {each.id, each.name}}
    if not meant:
        raise NotFound(f"there is no node {name[:300]!r}; name one as `dataset:Name` or `feature:Name.member`")
    starts = meant | {each.id for each in whole.nodes if each.parent in meant}
    kept = set(starts)
    for backwards in _ways(direction):
        kept |= reached(starts, whole.edges, backwards=backwards)
    kept |= {each.parent for each in whole.nodes if each.id in kept and each.parent}
    return Graph(
        tuple(each for each in whole.nodes if each.id in kept),
        tuple(arrow for arrow in whole.edges if arrow.start in kept and arrow.end in kept),
    )


def _ways(direction: Direction) -> Iterable[bool]:
    return {"upstream": (True,), "downstream": (False,), "both": (False, True)}[direction]


def _definition_nodes(definitions: Definitions) -> Iterator[Node]:
    for source in definitions.sources:
        yield Node(f"source:{source.dataset}", "source", source.dataset)
    for name, versions in _versions((each.name, each.version) for each in definitions.datasets):
        yield Node(f"dataset:{name}", "dataset", name, versions=versions)
    for name, versions in _versions((each.name, each.version) for each in definitions.pipelines):
        yield Node(f"pipeline:{name}", "pipeline", name, versions=versions)
    for featureset in definitions.featuresets:
        yield Node(f"featureset:{featureset.name}", "featureset", featureset.name)
    for name, versions in _versions((each.qualified_name, each.version) for each in definitions.feature_services):
        yield Node(f"feature_service:{name}", "feature_service", name, versions=versions)


def _versions(named: Iterable[tuple[str, int]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    found: dict[str, list[int]] = {}
    for name, version in named:
        found.setdefault(name, []).append(version)
    return ((name, tuple(sorted(versions))) for name, versions in found.items())


def _inner_nodes(definitions: Definitions) -> Iterator[Node]:
    # Versions in order: of a column that several have, the newest one's type counts.
    for dataset in definitions.datasets:
        for field in dataset.fields:
            name = f"{dataset.name}.{field.name}"
            yield Node(field_node(dataset.name, field.name), "field", name, f"dataset:{dataset.name}", field.type)
    for featureset in definitions.featuresets:
        for feature in featureset.features:
            node, name = feature_node(featureset.name, feature.name), f"{featureset.name}.{feature.name}"
            yield Node(node, "feature", name, f"featureset:{featureset.name}", feature.type)
