"""``thyme keys``: make, list and revoke."""

import json

import pytest
from typer.testing import CliRunner

from featurelib.cli import app

KEY = {
    "fingerprint": "0a1b2c3d",
    "role": "reader",
    "label": "dashboard",
    "state": "active",
    "rate_limit": 1_500,
    "created_at": "2026-03-01T12:00:00Z",
    "expires_at": "2031-01-01T00:00:00Z",
    "revoked_at": None,
}
MADE = KEY | {"key": "tk_shown_once"}


@pytest.fixture
def run(home, service, monkeypatch):
    monkeypatch.setenv("THYME_API_BASE", service.url)
    monkeypatch.setenv("THYME_API_URL", f"{service.url}/api/v1/commit")
    monkeypatch.setenv("COLUMNS", "200")
    service.answers |= {
        "GET /api/v1/keys": [KEY],
        "POST /api/v1/keys": (201, MADE),
        "DELETE /api/v1/keys/0a1b2c3d": KEY | {"state": "revoked"},
    }
    return lambda *arguments: CliRunner().invoke(app, ["keys", *arguments])


def test_a_made_key_stands_alone_on_stdout(run, service):
    options = ("--label", "dashboard", "--expires-at", "2031-01-01", "--rate-limit", "1500")
    result = run("create", "reader", *options)
    assert (result.exit_code, result.stdout) == (0, "tk_shown_once\n")
    assert "reader key 0a1b2c3d; it is not shown again" in result.stderr
    (asked,) = service.asked
    wanted = {"role": "reader", "label": "dashboard", "expires_at": "2031-01-01T00:00:00Z", "rate_limit": 1_500}
    assert asked.json == wanted


def test_a_key_needs_only_a_role(run, service):
    assert run("create", "admin").exit_code == 0
    assert service.asked[0].json == {"role": "admin"}


def test_keys_are_listed_as_a_table_and_as_json(run):
    table = run("list")
    assert table.exit_code == 0
    for cell in ("0a1b2c3d", "reader", "dashboard", "active", "1,500", "2031-01-01T00:00:00Z"):
        assert cell in table.stdout
    assert json.loads(run("list", "--json").stdout) == [KEY]
    assert json.loads(run("create", "reader", "--json").stdout) == MADE


def test_a_revoked_key_is_named(run):
    result = run("revoke", "0a1b2c3d")
    assert (result.exit_code, result.stdout) == (0, "reader key 0a1b2c3d is revoked\n")


def test_the_last_admin_key_stays_and_the_reason_is_said(run, service):
    refusal = {"error": "conflict", "detail": "0a1b2c3d is the last valid admin key; create another one first"}
    service.answers["DELETE /api/v1/keys/0a1b2c3d"] = (409, refusal)
    result = run("revoke", "0a1b2c3d")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "last valid admin key" in result.stderr


@pytest.mark.parametrize(
    "arguments", [("create", "root"), ("create",), ("create", "reader", "--rate-limit", "0"), ("revoke",)]
)
def test_a_wrong_option_is_refused_before_anything_is_asked(run, service, arguments):
    assert run(*arguments).exit_code == 2
    assert service.asked == []
