"""Keeps a worker's states small: seals what no window edge comes near, and builds slots again before one does.

What may be sealed is decided in :mod:`featurelib.engine.sealing`. This is the worker's own spare-time work, in its own
thread and under its own epochs: a little per step, the slots that are needed first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import structlog

from featurelib.clock import SECOND, Duration, Instant
from featurelib.engine.keys import key_group
from featurelib.engine.panes import HEADER, Header, KeyState, Pane, pane_field, pane_of
from featurelib.engine.partials import Row
from featurelib.engine.program import Program
from featurelib.engine.sealing import SLOT, SLOT_LEVEL, SealingPlan, is_live, may_seal, sealing_plan, slots_ahead
from featurelib.errors import StoreUnavailable
from featurelib.stores.online import OnlineStore, StateName

_log = structlog.get_logger(__name__)
# A plan holds for one slot's length to either side; it is made anew well before.
_PLAN_EVERY: Duration = SLOT // 4
# Reads go to history while a slot is not built; folding does not wait for an archive that is away.
_AGAIN_AFTER: Duration = 10 * SECOND
# Rows of one look into history, about: some 100 MB, and less than a second away from folding.
_ROWS_AT_ONCE = 200_000
_GROUPS_AT_FIRST = 8

Changes = Mapping[str, Mapping[bytes, bytes | None]]


class Folded(Protocol):
    """The worker whose states these are (jobs/worker.py)."""

    @property
    def groups(self) -> range:
        """Its key groups."""
        ...

    @property
    def newest_us(self) -> Instant | None:
        """Newest event time folded."""
        ...

    @property
    def is_settled(self) -> bool:
        """Whether no key stands beyond its group's position: what is in the states is what lies below positions."""
        ...

    def applied_rows(self, groups: range, since: Instant, until: Instant) -> Mapping[str, list[Row]]:
        """Rows of some groups' keys within both instants that are in their states, from history."""
        ...

    def loaded(self, rows: Mapping[str, Sequence[Row]]) -> Mapping[str, KeyState]:
        """The states of some keys, with the panes on the paths of these rows."""
        ...

    def cached(self, key: str) -> KeyState | None:
        """The state of a key, if it is in memory."""
        ...

    def write(self, changes: Changes) -> None:
        """Commit changes of state that no record made."""
        ...


class Sealed(NamedTuple):
    """What one step did: panes dropped, panes built again."""

    dropped: int
    built: int


class Sealer:
    """One worker's sealing. A pipeline whose states may take rows back is left alone."""

    def __init__(self, program: Program, state: StateName, store: OnlineStore) -> None:
        self._program = program
        self._state = state
        self._store = store
        self._may = may_seal(program)
        self._plan: SealingPlan | None = None
        self._ahead: deque[tuple[int, range]] = deque()
        self._groups_at_once = _GROUPS_AT_FIRST
        self._cursor: int | None = None
        self._not_before: Instant = 0

    def step(self, worker: Folded, now: Instant) -> Sealed | None:
        """Do a little of what is due; ``None`` when nothing is.

        Raises:
            Fenced: another worker owns the groups.
            StoreUnavailable: the online store does not answer.
        """
        if not self._may or now < self._not_before or not worker.is_settled:
            return None
        live = is_live(worker.newest_us, now)
        if self._plan is None and not live:
            return None
        if self._plan is None or now - self._plan.now >= _PLAN_EVERY:
            self._plan_anew(worker, now)
        assert self._plan is not None
        if self._ahead:
            return self._built(worker, *self._ahead[0], now)
        # Reads go on when no more data comes: what was sealed is built for them, and nothing more is sealed.
        if self._cursor is not None and live:
            return Sealed(self._sweep(worker, self._plan), 0)
        return None

    def _plan_anew(self, worker: Folded, now: Instant) -> None:
        plan = sealing_plan(self._program, now)
        self._ahead.extend((slot, worker.groups) for slot in slots_ahead(plan, self._plan))
        self._plan, self._cursor = plan, 0

    def _built(self, worker: Folded, slot: int, groups: range, now: Instant) -> Sealed | None:
        some = groups[: self._groups_at_once]
        try:
            rows = worker.applied_rows(some, slot * SLOT, (slot + 1) * SLOT - 1)
        except StoreUnavailable as error:
            _log.warning("slot_not_built", pipeline=self._state.pipeline, detail=str(error))
            self._not_before = now + _AGAIN_AFTER
            return None
        self._ahead.popleft()
        if len(some) < len(groups):
            self._ahead.appendleft((slot, groups[len(some) :]))
        found = sum(map(len, rows.values()))
        self._groups_at_once = max(1, min(len(worker.groups), len(some) * _ROWS_AT_ONCE // max(1, found)))
        return Sealed(0, self._build(worker, (SLOT_LEVEL, slot), rows))

    def _build(self, worker: Folded, pane: Pane, rows: Mapping[str, list[Row]]) -> int:
        states = worker.loaded({key: of_key[:1] for key, of_key in rows.items()})
        sealed = {key: state for key, state in states.items() if state.is_sealed(pane)}
        for key, state in sealed.items():
            state.unseal(pane, rows[key])
        if sealed:
            worker.write({key: state.changes() for key, state in sealed.items()})
        return len(sealed)

    def _sweep(self, worker: Folded, plan: SealingPlan) -> int:
        assert self._cursor is not None
        following, found = self._store.scan(self._state, self._cursor)
        self._cursor = following or None
        keys = [key for key in found if key_group(key) in worker.groups]
        gone: dict[str, list[Pane]] = {}
        for key, names in zip(keys, self._store.field_names(self._state, keys), strict=True):
            panes = plan.sealed(pane_of(name) for name in names if b":" in name)
            if panes:
                gone[key] = panes
        if gone:
            self._drop(worker, gone, plan.floor)
        return sum(map(len, gone.values()))

    def _drop(self, worker: Folded, gone: Mapping[str, list[Pane]], floor: Instant | None) -> None:
        headers = self._headers(worker, list(gone)) if floor is not None else {}
        changes: dict[str, dict[bytes, bytes | None]] = {}
        for key, panes in gone.items():
            changes[key] = dict.fromkeys(map(pane_field, panes))
            if key in headers:
                headers[key].floor = floor
                changes[key][HEADER] = headers[key].encode()
        worker.write(changes)
        for key, panes in gone.items():
            state = worker.cached(key)
            if state is not None:
                state.forget(panes)

    def _headers(self, worker: Folded, keys: Sequence[str]) -> dict[str, Header]:
        """The headers, those of states in memory themselves."""
        states = {key: state for key in keys if (state := worker.cached(key)) is not None}
        others = self._store.load(self._state, {key: [HEADER] for key in keys if key not in states})
        stored = {key: Header.decode(data) for key, (data,) in others.items() if data is not None}
        return {key: state.header for key, state in states.items()} | stored
