"""What the online store may hold: a budget for all of it, and one for the hot log within it.

The server never evicts: a key that vanished would be a wrong answer. So whoever appends looks first, and is refused
before anything is written when the log has outgrown its budget or little memory is left. The rest is headroom:
workers go on folding what was accepted, and the archiver goes on making room.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import redis

from featurelib.clock import SECOND, Clock, Instant
from featurelib.errors import LogFull
from featurelib.settings import OnlineSettings
from featurelib.stores.server import answering, partition_key

LOGS = "thyme:logs"
"""Hash: dataset → its number of log partitions. Kept by ``Log.create``."""

_SHARE_FOR_APPENDS = 0.95
_EASY = 0.9
_LOOK_EVERY_US = SECOND
SAMPLED_ENTRIES = 128
"""Streams are measured by so many of their oldest entries, each of some kB to MB."""
_MB = 1 << 20


class Budget(NamedTuple):
    """In bytes. ``memory=None``: what the server itself is limited to."""

    memory: int | None
    log: int

    @classmethod
    def of(cls, settings: OnlineSettings) -> Budget:
        """The budget that settings declare."""
        memory = settings.memory_mb * _MB if settings.memory_mb is not None else None
        return cls(memory, settings.log_budget_mb * _MB)


class Usage(NamedTuple):
    """What the server holds, in bytes. ``memory_limit=None``: it is bounded by nothing but its machine."""

    memory: int
    memory_limit: int | None
    log: int
    log_limit: int

    @property
    def log_is_over(self) -> bool:
        """Whether the log holds more than its budget."""
        return self.log >= self.log_limit

    @property
    def is_easy(self) -> bool:
        """Whether there is room with some to spare: between this and a problem nothing new is to be told."""
        room_in_memory = self.memory_limit is None or self.memory < _EASY * _SHARE_FOR_APPENDS * self.memory_limit
        return room_in_memory and self.log < _EASY * self.log_limit

    @property
    def problem(self) -> str:
        """Why nothing may be appended now; empty: it may."""
        if self.log_is_over:
            return (
                f"the hot log holds {_mb(self.log)} of its {_mb(self.log_limit)} (online.log_budget_mb): it waits for "
                "the archive, which has fallen behind or cannot be written; nothing was taken"
            )
        if self.memory_limit is not None and self.memory >= _SHARE_FOR_APPENDS * self.memory_limit:
            return (
                f"the online store uses {_mb(self.memory)} of its {_mb(self.memory_limit)} (online.memory_mb, or the "
                "server's maxmemory): the rest is kept for what was accepted before; nothing was taken"
            )
        return ""


class LogRoom:
    """Says whether records may be appended. Looks at most once a second, however often it is asked.

    Between two looks the budget can be exceeded by what arrives in a second; the server's own limit stands above it.
    """

    def __init__(self, client: redis.Redis, budget: Budget, clock: Clock) -> None:
        self._redis = client
        self._budget = budget
        self._clock = clock
        self._looked: Instant | None = None
        self._problem = ""

    def close(self) -> None:
        """Give the connection back."""
        self._redis.close()

    def require(self) -> None:
        """Return when there is room.

        Raises:
            LogFull: there is none; says budget and use.
            StoreUnavailable: the server does not answer.
        """
        now = self._clock.now()
        if self._looked is None or not 0 <= now - self._looked < _LOOK_EVERY_US:
            problem = self.usage().problem
            # While it lasts it is said in the same words, so that those who hear it again need not repeat it.
            self._problem = problem and (self._problem or problem)
            self._looked = now
        if self._problem:
            raise LogFull(self._problem)

    def usage(self) -> Usage:
        """Measure now: two round trips, and a look at the entries of every log partition.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        with answering():
            logs = cast("dict[bytes, bytes]", self._redis.hgetall(LOGS))
            pipe = self._redis.pipeline(transaction=False)
            pipe.info("memory")
            for dataset, partitions in logs.items():
                for partition in range(int(partitions)):
                    pipe.memory_usage(partition_key(dataset.decode(), partition, "log"), samples=SAMPLED_ENTRIES)
            info, *sizes = pipe.execute()
        limits = [limit for limit in (self._budget.memory, int(info["maxmemory"])) if limit]
        log = sum(size or 0 for size in sizes)
        # As the server counts for its maxmemory: what waits to be written to its file comes and goes by itself.
        used = int(info["used_memory"]) - int(info.get("mem_not_counted_for_evict", 0))
        return Usage(used, min(limits, default=None), log, self._budget.log)


def open_room(redis_url: str, budget: Budget, clock: Clock) -> LogRoom:
    """A :class:`LogRoom` on a connection of its own; close it."""
    return LogRoom(redis.Redis.from_url(redis_url), budget, clock)


def server_warnings(redis_url: str, settings: OnlineSettings) -> list[str]:
    """What is wrong with how the online store's server is set up, one sentence each.

    Raises:
        StoreUnavailable: the server does not answer.
    """
    client = redis.Redis.from_url(redis_url)
    try:
        with answering():
            info = client.info("memory")
    finally:
        client.close()
    policy, limit, found = str(info["maxmemory_policy"]), settings.memory_mb, int(info["maxmemory"])
    warnings = []
    if policy != "noeviction":
        warnings.append(
            f"the online store's server may evict keys (maxmemory-policy {policy}), which loses accepted records and "
            "state: set maxmemory-policy noeviction there"
        )
    if limit is not None and found != limit * _MB:
        stated = _mb(found) if found else "unlimited"
        warnings.append(
            f"the online store's server has maxmemory {stated}, but online.memory_mb is {limit}: the lower one counts; "
            "set maxmemory there, or restart the embedded server"
        )
    return warnings


def _mb(size: int) -> str:
    return f"{size / _MB:,.1f} MB"
