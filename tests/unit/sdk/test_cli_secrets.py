"""``thyme secrets``, ``thyme principals`` and keys that belong to somebody: what is asked, and what is shown."""

from __future__ import annotations

import json

import pytest

SCOPES = "/api/v1/secrets-service/scopes"
ROLES = "/api/v1/authorization-service"
ACCOUNT = {
    "id": "5b0f4a53",
    "kind": "service_account",
    "name": "load",
    "is_active": True,
    "about": {},
    "members": [],
    "roles": [{"role": "consumer", "resource_type": "workspace", "resource_id": "prod", "group": "crew"}],
    "created_at": "2026-03-01T12:00:00Z",
}
GROUP = ACCOUNT | {"kind": "group", "name": "crew", "id": "77", "members": ["load"], "roles": [], "is_active": True}


def asked(service):
    (only,) = service.asked
    return only


def test_a_secret_comes_from_standard_input_and_is_never_printed(run, service):
    service.answers[f"PUT {SCOPES}/payments/keys/password"] = {}
    result = run("secrets", "put", "payments", "password", typed="s3cret\n")
    assert (result.exit_code, result.stdout) == (0, "secret payments/password stored\n")
    assert asked(service).json == {"value": "s3cret"}
    assert "s3cret" not in result.output


def test_a_secret_comes_from_a_file_whole(run, service, home):
    service.answers[f"PUT {SCOPES}/payments/keys/password"] = {}
    (home / "pem").write_text("line one\nline two\n\n")
    assert run("secrets", "put", "payments", "password", "--file", "pem").exit_code == 0
    assert asked(service).json == {"value": "line one\nline two\n"}
    refused = run("secrets", "put", "payments", "password", "--file", "absent")
    assert (refused.exit_code, "absent" in refused.stderr) == (1, True)


def test_secrets_and_scopes_are_shown_one_a_line(run, service):
    service.answers |= {
        f"GET {SCOPES}": {"scopes": [{"name": "ads"}, {"name": "payments"}]},
        f"GET {SCOPES}/ads/keys": {"keys": []},
        f"GET {SCOPES}/payments/keys": {"keys": [{"name": "password"}]},
        f"GET {SCOPES}/payments/keys/password": {"value": "s3cret"},
    }
    assert run("secrets", "scopes").stdout == "ads\npayments\n"
    assert run("secrets", "list", "ads").stdout == ""
    assert json.loads(run("secrets", "list", "payments", "--json").stdout) == ["password"]
    assert run("secrets", "get", "payments", "password").stdout == "s3cret\n"


def test_scopes_are_made_and_ended_and_secrets_deleted_and_rotated(run, service):
    service.answers |= {
        f"POST {SCOPES}/payments": {},
        f"DELETE {SCOPES}/payments": {},
        f"DELETE {SCOPES}/payments/keys/password": {},
        "POST /api/v1/secrets/rotate": {"values": 3, "key_id": "0a1b"},
    }
    for command in ("create-scope", "delete-scope"):
        assert run("secrets", command, "payments").exit_code == 0
    assert run("secrets", "delete", "payments", "password").exit_code == 0
    assert run("secrets", "rotate").stdout == "3 secrets encrypted anew; all are under the key 0a1b\n"
    assert [each.method for each in service.asked] == ["POST", "DELETE", "DELETE", "POST"]


@pytest.mark.parametrize(
    ("status", "code", "name"),
    [(403, 7, "Forbidden"), (404, 5, "NotFound"), (409, 6, "Conflict"), (400, 9, "FailedPrecondition")],
)
def test_a_refusal_in_the_words_of_the_other_api_is_the_error_it_means(service, home, status, code, name):
    from featurelib import ThymeClient, errors
    from featurelib.client import Config

    service.answers[f"DELETE {SCOPES}/payments"] = (status, {"error": "why", "message": "why", "code": code})
    config = Config(f"{service.url}/api/v1/commit", service.url, service.url, api_key="tk_x")
    with ThymeClient(config) as client, pytest.raises(getattr(errors, name), match=r"^why"):
        client.delete_scope("payments")


def test_a_role_is_given_to_a_principal_of_the_kind_it_has(run, service):
    service.answers |= {"GET /api/v1/principals": [ACCOUNT, GROUP], f"POST {ROLES}/assign-roles": {}}
    service.answers[f"POST {ROLES}/unassign-roles"] = {}
    given = run("principals", "assign", "read_scope_role", "crew", "--on", "scope:payments")
    assert (given.exit_code, given.stdout) == (0, "crew holds read_scope_role on scope:payments\n")
    assert service.asked[-1].json == {
        "assignments": [
            {
                "resource_type": "RESOURCE_TYPE_SECRET_SCOPE",
                "resource_id": "payments",
                "principal_type": "PRINCIPAL_TYPE_GROUP",
                "principal_id": "crew",
                "role": "read_scope_role",
            }
        ]
    }
    assert run("principals", "unassign", "admin", "load", "--on", "organization").exit_code == 0
    assert service.asked[-1].json["assignments"][0]["resource_id"] == ""
    assert (
        run("principals", "assign", "consumer", "prod", "--on", "workspace:prod", "--kind", "workspace").exit_code == 0
    )
    for arguments in (("consumer", "nobody", "--on", "workspace:prod"), ("consumer", "load", "--on", "prod")):
        assert run("principals", "assign", *arguments).exit_code == 1


def test_principals_are_made_listed_grouped_and_put_aside(run, service):
    service.answers |= {
        "POST /api/v1/principals": (201, ACCOUNT),
        "GET /api/v1/principals": [ACCOUNT, GROUP],
        "POST /api/v1/principals/crew/members": GROUP,
        "PATCH /api/v1/principals/load": ACCOUNT | {"is_active": False},
    }
    made = run("principals", "create", "service_account", "load", "--description", "Loads.")
    assert made.stdout == "service_account load made: 5b0f4a53\n"
    assert service.asked[-1].json == {"kind": "service_account", "name": "load", "description": "Loads."}
    listed = run("principals", "list").stdout
    assert "consumer on workspace:prod through crew" in listed
    assert run("principals", "group", "crew", "--add", "load", "--remove", "x").stdout == "group crew: load\n"
    assert service.asked[-1].json == {"add": ["load"], "remove": ["x"]}
    assert run("principals", "deactivate", "load").exit_code == 0
    assert service.asked[-1].json == {"is_active": False}


def test_a_public_key_is_registered_from_its_file(run, service, home):
    (home / "rsa.pub").write_text("-----BEGIN PUBLIC KEY-----\n")
    shown = {"role": "writer", "fingerprint": "0a1b2c3d", "label": "INGEST_USER"}
    service.answers["POST /api/v1/keys/public"] = (201, shown)
    result = run("keys", "add", "--public-key", "rsa.pub", "--name", "INGEST_USER", "--role", "writer")
    assert (result.exit_code, result.stdout) == (0, "writer key 0a1b2c3d of INGEST_USER\n")
    wanted = {"role": "writer", "label": "INGEST_USER", "public_key": "-----BEGIN PUBLIC KEY-----\n"}
    assert asked(service).json == wanted


def test_a_key_is_made_for_somebody(run, service):
    service.answers["POST /api/v1/keys"] = (201, {"key": "tk_x", "role": "reader", "fingerprint": "0a1b2c3d"})
    assert run("keys", "create", "reader", "--principal", "load").stdout == "tk_x\n"
    assert asked(service).json == {"role": "reader", "principal": "load"}
