"""Types at the door: raw records become a typed table, or dead letters with a reason (decision 23).

Coercion is lossless only. One table says what a column takes; ``coerce_value`` is its meaning, the
column kernels below it only decide the common cells at once, and hand every other cell back to it.

    declared  given                                        result
    --------  -------------------------------------------  ----------------------------------------------
    any       null, missing, or an empty CSV cell          null; required column: ``missing_field``
    any       NaN, a float or a Decimal                    null; required column: ``not_a_number``
    int       int within 64 bit                            itself; beyond: ``out_of_range``
    int       integral float (3.0), integral numeric text  the int; 3.5 and "3.5": ``not_integral``
    float     int that a double holds exactly              the float; beyond: ``out_of_range``
    float     finite float, numeric text                   the float; infinite: ``out_of_range``
    str       text                                         itself (numbers are not turned into text); a lone
                                                           surrogate, which no UTF-8 spells: ``wrong_type``
    bool      bool, text "true" / "false" in any case      the bool (1 and 0 are not bool)
    datetime  timestamp, ISO 8601 text, epoch seconds      the instant, µs; finer digits are cut
    decimal   int, Decimal, float, numeric text            the decimal; more than 20 digits before the point:
                                                           ``out_of_range``; digits that its scale has no room for:
                                                           ``not_exact``; a float is what its shortest text says
    list[T]   list of what T takes                         the list; a null inside is kept
    number    a bool                                       ``wrong_type`` (a bool is no number)
    datetime  a bool                                       ``wrong_type``
    any       anything else                                ``wrong_type``
    key       empty text                                   ``empty_key``
    key       text of more than 1,024 characters, or with  ``invalid_key``: no read can name it
              NUL in it

A value of the right type may still be outside of what the dataset declares for it:

    declared     the value                                 else
    -----------  ----------------------------------------  -------------------------------
    minimum      of a number: at least so large            ``below_minimum``
    maximum      of a number: at most so large             ``above_maximum``
    one_of       equals one of them                        ``not_one_of``
    regex        of a text: all of it fits the expression  ``no_match``

Columns the dataset does not declare are ignored. A record that takes its key away needs no more than its key and its
time: elsewhere, what does not fit is null.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from featurelib.clock import parse_instant
from featurelib.definitions import DatasetDef, FieldDef
from featurelib.engine.keys import LONGEST_KEY, is_key
from featurelib.engine.records import TIME, arrow_type
from featurelib.errors import InvalidTimestamp, RecordError
from featurelib.types import INT_MAX, INT_MIN, Value, decimal_scale, element_type

RawRecords: TypeAlias = pa.Table | Sequence[Mapping[str, Any]]
"""Records as they came: a table, or one mapping per record."""

_INTEGER_TEXT = r"^[+-]?[0-9]{1,18}(\.0*)?$"
_NUMBER_TEXT = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_NUMBER = re.compile(_NUMBER_TEXT.replace("$", r"\Z"), re.ASCII)
_ZONED_TEXT = r"(Z|[+-][0-9]{2}:?[0-9]{2})$"
_EXACT_IN_DOUBLE = 2**53
# Typed: comparing a uint64 column with a plain int would cast the column to int64, which fails for large cells.
_UNSIGNED_INT_MAX, _UNSIGNED_EXACT = pa.scalar(INT_MAX, pa.uint64()), pa.scalar(_EXACT_IN_DOUBLE, pa.uint64())
_MICROS = 1_000_000
_BOOLS = {"true": True, "false": False}
# The range of parse_instant; a cell outside it is left to parse_instant, which refuses it with the reason.
EARLIEST, LATEST = parse_instant("1900-01-01"), parse_instant("2200-01-01")
"""Between these lies every instant, µs."""
DECIMAL_LIMIT = 10**20
"""Decimals are smaller than this, so that 38 digits hold them with every scale."""
_DIGITS_BEFORE_POINT = 20
_DECIMAL_TEXT = r"^[+-]?[0-9]{{1,20}}(\.[0-9]{{0,{scale}}}0*)?$"
_EXACT = Context(prec=60)
_FEW = 128
_NO_ROWS = np.zeros(0, dtype=np.int64)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHOWN_CHARACTERS = 80


class Rejected(NamedTuple):
    """A record that does not fit: its row, itself as it came, and the first column at fault."""

    row: int
    record: Mapping[str, Any]
    reason: str
    field: str
    message: str


class Coerced(NamedTuple):
    """The typed records (dataset columns and ``__time``), the row each came from, and those refused."""

    table: pa.Table
    kept: npt.NDArray[np.int64]
    rejected: list[Rejected]


def coerce(records: RawRecords, dataset: DatasetDef, deleted: npt.NDArray[np.bool_] | None = None) -> Coerced:
    """Give every record the dataset's types, or reject it, by the tables above.

    Args:
        records: as they came.
        dataset: what they must fit.
        deleted: which of them take their key away.
    """
    failures: dict[int, RecordError] = {}
    columns = {field.name: _column(records, field, failures, deleted) for field in dataset.fields}
    columns[TIME] = pc.cast(columns[dataset.timestamp.name], pa.int64())
    table = pa.table(columns)
    if not failures:
        return Coerced(table, np.arange(len(table), dtype=np.int64), [])
    keep = np.ones(len(table), dtype=bool)
    keep[list(failures)] = False
    rejected = [
        Rejected(index, raw_record(records, index), error.reason, error.field, error.message)
        for index, error in sorted(failures.items())
    ]
    return Coerced(table.filter(pa.array(keep)), np.flatnonzero(keep), rejected)


def coerce_value(value: object, field: FieldDef) -> Value | None:
    """One cell by the table above; datetimes become instants (µs).

    Raises:
        RecordError: with the reason code and the column.
    """
    if _is_nan(value):
        if not _required(field):
            return None
        raise _refuse(field, "not_a_number", "is NaN")
    if value is None:
        if not _required(field):
            return None
        raise RecordError("missing_field", field.name, f"{field.name}: a required column is missing or null")
    if field.key and value == "":
        raise RecordError("empty_key", field.name, f"{field.name}: the key is empty")
    made = _cell(value, field, field.type)
    if field.key and isinstance(made, str) and not is_key(made):
        raise _refuse(field, "invalid_key", f"{_shown(made)} is no key of 1 to {LONGEST_KEY} characters without NUL")
    reason = _outside(made, field)
    if reason:
        raise _OUTSIDE[reason](made, field)
    return made


def read_column(array: pa.Array, field: FieldDef) -> pa.Array:
    """A column of the field's type; null where a cell does not fit."""
    return _typed(array, lambda index: array[index].as_py(), field, {})


