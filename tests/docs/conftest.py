"""A platform for the documentation's examples: both services and the workers, in this process, over real stores."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from featurelib.clock import SystemClock
from featurelib.definitions import ref
from featurelib.settings import Settings
from featurelib.stores.archive import Archive
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.online import OnlineReader
from featurelib.stores.point_in_time import PointInTime
from featurelib.stores.registry import Registry
from jobs.pipeline import PipelineTask
from jobs.wanted import log_datasets, pipelines_of
from serve_apps.services import Services, Stores
from serve_apps.web import Application


class DocsPlatform:
    """Serves on a free port; :meth:`fold` does what the workers of a running platform do all the time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis_url = settings.online.redis_url.get_secret_value()
        self._registry = Registry(settings.registry_url, SystemClock())
        self._registry.migrate()
        self.key = self._registry.create_key("admin", "docs")[1]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        config = uvicorn.Config(Application(self._open), log_level="warning", lifespan="on")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def start(self) -> None:
        """Begin to answer; what is asked meanwhile waits in the listening socket."""
        self._thread.start()

    def stop(self) -> None:
        """End the server and close the stores."""
        self._server.should_exit = True
        self._thread.join(10.0)
        self._listener.close()
        self._registry.close()

    def fold(self) -> None:
        """Apply everything that is in the log."""
        definitions = self._registry.definitions()
        log = Log(self._redis_url, SystemClock())
        for dataset in log_datasets(definitions):
            log.create(ref(dataset), self._settings.pipeline.partition_count)
        log.close()
        for pipeline in pipelines_of(definitions):
            for partition in range(self._settings.pipeline.partition_count):
                task = PipelineTask(pipeline, definitions, partition, 1, self._settings)
                task.start()
                while task.step():
                    pass
                task.close()

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._listener]))

    def _open(self):
        clock = SystemClock()
        log = Log(self._redis_url, clock)
        history = PointInTime(History(Archive(self._settings.archive_url), log), log)
        registry = Registry(self._settings.registry_url, clock)
        stores = Stores(registry, OnlineReader(self._redis_url), history, log)
        return Services.over(stores, self._settings, clock).running()


@pytest.fixture
def platform(tmp_path: Path, empty_redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[DocsPlatform]:
    """Running, empty, and where the client and the CLI look: in the environment. The folder is the reader's own."""
    data = tmp_path / "platform"
    platform = DocsPlatform(Settings(data_dir=data, online={"redis_url": empty_redis_url}))
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    for name, value in {
        "HOME": str(home),
        "THYME_API_BASE": platform.url,
        "THYME_QUERY_URL": platform.url,
        "THYME_API_KEY": platform.key,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("THYME_API_URL", raising=False)
    platform.start()
    yield platform
    platform.stop()
