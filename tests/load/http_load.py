"""A lean HTTP load generator: raw sockets and epoll in a process of its own, a few microseconds of Python a request.

    python -m tests.load.http_load < job.json        prints what it saw as JSON

*Closed*: every connection asks again as soon as it was answered; the rate is what the server gives. *Open* (a
``rate``): requests leave at appointed times over the given connections, whatever became of the one before. The clock of
a request that found every connection busy starts at its appointed time, so a server that stalls is charged for all who
waited. One that finds a free connection starts when it is sent: a generator that was stopped itself charges nobody.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_ROOT = Path(__file__).resolve().parents[2]
_OK = b"HTTP/1.1 200"
_LENGTH = b"content-length: "
_CHUNK = 1 << 20
_ANSWER_S = 30.0
# Sleeping ends some 60 µs late; the rest of the wait is spent looking at the clock.
_SPIN_S = 0.0001


class Job(NamedTuple):
    """What to send: each connection walks ``requests`` in turn, from a place of its own."""

    port: int
    requests: Sequence[bytes]
    connections: int
    seconds: float
    rate: float | None = None


class Load(NamedTuple):
    """What a run saw. ``failed``: answers other than 200. ``busy``: share of a core that the generator took."""

    answered: int
    failed: int
    seconds: float
    busy: float
    latencies_ms: list[float]

    @property
    def rps(self) -> float:
        """Answers per second."""
        return self.answered / self.seconds

    def percentile(self, share: float) -> float:
        """Of the latencies, in ms."""
        return percentile(self.latencies_ms, share)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share does not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def measure(job: Job) -> Load:
    """Run a job in a process of its own."""
    text = json.dumps({**job._asdict(), "requests": [request.decode("latin-1") for request in job.requests]})
    command = [sys.executable, "-m", "tests.load.http_load"]
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True, cwd=_ROOT)
    return Load(**json.loads(done.stdout))


def in_turn(port: int, kinds: Sequence[Sequence[bytes]], rounds: int) -> list[list[float]]:
    """How many milliseconds each kind of request took, one after the other again and again: all meet the same machine.

    Raises:
        ValueError: one was not answered with 200.
    """
    connections = [_Connection(port) for _ in kinds]
    waits: list[list[float]] = [[] for _ in kinds]
    for number in range(rounds):
        for kind, connection, found in zip(kinds, connections, waits, strict=True):
            request = kind[number % len(kind)]
            began = time.perf_counter()
            connection.ask(request, began)
            while (answered := connection.answered()) is None:
                pass
            found.append((time.perf_counter() - began) * 1_000)
            if not answered:
                raise ValueError(f"refused: {request!r}")
    for connection in connections:
        connection.socket.close()
    return waits


def get(path: str, key: str = "") -> bytes:
    """A GET of this path."""
    return f"GET {path} HTTP/1.1\r\nHost: thyme\r\n{_bearer(key)}\r\n".encode()


def post(path: str, body: bytes, key: str = "") -> bytes:
    """A POST of this JSON."""
    head = f"POST {path} HTTP/1.1\r\nHost: thyme\r\n{_bearer(key)}Content-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _bearer(key: str) -> str:
    return f"Authorization: Bearer {key}\r\n" if key else ""


class _Connection:
    """One connection, at most one request on its way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), _ANSWER_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.since = 0.0
        self._received = b""
        self._size = 0

    def ask(self, request: bytes, since: float) -> None:
        """Send a request; its clock started at ``since``."""
        self.since = since
        self.socket.sendall(request)

    def answered(self) -> bool | None:
        """After bytes came: whether the answer is a 200, ``None`` while some of it is missing."""
        data = self.socket.recv(_CHUNK)
        if not data:
            raise ConnectionError("closed")
        received = self._received = self._received + data if self._received else data
        if not self._size:
            head = received.find(b"\r\n\r\n")
            if head < 0:
                return None
            lowered = received[:head].lower()
            at = lowered.index(_LENGTH) + len(_LENGTH)
            end = lowered.find(b"\r", at)
            self._size = head + 4 + int(lowered[at : end if end > 0 else head])
        if len(received) < self._size:
            return None
        self._received, self._size = b"", 0
        return received.startswith(_OK)


class _Run:
    """One job at work."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._connections = {c.socket.fileno(): c for c in (_Connection(job.port) for _ in range(job.connections))}
        self._poll = select.epoll()
        for number in self._connections:
            self._poll.register(number, select.EPOLLIN)
        self._next = 0
        self._failed = 0
        self._latencies: list[float] = []

    def closed(self) -> None:
        """As fast as it is answered."""
        for connection in self._connections.values():
            self._ask(connection, time.perf_counter())
        end = time.perf_counter() + self._job.seconds
        while time.perf_counter() < end:
            for connection in self._answers(_ANSWER_S):
                self._ask(connection, time.perf_counter())

    def open(self, rate: float) -> None:
        """At a rate."""
        free, waiting = deque(self._connections.values()), deque[float]()
        began = time.perf_counter()
        for number in range(int(self._job.seconds * rate)):
            at = began + number / rate
            while (early := at - time.perf_counter()) > 0:
                if len(free) == len(self._connections):
                    _sleep(early)
                    continue
                for connection in self._answers(early):
                    if waiting:
                        self._ask(connection, waiting.popleft())
                    else:
                        free.append(connection)
            if free:
                self._ask(free.popleft(), time.perf_counter())
            else:
                waiting.append(at)
        self._drain(len(self._connections) - len(free), waiting)

    def _drain(self, busy: int, waiting: deque[float]) -> None:
        end = time.perf_counter() + _ANSWER_S
        while (busy or waiting) and time.perf_counter() < end:
            for connection in self._answers(_ANSWER_S):
                if waiting:
                    self._ask(connection, waiting.popleft())
                else:
                    busy -= 1

    def _ask(self, connection: _Connection, since: float) -> None:
        requests = self._job.requests
        self._next += 1
        connection.ask(requests[self._next % len(requests)], since)

    def _answers(self, within_s: float) -> list[_Connection]:
        """Connections that were answered and are free again."""
        done = []
        for number, _ in self._poll.poll(within_s):
            connection = self._connections[number]
            answered = connection.answered()
            if answered is None:
                continue
            self._latencies.append((time.perf_counter() - connection.since) * 1_000)
            self._failed += not answered
            done.append(connection)
        return done

    def seen(self, seconds: float, busy: float) -> Load:
        """What it saw."""
        good = len(self._latencies) - self._failed
        return Load(good, self._failed, seconds, busy / seconds, self._latencies)


def _sleep(seconds: float) -> None:
    if seconds > _SPIN_S:
        time.sleep(seconds - _SPIN_S)


def run(job: Job) -> Load:
    """Run a job in this process."""
    work = _Run(job)
    clock, core = time.perf_counter(), time.process_time()
    if job.rate is None:
        work.closed()
    else:
        work.open(job.rate)
    return work.seen(time.perf_counter() - clock, time.process_time() - core)


def main() -> None:
    """Read a job, print what it saw."""
    given = json.loads(sys.stdin.read())
    requests = [request.encode("latin-1") for request in given.pop("requests")]
    json.dump(run(Job(requests=requests, **given))._asdict(), sys.stdout)


if __name__ == "__main__":
    main()
