"""What each API key has spent, counted across replicas in the online store.

A counter only ever grows while it is looked at, and is gone a minute after: who compares two readings of it knows what
everybody spent in between.
"""

from __future__ import annotations

from collections.abc import Mapping

import redis

from featurelib.stores.server import answering

_FORGOTTEN_AFTER_MS = 60_000
# A server that hangs delays the background task that asks, nothing else.
_ANSWER_SECONDS = 5.0


class Usage:
    """Counters of requests by key. Blocks: call it in a thread, one call at a time."""

    def __init__(self, redis_url: str) -> None:
        """Open nothing yet; the first call connects."""
        self._redis = redis.Redis.from_url(redis_url, socket_timeout=_ANSWER_SECONDS)

    def add(self, spent: Mapping[str, int]) -> dict[str, int]:
        """Count what was spent here; per key, what has been spent everywhere. One round trip.

        Raises:
            StoreUnavailable: the store does not answer; some of it may have been counted.
        """
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for fingerprint, requests in spent.items():
                name = f"thyme:spent:{fingerprint}"
                pipe.incrby(name, requests)
                pipe.pexpire(name, _FORGOTTEN_AFTER_MS)
            replies = pipe.execute()
        return dict(zip(spent, replies[::2], strict=True))

    def close(self) -> None:
        """Give the connection back."""
        self._redis.close()
