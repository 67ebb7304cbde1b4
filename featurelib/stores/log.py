"""The hot dataset log: one Redis Stream per log partition of a dataset.

An entry is one Arrow batch; its id is ``<base offset + 1>-0``, so any offset is found in one look-up.
Beside the stream a *head* hash keeps what must never disagree with it: next offset, newest event
time (the watermark's base), last accepted-at, and per source stream the last sequence held. One script
moves all of them and the dead letters together; it compares the head's revision first, so a writer
whose view is stale changes nothing and looks again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from featurelib.clock import DAY, Clock, Duration, Instant
from featurelib.engine.keys import key_texts
from featurelib.engine.records import ACCEPTED_AT, DELETED, ERASED, LATE, OFFSET, PARTITION, TIME, Mark, mark_late
from featurelib.errors import CorruptState, MaybeTaken, StoreUnavailable
from featurelib.stores.budget import LOGS, SAMPLED_ENTRIES, Budget, LogRoom
from featurelib.stores.dead_letters import DeadLetter, DeadLetters
from featurelib.stores.haste import Haste
from featurelib.stores.refused_rows import RefusedRows
from featurelib.stores.server import answering, partition_key, unavailable
from featurelib.stores.upserts import Upserts

_FORMAT = b"1"
# Batches under this size are kept plain: LZ4's frame would cost more than it saves.
_COMPRESS_ABOVE_BYTES = 4_096
_ENTRIES_PER_TRIP = 32
# Before any record: sequences begin at 0.
_UNREAD = Mark(-1)
_NO_ROWS = np.zeros(0, dtype=np.int64)

_APPEND = """
local head, log, dead = KEYS[1], KEYS[2], KEYS[3]
if (redis.call('HGET', head, 'revision') or '0') ~= ARGV[1] then return 0 end
if ARGV[18] ~= '' and redis.call('ZSCORE', KEYS[6], ARGV[18]) then return -1 end
local set = cjson.decode(ARGV[2])
redis.call('HSET', head, 'revision', string.format('%.0f', tonumber(ARGV[1]) + 1), unpack(set))
if ARGV[3] ~= '' then redis.call('HSET', head, 'schema:' .. ARGV[4], ARGV[5]) end
if ARGV[3] ~= '' then
  redis.call('XADD', log, ARGV[3], 'f', '1', 's', ARGV[4], 'n', ARGV[6], 'a', ARGV[7], 'z', ARGV[8], 'b', ARGV[9])
