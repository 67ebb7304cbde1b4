"""The loop around a task: start, step, wait; on failure back off and start again.

This is the worker loop, one of the three places that catch every exception: whatever a task raises
becomes its report, which the supervisor turns into a job status and an event. No Ray here.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import structlog

from cluster.processes import Owned, collect_between
from featurelib.errors import Fenced

_log = structlog.get_logger(__name__)
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.1, 5.0

State = Literal["starting", "running", "retrying", "fenced", "stopped"]


class Task(Protocol):
    """Unbounded work, cut into steps."""

    def start(self) -> None:
        """Take up the work where it stands; called first, and again after every failure."""
        ...

    def step(self) -> bool:
        """Do some of it; True when there may be more at once."""
        ...

    def wait(self, stopping: threading.Event) -> None:
        """Block until there may be more to do, or ``stopping`` is set; bounded."""
        ...

    def facts(self) -> Mapping[str, Any]:
        """Numbers a person or a metric wants: plain values only. Called from another thread; asks no store."""
        ...

    def close(self) -> None:
        """Give resources back."""
        ...


class Report(NamedTuple):
    """What a task's driver says of it.

    ``failures`` counts starts after a failure; ``detail`` is the last failure; ``facts`` are the task's own, as they
    were when it last ran; ``step_s``: how long the step under way, or the start, has taken; 0 between steps.
    """

    digest: str
    state: State
    detail: str
    failures: int
    facts: dict[str, Any]
    step_s: float = 0.0


class Answer(NamedTuple):
    """A task's report and the process it comes from."""

    report: Report
    host: str
    process: Owned


class Driver:
    """Runs one task in a thread of its own.

    Args:
        name: for logs.
        digest: of the specification the task was made from; a supervisor compares it.
        make: builds the task; its failure is handled like any other.
        seconds: a clock that only ever moves forward.
    """

    def __init__(
        self, name: str, digest: str, make: Callable[[], Task], *, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._digest = digest
        self._make = make
        self._task: Task | None = None
        self._state: State = "starting"
        self._detail = ""
        self._failures = 0
        self._facts: dict[str, Any] = {}
        self._seconds = seconds
        self._busy_since: float | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Have the task end after the current step; returns at once, a later report says ``stopped``."""
        self._stopping.set()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Let the current step end, then stop."""
        self.ask_to_stop()
        self._thread.join(timeout_s)

    def wait_ended(self) -> None:
        """Block until the task has ended for good: it was fenced, or asked to stop."""
        self._thread.join()

    def report(self) -> Report:
        """How the task is doing now. Asks no store, so that it answers while the task waits for one."""
        task, since = self._task, self._busy_since
        if task is not None and self._state == "running":
            self._facts = dict(task.facts())
        step_s = 0.0 if since is None else max(0.0, self._seconds() - since)
        return Report(self._digest, self._state, self._detail, self._failures, dict(self._facts), step_s)

    def _run(self) -> None:
        backoff = _FIRST_BACKOFF_S
        while not self._stopping.is_set():
            began_well = self._run_until_failure()
            if self._state in ("fenced", "stopped"):
                return
            backoff = _FIRST_BACKOFF_S if began_well else min(2 * backoff, _LONGEST_BACKOFF_S)
            self._stopping.wait(backoff)
        self._state = "stopped"

    def _run_until_failure(self) -> bool:
        """Returns whether at least one step succeeded."""
        stepped = False
        try:
            with self._busy():
                self._task = self._make()
            try:
                with self._busy():
                    self._task.start()
                self._state = "running"
                while not self._stopping.is_set():
                    with self._busy():
                        more = self._task.step()
                        collect_between()
                    if not more:
                        self._task.wait(self._stopping)
                    stepped = True
                self._state = "stopped"
            finally:
                self._task.close()
        except Fenced as error:
            self._state, self._detail = "fenced", str(error)
        except Exception as error:  # noqa: BLE001  # the worker loop: every failure becomes a state a person can see
            self._failures += 1
            self._state, self._detail = "retrying", f"{type(error).__name__}: {error}"
            # Formatted here: a renderer of its own might print local variables, which hold secrets and records.
            trace = "".join(traceback.format_exception(error))
            _log.warning("task_failed", task=self._name, failures=self._failures, traceback=trace)
        return stepped

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self._busy_since = self._seconds()
        try:
            yield
        finally:
            self._busy_since = None


def leave(driver: Driver, after_s: float, end_process: Callable[[int], object]) -> None:
    """End the process a while after its task ended, should no supervisor do it.

    One that was replaced while it was paused, say, and wakes up when nobody knows it any more.
    """
    driver.wait_ended()
    threading.Event().wait(after_s)
    end_process(0)
