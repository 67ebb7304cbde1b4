"""The body of ``POST /api/v1/log``: read record by record, so that its size bounds the work and not its count.

Sixteen MiB hold five million empty records. A reader that builds them all first holds the interpreter for seconds;
this one stops at the first record too many. Call it in a thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from featurelib.errors import InvalidRequest, PayloadTooLarge

MOST_RECORDS = 10_000
"""Most records of one request."""

DOCUMENT: dict[str, Any] = {
    "title": "LogRequest",
    "description": "Records for a dataset's log.",
    "type": "object",
    "required": ["dataset", "events"],
    "properties": {
        "dataset": {"type": "string"},
        "events": {"type": "array", "maxItems": MOST_RECORDS, "items": {"type": "object"}},
    },
}
"""The body's JSON schema."""

# Python refuses to read or print longer integers as decimal digits.
_LONGEST_INTEGER = 1_000
# So little is built in less than a millisecond, whatever it holds.
_SMALL_BYTES = 65_536
_BLANK = re.compile(r"[ \t\n\r]*")


class LogBody(NamedTuple):
    """Records for a dataset's log, as they came."""

    dataset: str
    events: list[dict[str, Any]]


def read_log_body(body: bytes) -> LogBody:
    """The dataset and the records.

    Raises:
        InvalidRequest: not of this form; names the member at fault.
        PayloadTooLarge: more than ``MOST_RECORDS`` records.
    """
    try:
        text = body.decode()
        members = _whole(text) if len(body) <= _SMALL_BYTES else dict(_members(text))
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError among them
        raise InvalidRequest(f"body: {error}") from None
    except RecursionError:
        raise InvalidRequest("body: nested too deeply") from None
    for name, kind in (("dataset", str), ("events", list)):
        if not isinstance(members.get(name), kind):
            raise InvalidRequest(f"body: {name}: missing, or not a {'text' if kind is str else 'list'}")
    return LogBody(members["dataset"], members["events"])


def _whole(text: str) -> dict[str, Any]:
    """The members of a small body, read at once."""
    members = _JSON.decode(text)
    if not isinstance(members, dict):
        raise InvalidRequest("body: not an object")
    events = members.get("events")
    if isinstance(events, list):
        _check_count(len(events))
        for place, event in enumerate(events):
            if not isinstance(event, dict):
                raise InvalidRequest(f"body: events.{place}: not an object")
    return members


def _check_count(count: int) -> None:
    if count > MOST_RECORDS:
        raise PayloadTooLarge(f"events: more than {MOST_RECORDS} records; send at most {MOST_RECORDS} at once")


def _members(text: str) -> Iterator[tuple[str, Any]]:
    """The members of the body, ``events`` read one by one."""
    position = _past(text, _after_blank(text, 0), "{")
    while True:
        name, position = _JSON.raw_decode(text, position)
        position = _past(text, _after_blank(text, position), ":")
        if name == "events" and text[position : position + 1] == "[":
            value, position = _elements(text, position)
        else:
            value, position = _JSON.raw_decode(text, position)
        yield str(name), value
        position = _after_blank(text, position)
        if text[position : position + 1] == "}":
            break
        position = _past(text, position, ",")
    if _after_blank(text, position + 1) != len(text):
        raise json.JSONDecodeError("Extra data", text, position + 1)


def _elements(text: str, position: int) -> tuple[list[dict[str, Any]], int]:
    records: list[dict[str, Any]] = []
    position = _past(text, position, "[")
    if text[position : position + 1] == "]":
        return records, position + 1
    while True:
        _check_count(len(records) + 1)
        record, position = _JSON.raw_decode(text, position)
        if not isinstance(record, dict):
            raise InvalidRequest(f"body: events.{len(records)}: not an object")
        records.append(record)
        position = _after_blank(text, position)
        if text[position : position + 1] == "]":
            return records, position + 1
        position = _past(text, position, ",")


def _past(text: str, position: int, expected: str) -> int:
    """The place after a character that must stand here, and the blanks behind it."""
    if text[position : position + 1] != expected:
        raise json.JSONDecodeError(f"Expecting {expected!r}", text, position)
    return _after_blank(text, position + 1)


def _after_blank(text: str, position: int) -> int:
    found = _BLANK.match(text, position)
    return found.end() if found else position


def read_integer(digits: str) -> int | Decimal:
    """An integer of JSON; one too long for Python to print stays a decimal."""
    return int(digits) if len(digits) <= _LONGEST_INTEGER else Decimal(digits)


_JSON = json.JSONDecoder(parse_int=read_integer)
