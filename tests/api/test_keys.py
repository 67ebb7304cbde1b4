"""API keys over HTTP: who may make them, what they open, and what becomes of them. Every route asks for its role."""

from __future__ import annotations

import asyncio
import hashlib

import pytest
from fastapi.routing import APIRoute

from serve_apps.routes.features import FeatureRoutes
from serve_apps.routes.tecton import TectonRoutes
from serve_apps.web import OPEN_PATHS

ROLES = ("reader", "writer", "admin")
READING_POSTS = {
    "/features",
    "/features/batch",
    "/features/offline",
    "/query-runs/{run_id}/replay",
}
"""What is asked in a body and changes nothing; planning is not among them, for it runs user code."""
DELIVERIES = {"/api/v1/webhooks/{dataset}"}
"""What a signature may open instead of a key; :mod:`test_webhooks` has its cases."""


def needed_role(method, path):
    """The rule, in one place: reading needs a reader, changing anything a writer, who may what and secrets an admin.

    Of those below `authorization-service` the roles of principals decide, once it is known what is asked. Training sets
    are reads: who asked for one may end and delete it.
    """
    if path.startswith("/api/v1/training-sets"):
        return "reader"
    if path == "/api/v1/secrets-service/scopes" or path.startswith("/api/v1/authorization-service/"):
        return "reader"
    if path.startswith(("/api/v1/keys", "/api/v1/principals", "/api/v1/secrets")):
        return "admin"
    reads = method in {"GET", "HEAD"} or path in READING_POSTS or path.startswith("/api/v1/feature-service/")
    return "reader" if reads else "writer"


def routes_of(platform):
    """Every route of both services: of the framework, and those that go round it."""
    seen = [
        (method, route.path) for route in routed(platform.application.api.routes) for method in sorted(route.methods)
    ]
    tables = [surface(platform.services).table for surface in (FeatureRoutes, TectonRoutes)]
    hot = [(method, path) for table in tables for path, methods in table.items() for method in methods]
    return [(method, path) for method, path in (*seen, *hot) if path not in OPEN_PATHS | DELIVERIES]


def routed(routes):
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            inner = getattr(route, "original_router", None)
            yield from routed(inner.routes if inner is not None else getattr(route, "routes", None) or ())


async def make(client, **asked):
    answer = await client.post("/api/v1/keys", json={"role": "reader", "label": "dashboard", **asked})
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.fixture
async def admin(platform):
    async with platform.client("admin") as client:
        yield client


async def status_with(platform, secret, path="/api/v1/featuresets", method="GET"):
    async with platform.client(None) as client:
        answer = await client.request(method, path, headers={"Authorization": f"Bearer {secret}"})
        return answer.status_code


async def test_every_route_refuses_callers_below_its_role_and_admits_those_from_it_on(platform):
    routes = routes_of(platform)
    assert len(routes) >= 25
    wrong = []
    for role in ROLES:
        async with platform.client(role) as client:
            for method, path in routes:
                if path.endswith("/stream"):
                    continue  # never ends for those it admits, and its role is the lowest
                # Nothing of that name exists and no body is sent: whoever is admitted gets some other answer.
                answer = await client.request(method, path.replace("{", "").replace("}", ""))
                admitted = ROLES.index(role) >= ROLES.index(needed_role(method, path))
                if (answer.status_code != 403) is not admitted:
                    wrong.append((role, method, path, answer.status_code))
    assert wrong == []


async def test_every_route_refuses_a_caller_without_a_key(platform):
    async with platform.client(None) as client:
        for method, path in routes_of(platform):
            assert (await client.request(method, path)).status_code == 401, (method, path)


async def test_a_key_works_as_soon_as_it_is_made_and_is_shown_once(platform, admin):
    made = await make(admin)
    assert made["key"].startswith("tk_")
    assert made["fingerprint"] == hashlib.sha256(made["key"].encode()).hexdigest()[:8]
    assert (made["role"], made["label"], made["state"], made["rate_limit"]) == ("reader", "dashboard", "active", None)
    assert await status_with(platform, made["key"]) == 200
    for path in ("/api/v1/keys", "/api/v1/events", "/api/v1/status", "/metrics"):
        shown = (await admin.get(path)).text
        assert made["key"] not in shown
        assert hashlib.sha256(made["key"].encode()).hexdigest() not in shown


async def test_keys_are_listed_oldest_first_with_what_became_of_them(platform, admin):
    made = await make(admin, expires_at="2026-03-01T12:00:10Z", rate_limit=7)
    platform.clock.advance(10_000_000)
    listed = (await admin.get("/api/v1/keys")).json()
    assert [key["role"] for key in listed] == ["reader", "writer", "admin", "reader"]
    assert listed[-1] == {
        "fingerprint": made["fingerprint"],
        "role": "reader",
        "label": "dashboard",
        "state": "expired",
        "rate_limit": 7,
        "principal": None,
        "public_key": None,
        "created_at": "2026-03-01T12:00:00Z",
        "expires_at": "2026-03-01T12:00:10Z",
        "revoked_at": None,
    }


