"""The door of a dataset: raw records are typed, judged, spread over log partitions, appended; or dead letters.

Sources and ``POST /api/v1/log`` come through here, so a record means the same whichever way it came.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurelib.clock import DAY, HOUR, Duration, Instant
from featurelib.definitions import Cdc, DatasetDef, SourceDef, ref
from featurelib.engine.cdc import Admitted, admit, unwrap
from featurelib.engine.coerce import RawRecords, Rejected
from featurelib.engine.drift import Drift, Sight, look
from featurelib.engine.expect import Violation, evaluate
from featurelib.engine.json_lines import Came
from featurelib.engine.keys import KEY_GROUPS, groups_of_column
from featurelib.engine.records import DELETED, TIME
from featurelib.errors import MaybeTaken, StoreUnavailable
from featurelib.settings import IngestSettings
from featurelib.stores.dead_letters import DeadLetter, LetterId, StoredDeadLetter, Verdict
from featurelib.stores.log import (
    DEAD_LETTERS_KEPT,
    KEEP_SENT_US,
    Appended,
    EventIds,
    Head,
    Identity,
    Lateness,
    Log,
    Share,
    texts_of,
)
from featurelib.stores.shapes import Shapes
from featurelib.stores.upserts import Version

_MOST_BITS = 4_096
# Writers and readers of JSON recurse, and give up at a few hundred.
_MOST_LEVELS = 100
# How long an event's id is remembered where the dataset has no retention of its own.
_EVENT_IDS_KEPT_US = 30 * DAY


class Taken(NamedTuple):
    """What became of a batch.

    Attributes:
        accepted: records that are in the log now and were not before.
        duplicates: records it held already.
        late: of those accepted.
        dead: rejected and malformed records of the batch.
        rejected: why, for those that were records.
        violations: expectations that too few of the records meet.
        lettered: dead letters that are written now and were not before.
        dropped: older dead letters that made room for them.
        drift: how the columns differ, when part of that has not been told of.
        erased: records refused because their key was erased for good.
        outcomes: what became of each record, in the order they came: one of the codes below; of records that were sent.
    """

    accepted: int
    duplicates: int
    late: int
    dead: int
    rejected: list[Rejected]
    violations: list[Violation]
    lettered: int = 0
    dropped: int = 0
    drift: Sequence[Drift] = ()
    erased: int = 0
    outcomes: npt.NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)


ACCEPTED, DUPLICATE, DEAD_LETTER, ERASED = range(4)
"""What becomes of a record."""


class Request(NamedTuple):
    """Where records sent over HTTP come from.

    ``key`` identifies the request, empty where nothing does. One that is taken in parts says which ``part`` this is,
    and the number of its ``first`` record.
    """

    origin: str
    key: str = ""
    part: int = 0
    first: int = 0

    @property
    def batch(self) -> str:
        """What identifies this part, empty where nothing does."""
        return f"{self.key}/{self.part}" if self.key else ""

    def event(self, row: int) -> str:
        """What identifies a record of this part, empty where nothing does."""
        return f"{self.key}:{self.first + row}" if self.key else ""


class Upserted(NamedTuple):
    """What became of records that upsert.

    ``ends``: per log partition of the dataset that holds one of them, the offset below which all of them lie.
    ``firsts``: per such partition the offset from which those lie that were appended now. ``times``: their event times.
    ``erased``: places of the records that were refused because their key was erased for good.
    """

    dataset: DatasetDef
    taken: Taken
    ends: dict[int, int]
    firsts: dict[int, int]
    times: frozenset[Instant]
    erased: list[int]


class Replayed(NamedTuple):
    """What became of dead letters that were passed through the door again."""

    accepted: int
    duplicates: int
    late: int
    failed: list[tuple[LetterId, Verdict]]


class Intake:
    """Takes the records of one dataset.

    Args:
        log: where they go.
        dataset: the newest version's definition.
        partitions: how many log partitions it has.
        lateness: its source's rules.
        cdc: how its records follow each other.
        shapes: what is known of the columns that came so far; left out, nobody looks for drift.
        dead_kept: dead letters each partition keeps.
    """

    def __init__(
        self,
        log: Log,
        dataset: DatasetDef,
        partitions: int,
        lateness: Lateness,
        cdc: Cdc = "append",
        *,
        shapes: Shapes | None = None,
        dead_kept: int = DEAD_LETTERS_KEPT,
    ) -> None:
        self._log = log
        self._dataset = dataset
        self._partitions = partitions
        self._lateness = lateness
        self._cdc = cdc
        self._shapes = shapes
        self._dead_kept = dead_kept

    def take(self, records: RawRecords, identity: Identity, malformed: Sequence[DeadLetter], cursor: str) -> Taken:
        """Append records of a source stream. Every partition's position moves, also where it gets no record.

        A numbered batch is judged by the expectations whole, since it is taken again only when it was not taken whole.
        Of a named one only what is new is judged: a source may give again, at every poll, what lies above its floor.

        Args:
            records: as they came.
            identity: where each record stands in its source, and how far the stream is read with them.
            malformed: what stood between the records and is none; with its sequence or name.
            cursor: the source's cursor, kept for display.

        Raises:
            LogFull: nothing was taken.
            StoreUnavailable: some partitions may hold their share; take the records again, what is held is skipped.
        """
        if len(records) or malformed:
            self._log.require_room()
        admitted = admit(records, self._dataset, self._cdc)
        dead = _letters(admitted, identity, malformed)
        table, shares = self._table(admitted), self._shares(admitted.table)
        letters_before = self._were_letters(identity, admitted)
        done, fresh = [], []
        for part, share in enumerate(shares):
            mine = share & ~letters_before
            letters = [letter for letter in dead if _place(letter) % self._partitions == part]
            rows = admitted.kept[mine]
            appended = self._append(table.filter(pa.array(mine)), part, _share(identity, rows), letters, cursor)
            done.append(appended)
            fresh.append(rows[appended.rows])
        lettered = sum(part.dead for part in done)
        numbered = identity.sequence is not None
        if not numbered:
            rejected = [bad.row for bad in admitted.rejected] if lettered else []
            records = _chosen(records, np.sort(np.concatenate([*fresh, np.array(rejected, dtype=np.int64)])))
        taken = self._taken(done, len(dead) if numbered else lettered, admitted, records)
        return taken._replace(duplicates=taken.duplicates + int(letters_before.sum()))

    def accept(
        self,
        events: RawRecords,
        request: Request | None = None,
        malformed: Sequence[DeadLetter] = (),
        *,
        heads: Sequence[Head] | None = None,
        came: Came | None = None,
    ) -> Taken:
        """Append records that no source numbers. Without a key in the request the same event sent twice counts twice.

        Args:
            events: the records.
            request: what they came with.
            malformed: what stood between them and is no record.
            heads: of the dataset's partitions, where the caller has looked.
            came: how the records came, where ``events`` no longer shows it.

        Raises:
            MaybeTaken: there is no key, and some partitions may hold their share.
            LogFull: nothing was taken.
            StoreUnavailable: nothing was taken, or there is a key: send the records again.
        """
        self._log.require_room()
        request = request or Request("")
        admitted = _as_it_came(admit(events, self._dataset, self._cdc), came)
        dead = _sent_letters(admitted, malformed, len(events), request)
        heads = heads or self._log.heads(ref(self._dataset), self._partitions)
        shares = self._shared(admitted, dead, request)
        try:
            done = self._log.append_shares(
                ref(self._dataset),
                [share for share, _ in shares],
                heads,
                lateness=self._lateness,
                dead_kept=self._dead_kept,
                key_column=self._dataset.key.name,
            )
        except MaybeTaken as error:
            if request.key:
                raise StoreUnavailable(str(error)) from error
            text = (
                f"{error}; some of the {len(events)} records may have been taken, and sent again would count twice; "
                "with an Idempotency-Key they would not"
            )
            raise MaybeTaken(text) from error
        taken = self._taken(done, len(dead), admitted, events, came and came.sight)
        return taken._replace(outcomes=_outcomes(len(events), admitted, [rows for _, rows in shares], done))

    def _shared(
        self, admitted: Admitted, dead: Sequence[DeadLetter], request: Request
    ) -> list[tuple[Share, npt.NDArray[np.int64]]]:
        """What of a request goes to each partition, and the places its records have there.

        Letters go to the first partition, after all others have theirs; and all of them remember a request with
        letters. So it adds nothing when it is sent again under a definition that has been mended: a letter becomes a
        record by its replay alone, and never twice.
        """
        table, found = self._table(admitted), []
        for part, mine in reversed(list(enumerate(self._places(admitted.table)))):
            if not len(mine) and not (dead and (request.key or part == 0)):
                continue
            records = table if len(mine) == len(table) else table.take(mine)
            letters = dead if part == 0 else ()
            share = Share(part, records, letters, self._event_ids(records), request.batch)
            found.append((share, admitted.kept[mine]))
        return found

    def replay(self, letters: Sequence[StoredDeadLetter]) -> Replayed:
        """Pass dead letters through the door again. What fits is appended once and is a dead letter no more.

        A letter is removed after its record is in the log, where the letter's id is held: whatever is interrupted and
        done again appends nothing twice.

        Raises:
            StoreUnavailable: some may be done; replay them again.
        """
        self._log.require_room()
        readable, failed = [], []
        for stored in sorted(letters, key=lambda each: each.letter_id.order):
            record = _reread(stored)
            if isinstance(record, Verdict):
                failed.append((stored.letter_id, record))
            else:
                readable.append((stored, record))
        admitted = admit([record for _, record in readable], self._dataset, self._cdc)
        again = [readable[row][0] for row in admitted.kept.tolist()]
        sent = [each.letter.event or f"letter:{each.letter_id}" for each in again]
        done = self._spread(admitted, sent)
        self._log.dead.delete(ref(self._dataset), [each.letter_id for each in again])
        failed += [
            (readable[bad.row][0].letter_id, Verdict(bad.reason, bad.field, bad.message)) for bad in admitted.rejected
        ]
        self._log.dead.restate(ref(self._dataset), dict(failed))
        accepted = sum(part.accepted for part in done)
        return Replayed(accepted, len(again) - accepted, sum(part.late for part in done), failed)

    def upsert(
        self,
        events: Sequence[Mapping[str, Any]],
        origin: str,
        refused: Sequence[DeadLetter] = (),
        remember_us: Duration = HOUR,
    ) -> Upserted:
        """Append records told apart by key and event time: what the dataset was told last already is not taken again.

        Another content at the same key and event time is a record of its own, the newer of the two in the total order.
        Of two in one call only the last is appended: the same call again then finds what was said last, and takes none.

        Args:
            events: the records.
            origin: where they come from.
            refused: what stood between them and never fits; a letter is kept once, however often it is sent.
            remember_us: for how long what was said last is known.

        Raises:
            LogFull: nothing was taken.
            StoreUnavailable: send the records again, none is taken twice.
        """
        self._log.require_room()
        whole = admit(events, self._dataset, self._cdc)
        letters = [DeadLetter(_record(r.record), r.reason, r.field, r.message) for r in whole.rejected]
        letters = [_once(letter._replace(origin=origin)) for letter in [*letters, *refused]]
        versions = self._versions(whole)
        last = _last_of_each(versions)
        admitted = whole._replace(table=whole.table.take(last), kept=whole.kept[last], deleted=whole.deleted[last])
        names = self._log.upserts.names(ref(self._dataset), [versions[row] for row in last], 2 * remember_us)
        table, ends, firsts, erased = self._table(admitted), dict[int, int](), dict[int, int](), set[str]()
        done: list[Appended] = []
        for part, mine in enumerate(self._places(admitted.table)):
            dead = letters if part == 0 else []
            if not len(mine) and not dead:
                continue
            sent = EventIds([names[row] for row in mine], remember_us, "upserts")
            done.append(self._append(table.take(mine), part, None, dead, None, sent))
            erased |= {versions[row].key for row in last[mine[done[-1].erased_rows]]}
            if len(mine):
                ends[part] = done[-1].next_offset
                firsts[part] = ends[part] - len(done[-1].rows)
        taken = self._taken(done, len(letters), admitted, events)
        taken = taken._replace(duplicates=taken.duplicates + len(versions) - len(last))
        places = [int(place) for place, each in zip(whole.kept, versions, strict=True) if each.key in erased]
        times = frozenset(each.at for each in versions)
        return Upserted(self._dataset, taken, ends, firsts, times, places)

    def _versions(self, admitted: Admitted) -> list[Version]:
        key, times = texts_of(admitted.table[self._dataset.key.name]), admitted.table[TIME].to_pylist()
        rows = self._table(admitted).to_pylist()
        return [
            Version(text, at, repr(list(row.values())).encode()) for text, at, row in zip(key, times, rows, strict=True)
        ]

    def _were_letters(self, identity: Identity, admitted: Admitted) -> npt.NDArray[np.bool_]:
        """Which admitted records of a named stream are dead letters, or were before they were replayed.

        One that is given again fits when the definition has changed meanwhile. Its name is held where its letter was
        put, which need not be the partition of its key.
        """
        found = np.zeros(len(admitted.kept), dtype=np.bool_)
        if identity.sequence is not None:
            return found
        names = [identity.names[row] for row in admitted.kept.tolist()]
        places = np.array([_place_of(name) % self._partitions for name in names], dtype=np.int64)
        for part, head in enumerate(self._log.heads(ref(self._dataset), self._partitions)):
            mine = np.flatnonzero(places == part)
            if head.records_dead and len(mine):
                theirs = [names[row] for row in mine.tolist()]
                found[mine] = self._log.holds_names(ref(self._dataset), part, identity.stream, theirs)
        return found

    def _spread(self, admitted: Admitted, sent: Sequence[str]) -> list[Appended]:
        """Append records of several requests, each with an id of its own."""
        table = self._table(admitted)
        return [
            self._append(table.take(mine), part, None, [], None, EventIds([sent[row] for row in mine], KEEP_SENT_US))
            for part, mine in enumerate(self._places(admitted.table))
            if len(mine)
        ]

    def _taken(
        self,
        done: Sequence[Appended],
        dead: int,
        admitted: Admitted,
        records: RawRecords,
        sight: Sight | None = None,
    ) -> Taken:
        # Of an envelope rules and columns are those of the row in it; a row that takes its key away has few columns.
        changes = unwrap(records, self._dataset, self._cdc)
        rows = changes.records if self._cdc == "debezium" else records
        shown = _chosen(changes.records, np.flatnonzero(~changes.deleted))
        return Taken(
            accepted=sum(part.accepted for part in done),
            duplicates=sum(part.duplicates for part in done),
            late=sum(part.late for part in done),
            dead=dead,
            rejected=admitted.rejected,
            violations=evaluate(rows, self._dataset),
            lettered=sum(part.dead for part in done),
            dropped=sum(part.dropped for part in done),
            drift=self._drift(sight or look(shown)),
            erased=sum(part.erased for part in done),
        )

    def _drift(self, sight: Sight) -> list[Drift]:
        if self._shapes is None:
            return []
        try:
            return self._shapes.observe(sight, self._dataset)
        except StoreUnavailable:
            return []  # the records are taken; what is not told of now is told of with a later batch

    def _table(self, admitted: Admitted) -> pa.Table:
        if self._cdc == "append":
            return admitted.table
        return admitted.table.append_column(DELETED, pa.array(admitted.deleted))

    def _shares(self, records: pa.Table) -> list[npt.NDArray[np.bool_]]:
        owners = self._owners(records)
        return [owners == part for part in range(self._partitions)]

    def _places(self, records: pa.Table) -> list[npt.NDArray[np.int64]]:
        """The places of the records each partition gets."""
        owners = self._owners(records)
        return [np.flatnonzero(owners == part) for part in range(self._partitions)]

    def _owners(self, records: pa.Table) -> npt.NDArray[np.int64]:
        return groups_of_column(records[self._dataset.key.name]) * self._partitions // KEY_GROUPS

    def _append(
        self,
        records: pa.Table,
        part: int,
        identity: Identity | None,
        dead: Sequence[DeadLetter],
        cursor: str | None,
        sent: EventIds | None = None,
    ) -> Appended:
        return self._log.append(
            ref(self._dataset),
            part,
            records,
            lateness=self._lateness,
            identity=identity,
            dead=dead,
            cursor=cursor,
            event_ids=self._event_ids(records),
            sent=sent,
            dead_kept=self._dead_kept,
            key_column=self._dataset.key.name,
        )

    def _event_ids(self, records: pa.Table) -> EventIds | None:
        column = self._dataset.event_id
        if column is None:
            return None
        keep_us = self._dataset.retention_us or _EVENT_IDS_KEPT_US
        return EventIds([str(value) for value in records[column].to_pylist()], keep_us)


def lateness_of(source: SourceDef | None, settings: IngestSettings) -> Lateness:
    """The lateness rules of a dataset's source; without a source nothing is late."""
    return Lateness(source.max_lateness_us if source else None, settings.max_clock_skew_ms * 1_000)


