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

from featurelib.clock import DAY
from featurelib.definitions import Cdc, DatasetDef, SourceDef, ref
from featurelib.engine.cdc import Admitted, admit, unwrap
from featurelib.engine.coerce import RawRecords, Rejected
from featurelib.engine.drift import Drift, look
from featurelib.engine.expect import Violation, evaluate
from featurelib.engine.keys import KEY_GROUPS, groups_of_column
from featurelib.engine.records import DELETED
from featurelib.errors import MaybeTaken, StoreUnavailable
from featurelib.settings import IngestSettings
from featurelib.stores.dead_letters import DeadLetter, LetterId, StoredDeadLetter, Verdict
from featurelib.stores.log import DEAD_LETTERS_KEPT, KEEP_SENT_US, Appended, EventIds, Identity, Lateness, Log
from featurelib.stores.shapes import Shapes

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


class Request(NamedTuple):
    """Where records sent over HTTP come from. ``key`` identifies the request, empty where nothing does."""

    origin: str
    key: str = ""


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
        self, events: Sequence[Mapping[str, Any]], request: Request | None = None, malformed: Sequence[DeadLetter] = ()
    ) -> Taken:
        """Append records that no source numbers. Without a key in the request the same event sent twice counts twice.

        Args:
            events: the records.
            request: what they came with.
            malformed: what stood between them and is no record.

        Raises:
            MaybeTaken: there is no key, and some partitions may hold their share.
            LogFull: nothing was taken.
            StoreUnavailable: there is a key: send the records again.
        """
        self._log.require_room()
        origin, key = request or Request("")
        admitted = admit(events, self._dataset, self._cdc)
        dead = [
            DeadLetter(_record(r.record), r.reason, r.field, r.message, event=_event(key, r.row), origin=origin)
            for r in admitted.rejected
        ]
        dead += [
            letter._replace(event=_event(key, len(events) + place), origin=origin)
            for place, letter in enumerate(malformed)
        ]
        sent = [_event(key, row) for row in admitted.kept.tolist()] if key else None
        done: list[Appended] = []
        try:
            self._spread(admitted, sent, dead, done)
        except StoreUnavailable as error:
            if key:
                raise
            text = (
                f"{error}; some of the {len(events)} records may have been taken, and sent again would count twice; "
                "with an Idempotency-Key they would not"
            )
            raise MaybeTaken(text) from error
        return self._taken(done, len(dead), admitted, events)

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
        done: list[Appended] = []
        self._spread(admitted, [each.letter.event or f"letter:{each.letter_id}" for each in again], [], done)
        self._log.dead.delete(ref(self._dataset), [each.letter_id for each in again])
        failed += [
            (readable[bad.row][0].letter_id, Verdict(bad.reason, bad.field, bad.message)) for bad in admitted.rejected
        ]
        self._log.dead.restate(ref(self._dataset), dict(failed))
        accepted = sum(part.accepted for part in done)
        return Replayed(accepted, len(again) - accepted, sum(part.late for part in done), failed)

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

    def _spread(
        self, admitted: Admitted, sent: Sequence[str] | None, dead: Sequence[DeadLetter], done: list[Appended]
    ) -> None:
        """Append records that no source numbers, adding what each partition did to ``done``."""
        table = self._table(admitted)
        for part, mine in enumerate(self._shares(admitted.table)):
            letters = dead if part == 0 else []
            if letters or mine.any():
                ids = (
                    None
                    if sent is None
                    else EventIds([sent[row] for row in np.flatnonzero(mine).tolist()], KEEP_SENT_US)
                )
                done.append(self._append(table.filter(pa.array(mine)), part, None, letters, None, ids))

    def _taken(self, done: Sequence[Appended], dead: int, admitted: Admitted, records: RawRecords) -> Taken:
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
            drift=self._drift(shown),
            erased=sum(part.erased for part in done),
        )

    def _drift(self, records: RawRecords) -> list[Drift]:
        if self._shapes is None:
            return []
        try:
            return self._shapes.observe(look(records), self._dataset)
        except StoreUnavailable:
            return []  # the records are taken; what is not told of now is told of with a later batch

    def _table(self, admitted: Admitted) -> pa.Table:
        if self._cdc == "append":
            return admitted.table
        return admitted.table.append_column(DELETED, pa.array(admitted.deleted))

    def _shares(self, records: pa.Table) -> list[npt.NDArray[np.bool_]]:
        owners = groups_of_column(records[self._dataset.key.name]) * self._partitions // KEY_GROUPS
        return [owners == part for part in range(self._partitions)]

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


def _share(identity: Identity, rows: npt.NDArray[np.int64]) -> Identity:
    """The identity of some of the rows; it covers as much of the stream."""
    if identity.sequence is not None:
        return identity._replace(sequence=identity.sequence[rows])
    return identity._replace(names=[identity.names[row] for row in rows.tolist()])


def request_key(key: str) -> str:
    """What identifies a request by the key it was sent with; no key: nothing does."""
    return f"key:{hashlib.sha256(key.encode()).hexdigest()[:32]}" if key else ""


def _event(key: str, row: int) -> str:
    return f"{key}:{row}" if key else ""


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
