"""All records of a dataset: what is archived, and the log's tail after it, cut at one position per partition."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import reduce
from itertools import chain
from operator import and_
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from featurelib.clock import Instant
from featurelib.definitions import DatasetDef, ref
from featurelib.engine.keys import groups_of_column, key_texts
from featurelib.engine.records import ERASED, OFFSET, ORDER, in_order, record_schema
from featurelib.errors import StoreUnavailable
from featurelib.stores.archive import Archive, key_conditions, time_conditions, with_schema
from featurelib.stores.log import Log

_TAIL_ROWS = 65_536
# Of the tails of all logs together.
_KEPT_BYTES = 64 << 20
# Each attempt that fails means the archiver moved and trimmed meanwhile; it looks every few seconds.
_ATTEMPTS = 5


class _Selection(NamedTuple):
    keys: Sequence[str] | None
    groups: Sequence[int] | None
    since: Instant | None
    until: Instant | None


class Archived(NamedTuple):
    """Records of one log partition that the archive holds: all of ``first`` to ``end``, by ascending offset.

    There are fewer rows than offsets where some were erased.
    """

    first: int
    end: int
    records: pa.Table

    def from_offset(self, offset: int) -> pa.Table:
        """The records at and after an offset."""
        return self.records.slice(int(np.searchsorted(self.records[OFFSET].to_numpy(), offset)))


class History:
    """Reads archive and log as one, while the archiver moves records from one to the other.

    Order of reads: first the cut (where to stop), then the erasures, then an archive snapshot, then the log from
    exactly the offset where that snapshot ends. Snapshot rows and snapshot offset come from one table version, so no
    record is in both parts. A record leaves the log only once a committed archive version holds it: if the log no
    longer reaches back to the snapshot's end, the snapshot is old, and the read begins again with a newer one. So none
    is missing.
    An erasure is forgotten only once neither archive nor log holds what it erased: one that is not found any more
    needs no applying.
    """

    def __init__(self, archive: Archive, log: Log) -> None:
        self._archive = archive
        self._log = log
        self._tails = _Tails()

    def read(  # noqa: PLR0913  # each restricts what is read
        self,
        dataset: DatasetDef,
        partitions: int,
        *,
        keys: Sequence[str] | None = None,
        groups: Sequence[int] | None = None,
        since: Instant | None = None,
        until: Instant | None = None,
        cut: Mapping[int, int] | None = None,
        columns: Collection[str] | None = None,
        ordered: bool = True,
    ) -> pa.Table:
        """Records in total order (decision 8), with system columns.

        Of a key that was erased below the cut, what lies below its tombstone is left out, as if it had never been.

        Args:
            dataset: whose records.
            partitions: number of log partitions.
            keys: key texts to keep; ``None``: all.
            groups: key groups to keep; ``None``: all.
            since: earliest event time, included.
            until: latest event time, included.
            cut: per log partition the offset at which to stop, partitions not named are left out; ``None``: everything
                appended before this call.
            columns: those wanted, the system's among them; ``None``: all. The dataset's key comes in any case.
            ordered: False leaves them as they come, which for millions of records takes half the time.

        Raises:
            StoreUnavailable: log or archive does not answer.
        """
        stop = dict(cut) if cut is not None else self._ends(dataset, partitions)
        wanted = None if columns is None else {*columns, dataset.key.name, OFFSET, ERASED, *(ORDER if ordered else ())}
        selection = _Selection(keys, groups, since, until)
        erased = self._erased(dataset, partitions, stop)
        for _ in range(_ATTEMPTS):
            snapshot = self._archive.snapshot(dataset)
            start = {part: snapshot.archived_offset(part) for part in stop}
            tail = self._tail(dataset, start, stop, selection)
            if tail is not None:
                old = snapshot.read(keys=keys, groups=groups, since=since, until=until, below=stop, columns=wanted)
                found = pa.concat_tables([old, *(piece.select(old.column_names) for piece in tail)])
                found = without_erased(dataset, found, erased)
                return in_order(found) if ordered else found
        raise StoreUnavailable(f"the log of {ref(dataset)} is trimmed faster than its archive can be read")

    def batches(
        self,
        dataset: DatasetDef,
        *,
        cut: Mapping[int, int],
        groups: Sequence[int] | None = None,
        since: Instant | None = None,
        until: Instant | None = None,
        columns: Collection[str] | None = None,
    ) -> Iterator[pa.Table]:
        """Like :meth:`read`, a piece at a time and in no order, so that memory does not grow with what there is.

        Args:
            dataset: whose records.
            cut: per log partition the offset at which to stop; partitions not named are left out.
            groups: key groups to keep; ``None``: all.
            since: earliest event time, included.
            until: latest event time, included.
            columns: those wanted, the system's among them; ``None``: all. The dataset's key comes in any case.

        Raises:
            StoreUnavailable: log or archive does not answer; what was given so far is not to be relied on.
        """
        partitions = max(cut, default=-1) + 1
        selection = _Selection(None, groups, since, until)
        wanted = None if columns is None else {*columns, dataset.key.name, OFFSET, ERASED}
        erased = self._erased(dataset, partitions, cut)
        for _ in range(_ATTEMPTS):
            snapshot = self._archive.snapshot(dataset)
            # The log first: once a piece was given there is no beginning again.
            tail = self._tail(dataset, {part: snapshot.archived_offset(part) for part in cut}, cut, selection)
            if tail is None:
                continue
            pieces = snapshot.batches(groups=groups, since=since, until=until, below=cut, columns=wanted)
            for piece in chain(tail, pieces):
                mine = piece if wanted is None else piece.select([n for n in piece.column_names if n in wanted])
                yield without_erased(dataset, mine, erased)
            return
        raise StoreUnavailable(f"the log of {ref(dataset)} is trimmed faster than its archive can be read")

    def has_before(self, dataset: DatasetDef, cut: Mapping[int, int], instant: Instant) -> bool:
        """Whether any record below a cut is dated before an instant; erased ones may count.

        Raises:
            StoreUnavailable: log or archive does not answer.
        """
        return self.count(dataset, cut, until=instant - 1)[0] > 0

    def count(
        self, dataset: DatasetDef, cut: Mapping[int, int], since: Instant | None = None, until: Instant | None = None
    ) -> tuple[int, int]:
        """How many records lie below a cut and within both instants, erased ones included, and the archive's bytes.

        Raises:
            StoreUnavailable: log or archive does not answer.
        """
        for _ in range(_ATTEMPTS):
            snapshot = self._archive.snapshot(dataset)
            start = {part: snapshot.archived_offset(part) for part in cut}
            tail = self._tail(dataset, start, cut, _Selection(None, None, since, until))
            if tail is not None:
                rows = snapshot.count(since=since, until=until, below=cut) + sum(map(len, tail))
                return rows, snapshot.size_bytes(since, until)
        raise StoreUnavailable(f"the log of {ref(dataset)} is trimmed faster than its archive can be read")

    def archived(self, dataset: DatasetDef, partition: int, offset: int, max_rows: int) -> Archived:
        """What the archive holds of one log partition from ``offset`` on, at most ``max_rows`` offsets of it.

        Called by who missed the offset in the log: the snapshot is opened after that, so it holds what was trimmed.

        Raises:
            StoreUnavailable: the archive does not answer.
        """
        snapshot = self._archive.snapshot(dataset)
        end = min(snapshot.archived_offset(partition), offset + max_rows)
        return Archived(offset, end, snapshot.read_offsets(partition, offset, end))

    def _erased(self, dataset: DatasetDef, partitions: int, stop: Mapping[int, int]) -> dict[str, int]:
        found = self._log.tombstones(ref(dataset), partitions)
        return {each.key: each.offset for each in found if each.offset < stop.get(each.partition, 0)}

    def _ends(self, dataset: DatasetDef, partitions: int) -> dict[int, int]:
        heads = self._log.heads(ref(dataset), partitions)
        return {part: head.next_offset for part, head in enumerate(heads)}

    def _tail(
        self, dataset: DatasetDef, start: Mapping[int, int], stop: Mapping[int, int], selection: _Selection
    ) -> list[pa.Table] | None:
        """Selected log records from ``start`` to ``stop``; ``None`` when the log was trimmed beyond ``start``."""
        found = []
        for part, end in stop.items():
            records = self._tail_of(dataset, part, start[part], end)
            if records is None:
                return None
            if len(records):
                found.append(_select(dataset, records, selection))
        return found

    def _tail_of(self, dataset: DatasetDef, part: int, start: int, end: int) -> pa.Table | None:
        """Log records of a partition, in the dataset's columns; ``None`` when the log was trimmed beyond ``start``."""
        name, schema = ref(dataset), record_schema(dataset)
        held = self._tails.get(name, part, start, end)
        if held is not None and held.schema != schema:
            held = None
        batches = [] if held is None else [held]
        # The last that is held is read again: a server that lost its newest writes has others in their place.
        offset = start if held is None else start + len(held) - 1
        while offset < end:
            batch = self._log.read(name, part, offset, min(end - offset, _TAIL_ROWS))
            if held is not None and (batch is None or not _begins_as_ends(held, with_schema(batch, schema))):
                self._tails.drop(name, part)
                return self._tail_of(dataset, part, start, end)
            if batch is None and self._log.head(name, part).next_offset <= offset:
                break  # the cut lies beyond what was ever appended
            if batch is None or batch[OFFSET][0].as_py() != offset:
                return None
            offset = batch[OFFSET][-1].as_py() + 1
            batches.append(with_schema(batch, schema).slice(0 if held is None else 1))
            held = None
        records = pa.concat_tables(batches).combine_chunks() if batches else schema.empty_table()
        self._tails.keep(name, part, records)
        return records


