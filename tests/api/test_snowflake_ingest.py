"""`POST /api/v1/ingest`: the documented requests, limits, record codes and view results of Snowflake's ingest API."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from featurelib.clock import format_instant
from featurelib.errors import LogFull, StoreUnavailable
from featurelib.stores.intake import Intake
from featurelib.stores.log import Log
from featurelib.stores.orders import Orders
from tests.api.payments import Served, impatient_with, serving, workers

# The documented example requests, as they are printed.
EXAMPLE = b"""{
  "records": {
    "transactions_stream": [
      {
        "timestamp": "2024-01-15T10:30:00Z",
        "user_id": "user_123",
        "amount": 150.00,
        "merchant_category": "retail"
      },
      {
        "timestamp": "2024-01-15T10:31:00Z",
        "user_id": "user_456",
        "amount": 75.50,
        "merchant_category": "grocery"
      }
    ]
  }
}"""


SEVERAL_SOURCES = b"""{
  "records": {
    "transactions_stream": [
      {
        "timestamp": "2024-01-15T10:30:00Z",
        "user_id": "user_123",
        "amount": 150.00
      }
    ],
    "clickstream_events": [
      {
        "timestamp": "2024-01-15T10:30:01Z",
        "session_id": "sess_abc",
        "page": "/checkout",
        "duration_ms": 3200
      }
    ]
  }
}"""
DRY_RUN = b"""{
  "dry_run": true,
  "records": {
    "transactions_stream": [
      {
        "timestamp": "2024-01-15T10:30:00Z",
        "user_id": "user_123",
        "amount": 150.00
      }
    ]
  }
}"""
APPLIED = {"failed": 0, "results": [{"name": "user_transaction_features", "version": "v1", "status": "success"}]}
URL = "/api/v1/ingest"
SOURCE = "transactions_stream"
PARTITIONS = 2


@pytest.fixture(scope="module")
def served(tmp_path_factory, module_redis, migrated) -> Iterator[Served]:
    """The example, small limits, and workers for what users spend; nobody applies what merchants were reported for."""
    limits = {"max_body_bytes": 100_000, "max_record_bytes": 2_000, "apply_wait_ms": 60_000}
    folder = tmp_path_factory.mktemp("ingest")
    with serving(folder, module_redis.url, migrated, snowflake=limits) as served, workers(served.platform, {"by_user"}):
        yield served


@pytest.fixture
def post(served):
    """Sends bodies as a producer."""
    return lambda body: served.producer.post(URL, json=body)


@pytest.fixture
def user(request) -> str:
    """A user of the test's own."""
    return request.node.name[:64]


def paid(user: str, **changed) -> dict:
    return {"timestamp": "2026-03-01T11:30:00Z", "user_id": user, "amount": 2.5, **changed}


def body(*records, source: str = SOURCE, **members) -> dict:
    return {"records": {source: list(records)}, **members}


def stored(served, user: str, source: str = SOURCE) -> list[dict]:
    """A user's records, oldest first."""
    tables = [served.platform.log.read(f"{source}@1", part, 0, 1_000) for part in range(PARTITIONS)]
    rows = [row for table in tables if table is not None for row in table.to_pylist()]
    return sorted((row for row in rows if row["user_id"] == user), key=lambda row: row["__offset"])


def letters(served, user: str) -> list:
    found = (each.letter for each in served.platform.log.dead.newest(f"{SOURCE}@1", PARTITIONS))
    return [letter for letter in found if letter.record.get("user_id") == user]


def spent(served, user: str) -> dict:
    answer = served.consumer.get("/features", params={"featureset": "user_transaction_features", "entity_id": user})
    return answer.json()["features"]


def test_the_documented_request_is_answered_with_the_documented_members(served):
    answer = served.producer.post(URL, content=EXAMPLE, headers={"X-Request-ID": "req_abc123"})
    assert answer.status_code == 200
    assert answer.json() == {
        "request_id": "req_abc123",
        "status": "success",
        "sources": {SOURCE: {"records": {"total": 2, "failed": 0}, "feature_views": APPLIED}},
    }
    (record,) = stored(served, "user_456")
    assert (record["amount"], record["merchant_category"]) == (75.5, "grocery")


