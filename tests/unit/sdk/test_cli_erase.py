"""``thyme erase``: what it sends, and what it says while it waits."""

import json

import pytest
from typer.testing import CliRunner

from featurelib.cli import app

ACCEPTED = {"entities_erased": 2, "erasure_id": "e-1", "state": "accepted"}


@pytest.fixture
def run(home, service, monkeypatch):
    monkeypatch.setenv("THYME_API_BASE", service.url)
    monkeypatch.setattr("featurelib.cli.erase._POLL_S", 0)
    service.answers["POST /api/v1/erase"] = ACCEPTED
    return lambda *arguments: CliRunner().invoke(app, ["erase", *arguments])


def test_every_entity_is_sent_in_one_request(run, service):
    result = run("shop:Sale", "-e", "s1", "-e", "s2", "--block")
    assert (result.exit_code, result.stdout) == (0, "2 entities erased; erasure e-1 is accepted\n")
    assert json.loads(service.asked[0].body) == {"dataset": "Sale", "entity_ids": ["s1", "s2"], "block": True}


def test_it_waits_until_nothing_is_left_and_says_what_was_removed(run, service):
    service.answers["GET /api/v1/erasures/e-1"] = {"state": "complete", "progress": {"archive_rows": 3, "rebuilt": []}}
    assert run("Sale", "-e", "s1", "--wait").stdout.splitlines()[1:] == ["complete: 3 archive rows"]


def test_it_goes_on_waiting_while_the_service_is_away(run, service):
    away = (503, {"error": "store_unavailable", "detail": "the registry does not answer"})
    answers = iter([away, away, {"state": "complete", "progress": {}}])
    service.answers["GET /api/v1/erasures/e-1"] = lambda: next(answers)
    result = run("Sale", "-e", "s1", "--wait")
    assert (result.exit_code, result.stdout.splitlines()[1:]) == (0, ["complete"])


def test_what_waiting_cannot_cure_ends_it(run, service):
    service.answers["GET /api/v1/erasures/e-1"] = (403, {"error": "forbidden", "detail": "no"})
    assert run("Sale", "-e", "s1", "--wait").exit_code == 1


def test_without_an_entity_nothing_is_sent(run, service):
    assert run("Sale").exit_code == 2
    assert service.asked == []


def test_as_json_it_gives_the_last_receipt_and_nothing_else(run, service):
    done = {"state": "complete", "progress": {"archive_rows": 3}}
    service.answers["GET /api/v1/erasures/e-1"] = done
    assert json.loads(run("Sale", "-e", "s1", "--json").stdout) == ACCEPTED
    assert json.loads(run("Sale", "-e", "s1", "--json", "--wait").stdout) == done
