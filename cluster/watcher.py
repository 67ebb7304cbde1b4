"""The watcher: a detached process that starts every part of the cluster and brings back whatever dies.

One thread per part looks whether it is alive, and starts it when it is not and what it needs is ready. Starting
the cluster and repairing it are the same thing. The watcher may die itself: everything runs on, and the next
`thyme up` starts a new one, which adopts by process id and create time what the state file names.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import IO

import psutil
import structlog

from cluster.layout import Layout, Ports, settings_digests
from cluster.parts import Part, Scene, parts_of
from cluster.processes import Owned, free_port, marked, port_holder
from cluster.state import Board, ClusterState, PartStatus, Workload, read_state, write_whole
from featurelib.errors import ClusterError
from featurelib.settings import load_settings

# A part that dies again this soon after a start counts as a failed start, so that the pauses grow.
_STABLE_S = 10.0
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 15.0
# What a start or a look may raise besides ClusterError: the system refused a process, a file, an answer's shape.
_EXPECTED = (ClusterError, OSError, psutil.Error, ValueError, KeyError)


class Keeper(threading.Thread):
    """Keeps one part alive."""

    def __init__(self, part: Part, board: Board, stopping: threading.Event) -> None:
        super().__init__(name=part.name, daemon=True)
        self._part = part
        self._board = board
        self._stopping = stopping
        self._log = structlog.get_logger().bind(part=part.name)

    def run(self) -> None:
        """Look, repair, pause; until the watcher stops."""
        while not self._stopping.is_set():
            self._look()

    def _look(self) -> None:
        missing = self._board.missing(self._part.needs)
        if self._part.remote and missing:
            self._wait_for(missing)
            return
        try:
            alive = self._part.alive()
        except _EXPECTED as error:
            self._board.update(self._part.name, state="failed", error=str(error))
            self._stopping.wait(self._part.every_s)
            return
        if alive:
            self._settle()
        elif missing:
            self._wait_for(missing)
        else:
            self._start()

    def _settle(self) -> None:
        line = self._board.part(self._part.name)
        if line.state != "ready":
            self._log.info("adopted", was=line.state)
            line = self._board.update(self._part.name, state="ready", error="")
        if line.failures and time.time() - line.since > _STABLE_S:
            self._board.update(self._part.name, failures=0)
        self._stopping.wait(self._part.every_s)

    def _wait_for(self, missing: list[str]) -> None:
        self._board.update(self._part.name, state="waiting", error="")
        self._board.wait_ready(missing, 1.0)

    def _start(self) -> None:
        line = self._note_death()
        if line.failures:
            self._stopping.wait(min(_FIRST_PAUSE_S * 2**line.failures, _LONGEST_PAUSE_S))
        self._log.info("starting", start=line.starts + 1)
        self._board.update(line.name, state="starting", starts=line.starts + 1)
        begun = time.monotonic()
        try:
            detail = self._part.start()
        except _EXPECTED as error:
            self._log.error("failed", error=str(error))
            self._board.update(line.name, state="failed", error=str(error), failures=line.failures + 1)
            return
        seconds = round(time.monotonic() - begun, 2)
        self._log.info("ready", seconds=seconds, detail=detail)
        self._board.update(line.name, state="ready", detail=detail, error="", seconds=seconds)

    def _note_death(self) -> PartStatus:
        line = self._board.part(self._part.name)
        if line.state == "ready":
            self._log.warning("died", lived=round(time.time() - line.since, 1))
            self._board.doubt(self._part.holds)
            if time.time() - line.since < _STABLE_S:
                line = self._board.update(line.name, failures=line.failures + 1)
        return line


def main(arguments: list[str] | None = None) -> None:
    """Run until SIGTERM; ends at once, leaving every part running (`thyme down` stops those)."""
    parser = argparse.ArgumentParser(prog="python -m cluster.watcher")
    parser.add_argument("workload", type=Workload.model_validate_json)
    workload: Workload = parser.parse_args(arguments).workload
    layout = Layout(load_settings())
    layout.create()
    _log_to(layout.logs / "watcher.log")
    lock = _lock(layout.watcher_lock)
    if lock is None:
        structlog.get_logger().warning("another watcher runs")
        return
    write_whole(layout.watcher_file, Owned.of(os.getpid()).model_dump_json())
    _watch(layout, Board(layout.state_file, _initial_state(layout, workload)))


def _watch(layout: Layout, board: Board) -> None:
    stopping = threading.Event()

    def stop_now(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        stopping.set()

    signal.signal(signal.SIGTERM, stop_now)
    signal.signal(signal.SIGINT, stop_now)
    for part in parts_of(Scene(layout, board)):
        Keeper(part, board, stopping).start()
    stopping.wait()
    structlog.get_logger().info("watcher stops")


def _initial_state(layout: Layout, workload: Workload) -> ClusterState:
    """What was recorded, if any of it still runs; else a cold start on empty Ray tables.

    Ray's tables describe running processes only; on a cold start they would make Ray look for dead ones.
    """
    known = read_state(layout.state_file)
    if known is not None and any(process.pid != os.getpid() for process in marked(layout.id)):
        return known.unsure().model_copy(update={"workload": workload})
    shutil.rmtree(layout.data / "gcs-store", ignore_errors=True)
    ports = _usable(known.ports) if known else Ports.choose()
    return ClusterState(ports=ports, workload=workload, settings=settings_digests(layout.settings))


def _usable(ports: Ports) -> Ports:
    """The remembered ports, with new ones for those somebody else took meanwhile."""
    chosen = {name: port for name, port in ports if port_holder("127.0.0.1", port) is None}
    for name in Ports.model_fields:
        chosen.setdefault(name, free_port(chosen.values()))
    return Ports(**chosen)


def _lock(path: Path) -> IO[str] | None:
    """Hold ``path`` for as long as the returned file lives; ``None`` when another process does."""
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _log_to(path: Path) -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=path.open("a", buffering=1)),
    )


if __name__ == "__main__":
    main()
