"""Keys and roles, correlation ids, what is open to everybody."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from featurelib.clock import DAY
from featurelib.stores.keys import KeyRecord
from serve_apps.auth import KeyRing

PATHS = ["/features?featureset=Rider&entity_id=7", "/query-runs", "/api/v1/status", "/nothing", "/features"]


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer tk_wrong", "Basic dXNlcjpwYXNz", "tk_naked"])
async def test_a_request_without_a_valid_key_is_401(platform, header):
    headers = {} if header is None else {"Authorization": header}
    async with platform.client(None) as client:
        for path in PATHS:
            answer = await client.get(path, headers=headers)
            assert (answer.status_code, answer.json()["error"]) == (401, "unauthenticated"), path
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/health", "/metrics", "/docs", "/openapi.json"])
async def test_health_metrics_and_documents_are_open(platform, path):
    async with platform.client(None) as client:
        assert (await client.get(path)).status_code == 200


async def test_the_scheme_of_the_header_may_be_written_in_any_case(platform):
    async with platform.client(None) as client:
        headers = {"Authorization": f"bearer {platform.keys['reader'][1]}"}
        assert (await client.get("/query-runs", headers=headers)).status_code == 200


@pytest.mark.parametrize("path", ["/api/v1/commit", "/api/v1/log", "/"])
async def test_a_reader_may_not_write(platform, path):
    async with platform.client("reader") as client:
        answer = await client.post(path, json={"dataset": "Ride", "events": []})
        assert answer.status_code == 403
        assert answer.json()["error"] == "forbidden"


@pytest.mark.parametrize("role", ["reader", "writer", "admin"])
async def test_every_role_may_read(platform, role):
    async with platform.client(role) as client:
        assert (await client.get("/api/v1/featuresets")).json() == []


async def test_a_revoked_key_stops_working_without_a_restart(platform):
    async with platform.client("reader") as client:
        assert (await client.get("/features")).status_code == 200
        platform.registry.revoke_key(platform.keys["reader"][0].fingerprint)
        async with asyncio.timeout(5):
            while (await client.get("/features")).status_code != 401:
                await asyncio.to_thread(platform.registry.version)


def test_headers_of_one_key_take_no_memory_however_many_forms_it_is_sent_in():
    secret = "tk_" + "x" * 43
    digest = hashlib.sha256(secret.encode()).hexdigest()
    key = KeyRecord(role="reader", label="", fingerprint=digest[:8], sha256=digest, created_at=0)
    ring, plain = KeyRing([key]), f"Bearer {secret}".encode()
    padded = f"Bearer {' ' * 60_000}{secret}".encode()
    assert ring.caller(plain, 0) is ring.caller(plain, 0)
    assert ring.caller(padded, 0) == ring.caller(plain, 0)
    assert ring.caller(padded, 0) is not ring.caller(padded, 0)


async def test_an_expired_key_is_refused(platform):
    key, secret = platform.registry.create_key("reader", "short", expires_at=platform.clock.now() + DAY)
    await platform.services.current.refresh()
    async with platform.client(None) as client:
        headers = {"Authorization": f"Bearer {secret}"}
        assert (await client.get("/features", headers=headers)).status_code == 200
        platform.clock.advance(DAY)
        assert (await client.get("/features", headers=headers)).status_code == 401
    assert key.expires_at is not None


@pytest.mark.parametrize("header", ["X-Correlation-ID", "X-Request-ID"])
@pytest.mark.parametrize("path", ["/features", "/health", "/nothing"])
async def test_a_correlation_id_is_echoed(client, header, path):
    answer = await client.get(path, headers={header: "abc-1.2:3_4"})
    assert answer.headers["x-correlation-id"] == "abc-1.2:3_4"


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 129, "ü".encode(), b"a\tb"])
async def test_a_correlation_id_of_another_form_is_replaced(client, given):
    answer = await client.get("/features", headers=[(b"X-Correlation-ID", given)])
    made = answer.headers["x-correlation-id"]
    assert made.encode() != given
    assert len(made) == 32
