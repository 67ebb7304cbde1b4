"""The one boundary to user code: loading a function from its text, calling it, and saying whose fault it was.

Whatever a function raises, hangs in or returns wrongly becomes a :class:`UserCodeError` that names the user's own
file and line. Extractors, transforms and filters all pass here. A :class:`Guard` adds time limits: at the soft one
the function is interrupted between two Python instructions; a function that sits in a C call cannot be, and at the
hard limit it is given up: it is called no more, and whoever owns the process is told.
"""

from __future__ import annotations

import ast
import ctypes
import dis
import hashlib
import inspect
import linecache
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import CodeType, ModuleType, TracebackType
from typing import Any, NamedTuple

from featurelib.definitions import PyCode
from featurelib.errors import UserCodeError, without_folder

# The watch looks this often within a soft limit, so an interruption comes at most that share late.
_LOOKS_PER_LIMIT = 8
_SHORTEST_LOOK_S, _LONGEST_LOOK_S = 0.002, 0.1
_LONGEST_MESSAGE = 2_000
LOAD_PATIENCE = 10
"""Loading a function may take so many times as long as a call: the first import of a large package takes seconds."""


class Passing(BaseException):
    """A signal of the platform's own that crosses user code untouched.

    A ``BaseException``, so that a user's ``except Exception`` cannot swallow it.
    """


class Limits(NamedTuple):
    """Seconds one call may take: interrupted after ``soft_s``, given up after ``hard_s``."""

    soft_s: float
    hard_s: float


class TimeLimit(BaseException):
    """Raised inside user code that runs too long."""


class UserFunction:
    """One compiled user function and its place in the user's file. Make one with :func:`load`.

    Attributes:
        label: what the function is called in errors, such as ``Featureset.extractor``.
        identity: what its owner knows it by, such as a digest.
        location: the user's ``file:line`` of its ``def``.
        given_up: set once it passed its hard limit; why it is called no more.
        patience: its limits are this many times those of its guard.
    """

    def __init__(self, code: PyCode, label: str, names: Mapping[str, Any], guard: Guard | None, identity: str) -> None:
        self.label = label
        self.identity = identity
        self.given_up: str | None = None
        self.patience = LOAD_PATIENCE
        self._file = code.file or f"<{label}>"
        self._first = code.line or 1
        self.location = f"{self._file}:{self._first}"
        self._guard = guard
        digest = hashlib.sha256(code.source.encode(errors="surrogatepass")).hexdigest()[:16]
        self._source_name = f"<thyme {label} {digest}>"
        self._span = range(1, 2)
        self._function = self._load(code, f"_thyme_{digest}", names)
        self.patience = 1

    def call(self, *arguments: Any) -> Any:
        """Call it with positional arguments.

        Raises:
            UserCodeError: it raised, ran into its time limit, or was given up before.
        """
        if self.given_up:
            raise self.wrong(self.given_up)
        try:
            if self._guard is None:
                return self._function(*arguments)
            return self._guard.call(self, self._function, arguments)
        except Passing:
            raise
        except BaseException as error:
            raise self._raised(error) from error

    def wrong(self, message: str) -> UserCodeError:
        """The error of a function that ran but did not do what it declares."""
        return UserCodeError(self.label, self.location, message)

    def signature(self) -> inspect.Signature:
        """The function's parameters.

        Raises:
            UserCodeError: it is no plain function.
        """
        if inspect.iscoroutinefunction(self._function) or inspect.isasyncgenfunction(self._function):
            raise self.wrong("is declared async; write a plain function")
        if inspect.isgeneratorfunction(self._function):
            raise self.wrong("is a generator; return the value instead")
        return inspect.signature(self._function)

    def _load(self, code: PyCode, module_name: str, names: Mapping[str, Any]) -> Callable[..., Any]:
        lines = code.source.splitlines(keepends=True)
        # With no modification time the entry is never checked against a file, so tracebacks show the user's lines.
        linecache.cache[self._source_name] = (len(code.source), None, lines, self._source_name)
        module = ModuleType(module_name)
        # Dataclasses and pickled values look their module up by name.
        sys.modules[module_name] = module
        vars(module).update(names)
        self._function = exec
        self.call(self._parse(code), vars(module))
        vars(module).update(names)
        function = vars(module).get(code.entry_point)
        if not callable(function):
            raise self.wrong(f"its source defines no function {code.entry_point!r}")
        return function  # type: ignore[no-any-return]

    def _parse(self, code: PyCode) -> CodeType:
        try:
            tree = ast.parse(code.source, self._source_name)
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == code.entry_point:
                    self._span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            return compile(tree, self._source_name, "exec")
        except SyntaxError as error:
            where = f"{self._file}:{error.lineno or self._first}"
            raise UserCodeError(self.label, where, f"SyntaxError: {error.msg}") from None
        except (ValueError, RecursionError, MemoryError) as error:  # a NUL byte, a nesting too deep
            raise self.wrong(f"does not compile: {error}") from None

    def _raised(self, error: BaseException) -> UserCodeError:
        if isinstance(error, KeyboardInterrupt) and not _is_raised_by_code(error.__traceback__):
            raise error  # a person's Ctrl-C while the function ran
        line = self._user_line(error.__traceback__)
        if isinstance(error, TimeLimit) and self._guard is not None:
            message = f"took longer than {_ms(self._guard.limits.soft_s * self.patience)} and was interrupted"
        else:
            message = _message(error)
        return UserCodeError(self.label, f"{self._file}:{line}", message)

    def _user_line(self, trace: TracebackType | None) -> int:
        found = self._first
        while trace is not None:
            ours = trace.tb_frame.f_code.co_filename == self._source_name
            if ours and trace.tb_lineno in self._span:
                found = self._first + trace.tb_lineno - self._span.start
            trace = trace.tb_next
        return found


