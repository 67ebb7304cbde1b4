"""Tecton's API on a real listener over real stores: the example committed and loaded, and modules of a test's own."""

from __future__ import annotations

import json
import runpy
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import redis
import tecton_client

from cluster.sockets import bind_listener
from featurelib.clock import to_datetime
from featurelib.compile import compile_module
from featurelib.settings import Settings
from serve_apps.listener import Listener
from serve_apps.services import open_services
from serve_apps.web import Application
from tests.api.conftest import NOON, Platform
from tests.support.clocks import MovedClock
from tests.support.patience import PATIENCE_S

EXAMPLE = "examples/tecton/features.py"
READ = "/api/v1/feature-service/get-features"


class Served(NamedTuple):
    """Where it is served, by what, and a client with a reader's key."""

    url: str
    platform: Platform
    http: httpx2.Client
    opened: list[tecton_client.TectonClient]

    @property
    def key(self) -> str:
        return self.platform.keys["reader"][1]

    def client(self, key: str | None = None) -> tecton_client.TectonClient:
        """The published client."""
        made = tecton_client.TectonClient(url=self.url, default_workspace_name="prod", api_key=key or self.key)
        self.opened.append(made)
        return made

    def read(self, path: str = READ, **params: Any) -> httpx2.Response:
        return self.http.post(path, json={"params": params})


Events = Mapping[str, Sequence[Mapping[str, Any]]]


def ask_anew(served: Served) -> None:
    """Have the next reads ask the store, whatever was read before: their connections are new."""
    with redis.Redis.from_url(served.platform.settings.online.redis_url.get_secret_value()) as client:
        client.client_kill_filter(_type="normal")


@contextmanager
def started(folder: Path, redis_url: str, migrated: Path, more: str, events: Events) -> Iterator[Served]:
    """Serve the example and ``more``, the text of a module, with ``events`` by dataset."""
    shutil.copy(migrated, folder / "registry.db")
    (folder / "more.py").write_text(more)
    chosen = Settings(
        data_dir=folder,
        online={"redis_url": redis_url},
        registry={"url": f"sqlite:///{folder}/registry.db"},
        serving={"plan_poll_ms": 20, "max_body_bytes": 65_536, "query_run_writer": "thread"},
        tecton={"concurrent_reads": 8},
    )
    platform = Platform(chosen, MovedClock(NOON))
    application = Application(lambda: open_services(chosen, platform.clock))
    listener = Listener(application, bind_listener("127.0.0.1", 0))
    listener.start()
    url = f"http://127.0.0.1:{listener.port}"
    headers = {"Authorization": f"Tecton-key {platform.keys['reader'][1]}"}
    _load(platform, url, folder / "more.py", events)
    with httpx2.Client(base_url=url, headers=headers, timeout=PATIENCE_S) as http:
        made = Served(url, platform, http, [])
        yield made
        for client in made.opened:
            client._client.close()
    listener.stop()
    platform.log.close()
    platform.registry.close()


def _load(platform: Platform, url: str, more: Path, events: Events) -> None:
    functions, now = runpy.run_path(EXAMPLE), to_datetime(NOON)
    with httpx2.Client(
        base_url=url, headers={"Authorization": f"Bearer {platform.keys['writer'][1]}"}, timeout=PATIENCE_S
    ) as writer:
        for path in (EXAMPLE, more):
            done = writer.post("/api/v1/commit", content=compile_module(path).model_dump_json())
            assert done.is_success, done.text
        platform.create_logs()
        for dataset, rows in {"User": functions["users"](now), "Payment": functions["payments"](now), **events}.items():
            plain = json.loads(json.dumps(rows, default=lambda instant: instant.isoformat()))
            assert writer.post("/api/v1/log", json={"dataset": dataset, "events": plain}).is_success
    platform.fold()
