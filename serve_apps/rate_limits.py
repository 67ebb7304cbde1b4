"""How often a key may call: a token bucket per key in each replica, which pays for what the other replicas admit.

The check is a dictionary look-up and a few additions: no I/O, nothing awaited. In the background replicas tell the
online store what each key has spent with them and learn what it has spent in all; what others admitted is taken out of
the bucket here, below zero if need be. So in the long run a key gets its rate once, however many replicas it calls;
in a burst each replica may admit one second's worth before it hears of the others. While the online store is away,
each replica goes on by itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Protocol

import structlog

from featurelib.errors import RateLimited, ThymeError
from serve_apps.auth import KeyRing
from serve_apps.current import passed

_SHARED_EVERY_S = 0.2
# As long as a key is quiet for less than this its counter is followed: at one request a second a bucket that waited so
# long is full again whatever the others spent.
_FOLLOWED_S = 10.0
# What a bucket may owe, in seconds of its rate: more would punish a key for what it was given once.
_MOST_OWED_S = 10.0

_log = structlog.get_logger("thyme.serve")


class Counters(Protocol):
    """The part of :class:`featurelib.stores.usage.Usage` this needs."""

    def add(self, spent: Mapping[str, int]) -> dict[str, int]:
        """Count what was spent here; per key, what has been spent everywhere."""
        ...


class Bucket:
    """Tokens of one key: refilled at its rate, up to one second's worth.

    Args:
        rate: requests per second.
        now: seconds, on any clock that only goes forward.
    """

    __slots__ = ("at", "heard", "rate", "spent", "tokens")

    def __init__(self, rate: int, now: float) -> None:
        self.rate = rate
        self.at = now
        self.tokens = float(rate)
        self.spent = 0
        """Admitted here and not told yet."""
        self.heard: int | None = None
        """What had been spent everywhere when the counter was last read; ``None``: it is not followed."""

    def take(self, now: float) -> float:
        """Take a token: 0, or the seconds until there is one."""
        rate = self.rate
        tokens = self.tokens + (now - self.at) * rate
        if tokens > rate:  # noqa: PLR1730  # a call of min() would take as long as the rest
            tokens = rate
        self.at = now
        if tokens < 1.0:
            self.tokens = tokens
            return (1.0 - tokens) / rate
        self.tokens = tokens - 1.0
        self.spent += 1
        return 0.0

    def hear(self, told: int, total: int) -> None:
        """Pay for what others admitted: everywhere ``total`` were, ``told`` of them here since that was last heard."""
        self.spent -= told
        if self.heard is not None:
            # A counter that began anew says nothing of the time before.
            others = max(0, total - self.heard - told)
            self.tokens = max(self.tokens - others, -_MOST_OWED_S * self.rate)
        self.heard = total

    def is_followed(self, now: float) -> bool:
        """Whether its counter is to be read: it was used here since that was last done, or not long ago."""
        if not self.spent and now - self.at >= _FOLLOWED_S:
            self.heard = None
        return self.spent > 0 or self.heard is not None


class RateLimits:
    """The buckets of a replica. Lives on one event loop.

    Args:
        counters: what replicas share.
        default: requests per second of a key that names none; ``None``: no limit.
    """

    def __init__(self, counters: Counters, default: int | None) -> None:
        self._counters = counters
        self._default = default
        self._keys: KeyRing | None = None
        self._buckets: dict[str, Bucket] = {}

    def check(self, keys: KeyRing, fingerprint: str | None, now: float) -> None:
        """Admit a request of a key, or refuse it.

        Args:
            keys: the keys that hold now.
            fingerprint: whose request; ``None`` is never limited.
            now: seconds, of a clock that only goes forward.

        Raises:
            RateLimited: with the seconds to wait.
        """
        if keys is not self._keys:
            self._follow(keys, now)
        bucket = self._buckets.get(fingerprint) if fingerprint is not None else None
        if bucket is None:
            return
        wait_s = bucket.take(now)
        if wait_s:
            raise RateLimited(f"the key {fingerprint} may send {bucket.rate} requests a second", wait_s)

    async def share(self, stopping: asyncio.Event) -> None:
        """Tell and hear what keys spend until ``stopping``."""
        failing = False
        while not await passed(stopping, _SHARED_EVERY_S):
            try:
                await self.exchange(time.perf_counter())
            except ThymeError as error:
                if not failing:
                    _log.warning("rate_limits_apart", error=str(error))
                failing = True
            else:
                failing = False

    async def exchange(self, now: float) -> None:
        """Tell the store what keys spent here, and take what they spent elsewhere out of their buckets.

        Args:
            now: seconds, of the clock of :meth:`check`.

        Raises:
            StoreUnavailable: the store does not answer; what was not told is told next time.
        """
        followed = {name: bucket for name, bucket in self._buckets.items() if bucket.is_followed(now)}
        if not followed:
            return
        told = {name: bucket.spent for name, bucket in followed.items()}
        totals = await asyncio.to_thread(self._counters.add, told)
        for name, bucket in followed.items():
            bucket.hear(told[name], totals[name])

    def _follow(self, keys: KeyRing, now: float) -> None:
        """Take over the keys' limits; a bucket whose rate stays keeps its tokens."""
        rates = {name: rate or self._default for name, rate in keys.rates.items()}
        before = self._buckets
        self._buckets = {
            name: before[name] if name in before and before[name].rate == rate else Bucket(rate, now)
            for name, rate in rates.items()
            if rate is not None
        }
        self._keys = keys