def raw_record(records: RawRecords, index: int) -> Mapping[str, Any]:
    """The record at a row, as it came."""
    if isinstance(records, pa.Table):
        row: Mapping[str, Any] = records.slice(index, 1).to_pylist()[0]
        return row
    return records[index]


def raw_column(records: RawRecords, name: str) -> tuple[pa.Array | None, Callable[[int], Any]]:
    """A raw column as an array, where it has one Arrow type, and a getter of its cells as they came."""
    if isinstance(records, pa.Table):
        column = _flat(records[name]) if name in records.column_names else pa.nulls(len(records))
        return column, lambda index: column[index].as_py()
    values = [record.get(name) for record in records]
    return _array(values) if _of_one_type(values) else None, values.__getitem__


def _of_one_type(values: list[Any]) -> bool:
    # Of [True, 1.5] Arrow would make two floats, also inside a list.
    kinds = set(map(type, values)) - {type(None)}
    if kinds <= {list, tuple} and kinds:
        return _of_one_type([part for value in values if value is not None for part in value])
    return len(kinds) <= 1


def _array(values: list[Any]) -> pa.Array | None:
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        # Such as an int of more than 64 bits, a lone surrogate, an infinite Decimal: these are judged one by one.
        return None


def _column(
    records: RawRecords, field: FieldDef, failures: dict[int, RecordError], deleted: npt.NDArray[np.bool_] | None
) -> pa.Array:
    """A typed column; what is wrong with its rows is added to ``failures``, the first column's fault stays."""
    array, cell = raw_column(records, field.name)
    found: dict[int, RecordError] = {}
    column = _typed(array if array is not None else len(records), cell, field, found)
    spared = frozenset(np.flatnonzero(deleted).tolist()) if deleted is not None and not _identifies(field) else ()
    for row, error in found.items():
        if row not in spared:
            failures.setdefault(row, error)
    return column


