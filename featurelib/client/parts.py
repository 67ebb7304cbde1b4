"""Records as the bodies of requests: a table or lines of any length, in parts of a bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from featurelib.errors import InvalidRequest, MissingDriver

# What one request carries, so that an attempt that fails is repeated in seconds, and a table need not fit twice.
_ROWS_PER_PART, _ROWS_PER_BATCH = 65_536, 8_192
_BYTES_PER_PART = 8 * 2**20


def arrow_parts(given: Any) -> Iterator[bytes]:
    """A table in any form as Arrow IPC streams of a bounded number of rows, one after the other.

    Args:
        given: an Arrow table, batch or reader of batches, or a Polars or pandas table.

    Raises:
        InvalidRequest: it is something else.
        MissingDriver: PyArrow is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingDriver("pyarrow", "engine") from None
    for table in _tables(given, pa):
        for first in range(0, len(table), _ROWS_PER_PART):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table.slice(first, _ROWS_PER_PART), max_chunksize=_ROWS_PER_BATCH)
            yield sink.getvalue().to_pybytes()


def _tables(given: Any, pa: Any) -> Iterator[Any]:
    package = type(given).__module__.partition(".")[0]
    if package == "polars" and hasattr(given, "to_arrow"):
        yield given.to_arrow()
    elif package == "pandas" and hasattr(given, "to_dict"):
        yield pa.Table.from_pandas(given, preserve_index=False)
    elif isinstance(given, pa.Table):
        yield given
    elif isinstance(given, pa.RecordBatch):
        yield pa.Table.from_batches([given])
    elif isinstance(given, pa.RecordBatchReader):
        yield from (pa.Table.from_batches([batch]) for batch in given)
    else:
        raise InvalidRequest(f"expected an Arrow, Polars or pandas table, found {type(given).__name__}")


def line_parts(lines: Iterable[str | bytes]) -> Iterator[bytes]:
    """Lines put together into parts of a bounded size."""
    part, size = list[bytes](), 0
    for line in lines:
        text = (line.encode() if isinstance(line, str) else line).rstrip(b"\r\n")
        if part and size + len(text) >= _BYTES_PER_PART:
            yield b"\n".join(part)
            part, size = [], 0
        part.append(text)
        size += len(text) + 1
    if part:
        yield b"\n".join(part)
