"""Time: the instant and duration forms of the contract, and the one place that reads a clock.

An *instant* is an ``int``: microseconds since the Unix epoch, UTC. A *duration* is an ``int`` of
microseconds. Both have one parser and one printer here (decisions 1 and 2).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Protocol

from featurelib.errors import InvalidRequest, InvalidTimestamp

Instant = int
Duration = int

SECOND: Duration = 1_000_000
MINUTE: Duration = 60 * SECOND
HOUR: Duration = 60 * MINUTE
DAY: Duration = 24 * HOUR

NAMES_ZONE = r"([Zz]|[T ][^+-]*[+-]\d\d(:?\d\d){0,2})$"
"""Text of an instant that ends in a zone; a regular expression of Python's and of Arrow's."""
IS_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
"""Text of epoch seconds, which name no zone and need none."""

_UNITS = {"d": DAY, "h": HOUR, "m": MINUTE, "s": SECOND}
_DURATION = re.compile(r"([1-9][0-9]*)([dhms])")
_SECONDS = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Instants are kept within 1900..2200: a number outside it is nearly always milliseconds sent as seconds.
_EARLIEST = -2_208_988_800 * SECOND
_LATEST = 7_258_118_400 * SECOND


class Clock(Protocol):
    """Reads the wall clock. Passed as an argument everywhere time matters, so that tests own it."""

    def now(self) -> Instant:
        """Microseconds since the epoch, UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> Instant:
        """Microseconds since the epoch, UTC."""
        return time.time_ns() // 1_000


def parse_instant(value: object, field: str = "timestamp") -> Instant:
    """Read an instant in any accepted form: ISO 8601 text, epoch seconds, or ``datetime``.

    Text without a zone is UTC; ``T`` or a space separates date and time; seconds and fraction may
    be absent (an HTML ``datetime-local`` input sends ``2026-04-01T10:30``).

    Raises:
        InvalidTimestamp: naming ``field`` and what was found.
    """
    if isinstance(value, datetime):
        return _from_datetime(value, value, field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _from_seconds(value, value, field)
    if isinstance(value, str):
        return _from_text(value.strip(), field)
    raise _refuse(value, field)


class Zones:
    """Notes which instants of a column name a zone. Where some do and some do not, some are not meant as they are read.

    Args:
        field: names the column.
    """

    def __init__(self, field: str) -> None:
        self._field = field
        self._first: dict[bool, int] = {}

    def note(self, row: int, *, named: bool) -> None:
        """The instant of a row names a zone, or does not.

        Raises:
            InvalidRequest: an earlier one is of the other kind.
        """
        self._first.setdefault(named, row)
        if len(self._first) > 1:
            raise InvalidRequest(
                f"{self._field}: row {self._first[True]} names a zone and row {self._first[False]} does not; "
                "give all of them one, or none of them, which means UTC"
            )


def check_zones(instants: Iterable[object], field: str) -> None:
    """Refuse instants of which some name a zone and some do not; epoch seconds are neither.

    Raises:
        InvalidRequest: naming ``field``, and the row of one of each kind.
    """
    zones = Zones(field)
    for row, value in enumerate(instants):
        if isinstance(value, str):
            text = value.strip()
            if not re.search(IS_NUMBER, text):
                zones.note(row, named=re.search(NAMES_ZONE, text) is not None)
        elif isinstance(value, date):  # a datetime is one, too
            zones.note(row, named=isinstance(value, datetime) and value.tzinfo is not None)


def format_instant(instant: Instant) -> str:
    """``YYYY-MM-DDTHH:MM:SS[.ffffff]Z``; the fraction is left out when it is zero."""
    second, micros = divmod(instant, SECOND)
    return f"{_second_text(second)}.{micros:06d}Z" if micros else f"{_second_text(second)}Z"


# Every answer names its instant; most name one of the second that the answer before named.
@lru_cache(maxsize=1_024)
def _second_text(second: int) -> str:
    return (_EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")


def to_datetime(instant: Instant) -> datetime:
    """The instant as an aware UTC ``datetime``."""
    return _EPOCH + timedelta(microseconds=instant)


def parse_duration(text: str) -> Duration:
    """Read ``<positive integer><d|h|m|s>``.

    Raises:
        ValueError: for anything else, listing the units. ``"5min"`` and ``"1mo"`` are refused, not guessed.
    """
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        message = f"{text!r} is not a duration; write a positive integer and one unit of d, h, m, s, such as '24h'"
        raise ValueError(message)
    return int(match[1]) * _UNITS[match[2]]


def format_duration(duration: Duration) -> str:
    """The shortest text that :func:`parse_duration` reads back to the same duration."""
    for unit, size in _UNITS.items():
        if duration % size == 0:
            return f"{duration // size}{unit}"
    message = f"{duration} µs is not a whole number of seconds"
    raise ValueError(message)


# In each of these `given` is what the caller sent, which an error quotes; the first argument is it read as a type.


def _from_datetime(moment: datetime, given: object, field: str) -> Instant:
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return _bounded((aware - _EPOCH) // _MICROSECOND, given, field)


def _from_seconds(seconds: float, given: object, field: str) -> Instant:
    if isinstance(seconds, float) and not math.isfinite(seconds * SECOND):
        raise _refuse(given, field)
    return _bounded(round(seconds * SECOND), given, field)


def _from_text(text: str, field: str) -> Instant:
    moment = _iso(text)
    if moment is not None:
        return _from_datetime(moment, text, field)
    # float() alone would also take "1_000", "nan" and the digits of other scripts.
    if _SECONDS.fullmatch(text):
        return _from_seconds(float(text), text, field)
    raise _refuse(text, field)


def _iso(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text.isascii() else None
    except ValueError:
        return None


def _bounded(instant: Instant, given: object, field: str) -> Instant:
    if not _EARLIEST <= instant <= _LATEST:
        raise _refuse(given, field)
    return instant


def _refuse(value: object, field: str) -> InvalidTimestamp:
    try:
        shown = repr(value)[:80]
    except ValueError:  # Python refuses to print an integer of thousands of digits
        shown = "an integer of thousands of digits"
    return InvalidTimestamp(
        f"{field}: {shown} is not a timestamp between 1900 and 2200; expected ISO 8601 such as "
        "2026-04-01T10:30:00Z, or epoch seconds"
    )
