"""The protobuf body the stock Thyme SDK posts, ``thyme.CommitRequest``, told as that SDK's JSON body (contract 7.9).

One translation gives a commit its meaning, that of :mod:`featurelib.stock`; here protobuf only becomes the tree that
the SDK would have sent as JSON, so that both bodies give the same commit id. What proto3 leaves out (an empty text, a
zero) is left out or spelled as the SDK spells it. Members this page does not know are ignored, as protobuf asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from featurelib.errors import InvalidRequest
from featurelib.plan import CommitReceipt

_PACKAGE = "thyme"
# Per message its members as `name type number`: `*` marks a list, `?` a scalar whose absence differs from its zero,
# `|` the members of one oneof. Enumerations are read as the numbers they are.
_SCHEMA: dict[str, str] = {
    "Empty": "",
    "OptionalType": "inner DataType 1",
    "ListType": "element DataType 1",
    "MapType": "key DataType 1, value DataType 2",
    "DataType": "bool_type| Empty 1, int_type| Empty 2, float_type| Empty 3, string_type| Empty 4,"
    " timestamp_type| Empty 5, optional_type| OptionalType 6, list_type| ListType 7, map_type| MapType 8",
    "Field": "name string 1, dtype DataType 2, is_key bool 3, is_timestamp bool 4",
    "DSSchema": "fields* Field 1",
    "PyCode": "entry_point string 1, source_code string 2, generated_code string 3, imports string 4",
    "Tag": "key string 1, value string 2",
    "EntityMetadata": "description string 1, owner string 2, tags* Tag 3, project string 4, deprecated bool 5,"
    " deprecation_reason string 6, replacement string 7",
    "Expectation": "type string 1, column string 2, mostly double 3, min_value? double 4, max_value? double 5,"
    " values* string 6, type_name? string 7",
    "Dataset": "name string 1, version int32 2, schema DSSchema 3, indexed bool 4, pycode PyCode 5,"
    " expectations* Expectation 6, metadata EntityMetadata 7, retention string 8",
    "Literal": "int_value| int64 1, float_value| double 2, string_value| string 3, bool_value| bool 4",
    "Arith": "op int32 1, lhs Derivation 2, rhs Derivation 3",
    "FillNull": "value Derivation 1, default Literal 2",
    "JsonExtract": "value Derivation 1, path string 2",
    "Derivation": "column_ref| string 1, literal| Literal 2, arith| Arith 3, fill_null| FillNull 4,"
    " json_extract| JsonExtract 5",
    "Compare": "lhs Derivation 1, op int32 2, rhs Derivation 3",
    "IsNull": "column string 1",
    "Logic": "kind int32 1, operands* Predicate 2",
    "Predicate": "compare| Compare 1, is_null| IsNull 2, logic| Logic 3",
    "AggSpec": "agg_type string 1, field string 2, window string 3, output_field string 4, predicate Predicate 5,"
    " k? uint32 6, dedup? bool 7, dropnull? bool 8",
    "Aggregate": "operand_id string 1, keys* string 2, specs* AggSpec 3",
    "Filter": "operand_id string 1, pycode PyCode 2, predicate Predicate 3",
    "Transform": "operand_id string 1, pycode PyCode 2",
    "GroupBy": "operand_id string 1, keys* string 2",
    "TemporalJoin": "right_dataset string 1, left_key_field string 2, right_key_field string 3,"
    " select_fields* string 4",
    "Assign": "operand_id string 1, column string 2, value Derivation 3, dtype DataType 4",
    "Operator": "id string 1, aggregate| Aggregate 2, filter| Filter 3, transform| Transform 4, group_by| GroupBy 5,"
    " temporal_join| TemporalJoin 6, assign| Assign 7",
    "Backfill": "enabled bool 1, since string 2",
    "Pipeline": "name string 1, version int32 2, input_datasets* string 3, output_dataset string 4,"
    " operators* Operator 5, pycode PyCode 6, backfill Backfill 7",
    "Feature": "name string 1, dtype DataType 2, request bool 4, default Literal 5",
    "LookupInfo": "dataset_name string 1, field_name string 2, default Literal 3",
    "Extractor": "name string 1, inputs* string 2, outputs* string 3, deps* string 4, pycode PyCode 5, version int32 6,"
    " kind int32 7, lookup_info LookupInfo 8",
    "Featureset": "name string 1, features* Feature 2, extractors* Extractor 3, pycode PyCode 4,"
    " metadata EntityMetadata 5",
    "SecretRef": "kind int32 1, value string 2",
    "IcebergSource": "catalog string 1, database string 2, table string 3",
    "PostgresSource": "host string 1, port int32 2, database string 3, table string 4, user string 5,"
    " password SecretRef 6, schema string 7, sslmode string 8",
    "S3JsonSource": "bucket string 1, prefix string 2, region string 3",
    "KafkaSource": "brokers string 1, topic string 2, security_protocol string 3, sasl_mechanism string 4,"
    " sasl_username string 5, sasl_password SecretRef 6, format string 7, group_id string 8,"
    " schema_registry_url string 9",
    "KinesisSource": "stream_arn string 1, role_arn SecretRef 2, region string 3, init_position string 4,"
    " format string 5, endpoint_url string 6",
    "SnowflakeSource": "account string 1, database string 2, schema string 3, warehouse string 4, role string 5,"
    " table string 6, user string 7, password SecretRef 8, private_key SecretRef 9,"
    " private_key_passphrase SecretRef 10, endpoint_url string 11",
    "BigQuerySource": "project_id string 1, dataset_id string 2, table string 3, credentials_json SecretRef 4",
    "Source": "dataset string 1, cursor string 2, every string 3, max_lateness string 4, cdc string 5,"
    " metadata EntityMetadata 6, iceberg| IcebergSource 10, postgres| PostgresSource 11, s3json| S3JsonSource 12,"
    " kafka| KafkaSource 13, kinesis| KinesisSource 14, snowflake| SnowflakeSource 15, bigquery| BigQuerySource 16",
    "CommitRequest": "message string 1, datasets* Dataset 2, pipelines* Pipeline 3, featuresets* Featureset 4,"
    " sources* Source 5, allow_retention_narrowing bool 6, backfill? bool 7",
    "CommitResponse": "commit_id string 1, datasets_count int32 2, pipelines_count int32 3, featuresets_count int32 4,"
    " jobs_created int32 5, topics_created* string 6",
}
_TYPES = {"bool_type": "bool", "int_type": "int", "float_type": "float", "string_type": "str"}
_TYPES |= {"timestamp_type": "datetime"}
_SECRET_KINDS = ("literal", "env", "arn", "name", "scope")
_EXTRACTOR_KINDS = {1: "PY_FUNC", 2: "LOOKUP"}
_UNKNOWN = "of a kind this schema does not have"

Json = dict[str, Any]
_F = descriptor_pb2.FieldDescriptorProto


def tree_of(body: bytes) -> Json:
    """What the stock SDK would have sent as JSON for this ``thyme.CommitRequest``.

    Raises:
        InvalidRequest: the bytes are no such message.
    """
    request = message("CommitRequest")
    try:
        request.ParseFromString(body)
    except (DecodeError, UnicodeDecodeError) as error:
        text = f"the body is not a thyme.CommitRequest in protobuf: {error}"
        raise InvalidRequest(text) from None
    tree: Json = {
        "message": request.message,
        "datasets": [_dataset(each) for each in request.datasets],
        "pipelines": [_pipeline(each) for each in request.pipelines],
        "featuresets": [_featureset(each) for each in request.featuresets],
        "sources": [_source(each) for each in request.sources],
        "allow_retention_narrowing": request.allow_retention_narrowing,
    }
    return tree | _given(request, "backfill")


def response_of(receipt: CommitReceipt) -> bytes:
    """A receipt as ``thyme.CommitResponse``."""
    response = message("CommitResponse")
    response.commit_id = receipt.commit_id
    response.datasets_count = receipt.datasets
    response.pipelines_count = receipt.pipelines
    response.featuresets_count = receipt.featuresets
    response.jobs_created = receipt.jobs_created
    response.topics_created.extend(receipt.topics_created)
    encoded: bytes = response.SerializeToString()
    return encoded


def message(name: str) -> Any:
    """A new message of the schema, by its name without the package."""
    return _classes()[f"{_PACKAGE}.{name}"]()


@cache
def _classes() -> dict[str, Any]:
    # A pool of its own: one that is shared refuses the file when the stock SDK is installed beside this package.
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="thyme_commit.proto", package=_PACKAGE, syntax="proto3")
    file.message_type.extend(_descriptor(name, members) for name, members in _SCHEMA.items())
    pool.Add(file)
    found: dict[str, Any] = message_factory.GetMessageClassesForFiles([file.name], pool)
    return found


def _descriptor(name: str, members: str) -> Any:
    made = descriptor_pb2.DescriptorProto(name=name)
    for member in filter(None, members.split(", ")):
        _add_field(made, *member.split())
    return made


def _add_field(made: Any, marked: str, kind: str, number: str) -> None:
    field = made.field.add(name=marked.rstrip("*?|"), number=int(number), label=_F.LABEL_OPTIONAL)
    if kind in _SCHEMA:
        field.type, field.type_name = _F.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
    else:
        field.type = getattr(_F, f"TYPE_{kind.upper()}")
    if marked.endswith("*"):
        field.label = _F.LABEL_REPEATED
    elif marked.endswith("|"):
        if not made.oneof_decl:
            made.oneof_decl.add(name="kind")
        field.oneof_index = 0
    elif marked.endswith("?"):
        # How proto3 keeps the presence of a scalar: a oneof of its own. No message here has another one beside it.
        field.oneof_index, field.proto3_optional = len(made.oneof_decl), True
        made.oneof_decl.add(name=f"_{field.name}")


def _given(source: Any, *names: str) -> Json:
    """The members that were sent, where an absent one differs from an empty one."""
    return {name: getattr(source, name) for name in names if source.HasField(name)}


def _set(source: Any, *names: str) -> Json:
    """The members that are not empty: proto3 does not tell an absent text or number from an empty one."""
    return {name: value for name in names if (value := getattr(source, name))}


def _chosen(source: Any) -> tuple[str, Any]:
    """The member of the oneof that was sent, and its content."""
    name: str | None = source.WhichOneof("kind")
    return (_UNKNOWN, None) if name is None else (name, getattr(source, name))


def _dataset(source: Any) -> Json:
    return {
        "name": source.name,
        "index": source.indexed,
        "fields": [_field(each) for each in source.schema.fields],
        "expectations": [_expectation(each) for each in source.expectations],
        "metadata": _metadata(source.metadata),
        **_set(source, "version", "retention"),
    }


def _field(source: Any) -> Json:
    kind, inner = _chosen(source.dtype)
    optional = kind == "optional_type"
    return {
        "name": source.name,
        "type": _type(inner.inner if optional else source.dtype),
        "key": source.is_key,
        "timestamp": source.is_timestamp,
        "optional": optional,
    }


def _type(dtype: Any) -> str:
    """The type as Python writes it; a feature's ``Optional`` is left out, as the SDK's JSON leaves it out."""
    kind, inner = _chosen(dtype)
    match kind:
        case "optional_type":
            return _type(inner.inner)
        case "list_type":
            return f"list[{_type(inner.element)}]"
        case "map_type":
            return f"dict[{_type(inner.key)}, {_type(inner.value)}]"
    return _TYPES.get(kind, _UNKNOWN)


def _expectation(source: Any) -> Json:
    return {
        "type": source.type,
        "column": source.column,
        "values": list(source.values),
        **_set(source, "mostly"),
        **_given(source, "min_value", "max_value", "type_name"),
    }


def _metadata(source: Any) -> Json:
    known = _set(source, "description", "owner", "project", "deprecated", "deprecation_reason", "replacement")
    return known | {"tags": {tag.key: tag.value for tag in source.tags}}


def _code(source: Any) -> Json:
    return {name: getattr(source, name) for name in ("entry_point", "source_code", "imports")}


def _pipeline(source: Any) -> Json:
    tree = {
        "name": source.name,
        "input_datasets": list(source.input_datasets),
        "output_dataset": source.output_dataset,
        "operators": [_operator(each) for each in source.operators],
        **_set(source, "version"),
    }
    return tree | ({"backfill": _backfill(source.backfill)} if source.HasField("backfill") else {})


def _backfill(source: Any) -> Json:
    return {"enabled": source.enabled, "since": source.since}


def _operator(source: Any) -> Json:
    kind, body = _chosen(source)
    return {kind: _OPERATORS[kind](body) if kind in _OPERATORS else {}}


def _filter(source: Any) -> Json:
    if source.HasField("predicate"):
        return {"predicate": _predicate(source.predicate)}
    return {"pycode": _code(source.pycode)}


def _join(source: Any) -> Json:
    return {
        "right_dataset": source.right_dataset,
        "left_key_field": source.left_key_field,
        "select_fields": list(source.select_fields),
    }


def _specification(source: Any) -> Json:
    tree = {
        "type": source.agg_type,
        "field": source.field,
        "window": source.window,
        "output_field": source.output_field,
        **_given(source, "k", "dedup", "dropnull"),
    }
    return tree | ({"predicate": _predicate(source.predicate)} if source.HasField("predicate") else {})


_OPERATORS: dict[str, Callable[[Any], Json]] = {
    "aggregate": lambda body: {"keys": list(body.keys), "specs": [_specification(each) for each in body.specs]},
    "filter": _filter,
    "transform": lambda body: {"pycode": _code(body.pycode)},
    "temporal_join": _join,
    "assign": lambda body: {"column": body.column, "value": _derivation(body.value)},
}


def _predicate(source: Any) -> Json:
    kind, body = _chosen(source)
    match kind:
        case "compare":
            return _kind("Compare", {"lhs": _derivation(body.lhs), "op": body.op, "rhs": _derivation(body.rhs)})
        case "is_null":
            return _kind("IsNull", {"column": body.column})
        case "logic":
            return _kind("Logic", {"kind": body.kind, "operands": [_predicate(each) for each in body.operands]})
    return _kind(kind, {})


def _derivation(source: Any) -> Json:
    kind, body = _chosen(source)
    match kind:
        case "column_ref":
            return _kind("ColumnRef", body)
        case "literal":
            return _kind("Literal", _literal(body))
        case "arith":
            return _kind("Arith", {"op": body.op, "lhs": _derivation(body.lhs), "rhs": _derivation(body.rhs)})
        case "fill_null":
            return _kind("FillNull", {"value": _derivation(body.value), "default": _literal(body.default)})
        case "json_extract":
            return _kind("JsonExtract", {"value": _derivation(body.value), "path": body.path})
    return _kind(kind, {})


def _literal(source: Any) -> Json:
    kind, value = _chosen(source)
    return _kind("".join(part.capitalize() for part in kind.split("_")), value)


def _kind(variant: str, content: Any) -> Json:
    return {"kind": {variant: content}}


def _featureset(source: Any) -> Json:
    return {
        "name": source.name,
        "features": [_feature(each) for each in source.features],
        "extractors": [_extractor(each) for each in source.extractors],
        "metadata": _metadata(source.metadata),
    }


def _feature(source: Any) -> Json:
    return {"name": source.name, "dtype": _type(source.dtype), "request": source.request, "default": _default(source)}


def _default(source: Any) -> Any:
    """A default is plain in the SDK's JSON, and a literal here."""
    return _chosen(source.default)[1] if source.HasField("default") else None


