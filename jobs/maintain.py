"""The archive copy: what the hot log holds on disk goes to the archive, in few commits, once.

Order of each step: note where the logs end, wait until the server confirms its disk up to there, copy up to there.
So the archive never holds a record that a power loss can still take from the log (its offset would be given again).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import structlog

from featurelib.clock import Clock, Duration, Instant, SystemClock
from featurelib.definitions import DatasetDef, ref
from featurelib.engine.records import OFFSET, record_schema
from featurelib.errors import CorruptState
from featurelib.settings import Settings
from featurelib.stores.archive import Archive, with_schema
from featurelib.stores.fsync import FsyncFence
from featurelib.stores.log import Log

_log = structlog.get_logger(__name__)

# Below the client's socket timeout of 5 s: a slow fsync is `late`, not a lost connection.
_FENCE_TIMEOUT_MS = 3_000
# `appendfsync everysec` may postpone a slow fsync to 2 s; what is older than this is on disk without being asked for.
_EVERYSEC_BOUND: Duration = 3_000_000
_READ_ROWS = 65_536
_COMPACT_EVERY_COMMITS = 64

Ends = dict[tuple[str, int], int]
"""Per dataset ref and partition, the offset where its log ends."""


class CopyReport(NamedTuple):
    """What one step did. ``lag``: per dataset ref, log records that are not archived yet."""

    rows: int
    commits: int
    lag: dict[str, int]

    @property
    def caught_up(self) -> bool:
        """Nothing is left to copy."""
        return not any(self.lag.values())


class ArchiveCopy:
    """Copies the logs of some datasets; a commit per dataset and step takes the records of all its partitions."""

    def __init__(
        self,
        datasets: Sequence[DatasetDef],
        log: Log,
        archive: Archive,
        *,
        fence: FsyncFence,
        clock: Clock,
        batch_rows: int,
    ) -> None:
        self._datasets = tuple(datasets)
        self._log = log
        self._archive = archive
        self._durable = _Durable(fence, clock)
        self._batch_rows = batch_rows
        self._commits: dict[str, int] = {}

    def step(self) -> CopyReport:
        """Copy at most ``batch_rows`` records of every dataset.

        Raises:
            StoreUnavailable: log or archive does not answer; a later step goes on where this one stopped.
            CorruptState: the log of a dataset does not fit its archive; the others were copied.
        """
        ends = self._ends()
        durable = self._durable.part_of(ends)
        rows = commits = 0
        lag, failures = {}, []
        for dataset in self._datasets:
            try:
                copied, behind = self._copy(dataset, ends, durable)
            except CorruptState as error:  # the other datasets go on
                failures.append(str(error))
                continue
            rows, commits = rows + copied, commits + bool(copied)
            lag[ref(dataset)] = behind
        if failures:
            raise CorruptState("; ".join(failures))
        return CopyReport(rows, commits, lag)

    def _ends(self) -> Ends:
        ends = {}
        for dataset in self._datasets:
            for part, head in enumerate(self._log.heads(ref(dataset), self._log.partitions(ref(dataset)))):
                ends[(ref(dataset), part)] = head.next_offset
        return ends

    def _copy(self, dataset: DatasetDef, ends: Ends, durable: Ends) -> tuple[int, int]:
        """Records copied and records left."""
        name = ref(dataset)
        mine = {part: end for (of, part), end in ends.items() if of == name}
        snapshot = self._archive.snapshot(dataset)
        start = {part: snapshot.archived_offset(part) for part in mine}
        self._refuse_lost_log(dataset, start, mine)
        behind = sum(max(0, end - start[part]) for part, end in mine.items())
        if not behind:
            return 0, 0
        records = self._read(dataset, start, {part: durable.get((name, part), 0) for part in mine})
        copied = self._archive.append(dataset, records) if len(records) else 0
        if copied:
            self._after_commit(dataset)
        return copied, behind - copied

    def _refuse_lost_log(self, dataset: DatasetDef, start: Mapping[int, int], ends: Mapping[int, int]) -> None:
        """A log that ends before its archive gives offsets a second time: those records would never be archived."""
        for part, offset in start.items():
            # Another archiver may have moved on since the ends were read: ask again before calling it lost.
            if ends[part] < offset and (end := self._log.head(ref(dataset), part).next_offset) < offset:
                raise CorruptState(f"the log of {ref(dataset)}/{part} ends at {end}, but {offset} records are archived")

    def _read(self, dataset: DatasetDef, start: Mapping[int, int], stop: Mapping[int, int]) -> pa.Table:
        schema = record_schema(dataset)
        # An equal share of the batch for each partition, so that a busy one does not hold back the others.
        share = max(1, self._batch_rows // len(start))
        found = [schema.empty_table()]
        for part, first in start.items():
            offset, end = first, min(stop[part], first + share)
            while offset < end:
                batch = self._log.read(ref(dataset), part, offset, min(end - offset, _READ_ROWS))
                if batch is None:
                    break
                found.append(with_schema(batch, schema))
                offset = batch[OFFSET][-1].as_py() + 1
        return pa.concat_tables(found)

    def _after_commit(self, dataset: DatasetDef) -> None:
        done = self._commits.get(ref(dataset), 0) + 1
        if done >= _COMPACT_EVERY_COMMITS:
            self._archive.compact(dataset)
            self._archive.vacuum(dataset)
            done = 0
        self._commits[ref(dataset)] = done


class _Durable:
    """What part of the logs is on the server's disk."""

    def __init__(self, fence: FsyncFence, clock: Clock) -> None:
        self._fence = fence
        self._clock = clock
        self._seen: deque[tuple[Instant, Ends]] = deque()
        self._confirmed: Ends = {}
        self._said = False

    def part_of(self, ends: Ends) -> Ends:
        """Per log the end that is on disk. Called with ends read before."""
        if ends == self._confirmed:
            return ends
        answer = self._fence.wait(_FENCE_TIMEOUT_MS)
        if answer == "unknown":
            return self._older_than_bound(ends)
        if answer == "yes":
            self._confirmed = ends
        return self._confirmed

    def _older_than_bound(self, ends: Ends) -> Ends:
        if not self._said:
            _log.warning(
                "fsync_unconfirmed", detail="the server has no WAITAOF; records are archived after 3 s instead"
            )
            self._said = True
        now = self._clock.now()
        self._seen.append((now, ends))
        while self._seen and self._seen[0][0] <= now - _EVERYSEC_BOUND:
            self._confirmed = self._seen.popleft()[1]
        return self._confirmed


