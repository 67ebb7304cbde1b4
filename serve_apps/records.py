"""How the catalogue's answers look: the models behind its routes and the OpenAPI document.

The values come from :mod:`serve_apps.shapes` and its neighbours as JSON trees; here is what a reader may count on.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_ID = "5f0f5cbb-7f3e-5c0f-9a55-0e1f8a0e9a3c"
_AT = "2026-03-01T12:00:00Z"
_COMMIT = "9b1c6f0d2a7e4c5b8d3f1a0e6c7b5d42"
Kind = Literal["featureset", "dataset", "pipeline", "source", "feature_service"]


class Shown(BaseModel):
    """Base of what is answered: the docstring under a member is its description."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class MetadataBlock(Shown):
    """What people say about a definition, in its code or on the platform, and when it was stored."""

    description: str | None = Field(examples=["Rides of the last day, per rider."])
    """Markdown."""
    owner: str | None = Field(examples=["team-rides"])
    """Who answers for it."""
    tags: dict[str, str] = Field(examples=[{"pii": "", "tier": "gold"}])
    """Tags, with a value or with the empty text."""
    project: str | None = Field(examples=["pricing"])
    """What it belongs to."""
    deprecated: bool
    """Whether it should not be used any more; it is served on."""
    deprecation_reason: str | None
    """Why not."""
    replacement: str | None
    """What to use in its place."""
    created_at: str | None = Field(examples=[_AT])
    """When it was first committed."""
    updated_at: str | None = Field(examples=[_AT])
    """When it was last changed by a commit, or its metadata on the platform."""
    deprecated_at: str | None
    """Since when it is deprecated."""


class FeatureRecord(Shown):
    """A feature."""

    name: str = Field(examples=["trips_24h"])
    """Its name within the featureset."""
    dtype: str = Field(examples=["int"])
    """Its type."""
    optional: bool
    """Whether it may be null by declaration."""
    request: bool
    """Whether the caller sends it."""
    default: Any = Field(examples=[0])
    """What is served when a look-up misses, or a request leaves it out."""
    description: str | None
    """What it means."""


class CodeRecord(Shown):
    """The code of an extractor."""

    entry_point: str = Field(examples=["price_of"])
    """The function's name."""
    source_code: str
    """The function with everything it needs."""
    generated_code: str
    """Always empty; stock clients expect it."""
    imports: str
    """Always empty: imports are part of the source."""


class LookupRecord(Shown):
    """The dataset column that a feature is read from."""

    dataset_name: str = Field(examples=["RiderStats"])
    """The dataset."""
    field_name: str = Field(examples=["trips_24h"])
    """Its column."""
    default: Any
    """What is served when there is no row."""


class ExtractorRecord(Shown):
    """What computes or looks up features."""

    name: str = Field(examples=["price_of"])
    """Its name within the featureset; of a look-up, `_thyme_lookup_` and the feature's."""
    inputs: list[str]
    """Features it takes: names, or `Featureset.feature`."""
    outputs: list[str]
    """Features it gives."""
    deps: list[str]
    """Datasets and featuresets it needs."""
    version: int
    """As declared."""
    kind: Literal["PY_FUNC", "LOOKUP"]
    """Code of the user's, or a look-up."""
    pycode: CodeRecord | None
    """Its code; null for a look-up."""
    lookup_info: LookupRecord | None
    """What is looked up; null for code."""


class FeaturesetSpec(Shown):
    """What a featureset means."""

    name: str
    """Its name."""
    entity_type: str
    """What its entities are; by default its name."""
    online_clock: Literal["wall", "event"]
    """Whether online reads are as of now, or of the newest event applied."""
    features: list[FeatureRecord]
    """Its features, the entity's id among them."""
    extractors: list[ExtractorRecord]
    """What fills them: look-ups, then code."""