async def test_a_key_ends_when_it_was_to_end(platform, admin):
    made = await make(admin, expires_at="2026-03-01T12:00:10Z")
    assert await status_with(platform, made["key"]) == 200
    platform.clock.advance(9_999_999)
    assert await status_with(platform, made["key"]) == 200
    platform.clock.advance(1)
    assert await status_with(platform, made["key"]) == 401


async def test_a_revoked_key_opens_nothing_from_then_on(platform, admin):
    made = await make(admin)
    gone = await admin.delete(f"/api/v1/keys/{made['fingerprint']}")
    assert (gone.status_code, gone.json()["state"], gone.json()["revoked_at"]) == (
        200,
        "revoked",
        "2026-03-01T12:00:00Z",
    )
    assert await status_with(platform, made["key"]) == 401
    again = await admin.delete(f"/api/v1/keys/{made['fingerprint']}")
    assert (again.status_code, again.json()) == (200, gone.json())


async def test_the_last_admin_key_cannot_be_revoked(platform, admin):
    own = platform.keys["admin"][0].fingerprint
    refused = await admin.delete(f"/api/v1/keys/{own}")
    assert (refused.status_code, refused.json()["error"]) == (409, "conflict")
    short = await make(admin, role="admin", expires_at="2026-03-01T12:00:10Z")
    platform.clock.advance(10_000_000)
    assert (await admin.delete(f"/api/v1/keys/{own}")).status_code == 409, "an expired key opens nothing"
    assert (await admin.delete(f"/api/v1/keys/{short['fingerprint']}")).status_code == 200
    second = await make(admin, role="admin")
    assert (await admin.delete(f"/api/v1/keys/{own}")).status_code == 200
    assert await status_with(platform, second["key"], "/api/v1/keys") == 200


@pytest.mark.parametrize("fingerprint", ["00000000", "ABCDEF12", "abc", "../../etc", "%00", "a" * 300])
async def test_a_key_nobody_knows_cannot_be_revoked(admin, fingerprint):
    answer = await admin.delete(f"/api/v1/keys/{fingerprint}")
    assert answer.status_code in {400, 404}
    assert set(answer.json()) == {"error", "detail", "message", "details", "correlation_id"}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"role": "root"},
        {"role": "reader", "label": 5},
        {"role": "reader", "label": "x" * 201},
        {"role": "reader", "expires_at": "soon"},
        {"role": "reader", "expires_at": "2026-03-01T12:00:00Z"},
        {"role": "reader", "rate_limit": 0},
        {"role": "reader", "rate_limit": 1_000_001},
        {"role": "reader", "rate_limit": 10**30},
        {"role": "reader", "rate_limit": True},
        {"role": "reader", "colour": "red"},
        [],
    ],
)
async def test_a_key_that_cannot_be_is_refused(admin, platform, asked):
    answer = await admin.post("/api/v1/keys", json=asked)
    assert (answer.status_code, answer.json()["error"]) in {(400, "invalid_request"), (400, "invalid_timestamp")}
    assert len(platform.registry.keys()) == 3


@pytest.mark.parametrize("label", ["nul \\u0000", "half \\ud800", "quote \\u0027;--", "\\u202e"])
async def test_a_label_of_any_text_does_no_harm(admin, label):
    answer = await admin.post("/api/v1/keys", content='{"role": "reader", "label": "' + label + '"}')
    assert answer.status_code in {201, 400}
    assert (await admin.get("/api/v1/keys")).status_code == 200
    assert (await admin.get("/api/v1/events")).status_code == 200


async def test_what_happens_to_keys_is_told_with_who_did_it(platform, admin):
    made = await make(admin)
    await admin.delete(f"/api/v1/keys/{made['fingerprint']}")
    events = (await admin.get(f"/api/v1/events?subject={made['fingerprint']}")).json()
    assert [event["event_type"] for event in events] == ["api_key_revoked", "api_key_created"]
    assert {event["detail"]["by"] for event in events} == {platform.keys["admin"][0].fingerprint}


async def test_a_query_run_names_the_key_by_its_fingerprint(platform, rides, admin):
    made = await make(admin)
    async with platform.client(None) as client:
        headers = {"Authorization": f"Bearer {made['key']}"}
        read = await client.get("/features?featureset=Rider&entity_id=7", headers=headers)
    run_id = read.headers["x-query-run-id"]
    async with asyncio.timeout(20):
        while (run := await admin.get(f"/query-runs/{run_id}")).status_code == 404:
            await asyncio.to_thread(platform.registry.version)
    assert run.json()["api_key_fingerprint"] == made["fingerprint"]


async def test_without_authentication_anybody_may_do_anything(settings, clock):
    from tests.api.conftest import Platform

    serving = settings.serving.model_copy(update={"auth": False})
    open_to_all = Platform(settings.model_copy(update={"serving": serving}), clock)
    async with open_to_all.application.running(), open_to_all.client(None) as client:
        assert (await client.get("/api/v1/keys")).status_code == 200
        assert (await client.post("/api/v1/commit", json={"format": 1})).status_code == 200
    open_to_all.log.close()
    open_to_all.registry.close()
