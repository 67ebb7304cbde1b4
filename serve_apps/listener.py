"""A replica's own HTTP listener: uvicorn on an event loop of its own thread, over a socket that is handed in.

Serve's proxy hop costs 98 % of the throughput, so requests never pass through Ray. Serve keeps what it is good at: it
starts, watches and replaces the replica that owns this listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import threading
from typing import Any, cast

import uvicorn
from uvicorn.server import ServerState

from cluster.processes import collect_between, collect_seldom
from featurelib.errors import ClusterError
from serve_apps.connection import Connection, Shared
from serve_apps.web import Application

# A start loads every read plan; a machine that swaps takes its time.
_START_SECONDS = 60.0
_PROBE_SECONDS = 5.0
# Point-in-time reads in flight are given this long when a replica is replaced.
_DRAIN_SECONDS = 10
# A thread that polls or compiles gives the interpreter up after this long, not after 5 ms: a read takes it back with
# each turn of the loop (p99 of an echo beside a thread that is busy for 10 ms in 110: 5 ms instead of 12).
_SWITCH_SECONDS = 0.0005
_TICKS_A_SECOND = 10  # uvicorn's


class Listener:
    """Serves an application on a listening socket, which it owns from now on."""

    def __init__(self, application: Application, listening: socket.socket) -> None:
        self._application = application
        self._listening = listening
        self._server = _Server(
            uvicorn.Config(
                application,
                loop="uvloop",
                http=cast("Any", self._connection),
                ws="none",
                lifespan="on",
                proxy_headers=False,
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_graceful_shutdown=_DRAIN_SECONDS,
            )
        )
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self._listening.getsockname()[1]
        return port

    def start(self) -> None:
        """Begin to accept; returns when requests are answered.

        Raises:
            ClusterError: the application did not start, a store being away for example; its log says why.
        """
        self._thread.start()
        self._server.settled.wait(_START_SECONDS)
        if not self._server.started:
            self.stop()
            raise ClusterError("the HTTP listener did not start; the replica's log says why")
        collect_seldom(between=True)
        sys.setswitchinterval(_SWITCH_SECONDS)

    def check(self) -> None:
        """Raise unless the event loop turns and the background work goes on.

        Raises:
            ClusterError: the listener is dead or stuck.
        """
        loop = self._server.loop
        if loop is None or not self._thread.is_alive():
            raise ClusterError("the HTTP listener has ended")
        self._application.check_extractors()
        try:
            asyncio.run_coroutine_threadsafe(self._application.check(), loop).result(_PROBE_SECONDS)
        except TimeoutError:
            raise ClusterError(f"the HTTP listener's event loop did not turn for {_PROBE_SECONDS} s") from None

    def stop(self) -> None:
        """Stop accepting, answer what was begun, close the services. May be called twice.

        A thread that sits in an extractor which cannot be stopped ends with the process.
        """
        self._server.should_exit = True
        if self._thread.is_alive() and not self._application.is_stuck:
            self._thread.join(_DRAIN_SECONDS + _PROBE_SECONDS)

    def _connection(self, *, server_state: ServerState, **_: Any) -> Connection:
        """What uvicorn makes of each accepted socket."""
        if self._server.shared is None:
            self._server.shared = Shared(self._application, server_state)
        return Connection(self._server.shared)

    def _run(self) -> None:
        try:
            # A start that fails would end uvicorn's own process this way; here it ends the thread.
            with contextlib.suppress(SystemExit):
                self._server.run(sockets=[self._listening])
        finally:
            self._listening.close()
            self._server.settled.set()


class _Server(uvicorn.Server):
    """Tells the thread that started it when it is up, and on which loop."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.shared: Shared | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.settled.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Otherwise whoever follows the feed would hold the stop up until the drain is given up.
        cast("Application", self.config.app).end_streams()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        collect_between()
        if counter % _TICKS_A_SECOND == 0 and self.shared is not None:
            self.shared.sweep(asyncio.get_running_loop().time())
        return await super().on_tick(counter)
