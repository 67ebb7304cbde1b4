"""A service in a process of its own, without Ray: what its CPU is counted by."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import NamedTuple

import psutil

from cluster.sockets import bind_listener
from featurelib.clock import SystemClock
from featurelib.settings import Settings
from serve_apps.listener import Listener
from serve_apps.services import open_services
from serve_apps.web import Application


class Listening(NamedTuple):
    """The process, and the port it answers on."""

    process: psutil.Process
    port: int


@contextmanager
def listening(settings: Settings) -> Iterator[Listening]:
    """Both services of these settings, until the block ends."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(settings, theirs))
    process.start()
    try:
        yield Listening(psutil.Process(process.pid), ours.recv())
    finally:
        ours.send("stop")
        process.join()


def _serve(settings: Settings, parent: Connection) -> None:
    listener = Listener(Application(lambda: open_services(settings, SystemClock())), bind_listener("127.0.0.1", 0))
    listener.start()
    parent.send(listener.port)
    parent.recv()
    listener.stop()
