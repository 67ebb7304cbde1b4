"""How definitions and their state look on the wire (contract sections 7.1 and 7.2; decisions 26 and 27).

Functions take typed values and give JSON trees; none fetches anything. No secret leaves here: what a source's
configuration holds of one is masked.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import BaseModel

from featurelib.clock import Instant, format_duration, format_instant
from featurelib.definitions import (
    AggregateStep,
    AssignStep,
    DatasetDef,
    DedupStep,
    Definitions,
    DropStep,
    ExplodeStep,
    ExtractorDef,
    FeatureDef,
    FeatureServiceDef,
    FeaturesetDef,
    FilterCodeStep,
    FilterStep,
    FirstStep,
    JoinStep,
    LatestStep,
    NamedAggregate,
    PipelineDef,
    PyCode,
    RenameStep,
    SelectStep,
    SourceDef,
    Step,
    TransformStep,
    UnionStep,
    ref,
)
from featurelib.engine.program import pipelines_of
from featurelib.engine.records import DELETED
from featurelib.expr import (
    ArithNode,
    CallNode,
    ColumnNode,
    CompareNode,
    FillNullNode,
    IsNullNode,
    JsonExtractNode,
    LiteralNode,
    LogicNode,
)
from featurelib.metadata import Metadata
from featurelib.secrets import SecretRef
from featurelib.stores.audit import QueryRun
from featurelib.stores.orders import JobOrder
from featurelib.stores.registry import BackfillRecord, CommitRecord, EventRecord, JobRecord, SourceStatus
from serve_apps import freshness

MASK = "***"

_IDS = uuid.UUID("8f7f6c5e-51a1-4c4e-9a83-0d6f2f6f7d11")
# Only what is known to be no secret is shown: nobody can list every name that a secret may have.
_SHOWN_SETTINGS = frozenset(
    {
        "path",
        "format",
        "null",
        "table",
        "host",
        "port",
        "database",
        "schema",
        "sslmode",
        "user",
        "topic",
        "brokers",
        "security_protocol",
        "sasl_mechanism",
        "sasl_username",
        "group_id",
        "schema_registry_url",
        "ssl_ca_location",
        "stream_arn",
        "region",
        "endpoint_url",
        "init_position",
        "bucket",
        "prefix",
        "catalog",
        "account",
        "warehouse",
        "role",
        "dataset_id",
        "project_id",
        "signature_header",
        "overlap",
        "sslrootcert",
        "anonymous",
    }
)
# Credentials of a URL: before the host, up to the last `@` of it, and in the query.
_URL_SECRETS = re.compile(r"(?<=://)[^/\s]*(?=@)|(?<=\?)\S+")
_SYMBOLS = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "and": "and",
    "or": "or",
}

Json = dict[str, Any]


class About(NamedTuple):
    """What the platform knows about a definition besides what it means; instants of one never stored are ``None``."""

    metadata: Metadata = Metadata()
    created_at: Instant | None = None
    updated_at: Instant | None = None
    deprecated_at: Instant | None = None


def metadata_block(about: About) -> Json:
    """The ``metadata`` member of a record."""
    return {
        **about.metadata.model_dump(),
        "created_at": _instant(about.created_at),
        "updated_at": _instant(about.updated_at),
        "deprecated_at": _instant(about.deprecated_at),
    }


def identity(kind: str, name: str) -> str:
    """The stable id of a definition: the same name has the same id in every answer."""
    return str(uuid.uuid5(_IDS, f"{kind}:{name}"))


def featureset_record(featureset: FeaturesetDef, about: About) -> Json:
    """A featureset with its features and extractors; a looked-up feature shows as an extractor of kind LOOKUP."""
    return {
        "id": identity("featureset", featureset.name),
        "name": featureset.name,
        "spec": featureset_spec(featureset),
        "metadata": metadata_block(about),
    }


def featureset_spec(featureset: FeaturesetDef) -> Json:
    """The ``spec`` member of a featureset."""
    return {
        "name": featureset.name,
        "entity_type": featureset.entity_type or featureset.name,
        "online_clock": featureset.online_clock,
        "features": [_feature(feature) for feature in featureset.features],
        "extractors": [
            *(_lookup_extractor(feature) for feature in featureset.features if feature.lookup),
            *(_extractor(extractor) for extractor in featureset.extractors),
        ],
    }


def feature_service_record(service: FeatureServiceDef, about: About) -> Json:
    """A feature service with what it takes and gives."""
    return {
        "id": service.id,
        "name": service.name,
        "workspace": service.workspace,
        "version": service.version,
        "join_keys": [{"name": key.name, "dtype": key.type} for key in service.join_keys],
        "request_context": [{"name": each.name, "dtype": each.type} for each in service.request_context],
        "views": [view.model_dump(mode="json") for view in service.views],
        "features": list(service.feature_names),
        "free_join_key": service.wildcard.join_key if service.wildcard else None,
        "metadata": metadata_block(about),
    }


def dataset_record(dataset: DatasetDef, about: About) -> Json:
    """A dataset with its columns."""
    return {
        "id": identity("dataset", ref(dataset)),
        "name": dataset.name,
        "version": dataset.version,
        "index": dataset.index,
        "schema": {field.name: field.type for field in dataset.fields},
        "fields": [field.model_dump() for field in dataset.fields],
        "primary_keys": [dataset.key.name],
        "time_field": dataset.timestamp.name,
        "retention": _duration(dataset.retention_us),
        "metadata": metadata_block(about),
    }


def pipeline_record(pipeline: PipelineDef, about: About) -> Json:
    """A pipeline with its operators."""
    return {
        "id": identity("pipeline", ref(pipeline)),
        "name": pipeline.name,
        "version": pipeline.version,
        "input_datasets": list(pipeline.input_datasets),
        "output_dataset": pipeline.output_dataset,
        "operators": operators(pipeline),
        "created_at": _instant(about.created_at),
        "updated_at": _instant(about.updated_at),
    }


def source_record(source: SourceDef, status: SourceStatus | None, about: About) -> Json:
    """A source, its secrets masked, and how far it got."""
    return {
        "id": identity("source", source.dataset),
        "dataset": source.dataset,
        "connector_type": "s3_json" if source.connector.type == "s3json" else source.connector.type,
        "config": {name: shown_setting(name, value) for name, value in source.connector.config.items()},
        "cursor_field": source.cursor,
        "poll_interval": _duration(source.every_us) or "",
        "cursor_value": (status.cursor_value if status else None) or "",
        "max_lateness": _duration(source.max_lateness_us) or "",
        "cdc": source.cdc,
        "rows_in": status.rows_in if status else 0,
        "rows_dead": status.rows_dead if status else 0,
        "rows_late": status.rows_late if status else 0,
        "last_error": status.last_error if status else None,
        "metadata": metadata_block(about),
    }


def job_records(
    definitions: Definitions,
    jobs: Iterable[JobRecord],
    partitions: int,
    now: Instant,
    *,
    orders: Mapping[str, JobOrder] = MappingProxyType({}),
) -> list[Json]:
    """One job per pipeline, indexes of raw datasets included, and those of backfills.

    ``orders``: what people ordered of them, by pipeline ref.
    """
    pipelines = {ref(pipeline): pipeline for pipeline in pipelines_of(definitions)}
    known = {(job.pipeline, job.job_type): job for job in jobs}
    for name in pipelines:
        absent = JobRecord(pipeline=name, partition_count=partitions, state="pending")
        known.setdefault((name, "pipeline"), absent)
    found = ((pipelines[name], job) for (name, _), job in sorted(known.items()) if name in pipelines)
    return [
        {**_job(pipeline, job, definitions, now), "paused": ref(pipeline) in orders and orders[ref(pipeline)].paused}
        for pipeline, job in found
    ]


def _job(pipeline: PipelineDef, job: JobRecord, definitions: Definitions, now: Instant) -> Json:
    name = f"{pipeline.name}_job"
    source = definitions.source(pipeline.input_datasets[0])
    spec = {
        "name": name,
        "partition_count": job.partition_count,
        "input_topic": f"{pipeline.input_datasets[0]}_topic",
        "output_topic": f"{pipeline.output_dataset}_topic",
        "replaylog_topic": f"{name}_replaylog",
        "pipeline_spec": {
            "operators": operators(pipeline),
            "max_lateness": _duration(source.max_lateness_us if source else None) or "",
        },
    }
    return {
        "id": identity(job.job_type, ref(pipeline)),
        "name": name,
        "job_type": job.job_type,
        "partition_count": job.partition_count,
        "version": pipeline.version,
        "state": job.state,
        "detail": job.detail,
        "applied_until": _instant(job.applied_us),
        "lag": job.lag,
        "rows": job.rows,
        "freshness": freshness.job_freshness(job, now),
        "workers": freshness.workers(job),
        "updated_at": _instant(job.updated_at or None),
        "spec": spec,
    }


class Known(NamedTuple):
    """What is known of definitions that they do not say themselves."""

    fresh: Mapping[str, Json] = MappingProxyType({})
    """By ref of a dataset, how fresh it is."""
    versions: Mapping[str, int] = MappingProxyType({})
    """By name of a featureset, the version that is committed."""
    log_bytes: Mapping[str, int] = MappingProxyType({})
    """By ref of a dataset, what its log takes."""


def status(
    definitions: Definitions, jobs: list[Json], sources: list[Json], backfills: Iterable[BackfillRecord], known: Known
) -> Json:
    """The parts of the status that follow from definitions, jobs, sources, and what is known of them."""
    return {
        "datasets": [
            {"name": d.name, "version": d.version, "freshness": known.fresh.get(ref(d))} for d in definitions.datasets
        ],
        "pipelines": [
            {
                "name": p.name,
                "version": p.version,
                "input_datasets": list(p.input_datasets),
                "output_dataset": p.output_dataset,
            }
            for p in definitions.pipelines
        ],
        "featuresets": [_featureset_status(each, known.versions.get(each.name, 1)) for each in definitions.featuresets],
        "feature_services": [
            {"name": s.name, "workspace": s.workspace, "version": s.version, "feature_count": len(s.feature_names)}
            for s in definitions.feature_services
        ],
        "sources": sources,
        "jobs": jobs,
        "backfills": [b.model_dump(exclude={"updated_at"}) for b in backfills],
        "physical_assets": list(_assets(definitions, known.log_bytes)),
    }


def _assets(definitions: Definitions, log_bytes: Mapping[str, int]) -> Iterable[Json]:
    """Every dataset has a log and a table in the archive; every pipeline, and index, a state in the online store."""
    filled = {pipeline.output_dataset for pipeline in definitions.pipelines}
    for dataset in definitions.datasets:
        name = ref(dataset)
        yield {"kind": "stream", "name": name, "owner": dataset.name, "bytes": log_bytes.get(name)}
        if dataset.name not in filled:
            yield {"kind": "table", "name": name, "owner": dataset.name, "bytes": None}
    for pipeline in pipelines_of(definitions):
        yield {"kind": "state", "name": ref(pipeline), "owner": pipeline.output_dataset, "bytes": None}


def commit_record(commit: CommitRecord) -> Json:
    """A commit of the history."""
    return {
        "id": commit.commit_id,
        "status": commit.status,
        "version": commit.version,
        "message": commit.message,
        "committed_by": commit.committed_by,
        "created_at": format_instant(commit.created_at),
        "changes": commit.receipt.changes.model_dump(mode="json"),
    }


def event_record(event: EventRecord) -> Json:
    """An entry of the platform's feed."""
    return {**event.model_dump(mode="json"), "created_at": format_instant(event.created_at)}


