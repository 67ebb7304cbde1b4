"""Snowflake's API row by row: statuses of both routes, values of records, types and statuses of features."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from cluster.processes import wait_until
from featurelib.clock import format_instant
from featurelib.compile import compile_module
from featurelib.errors import LogFull
from featurelib.stores.log import Log
from serve_apps.query_server import QueryServer
from tests.api.payments import Served, pat, serving
from tests.support.patience import PATIENCE_S

INGEST, QUERY = "/api/v1/ingest", "/api/v1/query"
_MODULE = """
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Optional
from featurelib import *

@dataclass
class Money:
    units: int
    at: datetime

@dataset(version=1)
class every_type:
    key: str = field(key=True)
    StringType: Optional[str] = field()
    LongType: Optional[int] = field()
    DoubleType: Optional[float] = field()
    DecimalType: Optional[Decimal] = field(scale=2)
    BooleanType: Optional[bool] = field()
    TimestampType: Optional[datetime] = field()
    ArrayType: Optional[list[int]] = field()
    at: datetime = field(timestamp=True)

@featureset
class failing:
    user: str = feature()
    never: float = feature()

    @extractor
    @extractor_inputs("user")
    @extractor_outputs("never")
    def fails(cls, ts, user):
        return 1 / 0
"""
_ECHO = """
@featureset
class echo_{name}:
    user: str = feature()
    sent: {annotation} = feature(request=True{scale})
    given: {annotation} = feature({own})

    @extractor
    @extractor_inputs("sent")
    @extractor_outputs("given")
    def echo(cls, ts, sent):
        return sent