def _identifies(field: FieldDef) -> bool:
    return field.key or field.timestamp


def _typed(
    given: pa.Array | int, cell: Callable[[int], Any], field: FieldDef, failures: dict[int, RecordError]
) -> pa.Array:
    """The typed column of an array, or of so many cells that no Arrow type holds; refused cells are null."""
    array, count = (None, given) if isinstance(given, int) else (given, len(given))
    target, kernel = arrow_type(field.type), _kernel(field.type)
    decided = pa.nulls(count, target) if array is None or pa.types.is_null(array.type) else kernel(array)
    decided = _without_outsiders(decided, field)
    undecided = _undecided(array, decided, field)
    if not len(undecided):
        return decided
    values: list[Value | None] = []
    for index in undecided.tolist():
        try:
            values.append(coerce_value(cell(index), field))
        except RecordError as error:
            failures[index] = error
            values.append(None)
    if len(undecided) == count:
        return _build(values, target)
    mask = np.zeros(count, dtype=bool)
    mask[undecided] = True
    return _replaced(decided, mask, _build(values, target))


def _replaced(decided: pa.Array, mask: npt.NDArray[np.bool_], values: pa.Array) -> pa.Array:
    if not pa.types.is_list(decided.type):
        return pc.replace_with_mask(decided, pa.array(mask), values)
    # Arrow has no such kernel for lists: the cells in place of the masked ones are taken from behind the others.
    place = np.arange(len(decided), dtype=np.int64)
    place[mask] = len(decided) + np.arange(len(values))
    return pa.concat_arrays([decided, values]).take(pa.array(place))


def _undecided(array: pa.Array | None, decided: pa.Array, field: FieldDef) -> npt.NDArray[np.int64]:
    """Rows that coerce_value must judge: no kernel took them, or they are null and must not be."""
    if array is None:
        return np.arange(len(decided), dtype=np.int64)
    strange = _strange_keys(decided) if field.key and field.type == "str" else None
    if not decided.null_count and strange is None:
        return _NO_ROWS
    open_rows = decided.is_null()
    if not _required(field):
        open_rows = pc.and_(open_rows, array.is_valid())
    if strange is not None:
        open_rows = pc.or_(open_rows, strange)
    return np.flatnonzero(open_rows.to_numpy(zero_copy_only=False))


def _strange_keys(keys: pa.Array) -> pa.Array | None:
    """Which texts cannot be keys: empty, too long, or with NUL in them; ``None`` for none."""
    if len(keys) <= _FEW:  # each kernel takes 20 µs, a text 0.1
        few = [text is not None and not is_key(text) for text in keys.to_pylist()]
        return pa.array(few) if any(few) else None
    sizes = pc.min_max(pc.binary_length(keys)).as_py()
    nul = pc.match_substring(keys, "\0")
    # In UTF-8 no text has more characters than bytes.
    if sizes["min"] != 0 and (sizes["max"] or 0) <= LONGEST_KEY and not pc.any(nul).as_py():
        return None
    long = pc.greater(pc.utf8_length(keys), LONGEST_KEY)
    return pc.fill_null(pc.or_(pc.or_(pc.equal(keys, ""), long), nul), fill_value=False)


def _build(values: list[Value | None], target: pa.DataType) -> pa.Array:
    # Instants are ints: through int64 into the timestamp type.
    storage = pa.int64() if pa.types.is_timestamp(target) else target
    return pa.array(values, storage).cast(target)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _only(keep: pa.Array, array: pa.Array) -> pa.Array:
    """The array with null where ``keep`` is not true."""
    return pc.if_else(keep, array, pa.scalar(None, array.type))


def _required(field: FieldDef) -> bool:
    return field.key or field.timestamp or not field.optional