def query_run_record(run: QueryRun) -> Json:
    """A query run: metadata only, never a value; request inputs stay in the registry."""
    return {
        "id": run.id,
        "featureset": run.featureset,
        "entity_ids": list(run.entity_ids),
        "requested_timestamp": _instant(run.requested_timestamp),
        "kind": run.kind,
        "row_count": run.entity_count,
        "hit_count": run.hit_count,
        "latency_ms": run.latency_ms,
        "api_key_fingerprint": run.api_key_fingerprint,
        "correlation_id": run.correlation_id,
        "definition": run.definition,
        "registry_version": run.registry_version,
        "read_at": _instant(run.read_at),
        "error": run.error,
        "created_at": format_instant(run.created_at),
    }


def operators(pipeline: PipelineDef) -> list[Json]:
    """The steps, flat: one entry per operator and per aggregate."""
    return [operator for step in pipeline.steps for operator in _operators(step)]


def _operators(step: Step) -> Iterable[Json]:
    match step:
        case FilterStep():
            yield {"filter": {"expression": expression_text(step.predicate)}}
        case AssignStep():
            yield {"assign": {"column": step.column, "expression": expression_text(step.value)}}
        case JoinStep():
            yield {"temporal_join": _join(step)}
        case FilterCodeStep():
            yield {"filter": _code(step.code)}
        case TransformStep():
            yield {"transform": {**_code(step.code), "columns": dict(step.columns)}}
        case RenameStep():
            yield {"rename": {"columns": dict(step.columns)}}
        case UnionStep():
            yield {
                "union": {"dataset": step.dataset, "operators": [each for s in step.steps for each in _operators(s)]}
            }
        case AggregateStep():
            shown = (named for named in step.aggregates if named.output != DELETED)
            yield from ({"aggregate": _aggregate(named, step)} for named in shown)
        case SelectStep() | DropStep() | ExplodeStep() | DedupStep() | LatestStep() | FirstStep():
            yield {step.op: step.model_dump(mode="json", exclude={"op"})}