"""
AT = "2026-03-01T11:00:00Z"
TYPES: dict[str, tuple[str, Any, Any, dict[str, Any]]] = {
    "float64": ("float", 1.5, 1.5, {"data_type": "float64"}),
    "int64": ("int", 7, 7, {"data_type": "int64"}),
    "string": ("str", "é", "é", {"data_type": "string"}),
    "boolean": ("bool", True, True, {"data_type": "boolean"}),
    "timestamp": ("datetime", "2026-03-01T12:00:00+01:00", AT, {"data_type": "timestamp"}),
    "fixed": ("Decimal", "0.6", "0.60", {"data_type": "fixed", "precision": 38, "scale": 2}),
    "array": ("list[int]", [1, None], [1, None], {"data_type": "array"}),
    "map": ("dict[str, datetime]", {"a": AT, "b": None}, {"a": AT, "b": None}, {"data_type": "variant"}),
    "struct": ("Money", {"units": 3, "at": AT}, {"units": 3, "at": AT}, {"data_type": "variant"}),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory, module_redis, migrated) -> Iterator[Served]:
    """The example, a stream source of every type, and a view of every type that answers what it is sent."""
    folder = tmp_path_factory.mktemp("rows")
    scales = {"fixed": "scale=2"}
    echoes = [
        _ECHO.format(
            name=name,
            annotation=kind,
            own=scales.get(name, ""),
            scale=f", {scales[name]}" if name in scales else "",
        )
        for name, (kind, *_) in TYPES.items()
    ]
    (folder / "types.py").write_text(_MODULE + "".join(echoes))
    with serving(
        folder, module_redis.url, migrated, snowflake={"max_body_bytes": 50_000, "max_record_bytes": 2_000}
    ) as served:
        served.commit(compile_module(folder / "types.py"))
        served.platform.keys["slow"] = served.platform.registry.create_key("writer", "slow", rate_limit=1)
        status = f"{served.url}/api/v1/status"
        assert wait_until(
            lambda: served.stranger.get(status, headers=pat(served.platform, "slow")).status_code != 401,
            PATIENCE_S,
            0.02,
        )
        yield served


def record(**changed: Any) -> dict[str, Any]:
    return {"key": "k", "at": AT, **changed}


GOOD = {"records": {"every_type": [record()]}}
ROW = {"entity": {"user_id": "u"}}
ASKED = {"name": "user_transaction_features", "version": "v1", "object_type": "feature_view", "request_rows": [ROW]}


class Status(NamedTuple):
    """What is sent with whose token, and the code of the failure; a text is sent as it is."""

    path: str
    body: Any
    code: str
    role: str | None = "admin"


_OF_USER = {**ASKED, "request_rows": [{"entity": {"user": "u"}}]}
STATUSES = {
    "ingest 200": Status(INGEST, GOOD, ""),
    "ingest 207": Status(INGEST, {"records": {"every_type": [record(LongType="x")]}}, ""),
    "ingest 400": Status(INGEST, {}, "INVALID_ARGUMENT"),
    "ingest 401": Status(INGEST, GOOD, "UNAUTHENTICATED", None),
    "ingest 403": Status(INGEST, GOOD, "PERMISSION_DENIED", "reader"),
    "ingest 413": Status(INGEST, " " * 50_001, "REQUEST_TOO_LARGE"),
    "ingest 429": Status(INGEST, GOOD, "RESOURCE_EXHAUSTED", "slow"),
    "ingest 500": Status(INGEST, GOOD, "INTERNAL"),
    "ingest 503": Status(INGEST, GOOD, "UNAVAILABLE"),
    "query 200": Status(QUERY, ASKED, "", "reader"),
    "query 207": Status(QUERY, {**_OF_USER, "name": "echo_int64"}, "", "reader"),
    "query 400": Status(QUERY, {**ASKED, "object_type": "table"}, "INVALID_ARGUMENT", "reader"),
    "query 401": Status(QUERY, ASKED, "UNAUTHENTICATED", None),
    "query 404": Status(QUERY, {**ASKED, "name": "nothing"}, "NOT_FOUND", "reader"),
    "query 429": Status(QUERY, ASKED, "RESOURCE_EXHAUSTED", "slow"),
    "query 500": Status(QUERY, {**_OF_USER, "name": "failing"}, "INTERNAL", "reader"),
    "query 503": Status(QUERY, ASKED, "UNAVAILABLE", "reader"),
}


def _failing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def full(*_: object, **__: object) -> None:
        message = "away"
        raise LogFull(message)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError

    target = {"ingest 503": (Log, "require_room", full), "ingest 500": (Log, "require_room", broken)}
    target["query 503"] = (QueryServer, "answer", full)
    if name in target:
        monkeypatch.setattr(*target[name])


@pytest.mark.parametrize("name", STATUSES)
def test_each_status_is_answered_in_the_documented_body(served, monkeypatch, name):
    asked, wanted = STATUSES[name], int(name.split()[1])
    body = asked.body if isinstance(asked.body, str) else json.dumps(asked.body)
    headers = {"X-Request-ID": "r1", **({} if asked.role is None else pat(served.platform, asked.role))}
    _failing(monkeypatch, name)
    times = 3 if wanted == 429 else 1
    answer = [served.stranger.post(asked.path, content=body, headers=headers) for _ in range(times)][-1]
    assert answer.status_code == wanted, answer.text
    assert answer.json()["request_id"] == "r1"
    if asked.code:
        assert answer.json().keys() == {"request_id", "error"}
        assert answer.json()["error"].keys() == {"code", "message"}
        assert (answer.json()["error"]["code"], bool(answer.json()["error"]["message"])) == (asked.code, True)
    else:
        assert answer.json()["status"] == ("success" if wanted == 200 else "partial_success")
    assert ("retry-after" in answer.headers) == (wanted in {429, 503})


@pytest.mark.parametrize("name", TYPES)
def test_each_type_is_named_and_its_values_are_answered(served, name):
    _, sent, answered, called = TYPES[name]
    row = {"entity": {"user": "u"}, "request_context": {"sent": sent}}
    asked = {**ASKED, "name": f"echo_{name}", "request_rows": [row], "features": ["given"]}
    answer = served.consumer.post(QUERY, json={**asked, "metadata_options": {"include_data_types": True}})
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"] == [{"features": [answered]}]
    assert answer.json()["metadata"]["features"] == [called]


VALUES: dict[str, tuple[str, Any, Any]] = {
    "null": ("LongType", None, None),
    "bool": ("BooleanType", False, False),
    "int": ("LongType", 7, 7),
    "whole float for an int": ("LongType", 7.0, 7),
    "int for a float": ("DoubleType", 7, 7.0),
    "float": ("DoubleType", 1.5, 1.5),
    "str": ("StringType", "é", "é"),
    "decimal as a number": ("DecimalType", 0.6, "0.60"),
    "decimal as text": ("DecimalType", "0.6", "0.60"),
    "timestamp with zone": ("TimestampType", "2026-03-01T12:00:00+01:00", AT),
    "timestamp without zone": ("TimestampType", "2026-03-01T11:00:00", AT),
    "timestamp with a space": ("TimestampType", "2026-03-01 11:00:00", AT),
    "date": ("TimestampType", "2026-03-01", "2026-03-01T00:00:00Z"),
    "list": ("ArrayType", [1, None], [1, None]),
}


def stored(served: Served, key: str) -> list[dict[str, Any]]:
    tables = [served.platform.log.read("every_type@1", part, 0, 1_000) for part in range(4)]
    return [row for table in tables if table is not None for row in table.to_pylist() if row["key"] == key]


@pytest.mark.parametrize("name", VALUES)
def test_each_form_of_a_value_is_stored(served, name):
    column, sent, kept = VALUES[name]
    answer = served.producer.post(INGEST, json={"records": {"every_type": [record(key=name, **{column: sent})]}})
    assert answer.status_code == 200, answer.text
    (row,) = stored(served, name)
    value = row[column]
    if column == "TimestampType" and value is not None:
        value = format_instant(round(value.timestamp() * 1_000_000))
    assert (str(value) if column == "DecimalType" else value) == kept


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "MISSING_REQUIRED_FIELD": ({"at": None}, "MISSING_REQUIRED_FIELD"),
    "INVALID_FIELD_TYPE": ({"LongType": "7"}, "INVALID_FIELD_TYPE"),
    "INVALID_TIMESTAMP": ({"at": "noon"}, "INVALID_TIMESTAMP"),
    "RECORD_TOO_LARGE": ({"StringType": "x" * 2_000}, "RECORD_TOO_LARGE"),
    "infinity": ({"DoubleType": "inf"}, "INVALID_FIELD_TYPE"),
    "minus infinity": ({"DoubleType": "-inf"}, "INVALID_FIELD_TYPE"),
    "struct": ({"StringType": {"a": {"b": []}}}, "INVALID_FIELD_TYPE"),
    "list in a list": ({"ArrayType": [[1]]}, "INVALID_FIELD_TYPE"),
    "fraction for an int": ({"LongType": 1.5}, "INVALID_FIELD_TYPE"),
    "unknown field": ({"more": 1}, "INVALID_FIELD_TYPE"),
    "unknown stream source": ({}, "INVALID_ARGUMENT"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_record_error_has_its_code(served, name):
    changed, code = REFUSED[name]
    source = "nobody" if code == "INVALID_ARGUMENT" else "every_type"
    answer = served.producer.post(INGEST, json={"records": {source: [record(key="kept"), record(**changed)]}})
    assert answer.status_code == 207, answer.text
    errors = answer.json()["sources"][source]["records"]["errors"]
    assert (errors[-1]["index"], errors[-1]["error"]["code"]) == (1, code)
