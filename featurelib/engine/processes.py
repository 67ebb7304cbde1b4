"""Extractors in child processes: warm, with a scrubbed environment, killed at the hard limit and replaced.

A child (:mod:`featurelib.engine.process_child`) loads an extractor the first time it is asked to run it, and runs it
with the very code that runs inline. What a child sends back is decoded as data, never unpickled: user code that
takes over its process can give a wrong value and nothing more. A child is confined before it loads anything
(:mod:`featurelib.engine.confinement`): it cannot read the platform's files, nor the environment or memory of another
process, where the kernel has Landlock. Where it has not, a child may read what the system user may read.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Literal

import msgspec

from featurelib.clock import Instant
from featurelib.engine.extractor import Body, Part, Row, RowMissing, Scope, Task, Wanted
from featurelib.engine.user_code import LOAD_PATIENCE, Limits, TimeLimit
from featurelib.engine.values import unspelled
from featurelib.errors import UserCodeError
from featurelib.types import Value

# Nothing of ours: no THYME_ setting, no credential, no proxy. Polars would start a thread per core in every child.
_ENVIRONMENT = {"PATH": os.defpath, "LANG": "C.UTF-8", "TZ": "UTC", "POLARS_MAX_THREADS": "1"}
_START_S = 60.0
_LARGEST_ANSWER = 256 * 1024 * 1024
# Of a child that ended itself: it was past its limit for long, and nobody had killed it.
HUNG_STATUS = 86
_SPOILED = "spoiled the channel of its process"
# Confined first of all: imports may start threads, and those that run already would not be.
_MAIN = """
import sys, json
sys.path[:], hidden = json.loads(sys.argv[1])
from featurelib.engine.confinement import confine
confine(sys.path, hidden)
from featurelib.engine.process_child import main
main()
"""


class ProcessEnded(Exception):
    """A child ended, hung, or answered nonsense; the message says which."""


class ProcessHung(ProcessEnded):
    """A child was killed because a call in it took too long."""


class ChildAnswer(msgspec.Struct):
    """What a child says: that it is ``ready``, ``loaded``, still ``going``, ``done``, or ``failed`` and with what.

    ``late``: it failed because it took too long.
    """

    state: Literal["ready", "loaded", "going", "done", "failed"]
    error: tuple[str, str, str] = ("", "", "")
    late: bool = False
    columns: list[list[Any]] = []
    wanted: list[tuple[int, Wanted]] = []


_decode = msgspec.msgpack.Decoder(ChildAnswer).decode


class Processes:
    """Runs extractors in child processes. Close it in the end.

    Args:
        limits: of each call; a child that cannot be interrupted is killed at ``hard_s``.
        count: children, so also how many calls run at once; more wait.
        hidden: directories that no child may read, whatever lies above them.
    """

    blocks = True

    def __init__(self, limits: Limits, count: int = 2, hidden: Sequence[str] = ()) -> None:
        self._limits = limits
        self._hidden = hidden
        self._count = count
        self._closed = False
        self._lock = threading.Lock()
        self._children: set[_Child] = set()
        # The last one used is the warmest. None: a place whose child could not be started, tried again when needed.
        self._idle: queue.LifoQueue[_Child | None] = queue.LifoQueue()
        for _ in range(count):
            self._idle.put(self._started())

    def load(self, task: Task) -> Body:
        """Let a child load the extractor, to learn whether it can."""
        self.ask(task, ("load", task.identity))
        return _Remote(task, self)

    def ask(self, task: Task, message: tuple[Any, ...]) -> ChildAnswer:
        """Send a message about an extractor to a free child, and give its answer.

        Raises:
            UserCodeError: the extractor failed, or its process ended or was killed; its cause is a TimeLimit where it
                took too long.
        """
        child = self._idle.get()
        try:
            child = child or self._started()
            answer = _ask(child, task, message, self._limits.hard_s)
        except ProcessEnded as ended:
            self._end(child)
            child = self._started()
            why = TimeLimit() if isinstance(ended, ProcessHung) else None
            raise UserCodeError(task.label, _location(task), str(ended)) from why
        except BaseException:  # such as a Ctrl-C while it waited: an answer may still come, to the wrong question
            self._end(child)
            child = None
            raise
        finally:
            self._idle.put(child)
        if answer.state == "failed":
            raise UserCodeError(*answer.error) from (TimeLimit() if answer.late else None)
        return answer

    def close(self) -> None:
        """End every child; a call that is running fails."""
        with self._lock:
            self._closed = True
            children, self._children = self._children, set()
        for child in children:
            # Only its process: the channel is closed by whoever waits on it.
            child.kill()
        with suppress(queue.Empty):
            for _ in range(self._count):
                self._end(self._idle.get_nowait())
        for _ in range(self._count):
            self._idle.put(None)  # whoever waits for a child is told that there is none

    def _started(self) -> _Child | None:
        with self._lock:
            if self._closed:
                return None
            try:
                child = _Child(self._limits, self._hidden)
            except OSError:  # no memory, no process to be had: tried again at the next call
                return None
            self._children.add(child)
            return child

    def _end(self, child: _Child | None) -> None:
        if child is not None:
            with self._lock:
                self._children.discard(child)
            child.kill()
            child.close()


def _ask(child: _Child | None, task: Task, message: tuple[Any, ...], hard_s: float) -> ChildAnswer:
    if child is None:
        raise ProcessEnded("no process could be started for it")
    return child.ask(task, message, hard_s)


class _Remote:
    """An extractor in whichever child is free."""

    def __init__(self, task: Task, processes: Processes) -> None:
        self._task = task
        self._processes = processes
        self._datasets = {dataset.name for dataset in task.datasets}
        read = ((place, unspelled(each.type)) for place, each in enumerate(task.outputs))
        self._decimals = [(place, form) for place, form in read if form is not None]

    def one(self, given: Sequence[Value], scope: Scope) -> Iterable[Value]:
        """The outputs of one row."""
        assert scope.at is not None
        part = self.many([[value] for value in given], [scope.at], scope.rows)
        if part.wanted:
            raise RowMissing(part.wanted[0][1])
        return [column[0] for column in part.columns]

    def many(self, columns: Sequence[list[Value]], instants: Sequence[Instant], rows: Mapping[Wanted, Row]) -> Part:
        """The outputs of rows given as columns."""
        mine = {wanted: row for wanted, row in rows.items() if wanted.dataset in self._datasets}
        answer = self._processes.ask(self._task, ("run", self._task.identity, columns, instants, mine))
        outputs: list[list[Value]] = answer.columns
        if [len(values) for values in outputs] != [len(instants)] * len(self._task.outputs):
            raise UserCodeError(self._task.label, _location(self._task), _SPOILED)
        for place, form in self._decimals:
            outputs[place] = [form(value) for value in outputs[place]]
        return Part(outputs, answer.wanted)


class _Child:
    """One child process and the socket to it."""

    def __init__(self, limits: Limits, hidden: Sequence[str]) -> None:
        shown = json.dumps([sys.path, list(hidden)])
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                [sys.executable, "-I", "-c", _MAIN, shown, str(theirs.fileno()), json.dumps(limits)],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what user code prints is log, like what it warns
                env=_ENVIRONMENT,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a Ctrl-C at our terminal is ours alone; its own children end with it
            )
            self._connection = Connection(ours.detach())
        self._loaded: set[str] = set()
        self._ready = False

    def ask(self, task: Task, message: tuple[Any, ...], hard_s: float) -> ChildAnswer:
        """Send a message and wait for its answer, ``hard_s`` from one sign of life to the next, longer for a load.

        Raises:
            ProcessEnded: there was none.
        """
        try:
            if not self._ready:
                self._answer(_START_S)
                self._ready = True
            new = task.identity not in self._loaded
            self._connection.send_bytes(pickle.dumps((task if new else None, *message)))
            answer = self._answer(hard_s * LOAD_PATIENCE if new else hard_s)
            while answer.state == "going":
                answer = self._answer(hard_s)
        except (EOFError, OSError):
            ending = self._ending()
            if self._process.returncode == HUNG_STATUS:
                raise ProcessHung(_hung(hard_s)) from None
            raise ProcessEnded(f"ended its process ({ending})") from None
        except msgspec.DecodeError:
            raise ProcessEnded(_SPOILED) from None
        if answer.state != "failed":
            self._loaded.add(task.identity)
        return answer

    def kill(self) -> None:
        """End the process and whatever it started."""
        if self._process.returncode is None:  # else its number may be another's by now
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """Close the channel; nobody may wait on it."""
        self._connection.close()

    def _answer(self, within_s: float) -> ChildAnswer:
        if not self._connection.poll(within_s):
            raise ProcessHung(_hung(within_s))
        return _decode(self._connection.recv_bytes(_LARGEST_ANSWER))

    def _ending(self) -> str:
        try:
            status = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "it closed its channel"
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _hung(within_s: float) -> str:
    return f"took longer than {within_s * 1_000:.0f} ms; its process was killed and replaced"


def _location(task: Task) -> str:
    return f"{task.code.file or f'<{task.label}>'}:{task.code.line or 1}"
