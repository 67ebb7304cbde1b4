"""A stand-in for what a cluster runs: two Serve deployments on handed-over sockets, and a supervisor job.

It is real Ray and real HTTP; it only knows no features. ``GET /`` answers with the replica's process id.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from typing import Any

import uvicorn
from ray import serve

from cluster.launcher import connect
from cluster.sockets import receive_listener
from featurelib.settings import load_settings


async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer everything with 200 and the process id."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})


@serve.deployment(ray_actor_options={"num_cpus": 0.1}, graceful_shutdown_timeout_s=2)
class Listener:
    """Accepts on the shared listening socket ``name``."""

    def __init__(self, name: str, *_: Any) -> None:
        listener = receive_listener(os.environ["THYME_LISTENER_SOCKET"], name)
        # log_config=None: uvicorn would reset the process's log handlers, Serve's among them, and a Serve controller
        # that comes back with a new head could then not take this replica over but would have to replace it.
        self._server = uvicorn.Server(uvicorn.Config(answer, log_config=None, lifespan="off"))
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[listener]))

    async def check_health(self) -> None:
        """Fail when the listener ended."""
        if self._task.done():
            message = "the listener ended"
            raise RuntimeError(message)


query = Listener.options(name="query").bind("query")
app = Listener.options(name="definition").bind("definition", query)


def supervise() -> None:
    """The stand-in job: join the cluster, then wait to be stopped."""
    connect(load_settings(), namespace="thyme")
    print("supervising", flush=True)  # read back by a test through the job's log
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    stopping.wait()


if __name__ == "__main__":
    supervise()
