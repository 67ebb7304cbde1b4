"""Rows that a pipeline's own functions could not take, for whoever waits until the pipeline has applied them.

    {<pipeline>}:refused   stream of the newest 1,000: dataset, place in its log, event time, message; kept for an hour

A worker notes them before it commits how far it has come: whoever sees a row applied sees whether it was refused.
Noted again after a crash, a row stands there twice, which says nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import redis

from featurelib.clock import Instant
from featurelib.stores.server import answering

_MOST = 1_000
_KEPT_S = 3_600
_LONGEST = 500


class RefusedRow(NamedTuple):
    """A row that was left out: its dataset, log partition and offset, its event time, and what its function said."""

    dataset: str
    partition: int
    offset: int
    time: Instant
    message: str


class RefusedRows:
    """Notes refused rows and gives them back. Blocks; safe to share between threads."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def note(self, pipeline: str, rows: Sequence[RefusedRow]) -> None:
        """Note rows of a pipeline, ``Name@version``; of very many the last.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with answering(), self._redis.pipeline(transaction=False) as batch:
            for row in rows[-_MOST:]:
                at = f"{row.dataset}:{row.partition}:{row.offset}:{row.time}"
                told: Any = {"at": at, "message": row.message[:_LONGEST]}
                batch.xadd(_key(pipeline), told, maxlen=_MOST, approximate=False)
            batch.expire(_key(pipeline), _KEPT_S)
            batch.execute()

    def newest(self, pipeline: str) -> list[RefusedRow]:
        """The rows that were noted of a pipeline, the newest first.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with answering():
            entries = cast("Any", self._redis.xrevrange(_key(pipeline), count=_MOST))
        return [_row(fields) for _, fields in entries]


def _row(fields: dict[bytes, bytes]) -> RefusedRow:
    dataset, *numbers = fields[b"at"].decode().split(":")
    partition, offset, time = map(int, numbers)
    return RefusedRow(dataset, partition, offset, time, fields[b"message"].decode(errors="replace"))


def _key(pipeline: str) -> str:
    return f"{{{pipeline}}}:refused"
