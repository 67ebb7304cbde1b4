"""Polling a SQL table by a cursor column: what it means, once, for PostgreSQL, Snowflake and BigQuery.

A table is one *named* stream (featurelib/connectors/contract.py): rows turn up later beside rows that were read.

    name    <cursor text> SPACE <digest of the row> [SPACE <running number among equal rows>]
    token   <kind> <cursor text> SPACE <how many rows that the next poll looks at again are read>
    floor   <cursor text> of the lowest cursor value the next poll looks at

*Cursor text* is the value of the cursor column as text that sorts, byte by byte, as the column does, and from which
the value is found again. The digest is over the primary key where the table has one and its rows are appended, else
over all columns that are not null; equal rows with one cursor value are told apart by a running number, so that both
count. Names of one cursor value come in no particular order, also over batches.

A poll reads ``cursor >= newest - overlap``, ends included: rows that were inserted later with the newest cursor value,
or within the overlap behind it, are found, and those that came before are known by their names. A row that is
committed with a cursor further back is not read: nothing else tells it from the rows that were read long ago.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from featurelib.clock import DAY, format_instant, parse_duration
from featurelib.connectors.contract import NO_SEQUENCE, Position, SourceBatch
from featurelib.connectors.credentials import Setting
from featurelib.definitions import SourceDef
from featurelib.engine.records import Mark
from featurelib.errors import SourceError

Kind = Literal["number", "instant", "text"]
"""What a cursor column holds: numbers, points in time (µs; dates too), or text that sorts by its bytes."""

Bound = Decimal | int | str
"""A cursor value that a statement is asked to begin at: a number, an instant in µs, or text."""

Row = Sequence[Any]

_T = TypeVar("_T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_US = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_LETTERS: Mapping[Kind, str] = {"number": "n", "instant": "t", "text": "s"}
_KINDS: Mapping[str, Kind] = {letter: kind for kind, letter in _LETTERS.items()}
# PostgreSQL's numeric has up to 131,072 digits before the point and 16,383 after it.
_EXPONENT = 500_000
_EXACT = Context(prec=200_000, Emin=-999_999, Emax=999_999)
_NUMBER = re.compile(r"[0-9]+(\.[0-9]+)?")
_UNREAD = Mark(0)
_NINES = str.maketrans("0123456789", "9876543210")
# Order-preserving: every character up to "!" becomes "!" and a second one, so that a space ends the text.
_ESCAPED = {code: "!" + chr(code + 0x30) for code in range(0x22)}
_ESCAPE = re.compile("!(.)", re.DOTALL)
_COUNT_DIGITS = 12
_DIGEST_BYTES = 12
# Names of a poll kept so that the next one need not give them again: some 25 MB at most.
_MOST_KNOWN = 200_000


class Start(NamedTuple):
    """Where a poll begins: at the mark, which is ``None`` before anything was read, and at a value to be bound."""

    mark: Mark | None
    bound: Bound | None


class Shape(NamedTuple):
    """The rows of a poll: their columns, which of them is the cursor and of what kind, and which identify a row."""

    columns: Sequence[str]
    cursor: int
    kind: Kind
    identity: Sequence[int]


def cursor_text(value: Any, kind: Kind) -> str:
    """A cursor value as text that sorts as the value does.

    Args:
        value: number: int, finite float or Decimal; instant: ``datetime`` (UTC where it has no zone), ``date`` or µs;
            text: ``str``.
        kind: what the column holds.
    """
    if kind == "text":
        return str(value).translate(_ESCAPED)
    if kind == "instant":
        return _number_text(Decimal(_micros(value)))
    return _number_text(Decimal(repr(value)) if isinstance(value, float) else Decimal(value))


def cursor_value(text: str, kind: Kind) -> Bound:
    """The value a cursor text stands for; an instant in µs."""
    if kind == "text":
        return _ESCAPE.sub(lambda found: chr(ord(found[1]) - 0x30), text)
    number = _number(text)
    return int(number) if kind == "instant" else number


def read_overlap(what: str, setting: Setting) -> tuple[Decimal, Kind]:
    """How far behind the newest cursor value each poll looks again: µs for a duration such as ``5m``, else a number.

    Raises:
        SourceError: it is neither.
    """
    text = str(setting or "").strip()
    if not text:
        return Decimal(0), "number"
    if _NUMBER.fullmatch(text):
        return Decimal(text), "number"
    try:
        return Decimal(parse_duration(text)), "instant"
    except ValueError:
        message = (
            f"{what}: overlap {text!r} is neither a duration such as '5m' (for timestamps) nor a number such as 100"
        )
        raise SourceError(message) from None


def _micros(value: date | int) -> int:
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return (aware - _EPOCH) // timedelta(microseconds=1)
    if isinstance(value, date):
        return (value - _EPOCH.date()).days * DAY
    return value


def _number_text(value: Decimal) -> str:
    """Sign, exponent, digits; of a number below zero all of them turned round, and ended by what sorts last."""
    digits = "".join(map(str, value.as_tuple().digits)).strip("0")
    if not digits:
        return "b"
    # The digits begin with one that is not 0, so the exponent alone says which of two numbers is larger.
    if value > 0:
        return f"c{_EXPONENT + value.adjusted():06}{digits}"
    return f"a{_EXPONENT - 1 - value.adjusted():06}{digits.translate(_NINES)}~"


def _number(text: str) -> Decimal:
    if text == "b":
        return Decimal(0)
    below = text[0] == "a"
    digits = text[7:-1].translate(_NINES) if below else text[7:]
    adjusted = _EXPONENT - 1 - int(text[1:7]) if below else int(text[1:7]) - _EXPONENT
    return Decimal((int(below), tuple(map(int, digits)), adjusted - len(digits) + 1))


def _text_of(mark: Mark) -> str:
    return mark.token[1:].partition(" ")[0]


def _shown(value: Any) -> str:
    """A cursor value for people."""
    return format_instant(_micros(value)) if isinstance(value, datetime) else str(value)


def require(source: SourceDef, *names: str) -> str:
    """The source as messages name it, after a look whether it has these settings and a cursor.

    Raises:
        SourceError: it lacks one.
    """
    what = f"{source.connector.type} source of {source.dataset}"
    for name in names:
        if not source.connector.config.get(name):
            raise SourceError(f"{what}: {name} is required")
    if not source.cursor:
        raise SourceError(f"{what}: a cursor column is required; write @source(…, cursor='updated_at')")
    return what


class TablePolls:
    """Checks a table's columns, and turns the rows of polls into batches.

    What it keeps between polls is a hint, not state: the names that the last poll ended with, so that the next one
    does not give them again as long as the log stands where that poll left it.
    """

    def __init__(self, what: str, stream: str, cursor: str, overlap: Setting) -> None:
        """``what`` is the source in messages; ``overlap`` as the definition has it, see :func:`read_overlap`."""
        self._what = what
        self._stream = stream
        self._cursor = cursor
        self._overlap, self._overlap_kind = read_overlap(what, overlap)
        self._known: frozenset[str] = frozenset()
        self._known_at: Mark | None = None
        self._unread = 0

    def refuse_bytes(self, columns: Sequence[str], kind: str) -> None:
        """Refuse a table with columns of bytes.

        Raises:
            SourceError: ``columns``, which are of that type, are not empty.
        """
        if columns:
            message = (
                f"{self._what}: {', '.join(columns)} is of type {kind}, which no column of a dataset can hold; "
                "read a view without it"
            )
            raise SourceError(message)

    def no_cursor(self, columns: Iterable[str]) -> SourceError:
        """That none of a table's columns is the cursor."""
        return SourceError(f"{self._what} has no column {self._cursor!r}; it has {', '.join(columns)}")

    def cursor_type(self, known: Mapping[str, _T], column: str, kind: str) -> _T:
        """What is known of the type of the cursor column.

        Raises:
            SourceError: a column of that type cannot be a cursor.
        """
        if kind not in known:
            message = (
                f"{self._what}: {column} is of type {kind}, which cannot be a cursor; these can: {', '.join(known)}"
            )
            raise SourceError(message)
        return known[kind]

    def start(self, position: Position, kind: Kind) -> Start:
        """Where a poll of a cursor column of that kind begins.

        Raises:
            SourceError: the column, or the overlap, is of another kind than what was read so far.
        """
        mark = position.get(self._stream)
        self._check_overlap(kind)
        if mark is None or not mark.token:
            return Start(None, None)
        return Start(mark, self._behind(mark, kind))

    def batches(
        self, start: Start, shape: Shape, chunks: Iterable[Sequence[Row]], unread: int = 0
    ) -> Iterator[SourceBatch]:
        """The rows of a poll as batches: one per chunk, without what the last poll gave.

        Args:
            start: where the poll begins.
            shape: what the rows are.
            chunks: the rows from there on, in the order of the cursor column, cut anywhere.
            unread: how many rows have no cursor value; people hear of it where it is news.
        """
        known = self._known if start.mark is not None and start.mark == self._known_at else frozenset[str]()
        notices = self._told(unread)
        through, naming, window = start.mark, _Naming(shape), _Window()
        for rows in chunks:
            floor = self._floor(through, shape.kind)
            names = naming.names(rows)
            window.add(names)
            window.forget(self._lowest(naming.text, shape.kind))
            through = max(through or _UNREAD, self._mark(naming.text, len(window), shape.kind))
            fresh = sorted((name, place) for place, name in enumerate(names) if name not in known)
            if fresh:
                yield SourceBatch(
                    stream=self._stream,
                    sequence=NO_SEQUENCE,
                    records=[dict(zip(shape.columns, rows[place], strict=True)) for _, place in fresh],
                    through=through,
                    cursor=_shown(rows[-1][shape.cursor]),
                    names=[name for name, _ in fresh],
                    floor=floor,
                    notices=notices,
                )
                notices = ()
        if notices:
            yield SourceBatch(self._stream, NO_SEQUENCE, [], through or _UNREAD, notices=notices)
        # Only now: whoever asked for more than the last batch has done with it.
        self._known, self._known_at = window.names(), through

    def _behind(self, mark: Mark, kind: Kind) -> Bound:
        """The lowest cursor value a poll from a mark looks at."""
        found, text = _KINDS[mark.token[0]], _text_of(mark)
        if found != kind:
            message = (
                f"{self._what}: cursor {self._cursor} holds a {kind} now, but was read as a {found} before; "
                "give the dataset a new version to read the table anew"
            )
            raise SourceError(message)
        return self._lower(text, kind)

    def _lower(self, text: str, kind: Kind) -> Bound:
        value = cursor_value(text, kind)
        if isinstance(value, str):
            return value
        behind = _EXACT.subtract(Decimal(value), self._overlap)
        return behind if kind == "number" else max(int(behind), _FIRST_US)

    def _lowest(self, text: str, kind: Kind) -> str:
        return cursor_text(self._lower(text, kind), kind) if self._overlap else text

    def _floor(self, mark: Mark | None, kind: Kind) -> str:
        return self._lowest(_text_of(mark), kind) if mark is not None and mark.token else ""

    def _mark(self, text: str, count: int, kind: Kind) -> Mark:
        return Mark(0, f"{_LETTERS[kind]}{text} {count:0{_COUNT_DIGITS}}")

    def _check_overlap(self, kind: Kind) -> None:
        if self._overlap and kind != self._overlap_kind:
            expected = {"number": "a number such as 100", "instant": "a duration such as '5m'", "text": "none"}[kind]
            message = f"{self._what}: cursor {self._cursor} holds a {kind}; its overlap must be {expected}"
            raise SourceError(message)

    def _told(self, unread: int) -> tuple[str, ...]:
        """What to say of rows that are never read: once, until their number changes."""
        before, self._unread = self._unread, unread
        if unread in {0, before}:
            return ()
        rows = "1 row has" if unread == 1 else f"{unread} rows have"
        return (f"{self._what}: {rows} no value in cursor {self._cursor} (null or infinite) and cannot be read",)


