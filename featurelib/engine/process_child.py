"""What runs in a child process of :mod:`featurelib.engine.processes`: load extractors, run them, answer.

Messages arrive pickled, from a parent that is trusted; answers leave as MessagePack, since the parent trusts nobody.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from featurelib.clock import Instant
from featurelib.engine.extractor import Extractor, Part, Row, Task, Wanted
from featurelib.engine.processes import HUNG_STATUS, ChildAnswer
from featurelib.engine.user_code import Guard, Limits, TimeLimit, UserFunction
from featurelib.errors import UserCodeError
from featurelib.types import Value

# The parent kills at the hard limit. Should it be gone, a child that hangs ends itself this much later.
_GRACE = 2.0
# Rows of one message run one after the other: a sign of life after this share of the hard limit restarts the wait.
_SIGN_SHARE = 0.25

_encode = msgspec.msgpack.Encoder(decimal_format="string").encode


def main() -> None:
    """Serve the parent until it closes the channel; arguments: path, descriptor, limits."""
    limits = Limits(*json.loads(sys.argv[3]))
    guard = Guard(limits._replace(hard_s=limits.hard_s * _GRACE), _end)
    child = _Served(Connection(int(sys.argv[2])), guard, limits.hard_s * _SIGN_SHARE)
    sys.argv[:] = [sys.argv[0]]
    child.serve()


def _end(function: UserFunction) -> None:
    sys.stderr.write(f"{function.location} in {function.label}: {function.given_up}\n")
    os._exit(HUNG_STATUS)


class _Served:
    """The extractors of this process, and the parent they are run for."""

    def __init__(self, connection: Connection, guard: Guard, sign_s: float) -> None:
        self._connection = connection
        self._guard = guard
        self._sign_s = sign_s
        self._extractors: dict[str, Extractor] = {}

    def serve(self) -> None:
        """Answer messages until the parent goes away."""
        self._send(ChildAnswer("ready"))
        while True:
            try:
                message = self._connection.recv_bytes()
            except (EOFError, OSError):
                return
            self._send(self._answer(*pickle.loads(message)))  # noqa: S301  # the parent's own

    def _answer(self, task: Task | None, what: str, identity: str, *of_run: Any) -> ChildAnswer:
        try:
            if task is not None:
                self._extractors[identity] = Extractor(task, self._guard)
            if what == "load":
                return ChildAnswer("loaded")
            if task is not None:
                self._send(ChildAnswer("going"))
            part = self._run(self._extractors[identity], *of_run)
        except UserCodeError as error:
            # Its text may be anything, text that no UTF-8 spells included.
            spelt = (_spelt(error.function), _spelt(error.location), _spelt(error.message))
            return ChildAnswer("failed", error=spelt, late=isinstance(error.__cause__, TimeLimit))
        return ChildAnswer("done", columns=part.columns, wanted=part.wanted)

    def _run(
        self,
        extractor: Extractor,
        columns: Sequence[list[Value]],
        instants: Sequence[Instant],
        rows: Mapping[Wanted, Row],
    ) -> Part:
        if extractor.task.vectorized:
            return self._checked(extractor, extractor.many(columns, instants, rows))
        whole = Part([[] for _ in extractor.task.outputs], [])
        signed = time.monotonic()
        for row, at in enumerate(instants):
            part = extractor.many([[column[row]] for column in columns], [at], rows)
            for output, values in zip(whole.columns, part.columns, strict=True):
                output.extend(values)
            whole.wanted.extend((row, wanted) for _, wanted in part.wanted)
            if time.monotonic() - signed > self._sign_s:
                self._send(ChildAnswer("going"))
                signed = time.monotonic()
        return self._checked(extractor, whole)

    def _checked(self, extractor: Extractor, part: Part) -> Part:
        try:
            _encode(part)
        except UnicodeEncodeError:
            where = f"{extractor.task.code.file}:{extractor.task.code.line}"
            raise UserCodeError(extractor.task.label, where, "returned text that no UTF-8 spells") from None
        return part

    def _send(self, answer: ChildAnswer) -> None:
        self._connection.send_bytes(_encode(answer))


def _spelt(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
