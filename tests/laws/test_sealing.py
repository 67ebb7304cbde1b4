"""A sealed state answers like lists and loops around now, and says so elsewhere; it stays small."""

from __future__ import annotations

import random

import pytest

from featurelib.aggregates import Count, ExpDecaySum, First, Last, LastK, Max, Stddev, TopK
from featurelib.clock import DAY, HOUR
from featurelib.definitions import AggregateStep, Definitions, NamedAggregate, PipelineDef
from featurelib.engine.panes import HEADER, Sealed, decode_node, pane_field, pane_of
from featurelib.engine.program import Program
from featurelib.engine.sealing import SLOT, SLOT_LEVEL, SealingPlan, is_live, sealing_plan, slots_ahead
from featurelib.windows import AnyWindow, Continuous, Hopping, Lifetime, Tumbling
from tests.laws.test_windows import EVENTS, OUT, SIZES, T0, Event, Store, naive, program, table

FINITE = ("1h", "24h", "7d")


class SealedStore(Store):
    """A key whose state is sealed as time goes on."""

    def __init__(self, compiled: Program) -> None:
        super().__init__(compiled)
        self.plan: SealingPlan | None = None
        self.built = 0

    def keep_up(self, now: int, events: list[Event]) -> None:
        """Build the slots that edges come near, then seal what they have left."""
        before, self.plan = self.plan, sealing_plan(self.program, now)
        for slot in slots_ahead(self.plan, before):
            pane = (SLOT_LEVEL, slot)
            for needed in [*self._path(pane), pane]:
                data = self.fields.get(pane_field(needed))
                self.state.nodes[needed] = decode_node(data) if data is not None else None
            if self.state.is_sealed(pane):
                inside = [event for event in events if slot * SLOT <= event[0] < (slot + 1) * SLOT]
                self.state.unseal(pane, self._rows(events, inside))
                self.fields.update(self.state.changes())
                self.built += 1
        gone = self.plan.sealed(pane_of(name) for name in self.fields if b":" in name)
        for pane in gone:
            del self.fields[pane_field(pane)]
        self.state.forget(gone)
        if self.plan.floor is not None:
            self.state.header.floor = self.plan.floor
            self.fields[HEADER] = self.state.header.encode()

    def _path(self, pane: tuple[int, int]) -> list[tuple[int, int]]:
        level, index = pane
        return [(above, index >> (3 * (above - level))) for above in range(self.program.root, level, -1)]

    def _rows(self, events: list[Event], inside: list[Event]) -> list:
        offsets = {id(event): place for place, event in enumerate(events)}
        for _, rows in self.program.rows_by_key(self.program.prepare(table(events), {})):
            wanted = {(event[0], offsets[id(event)]) for event in inside}
            return [row for row in rows if (row[0], row[2] & ((1 << 40) - 1)) in wanted]
        return []


def expected(events: list[Event], at: int, windows: tuple[str, ...]) -> dict[str, object] | None:
    row = naive(events, at)
    return row and {name: value for name, value in row.items() if name.rpartition("_")[2] in windows}