class ParameterRecord(Shown):
    """A value that callers of a feature service send."""

    name: str = Field(examples=["user_id"])
    """Its name."""
    dtype: str = Field(examples=["str"])
    """Its type."""


class ServedViewRecord(Shown):
    """Features of one featureset as a feature service gives them."""

    name: str = Field(examples=["UserPayments"])
    """What stands before the dot in the names of the features."""
    featureset: str = Field(examples=["UserPayments"])
    """The featureset."""
    features: list[str] = Field(examples=[["payments_24h"]])
    """Which features of it, in the order of the answer."""
    join_keys: list[str] = Field(examples=[["user_id"]])
    """The join keys that make the entity's id."""


class FeatureServiceRecord(Shown):
    """A feature service."""

    id: str = Field(examples=["0c8f1d2e3b4a5968778695a4b3c2d1e0"])
    """The same in every answer, and of every version."""
    name: str = Field(examples=["fraud_detection_feature_service"])
    """Its name within the workspace."""
    workspace: str = Field(examples=["prod"])
    """The namespace of its name."""
    version: int = Field(examples=[1])
    """As declared."""
    join_keys: list[ParameterRecord]
    """What callers name an entity by."""
    request_context: list[ParameterRecord]
    """What callers send with a request."""
    views: list[ServedViewRecord]
    """What it is made of."""
    features: list[str] = Field(examples=[["UserPayments.payments_24h"]])
    """The names of its features, in the order of the answer."""
    free_join_key: str | None = Field(examples=[None])
    """The join key that callers may leave out; null where there is none."""
    metadata: MetadataBlock
    """What is said of it."""


class FeaturesetRecord(Shown):
    """A featureset."""

    id: str = Field(examples=[_ID])
    """The same in every answer."""
    name: str = Field(examples=["Rider"])
    """Its name."""
    spec: FeaturesetSpec
    """Features and extractors."""
    metadata: MetadataBlock
    """What people say about it."""


class FieldRecord(Shown):
    """A column of a dataset."""

    name: str = Field(examples=["fare"])
    """Its name."""
    type: str = Field(examples=["float"])
    """Its type."""
    key: bool
    """Whether it is the key."""
    timestamp: bool
    """Whether it is the event time."""
    optional: bool
    """Whether it may be null."""
    minimum: int | float | None
    """The smallest value that is accepted."""
    maximum: int | float | None
    """The largest value that is accepted."""
    one_of: list[Any]
    """The values that are accepted; empty: all."""
    regex: str | None
    """What an accepted text matches."""


class DatasetRecord(Shown):
    """A version of a dataset."""

    model_config = ConfigDict(use_attribute_docstrings=True, protected_namespaces=(), populate_by_name=True)

    id: str = Field(examples=[_ID])
    """The same in every answer."""
    name: str = Field(examples=["Ride"])
    """Its name."""
    version: int
    """As declared."""
    index: bool
    """Whether the newest row of each key is kept for look-ups."""
    columns: dict[str, str] = Field(alias="schema", examples=[{"ride": "str", "fare": "float", "at": "datetime"}])
    """Type by column."""
    fields_: list[FieldRecord] = Field(alias="fields")
    """Its columns, in order."""
    primary_keys: list[str]
    """The key column."""
    time_field: str = Field(examples=["at"])
    """The event-time column."""
    retention: str | None = Field(examples=["30d"])
    """How long records are kept; null: for ever."""
    metadata: MetadataBlock
    """What people say about it."""


class PipelineRecord(Shown):
    """A version of a pipeline. Pipelines carry no metadata."""

    id: str = Field(examples=[_ID])
    """The same in every answer."""
    name: str = Field(examples=["by_rider"])
    """Its name."""
    version: int
    """As declared."""
    input_datasets: list[str]
    """What it reads, the left side first."""
    output_dataset: str = Field(examples=["RiderStats"])
    """What it fills."""
    operators: list[dict[str, Any]]
    """Its steps, one aggregate per entry."""
    created_at: str | None = Field(examples=[_AT])
    """When it was first committed."""
    updated_at: str | None = Field(examples=[_AT])
    """When it was last changed by a commit."""


