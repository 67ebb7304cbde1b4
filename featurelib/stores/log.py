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
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import redis

from featurelib.clock import Clock, Duration, Instant
from featurelib.engine.records import ACCEPTED_AT, DELETED, LATE, OFFSET, PARTITION, TIME, Mark, mark_late
from featurelib.errors import CorruptState, StoreUnavailable

_FORMAT = b"1"
# Batches under this size are kept plain: LZ4's frame would cost more than it saves.
_COMPRESS_ABOVE_BYTES = 4_096
_ENTRIES_PER_TRIP = 32
# Before any record: sequences begin at 0.
_UNREAD = Mark(-1)

_APPEND = """
local head, log, dead = KEYS[1], KEYS[2], KEYS[3]
if (redis.call('HGET', head, 'revision') or '0') ~= ARGV[1] then return 0 end
local set = cjson.decode(ARGV[2])
redis.call('HSET', head, 'revision', string.format('%.0f', tonumber(ARGV[1]) + 1), unpack(set))
if ARGV[3] ~= '' then redis.call('HSET', head, 'schema:' .. ARGV[4], ARGV[5]) end
if ARGV[3] ~= '' then
  redis.call('XADD', log, ARGV[3], 'f', '1', 's', ARGV[4], 'n', ARGV[6], 'a', ARGV[7], 'z', ARGV[8], 'b', ARGV[9])
end
local ids, names = tonumber(ARGV[11]), tonumber(ARGV[12])
local first = 15
for i = first, first + ids - 1 do redis.call('ZADD', KEYS[4], ARGV[7], ARGV[i]) end
if ids > 0 then redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', '(' .. ARGV[10]) end
first = first + ids
for i = first, first + names - 1 do redis.call('ZADD', KEYS[5], 0, ARGV[i]) end
if ARGV[14] ~= '' then redis.call('ZREMRANGEBYLEX', KEYS[5], ARGV[13], ARGV[14]) end
for i = first + names, #ARGV do redis.call('XADD', dead, '*', 'letter', ARGV[i]) end
return 1
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
    """What identifies each record (decision 17): one whose id the partition accepted within ``keep_us`` is skipped."""

    ids: Sequence[str]
    keep_us: Duration


class Lateness(NamedTuple):
    """The rules of decision 6, in µs; ``max_lateness_us=None``: nothing is late."""

    max_lateness_us: Duration | None
    max_clock_skew_us: Duration


class DeadLetter(NamedTuple):
    """A record that could not be accepted, as it came, and why.

    ``sequence`` or ``name`` is its place in the source stream: a letter the partition already holds is not kept twice.
    """

    record: Mapping[str, Any]
    reason: str
    field: str
    message: str
    sequence: int | None = None
    name: str = ""


class StoredDeadLetter(NamedTuple):
    """A dead letter read back; ``id`` names it within its partition."""

    id: str
    partition: int
    letter: DeadLetter


class Appended(NamedTuple):
    """What one append did."""

    accepted: int
    duplicates: int
    late: int
    next_offset: int


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

    def key(self, part: str) -> str:
        return _key(self.dataset, self.partition, part)


class _Append(NamedTuple):
    """What is written: only what the partition does not hold."""

    records: pa.Table
    dead: Sequence[DeadLetter]
    ids: list[str]
    names: list[str]


class Log:
    """Appends to and reads from the log partitions of datasets. Safe to share between threads."""

    def __init__(self, redis_url: str, clock: Clock) -> None:
        self._redis = redis.Redis.from_url(redis_url)
        self._append = self._redis.register_script(_APPEND)
        self._clock = clock
        self._schemas: dict[tuple[str, str], pa.Schema] = {}

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    def create(self, dataset: str, partitions: int) -> int:
        """Fix the number of log partitions of a dataset, once and for ever; returns the number in force."""
        with _unavailable():
            self._redis.set(_partitions_key(dataset), partitions, nx=True)
        return self.partitions(dataset)

    def partitions(self, dataset: str) -> int:
        """How many log partitions a dataset has; 0 when it has not been created."""
        with _unavailable():
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

        Raises:
            StoreUnavailable: nothing is known to be written; append again, rows already held are skipped.
        """
        request = _Request(dataset, partition, records, lateness, identity, dead, cursor, event_ids)
        while True:
            head = self.head(dataset, partition)
            # Read after the head: the append is refused should another writer have added some since.
            what = self._unheld(request, head)
            duplicates = len(records) - len(what.records)
            if identity is not None and not (len(what.records) or what.dead or _moves(identity, head)):
                return Appended(0, duplicates, 0, head.next_offset)
            appended = self._try_append(request, head, what)
            if appended is not None:
                return appended._replace(duplicates=duplicates)

    def head(self, dataset: str, partition: int) -> Head:
        """The state of one partition."""
        with _unavailable():
            fields = cast("dict[bytes, bytes]", self._redis.hgetall(_key(dataset, partition, "head")))
        return _head(fields)

    def heads(self, dataset: str, partitions: int) -> list[Head]:
        """The state of every partition of a dataset, in one round trip."""
        with _unavailable():
            pipe = self._redis.pipeline(transaction=False)
            for partition in range(partitions):
                pipe.hgetall(_key(dataset, partition, "head"))
            return [_head(fields) for fields in pipe.execute()]

    def read(self, dataset: str, partition: int, offset: int, max_rows: int) -> pa.Table | None:
        """Records from ``offset`` on, at most ``max_rows``, with system columns; ``None`` when there are none yet."""
        key = _key(dataset, partition, "log")
        with _unavailable():
            pipe = self._redis.pipeline(transaction=False)
            # The entry that holds `offset`, then those after it.
            pipe.xrevrange(key, max=f"{offset + 1}-0", count=1)
            pipe.xrange(key, min=f"{offset + 2}-0", count=_ENTRIES_PER_TRIP)
            holding, following = pipe.execute()
        tables: list[pa.Table] = []
        rows = 0
        for entry_id, fields in [*holding, *following]:
            base, count = int(entry_id.split(b"-")[0]) - 1, int(fields[b"n"])
            if base + count <= offset + rows:
                continue
            if tables and base != offset + rows:
                break  # trimmed between the two commands: what follows is not what comes next
            table = self._decode(dataset, partition, base, fields).slice(max(0, offset - base))
            tables.append(table.slice(0, max_rows - rows))
            rows += len(tables[-1])
            if rows >= max_rows:
                break
        return pa.concat_tables(tables, promote_options="default") if tables else None

    def first_offset(self, dataset: str, partition: int) -> int:
        """The oldest offset the hot log still holds; the next offset when it is empty."""
        with _unavailable():
            oldest = cast("list[Any]", self._redis.xrange(_key(dataset, partition, "log"), count=1))
        return int(oldest[0][0].split(b"-")[0]) - 1 if oldest else self.head(dataset, partition).next_offset

    def wait(self, positions: Mapping[tuple[str, int], int], timeout_ms: int) -> bool:
        """Block until any ``(dataset, partition)`` holds a record at or after its offset; False on time-out."""
        streams = {_key(dataset, part, "log"): f"{offset}-0" for (dataset, part), offset in positions.items()}
        # XREAD spans slots: on a Redis Cluster each partition needs a wait of its own.
        with _unavailable():
            return bool(self._redis.xread(cast("Any", streams), count=1, block=timeout_ms))

    def dead_letters(self, dataset: str, partitions: int, limit: int = 100) -> list[StoredDeadLetter]:
        """The newest dead letters of a dataset, newest first within each partition."""
        with _unavailable():
            pipe = self._redis.pipeline(transaction=False)
            for partition in range(partitions):
                pipe.xrevrange(_key(dataset, partition, "dead"), count=limit)
            replies = pipe.execute()
        return [
            StoredDeadLetter(entry_id.decode(), partition, DeadLetter(**json.loads(fields[b"letter"])))
            for partition, entries in enumerate(replies)
            for entry_id, fields in entries
        ]

    def trim(self, dataset: str, partition: int, below_offset: int) -> None:
        """Forget entries that lie wholly below an offset. Only what the archive holds may be trimmed."""
        key = _key(dataset, partition, "log")
        with _unavailable():
            holding = cast("list[Any]", self._redis.xrevrange(key, max=f"{below_offset + 1}-0", count=1))
            if holding:
                self._redis.xtrim(key, minid=holding[0][0], approximate=False)

    def _unheld(self, request: _Request, head: Head) -> _Append:
        """What of an append the partition does not hold."""
        records, dead, identity, event_ids = request.records, request.dead, request.identity, request.event_ids
        rows, ids, names = np.arange(len(records)), [], []
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
        if event_ids is not None:
            mine = [event_ids.ids[row] for row in rows.tolist()]
            fresh = self._fresh(request.key("ids"), mine)
            rows, ids = rows[fresh], [mine[place] for place in fresh]
        return _Append(records if len(rows) == len(records) else records.take(rows), dead, ids, names)

    def _fresh(self, key: str, members: Sequence[str]) -> list[int]:
        """Places of the first of each member that a sorted set does not hold."""
        if not members:
            return []
        with _unavailable():
            held = cast("list[Any]", self._redis.zmscore(key, list(members)))
        first: dict[str, int] = {}
        for place, (member, score) in enumerate(zip(members, held, strict=True)):
            if score is None:
                first.setdefault(member, place)
        return list(first.values())

    def _try_append(self, request: _Request, head: Head, what: _Append) -> Appended | None:
        records, lateness, identity = what.records, request.lateness, request.identity
        keep_us = request.event_ids.keep_us if request.event_ids else 0
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
            *what.ids,
            *what.names,
            *(json.dumps(letter._asdict(), default=str) for letter in what.dead),
        ]
        keys = [request.key(part) for part in ("head", "log", "dead", "ids", "names")]
        with _unavailable():
            written = self._append(keys=keys, args=cast("Any", arguments))
        return Appended(len(records), 0, late_count, following) if written else None

    def _decode(self, dataset: str, partition: int, base: int, fields: Mapping[bytes, bytes]) -> pa.Table:
        if fields[b"f"] != _FORMAT:
            message = (
                f"log entry {base} of {dataset}/{partition} has format {fields[b'f']!r}; this version reads {_FORMAT!r}"
            )
            raise CorruptState(message)
        schema = self._schema(dataset, partition, fields[b"s"].decode())
        plain_bytes, payload = int(fields[b"z"]), pa.py_buffer(fields[b"b"])
        plain = pa.decompress(payload, plain_bytes, codec="lz4") if plain_bytes else payload
        batch = pa.ipc.read_record_batch(plain, schema)
        count = batch.num_rows
        system = {
            ACCEPTED_AT: pa.array(np.full(count, int(fields[b"a"]), dtype=np.int64)),
            PARTITION: pa.array(np.full(count, partition, dtype=np.int32)),
            OFFSET: pa.array(np.arange(base, base + count, dtype=np.int64)),
        }
        table = pa.Table.from_batches([batch])
        if DELETED not in table.column_names:
            system[DELETED] = pa.nulls(count, pa.bool_())
        for name, column in system.items():
            table = table.append_column(name, column)
        return table

    def _schema(self, dataset: str, partition: int, fingerprint: str) -> pa.Schema:
        known = self._schemas.get((dataset, fingerprint))
        if known is None:
            with _unavailable():
                stored = self._redis.hget(_key(dataset, partition, "head"), f"schema:{fingerprint}")
            if stored is None:
                message = f"{dataset}/{partition} names schema {fingerprint}, which its head does not hold"
                raise CorruptState(message)
            known = pa.ipc.read_schema(pa.py_buffer(cast("bytes", stored)))
            self._schemas[(dataset, fingerprint)] = known
        return known


def _key(dataset: str, partition: int, part: str) -> str:
    return f"{{{dataset}:{partition}}}:{part}"


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


@contextmanager
def _unavailable() -> Iterator[None]:
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
