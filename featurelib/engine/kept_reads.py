"""What reads of stored keys keep for the next ones: a key is read far more often than its panes change.

Everything kept of a key stands beside the very bytes it was made from and is used only while the store gives the
same bytes, so a read never shows anything but what is stored. What is kept is bounded in bytes for the whole process.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

from featurelib.clock import Duration
from featurelib.engine.codec import appended_rows, decode_rows
from featurelib.engine.edges import Group
from featurelib.engine.panes import Pane
from featurelib.engine.partials import Row
from featurelib.engine.stretches import Buffered, Plan, Stored, Stretches

KEPT_BYTES = 128 << 20
"""How much is kept at most, by the estimate of :attr:`KeptRead.size`: some 5,000 keys of a busy pipeline."""
# Beside the stored bytes: the objects of a walk, measured at 13 to 15 KB for 4 to 8 accumulators and three windows.
_OVERHEAD = 14 << 10


class _GroupRead:
    """The windows of one group."""

    __slots__ = ("buffered", "plan", "stretches")

    def __init__(self, plan: Plan, stretches: Stretches) -> None:
        self.plan = plan
        self.stretches = stretches
        self.buffered: Buffered | None = None


class KeptRead:
    """The last read of a key: its panes, and the partials of each window.

    Args:
        panes: those that are there, as they are stored.
        windows: how many there are.
        share: the key's own; see :class:`~featurelib.engine.stretches.Stretches`.
    """

    __slots__ = ("_buffer", "_groups", "_share", "_size", "finished", "merged", "panes", "tree")

    def __init__(self, panes: list[tuple[Pane, bytes | None]], windows: int, share: float = 0.0) -> None:
        self.panes = panes
        self._share = share
        self.merged: list[dict[int, Any]] = [{} for _ in range(windows)]
        """Per window, partials by slot."""
        self.finished: dict[str, tuple[Any, Any]] = {}
        """Per output, the partial that was finished last, and its value."""
        self._size = _OVERHEAD + sum(len(data) for _, data in panes if data is not None)
        self.tree: bytes | None = None
        """The stamp of the tree that the panes are of; ``None``: not known to be of any."""
        self._buffer: bytes | None = None
        self._groups: list[_GroupRead | None] = []

    @property
    def size(self) -> int:
        """Bytes it takes, about."""
        return self._size + (len(self._buffer) if self._buffer is not None else 0)

    def walk_to(
        self, groups: Sequence[Group], plans: Sequence[Plan], root: int, stored: Stored, buffer: bytes | None
    ) -> None:
        """Make :attr:`merged` that of a read of these windows, going over the panes where it must.

        Raises:
            PanesMissing: fetch these panes and read again.
            Sealed: some of these rows are not stored any more.
        """
        if len(self._groups) != len(groups):
            self._groups = [None] * len(groups)
        added = self._added(buffer)
        for number, (group, plan) in enumerate(zip(groups, plans, strict=True)):
            read = self._groups[number]
            serves = read is not None and read.plan is plan and not read.stretches.is_due(group)
            moved = read.stretches.moved_to(group) if read is not None and serves else None
            if read is None or moved is None:
                self._groups[number] = None
                read = self._groups[number] = _GroupRead(plan, Stretches(plan, group, root, stored, self._share))
            self._merge(read, group, added, moved=moved is not False)

    def follows(self, groups: Sequence[Group]) -> bool:
        """Whether :meth:`follow_to` gets there without looking at other panes."""
        if len(self._groups) != len(groups):
            return False
        reads = zip(self._groups, groups, strict=True)
        return all(
            read is not None and read.plan.spans == group.spans and read.stretches.follows(group)
            for read, group in reads
        )

    def is_due(self, groups: Sequence[Group]) -> bool:
        """Whether what is kept is about to end, so that a read ahead would be in time."""
        reads = zip(self._groups, groups, strict=False)
        return any(read is not None and read.stretches.is_due(group) for read, group in reads)

    def follow_to(self, groups: Sequence[Group], buffer: bytes | None) -> None:
        """Like :meth:`walk_to`, where it :meth:`follows`."""
        added = self._added(buffer)
        for read, group in zip(self._groups, groups, strict=True):
            assert read is not None
            self._merge(read, group, added, moved=read.stretches.moved_to(group) is True)

    def lasts(self, groups: Sequence[Group]) -> Duration:
        """How much later a read of the same bytes finds the same rows, where all windows move as time does."""
        reads = zip(self._groups, groups, strict=True)
        return min(_lasts(read, group) for read, group in reads if read is not None)

    def _added(self, buffer: bytes | None) -> Sequence[Row] | None:
        """The rows that came to the buffer since the last read; ``None``: it is another."""
        before, self._buffer = self._buffer, buffer
        if buffer == before:
            return ()
        return appended_rows(before, buffer) if before is not None and buffer is not None else None

    def _merge(self, read: _GroupRead, group: Group, added: Sequence[Row] | None, *, moved: bool) -> None:
        buffered = read.buffered
        if buffered is None or added is None or not buffered.same_for(group):
            rows = decode_rows(self._buffer) if self._buffer is not None else []
            read.buffered = buffered = Buffered(read.plan, group, rows)
            moved = True
        elif added:
            got = buffered.extend(group, added)
            if not moved:
                read.plan.add(got, self.merged)
        if moved:
            read.plan.merged(buffered.beside(read.stretches.parts), self.merged)


def _lasts(read: _GroupRead, group: Group) -> Duration:
    assert read.buffered is not None
    return min(read.stretches.lasts(group), read.buffered.lasts(group))


class KeptReads:
    """The newest reads of all pipelines of a process, bounded in bytes.

    Attributes:
        hits: reads that found their panes unchanged.
        misses: the others.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self.most_bytes = most_bytes
        self.hits = 0
        self.misses = 0
        self.size = 0
        self._reads: dict[Any, KeptRead] = {}
        self._lock = Lock()

    def take(self, mark: Any, panes: list[tuple[Pane, bytes | None]], windows: int, share: float = 0.0) -> KeptRead:
        """Take out what is kept of a key, or something empty when its panes are not these."""
        with self._lock:
            kept = self._reads.pop(mark, None)
            if kept is not None:
                self.size -= kept.size
                if kept.panes == panes:
                    self.hits += 1
                    return kept
            self.misses += 1
        return KeptRead(panes, windows, share)

    def look(self, mark: Any) -> KeptRead | None:
        """What is kept of a key, to look at only."""
        return self._reads.get(mark)

    def take_of(self, mark: Any, tree: bytes | None) -> KeptRead | None:
        """Take out what is kept of a key, if it is of the tree with this stamp."""
        with self._lock:
            kept = self._reads.get(mark)
            if kept is None or tree is None or kept.tree != tree:
                return None
            self.size -= kept.size
            return self._reads.pop(mark)

    def drop(self, mark: Any) -> None:
        """Keep nothing of a key: the store knows it no more."""
        with self._lock:
            kept = self._reads.pop(mark, None)
            self.size -= kept.size if kept is not None else 0

    def clear(self) -> None:
        """Keep nothing."""
        with self._lock:
            self._reads.clear()
            self.size = 0

    def put(self, mark: Any, kept: KeptRead) -> None:
        """Keep it as the newest."""
        with self._lock:
            before = self._reads.pop(mark, None)  # another thread's, which read the key at the same time
            self._reads[mark] = kept
            self.size += kept.size - (before.size if before is not None else 0)
            while self.size > self.most_bytes:
                self.size -= self._reads.pop(next(iter(self._reads))).size


KEPT_READS = KeptReads()
"""Of this process."""
