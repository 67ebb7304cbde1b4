"""The loop around a task: start, step, wait; on failure back off and start again.

This is the worker loop, one of the three places that catch every exception: whatever a task raises
becomes its report, which the supervisor turns into a job status and an event. No Ray here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import structlog

from featurelib.errors import Fenced, StoreUnavailable

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
        """Numbers a person or a metric wants: plain values only."""
        ...

    def close(self) -> None:
        """Give resources back."""
        ...


class Report(NamedTuple):
    """What a task's driver says of it. ``failures`` counts starts after a failure; ``detail`` is the last failure."""

    digest: str
    state: State
    detail: str
    failures: int
    facts: dict[str, Any]


class Driver:
    """Runs one task in a thread of its own.

    Args:
        name: for logs.
        digest: of the specification the task was made from; a supervisor compares it.
        make: builds the task; its failure is handled like any other.
    """

    def __init__(self, name: str, digest: str, make: Callable[[], Task]) -> None:
        self._name = name
        self._digest = digest
        self._make = make
        self._task: Task | None = None
        self._state: State = "starting"
        self._detail = ""
        self._failures = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Let the current step end, then stop."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def report(self) -> Report:
        """How the task is doing now."""
        task = self._task
        try:
            facts = dict(task.facts()) if task is not None and self._state == "running" else {}
        except StoreUnavailable:
            facts = {}  # the step itself is about to fail, and will say so
        return Report(self._digest, self._state, self._detail, self._failures, facts)

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
            self._task = self._make()
            try:
                self._task.start()
                self._state = "running"
                while not self._stopping.is_set():
                    if not self._task.step():
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
            _log.warning("task_failed", task=self._name, failures=self._failures, exc_info=error)
        return stepped
