"""`POST /api/v1/query`: the documented requests, options, statuses and refusals of Snowflake's query API."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from cluster.processes import wait_until
from featurelib.compile import compile_module
from featurelib.definitions import Commit
from tests.api.payments import Served, serving, workers
from tests.support.patience import PATIENCE_S

URL = "/api/v1/query"
VIEW = "user_transaction_features"
NAMES = ["amount_sum_1h", "txn_count_24h", "avg_amount_7d"]

# The documented example requests, as they are printed.
SIMPLE = b"""{
  "name": "user_transaction_features",
  "version": "v1",
  "object_type": "feature_view",
  "request_rows": [
    { "entity": { "user_id": "user_123" } }
  ]
}"""
BATCH = b"""{
  "name": "user_transaction_features",
  "version": "v1",
  "object_type": "feature_view",
  "request_rows": [
    { "entity": { "user_id": "user_123" } },
    { "entity": { "user_id": "user_456" } },
    { "entity": { "user_id": "user_789" } }
  ],
  "features": ["amount_sum_1h", "txn_count_24h"]
}"""
GROUP = b"""{
  "name": "fraud_detection_v3",
  "version": "v2",
  "object_type": "feature_group",
  "request_rows": [
    {
      "entity": { "user_id": "user_123", "merchant_id": "store_xyz" },
      "request_context": {
        "current_amount": 150.00,
        "transaction_time": "2024-01-15T10:30:00Z"
      }
    }
  ]
}"""
EVERYTHING = b"""{
  "name": "user_transaction_features",
  "version": "v1",
  "object_type": "feature_view",
  "metadata_options": {
    "include_names": true,
    "include_data_types": true,
    "include_effective_times": true,
    "include_serving_status": true
  },
  "include_diagnostics": true,
  "request_rows": [
    { "entity": { "user_id": "user_123" } }
  ]
}"""
# 450.00 within the hour, 12 payments within the day, 125.50 on average within the week.
PAYMENTS = [
    *({"timestamp": f"2026-03-01T11:{minute}:00Z", "amount": 150.0} for minute in (10, 20, 30)),
    *({"timestamp": f"2026-02-28T{hour}:00:00Z", "amount": 56.0} for hour in range(14, 23)),
    {"timestamp": "2026-02-25T12:00:00Z", "amount": 677.5},
]
PRESENT, MISSING = "PRESENT", "MISSING_DATA"


def ingest(served: Served, source: str, records: list[dict]) -> None:
    for start in range(0, len(records), 10):
        answer = served.producer.post("/api/v1/ingest", json={"records": {source: records[start : start + 10]}})
        assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def served(tmp_path_factory, module_redis, migrated) -> Iterator[Served]:
    """The example, a user whose features are those of the documented answers, and one without recent payments."""
    folder = tmp_path_factory.mktemp("query")
    with serving(folder, module_redis.url, migrated, {"apply_wait_ms": 60_000}, extractor_soft_limit_ms=50) as served:
        served.commit(compile_module(Path(__file__).parent / "visits.py"))
        with workers(served.platform):
            _fill(served)
            yield served


def _fill(served: Served) -> None:
    ingest(served, "transactions_stream", [{**each, "user_id": "user_123"} for each in PAYMENTS])
    old = {"timestamp": "2025-01-01T00:00:00Z", "amount": 5.0, "user_id": "user_456"}
    ingest(served, "transactions_stream", [old])
    visit = {"shop": "s:1", "visitor": 7, "paid": "2.5", "member": True, "at": "2026-03-01T11:00:00Z"}
    ingest(served, "Visit", [visit])


def query(served: Served, *rows: dict, **members):
    asked = {"name": VIEW, "version": "v1", "object_type": "feature_view", "request_rows": list(rows), **members}
    return served.consumer.post(URL, json=asked)


def of(user: str, context: dict | None = None, key: str = "user_id") -> dict:
    return {"entity": {key: user}, **({} if context is None else {"request_context": context})}


def test_the_minimal_answer_holds_the_values_and_nothing_else(served):
    answer = served.consumer.post(URL, content=SIMPLE, headers={"X-Request-ID": "req_query_456"})
    assert answer.status_code == 200
    assert answer.json() == {
        "request_id": "req_query_456",
        "status": "success",
        "results": [{"features": [450.0, 12, 125.5]}],
    }


def test_a_batch_with_chosen_features_is_answered_in_the_order_asked(served):
    answer = served.consumer.post(URL, content=BATCH)
    assert (answer.status_code, answer.json().keys()) == (200, {"request_id", "status", "results"})
    assert answer.json()["results"] == [{"features": [450.0, 12]}, {"features": [0.0, 0]}, {"features": [None, None]}]


def test_a_group_is_read_by_the_union_of_its_join_keys(served):
    answer = served.consumer.post(URL, content=GROUP)
    assert (answer.status_code, answer.json()["status"]) == (200, "success")
    (result,) = answer.json()["results"]
    assert result == {"features": [450.0, 12, None, pytest.approx(150 / 275.5)]}


def test_everything_that_can_be_asked_for_is_told(served):
    told = served.consumer.post(URL, content=EVERYTHING).json()
    newest = "2026-03-01T11:30:00Z"
    types = ["float64", "int64", "float64"]
    assert told["results"] == [{"features": [450.0, 12, 125.5], "status": [PRESENT] * 3}]
    assert told["metadata"] == {
        "features": [
            {"name": name, "data_type": kind, "effective_time": newest} for name, kind in zip(NAMES, types, strict=True)
        ]
    }
    assert told["diagnostics"]["total_ms"] >= told["diagnostics"]["steps_ms"]["read"] > 0


OPTIONS = {
    "include_names": {"name": "txn_count_24h"},
    "include_data_types": {"data_type": "int64"},
    "include_effective_times": {"effective_time": "2026-03-01T11:30:00Z"},
}


@pytest.mark.parametrize(("option", "entry"), OPTIONS.items(), ids=OPTIONS.keys())
def test_each_option_adds_its_member_alone(served, option, entry):
    told = query(served, of("user_123"), features=["txn_count_24h"], metadata_options={option: True}).json()
    assert told["metadata"] == {"features": [entry]}
    assert told["results"] == [{"features": [12]}]


def test_the_serving_status_comes_without_metadata(served):
    told = query(
        served, of("user_123"), of("nobody"), of("user_456"), metadata_options={"include_serving_status": True}
    ).json()
    assert told.keys() == {"request_id", "status", "results"}
    assert told["status"] == "success"
    assert told["results"] == [
        {"features": [450.0, 12, 125.5], "status": [PRESENT] * 3},
        {"features": [None] * 3, "status": [MISSING] * 3},
        {"features": [0.0, 0, 0.0], "status": [PRESENT] * 3},  # known, with nothing in its windows
    ]


def test_an_unknown_entity_has_no_effective_time(served):
    told = query(served, of("nobody"), metadata_options={"include_effective_times": True}).json()
    assert told["metadata"]["features"] == [{"effective_time": None}] * 3


def test_the_published_client_finds_what_it_refuses_to_go_without(served):
    options = {"include_names": True, "include_data_types": True}
    rows = [of(f"user_{number}") for number in range(10)]
    told = query(served, *rows, metadata_options=options, features=["AMOUNT_SUM_1H"]).json()
    assert len(told["results"]) == len(rows)
    assert {len(result["features"]) for result in told["results"]} == {len(told["metadata"]["features"])} == {1}
    (entry,) = told["metadata"]["features"]
    assert entry == {"name": "amount_sum_1h", "data_type": "float64"}  # its own spelling, and no join key
    assert isinstance(told["request_id"], str)


def test_a_group_names_the_view_of_each_feature(served):
    row = {"entity": {"user_id": "user_123", "merchant_id": "m"}, "request_context": {"current_amount": 1.0}}
    told = query(
        served,
        row,
        name="fraud_detection_v3",
        version="v2",
        object_type="feature_group",
        metadata_options={"include_names": True, "include_serving_status": True},
    ).json()
    views = [VIEW, VIEW, "merchant_risk_features", "realtime_risk_features"]
    names = ["amount_sum_1h", "txn_count_24h", "merchant_fraud_rate_7d", "risk_score"]
    assert told["metadata"]["features"] == [
        {"name": name, "feature_view": view, "feature_view_version": "v1"}
        for name, view in zip(names, views, strict=True)
    ]
    assert told["results"][0]["status"] == [PRESENT, PRESENT, MISSING, PRESENT]


def test_a_missing_input_costs_the_features_made_of_it_and_no_other(served):
    entity = {"user_id": "user_123", "merchant_id": "m"}
    answer = query(
        served,
        {"entity": entity},
        {"entity": entity, "request_context": {"current_amount": 125.5}},
        {"entity": entity, "request_context": {"current_amount": None}},
        name="fraud_detection_v3",
        version="v2",
        object_type="feature_group",
        metadata_options={"include_serving_status": True},
    )
    assert (answer.status_code, answer.json()["status"]) == (207, "partial_success")
    without = {"features": [450.0, 12, None, None], "status": [PRESENT, PRESENT, MISSING, "MISSING_INPUT"]}
    whole = {"features": [450.0, 12, None, 0.5], "status": [PRESENT, PRESENT, MISSING, PRESENT]}
    assert answer.json()["results"] == [without, whole, without]


def test_a_view_reads_request_values_and_takes_defaults(served):
    status = {"include_serving_status": True}
    rows = [of("u", {"price": 10.0}, "user"), of("u", {"price": 10.0, "share": 0.1}, "user"), of("u", {}, "user")]
    answer = query(served, *rows, name="Offer", metadata_options=status)
    assert answer.status_code == 207
    assert answer.json()["results"] == [
        {"features": [5.0, 7.0], "status": [PRESENT, PRESENT]},
        {"features": [1.0, 7.0], "status": [PRESENT, PRESENT]},
        {"features": [None, 7.0], "status": ["MISSING_INPUT", PRESENT]},
    ]


def test_a_null_is_an_input_where_the_view_takes_one(served):
    rows = [of("u", context, "user") for context in ({"asked": None}, {"asked": 5.0}, {})]
    answer = query(served, *rows, name="Loan", metadata_options={"include_serving_status": True})
    assert [result["features"] for result in answer.json()["results"]] == [[1.0], [2.5], [None]]
    assert [result["status"] for result in answer.json()["results"]] == [[PRESENT], [PRESENT], ["MISSING_INPUT"]]


def test_a_computation_that_takes_too_long_costs_what_is_made_of_it(served):
    status = {"include_serving_status": True}
    answer = query(served, of("u", key="user"), name="Hanging", metadata_options=status)
    assert (answer.status_code, answer.json()["status"]) == (207, "partial_success")
    late = "TIME_OUT"
    assert answer.json()["results"] == [{"features": [None, None, 7.0], "status": [late, late, PRESENT]}]


def test_in_a_group_a_missing_input_and_a_late_computation_are_told_apart(served):
    answer = query(
        served,
        of("u", key="user"),
        name="offers",
        object_type="feature_group",
        metadata_options={"include_names": True, "include_serving_status": True},
    )
    assert answer.status_code == 207
    names = [each["name"] for each in answer.json()["metadata"]["features"]]
    assert names == ["discount", "Offer.constant", "never", "after", "Hanging.constant"]
    (result,) = answer.json()["results"]
    assert result["status"] == ["MISSING_INPUT", PRESENT, "TIME_OUT", "TIME_OUT", PRESENT]


def test_a_dataset_that_is_read_by_key_is_a_view_of_its_declared_version(served):
    told = query(
        served,
        {"entity": {"shop": "s:1", "visitor": 7}},
        {"entity": {"shop": "s:1", "visitor": 8}},
        name="ByVisitor",
        version="v2",
        metadata_options={"include_names": True, "include_data_types": True, "include_effective_times": True},
    ).json()
    at = "2026-03-01T11:00:00Z"
    assert told["results"] == [
        {"features": [1, "2.50", True, at, [7]]},
        {"features": [None] * 5},
    ]
    assert told["metadata"]["features"] == [
        {"name": "visits", "data_type": "int64", "effective_time": at},
        {"name": "paid", "data_type": "fixed", "precision": 38, "scale": 2, "effective_time": at},
        {"name": "member", "data_type": "boolean", "effective_time": at},
        {"name": "last_at", "data_type": "timestamp", "effective_time": at},
        {"name": "visitors", "data_type": "array", "effective_time": at},
    ]


def test_the_parts_of_a_composite_key_are_join_keys_of_their_own(served):
    assert query(served, {"entity": {"shop": "s:1", "visitor": 7}}, name="Visitor").json()["results"] == [
        {"features": [1]}
    ]


def test_features_are_chosen_without_regard_to_case_and_come_in_the_order_asked(served):
    asked = ["AVG_AMOUNT_7D", "amount_sum_1h"]
    told = query(served, of("user_123"), features=asked, metadata_options={"include_names": True}).json()
    assert told["results"] == [{"features": [125.5, 450.0]}]
    assert [each["name"] for each in told["metadata"]["features"]] == ["avg_amount_7d", "amount_sum_1h"]


ROW = {"entity": {"user_id": "u"}}
WRONG = {
    "no name": ({"name": None}, "name"),
    "no version": ({"version": None}, "version"),
    "no object type": ({"object_type": None}, "object_type"),
    "no rows": ({"request_rows": None}, "request_rows"),
    "unknown object type": ({"object_type": "table"}, "object_type"),
    "version a number": ({"version": 1}, "version"),
    "rows not a list": ({"request_rows": ROW}, "request_rows"),
    "no row": ({"request_rows": []}, "0 rows"),
    "eleven rows": ({"request_rows": [ROW] * 11}, "11 rows"),
    "row without entity": ({"request_rows": [{}]}, "entity"),
    "row with a strange member": ({"request_rows": [{**ROW, "keys": 1}]}, "keys"),
    "entity not an object": ({"request_rows": [{"entity": ["u"]}]}, "entity"),
    "no join key": ({"request_rows": [{"entity": {}}]}, "request_rows[0].entity.user_id"),
    "null join key": ({"request_rows": [{"entity": {"user_id": None}}]}, "request_rows[0].entity.user_id"),
    "empty join key": ({"request_rows": [{"entity": {"user_id": ""}}]}, "request_rows[0].entity.user_id"),
    "extra join key": ({"request_rows": [{"entity": {"user_id": "u", "x": 1}}]}, "request_rows[0].entity.x"),
    "join key a list": ({"request_rows": [{"entity": {"user_id": ["u"]}}]}, "request_rows[0].entity.user_id"),
    "join key a boolean": ({"request_rows": [{"entity": {"user_id": True}}]}, "request_rows[0].entity.user_id"),
    "context nobody takes": ({"request_rows": [{**ROW, "request_context": {"x": 1}}]}, "request_context.x"),
    "features empty": ({"features": []}, "features"),
    "features not text": ({"features": [1]}, "features"),
    "unknown feature": ({"features": ["nothing"]}, "'nothing'"),
    "feature twice": ({"features": ["amount_sum_1h", "AMOUNT_SUM_1H"]}, "twice"),
    "features of a group": ({"object_type": "feature_group", "features": ["a"]}, "feature_group"),
    "unknown member": ({"keys": []}, "keys"),
    "unknown option": ({"metadata_options": {"include_slo": True}}, "include_slo"),
    "option a text": ({"metadata_options": {"include_names": "yes"}}, "include_names"),
}


@pytest.mark.parametrize(("changed", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_request_is_400_and_names_the_member_at_fault(served, changed, words):
    asked = {"name": VIEW, "version": "v1", "object_type": "feature_view", "request_rows": [ROW], **changed}
    sent = {name: value for name, value in asked.items() if value is not None}
    answer = served.consumer.post(URL, json=sent, headers={"X-Request-ID": "r1"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["request_id"] == "r1"
    assert answer.json()["error"]["code"] == "INVALID_ARGUMENT"
    assert words in answer.json()["error"]["message"]


ABSENT = {
    "view": {"name": "nothing"},
    "version of a view": {"version": "v9"},
    "version that is none": {"version": "latest"},
    "dataset without an index": {"name": "transactions_stream"},
    "version of a dataset": {"name": "ByVisitor", "version": "v1"},
    "group": {"object_type": "feature_group"},
    "version of a group": {"name": "fraud_detection_v3", "object_type": "feature_group"},
    "group of another workspace": {"name": "elsewhere", "object_type": "feature_group"},
}


@pytest.mark.parametrize("changed", ABSENT.values(), ids=ABSENT.keys())
def test_what_is_not_there_is_404(served, changed):
    answer = query(served, ROW, **changed)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "NOT_FOUND"), answer.text


def test_an_extractor_that_fails_is_500_and_named(served):
    answer = query(served, of("u", key="user"), name="Failing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "INTERNAL")
    assert "Failing.fails" in answer.json()["error"]["message"]


def test_an_earlier_version_of_a_view_goes_on_answering_as_it_did(served):
    visits = compile_module(Path(__file__).parent / "visits.py")
    (view,) = (each for each in visits.featuresets if each.name == "Visitor")
    changed = view.model_copy(
        update={"features": (*view.features, view.features[1].model_copy(update={"name": "too"}))}
    )
    served.commit(Commit(datasets=visits.datasets, pipelines=visits.pipelines, featuresets=(changed,)))
    row = {"entity": {"shop": "s:1", "visitor": 7}}
    answers = [query(served, row, name=view.name, version=version) for version in ("v1", "v2", "v3")]
    assert [answer.status_code for answer in answers] == [200, 200, 404]
    assert [answer.json()["results"][0]["features"] for answer in answers[:2]] == [[1], [1, 1]]


def recorded(served: Served, request_id: str, target: str) -> list[dict]:
    """The runs of a request, once there are any."""

    def found() -> list[dict]:
        runs = served.owner.get("/query-runs", params={"featureset": target}).json()["runs"]
        return [run for run in runs if run["correlation_id"] == request_id]

    assert wait_until(lambda: bool(found()), PATIENCE_S)
    return found()


ASKED = {
    "featureset": (VIEW, [of("user_123"), of("nobody")], "v1"),
    "dataset": ("user_transactions", [of("user_123")], "v1"),
}


@pytest.mark.parametrize(("target", "rows", "version"), ASKED.values(), ids=ASKED.keys())
def test_a_query_is_recorded_and_replays_as_it_was_answered(served, target, rows, version):
    request_id = f"run-{uuid4().hex}"
    asked = {"name": target, "version": version, "object_type": "feature_view", "request_rows": rows}
    assert served.consumer.post(URL, json=asked, headers={"X-Request-ID": request_id}).status_code == 200
    (run,) = recorded(served, request_id, target)
    assert run["entity_ids"] == [row["entity"]["user_id"] for row in rows]
    again = served.owner.post(f"/query-runs/{run['id']}/replay", params={"knowledge": "as_served"}).json()
    assert set(again["features"].values()) == {"same"}


def test_what_was_read_without_an_input_is_recorded_and_not_replayed(served):
    request_id = f"run-{uuid4().hex}"
    asked = {"name": "Offer", "version": "v1", "object_type": "feature_view", "request_rows": [of("u", key="user")]}
    assert served.consumer.post(URL, json=asked, headers={"X-Request-ID": request_id}).status_code == 207
    (run,) = recorded(served, request_id, "Offer")
    assert served.owner.post(f"/query-runs/{run['id']}/replay").is_client_error
