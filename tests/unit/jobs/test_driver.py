"""The loop around a task: whatever it raises becomes a state, and it starts again."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import structlog

from cluster.processes import wait_until
from featurelib.errors import Fenced, StoreUnavailable
from jobs.driver import Driver, leave

WITHIN_S = 60.0


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


def test_the_log_of_a_failure_holds_its_trace_and_no_local_variables(capsys) -> None:
    class Secretive(Scripted):
        def step(self) -> bool:
            password = f"hunter{len(self.script) + 1}"
            return bool(password) and super().step()

    before = structlog.get_config()
    structlog.reset_defaults()  # as in a worker's process, where nobody has chosen a renderer
    task = Secretive([ZeroDivisionError("x")])
    try:
        driver = Driver("t", "d", lambda: task)
        driver.begin()
        assert wait_until(lambda: driver.report().failures == 1 and driver.report().state == "running", WITHIN_S)
        driver.stop()
    finally:
        structlog.configure(**before)
    shown = capsys.readouterr().out
    assert "ZeroDivisionError: x" in shown
    assert "hunter2" not in shown, "the value, which stands nowhere in the text of the program"


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


class Gated(Scripted):
    """A task whose step ends when it is let."""

    def __init__(self) -> None:
        super().__init__([])
        self.entered = threading.Event()
        self.gate = threading.Event()

    def step(self) -> bool:
        self.entered.set()
        self.gate.wait(WITHIN_S)
        return False


def test_a_step_under_way_is_told_with_its_age_and_a_report_answers_meanwhile() -> None:
    task, seconds = Gated(), [100.0]
    driver = Driver("t", "d", lambda: task, seconds=lambda: seconds[0])
    driver.begin()
    assert task.entered.wait(WITHIN_S)
    seconds[0] = 161.5
    assert (driver.report().state, driver.report().step_s) == ("running", 61.5)
    task.gate.set()
    assert wait_until(lambda: driver.report().step_s == 0.0, WITHIN_S)
    driver.stop()


def test_a_task_asked_to_stop_ends_its_step_first_and_says_so() -> None:
    task = Gated()
    driver = Driver("t", "d", lambda: task)
    driver.begin()
    assert task.entered.wait(WITHIN_S)
    driver.ask_to_stop()
    assert driver.report().state == "running"
    task.gate.set()
    assert wait_until(lambda: driver.report().state == "stopped", WITHIN_S)
    assert task.closes == 1


def test_the_facts_told_last_stay_when_the_task_does_not_run() -> None:
    task = Scripted([None])
    driver = Driver("t", "d", lambda: task)
    driver.begin()
    assert task.idle.wait(WITHIN_S)
    assert driver.report().facts == {"left": 0}
    driver.stop()
    assert (driver.report().state, driver.report().facts) == ("stopped", {"left": 0})


def test_a_process_whose_task_ended_does_not_stay_for_ever() -> None:
    ended: list[int] = []
    driver = Driver("t", "d", lambda: Scripted([Fenced("replaced")]))
    driver.begin()
    leave(driver, 0.0, ended.append)
    assert (ended, driver.report().state) == ([0], "fenced")
