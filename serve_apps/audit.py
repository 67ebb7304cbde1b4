"""Query runs, handed over behind the answer: a bounded queue, and a process or a thread that stores them.

The request path leaves one tuple per answer. A full queue costs audit records, counted as dropped, and never a query.
The process outlives its replica until it has stored what it was given, so a replica that is killed loses only what it
had not handed over, some 50 ms of runs; a process that is killed is replaced, and gets again what it had not stored.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import NamedTuple, Protocol

import structlog

from featurelib.errors import ThymeError
from featurelib.stores.questions import Entry
from serve_apps.audit_process import ACK, COMMAND, Batch, Hello, frame, spelt
from serve_apps.current import passed
from serve_apps.metrics import Metrics
from serve_apps.recorder import Recorder

# Five seconds of 10,000 answers a second: longer than a SQLite checkpoint, shorter than memory cares for (~1 kB each).
_MOST_WAITING = 50_000
_MOST_WAITING_BYTES = 64 * 2**20
_RUN_BYTES = 1_000
# Spelling 100 runs of 50 features holds the event loop for half a millisecond; inserting them takes 5 ms.
_BATCH = 100
_FLUSH_SECONDS = 0.05
_RETRY_SECONDS = 0.5
_CLOSE_SECONDS = 5.0
# Beyond it the process does not keep up, and what waits is better bounded here, where it is counted.
_MOST_UNSENT = 2**20
# A batch that ends the process each time it is tried is given up.
_MOST_TRIES = 5

_log = structlog.get_logger("thyme.serve")


class Carrier(Protocol):
    """Takes batches of runs to where they are stored, and tells how many were stored and how many lost."""

    tell: Callable[[int, int], None]

    async def carry(self, entries: Sequence[Entry]) -> bool:
        """Take a batch; False when it cannot now, and should be given it again later.

        Raises:
            StoreUnavailable: the same, because the database does not answer.
        """
        ...

    async def room(self) -> None:
        """Wait until a batch can be taken."""
        ...

    async def settled(self) -> None:
        """Wait until all that was taken is stored."""
        ...

    async def close(self) -> None:
        """Take no more."""
        ...


class AuditWriter:
    """Takes runs from the request path and has them written in the background. Lives on one event loop."""

    def __init__(self, carrier: Carrier, metrics: Metrics) -> None:
        self._carrier = carrier
        self._metrics = metrics
        self._waiting: deque[Entry] = deque()
        self._sizes: deque[int] = deque()  # of every run that is not stored yet, oldest first
        self._bytes = 0
        self._flushing = asyncio.Lock()
        carrier.tell = self._told

    def put(self, entry: Entry, size: int = 0) -> None:
        """Queue a run; never blocks and never fails.

        Args:
            entry: what was asked, and what became of it.
            size: about how many bytes its ids, inputs and values have.
        """
        size += _RUN_BYTES
        if len(self._sizes) >= _MOST_WAITING or self._bytes + size > _MOST_WAITING_BYTES:
            self._metrics.runs_dropped.inc()
        else:
            self._waiting.append(entry)
            self._sizes.append(size)
            self._bytes += size

    async def write(self, stopping: asyncio.Event) -> None:
        """Hand over what is queued until ``stopping``."""
        failing = False
        while not await passed(stopping, _RETRY_SECONDS if failing else _FLUSH_SECONDS):
            try:
                await self._hand_over()
            except ThymeError as error:
                if not failing:
                    _log.warning("query_runs_waiting", error=str(error), waiting=len(self._waiting))
                failing = True
            else:
                failing = False

    async def flush(self) -> None:
        """Wait until everything queued so far is stored.

        Raises:
            StoreUnavailable: what was not written stays queued.
        """
        while not await self._hand_over():
            await self._carrier.room()
        await self._carrier.settled()

    async def close(self) -> None:
        """Write the rest; what cannot be handed over now is counted as dropped."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self.flush()
        except (ThymeError, TimeoutError) as error:
            _log.warning("query_runs_lost", error=str(error), lost=len(self._waiting))
            self._metrics.runs_dropped.inc(len(self._waiting))
        await self._carrier.close()

    async def _hand_over(self) -> bool:
        """Hand over what is queued; whether the carrier took all of it."""
        async with self._flushing:
            while self._waiting:
                batch = list(islice(self._waiting, _BATCH))
                if not await self._carrier.carry(batch):
                    return False
                # Runs leave the queue after they are taken: a failed insert is tried again, and adds nothing twice.
                for _ in batch:
                    self._waiting.popleft()
                await asyncio.sleep(0)
        return True

    def _told(self, stored: int, lost: int) -> None:
        for _ in range(stored + lost):
            self._bytes -= self._sizes.popleft()
        self._metrics.runs_recorded.inc(stored)
        self._metrics.runs_dropped.inc(lost)


