"""What the query server reads the online store through: at once for all the rows of a look-up level."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from featurelib.clock import SECOND, Instant
from featurelib.engine.codec import joined_rows
from featurelib.engine.keys import KEY_GROUPS
from featurelib.engine.newest import first_fields, newest_event
from featurelib.engine.panes import BESIDE_THE_TREE, Header, Pane, PanesMissing, Sealed, pane_field
from featurelib.engine.program import Program
from featurelib.stores.online import StateName, generation_key
from featurelib.stores.pipelined import PipelinedRedis, pack
from featurelib.types import Value

KEPT_BYTES = 64 << 20
"""Most memory of rows kept from one read to the next, by the estimate of ``_Kept.size``: some 40,000 of 10 values."""
_ENTRY_BYTES, _VALUE_BYTES = 700, 60
# Nothing that stands between server and reader may swallow news; if it did all the same, no row would be older.
_BELIEVED = 60 * SECOND


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


class _Kept:
    """A row that was read, good for reads until ``until`` while the key's header is the same.

    Every change of a key's rows writes a new header, with the positions it now stands at, in the same transaction. As
    long as the header has the same stamp of the tree, only rows of the buffer came or went. While the server has not
    told of a change at all, nothing is asked, however far the windows have moved over what is kept of the tree.
    """

    __slots__ = (
        "asked",
        "buffer",
        "found",
        "header",
        "is_worth_a_look",
        "mark",
        "name",
        "probe",
        "program",
        "since",
        "size",
        "tail",
        "tree",
        "until",
        "was_good",
    )

    def __init__(self, lookup: Lookup, name: bytes, read: _Read, mark: object | None) -> None:
        self.program = lookup.program
        self.name = name
        self.mark = mark
        """Of the key as this row was made from it, while it is watched."""
        self.asked = lookup.at
        """The instant of the read that asked for the key last."""
        self.probe = pack(("HMGET", name, *BESIDE_THE_TREE))
        self.is_worth_a_look = True
        """Whether to ask for what stands beside the tree alone; not where that is another between any two reads."""
        self.was_good = False
        self.renew(lookup.at, read)

    def renew(self, at: Instant, read: _Read) -> None:
        """Keep another row of the key instead."""
        self.header, self.buffer, self.tail, self.found, self.tree, self.until = read
        self.since = at
        texts = (self.probe, self.header, self.buffer or b"", self.tail or b"")
        self.size = _ENTRY_BYTES + sum(map(len, texts)) + _size(self.found.row)

    def confirm(self, at: Instant, mark: object | None) -> None:
        """A read at an instant has asked for the key, under a mark."""
        self.was_good = True
        self.asked, self.mark = at, mark

    def serves(self, at: Instant) -> bool:
        """Whether the row is that of an instant, as long as the header is the same."""
        return self.since <= at <= self.until

    def is_unasked(self, at: Instant, unchanged: Mapping[bytes, object]) -> bool:
        """Whether the key needs not be asked for: it was lately, and has not been written since."""
        return self.mark is not None and unchanged.get(self.name) is self.mark and at - self.asked < _BELIEVED


class _Read(NamedTuple):
    """A row as it was read: what stood beside the tree, of which tree, and up to when it stays the same."""

    header: bytes
    buffer: bytes | None
    tail: bytes | None
    found: Found
    tree: bytes | None
    until: Instant


class _Whole(NamedTuple):
    """A look-up that reads all it needs: at which place of the answer, of which Redis key, and what is asked.

    The key is that of the generation which was served when it was asked: another may be before the answer is there.
    ``mark``: of the key, watched from before it is asked for. ``ahead``: what a read a little later needs is read too.
    """

    place: int
    lookup: Lookup
    name: bytes
    asked: bytes
    mark: object | None
    ahead: bool


class _Look(NamedTuple):
    """A look-up whose row is at hand, unless the key is another than it was."""

    place: int
    kept: _Kept
    mark: object | None


_UNKNOWN = Found(None, None)


class Standing:
    """What tells that rows which were read together are still those that a read would give. Asks nobody.

    Args:
        redis: tells of changes.
        kept: the rows, as they are kept; each is watched.
    """

    __slots__ = ("_asked", "_marks", "_redis", "_since", "_until")

    def __init__(self, redis: PipelinedRedis, kept: Sequence[_Kept]) -> None:
        self._redis = redis
        self._marks = [(each.name, each.mark) for each in kept]
        self._since = max(each.since for each in kept)
        self._until = min(each.until for each in kept)
        self._asked = min(each.asked for each in kept)

    def holds(self, at: Instant) -> bool:
        """Whether a read at an instant would give these rows, without asking the store."""
        if not self._since <= at <= self._until or at - self._asked >= _BELIEVED:
            return False
        unchanged = self._redis.unchanged
        for name, mark in self._marks:  # noqa: SIM110  # all() with a generator takes 0.5 µs more, of 0.6
            if unchanged.get(name) is not mark:
                return False
        return True


class OnlineReader:
    """What the query server reads through. Asynchronous, on one event loop; cannot write.

    A row that was read is kept, and so is what was made of the key's tree. The next read asks nothing while the server
    has told of no change of the key, else for header and buffer, about a kilobyte, and for everything only when the
    tree is another one, or R has moved beyond what is kept.

    A read shows every commit whose news the server had sent off when the read began. It sends them off together with
    the replies of the turn that a commit was made in: whoever has asked the server anything since may count on it.

    Args:
        redis_url: of the server.
        watching: whether it is to tell of changes; without, each read asks.
    """

    def __init__(self, redis_url: str, *, watching: bool = True) -> None:
        self._redis = PipelinedRedis(redis_url, watching=watching)
        self._generations: dict[str, int] = {}
        self._kept: dict[tuple[int, str], _Kept] = {}
        self._kept_bytes = 0
        self._packed: tuple[Sequence[bytes], bytes] = ((), b"")

    async def close(self) -> None:
        """Give the connection back."""
        await self._redis.close()

    async def refresh(self, pipelines: Sequence[str]) -> None:
        """Look which generation of each pipeline is served; called in the background, not per request."""
        if not pipelines:
            return
        asked = pack(("MGET", *(generation_key(pipeline) for pipeline in pipelines)))
        (values,) = await self._redis.trip(asked, 1)
        generations = {p: int(value or 1) for p, value in zip(pipelines, values, strict=True)}
        if generations != self._generations:
            self._generations = generations
            for kept in self._kept.values():
                self._redis.unwatch(kept.name)
            self._kept.clear()
            self._kept_bytes = 0

    async def rows(self, lookups: Sequence[Lookup]) -> list[Found]:
        """Output rows, in order.

        It takes no round trip where no key was written since it was read last, one where there is something to ask,
        and a second one where the tree of a key turns out to be another.

        Raises:
            StoreUnavailable: the store does not answer.
            ValueOverflow: an integer sum left the 64-bit range.
        """
        found: list[Any] = [None] * len(lookups)
        looked, whole = self._sorted_out(lookups, found)
        if not looked and not whole:
            return found
        # One view of a key at a time: where one leaf is read of each edge, ahead there are two.
        ahead = {each.lookup.key for each in whole if each.ahead}
        asked = [each.kept.probe for each in looked] + [each.asked for each in whole]
        replies = await self._redis.trip(b"".join(asked), len(asked))
        changed: list[_Whole] = []
        for look, reply in zip(looked, replies, strict=False):
            lookup = lookups[look.place]
            found[look.place] = again = self._again(lookup, look, reply)
            if again is None:
                changed.append(self._whole(look.place, lookup, ahead=lookup.key not in ahead))
                ahead.add(lookup.key)
        for each, values in zip(whole, replies[len(looked) :], strict=True):
            found[each.place] = await self._finished(each, values)
        if changed:
            replies = await self._redis.trip(b"".join([each.asked for each in changed]), len(changed))
            for each, values in zip(changed, replies, strict=True):
                found[each.place] = await self._finished(each, values)
        return found

    def standing(self, lookups: Sequence[Lookup], found: Sequence[Found]) -> Standing | None:
        """What tells whether rows that were just read stay what they are; ``None`` where nothing does."""
        kept = [(self._kept.get((id(program), key)), at) for program, key, at in lookups]
        # What ages is another row at the next instant, though its tree was worth keeping.
        known = [each for each, at in kept if each is not None and each.mark is not None and each.until > at]
        if len(known) != len(found) or not all(a.found is b for a, b in zip(known, found, strict=True)):
            return None
        return Standing(self._redis, known) if known else None

    async def newest(self, lookups: Sequence[Lookup]) -> list[Instant | SealedRow | None]:
        """Of each key the newest event at or before the instant; ``None`` for an unknown key, ``SEALED`` as in rows.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        return await asyncio.gather(*(self._newest(lookup) for lookup in lookups))

    async def _newest(self, lookup: Lookup) -> Instant | SealedRow | None:
        root = lookup.program.root
        panes, fields = first_fields(lookup.at, root)
        while True:
            (values,) = await self._redis.trip(self._asked(self._name(lookup).encode(), fields), 1)
            if values[0] is None:
                return None
            header, buffer, tail, *found = values
            stored = dict(zip(panes, found, strict=True))
            try:
                return newest_event(Header.decode(header), joined_rows(buffer, tail), stored, lookup.at, root)
            except Sealed:
                return SEALED
            except PanesMissing as missing:
                # All is read again with what is missing, since the key may have changed meanwhile.
                panes = [*panes, *missing.panes]
                fields = [*fields, *map(pane_field, missing.panes)]

    def _sorted_out(self, lookups: Sequence[Lookup], found: list[Any]) -> tuple[list[_Look], list[_Whole]]:
        """Fill in the rows at hand; returns look-ups that a look at their key may be enough for, and the others."""
        looked: list[_Look] = []
        whole: list[_Whole] = []
        unchanged, renewed = self._redis.unchanged, set[str]()
        for place, lookup in enumerate(lookups):
            program, key, at = lookup
            kept = self._kept.get((id(program), key))
            if kept is None or kept.program is not program:
                whole.append(self._whole(place, lookup))
                continue
            serves, is_unasked = kept.serves(at), kept.is_unasked(at, unchanged)
            if serves and is_unasked:
                found[place] = kept.found
            elif key not in renewed and program.is_due(at, key):
                whole.append(self._whole(place, lookup, ahead=True))
                renewed.add(key)
            elif is_unasked and (moved := self._followed(lookup, kept, kept.header, kept.buffer, kept.tail)):
                found[place] = moved
            elif kept.is_worth_a_look and (serves or program.may_follow(at, key)):
                looked.append(_Look(place, kept, self._redis.watch(kept.name)))
            else:
                whole.append(self._whole(place, lookup))
        return looked, whole

    def _whole(self, place: int, lookup: Lookup, *, ahead: bool = False) -> _Whole:
        name = self._name(lookup).encode()
        asked = self._asked(name, lookup.program.read_fields(lookup.at, ahead=ahead))
        return _Whole(place, lookup, name, asked, self._redis.watch(name), ahead)

    def _asked(self, key: bytes, fields: Sequence[bytes]) -> bytes:
        # A request's views mostly read the same fields, one list of some fifty: it is packed once for all of them.
        last, packed = self._packed
        if last is not fields:
            _, _, packed = pack(tuple(fields)).partition(b"\r\n")
            self._packed = (fields, packed)
        return b"*%d\r\n$5\r\nHMGET\r\n$%d\r\n%b\r\n%b" % (len(fields) + 2, len(key), key, packed)

    def _again(self, lookup: Lookup, look: _Look, beside_the_tree: Sequence[bytes | None]) -> Found | None:
        """The answer from what is kept; ``None`` when that takes a read of everything."""
        data, buffer, tail = beside_the_tree
        kept = look.kept
        if data is None:
            self._forget(lookup, kept.name)
            return _UNKNOWN
        if data == kept.header and kept.serves(lookup.at):
            kept.confirm(lookup.at, look.mark)
            return kept.found
        found = self._followed(lookup, kept, data, buffer, tail)
        if found is not None and found.row is not SEALED:
            kept.confirm(lookup.at, look.mark)
        return found

    def _followed(
        self, lookup: Lookup, kept: _Kept, data: bytes, buffer: bytes | None, tail: bytes | None
    ) -> Found | None:
        """The answer from what is kept of the tree and what stands beside it; ``None`` as of ``_again``."""
        program, key, at = lookup
        header = Header.decode(data)
        try:
            finished = program.finish_again(header, buffer, tail, at, key)
        except Sealed:
            return Found(SEALED, tuple(header.applied))
        if finished is None:
            return None
        row, until = finished
        found = Found(row, tuple(header.applied))
        size = kept.size
        kept.renew(at, _Read(data, buffer, tail, found, header.tree, until))
        if self._kept.get((id(program), key)) is kept:
            self._kept_bytes += kept.size - size
        return found

    async def _finished(self, whole: _Whole, values: Sequence[bytes | None]) -> Found:
        program, key, at = whole.lookup
        fields, more, mark = len(values), dict[Pane, bytes | None](), whole.mark
        while True:
            data = values[0]
            if data is None:
                self._forget(whole.lookup, whole.name)
                return _UNKNOWN
            header = Header.decode(data)
            applied = tuple(header.applied)
            try:
                row, until = program.finish_lasting(values, at, more, key, ahead=whole.ahead)
            except Sealed:
                self._redis.unwatch(whole.name)
                return Found(SEALED, applied)
            except PanesMissing as missing:
                # Only rows closed after R make a read go below its edges: versions dated in the future. All is read
                # again with what is missing, since the key may have changed meanwhile.
                panes = [*more, *missing.panes]
                read = program.read_fields(at, ahead=whole.ahead)
                asked = self._asked(whole.name, [*read, *map(pane_field, panes)])
                mark = self._redis.watch(whole.name)
                (got,) = await self._redis.trip(asked, 1)
                values, more = got[:fields], dict(zip(panes, got[fields:], strict=True))
                continue
            found = Found(row, applied)
            if (until > at or header.tree is not None) and whole.name == self._name(whole.lookup).encode():
                self._keep(whole, _Read(data, values[1], values[2], found, header.tree, until), mark)
            else:
                self._redis.unwatch(whole.name)
            return found

    def _keep(self, whole: _Whole, read: _Read, mark: object | None) -> None:
        program, key, _ = whole.lookup
        kept = _Kept(whole.lookup, whole.name, read, mark)
        before = self._dropped(whole.lookup)
        if before is not None:
            same_tree = read.tree is not None and before.tree == read.tree
            kept.is_worth_a_look = before.was_good or before.header == read.header or same_tree
        self._kept[id(program), key] = kept
        self._kept_bytes += kept.size
        while self._kept_bytes > KEPT_BYTES:
            oldest = self._kept.pop(next(iter(self._kept)))
            self._kept_bytes -= oldest.size
            self._redis.unwatch(oldest.name)

    def _forget(self, lookup: Lookup, name: bytes) -> None:
        """Keep nothing of a key that is not there any more: what it held may have been erased."""
        self._dropped(lookup)
        self._redis.unwatch(name)
        lookup.program.forget(lookup.key)

    def _dropped(self, lookup: Lookup) -> _Kept | None:
        kept = self._kept.pop((id(lookup.program), lookup.key), None)
        if kept is not None:
            self._kept_bytes -= kept.size
        return kept

    async def clocks(self, pipelines: Sequence[str]) -> dict[str, Instant | None]:
        """Newest applied event time of each pipeline."""
        if not pipelines:
            return {}
        places = [self._state(pipeline).position(group) for pipeline in pipelines for group in range(KEY_GROUPS)]
        replies = await self._redis.trip(b"".join(pack(("HGET", place, "newest")) for place in places), len(places))
        newest = [int(reply) if reply is not None else None for reply in replies]
        return {
            pipeline: max((n for n in newest[i * KEY_GROUPS : (i + 1) * KEY_GROUPS] if n is not None), default=None)
            for i, pipeline in enumerate(pipelines)
        }

    async def positions(self, pipeline: str) -> dict[int, list[int]]:
        """Per key group of a pipeline that has begun: up to where it has applied each input partition."""
        state = self._state(pipeline)
        asked = b"".join(pack(("HGET", state.position(group), "positions")) for group in range(KEY_GROUPS))
        replies = await self._redis.trip(asked, KEY_GROUPS)
        return {group: json.loads(reply) for group, reply in enumerate(replies) if reply is not None}

    async def ping(self) -> None:
        """Raise StoreUnavailable unless the store answers."""
        # Not PING: a server that cannot write its file refuses that, beside writes, and serves reads.
        await self._redis.trip(pack(("ECHO", "")), 1)

    def _name(self, lookup: Lookup) -> str:
        return self._state(lookup.program.ref).key(lookup.key)

    def _state(self, pipeline: str) -> StateName:
        return StateName(pipeline, self._generations.get(pipeline, 1))


def _size(row: object) -> int:
    if not isinstance(row, dict):
        return 0
    return sum(map(_value_size, row.values()))


def _value_size(value: object) -> int:
    if isinstance(value, list):
        return _VALUE_BYTES + sum(map(_value_size, value))
    return _VALUE_BYTES + (sys.getsizeof(value) if isinstance(value, str) else 0)
