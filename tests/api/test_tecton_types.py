"""Types on Tecton's wire: what each is called, how its values are sent and how they are answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx2
import pytest

from cluster.processes import wait_until
from tests.api.tecton import Served, started
from tests.support.patience import PATIENCE_S

_MODULE = """
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Optional, TypedDict
from featurelib import *

@dataclass
class Money:
    units: int
    currency: Optional[str]
    at: datetime

class Line(TypedDict):
    sku: str
    price: Money
    tags: dict[str, list[int]]

@featureset
class Computed:
    user_id: str = feature()
    line: Line = feature(request=True)
    doubled: Money = feature()
    seen: dict[str, float] = feature()

    @extractor
    @extractor_inputs("line")
    @extractor_outputs("doubled", "seen")
    def compute(cls, ts, line):
        price = line.price
        doubled = Money(2 * price.units, price["currency"], price.at)
        return doubled, {tag: sum(numbers) for tag, numbers in line["tags"].items()}

computed = FeatureService("computed", [Computed], workspace="types")

@featureset
class Framed:
    user_id: str = feature()
    line: Line = feature(request=True)
    again: Line = feature()

    @extractor(vectorized=True)
    @extractor_inputs("line")
    @extractor_outputs("again")
    def frame(cls, ts, line):
        return line

framed = FeatureService("framed", [Framed], workspace="types")
"""
_ECHO = """
@featureset
class Echo_{name}:
    user_id: str = feature()
    sent: {annotation} = feature(request=True{scale})
    given: {annotation} = feature({scale})

    @extractor
    @extractor_inputs("sent")
    @extractor_outputs("given")
    def echo(cls, ts, sent):
        return sent

