"""The example of the Snowflake surface behind a real HTTP server, with workers that go on while requests wait."""

from __future__ import annotations

import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from cluster.processes import wait_until
from cluster.sockets import bind_listener
from featurelib.compile import compile_module
from featurelib.definitions import Commit
from featurelib.engine.program import pipelines_of
from featurelib.settings import Settings
from jobs.pipeline import PipelineTask
from serve_apps.applying import Applying, Target
from serve_apps.listener import Listener
from serve_apps.services import Services, open_services
from serve_apps.web import Application
from tests.api.conftest import NOON, Platform
from tests.support.clocks import MovedClock
from tests.support.patience import PATIENCE_S

EXAMPLE = Path(__file__).parents[2] / "examples" / "snowflake" / "features.py"
JSON = {"Content-Type": "application/json"}
# Idle workers look at their logs this often; a stop is answered at once.
_IDLE_S = 0.002


class Served(NamedTuple):
    """A platform that answers on a port.

    ``producer`` may write, ``consumer`` may read, ``owner`` may do everything, and ``stranger`` sends no key.
    """

    url: str
    platform: Platform
    producer: httpx2.Client
    consumer: httpx2.Client
    owner: httpx2.Client
    stranger: httpx2.Client

    def commit(self, commit: Commit) -> None:
        """Commit, and wait until the server has it."""
        answer = self.owner.post("/api/v1/commit", content=commit.model_dump_json())
        assert answer.status_code == 200, answer.text
        version, current = self.platform.registry.version(), self.platform.services.current
        assert wait_until(lambda: current.snapshot.version >= version, PATIENCE_S, 0.005)
        self.platform.create_logs()


def example() -> Commit:
    return compile_module(EXAMPLE)


def pat(platform: Platform, role: str) -> Mapping[str, str]:
    """What a client sends that has a programmatic access token."""
    return {"Authorization": f'Snowflake Token="{platform.keys[role][1]}"', **JSON}


@contextmanager
def serving(
    folder: Path, redis_url: str, migrated: Path, snowflake: dict | None = None, **more: object
) -> Iterator[Served]:
    """Serve the example until the block ends; ``snowflake`` and ``more`` of ``serving`` are settings that differ."""
    shutil.copy(migrated, folder / "registry.db")
    chosen = Settings(
        data_dir=folder,
        online={"redis_url": redis_url},
        registry={"url": f"sqlite:///{folder}/registry.db"},
        serving={"plan_poll_ms": 20, "max_body_bytes": 262_144, "query_run_writer": "thread", **more},
        snowflake=snowflake or {},
    )
    clock = MovedClock(NOON)
    platform = Platform(chosen, clock)

    @asynccontextmanager
    async def opening() -> AsyncIterator[Services]:
        async with open_services(chosen, clock) as services:
            platform.services = services
            yield services

    listener = Listener(Application(opening), bind_listener("127.0.0.1", 0))
    listener.start()
    url = f"http://127.0.0.1:{listener.port}"
    sent = [*(pat(platform, role) for role in ("writer", "reader", "admin")), JSON]
    clients = [httpx2.Client(base_url=url, headers=headers, timeout=PATIENCE_S) for headers in sent]
    served = Served(url, platform, *clients)
    try:
        served.commit(example())
        yield served
    finally:
        for client in clients:
            client.close()
        listener.stop()
        platform.log.close()
        platform.registry.close()


@contextmanager
def workers(platform: Platform, names: Collection[str] = ()) -> Iterator[None]:
    """The pipelines of these names are applied, all that are committed if none is named, until the block ends."""
    definitions, partitions = platform.registry.definitions(), platform.settings.pipeline.partition_count
    tasks = [
        PipelineTask(
            pipeline,
            definitions,
            partition=partition,
            partitions=partitions,
            generation=1,
            settings=platform.settings,
        )
        for pipeline in pipelines_of(definitions)
        if not names or pipeline.name in names
        for partition in range(partitions)
    ]
    stopping = threading.Event()
    thread = threading.Thread(target=_work, args=(tasks, stopping))
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        for task in tasks:
            task.close()


def _work(tasks: list[PipelineTask], stopping: threading.Event) -> None:
    for task in tasks:
        task.start()
    while not stopping.is_set():
        if sum(task.step() for task in tasks) == 0:
            stopping.wait(_IDLE_S)


@contextmanager
def impatient_with(pipeline: str) -> Iterator[None]:
    """Wait for one pipeline, of which nobody works, a moment only; for others however busy the machine is."""
    whole = Applying.wait

    def wait(applying: Applying, each: str, targets: Sequence[Target], within_s: float) -> Awaitable[bool]:
        return whole(applying, each, targets, 0.1 if each == pipeline else within_s)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Applying, "wait", wait)
        yield
