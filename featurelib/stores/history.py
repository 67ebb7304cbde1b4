"""All records of a dataset: what is archived, and the log's tail after it, cut at one position per partition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from featurelib.clock import Instant
from featurelib.definitions import DatasetDef, ref
from featurelib.engine.keys import groups_of_column
from featurelib.engine.records import OFFSET, in_order, record_schema
from featurelib.errors import StoreUnavailable
from featurelib.stores.archive import Archive, key_conditions, time_conditions, with_schema
from featurelib.stores.log import Log

_TAIL_ROWS = 65_536
# Each attempt that fails means the archiver moved and trimmed meanwhile; it does so every few seconds.
_ATTEMPTS = 5


class _Selection(NamedTuple):
    keys: Sequence[str] | None
    groups: Sequence[int] | None
    since: Instant | None
    until: Instant | None


class History:
    """Reads archive and log as one, while the archiver moves records from one to the other.

    Order of reads: first the cut (where to stop), then an archive snapshot, then the log from exactly the offset
    where that snapshot ends. Snapshot rows and snapshot offset come from one table version, so no record is in both
    parts. A record leaves the log only once a committed archive version holds it: if the log no longer reaches back to
    the snapshot's end, the snapshot is old, and the read begins again with a newer one. So none is missing.
    """

    def __init__(self, archive: Archive, log: Log) -> None:
        self._archive = archive
        self._log = log

    def read(
        self,
        dataset: DatasetDef,
        partitions: int,
        *,
        keys: Sequence[str] | None = None,
        groups: Sequence[int] | None = None,
        since: Instant | None = None,
        until: Instant | None = None,
        cut: Mapping[int, int] | None = None,
    ) -> pa.Table:
        """Records in total order (decision 8), with system columns.

        Args:
            dataset: whose records.
            partitions: number of log partitions.
            keys: key texts to keep; ``None``: all.
            groups: key groups to keep; ``None``: all.
            since: earliest event time, included.
            until: latest event time, included.
            cut: per log partition the offset at which to stop, partitions not named are left out; ``None``: everything
                appended before this call.

        Raises:
            StoreUnavailable: log or archive does not answer.
        """
        stop = dict(cut) if cut is not None else self._ends(dataset, partitions)
        selection = _Selection(keys, groups, since, until)
        for _ in range(_ATTEMPTS):
            snapshot = self._archive.snapshot(dataset)
            start = {part: snapshot.archived_offset(part) for part in stop}
            tail = self._tail(dataset, start, stop, selection)
            if tail is not None:
                old = snapshot.read(keys=keys, groups=groups, since=since, until=until, below=stop)
                return in_order(pa.concat_tables([old, *tail]))
        raise StoreUnavailable(f"the log of {ref(dataset)} is trimmed faster than its archive can be read")

    def _ends(self, dataset: DatasetDef, partitions: int) -> dict[int, int]:
        heads = self._log.heads(ref(dataset), partitions)
        return {part: head.next_offset for part, head in enumerate(heads)}

    def _tail(
        self, dataset: DatasetDef, start: Mapping[int, int], stop: Mapping[int, int], selection: _Selection
    ) -> list[pa.Table] | None:
        """Selected log records from ``start`` to ``stop``; ``None`` when the log was trimmed beyond ``start``."""
        found = []
        for part, end in stop.items():
            offset = start[part]
            while offset < end:
                batch = self._log.read(ref(dataset), part, offset, min(end - offset, _TAIL_ROWS))
                if batch is None and self._log.head(ref(dataset), part).next_offset <= offset:
                    break  # the cut lies beyond what was ever appended
                if batch is None or batch[OFFSET][0].as_py() != offset:
                    return None
                offset = batch[OFFSET][-1].as_py() + 1
                found.append(_select(dataset, batch, selection))
        return found


def _select(dataset: DatasetDef, records: pa.Table, selection: _Selection) -> pa.Table:
    records = with_schema(records, record_schema(dataset))
    for condition in [*time_conditions(selection.since, selection.until), *key_conditions(dataset, selection.keys)]:
        records = records.filter(condition)
    if selection.groups is None:
        return records
    return records.filter(pa.array(np.isin(groups_of_column(records[dataset.key.name]), list(selection.groups))))