def _join(step: JoinStep) -> Json:
    within = {} if step.within_us is None else {"within": format_duration(step.within_us)}
    return {
        "right_dataset": step.right,
        "left_key_field": step.on,
        "select_fields": list(step.fields),
        **within,
    }


def _code(code: PyCode) -> Json:
    return {
        "expression": f"{code.entry_point}(df)",
        "pycode": {"entry_point": code.entry_point, "source_code": code.source},
    }


def _aggregate(named: NamedAggregate, step: AggregateStep) -> Json:
    aggregate = named.aggregate
    options = aggregate.model_dump(exclude={"type", "of", "window", "where", "default"})
    return {
        "agg_type": aggregate.type,
        "field": aggregate.of,
        "window": str(aggregate.window),
        "output_field": named.output,
        "keys": list(step.keys),
        **({"emit": step.emit} if step.emit == "on_event" else {}),
        **({"where": expression_text(aggregate.where)} if aggregate.where is not None else {}),
        **({"default": aggregate.default.value} if aggregate.default is not None else {}),
        **options,
    }


def expression_text(node: BaseModel) -> str:
    """An expression as a person would write it."""
    match node:
        case ColumnNode(name=name):
            text = name
        case LiteralNode(value=value):
            text = repr(value)
        case ArithNode() | CompareNode():
            text = f"({expression_text(node.left)} {_SYMBOLS[node.op]} {expression_text(node.right)})"
        case LogicNode(op="not"):
            text = f"not {expression_text(node.operands[0])}"
        case LogicNode():
            text = "(" + f" {_SYMBOLS[node.op]} ".join(map(expression_text, node.operands)) + ")"
        case IsNullNode():
            text = f"({expression_text(node.operand)} is null)"
        case FillNullNode():
            text = f"fill_null({expression_text(node.operand)}, {node.default!r})"
        case JsonExtractNode():
            text = f"json_extract({expression_text(node.operand)}, {node.path!r})"
        case CallNode():
            text = f"{node.function}({', '.join(map(expression_text, node.args))})"
        case _:
            text = str(node)
    return text


