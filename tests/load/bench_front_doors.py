"""The doors that speak other platforms' APIs, beside our own, over the same features and records.

    make bench BENCH=front_doors        (REQUESTS=300 of each kind that writes, ten times as many reads; 4 minutes)

One client, one request at a time: what is measured is how long a caller waits, not how many there may be. What a read
costs a replica is measured without a platform: a listener in a process of its own, whose CPU is counted.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import psutil

from cluster.processes import wait_until
from featurelib import ThymeClient
from featurelib.clock import SECOND, SystemClock, format_instant
from featurelib.compile import compile_module
from featurelib.definitions import Commit, FeatureServiceDef, ParameterDef, ServedViewDef
from featurelib.engine.program import pipelines_of
from featurelib.plan import plan
from featurelib.settings import Settings
from featurelib.stores.registry import Registry
from jobs.pipeline import PipelineTask
from tests.load.harness import Figure, median, report
from tests.load.http_load import Job, get, in_turn, measure, percentile, post
from tests.load.listening import listening
from tests.support.platforms import Platform
from tests.support.redis_server import RedisServer

REQUESTS = int(os.environ.get("REQUESTS", "300"))
READS = 10 * REQUESTS
# Not measured: the first read of a key and the first batch of a worker cost what the next ones do not.
_WARM_UP = 20
_RECORDS = 10
_USERS, _PAYMENTS = 20, 60
_ROUNDS, _ROUND_S = 21, 0.4
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXAMPLE = EXAMPLES / "tecton" / "features.py"
_SERVICE = "/api/v1/feature-service"


class Replica(NamedTuple):
    """A replica of the query server in a process of its own."""

    process: psutil.Process
    port: int
    key: str


def replica() -> Iterator[Figure]:
    """CPU of a replica and time of its callers, per read of the same features by `GET /features` and get-features."""
    with tempfile.TemporaryDirectory(prefix="thyme-bench-") as folder, serving(Path(folder)) as served:
        kinds = reads(served.key)
        for kind in kinds:
            measure(Job(served.port, kind, 1, _ROUND_S))
        costs = list(zip(*([_cpu_us(served, kind) for kind in kinds] for _ in range(_ROUNDS)), strict=True))
        own, one, ten = (median(each) for each in costs)
        yield Figure("get_features_cpu", one, "µs", own, "peer: GET /features; CPU of the replica per read")
        yield Figure("get_features_batch_10_cpu", ten, "µs", one, "peer: one row")
        yield from _waits("replica_", in_turn(served.port, kinds, READS))


def _cpu_us(served: Replica, requests: Sequence[bytes]) -> float:
    before = served.process.cpu_times()
    load = measure(Job(served.port, requests, 1, _ROUND_S))
    after = served.process.cpu_times()
    if load.failed:
        raise ValueError(f"{load.failed} reads failed")
    return (after.user + after.system - before.user - before.system) / load.answered * 1e6


@contextmanager
def serving(folder: Path) -> Iterator[Replica]:
    """A replica over stores of its own, with the payments folded."""
    store = RedisServer(folder)
    store.start()
    settings = Settings(
        data_dir=folder,
        online={"redis_url": store.url},
        registry={"url": f"sqlite:///{folder}/registry.db"},
        pipeline={"partition_count": 1},
    )
    registry = Registry(settings.registry_url, SystemClock())
    registry.migrate()
    _, key = registry.create_key("admin", "bench")
    registry.commit(_commit(), plan, None)
    with ExitStack() as opened:
        opened.callback(store.stop)
        opened.callback(registry.close)
        process, port = opened.enter_context(listening(settings))
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}) as client:
            client.post("/api/v1/log", json={"dataset": "Payment", "events": payments()}).raise_for_status()
        fold(registry, settings)
        yield Replica(process, port, key)


def fold(registry: Registry, settings: Settings) -> None:
    """Apply everything in the log, as workers would."""
    definitions = registry.definitions()
    for pipeline in pipelines_of(definitions):
        task = PipelineTask(pipeline, definitions, partition=0, partitions=1, generation=1, settings=settings)
        task.start()
        while task.step():
            pass
        task.close()


def _commit() -> Commit:
    """The example, and a service of one of its featuresets."""
    commit = compile_module(EXAMPLE)
    return commit.model_copy(update={"feature_services": (*commit.feature_services, _service(commit))})


def _service(commit: Commit) -> FeatureServiceDef:
    featureset = commit.featureset("UserPayments")
    assert featureset is not None
    names = tuple(each.name for each in featureset.features[1:])
    view = ServedViewDef(name="UserPayments", featureset="UserPayments", features=names, join_keys=("user_id",))
    key = ParameterDef(name="user_id", type="str")
    return FeatureServiceDef(name="payments", workspace="bench", views=(view,), join_keys=(key,))


def payments() -> list[dict[str, Any]]:
    """Payments of users of today."""
    at = format_instant(SystemClock().now())
    return [
        {"payment": f"{user}-{n}", "user_id": f"u{user}", "merchant": f"m{n % 7}", "amount": 1.5 * n, "at": at}
        for user in range(_USERS)
        for n in range(_PAYMENTS)
    ]


def reads(key: str) -> list[list[bytes]]:
    """Requests of three kinds for the same features: our own, a row of the service, and ten of them."""
    rows = [{"joinKeyMap": {"user_id": f"u{user}"}} for user in range(_USERS)]
    ten = [[rows[(user + more) % _USERS] for more in range(_RECORDS)] for user in range(_USERS)]
    return [
        [get(f"/features?featureset=UserPayments&entity_id=u{user}", key) for user in range(_USERS)],
        [_read("get-features", row, key) for row in rows],
        [_read("get-features-batch", {"requestData": batch}, key) for batch in ten],
    ]


def _read(operation: str, asked: Mapping[str, Any], key: str) -> bytes:
    params = {"featureServiceName": "payments", "workspaceName": "bench", **asked}
    return post(f"{_SERVICE}/{operation}", json.dumps({"params": params}).encode(), key)


def _waits(prefix: str, waits: Sequence[Sequence[float]]) -> Iterator[Figure]:
    own, one, ten = (found[_WARM_UP:] for found in waits)
    for share, name in ((0.5, "p50"), (0.99, "p99")):
        at = [percentile(found, share) for found in (own, one, ten)]
        yield Figure(f"{prefix}get_features_{name}", at[1], "ms", at[0], "peer: GET /features")
        yield Figure(f"{prefix}get_features_batch_10_{name}", at[2], "ms", at[1], "peer: one row")


def feature_service(platform: Platform) -> Iterator[Figure]:
    """Tecton's get-features beside `GET /features` of the same features, and a batch of ten beside one row, in turn."""
    platform.thyme("commit", str(EXAMPLE))
    with platform.client() as client:
        client.commit(Commit(feature_services=(_service(compile_module(EXAMPLE)),)))
        client.log("Payment", payments())
        for user in range(_USERS):
            if not wait_until(lambda: _payments_of(client, f"u{user}") == _PAYMENTS, 60.0):  # noqa: B023  # at once
                raise TimeoutError(f"the payments of u{user} were not applied within a minute")
    yield from _waits("", in_turn(platform.ports[0], reads(_admin_key(platform)), READS))


