"""The columns of a spine as a training set reads them: ids as key texts, instants in µs, request features by row.

Ids and instants repeat, so each distinct one is read once. A row without id or instant keeps its place and asks for
nothing; whatever else does not fit is refused, named by its row, counted from 0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from json.encoder import encode_basestring_ascii
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurelib.clock import IS_NUMBER, NAMES_ZONE, Instant, Zones, format_instant, parse_instant
from featurelib.engine.keys import key_group
from featurelib.engine.read_plan import ReadPlan
from featurelib.engine.table import ENTITY_ID
from featurelib.errors import InvalidRequest, RequestError

_T = TypeVar("_T")
_US = pa.timestamp("us", tz="UTC")
# Some 60 MB.
_MOST_READ_BEFORE = 262_144


class Roles(NamedTuple):
    """What the columns of a spine are to a featureset; every other one is a label."""

    entity: str
    timestamp: str
    requested: tuple[str, ...]
    labels: tuple[str, ...]


class SpineRows(NamedTuple):
    """The rows of a batch that ask for something.

    ``row`` counts from the first row of the spine; ``groups`` are the key groups, ``ids`` JSON of the ids as they were
    given, ``inputs`` JSON of the row's request features or ``None``.
    """

    row: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    ids: pa.Array
    at: npt.NDArray[np.int64]
    inputs: list[str | None]


class _Known(NamedTuple):
    """Texts that were read as ids: a place for each, in each of the arrays."""

    texts: pa.Array
    ids: pa.Array
    groups: pa.Array

    @classmethod
    def none(cls) -> _Known:
        """Nothing was read yet."""
        return cls(pa.array([], pa.string()), pa.array([], pa.string()), pa.array([], pa.int64()))

    def with_more(self, other: _Known) -> _Known:
        """These, and then others."""
        return _Known(*(pa.concat_arrays(pair) for pair in zip(self, other, strict=True)))


def roles_of(plan: ReadPlan, schema: pa.Schema, entity: str | None, timestamp: str) -> Roles:
    """Say what each column is.

    Args:
        plan: of the featureset.
        schema: of the spine.
        entity: the column of ids; ``None``: ``entity_id``, or the one named like the featureset's entity.
        timestamp: the column of instants.

    Raises:
        InvalidRequest: one is missing or of a type that cannot be it, or a label is named like a feature.
    """
    names: list[str] = schema.names
    entity = entity or next((name for name in (ENTITY_ID, plan.entity_name) if name in names), ENTITY_ID)
    for name, what, option in ((entity, "ids", "--entity-column"), (timestamp, "instants", "--timestamp-column")):
        if name not in names:
            has = ", ".join(map(repr, names)) or "none"
            raise InvalidRequest(f"spine: no column {name!r} of {what} (name it with {option}); its columns are {has}")
    if entity == timestamp:
        raise InvalidRequest(f"spine: {entity!r} cannot be the column of ids and of instants")
    _check_types(schema, entity, timestamp)
    requested = tuple(name for name in names if name in plan.request_names and name not in (entity, timestamp))
    labels = tuple(name for name in names if name not in (entity, timestamp, *requested))
    # The ids may stand under the name of the entity feature, which is the same; no other feature is.
    unlike = (timestamp, *labels) if entity == plan.entity_name else (entity, timestamp, *labels)
    clash = [name for name in unlike if name in plan.feature_names]
    if clash:
        raise InvalidRequest(f"spine: the column {clash[0]!r} is named like a feature of {plan.featureset}; rename it")
    return Roles(entity, timestamp, requested, labels)


def _check_types(schema: pa.Schema, entity: str, timestamp: str) -> None:
    kind = schema.field(timestamp).type
    fits = (pa.types.is_timestamp, pa.types.is_date, pa.types.is_integer, pa.types.is_floating, _is_text)
    if not any(each(kind) for each in (*fits, pa.types.is_null)):
        message = f"spine: the column {timestamp!r} is {kind}; instants are timestamps, ISO 8601 text or epoch seconds"
        raise InvalidRequest(message)
    kind = schema.field(entity).type
    if pa.types.is_binary(kind) or pa.types.is_struct(kind) or pa.types.is_map(kind):
        raise InvalidRequest(f"spine: the column {entity!r} is {kind}; ids are text, numbers, booleans or instants")


def _is_text(kind: pa.DataType) -> bool:
    text = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(text) or pa.types.is_large_string(text) or pa.types.is_string_view(text))


class SpineColumns:
    """Reads a spine, batch by batch and in order.

    Args:
        plan: of the featureset.
        roles: what the columns are.
        until: no row may be of a later instant: what will have been by then is not known yet.
    """

    def __init__(self, plan: ReadPlan, roles: Roles, until: Instant) -> None:
        self._plan = plan
        self._roles = roles
        self._until = until
        self._zones = Zones(self._field)
        self._first = 0
        self._id_field = f"spine, {roles.entity!r}"
        self._known = _Known.none()
        self._read_before: dict[Any, tuple[str, int]] = {}

    def read(self, batch: pa.RecordBatch) -> SpineRows:
        """The rows of the next batch.

        Raises:
            RequestError: an id, an instant or a request feature does not fit; names the row.
        """
        first, self._first = self._first, self._first + len(batch)
        ids, groups = self._ids(batch.column(self._roles.entity), first)
        instants, known = self._instants(batch.column(self._roles.timestamp), first)
        place = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False) & known)
        taken = pa.array(place)
        inputs = self._inputs(batch.select(self._roles.requested).take(taken), place + first)
        return SpineRows(place + first, groups.take(taken).to_numpy(), ids.take(taken), instants[place], inputs)

    def _ids(self, column: pa.Array, first: int) -> tuple[pa.Array, pa.Array]:
        """The ids as JSON, and the groups of their keys."""
        if _is_text(column.type):
            return self._texts(column, first)
        form = self._plan.key_form

        def read(value: Any) -> tuple[str, int]:
            sent = _sent(value)
            return json.dumps(sent), key_group(form.read(sent, self._id_field).key)

        found, places = _distinct(column, first, read, self._read_before if pa.types.is_integer(column.type) else {})
        if len(self._read_before) > _MOST_READ_BEFORE:
            self._read_before.clear()
        ids = pa.array([None if pair is None else pair[0] for pair in found], pa.string())
        groups = pa.array([None if pair is None else pair[1] for pair in found], pa.int64())
        return ids.take(places), groups.take(places)

    def _texts(self, column: pa.Array, first: int) -> tuple[pa.Array, pa.Array]:
        """The same of ids that are text: those of a batch are looked up among those of earlier ones all at once."""
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        texts = encoded.dictionary.cast(pa.string())
        if len(self._known.texts) > _MOST_READ_BEFORE:
            self._known = _Known.none()
        place = pc.index_in(texts, value_set=self._known.texts)
        if place.null_count:
            self._learn(encoded, texts, np.flatnonzero(place.is_null()), first)
            place = pc.index_in(texts, value_set=self._known.texts)
        ids, groups = self._known.ids.take(place), self._known.groups.take(place)
        return ids.take(encoded.indices), groups.take(encoded.indices)

    def _learn(self, encoded: pa.DictionaryArray, texts: pa.Array, unknown: npt.NDArray[np.int64], first: int) -> None:
        """Read those of a dictionary's unknown texts that some row has."""
        row_of = _first_rows(encoded, len(texts))
        pairs = zip(unknown.tolist(), texts.take(pa.array(unknown)).to_pylist(), strict=True)
        new = [(text, row_of[code]) for code, text in pairs if text is not None and row_of[code] >= 0]
        given, form = [text for text, _ in new], self._plan.key_form
        try:
            keys = form.keys(given, self._id_field)
        except RequestError:
            # One by one, to say which row it is.
            keys = [_read(lambda text: form.read(text, self._id_field), text, first + row).key for text, row in new]
        ids = pa.array(map(encode_basestring_ascii, given), pa.string())
        groups = pa.array(map(key_group, keys), pa.int64())
        self._known = self._known.with_more(_Known(pa.array(given, pa.string()), ids, groups))

    def _instants(self, column: pa.Array, first: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Instants, and where there are any."""
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            micros = self._cast(column)
        else:
            read, places = _distinct(column, first, lambda value: parse_instant(value, self._field), {})
            self._note_zones(column, first)
            micros = pa.array(read, pa.int64()).take(places)
        known = micros.is_valid().to_numpy(zero_copy_only=False)
        instants = micros.fill_null(0).to_numpy()
        later = np.flatnonzero(known & (instants > self._until))
        if len(later):
            row, at = int(later[0]), format_instant(int(instants[later[0]]))
            raise InvalidRequest(
                f"{self._field}, row {row + first}: {at} is later than this read, of {format_instant(self._until)}; "
                "what is known by then is not known yet"
            )
        return instants, known

    @property
    def _field(self) -> str:
        return f"spine, {self._roles.timestamp!r}"

    def _cast(self, column: pa.Array) -> pa.Array:
        # A zone says how an instant is shown and not which it is; one without is UTC (decision 1).
        try:
            naive = pa.types.is_timestamp(column.type) and column.type.tz is None
            moments = pc.assume_timezone(column, "UTC") if naive else column
            return moments.cast(_US).cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise InvalidRequest(f"{self._field}: {error}; instants have microseconds") from None

    def _note_zones(self, column: pa.Array, first: int) -> None:
        """Refuse text of which some names a zone and some does not: one of both is not meant as it is read."""
        if not _is_text(column.type):
            return
        # Of a dictionary each text once: written out for every row, a few long ones take any amount of memory.
        is_coded = pa.types.is_dictionary(column.type)
        text = pc.utf8_trim_whitespace((column.dictionary if is_coded else column).cast(pa.string()))
        zoned = pc.match_substring_regex(text, NAMES_ZONE)
        plain = pc.and_not(pc.invert(zoned), pc.match_substring_regex(text, IS_NUMBER))
        if is_coded:
            zoned, plain = zoned.take(column.indices), plain.take(column.indices)
        for named, found in ((True, zoned), (False, plain)):
            row = pc.index(found, True).as_py()
            if row >= 0:
                self._zones.note(first + row, named=named)

    def _inputs(self, rows: pa.RecordBatch, numbers: npt.NDArray[np.int64]) -> list[str | None]:
        """The request features of each row, checked, as JSON; a null one counts as not given."""
        columns = {name: rows.column(name).to_pylist(maps_as_pydicts="strict") for name in self._roles.requested}
        if not columns:
            if len(rows):
                self._check_inputs({}, int(numbers[0]))
            return [None] * len(rows)
        given = [
            {name: _sent(value) for name, value in zip(columns, values, strict=True) if value is not None}
            for values in zip(*columns.values(), strict=True)
        ]
        for number, inputs in zip(numbers.tolist(), given, strict=True):
            self._check_inputs(inputs, number)
        return [json.dumps(inputs) if inputs else None for inputs in given]

    def _check_inputs(self, inputs: Mapping[str, Any], number: int) -> None:
        try:
            self._plan.requested(inputs)
        except InvalidRequest as error:
            raise InvalidRequest(f"spine, row {number}: {error}") from None


def _distinct(
    column: pa.Array, first: int, read: Callable[[Any], _T], known: dict[Any, _T]
) -> tuple[list[_T | None], pa.Array]:
    """What each distinct value reads as, ``None`` for null, and which of them every row has; null for null.

    ``known``: what some values read as; gets the others.

    Raises:
        RequestError: one does not fit; with its row.
    """
    if pa.types.is_nested(column.type):  # an id of several parts; Arrow has no dictionary of lists
        each = [None if value is None else _read(read, value, first + row) for row, value in enumerate(_values(column))]
        return each, pa.array(np.arange(len(each)))
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    values = _values(encoded.dictionary)
    found = list(map(known.get, values))
    unread = [code for code, held in enumerate(found) if held is None and values[code] is not None]
    rows = _first_rows(encoded, len(values)) if unread else []
    for code in unread:
        if rows[code] >= 0:  # a dictionary may hold what no row has
            found[code] = known[values[code]] = _read(read, values[code], first + rows[code])
    return found, encoded.indices


def _first_rows(encoded: pa.DictionaryArray, count: int) -> list[int]:
    """The first row of each member of a dictionary; -1 where no row has it."""
    codes = encoded.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    # Written from the last row to the first: the first one stays. One more place takes what is null.
    row_of = np.full(count + 1, -1, dtype=np.int64)
    row_of[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    rows: list[int] = row_of[:-1].tolist()
    return rows


def _values(column: pa.Array) -> Sequence[Any]:
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":  # Python's instants have microseconds
        column = column.cast(pa.timestamp("us", column.type.tz))
    values: list[Any] = column.to_pylist()
    return values


def _read(read: Callable[[Any], _T], value: Any, row: int) -> _T:
    try:
        return read(value)
    except RequestError as error:
        raise type(error)(f"{error} (row {row})") from None


def _sent(value: Any) -> Any:
    """A value as a request would carry it."""
    if isinstance(value, datetime):
        return format_instant(parse_instant(value))
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list):
        return [_sent(each) for each in value]
    if isinstance(value, dict):
        return {name: _sent(each) for name, each in value.items()}
    return str(value) if isinstance(value, Decimal) else value
