"""Waiting for pipelines: who waits is told once they have come so far, and nobody is told too early or for ever."""

from __future__ import annotations

import asyncio

import pytest

from featurelib.errors import StoreUnavailable
from serve_apps.applying import Applying, Target

PIPELINE = "by_user@1"


class Standing:
    """Where a pipeline stands, as a test says; asks are counted, the first may fail, all may be held up."""

    def __init__(self) -> None:
        self.positions_of: dict[int, list[int]] = {}
        self.asks = 0
        self.fails = 0
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()

    async def positions(self, pipeline: str) -> dict[int, list[int]]:
        assert pipeline == PIPELINE
        self.asks += 1
        await self.open.wait()
        if self.asks <= self.fails:
            raise StoreUnavailable("away")
        return self.positions_of

    async def ping(self) -> None:
        self.asked.set()
        await self.answers.wait()


@pytest.fixture
def standing() -> Standing:
    return Standing()


def target(offset: int, groups: tuple[int, ...] = (1, 2)) -> list[Target]:
    return [Target(0, offset, groups)]


@pytest.mark.parametrize(
    ("positions", "reached"),
    [
        ({1: [5, 0], 2: [5, 0]}, True),
        ({1: [6, 0], 2: [9, 0]}, True),
        ({1: [5, 0], 2: [4, 9]}, False),
        ({1: [5, 0]}, False),
        ({}, False),
        ({1: [5, 0], 2: [5, 0], 3: [0, 0]}, True),
    ],
)
def test_a_target_is_reached_by_every_group_that_reads_it(positions, reached):
    assert target(5)[0].is_reached(positions) is reached


async def test_who_waits_is_told_after_the_store_has_told_every_reader(standing):
    standing.positions_of = {1: [5], 2: [5]}
    standing.answers.clear()
    waiting = asyncio.create_task(Applying(standing).wait(PIPELINE, target(5), 10.0))
    async with asyncio.timeout(30):
        await standing.asked.wait()
    assert not waiting.done()
    standing.answers.set()
    assert await waiting


async def test_who_waits_is_told_when_the_pipeline_comes_so_far(standing):
    applying = Applying(standing)
    near, far = (asyncio.create_task(applying.wait(PIPELINE, target(offset), 10.0)) for offset in (1, 2))
    standing.positions_of = {1: [1], 2: [1]}
    assert await near
    assert not far.done()
    standing.positions_of = {1: [2], 2: [2]}
    assert await far


async def test_who_waits_in_vain_gives_up(standing):
    assert not await Applying(standing).wait(PIPELINE, target(1), 0.02)


async def test_a_store_that_comes_back_in_time_costs_nothing(standing):
    applying = Applying(standing)
    standing.fails, standing.positions_of = 3, {1: [1], 2: [1]}
    assert await applying.wait(PIPELINE, target(1), 10.0)
    assert standing.asks == 4


async def test_nobody_looks_once_nobody_waits_also_when_they_gave_up_during_a_look(standing):
    applying = Applying(standing)
    standing.open.clear()
    assert not await applying.wait(PIPELINE, target(1), 0.01)
    (look,) = (task for task in asyncio.all_tasks() if task is not asyncio.current_task())
    standing.open.set()
    await look
    asked = standing.asks
    assert await applying.wait(PIPELINE, [], 10.0)  # nothing to come to; looks anew
    assert standing.asks == asked + 1