end
local ids, names, sent = tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[15])
local first = 19
for i = first, first + ids - 1 do redis.call('ZADD', KEYS[4], ARGV[7], ARGV[i]) end
if ids > 0 then redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', '(' .. ARGV[10]) end
first = first + ids
for i = first, first + names - 1 do redis.call('ZADD', KEYS[5], 0, ARGV[i]) end
if ARGV[14] ~= '' then redis.call('ZREMRANGEBYLEX', KEYS[5], ARGV[13], ARGV[14]) end
first = first + names
for i = first, first + sent - 1 do redis.call('ZADD', KEYS[6], ARGV[7], ARGV[i]) end
if sent > 0 then redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', '(' .. ARGV[16]) end
first = first + sent
if first > #ARGV then return 1 end
for i = first, #ARGV do redis.call('XADD', dead, '*', 'letter', ARGV[i]) end
local dropped = redis.call('XTRIM', dead, 'MAXLEN', ARGV[17])
if dropped > 0 then redis.call('HINCRBY', head, 'dropped', dropped) end
return 1 + dropped
"""
_ERASE = """
local head, log, erased, blocked = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
if (redis.call('HGET', head, 'revision') or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', head, 'revision', string.format('%.0f', tonumber(ARGV[1]) + 1), unpack(cjson.decode(ARGV[2])))
redis.call('HSET', head, 'schema:' .. ARGV[4], ARGV[5])
redis.call('XADD', log, ARGV[3], 'f', '1', 's', ARGV[4], 'n', ARGV[6], 'a', ARGV[7], 'z', ARGV[8], 'b', ARGV[9])
local rows = tonumber(ARGV[6])
for i = 0, rows - 1 do
  redis.call('HSET', erased, ARGV[11 + 2 * i], ARGV[12 + 2 * i])
end
for i = 11 + 2 * rows, #ARGV do redis.call('SADD', blocked, ARGV[i]) end
return 1
"""
_RENEW = """
if redis.call('XLEN', KEYS[1]) > tonumber(ARGV[1]) then return 0 end
local entries = redis.call('XRANGE', KEYS[1], '-', '+')
if #entries == 0 then return 1 end
for _, entry in ipairs(entries) do redis.call('XADD', KEYS[2], entry[1], unpack(entry[2])) end
redis.call('RENAME', KEYS[2], KEYS[1])
return 1
"""
# The server answers nobody else meanwhile: some milliseconds.
_ENTRIES_RENEWED = 10_000
_REPLACE_NOTE = """
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
if ARGV[3] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1
"""
DEAD_LETTERS_KEPT = 10_000
"""How many dead letters a partition keeps unless told otherwise."""
KEEP_SENT_US = 30 * DAY
"""How long the ids of requests and of replayed dead letters are remembered."""


# When the record at an offset was accepted, or the next one that is not trimmed; the batch itself stays where it is.
_ACCEPTED_AT = """
local first = tonumber(ARGV[1])
local entry = redis.call('XREVRANGE', KEYS[1], string.format('%.0f-0', first + 1), '-', 'COUNT', 1)[1]
local function field(name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then return entry[2][i + 1] end
  end
end
if not entry or tonumber(string.match(entry[1], '%d+')) - 1 + tonumber(field('n')) <= first then
  entry = redis.call('XRANGE', KEYS[1], string.format('%.0f-0', first + 2), '+', 'COUNT', 1)[1]
end
return entry and field('a')
"""


class Identity(NamedTuple):
    """Where records stand in their source, and how far its stream is read with them.

    A *numbered* stream has a ``sequence`` per record, ascending: what lies at or below the partition's mark is held.
    A *named* one has ``names``, ascending: what the partition holds by name, or lies below its ``floor``, is held.
    """

    stream: str
    through: Mark
    sequence: npt.NDArray[np.int64] | None = None
    names: Sequence[str] = ()
    floor: str = ""


class EventIds(NamedTuple):
    """What identifies each record (decision 17): one whose id the partition accepted within ``keep_us`` is skipped.

    ``part``: the set that ids sent with records are kept in; all that are kept in one are kept as long.
    """

    ids: Sequence[str]
    keep_us: Duration
    part: str = "sent"


class Share(NamedTuple):
    """What of a request goes to one partition; it is held whole under ``batch``, or nothing of it is.

    With an empty ``batch`` nothing is remembered.
    """

    partition: int
    records: pa.Table
    dead: Sequence[DeadLetter] = ()
    event_ids: EventIds | None = None
    batch: str = ""


class Claim(NamedTuple):
    """A name that whoever comes first ties to a text, for ``keep_us``.

    ``batch`` is what partitions hold of it, ``columns`` a digest of the columns by which its records are judged.
    """

    dataset: str
    name: str
    text: str
    keep_us: Duration
    batch: str
    columns: str = ""

    @property
    def note(self) -> str:
        """What is kept."""
        return f"{self.text} {self.columns}"


class Entrance(NamedTuple):
    """The partitions of a dataset; ``claimed``: what was claimed is tied to that text, now or since before.

    ``judged_anew``: since before, and by other columns.
    """

    heads: list[Head]
    claimed: bool
    judged_anew: bool = False


class Lateness(NamedTuple):
    """The rules of decision 6, in µs; ``max_lateness_us=None``: nothing is late."""

    max_lateness_us: Duration | None
    max_clock_skew_us: Duration


class Appended(NamedTuple):
    """What one append did.

    ``rows``: places of the accepted records in what was given. ``dead``: letters that were written. ``dropped``: older
    letters that made room for them. ``erased``: records refused because their key was erased for good, at the places
    ``erased_rows``.
    """

    accepted: int
    duplicates: int
    late: int
    next_offset: int
    rows: npt.NDArray[np.int64]
    dead: int = 0
    dropped: int = 0
    erased: int = 0
    erased_rows: npt.NDArray[np.int64] = _NO_ROWS


class Tombstone(NamedTuple):
    """Everything of a key below ``offset`` in its log partition is erased; ``erasure`` is the id of the request."""

    erasure: str
    key: str
    partition: int
    offset: int


class Head(NamedTuple):
    """The state of one log partition."""

    revision: int
    next_offset: int
    newest_us: Instant | None
    accepted_at_us: Instant
    marks: dict[str, Mark]
    floors: dict[str, str]
    cursor: str
    records_late: int
    records_dead: int
    dead_dropped: int = 0
    blocks: bool = False
    """Whether any key of the partition was erased for good."""


class Tail(NamedTuple):
    """Records from an offset on, ``None`` when there are none.

    ``trimmed``: the log no longer holds that offset. ``more``: when it was read the log held more behind them.
    """

    records: pa.Table | None
    trimmed: bool
    more: bool = False


class _Entry(NamedTuple):
    fingerprint: str
    schema: bytes
    plain_bytes: int  # size before LZ4; 0: the payload is not compressed
    payload: bytes


class _Request(NamedTuple):
    """The arguments of one append."""

    dataset: str
    partition: int
    records: pa.Table
    lateness: Lateness
    identity: Identity | None
    dead: Sequence[DeadLetter]
    cursor: str | None
    event_ids: EventIds | None
    sent: EventIds | None
    dead_kept: int
    key_column: str | None
    batch: str = ""

    @property
    def sent_part(self) -> str:
        """Where the ids are kept that came with the records."""
        return self.sent.part if self.sent is not None else "sent"

    def key(self, part: str) -> str:
        return partition_key(self.dataset, self.partition, part)


class _Append(NamedTuple):
    """What is written: only what the partition does not hold."""

    records: pa.Table
    rows: npt.NDArray[np.int64]
    dead: Sequence[DeadLetter]
    ids: list[str]
    names: list[str]
    sent: list[str]
    erased: npt.NDArray[np.int64]


class _Attempt(NamedTuple):
    """An append made ready on what its partition's head was, and what is done once the script has run."""

    keys: list[str]
    arguments: list[str | bytes]
    done: Appended
    given: int

    def outcome(self, reply: int) -> Appended | None:
        """What the script's answer means; ``None``: the head has moved, and nothing was written."""
        if not reply:
            return None
        if reply < 0:
            return Appended(0, self.given, 0, self.done.next_offset, _NO_ROWS)
        return self.done._replace(dropped=reply - 1)


class Log:
    """Appends to and reads from the log partitions of datasets. Safe to share between threads."""

    def __init__(self, redis_url: str, clock: Clock, budget: Budget | None = None) -> None:
        self._redis = redis.Redis.from_url(redis_url)
        # Whatever the URL says: an append whose answer was lost, sent again by the client, may be in the log twice.
        self._redis.set_retry(Retry(NoBackoff(), 0))
        self._room = LogRoom(self._redis, budget, clock) if budget else None
        self._append = self._redis.register_script(_APPEND)
        self._erase = self._redis.register_script(_ERASE)
        self._renew = self._redis.register_script(_RENEW)
        self._accepted_at = self._redis.register_script(_ACCEPTED_AT)
        self.dead = DeadLetters(self._redis)
        self.upserts = Upserts(self._redis)
        self.haste = Haste(self._redis)
        self.refused = RefusedRows(self._redis)
        self._replace_note = self._redis.register_script(_REPLACE_NOTE)
        self._clock = clock
        self._schemas: dict[tuple[str, str], pa.Schema] = {}
        self._counts: dict[str, int] = {}

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    def create(self, dataset: str, partitions: int) -> int:
        """Fix the number of log partitions of a dataset, once and for ever; returns the number in force."""
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            pipe.get(_partitions_key(dataset))
            pipe.hexists(LOGS, dataset)
            fixed, listed = pipe.execute()
            if fixed is None:
                self._inherit_blocks(dataset, partitions)
                self._redis.set(_partitions_key(dataset), partitions, nx=True)
            in_force = self.partitions(dataset)
            if not listed:
                self._redis.hset(LOGS, dataset, str(in_force))
        return in_force

    def _inherit_blocks(self, dataset: str, partitions: int) -> None:
        """What was erased for good stays so in a new version: before it takes a record, it has the others' blocks."""
        name = _name_of(dataset)
        others = {ref.decode(): int(count) for ref, count in cast("Any", self._redis.hgetall(LOGS)).items()}
        sets = [
            partition_key(ref, part, "blocked")
            for ref, count in others.items()
            if _name_of(ref) == name and ref != dataset
            for part in range(count)
        ]
        blocked = {digest for each in sets for digest in cast("set[bytes]", self._redis.smembers(each))}
        for part in range(partitions) if blocked else ():
            self._redis.sadd(partition_key(dataset, part, "blocked"), *blocked)
            self._redis.hset(partition_key(dataset, part, "head"), "blocks", "1")

    def require_room(self) -> None:
        """Return when records may be appended; always, when the log was opened without a budget.

        What needs no room, or must not wait, is appended without asking.

        Raises:
            LogFull: the budget is used up.
        """
        if self._room is not None:
            self._room.require()

    def partitions(self, dataset: str) -> int:
        """How many log partitions a dataset has; 0 when it has not been created."""
        with answering():
            return int(cast("bytes | None", self._redis.get(_partitions_key(dataset))) or 0)

    def append(  # noqa: PLR0913  # what one script moves together
        self,
        dataset: str,
        partition: int,
        records: pa.Table,
        *,
        lateness: Lateness,
        identity: Identity | None = None,
        dead: Sequence[DeadLetter] = (),
        cursor: str | None = None,
        event_ids: EventIds | None = None,
        sent: EventIds | None = None,
        dead_kept: int = DEAD_LETTERS_KEPT,
        key_column: str | None = None,
    ) -> Appended:
        """Append records, their dead letters and the source's position, together or not at all.

        Args:
            dataset: ``Name@version``.
            partition: log partition, 0-based.
            records: the dataset's columns and ``__time``; may be empty, which moves the position alone.
            lateness: how late marks are decided.
            identity: where each row stands in its source; rows already held are skipped. Without rows and letters it
                still moves the position.
            dead: rejected records of the same rows.
            cursor: the source's cursor, kept for display.
            event_ids: one id per record, where the dataset declares ``event_id=``.
            sent: one id per record, of the request or dead letter it came with: held ones are skipped as well. The
                ``event`` of a letter is such an id too.
            dead_kept: dead letters the partition keeps; the oldest are dropped beyond, and counted.
            key_column: the dataset's key; records of keys that were erased for good are refused.

        Raises:
            StoreUnavailable: nothing is known to be written; append again, rows already held are skipped.
        """
        request = _Request(
            dataset, partition, records, lateness, identity, dead, cursor, event_ids, sent, dead_kept, key_column
        )
        return self._append_alone(request)

    def enter(self, dataset: str, partitions: int, claim: Claim | None = None) -> Entrance:
        """What an append to all partitions begins with, in one round trip: their heads, and a claim.

        Args:
            dataset: ``Name@version``.
            partitions: how many log partitions it gets, should it have none yet.
            claim: what is claimed for the records.
        """
        known = self._counts.get(dataset, partitions)
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            if claim is not None:
                note = _note_key(claim.dataset, claim.name)
                pipe.set(note, claim.note, nx=True, px=claim.keep_us // 1_000)
                pipe.get(note)
            pipe.get(_partitions_key(dataset))
            pipe.hexists(LOGS, dataset)
            for partition in range(known):
                pipe.hgetall(partition_key(dataset, partition, "head"))
            *tied, fixed, listed = (replies := pipe.execute())[:-known]
        before = (tied[-1] or claim.note.encode()).decode() if claim is not None else ""
        claimed = claim is None or before.partition(" ")[0] == claim.text
        count = int(fixed or 0) if listed else 0
        self._counts[dataset] = count or self.create(dataset, partitions)
        heads = [_head(fields) for fields in replies[-known:]] if count == known else None
        judged_anew = claim is not None and claimed and before != claim.note
        return Entrance(heads or self.heads(dataset, self._counts[dataset]), claimed, judged_anew)

    def claim_anew(self, dataset: str, partitions: int, claim: Claim) -> bool:
        """Tie a claim to the columns as they are now; False, and nothing done, where a partition holds some of it."""
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for partition in range(partitions):
                pipe.zscore(partition_key(dataset, partition, "sent"), claim.batch)
            if any(score is not None for score in pipe.execute()):
                return False
            self._redis.set(_note_key(claim.dataset, claim.name), claim.note, px=claim.keep_us // 1_000)
        return True

    def append_shares(
        self,
        dataset: str,
        shares: Sequence[Share],
        heads: Sequence[Head],
        *,
        lateness: Lateness,
        dead_kept: int = DEAD_LETTERS_KEPT,
        key_column: str | None = None,
    ) -> list[Appended]:
        """Append to several partitions in one round trip, to each as :meth:`append` does.

        Args:
            dataset: ``Name@version``.
            shares: what goes to each, at most one for a partition.
            heads: of all partitions, as they were lately: a share is tried again on the newest should its have moved.
            lateness: how late marks are decided.
            dead_kept: dead letters each partition keeps.
            key_column: the dataset's key.

        Raises:
            MaybeTaken: some partitions may hold their share; shares of a batch may be sent again all the same.
            StoreUnavailable: none does.
        """
        requests = [
            _Request(
                dataset, each.partition, each.records, lateness, None, each.dead, None, each.event_ids, None, dead_kept,
                key_column, each.batch,
            )
            for each in shares
        ]  # fmt: skip
        tried = [self._attempt(request, heads[request.partition]) for request in requests]
        replies = iter(self._run_together([each for each in tried if isinstance(each, _Attempt)]))
        found = [each if isinstance(each, Appended) else each.outcome(next(replies)) for each in tried]
        with _taking():
            return [each or self._append_alone(request) for each, request in zip(found, requests, strict=True)]

    def _append_alone(self, request: _Request) -> Appended:
        while True:
            attempt = self._attempt(request, self.head(request.dataset, request.partition))
            if isinstance(attempt, Appended):
                return attempt
            with answering():
                reply = self._append(keys=attempt.keys, args=cast("Any", attempt.arguments))
            done = attempt.outcome(int(cast("Any", reply)))
            if done is not None:
                return done

    def _run_together(self, attempts: Sequence[_Attempt]) -> list[int]:
        """The script's answer to each; 0 as well where the server forgot the script meanwhile.

        Raises:
            MaybeTaken: the server has carried out some of them, or may have.
            StoreUnavailable: it carried out none.
        """
        if not attempts:
            return []
        replies = self._sent_together(attempts)
        if all(map(_is_forgotten, replies)):
            with answering():
                self._redis.script_load(_APPEND)
            replies = self._sent_together(attempts)
        # A server that refuses a script for now does so before its first write. Any other error is none of ours.
        refused: list[StoreUnavailable] = []
        for reply in replies:
            if isinstance(reply, redis.RedisError) and not _is_forgotten(reply):
                told = unavailable(reply)
                if told is None:
                    raise reply
                refused.append(told)
        answers = [0 if isinstance(reply, redis.RedisError) else int(reply) for reply in replies]
        if refused:
            raise MaybeTaken(str(refused[0])) if any(answer > 0 for answer in answers) else refused[0]
        return answers

    def _sent_together(self, attempts: Sequence[_Attempt]) -> list[Any]:
        pipe = self._redis.pipeline(transaction=False)
        for each in attempts:
            pipe.evalsha(self._append.sha, len(each.keys), *each.keys, *cast("Any", each.arguments))
        with _taking():
            return pipe.execute(raise_on_error=False)

    def _attempt(self, request: _Request, head: Head) -> _Attempt | Appended:
        """The append on this head, or what is done already when there is nothing to write.

        What the partition holds is read after the head: the append is refused should another writer have added some
        since.
        """
        what = self._unheld(request, head)
        duplicates = len(request.records) - len(what.records) - len(what.erased)
        moves = request.identity is not None and _moves(request.identity, head)
        if not (len(what.records) or what.dead or moves or request.batch):
            return Appended(0, duplicates, 0, head.next_offset, what.rows, 0, 0, len(what.erased), what.erased)
        return self._made_ready(request, head, what, duplicates)

    def erase(self, dataset: str, partition: int, keys: pa.Table, *, erasure: str, block: bool = False) -> list[int]:
        """Append a tombstone for each key: of all its records below, none counts any more.

        Args:
            dataset: ``Name@version``.
            partition: the log partition of these keys.
            keys: the key column alone, each key once.
            erasure: the id of who asks.
            block: refuse records of these keys from now on.

        Returns:
            The tombstones' offsets, in the keys' order.

        Raises:
            StoreUnavailable: nothing is known to be erased; doing it again erases nothing twice.
        """
        texts = texts_of(keys.column(0))
        request = [partition_key(dataset, partition, part) for part in ("head", "log", "erased", "blocked")]
        while True:
            head = self.head(dataset, partition)
            now = max(self._clock.now(), head.accepted_at_us)
            offsets = list(range(head.next_offset, head.next_offset + len(keys)))
            # Marked late as well: whoever only knows records of old leaves it out of every aggregate.
            rows = keys.append_column(TIME, pa.array([now] * len(keys), pa.int64()))
            rows = rows.append_column(ERASED, pa.array([True] * len(keys)))
            entry = _encode(rows, np.ones(len(keys), dtype=np.bool_))
            move = {"next": str(head.next_offset + len(keys)), "accepted": str(now)}
            if block:
                move["blocks"] = "1"
            arguments: list[str | bytes] = [
                str(head.revision),
                json.dumps([part for pair in move.items() for part in pair]),
                f"{head.next_offset + 1}-0",
                entry.fingerprint,
                entry.schema,
                str(len(keys)),
                str(now),
                str(entry.plain_bytes),
                entry.payload,
                "",
                *(part for text, at in zip(texts, offsets, strict=True) for part in (f"{erasure} {text}", str(at))),
                *([_blocked(dataset, text) for text in texts] if block else ()),
            ]
            with answering():
                if self._erase(keys=request, args=cast("Any", arguments)):
                    return offsets

    def tombstones(self, dataset: str, partitions: int) -> list[Tombstone]:
        """Every erasure that is not complete, by partition and offset."""
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for partition in range(partitions):
                pipe.hgetall(partition_key(dataset, partition, "erased"))
            replies = pipe.execute()
        found = []
        for partition, fields in enumerate(replies):
            for name, offset in fields.items():
                erasure, _, key = name.decode().partition(" ")
                found.append(Tombstone(erasure, key, partition, int(offset)))
        return sorted(found, key=lambda each: (each.partition, each.offset))

    def forget_tombstones(self, dataset: str, tombstones: Sequence[Tombstone]) -> None:
        """Forget the keys of erasures: nothing of theirs is left anywhere. Blocked keys stay blocked."""
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for each in tombstones:
                pipe.hdel(partition_key(dataset, each.partition, "erased"), f"{each.erasure} {each.key}")
            pipe.execute()

    def head(self, dataset: str, partition: int) -> Head:
        """The state of one partition."""
        with answering():
            fields = cast("dict[bytes, bytes]", self._redis.hgetall(partition_key(dataset, partition, "head")))
        return _head(fields)

    def heads(self, dataset: str, partitions: int) -> list[Head]:
        """The state of every partition of a dataset, in one round trip."""
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for partition in range(partitions):
                pipe.hgetall(partition_key(dataset, partition, "head"))
            return [_head(fields) for fields in pipe.execute()]

    def sizes(self) -> dict[str, int]:
        """Bytes that the log of each dataset takes in the server's memory, in two round trips."""
        with answering():
            logs = cast("dict[bytes, bytes]", self._redis.hgetall(LOGS))
            parts = [(name.decode(), part) for name, count in logs.items() for part in range(int(count))]
            pipe = self._redis.pipeline(transaction=False)
            for dataset, partition in parts:
                pipe.memory_usage(partition_key(dataset, partition, "log"), samples=SAMPLED_ENTRIES)
            sizes = pipe.execute()
        found = dict.fromkeys((dataset for dataset, _ in parts), 0)
        for (dataset, _), size in zip(parts, sizes, strict=True):
            found[dataset] += size or 0
        return found

    def read(self, dataset: str, partition: int, offset: int, max_rows: int) -> pa.Table | None:
        """Records from ``offset`` on, at most ``max_rows``, with system columns; ``None`` when there are none yet."""
        return self.tail(dataset, partition, offset, max_rows).records

    def tail(self, dataset: str, partition: int, offset: int, max_rows: int) -> Tail:
        """Like :meth:`read`; tells too whether ``offset`` was trimmed, in the same round trip."""
        key = partition_key(dataset, partition, "log")
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            # Read first: what was appended before and is not found after has been trimmed.
            pipe.hget(partition_key(dataset, partition, "head"), "next")
            # The entry that holds `offset`, then those after it.
            pipe.xrevrange(key, max=f"{offset + 1}-0", count=1)
            pipe.xrange(key, min=f"{offset + 2}-0", count=_ENTRIES_PER_TRIP)
            end, holding, following = pipe.execute()
        found: list[_Stored] = []
        following_offset = offset
        for entry_id, fields in [*holding, *following]:
            base, count = int(entry_id.split(b"-")[0]) - 1, int(fields[b"n"])
            if base + count <= following_offset:
                continue
            if found and base != following_offset:
                break  # trimmed between the two commands: what follows is not what comes next
            found.append(_Stored(base, fields))
            following_offset = base + count
            if following_offset >= offset + max_rows:
                break
        if not found:
            return Tail(None, trimmed=int(end or 0) > offset)
        first = found[0].base
        records = self._decode(dataset, partition, found).slice(max(0, offset - first), max_rows)
        return Tail(records, trimmed=first > offset, more=int(end or 0) > max(first, offset) + len(records))

    def accepted_at(self, offsets: Sequence[tuple[str, int, int]]) -> list[Instant | None]:
        """When the record at each ``(dataset, partition, offset)`` was accepted, in one round trip.

        The next one that the hot log holds stands in for a record that was trimmed; ``None``: there is none yet.
        """
        if not offsets:
            return []
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for dataset, partition, offset in offsets:
                key = partition_key(dataset, partition, "log")
                self._accepted_at(keys=[key], args=[offset], client=cast("Any", pipe))
            return [int(reply) if reply is not None else None for reply in pipe.execute()]

    def first_offset(self, dataset: str, partition: int) -> int:
        """The oldest offset the hot log still holds; the next offset when it is empty."""
        with answering():
            oldest = cast("list[Any]", self._redis.xrange(partition_key(dataset, partition, "log"), count=1))
        return int(oldest[0][0].split(b"-")[0]) - 1 if oldest else self.head(dataset, partition).next_offset

    def wait(self, positions: Mapping[tuple[str, int], int], timeout_ms: int) -> bool:
        """Block until any ``(dataset, partition)`` holds a record at or after its offset; False on time-out."""
        streams = {partition_key(dataset, part, "log"): f"{offset}-0" for (dataset, part), offset in positions.items()}
        # XREAD spans slots: on a Redis Cluster each partition needs a wait of its own.
        with answering():
            return bool(self._redis.xread(cast("Any", streams), count=1, block=timeout_ms))

    def note(self, dataset: str, name: str) -> str:
        """A small text kept beside a dataset's log; empty when there is none."""
        with answering():
            return cast("bytes", self._redis.get(_note_key(dataset, name)) or b"").decode()

    def replace_note(self, dataset: str, name: str, before: str, after: str, keep_us: Duration = 0) -> bool:
        """Replace a note if it still says ``before``; whether it did. ``keep_us=0``: it is kept for ever."""
        with answering():
            arguments = cast("Any", [before, after, str(keep_us // 1_000)])
            return bool(self._replace_note(keys=[_note_key(dataset, name)], args=arguments))

    def holds_names(self, dataset: str, partition: int, stream: str, names: Sequence[str]) -> list[bool]:
        """Which names of a stream's records and dead letters a partition holds and has not forgotten."""
        members = [_member(stream, name) for name in names]
        with answering():
            held = cast("list[Any]", self._redis.zmscore(partition_key(dataset, partition, "names"), members))
        return [score is not None for score in held]

    def trim(self, dataset: str, partition: int, below_offset: int) -> None:
        """Forget entries that lie wholly below an offset. Only what the archive holds may be trimmed."""
        key = partition_key(dataset, partition, "log")
        with answering():
            holding = cast("list[Any]", self._redis.xrevrange(key, max=f"{below_offset + 1}-0", count=1))
            if holding:
                base, rows = int(holding[0][0].split(b"-")[0]) - 1, int(holding[0][1][b"n"])
                oldest = base if base + rows > below_offset else base + rows
                self._redis.xtrim(key, minid=f"{oldest + 1}-0", approximate=False)

    def renew(self, dataset: str, partition: int, part: Literal["log", "dead"]) -> bool:
        """Store what a partition's log or dead letters hold anew; False, and nothing done, when that is much.

        The server marks an entry that leaves a stream as deleted and keeps its bytes, also on disk, until the last of
        its neighbours has left.
        """
        key = partition_key(dataset, partition, part)
        with answering():
            return bool(self._renew(keys=[key, f"{key}:renewed"], args=[_ENTRIES_RENEWED]))

    def _unheld(self, request: _Request, head: Head) -> _Append:
        """What of an append the partition does not hold."""
        records, dead, identity = request.records, request.dead, request.identity
        rows = np.arange(len(records))
        ids: list[str] = []
        names: list[str] = []
        sent: list[str] = []
        if identity is not None and identity.sequence is not None:
            held = _mark(identity, head).sequence
            rows = rows[int(np.searchsorted(identity.sequence, held, side="right")) :]
            dead = [letter for letter in dead if letter.sequence is None or letter.sequence > held]
        elif identity is not None:
            mine = [identity.names[row] for row in rows.tolist()] + [letter.name for letter in dead]
            fresh = self._fresh(request.key("names"), [_member(identity.stream, name) for name in mine])
            # Names below the floor are settled: they were kept once and are forgotten.
            floor = head.floors.get(identity.stream, "")
            kept = [place for place in fresh if mine[place] >= floor]
            names = [_member(identity.stream, mine[place]) for place in kept]
            dead = [dead[place - len(rows)] for place in kept if place >= len(rows)]
            rows = np.array([place for place in kept if place < len(rows)], dtype=np.int64)
        if request.batch:
            sent = [request.batch]  # whether it is held the script itself sees, for all records and letters at once
        elif request.sent is not None or any(letter.event for letter in dead):
            mine = [request.sent.ids[row] for row in rows.tolist()] if request.sent is not None else []
            dead, rows, sent = self._unsent(request, dead, rows, mine)
        if request.event_ids is not None:
            mine = [request.event_ids.ids[row] for row in rows.tolist()]
            fresh = self._fresh(request.key("ids"), mine)
            rows, ids = rows[fresh], [mine[place] for place in fresh]
        open_rows = self._unblocked(request, rows) if head.blocks else rows
        left = records if len(open_rows) == len(records) else records.take(open_rows)
        erased = _NO_ROWS if len(open_rows) == len(rows) else np.setdiff1d(rows, open_rows)
        return _Append(left, open_rows, dead, ids, names, sent, erased)

    def _unblocked(self, request: _Request, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Those of the rows whose key was not erased for good. Like all that is held, asked after the head."""
        if request.key_column is None or not len(rows):
            return rows
        digests = [_blocked(request.dataset, text) for text in texts_of(request.records[request.key_column].take(rows))]
        with answering():
            held = cast("list[int]", self._redis.smismember(request.key("blocked"), digests))
        return rows[~np.array(held, dtype=np.bool_)]

    def _unsent(
        self, request: _Request, dead: Sequence[DeadLetter], rows: npt.NDArray[np.int64], ids: Sequence[str]
    ) -> tuple[list[DeadLetter], npt.NDArray[np.int64], list[str]]:
        """Letters and rows that came with no request the partition holds, and the ids to hold from now on."""
        # A letter that is replayed comes as a record with the same id: that its letter is held must not refuse it.
        letters = [f"dead:{letter.event}" if letter.event else "" for letter in dead]
        fresh = set(self._fresh(request.key(request.sent_part), [*ids, *filter(None, letters)]))
        named = iter(range(len(ids), len(ids) + len(letters)))
        kept = [letter for letter in dead if not letter.event or next(named) in fresh]
        taken = rows[[place for place in range(len(rows)) if place in fresh]] if ids else rows
        held = [name for place, name in enumerate([*ids, *filter(None, letters)]) if place in fresh]
        return kept, taken, held

    def _fresh(self, key: str, members: Sequence[str]) -> list[int]:
        """Places of the first of each member that a sorted set does not hold."""
        if not members:
            return []
        with answering():
            held = cast("list[Any]", self._redis.zmscore(key, list(members)))
        first: dict[str, int] = {}
        for place, (member, score) in enumerate(zip(members, held, strict=True)):
            if score is None:
                first.setdefault(member, place)
        return list(first.values())

    def _made_ready(self, request: _Request, head: Head, what: _Append, duplicates: int) -> _Attempt:
        records, lateness, identity = what.records, request.lateness, request.identity
        keep_us = request.event_ids.keep_us if request.event_ids else 0
        keep_sent_us = request.sent.keep_us if request.sent else KEEP_SENT_US
        now = max(self._clock.now(), head.accepted_at_us)
        times = records[TIME].to_numpy() if len(records) else np.zeros(0, dtype=np.int64)
        late, newest = mark_late(times, head.newest_us, lateness.max_lateness_us, now + lateness.max_clock_skew_us)
        late_count = int(late.sum())
        following = head.next_offset + len(records)
        move: dict[str, str] = {"next": str(following), "accepted": str(now)}
        if newest is not None:
            move["newest"] = str(newest)
        if identity is not None and _moves(identity, head):
            move[f"seq:{identity.stream}"] = _mark_text(identity.through)
        forgotten = ("", "")
        if identity is not None and identity.floor > head.floors.get(identity.stream, ""):
            move[f"floor:{identity.stream}"] = identity.floor
            forgotten = (f"[{_member(identity.stream, '')}", f"({_member(identity.stream, identity.floor)}")
        if request.cursor is not None:
            move["cursor"] = request.cursor
        if late_count:
            move["late"] = str(head.records_late + late_count)
        if what.dead:
            move["dead"] = str(head.records_dead + len(what.dead))
        entry = _encode(records, late) if len(records) else _Entry("", b"", 0, b"")
        arguments: list[str | bytes] = [
            str(head.revision),
            json.dumps([part for pair in move.items() for part in pair]),
            f"{head.next_offset + 1}-0" if len(records) else "",
            entry.fingerprint,
            entry.schema,
            str(len(records)),
            str(now),
            str(entry.plain_bytes),
            entry.payload,
            str(now - keep_us),
            str(len(what.ids)),
            str(len(what.names)),
            *forgotten,
            str(len(what.sent)),
            str(now - keep_sent_us),
            str(max(1, request.dead_kept)),
            request.batch,
            *what.ids,
            *what.names,
            *what.sent,
            *(json.dumps(letter._replace(at=now)._asdict(), default=str) for letter in what.dead),
        ]
        keys = [request.key(part) for part in ("head", "log", "dead", "ids", "names", request.sent_part)]
        erased = what.erased
        done = Appended(
            len(records), duplicates, late_count, following, what.rows, len(what.dead), 0, len(erased), erased
        )
        return _Attempt(keys, arguments, done, len(request.records))

    def _decode(self, dataset: str, partition: int, entries: Sequence[_Stored]) -> pa.Table:
        """Entries that follow each other; those with the same schema at once."""
        runs = [list(run) for _, run in groupby(entries, key=lambda entry: entry.fields[b"s"])]
        tables = [self._decode_run(dataset, partition, run) for run in runs]
        return tables[0] if len(tables) == 1 else pa.concat_tables(tables, promote_options="default")

    def _decode_run(self, dataset: str, partition: int, entries: Sequence[_Stored]) -> pa.Table:
        for base, fields in entries:
            if fields[b"f"] != _FORMAT:
                found = f"log entry {base} of {dataset}/{partition} has format {fields[b'f']!r}"
                raise CorruptState(f"{found}; this version reads {_FORMAT!r}")
        schema = self._schema(dataset, partition, entries[0].fields[b"s"].decode())
        batches = [pa.ipc.read_record_batch(_plain(fields), schema) for _, fields in entries]
        rows, first = [batch.num_rows for batch in batches], entries[0].base
        accepted = np.repeat(np.array([int(fields[b"a"]) for _, fields in entries], dtype=np.int64), rows)
        system = {
            ACCEPTED_AT: pa.array(accepted),
            PARTITION: pa.array(np.full(sum(rows), partition, dtype=np.int32)),
            OFFSET: pa.array(np.arange(first, first + sum(rows), dtype=np.int64)),
        }
        for name in (DELETED, ERASED):
            if name not in schema.names:
                system[name] = pa.nulls(sum(rows), pa.bool_())
        own = pa.Table.from_batches(batches, schema)
        return pa.Table.from_arrays([*own.columns, *system.values()], names=[*schema.names, *system])

    def _schema(self, dataset: str, partition: int, fingerprint: str) -> pa.Schema:
        known = self._schemas.get((dataset, fingerprint))
        if known is None:
            with answering():
                stored = self._redis.hget(partition_key(dataset, partition, "head"), f"schema:{fingerprint}")
            if stored is None:
                message = f"{dataset}/{partition} names schema {fingerprint}, which its head does not hold"
                raise CorruptState(message)
            known = pa.ipc.read_schema(pa.py_buffer(cast("bytes", stored)))
            self._schemas[(dataset, fingerprint)] = known
        return known


def _is_forgotten(reply: object) -> bool:
    return isinstance(reply, redis.exceptions.NoScriptError)


@contextmanager
def _taking() -> Iterator[None]:
    """Whatever fails in here may have been done.

    Raises:
        MaybeTaken: the server does not answer, or refuses for now.
    """
    try:
        with answering():
            yield
    except StoreUnavailable as error:
        raise MaybeTaken(str(error)) from error


class _Stored(NamedTuple):
    """An entry of a log partition: the offset of its first record, and its fields."""

    base: int
    fields: Mapping[bytes, bytes]


def _plain(fields: Mapping[bytes, bytes]) -> pa.Buffer:
    """The Arrow batch of an entry."""
    plain_bytes, payload = int(fields[b"z"]), pa.py_buffer(fields[b"b"])
    return pa.decompress(payload, plain_bytes, codec="lz4") if plain_bytes else payload


def texts_of(column: pa.ChunkedArray) -> list[str]:
    """Key texts of a key column."""
    texts: list[str] = key_texts([pl.Series("key", pl.from_arrow(column))]).to_list()
    return texts


def key_digest(dataset: str, key: str) -> str:
    """SHA-256 that stands for an entity of a dataset where its key may not be kept."""
    return hashlib.sha256(f"{dataset}\0{key}".encode()).hexdigest()


def _blocked(dataset: str, key: str) -> bytes:
    # Of the name alone: a block holds for every version.
    return bytes.fromhex(key_digest(_name_of(dataset), key))


def _name_of(dataset: str) -> str:
    return dataset.partition("@")[0]


def _note_key(dataset: str, name: str) -> str:
    return f"{{{dataset}}}:note:{name}"


def _partitions_key(dataset: str) -> str:
    return f"{{{dataset}}}:partitions"


def _head(fields: Mapping[bytes, bytes]) -> Head:
    newest = fields.get(b"newest")
    return Head(
        revision=int(fields.get(b"revision", b"0")),
        next_offset=int(fields.get(b"next", b"0")),
        newest_us=int(newest) if newest is not None else None,
        accepted_at_us=int(fields.get(b"accepted", b"0")),
        marks={name[4:].decode(): _read_mark(value) for name, value in fields.items() if name.startswith(b"seq:")},
        floors={name[6:].decode(): value.decode() for name, value in fields.items() if name.startswith(b"floor:")},
        cursor=fields.get(b"cursor", b"").decode(),
        records_late=int(fields.get(b"late", b"0")),
        records_dead=int(fields.get(b"dead", b"0")),
        dead_dropped=int(fields.get(b"dropped", b"0")),
        blocks=b"blocks" in fields,
    )


def _mark(identity: Identity, head: Head) -> Mark:
    return head.marks.get(identity.stream, _UNREAD)


def _moves(identity: Identity, head: Head) -> bool:
    return identity.through > _mark(identity, head)


def _mark_text(mark: Mark) -> str:
    return f"{mark.sequence} {mark.token}" if mark.token else str(mark.sequence)


def _read_mark(stored: bytes) -> Mark:
    sequence, _, token = stored.decode().partition(" ")
    return Mark(int(sequence), token)


def _member(stream: str, name: str) -> str:
    """A name in the partition's sorted set; no stream's members begin with another's."""
    return f"{len(stream)}:{stream}:{name}"


def _encode(records: pa.Table, late: npt.NDArray[np.bool_]) -> _Entry:
    table = records.append_column(LATE, pa.array(late)).combine_chunks()
    (batch,) = table.to_batches()
    schema = batch.schema.remove_metadata()
    plain = batch.replace_schema_metadata(None).serialize()
    packed = plain.size > _COMPRESS_ABOVE_BYTES
    payload = pa.compress(plain, codec="lz4", asbytes=True) if packed else plain.to_pybytes()
    schema_bytes = schema.serialize().to_pybytes()
    return _Entry(hashlib.sha256(schema_bytes).hexdigest()[:12], schema_bytes, plain.size if packed else 0, payload)
