"""Records sent when there is no room for them, or the store takes no writes: refused whole, and taken later."""

from __future__ import annotations

import os

import pytest
import redis

from featurelib.clock import SECOND
from featurelib.definitions import ref
from featurelib.settings import OnlineSettings, Settings
from featurelib.stores.intake import Intake
from featurelib.stores.log import Lateness


@pytest.fixture
def settings(settings: Settings) -> Settings:
    online = OnlineSettings(redis_url=settings.online.redis_url, log_budget_mb=1)
    return settings.model_copy(update={"online": online})


async def test_a_full_log_answers_503_with_retry_after_and_takes_the_same_records_later(rides, platform):
    dataset = platform.registry.definitions().dataset("Ride")
    ride = {"rider": 7, "city": "Oslo", "fare": 1.0, "at": "2026-03-01T09:00:00Z"}
    many = [{**ride, "ride": os.urandom(500).hex()} for _ in range(1_200)]
    Intake(platform.log, dataset, 2, Lateness(None, 0)).accept(many)
    platform.clock.advance(2 * SECOND)
    heads = platform.log.heads(ref(dataset), 2)
    body = {"dataset": "Ride", "events": [{**ride, "ride": "last"}]}
    refused = await rides.post("/api/v1/log", json=body)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    error = refused.json()
    assert error["error"] == "log_full"
    assert "online.log_budget_mb" in error["detail"]
    assert platform.log.heads(ref(dataset), 2) == heads
    for part, head in enumerate(heads):
        platform.log.trim(ref(dataset), part, head.next_offset)
    platform.clock.advance(2 * SECOND)
    assert (await rides.post("/api/v1/log", json=body)).status_code == 200


@pytest.mark.parametrize("key", [{}, {"Idempotency-Key": "a"}])
async def test_a_store_that_takes_no_writes_for_now_has_taken_nothing(rides, platform, empty_redis_url, key):
    ride = {"ride": "a", "rider": 7, "city": "Oslo", "fare": 1.0, "at": "2026-03-01T09:00:00Z"}
    body = {"dataset": "Ride", "events": [ride]}
    before = _next_offsets(platform)
    with redis.Redis.from_url(empty_redis_url) as client:
        client.config_set("min-replicas-to-write", 1)
        try:
            refused = await rides.post("/api/v1/log", json=body, headers=key)
            read = await rides.get("/features", params={"featureset": "Rider", "entity_id": "7"})
            assert (read.status_code, (await rides.get("/health")).status_code) == (200, 200)
        finally:
            client.config_set("min-replicas-to-write", 0)
    assert (refused.status_code, refused.json()["error"]) == (503, "store_unavailable")
    assert "retry-after" in refused.headers
    assert refused.json()["detail"].startswith("the online store does not answer: NOREPLICAS")
    assert (await rides.post("/api/v1/log", json=body, headers=key)).status_code == 200
    assert _next_offsets(platform) == before + 1


def _next_offsets(platform):
    return sum(head.next_offset for head in platform.log.heads("Ride@1", 2))