def _featureset_status(featureset: FeaturesetDef, version: int) -> Json:
    spec = featureset_spec(featureset)
    return {
        "name": featureset.name,
        "version": version,
        "feature_count": len(featureset.features),
        "features": spec["features"],
        "extractors": spec["extractors"],
    }


def _feature(feature: FeatureDef) -> Json:
    return {
        "name": feature.name,
        "dtype": feature.type,
        "optional": feature.optional,
        "request": feature.request,
        "default": feature.default,
        "description": feature.description,
    }


def _lookup_extractor(feature: FeatureDef) -> Json:
    assert feature.lookup is not None
    lookup = {
        "dataset_name": feature.lookup.dataset,
        "field_name": feature.lookup.field,
        "default": feature.default,
    }
    return {
        "name": f"_thyme_lookup_{feature.name}",
        "inputs": [],
        "outputs": [feature.name],
        "deps": [feature.lookup.dataset],
        "version": 1,
        "kind": "LOOKUP",
        "pycode": None,
        "lookup_info": lookup,
    }


def _extractor(extractor: ExtractorDef) -> Json:
    code = extractor.code
    return {
        "name": extractor.name,
        "inputs": list(extractor.inputs),
        "outputs": list(extractor.outputs),
        "deps": list(extractor.deps),
        "version": extractor.version,
        "kind": "PY_FUNC",
        "pycode": {
            "entry_point": code.entry_point,
            "source_code": code.source,
            "generated_code": "",
            "imports": "",
        },
        "lookup_info": None,
    }


def shown_setting(name: str, value: object) -> object:
    """A setting of a source as it may be shown: without secrets."""
    if isinstance(value, SecretRef):
        # A reference says where the secret is kept, which an operator needs; a literal is the secret itself.
        shown = MASK if value.kind == "literal" else value.value.get_secret_value()
        return {"kind": value.kind, "value": shown}
    if value is None or value == "" or isinstance(value, bool):
        return value
    if name not in _SHOWN_SETTINGS:
        return MASK
    # A "?" in a file pattern is a wildcard; in a URL it begins the query.
    return _URL_SECRETS.sub(MASK, value) if isinstance(value, str) and "://" in value else value


def _duration(us: int | None) -> str | None:
    return None if us is None else format_duration(us)


def _instant(instant: Instant | None) -> str | None:
    return None if instant is None else format_instant(instant)


def by_dataset(statuses: Iterable[SourceStatus]) -> Mapping[str, SourceStatus]:
    """Source statuses by the dataset's name; a status may be kept under ``Name@version``."""
    return {status.dataset.partition("@")[0]: status for status in statuses}