class _Tails:
    """Log records as they were read last, per partition: of a log that grows only what is new is read again.

    Records never change. What an erasure takes away lies below what the archive holds by the time its tombstone is
    forgotten, and a tail begins there.
    """

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, part: int, start: int, end: int) -> pa.Table | None:
        """Records from ``start`` on, at most those below ``end``; ``None`` when there are none of them."""
        with self._lock:
            held = self._from(name, part, start)
        if held is None or end <= start:
            return None
        return held.slice(0, end - start) if held[OFFSET][0].as_py() == start else None

    def _from(self, name: str, part: int, start: int) -> pa.Table | None:
        """What is kept. Nothing below ``start`` is from now on: it may be erased by then."""
        held = self._held.get((name, part))
        below = 0 if held is None else start - held[OFFSET][0].as_py()
        if held is None or below <= 0:
            return held
        del self._held[name, part]
        if below >= len(held):
            return None
        # Taken, not cut off: a slice would keep all of it in memory.
        held = self._held[name, part] = held.take(np.arange(below, len(held)))
        return held

    def keep(self, name: str, part: int, records: pa.Table) -> None:
        """Keep these instead of what is kept of the partition, unless that goes further."""
        if not len(records) or records.nbytes > _KEPT_BYTES:
            return
        with self._lock:
            held = self._held.pop((name, part), None)
            further = held is not None and held[OFFSET][-1].as_py() > records[OFFSET][-1].as_py()
            self._held[name, part] = held if further else records
            while sum(each.nbytes for each in self._held.values()) > _KEPT_BYTES:
                self._held.popitem(last=False)

    def drop(self, name: str, part: int) -> None:
        """Keep nothing of a partition."""
        with self._lock:
            self._held.pop((name, part), None)


