"""Limits of Tecton's feature service: what is too slow, too large, too much at once, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import tecton_client
from tecton_client import exceptions as refused

from featurelib.compile import compile_module
from featurelib.definitions import Commit
from featurelib.settings import Settings
from serve_apps.auth import Caller
from serve_apps.messages import Call
from serve_apps.run_log import RunLog
from serve_apps.service_plan import compile_service
from serve_apps.service_reads import AskedRow, How, ServiceReads
from tests.api.conftest import NOON, RIDES, Platform
from tests.support.clocks import MovedClock

READ = "/api/v1/feature-service/get-features"
SERVICES = """
from featurelib import *
from tests.api.rides import Quote, Rider

taken = {"distance": float}
rides = FeatureService("rides", [Quote.slice("price"), Rider.slice("trips", "cities")], request_context=taken)
alone = FeatureService("alone", [Rider.slice("trips")], request_context={})
"""
PARAMS = {"workspaceName": "prod", "joinKeyMap": {"rider": "7"}}
RIDES_OF_7 = PARAMS | {"featureServiceName": "rides", "requestContextMap": {"distance": 10.0}}
TRIPS_OF_7 = PARAMS | {"featureServiceName": "alone"}


@pytest.fixture
def limits() -> dict[str, Any]:
    return {"time_limit_ms": 2_000}


@pytest.fixture
async def platform(tmp_path, redis_server, migrated, limits) -> AsyncIterator[Platform]:
    """Over a Redis of its own, with the rides and two services of them; every read asks it."""
    shutil.copy(migrated, tmp_path / "registry.db")
    settings = Settings(
        data_dir=tmp_path,
        online={"redis_url": redis_server.url},
        registry={"url": f"sqlite:///{tmp_path}/registry.db"},
        serving={"plan_poll_ms": 20, "query_run_writer": "thread", "watch_keys": False},
        tecton=limits,
    )
    (tmp_path / "services.py").write_text(SERVICES)
    platform = Platform(settings, MovedClock(NOON))
    async with platform.application.running() as services, platform.client() as client:
        platform.services = services
        assert (await platform.commit_rides(client)).is_success
        commit = compile_module(tmp_path / "services.py", platform.registry.definitions())
        assert (await client.post("/api/v1/commit", content=commit.model_dump_json())).is_success
        platform.create_logs()
        assert (await client.post("/api/v1/log", json={"dataset": "Ride", "events": RIDES})).is_success
        platform.fold()
        await services.current.refresh()
        yield platform
    platform.log.close()
    platform.registry.close()


async def read(client: Any, params: dict[str, Any], **more: Any) -> Any:
    return await client.post(READ, json={"params": {**params, **more}})


async def read_by_the_published_client(platform: Platform, service: str = "alone") -> Any:
    """Through the published client, over the application itself."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(platform.application)) as http:
        client = tecton_client.AsyncTectonClient("http://thyme", platform.keys["reader"][1], "prod", http)
        return await client.get_features(feature_service_name=service, join_key_map={"rider": 7})


@contextmanager
def hanging(redis_server) -> Iterator[None]:
    """The store answers nobody until the block ends."""
    with redis_server.client() as store:
        (pid,) = (store.info("server")["process_id"],)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("limits", [{"time_limit_ms": 200}])
@pytest.mark.parametrize("params", [TRIPS_OF_7, RIDES_OF_7])
async def test_a_read_that_takes_too_long_is_a_504(platform, client, redis_server, params):
    with hanging(redis_server):
        answer = await read(client, params)
        with pytest.raises(refused.GatewayTimeoutError, match="Timed out"):
            await read_by_the_published_client(platform)
    assert (answer.status_code, answer.json()["code"]) == (504, 4)
    assert answer.json()["message"].startswith("Timed out")
    assert (await read(client, params)).is_success


@pytest.mark.parametrize("limits", [{"time_limit_ms": 200}])
async def test_a_read_that_took_too_long_is_recorded_with_its_error(platform, client, redis_server):
    with hanging(redis_server):
        await read(client, TRIPS_OF_7)
    await platform.services.writer.flush()
    found = await client.get("/query-runs", params={"featureset": "Rider", "error": "true"})
    (run,) = found.json()["runs"]
    assert (run["entity_ids"], run["error"].partition(":")[0]) == (["7"], "timed_out")


