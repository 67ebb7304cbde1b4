"""The bodies of ``POST /api/v1/log`` that are taken while they come: lines of JSON, or an Arrow IPC stream, in blocks.

Where a block ends follows from the bytes alone, never from how the network cut them: a body sent again falls into the
same blocks, so each is known by its number. No more is held than a block and what the connection has read ahead.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from featurelib.definitions import Cdc, DatasetDef
from featurelib.engine.json_lines import Lines, read_json_lines
from featurelib.errors import InvalidRequest, PayloadTooLarge
from serve_apps.arrow_messages import ArrowMessages, Batch
from serve_apps.log_body import read_integer

BLOCK_ROWS = 8_192
"""Most records of a block."""
BLOCK_BYTES = 1 << 20
"""Most bytes of a block of lines, so also of one line."""

_NEWLINE = 10
_JSON = json.JSONDecoder(parse_int=read_integer)


class Block(NamedTuple):
    """Some of a body's records: its number, what stands for its bytes, and how it is read for a dataset."""

    number: int
    digest: str
    read: Callable[[DatasetDef, Cdc], Lines]


class BlockReader(ABC):
    """Cuts a body into blocks; fed with pieces of it, asked for the blocks they complete."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._held = 0
        self._wanted = BLOCK_BYTES
        self._number = 0

    @property
    def is_ready(self) -> bool:
        """Whether enough is there to ask for blocks."""
        return self._held >= self._wanted

    def feed(self, piece: bytes) -> None:
        """Take a piece of the body."""
        self._pieces.append(piece)
        self._held += len(piece)

    @abstractmethod
    def blocks(self, *, final: bool) -> Iterator[Block]:
        """The blocks that are whole; ``final``: no more will come, what is left is the last.

        Raises:
            InvalidRequest: the body is not of this form.
            PayloadTooLarge: a record, or a batch of them, is.
        """

    def _joined(self) -> bytes:
        return b"".join(self._pieces)

    def _keep(self, rest: bytes, wanted: int = BLOCK_BYTES) -> None:
        self._pieces, self._held, self._wanted = [rest], len(rest), max(wanted, BLOCK_BYTES)

    def _numbered(self, digest: str, read: Callable[[DatasetDef, Cdc], Lines]) -> Block:
        self._number += 1
        return Block(self._number - 1, digest, read)


class LineReader(BlockReader):
    """Lines of JSON, one object on each; blank ones are passed over."""

    def blocks(self, *, final: bool) -> Iterator[Block]:
        """Blocks of whole lines."""
        data = self._joined()
        start = 0
        while len(data) - start >= BLOCK_BYTES or (final and start < len(data)):
            end = self._end(data, start)
            text = data[start:end]
            if text.strip():
                yield self._numbered(hashlib.sha256(text).hexdigest(), partial(_lines, text))
            start = end
        self._keep(data[start:])

    def _end(self, data: bytes, start: int) -> int:
        """Where the block that begins at ``start`` ends."""
        limit = start + BLOCK_BYTES
        end = len(data) if len(data) < limit else data.rfind(b"\n", start, limit) + 1
        if not end:
            raise PayloadTooLarge(f"body: a line is longer than {BLOCK_BYTES} bytes")
        if data.count(b"\n", start, end) <= BLOCK_ROWS:
            return end
        ends = np.flatnonzero(np.frombuffer(data, np.uint8, end - start, start) == _NEWLINE)
        return start + int(ends[BLOCK_ROWS - 1]) + 1


class ArrowReader(BlockReader):
    """An Arrow IPC stream; small batches are put together, large ones are cut."""

    def __init__(self) -> None:
        super().__init__()
        self._messages = ArrowMessages()
        self._tables: list[pa.Table] = []
        self._rows = 0
        self._digest = hashlib.sha256()

    def blocks(self, *, final: bool) -> Iterator[Block]:
        """Blocks of rows."""
        data = self._joined()
        start = 0
        while True:
            message, end = self._messages.next(data, start)
            if message is None:
                break
            self._digest.update(memoryview(data)[start:end])
            start = end
            if isinstance(message, Batch):
                yield from self._batch(message)
        self._keep(data[start:], end - start)
        if final:
            if not self._messages.is_ended and (start < len(data) or not self._messages.has_schema):
                raise InvalidRequest("body: the Arrow stream is cut off")
            yield from self._rest()

    def _batch(self, batch: Batch) -> Iterator[Block]:
        self._tables.append(batch.table)
        self._rows += len(batch.table)
        if self._rows < BLOCK_ROWS:
            return
        table = pa.concat_tables(self._tables)
        whole = len(table) // BLOCK_ROWS * BLOCK_ROWS
        for first in range(0, whole, BLOCK_ROWS):
            yield self._block(table.slice(first, BLOCK_ROWS))
        self._tables, self._rows = [table.slice(whole)], len(table) - whole

    def _rest(self) -> Iterator[Block]:
        table = pa.concat_tables(self._tables) if self._tables else None
        if table is not None and len(table):
            yield self._block(table)
        self._tables, self._rows = [], 0

    def _block(self, table: pa.Table) -> Block:
        # Of all that came until now: that is what the rows of a block follow from.
        return self._numbered(self._digest.copy().hexdigest(), partial(_rows, table))


def _lines(text: bytes, dataset: DatasetDef, cdc: Cdc) -> Lines:
    return read_json_lines(text, dataset, cdc, _JSON)


def _rows(table: pa.Table, dataset: DatasetDef, cdc: Cdc) -> Lines:  # noqa: ARG001  # one form for both
    return Lines(len(table), table, np.arange(len(table)), [])
