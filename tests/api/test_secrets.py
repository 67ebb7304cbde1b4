"""Secrets over HTTP: who may see and change them, what is kept of them, and what happens to their keys."""

from __future__ import annotations

import base64
import json
import sqlite3
import stat

import pytest

from featurelib.stores.encryption import key_source
from featurelib.stores.keys import NewKey
from featurelib.stores.principals import Author
from featurelib.stores.role_assignments import Assignment, Holder
from featurelib.stores.secret_values import Place, SecretValues
from featurelib.stores.standings import Resource

SECRETS = "/api/v1/secrets-service"
VALUE = "correct horse battery staple"


class People:
    """Service accounts with a key each, and the roles they are given on scopes."""

    def __init__(self, platform) -> None:
        self._platform = platform
        self._access = platform.services.access

    async def client(self, name: str, role: str | None = None, scope: str = "payments"):
        """A client of a new service account, with a role on a scope."""
        self._access.principals.create("service_account", name, {}, Author())
        if role is not None:
            assignment = Assignment(Holder("service_account", name), role, Resource("secret_scope", scope))
            self._access.roles.assign([assignment], Author())
        _, secret = self._access.keys.create(NewKey(role="reader", label=name, principal=name), Author())
        await self._platform.services.current.refresh()
        client = self._platform.client(None)
        client.headers["Authorization"] = f"Tecton-key {secret}"
        return client


@pytest.fixture
def people(platform):
    return People(platform)


@pytest.fixture
async def admin(platform):
    async with platform.client("admin") as client:
        yield client


@pytest.fixture
async def payments(admin):
    """A scope with one secret."""
    assert (await admin.post(f"{SECRETS}/scopes/payments")).json() == {}
    assert (await admin.put(f"{SECRETS}/scopes/payments/keys/password", json={"value": VALUE})).json() == {}


async def test_scopes_and_secrets_live_from_their_making_to_their_end(admin):
    assert (await admin.get(f"{SECRETS}/scopes")).json() == {"scopes": []}
    for name in ("payments", "ads"):
        made = await admin.post(f"{SECRETS}/scopes/{name}")
        assert (made.status_code, made.json()) == (200, {})
    assert (await admin.get(f"{SECRETS}/scopes")).json() == {"scopes": [{"name": "ads"}, {"name": "payments"}]}
    keys = f"{SECRETS}/scopes/payments/keys"
    assert (await admin.get(keys)).json() == {"keys": []}
    for value in (VALUE, VALUE, "another \u2603"):
        put = await admin.put(f"{keys}/password", json={"value": value})
        assert (put.status_code, put.json()) == (200, {})
        assert (await admin.get(f"{keys}/password")).json() == {"value": value}
    assert (await admin.get(keys)).json() == {"keys": [{"name": "password"}]}
    assert (await admin.delete(f"{keys}/password")).json() == {}
    assert (await admin.get(f"{keys}/password")).status_code == 404
    assert (await admin.delete(f"{SECRETS}/scopes/payments")).json() == {}
    assert (await admin.get(keys)).status_code == 404


NEEDED = {
    ("GET", "/scopes/payments/keys"): "read_scope_role",
    ("GET", "/scopes/payments/keys/password"): "read_scope_role",
    ("PUT", "/scopes/payments/keys/password"): "write_scope_role",
    ("DELETE", "/scopes/payments/keys/password"): "write_scope_role",
    ("DELETE", "/scopes/payments"): "manage_scope_role",
    ("POST", "/scopes/payments"): "admin",
    ("POST", "/scopes/another"): "admin",
}
LADDER = [None, "read_scope_role", "write_scope_role", "manage_scope_role", "admin"]


async def test_each_call_needs_its_role_and_is_refused_below_it(people, admin, payments):
    for held in LADDER[:-1]:
        await refuses_what_is_above(people, held)
        await admin.post(f"{SECRETS}/scopes/payments")


async def refuses_what_is_above(people, held):
    async with await people.client(f"holds-{held}", held) as client:
        for (method, path), needed in NEEDED.items():
            answer = await client.request(method, f"{SECRETS}{path}", json={"value": "x"} if method == "PUT" else None)
            allowed = LADDER.index(held) >= LADDER.index(needed)
            assert (answer.status_code != 403) is allowed, (method, path, answer.text)
            if not allowed:
                assert set(answer.json()) == {"error", "message", "code"}
                assert answer.json()["code"] == 7
                assert "Not Authorized" in answer.json()["message"]
                assert VALUE not in answer.text


async def test_a_role_on_one_scope_opens_no_other(people, admin, payments):
    await admin.post(f"{SECRETS}/scopes/ads")
    async with await people.client("load", "manage_scope_role", "ads") as client:
        assert (await client.get(f"{SECRETS}/scopes")).json() == {"scopes": [{"name": "ads"}]}
        assert (await client.get(f"{SECRETS}/scopes/payments/keys/password")).status_code == 403