def _extractor(source: Any) -> Json:
    is_lookup = source.HasField("lookup_info")
    return {
        "name": source.name,
        "inputs": list(source.inputs),
        "outputs": list(source.outputs),
        "deps": list(source.deps),
        "kind": _EXTRACTOR_KINDS.get(source.kind, "LOOKUP" if is_lookup else "PY_FUNC"),
        "pycode": _code(source.pycode) if source.HasField("pycode") else None,
        "lookup_info": _lookup(source.lookup_info) if is_lookup else None,
        **_set(source, "version"),
    }


def _lookup(source: Any) -> Json:
    return {"dataset_name": source.dataset_name, "field_name": source.field_name, "default": _default(source)}


def _source(source: Any) -> Json:
    kind, connector = _chosen(source)
    return {
        "connector_type": kind,
        "config": {} if connector is None else dict(_config(connector)),
        "dataset": source.dataset,
        "cursor": source.cursor,
        "every": source.every,
        "max_lateness": source.max_lateness,
        "metadata": _metadata(source.metadata),
        **_set(source, "cdc"),
    }


def _config(connector: Any) -> Iterable[tuple[str, Any]]:
    """Every member of the connector, empty ones too: the SDK's JSON holds them all."""
    for field in connector.DESCRIPTOR.fields:
        value = getattr(connector, field.name)
        yield field.name, _secret(value) if field.message_type is not None else value


def _secret(source: Any) -> Json:
    known = 0 <= source.kind < len(_SECRET_KINDS)
    return {"kind": _SECRET_KINDS[source.kind] if known else f"number {source.kind}", "value": source.value}