def _payments_of(client: ThymeClient, user: str) -> int | None:
    found: int | None = client.query("UserPayments", user)["payments_24h"][0]
    return found


def log(platform: Platform) -> Iterator[Figure]:
    """`POST /api/v1/log` of ten records, answered when they are in the log."""
    key, at = _admin_key(platform), SystemClock().now()

    def send(number: int) -> bytes:
        events = [
            {
                "payment": f"log-{number}-{row}",
                "user_id": f"l{number}",
                "merchant": "m",
                "amount": 1.5,
                "at": format_instant(at - row),
            }
            for row in range(_RECORDS)
        ]
        return post("/api/v1/log", json.dumps({"dataset": "Payment", "events": events}).encode(), key)

    rounds = _WARM_UP + REQUESTS
    (waits,) = in_turn(platform.ports[1], [[send(number) for number in range(rounds)]], rounds)
    yield from _figures("log_10_records", waits[_WARM_UP:], "at most 20 ms asked for")


def ingest(platform: Platform) -> Iterator[Figure]:
    """`POST /api/v1/ingest` of ten records, answered when its feature view has applied them; then the query of them."""
    platform.thyme("commit", str(EXAMPLES / "snowflake" / "features.py"))
    clock = SystemClock()
    headers = {"Authorization": f'Snowflake Token="{_admin_key(platform)}"'}
    url = f"http://127.0.0.1:{platform.ports[0]}"
    with httpx2.Client(base_url=url, headers=headers, trust_env=False) as client:

        def send(number: int) -> None:
            at = clock.now()
            records = [
                {"timestamp": format_instant(at - row), "user_id": f"u{number}-{row}", "amount": 1.5 * row}
                for row in range(_RECORDS)
            ]
            answer = client.post("/api/v1/ingest", json={"records": {"transactions_stream": records}})
            if answer.status_code != 200:
                raise ValueError(answer.text)

        def read(number: int) -> None:
            rows = [{"entity": {"user_id": f"u{number}-{row}"}} for row in range(_RECORDS)]
            asked = {"name": "user_transaction_features", "version": "v1", "object_type": "feature_view"}
            answer = client.post("/api/v1/query", json={**asked, "request_rows": rows}).json()
            if any(result["features"][1] != 1 for result in answer["results"]):
                raise ValueError(answer)

        _await_workers(client, format_instant(clock.now() - SECOND))
        yield from _figures("ingest_10_records", waits_ms(send), "applied by its view when it is answered")
        yield from _figures("query_10_rows", waits_ms(read), "each key for the first time")


