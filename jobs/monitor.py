"""The monitor as a task: rounds of the consistency check on time, and between them the statistics of days.

Both read history, and neither is in a hurry: what a step of the statistics took is waited for four times over, so that
all of them together take a fifth of a core at most, and a round that takes long is followed by as long a rest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from featurelib.clock import SystemClock
from featurelib.settings import Settings
from featurelib.stores.archive import Archive
from featurelib.stores.digests import Digests, digest_key
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.point_in_time import PointInTime
from featurelib.stores.registry import Registry
from jobs.consistency import ConsistencyCheck, Round
from jobs.extractors import Apart
from jobs.reread import Versions
from jobs.statistics import DailyStatistics

_REST = 4
# When no day is due: how long until it is looked again whether one is.
_IDLE_S = 60.0
_LONGEST_WAIT_S = 5.0


class MonitorTask:
    """Keeps both going.

    Args:
        settings: the platform's.
        seconds: a clock that only ever moves forward.
    """

    def __init__(self, settings: Settings, *, seconds: Callable[[], float] = time.monotonic) -> None:
        clock = SystemClock()
        self._registry = Registry(settings.registry_url, clock)
        self._log = Log(settings.online.redis_url.get_secret_value(), clock)
        self._runner = Apart(settings)
        history = History(Archive(settings.archive_url), self._log)
        past, versions = PointInTime(history, self._log), Versions(self._registry, self._runner)
        self._check = ConsistencyCheck(
            self._registry,
            past,
            Digests(digest_key(settings)),
            versions=versions,
            settings=settings.monitor,
            clock=clock,
        )
        self._statistics = DailyStatistics(
            self._registry, history, past, versions=versions, settings=settings.monitor, clock=clock
        )
        self._settings = settings.monitor
        self._seconds = seconds
        self._round_at = self._day_at = seconds()
        self._done = Round()
        self._days = 0

    def start(self) -> None:
        """Nothing to claim: how far it is stands in the registry."""

    def step(self) -> bool:
        """One round, or one day of one subject, whichever is due.

        Raises:
            StoreUnavailable: a store does not answer.
        """
        began = self._seconds()
        if self._settings.consistency_every_s and began >= self._round_at:
            self._done = self._check.round()
            took = self._seconds() - began
            self._round_at = began + max(self._settings.consistency_every_s, 2 * took)
        elif self._settings.statistics_every_s and began >= self._day_at:
            made = self._statistics.step()
            self._days += made
            now = self._seconds()
            self._day_at = now + (_REST * (now - began) if made else _IDLE_S)
        return False

    def wait(self, stopping: threading.Event) -> None:
        """Until something is due."""
        due = min(self._round_at, self._day_at) - self._seconds()
        stopping.wait(min(max(due, 0.0), _LONGEST_WAIT_S))

    def facts(self) -> Mapping[str, Any]:
        """Runs of the last round, and days of statistics made so far."""
        return {"runs": self._done.runs, "failed": self._done.failed, "days": self._days}

    def close(self) -> None:
        """Close connections, and end child processes."""
        self._runner.close()
        self._log.close()
        self._registry.close()
