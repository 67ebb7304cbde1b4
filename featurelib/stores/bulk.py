"""Writes the state of many new keys into the online store: each key once, the epoch compared before every write.

A group built so has no position until :meth:`OnlineStore.commit` gives it one: until then nobody takes it for built,
and whoever builds it again clears it first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import redis

from featurelib.stores.fenced import Command, FencedWriter, Write
from featurelib.stores.online import StateName
from featurelib.stores.server import answering

# Everybody else waits for one write.
_KEYS_AT_ONCE = 250
_FIELDS_AT_ONCE = 4_000

Fields = Mapping[bytes, bytes]


class BulkWriter:
    """What builds of state write through. Blocking; one per process."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(redis_url)
        self._fenced = FencedWriter(self._redis)

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    def write(self, state: StateName, group: int, epoch: int, changes: Mapping[str, Fields]) -> None:
        """Write the fields of new keys of a key group.

        Raises:
            Fenced: somebody else owns the group now; some may have been written before.
            StoreUnavailable: some may have been written; clear the group, and write all of them again.
        """
        with answering():
            self._fenced.write(_writes(state, group, epoch, changes), state.pipeline)


def _writes(state: StateName, group: int, epoch: int, changes: Mapping[str, Fields]) -> Iterator[Write]:
    owned, prefix = [(state.position(group), epoch)], state.prefix(group)
    commands: list[Command] = []
    fields_at_once = 0
    for key, fields in changes.items():
        if len(commands) >= _KEYS_AT_ONCE or fields_at_once > _FIELDS_AT_ONCE:
            yield Write(owned, commands)
            commands, fields_at_once = [], 0
        if not fields:
            continue
        commands.append(("HSET", prefix + key, *(part for pair in fields.items() for part in pair)))
        fields_at_once += len(fields)
    if commands:
        yield Write(owned, commands)
