"""What the stores share of the Redis server: the names of a log's keys, and a server that does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from featurelib.errors import StoreUnavailable

# Why a server drops a transaction that it had taken, and will take another time.
_PASSING = ("OOM", "READONLY", "NOREPLICAS", "LOADING", "MASTERDOWN", "MISCONF")


def partition_key(dataset: str, partition: int, part: str) -> str:
    """The Redis key of one part of a log partition; all parts of a partition share a slot."""
    return f"{{{dataset}:{partition}}}:{part}"


@contextmanager
def answering() -> Iterator[None]:
    """Turn what the client raises into ours.

    Raises:
        StoreUnavailable: the server does not answer, or refuses to write.
    """
    try:
        yield
    except (
        redis.ConnectionError,
        redis.TimeoutError,
        redis.BusyLoadingError,
        redis.OutOfMemoryError,  # full: nothing was written, and will be once there is room
        redis.ReadOnlyError,
    ) as error:
        message = f"the online store does not answer: {error}"
        raise StoreUnavailable(message) from error
    except redis.exceptions.ExecAbortError as error:
        if any(f"because of: {reason}" in str(error) for reason in _PASSING):
            raise StoreUnavailable(f"the online store does not answer: {error}") from error
        raise
