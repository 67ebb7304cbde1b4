"""User code behind the routes: in the replica and in child processes, well behaved and not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from featurelib.compile import compile_module
from featurelib.engine.processes import HUNG_STATUS
from featurelib.errors import ClusterError
from featurelib.settings import ServingSettings, Settings
from serve_apps.isolation import QUARANTINED
from tests.api.conftest import Platform
from tests.support.clocks import MovedClock

SHOPS = [
    {"shop": "a", "rent": 45.0, "owner": "b", "at": "2026-03-01T09:00:00Z"},
    {"shop": "b", "rent": 30.0, "owner": "a", "at": "2026-03-01T09:00:00Z"},
    {"shop": "b", "rent": 90.0, "owner": "nobody", "at": "2026-03-01T11:00:00Z"},
]
PATIENT = {"extractor_soft_limit_ms": 20_000, "extractor_hard_limit_ms": 30_000}
HASTY = {"extractor_soft_limit_ms": 50, "extractor_hard_limit_ms": 200}

Start = Callable[..., AbstractAsyncContextManager[Platform]]


@pytest.fixture
def start(settings: Settings, clock: MovedClock) -> Start:
    """Runs a platform of its own with other limits; a second one over the same stores is a replica put in its place."""

    @asynccontextmanager
    async def start(**serving: Any) -> AsyncIterator[Platform]:
        group = ServingSettings(**{**settings.serving.model_dump(), **serving})
        platform = Platform(settings.model_copy(update={"serving": group}), clock)
        async with platform.application.running() as services:
            platform.services = services
            yield platform
        platform.log.close()
        platform.registry.close()

    return start


async def open_shops(platform: Platform) -> None:
    commit = compile_module(Path(__file__).parent / "user_code.py")
    async with platform.client() as client:
        done = await client.post("/api/v1/commit", content=commit.model_dump_json())
        assert done.status_code == 200, done.text
        platform.create_logs()
        done = await client.post("/api/v1/log", json={"dataset": "Shop", "events": SHOPS})
        assert done.json()["events_sent"] == len(SHOPS), done.text
    platform.fold()


async def ask(platform: Platform, featureset: str, entity: str = "a", **body: Any) -> httpx2.Response:
    async with platform.client() as client:
        return await client.post("/features", json={"featureset": featureset, "entity_id": entity, **body})


@pytest.mark.parametrize("isolation", ["inline", "process"])
async def test_extractors_mean_the_same_in_both_isolation_modes(start, isolation):
    async with start(extractor_isolation=isolation, extractor_processes=1, **PATIENT) as platform:
        await open_shops(platform)
        async with platform.client() as client:
            batch = await client.post("/features/batch", json={"featureset": "Whole", "entity_ids": ["a", "b"] * 100})
            owned = await client.post("/features/batch", json={"featureset": "Owned", "entity_ids": ["a", "b", "c"]})
        single = await ask(platform, "Whole")
        now = await ask(platform, "Owned")
        then = await ask(platform, "Owned", timestamp="2026-03-01T10:00:00Z")
    assert batch.json()["values"][:2] == [["a", "a", 45.0, 0.5, 200, 1], ["b", "b", 90.0, 1.0, 200, 1]]
    assert single.json()["features"] == {"shop": "a", "rent": 45.0, "share": 1.0, "rows": 1, "call": 2}
    assert [row[-1] for row in owned.json()["values"]] == [90.0, None, None]
    assert (now.json()["features"]["theirs"], then.json()["features"]["theirs"]) == (90.0, 30.0)


@pytest.mark.parametrize("isolation", ["inline", "process"])
async def test_a_loop_is_interrupted_and_the_next_request_is_answered(start, isolation):
    async with start(extractor_isolation=isolation, extractor_processes=1) as platform:
        await open_shops(platform)
    async with start(
        extractor_isolation=isolation,
        extractor_processes=1,
        extractor_soft_limit_ms=50,
        extractor_hard_limit_ms=30_000,
    ) as platform:
        refused = await ask(platform, "Looping", inputs={"forever": True})
        assert (refused.status_code, refused.json()["error"]) == (500, "user_code_error")
        assert "user_code.py:" in refused.json()["detail"]
        assert "took longer than 50 ms and was interrupted" in refused.json()["detail"]
        assert (await ask(platform, "Looping", inputs={"forever": False})).json()["features"]["y"] == 1.0
        platform.services.check_background()


LOOPS = """
from featurelib import *
from tests.api.user_code import Looping

@featureset
class Branches:
    shop: str = feature()
    branches: list[str] = feature()

    @extractor
    @extractor_inputs("shop")
    @extractor_outputs("branches")
    def endless(cls, ts, shop):
        while True:
            pass

@featureset
class Branch:
    branch: str = feature()
    length: int = feature()

    @extractor
    @extractor_inputs("branch")
    @extractor_outputs("length")
    def measure(cls, ts, branch):
        return len(branch)