def _last_of_each(versions: Sequence[Version]) -> npt.NDArray[np.int64]:
    """The places of the last version of each record, in their order."""
    return np.array(sorted({(each.key, each.at): row for row, each in enumerate(versions)}.values()), dtype=np.int64)


def _share(identity: Identity, rows: npt.NDArray[np.int64]) -> Identity:
    """The identity of some of the rows; it covers as much of the stream."""
    if identity.sequence is not None:
        return identity._replace(sequence=identity.sequence[rows])
    return identity._replace(names=[identity.names[row] for row in rows.tolist()])


def request_key(key: str) -> str:
    """What identifies a request by the key it was sent with; no key: nothing does."""
    return f"key:{hashlib.sha256(key.encode()).hexdigest()[:32]}" if key else ""


def _once(letter: DeadLetter) -> DeadLetter:
    """The letter with an id of its content."""
    content = json.dumps([letter.record, letter.reason, letter.field], default=str, sort_keys=True).encode()
    return letter._replace(event=f"refused:{hashlib.sha256(content).hexdigest()[:32]}")


def _sent_letters(
    admitted: Admitted, malformed: Sequence[DeadLetter], count: int, request: Request
) -> list[DeadLetter]:
    """The dead letters of ``count`` records that were sent, and of what stood between them."""
    origin = request.origin
    letters = [
        DeadLetter(_record(r.record), r.reason, r.field, r.message, event=request.event(r.row), origin=origin)
        for r in admitted.rejected
    ]
    return letters + [
        letter._replace(event=request.event(count + place), origin=origin) for place, letter in enumerate(malformed)
    ]


