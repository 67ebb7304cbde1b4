"""Schema drift: how the columns that come differ from those a dataset declares, and from those that came before.

    new      a column the dataset does not declare; it is ignored
    missing  a declared column without a value: a required one in a whole batch; an optional one that had values
             before, when a table comes without the column, or so many records in a row that it is no accident
    retyped  a declared column whose values are of another kind than before, though they may be coerced

Only names and kinds are looked at, never values; of records that are mappings a bounded sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from featurelib.definitions import DatasetDef, FieldDef
from featurelib.engine.coerce import RawRecords
from featurelib.engine.records import SYSTEM_COLUMNS
from featurelib.types import decimal_scale

Change = Literal["new", "missing", "retyped"]

VANISHED_AFTER = 100
"""So many records in a row without a value of an optional column, and more than twice the longest such run before."""
SAMPLE = 64
"""So many records that are mappings are looked at."""
_LONGEST_NAME = 128
_NONE = type(None)
_TEXT, _NUMBER = "text", "number"


class Drift(NamedTuple):
    """One way in which a column differs. ``kind`` is that of its values now, ``before`` the kinds it had."""

    change: Change
    column: str
    kind: str = ""
    before: tuple[str, ...] = ()


class Sight(NamedTuple):
    """What the columns of a batch are: the kinds of values each holds, none where all are null."""

    rows: int
    kinds: Mapping[str, frozenset[str]]
    is_table: bool


def look(records: RawRecords) -> Sight:
    """The columns of a batch; system columns are no columns."""
    if isinstance(records, pa.Table):
        columns = {
            name: frozenset() if column.null_count == len(column) else frozenset({_arrow_kind(column.type)})
            for name, column in zip(records.column_names, records.columns, strict=True)
        }
    else:
        columns = _kinds_of(_sample(records))
    shown = {name[:_LONGEST_NAME]: kinds for name, kinds in columns.items() if name not in SYSTEM_COLUMNS}
    return Sight(len(records), shown, isinstance(records, pa.Table))


def kinds_of_declared(sight: Sight, dataset: DatasetDef) -> dict[str, tuple[str, ...]]:
    """The kinds of values each declared column has; columns without a value are left out."""
    found = {field.name: _comparable(sight.kinds.get(field.name, ()), field) for field in dataset.fields}
    return {name: kinds for name, kinds in found.items() if kinds}


def compare(
    sight: Sight, dataset: DatasetDef, before: Mapping[str, Sequence[str]], vanished: Iterable[str]
) -> list[Drift]:
    """Every way in which a batch differs.

    Args:
        sight: the batch.
        dataset: what it should be.
        before: the kinds that the values of each declared column had so far.
        vanished: optional columns that came without a value for long; see :class:`Runs`.
    """
    declared = {field.name for field in dataset.fields}
    found = [Drift("new", name, _listed(kinds)) for name, kinds in sight.kinds.items() if name not in declared]
    gone = set(vanished)
    now = kinds_of_declared(sight, dataset)
    for field in dataset.fields:
        known = tuple(before.get(field.name, ()))
        if field.name not in now:
            required = field.key or field.timestamp or not field.optional
            dropped = sight.is_table and field.name not in sight.kinds
            if required or (known and (dropped or field.name in gone)):
                found.append(Drift("missing", field.name, "", known))
        elif known:
            others = [kind for kind in now[field.name] if kind not in known]
            found += [Drift("retyped", field.name, kind, known) for kind in others]
    return found


class Runs:
    """How many records in a row came without a value of each optional column."""

    def __init__(self) -> None:
        self._current: dict[str, int] = {}
        self._longest: dict[str, int] = {}

    def add(self, sight: Sight, dataset: DatasetDef) -> list[str]:
        """Count a batch; the columns whose run is no accident."""
        gone = []
        for field in dataset.fields:
            name = field.name
            if sight.kinds.get(name):
                self._longest[name] = max(self._longest.get(name, 0), self._current.pop(name, 0))
                continue
            self._current[name] = self._current.get(name, 0) + sight.rows
            if self._current[name] >= max(VANISHED_AFTER, 2 * self._longest.get(name, 0) + 1):
                gone.append(name)
        return gone


def _sample(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if len(records) <= SAMPLE:
        return list(records)
    return [records[place] for place in np.linspace(0, len(records) - 1, SAMPLE, dtype=np.int64).tolist()]


def _kinds_of(records: Iterable[Mapping[str, Any]]) -> dict[str, frozenset[str]]:
    found: dict[str, set[type]] = {}
    for record in records:
        for name, value in record.items():
            types = found.get(name)
            if types is None:
                types = found[name] = set()
            types.add(type(value))
    kinds: dict[str, frozenset[str]] = {}
    for name, types in found.items():
        kinds[str(name)] = kinds.get(str(name), frozenset()) | {_kind(each) for each in types if each is not _NONE}
    return kinds


@lru_cache(maxsize=256)
def _kind(of: type) -> str:
    for kinds, name in _PYTHON:
        if issubclass(of, kinds):
            return name
    return of.__name__


# bool before int: a bool is one. datetime is a date.
_PYTHON: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "bool"),
    (int, "int"),
    (float, "float"),
    (str, _TEXT),
    (date, "datetime"),
    (Decimal, "decimal"),
    ((list, tuple), "list"),
    (Mapping, "object"),
    (bytes, "bytes"),
)


def _arrow_kind(kind: pa.DataType) -> str:
    for matches, name in _ARROW:
        if matches(kind):
            return name
    return _arrow_kind(kind.value_type) if pa.types.is_dictionary(kind) else str(kind)


_ARROW = (
    (pa.types.is_boolean, "bool"),
    (pa.types.is_integer, "int"),
    (pa.types.is_floating, "float"),
    (pa.types.is_string, _TEXT),
    (pa.types.is_large_string, _TEXT),
    (pa.types.is_string_view, _TEXT),
    (pa.types.is_timestamp, "datetime"),
    (pa.types.is_date, "datetime"),
    (pa.types.is_decimal, "decimal"),
    (pa.types.is_list, "list"),
    (pa.types.is_large_list, "list"),
    (pa.types.is_struct, "object"),
    (pa.types.is_map, "object"),
    (pa.types.is_binary, "bytes"),
)


def _comparable(kinds: Iterable[str], field: FieldDef) -> tuple[str, ...]:
    """The kinds as they are compared: where a column takes whole and broken numbers alike, both are numbers."""
    numbers = field.type in {"float", "datetime"} or decimal_scale(field.type) is not None
    same = {"int", "float", "decimal"} if numbers else set()
    return tuple(sorted({_NUMBER if kind in same else kind for kind in kinds}))


def _listed(kinds: Iterable[str]) -> str:
    return " or ".join(sorted(kinds)) or "null"