def _await_workers(client: httpx2.Client, at: str) -> None:
    """Send until the workers of the commit have begun."""
    record = {"timestamp": at, "user_id": "first", "amount": 1.0}
    body = {"records": {"transactions_stream": [record]}}
    if not wait_until(lambda: client.post("/api/v1/ingest", json=body).status_code == 200, 120.0):
        raise TimeoutError(f"no worker has applied a record within two minutes: {client.get('/health').text[:500]}")


def waits_ms(call: Callable[[int], None]) -> list[float]:
    """How long each of so many calls took; they are given numbers."""
    for number in range(_WARM_UP):
        call(number)
    found = []
    for number in range(_WARM_UP, _WARM_UP + REQUESTS):
        began = time.perf_counter()
        call(number)
        found.append((time.perf_counter() - began) * 1_000)
    return found


def _figures(name: str, waits: list[float], note: str) -> Iterator[Figure]:
    yield Figure(f"{name}_p50", percentile(waits, 0.5), "ms", None, note)
    yield Figure(f"{name}_p99", percentile(waits, 0.99), "ms", max(waits), "peer: the slowest")


def _admin_key(platform: Platform) -> str:
    return (platform.data / "secrets" / "admin-key").read_text().strip()


SECTIONS: tuple[Callable[[Platform], Iterator[Figure]], ...] = (
    feature_service,
    log,
    ingest,
)


def main() -> None:
    """Measure and report."""
    figures = list(replica())
    with tempfile.TemporaryDirectory(prefix="thyme-bench-") as folder:
        platform = Platform(Path(folder))
        try:
            platform.thyme("up")
            figures += [figure for section in SECTIONS for figure in section(platform)]
        finally:
            platform.thyme("down")
    report("front_doors", figures)


if __name__ == "__main__":
    main()
