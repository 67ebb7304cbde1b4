"""Waits until pipelines have applied what was just appended, so that whoever wrote it reads it.

Workers tell nobody when they have committed; where each key group stands is in the online store. One task per pipeline
looks there for everybody who waits for it, as long as anybody does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from featurelib.definitions import ref
from featurelib.engine.input_partitions import InputPartition, Positions, Reading
from featurelib.engine.keys import KEY_GROUPS
from featurelib.engine.program import Program
from featurelib.errors import StoreUnavailable
from featurelib.stores.log import Log

# A look at 64 groups costs the store some 0.1 ms. A worker that was idle applies a record within 30 to 60 ms.
_LOOK_EVERY_S = 0.005
# Who has waited this long waits for a backlog or a worker that is away.
_PATIENT_AFTER_S = 0.2
_PATIENT_EVERY_S = 0.025

Ends = Mapping[tuple[str, int], int]
"""By ``(dataset ref, log partition)`` the offset below which everything is to be applied."""


class Standing(Protocol):
    """The part of the online reader this needs."""

    async def positions(self, pipeline: str) -> dict[int, list[int]]:
        """Per key group of a pipeline that has begun: up to where it has applied each input partition."""
        ...

    async def ping(self) -> None:
        """Ask the store for a sign of life."""
        ...


class Inputs:
    """The input partitions of pipelines. Blocks; safe to share between threads."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._counts: dict[str, int] = {}

    def of(self, program: Program) -> list[InputPartition]:
        """Every input partition of a pipeline, in the order of its positions; a log not made yet has none."""
        return [
            InputPartition(dataset, partition)
            for dataset in program.sources
            for partition in range(self._count(ref(dataset)))
        ]

    def _count(self, dataset: str) -> int:
        # Fixed for ever once there is a log.
        count = self._counts.get(dataset) or self._log.partitions(dataset)
        if count:
            self._counts[dataset] = count
        return count


class Target(NamedTuple):
    """How far a pipeline is to come: the place of an input partition, an offset, and the groups that read it."""

    place: int
    offset: int
    groups: Sequence[int]

    def is_reached(self, positions: Positions) -> bool:
        """Whether every group has applied everything below the offset."""
        return all(group in positions and positions[group][self.place] >= self.offset for group in self.groups)


def targets_of(program: Program, inputs: Sequence[InputPartition], ends: Ends) -> list[Target]:
    """How far a pipeline is to come so that everything below ``ends`` is applied; of what it does not read, nothing."""
    reading = Reading(program, inputs)
    return [
        Target(index, ends[each.address], reading.groups_reading(index, range(KEY_GROUPS)))
        for index, each in enumerate(inputs)
        if each.address in ends
    ]


class _Waiter(NamedTuple):
    targets: Sequence[Target]
    reached: asyncio.Future[None]
    since_s: float


class Applying:
    """Waits for pipelines; on the event loop that serves."""

    def __init__(self, online: Standing) -> None:
        self._online = online
        self._waiting: dict[str, list[_Waiter]] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}

    async def wait(self, pipeline: str, targets: Sequence[Target], within_s: float) -> bool:
        """Whether a pipeline, ``Name@version``, came so far within so many seconds."""
        loop = asyncio.get_running_loop()
        waiter = _Waiter(targets, loop.create_future(), loop.time())
        self._waiting.setdefault(pipeline, []).append(waiter)
        if pipeline not in self._looking:
            self._looking[pipeline] = asyncio.create_task(self._look(pipeline))
        try:
            async with asyncio.timeout(within_s):
                await waiter.reached
        except TimeoutError:
            return False
        finally:
            self._waiting[pipeline].remove(waiter)
        return True

    async def _look(self, pipeline: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            while waiters := self._waiting[pipeline]:
                # A store that is away may be back before they have waited long enough.
                try:
                    positions = await self._online.positions(pipeline)
                except StoreUnavailable:
                    positions = {}
                reached = [each for each in waiters if all(target.is_reached(positions) for target in each.targets)]
                if reached and await self._announced():
                    for waiter in reached:
                        if not waiter.reached.done():
                            waiter.reached.set_result(None)
                # The last of them may have given up meanwhile.
                is_new = bool(waiters) and loop.time() - waiters[-1].since_s < _PATIENT_AFTER_S
                await asyncio.sleep(_LOOK_EVERY_S if is_new else _PATIENT_EVERY_S)
        finally:
            del self._looking[pipeline]

    async def _announced(self) -> bool:
        """Whether every reader was told of what has been seen here."""
        # The store tells readers of a commit at the end of the turn it makes it in, maybe behind the reply to who asked
        # for positions in that turn. When it answers what was asked after that reply, it has told them.
        try:
            await self._online.ping()
        except StoreUnavailable:
            return False
        return True
