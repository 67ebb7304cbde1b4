"""What a log accepts, in lists and loops: the records that a model says a dataset holds after any faults.

Rows of a feed are numbered from 0 and may be sent any number of times, in pieces and from any point on. Each log
partition takes a row once, gives it the next offset, and decides then whether it is late (decisions 6, 8 and 17).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from featurelib.clock import Duration, Instant
from featurelib.definitions import DatasetDef
from featurelib.engine.keys import key_group, owner_of_group
from featurelib.stores.log import Lateness

Row = dict[str, Any]


class Accepted:
    """The records of one dataset, per log partition in the order of their offsets."""

    def __init__(self, dataset: DatasetDef, partitions: int, lateness: Lateness) -> None:
        self.dataset = dataset
        self.feed: list[Row] = []
        """Every row the source ever had; its number is its place."""
        self.partitions: list[list[Row]] = [[] for _ in range(partitions)]
        self._held = [-1] * partitions
        self._newest: list[Instant | None] = [None] * partitions
        self._accepted_at = [0] * partitions
        self._lateness = lateness

    def resume(self) -> int:
        """The first row that some partition may lack."""
        return min(self._held) + 1

    def send(self, first: int, now: Instant, partitions: Sequence[int]) -> None:
        """The feed's rows from ``first`` on reach some partitions."""
        for part in partitions:
            rows = [
                row
                for number, row in enumerate(self.feed)
                if number >= max(first, self._held[part] + 1) and self._owner(row) == part
            ]
            if self._held[part] < len(self.feed) - 1:
                self._held[part] = len(self.feed) - 1
                self._append(part, rows, now)

    def post(self, rows: Sequence[Row], now: Instant) -> None:
        """Rows without an identity: each counts, also one like another."""
        for part in range(len(self.partitions)):
            mine = [row for row in rows if self._owner(row) == part]
            if mine:
                self._append(part, mine, now)

    def below(self, cut: Mapping[int, int] | None = None) -> list[Row]:
        """Records with offsets below a cut per partition; ``None``: all."""
        return [
            row for part, rows in enumerate(self.partitions) for row in (rows if cut is None else rows[: cut[part]])
        ]

    def _owner(self, row: Row) -> int:
        return owner_of_group(key_group(row[self.dataset.key.name]), len(self.partitions))

    def _append(self, part: int, rows: Sequence[Row], now: Instant) -> None:
        self._accepted_at[part] = max(self._accepted_at[part], now)
        held = self.partitions[part]
        for row in rows:
            at = row[self.dataset.timestamp.name]
            late, newest = _judged(at, self._newest[part], self._lateness, self._accepted_at[part])
            self._newest[part] = newest
            system = {"__time": at, "__accepted_at": self._accepted_at[part], "__partition": part}
            held.append({"__deleted": None, **row, **system, "__offset": len(held), "__late": late})


def _judged(at: Instant, newest: Instant | None, lateness: Lateness, now: Instant) -> tuple[bool, Instant]:
    """Whether a record is late, and the newest event time after it."""
    moved: Duration = min(at, now + lateness.max_clock_skew_us)
    if newest is None:
        return False, moved
    late = lateness.max_lateness_us is not None and at < newest - lateness.max_lateness_us
    return late, max(newest, moved)
