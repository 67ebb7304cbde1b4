"""Exact windows: stored state, read through its fields, against lists and loops, at and beside every edge."""

from __future__ import annotations

import random
from dataclasses import replace

import pyarrow as pa
import pytest

from featurelib.aggregates import Avg, Count, Last, LastK, Max, Min, Sum
from featurelib.clock import DAY, HOUR
from featurelib.definitions import AggregateStep, DatasetDef, Definitions, FieldDef, NamedAggregate, PipelineDef
from featurelib.engine import stretches
from featurelib.engine.codec import encode
from featurelib.engine.panes import BESIDE_THE_TREE, HEADER, TAIL, Branch, Header, KeyState, decode_node, pane_field
from featurelib.engine.program import Program, replay
from featurelib.engine.records import ACCEPTED_AT, LATE, OFFSET, PARTITION, TIME
from featurelib.expr import col

T0 = 1_700_000_000_000_000
SIZES = {"1h": HOUR, "24h": DAY, "7d": 7 * DAY, "": None}
EVENTS = DatasetDef(
    name="Event",
    fields=(
        FieldDef(name="key", type="str", key=True),
        FieldDef(name="value", type="int", optional=True),
        FieldDef(name="text", type="str"),
        FieldDef(name="at", type="datetime", timestamp=True),
    ),
)
OUT = DatasetDef(
    name="Out",
    fields=(FieldDef(name="key", type="str", key=True), FieldDef(name="at", type="datetime", timestamp=True)),
)
Event = tuple[int, "int | None", str]


def program(*windows: str) -> Program:
    aggregates = []
    for window in windows or tuple(SIZES):
        aggregates += [
            NamedAggregate(output=f"count_{window}", aggregate=Count(window=window)),
            NamedAggregate(output=f"big_{window}", aggregate=Count(window=window, where=col("value") > 50)),
            NamedAggregate(output=f"sum_{window}", aggregate=Sum("value", window)),
            NamedAggregate(output=f"avg_{window}", aggregate=Avg("value", window)),
            NamedAggregate(output=f"min_{window}", aggregate=Min("value", window)),
            NamedAggregate(output=f"max_{window}", aggregate=Max("value", window)),
            NamedAggregate(output=f"last_{window}", aggregate=Last("text", window)),
            NamedAggregate(output=f"recent_{window}", aggregate=LastK("text", window, k=3, dedup=True)),
        ]
    pipeline = PipelineDef(
        name="p",
        input_datasets=("Event",),
        output_dataset="Out",
        steps=(AggregateStep(keys=("key",), aggregates=tuple(aggregates)),),
    )
    return Program.compile(pipeline, Definitions(datasets=(EVENTS, OUT)))


def table(events: list[Event]) -> pa.Table:
    count = len(events)
    times = [event[0] for event in events]
    return pa.table(
        {
            "key": ["k"] * count,
            "value": pa.array([event[1] for event in events], pa.int64()),
            "text": [event[2] for event in events],
            "at": pa.array(times, pa.timestamp("us", tz="UTC")),
            TIME: pa.array(times, pa.int64()),
            ACCEPTED_AT: pa.array([0] * count, pa.int64()),
            PARTITION: pa.array([0] * count, pa.int32()),
            OFFSET: pa.array(range(count), pa.int64()),
            LATE: [False] * count,
        }
    )


def naive(events: list[Event], at: int) -> dict[str, object] | None:
    if not any(time <= at for time, *_ in events):
        return None
    row: dict[str, object] = {}
    for window, size in SIZES.items():
        inside = sorted(
            (time, place, value, text)
            for place, (time, value, text) in enumerate(events)
            if time <= at and (size is None or time >= at - size)
        )
        values = [value for _, _, value, _ in inside if value is not None]
        row |= {
            f"count_{window}": len(inside),
            f"big_{window}": len([value for value in values if value > 50]),
            f"sum_{window}": sum(values),
            f"avg_{window}": sum(values) / len(values) if values else 0.0,
            f"min_{window}": min(values, default=0),
            f"max_{window}": max(values, default=0),
            f"last_{window}": inside[-1][3] if inside else None,
            f"recent_{window}": list(dict.fromkeys(text for *_, text in reversed(inside)))[:3],
        }
    return row


class Store:
    """A key's fields as a real store would keep them; the state may be dropped and loaded again at any time."""

    def __init__(self, compiled: Program) -> None:
        self.program = compiled
        self.fields: dict[bytes, bytes] = {}
        self.state = compiled.new_state(1)

    def restart(self) -> None:
        if HEADER in self.fields:
            algebra, root = self.program.algebra, self.program.root
            _, *waiting = BESIDE_THE_TREE
            self.state = KeyState.stored(algebra, root, self.fields[HEADER], *map(self.fields.get, waiting))

    def add(self, records: pa.Table) -> None:
        for _, rows in self.program.rows_by_key(self.program.prepare(records, {})):
            while missing := self.state.missing(rows, flushing=False):
                for pane in missing:
                    data = self.fields.get(pane_field(pane))
                    self.state.nodes[pane] = decode_node(data) if data is not None else None
            self.state.add(rows)
            self.fields.update(self.state.changes())

    def read(self, at: int) -> dict[str, object] | None:
        return self.program.finish([self.fields.get(name) for name in self.program.read_fields(at)], at)


