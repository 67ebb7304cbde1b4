"""Who waits for what they have appended: workers are told, and let nothing more gather."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from featurelib.clock import format_instant
from featurelib.engine.program import pipelines_of
from featurelib.errors import StoreUnavailable
from featurelib.stores.haste import Haste
from featurelib.stores.log import Log
from jobs.pipeline import PipelineTask
from tests.api.conftest import NOON
from tests.api.payments import Served, serving
from tests.support.clocks import MovedClock

SOURCE = "transactions_stream@1"


@pytest.fixture
def log(empty_redis_url) -> Iterator[Log]:
    log = Log(empty_redis_url, MovedClock(NOON))
    yield log
    log.close()


@pytest.fixture
def served(tmp_path, empty_redis_url, migrated) -> Iterator[Served]:
    with serving(tmp_path, empty_redis_url, migrated, {"apply_wait_ms": 1}) as served:
        yield served


class Stopping(threading.Event):
    """Notes how long it was waited for, and never waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return False


def record(number: int) -> dict[str, object]:
    return {"timestamp": format_instant(NOON), "user_id": f"u{number}", "amount": 1.5}


def ingest(served: Served, number: int) -> None:
    done = served.producer.post("/api/v1/ingest", json={"records": {"transactions_stream": [record(number)]}})
    assert done.status_code in (200, 207), done.text


def test_a_sign_is_found_by_who_looks_later_and_once(log):
    signs = log.haste.signs(["Ride@1", "City@1"])
    assert not signs.wait(1)
    log.haste.ask("City@1")
    assert signs.wait(1)
    assert not signs.wait(1)


def test_everybody_who_looks_finds_it(log):
    looking = [log.haste.signs(["Ride@1"]) for _ in range(2)]
    log.haste.ask("Ride@1")
    assert [signs.wait(1) for signs in looking] == [True, True]


def test_who_waits_wakes_with_the_sign(log):
    found: list[bool] = []
    signs = log.haste.signs(["Ride@1"])
    waiting = threading.Thread(target=lambda: found.append(signs.wait(60_000)))
    waiting.start()
    log.haste.ask("Ride@1")
    waiting.join(30.0)
    assert found == [True]


def test_an_ingest_that_waits_gives_a_sign_and_a_post_to_the_log_none(served):
    signs = served.platform.log.haste.signs([SOURCE])
    event = {"dataset": "transactions_stream", "events": [record(1)]}
    assert served.producer.post("/api/v1/log", json=event).is_success
    assert not signs.wait(1)
    ingest(served, 2)
    assert signs.wait(1)


def test_records_are_stored_also_when_nobody_can_be_told(served, monkeypatch):
    def refused(self: Haste, dataset: str) -> None:
        raise StoreUnavailable(f"nobody is told of {dataset}")

    monkeypatch.setattr(Haste, "ask", refused)
    ingest(served, 1)
    log = served.platform.log
    assert sum(head.next_offset for head in log.heads(SOURCE, log.partitions(SOURCE))) == 1


def test_a_worker_lets_nothing_gather_while_somebody_waits(served):
    ingest(served, 1)
    definitions = served.platform.registry.definitions()
    (pipeline,) = [each for each in pipelines_of(definitions) if "transactions_stream" in each.input_datasets]
    settings = served.platform.settings
    task = PipelineTask(pipeline, definitions, partition=0, partitions=1, generation=1, settings=settings)
    stopping = Stopping()
    try:
        task.start()
        task.step()
        ingest(served, 2)
        task.wait(stopping)
        (short,) = stopping.waits
        task.wait(stopping)  # nothing was applied and nobody else waits: the time of a step or two goes by in the store
    finally:
        task.close()
    assert stopping.waits == [short]
    assert short is not None
