"""The client against a real HTTP server, and where its configuration comes from."""

import json
from datetime import UTC, datetime

import pytest

from featurelib.client import Config, ThymeClient
from featurelib.compile import compile_module
from featurelib.definitions import Commit
from featurelib.errors import (
    BreakingChange,
    ConfigError,
    DefinitionError,
    InvalidRequest,
    InvalidTimestamp,
    NotFound,
    ServiceUnavailable,
    StoreUnavailable,
    ThymeError,
    Unauthenticated,
)
from featurelib.result import ThymeResult
from tests.support.modules import VALID, write_module

ANSWER = {
    "entity_type": "ShopFeatures",
    "entity_id": "s1",
    "features": {"shop": "s1", "total_1d": 2.5, "recent": ["a", "b"]},
    "mode": "online",
    "metadata": {"timestamp": "2026-01-01T00:00:00Z", "clock": "wall"},
}
RECEIPT = {
    "commit_id": "abc",
    "no_op": False,
    "datasets": 2,
    "pipelines": 1,
    "featuresets": 1,
    "sources": 0,
    "jobs_created": 1,
    "topics_created": ["Sale@1"],
    "changes": {"added": ["dataset:Sale@1"], "updated": [], "unchanged": []},
}


@pytest.fixture
def client(service, home):
    config = Config(
        api_url=f"{service.url}/api/v1/commit", api_base=service.url, query_url=service.url, api_key="tk_secret"
    )
    with ThymeClient(config) as made:
        yield made


# Configuration


def test_without_anything_the_local_services_are_meant(home):
    assert Config.load() == Config()
    assert Config().auth_headers() == {}


def test_the_credentials_file_of_a_first_start_is_found(home):
    (home / ".thyme").mkdir()
    (home / ".thyme" / "credentials").write_text(
        json.dumps({"api_key": "tk_1", "api_base": "http://a:1", "query_url": "http://q:2"})
    )
    found = Config.load()
    assert (found.api_key, found.api_base, found.query_url) == ("tk_1", "http://a:1", "http://q:2")
    assert found.api_url == "http://a:1/api/v1/commit"
    assert found.auth_headers() == {"Authorization": "Bearer tk_1"}


def test_a_file_beats_credentials_and_the_environment_beats_the_file(home, monkeypatch):
    (home / ".thyme").mkdir()
    (home / ".thyme" / "credentials").write_text(json.dumps({"api_key": "tk_1", "query_url": "http://one"}))
    (home / ".thyme.yaml").write_text("api_key: tk_2\nquery_url: http://two  # a comment\nfrontend_url: 'http://ui'\n")
    monkeypatch.setenv("THYME_QUERY_URL", "http://three")
    found = Config.load()
    assert (found.api_key, found.query_url) == ("tk_2", "http://three")
    assert found.query_run_url("r1") == "http://ui/query-runs/r1"


def test_a_nested_file_is_read(home):
    path = home / "given.yaml"
    path.write_text("---\ndefinition_service:\n  url: http://d:8080\nquery_server:\n  url: http://q:8081\napi_key: k\n")
    found = Config.load(path)
    assert (found.api_base, found.query_url, found.api_key) == ("http://d:8080", "http://q:8081", "k")
    assert found.api_url == "http://d:8080/api/v1/commit"


@pytest.mark.parametrize("text", ["apikey: x\n", "- api_key\n", "api_key\n", "  api_key: x\n"])
def test_a_file_that_says_anything_else_is_an_error_that_names_it(home, text):
    path = home / "given.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"given\.yaml"):
        Config.load(path)


def test_a_file_that_is_named_and_missing_is_an_error(home):
    with pytest.raises(ConfigError, match="absent"):
        Config.load("absent.yaml")


def test_a_key_is_never_shown(home):
    assert "tk_secret" not in repr(Config(api_key="tk_secret"))


# Calls


