"""Time limits of reads: all that are under way share one timer.

A timer of its own costs a read some 8 µs, of which it needs one in a million: most are done long before their time.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType

# An event loop counts milliseconds, so a timer may go off this much before its time.
_EARLY_S = 0.001


class TimeLimits:
    """Ends what takes too long; lives on one event loop."""

    def __init__(self) -> None:
        self._under_way: dict[TimeLimit, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at_s = 0.0

    def within(self, seconds: float) -> TimeLimit:
        """A block that is cancelled after so many seconds, and raises TimeoutError then."""
        return TimeLimit(self, time.monotonic() + seconds)

    def begin(self, limit: TimeLimit) -> None:
        """Watch a block."""
        self._under_way[limit] = None
        if self._timer is None or limit.ends_at_s < self._looks_at_s:
            self._look_at(limit.ends_at_s)

    def end(self, limit: TimeLimit) -> None:
        """Watch it no longer."""
        self._under_way.pop(limit, None)

    def _look_at(self, instant_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at_s = instant_s
        self._timer = asyncio.get_running_loop().call_later(max(0.0, instant_s - time.monotonic()), self._look)

    def _look(self) -> None:
        now_s, self._timer = time.monotonic() + _EARLY_S, None
        for limit in [each for each in self._under_way if each.ends_at_s <= now_s]:
            self.end(limit)
            limit.cancel()
        if self._under_way:
            self._look_at(min(each.ends_at_s for each in self._under_way))


class TimeLimit:
    """The block of a ``with``, in a task; what :func:`asyncio.timeout` is, but for the timer."""

    __slots__ = ("_cancelling", "_is_over", "_limits", "_task", "ends_at_s")

    def __init__(self, limits: TimeLimits, ends_at_s: float) -> None:
        self._limits = limits
        self.ends_at_s = ends_at_s
        self._is_over = False

    def cancel(self) -> None:
        """Its time is up."""
        self._is_over = True
        self._task.cancel()

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        # Somebody else may cancel the task too: then it is cancelled, whatever the time.
        self._cancelling = task.cancelling()
        self._limits.begin(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._limits.end(self)
        if self._is_over and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