def some_events(seed: int, count: int = 900) -> list[Event]:
    chosen = random.Random(seed)
    events = [
        (T0 + chosen.randrange(10 * DAY), chosen.choice([None, *range(100)]), chosen.choice("abcdefg"))
        for _ in range(count)
    ]
    # A burst within 300 µs, so that panes split down to single microseconds, and many ties.
    events += [(T0 + 5 * DAY + chosen.randrange(300), 1, chosen.choice("xyz")) for _ in range(count // 2)]
    chosen.shuffle(events)
    return events


def instants(events: list[Event], seed: int, count: int) -> list[int]:
    """Instants at, and one microsecond to either side of, an event or the far edge of a window."""
    chosen = random.Random(seed)
    sizes = [0, *(size for size in SIZES.values() if size is not None)]
    return [chosen.choice(events)[0] + chosen.choice(sizes) + chosen.choice((-1, 0, 1)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_stored_state_equals_lists_and_loops_at_every_edge(seed: int) -> None:
    events, chosen = some_events(seed), random.Random(seed)
    store, records, at = Store(program()), table(events), 0
    while at < len(events):
        size = chosen.choice([1, 3, 10, 100])
        if chosen.random() < 0.1:
            store.restart()
        elif chosen.random() < 0.2:
            store.state.forget_panes()
        store.add(records.slice(at, size))
        at += size
    for instant in instants(events, seed, 80):
        assert store.read(instant) == naive(events, instant), instant


def test_replaying_records_gives_what_the_stored_state_gives() -> None:
    events = some_events(9, 400)
    store = Store(program())
    store.add(table(events))
    for instant in instants(events, 9, 25):
        replayed = replay(store.program, table(events), {}, "k", instant)
        assert replayed == store.read(instant)


def test_any_order_and_any_batches_end_in_the_same_bytes() -> None:
    events = [(T0 + place * 977_131 % (9 * DAY), place % 100, "a") for place in range(800)]
    records = table(events)
    one, two = Store(program()), Store(program())
    one.add(records)
    order = list(range(len(events)))
    random.Random(3).shuffle(order)
    for start in range(0, len(order), 7):
        two.add(records.take(order[start : start + 7]))
    for store in (one, two):
        store.state.flush()
        store.fields.update(store.state.changes())
    headers = [Header.decode(store.fields.pop(HEADER)) for store in (one, two)]
    tails = [store.fields.pop(TAIL, encode([])) for store in (one, two)]
    assert tails == [encode([])] * 2
    assert one.fields == two.fields
    # The stamp of a tree says by which changes it came to be.
    assert headers[0].tree != headers[1].tree
    assert replace(headers[0], tree=None) == replace(headers[1], tree=None)


def test_putting_a_row_in_place_of_itself_changes_values_and_nothing_else() -> None:
    events = some_events(5, 300)
    store = Store(program())
    store.add(table(events))
    changed = [(time, 7 if place % 3 == 0 else value, text) for place, (time, value, text) in enumerate(events)]
    ((_, old),) = store.program.rows_by_key(store.program.prepare(table(events), {}))
    ((_, new),) = store.program.rows_by_key(store.program.prepare(table(changed), {}))
    touched = [place for place in range(len(old)) if place % 3 == 0]
    for _ in range(2):  # twice: it is idempotent
        store.state.replace([old[place] for place in touched], [new[place] for place in touched])
    store.fields.update(store.state.changes())
    for instant in instants(events, 5, 25):
        assert store.read(instant) == naive(changed, instant)


def test_a_read_stays_small_however_many_events_the_window_holds() -> None:
    sizes = {}
    for count in (1_000, 20_000):
        store = Store(program("24h"))
        # All within one second.
        store.add(table([(T0 + place * 49 % 1_000_000, place % 100, "abc"[place % 3]) for place in range(count)]))
        at = T0 + DAY + 500_000  # the window's edge falls inside that second
        sizes[count] = sum(len(store.fields.get(name, b"")) for name in store.program.read_fields(at))
        assert store.read(at) is not None
    assert max(sizes.values()) <= 64 * 1024, sizes


def test_an_unknown_key_has_no_row_and_a_quiet_one_has_empty_windows() -> None:
    store = Store(program("1h"))
    assert store.read(T0) is None
    store.add(table([(T0, 5, "a")]))
    assert store.read(T0 + 2 * HOUR)["count_1h"] == 0
    assert store.read(T0 + 2 * HOUR)["last_1h"] is None


@pytest.mark.parametrize("shift", [-1, 1])
def test_the_comparison_notices_an_edge_off_by_one_microsecond(monkeypatch: pytest.MonkeyPatch, shift: int) -> None:
    events = [(T0 + place * 1_000, place, "a") for place in range(200)]
    store = Store(program())
    store.add(table(events))
    place = stretches._place
    monkeypatch.setattr(stretches, "_place", lambda rows, cut: place(rows, cut + shift))
    edges = [time + HOUR + beside for time, *_ in events for beside in (0, 1)]
    assert any(store.read(at) != naive(events, at) for at in edges)


def test_a_branch_holds_what_its_children_hold() -> None:
    store = Store(program())
    store.add(table(some_events(1)))
    store.state.flush()
    algebra = store.program.algebra
    for (level, index), node in store.state.nodes.items():
        if isinstance(node, Branch):
            for place, partials in enumerate(node.children):
                child = store.state.nodes.get((level - 1, index * 8 + place))
                expected = None
                if child is not None:
                    expected = algebra.merge(child.children) if isinstance(child, Branch) else algebra.fold(child.rows)
                assert partials == expected
