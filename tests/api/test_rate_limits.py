"""How often a key may call: within a replica, over replicas, and while the store between them is away."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import redis

from featurelib.errors import RateLimited, StoreUnavailable
from featurelib.stores.keys import KeyRecord
from featurelib.stores.usage import Usage
from serve_apps.auth import KeyRing
from serve_apps.rate_limits import RateLimits
from tests.support.patience import PATIENCE_S

KEY = "0a1b2c3d"
TICK_S = 0.2


def ring(rate_limit, fingerprint=KEY):
    sha256 = fingerprint.ljust(64, "0")
    key = KeyRecord(
        role="reader", label="", fingerprint=fingerprint, sha256=sha256, created_at=0, rate_limit=rate_limit
    )
    return KeyRing([key])


def admitted(limits, keys, now, wanted):
    """How many of so many requests at one instant are admitted."""
    count = 0
    for _ in range(wanted):
        try:
            limits.check(keys, KEY, now)
        except RateLimited:
            continue
        count += 1
    return count


@pytest.fixture
def usage(empty_redis_url):
    opened = Usage(empty_redis_url)
    yield opened
    opened.close()


async def test_a_key_beyond_its_limit_is_429_and_says_when_it_may_again(platform):
    key, secret = platform.registry.create_key("reader", "slow", rate_limit=3)
    await platform.services.current.refresh()
    async with platform.client(None) as client:
        headers = {"Authorization": f"Bearer {secret}"}
        answers = [await client.get("/features", headers=headers) for _ in range(30)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert len(refused) >= 20
        assert refused[0].json()["error"] == "rate_limited"
        assert key.fingerprint in refused[0].json()["detail"]
        assert refused[0].headers["retry-after"] == "1"
        assert (await client.get("/health")).status_code == 200
    async with platform.client("reader") as other:
        assert {(await other.get("/features")).status_code for _ in range(30)} == {200}


async def test_a_limit_holds_for_every_route_and_method(platform):
    _, secret = platform.registry.create_key("admin", "slow", rate_limit=1)
    await platform.services.current.refresh()
    async with platform.client(None) as client:
        client.headers["Authorization"] = f"Bearer {secret}"
        assert (await client.get("/api/v1/featuresets")).status_code == 200
        for method, path in (("GET", "/features"), ("POST", "/features/batch"), ("POST", "/"), ("DELETE", "/nothing")):
            assert (await client.request(method, path)).status_code == 429, path


async def test_the_setting_holds_for_keys_that_name_no_limit(settings, clock):
    from tests.api.conftest import Platform

    serving = settings.serving.model_copy(update={"key_rate_limit": 2})
    limited = Platform(settings.model_copy(update={"serving": serving}), clock)
    _, faster = limited.registry.create_key("reader", "faster", rate_limit=1_000)
    async with limited.application.running(), limited.client("reader") as client:
        assert 429 in {(await client.get("/features")).status_code for _ in range(20)}
        headers = {"Authorization": f"Bearer {faster}"}
        assert {(await client.get("/features", headers=headers)).status_code for _ in range(20)} == {200}
    limited.log.close()
    limited.registry.close()


def test_a_bucket_gives_a_second_at_once_and_then_its_rate(usage):
    limits, keys = RateLimits(usage, None), ring(10)
    assert admitted(limits, keys, 100.0, 50) == 10
    assert admitted(limits, keys, 100.05, 50) == 0
    assert admitted(limits, keys, 100.25, 50) == 2
    assert admitted(limits, keys, 200.0, 50) == 10


def test_a_refusal_says_how_long_to_wait(usage):
    limits, keys = RateLimits(usage, None), ring(4)
    admitted(limits, keys, 0.0, 4)
    with pytest.raises(RateLimited) as caught:
        limits.check(keys, KEY, 0.0)
    assert caught.value.retry_after_s == pytest.approx(0.25)
    assert caught.value.retryable


def test_a_changed_limit_holds_from_then_on_and_an_unchanged_one_keeps_what_was_spent(usage):
    limits = RateLimits(usage, 5)
    assert admitted(limits, ring(10), 0.0, 50) == 10
    assert admitted(limits, ring(10), 0.0, 50) == 0
    assert admitted(limits, ring(20), 0.0, 50) == 20
    assert admitted(limits, ring(None), 0.0, 50) == 5
    assert admitted(RateLimits(usage, None), ring(None), 0.0, 50) == 50


async def flood(replicas, keys, seconds, wanted):
    """Admitted requests of a key that asks each of the replicas as often as it can."""
    count = 0
    for tick in range(round(seconds / TICK_S)):
        now = tick * TICK_S
        for limits in replicas:
            count += admitted(limits, keys, now, wanted)
        for limits in replicas:
            await limits.exchange(now)
    return count


@pytest.mark.parametrize("replicas", [1, 2, 5])
async def test_a_key_that_calls_several_replicas_gets_its_rate_once(usage, replicas):
    rate, seconds, keys = 50, 30, ring(50)
    got = await flood([RateLimits(usage, None) for _ in range(replicas)], keys, seconds, wanted=2 * rate)
    # A second's worth at the start in each replica, until they hear of each other.
    assert 0.9 * rate * seconds <= got <= 1.05 * rate * seconds + rate * replicas


async def test_a_slow_key_that_takes_turns_is_held_to_its_rate_too(usage):
    first, second = RateLimits(usage, None), RateLimits(usage, None)
    keys, count = ring(1), 0
    for turn in range(120):  # one request every half second, to one replica after the other
        now = turn / 2
        count += admitted((first, second)[turn % 2], keys, now, 1)
        await first.exchange(now)
        await second.exchange(now)
    assert 55 <= count <= 64


async def test_replicas_go_on_by_themselves_while_the_store_is_away(usage):
    class Away:
        is_away = True

        def add(self, spent):
            if self.is_away:
                raise StoreUnavailable("the online store does not answer")
            return usage.add(spent)

    between = Away()
    first, second = RateLimits(between, None), RateLimits(usage, None)
    keys = ring(10)
    assert admitted(second, keys, 0.0, 1) == 1
    await second.exchange(0.0)
    assert admitted(first, keys, 0.0, 50) == 10
    with pytest.raises(StoreUnavailable):
        await first.exchange(0.0)
    assert admitted(first, keys, 1.0, 50) == 10
    between.is_away = False
    await first.exchange(1.0)
    await second.exchange(1.0)
    # What was not told is told now: the second replica pays for all twenty.
    assert admitted(second, keys, 1.0, 50) == 0


async def test_replicas_go_on_while_the_store_takes_no_writes(usage, empty_redis_url):
    refused = threading.Semaphore(0)

    class Watched:
        def add(self, spent):
            try:
                return usage.add(spent)
            except StoreUnavailable:
                refused.release()
                raise

    limits, stopping = RateLimits(Watched(), None), asyncio.Event()
    assert admitted(limits, ring(10), time.perf_counter(), 3) == 3
    with redis.Redis.from_url(empty_redis_url) as client:
        client.config_set("min-replicas-to-write", 1)
        sharing = asyncio.create_task(limits.share(stopping))
        try:
            for _ in range(2):  # it asks again after the first
                assert await asyncio.to_thread(refused.acquire, timeout=PATIENCE_S)
        finally:
            client.config_set("min-replicas-to-write", 0)
    async with asyncio.timeout(20):
        while not (await asyncio.to_thread(usage.add, {KEY: 0}))[KEY]:
            pass
    stopping.set()
    await sharing


async def test_the_running_replica_shares_what_is_spent(platform, usage):
    key, secret = platform.registry.create_key("reader", "shared", rate_limit=1_000)
    await platform.services.current.refresh()
    async with platform.client(None) as client, asyncio.timeout(20):
        await client.get("/features", headers={"Authorization": f"Bearer {secret}"})
        while not (await asyncio.to_thread(usage.add, {key.fingerprint: 0}))[key.fingerprint]:
            pass
