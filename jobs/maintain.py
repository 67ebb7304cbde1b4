"""The archiver: what the hot log holds on disk goes to the archive, in few commits, once; then the log is trimmed.

Order of each copy: note where the logs end, wait until the server confirms its disk up to there, copy up to there.
So the archive never holds a record that a power loss can still take from the log (its offset would be given again).

Only the archive gates trimming, never a consumer: one that stood still for long reads what it missed from the archive
(jobs/inputs.py). What is young is kept although archived, so that those who keep up never do.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import structlog

from featurelib.clock import DAY, HOUR, SECOND, Clock, Duration, Instant, SystemClock
from featurelib.definitions import DatasetDef, ref
from featurelib.engine.records import OFFSET, record_schema
from featurelib.errors import ArchiveUnavailable, CorruptState, StoreUnavailable
from featurelib.settings import ArchiveSettings, Settings
from featurelib.stores.append_file import AppendFile
from featurelib.stores.archive import Archive, with_schema
from featurelib.stores.audit import Audit
from featurelib.stores.budget import Budget, LogRoom, open_room, server_warnings
from featurelib.stores.fsync import FsyncFence
from featurelib.stores.log import Log
from featurelib.stores.online import OnlineStore
from featurelib.stores.registry import EventRecord, NewEvent, Registry
from jobs.episodes import Episode
from jobs.erase import Eraser

_log = structlog.get_logger(__name__)

# Below the client's socket timeout of 5 s: a slow fsync is `late`, not a lost connection.
_FENCE_TIMEOUT_MS = 3_000
# `appendfsync everysec` may postpone a slow fsync to 2 s; what is older than this is on disk without being asked for.
_EVERYSEC_BOUND: Duration = 3_000_000
_READ_ROWS = 65_536
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
_PRUNE_EVERY_US = HOUR

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
        gather_us: Duration = 0,
    ) -> None:
        """Take what to copy from and to.

        Args:
            datasets: whose logs.
            log: where they are.
            archive: where they go.
            fence: says what the log's server has on disk.
            clock: for ``gather_us``.
            batch_rows: most rows of one commit.
            gather_us: least time between two commits of a dataset, while fewer records wait than a quarter of such a
                batch, and all that could be copied was.
        """
        self._datasets = tuple(datasets)
        self._log = log
        self._archive = archive
        self._durable = _Durable(fence, clock)
        self._clock = clock
        self._batch_rows = batch_rows
        self._gather_us = gather_us
        self._committed: dict[str, Instant] = {}

    def step(self, *, at_once: bool = False) -> CopyReport:
        """Copy at most ``batch_rows`` records of every dataset; ``at_once`` those, too, that may gather longer.

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
                copied, behind = self._copy(dataset, ends, durable, at_once=at_once)
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

    def _copy(self, dataset: DatasetDef, ends: Ends, durable: Ends, *, at_once: bool) -> tuple[int, int]:
        """Records copied and records left."""
        name = ref(dataset)
        mine = {part: end for (of, part), end in ends.items() if of == name}
        snapshot = self._archive.snapshot(dataset)
        start = {part: snapshot.archived_offset(part) for part in mine}
        self._refuse_lost_log(dataset, start, mine)
        behind = sum(max(0, end - start[part]) for part, end in mine.items())
        if not behind or not (at_once or self._have_gathered(name, behind)):
            return 0, behind
        stop = {part: durable.get((name, part), 0) for part in mine}
        records = self._read(dataset, start, stop)
        copied = self._archive.append(dataset, records) if len(records) else 0
        # Of a busy partition a part may be left, which has waited long enough.
        if copied and copied >= sum(max(0, stop[part] - start[part]) for part in mine):
            self._committed[name] = self._clock.now()
        return copied, behind - copied

    def _have_gathered(self, name: str, rows: int) -> bool:
        last = self._committed.get(name)
        return last is None or 4 * rows >= self._batch_rows or _due(last, self._gather_us, self._clock.now())

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