class _Naming:
    """Names rows in the order of the cursor; counts rows, and equal rows, of the current cursor value."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._value: Any = None
        self._equal: dict[str, int] = {}
        self.text = ""
        self.count = 0

    def names(self, rows: Sequence[Row]) -> list[str]:
        return [self._name(row) for row in rows]

    def _name(self, row: Row) -> str:
        value = row[self._shape.cursor]
        if not self.count or value != self._value:
            self._turn(value)
        self.count += 1
        digest = _digest(row, self._shape)
        number = self._equal.get(digest, 0)
        self._equal[digest] = number + 1
        return f"{self.text} {digest} {number}" if number else f"{self.text} {digest}"

    def _turn(self, value: Any) -> None:
        self._value = value
        text = cursor_text(value, self._shape.kind)
        if text != self.text:
            self.text, self.count, self._equal = text, 0, {}


class _Window:
    """The names that the next poll will meet again."""

    def __init__(self) -> None:
        self._names: deque[str] = deque()

    def __len__(self) -> int:
        return len(self._names)

    def add(self, names: Iterable[str]) -> None:
        self._names.extend(names)

    def forget(self, floor: str) -> None:
        while self._names and self._names[0] < floor:
            self._names.popleft()
        if len(self._names) > _MOST_KNOWN:
            self._names.clear()  # then the next poll gives again what the log will know

    def names(self) -> frozenset[str]:
        return frozenset(self._names)


def _digest(row: Row, shape: Shape) -> str:
    # Nulls are left out, so that a new column changes the digest of no row written before it.
    named = [(shape.columns[place], _plain(row[place])) for place in shape.identity if row[place] is not None]
    return blake2b(msgspec.json.encode(named, order="deterministic"), digest_size=_DIGEST_BYTES).hexdigest()


def _plain(value: Any) -> Any:
    """The value where JSON tells it from others; it would spell every float that is not finite as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return [str(value)]
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return value
