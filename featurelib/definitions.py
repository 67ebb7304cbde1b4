"""Frozen records: the only stored form of a definition.

A decorator builds one, a commit carries it, the registry keeps its canonical bytes, and its digest
names it. Foreign wire formats are translated into these at the edge. A definition never holds a
file path, a line number or a time: equal meaning gives equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StringConstraints

from featurelib.aggregates import Aggregate
from featurelib.clock import SECOND
from featurelib.expr import Node
from featurelib.metadata import Metadata
from featurelib.secrets import SecretRef
from featurelib.types import FeatureTypeName, Scalar, TypeName

FORMAT = 1
"""Version of the stored form. A reader refuses a higher one; a change to the records below raises it."""

LONGEST_NAME = 128
INDEX_SUFFIX = "_index"
"""What the name of the pipeline behind an indexed dataset ends in; no declared pipeline's may."""
Name = Annotated[str, StringConstraints(pattern=rf"^[A-Za-z_][A-Za-z0-9_]{{0,{LONGEST_NAME - 1}}}$")]
LARGEST_VERSION = 2**31 - 1
"""What PostgreSQL keeps in an integer."""
Version = Annotated[PositiveInt, Field(le=LARGEST_VERSION)]
WholeSeconds = Annotated[PositiveInt, Field(multiple_of=SECOND)]
"""A duration in microseconds that the duration grammar can spell."""
Cdc = Literal["append", "upsert", "debezium"]
ServiceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,78}$")]
"""Of a feature service: with its workspace and a slash it fits where a definition's name is kept."""
WorkspaceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_-]{0,47}$")]


class Record(BaseModel):
    """Base of every stored value: frozen, no unknown members."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FieldDef(Record):
    """One column of a dataset. A value outside ``minimum … regex`` is refused at append (decision 23)."""

    name: Name
    type: TypeName
    key: bool = False
    timestamp: bool = False
    optional: bool = False
    minimum: int | float | None = None
    maximum: int | float | None = None
    one_of: tuple[Scalar, ...] = ()
    regex: str | None = None


class ExpectationDef(Record):
    """A rule that is observed, never enforced; ``mostly`` is the share of a batch that must pass."""

    type: Literal["column_values_between", "column_values_not_null", "column_values_in_set", "column_values_of_type"]
    column: str
    mostly: float = 1.0
    min_value: float | None = None
    max_value: float | None = None
    values: tuple[Scalar, ...] = ()
    type_name: str | None = None


class DatasetDef(Record):
    """A named, typed event stream. ``index`` keeps the newest row per key for look-ups.

    ``event_id`` names the column that identifies an event: a log partition skips a second record of the same value.
    ``upsert``: of the records of one key and event time only the newest counts, in every pipeline.
    """

    kind: Literal["dataset"] = "dataset"
    name: Name
    version: Version = 1
    fields: tuple[FieldDef, ...]
    index: bool = False
    event_id: Name | None = None
    # Left out where it is false: the digest of a dataset that says nothing of it is what it always was.
    upsert: bool = Field(default=False, exclude_if=lambda upsert: not upsert)
    retention_us: WholeSeconds | None = None
    expectations: tuple[ExpectationDef, ...] = ()
    metadata: Metadata = Metadata()

    @property
    def key(self) -> FieldDef:
        """The key column."""
        return next(field for field in self.fields if field.key)

    @property
    def timestamp(self) -> FieldDef:
        """The event-time column."""
        return next(field for field in self.fields if field.timestamp)

    def field(self, name: str) -> FieldDef | None:
        """The column of that name, if there is one."""
        return next((field for field in self.fields if field.name == name), None)


class PyCode(Record):
    """User code as source text.

    ``source`` holds everything the function needs: the imports, module-level constants and functions it
    uses, then the function itself without decorators. ``file`` and ``line`` (1-based line of ``def``) let
    an error name the user's line; they carry no meaning and stay out of the digest.
    """

    entry_point: str
    source: str
    file: str | None = None
    line: int | None = None


class FilterStep(Record):
    """Keep rows where the predicate holds."""

    op: Literal["filter"] = "filter"
    predicate: Node


class FilterCodeStep(Record):
    """Keep the rows that a user's function over a Polars frame gives back."""

    op: Literal["filter_code"] = "filter_code"
    code: PyCode


class TransformStep(Record):
    """Columns a user's function over a Polars frame adds or overwrites: ``(name, type)``; rows stay as they are."""

    op: Literal["transform"] = "transform"
    code: PyCode
    columns: tuple[tuple[Name, TypeName], ...] = ()