def arrivals(chosen: random.Random, now: int) -> list[Event]:
    """Live events, some late, a few by days; every other slot is busy enough to be a branch."""
    count = chosen.choice([2, 150])
    late = [0] * 20 + [HOUR] * 4 + [DAY, 5 * DAY, 20 * DAY]
    times = [now - chosen.randrange(SLOT // 2) - chosen.choice(late) for _ in range(count)]
    return [(time, chosen.choice([None, *range(100)]), chosen.choice("abcdefg")) for time in times]


@pytest.mark.parametrize("windows", [tuple(SIZES), FINITE], ids=["with a lifetime", "finite"])
@pytest.mark.parametrize("seed", range(2))
def test_reads_around_now_equal_lists_and_loops_while_panes_are_sealed_and_built(windows, seed):
    chosen = random.Random(seed)
    store, twin, events = SealedStore(program(*windows)), Store(program(*windows)), []
    now = T0
    for turn in range(110):
        now += SLOT // 2
        fresh = arrivals(chosen, now)
        first = len(events)
        events += fresh
        for each in (store, twin):
            each.add(table(events).slice(first))
        if chosen.random() < 0.2:
            store.restart()
        store.keep_up(now, events)
        if turn % 6 == 5:
            at = now + chosen.randrange(-SLOT, SLOT)
            assert store.read(at) == twin.read(at)
    for at in (now - SLOT, now - 1, now, now + SLOT):
        assert store.read(at) == expected(events, at, windows)
    assert store.built > 3
    assert sum(map(len, store.fields.values())) < sum(map(len, twin.fields.values())) / 2


STEPPED = (Tumbling("10m"), Tumbling("7h", offset="13m"), Hopping("30h", "7h", offset="11m", lookback="3h"))
MOVED_BACK = (Lifetime(offset="2d"), Lifetime(), Continuous("5h"))
CAPPED = (Continuous("2d", max_rows=20), Continuous("1d", offset="2d"), Hopping("1d", "5m"))


def program_of(windows: tuple[AnyWindow, ...]) -> Program:
    aggregates = []
    for place, window in enumerate(windows):
        of_window = (
            Count(window=window),
            Max("value", window),
            Stddev("value", window),
            ExpDecaySum("value", window, half_life="3h"),
            First("text", window),
            Last("text", window),
            LastK("text", window, k=3),
            TopK("text", window, k=2),
        )
        aggregates += [NamedAggregate(output=f"{type(each).__name__}_{place}", aggregate=each) for each in of_window]
    step = AggregateStep(keys=("key",), aggregates=tuple(aggregates))
    pipeline = PipelineDef(name="p", input_datasets=("Event",), output_dataset="Out", steps=(step,))
    return Program.compile(pipeline, Definitions(datasets=(EVENTS, OUT)))


def rounded(row: dict[str, object] | None) -> dict[str, object] | None:
    return row and {name: float(f"{value:.8e}") if isinstance(value, float) else value for name, value in row.items()}


@pytest.mark.parametrize("windows", [STEPPED, MOVED_BACK, CAPPED], ids=["stepped", "moved back", "capped"])
def test_edges_that_jump_or_lag_are_built_in_time(windows):
    chosen = random.Random(len(windows))
    store, twin, events = SealedStore(program_of(windows)), Store(program_of(windows)), []
    now = T0
    for _ in range(60):
        now += SLOT // chosen.choice([4, 5, 7])
        first = len(events)
        events += arrivals(chosen, now)
        for each in (store, twin):
            each.add(table(events).slice(first))
        if chosen.random() < 0.2:
            store.restart()
        store.keep_up(now, events)
        for at in (now, (now + HOUR) // HOUR * HOUR - 1, now + chosen.randrange(-SLOT // 2, SLOT // 2)):
            assert rounded(store.read(at)) == rounded(twin.read(at))
    assert len(store.fields) < len(twin.fields)


def test_a_read_whose_edge_falls_into_a_sealed_pane_says_so():
    store, events = SealedStore(program()), [(T0 + place * 1_000_000, 1, "a") for place in range(20_000)]
    store.add(table(events))
    now = T0 + 5 * DAY
    store.keep_up(now, events)
    with pytest.raises(Sealed):
        store.read(T0 + 10_000_000_000)
    assert store.read(now)["count_"] == len(events)


def test_a_read_below_the_floor_says_so():
    store, events = SealedStore(program("1h")), [(T0 + place * 60_000_000, 1, "a") for place in range(3_000)]
    store.add(table(events))
    store.keep_up(T0 + 2 * DAY, events)
    assert store.state.header.floor > T0
    with pytest.raises(Sealed):
        store.read(T0 + HOUR)


def test_a_late_row_that_waits_in_the_buffer_counts_once_when_its_slot_is_built():
    store = SealedStore(program())
    start = (T0 // SLOT + 1) * SLOT
    events = [(start + place * 1_000_000, 1, "a") for place in range(500)]
    store.add(table(events))
    store.keep_up(start + 3 * DAY, events)
    events.append((start + 10, 1, "late"))
    store.add(table(events).slice(500))
    assert len(store.state.buffer) == 1
    store.keep_up(start + 7 * DAY, events)
    assert store.built == 1
    # The first event lies before the window's edge, the late one after it.
    assert store.read(start + 7 * DAY + 5)["count_7d"] == 500


def test_rows_below_the_floor_are_counted_and_kept_nowhere():
    store = SealedStore(program("1h"))
    now = T0 + 2 * DAY
    store.add(table([(now, 1, "a")]))
    store.keep_up(now, [(now, 1, "a")])
    kept = dict(store.fields)
    store.add(table([(T0, 1, "a"), (T0 + 1, 1, "b")]))
    store.state.flush()
    store.fields.update(store.state.changes())
    assert store.state.header.rows == 3
    assert {name for name in store.fields if b":" in name and name not in kept} <= {
        pane_field((store.program.root, now >> (3 * store.program.root)))
    }
    assert store.read(now)["count_1h"] == 1


def test_replayed_history_is_not_live():
    assert is_live(T0, T0 + HOUR)
    assert not is_live(T0, T0 + DAY)
    assert not is_live(None, T0)
