"""The monitor as the task that the supervisor keeps: what is due when, and extractors in a process of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from featurelib.clock import DAY, SECOND, SystemClock, format_instant
from featurelib.stores.checks import Checks
from featurelib.stores.statistics import Statistics, Subject
from jobs.monitor import MonitorTask


class Seconds:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


@pytest.fixture
def task(settings, seconds) -> Iterator[MonitorTask]:
    monitor = settings.monitor.model_copy(update={"statistics_days": 1})
    made = MonitorTask(settings.model_copy(update={"monitor": monitor}), seconds=seconds)
    made.start()
    yield made
    made.close()


async def test_rounds_and_days_take_turns_and_days_are_made_to_the_last(platform, client, task, seconds):
    await platform.commit_rides(client)
    platform.create_logs()
    now = SystemClock().now() - SECOND
    ride = {"ride": "r1", "rider": 7, "city": "Oslo", "fare": 10.0, "at": format_instant(now)}
    await client.post("/api/v1/log", json={"dataset": "Ride", "events": [ride]})
    task.step()
    assert Checks(platform.registry.database).mark("consistency") is not None
    before = -1
    while task.facts()["days"] > before:
        before = task.facts()["days"]
        task.step()
    kept = Statistics(platform.registry.database)
    assert len(kept.days()) == before
    day = now // DAY * DAY
    (each,) = kept.of(Subject("featureset", "Rider"), day, day, "each")
    assert each.summary.max == 12.0  # an extractor gave it


def test_what_was_just_done_is_not_done_again_before_it_is_due(platform, task, seconds):
    def state():
        return Checks(platform.registry.database).mark("consistency"), task.facts()["days"]

    task.step()  # a round
    task.step()  # looks for days: nothing is committed
    done = state()
    task.step()
    seconds.now += 59
    task.step()
    assert state() == done
    seconds.now += 2
    task.step()
    assert state() != done


def test_a_monitor_that_is_to_end_does_not_wait(task):
    stopping = threading.Event()
    stopping.set()
    task.step()
    task.step()
    task.wait(stopping)
