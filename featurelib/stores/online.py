"""The online store: pipeline state, positions and epochs in Redis.

    {<pipeline>#<generation>:<group>}:position   hash: epoch, positions, newest event time, rows folded, ahead
    {<pipeline>#<generation>:<group>}:s:<key>    hash: one field per part of the key's state (engine/panes.py)
    {<pipeline>}:generation                      which generation is served

One script commits state, output and position of a key group together, and of as many groups as fit: a script for
each of a worker's groups cost a step of 25 rows half its time. It compares the writer's epoch of each group first;
claiming a group raises the epoch (before the first read), so a worker that was replaced, however late it wakes up,
writes nothing. No group is added to a script of 128 keys, since readers wait while one runs. One group's commit of more
than 500 is sent in chunks, each key carrying its applied position, and the group's position moves last. The first chunk
notes where it goes (``ahead``), the last one takes the note away.

A *generation* is one build of a pipeline's state: a backfill writes the next one aside and then switches.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import redis

from featurelib.clock import Instant
from featurelib.engine.keys import KEY_GROUPS, key_group
from featurelib.errors import Fenced
from featurelib.stores.server import answering

# One script of 500 keys of 500 B takes 1.6 ms, of 4,000 keys of 2 kB 83 ms with the server blocked for 21 ms.
_KEYS_PER_SCRIPT = 500
# Of several groups, where that is fewer: 20 µs a key on a busy machine, and every read of the store waits for a script.
_KEYS_AT_ONCE = 128
# Lua's unpack() is bounded by its C stack (8,000 values); pairs are written in strides below it.
_COMMIT = """
local fenced, at, k = 0, 1, 1
while k <= #KEYS do
  local position, last_key = KEYS[k], k + tonumber(ARGV[at + 1])
  local held = redis.call('HGET', position, 'epoch') == ARGV[at]
  local first_noted, last_noted = at + 3, at + 2 + tonumber(ARGV[at + 2])
  if not held then fenced = fenced + 1 end
  at = last_noted + 1
  for key = k + 1, last_key do
    local last = at + tonumber(ARGV[at])
    if last < at then
      if held then redis.call('UNLINK', KEYS[key]) end
      last = at
    end
    for first = at + 1, last, 1000 do
      if held then redis.call('HSET', KEYS[key], unpack(ARGV, first, math.min(first + 999, last))) end
    end
    at = last + 2
    local dropped = last + 1 + tonumber(ARGV[last + 1])
    for first = at, dropped, 1000 do
      if held then redis.call('HDEL', KEYS[key], unpack(ARGV, first, math.min(first + 999, dropped))) end
    end
    at = dropped + 1
  end
  if held and last_noted >= first_noted then
    redis.call('HSET', position, unpack(ARGV, first_noted, last_noted))
  end
  k = last_key + 1
end
return fenced
"""


class StateName(NamedTuple):
    """One build of a pipeline's state: its ``Name@version`` and generation."""

    pipeline: str
    generation: int

    def key(self, key: str) -> str:
        """The Redis key of an entity's state."""
        return f"{{{self.pipeline}#{self.generation}:{key_group(key)}}}:s:{key}"

    def position(self, group: int) -> str:
        """The Redis key of a group's position."""
        return f"{{{self.pipeline}#{self.generation}:{group}}}:position"


class Claim(NamedTuple):
    """A group taken over: the epoch to write under and where its state stands.

    ``ahead``: positions that some of its keys may stand at, since a commit was cut short.
    """

    group: int
    epoch: int
    positions: list[int] | None
    newest_us: Instant | None
    rows: int
    ahead: list[int] | None = None


class GroupCommit(NamedTuple):
    """What one step changes in one key group.

    ``changes``: key text → fields to write, ``None`` for one to drop. ``back``: the positions are earlier ones; until
    all of it is written the group is known by the later ones. ``removed``: key texts of which nothing is kept.
    """

    group: int
    epoch: int
    positions: Sequence[int]
    newest_us: Instant | None
    rows: int
    changes: Mapping[str, Mapping[bytes, bytes | None]]
    back: bool = False
    removed: Collection[str] = ()