def _as_it_came(admitted: Admitted, came: Came | None) -> Admitted:
    """The same, rejected records as they were sent."""
    if came is None or not admitted.rejected:
        return admitted
    return admitted._replace(rejected=[bad._replace(record=came.record(bad.row)) for bad in admitted.rejected])


def _outcomes(
    count: int, admitted: Admitted, rows: Sequence[npt.NDArray[np.int64]], done: Sequence[Appended]
) -> npt.NDArray[np.uint8]:
    """What became of each of ``count`` records; ``rows`` are the places of each share's."""
    found = np.full(count, DUPLICATE, dtype=np.uint8)
    found[[bad.row for bad in admitted.rejected]] = DEAD_LETTER
    for mine, appended in zip(rows, done, strict=True):
        found[mine[appended.rows]] = ACCEPTED
        found[mine[appended.erased_rows]] = ERASED
    return found


def _chosen(records: RawRecords, rows: npt.NDArray[np.int64]) -> RawRecords:
    """The records at some places, which ascend."""
    if len(rows) == len(records):
        return records
    return records.take(rows) if isinstance(records, pa.Table) else [records[row] for row in rows.tolist()]


def _reread(stored: StoredDeadLetter) -> Any:
    """The record of a dead letter as it came, or why there is none."""
    letter = stored.letter
    if not stored.is_text:
        return letter.record
    text = str(letter.record.get("text", ""))
    with suppress(ValueError, RecursionError):
        record = json.loads(text)
        if isinstance(record, Mapping):
            return record
    return Verdict(letter.reason, letter.field, letter.message)


