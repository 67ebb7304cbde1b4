"""Writes the state of many new keys into the online store: each key once, the epoch compared before every write.

A group built so has no position until :meth:`OnlineStore.commit` gives it one: until then nobody takes it for built,
and whoever builds it again clears it first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, cast

import redis

from featurelib.errors import Fenced
from featurelib.stores.online import StateName
from featurelib.stores.server import answering

# As in stores/online.py: a script of more stalls readers.
_KEYS_PER_SCRIPT = 250
_FIELDS_PER_SCRIPT = 4_000
_SCRIPTS_PER_TRIP = 8
_WRITE = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then return 0 end
local at = 2
for k = 2, #KEYS do
  local last = at + tonumber(ARGV[at])
  for first = at + 1, last, 1000 do
    redis.call('HSET', KEYS[k], unpack(ARGV, first, math.min(first + 999, last)))
  end
  at = last + 1
end
return 1
"""

Fields = Mapping[bytes, bytes]


class BulkWriter:
    """What builds of state write through. Blocking; one per process."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(redis_url)
        self._write = self._redis.register_script(_WRITE)

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    def write(self, state: StateName, group: int, epoch: int, changes: Mapping[str, Fields]) -> None:
        """Write the fields of new keys of a key group.

        Raises:
            Fenced: somebody else owns the group now; some may have been written before.
            StoreUnavailable: some may have been written; clear the group, and write all of them again.
        """
        scripts = _scripts(state, group, epoch, changes)
        with answering():
            while some := list(islice(scripts, _SCRIPTS_PER_TRIP)):
                pipe = self._redis.pipeline(transaction=False)
                for keys, arguments in some:
                    self._write(keys=keys, args=cast("Any", arguments), client=cast("Any", pipe))
                if not all(pipe.execute()):
                    raise Fenced(f"{state.pipeline}: another build or worker has taken over group {group}")


def _scripts(
    state: StateName, group: int, epoch: int, changes: Mapping[str, Fields]
) -> Iterator[tuple[list[str], list[str | bytes]]]:
    place = state.position(group)
    prefix = f"{place.removesuffix(':position')}:s:"
    keys, arguments = [place], _opening(epoch)
    for key, fields in changes.items():
        if len(keys) > _KEYS_PER_SCRIPT or len(arguments) > 2 * _FIELDS_PER_SCRIPT:
            yield keys, arguments
            keys, arguments = [place], _opening(epoch)
        keys.append(prefix + key)
        arguments.append(str(2 * len(fields)))
        arguments += [part for pair in fields.items() for part in pair]
    if len(keys) > 1:
        yield keys, arguments


def _opening(epoch: int) -> list[str | bytes]:
    return [str(epoch)]
