"""`/api/v1/...`: the catalogue of what is committed: records, search, labels, projects, versions, lineage, commits."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from featurelib.definitions import LARGEST_VERSION
from featurelib.stores.metadata_edits import EditedKind
from serve_apps import records, search
from serve_apps.catalogue import Catalogue
from serve_apps.definition_service import DefinitionService
from serve_apps.editing import MetadataService
from serve_apps.graph import Direction, Level
from serve_apps.past_definitions import PastDefinitions
from serve_apps.routes.access import Anybody, ServicesOf, Writer, definition_service

router = APIRouter(prefix="/api/v1", tags=["catalogue"])

_LONGEST_FILTER, _LONGEST_PROSE, _MOST_TAGS = 1_000, 10_000, 100
_WITHOUT_NUL = r"^[^\x00]*$"
_KIND = "(featureset|dataset|pipeline|source)"
_SOME_KINDS = f"^({_KIND}(,{_KIND})*)?$"
Json = dict[str, Any]

Name = Annotated[str, Path(min_length=1, max_length=128, description="Its name.", examples=["Rider"])]
DatasetName = Annotated[str, Path(min_length=1, max_length=128, description="Its dataset's name.", examples=["Ride"])]
ProjectId = Annotated[str, Path(min_length=1, max_length=300, description="Id or name.", examples=["pricing"])]
CommitId = Annotated[str, Path(pattern="^[0-9a-f]{1,64}$", description="As commits are listed.")]
Revision = Annotated[int, Path(ge=1, le=LARGEST_VERSION, description="From 1.", examples=[1])]
Version = Annotated[int | None, Query(ge=1, le=LARGEST_VERSION, description="The newest when it is left out.")]
Text = Annotated[str, StringConstraints(max_length=_LONGEST_PROSE, pattern=_WITHOUT_NUL)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=_WITHOUT_NUL)]
TagValue = Annotated[str, StringConstraints(max_length=256, pattern=_WITHOUT_NUL)]
Listed = Annotated[str, Query(max_length=_LONGEST_FILTER, pattern=_WITHOUT_NUL)]


class MetadataPatch(BaseModel):
    """Members to edit; what is left out stays, null empties."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"description": "Rides of the last day.", "owner": "team-rides"}]},
    )

    description: Text | None = None
    """Markdown."""
    owner: TagValue | None = None
    """Who answers for it; the empty text is nobody."""
    tags: (
        Annotated[dict[Label, TagValue], Field(max_length=_MOST_TAGS)]
        | Annotated[list[Label], Field(max_length=_MOST_TAGS)]
        | None
    ) = None
    """All its tags: names, or names with values."""

    @property
    def members(self) -> Json:
        """What is edited, as metadata keeps it."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        if "owner" in given:
            given["owner"] = self.owner or None
        if "tags" in given:
            given["tags"] = dict(self.tags) if isinstance(self.tags, dict) else dict.fromkeys(self.tags or (), "")
        return given


class DeprecationRequest(BaseModel):
    """Why a featureset should not be used any more, and what instead."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"reason": "counts cancelled rides", "replacement": "RiderTrips"}]},
    )

    reason: Text | None = None
    """Why."""
    replacement: Annotated[str, StringConstraints(max_length=128, pattern=_WITHOUT_NUL)] | None = None
    """The featureset to use in its place."""


def _catalogue(services: ServicesOf) -> Catalogue:
    return Catalogue(services.stores.registry, services.clock)


def _past(services: ServicesOf) -> PastDefinitions:
    return PastDefinitions(services.stores.registry)


def _editing(services: ServicesOf) -> MetadataService:
    return MetadataService(services.stores.registry, services.clock)


CatalogueOf = Annotated[Catalogue, Depends(_catalogue)]
PastOf = Annotated[PastDefinitions, Depends(_past)]
EditingOf = Annotated[MetadataService, Depends(_editing)]
DefinitionsOf = Annotated[DefinitionService, Depends(definition_service)]


@router.get("/featuresets", response_model=list[records.FeaturesetRecord])
def featuresets(catalogue: CatalogueOf) -> list[Json]:
    """Every committed featureset with its features and extractors."""
    return catalogue.featuresets()


@router.get("/featuresets/{name}", response_model=records.FeaturesetRecord)
def featureset(name: Name, catalogue: CatalogueOf) -> Json:
    """One featureset with its features and extractors."""
    return catalogue.featureset(name)