async def test_a_key_of_nobody_reads_no_secret_whatever_its_own_role(platform, payments):
    async with platform.client("writer") as client:
        assert (await client.get(f"{SECRETS}/scopes/payments/keys/password")).status_code == 403
        assert (await client.get(f"{SECRETS}/scopes")).json() == {"scopes": []}


async def test_who_may_not_see_a_scope_does_not_learn_whether_there_is_one(people, payments):
    async with await people.client("load") as client:
        there = await client.get(f"{SECRETS}/scopes/payments/keys")
        absent = await client.get(f"{SECRETS}/scopes/absent/keys")
    assert there.text.replace("payments", "absent") == absent.text


async def test_the_principal_that_makes_a_scope_manages_it(platform, people, admin):
    roles = platform.services.access.roles
    async with await people.client("boss") as client:
        assignment = Assignment(Holder("service_account", "boss"), "admin", Resource("organization"))
        roles.assign([assignment], Author())
        await platform.services.current.refresh()
        assert (await client.post(f"{SECRETS}/scopes/owned")).status_code == 200
        roles.unassign([assignment], Author())
        await platform.services.current.refresh()
        assert (await client.post(f"{SECRETS}/scopes/more")).status_code == 403
        assert (await client.put(f"{SECRETS}/scopes/owned/keys/a", json={"value": "b"})).status_code == 200
        assert (await client.get(f"{SECRETS}/scopes")).json() == {"scopes": [{"name": "owned"}]}


FAILURES = [
    ("POST", "/scopes/payments", None, 409, 6),
    ("DELETE", "/scopes/payments", None, 400, 9),
    ("DELETE", "/scopes/absent", None, 404, 5),
    ("GET", "/scopes/absent/keys", None, 404, 5),
    ("GET", "/scopes/absent/keys/password", None, 404, 5),
    ("GET", "/scopes/payments/keys/absent", None, 404, 5),
    ("DELETE", "/scopes/payments/keys/absent", None, 404, 5),
    ("PUT", "/scopes/absent/keys/password", {"value": "x"}, 404, 5),
    ("PUT", "/scopes/payments/keys/password", {"value": ""}, 400, 3),
    ("PUT", "/scopes/payments/keys/password", {"value": 5}, 400, 3),
    ("PUT", "/scopes/payments/keys/password", {}, 400, 3),
    ("PUT", "/scopes/payments/keys/password", [], 400, 3),
    ("PUT", "/scopes/payments/keys/a%20b", {"value": "x"}, 400, 3),
    ("PUT", "/scopes/payments/keys/%00", {"value": "x"}, 400, 3),
    ("GET", "/scopes/%00/keys", None, 404, 5),
    ("GET", "/scopes/payments/keys/%00", None, 404, 5),
    ("POST", "/scopes/a%20b", None, 400, 3),
    ("POST", "/scopes/" + "x" * 129, None, 400, 3),
    ("POST", "/nothing", None, 404, 5),
    ("PATCH", "/scopes/payments", None, 405, 12),
]


async def test_every_failure_has_the_body_that_clients_of_this_api_expect(admin, payments):
    wrong = []
    for method, path, body, *expected in FAILURES:
        answer = await admin.request(method, f"{SECRETS}{path}", json=body)
        told = answer.json()
        if [answer.status_code, told["code"]] != expected or set(told) != {"error", "message", "code"}:
            wrong.append((method, path, body, answer.status_code, told))
        assert told["error"] == told["message"]
    assert wrong == []


async def test_broken_json_and_too_large_a_body_are_refused_in_the_same_words(admin, payments):
    path = f"{SECRETS}/scopes/payments/keys/password"
    for content, status in ((b"{", 400), (b'{"value": "' + b"x" * 65_537 + b'"}', 413), (b'{"value": "\\ud800"}', 400)):
        answer = await admin.put(path, content=content)
        assert (answer.status_code, set(answer.json())) == (status, {"error", "message", "code"})
    assert (await admin.get(path)).json() == {"value": VALUE}


async def test_without_a_valid_key_nothing_is_told(platform, payments):
    async with platform.client(None) as client:
        for headers in ({}, {"Authorization": "Tecton-key tk_wrong"}):
            answer = await client.get(f"{SECRETS}/scopes/payments/keys/password", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, 16)
            assert "invalid 'Tecton-key' authorization header" in answer.json()["message"]


async def test_a_key_may_come_under_either_scheme_in_any_case(platform, payments):
    async with platform.client(None) as client:
        for scheme in ("Tecton-key", "Tecton-Key", "tecton-key", "TECTON-KEY", "Bearer"):
            headers = {"Authorization": f"{scheme} {platform.keys['admin'][1]}"}
            answer = await client.get(f"{SECRETS}/scopes/payments/keys/password", headers=headers)
            assert answer.json() == {"value": VALUE}, scheme


