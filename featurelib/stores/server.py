"""What the stores share of the Redis server: the names of a log's keys, and a server that does not answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from featurelib.errors import StoreUnavailable

# What a server says that is about to be well again, is full, or cannot write its file or reach its replicas; by itself,
# of a transaction that it had taken and drops, or, before Redis 7, of a script.
_PASSING = re.compile(
    r"(?:^|because of: |^Error running script .*: -)"
    r"(?:BUSY|CLUSTERDOWN|LOADING|MASTERDOWN|MISCONF|NOREPLICAS|OOM|READONLY|TRYAGAIN|UNBLOCKED)\b"
)

_WITHOUT_AN_ANSWER = (
    redis.ConnectionError,
    redis.TimeoutError,
    # Refusals whose code the client takes away.
    redis.OutOfMemoryError,
    redis.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)


def partition_key(dataset: str, partition: int, part: str) -> str:
    """The Redis key of one part of a log partition; all parts of a partition share a slot."""
    return f"{{{dataset}:{partition}}}:{part}"


def is_passing(refusal: str) -> bool:
    """Whether what a server refused may be asked of it another time, by the text of its error."""
    return _PASSING.search(refusal) is not None


@contextmanager
def answering() -> Iterator[None]:
    """Turn what the client raises into ours.

    Raises:
        StoreUnavailable: the server does not answer, or refuses for now.
    """
    try:
        yield
    except redis.RedisError as error:
        told = unavailable(error)
        if told is None:
            raise
        raise told from error


def unavailable(error: redis.RedisError) -> StoreUnavailable | None:
    """What an error is told as; ``None``: it is not that the server does not answer, or refuses for now."""
    refused = isinstance(error, redis.ResponseError) and is_passing(_said(error))
    if refused or isinstance(error, _WITHOUT_AN_ANSWER):
        return StoreUnavailable(f"the online store does not answer: {_said(error)}")
    return None


def _said(error: redis.RedisError) -> str:
    # Of one command among many the client says it with the command in front, and that holds keys and values.
    return str(error).rpartition(" caused error: ")[2]
