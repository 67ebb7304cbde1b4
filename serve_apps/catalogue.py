"""The catalogue: what is committed, with what people say about it.

Knows no HTTP. Methods block (SQL): the routes call them in threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

from featurelib.clock import DAY, Clock, Duration, Instant, format_instant
from featurelib.definitions import (
    DatasetDef,
    Definition,
    Definitions,
    PipelineDef,
)
from featurelib.errors import NotFound
from featurelib.lineage import dependents
from featurelib.metadata import Metadata
from featurelib.stores.metadata_edits import MetadataEdit, MetadataEdits
from featurelib.stores.metadata_edits import Name as EditedName
from featurelib.stores.registry import Identity, Registry, identity_of
from featurelib.stores.revisions import Revisions, Written
from serve_apps import search, shapes
from serve_apps.graph import Direction, Graph, Level, around, graph
from serve_apps.search import Entry, Kind
from serve_apps.shapes import About, Json

_FRESH_FOR, _STALE_FOR = DAY, 7 * DAY
_Versioned = TypeVar("_Versioned", DatasetDef, PipelineDef)
Freshness = Literal["fresh", "stale", "broken"]


@dataclass(frozen=True, slots=True)
class Catalogued:
    """Everything committed, and what the platform knows about each definition, read at one moment."""

    definitions: Definitions
    written: Mapping[Identity, Written]
    edits: Mapping[EditedName, MetadataEdit]
    deprecated: Mapping[Identity, Instant]

    @classmethod
    def read(cls, registry: Registry) -> Catalogued:
        """What the registry holds now."""
        definitions, revisions = registry.definitions(), Revisions(registry.database)
        edits = MetadataEdits(registry.database).all()
        marked = [identity_of(each) for each in definitions.all if _code_of(each).deprecated]
        # Read after the definitions: nothing is ever removed, so each of them is among what was written.
        return cls(definitions, revisions.written(), edits, revisions.deprecated_since(marked))

    def about(self, definition: Definition) -> About:
        """Metadata as it is shown, with its instants."""
        identity, code = identity_of(definition), _code_of(definition)
        written = self.written.get(identity)
        edit = self.edits.get((identity.kind, identity.name))
        metadata = edit.over(code) if edit else code
        at = [written.updated_at if written else None, edit.updated_at if edit else None]
        return About(
            metadata=metadata,
            created_at=written.created_at if written else None,
            updated_at=max((each for each in at if each is not None), default=None),
            deprecated_at=self._deprecated_at(identity, edit) if metadata.deprecated else None,
        )

    def entries(self) -> Iterator[Entry]:
        """The newest version of every definition, as it is searched."""
        definitions = self.definitions
        for featureset in definitions.featuresets:
            members = tuple(feature.name for feature in featureset.features)
            about = self.about(featureset)
            record = partial(shapes.featureset_record, featureset, about)
            yield Entry("featureset", featureset.name, members, about.metadata, record)
        for dataset in newest(definitions.datasets):
            members, about = tuple(field.name for field in dataset.fields), self.about(dataset)
            record = partial(shapes.dataset_record, dataset, about)
            yield Entry("dataset", dataset.name, members, about.metadata, record)
        for pipeline in newest(definitions.pipelines):
            members, about = (*pipeline.input_datasets, pipeline.output_dataset), self.about(pipeline)
            record = partial(shapes.pipeline_record, pipeline, about)
            yield Entry("pipeline", pipeline.name, members, about.metadata, record)
        for source in definitions.sources:
            about = self.about(source)
            record = partial(shapes.source_record, source, None, about)
            yield Entry("source", source.dataset, (source.connector.type,), about.metadata, record)

    def _deprecated_at(self, identity: Identity, edit: MetadataEdit | None) -> Instant | None:
        return (edit.deprecated_at if edit else None) or self.deprecated.get(identity)


class Member(NamedTuple):
    """A definition of a project."""

    kind: Kind
    name: str
    about: About


class Catalogue:
    """What the catalogue routes answer with.

    Args:
        registry: what is committed.
        clock: what the age of a project's members is counted from.
    """

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock

    def read(self) -> Catalogued:
        """Everything committed with what is known about it."""
        return Catalogued.read(self._registry)

    def featuresets(self) -> list[Json]:
        """Every featureset."""
        read = self.read()
        return [shapes.featureset_record(each, read.about(each)) for each in read.definitions.featuresets]

    def feature_services(self, may_read: Callable[[str], bool]) -> list[Json]:
        """Every feature service of the workspaces that ``may_read`` lets through, all versions."""
        read = self.read()
        services = [each for each in read.definitions.feature_services if may_read(each.workspace)]
        return [shapes.feature_service_record(each, read.about(each)) for each in services]

    def feature_service(self, workspace: str, name: str, version: int | None) -> Json:
        """One feature service, its newest version unless one is given.

        Raises:
            NotFound: it is not committed.
        """
        read = self.read()
        found = read.definitions.feature_service(workspace, name, version)
        if found is None:
            raise NotFound(f"feature service {name[:128]!r} is not committed in workspace {workspace[:128]!r}")
        return shapes.feature_service_record(found, read.about(found))

    def datasets(self) -> list[Json]:
        """Every dataset, all versions."""
        read = self.read()
        return [shapes.dataset_record(each, read.about(each)) for each in read.definitions.datasets]

    def pipelines(self) -> list[Json]:
        """Every pipeline, all versions."""
        read = self.read()
        return [shapes.pipeline_record(each, read.about(each)) for each in read.definitions.pipelines]

    def commits(self, limit: int) -> list[Json]:
        """The latest commits, newest first."""
        return [shapes.commit_record(commit) for commit in self._registry.commits(limit)]

    def featureset(self, name: str) -> Json:
        """One featureset.

        Raises:
            NotFound: it is not committed.
        """
        read = self.read()
        found = _present(read.definitions.featureset(name), "featureset", name)
        return shapes.featureset_record(found, read.about(found))

    def dataset(self, name: str, version: int | None) -> Json:
        """One dataset, its newest version unless one is given.

        Raises:
            NotFound: it is not committed.
        """
        read = self.read()
        found = _of_version(read.definitions.datasets, "dataset", name, version)
        return shapes.dataset_record(found, read.about(found))

    def pipeline(self, name: str, version: int | None) -> Json:
        """One pipeline, its newest version unless one is given.

        Raises:
            NotFound: it is not committed.
        """
        read = self.read()
        found = _of_version(read.definitions.pipelines, "pipeline", name, version)
        return shapes.pipeline_record(found, read.about(found))

    def search(self, question: search.Question, limit: int) -> Json:
        """What a question means, at most ``limit`` of each kind, and the labels of all that it means."""
        hits = search.found(self.read().entries(), question)
        return {
            **{f"{kind}s": _records(hits, kind, limit) for kind in ("featureset", "dataset", "pipeline", "source")},
            "tags": _listed(search.tag_facets(hits)),
            "owners": _listed(search.owner_facets(hits)),
            "projects": _listed(search.project_facets(hits)),
        }

    def tags(self) -> list[Json]:
        """Every tag, and how many definitions have it."""
        return _listed(search.tag_facets(self.read().entries()))

    def owners(self) -> list[Json]:
        """Every owner, and how many definitions they have."""
        return _listed(search.owner_facets(self.read().entries()))

    def projects(self) -> list[Json]:
        """Every project with the number of its members."""
        return [self._project(name, members) for name, members in _projects(self.read()).items()]

    def project(self, project_id: str) -> Json:
        """One project, by id or name, with its members.

        Raises:
            NotFound: there is none.
        """
        for name, members in _projects(self.read()).items():
            if project_id in {name, shapes.identity("project", name)}:
                return self._project(name, members) | {"members": self._members(members)}
        raise NotFound(f"there is no project {project_id[:128]!r}")

    def dependents(self, kind: Kind, name: str) -> Json:
        """What takes data from a definition directly.

        Raises:
            NotFound: it is not committed.
        """
        definitions = self._registry.definitions()
        named(definitions, kind, name)
        found = dependents(definitions, f"{kind}:{name}")
        return {"kind": kind, "name": name, "dependents": [_dependent(edge.end, edge.type) for edge in found]}

    def lineage(self, level: Level, node: str | None, direction: Direction) -> Graph:
        """What feeds what.

        Raises:
            NotFound: there is no such node.
        """
        whole = graph(self._registry.definitions(), level)
        return whole if node is None else around(whole, node, direction)

    def _project(self, name: str, members: list[Member]) -> Json:
        owners = Counter(member.about.metadata.owner for member in members if member.about.metadata.owner)
        ages = Counter(self._freshness(member) for member in members)
        return {
            "id": shapes.identity("project", name),
            "name": name,
            "description": None,
            "owner": min(owners, key=lambda owner: (-owners[owner], owner), default=None),
            "member_count": {f"{kind}s": len(each) for kind, each in _by_kind(members)},
            "freshness": {age: ages[age] for age in ("fresh", "stale", "broken")},
            "created_at": _edge_of(min, (member.about.created_at for member in members)),
            "updated_at": _edge_of(max, (member.about.updated_at for member in members)),
        }

    def _members(self, members: list[Member]) -> Json:
        return {
            f"{kind}s": [
                {
                    "id": shapes.identity(kind, member.name),
                    "name": member.name,
                    "freshness": self._freshness(member),
                    "metadata": shapes.metadata_block(member.about),
                }
                for member in each
            ]
            for kind, each in _by_kind(members)
        }

    def _freshness(self, member: Member) -> Freshness:
        return freshness_of(self._clock.now() - (member.about.updated_at or 0))


def freshness_of(age: Duration) -> Freshness:
    """How fresh a definition is that nobody has touched for so long."""
    return "fresh" if age < _FRESH_FOR else "stale" if age < _STALE_FOR else "broken"


def newest(definitions: Iterable[_Versioned]) -> list[_Versioned]:
    """The newest version of each name, in their order."""
    found: dict[str, _Versioned] = {}
    for definition in definitions:
        if definition.name not in found or found[definition.name].version < definition.version:
            found[definition.name] = definition
    return list(found.values())


def _code_of(definition: Definition) -> Metadata:
    """What the code says; pipelines carry no metadata."""
    return Metadata() if isinstance(definition, PipelineDef) else definition.metadata


def named(definitions: Definitions, kind: Kind, name: str) -> Definition:
    """The newest version of the definition of that name.

    Asked before any SQL: PostgreSQL compares no text that holds a NUL, and no definition's name does.

    Raises:
        NotFound: it is not committed.
    """
    found: Definition | None
    match kind:
        case "featureset":
            found = definitions.featureset(name)
        case "dataset":
            found = definitions.dataset(name)
        case "pipeline":
            found = definitions.pipeline(name)
        case "source":
            found = definitions.source(name)
    return _present(found, kind, name)


_Found = TypeVar("_Found", bound=Definition)


def _present(found: _Found | None, kind: Kind, name: str) -> _Found:
    if found is None:
        raise NotFound(f"{kind} {name[:128]!r} is not committed")
    return found


def _of_version(those: Iterable[_Versioned], kind: Kind, name: str, version: int | None) -> _Versioned:
    found = [each for each in those if each.name == name and version in {None, each.version}]
    if not found:
        raise NotFound(f"{kind} {name[:128]!r}{f' version {version}' if version else ''} is not committed")
    return max(found, key=lambda each: each.version)


def _records(hits: Iterable[Entry], kind: str, limit: int) -> list[Json]:
    return [entry.record() for entry in [hit for hit in hits if hit.kind == kind][:limit]]


def _listed(facets: Iterable[search.Facet]) -> list[Json]:
    return [{"name": facet.label, "count": facet.definitions} for facet in facets]


def _projects(read: Catalogued) -> dict[str, list[Member]]:
    """By project, its members; the largest project first."""
    found: dict[str, list[Member]] = {}
    for entry in read.entries():
        if entry.metadata.project:
            about = read.about(named(read.definitions, entry.kind, entry.name))
            found.setdefault(entry.metadata.project, []).append(Member(entry.kind, entry.name, about))
    return dict(sorted(found.items(), key=lambda each: (-len(each[1]), each[0])))


def _by_kind(members: list[Member]) -> Iterator[tuple[Kind, list[Member]]]:
    kinds: tuple[Kind, ...] = ("featureset", "dataset", "source")
    return ((kind, [member for member in members if member.kind == kind]) for kind in kinds)


def _edge_of(choose: Any, instants: Iterable[Instant | None]) -> str | None:
    known = [instant for instant in instants if instant is not None]
    return format_instant(choose(known)) if known else None


def _dependent(node: str, edge_type: str) -> Json:
    kind, _, name = node.partition(":")
    return {"kind": kind, "name": name, "edge_type": edge_type}
