"""The values of messages: JSON, and Avro and Protobuf with the schema a registry holds.

A value in *registry framing* begins with a zero byte and four bytes of schema id (big endian); in Protobuf follow the
indexes of the message in its file, each a zigzag varint after their count, where a single zero stands for the first.
(https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/index.html#wire-format)

What is decoded is plain Python: instants are datetimes, decimals are Decimals, a UUID is its text, enums are their
names; a Protobuf field that was not set is ``None`` if it can say so, else its default.
"""

from __future__ import annotations

import base64
import binascii
import io
import struct
from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

import fastavro
import fastavro.schema
import msgspec
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    json_format,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from featurelib.connectors.schema_registry import Schema, SchemaRegistry, UnknownSchemaError

_MAGIC = 0
_ID_END = 5
_VARINT_BYTES = 10
_WELL_KNOWN = (
    any_pb2,
    descriptor_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
# What fastavro raises on bytes that are not what the schema says; it has no error of its own.
_NOT_AVRO = (EOFError, LookupError, ValueError, TypeError, ArithmeticError, struct.error)


class NotARecordError(Exception):
    """The bytes are not a record; the message says why."""


Decode = Callable[[bytes], Any]
"""Bytes to a value; raises NotARecordError, or SourceError where a registry does not answer."""


def decode_json(value: bytes) -> Any:
    """JSON; registry framing, as serializers of JSON Schema write it, is taken off."""
    try:
        return msgspec.json.decode(value[_ID_END:] if value[:1] == b"\0" else value)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NotARecordError(str(error)) from error


def decoder(value_format: str, registry: SchemaRegistry | None) -> Decode:
    """The decoder of ``json``, ``avro`` or ``protobuf``; the latter two need a registry."""
    if registry is None:
        return decode_json
    return AvroDecoder(registry) if value_format == "avro" else ProtobufDecoder(registry)


def is_framed(value: bytes) -> bool:
    """Whether bytes can be in registry framing."""
    return len(value) >= _ID_END and value[0] == _MAGIC


class AvroDecoder:
    """Avro in registry framing, read with the schema it was written with."""

    def __init__(self, registry: SchemaRegistry) -> None:
        self._registry = registry
        self._schemas: dict[int, Any] = {}

    def __call__(self, value: bytes) -> Any:
        """The value.

        Raises:
            NotARecordError: no framing, an unknown or unusable schema, or bytes that do not follow it.
            SourceError: the registry does not answer.
        """
        schema_id, body = _framed(value)
        if schema_id not in self._schemas:
            self._schemas[schema_id] = self._schema(schema_id)
        stream = io.BytesIO(body)
        try:
            read = fastavro.schemaless_reader(stream, self._schemas[schema_id], None)
        except _NOT_AVRO as error:
            raise NotARecordError(f"not Avro of schema {schema_id}: {type(error).__name__} {error}".rstrip()) from error
        left = len(body) - stream.tell()
        if left:
            raise NotARecordError(f"not Avro of schema {schema_id}: {left} bytes follow its end")
        return _plain(read)

    def _schema(self, schema_id: int) -> Any:
        schema = _looked_up(self._registry, schema_id, "AVRO")
        named: dict[str, Any] = {}
        try:
            self._add_references(schema, named, set())
            return fastavro.parse_schema(msgspec.json.decode(schema.text), named_schemas=named)
        except (fastavro.schema.SchemaParseException, fastavro.schema.UnknownType, msgspec.DecodeError) as error:
            raise NotARecordError(f"schema {schema_id} is not one this reader takes: {error}") from error
        except UnknownSchemaError as error:
            raise NotARecordError(f"schema {schema_id} imports what cannot be found: {error}") from error

    def _add_references(self, schema: Schema, named: dict[str, Any], seen: set[tuple[str, int]]) -> None:
        for reference in schema.references:
            if (reference.subject, reference.version) not in seen:
                seen.add((reference.subject, reference.version))
                imported = self._registry.referenced(reference)
                self._add_references(imported, named, seen)
                fastavro.parse_schema(msgspec.json.decode(imported.text), named_schemas=named)


class _ProtobufFile(NamedTuple):
    """A file of message types, and the messages in it that were met, by their indexes."""

    messages: tuple[Descriptor, ...]
    classes: dict[tuple[int, ...], type[Message]]


class ProtobufDecoder:
    """Protobuf in registry framing. The registry must give schemas as base64 ``FileDescriptorProto``."""

    def __init__(self, registry: SchemaRegistry) -> None:
        self._registry = registry
        self._files: dict[int, _ProtobufFile] = {}

    def __call__(self, value: bytes) -> Any:
        """The message as a mapping by field name.

        Raises:
            NotARecordError: no framing, an unknown or unusable schema, or bytes that do not follow it.
            SourceError: the registry does not answer.
        """
        schema_id, body = _framed(value)
        if schema_id not in self._files:
            self._files[schema_id] = self._file(schema_id)
        indexes, start = _message_indexes(body)
        made = _message_class(self._files[schema_id], indexes, schema_id)
        try:
            return _fields(made.FromString(body[start:]))
        except (DecodeError, ValueError, json_format.Error) as error:  # such as a timestamp of the year 20000
            raise NotARecordError(f"not Protobuf of {made.DESCRIPTOR.full_name}: {error}") from error

    def _file(self, schema_id: int) -> _ProtobufFile:
        schema = _looked_up(self._registry, schema_id, "PROTOBUF")
        pool = descriptor_pool.DescriptorPool()
        for module in _WELL_KNOWN:
            pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        try:
            self._add_references(schema, pool, set())
            name = f"schema-{schema_id}.proto"
            _add_file(schema, name, pool)
            messages = tuple(pool.FindFileByName(name).message_types_by_name.values())
        except (TypeError, ValueError, KeyError, DecodeError) as error:
            hint = "it may import a file that is neither a registered reference nor one of google/protobuf"
            raise NotARecordError(f"schema {schema_id} is not one this reader takes: {error}; {hint}") from error
        except UnknownSchemaError as error:
            raise NotARecordError(f"schema {schema_id} imports what cannot be found: {error}") from error
        return _ProtobufFile(messages, {})

    def _add_references(self, schema: Schema, pool: descriptor_pool.DescriptorPool, seen: set[str]) -> None:
        for reference in schema.references:
            if reference.name not in seen:
                seen.add(reference.name)
                imported = self._registry.referenced(reference)
                self._add_references(imported, pool, seen)
                _add_file(imported, reference.name, pool)


def _framed(value: bytes) -> tuple[int, bytes]:
    """The schema id and what follows it."""
    if not is_framed(value):
        found = "is shorter" if len(value) < _ID_END else f"begins with byte {value[0]}"
        raise NotARecordError(f"expected a zero byte and a schema id of four bytes first; the message {found}")
    return int.from_bytes(value[1:_ID_END], "big"), value[_ID_END:]


def _looked_up(registry: SchemaRegistry, schema_id: int, kind: str) -> Schema:
    try:
        schema = registry.schema(schema_id)
    except UnknownSchemaError as error:
        raise NotARecordError(str(error)) from error
    if schema.kind != kind:
        raise NotARecordError(f"schema {schema_id} is {schema.kind}; the source's format says {kind}")
    return schema


def _plain(value: Any) -> Any:
    """An Avro value with UUIDs as the texts that columns hold."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, UUID) else value


def _add_file(schema: Schema, name: str, pool: descriptor_pool.DescriptorPool) -> None:
    """Put a schema into a pool under the name others import it by."""
    try:
        file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(schema.text, validate=True))
    except binascii.Error as error:
        raise ValueError("the registry gave its text, not its serialized form (?format=serialized)") from error
    file.name = name
    pool.AddSerializedFile(file.SerializeToString())


def _message_indexes(body: bytes) -> tuple[tuple[int, ...], int]:
    """Which message of its file the body holds, and where it begins."""
    count, place = _zigzag(body, 0)
    if count == 0:
        return (0,), place
    if not 0 < count <= len(body):
        raise NotARecordError(f"the message's place in its schema has {count} indexes")
    indexes = []
    for _ in range(count):
        index, place = _zigzag(body, place)
        indexes.append(index)
    return tuple(indexes), place


def _zigzag(body: bytes, place: int) -> tuple[int, int]:
    """A zigzag varint and the place after it."""
    number = 0
    for shift, byte in enumerate(body[place : place + _VARINT_BYTES]):
        number |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:  # noqa: PLR2004  # the bit that says more follow
            return (number >> 1) ^ -(number & 1), place + shift + 1
    raise NotARecordError("the message ends within its place in its schema")


def _message_class(file: _ProtobufFile, indexes: tuple[int, ...], schema_id: int) -> type[Message]:
    if indexes in file.classes:
        return file.classes[indexes]
    among = file.messages
    found: Descriptor | None = None
    for index in indexes:
        if not 0 <= index < len(among):
            raise NotARecordError(f"schema {schema_id} has no message at {list(indexes)}")
        found, among = among[index], tuple(among[index].nested_types)
    assert found is not None
    file.classes[indexes] = message_factory.GetMessageClass(found)
    return file.classes[indexes]


def _fields(message: Message) -> dict[str, Any]:
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: FieldDescriptor) -> Any:
    if field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    if not field.is_repeated:
        return _single(value, field)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        values = entry.fields_by_name["value"]
        return {str(name): _single(value[name], values) for name in value}
    return [_single(each, field) for each in value]


def _single(value: Any, field: FieldDescriptor) -> Any:
    if field.message_type is not None:
        return _message(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    return value


def _message(message: Message) -> Any:
    """A message inside of another: those Google defines are the values they stand for."""
    name = message.DESCRIPTOR.full_name
    if not name.startswith("google.protobuf."):
        return _fields(message)
    if name.endswith("Value") and "value" in message.DESCRIPTOR.fields_by_name:
        return message.value
    return json_format.MessageToDict(message)