# Column kernels: null means "not decided here".


def _int_column(array: pa.Array) -> pa.Array:
    kind = array.type
    if kind == pa.int64():
        return array
    if pa.types.is_integer(kind):
        fits = pc.less_equal(array, _UNSIGNED_INT_MAX) if pa.types.is_uint64(kind) else array.is_valid()
        return _only(fits, array).cast(pa.int64())
    if pa.types.is_floating(kind):
        array = array.cast(pa.float64())
        whole = pc.and_(pc.equal(pc.floor(array), array), pc.less(pc.abs(array), float(2**63)))
        return _only(whole, array).cast(pa.int64(), safe=False)
    if _is_text(kind):
        text = _only(pc.match_substring_regex(array, _INTEGER_TEXT), array)
        return pc.replace_substring_regex(text, r"^\+|\.0*$", "").cast(pa.int64())
    return pa.nulls(len(array), pa.int64())


def _float_column(array: pa.Array) -> pa.Array:
    kind = array.type
    if pa.types.is_integer(kind):
        if pa.types.is_uint64(kind):
            array = _only(pc.less_equal(array, _UNSIGNED_EXACT), array)
        array = array.cast(pa.int64())
        exact = pc.and_(pc.less_equal(array, _EXACT_IN_DOUBLE), pc.greater_equal(array, -_EXACT_IN_DOUBLE))
        return _only(exact, array).cast(pa.float64())
    if pa.types.is_floating(kind):
        return _only(pc.is_finite(array), array).cast(pa.float64())
    if _is_text(kind):
        numbers = _only(pc.match_substring_regex(array, _NUMBER_TEXT), array).cast(pa.float64())
        return _only(pc.is_finite(numbers), numbers)
    return pa.nulls(len(array), pa.float64())


def _str_column(array: pa.Array) -> pa.Array:
    return array.cast(pa.string()) if _is_text(array.type) else pa.nulls(len(array), pa.string())


def _bool_column(array: pa.Array) -> pa.Array:
    if pa.types.is_boolean(array.type):
        return array
    if _is_text(array.type):
        lower = pc.utf8_lower(array)
        return _only(pc.is_in(lower, value_set=pa.array(list(_BOOLS), array.type)), pc.equal(lower, "true"))
    return pa.nulls(len(array), pa.bool_())


