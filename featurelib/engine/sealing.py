"""Which panes of a key's state may be sealed: only their partials stay, until a window's edge comes near.

Time is cut into *slots*, the panes of one level, the same for all keys. A read at R needs rows only around the edges
of its windows. So a slot that no edge comes near is sealed as one pane; before an edge gets there it is built again
from history. What lies behind the longest window is sealed in panes as large as they come, and, where every window
ends, dropped below a floor.

Reads happen within one slot's length around now: the wall clock's now, and an event clock's while data is live. A
read elsewhere meets a sealed pane, says so, and goes to history. Replayed history, whose events are older than that,
is left alone: every slot of it would be sealed and built again while it flies by.

Only states to which rows are added, in any order, and never taken back may be sealed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from featurelib.clock import Duration, Instant
from featurelib.engine.panes import Pane
from featurelib.engine.program import Program

SLOT_LEVEL = 11
"""Slots are 8^11 µs, 2 h 23 min: a window's edge keeps some three of them in memory, whatever its length."""
SLOT: Duration = 1 << (3 * SLOT_LEVEL)

# Instants at which edges are looked at, over the time in which reads may happen.
_SAMPLES = 16


class SealingPlan(NamedTuple):
    """What may be sealed as of an instant.

    Attributes:
        now: as of when.
        near: slots that an edge of some window may fall into while ``now`` is near.
        older: no edge lies before it, nor will one.
        floor: rows before it are in no window at all; ``None`` where one lasts for ever.
        root: level of the state's roots.
    """

    now: Instant
    near: frozenset[int]
    older: Instant
    floor: Instant | None
    root: int

    def sealed(self, panes: Iterable[Pane]) -> list[Pane]:
        """Which of a key's stored panes go."""
        return [pane for pane in panes if self._goes(pane)]

    def _goes(self, pane: Pane) -> bool:
        level, index = pane
        end = (index + 1) << (3 * level)
        if self.floor is not None and end <= self.floor:
            return True
        # The pane itself, or the largest above it, as long as one that stays is above that.
        for above in range(max(level, SLOT_LEVEL), self.root):
            if self._may_be_sealed(above, index >> (3 * (above - level))):
                return True
        return False

    def _may_be_sealed(self, level: int, index: int) -> bool:
        end = (index + 1) << (3 * level)
        if level == SLOT_LEVEL:
            return end <= self.now - SLOT and index not in self.near
        return end <= self.older and not any(slot >> (3 * (level - SLOT_LEVEL)) == index for slot in self.near)


def may_seal(program: Program) -> bool:
    """Whether the pipeline's state only ever grows, in any order, by records under their own key."""
    return program.keyed_like_its_dataset() and not program.rights and not program.algebra.chronological


def is_live(newest: Instant | None, now: Instant) -> bool:
    """Whether the newest event is so young that reads follow the wall clock."""
    return newest is not None and abs(now - newest) < SLOT


def sealing_plan(program: Program, now: Instant) -> SealingPlan:
    """What of a pipeline's states may be sealed now; asked again once per slot."""
    windows = program.fold.windows
    times = [now - SLOT + step * 2 * SLOT // _SAMPLES for step in range(_SAMPLES + 1)]
    bounds = [window.bounds(at) for window in windows for at in times]
    edges = [edge for low, high, _ in bounds for edge in (low, high) if edge is not None]
    older = min(edges, default=now - SLOT)
    endless = program.horizon is None
    return SealingPlan(
        now=now,
        near=frozenset(edge >> (3 * SLOT_LEVEL) for edge in edges),
        older=older,
        floor=None if endless else (older >> (3 * program.root)) << (3 * program.root),
        root=program.root,
    )


def slots_ahead(plan: SealingPlan, before: SealingPlan | None) -> list[int]:
    """Slots that must have their rows now and need not have had them before, oldest first."""
    known = before.near if before is not None else frozenset[int]()
    return sorted(slot for slot in plan.near - known if (slot + 1) * SLOT <= plan.now - SLOT)