class AssignStep(Record):
    """Add or overwrite a column."""

    op: Literal["assign"] = "assign"
    column: Name
    value: Node


class RenameStep(Record):
    """Give columns other names: ``(old, new)`` pairs, all at once."""

    op: Literal["rename"] = "rename"
    columns: tuple[tuple[Name, Name], ...]


class SelectStep(Record):
    """Keep only these columns. The event time is never lost: it is a property of the row."""

    op: Literal["select"] = "select"
    columns: tuple[Name, ...]


class DropStep(Record):
    """Leave these columns out."""

    op: Literal["drop"] = "drop"
    columns: tuple[Name, ...]


class ExplodeStep(Record):
    """One row per element of a list column; an empty or null list gives none."""

    op: Literal["explode"] = "explode"
    column: Name


class JoinStep(Record):
    """As-of join: the newest right row with event time <= the left's, on left column ``on`` = the right's key.

    With ``within_us``, a right row older than that gives nulls.
    """

    op: Literal["join"] = "join"
    right: Name
    on: Name
    fields: tuple[Name, ...]
    within_us: WholeSeconds | None = None


class UnionStep(Record):
    """The rows so far, and those of another dataset after its own steps; both have the same columns."""

    op: Literal["union"] = "union"
    dataset: Name
    steps: tuple[Step, ...] = ()


class DedupStep(Record):
    """Of the rows equal in the named columns, the first in the total order."""

    op: Literal["dedup"] = "dedup"
    by: tuple[Name, ...]


class LatestStep(Record):
    """Per key, a row counts until a newer one of its key (a table of newest rows)."""

    op: Literal["latest"] = "latest"
    keys: tuple[Name, ...]


class FirstStep(Record):
    """Per key, only the first row in the total order counts."""

    op: Literal["first"] = "first"
    keys: tuple[Name, ...]


class NamedAggregate(Record):
    """An aggregate and the output column it fills."""

    output: Name
    aggregate: Aggregate


class AggregateStep(Record):
    """Fold rows per group key.

    As the last step its state is what is served. Before other steps (decision 15) it is a stream of its key's
    values: a change at an event takes the old value back. ``emit="on_event"`` takes windows whose values also change
    as time passes at their events' instants.
    """

    op: Literal["aggregate"] = "aggregate"
    keys: tuple[Name, ...]
    aggregates: tuple[NamedAggregate, ...]
    emit: Literal["on_change", "on_event"] = "on_change"


Step = Annotated[
    FilterStep
    | FilterCodeStep
    | TransformStep
    | AssignStep
    | RenameStep
    | SelectStep
    | DropStep
    | ExplodeStep
    | JoinStep
    | UnionStep
    | DedupStep
    | LatestStep
    | FirstStep
    | AggregateStep,
    Field(discriminator="op"),
]
UnionStep.model_rebuild()


class BackfillDef(Record):
    """Which records count for a pipeline, however late they come and by whichever path.

    Attributes:
        enabled: whether records count that were accepted before the pipeline was committed.
        since_us: only records dated at or after it; ``None``: all.
        from_us: only records accepted at or after it. The platform writes it when a pipeline that is not ``enabled``
            is first committed; what a commit says of it is not heeded.
    """

    enabled: bool = True
    since_us: int | None = None
    from_us: int | None = None


class PipelineDef(Record):
    """Input datasets → steps → output dataset. ``input_datasets[0]`` is the left side; join rights follow."""

    kind: Literal["pipeline"] = "pipeline"
    name: Name
    version: Version = 1
    input_datasets: tuple[Name, ...]
    output_dataset: Name
    steps: tuple[Step, ...]
    backfill: BackfillDef = BackfillDef()

    @property
    def last_step(self) -> AggregateStep | LatestStep | FirstStep:
        """The step whose state is served."""
        step = self.steps[-1]
        assert isinstance(step, AggregateStep | LatestStep | FirstStep)  # compile and validate guarantee it
        return step

    @property
    def keys(self) -> tuple[str, ...]:
        """The group keys of what is served."""
        return self.last_step.keys

    @property
    def joins(self) -> tuple[JoinStep, ...]:
        """The join steps, in order."""
        return tuple(step for step in self.steps if isinstance(step, JoinStep))


class LookupDef(Record):
    """The dataset column a looked-up feature reads."""

    dataset: Name
    field: Name