def _datetime_column(array: pa.Array) -> pa.Array:
    kind = array.type
    instants = pa.nulls(len(array), pa.int64())
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        instants = array.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
    elif pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
        seconds = array.cast(pa.int64())
        instants = pc.multiply(_only(_between(seconds, EARLIEST // _MICROS, LATEST // _MICROS), seconds), _MICROS)
    elif pa.types.is_floating(kind):
        seconds = array.cast(pa.float64())
        seconds = _only(_between(seconds, EARLIEST / _MICROS, LATEST / _MICROS), seconds)
        micros = pc.round(pc.multiply(seconds, float(_MICROS)), round_mode="half_to_even")
        instants = micros.cast(pa.int64())
    elif _is_text(kind):
        instants = _text_instants(array)
    return _only(_between(instants, EARLIEST, LATEST), instants).cast(arrow_type("datetime"))


def _between(array: pa.Array, low: float, high: float) -> pa.Array:
    return pc.and_(pc.greater_equal(array, low), pc.less_equal(array, high))


def _text_instants(array: pa.Array) -> pa.Array:
    # Nearly all text has this zone; the expression below is compiled anew each time.
    if pc.all(pc.ends_with(array, "Z")).as_py():
        return _parse_column(array, pa.timestamp("us", tz="UTC"))
    zoned = pc.match_substring_regex(array, _ZONED_TEXT)
    with_zone = _parse_column(_only(zoned, array), pa.timestamp("us", tz="UTC"))
    without = _parse_column(_only(pc.invert(zoned), array), pa.timestamp("us"))
    return pc.coalesce(with_zone, without)


def _parse_column(array: pa.Array, kind: pa.DataType) -> pa.Array:
    try:
        return array.cast(kind).cast(pa.int64())
    except pa.ArrowInvalid:  # one cell of another form: all of these are judged one by one
        return pa.nulls(len(array), pa.int64())


def _decimal_kernel(scale: int) -> Callable[[pa.Array], pa.Array]:
    target = arrow_type(f"decimal({scale})")

    def column(array: pa.Array) -> pa.Array:
        kind = array.type
        if pa.types.is_integer(kind) and not pa.types.is_uint64(kind):
            return array.cast(pa.int64()).cast(target)
        if pa.types.is_decimal(kind):
            fits = kind.scale <= scale and kind.precision - kind.scale <= _DIGITS_BEFORE_POINT
            return array.cast(target) if fits else pa.nulls(len(array), target)
        # Arrow spells a float as briefly as Python does, unless with an exponent, which is left to the cell.
        text = array.cast(pa.float64()).cast(pa.string()) if pa.types.is_floating(kind) else array
        if not _is_text(text.type):
            return pa.nulls(len(array), target)
        plain = _only(pc.match_substring_regex(text, _DECIMAL_TEXT.format(scale=scale)), text)
        return pc.replace_substring_regex(plain, r"(\.[0-9]*[1-9])0+$|\.0*$", r"\1").cast(target)

    return column


def _list_kernel(element: Callable[[pa.Array], pa.Array], target: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    def column(array: pa.Array) -> pa.Array:
        if not pa.types.is_list(array.type) and not pa.types.is_large_list(array.type):
            return pa.nulls(len(array), target)
        given = array.flatten()
        given = given.dictionary_decode() if pa.types.is_dictionary(given.type) else given
        made = pa.nulls(len(given), target.value_type) if pa.types.is_null(given.type) else element(given)
        open_parts = pc.and_(made.is_null(), given.is_valid())
        undecided = np.zeros(len(array), dtype=bool)
        undecided[pc.list_parent_indices(array).filter(open_parts).to_numpy()] = True
        undecided |= array.is_null().to_numpy(zero_copy_only=False)
        ends = np.cumsum(pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False))
        offsets = pa.array(np.concatenate(([0], ends)), pa.int32())
        return pa.ListArray.from_arrays(offsets, made, type=target, mask=pa.array(undecided))

    return column


@lru_cache(maxsize=256)
def _kernel(type_name: str) -> Callable[[pa.Array], pa.Array]:
    element, scale = element_type(type_name), decimal_scale(type_name)
    if element:
        return _list_kernel(_kernel(element), arrow_type(type_name))
    return _KERNELS[type_name] if scale is None else _decimal_kernel(scale)


_KERNELS: dict[str, Callable[[pa.Array], pa.Array]] = {
    "int": _int_column,
    "float": _float_column,
    "str": _str_column,
    "bool": _bool_column,
    "datetime": _datetime_column,
}


# Cells: the meaning.


def _cell(value: object, field: FieldDef, type_name: str) -> Value:
    element, scale = element_type(type_name), decimal_scale(type_name)
    if scale is not None:
        return _decimal_cell(value, field, scale)
    if element is None:
        return _CELLS[type_name](value, field)
    if not isinstance(value, list | tuple):
        raise _refuse(field, "wrong_type", f"{_shown(value)} is not a list")
    return [None if part is None else _cell(part, field, element) for part in value]


def _int_cell(value: object, field: FieldDef) -> int:
    if isinstance(value, bool):
        raise _wrong(value, field, "int")
    if isinstance(value, int):
        return _within_64_bits(value, field)
    if isinstance(value, float | Decimal):
        return _integral(value, field)
    if isinstance(value, str) and _NUMBER.match(value.strip()):
        return _integral(_decimal(value.strip(), field), field)
    raise _wrong(value, field, "int")


def _decimal(text: str, field: FieldDef) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of twenty digits
        raise _refuse(field, "out_of_range", f"{_shown(text)} does not fit 64 bits") from None


def _integral(value: float | Decimal, field: FieldDef) -> int:
    # The size first: int(Decimal("1e999999")) would build a million digits. A Decimal NaN cannot even be compared.
    finite = value.is_finite() if isinstance(value, Decimal) else math.isfinite(value)
    if not finite or not -(2.0**64) < value < 2.0**64:
        raise _refuse(field, "out_of_range", f"{_shown(value)} does not fit 64 bits")
    if value != int(value):
        raise _refuse(field, "not_integral", f"{_shown(value)} is not a whole number")
    return _within_64_bits(int(value), field)


def _within_64_bits(value: int, field: FieldDef) -> int:
    if not INT_MIN <= value <= INT_MAX:
        raise _refuse(field, "out_of_range", f"{_shown(value)} does not fit 64 bits")
    return value


def _decimal_cell(value: object, field: FieldDef, scale: int) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise _wrong(value, field, f"decimal({scale})")
    if isinstance(value, int):
        number = Decimal(value) if -DECIMAL_LIMIT < value < DECIMAL_LIMIT else Decimal("Infinity")
    elif isinstance(value, str):
        if not _NUMBER.match(value.strip()):
            raise _wrong(value, field, f"decimal({scale})")
        number = _decimal(value.strip(), field)
    else:
        number = Decimal(repr(value)) if isinstance(value, float) else value
    if not number.is_finite() or number.adjusted() >= _DIGITS_BEFORE_POINT:
        raise _refuse(field, "out_of_range", f"{_shown(value)} has more than 20 digits before the point")
    if _digits_after_point(number) > scale:
        raise _refuse(field, "not_exact", f"{_shown(value)} has more than {scale} digits after the point")
    return _EXACT.plus(number.quantize(Decimal((0, (1,), -scale)), context=_EXACT))  # which makes -0 a zero


def _digits_after_point(number: Decimal) -> int:
    """How many it needs: ``2.50`` needs one."""
    _, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int) or not any(digits):
        return 0
    trailing = next(place for place, digit in enumerate(reversed(digits)) if digit)
    return -exponent - trailing


def _float_cell(value: object, field: FieldDef) -> float:
    if isinstance(value, bool):
        raise _wrong(value, field, "float")
    if isinstance(value, int):
        return _exact_double(value, field)
    if isinstance(value, float | Decimal):
        # float() refuses a signalling NaN, which is no number either.
        return _finite(math.nan if _is_nan(value) else float(value), value, field)
    if isinstance(value, str) and _NUMBER.match(value.strip()):
        return _finite(float(value.strip()), value, field)
    raise _wrong(value, field, "float")


def _exact_double(value: int, field: FieldDef) -> float:
    if abs(value) > 2**1023 or int(float(value)) != value:
        raise _refuse(field, "out_of_range", f"{_shown(value)} has no exact float")
    return float(value)


def _finite(number: float, value: object, field: FieldDef) -> float:
    if not math.isfinite(number):
        raise _refuse(field, "out_of_range", f"{_shown(value)} is not finite")
    return number


def _str_cell(value: object, field: FieldDef) -> str:
    if not isinstance(value, str):
        raise _wrong(value, field, "str")
    if not _is_utf8(value):
        raise _refuse(field, "wrong_type", f"{_shown(value)} holds a lone surrogate, which is no character")
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_nan(value: object) -> bool:
    return value.is_nan() if isinstance(value, Decimal) else isinstance(value, float) and math.isnan(value)


def _bool_cell(value: object, field: FieldDef) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _BOOLS:
        return _BOOLS[value.strip().lower()]
    raise _wrong(value, field, "bool")


def _datetime_cell(value: object, field: FieldDef) -> int:
    if isinstance(value, date) and not isinstance(value, datetime):
        value = _EPOCH + timedelta(days=(value - _EPOCH.date()).days)
    try:
        return parse_instant(value, field.name)
    except InvalidTimestamp as error:
        raise RecordError("invalid_timestamp", field.name, str(error)) from None


_CELLS: dict[str, Callable[[object, FieldDef], Value]] = {
    "int": _int_cell,
    "float": _float_cell,
    "str": _str_cell,
    "bool": _bool_cell,
    "datetime": _datetime_cell,
}


# What a column may hold beside its type.


def _without_outsiders(column: pa.Array, field: FieldDef) -> pa.Array:
    """The column with null where a value is outside of what the field declares: those are judged one by one."""
    keep: list[pa.Array] = []
    if _bounds(field) != (None, None) and not _all_within(column, field):
        keep.append(pa.array([value is None or _range_fault(value, field) is None for value in column.to_pylist()]))
    if field.one_of and not pa.types.is_list(column.type):
        keep.append(pc.is_in(column, value_set=_build(sorted(_allowed(field)), column.type)))
    if field.regex is not None and pa.types.is_string(column.type):
        keep.append(_fits_pattern(column, field.regex))
    for mask in keep:
        column = _only(mask, column)
    return column


def _all_within(column: pa.Array, field: FieldDef) -> bool:
    found = pc.min_max(column).as_py()
    return all(bound is None or _range_fault(bound, field) is None for bound in found.values())


def _fits_pattern(column: pa.Array, pattern: str) -> pa.Array:
    # One library judges columns and cells: what a regular expression means differs between libraries. Not strict: a
    # pattern that only this one refuses matches nothing.
    texts: Any = pl.from_arrow(column)
    return texts.str.contains(rf"\A(?:{pattern})\z", strict=False).fill_null(value=False).to_arrow()


def _outside(value: Value, field: FieldDef) -> str | None:
    """Why a typed value is outside of what the field declares; ``None``: it is not."""
    if isinstance(value, list):
        return None
    fault = _range_fault(value, field)
    if fault:
        return fault
    if field.one_of and value not in _allowed(field):
        return "not_one_of"
    if field.regex is not None and isinstance(value, str) and not _fits_pattern(pa.array([value]), field.regex)[0]:
        return "no_match"
    return None


def _range_fault(value: Value, field: FieldDef) -> str | None:
    low, high = _bounds(field)
    if low is not None and value < low:
        return "below_minimum"
    return "above_maximum" if high is not None and value > high else None


@lru_cache(maxsize=4_096)
def _bounds(field: FieldDef) -> tuple[Decimal | float | None, Decimal | float | None]:
    """The bounds of a number's column; a decimal's are what their text says, since 0.1 is no float."""
    if field.type in {"int", "float"}:
        return field.minimum, field.maximum
    if decimal_scale(field.type) is None:
        return None, None
    low, high = (None if bound is None else Decimal(str(bound)) for bound in (field.minimum, field.maximum))
    return low, high


@lru_cache(maxsize=4_096)
def _allowed(field: FieldDef) -> frozenset[Any]:
    """The values of ``one_of`` in the column's type; one that is none of that type allows nothing."""
    plain = FieldDef(name=field.name, type=field.type, optional=True)
    found = set()
    for value in field.one_of:
        with suppress(RecordError):
            found.add(coerce_value(value, plain))
    return frozenset(found)


_OUTSIDE: dict[str, Callable[[Value, FieldDef], RecordError]] = {
    "below_minimum": lambda value, field: _refuse(
        field, "below_minimum", f"{_shown(value)} is below the minimum {field.minimum}"
    ),
    "above_maximum": lambda value, field: _refuse(
        field, "above_maximum", f"{_shown(value)} is above the maximum {field.maximum}"
    ),
    "not_one_of": lambda value, field: _refuse(
        field, "not_one_of", f"{_shown(value)} is not one of {_shown(list(field.one_of))}"
    ),
    "no_match": lambda value, field: _refuse(field, "no_match", f"{_shown(value)} does not match {field.regex}"),
}


def _wrong(value: object, field: FieldDef, expected: str) -> RecordError:
    return _refuse(field, "wrong_type", f"{_shown(value)} ({type(value).__name__}) is not of type {expected}")


def _refuse(field: FieldDef, reason: str, what: str) -> RecordError:
    return RecordError(reason, field.name, f"{field.name}: {what}")


def _shown(value: object) -> str:
    try:
        text = str(value) if isinstance(value, Decimal) else repr(value)
    except ValueError:  # Python refuses to print an integer of thousands of digits, also one inside a list
        text = f"a value of type {type(value).__name__} too long to show"
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"