async def test_what_is_not_read_within_the_budget_is_null_and_says_so(platform, client, redis_server):
    asked = {"requestOptions": {"latencyBudgetMs": 100}, "metadataOptions": {"includeServingStatus": True}}
    with hanging(redis_server):
        answer = (await read(client, RIDES_OF_7, **asked)).json()
    assert answer["result"]["features"] == [15.0, None, None]
    assert [each["status"] for each in answer["metadata"]["features"]] == ["PRESENT", "TIME_OUT", "TIME_OUT"]


@pytest.mark.parametrize("limits", [{"concurrent_reads": 1}])
async def test_more_reads_than_may_be_under_way_are_a_429(platform, client, redis_server):
    with hanging(redis_server):
        sent = [asyncio.create_task(read(client, TRIPS_OF_7)) for _ in range(2)]
        (done,), waiting = await asyncio.wait(sent, return_when=asyncio.FIRST_COMPLETED)
        with pytest.raises(refused.ResourceExhaustedError, match="concurrent request limit"):
            await read_by_the_published_client(platform)
    refusal = await done
    assert [(await each).status_code for each in waiting] == [200]
    assert (refusal.status_code, refusal.json()["code"]) == (429, 8)
    assert "GetFeatures exceeded the concurrent request limit, please retry later" in refusal.json()["message"]
    assert refusal.headers["retry-after"]
    assert (await read(client, TRIPS_OF_7)).is_success


@pytest.mark.parametrize("limits", [{"read_limit_bytes": 10}])
async def test_a_read_beyond_the_limit_on_bytes_fails_or_is_partial(platform, client):
    refusal = await read(client, RIDES_OF_7)
    assert (refusal.status_code, refusal.json()["code"]) == (400, 9)
    assert "at most 10" in refusal.json()["message"]
    told = {"metadataOptions": {"includeServingStatus": True, "includeSloInfo": True}}
    partial = (await read(client, RIDES_OF_7, allowPartialResults=True, **told)).json()
    assert partial["result"]["features"] == [15.0, None, None]
    assert partial["metadata"]["partialResults"] is True
    assert [each["status"] for each in partial["metadata"]["features"]] == ["PRESENT"] + ["UNKNOWN_STATUS"] * 2
    info = partial["metadata"]["sloInfo"]
    assert info["sloEligible"] is False
    assert "REDIS_RESPONSE_SIZE_LIMIT_EXCEEDED" in info["sloIneligibilityReasons"]


async def test_a_whole_answer_does_not_say_that_it_is_partial(platform, client):
    assert "partialResults" not in (await read(client, RIDES_OF_7, allowPartialResults=True)).json()["metadata"]


async def test_a_read_is_answered_by_the_definitions_it_began_with(platform, client):
    services, row = platform.services, AskedRow({"rider": 7}, {"distance": 10.0})
    then = services.current.snapshot
    plan = compile_service(then.definitions.feature_service("prod", "rides"), then)
    rider = then.definitions.featureset("Rider")
    moved = rider.model_copy(update={"features": (rider.features[0], *reversed(rider.features[1:]))})
    call = Call("POST", b"", b"", Caller(None, None), "moved", time.perf_counter())
    reads = ServiceReads(services, RunLog(services))
    before = await reads.read(call, plan, [row], How())
    assert (await client.post("/api/v1/commit", content=Commit(featuresets=(moved,)).model_dump_json())).is_success
    await services.current.refresh()
    assert services.current.snapshot.plan("Rider").feature_names != then.plan("Rider").feature_names
    assert (await reads.read(call, plan, [row], How())).values == before.values


async def test_a_store_that_is_gone_is_a_503(platform, client, redis_server):
    redis_server.kill()
    answer = await read(client, TRIPS_OF_7)
    assert (answer.status_code, answer.json()["code"]) == (503, 14)
    with pytest.raises(refused.ServiceUnavailableError, match="does not answer"):
        await read_by_the_published_client(platform)
    redis_server.start()
