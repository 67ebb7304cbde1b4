"""Faults against a running load, counted exactly: ``make soak`` (SOAK_SECONDS, default 600; SOAK_SEED).

Rides are ingested and folded while, at random, workers, source readers, the archiver, the online store, Ray's
control store and the Ray head are killed or frozen. Ends with ``N faults, N events, 0 lost, 0 doubled``, or status 1.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from cluster import local
from cluster.processes import wait_until
from tests.support.towns import DEADLINE_S, Town, running_town

_FROZEN_S = 5.0
_BETWEEN_S = (1.0, 6.0)


def kill(town: Town, title: str, part: str | None = None) -> int:
    """SIGKILL; returns how many processes there were."""
    found = town.platform.processes(title, part)
    for process in found:
        process.kill()
    return len(found)


def freeze(town: Town, title: str, part: str | None = None) -> int:
    """SIGSTOP for a while, then SIGCONT: a process that wakes up late."""
    found = town.platform.processes(title, part)
    for process in found:
        process.send_signal(signal.SIGSTOP)
    threading.Event().wait(_FROZEN_S)
    for process in found:
        if process.is_running():
            process.send_signal(signal.SIGCONT)
    return len(found)


FAULTS = {
    "workers killed": lambda town: kill(town, "ray::PipelineWorker"),
    "workers frozen": lambda town: freeze(town, "ray::PipelineWorker"),
    "source readers killed": lambda town: kill(town, "ray::SourceReader"),
    "archiver killed": lambda town: kill(town, "ray::Archiver"),
    "online store killed": lambda town: kill(town, "", "online"),
    "online store frozen": lambda town: freeze(town, "", "online"),
    "control store killed": lambda town: kill(town, "", "gcs-store"),
    "ray head killed": lambda town: kill(town, "gcs_server", "head") + kill(town, "raylet/raylet", "head"),
    "supervisor killed": lambda town: kill(town, "jobs.supervisor", "node"),
}


def soak(town: Town, seconds: float, chosen: random.Random) -> int:
    """Inject faults while rides arrive; returns how many hit a process."""
    over = threading.Event()
    feeding = threading.Thread(target=_feed, args=(town, over))
    feeding.start()
    ends, faults = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        name = chosen.choice(list(FAULTS))
        hit = FAULTS[name](town)
        print(f"{name}: {hit} processes", flush=True)
        faults += hit > 0
        # A head or store that is lost takes the platform seconds to bring back: let most faults overlap, not all.
        wait_until(lambda: local.status(town.platform.settings).ready, chosen.choice((1.0, DEADLINE_S)), every_s=0.2)
        over.wait(chosen.uniform(*_BETWEEN_S))
    over.set()
    feeding.join()
    return faults


def _feed(town: Town, over: threading.Event) -> None:
    while not over.wait(0.5):
        town.drive(1, 1_000)


def main() -> int:
    """Run; returns the exit status."""
    seconds = float(os.environ.get("SOAK_SECONDS", "600"))
    seed = int(os.environ.get("SOAK_SEED", str(random.randrange(10**6))))
    print(f"SOAK_SECONDS={seconds:.0f} SOAK_SEED={seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="thyme-soak-") as folder, running_town(Path(folder)) as town:
        faults = soak(town, seconds, random.Random(seed))
        wait_until(lambda: local.status(town.platform.settings).ready, DEADLINE_S)
        wait_until(lambda: town.counts() == town.rows, DEADLINE_S, every_s=0.5)
        lost, doubled = max(0, town.rows - town.counts()), max(0, town.counts() - town.rows)
        exact = town.served() == town.expected()
        rows = town.rows
    print(f"every count per key equals the files: {exact}")
    print(f"{faults} faults, {rows} events, {lost} lost, {doubled} doubled")
    return 0 if exact and not lost and not doubled else 1


if __name__ == "__main__":
    sys.exit(main())
