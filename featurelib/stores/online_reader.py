"""What the query server reads the online store through: one round trip for all the rows of a look-up level."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple, cast

import redis.asyncio

from featurelib.clock import Instant
from featurelib.engine.keys import KEY_GROUPS
from featurelib.engine.panes import Header, Pane, PanesMissing, Sealed, pane_field
from featurelib.engine.program import Program
from featurelib.stores.online import StateName, generation_key
from featurelib.stores.server import answering
from featurelib.types import Value


class SealedRow(Enum):
    """What stands for a row whose windows reach where only partials are kept: history has it."""

    SEALED = "sealed"


SEALED = SealedRow.SEALED


class Lookup(NamedTuple):
    """One row asked of a pipeline's state: a key at an instant."""

    program: Program
    key: str
    at: Instant


class Found(NamedTuple):
    """What a look-up gave: the row, and up to where it reflects its inputs.

    ``row``: ``None`` for an unknown key, ``SEALED`` where only history has it. ``applied``: per input partition of the
    pipeline (those of its left dataset first), the offset below which every record of the key is in the row; ``None``
    for a key of which no record had been applied.
    """

    row: dict[str, Value] | SealedRow | None
    applied: tuple[int, ...] | None


class OnlineReader:
    """What the query server reads through. Asynchronous; cannot write."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.asyncio.Redis.from_url(redis_url)
        self._generations: dict[str, int] = {}

    async def close(self) -> None:
        """Give the connections back."""
        await self._redis.aclose()

    async def refresh(self, pipelines: Sequence[str]) -> None:
        """Look which generation of each pipeline is served; called in the background, not per request."""
        if not pipelines:
            return
        with answering():
            values = await self._redis.mget([generation_key(pipeline) for pipeline in pipelines])
        self._generations = {p: int(value or 1) for p, value in zip(pipelines, values, strict=True)}

    async def rows(self, lookups: Sequence[Lookup]) -> list[Found]:
        """Output rows, in order, from one round trip.

        Raises:
            StoreUnavailable: the store does not answer.
            ValueOverflow: an integer sum left the 64-bit range.
        """
        if not lookups:
            return []
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for program, key, at in lookups:
                pipe.hmget(self._state(program.ref).key(key), cast("list[str]", program.read_fields(at)))
            replies = await pipe.execute()
        return [await self._finished(lookup, values) for lookup, values in zip(lookups, replies, strict=True)]

    async def _finished(self, lookup: Lookup, values: Sequence[bytes | None]) -> Found:
        applied = tuple(Header.decode(values[0]).applied) if values[0] is not None else None
        return Found(await self._row(lookup, values), applied)

    async def _row(self, lookup: Lookup, values: Sequence[bytes | None]) -> dict[str, Value] | SealedRow | None:
        more: dict[Pane, bytes | None] = {}
        while True:
            try:
                return lookup.program.finish(values, lookup.at, more)
            except Sealed:
                return SEALED
            except PanesMissing as missing:
                # Only rows closed after R make a read go below its edges: versions dated in the future.
                key = self._state(lookup.program.ref).key(lookup.key)
                names = cast("list[str]", [pane_field(pane) for pane in missing.panes])
                with answering():
                    found = cast("list[bytes | None]", await cast("Any", self._redis.hmget(key, names)))
                more.update(zip(missing.panes, found, strict=True))

    async def clocks(self, pipelines: Sequence[str]) -> dict[str, Instant | None]:
        """Newest applied event time of each pipeline."""
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for pipeline in pipelines:
                for group in range(KEY_GROUPS):
                    pipe.hget(self._state(pipeline).position(group), "newest")
            replies = await pipe.execute()
        newest = [int(reply) if reply is not None else None for reply in replies]
        return {
            pipeline: max((n for n in newest[i * KEY_GROUPS : (i + 1) * KEY_GROUPS] if n is not None), default=None)
            for i, pipeline in enumerate(pipelines)
        }

    async def ping(self) -> None:
        """Raise StoreUnavailable unless the store answers."""
        with answering():
            await cast("Any", self._redis.ping())

    def _state(self, pipeline: str) -> StateName:
        return StateName(pipeline, self._generations.get(pipeline, 1))
