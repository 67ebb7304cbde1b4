"""``thyme jobs pause|resume|restart``, ``thyme backfill`` and ``thyme logs --follow`` against a stand-in service."""

from __future__ import annotations

import json

import pytest

JOB = {"name": "by_shop_job", "version": 1, "state": "running", "paused": False, "partition_count": 2}
BACKFILL = {
    "id": "5b0f4a53-9a68-4d36-8a2f-4e1f2f6b6e11",
    "pipeline": "by_shop@1",
    "state": "requested",
    "detail": "",
    "rows": 0,
    "rows_expected": None,
    "created_at": "2026-03-01T12:00:00Z",
}
ONE = f"/api/v1/backfills/{BACKFILL['id']}"
EVENT = {"created_at": "2026-03-01T12:00:00Z", "severity": "info", "event_type": "commit", "subject": "abc"}


@pytest.mark.parametrize(
    ("order", "said"),
    [("pause", "shall stand still"), ("resume", "goes on from where it stands"), ("restart", "shall have new workers")],
)
def test_orders_are_sent_and_said(run, service, order, said):
    service.answers[f"POST /api/v1/jobs/by_shop@1/{order}"] = JOB
    result = run("jobs", order, "by_shop@1")
    assert (result.exit_code, result.stdout.startswith(f"by_shop_job {said}")) == (0, True)
    assert json.loads(run("jobs", order, "by_shop@1", "--json").stdout) == JOB


def test_an_order_that_is_refused_says_why_and_exits_1(run, service):
    body = {"error": "conflict", "detail": "the job is paused", "message": "", "details": None, "correlation_id": "c1"}
    service.answers["POST /api/v1/jobs/by_shop/restart"] = (409, body)
    result = run("jobs", "restart", "by_shop")
    assert result.exit_code == 1
    assert "the job is paused" in result.stderr
    assert "c1" in result.stderr


def states(*of, **last):
    """What the service answers when it is asked for a backfill again and again."""
    left = [{**BACKFILL, "state": state} for state in of]
    left[-1] |= last
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_a_backfill_is_followed_to_its_end(run, service, monkeypatch):
    monkeypatch.setattr("featurelib.cli.backfill._POLL_S", 0.0)
    service.answers["POST /api/v1/backfills"] = (202, BACKFILL)
    service.answers[f"GET {ONE}"] = states("requested", "running", "switching", "complete", detail="9 rows")
    result = run("backfill", "start", "by_shop", "--since", "2026-01-01", "--follow")
    assert service.asked[0].json == {"pipeline": "by_shop", "since": "2026-01-01T00:00:00Z"}
    assert (result.exit_code, result.stdout) == (
        0,
        f"backfill {BACKFILL['id']} of by_shop@1 is complete: 9 rows\n",
    )
    assert len(service.asked) == 5


def test_one_that_fails_is_said_and_exits_1(run, service, monkeypatch):
    monkeypatch.setattr("featurelib.cli.backfill._POLL_S", 0.0)
    service.answers[f"GET {ONE}"] = states("running", "failed", detail="no room")
    result = run("backfill", "follow", BACKFILL["id"], "--json")
    assert (result.exit_code, json.loads(result.stdout)["detail"]) == (1, "no room")


def test_backfills_are_listed_and_cancelled(run, service):
    service.answers["GET /api/v1/backfills"] = [{**BACKFILL, "rows": 12, "rows_expected": 1_200}]
    out = run("backfill", "list", "by_shop").stdout
    assert service.asked[0].parameters == {"pipeline": "by_shop", "limit": "20"}
    assert all(cell in out for cell in (BACKFILL["id"], "by_shop@1", "requested", "12", "1,200"))
    service.answers[f"POST {ONE}/cancel"] = {**BACKFILL, "state": "cancelling"}
    assert "is cancelling" in run("backfill", "cancel", BACKFILL["id"]).stdout


def test_a_backfill_is_priced_rolled_back_and_dropped(run, service):
    price = {
        "pipeline": "by_shop@1",
        "records": 1_200_000,
        "archive_bytes": 31_000_000,
        "rows": 1_000_000,
        "keys": 12_000,
        "state_bytes": 58_000_000,
        "seconds": 21.5,
        "rough": True,
    }
    service.answers["POST /api/v1/backfills"] = price
    out = run("backfill", "start", "by_shop", "--to", "2026-01-01", "--dry-run").stdout
    assert service.asked[0].parameters == {"dry_run": "true"}
    assert service.asked[0].json == {"pipeline": "by_shop", "until": "2026-01-01T00:00:00Z"}
    assert out == (
        "a backfill of by_shop@1 would read 1,200,000 records (31.0 MB of the archive), fold roughly 1,000,000 rows"
        " into 12,000 keys of 58.0 MB, and take roughly 22 s\n"
    )
    assert json.loads(run("backfill", "start", "by_shop", "--dry-run", "--json").stdout) == price
    service.answers[f"POST {ONE}/rollback"] = {**BACKFILL, "state": "rolling_back"}
    assert "is rolling_back" in run("backfill", "rollback", BACKFILL["id"]).stdout
    service.answers[f"POST {ONE}/drop"] = {**BACKFILL, "state": "complete"}
    assert "is complete" in run("backfill", "drop", BACKFILL["id"]).stdout


def test_logs_are_followed_from_the_newest_one_shown(run, service):
    first, second = {**EVENT, "id": "1", "message": "one"}, {**EVENT, "id": "2", "message": "two"}
    third = {**EVENT, "id": "3", "message": "three"}
    service.answers["GET /api/v1/events"] = [second, first]
    body = f"retry: 1\n\nid: 3\ndata: {json.dumps(third)}\n\n".encode()
    sent = iter([(200, body, {"Content-Type": "text/event-stream"})])
    gone = (403, {"error": "forbidden", "detail": "gone", "message": "", "details": None, "correlation_id": "c"})
    service.answers["GET /api/v1/events/stream"] = lambda: next(sent, gone)
    result = run("logs", "--follow", "-s", "info")
    assert [line.split()[-1] for line in result.stdout.splitlines()] == ["one", "two", "three"]
    streams = [asked for asked in service.asked if asked.path.endswith("stream")]
    assert [asked.headers["Last-Event-ID"] for asked in streams] == ["2", "3"]
    assert (result.exit_code, streams[0].parameters) == (1, {"severity": "info"})