loops = FeatureService("loops", [Looping])
branches = FeatureService(
    "branches", [Slice(Branch, join_keys=["branch"]), Slice(Looping, join_keys=["shop"])],
    join_keys={"shop": str, "branch": str}, wildcard=Wildcard("branch", Branches.branches),
)
"""


@pytest.mark.parametrize("isolation", ["inline", "process"])
async def test_an_extractor_beyond_its_limit_is_told_in_the_words_of_every_door(start, isolation, tmp_path):
    (tmp_path / "loops.py").write_text(LOOPS)
    async with start(extractor_isolation=isolation, extractor_processes=1) as platform:
        await open_shops(platform)
        async with platform.client() as client:
            loops = compile_module(tmp_path / "loops.py", platform.registry.definitions())
            assert (await client.post("/api/v1/commit", content=loops.model_dump_json())).is_success
    limits = {"extractor_soft_limit_ms": 50, "extractor_hard_limit_ms": 30_000}
    context = {"forever": True}
    params = {"featureServiceName": "loops", "workspaceName": "prod", "joinKeyMap": {"shop": "a"}}
    rows = [{"entity": {"shop": "a"}, "request_context": context}]
    asked = {"name": "Looping", "version": "v1", "object_type": "feature_view", "request_rows": rows}
    limited = start(extractor_isolation=isolation, extractor_processes=1, **limits)
    async with limited as platform, platform.client() as client:
        path = "/api/v1/feature-service/"
        body = {"params": {**params, "requestContextMap": context}}
        tecton = await client.post(f"{path}get-features", json=body)
        body = {"params": {**params, "featureServiceName": "branches", "requestContextMap": context}}
        wildcard = await client.post(f"{path}query-features", json=body)
        snowflake = await client.post(
            "/api/v1/query", json={**asked, "metadata_options": {"include_serving_status": True}}
        )
    assert [(each.status_code, each.json()["code"]) for each in (tecton, wildcard)] == [(504, 4)] * 2
    assert tecton.json()["message"].startswith("Timed out: ")
    assert "Looping." in tecton.json()["message"]
    assert "took longer than 50 ms and was interrupted" in tecton.json()["message"]
    assert snowflake.status_code == 207
    assert snowflake.json()["results"] == [{"features": [None], "status": ["TIME_OUT"]}]


async def test_an_extractor_that_cannot_be_stopped_is_quarantined_and_its_replica_replaced(start):
    async with start(**PATIENT) as platform:
        await open_shops(platform)
    async with start(**HASTY) as platform:
        refused = await ask(platform, "Waiting", inputs={"seconds": 1.0})
        assert refused.json()["error"] == "user_code_error"
        (event,) = platform.registry.events(event_type=QUARANTINED)
        assert (event.severity, event.subject) == ("error", "Waiting.wait")
        assert "user_code.py:" in event.message
        with pytest.raises(ClusterError, match=r"Waiting\.wait"):
            await platform.application.check()
        async with platform.client() as client:
            assert (await client.get("/health")).status_code == 500
    async with start(**PATIENT) as replacement:
        refused = await ask(replacement, "Waiting", inputs={"seconds": 0.0})
        assert "could not be interrupted; it is not called again" in refused.json()["detail"]
        assert (await ask(replacement, "Owned")).json()["features"]["theirs"] == 90.0
        await replacement.application.check()


async def test_a_changed_extractor_is_out_of_quarantine(start, tmp_path):
    async with start(**PATIENT) as platform:
        await open_shops(platform)
    async with start(**HASTY) as platform:
        await ask(platform, "Waiting", inputs={"seconds": 1.0})
    text = (Path(__file__).parent / "user_code.py").read_text()
    mended = tmp_path / "mended.py"
    mended.write_text(text.replace("threading.Event().wait(seconds)", "threading.Event().wait(0)"))
    async with start(**PATIENT) as replacement:
        async with replacement.client() as client:
            done = await client.post("/api/v1/commit", content=compile_module(mended).model_dump_json())
            assert done.status_code == 200, done.text
        await replacement.services.current.refresh()
        assert (await ask(replacement, "Waiting", inputs={"seconds": 1.0})).json()["features"]["y"] == 1.0


async def test_a_process_that_ends_or_hangs_is_replaced_and_the_replica_stays(start):
    async with start(**PATIENT) as platform:
        await open_shops(platform)
    limits = {"extractor_soft_limit_ms": 100, "extractor_hard_limit_ms": 1_000}
    async with start(extractor_isolation="process", extractor_processes=1, **limits) as platform:
        ended = await ask(platform, "Ending", inputs={"status": 3})
        assert "ended its process (exit status 3)" in ended.json()["detail"]
        hanging = await ask(platform, "Waiting", inputs={"seconds": 600.0})
        assert "its process was killed and replaced" in hanging.json()["detail"]
        # Ended itself before anybody came to kill it.
        late = await ask(platform, "Ending", inputs={"status": HUNG_STATUS})
        assert "took longer than 1000 ms; its process was killed and replaced" in late.json()["detail"]
        assert (await ask(platform, "Ending", inputs={"status": 0})).json()["features"]["y"] == 1.0
        platform.services.check_background()
        assert platform.registry.events(event_type=QUARANTINED) == []


def test_a_hard_limit_below_the_soft_one_is_refused():
    with pytest.raises(ValueError, match="nothing would be interrupted"):
        ServingSettings(extractor_soft_limit_ms=100, extractor_hard_limit_ms=50)
