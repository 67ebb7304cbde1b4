"""The online store: pipeline state, positions and epochs in Redis.

    {<pipeline>#<generation>:<group>}:position   hash: epoch, positions, newest event time, rows folded, ahead
    {<pipeline>#<generation>:<group>}:s:<key>    hash: one field per part of the key's state (engine/panes.py)
    {<pipeline>}:generation                      which generation is served

One transaction commits state, output and position of a key group together, and of as many groups as fit: one for each
of a worker's groups cost a step of 25 rows half its time. Claiming a group raises its epoch (before the first read), so
a worker that was replaced, however late it wakes up, writes nothing (stores/fenced.py). No group is added beyond 128
commands, one per key, since readers wait meanwhile. One group's commit of more than 500 keys is sent in chunks, each
key carrying its applied position, and the group's position moves last. The first chunk notes where it goes (``ahead``),
the last one takes the note away.

A *generation* is one build of a pipeline's state: a backfill writes the next one aside and then switches.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, cast

import redis

from featurelib.clock import Instant
from featurelib.engine.keys import KEY_GROUPS, key_group
from featurelib.stores.fenced import EPOCH, Command, FencedWriter, Write
from featurelib.stores.server import answering

# A command per key, mostly. Everybody else waits for them: 55 µs for values of 300 bytes on an idle machine.
_COMMANDS_AT_ONCE = 128
# Of one group, whose position moves with the last of its keys. 500 of 500 bytes keep the server for 0.17 ms, 4,000 of
# 2 kB for 6 ms.
_KEYS_OF_GROUP = 500


class StateName(NamedTuple):
    """One build of a pipeline's state: its ``Name@version`` and generation."""

    pipeline: str
    generation: int

    def key(self, key: str) -> str:
        """The Redis key of an entity's state."""
        return self.prefix(key_group(key)) + key

    def prefix(self, group: int) -> str:
        """What the Redis keys of a group's entities begin with."""
        return f"{{{self.pipeline}#{self.generation}:{group}}}:s:"

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
        self._fenced = FencedWriter(self._redis)

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
                pipe.hincrby(state.position(group), EPOCH, 1)
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
        """Write changes and positions of several groups, each group whole or, if it is large, in chunks.

        Raises:
            Fenced: another worker owns at least one of the groups now; some of the others were written.
            CorruptState: another program wrote over a key; its group was written otherwise.
            StoreUnavailable: some groups may have been written; claim again to find out.
        """
        with answering():
            try:
                self._fenced.write(_writes(state, commits), state.pipeline)
            except redis.OutOfMemoryError:
                self._make_room(state, commits)
                raise

    def _make_room(self, state: StateName, commits: Sequence[GroupCommit]) -> None:
        # A full server refuses the whole of a commit. What is to go may go before: done again, it is gone already.
        for commit in commits:
            keys = [state.prefix(commit.group) + key for key in commit.removed]
            for start in range(0, len(keys), _KEYS_OF_GROUP):
                owned = state.position(commit.group), commit.epoch
                self._fenced.remove(owned, keys[start : start + _KEYS_OF_GROUP], state.pipeline)

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


def _writes(state: StateName, commits: Sequence[GroupCommit]) -> Iterator[Write]:
    """What to carry out, in this order."""
    owned: list[tuple[str, int]] = []
    commands: list[Command] = []
    for part in (part for commit in commits for part in _parts(state, commit)):
        if owned and len(commands) + len(part.commands) > min(_COMMANDS_AT_ONCE, _KEYS_OF_GROUP):
            yield Write(owned, commands)
            owned, commands = [], []
        owned += part.owned
        commands += part.commands
    if owned:
        yield Write(owned, commands)


def _parts(state: StateName, commit: GroupCommit) -> Iterator[Write]:
    """What to carry out in one key group: at once, or its keys in chunks."""
    place, prefix = state.position(commit.group), state.prefix(commit.group)
    positions = _positions_text(tuple(commit.positions))
    moved = ["positions", positions, "rows", str(commit.rows)]
    if commit.newest_us is not None:
        moved += ["newest", str(commit.newest_us)]
    keys = [*commit.changes, *commit.removed]
    starts = range(0, max(1, len(keys)), _KEYS_OF_GROUP)
    if len(starts) > 1 or commit.back:
        moved += ["ahead", ""]
    for start in starts:
        chunk = keys[start : start + _KEYS_OF_GROUP]
        commands = [command for key in chunk for command in _changed(prefix + key, commit, key)]
        if start == starts[-1]:
            commands.append(("HSET", place, *moved))
        elif start == 0 and not commit.back:
            commands.append(("HSET", place, "ahead", positions))
        yield Write([(place, commit.epoch)], commands)


@lru_cache(maxsize=64)  # a worker's groups stand at the same ones, mostly
def _positions_text(positions: tuple[int, ...]) -> str:
    return json.dumps(positions)


def _changed(name: str, commit: GroupCommit, key: str) -> Iterator[Command]:
    if key in commit.removed:
        yield "UNLINK", name
        return
    fields = commit.changes[key]
    written = [part for field, data in fields.items() if data is not None for part in (field, data)]
    if written:
        yield "HSET", name, *written
    dropped = [field for field, data in fields.items() if data is None]
    if dropped:
        yield "HDEL", name, *dropped


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
