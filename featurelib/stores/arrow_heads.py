"""What the head of an Arrow IPC message says, before anything of it is read or allocated.

The head is a flatbuffers table (Arrow's format/Message.fbs), of which Arrow's Python interface shows only the kind.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa

SCHEMA, DICTIONARY, BATCH = 1, 2, 3
"""Kinds of messages."""
# Places of members in the tables Message, DictionaryBatch and RecordBatch.
_KIND, _HEADER, _BODY_BYTES = 1, 2, 3
_DATA = 1
_ROWS, _FIELDS, _BUFFERS, _COMPRESSION = 0, 1, 2, 3
_PAIR = struct.Struct("<qq")
_PREFIX = struct.Struct("<q")
FILE_MAGIC = b"ARROW1"
"""How an Arrow file begins and ends."""
_FOOTER_END = struct.Struct("<i6s")
_FOOTER_DICTIONARIES, _FOOTER_BATCHES = 2, 3
_BLOCK = struct.Struct("<qi4xq")
# Before a head stand four bytes that are all ones, since format 0.15, and its length.
_CONTINUATION = b"\xff\xff\xff\xff"
_BEFORE_HEAD = 8


class MalformedHead(ValueError):
    """The bytes are no head of a message."""


class Records:
    """What a message says of the records, or the dictionary, in it."""

    def __init__(self, metadata: bytes, table: int) -> None:
        self._metadata = metadata
        self._table = table
        self.rows = _number(metadata, table, _ROWS, "<q")
        self.is_compressed = _place(metadata, table, _COMPRESSION) != 0

    def longest(self) -> int:
        """Entries of its longest column, those inside of others among them."""
        return max([self.rows, *(length for length, _ in _vector(self._metadata, self._table, _FIELDS, _PAIR))])

    def plain_bytes(self, body: memoryview) -> int:
        """How much its buffers take in memory.

        Args:
            body: of the message. A compressed buffer begins with its plain length, -1 for one that is not compressed.

        Raises:
            MalformedHead: a buffer lies outside of the body, or has a length that none can have.
        """
        total = 0
        for start, stored in _vector(self._metadata, self._table, _BUFFERS, _PAIR):
            if start < 0 or stored < 0 or start + stored > len(body):
                raise MalformedHead("a buffer lies outside of the message")
            total += _plain(body[start : start + stored]) if self.is_compressed and stored else stored
        return total


class Head(NamedTuple):
    """A message: what kind, how long its body, and what it says of the records or the dictionary in it."""

    kind: int
    body_bytes: int
    records: Records | None


def _plain(buffer: memoryview) -> int:
    """The plain length of a buffer of a compressed message."""
    if len(buffer) < _PREFIX.size:
        raise MalformedHead("a compressed buffer does not say how long it is")
    said: int = _PREFIX.unpack_from(buffer)[0]
    if said < -1:
        raise MalformedHead("a buffer has fewer than no bytes")
    return len(buffer) if said == -1 else said


def head_of(metadata: bytes) -> Head:
    """The head of a message.

    Raises:
        MalformedHead: it cannot be read.
    """
    try:
        table = struct.unpack_from("<I", metadata)[0]
        kind = _number(metadata, table, _KIND, "<B")
        records = None
        if kind in {DICTIONARY, BATCH}:
            place = _table(metadata, table, _HEADER)
            records = Records(metadata, _table(metadata, place, _DATA) if kind == DICTIONARY else place)
        return Head(kind, _number(metadata, table, _BODY_BYTES, "<q"), records)
    except struct.error:
        raise MalformedHead("the head of a message cannot be read") from None


class LookedAt(io.RawIOBase):
    """The bytes of an Arrow stream, for a reader that gets no message before it was looked at.

    Args:
        file: stands at the first message.
        look: called with what a message says of its records, and with its body; raises to end the reading.
    """

    def __init__(self, file: pa.NativeFile, look: Callable[[Records, memoryview], None]) -> None:
        super().__init__()
        self._messages = pa.ipc.MessageReader.open_stream(file)
        self._look = look
        self._left = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, into: Any) -> int:
        """Fill from the message that is being read, the next one once it was looked at.

        Raises:
            MalformedHead: a message says of itself what cannot be.
        """
        if not self._left:
            self._left = self._next()
        taken = self._left[: len(into)]
        into[: len(taken)] = taken
        self._left = self._left[len(taken) :]
        return len(taken)

    def _next(self) -> memoryview:
        try:
            message = self._messages.read_next_message()
        except StopIteration:
            return memoryview(b"")
        head = head_of(message.metadata.to_pybytes())
        if head.records is not None:
            self._look(head.records, memoryview(message.body or b"").cast("B"))
        return memoryview(message.serialize()).cast("B")


class Block(NamedTuple):
    """Where a message of an Arrow file stands, and how long what is before its body."""

    offset: int
    head_bytes: int


class Footer(NamedTuple):
    """Where the messages of an Arrow file stand: it may hold others that nobody reads."""

    dictionaries: list[Block]
    batches: list[Block]

    @classmethod
    def of(cls, file: pa.NativeFile) -> Footer:
        """The footer of a file.

        Raises:
            MalformedHead: it has none.
        """
        end = file.size() - _FOOTER_END.size
        length, magic = _FOOTER_END.unpack(_read(file, _FOOTER_END.size, end))
        if magic != FILE_MAGIC:
            raise MalformedHead("the file does not end as an Arrow file does; it may be cut off")
        data = _read(file, length, end - length)
        try:
            table = struct.unpack_from("<I", data)[0]
        except struct.error:
            raise MalformedHead("the footer of an Arrow file cannot be read") from None
        found = (_vector(data, table, member, _BLOCK) for member in (_FOOTER_DICTIONARIES, _FOOTER_BATCHES))
        return cls(*([Block(offset, head_bytes) for offset, head_bytes, _ in each] for each in found))


def look_at(file: pa.NativeFile, block: Block, look: Callable[[Records, memoryview], None]) -> None:
    """Look at a message of an Arrow file as :class:`LookedAt` does at those of a stream.

    Raises:
        MalformedHead: it is none.
    """
    data = _read(file, block.head_bytes, block.offset)
    before = _BEFORE_HEAD if data[: len(_CONTINUATION)] == _CONTINUATION else _BEFORE_HEAD - len(_CONTINUATION)
    head = head_of(data[before:])
    if head.records is not None:
        look(head.records, memoryview(_read(file, head.body_bytes, block.offset + block.head_bytes)))


def _read(file: pa.NativeFile, count: int, offset: int) -> bytes:
    if count < 0 or offset < 0 or offset + count > file.size():
        raise MalformedHead("a message lies outside of the file")
    data: bytes = file.read_at(count, offset)
    return data


# A table begins with the way back to its vtable, which holds where each member stands, 0 for none.


def _place(data: bytes, table: int, member: int) -> int:
    """Where a member of a table stands; 0: it is left out."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    if vtable < 0:
        raise struct.error
    entry = 4 + 2 * member
    if entry >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset: int = struct.unpack_from("<H", data, vtable + entry)[0]
    return table + offset if offset else 0


def _number(data: bytes, table: int, member: int, form: str) -> int:
    place = _place(data, table, member)
    found: int = struct.unpack_from(form, data, place)[0] if place else 0
    return found


def _table(data: bytes, table: int, member: int) -> int:
    place = _place(data, table, member)
    if not place:
        raise struct.error
    return place + int(struct.unpack_from("<I", data, place)[0])


def _vector(data: bytes, table: int, member: int, entry: struct.Struct) -> list[tuple[int, ...]]:
    """A vector of structs; none where it is left out.

    Raises:
        MalformedHead: it goes beyond the data.
    """
    try:
        if not _place(data, table, member):
            return []
        vector = _table(data, table, member)
        (count,) = struct.unpack_from("<I", data, vector)
    except struct.error:
        raise MalformedHead("the head of a message cannot be read") from None
    found = data[vector + 4 :][: count * entry.size]
    if len(found) < count * entry.size:
        raise MalformedHead("the head of a message cannot be read")
    return list(entry.iter_unpack(found))
