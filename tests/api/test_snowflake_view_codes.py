"""Ingest: one test for each code by which a feature view says that it does not hold the records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from featurelib.compile import compile_module
from featurelib.errors import StoreUnavailable
from featurelib.stores.intake import Intake
from featurelib.stores.orders import Orders
from featurelib.stores.refused_rows import RefusedRows
from featurelib.stores.registry import JobRecord, WorkerStatus
from tests.api.payments import Served, impatient_with, serving, workers

_MODULE = """
import math
from datetime import datetime

import polars as pl
from featurelib import *

def roots(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(root=pl.Series([math.sqrt(each) for each in frame["amount"]], dtype=pl.Float64))

@dataset(version=1)
class odd_payments:
    user_id: str = field(key=True)
    amount: float = field()
    timestamp: datetime = field(timestamp=True)

@dataset(index=True, version=1)
class odd_users:
    user_id: str = field(key=True)
    root_1h: float = field()
    timestamp: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(odd_payments)
    def by_odd_user(cls, payments):
        rooted = payments.transform(roots, output_columns={"root": float})
        return rooted.groupby("user_id").aggregate(root_1h=Sum(of="root", window="1h"))

@dataset(version=1)
class united_payments:
    user_id: str = field(key=True)
    amount: float = field()
    timestamp: datetime = field(timestamp=True)

@dataset(version=1)
class united_refunds:
    user_id: str = field(key=True)
    amount: float = field()
    timestamp: datetime = field(timestamp=True)

@dataset(index=True, version=1)
class united_users:
    user_id: str = field(key=True)
    united_1h: float = field()
    timestamp: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(united_payments, united_refunds)
    def by_united_user(cls, payments, refunds):
        rooted = payments.union(refunds).transform(roots, output_columns={"root": float})
        return rooted.groupby("user_id").aggregate(united_1h=Sum(of="root", window="1h"))

@dataset(version=1, upsert=True)
class upserted_payments:
    user_id: str = field(key=True)
    amount: float = field()
    timestamp: datetime = field(timestamp=True)

@dataset(index=True, version=1)
class upserted_users:
    user_id: str = field(key=True)
    spent_1h: float = field()
    payments_1h: int = field()
    timestamp: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(upserted_payments)
    def by_upserted_user(cls, payments):
        return payments.groupby("user_id").aggregate(
            spent_1h=Sum(of="amount", window="1h"), payments_1h=Count(window="1h")
        )

@featureset
class upserted_features:
    user_id: str = feature()
    spent_1h: float = feature(ref=upserted_users.spent_1h)
    payments_1h: int = feature(ref=upserted_users.payments_1h)

@featureset
class united_features:
    user_id: str = feature()
    united_1h: float = feature(ref=united_users.united_1h)

@featureset
class odd_features:
    user_id: str = feature()
    root_1h: float = feature(ref=odd_users.root_1h)
"""
URL, AT = "/api/v1/ingest", "2026-03-01T11:{:02}:00Z"
IDLE, BUSY = "merchant_reports", "odd_payments"


@pytest.fixture(scope="module")
def served(tmp_path_factory, module_redis, migrated) -> Iterator[Served]:
    """The example, of which nobody works, and a stream source whose pipeline takes roots."""
    folder = tmp_path_factory.mktemp("codes")
    (folder / "odd.py").write_text(_MODULE)
    with serving(folder, module_redis.url, migrated, snowflake={"apply_wait_ms": 60_000}) as served:
        served.commit(compile_module(folder / "odd.py"))
        with workers(served.platform, {"by_odd_user", "by_united_user", "by_upserted_user"}):
            yield served


def payment(user: str, amount: float, minute: int = 30) -> dict:
    return {"user_id": user, "amount": amount, "timestamp": AT.format(minute)}


def report(merchant: str) -> dict:
    return {"merchant_id": merchant, "fraud": 1.0, "timestamp": AT.format(30)}


def view_of(served: Served, source: str, *records: dict) -> dict:
    answer = served.producer.post(URL, json={"records": {source: list(records)}})
    (view,) = answer.json()["sources"][source]["feature_views"]["results"]
    failed = view["status"] == "failed"
    assert (answer.status_code, answer.json()["status"]) == ((207, "partial_success") if failed else (200, "success"))
    assert answer.json()["sources"][source]["feature_views"]["failed"] == int(failed)
    return view


@contextmanager
def nothing(_: Served) -> Iterator[None]:
    yield


@contextmanager
def paused(served: Served) -> Iterator[None]:
    orders = Orders(served.platform.registry.database, served.platform.clock)
    orders.pause("by_merchant@1", None)
    yield
    orders.resume("by_merchant@1", None)


def _jobs(served: Served, *jobs: JobRecord) -> None:
    served.platform.registry.put_statuses(jobs, [], [])


@contextmanager
def failing(served: Served) -> Iterator[None]:
    worker = WorkerStatus(partition=0, state="retrying", detail="CorruptState: a pane does not decode")
    job = JobRecord(pipeline="by_merchant@1", partition_count=1, state="retrying", detail=worker.detail)
    _jobs(served, job.model_copy(update={"workers": (worker,)}))
    yield
    _jobs(served, job.model_copy(update={"workers": (), "state": "running", "detail": ""}))


@contextmanager
def elsewhere(served: Served) -> Iterator[None]:
    """Something runs, and not this."""
    registry = served.platform.registry
    with pytest.MonkeyPatch.context() as patched:
        others = [JobRecord(pipeline="by_odd_user@1", partition_count=1, state="running")]
        patched.setattr(type(registry), "jobs", lambda _: others)
        yield


@contextmanager
def unwritable(_: Served) -> Iterator[None]:
    whole = Intake.upsert

    def half(intake, events, *others):
        if "fraud" in events[0]:
            message = "the log does not answer"
            raise StoreUnavailable(message)
        return whole(intake, events, *others)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Intake, "upsert", half)
        yield


Arrangement = Callable[[Served], AbstractContextManager[None]]
IDLE_CODES: dict[str, tuple[Arrangement, str, bool, str]] = {
    "UNAVAILABLE": (nothing, "online", True, "by_merchant@1 has not applied them within 60 s"),
    "FAILED_PRECONDITION": (paused, "online", False, "by_merchant@1 is paused"),
    "NOT_FOUND": (elsewhere, "online", True, "nothing runs pipeline by_merchant@1"),
    "INTERNAL": (failing, "online", True, "by_merchant@1 fails and is retried: CorruptState: a pane does not decode"),
    "WRITE_ERROR": (unwritable, "offline", True, "the log does not answer"),
}


@pytest.mark.parametrize("code", IDLE_CODES)
def test_a_view_that_does_not_apply_the_records_says_why(served, code):
    arranged, store, retryable, words = IDLE_CODES[code]
    sent = {IDLE: [report(code)], BUSY: [payment(code, 4.0)]}
    with arranged(served), impatient_with("by_merchant@1"):
        answer = served.producer.post(URL, json={"records": dict(reversed(sent.items()))})
    assert answer.status_code == 207
    (view,) = answer.json()["sources"][IDLE]["feature_views"]["results"]
    error = view["error"]
    assert (view["name"], view["version"], view["status"]) == ("merchant_risk_features", "v1", "failed")
    assert (error["code"], error["store"], error["retryable"]) == (code, store, retryable)
    assert words in error["message"]
    assert answer.json()["sources"][BUSY]["feature_views"]["failed"] == 0


def root_of(served: Served, user: str) -> float:
    answer = served.consumer.get("/features", params={"featureset": "odd_features", "entity_id": user})
    return answer.json()["features"]["root_1h"]


def test_a_record_replaces_the_one_of_its_key_and_instant_in_every_pipeline_of_an_upserting_dataset(served):
    def read(**more: str) -> tuple[float, int]:
        params = {"featureset": "upserted_features", "entity_id": "u", **more}
        features = served.consumer.get("/features", params=params).json()["features"]
        return features["spent_1h"], features["payments_1h"]

    for amounts, spent in (((2.5, 4.0), (6.5, 2)), ((10.0, 4.0), (14.0, 2)), ((2.5, 4.0), (6.5, 2))):
        rows = [payment("u", amount, minute) for amount, minute in zip(amounts, (30, 31), strict=True)]
        assert view_of(served, "upserted_payments", *rows)["status"] == "success"
        assert read() == spent
        assert read(timestamp=AT.format(45)) == spent
    assert read(timestamp=AT.format(30)) == (2.5, 1)


class TestUdfExecutionFailed:
    """A function of the view's own could not take a record."""

    def test_the_view_names_function_and_reason_and_holds_the_other_records(self, served):
        view = view_of(served, BUSY, payment("udf", 9.0), payment("udf", -1.0, 31), payment("udf", 16.0, 32))
        error = view["error"]
        assert (view["status"], error["code"], error["retryable"]) == ("failed", "UDF_EXECUTION_FAILED", False)
        assert error["message"].startswith("stored and left out of the view: 1 of the records; ")
        assert "math domain error" in error["message"]
        assert root_of(served, "udf") == 7.0

    def test_it_is_told_of_a_record_that_is_sent_again_too(self, served):
        for _ in range(2):
            error = view_of(served, BUSY, payment("again", -4.0))["error"]
            assert error["code"] == "UDF_EXECUTION_FAILED"

    def test_a_record_of_another_request_costs_nothing(self, served):
        assert view_of(served, BUSY, payment("first", -4.0, 40))["status"] == "failed"
        assert view_of(served, BUSY, payment("second", 4.0, 40))["status"] == "success"

    def test_a_record_at_the_same_place_and_instant_of_another_source_of_the_view_costs_nothing(self, served):
        assert view_of(served, "united_refunds", payment("both", -4.0))["status"] == "failed"
        assert view_of(served, "united_payments", payment("both", 4.0))["status"] == "success"

    def test_when_it_cannot_be_known_the_request_may_be_sent_again(self, served, monkeypatch):
        def away(*_: object) -> None:
            message = "the store does not answer"
            raise StoreUnavailable(message)

        monkeypatch.setattr(RefusedRows, "newest", away)
        error = view_of(served, BUSY, payment("unknown", 4.0))["error"]
        assert (error["code"], error["retryable"]) == ("UNAVAILABLE", True)
