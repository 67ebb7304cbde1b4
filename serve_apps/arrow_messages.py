"""An Arrow IPC stream, message by message, from somebody who may not be trusted.

Arrow's own reader pulls bytes and would hold a thread for as long as a client takes to send them; here a message is
taken once all of it is there. Lengths are checked before anything is allocated, and a batch is validated in full before
its buffers are looked at: offsets that point elsewhere would be read as they are.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from featurelib.errors import InvalidRequest, PayloadTooLarge
from featurelib.stores.arrow_heads import BATCH, DICTIONARY, SCHEMA, MalformedHead, Records, head_of

MOST_BATCH_BYTES = 64 << 20
"""Largest message."""
MOST_BATCH_ROWS = 1_000_000
"""Most rows of a record batch: one of nulls takes no bytes."""
_MOST_METADATA_BYTES = 1 << 20
# Of lists: an entry takes a bit at least, and of nulls nothing, but eight bytes as a value of its own.
_MOST_ENTRIES = MOST_BATCH_BYTES // 8
# Texts behind a dictionary or a view are written out for the log; few bytes may stand for many.
_MOST_TEXT_BYTES = 256 << 20

_CONTINUATION = 0xFFFFFFFF
_END = struct.pack("<II", _CONTINUATION, 0)
_PREFIX = len(_END)


class Batch(NamedTuple):
    """A record batch."""

    table: pa.Table


class Other(NamedTuple):
    """A message that holds no records."""


class ArrowMessages:
    """Reads the messages of one stream, one after the other."""

    def __init__(self) -> None:
        self._schema: pa.Schema | None = None
        self._before = b""
        self._has_dictionaries = False
        self.is_ended = False
        """Whether the stream has said its end."""

    @property
    def has_schema(self) -> bool:
        """Whether the first message was there."""
        return self._schema is not None

    def next(self, data: bytes, start: int) -> tuple[Batch | Other | None, int]:
        """The message that begins at ``start``, and where it ends; ``None`` while not all of it is there.

        Raises:
            InvalidRequest: it is none, or not one that is taken.
            PayloadTooLarge: it is larger than a message may be.
        """
        head = data[start : start + _PREFIX]
        if self.is_ended:
            if start < len(data):
                raise InvalidRequest("body: something follows the end of the Arrow stream")
            return None, start
        if len(head) < _PREFIX:
            return None, start + _PREFIX
        if head == _END:
            self.is_ended = True
            return Other(), start + _PREFIX
        return self._message(data, start)

    def _message(self, data: bytes, start: int) -> tuple[Batch | Other | None, int]:
        mark, size = struct.unpack_from("<II", data, start)
        if mark != _CONTINUATION:
            raise InvalidRequest("body: not an Arrow IPC stream (of format 0.15 or later)")
        if size > _MOST_METADATA_BYTES:
            raise PayloadTooLarge(f"body: an Arrow message's metadata takes more than {_MOST_METADATA_BYTES} bytes")
        body = start + _PREFIX + size
        if len(data) < body:
            return None, body
        kind, length = self._looked_at(data[start + _PREFIX : body])
        if length > MOST_BATCH_BYTES:
            raise PayloadTooLarge(f"body: an Arrow batch takes more than {MOST_BATCH_BYTES} bytes; send smaller ones")
        end = body + length
        if len(data) < end:
            return None, end
        try:
            return self._taken(kind, data[start:end]), end
        except (pa.ArrowException, OSError, ValueError) as error:
            raise InvalidRequest(f"body: an Arrow message cannot be read: {error}") from None

    def _looked_at(self, metadata: bytes) -> tuple[int, int]:
        """What kind of message it is, and how long its body."""
        try:
            head = head_of(metadata)
            if head.records is not None:
                _check_records(head.records)
        except MalformedHead as error:
            raise InvalidRequest(f"body: an Arrow message is not taken: {error}") from None
        return head.kind, head.body_bytes

    def _taken(self, kind: int, message: bytes) -> Batch | Other:
        if kind == SCHEMA and self._schema is None:
            self._schema = pa.ipc.read_schema(pa.py_buffer(message))
            self._before = message
            return Other()
        if self._schema is None or kind not in {DICTIONARY, BATCH}:
            raise InvalidRequest("body: an Arrow stream is a schema and then batches")
        if kind == DICTIONARY:
            self._before += message
            self._has_dictionaries = True
            if len(self._before) > MOST_BATCH_BYTES:
                raise PayloadTooLarge(f"body: the stream's dictionaries take more than {MOST_BATCH_BYTES} bytes")
            return Other()
        return Batch(_checked(self._decoded(message, self._schema)))

    def _decoded(self, message: bytes, schema: pa.Schema) -> pa.RecordBatch:
        if not self._has_dictionaries:
            return pa.ipc.read_record_batch(pa.py_buffer(message), schema)
        with pa.ipc.open_stream(pa.py_buffer(self._before + message + _END)) as reader:
            return reader.read_next_batch()


def _check_records(records: Records) -> None:
    if not 0 <= records.rows <= MOST_BATCH_ROWS:
        raise PayloadTooLarge(f"body: an Arrow batch has more than {MOST_BATCH_ROWS} rows; send smaller ones")
    if records.is_compressed:
        raise InvalidRequest("body: compressed Arrow batches are not taken; write them without compression")
    if records.longest() > _MOST_ENTRIES:
        raise PayloadTooLarge(
            f"body: lists of an Arrow batch have more than {_MOST_ENTRIES} entries; send smaller batches"
        )


def _checked(batch: pa.RecordBatch) -> pa.Table:
    """The batch as a table of columns the door can read.

    Raises:
        InvalidRequest: a column has another type, or a name that another has too.
    """
    batch.validate(full=True)
    names = batch.schema.names
    if len(set(names)) < len(names):
        raise InvalidRequest("body: the Arrow stream names a column twice")
    return pa.table({name: _column(column, name) for name, column in zip(names, batch.columns, strict=True)})


def _column(column: pa.Array, name: str) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        _check_text(column.dictionary, len(column), name)
        column = column.dictionary_decode()
    elif pa.types.is_string_view(kind):
        _check_text(column, len(column), name)
        column = column.cast(pa.large_string())
    if not _is_readable(column.type):
        raise InvalidRequest(f"body: column {name[:80]!r}: Arrow's {kind} is not taken; cast it before")
    return column


def _check_text(values: pa.Array, count: int, name: str) -> None:
    """Refuse what would become too large when each value is written out."""
    if not any(matches(values.type) for matches in _TEXTS):
        return
    texts: Any = pl.from_arrow(values)  # Arrow itself has no length of a view
    longest = int(texts.str.len_bytes().max() or 0)
    if longest * count > _MOST_TEXT_BYTES:
        text = f"body: column {name[:80]!r}: texts behind a dictionary or view take more than {_MOST_TEXT_BYTES} bytes"
        raise PayloadTooLarge(f"{text} written out; send smaller batches")


def _is_readable(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_readable(kind.value_type)
    return any(matches(kind) for matches in _READABLE)


_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_READABLE = (
    pa.types.is_null,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_timestamp,
    pa.types.is_date,
)