async def test_a_stored_secret_is_nowhere_to_be_read(platform, admin, payments):
    path = platform.settings.data_dir / "registry.db"
    encoded = base64.b64encode(VALUE.encode())
    for file in (path, path.with_name("registry.db-wal")):
        assert VALUE.encode() not in file.read_bytes()
        assert encoded not in file.read_bytes()
    for place in (
        "/api/v1/events",
        "/api/v1/status",
        "/metrics",
        f"{SECRETS}/scopes",
        f"{SECRETS}/scopes/payments/keys",
    ):
        assert VALUE not in (await admin.get(place)).text


async def test_what_happens_to_secrets_is_told_without_them_and_with_who_did_it(platform, admin, payments):
    path = f"{SECRETS}/scopes/payments/keys/password"
    await admin.put(path, json={"value": "the second"})
    await admin.delete(path)
    await admin.delete(f"{SECRETS}/scopes/payments")
    events = (await admin.get("/api/v1/events")).json()
    told = [event for event in events if event["event_type"].startswith("secret")]
    assert [event["event_type"] for event in reversed(told)] == [
        "secret_scope_created",
        "secret_created",
        "secret_changed",
        "secret_deleted",
        "secret_scope_deleted",
    ]
    assert {event["detail"]["by"] for event in told} == {platform.keys["admin"][0].fingerprint}
    assert not any(value in json.dumps(told) for value in (VALUE, "the second"))


async def test_the_key_is_made_once_and_only_its_owner_may_read_it(platform, payments):
    file = platform.settings.data_dir / "secrets" / "secrets-key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(file.read_text().split()) == 1


async def test_after_a_rotation_the_old_key_reads_nothing_and_every_secret_is_there(platform, admin, payments):
    file = platform.settings.data_dir / "secrets" / "secrets-key"
    before = file.read_text()
    await admin.put(f"{SECRETS}/scopes/payments/keys/other", json={"value": "two"})
    rotated = await admin.post("/api/v1/secrets/rotate")
    assert (rotated.status_code, rotated.json()["values"]) == (200, 2)
    assert len(file.read_text().split()) == 1
    assert file.read_text() != before
    with sqlite3.connect(platform.settings.data_dir / "registry.db") as database:
        assert set(database.execute("SELECT key_id FROM secret_values")) == {(rotated.json()["key_id"],)}
    for name, value in (("password", VALUE), ("other", "two")):
        assert (await admin.get(f"{SECRETS}/scopes/payments/keys/{name}")).json() == {"value": value}


async def test_a_rotation_that_was_cut_short_leaves_every_secret_readable(platform, admin, payments):
    source = key_source(platform.settings)
    source.begin_rotation()
    await admin.put(f"{SECRETS}/scopes/payments/keys/other", json={"value": "two"})
    for name, value in (("password", VALUE), ("other", "two")):
        assert (await admin.get(f"{SECRETS}/scopes/payments/keys/{name}")).json() == {"value": value}
    assert (await admin.post("/api/v1/secrets/rotate")).json()["values"] == 2
    assert (await admin.get(f"{SECRETS}/scopes/payments/keys/password")).json() == {"value": VALUE}


async def test_a_secret_that_was_moved_or_changed_in_the_database_is_not_given_out(platform, admin, payments):
    await admin.put(f"{SECRETS}/scopes/payments/keys/other", json={"value": "two"})
    with sqlite3.connect(platform.settings.data_dir / "registry.db") as database:
        database.execute("UPDATE secret_values SET sealed = (SELECT sealed FROM secret_values WHERE key = 'password')")
    moved = await admin.get(f"{SECRETS}/scopes/payments/keys/other")
    assert (moved.status_code, moved.json()["code"]) == (500, 13)
    assert VALUE not in moved.text


async def test_keys_of_the_settings_take_turns(platform, admin, payments):
    registry, clock = platform.registry, platform.clock
    (old,) = (platform.settings.data_dir / "secrets" / "secrets-key").read_text().split()
    new = "ab" * 32

    def with_keys(text):
        given = platform.settings.model_copy(
            update={
                "secrets": platform.settings.secrets.model_copy(
                    update={"key": type(platform.settings.secrets.key)(text)}
                )
            }
        )
        return SecretValues(registry.database, clock, key_source(given))

    place = Place("payments", "password")
    assert with_keys(f"{new},{old}").get(place) == VALUE
    rotated = with_keys(f"{new}, {old}").rotate(Author())
    assert rotated.values == 1
    assert with_keys(new).get(place) == VALUE
    missing = await admin.get(f"{SECRETS}/scopes/payments/keys/password")
    assert (missing.status_code, rotated.key_id in missing.json()["message"]) == (500, True)
    assert new not in missing.text
