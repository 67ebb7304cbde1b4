"""How jobs run extractors: with the limits of the query server."""

from __future__ import annotations

import os

import structlog

from featurelib.engine.confinement import homes
from featurelib.engine.extractor import Body, Inline, Runner, Task
from featurelib.engine.processes import Processes
from featurelib.engine.user_code import Guard, Limits, UserFunction
from featurelib.settings import Settings

_log = structlog.get_logger(__name__)
_STUCK_EXIT = 70


def runner_of(settings: Settings) -> Runner:
    """The runner that the settings ask for; close one of child processes with :func:`close_runner`."""
    if settings.serving.extractor_isolation == "process":
        return _processes(settings)
    return Inline(Guard(_limits(settings), _leave))


def close_runner(runner: Runner) -> None:
    """End its child processes, if it has any."""
    if isinstance(runner, Processes | Apart):
        runner.close()


class Apart:
    """Runs extractors in a child process, whatever the settings say; it is started when there is one to run.

    For a job that runs whatever is committed, and goes on when an extractor cannot be stopped.
    """

    blocks = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._processes: Processes | None = None

    def load(self, task: Task) -> Body:
        """Make an extractor; raises UserCodeError when its source does not load."""
        if self._processes is None:
            self._processes = _processes(self._settings)
        return self._processes.load(task)

    def close(self) -> None:
        """End the child process."""
        if self._processes is not None:
            self._processes.close()


def _limits(settings: Settings) -> Limits:
    serving = settings.serving
    return Limits(serving.extractor_soft_limit_ms / 1_000, serving.extractor_hard_limit_ms / 1_000)


def _processes(settings: Settings) -> Processes:
    return Processes(_limits(settings), 1, [str(settings.data_dir), *homes()])


def _leave(function: UserFunction) -> None:
    # As in a replica: an extractor that cannot be stopped takes its process with it, and the read fails.
    _log.error("extractor_stuck", function=function.label, location=function.location)
    os._exit(_STUCK_EXIT)
