"""The process that stores the query runs of one replica: reads batches, digests, inserts, says that it is done.

It ends when the replica's end of the channel is closed and all that came through it is stored, or when the database
does not answer for a minute after that. Secrets reach it through the channel, not as arguments.
"""

from __future__ import annotations

import json
import queue
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import structlog

from cluster.processes import collect_seldom
from featurelib.clock import SystemClock
from featurelib.errors import StoreUnavailable
from featurelib.stores.audit import Audit
from featurelib.stores.digests import Digests
from featurelib.stores.questions import Entry, Question, Seen
from featurelib.stores.registry import Registry
from serve_apps.logs import configure_logs
from serve_apps.recorder import Recorder

ACK = struct.Struct("<QI")
"""What is said of a batch: its number, and how many of its runs could not be stored."""

_LENGTH = struct.Struct("<I")
# The channel holds some 200 kB. What is read ahead is safe from the replica's end, and bounded: 64 batches of 100 runs.
_READ_AHEAD = 64
# Batches stored in one transaction where several wait: its own cost is that of 20 runs.
_TOGETHER = 10
_RETRY_SECONDS = 0.5
_ORPHAN_SECONDS = 60.0

_encode = msgspec.msgpack.Encoder(decimal_format="string").encode
_log = structlog.get_logger("thyme.query_runs")


class Hello(NamedTuple):
    """The first message: where runs go, and the key of their digests."""

    registry_url: str
    digest_key: bytes

    def __repr__(self) -> str:
        return "Hello(…)"


class Batch(NamedTuple):
    """Runs, spelt."""

    number: int
    entries: list[msgspec.Raw]


# `thyme down` asks every process to end. This one ends by itself once its replica has; also while it is still starting.
COMMAND = (
    "import signal, sys, json; signal.signal(signal.SIGTERM, signal.SIG_IGN); sys.path[:] = json.loads(sys.argv[1]);"
    " from serve_apps.audit_process import main; main()"
)
"""Starts it; arguments: the paths of modules, and the descriptor of the channel."""


def frame(message: Hello | Batch) -> bytes:
    """A message as the channel carries it."""
    body = _encode(message)
    return _LENGTH.pack(len(body)) + body


def spelt(entries: Sequence[Entry]) -> list[msgspec.Raw]:
    """Runs as bytes."""
    return [msgspec.Raw(_spelt(entry)) for entry in entries]


def _spelt(entry: Entry) -> bytes:
    try:
        return _encode(entry)
    except (OverflowError, UnicodeEncodeError, TypeError):
        # A number of more than 64 bits, or half a character, in an id or an input: such a run goes as JSON. Its values
        # are not compared.
        question = entry.question
        kept = None if question is None else json.dumps(question.recorded(), default=str)
        ids = tuple(_plain(each) for each in entry.entity_ids)
        plain = entry._replace(question=None, values=None, target=_plain(entry.target), entity_ids=ids)
        return _encode((*plain, kept))


def spelt_values(values: Sequence[Any]) -> msgspec.Raw | None:
    """Values as an :class:`~featurelib.stores.questions.Entry` may have them; ``None`` where they cannot be spelt."""
    try:
        return msgspec.Raw(_encode(values))
    except (OverflowError, UnicodeEncodeError, TypeError):
        return None


def _plain(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def entry_of(spelling: Sequence[Any]) -> Entry:
    """The run that was spelt so."""
    entry = Entry(*spelling[: len(Entry._fields)])
    seen = None if entry.seen is None else Seen(*entry.seen)
    question = None if entry.question is None else Question(*entry.question)
    if len(spelling) > len(Entry._fields) and spelling[-1] is not None:
        question = Question.from_recorded(json.loads(spelling[-1]), entry.entity_ids)
    return entry._replace(question=question, seen=seen)


def main() -> None:
    """Serve one replica."""
    configure_logs()
    with socket.socket(fileno=int(sys.argv[2])) as channel:
        messages = _frames(channel)
        hello = Hello(*msgspec.msgpack.decode(next(messages)))
        registry = Registry(hello.registry_url, SystemClock())
        recorder = Recorder(Audit(registry.database), registry, Digests(hello.digest_key))
        collect_seldom()
        _Served(channel, messages, recorder).serve()
        registry.close()


def _frames(channel: socket.socket) -> Iterator[bytes]:
    """Messages until the replica's end is closed; one that is cut short was never sent."""
    while (head := _exactly(channel, _LENGTH.size)) and (body := _exactly(channel, _LENGTH.unpack(head)[0])):
        yield body


def _exactly(channel: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = channel.recv(min(size - len(parts), 2**20))
        except ConnectionError:
            part = b""
        if not part:
            return b""
        parts += part
    return bytes(parts)


class _Served:
    """One replica: its batches are read ahead in a thread, and stored in order."""

    def __init__(self, channel: socket.socket, messages: Iterator[bytes], recorder: Recorder) -> None:
        self._channel = channel
        self._messages = messages
        self._recorder = recorder
        self._ahead: queue.Queue[bytes | None] = queue.Queue(_READ_AHEAD)
        self._alone_since: float | None = None

    def serve(self) -> None:
        """Store batches until the replica has gone and none is left."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        while messages := self._next():
            batches = {}
            for message in messages:
                number, spellings = msgspec.msgpack.decode(message)
                batches[number] = [entry_of(spelling) for spelling in spellings]
            lost = self._stored([entry for entries in batches.values() for entry in entries])
            if lost is None:
                return
            for number, entries in batches.items():
                self._acknowledge(number, sum(entry.id in lost for entry in entries))

    def _next(self) -> list[bytes]:
        """What was read ahead, in order, to be stored together; nothing once there is no more to come."""
        messages = [self._ahead.get()]
        while messages[-1] is not None and len(messages) < _TOGETHER and not self._ahead.empty():
            messages.append(self._ahead.get())
        if messages[-1] is None and len(messages) > 1:
            self._ahead.put(None)  # the end is met again once these are stored
        return [message for message in messages if message is not None]

    def _acknowledge(self, number: int, lost: int) -> None:
        with suppress(OSError):  # nobody waits for it any more
            self._channel.sendall(ACK.pack(number, lost))

    def _read(self) -> None:
        for message in self._messages:
            self._ahead.put(message)
        self._alone_since = time.monotonic()
        self._ahead.put(None)

    def _stored(self, entries: list[Entry]) -> set[str] | None:
        """Store runs; the ids of those that no database takes, or ``None`` when they are given up for good."""
        while True:
            try:
                return store(self._recorder, entries)
            except StoreUnavailable as error:
                if self._alone_since is not None and time.monotonic() > self._alone_since + _ORPHAN_SECONDS:
                    _log.error("query_runs_lost", error=str(error), lost=len(entries))
                    return None
            time.sleep(_RETRY_SECONDS)


def store(recorder: Recorder, entries: Sequence[Entry]) -> set[str]:
    """Store runs; the ids of those that no database takes.

    Raises:
        StoreUnavailable: nothing is known to be stored.
    """
    try:
        recorder.record(entries)
    except StoreUnavailable:
        raise
    except Exception as error:  # noqa: BLE001  # the worker loop: one run must not hold up all that come after it
        if len(entries) == 1:
            _log.error("query_run_lost", run=entries[0].id, error=f"{type(error).__name__}: {error}"[:500])
            return {entries[0].id}
        return set().union(*(store(recorder, [entry]) for entry in entries))
    return set()