@router.get("/feature-services", response_model=list[records.FeatureServiceRecord])
def feature_services(catalogue: CatalogueOf, caller: Anybody) -> list[Json]:
    """Every committed feature service of the workspaces that the key may read, all versions."""
    return catalogue.feature_services(caller.may_read_workspace)


@router.get("/feature-services/{workspace}/{name}", response_model=records.FeatureServiceRecord)
def feature_service(
    workspace: Name, name: Name, catalogue: CatalogueOf, caller: Anybody, version: Version = None
) -> Json:
    """One feature service: its newest version, or the one asked for."""
    caller.require_workspace(workspace)
    return catalogue.feature_service(workspace, name, version)


@router.get("/datasets", response_model=list[records.DatasetRecord])
def datasets(catalogue: CatalogueOf) -> list[Json]:
    """Every committed dataset, all versions."""
    return catalogue.datasets()


@router.get("/datasets/{name}", response_model=records.DatasetRecord)
def dataset(name: Name, catalogue: CatalogueOf, version: Version = None) -> Json:
    """One dataset: its newest version, or the one asked for."""
    return catalogue.dataset(name, version)


@router.get("/pipelines", response_model=list[records.PipelineRecord])
def pipelines(catalogue: CatalogueOf) -> list[Json]:
    """Every committed pipeline, all versions."""
    return catalogue.pipelines()


@router.get("/pipelines/{name}", response_model=records.PipelineRecord)
def pipeline(name: Name, catalogue: CatalogueOf, version: Version = None) -> Json:
    """One pipeline: its newest version, or the one asked for."""
    return catalogue.pipeline(name, version)


@router.get("/sources", response_model=list[records.SourceRecord])
def sources(definitions: DefinitionsOf) -> list[Json]:
    """Every source and how far it got; secrets are masked."""
    return definitions.sources()


@router.get("/sources/{dataset}", response_model=records.SourceRecord)
def source(dataset: DatasetName, definitions: DefinitionsOf) -> Json:
    """The source of one dataset and how far it got; secrets are masked."""
    return definitions.source(dataset)


@router.get("/featuresets/{name}/dependents", response_model=records.Dependents)
def featureset_dependents(name: Name, catalogue: CatalogueOf) -> Json:
    """The featuresets that take features of one."""
    return catalogue.dependents("featureset", name)


@router.get("/datasets/{name}/dependents", response_model=records.Dependents)
def dataset_dependents(name: Name, catalogue: CatalogueOf) -> Json:
    """The pipelines that read a dataset, and the featuresets that look it up."""
    return catalogue.dependents("dataset", name)


@router.get("/pipelines/{name}/dependents", response_model=records.Dependents)
def pipeline_dependents(name: Name, catalogue: CatalogueOf) -> Json:
    """The dataset that a pipeline fills."""
    return catalogue.dependents("pipeline", name)


@router.get("/sources/{dataset}/dependents", response_model=records.Dependents)
def source_dependents(dataset: DatasetName, catalogue: CatalogueOf) -> Json:
    """The dataset that a source feeds."""
    return catalogue.dependents("source", dataset)


@router.get("/featuresets/{name}/versions", response_model=records.FeaturesetVersions)
def versions(name: Name, past: PastOf) -> Json:
    """The versions of a featureset, newest first: one per commit that changed it."""
    return past.versions(name)


@router.get("/featuresets/{name}/versions/{version}", response_model=records.FeaturesetVersionDetail)
def version(name: Name, version: Revision, past: PastOf) -> Json:
    """A featureset as it was in one of its versions."""
    return past.version(name, version)


@router.get("/featuresets/{name}/diff", response_model=records.FeaturesetDiff)
def diff(
    name: Name,
    past: PastOf,
    start: Annotated[
        int | None, Query(alias="from", ge=1, le=LARGEST_VERSION, description="The one before `to` by default.")
    ] = None,
    end: Annotated[
        int | None, Query(alias="to", ge=1, le=LARGEST_VERSION, description="The newest version by default.")
    ] = None,
) -> Json:
    """What changed between two versions of a featureset."""
    return past.diff(name, start, end)


@router.post("/featuresets/{name}/deprecate", response_model=records.Deprecation)
def deprecate(name: Name, editing: EditingOf, caller: Writer, body: DeprecationRequest | None = None) -> Json:
    """Mark a featureset deprecated; it is served on. Done again it replaces reason and replacement."""
    asked = body or DeprecationRequest()
    return editing.deprecate(name, asked.reason, asked.replacement, caller.fingerprint)