class Drift(Shown):
    """How the columns that come differ from those that came before."""

    new: dict[str, str]
    """Columns that came up, by the kind of their values."""
    missing: list[str]
    """Columns that stopped coming."""
    retyped: dict[str, dict[str, str]]
    """Columns whose values are of another kind, `before` and `now`."""


class SourceHit(Shown):
    """A source. Its settings show no secret."""

    id: str = Field(examples=[_ID])
    """The same in every answer."""
    dataset: str = Field(examples=["Ride"])
    """What it feeds, and what it is named by."""
    connector_type: str = Field(examples=["postgres"])
    """What kind of system it reads."""
    config: dict[str, Any]
    """Its settings; what may be secret is `***`, a reference to a secret is shown as such."""
    cursor_field: str
    """The column that new rows are found by; empty for streams."""
    poll_interval: str = Field(examples=["1m"])
    """How often it is asked; empty for streams."""
    cursor_value: str
    """How far it was read; empty before the first row."""
    max_lateness: str = Field(examples=["1d"])
    """What comes later than this is not aggregated; empty: nothing is late."""
    cdc: Literal["append", "upsert", "debezium"]
    """How its records follow each other."""
    rows_in: int
    """Records read."""
    rows_dead: int
    """Of them, dead letters."""
    rows_late: int
    """Of them, too late."""
    last_error: str | None
    """Why it could not be read last time; null when it could."""
    metadata: MetadataBlock
    """What people say about it."""


class SourceRecord(SourceHit):
    """A source, how far it got, and how its columns differ from before. Its settings show no secret."""

    schema_drift: Drift | None
    """Null while the log does not answer."""


class Facet(Shown):
    """A label, and how many definitions have it."""

    name: str = Field(examples=["team-rides"])
    """The label; given as a filter, it finds them."""
    count: int = Field(examples=[3])
    """Definitions, each counted once however many versions it has."""


class SearchResult(Shown):
    """What was found, best first, and the labels of all that was found."""

    featuresets: list[FeaturesetRecord]
    """Featuresets."""
    datasets: list[DatasetRecord]
    """Datasets, each in its newest version."""
    pipelines: list[PipelineRecord]
    """Pipelines, each in its newest version."""
    sources: list[SourceHit]
    """Sources."""
    tags: list[Facet]
    """Tags of everything found, also beyond the limit."""
    owners: list[Facet]
    """Owners of everything found."""
    projects: list[Facet]
    """Projects of everything found."""


class MemberCount(Shown):
    """How many definitions belong to a project."""

    featuresets: int
    """Featuresets."""
    datasets: int
    """Datasets."""
    sources: int
    """Sources."""


class FreshnessCount(Shown):
    """How many members of a project were changed lately, by `updated_at`."""

    fresh: int
    """Within 24 hours."""
    stale: int
    """Within 7 days."""
    broken: int
    """Longer ago."""


class _Project(Shown):
    id: str = Field(examples=[_ID])
    """The same in every answer."""
    name: str = Field(examples=["pricing"])
    """As the definitions' metadata names it."""
    description: str | None
    """Always null: a project is what its members say it is."""
    owner: str | None = Field(examples=["team-rides"])
    """Who owns most of its members."""
    freshness: FreshnessCount
    """How lately its members were changed."""
    created_at: str | None = Field(examples=[_AT])
    """When its first member was committed."""
    updated_at: str | None = Field(examples=[_AT])
    """When a member was last changed."""


class ProjectSummary(_Project):
    """A project."""

    member_count: MemberCount
    """How many definitions belong to it."""