def load(
    code: PyCode,
    label: str,
    names: Mapping[str, Any] | None = None,
    guard: Guard | None = None,
    identity: str = "",
) -> UserFunction:
    """Compile a user's function and run the module-level text it came with.

    Args:
        code: the function as text.
        label: what errors call it.
        names: put into its module, such as the datasets it may look up.
        guard: limits every call, this first one included.
        identity: kept with the function.

    Raises:
        UserCodeError: the text does not compile, raises, or defines no such function.
    """
    return UserFunction(code, label, names or {}, guard, identity)


def _is_raised_by_code(trace: TracebackType | None) -> bool:
    """Whether the innermost frame executes a ``raise``; an interruption from outside lands anywhere else."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    opcode = trace.tb_frame.f_code.co_code[trace.tb_lasti]
    return dis.opname[opcode] == "RAISE_VARARGS"


def _ms(seconds: float) -> str:
    return f"{seconds * 1_000:.0f} ms"


def _message(error: BaseException) -> str:
    try:
        text = without_folder(error)
    except Exception:  # noqa: BLE001  # `__str__` of a user's own exception is user code too
        text = "its message cannot be read"
    return f"{type(error).__name__}: {text}"[:_LONGEST_MESSAGE]


class _Watch:
    """What one thread is running. Every change counts ``number`` up, so two calls are never taken for one."""

    __slots__ = ("number", "running", "seen", "shot", "since", "thread")

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.number = 0
        self.running: UserFunction | None = None
        # Of the watching thread: the call seen last and since when, and the call it raised TimeLimit in.
        self.seen = -1
        self.since = 0.0
        self.shot = -1


class Guard:
    """Time limits for user functions, in whichever threads they run.

    A call costs two attribute writes; one thread looks every few milliseconds at what is running and reads the clock.

    Args:
        limits: of each call.
        on_given_up: told, in the guard's thread, of a function that passed its hard limit and still runs.
    """

    def __init__(self, limits: Limits, on_given_up: Callable[[UserFunction], None] | None = None) -> None:
        self.limits = limits
        self._on_given_up = on_given_up
        self._watches: dict[int, _Watch] = {}
        self._shooting = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="user-code-guard", daemon=True)

    def call(self, owner: UserFunction, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Call ``function`` under the limits; ``owner`` is given up when it passes the hard one.

        Raises:
            TimeLimit: it was interrupted. And whatever the function raises.
        """
        watch = self._watches.get(threading.get_ident()) or self._watch()
        try:
            watch.number += 1
            watch.running = owner
            return function(*arguments)
        finally:
            watch.running = None
            if watch.shot == watch.number:
                self._disarm(watch)

    def close(self) -> None:
        """Stop watching; calls go on without limits."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> _Watch:
        watch = _Watch(threading.get_ident())
        with self._shooting:
            if not self._watches and not self._closed.is_set():
                self._thread.start()
            # Replaced as a whole: the guard's thread walks it meanwhile.
            self._watches = {**self._watches, watch.thread: watch}
        return watch

    def _look_on(self) -> None:
        pause_s = min(max(self.limits.soft_s / _LOOKS_PER_LIMIT, _SHORTEST_LOOK_S), _LONGEST_LOOK_S)
        while not self._closed.wait(pause_s):
            for watch in self._watches.values():
                self._look(watch, time.monotonic())

    def _look(self, watch: _Watch, now: float) -> None:
        owner, number = watch.running, watch.number
        if owner is None or number != watch.seen:
            watch.seen, watch.since = number, now
            return
        seconds = now - watch.since
        if seconds >= self.limits.soft_s * owner.patience:
            self._interrupt(watch, number)
        hard_s = self.limits.hard_s * owner.patience
        if seconds >= hard_s and not owner.given_up:
            owner.given_up = f"took longer than {_ms(hard_s)} and could not be interrupted; it is not called again"
            if self._on_given_up is not None:
                self._on_given_up(owner)

    def _interrupt(self, watch: _Watch, number: int) -> None:
        # Again at every look while the call lasts: user code may have swallowed the last one in a bare `except`.
        with self._shooting:
            watch.shot = number
            # `shot` is written before `running` is read, and a caller writes `running` before it reads `shot`:
            # either the call is seen to be over here, or its caller waits for the lock and takes the shot back.
            if watch.running is not None and watch.number == number:
                _raise_in(watch.thread, TimeLimit)

    def _disarm(self, watch: _Watch) -> None:
        with self._shooting:
            _raise_in(watch.thread, None)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Let a thread raise at its next Python instruction; ``None`` takes a pending one back."""
    given = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), given)
