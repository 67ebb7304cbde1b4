"""The loop around a task: whatever it raises becomes a state, and it starts again."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from cluster.processes import wait_until
from featurelib.errors import Fenced, StoreUnavailable
from jobs.driver import Driver

WITHIN_S = 10.0


class Scripted:
    """A task whose steps raise what the script says, then idle until told to stop."""

    def __init__(self, script: list[Exception | None]) -> None:
        self.script = script
        self.starts = 0
        self.closes = 0
        self.idle = threading.Event()

    def start(self) -> None:
        self.starts += 1

    def step(self) -> bool:
        if not self.script:
            self.idle.set()
            return False
        problem = self.script.pop(0)
        if problem is not None:
            raise problem
        return True

    def wait(self, stopping: threading.Event) -> None:
        stopping.wait(WITHIN_S)

    def facts(self) -> Mapping[str, Any]:
        return {"left": len(self.script)}

    def close(self) -> None:
        self.closes += 1


def test_a_failed_step_is_reported_and_the_task_starts_again() -> None:
    task = Scripted([None, StoreUnavailable("gone"), None])
    driver = Driver("t", "d", lambda: task)
    driver.begin()
    assert task.idle.wait(WITHIN_S)
    report = driver.report()
    assert (report.state, report.failures, report.detail) == ("running", 1, "StoreUnavailable: gone")
    assert (task.starts, task.closes, report.facts) == (2, 1, {"left": 0})
    driver.stop()
    assert (driver.report().state, task.closes) == ("stopped", 2)


def test_an_unforeseen_error_is_contained_like_any_other() -> None:
    task = Scripted([ZeroDivisionError("x")])
    driver = Driver("t", "d", lambda: task)
    driver.begin()
    assert task.idle.wait(WITHIN_S)
    assert driver.report().detail == "ZeroDivisionError: x"
    driver.stop()


def test_a_fenced_worker_ends_and_does_not_claim_again() -> None:
    task = Scripted([Fenced("replaced"), None])
    driver = Driver("t", "d", lambda: task)
    driver.begin()
    assert wait_until(lambda: driver.report().state == "fenced", WITHIN_S)
    driver.stop()
    assert (task.starts, task.closes, len(task.script)) == (1, 1, 1)


def test_a_task_that_cannot_be_made_is_retried() -> None:
    task = Scripted([])
    attempts: list[int] = []

    def make() -> Scripted:
        attempts.append(1)
        if len(attempts) == 1:
            raise StoreUnavailable("not yet")
        return task

    driver = Driver("t", "d", make)
    driver.begin()
    assert task.idle.wait(WITHIN_S)
    assert driver.report().failures == 1
    driver.stop()
