"""The body of a webhook's delivery: which records are in it, and whether its signature is right.

A body is one JSON document (a record, or a list of them, or a document that holds either under a path), or one such
document per line. What stands in the place of a record and is none becomes a dead letter: the system that sent it would
send the same again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from featurelib.errors import InvalidRequest, PayloadTooLarge, Unauthenticated
from serve_apps.log_body import MOST_RECORDS, read_integer

_SCHEME = "sha256="
_LINES = ("ndjson", "jsonl", "json-seq", "jsonlines")
_RECORD_SEPARATOR = "\x1e"


class NoRecord(NamedTuple):
    """Something in a record's place: where, its text, and what is wrong with it."""

    row: int
    text: str
    message: str


class Delivery(NamedTuple):
    """The records of a delivery, the place of each, and what is none."""

    records: list[dict[str, Any]]
    rows: list[int]
    malformed: list[NoRecord]


def check_signature(body: bytes, secret: str, header: str, given: str | None) -> None:
    """Refuse a body that was not signed with the secret.

    Args:
        body: as it came, byte for byte.
        secret: the key of the HMAC-SHA256.
        header: the name of the header that holds the signature.
        given: its value: hex digits, with or without ``sha256=`` before them.

    Raises:
        Unauthenticated: there is no signature, or another one.
    """
    if not given:
        raise Unauthenticated(f"no signature was sent in {header}")
    expected = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    found = given.strip().removeprefix(_SCHEME).lower()
    if not hmac.compare_digest(expected.encode(), found.encode(errors="replace")):
        raise Unauthenticated(f"the signature in {header} is not that of the body under the webhook's secret")


def read_delivery(body: bytes, content_type: str, path: str) -> Delivery:
    """The records of a delivery.

    Args:
        body: what was sent.
        content_type: says whether it is one document or one per line; a body of several lines that is no document
            is taken for lines, whatever it says.
        path: names of members, joined by points, that lead to the records; empty: the document holds them itself.

    Raises:
        InvalidRequest: the body is neither.
        PayloadTooLarge: it holds more than ``MOST_RECORDS`` records.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"body: {error}") from None
    documents = _lines(text) if _is_lines(content_type) else _document(text)
    delivery = Delivery([], [], [])
    for row, found in enumerate(each for document in documents for each in _records(document, path)):
        if row == MOST_RECORDS:
            raise PayloadTooLarge(f"body: more than {MOST_RECORDS} records; send at most {MOST_RECORDS} at once")
        if isinstance(found, _Bad):
            delivery.malformed.append(NoRecord(row, found.text, found.message))
        else:
            delivery.records.append(found)
            delivery.rows.append(row)
    return delivery


class _Bad(NamedTuple):
    text: str
    message: str


def _is_lines(content_type: str) -> bool:
    return any(name in content_type.lower() for name in _LINES)


def _document(text: str) -> Iterator[Any]:
    try:
        return iter([_loads(text)])
    except json.JSONDecodeError as error:
        if error.msg != "Extra data" or "\n" not in text.strip():
            raise InvalidRequest(f"body: {error}") from None
    return _lines(text)


def _lines(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), 1):
        document = line.strip(_RECORD_SEPARATOR + " \t\r")
        if not document:
            continue
        try:
            yield _loads(document)
        except ValueError as error:
            yield _Bad(document, f"line {number}: {error}")


def _loads(text: str) -> Any:
    try:
        return json.loads(text, parse_int=read_integer)
    except RecursionError:
        raise InvalidRequest("body: nested too deeply") from None


def _records(document: Any, path: str) -> Iterator[dict[str, Any] | _Bad]:
    """The records of a document, and what stands in the place of one."""
    if isinstance(document, _Bad):
        yield document
        return
    found = document
    for name in path.split(".") if path else ():
        if not isinstance(found, dict) or name not in found:
            yield _Bad(_text(document), f"nothing under {path!r}: there is no {name!r}")
            return
        found = found[name]
    for each in found if isinstance(found, list) else [found]:
        yield each if isinstance(each, dict) else _Bad(_text(each), "not a JSON object")


def _text(value: Any) -> str:
    return json.dumps(value, default=str)
