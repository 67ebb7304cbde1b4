"""Stored bytes of pipeline state. Every value begins with its format version; old versions stay readable.

MessagePack carries the plain values; integers beyond 64 bits (unfinished sums) travel as an extension.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from featurelib.errors import CorruptState

FORMAT = b"\x03"
HEADER_FORMAT = b"\x05"
"""Format 5 let the newest rows of the buffer stand in a field of their own, which a reader of before would miss;
everything but headers is written in format 3 still."""
FOURTH_FORMAT = b"\x04"
"""Format 4 put the stamp of the tree into headers; it is still read."""
SECOND_FORMAT = b"\x02"
"""Format 2 had the partials of a branch's children in the branch itself, not as bytes in it; it is still read."""
FIRST_FORMAT = b"\x01"
"""Format 1 had rows without ``sub`` and ``until``, and branches without closings; it is still read."""
_READ = (FORMAT, HEADER_FORMAT, FOURTH_FORMAT, SECOND_FORMAT, FIRST_FORMAT)
_BIG_INT = 1
# MessagePack's list of 32-bit length.
_LIST = b"\xdd"
_SHORT_LIST, _LIST_OF_16_BITS = 0x9, 0xDC
_LIST_OF_16 = bytes([_LIST_OF_16_BITS])
# Bytes of a list of nothing, and the format before it.
_EMPTY_LIST = 2


def _encode_other(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} cannot be stored in pipeline state")


def _decode_extension(code: int, data: memoryview) -> int:
    if code != _BIG_INT:
        raise CorruptState(f"pipeline state holds the unknown extension {code}")
    return int(bytes(data))


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_other)
_decoder = msgspec.msgpack.Decoder(ext_hook=_decode_extension)
_branch_decoder = msgspec.msgpack.Decoder(tuple[list[bytes | None], list[int | None] | None])
_rows_decoder = msgspec.msgpack.Decoder(list[tuple[Any, ...]], ext_hook=_decode_extension)


def encode(value: Any) -> bytes:
    """Bytes of a plain value: numbers, text, ``None`` and lists of these."""
    return FORMAT + _encoded(value)


def encode_header(members: Sequence[Any]) -> bytes:
    """Bytes of a header's members."""
    return HEADER_FORMAT + _encoded(members)


def encode_branch(children: Sequence[Any], closings: Sequence[int | None] | None) -> bytes:
    """Bytes of a branch: each child's partials are bytes in it, so that a read need not look into all of them."""
    parts = [None if child is None else _encoded(child) for child in children]
    return FORMAT + _encoder.encode((parts, closings))


def _encoded(value: Any) -> bytes:
    try:
        return _encoder.encode(value)
    except OverflowError:
        return _encoder.encode(_with_big_integers(value))


def decode(data: bytes) -> Any:
    """The value of :func:`encode`'s bytes.

    Raises:
        CorruptState: unknown format version, or bytes that do not decode.
    """
    return _decode(_decoder, data)


def decode_branch(data: bytes) -> tuple[list[bytes | None], list[int | None] | None]:
    """A branch of :func:`encode_branch`, its children as they are stored; :func:`decode_parts` decodes them."""
    found: tuple[list[bytes | None], list[int | None] | None] = _decode(_branch_decoder, data)
    return found


def decode_parts(parts: Iterable[bytes | None]) -> list[Any]:
    """Partials of children that :func:`decode_branch` left as they were, in one call; without those that are empty."""
    present = [part for part in parts if part is not None]
    try:
        found: list[Any] = _decoder.decode(b"".join((_LIST, len(present).to_bytes(4), *present)))
    except msgspec.DecodeError as error:
        raise _undecodable(error) from error
    return found


def decode_rows(data: bytes) -> list[tuple[Any, ...]]:
    """Like :func:`decode`, for a list of rows: each comes as a tuple."""
    rows: list[tuple[Any, ...]] = _decode(_rows_decoder, data)
    if data[:1] == FIRST_FORMAT:
        return [(*row[:3], "", None, *row[3:]) for row in rows]
    return rows


def appended_rows(before: bytes, after: bytes) -> list[tuple[Any, ...]] | None:
    """The rows that ``after`` has behind those of ``before``; ``None`` when that is not all they differ in."""
    start, end = _list_start(before), _list_start(after)
    held = len(before) - start
    same_format = after[:1] == before[:1] != FIRST_FORMAT
    if not (start and end and same_format and after.startswith(before[start:], end)):
        return None
    more = _length(after) - _length(before)
    rows: list[tuple[Any, ...]] = _rows_decoder.decode(_LIST + more.to_bytes(4) + after[end + held :])
    return rows


def joined_rows(first: bytes | None, second: bytes | None) -> bytes | None:
    """The bytes of the rows of two stored lists, one behind the other.

    Raises:
        CorruptState: the lists are of different formats, or longer than any that is joined.
    """
    if second is None or len(second) <= _EMPTY_LIST:
        return first
    if first is None or len(first) <= _EMPTY_LIST:
        return second
    start, following = _list_start(first), _list_start(second)
    if not (start and following and first[:1] == second[:1] == FORMAT):
        raise CorruptState(f"rows of formats {first[:1]!r} and {second[:1]!r} stand in one buffer")
    length = (_length(first) + _length(second)).to_bytes(2)
    return b"".join((FORMAT, _LIST_OF_16, length, memoryview(first)[start:], memoryview(second)[following:]))


def _list_start(data: bytes) -> int:
    """Where the members of a short list begin, behind the format and the length; 0 for anything else."""
    kind = data[1]
    return 2 if kind >> 4 == _SHORT_LIST else 4 if kind == _LIST_OF_16_BITS else 0


def _length(data: bytes) -> int:
    return data[1] & 0xF if data[1] >> 4 == _SHORT_LIST else int.from_bytes(data[2:4])


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> Any:
    if data[:1] not in _READ:
        raise CorruptState(f"pipeline state has format {data[:1]!r}; this version reads up to {HEADER_FORMAT!r}")
    try:
        return decoder.decode(memoryview(data)[1:])
    except msgspec.DecodeError as error:
        raise _undecodable(error) from error


def _undecodable(error: msgspec.DecodeError) -> CorruptState:
    return CorruptState(f"pipeline state does not decode: {error}")


def _with_big_integers(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_with_big_integers(item) for item in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return msgspec.msgpack.Ext(_BIG_INT, str(value).encode())
    return value