class ProjectMember(Shown):
    """A definition of a project."""

    id: str = Field(examples=[_ID])
    """The same as in the lists of definitions."""
    name: str = Field(examples=["Rider"])
    """Its name; of a source, its dataset's."""
    freshness: Literal["fresh", "stale", "broken"]
    """Whether it was changed within 24 hours, within 7 days, or longer ago."""
    metadata: MetadataBlock
    """What people say about it."""


class ProjectMembers(Shown):
    """The definitions of a project."""

    featuresets: list[ProjectMember]
    """Featuresets."""
    datasets: list[ProjectMember]
    """Datasets."""
    sources: list[ProjectMember]
    """Sources."""


class ProjectDetail(_Project):
    """A project and its members."""

    members: ProjectMembers
    """The definitions that belong to it."""


class Dependent(Shown):
    """What takes data from a definition."""

    kind: Kind
    """What it is."""
    name: str = Field(examples=["Rider"])
    """Its name."""
    edge_type: Literal[
        "source_feeds", "pipeline_input", "pipeline_output", "featureset_lookup", "featureset_dep", "service_view"
    ]
    """How it takes it."""


class Dependents(Shown):
    """What takes data from a definition directly."""

    kind: Kind
    """What it is."""
    name: str = Field(examples=["RiderStats"])
    """Its name."""
    dependents: list[Dependent]
    """What would lack data without it."""


class FeaturesetVersion(Shown):
    """A version of a featureset: one commit's change of it."""

    version: int = Field(examples=[2])
    """From 1."""
    parent_version: int | None = Field(examples=[1])
    """The one before; null for the first."""
    created_at: str = Field(examples=[_AT])
    """When it was committed."""
    graph_commit_id: str = Field(examples=[_COMMIT])
    """The commit."""


class FeaturesetVersions(Shown):
    """The versions of a featureset, newest first."""

    name: str = Field(examples=["Rider"])
    """The featureset."""
    versions: list[FeaturesetVersion]
    """Newest first."""


class FeaturesetVersionDetail(FeaturesetVersion):
    """A featureset as it was in one of its versions."""

    name: str = Field(examples=["Rider"])
    """The featureset."""
    spec: FeaturesetSpec
    """Features and extractors of that version."""
    metadata: MetadataBlock
    """What the code said of it then."""


class TypedFeature(Shown):
    """A feature that came or went."""

    name: str = Field(examples=["trips_7d"])
    """Its name."""
    dtype: str = Field(examples=["int"])
    """Its type."""


class ChangedFeature(Shown):
    """A feature that changed."""

    name: str = Field(examples=["trips_24h"])
    """Its name."""
    from_dtype: str = Field(examples=["int"])
    """Its type before."""
    to_dtype: str = Field(examples=["int"])
    """Its type after."""
    members: list[str] = Field(examples=[["default"]])
    """What differs: `type`, `default`, `description`, …"""


class FeaturesetDiff(Shown):
    """What changed between two versions of a featureset."""

    model_config = ConfigDict(use_attribute_docstrings=True, populate_by_name=True)

    name: str = Field(examples=["Rider"])
    """The featureset."""
    start: int = Field(alias="from", examples=[1])
    """The version compared with."""
    end: int = Field(alias="to", examples=[2])
    """The version compared."""
    added: list[TypedFeature]
    """Features that came."""
    removed: list[TypedFeature]
    """Features that went."""
    changed: list[ChangedFeature]
    """Features that differ."""
    extractors_added: list[str]
    """Extractors that came, look-ups among them."""
    extractors_removed: list[str]
    """Extractors that went."""
    extractors_changed: list[str]
    """Extractors that differ."""


class Deprecation(Shown):
    """How a featureset is marked."""

    name: str = Field(examples=["Rider"])
    """The featureset."""
    deprecated_at: str | None = Field(examples=[_AT])
    """Since when; null when it is not."""
    deprecation_reason: str | None = Field(examples=["counts cancelled rides"])
    """Why."""
    replacement: str | None = Field(examples=["RiderTrips"])
    """What to use in its place."""


