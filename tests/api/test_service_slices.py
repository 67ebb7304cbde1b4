"""A slice of a feature service computes its own features and what they are made of, and nothing else."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from featurelib.clock import MINUTE
from featurelib.compile import compile_module
from featurelib.engine.extractor import INLINE
from featurelib.errors import DefinitionError
from jobs.consistency import ConsistencyCheck
from jobs.reread import Versions
from tests.api.conftest import Platform

READ = "/api/v1/feature-service/get-features"
DECLARED = """
from featurelib import *
from datetime import datetime
from tests.api.rides import Fragile, Rider, RiderStats

@dataset(index=True)
class Home:
    rider: int = field(key=True)
    town: str = field()
    at: datetime = field(timestamp=True)

@featureset(entity_type="rider")
class Offer:
    rider: int = feature()
    distance: float = feature(request=True)
    trips: int = feature(ref=RiderStats.trips, default=0)
    fare: float = feature(ref=RiderStats.mean)
    price: float = feature()
    rounded: int = feature()
    spoiled: int = feature()

    @extractor
    @extractor_inputs("distance", "fare")
    @extractor_outputs("price", "rounded")
    def priced(cls, ts, distance, fare):
        return distance * fare, round(distance * fare)

    @extractor(deps=[Rider])
    @extractor_inputs(Rider.spent)
    @extractor_outputs("spoiled")
    def spoil(cls, ts, spent):
        raise ValueError("always")

@featureset(entity_type="rider")
class Known:
    rider: int = feature()
    trips: int = feature(ref=RiderStats.trips)
    town: str = feature(ref=Home.town)

sliced = FeatureService("sliced", [Offer.slice("trips")], request_context={})
priced = FeatureService("priced", [Offer.slice("rounded")], request_context={"distance": float})
named = FeatureService("named", [Offer.slice("trips")], request_context={"distance": float})
whole = FeatureService("whole", [Offer], request_context={"distance": float})
fragile = FeatureService("fragile", [Fragile.slice("trips")], request_context={})
"""
UNDECLARED = """
unpriced = FeatureService("unpriced", [Offer.slice("rounded")], request_context={})
"""


@pytest.fixture
async def services(rides, platform: Platform, tmp_path) -> httpx2.AsyncClient:
    """A client of a platform with the rides, and services of slices."""
    (tmp_path / "sliced.py").write_text(DECLARED)
    commit = compile_module(tmp_path / "sliced.py", platform.registry.definitions())
    done = await rides.post("/api/v1/commit", content=commit.model_dump_json())
    assert done.is_success, done.text
    await platform.services.current.refresh()
    return rides


async def read(client: httpx2.AsyncClient, service: str, rider: int = 7, **params: Any) -> httpx2.Response:
    asked = {"featureServiceName": service, "workspaceName": "prod", "joinKeyMap": {"rider": rider}, **params}
    return await client.post(READ, json={"params": asked})


def features(answer: httpx2.Response) -> list[Any]:
    assert answer.is_success, answer.text
    found: list[Any] = answer.json()["result"]["features"]
    return found


async def test_an_extractor_that_the_slice_does_not_need_does_not_run(services):
    assert (await read(services, "fragile", rider=99)).json()["result"]["features"] == ["0"]
    failed = await read(services, "whole", requestContextMap={"distance": 2.0})
    assert (failed.status_code, failed.json()["code"]) == (500, 13)


async def test_what_only_other_features_take_need_not_be_declared_or_sent(services):
    assert features(await read(services, "sliced")) == ["2"]


async def test_what_only_other_features_take_may_be_declared_and_then_need_not_be_sent(services):
    assert features(await read(services, "named")) == ["2"]
    assert features(await read(services, "named", requestContextMap={"distance": 3.0})) == ["2"]


async def test_what_a_feature_of_the_slice_is_made_of_must_be_sent(services):
    refused = await read(services, "priced")
    assert (refused.status_code, refused.json()["code"]) == (400, 3)
    assert "distance" in refused.json()["message"]
    assert features(await read(services, "priced", requestContextMap={"distance": 2.0})) == ["15"]


async def test_a_service_that_needs_what_it_does_not_declare_is_refused(services, platform, tmp_path):
    (tmp_path / "undeclared.py").write_text(DECLARED + UNDECLARED)
    with pytest.raises(DefinitionError, match="takes `distance` from the request"):
        compile_module(tmp_path / "undeclared.py", platform.registry.definitions())


async def test_rows_that_the_slice_does_not_need_are_not_read(services, platform):
    snapshot = platform.services.current.snapshot
    whole, sliced = snapshot.plan("Known"), snapshot.plan("Known", ("town",))
    assert (len(whole.pipelines), len(sliced.pipelines)) == (2, 1)
    assert sliced.pipelines[0] in whole.pipelines
    assert sliced.feature_names == ("rider", "town")
    assert snapshot.plan("Known", ("town",)) is sliced
    assert snapshot.plan("Known", ("trips", "town")) is whole


@pytest.mark.parametrize("knowledge", ["latest", "as_served"])
async def test_a_run_of_a_slice_is_replayed_with_the_features_it_gave(services, platform, knowledge):
    run = (await read(services, "priced", requestContextMap={"distance": 2.0})).headers["x-query-run-id"]
    await platform.services.writer.flush()
    async with platform.client("admin") as admin:
        replayed = (await admin.post(f"/query-runs/{run}/replay", params={"knowledge": knowledge})).json()
    assert replayed["features"] == dict.fromkeys(("rider", "distance", "fare", "price", "rounded"), "same")


async def test_rows_of_a_batch_are_those_of_single_reads(services):
    rows = [{"joinKeyMap": {"rider": rider}, "requestContextMap": {"distance": 2.0}} for rider in (7, 8)]
    asked = {"featureServiceName": "priced", "workspaceName": "prod", "requestData": rows}
    batch = (await services.post(f"{READ}-batch", json={"params": asked})).json()["result"]
    alone = [await read(services, "priced", rider=rider, requestContextMap={"distance": 2.0}) for rider in (7, 8)]
    assert [each["features"] for each in batch] == [features(each) for each in alone]


async def test_the_monitor_compares_runs_of_a_slice_and_of_the_whole_by_what_each_gave(services, platform):
    monitor = ConsistencyCheck(
        platform.registry,
        platform.services.stores.history,
        platform.services.digests,
        versions=Versions(platform.registry, INLINE),
        settings=platform.settings.monitor,
        clock=platform.clock,
    )
    monitor.round()
    platform.clock.advance(MINUTE)
    for service, context in (("sliced", {}), ("priced", {"distance": 2.0}), ("fragile", {})):
        await read(services, service, requestContextMap=context)
    await platform.services.writer.flush()
    platform.clock.advance(MINUTE)
    done = monitor.round()
    assert (done.runs, done.failed) == (3, 0)
    compared = {(each.target, each.feature): each.compared for each in done.tallies}
    names = ("rider", "trips", "distance", "fare", "price", "rounded")
    expected = {("Offer", name): 1 for name in names} | {("Offer", "rider"): 2}
    assert compared == expected | {("Fragile", "rider"): 1, ("Fragile", "trips"): 1}
    assert not any(each.different for each in done.tallies)