def _begins_as_ends(held: pa.Table, batch: pa.Table) -> bool:
    """Whether a batch begins with the record that is held last."""
    # As text: NaN is no other value than NaN here.
    return str(held.slice(len(held) - 1).to_pylist()) == str(batch.slice(0, 1).to_pylist())


def without_erased(dataset: DatasetDef, records: pa.Table, erased: Mapping[str, int]) -> pa.Table:
    """Records that still count: no tombstones, and of each of these keys only what lies at or above its offset."""
    records = records.filter(pc.invert(pc.fill_null(records[ERASED], False)))
    if not erased or not len(records):
        return records
    # A key's records are all in one log partition, so an offset alone says which of them come before.
    texts = key_texts([pl.Series("key", pl.from_arrow(records[dataset.key.name]))])
    below = texts.replace_strict(erased, default=0, return_dtype=pl.Int64)
    return records.filter(pa.array(records[OFFSET].to_numpy() >= below.to_numpy()))


def _select(dataset: DatasetDef, records: pa.Table, selection: _Selection) -> pa.Table:
    conditions = [*time_conditions(selection.since, selection.until), *key_conditions(dataset, selection.keys)]
    if conditions:
        # By all of them at once, of all records: a filter costs 1.5 ms before its first row.
        records = records.filter(reduce(and_, conditions))
    if selection.groups is None:
        return records
    return records.filter(pa.array(np.isin(groups_of_column(records[dataset.key.name]), list(selection.groups))))