def test_several_sources_are_answered_each_by_itself(served):
    answer = served.producer.post(URL, content=SEVERAL_SOURCES)
    assert answer.status_code == 200
    assert answer.json()["sources"] == {
        SOURCE: {"records": {"total": 1, "failed": 0}, "feature_views": APPLIED},
        "clickstream_events": {
            "records": {"total": 1, "failed": 0},
            "feature_views": {"failed": 0, "results": []},
        },
    }


def test_a_dry_run_judges_and_stores_nothing(served, post, user):
    answer = served.producer.post(URL, content=DRY_RUN)
    assert (answer.status_code, answer.json()["status"]) == (200, "success")
    nothing = {"failed": 0, "results": []}
    assert answer.json()["sources"] == {SOURCE: {"records": {"total": 1, "failed": 0}, "feature_views": nothing}}
    answer = post(body(paid(user), paid(user, amount="x"), paid(user, timestamp="x"), dry_run=True))
    assert answer.status_code == 207
    assert [each["index"] for each in answer.json()["sources"][SOURCE]["records"]["errors"]] == [1, 2]
    assert stored(served, user) == []
    assert letters(served, user) == []


def test_a_read_after_the_answer_sees_the_write(served, post, user):
    for number in range(1, 6):
        answer = post(body(paid(user, timestamp=f"2026-03-01T11:30:0{number}Z")))
        assert answer.status_code == 200, answer.text
        assert spent(served, user)["txn_count_24h"] == number


def test_the_documented_record_errors_come_by_index(served, post, user):
    records = [paid(user, timestamp=f"2026-03-01T11:30:0{number}Z") for number in range(10)]
    del records[3]["timestamp"]
    records[7]["amount"] = "150.00"
    answer = post(body(*records))
    assert (answer.status_code, answer.json()["status"]) == (207, "partial_success")
    missing = {"code": "MISSING_REQUIRED_FIELD", "message": "Record is missing required field: timestamp"}
    wrong = {"code": "INVALID_FIELD_TYPE", "message": "Field 'amount': expected number, got string"}
    found = answer.json()["sources"][SOURCE]
    assert found["records"] == {
        "total": 10,
        "failed": 2,
        "errors": [{"index": 3, "error": missing}, {"index": 7, "error": wrong}],
    }
    assert found["feature_views"] == APPLIED
    assert len(stored(served, user)) == 8
    assert sorted(each.reason for each in letters(served, user)) == ["missing_field", "wrong_type"]


DEEP = {"a": {"b": {"c": [{"d": 1}]}}}
REFUSED = {
    "timestamp null": ({"timestamp": None}, "MISSING_REQUIRED_FIELD", "timestamp"),
    "key null": ({"user_id": None}, "MISSING_REQUIRED_FIELD", "user_id"),
    "required field null": ({"amount": None}, "MISSING_REQUIRED_FIELD", "amount"),
    "empty key": ({"user_id": ""}, "INVALID_FIELD_TYPE", "user_id"),
    "text for a number": ({"amount": "12"}, "INVALID_FIELD_TYPE", "expected number, got string"),
    "boolean for a number": ({"amount": True}, "INVALID_FIELD_TYPE", "expected number, got boolean"),
    "number for a text": ({"merchant_category": 5}, "INVALID_FIELD_TYPE", "expected string, got number"),
    "list for a text": ({"merchant_category": ["a"]}, "INVALID_FIELD_TYPE", "expected string, got array"),
    "deep struct": ({"merchant_category": DEEP}, "INVALID_FIELD_TYPE", "expected string, got object"),
    "infinity": ({"amount": "inf"}, "INVALID_FIELD_TYPE", "expected number, got inf"),
    "minus infinity": ({"amount": "-inf"}, "INVALID_FIELD_TYPE", "expected number, got -inf"),
    "unknown field": ({"tip": 1.0}, "INVALID_FIELD_TYPE", "'tip'"),
    "unreadable timestamp": ({"timestamp": "yesterday"}, "INVALID_TIMESTAMP", "timestamp"),
    "empty timestamp": ({"timestamp": ""}, "INVALID_TIMESTAMP", "timestamp"),
    "number as timestamp": ({"timestamp": 1705314600}, "INVALID_TIMESTAMP", "got number"),
    "timestamp of no calendar": ({"timestamp": "2026-02-30T00:00:00Z"}, "INVALID_TIMESTAMP", "timestamp"),
    "key with NUL": ({"user_id": "a\0b"}, "INVALID_FIELD_TYPE", "user_id"),
    "key too long": ({"user_id": "k" * 1_025}, "INVALID_FIELD_TYPE", "1 to 1024 characters"),
    "too large": ({"merchant_category": "x" * 3_000}, "RECORD_TOO_LARGE", "2000"),
}