class FeatureDef(Record):
    """One feature. ``default`` is served when a look-up misses or a request value is left out."""

    name: Name
    type: FeatureTypeName
    optional: bool = False
    request: bool = False
    lookup: LookupDef | None = None
    default: Scalar | None = None
    id: int | None = None
    description: str | None = None


class ExtractorDef(Record):
    """User code that computes features from features.

    ``inputs`` are local feature names or ``Featureset.feature``; they bind by position, in this order.
    ``vectorized``: the function takes and gives Polars Series, one element per row, instead of scalars.
    """

    name: Name
    version: Version = 1
    vectorized: bool = False
    inputs: tuple[str, ...]
    outputs: tuple[Name, ...]
    deps: tuple[Name, ...] = ()
    code: PyCode


class FeaturesetDef(Record):
    """Named features of one entity.

    ``features[0]`` that is neither looked up, requested nor extracted is the entity id.
    ``online_clock``: ``wall`` reads at the request's clock; ``event`` at the newest applied event time.
    """

    kind: Literal["featureset"] = "featureset"
    name: Name
    features: tuple[FeatureDef, ...]
    extractors: tuple[ExtractorDef, ...] = ()
    entity_type: str | None = None
    online_clock: Literal["wall", "event"] = "wall"
    metadata: Metadata = Metadata()

    def feature(self, name: str) -> FeatureDef | None:
        """The feature of that name, if there is one."""
        return next((feature for feature in self.features if feature.name == name), None)

    @property
    def entity(self) -> FeatureDef | None:
        """The feature that holds the entity id: the first that nothing else produces."""
        produced = {output for extractor in self.extractors for output in extractor.outputs}
        return next(
            (f for f in self.features if not f.request and f.lookup is None and f.name not in produced),
            None,
        )

    @property
    def computed(self) -> tuple[str, ...]:
        """The names of the features that a caller does not know already: not the entity id, nor what they send."""
        entity = self.entity
        return tuple(f.name for f in self.features if not f.request and f is not entity)


class ConnectorDef(Record):
    """An outside system: its type and settings. Secret settings are :class:`SecretRef` values."""

    type: str
    config: dict[str, SecretRef | str | int | float | bool | None]


class SourceDef(Record):
    """What feeds a dataset. Durations in microseconds; ``max_lateness_us=None`` means nothing is late."""

    kind: Literal["source"] = "source"
    dataset: Name
    connector: ConnectorDef
    cursor: str = ""
    every_us: WholeSeconds | None = None
    max_lateness_us: WholeSeconds | None = None
    cdc: Cdc = "append"
    metadata: Metadata = Metadata()


class ParameterDef(Record):
    """A value a caller of a feature service sends: a join key, or part of the request context."""

    name: Name
    type: FeatureTypeName


class ServedViewDef(Record):
    """Features of one featureset as a feature service gives them, each under the name ``name.feature``.

    ``features`` are in the order of the answer. ``join_keys`` are those of the service whose values make the
    featureset's entity id: one, or, where several group keys make it, one for each in their order.
    """

    name: Name
    featureset: Name
    features: Annotated[tuple[Name, ...], Field(min_length=1)]
    join_keys: Annotated[tuple[Name, ...], Field(min_length=1)]


class WildcardDef(Record):
    """A join key a caller leaves out: its values are the elements of a list feature of another featureset.

    ``join_keys`` are those of the service whose values make the entity id of ``featureset``.
    """

    join_key: Name
    featureset: Name
    feature: Name
    join_keys: Annotated[tuple[Name, ...], Field(min_length=1)]


class FeatureServiceDef(Record):
    """Features of several featuresets that are read together, by join keys, in one order.

    A name means something within its workspace alone. ``version`` tells forms of a service apart for callers that ask
    for one; others get the newest.
    """

    kind: Literal["feature_service"] = "feature_service"
    name: ServiceName
    workspace: WorkspaceName = "prod"
    version: Version = 1
    views: Annotated[tuple[ServedViewDef, ...], Field(min_length=1)]
    join_keys: Annotated[tuple[ParameterDef, ...], Field(min_length=1)]
    request_context: tuple[ParameterDef, ...] = ()
    wildcard: WildcardDef | None = None
    metadata: Metadata = Metadata()

    @property
    def qualified_name(self) -> str:
        """``workspace/name``: what names it in the registry."""
        return f"{self.workspace}/{self.name}"

    @property
    def id(self) -> str:
        """32 hexadecimal digits that stand for its qualified name, whatever its version."""
        return hashlib.sha256(self.qualified_name.encode()).hexdigest()[:32]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """``view.feature`` of every feature, in the order of the answer."""
        return tuple(f"{view.name}.{feature}" for view in self.views for feature in view.features)