class LogTrimming:
    """Forgets what the hot log no longer needs: what is archived, and older than ``keep_us`` by accepted-at."""

    def __init__(
        self, datasets: Sequence[DatasetDef], log: Log, archive: Archive, *, keep_us: Duration, clock: Clock
    ) -> None:
        self._datasets = tuple(datasets)
        self._log = log
        self._archive = archive
        self._keep_us = keep_us
        self._clock = clock
        self._ends: dict[tuple[str, int], deque[tuple[Instant, int]]] = {}
        self._trimmed: Ends = {}

    def step(self, *, everything: bool) -> int:
        """Trim what may go; with ``everything`` all that is archived, however young. Returns how many offsets went.

        Raises:
            StoreUnavailable: log or archive does not answer.
        """
        gone = 0
        for dataset in self._datasets:
            old = self._old(dataset)
            if not everything and all(end <= self._trimmed.get((ref(dataset), part), 0) for part, end in old.items()):
                continue
            # Opened now: what this snapshot ends with is committed, so whoever misses it in the log will find it.
            snapshot = self._archive.snapshot(dataset)
            for part, end in old.items():
                archived = snapshot.archived_offset(part)
                gone += self._trim(dataset, part, archived if everything else min(archived, end))
        return gone

    def _trim(self, dataset: DatasetDef, part: int, below: int) -> int:
        before = self._trimmed.get((ref(dataset), part), 0)
        if below <= before:
            return 0
        self._log.trim(ref(dataset), part, below)
        self._trimmed[ref(dataset), part] = below
        return below - before

    def _old(self, dataset: DatasetDef) -> dict[int, int]:
        """Per partition the offset below which everything was accepted long ago."""
        now = self._clock.now()
        old = {}
        for part, head in enumerate(self._log.heads(ref(dataset), self._log.partitions(ref(dataset)))):
            ends = self._ends.setdefault((ref(dataset), part), deque([(0, 0)]))
            if head.next_offset > ends[-1][1]:
                # Accepted-at never falls within a partition: the newest record's is the latest of all below the end.
                ends.append((head.accepted_at_us, head.next_offset))
            while len(ends) > 1 and ends[1][0] <= now - self._keep_us:
                ends.popleft()
            old[part] = ends[0][1]
        return old


class Upkeep:
    """On a schedule: merges small files of the archive, deletes those of forgotten versions, forgets old query runs."""

    def __init__(
        self, datasets: Sequence[DatasetDef], archive: Archive, audit: Audit, *, settings: Settings, clock: Clock
    ) -> None:
        self._datasets = tuple(datasets)
        self._archive = archive
        self._audit = audit
        self._settings: ArchiveSettings = settings.archive
        self._runs_kept_us = settings.registry.query_runs_days * DAY
        self._clock = clock
        now = clock.now()
        self._compacted: dict[str, Instant] = {ref(dataset): now for dataset in datasets}
        self._vacuumed: dict[str, Instant] = {}
        self._pruned: Instant | None = None

    def step(self) -> bool:
        """Do one thing that is due, the longest overdue first; False when nothing is.

        Raises:
            StoreUnavailable: the archive does not answer; it stays due.
        """
        now = self._clock.now()
        if self._pruned is None or _due(self._pruned, _PRUNE_EVERY_US, now):
            self._pruned = now
            self._prune(now)
            return True
        for dataset in sorted(self._datasets, key=lambda dataset: self._compacted[ref(dataset)]):
            if _due(self._compacted[ref(dataset)], self._settings.compact_every_s * SECOND, now):
                self._archive.compact(dataset)
                self._compacted[ref(dataset)] = now
                self._vacuum(dataset, now)
                return True
        return False

    def _prune(self, now: Instant) -> None:
        try:
            self._audit.forget_before(now - self._runs_kept_us)
        except StoreUnavailable as error:  # the archive copy does not wait for the registry
            _log.warning("query_runs_not_pruned", detail=str(error))

    def _vacuum(self, dataset: DatasetDef, now: Instant) -> None:
        done = self._vacuumed.get(ref(dataset))
        if done is None or _due(done, self._settings.vacuum_every_s * SECOND, now):
            self._archive.vacuum(dataset, self._settings.history_hours)
            self._vacuumed[ref(dataset)] = now


def _due(last: Instant, every_us: Duration, now: Instant) -> bool:
    # A clock that was set back makes it due at once rather than not for as long as it was set back.
    return not last <= now < last + every_us


