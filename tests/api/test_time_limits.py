"""Time limits that share a timer end what takes too long, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from serve_apps.time_limits import TimeLimits

_SHORT_S, _LONG_S = 0.02, 60.0


@pytest.fixture
def limits() -> TimeLimits:
    return TimeLimits()


async def hang(limits: TimeLimits, seconds: float, begun: asyncio.Event | None = None) -> None:
    with limits.within(seconds):
        if begun is not None:
            begun.set()
        await asyncio.Event().wait()


async def test_a_block_that_takes_too_long_ends_with_a_time_out(limits):
    with pytest.raises(TimeoutError):
        await hang(limits, _SHORT_S)


async def test_the_task_goes_on_after_a_time_out(limits):
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await hang(limits, _SHORT_S)
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_shorter_limit_that_begins_later_ends_first(limits):
    begun = asyncio.Event()
    long = asyncio.create_task(hang(limits, _LONG_S, begun))
    await begun.wait()
    with pytest.raises(TimeoutError):
        await hang(limits, _SHORT_S)
    assert not long.done()
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long


async def test_a_longer_limit_still_ends_after_a_shorter_one_has(limits):
    tasks = [asyncio.create_task(hang(limits, seconds)) for seconds in (2 * _SHORT_S, _SHORT_S, 3 * _SHORT_S)]
    done, _ = await asyncio.wait(tasks, timeout=_LONG_S)
    assert [type(task.exception()) for task in tasks if task in done] == [TimeoutError] * 3


async def test_who_is_cancelled_by_others_is_cancelled(limits):
    begun = asyncio.Event()
    task = asyncio.create_task(hang(limits, _LONG_S, begun))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_is_done_in_time_is_left_alone_and_its_own_error_passes(limits):
    with limits.within(_LONG_S):
        await asyncio.sleep(0)
    with pytest.raises(KeyError), limits.within(_LONG_S):
        raise KeyError
    with pytest.raises(TimeoutError):  # the one that is done does not stand in the way of the next
        await hang(limits, _SHORT_S)


async def test_the_inner_of_two_limits_ends_alone(limits):
    with limits.within(_LONG_S):
        with pytest.raises(TimeoutError):
            await hang(limits, _SHORT_S)
        await asyncio.sleep(0)
