"""A platform for the documentation's examples: both services and the workers, in this process, over real stores."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurelib.clock import SystemClock
from featurelib.definitions import ref
from featurelib.settings import Settings
from featurelib.stores.archive import Archive
from featurelib.stores.log import Log
from featurelib.stores.registry import Registry
from jobs.pipeline import PipelineTask
from jobs.wanted import log_datasets, pipelines_of
from serve_apps.listener import Listener
from serve_apps.services import open_services
from serve_apps.web import Application

_ALL = 1_000_000


class DocsPlatform:
    """Serves on a free port; :meth:`fold` does what the workers and the archiver of a platform do all the time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis_url = settings.online.redis_url.get_secret_value()
        self._registry = Registry(settings.registry_url, SystemClock())
        self._registry.migrate()
        self.key = self._registry.create_key("admin", "docs")[1]
        application = Application(lambda: open_services(settings, SystemClock()))
        self._listener = Listener(application, socket.create_server(("127.0.0.1", 0)))
        self.url = f"http://127.0.0.1:{self._listener.port}"

    def start(self) -> None:
        """Begin to answer."""
        self._listener.start()

    def stop(self) -> None:
        """End the server and close the stores."""
        self._listener.stop()
        self._registry.close()

    def fold(self) -> None:
        """Apply and archive everything that is in the log."""
        definitions = self._registry.definitions()
        log, archive = Log(self._redis_url, SystemClock()), Archive(self._settings.archive_url)
        for dataset in log_datasets(definitions):
            for partition in range(log.create(ref(dataset), self._settings.pipeline.partition_count)):
                records = log.read(ref(dataset), partition, archive.archived_offset(dataset, partition), _ALL)
                if records is not None:
                    archive.append(dataset, records)
        log.close()
        for pipeline in pipelines_of(definitions):
            for partition in range(self._settings.pipeline.partition_count):
                task = PipelineTask(
                    pipeline, definitions, partition=partition, partitions=2, generation=1, settings=self._settings
                )
                task.start()
                while task.step():
                    pass
                task.close()


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
        # Jobs read the platform's own settings.
        "THYME_DATA_DIR": str(data),
        "THYME_ONLINE__REDIS_URL": empty_redis_url,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("THYME_API_URL", raising=False)
    platform.start()
    yield platform
    platform.stop()
