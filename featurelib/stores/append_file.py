"""The server's append-only file: it holds what was written once until the server writes it anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import redis

from featurelib.errors import StoreUnavailable


class Rewrites(NamedTuple):
    """What a server says of itself: ``run`` names its process, ``done`` counts rewrites of that process."""

    run: str
    done: int
    busy: bool
    enabled: bool
    succeeded: bool


class AppendFile:
    """Has the append-only file of one server written anew, without what is not in the data any more."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(redis_url)

    def close(self) -> None:
        """Give the connection back."""
        self._redis.close()

    def rewrites(self) -> Rewrites:
        """How many rewrites there were, and whether one is under way.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        with _unavailable():
            told = cast("Mapping[str, Any]", self._redis.info("persistence", "server"))
        return Rewrites(
            run=str(told["run_id"]),
            done=int(told["aof_rewrites"]),
            busy=bool(told["aof_rewrite_in_progress"] or told["aof_rewrite_scheduled"]),
            enabled=bool(told["aof_enabled"]),
            succeeded=told["aof_last_bgrewrite_status"] == "ok",
        )

    def ask(self) -> None:
        """Have it written anew; call it while none is under way, since that one may have begun too early.

        Raises:
            StoreUnavailable: the server does not answer, or cannot begin now.
        """
        with _unavailable():
            self._redis.bgrewriteaof()


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError, redis.ResponseError) as error:
        message = f"the online store does not rewrite its append-only file: {error}"
        raise StoreUnavailable(message) from error