class ArchiveTask:
    """Copy, trimming and upkeep as a task, for all datasets that have a log."""

    def __init__(self, datasets: Sequence[DatasetDef], settings: Settings) -> None:
        clock = SystemClock()
        url = settings.online.redis_url.get_secret_value()
        archive = Archive(settings.archive_url)
        self._url, self._online = url, settings.online
        self._log = Log(url, clock)
        self._fence = FsyncFence(url)
        self._registry = Registry(settings.registry_url, clock)
        self._interval_s = self._pause_s = settings.archive.interval_ms / 1_000
        self._room: LogRoom = open_room(url, Budget.of(settings.online), clock)
        self._copy = ArchiveCopy(
            datasets,
            self._log,
            archive,
            fence=self._fence,
            clock=clock,
            batch_rows=settings.archive.batch_rows,
            gather_us=settings.archive.gather_ms * 1_000,
        )
        keep_us = settings.online.hot_log_ms * 1_000
        self._trimming = LogTrimming(datasets, self._log, archive, keep_us=keep_us, clock=clock)
        self._upkeep = Upkeep(datasets, archive, Audit(self._registry.database), settings=settings, clock=clock)
        self._store, self._append_file = OnlineStore(url), AppendFile(url)
        self._eraser = Eraser(self._registry, self._log, self._store, archive, self._append_file, clock=clock)
        self._outage = Episode(event_type="archive_unavailable", severity="error", subject="archive", report=self._say)
        self._full = Episode(event_type="log_full", severity="error", subject="log", report=self._say)
        self._batch_rows = settings.archive.batch_rows
        self._rows = self._commits = 0
        self._lag: dict[str, int] = {}

    def start(self) -> None:
        """Nothing to claim: the archive itself says where to go on, and refuses a second writer.

        What was told of before a restart, and is not over, is not told of again.
        """
        for episode in (self._outage, self._full):
            episode.lasts = any(event.severity != "info" for event in self._told(episode.event_type)[:1])
        said = {event.message for event in self._told("online_store_setup")}
        for warning in server_warnings(self._url, self._online):
            if warning not in said:
                self._say(_setup_event(warning))

    def step(self) -> bool:
        """Copy one batch and trim; False when the interval may pass.

        An archive that cannot be written is waited for here, longer each time: what is accepted meanwhile stays in
        the log, until that is at its budget and takes no more.
        """
        try:
            # What is not archived can neither be trimmed nor erased.
            done = self._copy.step(at_once=self._room.usage().log_is_over or self._eraser.waits)
            self._trimming.step(everything=self._room.usage().log_is_over)
            # Room in the log comes first: an archive that has much to catch up with does nothing else.
            behind = any(rows >= self._batch_rows for rows in done.lag.values())
            upkept = not behind and (self._erased() or self._upkeep.step())
        except ArchiveUnavailable as error:
            self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
            self._outage.goes_on(f"{error}; accepted records wait in the log")
            self._judge_room()
            return False
        self._pause_s = self._interval_s
        self._outage.is_over("the archive takes records again")
        self._judge_room()
        self._rows, self._commits, self._lag = self._rows + done.rows, self._commits + done.commits, done.lag
        return upkept or (done.rows > 0 and not done.caught_up)

    def wait(self, stopping: threading.Event) -> None:
        """Let records gather: fewer, larger files."""
        stopping.wait(self._pause_s)

    def facts(self) -> Mapping[str, Any]:
        """Rows and commits of this task so far, and records each dataset is behind."""
        return {"rows": self._rows, "commits": self._commits, "lag": dict(self._lag)}

    def close(self) -> None:
        """Close connections."""
        self._log.close()
        self._fence.close()
        self._room.close()
        self._store.close()
        self._append_file.close()
        self._registry.close()

    def _erased(self) -> bool:
        try:
            return self._eraser.step()
        except StoreUnavailable as error:  # it goes on where it stopped; the archive copy does not wait for it
            _log.warning("erasures_wait", detail=str(error))
            return False

    def _judge_room(self) -> None:
        usage = self._room.usage()
        if usage.problem:
            self._full.goes_on(usage.problem)
        elif usage.is_easy:
            self._full.is_over("there is room again; records are taken")

    def _told(self, event_type: str) -> list[EventRecord]:
        """The newest events of a type, newest first."""
        try:
            return self._registry.events(limit=10, event_type=event_type)
        except StoreUnavailable as error:  # it may be told of twice; the archive copy does not wait for the registry
            _log.warning("events_not_read", event_type=event_type, detail=str(error))
            return []

    def _say(self, event: NewEvent) -> None:
        _log.info(event.event_type, subject=event.subject, message=event.message)
        try:
            self._registry.record_event(event)
        except StoreUnavailable as error:
            _log.warning("event_not_recorded", event_type=event.event_type, detail=str(error))


def _setup_event(warning: str) -> NewEvent:
    return NewEvent(
        event_type="online_store_setup", severity="warn", source="archive", subject="online store", message=warning
    )
