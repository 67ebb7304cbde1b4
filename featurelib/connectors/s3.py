"""S3: JSON objects and JSON lines below a prefix of a bucket, new keys only.

Objects are read in the order of their keys, each once: a key that sorts before one that was read is never looked at
again, nor is an object that is rewritten. The stream is ``<bucket>/<prefix>``, and *named*: a record's name is its
object's key, a tab, and its line as twelve digits. A mark's token is the name of the record read last, or, when its
object is finished, the key, a tab and ``~``. Settings:

    bucket, prefix      which objects; the prefix is text, it may end within a name
    region              default us-east-1
    endpoint_url        another address than Amazon's; ``http://`` is allowed where it is written
    access_key_id, secret_access_key
                        default: the environment (``AWS_*``), else the machine's own role
    anonymous           read without a signature: a public bucket

A key's ending says what is in it: ``.json`` one object, ``.jsonl`` and ``.ndjson`` one per line; with ``.gz``
compressed. Other keys are passed over.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, cast

import numpy as np
import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from featurelib.clock import Clock
from featurelib.connectors.contract import NO_SEQUENCE, Malformed, Position, SourceBatch
from featurelib.connectors.credentials import Setting, resolve
from featurelib.connectors.lines import Block, Parsed, cut, parse_json
from featurelib.definitions import SourceDef
from featurelib.engine.records import Mark
from featurelib.errors import SourceError

_SEPARATOR = "\t"
# Sorts after every line number.
_END = "~"
_LINES, _WHOLE = (".jsonl", ".ndjson"), (".json",)
_BLOCK_BYTES = 4 * 1024 * 1024
# A line or object longer than this is not a record; without the bound one object could fill the memory.
_RECORD_BYTES = 64 * 1024 * 1024
_KEYS_PER_ANSWER = 1_000
_GZIP = 16 + zlib.MAX_WBITS
_DRIVER_ERRORS = (BaseError, OSError)

_Entry = tuple[int, dict[str, Any] | Malformed]


class _Place(NamedTuple):
    """The object read last, how many of its lines, and whether that was all of it."""

    key: str
    line: int
    finished: bool


class _Unreadable(Exception):
    """The rest of an object holds no records."""


class S3Objects:
    """Reads the objects of a bucket. Nothing is held between polls but the connection."""

    def __init__(self, source: SourceDef, batch_rows: int, clock: Clock) -> None:  # noqa: ARG002  # as every connector
        """Checks the settings; connects at the first poll.

        Raises:
            SourceError: a setting is missing or cannot be.
        """
        config = source.connector.config
        self._what = f"s3 source of {source.dataset}"
        self._prefix = _text(config, "prefix")
        if self._prefix.startswith("/") or "//" in self._prefix:
            raise SourceError(f"{self._what}: prefix {self._prefix!r} holds an empty folder name, which is not read")
        self._bucket = _text(config, "bucket")
        self._stream = f"{self._bucket}/{self._prefix}"
        self._store = _store(config, self._bucket, self._what)
        self._batch_rows = batch_rows

    def poll(self, position: Position) -> Iterator[SourceBatch]:
        """The rest of the object read last, and all objects whose keys sort after it.

        Raises:
            SourceError: an object could not be read; those after it wait, since a mark would pass over it.
        """
        token = position.get(self._stream, Mark(0)).token
        place = _place(token)
        for key in self._keys(place):
            after = place.line if key == place.key else 0
            for batch in self._object(key, after):
                yield batch._replace(floor=token or _SEPARATOR)
                token = batch.through.token

    def close(self) -> None:
        """Nothing is held open between polls."""

    def _keys(self, place: _Place) -> Iterator[str]:
        """The keys to be read, in order."""
        if place.key and not place.finished:
            yield place.key
        folder = self._prefix.rpartition("/")[0]
        # Listing begins behind a key: everything that begins with the prefix sorts behind the prefix cut by one.
        offset = max(place.key, self._prefix[:-1])
        try:
            pages = obstore.list(self._store, folder or None, offset=offset or None, chunk_size=_KEYS_PER_ANSWER)
            for key in (found["path"] for page in pages for found in page):
                if key <= offset:
                    raise SourceError(
                        f"{self._what}: {self._stream} lists {key!r} after {offset!r}: keys without order"
                    )
                offset = key
                if not key.startswith(self._prefix):
                    if key > self._prefix:
                        return
                elif _kind(key):
                    yield key
        except _DRIVER_ERRORS as error:
            raise SourceError(f"{self._what}: {self._stream} could not be listed: {_reason(error)}") from error

    def _object(self, key: str, after: int) -> Iterator[SourceBatch]:
        """The lines of an object after one of them; the last batch says that it is finished, and may be empty."""
        waiting: list[_Entry] = []
        notices: tuple[str, ...] = ()
        try:
            for entries in self._entries(key):
                waiting += [entry for entry in entries if entry[0] > after]
                whole = (len(waiting) - 1) // self._batch_rows * self._batch_rows
                for first in range(0, whole, self._batch_rows):
                    yield self._batch(key, waiting[first : first + self._batch_rows], finished=False)
                waiting = waiting[max(whole, 0) :]
        except FileNotFoundError:
            read = f"its first {after} lines were read" if after else "nothing of it was read"
            notices = (f"{self._what}: {self._bucket}/{key} was removed before it was read to its end; {read}",)
        except _DRIVER_ERRORS as error:
            message = f"{self._what}: {self._bucket}/{key} could not be read: {_reason(error)}; later keys wait for it"
            raise SourceError(message) from error
        yield self._batch(key, waiting, finished=True)._replace(notices=notices)

    def _batch(self, key: str, entries: Sequence[_Entry], *, finished: bool) -> SourceBatch:
        lines = entries[-1][0] if entries else 0
        end = _name(key, lines) if not finished else f"{key}{_SEPARATOR}{_END}"
        good = [(number, value) for number, value in entries if isinstance(value, dict)]
        return SourceBatch(
            self._stream,
            NO_SEQUENCE,
            [value for _, value in good],
            Mark(0, end),
            tuple(self._named(key, value) for _, value in entries if isinstance(value, Malformed)),
            cursor=f"{key}:{lines}" if lines else key,
            names=[_name(key, number) for number, _ in good],
        )

    def _named(self, key: str, bad: Malformed) -> Malformed:
        return Malformed(0, bad.text, f"{self._bucket}/{key} {bad.message}", _name(key, bad.sequence))

    def _entries(self, key: str) -> Iterator[list[_Entry]]:
        """All an object holds, a bounded part at a time; what ends it too early is malformed."""
        line = 0
        try:
            for block, lines in self._blocks(key):
                parsed = parse_json(block)
                line = lines
                yield _merged(parsed)
        except _Unreadable as error:
            yield [(line + 1, Malformed(line + 1, "", f"line {line + 1}: {error}; the rest of the object is not read"))]

    def _blocks(self, key: str) -> Iterator[tuple[Block, int]]:
        """Records as text, with the lines read so far."""
        whole, line, pending = _kind(key) in _WHOLE, 0, b""
        for part in self._parts(key):
            pending += part
            if not whole:
                block, lines, size = cut(pending, line + 1, quoted=False, final=False)
                line, pending = line + lines, pending[size:]
                if lines:
                    yield block, line
            if len(pending) > _RECORD_BYTES:
                raise _Unreadable(f"a record longer than {_RECORD_BYTES} bytes")
        if whole:
            yield _one(pending), 1
        elif pending:
            block, lines, _ = cut(pending, line + 1, quoted=False, final=True)
            yield block, line + lines

    def _parts(self, key: str) -> Iterator[bytes]:
        parts = (bytes(part) for part in obstore.get(self._store, key).stream(min_chunk_size=_BLOCK_BYTES))
        return _inflated(parts) if key.lower().endswith(".gz") else parts


def _merged(parsed: Parsed) -> list[_Entry]:
    entries: list[_Entry] = list(
        zip(parsed.numbers.tolist(), cast("list[dict[str, Any]]", parsed.records), strict=True)
    )
    if not parsed.malformed:
        return entries
    return sorted([*entries, *((bad.sequence, bad) for bad in parsed.malformed)], key=lambda entry: entry[0])


def _one(data: bytes) -> Block:
    """A text that is one record, whatever line ends it holds."""
    return Block(data, np.array([0]), np.array([len(data)]), np.array([1]))


def _inflated(parts: Iterator[bytes]) -> Iterator[bytes]:
    """What compressed parts hold, no more than a block at a time: a small part may hold much.

    Raises:
        _Unreadable: from here on it is not gzip.
    """
    inflate = zlib.decompressobj(_GZIP)
    fed = False
    for part in parts:
        left = part
        while left:
            if inflate.eof:  # gzip files may be joined to one
                inflate = zlib.decompressobj(_GZIP)
            fed = True
            try:
                out = inflate.decompress(left, _BLOCK_BYTES)
            except zlib.error as error:
                raise _Unreadable(f"not gzip: {error}") from error
            if out:
                yield out
            left = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
    if fed and not inflate.eof and (out := inflate.flush()):
        yield out
    if not fed or not inflate.eof:
        raise _Unreadable("the compressed data ends too early")


def _kind(key: str) -> str:
    """The ending that says what an object holds; empty: nothing we read."""
    name = key.lower().removesuffix(".gz")
    return next((ending for ending in (*_LINES, *_WHOLE) if name.endswith(ending)), "")


def _name(key: str, line: int) -> str:
    return f"{key}{_SEPARATOR}{line:012d}"


def _place(token: str) -> _Place:
    key, _, line = token.rpartition(_SEPARATOR)
    return _Place(key, 0 if line in {"", _END} else int(line), line == _END)


def _store(config: Mapping[str, Setting], bucket: str, what: str) -> S3Store:
    key = resolve(config.get("access_key_id"), f"{what}: access_key_id")
    secret = resolve(config.get("secret_access_key"), f"{what}: secret_access_key")
    if bool(key) != bool(secret):
        raise SourceError(f"{what}: access_key_id and secret_access_key go together; only one of them is given")
    endpoint = _text(config, "endpoint_url")
    options: dict[str, Any] = {"region": _text(config, "region") or "us-east-1"}
    if key:
        options |= {"access_key_id": key, "secret_access_key": secret}
    if endpoint:
        options |= {"endpoint": endpoint}
    if config.get("anonymous"):
        options |= {"skip_signature": True}
    try:
        # An object is asked for again by the next poll: the driver's own patience is three minutes.
        return S3Store(
            bucket,
            client_options={"allow_http": endpoint.startswith("http://"), "timeout": timedelta(minutes=10)},
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=10)},
            **options,
        )
    except (BaseError, ValueError) as error:
        raise SourceError(f"{what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The driver's sentence, without what it appends for its own makers."""
    return str(error).partition("\n\nDebug source")[0].replace("\n", " ")


def _text(config: Mapping[str, Setting], name: str) -> str:
    value = config.get(name)
    return value if isinstance(value, str) else ""
