"""Tells whether what the hot log holds has reached the disk of the online store's server."""

from __future__ import annotations

from typing import Literal, cast

import redis

from featurelib.errors import StoreUnavailable
from featurelib.stores.server import answering

Fsynced = Literal["yes", "late", "unknown"]

_FENCE = "thyme:fsync-fence"
_FENCE_KEPT_S = 365 * 86_400


class FsyncFence:
    """Asks the server to confirm its append-only file, on a connection of its own."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(redis_url, single_connection_client=True)

    def wait(self, timeout_ms: int) -> Fsynced:
        """Wait until everything the server executed before this call is fsynced.

        WAITAOF waits for the writes of its own connection only, and at once says yes on one that has written
        nothing. So a write goes first: the append-only file is one sequence, and what precedes it is synced with it.

        Returns:
            ``yes``; ``late`` on time-out; ``unknown`` when the server has no WAITAOF or no append-only file.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        pipe = self._redis.pipeline(transaction=False)
        pipe.set(_FENCE, "", nx=True)
        # A server at its memory limit refuses to set, and that is when the archive must go on to make room; to set a
        # time-out on what exists it never refuses.
        pipe.expire(_FENCE, _FENCE_KEPT_S)
        pipe.waitaof(1, 0, timeout_ms)
        with answering():
            _, written, reply = pipe.execute(raise_on_error=False)
        if written != 1:
            raise StoreUnavailable(f"the online store took no write: {written}")
        if isinstance(reply, redis.ResponseError):
            return "unknown"
        return "yes" if cast("list[int]", reply)[0] >= 1 else "late"

    def close(self) -> None:
        """Give the connection back."""
        self._redis.close()
