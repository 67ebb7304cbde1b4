"""The actor of a backfill's Ray job that says where it ran, and that is killed midway; Ray's workers import it here."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import ray

from cluster.processes import wait_until
from featurelib.clock import Instant
from featurelib.engine.keys import owner_of_group
from featurelib.stores.online import Claim
from jobs import backfill
from jobs.backfill import Order
from jobs.spill import Spill

PARTITIONS = 2
DYING = PARTITIONS - 1
"""The partition whose builder is killed, once."""
_MEETING_S = 120.0
BUILT_BEFORE = 5
"""How many of its key groups are built by then."""


class PlacedBuild(backfill._BuildActor):
    """The actor of a backfill, which says where it ran."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Build the partitions."""
        node = ray.get_runtime_context().get_node_id()
        return {**super().__call__(batch), "node": [node for _ in batch["partition"]]}


class KilledBuild(PlacedBuild):
    """The same; its process gets SIGKILL between two key groups of one partition, unless one got it before.

    Args:
        order: what to build.
        met: a folder of this run, where partitions meet before they are built.
        died: a file that says that one was killed.
    """

    def __init__(self, order: Order, met: str, died: str) -> None:
        super().__init__(order)
        self._met, self._died = Path(met), Path(died)
        self._write = self._builder._write_group
        self._groups = 0
        # The very place to be killed at.
        self._builder._write_group = self._write_or_die  # type: ignore[method-assign]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Build the partitions once each has got an actor: one that is done might get that of one still starting."""
        self._met.mkdir(exist_ok=True)
        for partition in batch["partition"]:
            (self._met / str(partition)).touch()
        assert wait_until(lambda: len(list(self._met.iterdir())) == PARTITIONS, _MEETING_S)
        return super().__call__(batch)

    def _write_or_die(self, claim: Claim, spill: Spill, newest: Instant | None) -> int:
        mine = owner_of_group(claim.group, PARTITIONS) == DYING
        if mine and self._groups == BUILT_BEFORE and not self._died.exists():
            self._died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self._groups += mine
        return self._write(claim, spill, newest)
