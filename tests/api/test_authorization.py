"""Principals and roles over HTTP: who holds what on what, from where, and who may change it."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from featurelib.compile import compile_module
from featurelib.errors import Forbidden
from featurelib.stores.keys import NewKey
from featurelib.stores.principals import Author

ROLES = "/api/v1/authorization-service"
DIRECT = {"assignment_type": "ROLE_ASSIGNMENT_TYPE_DIRECT"}


@pytest.fixture
async def admin(platform):
    async with platform.client("admin") as client:
        yield client


async def make(admin, kind, name, **about):
    answer = await admin.post("/api/v1/principals", json={"kind": kind, "name": name, **about})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def key_of(admin, name, role="reader"):
    made = await admin.post("/api/v1/keys", json={"role": role, "label": name, "principal": name})
    assert made.status_code == 201, made.text
    return made.json()["key"]


def on_scope(role, principal, kind="SERVICE_ACCOUNT", scope="payments"):
    return {
        "resource_type": "RESOURCE_TYPE_SECRET_SCOPE",
        "resource_id": scope,
        "principal_type": f"PRINCIPAL_TYPE_{kind}",
        "principal_id": principal,
        "role": role,
    }


def on_workspace(role, principal, workspace, kind="SERVICE_ACCOUNT"):
    return on_scope(role, principal, kind, workspace) | {"resource_type": "RESOURCE_TYPE_WORKSPACE"}


async def assign(client, *assignments):
    return await client.post(f"{ROLES}/assign-roles", json={"assignments": list(assignments)})


async def unassign(client, *assignments):
    return await client.post(f"{ROLES}/unassign-roles", json={"assignments": list(assignments)})


async def holders(client, **wanted):
    body = {"resource_type": "RESOURCE_TYPE_SECRET_SCOPE", "resource_id": "payments", **wanted}
    answer = await client.post(f"{ROLES}/list-assigned-principals", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["assignments"]


async def held(client, principal, kind="SERVICE_ACCOUNT", resource="SECRET_SCOPE", **wanted):
    body = {
        "principal_type": f"PRINCIPAL_TYPE_{kind}",
        "principal_id": principal,
        "resource_type": f"RESOURCE_TYPE_{resource}",
        **wanted,
    }
    answer = await client.post(f"{ROLES}/list-assigned-roles", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["assignments"]


@pytest.fixture
async def people(admin):
    """One principal of each kind that is made, the service account in the group; and a scope."""
    made = {
        "user": await make(admin, "user", "ann@shop.example", first_name="Ann", last_name="Bee"),
        "account": await make(admin, "service_account", "load", description="Loads."),
        "group": await make(admin, "group", "crew"),
    }
    assert (await admin.post("/api/v1/principals/crew/members", json={"add": ["load"]})).status_code == 200
    assert (await admin.post("/api/v1/secrets-service/scopes/payments")).status_code == 200
    return made


async def test_holders_of_all_four_kinds_are_listed_with_where_their_roles_come_from(admin, people):
    done = await assign(
        admin,
        on_scope("read_scope_role", "load"),
        on_scope("write_scope_role", "crew", "GROUP"),
        on_scope("manage_scope_role", "ann@shop.example", "USER"),
        on_scope("read_scope_role", "prod", "WORKSPACE"),
    )
    assert (done.status_code, done.json()) == (200, {})
    on = {"resource_type": "RESOURCE_TYPE_SECRET_SCOPE", "resource_id": "payments"}
    through_group = {
        "assignment_type": "ROLE_ASSIGNMENT_TYPE_FROM_PRINCIPAL_GROUP",
        "principal_group_name": "crew",
        "principal_group_id": people["group"]["id"],
    }
    account = {"id": people["account"]["id"], "name": "load", "description": "Loads.", "is_active": True}
    ann = {
        "okta_id": people["user"]["id"],
        "first_name": "Ann",
        "last_name": "Bee",
        "login_email": "ann@shop.example",
    }
    listed = {next(iter(each["principal"])): each for each in await holders(admin)}
    assert {kind: each["principal"][kind] for kind, each in listed.items()} == {
        "user": ann,
        "service_account": account,
        "group": {"id": people["group"]["id"], "name": "crew"},
        "workspace": {"name": "prod"},
    }
    assert listed["service_account"]["role_assignments"] == [
        on
        | {
            "roles_granted": [
                {"role": "read_scope_role", "role_assignment_sources": [DIRECT]},
                {"role": "write_scope_role", "role_assignment_sources": [through_group]},
            ]
        }
    ]
    (granted,) = listed["workspace"]["role_assignments"]
    assert granted == on | {"roles_granted": [{"role": "read_scope_role", "role_assignment_sources": [DIRECT]}]}
    kinds = await holders(admin, principal_types=["PRINCIPAL_TYPE_GROUP", "PRINCIPAL_TYPE_USER"])
    assert {next(iter(each["principal"])) for each in kinds} == {"group", "user"}
    (reader, workspace) = await holders(admin, roles=["read_scope_role"])
    assert ("service_account" in reader["principal"], "workspace" in workspace["principal"]) == (True, True)


async def test_roles_of_a_principal_are_listed_by_what_they_are_held_on(admin, people):
    assert (await admin.post("/api/v1/secrets-service/scopes/ads")).status_code == 200
    await assign(
        admin,
        on_scope("read_scope_role", "load"),
        on_scope("write_scope_role", "load", scope="ads"),
        on_workspace("consumer", "load", "prod"),
    )
    assert {each["resource_id"] for each in await held(admin, "load")} == {"ads", "payments"}
    assert [each["resource_id"] for each in await held(admin, "load", resource_ids=["ads"])] == ["ads"]
    assert [each["resource_id"] for each in await held(admin, "load", roles=["read_scope_role"])] == ["payments"]
    (prod,) = await held(admin, people["account"]["id"], resource="WORKSPACE")
    assert prod["roles_granted"] == [{"role": "consumer", "role_assignment_sources": [DIRECT]}]
    assert await held(admin, "crew", "GROUP") == []


async def test_roles_are_taken_away_and_replaced(admin, people):
    both = (on_scope("read_scope_role", "load"), on_scope("write_scope_role", "load"))
    for _ in range(2):
        assert (await assign(admin, *both)).status_code == 200
    for _ in range(2):
        assert (await unassign(admin, both[0])).json() == {}
    (only,) = await held(admin, "load")
    assert [each["role"] for each in only["roles_granted"]] == ["write_scope_role"]
    body = {name: value for name, value in both[0].items() if name != "role"}
    replaced = await admin.put(f"{ROLES}/assign-roles", json=body | {"roles": ["manage_scope_role"]})
    assert (replaced.status_code, replaced.json()) == (200, {})
    (only,) = await held(admin, "load")
    assert [each["role"] for each in only["roles_granted"]] == ["manage_scope_role"]
    assert (await admin.put(f"{ROLES}/assign-roles", json=body)).status_code == 200
    assert await held(admin, "load") == []


async def test_names_may_come_in_camel_case(admin, people):
    camel = {
        "resourceType": "RESOURCE_TYPE_SECRET_SCOPE",
        "resourceId": "payments",
        "principalType": "PRINCIPAL_TYPE_SERVICE_ACCOUNT",
        "principalId": "load",
        "role": "read_scope_role",
    }
    assert (await assign(admin, camel)).status_code == 200
    assert len(await held(admin, "load")) == 1


async def test_every_role_is_defined_with_what_it_allows(admin):
    for body in (None, {}):
        answer = await admin.post(f"{ROLES}/get-roles", json=body)
        roles = {role["id"]: role for role in answer.json()["roles"]}
        assert set(roles) == {
            *("consumer", "editor", "owner", "admin"),
            *("read_scope_role", "write_scope_role", "manage_scope_role"),
        }
    reading = roles["read_scope_role"]
    assert set(reading) == {
        *("id", "name", "description", "assignableOnResourceTypes", "assignableToPrincipalTypes"),
        *("permissions", "legacyId"),
    }
    assert reading["assignableOnResourceTypes"] == ["RESOURCE_TYPE_SECRET_SCOPE"]
    assert "PRINCIPAL_TYPE_WORKSPACE" in reading["assignableToPrincipalTypes"]
    assert "PRINCIPAL_TYPE_WORKSPACE" not in roles["owner"]["assignableToPrincipalTypes"]
    assert {each["id"] for each in reading["permissions"]} == {"list_secret_key", "read_secret_value"}


async def test_roles_are_given_by_who_holds_the_highest_there_and_by_nobody_else(platform, admin, people):
    await assign(admin, on_scope("write_scope_role", "load"), on_workspace("owner", "load", "dev"))
    key = await key_of(admin, "load")
    async with platform.client(None) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        refused = await assign(client, on_scope("manage_scope_role", "load"))
        assert (refused.status_code, refused.json()["code"]) == (403, 7)
        # All or none: what it may give goes with what it may not.
        mixed = await assign(
            client, on_workspace("owner", "crew", "dev", "GROUP"), on_workspace("owner", "load", "prod")
        )
        assert mixed.status_code == 403
        assert await held(admin, "crew", "GROUP", "WORKSPACE") == []
        assert (await assign(client, on_workspace("owner", "crew", "dev", "GROUP"))).status_code == 200
        assert (await unassign(client, on_scope("write_scope_role", "load"))).status_code == 403
        assert [each["resource_id"] for each in await held(client, "load")] == ["payments"]
        assert await held(client, "ann@shop.example", "USER") == []
        await assign(admin, on_scope("manage_scope_role", "load"))
        assert (await assign(client, on_scope("read_scope_role", "ann@shop.example", "USER"))).status_code == 200
        assert len(await held(client, "ann@shop.example", "USER")) == 1


WRONG = [
    (on_scope("owner", "load"), 400, "cannot be held on a secret_scope"),
    (on_scope("nothing", "load"), 400, "cannot be held"),
    (on_scope("read_scope_role", "load", scope="absent"), 404, "no secret scope"),
    (on_scope("read_scope_role", "nobody"), 404, "no service_account"),
    (on_scope("read_scope_role", "load", "USER"), 404, "no user"),
    (on_scope("read_scope_role", "load", "ROBOT"), 400, "principal_type"),
    (on_workspace("owner", "prod", "prod", "WORKSPACE"), 400, "a workspace cannot hold"),
    (on_workspace("owner", "load", "a b"), 400, "resource_id"),
    (on_workspace("owner", "load", ""), 400, "resource_id"),
    (on_scope("admin", "load") | {"resource_type": "RESOURCE_TYPE_ORGANIZATION"}, 400, "one organisation"),
    (on_scope("owner", "load") | {"resource_type": "RESOURCE_TYPE_METRIC"}, 400, "resource_type"),
    (on_scope("owner", "load") | {"colour": "red"}, 400, "colour"),
    ({}, 400, "role"),
    ([], 400, "assignments"),
]


async def test_an_assignment_that_cannot_be_is_refused_and_changes_nothing(admin, people):
    wrong = []
    for asked, status, words in WRONG:
        answer = await assign(admin, on_workspace("consumer", "load", "prod"), asked)
        if answer.status_code != status or words not in answer.json()["message"]:
            wrong.append((asked, answer.status_code, answer.json()))
    assert wrong == []
    assert await held(admin, "load", resource="WORKSPACE") == []


async def test_a_key_reads_the_workspaces_on_which_its_principal_holds_a_role(platform, admin, people):
    keys = {name: f"Bearer {await key_of(admin, name)}".encode() for name in ("load", "ann@shop.example")}

    def readable(name):
        caller = platform.services.current.snapshot.keys.caller(keys[name], platform.clock.now())
        return [workspace for workspace in ("dev", "prod") if caller.may_read_workspace(workspace)]

    assert (readable("load"), readable("ann@shop.example")) == ([], [])
    await assign(admin, on_workspace("editor", "load", "dev"))
    assert readable("load") == ["dev"]
    await assign(admin, on_workspace("consumer", "crew", "prod", "GROUP"))
    assert readable("load") == ["dev", "prod"]
    await admin.post("/api/v1/principals/crew/members", json={"remove": ["load"], "add": ["ann@shop.example"]})
    assert (readable("load"), readable("ann@shop.example")) == (["dev"], ["prod"])
    everywhere = on_scope("consumer", "load", scope="") | {"resource_type": "RESOURCE_TYPE_ORGANIZATION"}
    await assign(admin, everywhere)
    assert readable("load") == ["dev", "prod"]
    await unassign(admin, everywhere, on_workspace("editor", "load", "dev"))
    caller = platform.services.current.snapshot.keys.caller(keys["load"], platform.clock.now())
    with pytest.raises(Forbidden, match="workspace 'dev'"):
        caller.require_workspace("dev")


async def test_a_key_of_nobody_and_an_admins_read_every_workspace(platform, admin, people):
    ring = platform.services.current.snapshot.keys
    owned = f"Bearer {await key_of(admin, 'load', 'admin')}".encode()
    sent = [owned, *(f"Bearer {secret}".encode() for _, secret in platform.keys.values())]
    ring = platform.services.current.snapshot.keys
    assert all(ring.caller(key, platform.clock.now()).may_read_workspace("prod") for key in sent)


async def test_a_service_is_committed_into_a_workspace_by_its_editors_alone(platform, admin, people, rides, tmp_path):
    (tmp_path / "services.py").write_text(
        "from featurelib import FeatureService\nfrom tests.api.rides import Rider\n"
        'alone = FeatureService("alone", [Rider.slice("trips")], request_context={}, workspace="dev")\n'
    )
    # Who imported the rides before has their declarations already: the service refers to what is committed.
    body = compile_module(tmp_path / "services.py", platform.registry.definitions()).model_dump_json()
    key = await key_of(admin, "load", "writer")
    async with platform.client(None) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        for workspace, role in (("prod", "owner"), ("dev", "consumer")):
            await assign(admin, on_workspace(role, "load", workspace))
            refused = await client.post("/api/v1/commit", content=body)
            assert (refused.status_code, refused.json()["detail"].rpartition(" ")[2]) == (403, "dev")
        await assign(admin, on_workspace("editor", "load", "dev"))
        assert (await client.post("/api/v1/commit", content=body)).status_code == 200
        await unassign(admin, on_workspace("editor", "load", "dev"))
        assert (await client.post("/api/v1/commit", content=body)).json()["no_op"] is True


async def test_keys_of_a_principal_open_nothing_while_it_is_not_active(platform, admin, people):
    key = await key_of(admin, "load")
    async with platform.client(None) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        assert (await client.get("/api/v1/featuresets")).status_code == 200
        changed = await admin.patch("/api/v1/principals/load", json={"is_active": False})
        assert (changed.status_code, changed.json()["is_active"]) == (200, False)
        assert (await client.get("/api/v1/featuresets")).status_code == 401
        await admin.patch("/api/v1/principals/load", json={"is_active": True})
        assert (await client.get("/api/v1/featuresets")).status_code == 200


async def test_nobody_is_locked_out(platform, admin, people):
    own = platform.keys["admin"][0].fingerprint
    owned = f"Bearer {await key_of(admin, 'load', 'admin')}"
    assert (await admin.delete(f"/api/v1/keys/{own}")).status_code == 200
    async with platform.client(None) as client:
        client.headers["Authorization"] = owned
        refused = await client.patch("/api/v1/principals/load", json={"is_active": False})
        assert (refused.status_code, refused.json()["error"]) == (409, "conflict")
        assert (await client.patch("/api/v1/principals/crew", json={"is_active": False})).status_code == 400


async def test_principals_are_listed_with_members_and_roles(platform, admin, people):
    await assign(admin, on_workspace("consumer", "crew", "prod", "GROUP"))
    listed = {each["name"]: each for each in (await admin.get("/api/v1/principals")).json()}
    assert list(listed) == ["ann@shop.example", "load", "crew"]
    assert listed["crew"]["members"] == ["load"]
    role = {"role": "consumer", "resource_type": "workspace", "resource_id": "prod"}
    assert (listed["crew"]["roles"], listed["load"]["roles"]) == ([role | {"group": None}], [role | {"group": "crew"}])
    assert listed["ann@shop.example"]["about"] == {"first_name": "Ann", "last_name": "Bee"}
    (group,) = (await admin.get("/api/v1/principals?kind=group")).json()
    assert group["name"] == "crew"


async def test_a_principal_that_cannot_be_is_refused(admin, people):
    cases = [
        ({"kind": "group", "name": "crew"}, 409),
        ({"kind": "robot", "name": "x"}, 400),
        ({"kind": "group", "name": "a b"}, 400),
        ({"kind": "group", "name": ""}, 400),
        ({"kind": "group"}, 400),
        ({"kind": "group", "name": "x", "colour": "red"}, 400),
    ]
    for asked, status in cases:
        answer = await admin.post("/api/v1/principals", json=asked)
        assert (answer.status_code, set(answer.json()) >= {"error", "detail"}) == (status, True), asked
    for path, body, status in (
        ("crew/members", {"add": ["nobody"]}, 404),
        ("crew/members", {"add": ["crew"]}, 400),
        ("load/members", {"add": ["load"]}, 404),
        ("nobody/members", {}, 404),
    ):
        assert (await admin.post(f"/api/v1/principals/{path}", json=body)).status_code == status, (path, body)
    for asked in ({"role": "reader", "principal": "nobody"}, {"role": "reader", "principal": "crew"}):
        assert (await admin.post("/api/v1/keys", json=asked)).status_code in {400, 404}


async def test_what_happens_to_principals_and_roles_is_told(platform, admin, people):
    await assign(admin, on_scope("read_scope_role", "load"))
    await unassign(admin, on_scope("read_scope_role", "load"))
    events = (await admin.get("/api/v1/events?subject=secret_scope/payments")).json()
    assert [event["event_type"] for event in events] == ["role_unassigned", "role_assigned"]
    assert {event["detail"]["by"] for event in events} == {platform.keys["admin"][0].fingerprint}
    kinds = {event["event_type"] for event in (await admin.get("/api/v1/events?subject=group/crew")).json()}
    assert kinds == {"principal_created", "principal_changed"}


def pem(key):
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


async def test_a_public_key_is_registered_for_a_user_and_found_by_the_name(platform, admin):
    private = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    body = {"role": "writer", "label": "INGEST_USER", "public_key": pem(private)}
    made = await admin.post("/api/v1/keys/public", json=body)
    assert (made.status_code, made.json()["role"], made.json()["public_key"]) == (201, "writer", pem(private))
    assert "key" not in made.json()
    again = await admin.post("/api/v1/keys/public", json=body)
    assert (again.status_code, again.json()["error"]) == (409, "conflict")

    def signers():
        return platform.services.current.snapshot.keys.public_keys_of("ingest_user", platform.clock.now())

    (signer,) = signers()
    assert signer.public_key == pem(private)
    assert signer.fingerprint.startswith("SHA256:")
    assert (signer.caller.fingerprint, signer.caller.key.role) == (made.json()["fingerprint"], "writer")
    assert platform.services.current.snapshot.keys.public_keys_of("SOMEBODY", platform.clock.now()) == ()
    await admin.delete(f"/api/v1/keys/{signer.caller.fingerprint}")
    assert signers() == ()


async def test_the_bytes_of_a_public_key_open_nothing(platform, admin):
    private = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    body = {"role": "admin", "label": "boss", "public_key": pem(private)}
    assert (await admin.post("/api/v1/keys/public", json=body)).status_code == 201
    der = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    ring = platform.services.current.snapshot.keys
    for sent in (der, pem(private).encode()):
        with pytest.raises(Exception, match="unknown, expired or revoked"):
            ring.caller(b"Bearer " + sent, platform.clock.now())
    # Whoever can only sign cannot be the last who can make keys.
    own = platform.keys["admin"][0].fingerprint
    assert (await admin.delete(f"/api/v1/keys/{own}")).status_code == 409


async def test_what_is_no_public_rsa_key_is_not_registered(platform, admin):
    private = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
    secret = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    small = pem(rsa.generate_private_key(public_exponent=65_537, key_size=1_024))
    for given in (secret, small, pem(ec.generate_private_key(ec.SECP256R1())), "", "nonsense", "\u2603"):
        answer = await admin.post("/api/v1/keys/public", json={"role": "reader", "label": "X", "public_key": given})
        assert answer.status_code == 400, given
        assert "PRIVATE KEY-----" not in answer.text
    assert len(platform.registry.keys()) == 3


async def test_a_key_that_belongs_to_somebody_is_listed_so(platform, admin, people):
    await key_of(admin, "load")
    listed = (await admin.get("/api/v1/keys")).json()
    assert listed[-1]["principal"] == people["account"]["id"]
    record, _ = platform.services.access.keys.create(NewKey(role="reader", label="x", principal="load"), Author())
    assert record.principal == people["account"]["id"]