def _unheard(stored: int, lost: int) -> None:
    """Nobody is told yet."""


class InThread:
    """Stores runs in a thread of this process."""

    def __init__(self, recorder: Recorder) -> None:
        self.tell: Callable[[int, int], None] = _unheard
        self._recorder = recorder

    async def carry(self, entries: Sequence[Entry]) -> bool:
        """Store a batch."""
        await asyncio.to_thread(self._recorder.record, entries)
        self.tell(len(entries), 0)
        return True

    async def room(self) -> None:
        """There always is."""

    async def settled(self) -> None:
        """What was taken is stored."""

    async def close(self) -> None:
        """Nothing is open."""


class _Sent(NamedTuple):
    """A batch that is not known to be stored."""

    message: bytes
    runs: int


class InProcess:
    """Stores runs in a process of its own (:mod:`serve_apps.audit_process`), started with the first run.

    Batches are numbered and kept until the process says that they are stored. One that takes its place after it ended
    is sent all of them again.
    """

    def __init__(self, hello: Hello) -> None:
        self.tell: Callable[[int, int], None] = _unheard
        self._hello = hello
        self._number = 0
        self._unstored: OrderedDict[int, _Sent] = OrderedDict()
        self._stored = asyncio.Event()
        self._stored.set()
        self._up = asyncio.Event()
        self._tries = 0
        self._channel: asyncio.StreamWriter | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._living: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    async def carry(self, entries: Sequence[Entry]) -> bool:
        """Send a batch, unless the process is too far behind."""
        if self._living is None:
            self._living = asyncio.create_task(self._live())
        channel = self._channel
        if channel is None or channel.transport.get_write_buffer_size() > _MOST_UNSENT:
            return False
        self._number += 1
        sent = _Sent(frame(Batch(self._number, spelt(entries))), len(entries))
        self._unstored[self._number] = sent
        self._stored.clear()
        channel.write(sent.message)
        return True

    async def room(self) -> None:
        """Wait until the process is there and has taken most of what it was sent."""
        await self._up.wait()
        if self._channel is not None:
            with suppress(ConnectionError):
                await self._channel.drain()

    async def settled(self) -> None:
        """Wait until the process has stored what it was sent."""
        await self._stored.wait()

    async def close(self) -> None:
        """Close the channel: the process ends once it has stored what it was sent."""
        if self._channel is not None:
            self._channel.close()
        if self._living is not None:
            self._living.cancel()
            with suppress(asyncio.CancelledError):
                await self._living
        if self._process is not None and not self._unstored:
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, _CLOSE_SECONDS)

    async def _live(self) -> None:
        """Keep a process that stores runs, whatever becomes of it."""
        while True:
            try:
                await self._served()
            except OSError as error:
                _log.warning("query_run_writer_not_started", error=str(error))
            else:
                _log.warning("query_run_writer_ended", unstored=sum(each.runs for each in self._unstored.values()))
                self._give_up_the_first()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _served(self) -> None:
        """Start a process, send it what its predecessor had not stored, and listen to it until it ends."""
        process, ours = await asyncio.to_thread(_started)
        self._process = process
        answers, channel = await asyncio.open_unix_connection(sock=ours)
        channel.transport.set_write_buffer_limits(high=_MOST_UNSENT)
        try:
            channel.write(frame(self._hello))
            for sent in self._unstored.values():
                channel.write(sent.message)
            self._channel = channel
            self._up.set()
            while answer := await answers.readexactly(ACK.size):
                self._heard(*ACK.unpack(answer))
        except (asyncio.IncompleteReadError, ConnectionError):
            await asyncio.to_thread(process.wait)
        finally:
            self._channel = None
            self._up.clear()
            channel.close()

    def _heard(self, number: int, lost: int) -> None:
        self._tries = 0
        sent = self._unstored.pop(number, None)
        if sent is not None:
            self.tell(sent.runs - lost, lost)
        if not self._unstored:
            self._stored.set()

    def _give_up_the_first(self) -> None:
        self._tries += 1
        if self._tries >= _MOST_TRIES and self._unstored:
            number, sent = next(iter(self._unstored.items()))
            _log.error("query_runs_lost", reason="their writer ends with them", lost=sent.runs)
            self._heard(number, sent.runs)


def _started() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A new process, and our end of the channel to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            # In a session of its own: a Ctrl-C at our terminal is ours alone, and it goes on while we end. It inherits
            # the environment, and with it the mark by which `thyme down` finds whatever is left.
            process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
                [sys.executable, "-c", COMMAND, json.dumps(sys.path), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
    return process, ours
