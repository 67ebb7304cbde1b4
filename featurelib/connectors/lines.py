"""Text files as numbered records: cuts bytes at record ends, and reads CSV and JSON lines with blame per record.

Whole blocks are parsed at once. Where that fails, or where the parser saw other records than were cut, the
block is read record by record, so that the one at fault is found and all others are kept.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from featurelib.connectors.contract import Malformed
from featurelib.engine.coerce import RawRecords
from featurelib.errors import SourceError

Ints = npt.NDArray[np.int64]

# A quote that is never closed must not swallow the rest of the file.
_RECORD_LINES = 1_000
_SHOWN_CHARACTERS = 2_000


class Block(NamedTuple):
    """Consecutive text records: record i is ``data[starts[i]:ends[i]]`` and begins on line ``numbers[i]``."""

    data: bytes
    starts: Ints
    ends: Ints
    numbers: Ints

    def text(self, index: int) -> bytes:
        """One record, without its line end."""
        return self.data[self.starts[index] : self.ends[index]].rstrip(b"\r\n")


class Parsed(NamedTuple):
    """Records of a block with their line numbers, and what was not a record."""

    numbers: Ints
    records: RawRecords
    malformed: list[Malformed]


Parser = Callable[[Block], Parsed]


def cut(data: bytes, first_line: int, *, quoted: bool, final: bool) -> tuple[Block, int, int]:
    """Cut bytes into records.

    Args:
        data: text that starts at a record's start.
        first_line: number of its first line.
        quoted: whether a double-quoted cell may hold line ends (CSV).
        final: no more text will come: an unfinished last line is a record, an open quote is not waited for.

    Returns:
        The records (blank lines left out), and how many lines and bytes they and the blanks take.
    """
    line_ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    if final and (not len(line_ends) or line_ends[-1] < len(data)):
        line_ends = np.append(line_ends, len(data))
    last_lines = np.arange(len(line_ends), dtype=np.int64)
    if quoted and b'"' in data:
        last_lines = _closed(data, line_ends, final=final)
    if not len(last_lines):
        return Block(data, last_lines, last_lines, last_lines), 0, 0
    ends = line_ends[last_lines]
    starts = np.concatenate(([0], ends[:-1]))
    numbers = first_line + np.concatenate(([0], last_lines[:-1] + 1))
    shown = _not_blank(data, starts, ends)
    return Block(data, starts[shown], ends[shown], numbers[shown]), int(last_lines[-1]) + 1, int(ends[-1])


def _not_blank(data: bytes, starts: Ints, ends: Ints) -> npt.NDArray[np.bool_]:
    lengths = ends - starts
    blank = lengths <= 2  # noqa: PLR2004  # at most "\r\n": only these need a look
    for index in np.flatnonzero(blank).tolist():
        blank[index] = not data[starts[index] : ends[index]].strip()
    return ~blank


def _closed(data: bytes, line_ends: Ints, *, final: bool) -> Ints:
    """The last line of every record, where records end at a line end outside quotes.

    A line with an odd number of quotes opens a cell that the next such line closes, unless none of its quotes
    stands at a cell's start (``5" pipe``) or none closes it soon: then it is a record of its own.
    """
    quotes = np.frombuffer(data, np.uint8)[: line_ends[-1]] == ord('"') if len(line_ends) else np.zeros(0, bool)
    starts = np.concatenate(([0], line_ends[:-1]))
    counts = np.add.reduceat(quotes, starts, dtype=np.int64) if len(line_ends) else starts[:0]
    odd = np.flatnonzero(counts % 2).tolist()
    inner = np.zeros(len(line_ends), dtype=bool)
    whole = len(line_ends)
    position = 0
    while position < len(odd):
        line = odd[position]
        closing = odd[position + 1] if position + 1 < len(odd) else None
        text = data[starts[line] : line_ends[line]]
        if not _opens(text):
            position += 1
        elif closing is not None and closing - line < _RECORD_LINES:
            inner[line:closing] = True
            position += 2
        elif closing is None and not final and len(line_ends) - line < _RECORD_LINES:
            whole = line  # the rest of the record is still to come
            break
        else:
            position += 1
    return np.flatnonzero(~inner[:whole])


def _opens(text: bytes) -> bool:
    """Whether text with an odd number of quotes leaves a quoted cell open."""
    return text.startswith(b'"') or b',"' in text


def parse_json(block: Block) -> Parsed:
    """JSON lines: one object per line."""
    decoder = msgspec.json.Decoder()
    try:
        values = [decoder.decode(block.text(index)) for index in range(len(block.numbers))]
    except (msgspec.DecodeError, UnicodeDecodeError):
        values = [_json_value(decoder, block.text(index)) for index in range(len(block.numbers))]
    good = [index for index, value in enumerate(values) if isinstance(value, dict)]
    if len(good) == len(values):
        return Parsed(block.numbers, values, [])
    malformed = [
        _malformed(block, index, value if isinstance(value, _NotJson) else _NotJson("not a JSON object"))
        for index, value in enumerate(values)
        if not isinstance(value, dict)
    ]
    return Parsed(block.numbers[good], [values[index] for index in good], malformed)


class _NotJson(str):
    """Why a line is not a record."""

    __slots__ = ()


def _json_value(decoder: msgspec.json.Decoder[Any], line: bytes) -> Any:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _NotJson(str(error))


def csv_parser(header: bytes, nulls: Sequence[str]) -> Parser:
    """A parser of CSV records into text columns named by the header line.

    Raises:
        SourceError: the header is not text, or names a column twice.
    """
    try:
        names = next(csv.reader([header.decode("utf-8-sig").rstrip("\r\n")]), [])
    except UnicodeDecodeError as error:
        message = f"its header is not UTF-8: {error}"
        raise SourceError(message) from error
    if len(set(names)) < len(names):
        message = f"its header names a column twice: {', '.join(names)}"
        raise SourceError(message)
    reader = _CsvReader(names, nulls)
    return reader.parse


class _CsvReader:
    def __init__(self, names: list[str], nulls: Sequence[str]) -> None:
        self._names = names
        self._convert = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,  # "" in quotes is an empty text, an empty cell is null
            null_values=list(nulls),
        )

    def parse(self, block: Block) -> Parsed:
        count = len(block.numbers)
        if not count:
            return Parsed(block.numbers, pa.table({name: pa.array([], pa.string()) for name in self._names}), [])
        if _never_closed(block).any():
            return self._one_by_one(block)
        try:
            table, invalid = self._table(_joined(block))
        except pa.ArrowInvalid:
            return self._one_by_one(block)
        rows = [row.number - 1 for row in invalid if row.number is not None]
        if len(table) + len(rows) != count or (rows and _spans_lines(block)):
            return self._one_by_one(block)
        keep = np.ones(count, dtype=bool)
        keep[rows] = False
        malformed = [_malformed(block, row, _why(bad)) for row, bad in zip(rows, invalid, strict=True)]
        return Parsed(block.numbers[keep], table, malformed)

    def _one_by_one(self, block: Block) -> Parsed:
        good, tables, malformed = [], [], []
        never_closed = _never_closed(block)
        for index in range(len(block.numbers)):
            if never_closed[index]:
                malformed.append(_malformed(block, index, "a quote is never closed"))
                continue
            try:
                table, invalid = self._table(block.text(index) + b"\n")
            except pa.ArrowInvalid as error:
                malformed.append(_malformed(block, index, str(error)))
                continue
            if len(table) == 1 and not invalid:
                good.append(index)
                tables.append(table)
            else:
                malformed.append(_malformed(block, index, _why(invalid[0]) if invalid else "not one CSV record"))
        empty = pa.table({name: pa.array([], pa.string()) for name in self._names})
        return Parsed(block.numbers[good], pa.concat_tables(tables) if tables else empty, malformed)

    def _table(self, data: bytes) -> tuple[pa.Table, list[Any]]:
        invalid: list[Any] = []

        def skip(row: Any) -> str:
            invalid.append(row)
            return "skip"

        # Threads off: only then is an invalid row numbered.
        table = pyarrow.csv.read_csv(
            pa.BufferReader(data),
            read_options=pyarrow.csv.ReadOptions(
                column_names=self._names, use_threads=False, block_size=max(len(data), 1_024)
            ),
            parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
            convert_options=self._convert,
        )
        return table, invalid


def _never_closed(block: Block) -> npt.NDArray[np.bool_]:
    """Records that begin a quoted cell and do not end it; the parser itself would take all that follows for it."""
    found = np.zeros(len(block.numbers), dtype=bool)
    if b'"' not in block.data:
        return found
    before = np.concatenate(([0], np.cumsum(np.frombuffer(block.data, np.uint8) == ord('"'))))
    for index in np.flatnonzero((before[block.ends] - before[block.starts]) % 2).tolist():
        found[index] = _opens(block.text(index))
    return found


def _joined(block: Block) -> bytes:
    """The records' bytes without the blanks between them."""
    length = int((block.ends - block.starts).sum())
    if length == int(block.ends[-1] - block.starts[0]):
        return block.data[int(block.starts[0]) : int(block.ends[-1])]
    return b"".join(block.data[start:end] for start, end in zip(block.starts, block.ends, strict=True))


def _spans_lines(block: Block) -> bool:
    return b'"' in block.data


def _why(row: Any) -> str:
    return f"expected {row.expected_columns} columns, found {row.actual_columns}"


def _malformed(block: Block, index: int, why: str) -> Malformed:
    number = int(block.numbers[index])
    text = block.text(index).decode(errors="replace")
    return Malformed(number, text[:_SHOWN_CHARACTERS], f"line {number}: {why}")