def test_a_commit_is_posted_as_json_and_answered_with_a_receipt(client, service, tmp_path):
    service.answers["POST /api/v1/commit"] = RECEIPT
    commit = compile_module(write_module(tmp_path, VALID))
    receipt = client.commit(commit)
    (asked,) = service.asked
    assert receipt.changes.added == ("dataset:Sale@1",)
    assert asked.headers["Content-Type"] == "application/json"
    assert asked.headers["Authorization"] == "Bearer tk_secret"
    assert Commit.model_validate_json(asked.body) == commit


def test_a_query_is_one_row_with_its_metadata_and_run(client, service):
    service.answers["GET /features"] = (200, ANSWER, {"X-Query-Run-Id": "run-1"})
    result = client.query("ShopFeatures", "s1")
    assert service.asked[0].parameters == {"featureset": "ShopFeatures", "entity_id": "s1"}
    assert result.to_dict() == [{"entity_id": "s1", "shop": "s1", "total_1d": 2.5, "recent": ["a", "b"]}]
    assert (result.query_run_id, result.metadata["mode"], result.metadata["clock"]) == ("run-1", "online", "wall")


def test_a_query_with_inputs_is_posted_with_instants_as_text(client, service):
    service.answers["POST /features"] = ANSWER
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    client.query("ShopFeatures", 7, {"since": moment, "ids": [1, 2]}, timestamp=moment)
    assert service.asked[0].json == {
        "featureset": "ShopFeatures",
        "entity_id": "7",
        "inputs": {"since": "2026-01-01T00:00:00Z", "ids": [1, 2]},
        "timestamp": "2026-01-01T00:00:00Z",
    }


def test_a_wrong_timestamp_fails_before_the_call(client, service):
    with pytest.raises(InvalidTimestamp):
        client.query("ShopFeatures", "s1", timestamp="yesterday")
    assert service.asked == []


def test_a_batch_is_cut_into_calls_and_put_together_in_order(client, service):
    service.answers["POST /features/batch"] = {"features": ["entity_id", "x"], "values": [["a", 1]]}
    result = client.query_batch("F", [str(number) for number in range(4_001)])
    assert [len(asked.json["entity_ids"]) for asked in service.asked] == [2_000, 2_000, 1]
    assert len(result) == 3
    assert client.query_batch("F", []).to_dict() == []


def test_a_lookup_of_an_unknown_key_is_no_row(client, service):
    service.answers["GET /features"] = {**ANSWER, "features": None, "mode": "point_in_time"}
    result = client.lookup("ShopStats", "s9", timestamp="2026-01-01")
    assert service.asked[0].parameters == {
        "entity_type": "ShopStats",
        "entity_id": "s9",
        "timestamp": "2026-01-01T00:00:00Z",
    }
    assert len(result) == 0


def test_records_are_logged_as_mappings_or_rows(client, service, tmp_path):
    from featurelib import dataset, field

    @dataset()
    class Sale:
        shop: str = field(key=True)
        at: datetime = field(timestamp=True)

    service.answers["POST /api/v1/log"] = {"events_sent": 2}
    moment = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert client.log(Sale, [{"shop": "a", "at": moment}, Sale(shop="b", at=moment)]) == 2
    assert service.asked[0].json == {
        "dataset": "Sale",
        "events": [{"shop": "a", "at": "2026-01-01T12:00:00Z"}, {"shop": "b", "at": "2026-01-01T12:00:00Z"}],
    }


def test_inspect_picks_a_featureset_of_the_status(client, service):
    service.answers["GET /api/v1/status"] = {"featuresets": [{"name": "A", "version": 3}]}
    assert client.inspect("A") == {"name": "A", "version": 3}
    with pytest.raises(ValueError, match="'B'"):
        client.inspect("B")


def test_filters_that_are_left_out_are_not_sent(client, service):
    service.answers["GET /api/v1/events"] = []
    client.events(limit=5, severity="warn")
    assert service.asked[0].parameters == {"limit": "5", "severity": "warn"}


def test_query_runs_are_listed_fetched_and_replayed(client, service):
    service.answers["GET /query-runs"] = {"runs": [{"id": "r"}]}
    service.answers["GET /query-runs/r"] = {"id": "r"}
    service.answers["POST /query-runs/r/replay"] = {"kind": "online", "result": {}}
    assert client.query_runs(featureset="F") == [{"id": "r"}]
    assert client.query_run("r") == {"id": "r"}
    assert client.replay("r")["kind"] == "online"


