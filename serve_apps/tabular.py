"""Answers of many rows, as JSON or as an Arrow IPC stream, and which of them a request asks for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa

from featurelib.clock import format_instant
from featurelib.engine.table import ENTITY_ID, TIMESTAMP, Table
from featurelib.errors import InvalidRequest
from serve_apps.accepting import preference

ARROW = b"application/vnd.apache.arrow.stream"
JSON = b"application/json"
_FORMATS = {"positional": False, "json": False, "arrow": True}
# Showing 256 rows of 50 features takes 3 ms; between two chunks other requests get their turn.
_ROWS_PER_TURN = 256

Form = Literal["positional", "results"]
"""JSON of a batch, and of an offline read."""


async def as_json(table: Table, form: Form) -> dict[str, Any]:
    """The JSON answer, made in turns with other requests."""
    made: list[Any] = []
    one = positional_rows if form == "positional" else result_rows
    for start in range(0, len(table), _ROWS_PER_TURN):
        made += one(table, start, start + _ROWS_PER_TURN)
        await asyncio.sleep(0)
    if form == "results":
        return {"results": made}
    return {"features": [ENTITY_ID, *table.names], "values": made}


def positional_rows(table: Table, start: int, stop: int) -> list[list[Any]]:
    """Rows of a batch's JSON."""
    return [[key, *row] for key, row in zip(table.keys[start:stop], table.rows(start, stop), strict=True)]


def result_rows(table: Table, start: int, stop: int) -> list[dict[str, Any]]:
    """Rows of an offline read's JSON."""
    assert table.instants is not None
    rows = zip(table.keys[start:stop], table.instants[start:stop], table.rows(start, stop), strict=True)
    return [
        {ENTITY_ID: key, TIMESTAMP: format_instant(at), "features": dict(zip(table.names, row, strict=True))}
        for key, at, row in rows
    ]


def arrow_stream(table: pa.Table) -> bytes:
    """The bytes of an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def wants_arrow(headers: Mapping[bytes, bytes], asked: str | None) -> bool:
    """Whether an answer is to be an Arrow stream.

    Args:
        headers: of the request; ``Accept`` with its weights. JSON is answered to whoever accepts neither.
        asked: the query parameter ``format``, which outweighs them.

    Raises:
        InvalidRequest: ``format`` is none.
    """
    if asked is not None:
        if asked not in _FORMATS:
            raise InvalidRequest(f"format: {asked[:60]!r} is none of {', '.join(_FORMATS)}")
        return _FORMATS[asked]
    accept = headers.get(b"accept", b"").lower()
    return ARROW.partition(b"/")[2] in accept and preference(accept, ARROW) > preference(accept, JSON)
