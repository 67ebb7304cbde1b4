"""What the head of an Arrow IPC message says, before anything of it is read or allocated.

The head is a flatbuffers table (Arrow's format/Message.fbs), of which Arrow's Python interface shows only the kind.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

SCHEMA, DICTIONARY, BATCH = 1, 2, 3
"""Kinds of messages."""
# Places of members in the tables Message, DictionaryBatch, RecordBatch and Footer.
_VERSION, _KIND, _HEADER, _BODY_BYTES, _CUSTOM = range(5)
_DATA = 1
_ROWS, _FIELDS, _BUFFERS, _COMPRESSION = range(4)
_FOOTER_SCHEMA, _FOOTER_DICTIONARIES, _FOOTER_BATCHES = 1, 2, 3
# Arrow reads compressed batches of older versions as well, which say so in metadata of their own.
_FIFTH_VERSION = 4
# Structs: a column's entries and nulls; a buffer's place and length; a block's place, head and body.
_PAIR = struct.Struct("<qq")
_BLOCK = struct.Struct("<qi4xq")
_PREFIX = struct.Struct("<q")
FILE_MAGIC = b"ARROW1"
"""How an Arrow file begins and ends."""
_FOOTER_END = struct.Struct("<i6s")
# Before a head stand four bytes that are all ones, since format 0.15, and its length; none ends a stream.
_CONTINUATION, _END = b"\xff\xff\xff\xff", bytes(4)
_LENGTH = struct.Struct("<i")
# A column of a batch takes some 50 bytes of its head, a batch 24 of a file's footer.
_MOST_HEAD_BYTES = 16 << 20
# The way to a table, its vtable of four members, and the table.
_SCHEMA_HEAD = struct.Struct("<I 6H iIqhB5x")
_SCHEMA_TABLE = 16


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
        MalformedHead: it cannot be read, or says in the way of before Arrow 1.0 that something is compressed.
    """
    try:
        table = struct.unpack_from("<I", metadata)[0]
        kind = _number(metadata, table, _KIND, "<B")
        records = None
        if kind in {DICTIONARY, BATCH}:
            if _place(metadata, table, _CUSTOM) and _number(metadata, table, _VERSION, "<h") < _FIFTH_VERSION:
                raise MalformedHead("a batch of before Arrow 1.0 has metadata of its own; write it anew")
            place = _table(metadata, table, _HEADER)
            records = Records(metadata, _table(metadata, place, _DATA) if kind == DICTIONARY else place)
        body_bytes = _number(metadata, table, _BODY_BYTES, "<q")
    except struct.error:
        raise MalformedHead("the head of a message cannot be read") from None
    if body_bytes < 0:
        raise MalformedHead("a message has fewer than no bytes")
    return Head(kind, body_bytes, records)


class Message(NamedTuple):
    """A message as it is stored."""

    head: Head
    metadata: bytes
    body: bytes


def messages_of_stream(file: pa.NativeFile) -> Iterator[Message]:
    """The messages of an Arrow stream, from its first one on.

    Raises:
        MalformedHead: something else stands where a message should.
    """
    while len(length := file.read(_LENGTH.size)) == _LENGTH.size:
        if length == _CONTINUATION:
            length = file.read(_LENGTH.size)
        if len(length) < _LENGTH.size or length == _END:
            return
        metadata = _taken(file, _LENGTH.unpack(length)[0], _MOST_HEAD_BYTES)
        head = head_of(metadata)
        yield Message(head, metadata, _taken(file, head.body_bytes, file.size()))


def messages_of_file(file: pa.NativeFile) -> Iterator[Message]:
    """The messages of an Arrow file that its footer names, as a stream would have them; others may stand in it.

    Raises:
        MalformedHead: it is no Arrow file, or something else stands where a message should.
    """
    end = file.size() - _FOOTER_END.size
    length, magic = _FOOTER_END.unpack(_taken_at(file, end, _FOOTER_END.size, _FOOTER_END.size))
    if magic != FILE_MAGIC:
        raise MalformedHead("the file does not end as an Arrow file does; it may be cut off")
    footer = _taken_at(file, end - length, length, _MOST_HEAD_BYTES)
    try:
        table = struct.unpack_from("<I", footer)[0]
        schema = _table(footer, table, _FOOTER_SCHEMA)
    except struct.error:
        raise MalformedHead("the footer of an Arrow file cannot be read") from None
    if schema >= len(footer):
        raise MalformedHead("the schema of an Arrow file lies outside of its footer")
    metadata = _head_around(footer, schema)
    yield Message(head_of(metadata), metadata, b"")
    for member in (_FOOTER_DICTIONARIES, _FOOTER_BATCHES):
        for offset, before_body, _ in _vector(footer, table, member, _BLOCK):
            metadata = _metadata_of(_taken_at(file, offset, before_body, _MOST_HEAD_BYTES))
            head = head_of(metadata)
            yield Message(head, metadata, _taken_at(file, offset + before_body, head.body_bytes, file.size()))


def _metadata_of(before_body: bytes) -> bytes:
    """What stands before a body, without its length."""
    start = _LENGTH.size * (2 if before_body.startswith(_CONTINUATION) else 1)
    metadata = before_body[start:]
    if before_body[start - _LENGTH.size : start] != _LENGTH.pack(len(metadata)):
        raise MalformedHead("a message of an Arrow file is not as long as its footer says")
    return metadata


def _head_around(footer: bytes, schema: int) -> bytes:
    """The head of a message whose schema is that of a footer: all offsets in it lead on from where they stand."""
    made = _SCHEMA_HEAD.pack(
        *(_SCHEMA_TABLE, 12, 24, 16, 18, 4, 8),  # the vtable: its length, the table's, and where each member stands
        *(12, _SCHEMA_HEAD.size + schema - _SCHEMA_TABLE - 4, 0, _FIFTH_VERSION, SCHEMA),
    )
    return (made + footer).ljust(-(-(len(made) + len(footer)) // 8) * 8, b"\0")


def _taken(file: pa.NativeFile, count: int, most: int) -> bytes:
    """The next bytes of a file."""
    if not 0 <= count <= most or file.tell() + count > file.size():
        raise MalformedHead("a message says that it is longer than it can be")
    data: bytes = file.read(count)
    return data


def _taken_at(file: pa.NativeFile, offset: int, count: int, most: int) -> bytes:
    if offset < 0:
        raise MalformedHead("a message lies outside of the file")
    file.seek(offset)
    return _taken(file, count, most)


class Stream:
    """Messages as the bytes of an Arrow stream: whoever reads it gets what was looked at, and nothing else.

    Args:
        messages: each was looked at when it is handed out here.
    """

    closed = False

    def __init__(self, messages: Iterator[Message]) -> None:
        self._messages = messages
        self._waiting: deque[bytes | memoryview] = deque()

    def read(self, count: int) -> bytes:
        """The next bytes, fewer at the end. A body that is asked for alone is not copied."""
        parts: list[bytes | memoryview] = []
        missing = count
        while missing and (self._waiting or self._refilled()):
            part = self._waiting.popleft()
            if len(part) > missing:
                self._waiting.appendleft(memoryview(part)[missing:])
                part = part[:missing]
            parts.append(part)
            missing -= len(part)
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Nothing more is read."""
        self._waiting.clear()

    def _refilled(self) -> bool:
        message = next(self._messages, None)
        if message is None:
            return False
        length = _LENGTH.pack(len(message.metadata))
        self._waiting.extend(each for each in (_CONTINUATION, length, message.metadata, message.body) if each)
        return True


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
