"""Lines of JSON as raw records: a whole block becomes columns at once, where nobody could tell it from the other way.

The other way is record by record, with Python's reader; it says what a line means. A block goes that way as a whole
when a line of it is no record, when a column holds values of more than one kind, or a number that a column of doubles
would change. So what the door sees is the same, and costs a fifth where all is well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from featurelib.definitions import Cdc, DatasetDef, FieldDef
from featurelib.engine.coerce import RawRecords
from featurelib.engine.drift import SAMPLE, Sight, look
from featurelib.types import element_type

_EXACT_IN_DOUBLE = float(2**53)
_BLANK = b" \t\r"
# What stands between two records that begin and end their lines: a record that spans lines never looks like this.
_SEAMS = (b"}\n{", b"}\r\n{")
# Arrow reads these as numbers; of JSON they are not, or mean something a column of doubles must not be asked.
_ODD_NUMBERS = (b"Inf", b"NaN")
# These look at the number as it came: 5 is an int to them, and 5.0 is none.
_RULES_OF_KINDS = frozenset({"column_values_in_set", "column_values_of_type"})
_NUMBERS = frozenset({int, float})
_PLAIN = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
_UNSEEN = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}


class NoRecord(NamedTuple):
    """A line that is no record: which, its text, and what is wrong with it."""

    row: int
    text: str
    message: str


class Came(NamedTuple):
    """How records came that are columns by now: how those looked, undeclared ones too, and a record by its row."""

    sight: Sight
    record: Callable[[int], Mapping[str, Any]]


class Lines(NamedTuple):
    """How many lines a block has (blank ones are not counted), its records, the line each stands on, and the others.

    ``came`` says how the records came; ``None``: they say it themselves.
    """

    total: int
    records: RawRecords
    rows: npt.NDArray[np.int64]
    malformed: list[NoRecord]
    came: Came | None = None


def read_json_lines(data: bytes, dataset: DatasetDef, cdc: Cdc, decoder: json.JSONDecoder) -> Lines:
    """The records of a block of whole lines.

    Args:
        data: the lines.
        dataset: whose records they are.
        cdc: how they follow each other; changes are read one by one.
        decoder: reads one record.
    """
    lines = lines_of(data)
    found = _at_once(data, lines, dataset, decoder) if cdc == "append" else None
    return found or _one_by_one(lines, decoder)


def lines_of(data: bytes) -> list[bytes]:
    """The lines of a block, without the blank ones."""
    return [line for line in data.split(b"\n") if line and line.strip(_BLANK)]


def read_line(line: bytes, decoder: json.JSONDecoder) -> dict[str, Any] | str:
    """The record of a line, or what is wrong with it."""
    try:
        found = decoder.decode(line.decode())
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError among them
        return str(error)
    except RecursionError:
        return "nested too deeply"
    return found if isinstance(found, dict) else "not a JSON object"


def _record(line: bytes, decoder: json.JSONDecoder) -> Mapping[str, Any]:
    found = read_line(line, decoder)
    return {"text": found} if isinstance(found, str) else found


def _one_by_one(lines: Sequence[bytes], decoder: json.JSONDecoder) -> Lines:
    records: list[Mapping[str, Any]] = []
    rows: list[int] = []
    malformed: list[NoRecord] = []
    for row, line in enumerate(lines):
        found = read_line(line, decoder)
        if isinstance(found, str):
            malformed.append(NoRecord(row, line.strip(_BLANK).decode(errors="replace"), found))
        else:
            records.append(found)
            rows.append(row)
    return Lines(len(lines), records, np.array(rows, dtype=np.int64), malformed)


def _at_once(data: bytes, lines: Sequence[bytes], dataset: DatasetDef, decoder: json.JSONDecoder) -> Lines | None:
    """The block as columns; ``None`` where that might mean something else than its records do."""
    if not lines or not _is_plain(data, len(lines)):
        return None
    places = np.unique(np.linspace(0, len(lines) - 1, SAMPLE, dtype=np.int64)).tolist()
    sample = [read_line(lines[place], decoder) for place in places]
    records = [record for record in sample if isinstance(record, dict)]
    schema = _schema(records, dataset) if len(records) == len(sample) else None
    table = _parsed(data, schema) if schema is not None else None
    if table is None or len(table) != len(lines) or any(_is_doubtful(column) for column in table.columns):
        return None
    came = Came(look(records)._replace(rows=len(lines)), lambda row: _record(lines[row], decoder))
    return Lines(len(lines), table, np.arange(len(lines)), [], came)


def _is_plain(data: bytes, count: int) -> bool:
    """Whether every line is UTF-8 and begins and ends with a brace, so that no record spans two."""
    text = data.strip()
    seams = sum(text.count(seam) for seam in _SEAMS)
    return (
        seams == count - 1
        and text.startswith(b"{")
        and text.endswith(b"}")
        and not any(odd in text for odd in _ODD_NUMBERS)
        and _is_utf8(text)
    )


def _is_utf8(text: bytes) -> bool:
    try:
        return text.isascii() or bool(text.decode())
    except UnicodeDecodeError:
        return False


def _schema(records: Sequence[Mapping[str, Any]], dataset: DatasetDef) -> pa.Schema | None:
    """The columns a block is parsed into, by the values of a sample; ``None``: some column has no one kind."""
    found = [
        (field.name, _column_type([record.get(field.name) for record in records], field)) for field in dataset.fields
    ]
    if any(kind is None for _, kind in found):
        return None
    floats = {name for name, kind in found if kind is not None and pa.types.is_floating(_innermost(kind))}
    judged = {rule.column for rule in dataset.expectations if rule.type in _RULES_OF_KINDS}
    return None if floats & judged else pa.schema(found)


def _column_type(values: Iterable[Any], field: FieldDef) -> pa.DataType | None:
    present = [value for value in values if value is not None]
    element = element_type(field.type)
    if element and all(type(value) is list for value in present):
        inner = _column_type([part for value in present for part in value], FieldDef(name=field.name, type=element))
        return inner and pa.list_(inner)
    kinds = set(map(type, present))
    if kinds <= _NUMBERS and field.type == "float":
        return pa.float64()
    if not kinds:
        return _UNSEEN.get(field.type, pa.string())
    if kinds == _NUMBERS:
        # To a column of text 5 and 5.0 are wrong in two ways.
        return pa.float64() if field.type in {"int", "datetime"} else None
    return _PLAIN.get(kinds.pop()) if len(kinds) == 1 else None


def _innermost(kind: pa.DataType) -> pa.DataType:
    return _innermost(kind.value_type) if pa.types.is_list(kind) else kind


def _parsed(data: bytes, schema: pa.Schema) -> pa.Table | None:
    try:
        return pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pj.ParseOptions(
                explicit_schema=schema, newlines_in_values=False, unexpected_field_behavior="ignore"
            ),
        )
    except pa.ArrowException:
        return None


def _is_doubtful(column: pa.ChunkedArray) -> bool:
    """Whether a column of doubles may hold an integer that it has changed: one beyond 53 bits, or a minus zero."""
    values = column
    while pa.types.is_list(values.type):
        values = pc.list_flatten(values)
    if not pa.types.is_floating(values.type) or values.null_count == len(values):
        return False
    numbers = values.to_numpy()
    known = numbers[np.isfinite(numbers)]
    odd = len(numbers) - len(known) - values.null_count
    return bool(odd or np.abs(known).max() >= _EXACT_IN_DOUBLE or np.signbit(known[known == 0]).any())
