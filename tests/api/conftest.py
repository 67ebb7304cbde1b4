"""The whole application in process: real registry on SQLite, real log and online store on Valkey, real engine."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import httpx2
import pytest

from featurelib.clock import parse_instant
from featurelib.compile import compile_module
from featurelib.definitions import ref
from featurelib.engine.program import pipelines_of
from featurelib.errors import StoreUnavailable
from featurelib.settings import Settings
from featurelib.stores.log import Log
from featurelib.stores.registry import Registry
from jobs.pipeline import PipelineTask
from serve_apps.services import Services, open_services
from serve_apps.web import Application
from tests.support.clocks import MovedClock

NOON = parse_instant("2026-03-01T12:00:00Z")
RIDES = [
    {"ride": "r1", "rider": 7, "city": "Oslo", "fare": 10.0, "at": "2026-03-01T09:00:00Z"},
    {"ride": "r2", "rider": 7, "city": "Bergen", "fare": 5.0, "at": "2026-03-01T11:00:00Z"},
    {"ride": "r3", "rider": 8, "city": "Oslo", "fare": 4.0, "at": "2026-03-01T10:00:00Z"},
]
CITIES = [
    {"city": "Oslo", "country": "NO", "opened": "2020-01-01T00:00:00Z", "at": "2026-01-01T00:00:00Z"},
    {"city": "Bergen", "country": "NO", "opened": "2021-01-01T00:00:00Z", "at": "2026-01-01T00:00:00Z"},
]


@cache
def _rides() -> str:
    return compile_module(Path(__file__).parent / "rides.py").model_dump_json()


class InProcess(httpx2.ASGITransport):
    """Requests that come over no wire: a replica that reads one off a socket has read the store's news off another."""

    def __init__(self, platform: Platform) -> None:
        super().__init__(platform.application, raise_app_exceptions=True)
        self._platform = platform

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        services = getattr(self._platform, "services", None)  # a test may not have opened any yet
        if services is not None:
            with suppress(StoreUnavailable, TimeoutError):  # a test may have stopped the store
                async with asyncio.timeout(0.5):
                    await services.stores.online.ping()
        return await super().handle_async_request(request)


class Platform:
    """Application, its stores, and a client per role."""

    def __init__(self, settings: Settings, clock: MovedClock) -> None:
        self.settings = settings
        self.clock = clock
        self.registry = Registry(settings.registry_url, clock)
        self.log = Log(settings.online.redis_url.get_secret_value(), clock)
        self.keys = {role: self.registry.create_key(role, role) for role in ("reader", "writer", "admin")}
        self.application = Application(lambda: open_services(settings, clock))
        self.services: Services

    def client(self, role: str | None = "writer") -> httpx2.AsyncClient:
        headers = {} if role is None else {"Authorization": f"Bearer {self.keys[role][1]}"}
        # Errors of the application must come back as answers, never as exceptions in the client.
        return httpx2.AsyncClient(transport=InProcess(self), base_url="http://thyme", headers=headers)

    async def commit_rides(self, client: httpx2.AsyncClient) -> httpx2.Response:
        return await client.post("/api/v1/commit", content=_rides())

    def fold(self) -> None:
        """Apply everything in the log, as the workers of the embedded platform would."""
        definitions = self.registry.definitions()
        for pipeline in pipelines_of(definitions):
            for partition in range(self.settings.pipeline.partition_count):
                task = PipelineTask(
                    pipeline, definitions, partition=partition, partitions=2, generation=1, settings=self.settings
                )
                task.start()
                while task.step():
                    pass
                task.close()

    def create_logs(self) -> None:
        for dataset in self.registry.definitions().datasets:
            self.log.create(ref(dataset), self.settings.pipeline.partition_count)


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock(NOON)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry that was migrated once; each test has a copy."""
    path = tmp_path_factory.mktemp("registry") / "registry.db"
    registry = Registry(f"sqlite:///{path}", MovedClock(NOON))
    registry.migrate()
    registry.close()
    return path


@pytest.fixture
def settings(tmp_path: Path, empty_redis_url: str, migrated: Path) -> Settings:
    shutil.copy(migrated, tmp_path / "registry.db")
    return Settings(
        data_dir=tmp_path,
        online={"redis_url": empty_redis_url},
        registry={"url": f"sqlite:///{tmp_path}/registry.db"},
        serving={"plan_poll_ms": 20, "max_body_bytes": 65_536, "query_run_writer": "thread"},
    )


@pytest.fixture
async def platform(settings: Settings, clock: MovedClock) -> AsyncIterator[Platform]:
    """Running, with nothing committed."""
    platform = Platform(settings, clock)
    async with platform.application.running() as services:
        platform.services = services
        yield platform
    platform.log.close()
    platform.registry.close()


@pytest.fixture
async def client(platform: Platform) -> AsyncIterator[httpx2.AsyncClient]:
    """A writer's client."""
    async with platform.client() as client:
        yield client


@pytest.fixture
async def rides(platform: Platform, client: httpx2.AsyncClient) -> AsyncIterator[httpx2.AsyncClient]:
    """A writer's client of a platform with the rides committed, logged and folded."""
    done = await platform.commit_rides(client)
    assert done.status_code == 200, done.text
    platform.create_logs()
    for dataset, events in (("Ride", RIDES), ("City", CITIES)):
        done = await client.post("/api/v1/log", json={"dataset": dataset, "events": events})
        assert done.json()["events_sent"] == len(events), done.text
    platform.fold()
    yield client