echo_{name} = FeatureService("{name}", [Echo_{name}], workspace="types")
"""
_INT, _TEXT = {"type": "int64"}, {"type": "string"}
_MONEY = {
    "type": "struct",
    "fields": [
        {"name": "units", "dataType": _INT},
        {"name": "currency", "dataType": _TEXT},
        {"name": "at", "dataType": {"type": "timestamp"}},
    ],
}
_LINE = {
    "type": "struct",
    "fields": [
        {"name": "sku", "dataType": _TEXT},
        {"name": "price", "dataType": _MONEY},
        {
            "name": "tags",
            "dataType": {
                "type": "map",
                "keyType": _TEXT,
                "valueType": {"type": "array", "elementType": _INT},
            },
        },
    ],
}
_AT, _BIG = "2026-02-03T04:05:06.000007Z", "9223372036854775807"


class Row(NamedTuple):
    """A type: how it is declared, what it is called, a value as it is sent and as it is answered."""

    annotation: str
    called: dict[str, Any]
    sent: Any
    answered: Any
    scale: str = ""


TYPES = {
    "int64": Row("int", {"type": "int64"}, _BIG, _BIG),
    "int64_number": Row("int", {"type": "int64"}, 7, "7"),
    "float64": Row("float", {"type": "float64"}, 1.5, 1.5),
    "float64_text": Row("float", {"type": "float64"}, "1.5", 1.5),
    "boolean": Row("bool", {"type": "boolean"}, True, True),
    "string": Row("str", {"type": "string"}, "é", "é"),
    "timestamp": Row("datetime", {"type": "timestamp"}, _AT, _AT),
    "timestamp_whole": Row("datetime", {"type": "timestamp"}, "2026-02-03T05:05:06+01:00", "2026-02-03T04:05:06Z"),
    "decimal": Row("Decimal", {"type": "string"}, "0.6", "0.60", "scale=2"),
    "array": Row("list[int]", {"type": "array", "elementType": _INT}, ["1", None, 2], ["1", None, "2"]),
    "array_of_timestamps": Row(
        "list[datetime]", {"type": "array", "elementType": {"type": "timestamp"}}, [_AT, None], [_AT, None]
    ),
    "struct": Row("Money", _MONEY, ["7", None, _AT], ["7", None, _AT]),
    "struct_by_name": Row("Money", _MONEY, {"at": _AT, "units": 7}, ["7", None, _AT]),
    "map": Row(
        "dict[str, int]",
        {"type": "map", "keyType": _TEXT, "valueType": _INT},
        {"a": "1", "b": None},
        {"a": "1", "b": None},
    ),
    "array_of_structs": Row(
        "list[Money]",
        {"type": "array", "elementType": _MONEY},
        [["1", "NOK", _AT], None, {"units": "2"}],
        [["1", "NOK", _AT], None, ["2", None, None]],
    ),
    "deep_struct": Row(
        "Line",
        _LINE,
        {"sku": "s", "price": ["3", "EUR", _AT], "tags": {"x": ["1", None]}},
        ["s", ["3", "EUR", _AT], {"x": ["1", None]}],
    ),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory, module_redis, migrated) -> Iterator[Served]:
    """A service for each type, which answers what it is sent."""
    echoes = [
        _ECHO.format(name=name, annotation=row.annotation, scale=f", {row.scale}" if row.scale else "")
        for name, row in TYPES.items()
    ]
    module = _MODULE + "".join(echoes).replace("feature(, ", "feature(")
    with started(tmp_path_factory.mktemp("types"), module_redis.url, migrated, module, {}) as made:
        yield made


def asked(service: str, context: dict[str, Any], **more: Any) -> dict[str, Any]:
    keys = {"featureServiceName": service, "workspaceName": "types", "joinKeyMap": {"user_id": "u1"}}
    return {**keys, "requestContextMap": context, **more}


@pytest.mark.parametrize("name", TYPES)
def test_a_value_of_each_type_is_named_and_encoded(served, name):
    row = TYPES[name]
    answer = served.read(**asked(name, {"sent": row.sent})).json()
    assert answer["metadata"]["features"] == [{"name": f"Echo_{name}.given", "dataType": row.called}], answer
    assert answer["result"] == {"features": [row.answered]}


@pytest.mark.parametrize("name", TYPES)
def test_the_published_client_reads_each_type(served, name):
    answer = served.client().get_features(
        feature_service_name=name,
        workspace_name="types",
        join_key_map={"user_id": "u1"},
        request_context_map={"sent": TYPES[name].sent},
    )
    found = answer.get_features_dict()[f"Echo_{name}.given"]
    wanted = {
        "int64": int(_BIG),
        "array": [1, None, 2],
        "struct": {"units": 7, "currency": None, "at": _AT},
        "map": {"a": 1, "b": None},
    }
    assert found == wanted.get(name, found)


@pytest.mark.parametrize("name", TYPES)
def test_null_is_a_value_of_each_type(served, name):
    assert served.read(**asked(name, {"sent": None})).json()["result"] == {"features": [None]}


@pytest.mark.parametrize(
    ("name", "sent", "words"),
    [
        ("boolean", 1, "Expected boolean or null."),
        ("string", 1, "Expected string or null."),
        ("timestamp", 1_700_000_000, "Expected timestamp or null."),
        ("timestamp", "soon", "Expected timestamp or null."),
        ("array", {"a": 1}, "Expected array of int64 or null."),
        ("array", ["x"], "Expected array of int64 or null."),
        ("map", [1], "Expected map or null. [1] is not an object"),
        ("map", [], "Expected map or null. [] is not an object"),
        ("map", {"a": "x"}, "Expected map or null. a: 'x' is not an int64"),
        ("struct", "NOK", "Expected struct or null. 'NOK' is not an array or an object of units, currency, at"),
        ("struct", ["7", None], "2 values; the struct has 3: units, currency, at"),
        ("struct", {"units": 1.5}, "units: 1.5 is not an int"),
        ("struct", {"colour": 1}, "unknown field 'colour', expected one of: [units currency at]"),
        ("array_of_structs", [["1", "NOK", 5]], "[0]: at: 5 is not datetime"),
        ("deep_struct", {"price": {"at": {"a": [1]}}}, "price: at: {'a': [1]} is not datetime"),
        ("deep_struct", {"tags": {"x": [{"y": 1}]}}, "tags: x: [0]: {'y': 1} is not int"),
    ],
)
def test_a_value_of_another_type_is_refused_and_the_part_at_fault_named(served, name, sent, words):
    answer = served.read(**asked(name, {"sent": sent}))
    told = answer.json()
    assert (answer.status_code, told["code"]) == (400, 3), told
    assert told["message"].startswith("Unexpected JSON type for sent in requestContextMap. ")
    assert words in told["message"]


def test_a_value_nested_without_end_is_refused(served):
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    answer = served.read(**asked("deep_struct", {"sent": {"tags": {"x": deep}}}))
    assert (answer.status_code, answer.json()["code"]) == (400, 3)


def test_unknown_fields_within_a_struct_are_left_out_where_they_are_to_be_ignored(served):
    sent = {"sku": "s", "shelf": 3, "price": {"units": "3", "tax": None, "at": _AT}, "tags": {}}
    options = {"requestOptions": {"ignoreExtraRequestContextFields": True}}
    assert served.read(**asked("deep_struct", {"sent": sent})).status_code == 400
    answer = served.read(**asked("deep_struct", {"sent": sent}, **options)).json()
    assert answer["result"] == {"features": [["s", ["3", None, _AT], {}]]}


_SENT = {"sku": "s", "price": ["4", "NOK", _AT], "tags": {"x": ["1", "2"], "y": []}}


def test_user_code_takes_structs_by_attribute_and_by_name_and_gives_dataclasses(served):
    answer = served.read(**asked("computed", {"line": _SENT})).json()
    assert answer["result"] == {"features": [["8", "NOK", _AT], {"x": 3.0, "y": 0.0}]}


def test_vectorized_code_takes_and_gives_them_as_series(served):
    answer = served.read(**asked("framed", {"line": _SENT})).json()
    assert answer["result"] == {"features": [["s", ["4", "NOK", _AT], {"x": ["1", "2"], "y": []}]]}


def test_a_batch_of_structs_is_each_row_as_alone(served):
    rows = [{"joinKeyMap": {"user_id": "u1"}, "requestContextMap": {"line": line}} for line in (_SENT, _SENT)]
    batch = {"featureServiceName": "computed", "workspaceName": "types", "requestData": rows}
    alone = served.read(**asked("computed", {"line": _SENT})).json()["result"]
    assert served.read("/api/v1/feature-service/get-features-batch", **batch).json()["result"] == [alone] * 2


def test_the_parameters_of_a_service_are_told_with_their_types(served):
    told = served.read("/api/v1/feature-service/metadata", featureServiceName="computed", workspaceName="types").json()
    assert told["inputRequestContextKeys"] == [{"name": "line", "dataType": _LINE}]


_LINE_OF_OURS = {"sku": "s", "price": {"units": 4, "currency": "NOK", "at": _AT}, "tags": {"x": [1, 2], "y": []}}


class TestOurOwnRoutes:
    """The same features without Tecton's encoding."""

    @pytest.fixture
    def http(self, served) -> Iterator[httpx2.Client]:
        headers = {"Authorization": f"Bearer {served.platform.keys['admin'][1]}"}
        with httpx2.Client(base_url=served.url, headers=headers, timeout=PATIENCE_S) as client:
            yield client

    def test_a_struct_is_an_object_and_its_run_can_be_replayed(self, http):
        asked = {"featureset": "Computed", "entity_id": "u1", "inputs": {"line": _LINE_OF_OURS}}
        answer = http.post("/features", json=asked)
        assert answer.status_code == 200, answer.text
        features = answer.json()["features"]
        assert features["doubled"] == {"units": 8, "currency": "NOK", "at": _AT}
        assert features["seen"] == {"x": 3.0, "y": 0.0}
        run = answer.headers["x-query-run-id"]
        assert wait_until(lambda: http.get(f"/query-runs/{run}").is_success, PATIENCE_S, every_s=0.02)
        replayed = http.post(f"/query-runs/{run}/replay", params={"knowledge": "as_served"}).json()
        assert set(replayed["features"].values()) == {"same"}

    def test_an_offline_read_gives_structs_and_maps_as_columns_of_arrow(self, http):
        import pyarrow as pa

        query = {"entity_id": "u1", "timestamp": "2026-03-01T11:00:00Z", "inputs": {"line": _LINE_OF_OURS}}
        body = {"featureset": "Computed", "queries": [query]}
        answer = http.post("/features/offline", json=body, headers={"Accept": "application/vnd.apache.arrow.stream"})
        assert answer.status_code == 200, answer.text
        table = pa.ipc.open_stream(answer.content).read_all()
        assert (
            str(table.schema.field("doubled").type)
            == "struct<units: int64, currency: string, at: timestamp[us, tz=UTC]>"
        )
        assert str(table.schema.field("seen").type) == "map<string, double>"
        assert table.column("seen").to_pylist(maps_as_pydicts="strict") == [{"x": 3.0, "y": 0.0}]

    def test_a_member_nobody_declared_is_refused_by_its_path(self, http):
        line = {**_LINE_OF_OURS, "price": {"units": 1, "tax": 2}}
        answer = http.post("/features", json={"featureset": "Computed", "entity_id": "u1", "inputs": {"line": line}})
        assert answer.status_code == 400
        assert "inputs.line: price: 'tax' is no member of the struct" in answer.json()["detail"]