# Errors


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, {"error": "unauthenticated", "detail": "no key"}, Unauthenticated),
        (404, {"error": "not_found", "detail": "no such featureset"}, NotFound),
        (400, {"error": "invalid_request", "detail": "wrong"}, InvalidRequest),
        (400, {"error": "invalid_timestamp", "detail": "timestamp: 'x'"}, InvalidTimestamp),
        (503, {"error": "store_unavailable", "detail": "redis"}, StoreUnavailable),
        (500, {"error": "user_code_error", "detail": "features.py:3 in f: boom"}, ThymeError),
        (418, {"error": "teapot", "detail": "short"}, InvalidRequest),
        (502, b"<html>bad gateway</html>", StoreUnavailable),
        (500, b"", ThymeError),
        (400, {"error": "invalid_definition", "message": "no", "details": ["what?"]}, InvalidRequest),
    ],
)
def test_an_error_answer_becomes_the_error_of_its_code(client, service, status, body, kind):
    service.answers["GET /features"] = (status, body)
    with pytest.raises(kind) as caught:
        client.query("F", "e")
    assert type(caught.value) is kind
    assert str(caught.value)


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b"5", b'"text"', b"\xff", b"{}"])
def test_an_answer_of_something_else_is_named_as_such(client, service, body):
    for path in ("GET /features", "POST /features/batch", "POST /api/v1/commit", "GET /query-runs", "POST /api/v1/log"):
        service.answers[path] = (200, body)
    calls = (
        lambda: client.query("F", "e"),
        lambda: client.query_batch("F", ["e"]),
        lambda: client.commit(Commit()),
        client.query_runs,
        lambda: client.log("D", {"a": 1}),
    )
    for call in calls:
        with pytest.raises(ServiceUnavailable, match="not as a service of the platform does"):
            call()


def test_the_correlation_id_is_a_note_of_the_error(client, service):
    service.answers["GET /features"] = (404, {"error": "not_found", "detail": "no", "correlation_id": "c-1"})
    with pytest.raises(NotFound) as caught:
        client.query("F", "e")
    assert caught.value.__notes__ == ["correlation id: c-1"]


@pytest.mark.parametrize(
    ("code", "kind"), [("invalid_definition", DefinitionError), ("breaking_change", BreakingChange)]
)
def test_a_refused_commit_lists_its_problems(client, service, code, kind):
    details = [{"code": "a", "subject": "X", "message": "m", "hint": "h", "file": "f.py", "line": 3}]
    service.answers["POST /api/v1/commit"] = (400, {"error": code, "detail": "1 problem", "details": details})
    with pytest.raises(kind) as caught:
        client.commit(Commit())
    assert type(caught.value) is kind
    assert [(problem.code, problem.line) for problem in caught.value.problems] == [("a", 3)]


def test_a_service_that_is_not_there_is_named(home, unused_url):
    with ThymeClient(Config(query_url=unused_url)) as client, pytest.raises(ServiceUnavailable, match=unused_url):
        client.query("F", "e")


@pytest.fixture
def unused_url():
    import socket

    with socket.socket() as taken:
        # Bound and not listening: connections are refused and nobody else gets the port.
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


# Results


def test_a_result_becomes_any_frame():
    result = ThymeResult(["id", "n"], [["a", 1], ["b", None]], {"mode": "online"}, "r")
    assert result["n"] == [1, None]
    assert next(iter(result)) == {"id": "a", "n": 1}
    assert result.to_polars().rows() == [("a", 1), ("b", None)]
    assert result.to_arrow().to_pylist() == result.to_dict()
    assert repr(result) == "<ThymeResult 2 rows: id, n>"


def test_an_unknown_column_of_a_result_names_those_there_are():
    with pytest.raises(KeyError, match="id, n"):
        ThymeResult(["id", "n"], [])["m"]