class ArchiveTask:
    """The archive copy as a task, for all datasets that have a log."""

    def __init__(self, datasets: Sequence[DatasetDef], settings: Settings) -> None:
        url = settings.online.redis_url.get_secret_value()
        self._log = Log(url, SystemClock())
        self._fence = FsyncFence(url)
        self._interval_s = settings.archive.interval_ms / 1_000
        self._copy = ArchiveCopy(
            datasets,
            self._log,
            Archive(settings.archive_url),
            fence=self._fence,
            clock=SystemClock(),
            batch_rows=settings.archive.batch_rows,
        )
        self._rows = self._commits = 0
        self._lag: dict[str, int] = {}

    def start(self) -> None:
        """Nothing to claim: the archive itself says where to go on, and refuses a second writer."""

    def step(self) -> bool:
        """Copy one batch; False when the interval may pass."""
        done = self._copy.step()
        self._rows, self._commits, self._lag = self._rows + done.rows, self._commits + done.commits, done.lag
        return done.rows > 0 and not done.caught_up

    def wait(self, stopping: threading.Event) -> None:
        """Let records gather: fewer, larger files."""
        stopping.wait(self._interval_s)

    def facts(self) -> Mapping[str, Any]:
        """Rows and commits of this task so far, and records each dataset is behind."""
        return {"rows": self._rows, "commits": self._commits, "lag": dict(self._lag)}

    def close(self) -> None:
        """Close connections."""
        self._log.close()
        self._fence.close()
