"""An online store that hangs: whoever sends records waits, and the replica goes on with its own work."""

import asyncio
import os
import shutil
import signal
import threading

import anyio.to_thread
import pytest

from featurelib.settings import Settings
from serve_apps.routes import intake
from tests.api.conftest import NOON, RIDES, Platform
from tests.support.clocks import MovedClock

DELIVERIES = 40
# How many asyncio has of its own.
OWN_THREADS = min(32, (os.cpu_count() or 1) + 4)


@pytest.fixture
async def platform(tmp_path, redis_server, migrated):
    """Over a Redis of its own, with the rides committed."""
    shutil.copy(migrated, tmp_path / "registry.db")
    settings = Settings(
        data_dir=tmp_path,
        online={"redis_url": redis_server.url},
        registry={"url": f"sqlite:///{tmp_path}/registry.db"},
        serving={"plan_poll_ms": 20},
    )
    platform = Platform(settings, MovedClock(NOON))
    async with platform.application.running() as services, platform.client() as client:
        platform.services = services
        assert (await platform.commit_rides(client)).is_success
        platform.create_logs()
        yield platform
    platform.log.close()
    platform.registry.close()


async def test_a_revoked_key_is_noticed_while_deliveries_wait_for_the_store(platform, redis_server, monkeypatch):
    entered, logged = threading.Semaphore(0), intake._logged

    def noted(*arguments):
        entered.release()
        return logged(*arguments)

    monkeypatch.setattr(intake, "_logged", noted)
    fingerprint = platform.keys["reader"][0].fingerprint
    async with platform.client() as writer, platform.client("reader") as reader:
        body = {"dataset": "Ride", "events": RIDES}
        assert (await writer.post("/api/v1/log", json=body)).is_success
        with redis_server.client() as store:
            (pid,) = (store.info("server")["process_id"],)
        os.kill(pid, signal.SIGSTOP)
        try:
            sent = [asyncio.create_task(writer.post("/api/v1/log", json=body)) for _ in range(DELIVERIES)]
            async with asyncio.timeout(20):
                for _ in range(OWN_THREADS):
                    await anyio.to_thread.run_sync(entered.acquire, True, 5, limiter=anyio.CapacityLimiter(1))
                platform.registry.revoke_key(fingerprint)
                while (await reader.get("/features")).status_code != 401:
                    await anyio.to_thread.run_sync(platform.registry.version, limiter=anyio.CapacityLimiter(1))
            assert not any(each.done() for each in sent)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert all(answer.is_success for answer in await asyncio.gather(*sent))