Definition = DatasetDef | PipelineDef | FeaturesetDef | SourceDef | FeatureServiceDef


class Location(Record):
    """Where in the user's module a definition stands; shown in errors, never stored with the definition."""

    file: str
    line: int


class Definitions(Record):
    """A set of definitions: what a registry holds, or what a commit brings. May hold several versions of a name."""

    datasets: tuple[DatasetDef, ...] = ()
    pipelines: tuple[PipelineDef, ...] = ()
    featuresets: tuple[FeaturesetDef, ...] = ()
    sources: tuple[SourceDef, ...] = ()
    # Left out where there are none: the bytes, and so the id, of a commit without services are what they always were.
    feature_services: tuple[FeatureServiceDef, ...] = Field(default=(), exclude_if=lambda services: not services)

    @property
    def all(self) -> tuple[Definition, ...]:
        """Every definition, datasets first."""
        return (*self.datasets, *self.pipelines, *self.featuresets, *self.sources, *self.feature_services)

    def dataset(self, name: str) -> DatasetDef | None:
        """The newest version of the dataset of that name."""
        return max((d for d in self.datasets if d.name == name), key=lambda d: d.version, default=None)

    def pipeline(self, name: str) -> PipelineDef | None:
        """The newest version of the pipeline of that name."""
        return max((p for p in self.pipelines if p.name == name), key=lambda p: p.version, default=None)

    def featureset(self, name: str) -> FeaturesetDef | None:
        """The featureset of that name."""
        return next((f for f in self.featuresets if f.name == name), None)

    def source(self, dataset: str) -> SourceDef | None:
        """The source that feeds the dataset."""
        return next((s for s in self.sources if s.dataset == dataset), None)

    def feature_service(self, workspace: str, name: str, version: int | None = None) -> FeatureServiceDef | None:
        """The feature service of that name in a workspace; its newest version unless one is given."""
        named = (s for s in self.feature_services if (s.workspace, s.name) == (workspace, name))
        wanted = (s for s in named if version in (None, s.version))
        return max(wanted, key=lambda s: s.version, default=None)

    def cdc(self, dataset: str) -> Cdc:
        """How the records of a dataset follow each other; ``append`` when no source says otherwise."""
        source = self.source(dataset)
        return source.cdc if source else "append"

    def producer(self, dataset: str) -> PipelineDef | None:
        """The newest pipeline whose output is the dataset."""
        made = (p for p in self.pipelines if p.output_dataset == dataset)
        return max(made, key=lambda p: p.version, default=None)


class Commit(Definitions):
    """A set of definitions sent together. ``locations`` maps ``kind:Name[.member]`` to the user's line.

    ``allow_retention_narrowing``: a dataset's retention may become shorter. ``backfill=False``: the commit is refused
    if it would start a pipeline that has history to fold.
    """

    format: Literal[1] = 1
    message: str = ""
    locations: dict[str, Location] = {}
    allow_retention_narrowing: bool = False
    backfill: bool = True

    def locate(self, key: str) -> Location | None:
        """The location of ``kind:Name.member``, else of ``kind:Name``."""
        return self.locations.get(key) or self.locations.get(key.split(".", 1)[0])


def ref(definition: DatasetDef | PipelineDef) -> str:
    """``Name@version``: how stores, logs and workers name a dataset or a pipeline."""
    return f"{definition.name}@{definition.version}"


def canonical_bytes(record: BaseModel) -> bytes:
    """Equal meaning, equal bytes: JSON with sorted keys and no spaces, less the user's file positions."""
    tree = record.model_dump(mode="json", exclude={"locations", "message"})
    return json.dumps(_without_positions(tree), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(record: BaseModel) -> str:
    """SHA-256 of the canonical bytes, hex."""
    return hashlib.sha256(canonical_bytes(record)).hexdigest()


def _without_positions(tree: Any) -> Any:
    if isinstance(tree, dict):
        positions = ("file", "line") if "entry_point" in tree else ()
        return {name: _without_positions(value) for name, value in tree.items() if name not in positions}
    if isinstance(tree, list):
        return [_without_positions(value) for value in tree]
    return tree
