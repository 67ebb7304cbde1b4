"""Ingest: what a record sent to `POST /api/v1/log` costs the service that takes it.

    make bench BENCH=ingest        (EVENTS=500000, POSTS=2000; a minute)

The service runs alone in a process of its own, on a real socket, over a real log; what it costs is the CPU that process
used, so the client and whatever else runs here do not count. One core's worth of events a second is the reciprocal.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import psutil
import pyarrow as pa

from featurelib.clock import SystemClock
from featurelib.compile import compile_module
from featurelib.settings import Settings
from featurelib.stores.registry import Registry
from tests.load.harness import Figure, report
from tests.load.listening import listening
from tests.support.redis_server import RedisServer

MODULE = """
from datetime import datetime
from featurelib import dataset, field

@dataset()
class Purchase:
    user: str = field(key=True)
    amount: float = field(min=0)
    shop: str = field()
    items: int = field()
    at: datetime = field(timestamp=True)
"""
USERS, SHOPS = 100_000, 500
POST_EVENTS, SMALL_EVENTS = 50, 10
_BATCH_ROWS = 8_192
_MB = 1 << 20


class Serving(NamedTuple):
    """The service, its process, the log's server, and a client of it."""

    process: psutil.Process
    store: psutil.Process
    client: httpx2.Client


class Cost(NamedTuple):
    """What some requests cost: CPU seconds of the service and of the log's server, and each one's seconds."""

    service_s: float
    store_s: float
    latencies_s: list[float]


def main() -> int:
    """Measure and report."""
    events, posts = int(os.environ.get("EVENTS", "500000")), int(os.environ.get("POSTS", "2000"))
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as service:
        figures = list(measured(service, events, posts))
    report("ingest", figures)
    return 0


def measured(service: Serving, events: int, posts: int) -> Iterator[Figure]:
    """Every figure, each form after a round that warms it up."""
    for name, kind, bodies in (
        ("lines", "application/x-ndjson", lines),
        ("lines, 1 in 100 refused", "application/x-ndjson", lambda count: lines(count, bad_every=100)),
        ("arrow", "application/vnd.apache.arrow.stream", arrow),
    ):
        send(service, [bodies(_BATCH_ROWS)], kind, f"warm-{name.replace(' ', '-').replace(',', '')}")
        before = service.process.memory_info().rss
        cost = send(service, [bodies(events)], kind, name.replace(" ", "-").replace(",", ""))
        grown = (service.process.memory_info().rss - before) / _MB
        note = f"{events:,} events in one body; log server {cost.store_s / events * 1e6:.1f} µs; grew {grown:.0f} MB"
        yield Figure(f"{name}: CPU per event", cost.service_s / events * 1e6, "µs", note=note)
        yield Figure(f"{name}: events a second on one core", events / cost.service_s, "events/s", note="goal 50,000")
    for count in (POST_EVENTS, SMALL_EVENTS):
        bodies_of = [whole(count, number) for number in range(posts)]
        send(service, bodies_of[:100], "application/json", f"warm-{count}")
        cost = send(service, bodies_of, "application/json", f"json-{count}")
        yield Figure(f"JSON of {count}: CPU per post", cost.service_s / posts * 1e3, "ms", note=f"{posts} posts")
        slow = sorted(cost.latencies_s)[int(posts * 0.99)] * 1e3
        yield Figure(f"JSON of {count}: p99", slow, "ms", note="goal 20 ms for 10 records")


def send(service: Serving, bodies: list[bytes], kind: str, key: str) -> Cost:
    """Send bodies one after the other, each under a key of its own."""
    before = (_cpu(service.process), _cpu(service.store))
    latencies = []
    for number, body in enumerate(bodies):
        started = time.perf_counter()
        query = "" if kind == "application/json" else "?dataset=Purchase"
        headers = {"Content-Type": kind, "Idempotency-Key": f"{key}-{number}-{time.monotonic_ns()}"}
        answer = service.client.post(f"/api/v1/log{query}", content=body, headers=headers)
        latencies.append(time.perf_counter() - started)
        answer.raise_for_status()
        if "refused" not in key and answer.json()["rejected"]:
            raise RuntimeError(f"records were refused: {answer.text[:500]}")
    return Cost(_cpu(service.process) - before[0], _cpu(service.store) - before[1], latencies)


def record(number: int) -> dict[str, Any]:
    """An event; keys are spread, amounts whole and broken."""
    at = f"2026-03-01T09:{number // 60 % 60:02d}:{number % 60:02d}.{number % 1_000:03d}Z"
    user = f"u{number * 7_919 % USERS}"
    return {"user": user, "amount": number % 97 / 4, "shop": f"s{number % SHOPS}", "items": number % 9, "at": at}


def lines(count: int, bad_every: int = 0) -> bytes:
    """Lines of JSON, every so many of them without an amount."""
    made = (
        {**record(number), "amount": None} if bad_every and number % bad_every == 0 else record(number)
        for number in range(count)
    )
    return b"\n".join(json.dumps(each).encode() for each in made)


def arrow(count: int) -> bytes:
    """An Arrow stream."""
    table = pa.Table.from_pylist([record(number) for number in range(count)])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=_BATCH_ROWS)
    return sink.getvalue().to_pybytes()


def whole(count: int, place: int) -> bytes:
    """A JSON body."""
    return json.dumps(
        {"dataset": "Purchase", "events": [record(place * count + number) for number in range(count)]}
    ).encode()


@contextmanager
def serving(folder: Path) -> Iterator[Serving]:
    """The service over a log and a registry of its own, the dataset committed."""
    store = RedisServer(folder)
    store.start()
    settings = Settings(
        data_dir=folder,
        online={"redis_url": store.url},
        registry={"url": f"sqlite:///{folder}/registry.db"},
        serving={"query_run_writer": "thread"},
    )
    registry = Registry(settings.registry_url, SystemClock())
    registry.migrate()
    _, secret = registry.create_key("admin", "bench")
    registry.close()
    with ExitStack() as opened:
        opened.callback(store.stop)
        process, port = opened.enter_context(listening(settings))
        url = f"http://127.0.0.1:{port}"
        headers = {"Authorization": f"Bearer {secret}"}
        with httpx2.Client(base_url=url, headers=headers, timeout=120) as client:
            (folder / "declared.py").write_text(MODULE)
            commit = compile_module(folder / "declared.py").model_dump_json()
            client.post("/api/v1/commit", content=commit).raise_for_status()
            yield Serving(process, psutil.Process(store.pid), client)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    sys.exit(main())
