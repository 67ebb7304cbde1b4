"""The doors that speak other platforms' APIs, on a whole platform with the examples committed.

    make bench BENCH=front_doors        (REQUESTS=300 of each kind)

One client, one request at a time: what is measured is how long a caller waits, not how many there may be.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from cluster.processes import wait_until
from featurelib import ThymeClient
from featurelib.clock import SECOND, SystemClock, format_instant
from featurelib.compile import compile_module
from featurelib.definitions import Commit, FeatureServiceDef, ParameterDef, ServedViewDef
from tests.load.harness import Figure, report
from tests.load.http_load import percentile
from tests.support.platforms import Platform

REQUESTS = int(os.environ.get("REQUESTS", "300"))
# Not measured: the first read of a key and the first batch of a worker cost what the next ones do not.
_WARM_UP = 20
_RECORDS = 10
_USERS, _PAYMENTS = 20, 60
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


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


def snowflake_client(platform: Platform) -> httpx2.Client:
    """A client with a programmatic access token."""
    key = (platform.data / "secrets" / "admin-key").read_text().strip()
    headers = {"Authorization": f'Snowflake Token="{key}"'}
    return httpx2.Client(base_url=f"http://127.0.0.1:{platform.ports[0]}", headers=headers, trust_env=False)


def ingest(platform: Platform) -> Iterator[Figure]:
    """`POST /api/v1/ingest` of ten records, answered when its feature view has applied them; then the query of them."""
    platform.thyme("commit", str(EXAMPLES / "snowflake" / "features.py"))
    clock = SystemClock()
    with snowflake_client(platform) as client:

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
    for _ in range(60):  # each waits for two seconds
        if client.post("/api/v1/ingest", json=body).status_code == 200:
            return
    raise TimeoutError("no worker has applied a record within two minutes")


def _figures(name: str, waits: list[float], note: str) -> Iterator[Figure]:
    yield Figure(f"{name}_p50", percentile(waits, 0.5), "ms", None, note)
    yield Figure(f"{name}_p99", percentile(waits, 0.99), "ms", max(waits), "peer: the slowest")


def feature_service(platform: Platform) -> Iterator[Figure]:
    """Tecton's get-features beside `GET /features` of the same features, and a batch of ten beside one row, in turn."""
    _load_users(platform)
    key = (platform.data / "secrets" / "admin-key").read_text().strip()
    headers = {"Authorization": f"Tecton-key {key}"}
    url = f"http://127.0.0.1:{platform.ports[0]}"
    with httpx2.Client(base_url=url, headers=headers, trust_env=False) as client:

        def own(number: int) -> httpx2.Response:
            return client.get("/features", params={"featureset": "UserPayments", "entity_id": f"u{number % _USERS}"})

        def service(number: int) -> httpx2.Response:
            return _feature_service(client, "get-features", {"joinKeyMap": {"user_id": f"u{number % _USERS}"}})

        def batch(number: int) -> httpx2.Response:
            users = [f"u{(number + row) % _USERS}" for row in range(_RECORDS)]
            rows = [{"joinKeyMap": {"user_id": user}} for user in users]
            return _feature_service(client, "get-features-batch", {"requestData": rows})

        features, one, ten = _waits_in_turn_ms((own, service, batch))
    yield Figure("get_features_p50", percentile(one, 0.5), "ms", percentile(features, 0.5), "peer: GET /features")
    yield Figure("get_features_p99", percentile(one, 0.99), "ms", percentile(features, 0.99), "peer: GET /features")
    yield Figure("get_features_batch_10_p50", percentile(ten, 0.5), "ms", percentile(one, 0.5), "peer: one row")
    yield Figure("get_features_batch_10_p99", percentile(ten, 0.99), "ms", percentile(one, 0.99), "peer: one row")


def _feature_service(client: httpx2.Client, operation: str, asked: Mapping[str, Any]) -> httpx2.Response:
    params = {"featureServiceName": "payments", "workspaceName": "bench", **asked}
    return client.post(f"/api/v1/feature-service/{operation}", json={"params": params})


def _load_users(platform: Platform) -> None:
    """The example, a service of one of its featuresets, and payments of users of today."""
    path = EXAMPLES / "tecton" / "features.py"
    platform.thyme("commit", str(path))
    featureset = compile_module(path).featureset("UserPayments")
    assert featureset is not None
    names = tuple(each.name for each in featureset.features[1:])
    view = ServedViewDef(name="UserPayments", featureset="UserPayments", features=names, join_keys=("user_id",))
    key = ParameterDef(name="user_id", type="str")
    service = FeatureServiceDef(name="payments", workspace="bench", views=(view,), join_keys=(key,))
    at = format_instant(SystemClock().now())
    rows = [
        {"payment": f"{user}-{n}", "user_id": f"u{user}", "merchant": f"m{n % 7}", "amount": 1.5 * n, "at": at}
        for user in range(_USERS)
        for n in range(_PAYMENTS)
    ]
    with platform.client() as client:
        client.commit(Commit(feature_services=(service,)))
        client.log("Payment", rows)
        for user in range(_USERS):
            if not wait_until(lambda: _payments_of(client, f"u{user}") == _PAYMENTS, 60.0):  # noqa: B023  # at once
                raise TimeoutError(f"the payments of u{user} were not applied within a minute")


def _payments_of(client: ThymeClient, user: str) -> int | None:
    found: int | None = client.query("UserPayments", user)["payments_24h"][0]
    return found


def _waits_in_turn_ms(calls: Sequence[Callable[[int], httpx2.Response]]) -> list[list[float]]:
    """How long each of several calls took, one after the other again and again, so that all meet the same machine."""
    waits: list[list[float]] = [[] for _ in calls]
    for number in range(_WARM_UP + REQUESTS):
        for call, found in zip(calls, waits, strict=True):
            began = time.perf_counter()
            answer = call(number)
            found.append((time.perf_counter() - began) * 1_000)
            if answer.status_code != 200:
                raise ValueError(answer.text)
    return [found[_WARM_UP:] for found in waits]


SECTIONS: tuple[Callable[[Platform], Iterator[Figure]], ...] = (
    feature_service,
    ingest,
)


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory(prefix="thyme-bench-") as folder:
        platform = Platform(Path(folder))
        try:
            platform.thyme("up")
            report("front_doors", [figure for section in SECTIONS for figure in section(platform)])
        finally:
            platform.thyme("down")


if __name__ == "__main__":
    main()