@pytest.mark.parametrize(("changed", "code", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_record_that_does_not_fit_has_the_documented_code(served, post, user, changed, code, words):
    answers = [post(body(paid(user, **changed), dry_run=dry)) for dry in (False, True)]
    for answer in answers:
        assert answer.status_code == 207
        (error,) = answer.json()["sources"][SOURCE]["records"]["errors"]
        assert (error["index"], error["error"]["code"]) == (0, code)
        assert words in error["error"]["message"]
    assert stored(served, user) == []


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" + "0" * 1_200])
def test_a_number_that_no_double_holds_costs_its_own_record(served, post, user, number):
    good = paid(user)
    text = json.dumps(body(good, {**good, "amount": "?", "timestamp": "2026-03-01T11:31:00Z"}))
    answer = served.producer.post(URL, content=text.replace('"?"', number))
    assert answer.status_code == 207, answer.text
    found = answer.json()["sources"][SOURCE]
    (error,) = found["records"]["errors"]
    assert (error["index"], error["error"]["code"]) == (1, "INVALID_FIELD_TYPE")
    assert error["error"]["message"].startswith("Field 'amount': ")
    assert found["feature_views"] == APPLIED
    assert len(stored(served, user)) == len(letters(served, user)) == 1


INSTANTS = {
    "zone": ("2026-03-01T11:30:00Z", "2026-03-01T11:30:00Z"),
    "no zone is UTC": ("2026-03-01T11:30:00", "2026-03-01T11:30:00Z"),
    "offset is turned into UTC": ("2026-03-01T12:30:00+01:00", "2026-03-01T11:30:00Z"),
    "space": ("2026-03-01 11:30:00", "2026-03-01T11:30:00Z"),
    "fraction": ("2026-03-01T11:30:00.250", "2026-03-01T11:30:00.250000Z"),
    "date": ("2026-03-01", "2026-03-01T00:00:00Z"),
}


@pytest.mark.parametrize(("given", "meant"), INSTANTS.values(), ids=INSTANTS.keys())
def test_timestamps_are_taken_in_every_form_clients_send(served, post, user, given, meant):
    assert post(body(paid(user, timestamp=given))).status_code == 200
    (row,) = stored(served, user)
    assert format_instant(row["__time"]) == meant


WRONG = {
    "no JSON": (b"{", "not JSON"),
    "not an object": (b"[]", "object"),
    "no records": (b"{}", "records"),
    "records null": (b'{"records": null}', "records"),
    "no source": (b'{"records": {}}', "0 stream sources"),
    "source without a name": (b'{"records": {"": []}}', "empty"),
    "three sources": (b'{"records": {"a": [], "b": [], "c": []}}', "1 to 2"),
    "ten sources": (json.dumps({"records": {f"s{n}": [] for n in range(10)}}).encode(), "10 stream sources"),
    "eleven records": (json.dumps(body(*[paid("u")] * 11)).encode(), "11 records"),
    "source not a list": (b'{"records": {"transactions_stream": {}}}', "array"),
    "record not an object": (b'{"records": {"transactions_stream": [1]}}', "object"),
    "dry_run a text": (b'{"records": {"a": []}, "dry_run": "yes"}', "dry_run"),
    "unknown member": (b'{"records": {"a": []}, "dryRun": true}', "dryRun"),
    "NaN": (b'{"records": {"a": [{"amount": NaN}]}}', "not JSON"),
    "NaN beside 1e400": (b'{"records": {"a": [{"amount": 1e400, "tip": NaN}]}}', "not JSON"),
    "half a surrogate pair beside 1e400": (b'{"records": {"a": [{"amount": 1e400, "tip": "\\ud800"}]}}', "not JSON"),
    "of another form beside 1e400": (b'{"records": {"a": [1e400]}}', "object"),
    "nested too deeply": (b'{"records": {"a": [{"x": ' + b"[" * 20_000, "too deeply"),
    "empty": (b"", "not JSON"),
}


@pytest.mark.parametrize(("sent", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_request_of_another_form_is_400_in_the_documented_body(served, sent, words):
    answer = served.producer.post(URL, content=sent, headers={"X-Request-ID": "r1"})
    assert answer.status_code == 400
    assert answer.json() == {
        "request_id": "r1",
        "error": {"code": "INVALID_ARGUMENT", "message": answer.json()["error"]["message"]},
    }
    assert words in answer.json()["error"]["message"]


def test_an_unknown_stream_source_fails_its_records_alone(post, user):
    answer = post({"records": {"nobody": [paid(user), paid(user)], SOURCE: [paid(user)]}})
    assert answer.status_code == 207
    told = {"code": "INVALID_ARGUMENT", "message": "Unknown stream source: nobody"}
    assert answer.json()["sources"] == {
        "nobody": {
            "records": {"total": 2, "failed": 2, "errors": [{"index": n, "error": told} for n in range(2)]},
            "feature_views": {"failed": 0, "results": []},
        },
        SOURCE: {"records": {"total": 1, "failed": 0}, "feature_views": APPLIED},
    }


def test_what_a_pipeline_makes_is_no_stream_source(post):
    answer = post(body({}, source="user_transactions"))
    (error,) = answer.json()["sources"]["user_transactions"]["records"]["errors"]
    assert error["error"]["message"] == "Unknown stream source: user_transactions"


def test_a_request_sent_again_counts_once(served, post, user):
    sent = body(paid(user), paid(user, timestamp="2026-03-01T11:31:00Z"), paid(user, amount="x"))
    first, again = post(sent), post(sent)
    assert first.json()["sources"] == again.json()["sources"]
    assert len(stored(served, user)) == 2
    assert len(letters(served, user)) == 1
    found = {"user_id": user, "amount_sum_1h": 5.0, "txn_count_24h": 2, "avg_amount_7d": 2.5}
    assert spent(served, user) == found


def test_a_record_of_the_same_key_and_instant_replaces_the_one_before(served, post, user):
    for amount in (2.5, 10.0, 2.5, 7.0):
        assert post(body(paid(user, amount=amount))).status_code == 200
        found = spent(served, user)
        assert (found["amount_sum_1h"], found["txn_count_24h"]) == (amount, 1)


def test_within_one_request_the_last_of_a_key_and_instant_holds(served, post, user):
    post(body(paid(user, amount=1.0), paid(user, amount=3.0)))
    assert spent(served, user)["amount_sum_1h"] == 3.0


def test_a_request_with_two_records_of_a_key_and_instant_may_be_sent_again(served, post, user):
    sent = body(paid(user, amount=1.0), paid(user, amount=3.0))
    for _ in range(2):
        assert post(sent).json()["sources"][SOURCE]["records"] == {"total": 2, "failed": 0}
    assert [row["amount"] for row in stored(served, user)] == [3.0]


def test_a_record_of_an_entity_erased_for_good_is_refused(served, post, user):
    assert post(body(paid(user))).status_code == 200
    asked = {"dataset": SOURCE, "entity_ids": [user], "block": True}
    assert served.owner.post("/api/v1/erase", json=asked).is_success
    later = "2026-03-01T11:31:00Z"
    answer = post(body(*[paid(user, timestamp=later, amount=amount) for amount in (1.0, 2.0)], paid("somebody else")))
    errors = answer.json()["sources"][SOURCE]["records"]["errors"]
    assert (answer.status_code, [error["index"] for error in errors]) == (207, [0, 1])
    for error in errors:
        assert error["error"]["code"] == "INVALID_ARGUMENT"
        assert "erased" in error["error"]["message"]


def reported(user: str) -> dict:
    return {"timestamp": "2026-03-01T11:30:00Z", "merchant_id": user, "fraud": 1.0}


def test_a_view_that_does_not_apply_in_time_is_unavailable_and_may_be_sent_again(served, post, user):
    sent = body(reported(user), source="merchant_reports")
    with impatient_with("by_merchant@1"):
        first = post(sent)
    assert (first.status_code, first.json()["status"]) == (207, "partial_success")
    found = first.json()["sources"]["merchant_reports"]
    assert found["records"] == {"total": 1, "failed": 0}
    (view,) = found["feature_views"]["results"]
    assert found["feature_views"]["failed"] == 1
    assert (view["name"], view["version"], view["status"]) == ("merchant_risk_features", "v1", "failed")
    error = view["error"]
    assert (error["code"], error["store"], error["retryable"]) == ("UNAVAILABLE", "online", True)
    with workers(served.platform, {"by_merchant"}):
        assert post(sent).status_code == 200


def test_a_report_of_the_same_merchant_and_instant_replaces_the_one_before(served, post, user):
    with workers(served.platform, {"by_merchant"}):
        for fraud in (1.0, 0.0):
            assert post(body({**reported(user), "fraud": fraud}, source="merchant_reports")).status_code == 200
        answer = served.consumer.get("/features", params={"featureset": "merchant_risk_features", "entity_id": user})
    assert answer.json()["features"]["merchant_fraud_rate_7d"] == 0.0


def test_a_view_whose_pipeline_is_paused_is_not_in_a_state_for_writes(served, post, user):
    orders = Orders(served.platform.registry.database, served.platform.clock)
    orders.pause("by_merchant@1", None)
    with impatient_with("by_merchant@1"):
        answer = post(body(reported(user), source="merchant_reports"))
    orders.resume("by_merchant@1", None)
    (view,) = answer.json()["sources"]["merchant_reports"]["feature_views"]["results"]
    assert (view["error"]["code"], view["error"]["retryable"]) == ("FAILED_PRECONDITION", False)
    assert "by_merchant@1 is paused" in view["error"]["message"]


def test_diagnostics_come_when_they_are_asked_for(post, user):
    assert "diagnostics" not in post(body(paid(user))).json()
    told = post(body(paid(user), include_diagnostics=True)).json()["diagnostics"]
    assert told["steps_ms"].keys() == {"validate", "append", "apply"}
    assert told["total_ms"] >= sum(told["steps_ms"].values()) > 0


def test_a_full_log_is_503_and_to_be_sent_again(post, user, monkeypatch):
    def refuse(*_: object) -> None:
        message = "the hot log is at its budget"
        raise LogFull(message)

    monkeypatch.setattr(Log, "require_room", refuse)
    answer = post(body(paid(user)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1


def test_when_only_the_second_source_cannot_be_stored_the_first_is_answered_for(post, user, monkeypatch):
    whole = Intake.upsert

    def half(intake, events, *others):
        if "fraud" in events[0]:
            message = "lost"
            raise StoreUnavailable(message)
        return whole(intake, events, *others)

    monkeypatch.setattr(Intake, "upsert", half)
    with impatient_with("by_merchant@1"):
        answer = post({"records": {SOURCE: [paid(user)], "merchant_reports": [reported(user)]}})
    assert answer.status_code == 207
    assert answer.json()["sources"][SOURCE]["feature_views"] == APPLIED
    (view,) = answer.json()["sources"]["merchant_reports"]["feature_views"]["results"]
    error = {"code": "WRITE_ERROR", "message": "lost", "store": "offline", "retryable": True}
    assert view == {"name": "merchant_risk_features", "version": "v1", "status": "failed", "error": error}


def test_what_is_not_stored_is_never_answered_as_a_success(served, post, user, monkeypatch):
    whole = Intake.upsert

    def half(intake, events, *others):
        if "page" in events[0]:
            message = "lost"
            raise StoreUnavailable(message)
        return whole(intake, events, *others)

    looked = {"timestamp": "2026-03-01T11:30:00Z", "session_id": user, "page": "/", "duration_ms": 1}
    sent = {"records": {SOURCE: [paid(user)], "clickstream_events": [looked]}}
    with monkeypatch.context() as patched:
        patched.setattr(Intake, "upsert", half)
        answer = post(sent)
    # No feature view reads pages: nothing in a 207 could say that the record is not there.
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "UNAVAILABLE")
    assert post(sent).status_code == 200
    assert len(stored(served, user)) == 1
