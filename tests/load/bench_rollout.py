"""New connections while replicas of the query server come and go: not one may fail.

    make bench BENCH=rollout        (CONNECTIONS=10000 for each change, CLIENTS=32)

A platform of its own with three replicas on one shared listening socket. While clients keep connecting (each: connect,
one read of features, hang up) Serve replaces all three (a *rollout*: the same application in a new environment), and
then is told to keep one of them (a *scale-down*). Each client connects anew as soon as it was answered, until the
change is over and enough were made; what counts as an error is anything but a 200 with the entity's id in it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx2
import yaml  # type: ignore[import-untyped]

from cluster.local import PLATFORM
from cluster.processes import wait_until
from tests.load.harness import Figure, report
from tests.load.http_load import get, percentile
from tests.support.platforms import Platform

CONNECTIONS = int(os.environ.get("CONNECTIONS", "10000"))
CLIENTS = int(os.environ.get("CLIENTS", "32"))
REPLICAS = 3
_DEADLINE_S = 180.0
_ANSWER_S = 30.0
# A port in TIME_WAIT is not used again for a minute: several addresses, each with all its ports.
_SOURCES = [f"127.0.0.{number}" for number in range(10, 30)]
MODULE = """
from datetime import datetime
from featurelib import Count, dataset, feature, featureset, field, inputs, pipeline

@dataset(version=1)
class Hit:
    name: str = field(key=True)
    at: datetime = field(timestamp=True)

@dataset(index=True, version=1)
class HitStats:
    name: str = field(key=True)
    hits: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Hit)
    def by_name(cls, hits):
        return hits.groupby("name").aggregate(hits=Count())

@featureset
class HitFeatures:
    name: str = feature()
    hits: int = feature(ref=HitStats.hits, default=0)
"""


class Attempt(NamedTuple):
    """One connection; ``error`` is empty when it was answered."""

    seconds: float
    error: str


class Clients:
    """New connections, a client's next one after its last, from a thread of their own, until told to stop."""

    def __init__(self, platform: Platform) -> None:
        key = (platform.data / "secrets" / "admin-key").read_text().strip()
        self._port = platform.ports[0]
        self._request = get("/features?featureset=HitFeatures&entity_id=n7", key)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._connect()))
        self.attempts: list[Attempt] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _connect(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        sources = itertools.islice(itertools.cycle(_SOURCES), number % len(_SOURCES), None)
        while not self._stop.is_set():
            await self._one(next(sources))

    async def _one(self, source: str) -> None:
        began, error = time.perf_counter(), ""
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._asked(source)
        except (OSError, ValueError, asyncio.IncompleteReadError) as failed:
            error = f"{type(failed).__name__}: {failed}"
        self.attempts.append(Attempt(time.perf_counter() - began, error))

    async def _asked(self, source: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=(source, 0))
        try:
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            body = await reader.readexactly(size)
        finally:
            writer.close()
        if not head.startswith(b"HTTP/1.1 200 ") or json.loads(body)["entity_id"] != "n7":
            raise ValueError(f"{head[:40]!r} {body[:200]!r}")


class Change(NamedTuple):
    """What clients saw of one change."""

    attempts: list[Attempt]
    seconds: float

    @property
    def errors(self) -> list[str]:
        """Of the connections that failed."""
        return [attempt.error for attempt in self.attempts if attempt.error]

    def figures(self, name: str, note: str) -> list[Figure]:
        """Connections, errors, and how long one waited."""
        waits = [attempt.seconds * 1_000 for attempt in self.attempts]
        return [
            Figure(f"{name}_connections", len(self.attempts), "connections", None, note),
            Figure(f"{name}_errors", len(self.errors), "errors", None, str(dict(Counter(self.errors).most_common(3)))),
            Figure(f"{name}_p99", percentile(waits, 0.99), "ms", max(waits), "peer: the slowest"),
            Figure(f"{name}_seconds", self.seconds, "s", None, "from the deployment until Serve has finished it"),
        ]


class Serve:
    """Serve's REST interface, as an operator uses it."""

    def __init__(self, platform: Platform) -> None:
        token = platform.layout.secret("ray-token")
        self._http = httpx2.Client(
            base_url=platform.layout.dashboard_url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=60,
            trust_env=False,
        )

    def close(self) -> None:
        """Hang up."""
        self._http.close()

    def deploy(self, replicas: int, release: str) -> None:
        """Deploy the configuration of the repository with this many query servers and this environment."""
        config = yaml.safe_load(PLATFORM.serve_config.read_text())
        (application,) = config["applications"]
        application["runtime_env"] = {"env_vars": {"THYME_RELEASE": release}}
        query_server = next(each for each in application["deployments"] if each["name"] == "QueryServer")
        query_server["num_replicas"] = replicas
        self._http.put("/api/serve/applications/", json=config).raise_for_status()

    def replicas(self) -> dict[str, str]:
        """State of each replica of the query server, by its id."""
        found = self._http.get("/api/serve/applications/").raise_for_status().json()["applications"]["thyme"]
        deployment: dict[str, Any] = found["deployments"].get("QueryServer", {})
        return {each["replica_id"]: each["state"] for each in deployment.get("replicas", ())}

    def runs(self, replicas: int, without: set[str]) -> bool:
        """Whether just these many run, and none of those."""
        states = self.replicas()
        return len(states) == replicas and set(states.values()) == {"RUNNING"} and not without & set(states)


def during(platform: Platform, change: Callable[[], None], is_over: Callable[[], bool]) -> Change:
    """Connect all through a change, and until enough connections were made."""
    with Clients(platform) as clients:
        began = time.monotonic()
        change()
        if not wait_until(is_over, _DEADLINE_S, every_s=0.2):
            raise TimeoutError(f"Serve did not finish within {_DEADLINE_S} s")
        seconds = time.monotonic() - began
        wait_until(lambda: len(clients.attempts) >= CONNECTIONS, _DEADLINE_S, every_s=0.1)
    return Change(clients.attempts, seconds)


def measured(platform: Platform) -> list[Figure]:
    """Both changes."""
    serve = Serve(platform)
    try:
        serve.deploy(REPLICAS, "first")
        if not wait_until(lambda: serve.runs(REPLICAS, set()), _DEADLINE_S, every_s=0.2):
            raise TimeoutError(f"no {REPLICAS} replicas: {serve.replicas()}")
        old = set(serve.replicas())
        rollout = during(platform, lambda: serve.deploy(REPLICAS, "second"), lambda: serve.runs(REPLICAS, old))
        scale_down = during(platform, lambda: serve.deploy(1, "second"), lambda: serve.runs(1, old))
    finally:
        serve.close()
    replaced = f"{REPLICAS} replicas replaced"
    return [*rollout.figures("rollout", replaced), *scale_down.figures("scale_down", f"{REPLICAS} replicas to 1")]


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory(prefix="thyme-bench-") as folder:
        platform = Platform(Path(folder))
        (platform.home / "features.py").write_text(MODULE)
        try:
            platform.thyme("up")
            platform.thyme("commit", str(platform.home / "features.py"))
            report("rollout", measured(platform))
        finally:
            platform.thyme("down")


if __name__ == "__main__":
    main()