class Progress(NamedTuple):
    """Where a pipeline stands: lowest position per input partition over its groups, newest event time, rows folded.

    ``standings``: the positions of every group that has begun. Which of them count in which input partition is known
    to ``jobs.inputs.lowest_positions``.
    """

    positions: list[int] | None
    newest_us: Instant | None
    rows: int
    standings: dict[int, list[int]]


class OnlineStore:
    """What workers and backfills write through. Blocking; one per process."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(redis_url)
        self._commit = self._redis.register_script(_COMMIT)

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    def claim(self, state: StateName, groups: Sequence[int]) -> list[Claim]:
        """Take groups over: fence whoever wrote them before, then read where they stand.

        Raises:
            StoreUnavailable: some groups may have been fenced; claim again.
        """
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for group in groups:
                pipe.hincrby(state.position(group), "epoch", 1)
                pipe.hmget(state.position(group), ["positions", "newest", "rows", "ahead"])
            replies = pipe.execute()
        return [
            Claim(group, replies[2 * index], *_standing(replies[2 * index + 1][:3]), _ahead(replies[2 * index + 1][3]))
            for index, group in enumerate(groups)
        ]

    def load(self, state: StateName, wanted: Mapping[str, Sequence[bytes]]) -> dict[str, list[bytes | None]]:
        """Fields of several keys in one round trip: key text → values in the order asked."""
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for key, fields in wanted.items():
                pipe.hmget(state.key(key), cast("list[str]", list(fields)))
            return dict(zip(wanted, pipe.execute(), strict=True))

    def commit(self, state: StateName, commits: Sequence[GroupCommit]) -> None:
        """Write changes and positions of several groups, each group on its own terms.

        Raises:
            Fenced: another worker owns at least one of the groups now; the others were written.
            StoreUnavailable: some groups may have been written; claim again to find out.
        """
        with answering():
            fenced = [self._commit(keys=keys, args=cast("Any", args)) for keys, args in _scripts(state, commits)]
        if any(fenced):
            raise Fenced(f"{state.pipeline}: another worker has taken over")

    def progress(self, state: StateName) -> Progress:
        """Where the whole pipeline stands."""
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for group in range(KEY_GROUPS):
                pipe.hmget(state.position(group), ["positions", "newest", "rows"])
            standings = [_standing(reply) for reply in pipe.execute()]
        begun = {group: positions for group, (positions, _, _) in enumerate(standings) if positions is not None}
        newest = [instant for _, instant, _ in standings if instant is not None]
        complete = len(begun) == KEY_GROUPS
        return Progress(
            [min(column) for column in zip(*begun.values(), strict=True)] if complete else None,
            max(newest, default=None),
            sum(rows for _, _, rows in standings),
            begun,
        )

    def generation(self, pipeline: str) -> int:
        """The generation that is served and kept up to date; 1 until a backfill switches."""
        with answering():
            return int(cast("bytes | None", self._redis.get(generation_key(pipeline))) or 1)

    def kept_generation(self, pipeline: str) -> int | None:
        """The generation that is kept up to date though it is not served (stores/generations.py)."""
        with answering():
            kept = cast("bytes | None", self._redis.get(kept_key(pipeline)))
        return None if kept is None else int(kept)

    def switch_generation(self, pipeline: str, generation: int) -> None:
        """Serve another generation from now on."""
        with answering():
            self._redis.set(generation_key(pipeline), generation)

    def clear(self, state: StateName, groups: Sequence[int]) -> int:
        """Forget what some key groups of a build hold; returns the number of keys removed.

        Epochs stay: were they given out twice, a writer that was fenced could write again.
        """
        removed = 0
        wanted = set(groups)
        with answering():
            for key in self.keys(state):
                if key_group(key) in wanted:
                    removed += self._redis.unlink(state.key(key))
            pipe = self._redis.pipeline(transaction=False)
            for group in groups:
                pipe.hdel(state.position(group), "positions", "newest", "rows", "ahead")
            pipe.execute()
        return removed

    def keys(self, state: StateName) -> Iterator[str]:
        """Every key text the state holds, in no order; a scan, for checks and backfills."""
        prefix = f"{{{state.pipeline}#{state.generation}:*}}:s:*"
        with answering():
            for name in self._redis.scan_iter(match=prefix, count=1_000):
                yield name.decode().split("}:s:", 1)[1]

    def scan(self, state: StateName, cursor: int) -> tuple[int, list[str]]:
        """Some key texts of the state, and the cursor to go on from; 0 begins, and ends."""
        prefix = f"{{{state.pipeline}#{state.generation}:*}}:s:*"
        with answering():
            following, names = cast("tuple[int, list[bytes]]", self._redis.scan(cursor, match=prefix, count=1_000))
        return following, [name.decode().split("}:s:", 1)[1] for name in names]

    def field_names(self, state: StateName, keys: Sequence[str]) -> list[list[bytes]]:
        """The names of the stored fields of some keys, in one round trip."""
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for key in keys:
                pipe.hkeys(state.key(key))
            return cast("list[list[bytes]]", pipe.execute())

    def fields(self, state: StateName, key: str) -> dict[bytes, bytes]:
        """Every stored field of a key."""
        with answering():
            return cast("dict[bytes, bytes]", self._redis.hgetall(state.key(key)))


class _Part(NamedTuple):
    """What a script does in one key group."""

    keys: list[str]
    arguments: list[str | bytes]


def _scripts(state: StateName, commits: Sequence[GroupCommit]) -> Iterator[_Part]:
    """Keys and arguments of each script, in the order to run them."""
    keys: list[str] = []
    arguments: list[str | bytes] = []
    for part in (part for commit in commits for part in _parts(state, commit)):
        if keys and len(keys) + len(part.keys) > min(_KEYS_AT_ONCE, _KEYS_PER_SCRIPT):
            yield _Part(keys, arguments)
            keys, arguments = [], []
        keys += part.keys
        arguments += part.arguments
    if keys:
        yield _Part(keys, arguments)


def _parts(state: StateName, commit: GroupCommit) -> Iterator[_Part]:
    place = state.position(commit.group)
    positions = json.dumps(list(commit.positions))
    moved = ["positions", positions, "rows", str(commit.rows)]
    if commit.newest_us is not None:
        moved += ["newest", str(commit.newest_us)]
    keys = [*commit.changes, *commit.removed]
    starts = range(0, max(1, len(keys)), _KEYS_PER_SCRIPT)
    if len(starts) > 1 or commit.back:
        moved += ["ahead", ""]
    for start in starts:
        chunk = keys[start : start + _KEYS_PER_SCRIPT]
        noted: list[str] = []
        if start == starts[-1]:
            noted = moved
        elif start == 0 and not commit.back:
            noted = ["ahead", positions]
        written = [argument for key in chunk for argument in _written(commit, key)]
        arguments: list[str | bytes] = [str(commit.epoch), str(len(chunk)), str(len(noted)), *noted, *written]
        yield _Part([place, *(state.key(key) for key in chunk)], arguments)


def _written(commit: GroupCommit, key: str) -> list[str | bytes]:
    if key in commit.removed:
        return ["-1", "0"]
    fields = commit.changes[key]
    written = [part for name, data in fields.items() if data is not None for part in (name, data)]
    dropped = [name for name, data in fields.items() if data is None]
    return [str(len(written)), *written, str(len(dropped)), *dropped]


def _standing(reply: Sequence[bytes | None]) -> tuple[list[int] | None, Instant | None, int]:
    positions, newest, rows = reply
    return (
        json.loads(positions) if positions is not None else None,
        int(newest) if newest is not None else None,
        int(rows or 0),
    )


def _ahead(stored: bytes | None) -> list[int] | None:
    return json.loads(stored) if stored else None


def generation_key(pipeline: str) -> str:
    """The Redis key of the generation of a pipeline that is served."""
    return f"{{{pipeline}}}:generation"


def kept_key(pipeline: str) -> str:
    """The Redis key of the generation of a pipeline that is kept beside the served one."""
    return f"{{{pipeline}}}:kept"
