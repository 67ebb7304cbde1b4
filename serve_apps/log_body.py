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

import msgspec

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
_BLANK = re.compile(r"[ \t\n\r]*")


class LogBody(NamedTuple):
    """Records for a dataset's log, as they came."""

    dataset: str
    events: list[dict[str, Any]]


class _Outer(msgspec.Struct):
    dataset: str
    events: msgspec.Raw


def read_log_body(body: bytes) -> LogBody:
    """The dataset and the records.

    Raises:
        InvalidRequest: not of this form; names the member at fault.
        PayloadTooLarge: more than ``MOST_RECORDS`` records.
    """
    try:
        outer = _OUTER.decode(body)
        events = list(_elements(bytes(outer.events).decode()))
    except (msgspec.MsgspecError, ValueError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise InvalidRequest(f"body: {error}") from None
    except RecursionError:
        raise InvalidRequest("body: nested too deeply") from None
    return LogBody(outer.dataset, events)


def _elements(text: str) -> Iterator[dict[str, Any]]:
    """The elements of a JSON array, one after the other."""
    position = _after_blank(text, 0)
    if text[position : position + 1] != "[":
        raise InvalidRequest("body: events: not a list")
    position = _after_blank(text, position + 1)
    if text[position] == "]":
        return
    for count in range(MOST_RECORDS):
        record, position = _RECORD.raw_decode(text, position)
        if not isinstance(record, dict):
            raise InvalidRequest(f"body: events.{count}: not an object")
        yield record
        position = _after_blank(text, position)
        # The whole was seen to be JSON before: here stands a comma or the end.
        if text[position] == "]":
            return
        position = _after_blank(text, position + 1)
    raise PayloadTooLarge(f"events: more than {MOST_RECORDS} records; send at most {MOST_RECORDS} at once")


def _after_blank(text: str, position: int) -> int:
    found = _BLANK.match(text, position)
    return found.end() if found else position


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else Decimal(digits)


_OUTER = msgspec.json.Decoder(_Outer)
_RECORD = json.JSONDecoder(parse_int=_integer)
