"""Stored bytes of pipeline state. Every value begins with its format version; old versions stay readable.

MessagePack carries the plain values; integers beyond 64 bits (unfinished sums) travel as an extension.
"""

from __future__ import annotations

from typing import Any

import msgspec

from featurelib.errors import CorruptState

FORMAT = b"\x02"
FIRST_FORMAT = b"\x01"
"""Format 1 had rows without ``sub`` and ``until``, and branches without closings; it is still read."""
Raw = msgspec.Raw
"""Bytes of a value inside another, not decoded yet."""
_BIG_INT = 1


def _encode_other(value: Any) -> Any:
    raise TypeError(f"{type(value).__name__} cannot be stored in pipeline state")


def _decode_extension(code: int, data: memoryview) -> int:
    if code != _BIG_INT:
        raise CorruptState(f"pipeline state holds the unknown extension {code}")
    return int(bytes(data))


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_other)
_decoder = msgspec.msgpack.Decoder(ext_hook=_decode_extension)
_raw_decoder = msgspec.msgpack.Decoder(tuple[list[Raw], list[int | None] | None], ext_hook=_decode_extension)
_rows_decoder = msgspec.msgpack.Decoder(list[tuple[Any, ...]], ext_hook=_decode_extension)


def encode(value: Any) -> bytes:
    """Bytes of a plain value: numbers, text, ``None`` and lists of these."""
    try:
        return FORMAT + _encoder.encode(value)
    except OverflowError:
        return FORMAT + _encoder.encode(_with_big_integers(value))


def decode(data: bytes) -> Any:
    """The value of :func:`encode`'s bytes.

    Raises:
        CorruptState: unknown format version, or bytes that do not decode.
    """
    return _decode(_decoder, data)


def decode_raw(data: bytes) -> tuple[list[Raw], list[int | None] | None]:
    """A branch with its children as they are stored; :func:`decode_part` gives one."""
    found: tuple[list[Raw], list[int | None] | None] = _decode(_raw_decoder, data)
    return found


def decode_part(raw: Raw) -> Any:
    """A part of a value that :func:`decode_raw` left as it was."""
    return _decoder.decode(raw)


def decode_rows(data: bytes) -> list[tuple[Any, ...]]:
    """Like :func:`decode`, for a list of rows: each comes as a tuple."""
    rows: list[tuple[Any, ...]] = _decode(_rows_decoder, data)
    if data[:1] == FIRST_FORMAT:
        return [(*row[:3], "", None, *row[3:]) for row in rows]
    return rows


def _decode(decoder: msgspec.msgpack.Decoder[Any], data: bytes) -> Any:
    if data[:1] not in (FORMAT, FIRST_FORMAT):
        raise CorruptState(f"pipeline state has format {data[:1]!r}; this version reads {FORMAT!r}")
    try:
        return decoder.decode(memoryview(data)[1:])
    except msgspec.DecodeError as error:
        raise CorruptState(f"pipeline state does not decode: {error}") from error


def _with_big_integers(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_with_big_integers(item) for item in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return msgspec.msgpack.Ext(_BIG_INT, str(value).encode())
    return value