@router.delete("/featuresets/{name}/deprecate", response_model=records.Deprecation)
def restore(name: Name, editing: EditingOf, caller: Writer) -> Json:
    """Take the mark of a deprecated featureset back."""
    return editing.restore(name, caller.fingerprint)


@router.patch("/metadata/{kind}/{name}", response_model=records.MetadataBlock)
def edit(kind: EditedKind, name: Name, patch: MetadataPatch, editing: EditingOf, caller: Writer) -> Json:
    """Edit what the catalogue says about a definition; a source is named by its dataset.

    Each edited member holds until the code's own value of that member changes in a commit.
    """
    return editing.edit(kind, name, patch.members, caller.fingerprint)


@router.get("/search", response_model=records.SearchResult)
def find(
    catalogue: CatalogueOf,
    *,
    q: Annotated[
        Listed, Query(description="Words; each must be in a name, a member, a label or the description.")
    ] = "",
    kinds: Annotated[
        str,
        Query(max_length=_LONGEST_FILTER, pattern=_SOME_KINDS, description="Kinds, with commas between; any of them."),
    ] = "",
    tags: Annotated[Listed, Query(description="Tags, `key` or `key:value`, with commas between; all of them.")] = "",
    owners: Annotated[Listed, Query(description="Owners, with commas between; any of them.")] = "",
    project: Annotated[
        str | None, Query(max_length=300, pattern=_WITHOUT_NUL, description="Name of a project.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1_000, description="Most entries of each kind.")] = 50,
) -> Json:
    """Find definitions by words and labels, best first; without any, all of them."""
    question = search.Question(tuple(q.split()), _parts(kinds), _parts(tags), _parts(owners), project or None)
    return catalogue.search(question, limit)


@router.get("/tags", response_model=list[records.Facet])
def tags(catalogue: CatalogueOf) -> list[Json]:
    """Every tag, `key` or `key:value`, and how many definitions have it."""
    return catalogue.tags()


@router.get("/owners", response_model=list[records.Facet])
def owners(catalogue: CatalogueOf) -> list[Json]:
    """Every owner, and how many definitions they have."""
    return catalogue.owners()


@router.get("/projects", response_model=list[records.ProjectSummary])
def projects(catalogue: CatalogueOf) -> list[Json]:
    """Every project that a definition names, the largest first."""
    return catalogue.projects()


@router.get("/projects/{project}", response_model=records.ProjectDetail)
def project(project: ProjectId, catalogue: CatalogueOf) -> Json:
    """One project with its members."""
    return catalogue.project(project)


@router.get("/lineage", response_model=records.Lineage)
def lineage(
    catalogue: CatalogueOf,
    node: Annotated[
        str | None,
        Query(
            max_length=300,
            pattern=_WITHOUT_NUL,
            description="Only what is around this node: its id, or a name.",
            examples=["dataset:Ride"],
        ),
    ] = None,
    direction: Annotated[Direction, Query(description="Which way from the node.")] = "both",
    level: Annotated[Level, Query(description="Definitions alone, or their columns and features too.")] = "feature",
) -> Json:
    """What feeds what: sources, datasets, pipelines and featuresets, and within them columns and features."""
    found = catalogue.lineage(level, node or None, direction)
    return {
        "nodes": [each._asdict() for each in found.nodes],
        "edges": [
            {"source": edge.start, "target": edge.end, "type": edge.type, "via": getattr(edge, "via", None) or None}
            for edge in found.edges
        ],
    }


@router.get("/commits", response_model=list[records.CommitEntry])
def commits(
    catalogue: CatalogueOf, limit: Annotated[int, Query(ge=1, le=1_000, description="Most entries.")] = 100
) -> list[Json]:
    """The latest commits that changed something, newest first."""
    return catalogue.commits(limit)


@router.get("/commits/{commit_id}", response_model=records.CommitDetail)
def commit(commit_id: CommitId, past: PastOf) -> Json:
    """One commit; the newest where the same content was committed again after other commits."""
    return past.commit(commit_id)


@router.get("/commits/{commit_id}/diff", response_model=records.CommitDiff)
def commit_diff(commit_id: CommitId, past: PastOf) -> Json:
    """What a commit changed, member by member; secrets are masked."""
    return past.commit_diff(commit_id)


def _parts(listed: str) -> frozenset[str]:
    return frozenset(part.strip() for part in listed.split(",") if part.strip())