def _letters(admitted: Admitted, identity: Identity, malformed: Sequence[DeadLetter]) -> list[DeadLetter]:
    letters = list(malformed)
    for row, record, reason, field, message in admitted.rejected:
        sequence = int(identity.sequence[row]) if identity.sequence is not None else None
        name = identity.names[row] if sequence is None else ""
        letters.append(DeadLetter(_record(record), reason, field, message, sequence, name))
    placed = (letter._replace(origin=identity.stream) for letter in letters)
    return sorted(placed, key=lambda letter: (letter.sequence or 0, letter.name))


def _place(letter: DeadLetter) -> int:
    """A number that is the letter's for ever: it says which partition keeps it."""
    return letter.sequence if letter.sequence is not None else _place_of(letter.name)


def _place_of(name: str) -> int:
    return zlib.crc32(name.encode())


def _record(value: Any) -> Mapping[str, Any]:
    """A refused record as a dead letter holds it."""
    storable = _storable(value)
    return storable if isinstance(storable, dict) else {"text": storable}


def _storable(value: Any, level: int = 0) -> Any:
    """The value in a form JSON can spell: a dead letter that cannot be stored would stop its whole stream."""
    if level > _MOST_LEVELS:
        # A mapping, which no column takes: a replay refuses the record again.
        return {"left_out": f"nested more than {_MOST_LEVELS} levels deep"}
    if isinstance(value, Mapping):
        return {str(name): _storable(each, level + 1) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(each, level + 1) for each in value]
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return hex(value)  # Python refuses to write thousands of decimal digits
    return value
