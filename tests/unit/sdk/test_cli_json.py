"""`--json` everywhere: every command has it, and what it prints is JSON and nothing else."""

from __future__ import annotations

import json

import click
import pytest
from typer.main import get_command

from featurelib.cli import app

SCOPES = "/api/v1/secrets-service/scopes"
ROLES = "/api/v1/authorization-service"
GROUP = {"id": "g1", "kind": "group", "name": "crew", "members": ["load"], "is_active": True, "roles": []}
KEY = {"fingerprint": "0a1b2c3d", "role": "reader", "label": "ci", "state": "revoked"}
ANSWERS = {
    "DELETE /api/v1/keys/0a1b2c3d": KEY,
    "GET /api/v1/principals": [GROUP],
    f"POST {ROLES}/assign-roles": {},
    f"POST {ROLES}/unassign-roles": {},
    f"PUT {SCOPES}/payments/keys/password": {},
    f"GET {SCOPES}/payments/keys/password": {"value": "s3cret"},
    f"DELETE {SCOPES}/payments/keys/password": {},
}
ROLE = ("consumer", "crew", "--on", "workspace:prod")
HELD = {"principal": "crew", "role": "consumer", "on": "workspace:prod"}
SECRET = {"scope": "payments", "key": "password"}
DONE = [
    (("keys", "revoke", "0a1b2c3d"), KEY),
    (("principals", "assign", *ROLE), HELD | {"assigned": True}),
    (("principals", "unassign", *ROLE), HELD | {"assigned": False}),
    (("secrets", "get", "payments", "password"), SECRET | {"value": "s3cret"}),
    (("secrets", "put", "payments", "password"), SECRET),
    (("secrets", "delete", "payments", "password"), SECRET),
]


def _commands(group: click.Group, path: tuple[str, ...] = ()):
    for name, command in group.commands.items():
        here = (*path, name)
        if hasattr(command, "commands"):
            yield from _commands(command, here)
        else:
            yield " ".join(here), command


COMMANDS = dict(_commands(get_command(app)))


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_prints_json_when_it_is_asked_to(name):
    assert "--json" in {option for parameter in COMMANDS[name].params for option in parameter.opts}


@pytest.mark.parametrize(("arguments", "tree"), DONE, ids=[" ".join(arguments[:2]) for arguments, _ in DONE])
def test_what_was_done_is_json(run, service, arguments, tree):
    service.answers |= ANSWERS
    result = run(*arguments, "--json", typed="s3cret")
    assert (result.exit_code, json.loads(result.stdout)) == (0, tree)


def test_ray_env_gives_its_variables(run, tmp_path, monkeypatch):
    monkeypatch.setenv("THYME_DATA_DIR", str(tmp_path))
    plain, tree = run("ray-env"), json.loads(run("ray-env", "--json").stdout)
    assert tree
    assert all(line.removeprefix("export ").partition("=")[0] in tree for line in plain.stdout.splitlines())


def test_down_says_how_many_processes_it_ended(run, tmp_path, monkeypatch):
    monkeypatch.setenv("THYME_DATA_DIR", str(tmp_path))
    assert json.loads(run("down", "--json").stdout)["processes"] == 0
