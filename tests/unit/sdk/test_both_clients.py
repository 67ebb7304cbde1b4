"""Both clients: one meaning, two ways to wait; what is sent again, and what is not."""

import asyncio
import inspect
from dataclasses import replace

import httpx2
import polars as pl
import pyarrow as pa
import pytest
import stamina

from featurelib.client import AsyncThymeClient, Config, ThymeClient, credentials_path, forget_credentials
from featurelib.client import save_credentials as save
from featurelib.client.operations import Operation
from featurelib.definitions import Commit
from featurelib.errors import (
    ConfigError,
    InvalidRequest,
    InvalidTimestamp,
    NotFound,
    RateLimited,
    ServiceUnavailable,
    StoreUnavailable,
)
from tests.unit.sdk.test_client import ANSWER, RECEIPT

AWAY = (503, {"error": "store_unavailable", "detail": "redis"})


@pytest.fixture
def config(service, home):
    return Config(
        api_url=f"{service.url}/api/v1/commit", api_base=service.url, query_url=service.url, api_key="tk_secret"
    )


@pytest.fixture
def client(config):
    with ThymeClient(config) as made:
        yield made


def one_after_another(*answers):
    """An answer of the service that is another each time; the last one stays."""
    left = list(answers)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


# One meaning

ROW = {"entity_id": "a", "timestamp": "2026-01-01T00:00:00Z", "features": {"x": 1}}
OPERATIONS = {
    "query": (lambda c: c.query("F", "a", timestamp=0, explain=True), {"GET /features": ANSWER}),
    "query with inputs": (lambda c: c.query("F", "a", {"x": 1}), {"POST /features": ANSWER}),
    "query_batch": (
        lambda c: c.query_batch("F", ["a"]),
        {"POST /features/batch": {"features": ["entity_id", "x"], "values": [["a", 1]]}},
    ),
    "query_offline": (
        lambda c: c.query_offline("F", [{"entity_id": "a", "timestamp": 0}]),
        {"POST /features/offline": {"results": [ROW]}},
    ),
    "lookup": (lambda c: c.lookup("D", "a", knowledge="as_served", timestamp=0), {"GET /features": ANSWER}),
    "commit": (lambda c: c.commit(Commit(), backfill=False), {"POST /api/v1/commit": RECEIPT}),
    "plan": (lambda c: c.plan(Commit(), assumed={"keys": 5}), {"POST /api/v1/plan": {"breaks": []}}),
    "log": (lambda c: c.log("D", {"a": 1}, idempotency_key="k"), {"POST /api/v1/log": {"events_sent": 1}}),
    "erase": (lambda c: c.erase("D", [1]), {"POST /api/v1/erase": {"entities_erased": 1}}),
    "dead_letters": (
        lambda c: c.dead_letters("D"),
        {"GET /api/v1/dead-letters": {"dead_letters": [{"id": "l"}], "cursor": None}},
    ),
    "status": (lambda c: c.status(), {"GET /api/v1/status": {"jobs": []}}),
    "inspect": (lambda c: c.inspect("F"), {"GET /api/v1/status": {"featuresets": [{"name": "F"}]}}),
    "is_up": (lambda c: c.is_up(c.config.api_base), {"GET /health": {"status": "ok"}}),
    "jobs": (lambda c: c.jobs(), {"GET /api/v1/jobs": [{"name": "j"}]}),
    "pause_job": (lambda c: c.pause_job("by_rider@2"), {"POST /api/v1/jobs/by_rider@2/pause": {"paused": True}}),
    "resume_job": (lambda c: c.resume_job("j"), {"POST /api/v1/jobs/j/resume": {"paused": False}}),
    "restart_job": (lambda c: c.restart_job("j"), {"POST /api/v1/jobs/j/restart": {}}),
    "start_backfill": (lambda c: c.start_backfill("p", since=0), {"POST /api/v1/backfills": (202, {"id": "b"})}),
    "backfills": (lambda c: c.backfills(), {"GET /api/v1/backfills": [{"id": "b"}]}),
    "backfill": (lambda c: c.backfill("b"), {"GET /api/v1/backfills/b": {"id": "b"}}),
    "cancel_backfill": (lambda c: c.cancel_backfill("b"), {"POST /api/v1/backfills/b/cancel": {"id": "b"}}),
    "price_backfill": (lambda c: c.price_backfill("p", until=0), {"POST /api/v1/backfills": {"rows": 5}}),
    "roll_back_backfill": (lambda c: c.roll_back_backfill("b"), {"POST /api/v1/backfills/b/rollback": {"id": "b"}}),
    "drop_backfill": (lambda c: c.drop_backfill("b"), {"POST /api/v1/backfills/b/drop": {"id": "b"}}),
    "keys": (lambda c: c.keys(), {"GET /api/v1/keys": [{"fingerprint": "f"}]}),
    "create_key": (
        lambda c: c.create_key("writer", name="n", rate_limit=5),
        {"POST /api/v1/keys": (201, {"key": "t"})},
    ),
    "register_public_key": (
        lambda c: c.register_public_key("PEM", "USER", "writer", principal="load"),
        {"POST /api/v1/keys/public": (201, {"label": "USER"})},
    ),
    "principals": (lambda c: c.principals("user"), {"GET /api/v1/principals": [{"name": "ann"}]}),
    "create_principal": (
        lambda c: c.create_principal("group", "crew", description="d"),
        {"POST /api/v1/principals": (201, {"name": "crew"})},
    ),
    "change_members": (
        lambda c: c.change_members("crew", ["load"]),
        {"POST /api/v1/principals/crew/members": {"name": "crew"}},
    ),
    "set_active": (lambda c: c.set_active("load", False), {"PATCH /api/v1/principals/load": {"is_active": False}}),
    "assign_role": (
        lambda c: c.assign_role("consumer", "load", "workspace:prod"),
        {"POST /api/v1/authorization-service/assign-roles": {}},
    ),
    "put_secret": (
        lambda c: c.put_secret("a b", "k", "v"),
        {"PUT /api/v1/secrets-service/scopes/a%20b/keys/k": {}},
    ),
    "secret": (lambda c: c.secret("s", "k"), {"GET /api/v1/secrets-service/scopes/s/keys/k": {"value": "v"}}),
    "revoke_key": (lambda c: c.revoke_key("f"), {"DELETE /api/v1/keys/f": {"fingerprint": "f"}}),
    "search": (lambda c: c.search("x", kinds=["dataset"], tags=["a", "b:c"]), {"GET /api/v1/search": {"datasets": []}}),
    "lineage": (lambda c: c.lineage("F", direction="upstream"), {"GET /api/v1/lineage": {"nodes": []}}),
    "dependents": (lambda c: c.dependents("dataset", "D"), {"GET /api/v1/datasets/D/dependents": {"dependents": []}}),
    "featureset_versions": (
        lambda c: c.featureset_versions("F"),
        {"GET /api/v1/featuresets/F/versions": {"versions": [{"version": 1}]}},
    ),
    "featureset_diff": (lambda c: c.featureset_diff("F", 1, 2), {"GET /api/v1/featuresets/F/diff": {"added": []}}),
    "deprecate": (
        lambda c: c.deprecate("F", reason="old"),
        {"POST /api/v1/featuresets/F/deprecate": {"deprecated_at": "2026-01-01T00:00:00Z"}},
    ),
    "edit_metadata": (
        lambda c: c.edit_metadata("dataset", "D", owner="ann", tags=["raw"]),
        {"PATCH /api/v1/metadata/dataset/D": {"owner": "ann"}},
    ),
    "consistency": (lambda c: c.consistency("F", hours=3), {"GET /api/v1/consistency": {"features": []}}),
    "statistics": (
        lambda c: c.statistics("F", "f", since="2026-01-01"),
        {"GET /api/v1/featuresets/F/statistics": {"columns": []}},
    ),
    "dataset_statistics": (
        lambda c: c.dataset_statistics("D", version=2, reference_since=0, reference_until=0),
        {"GET /api/v1/datasets/D/statistics": {"columns": []}},
    ),
    "replay": (lambda c: c.replay("r", knowledge="as_served"), {"POST /query-runs/r/replay": {"kind": "online"}}),
    "request_training_set": (
        lambda c: c.request_training_set("F", where="/spines/x.parquet", knowledge="as_served"),
        {"POST /api/v1/training-sets": (202, {"id": "t"})},
    ),
    "training_sets": (lambda c: c.training_sets(featureset="F"), {"GET /api/v1/training-sets": [{"id": "t"}]}),
    "training_set": (lambda c: c.training_set("t", wait_s=5), {"GET /api/v1/training-sets/t": {"state": "running"}}),
    "cancel_training_set": (
        lambda c: c.cancel_training_set("t"),
        {"POST /api/v1/training-sets/t/cancel": {"state": "cancelling"}},
    ),
    "delete_training_set": (lambda c: c.delete_training_set("t"), {"DELETE /api/v1/training-sets/t": {"id": "t"}}),
}
BODIES = {
    "query with inputs": {"featureset": "F", "entity_id": "a", "inputs": {"x": 1}},
    "query_offline": {"featureset": "F", "queries": [{"entity_id": "a", "timestamp": "1970-01-01T00:00:00Z"}]},
    "start_backfill": {"pipeline": "p", "since": "1970-01-01T00:00:00Z"},
    "request_training_set": {"featureset": "F", "spine": "/spines/x.parquet", "knowledge": "as_served"},
    "create_key": {"role": "writer", "label": "n", "rate_limit": 5},
    "register_public_key": {"public_key": "PEM", "label": "USER", "role": "writer", "principal": "load"},
    "put_secret": {"value": "v"},
    "deprecate": {"reason": "old"},
    "edit_metadata": {"owner": "ann", "tags": {"raw": ""}},
}
PARAMETERS = {
    "query": {"featureset": "F", "entity_id": "a", "timestamp": "1970-01-01T00:00:00Z", "explain": "true"},
    "plan": {"keys": "5"},
    "principals": {"kind": "user"},
    "search": {"q": "x", "kinds": "dataset", "tags": "a,b:c"},
    "lineage": {"node": "F", "direction": "upstream"},
    "featureset_diff": {"from": "1", "to": "2"},
    "consistency": {"target": "F", "hours": "3"},
    "statistics": {"feature": "f", "since": "2026-01-01T00:00:00Z"},
    "dataset_statistics": {
        "version": "2",
        "reference_since": "1970-01-01T00:00:00Z",
        "reference_until": "1970-01-01T00:00:00Z",
    },
    "replay": {"knowledge": "as_served"},
    "training_sets": {"featureset": "F", "limit": "100"},
    "training_set": {"wait_s": "5"},
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_both_clients_ask_the_same_and_understand_the_same(config, service, name):
    call, answers = OPERATIONS[name]
    service.answers.update(answers)
    with ThymeClient(config) as blocking:
        first = await asyncio.to_thread(call, blocking)
    async with AsyncThymeClient(config) as awaiting:
        second = await call(awaiting)
    one, other = service.asked
    assert (one.method, one.path, one.parameters, one.body) == (other.method, other.path, other.parameters, other.body)
    assert getattr(first, "to_dict", lambda: first)() == getattr(second, "to_dict", lambda: second)()
    assert one.headers["Authorization"] == "Bearer tk_secret"
    if name in BODIES:
        assert one.json == BODIES[name]
    if name in PARAMETERS:
        assert one.parameters == PARAMETERS[name]


def test_every_operation_says_what_it_does_and_what_it_takes(client):
    operations = {name for kind in ThymeClient.__mro__ for name, it in vars(kind).items() if isinstance(it, Operation)}
    assert len(operations) > 40
    for name in operations:
        assert inspect.getdoc(getattr(client, name)), name
        assert "self" not in inspect.signature(getattr(client, name)).parameters


# Again, or not


@pytest.mark.parametrize("first", [AWAY, (502, b"<html>"), (429, {"error": "rate_limited", "detail": "slowly"})])
def test_a_read_is_asked_again_where_the_service_cannot_now(client, service, first):
    service.answers["GET /features"] = one_after_another(first, ANSWER)
    assert len(client.query("F", "a")) == 1
    assert len(service.asked) == 2


def test_a_read_is_given_up_after_the_configured_attempts(config, service):
    service.answers["GET /features"] = AWAY
    with (
        stamina.set_testing(False),
        ThymeClient(replace(config, attempts=1)) as client,
        pytest.raises(StoreUnavailable),
    ):
        client.query("F", "a")
    assert len(service.asked) == 1


def test_what_the_caller_did_wrong_is_not_asked_again(client, service):
    with pytest.raises(NotFound):
        client.query("Nope", "a")
    assert len(service.asked) == 1


def test_what_counts_each_time_is_sent_once(client, service):
    service.answers["POST /api/v1/erase"] = AWAY
    with pytest.raises(StoreUnavailable):
        client.erase("D", [1])
    assert len(service.asked) == 1


def test_what_counts_each_time_is_sent_again_where_the_service_refused_to_take_it(client, service):
    limited = (429, {"error": "rate_limited", "detail": "slowly"}, {"Retry-After": "0"})
    service.answers["POST /api/v1/erase"] = one_after_another(limited, {"entities_erased": 1})
    assert client.erase("D", [1]) == 1


def test_a_connection_that_was_refused_may_be_tried_again_by_anything():
    tried = []

    def answer(request):
        tried.append(request)
        if len(tried) == 1:
            message = "refused"
            raise httpx2.ConnectError(message)
        return httpx2.Response(200, json={"entities_erased": 1})

    with ThymeClient(Config(), transport=httpx2.MockTransport(answer)) as client:
        assert client.erase("D", [1]) == 1


def test_an_answer_that_was_lost_leaves_open_whether_it_counted():
    tried = []

    def answer(request):
        tried.append(request)
        message = "reset"
        raise httpx2.ReadError(message)

    with ThymeClient(Config(), transport=httpx2.MockTransport(answer)) as client, pytest.raises(ServiceUnavailable):
        client.erase("D", [1])
    assert len(tried) == 1


def test_a_service_that_asks_for_more_patience_than_anybody_has_is_not_waited_for(client, service):
    service.answers["GET /features"] = (429, {"error": "rate_limited", "detail": "slowly"}, {"Retry-After": "3600"})
    with pytest.raises(RateLimited) as caught:
        client.query("F", "a")
    assert caught.value.retry_after_s == 3600
    assert len(service.asked) == 1


def test_whether_a_service_is_up_is_asked_once(client, service):
    service.answers["GET /health"] = AWAY
    assert client.is_up(service.url) is False
    assert len(service.asked) == 1


@pytest.mark.parametrize("url", ["ftp://host", "http://host:port", "host:8081"])
def test_what_is_no_url_of_a_service_is_a_mistake_of_the_configuration(home, url):
    with ThymeClient(Config(query_url=url)) as client, pytest.raises(ConfigError):
        client.query("F", "a")


# Files


@pytest.mark.parametrize("first", [AWAY, (200, b"half", {"Content-Length": "999"})], ids=["away", "broken off"])
async def test_both_clients_write_rows_to_a_file_whole_after_an_attempt_that_failed(config, service, home, first):
    made = {"state": "complete", "featureset": "F", "manifest": {"files": []}}
    service.answers["GET /api/v1/training-sets/t"] = made
    for kind in (ThymeClient, AsyncThymeClient):
        service.answers["GET /api/v1/training-sets/t/rows"] = one_after_another(first, (200, b"whole"))
        client = kind(config)
        if kind is ThymeClient:
            assert await asyncio.to_thread(client.download_training_set, "t", home / "rows.arrows") == made
            await asyncio.to_thread(client.close)
        else:
            assert await client.download_training_set("t", str(home / "rows.arrows")) == made
            await client.close()
        assert [(path.name, path.read_bytes()) for path in home.glob("*")] == [("rows.arrows", b"whole")]
        (home / "rows.arrows").unlink()


@pytest.mark.parametrize(
    ("name", "message"),
    [("rows.csv", r"none of the endings \.parquet, \.arrows"), ("a/rows.arrows", "cannot be written")],
)
def test_a_file_that_cannot_be_written_is_a_mistake_of_the_caller(client, service, home, name, message):
    service.answers["GET /api/v1/training-sets/t"] = {"state": "complete", "manifest": {"files": []}}
    service.answers["GET /api/v1/training-sets/t/rows"] = (200, b"rows")
    with pytest.raises(InvalidRequest, match=message):
        client.download_training_set("t", home / name)


# Tables


def arrow_stream(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


ARROW_TYPE = {"Content-Type": "application/vnd.apache.arrow.stream", "X-Query-Run-Id": "run-1"}


def test_a_batch_is_asked_for_in_arrow_and_keeps_its_types(client, service):
    table = pa.table({"entity_id": ["a"], "n": pa.array([None], pa.int64()), "l": [["x"]]})
    service.answers["POST /features/batch"] = (200, arrow_stream(table), ARROW_TYPE)
    result = client.query_batch("F", ["a"])
    assert service.asked[0].headers["Accept"].startswith("application/vnd.apache.arrow.stream, ")
    assert result.to_arrow().schema == table.schema
    assert result.to_polars().schema["n"] == pl.Int64
    assert result.to_dict() == [{"entity_id": "a", "n": None, "l": ["x"]}]
    assert result.query_run_id == "run-1"


def test_a_read_by_its_class_has_the_declared_types_whatever_the_values_are(client, service):
    from datetime import datetime
    from decimal import Decimal

    from featurelib import dataset, feature, featureset, field

    @dataset(index=True)
    class Sale:
        shop: str = field(key=True)
        price: Decimal = field(scale=2)
        at: datetime = field(timestamp=True)

    @featureset
    class Shop:
        shop: str = feature()
        total: float = feature()
        days: list[datetime] = feature()

    values = {"shop": "s", "total": 3, "days": ["2026-01-01T00:00:00Z"]}
    service.answers["GET /features"] = {**ANSWER, "entity_id": "s", "features": values}
    result = client.query(Shop, "s")
    schema = result.to_polars().schema
    assert (schema["total"], schema["days"]) == (pl.Float64, pl.List(pl.Datetime("us", "UTC")))
    assert result.to_dict() == [{"entity_id": "s", **values}]
    assert client.query("Shop", "s").to_polars().schema["total"] == pl.Int64
    service.answers["GET /features"] = {
        **ANSWER,
        "features": {"shop": "s", "price": "1.50", "at": "2026-01-01T00:00:00Z"},
    }
    table = client.lookup(Sale, "s").to_arrow()
    assert table.schema.field("at").type == pa.timestamp("us", "UTC")
    assert table["price"].to_pylist() == [Decimal("1.50")]


def test_without_arrow_here_a_batch_is_asked_for_in_json(client, service, monkeypatch):
    monkeypatch.setattr("featurelib.client.reads.has_arrow", lambda: False)
    service.answers["POST /features/batch"] = {"features": ["entity_id", "n"], "values": [["a", 1]]}
    assert client.query_batch("F", ["a"])["n"] == [1]
    assert service.asked[0].headers["Accept"] == "application/json"


def test_half_an_arrow_stream_is_no_answer(client, service):
    whole = arrow_stream(pa.table({"entity_id": ["a"], "n": [1]}))
    service.answers["POST /features/batch"] = (200, whole[:-40], ARROW_TYPE)
    with pytest.raises(ServiceUnavailable, match="whole Arrow stream"):
        client.query_batch("F", ["a"])


def answered_in_order(service):
    """Offline answers that say which row they are of."""

    def answer():
        asked = service.asked[-1].json["queries"]
        return {"results": [{**each, "features": {"x": each["entity_id"]}} for each in asked]}

    service.answers["POST /features/offline"] = answer


@pytest.mark.parametrize("form", ["dicts", "polars", "pandas", "arrow"])
def test_rows_of_any_form_are_asked_in_parts_and_come_back_in_order(client, service, form):
    answered_in_order(service)
    frame = pl.DataFrame({"user": [3, 1, 2], "at": ["2026-01-01 00:00:00", "2026-01-02", "2026-01-03T10:30"]})
    forms = {"dicts": frame.to_dicts, "polars": lambda: frame, "pandas": frame.to_pandas, "arrow": frame.to_arrow}
    result = client.query_offline("F", forms[form](), entity_column="user", timestamp_column="at", batch_size=2)
    assert [len(asked.json["queries"]) for asked in service.asked] == [2, 1]
    assert result.to_dict() == [
        {"entity_id": "3", "timestamp": "2026-01-01T00:00:00Z", "x": "3"},
        {"entity_id": "1", "timestamp": "2026-01-02T00:00:00Z", "x": "1"},
        {"entity_id": "2", "timestamp": "2026-01-03T10:30:00Z", "x": "2"},
    ]


def test_a_training_set_may_take_longer_than_a_read():
    timeouts = {}

    def answer(request):
        timeouts[request.url.path] = request.extensions["timeout"]["read"]
        return httpx2.Response(200, json={"results": [], "features": [], "values": []})

    config = Config(read_timeout_s=7.0)
    with ThymeClient(config, transport=httpx2.MockTransport(answer)) as client:
        client.query_batch("F", ["a"])
        client.query_offline("F", [{"entity_id": 1, "timestamp": 0}])
    assert timeouts == {"/features/batch": 7.0, "/features/offline": 600.0}


def test_columns_named_like_requested_features_are_their_values(client, service):
    answered_in_order(service)
    features = [{"name": "price", "dtype": "float", "request": True}, {"name": "total", "dtype": "float"}]
    service.answers["GET /api/v1/featuresets"] = [{"name": "F", "spec": {"features": features}}]
    rows = [{"entity_id": 1, "timestamp": 0, "price": 2.5, "total": 9.0}, {"entity_id": 2, "timestamp": 0}]
    client.query_offline("F", rows)
    assert [each.get("inputs") for each in service.asked[-1].json["queries"]] == [{"price": 2.5}, None]


@pytest.mark.parametrize("arrow", [True, False])
def test_labels_of_a_file_stand_between_instants_and_features(client, service, tmp_path, arrow):
    rows = pl.DataFrame({"bought": [True, None], "entity_id": ["007", "8"], "timestamp": [0, 60], "split": ["a", "b"]})
    rows.write_csv(tmp_path / "spine.csv")
    instants = ["1970-01-01T00:00:00Z", "1970-01-01T00:01:00Z"]
    answer = pa.table({"entity_id": ["007", "8"], "timestamp": instants, "x": [1, 2]})
    results = [
        {"entity_id": a, "timestamp": b, "features": {"x": c}}
        for a, b, c in zip(*answer.to_pydict().values(), strict=True)
    ]
    tabular, plain = (200, arrow_stream(answer), ARROW_TYPE), {"results": results}
    service.answers["POST /features/offline"] = tabular if arrow else plain
    service.answers["GET /api/v1/featuresets"] = []
    result = client.query_offline("F", tmp_path / "spine.csv", labels=True)
    assert [each["entity_id"] for each in service.asked[-1].json["queries"]] == ["007", "8"]
    assert result.columns == ["entity_id", "timestamp", "bought", "split", "x"]
    assert [(row["bought"], row["split"], row["x"]) for row in result] == [(True, "a", 1), (None, "b", 2)]
    with pytest.raises(InvalidRequest, match="'x' is a column of the result already"):
        client.query_offline("F", rows.with_columns(x=1), labels=True)


@pytest.mark.parametrize(
    ("rows", "error", "text"),
    [
        ([{"entity_id": 1}], InvalidRequest, "row 0 has no 'timestamp'"),
        (
            [{"entity_id": 1, "timestamp": 0}, {"entity_id": 1, "timestamp": "soon"}],
            InvalidTimestamp,
            "row 1, timestamp",
        ),
        ("rows.parquet", InvalidRequest, "there is nothing at rows.parquet"),
        (5, InvalidRequest, "not int"),
        ([1], InvalidRequest, "row 0 is int"),
    ],
)
def test_a_row_that_cannot_be_asked_fails_before_any_call(client, service, rows, error, text):
    with pytest.raises(error, match=text):
        client.query_offline("F", rows)
    assert service.asked == []


def test_records_of_a_frame_are_logged_with_nulls_for_what_is_missing(client, service):
    service.answers["POST /api/v1/log"] = {"events_sent": 2}
    frame = pl.DataFrame({"shop": ["a", "b"], "n": [1.5, None]})
    assert client.log("Sale", frame.to_pandas()) == 2
    assert service.asked[0].json["events"] == [{"shop": "a", "n": 1.5}, {"shop": "b", "n": None}]


def test_query_runs_are_paged_until_there_are_no_more(client, service):
    service.answers["GET /query-runs"] = one_after_another(
        {"runs": [{"id": "1"}], "next_cursor": "c"}, {"runs": [{"id": "2"}], "next_cursor": None}
    )
    assert client.query_runs(limit=5, kind="online", error=False, key_fingerprint="f") == [{"id": "1"}, {"id": "2"}]
    first, second = (asked.parameters for asked in service.asked)
    assert first == {"limit": "5", "kind": "online", "error": "false", "key": "f"}
    assert second == {**first, "limit": "4", "cursor": "c"}


# The feed


def event(number):
    return f'id: e{number}\nevent: commit\ndata: {{"id": "e{number}", "n": {number}}}\n\n'.encode()


STREAM = "GET /api/v1/events/stream"


def test_events_are_followed_over_a_break_each_once(client, service):
    service.answers[STREAM] = one_after_another(
        (200, b"retry: 0\n\n: still here\n\n" + event(1) + event(2) + b"id: e3\ndata: {half"), AWAY, (200, event(3))
    )
    feed = client.follow_events(severity="warn")
    assert [next(feed)["n"] for _ in range(3)] == [1, 2, 3]
    feed.close()
    assert service.asked[0].parameters == {"severity": "warn"}
    assert [asked.headers.get("Last-Event-ID") for asked in service.asked] == [None, "e2", "e2"]


async def test_events_are_followed_between_awaits(config, service):
    service.answers[STREAM] = one_after_another((200, b"retry: 0\n\n" + event(1)), (200, event(2)))
    async with AsyncThymeClient(config) as client:
        feed = client.follow_events(after="e0")
        assert [(await anext(feed))["n"] for _ in range(2)] == [1, 2]
        await feed.aclose()
    assert [asked.headers.get("Last-Event-ID") for asked in service.asked] == ["e0", "e1"]


def test_a_feed_that_stays_away_is_given_up(client, service):
    service.answers[STREAM] = one_after_another((200, b"retry: 0\n\n"), AWAY)
    with pytest.raises(StoreUnavailable):
        next(client.follow_events())


def test_a_feed_that_is_refused_is_not_asked_for_again(client, service):
    service.answers[STREAM] = (404, {"error": "not_found", "detail": "no event 'x'"})
    with pytest.raises(NotFound):
        next(client.follow_events(after="x"))
    assert len(service.asked) == 1


# Configuration


def test_timeouts_and_attempts_are_settings_like_the_others(home, monkeypatch):
    (home / ".thyme.yaml").write_text("connect_timeout_s: 1.5\nattempts: 7\n")
    monkeypatch.setenv("THYME_READ_TIMEOUT_S", "2")
    found = Config.load()
    assert (found.connect_timeout_s, found.read_timeout_s, found.attempts) == (1.5, 2.0, 7)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan"])
def test_a_timeout_that_is_none_is_refused_by_name(home, monkeypatch, text):
    monkeypatch.setenv("THYME_READ_TIMEOUT_S", text)
    with pytest.raises(ConfigError, match="read_timeout_s"):
        Config.load()


def test_kept_credentials_are_the_owners_alone_and_are_found(home):
    save("tk_1", "http://a:1/api/v1/commit", "http://q:2")
    assert credentials_path().stat().st_mode & 0o777 == 0o600
    found = Config.load()
    assert (found.api_key, found.api_base, found.query_url) == ("tk_1", "http://a:1", "http://q:2")
    assert [forget_credentials(), forget_credentials()] == [True, False]