class Node(Shown):
    """A thing that data comes from or goes to."""

    id: str = Field(examples=["field:RiderStats.trips_24h"])
    """Kind and name."""
    kind: Literal["source", "dataset", "pipeline", "featureset", "feature_service", "field", "feature"]
    """What it is; a field is a dataset's column."""
    name: str = Field(examples=["RiderStats.trips_24h"])
    """Its name; that of a column or feature begins with what it belongs to."""
    parent: str | None = Field(examples=["dataset:RiderStats"])
    """The dataset or featureset of a column or feature."""
    dtype: str | None = Field(examples=["int"])
    """The type of a column or feature."""
    versions: list[int]
    """The versions of a dataset, pipeline or feature service."""


class LineageEdge(Shown):
    """Data goes from `source` to `target`."""

    source: str = Field(examples=["field:RiderStats.trips_24h"])
    """A node's id."""
    target: str = Field(examples=["feature:Rider.trips_24h"])
    """A node's id."""
    type: Literal[
        "source_feeds",
        "pipeline_input",
        "pipeline_output",
        "featureset_lookup",
        "featureset_dep",
        "service_view",
        "field_input",
        "feature_lookup",
        "feature_input",
        "feature_dep",
    ]
    """How it gets there; the last four are between columns and features."""
    via: str | None = Field(examples=["price_of"])
    """The pipeline or extractor that takes it there, between columns and features."""


class Lineage(Shown):
    """What feeds what."""

    nodes: list[Node]
    """Everything that data comes from or goes to."""
    edges: list[LineageEdge]
    """The ways it takes."""


class ChangeKeys(Shown):
    """Definitions by key: `kind:Name@version`, or `kind:Name` for featuresets and sources."""

    added: list[str] = Field(examples=[["dataset:Ride@1"]])
    """New ones."""
    updated: list[str]
    """Changed ones."""
    unchanged: list[str]
    """Those that came again as they were."""


class CommitEntry(Shown):
    """A commit that changed something."""

    id: str = Field(examples=[_COMMIT])
    """Names its content: equal content, equal id."""
    status: Literal["applied"]
    """A commit is applied whole or not at all."""
    version: int = Field(examples=[7])
    """The registry's version that it led to."""
    message: str = Field(examples=["weekly counts"])
    """What it is for, as its sender said."""
    committed_by: str | None = Field(examples=["1a2b3c4d"])
    """Fingerprint of the key."""
    created_at: str = Field(examples=[_AT])
    """When."""
    changes: ChangeKeys
    """What it did."""


class CommitDetail(CommitEntry):
    """A commit that changed something, and what it started."""

    jobs_created: int
    """Pipelines that it started."""
    topics_created: list[str] = Field(examples=[["Ride_topic"]])
    """Logs that it made."""


class MemberChange(Shown):
    """A member of a definition that differs."""

    path: str = Field(examples=["features.trips_24h.default"])
    """The way to it through what the catalogue shows."""
    change: Literal["added", "removed", "changed"]
    """Whether it came, went, or differs."""
    before: Any = Field(examples=[None])
    """What it was; a secret shows as `***`."""
    after: Any = Field(examples=[0])
    """What it is."""


class DefinitionChange(Shown):
    """A definition that a commit changed."""

    kind: Kind
    """What it is."""
    name: str = Field(examples=["Rider"])
    """Its name."""
    version: int = Field(examples=[1])
    """Its version; featuresets and sources have 1."""
    change: Literal["added", "updated"]
    """Whether it is new."""
    changes: list[MemberChange]
    """What differs; empty for a new one."""


class CommitDiff(Shown):
    """What a commit changed, against what was committed before it."""

    id: str = Field(examples=[_COMMIT])
    """The commit."""
    version: int = Field(examples=[7])
    """The registry's version that it led to."""
    definitions: list[DefinitionChange]
    """Definitions it added or changed."""
