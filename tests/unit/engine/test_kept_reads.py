"""What a read keeps for the next one: never another answer, used only over the same bytes, bounded."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from featurelib.aggregates import (
    Aggregate,
    ApproxPercentile,
    Avg,
    Count,
    ExpDecaySum,
    First,
    Last,
    LastK,
    Max,
    Min,
    Stddev,
    Sum,
)
from featurelib.clock import HOUR, SECOND
from featurelib.definitions import AggregateStep, DatasetDef, Definitions, FieldDef, NamedAggregate, PipelineDef
from featurelib.engine import fold, panes, stretches
from featurelib.engine.codec import FORMAT, appended_rows, encode
from featurelib.engine.kept_reads import KeptRead, KeptReads
from featurelib.engine.panes import BESIDE_THE_TREE, Header, PanesMissing, Sealed, pane_field
from featurelib.engine.program import Program
from featurelib.engine.sealing import SLOT
from featurelib.errors import CorruptState
from featurelib.expr import col
from featurelib.windows import AnyWindow, Continuous, Hopping, Lifetime, Session, Tumbling
from tests.laws.test_sealing import SealedStore
from tests.laws.test_windows import T0 as WINDOWS_T0
from tests.laws.test_windows import Store, table
from tests.laws.test_windows import program as windows_program

T0 = 1_700_000_000 * SECOND
EVENTS = DatasetDef(
    name="Event",
    fields=(
        FieldDef(name="key", type="str", key=True),
        FieldDef(name="number", type="int", optional=True),
        FieldDef(name="price", type="float", optional=True),
        FieldDef(name="at", type="datetime", timestamp=True),
    ),
)
# Values are laid into rows by the names of their columns.
NUMBER, PRICE = 5, 6


def program(aggregates: dict[str, Aggregate]) -> Program:
    out = DatasetDef(name="Out", fields=(EVENTS.key, EVENTS.timestamp))
    named = tuple(NamedAggregate(output=name, aggregate=one) for name, one in aggregates.items())
    pipeline = PipelineDef(
        name="p",
        input_datasets=("Event",),
        output_dataset="Out",
        steps=(AggregateStep(keys=("key",), aggregates=named),),
    )
    return Program.compile(pipeline, Definitions(datasets=(EVENTS, out)))


def nested() -> dict[str, Aggregate]:
    made: dict[str, Aggregate] = {}
    for window in ("10m", "1h", "5h"):
        made |= {
            f"n_{window}": Count(window=window),
            f"some_{window}": Count(window=window, where=col("number") > 50),
            f"sum_{window}": Sum("price", window),
            f"avg_{window}": Avg("number", window),
            f"max_{window}": Max("price", window),
            f"sd_{window}": Stddev("price", window),
        }
    return {**made, "min": Min("number", "5h"), "last": Last("number", "1h"), "first": First("price", "10m")}


def mixed() -> dict[str, Aggregate]:
    return {
        "all": Sum("price"),
        "recent": LastK("number", "1h", k=4),
        "before": Count(window=Continuous("1h", offset="20m")),
        "hour": Sum("number", Tumbling("1h")),
        "hops": Max("price", Hopping("1h", "10m")),
        "fading": ExpDecaySum("price", "30m", "5h"),
    }


def shifted() -> dict[str, Aggregate]:
    return {
        "all": Sum("price"),
        "before": Sum("price", Continuous("1h", offset="20m")),
        "short": Max("price", "134s"),
        "recent": LastK("number", "10m", k=4),
        "day": Count(window="24h"),
    }


def chronological() -> dict[str, Aggregate]:
    return {
        "visit": Count(window=Session("1m")),
        "rank": ApproxPercentile("price", "1h"),
        "n": Count(window="10m"),
        "sum": Sum("price", "5h"),
    }


class Stored:
    """One key, its stored bytes, and reads of them."""

    def __init__(self, compiled: Program, seed: int, *, closing: bool) -> None:
        self.program = compiled
        self.fields: dict[bytes, bytes] = {}
        self.rows: list[tuple[Any, ...]] = []
        self._state = compiled.new_state(1)
        self._random = random.Random(seed)
        self._closing = closing
        self.followed = 0

    def change(self, now: int) -> None:
        """A few rows come, some of them late; where rows may end, some go."""
        come = [self._row(now) for _ in range(self._random.choice((1, 1, 1, 3, 20)))]
        if self._closing and self.rows:
            gone = self._random.sample(self.rows, min(len(self.rows), 2))
            self.rows = [row for row in self.rows if row not in gone] + come
            self._state.replace(gone, come)
        else:
            self.rows += come
            self._state.add(come)
        self.fields.update(self._state.changes())

    def take(self, row: tuple[Any, ...]) -> None:
        """One row comes."""
        self._state.add([row])
        self.fields.update(self._state.changes())

    def _row(self, now: int) -> tuple[Any, ...]:
        time = now - self._random.choice((0, 0, 0, HOUR, 2 * HOUR)) - self._random.randrange(60) * SECOND
        until = time + self._random.randrange(4) * 20 * 60 * SECOND + 1 if self._closing else None
        number = self._random.choice((None, self._random.randrange(100)))
        return time, time + 1, len(self.rows), "", until, number, self._random.randrange(1, 9_999) / 100, 0b1

    def flush(self) -> None:
        """Rows go on into panes, none come."""
        self._state.flush()
        self.fields.update(self._state.changes())

    def begin_anew(self) -> None:
        """The key is erased; the next row is its first."""
        self.fields.clear()
        self.rows.clear()
        self._state = self.program.new_state(1)

    def read_again(self, at: int, key: str) -> dict[str, Any] | None:
        """What is kept goes on, or all is read; whichever, as a reader does it."""
        if (data := self.fields.get(b"h")) is None:
            self.program.forget(key)
            return None
        ahead = self.program.is_due(at, key)
        if not ahead and self.program.may_follow(at, key):
            found = self.program.finish_again(
                Header.decode(data), self.fields.get(b"b"), self.fields.get(b"t"), at, key
            )
            if found is not None:
                self.followed += 1
                return found[0]
        return self.read(at, key, ahead=ahead)

    def read(self, at: int, key: str | None = None, *, ahead: bool = False) -> dict[str, Any] | None:
        values = [self.fields.get(name) for name in self.program.read_fields(at, ahead=ahead)]
        more: dict[Any, bytes | None] = {}
        while True:
            try:
                return self.program.finish_lasting(values, at, more, key, ahead=ahead)[0]
            except PanesMissing as missing:
                more |= {pane: self.fields.get(pane_field(pane)) for pane in missing.panes}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[KeptReads]:
    """The reads kept, none at first."""
    own = KeptReads()
    monkeypatch.setattr(fold, "KEPT_READS", own)
    yield own


def moments(seed: int) -> Iterator[tuple[int, bool]]:
    """Instants that mostly go on a little, and whether rows come before the read."""
    chosen = random.Random(seed)
    now = T0
    for _ in range(250):
        now += chosen.choice((0, 1, 500, SECOND, 7 * SECOND, 60 * SECOND, 17 * 60 * SECOND))
        yield now - chosen.choice((0, 0, 0, 0, 90 * SECOND)), chosen.random() < 0.5


def unlike(stored: Stored, seed: int, reads: KeptReads, monkeypatch: pytest.MonkeyPatch) -> Sequence[Any]:
    """Reads that give another row than one that finds nothing kept."""
    found = []
    stored.change(T0)
    for at, comes in moments(seed):
        if comes:
            stored.change(at)
        row = stored.read(at)
        with monkeypatch.context() as patch:
            patch.setattr(fold, "KEPT_READS", KeptReads())
            alone = stored.read(at)
        # As text: 0.0 and -0.0, 1 and 1.0 are not the same.
        if str(row) != str(alone):
            found.append((at, row, alone))
    return found


@pytest.mark.parametrize("closing", [False, True], ids=["open rows", "rows that end"])
@pytest.mark.parametrize("aggregates", [nested, mixed, shifted, chronological])
def test_a_read_after_others_gives_the_row_of_a_read_alone(
    aggregates: Any, closing: bool, reads: KeptReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(2):
        stored = Stored(program(aggregates()), seed, closing=closing)
        assert not unlike(stored, seed, reads, monkeypatch)
    assert reads.hits > 100


def changing(seed: int) -> Iterator[tuple[int, Sequence[str]]]:
    """Instants that go on, stay and go back, and what happens to the key before the read."""
    chosen = random.Random(seed)
    now = T0
    kinds = ["rows"] * 12 + ["flush"] * 2
    for number in range(400):
        now += chosen.choice((0, 0, 1, 500, SECOND, SECOND, 7 * SECOND, 60 * SECOND))
        gone = ["anew"] if number % 97 == 96 else []
        happens = gone + chosen.sample(kinds, chosen.choice((0, 1, 1, 2)))
        yield now - chosen.choice((0, 0, 0, 0, 1, 90 * SECOND, 2 * HOUR)), happens


def went_on_wrong(stored: Stored, seed: int, monkeypatch: pytest.MonkeyPatch) -> Sequence[Any]:
    """Reads from the kept tree that give another row than one that finds nothing kept."""
    found = []
    for at, happens in changing(seed):
        for kind in happens:
            if kind == "rows":
                stored.change(at)
            elif kind == "flush":
                stored.flush()
            else:
                stored.begin_anew()
        row = stored.read_again(at, "a")
        with monkeypatch.context() as patch:
            patch.setattr(fold, "KEPT_READS", KeptReads())
            alone = stored.read(at)
        if str(row) != str(alone):
            found.append((at, happens, row, alone))
    return found


@pytest.mark.parametrize("closing", [False, True], ids=["open rows", "rows that end"])
@pytest.mark.parametrize("aggregates", [nested, mixed, shifted, chronological])
def test_a_read_from_the_kept_tree_gives_the_row_of_a_read_alone(
    aggregates: Any, closing: bool, reads: KeptReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = 0
    for seed in range(2):
        stored = Stored(program(aggregates()), seed, closing=closing)
        assert not went_on_wrong(stored, seed, monkeypatch)
        followed += stored.followed
    assert reads.size > 0
    # Rows that end are true of one instant alone, and a replacement mostly reaches into the tree.
    assert followed > (10 if closing else 100)


def test_the_comparison_notices_a_pane_that_was_written_without_a_new_stamp(
    reads: KeptReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panes, "_stamp", lambda *_: b"1" * 8)
    assert went_on_wrong(Stored(program(nested()), 0, closing=False), 0, monkeypatch)


def test_the_stamp_changes_with_the_tree_and_only_with_it(reads: KeptReads) -> None:
    stored = Stored(program(nested()), 0, closing=False)

    def stamp() -> bytes | None:
        return Header.decode(stored.fields[b"h"]).tree

    row = (T0, T0, 0, "", None, 1, 0.5, 1)
    stored._state.add([row])
    stored.fields.update(stored._state.changes())
    assert stamp() == b""
    seen = {b""}
    for change in (
        stored._state.flush,
        lambda: stored._state.replace([row], [(*row[:6], 2.5, 1)]),
        lambda: stored._state.unseal((1, T0 >> 3), []),
    ):
        change()
        stored.flush()
        assert stamp() not in seen
        seen.add(stamp())
        before = stamp()
        stored._state.add([(T0 + len(seen), T0, len(seen), "", None, 1, 0.5, 1)])
        stored.fields.update(stored._state.changes())
        assert stamp() == before
    state = stored._state
    state.forget([pane for pane, node in state.nodes.items() if node is not None])
    assert not state.dirty
    assert stamp() in seen


def test_a_tree_without_a_stamp_is_never_gone_on_from(reads: KeptReads) -> None:
    stored = Stored(program(nested()), 6, closing=False)
    stored.change(T0)
    header = replace(Header.decode(stored.fields[b"h"]), tree=None)
    stored.fields[b"h"] = header.encode()
    stored.read(T0, "a")
    assert not stored.program.may_follow(T0, "a")
    assert stored.program.finish_again(header, stored.fields.get(b"b"), stored.fields.get(b"t"), T0, "a") is None


def test_panes_fetched_on_a_second_trip_are_not_taken_for_the_header_s_tree(reads: KeptReads) -> None:
    stored = Stored(program(nested()), 6, closing=True)
    for number in range(80):
        stored.change(T0 + number * SECOND)
    trips = Trips(stored)
    for age in range(0, 600, 5):
        at = T0 + (80 - age) * SECOND
        trips.more = 0
        row = trips.read(at, str(age))
        if trips.more and row is not None:
            assert not stored.program.may_follow(at, str(age))
            return
    pytest.fail("no read needed panes off the paths of its edges")


class Trips:
    """Reads that count their further round trips."""

    def __init__(self, stored: Stored) -> None:
        self.stored = stored
        self.more = 0

    def read(self, at: int, key: str) -> dict[str, Any] | None:
        program, fields = self.stored.program, self.stored.fields
        values = [fields.get(name) for name in program.read_fields(at)]
        more: dict[Any, bytes | None] = {}
        while True:
            try:
                return program.finish(values, at, more, key)
            except PanesMissing as missing:
                self.more += 1
                more |= {pane: fields.get(pane_field(pane)) for pane in missing.panes}


@pytest.mark.parametrize("windows", [("1h", "24h"), ("1h", "24h", "")], ids=["with a floor", "with a lifetime"])
def test_sealing_and_building_leave_what_a_kept_tree_gives_as_it_was(
    windows: tuple[str, ...], reads: KeptReads
) -> None:
    chosen = random.Random(len(windows))
    compiled = windows_program(*windows)
    store, twin, events = SealedStore(compiled), Store(windows_program(*windows)), []
    now, followed = WINDOWS_T0, 0
    for turn in range(60):
        now += SLOT // 2
        for step in range(3):
            first = len(events)
            ages = [chosen.choice((0, 0, 0, HOUR, 20 * HOUR)) for _ in range(chosen.choice((0, 1, 4)) or turn == 0)]
            events += [(now - age, turn, "ab"[turn % 2]) for age in ages]
            if ages:
                for each in (store, twin):
                    each.add(table(events).slice(first))
            at = now + chosen.choice((0, 0, step, SECOND, -SLOT // 2))
            header, buffer, tail = (store.fields.get(name) for name in BESIDE_THE_TREE)
            assert header is not None
            again = None
            if compiled.may_follow(at, "k"):
                try:
                    again = compiled.finish_again(Header.decode(header), buffer, tail, at, "k")
                except Sealed:
                    continue
            if again is not None:
                followed += 1
                assert again[0] == twin.read(at)
            else:
                values = [store.fields.get(name) for name in compiled.read_fields(at)]
                with suppress(Sealed):
                    assert compiled.finish(values, at, None, "k") == twin.read(at)
            if step == 1:
                store.keep_up(now, events)
    assert store.built > 0
    assert followed > 60


@pytest.mark.parametrize("closing", [False, True], ids=["open rows", "rows that end"])
@pytest.mark.parametrize("aggregates", [nested, mixed, shifted, chronological])
def test_a_read_of_stored_bytes_gives_the_row_of_the_state_in_memory(
    aggregates: Any, closing: bool, reads: KeptReads
) -> None:
    stored = Stored(program(aggregates()), 0, closing=False)
    for number in range(300):
        time = T0 + number * 60 * SECOND
        # Beside panes whose rows all count still, or all count no more, are some that must be gone into.
        until = time + (10 * HOUR if number % 64 < 9 else 60 * SECOND) if closing and number % 3 else None
        stored.take((time, time + 1, number, "", until, number % 50, number / 4, 0b1))
    for at in range(T0 + HOUR, T0 + 6 * HOUR, 11 * 60 * SECOND + 7):
        assert str(stored.read(at)) == str(stored.program.finish_state(stored._state, at))


def test_a_read_back_at_an_instant_counts_a_row_that_came_meanwhile_and_ended_since(reads: KeptReads) -> None:
    stored = Stored(program({"n": Count(window="1h")}), 0, closing=True)
    stored.take((T0, T0 + 1, 0, "", None, 1, 1.0, 1))
    early, late = T0 + 10 * SECOND, T0 + 30 * SECOND
    assert stored.read(early, "a") == {"n": 1}
    stored.take((T0 + SECOND, late, 1, "", T0 + 20 * SECOND, 1, 1.0, 1))
    assert stored.read(late, "a") == {"n": 1}
    assert stored.read(early, "a") == {"n": 2}
    assert reads.hits == 2


def test_the_comparison_notices_a_cut_that_passed_a_row_unseen(
    reads: KeptReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretches.Stretches, "moved_to", lambda _self, _group: False)
    stored = Stored(program(nested()), 0, closing=False)
    assert unlike(stored, 0, reads, monkeypatch)


class Whole(NamedTuple):
    """A read of everything: of which second and key, and whether it had to be."""

    second: int
    key: str
    is_forced: bool


def going_on(
    compiled: Program,
    keys: Sequence[str],
    gaps: Sequence[float],
    *,
    since: int = 2 * HOUR,
    seconds: int = 600,
) -> list[Whole]:
    """The reads of everything after the first, while some keys with the same rows are read every second.

    Args:
        compiled: the pipeline.
        keys: all have the same rows.
        gaps: seconds between two rows, chosen at random.
        since: how long before the first read the rows begin.
        seconds: how long is read.

    Every row read is that of the state in memory.
    """
    stored, time, chosen = Stored(compiled, 0, closing=False), T0 - since, random.Random(4)
    while time < T0:
        time += round(chosen.choice(gaps) * SECOND)
        stored.rows.append((time, time, len(stored.rows), "", None, 1, chosen.randrange(1, 9_999) / 100, 1))
        stored.take(stored.rows[-1])
    stored.flush()
    whole = []
    for second in range(seconds):
        at = T0 + second * SECOND + 17
        expected = str(compiled.finish_state(stored._state, at))
        for key in keys:
            before, forced = stored.followed, not compiled.may_follow(at, key)
            assert str(stored.read_again(at, key)) == expected, (second, key)
            if second and stored.followed == before:
                whole.append(Whole(second, key, forced))
    return whole


def at_once(whole: Sequence[Whole]) -> int:
    """The most keys that were read whole in one second."""
    return max(Counter(each.second for each in whole).values(), default=0)


def windows(*sizes: str | AnyWindow) -> Program:
    made: dict[str, Aggregate] = {f"sum_{n}": Sum("price", window) for n, window in enumerate(sizes)}
    return program({**made, "largest": Max("price", sizes[0])})


KEYS = [f"key{number}" for number in range(40)]


@pytest.mark.parametrize(
    ("sizes", "gaps", "seconds", "most"),
    [
        (("10m", "1h"), (4, 6), 600, 0.5),
        (("1m", "10m"), (4, 6), 800, 0.5),  # now leaves its root
        (("10m", Continuous("10m", offset="20m"), Lifetime()), (4, 6), 600, 0.5),
        (("134s", "1h"), (1, 30), 600, 0.5),  # a leaf long, of leaves and branches
        (("10m", "1h"), (0.3, 1), 300, 0.9),  # leaves of 17 s, so all keys within two
    ],
    ids=["two windows", "root", "offset and lifetime", "uneven", "dense"],
)
def test_keys_that_lie_alike_are_read_whole_before_they_must_be_each_at_an_instant_of_its_own(
    sizes: Any,
    gaps: Sequence[float],
    seconds: int,
    most: float,
    reads: KeptReads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = going_on(windows(*sizes), KEYS, gaps, seconds=seconds)
    assert 0 < at_once(whole) < len(KEYS) * most
    # Where leaves are shorter than the time between two reads, some are too late.
    assert at_once([each for each in whole if each.is_forced]) < len(KEYS) * most / 2
    reads.clear()
    monkeypatch.setattr(stretches.Stretches, "_due_instants", lambda _self: iter(()))
    late = going_on(windows(*sizes), KEYS, gaps, seconds=seconds)
    assert at_once(late) == len(KEYS)
    # Whoever reads ahead reads everything not much oftener for it.
    assert len(whole) < len(late) * 1.3


SIZES = (
    *("17s", "134s", "135s", "5m", "10m", "1074s", "1h", "3h"),
    *(Continuous("1h", offset="20m"), Lifetime()),
)


@pytest.mark.parametrize("seed", range(60))
def test_edges_whose_leaves_stand_side_by_side_count_every_row_once(seed: int, reads: KeptReads) -> None:
    chosen = random.Random(seed)
    # Leaves are 134 s long where rows are 5 s apart: both edges of the first, and one of the second, have neighbours.
    compiled = windows(Continuous("134s", offset="134s"), chosen.choice(("5m", "268s")), *chosen.sample(SIZES, 2))
    stored, comes = Stored(compiled, seed, closing=False), chosen.random() < 0.5
    # In seconds; of the last two, rows stand where panes begin.
    gaps = chosen.choice([(4, 6), (20, 40), (0.5, 2), (1, 60), (16.777216,), (134.217728,)])
    at = T0 - T0 % (1 << (panes.BITS * 9)) - chosen.choice((HOUR // 4, HOUR, 2 * HOUR))

    def come(time: int) -> None:
        stored.rows.append((time, time, len(stored.rows), "", None, 1, chosen.randrange(1, 9_999) / 100, 1))
        stored.take(stored.rows[-1])

    while at < T0:
        at += round(chosen.choice(gaps) * SECOND)
        come(at + chosen.choice((0, 0, 1, -1)))
    if chosen.random() < 0.7:
        stored.flush()
    for _ in range(150):
        at += chosen.choice((1, SECOND, SECOND, 2 * SECOND, chosen.randrange(8 * SECOND), 0, 50 * SECOND))
        for _ in range(chosen.choice((0, 0, 0, 1, 2)) * comes):
            come(at - chosen.choice((0, 1, SECOND, 60 * SECOND, HOUR)))
        assert str(stored.read_again(at, "a")) == str(compiled.finish_state(stored._state, at))
        assert not compiled.is_due(at, "a")


def test_an_edge_moves_on_into_the_leaf_that_another_edge_is_in(reads: KeptReads) -> None:
    assert not going_on(windows("5m", "10m", "1h"), KEYS[:8], (20, 40))


def test_views_of_a_key_are_read_whole_at_instants_of_their_own(reads: KeptReads) -> None:
    views = [windows("10m", "1h", f"{number}m") for number in range(11, 23)]
    whole = [each for view in views for each in going_on(view, ["one"], (4, 6))]
    assert at_once(whole) < len(views) / 2


def test_now_moves_on_from_the_newest_leaf_without_a_read_of_all(reads: KeptReads) -> None:
    """What lies behind it is empty, also after the other end of the window has passed rows."""
    whole = going_on(windows("1h"), ["one"], (4, 6), seconds=150)
    level = 9
    left = [(T0 - HOUR + 150 * SECOND * part) >> (panes.BITS * level) for part in (0, 1)]
    assert len(whole) <= left[1] - left[0]
    assert T0 >> (panes.BITS * level) < (T0 + 150 * SECOND) >> (panes.BITS * level)


def test_a_first_read_just_before_a_leaf_ends_is_made_up_for_by_the_next(reads: KeptReads) -> None:
    compiled, level = windows("10m"), 9
    stored = Stored(compiled, 0, closing=False)
    for number, time in enumerate(range(T0 - HOUR, T0, 5 * SECOND)):
        stored.take((time, time, number, "", None, 1, 1.0, 1))
    stored.flush()
    end = ((T0 - 600 * SECOND >> (panes.BITS * level)) + 1 << (panes.BITS * level)) + 600 * SECOND
    stored.read(end - SECOND, "a")
    assert not compiled.may_follow(end + SECOND, "a")
    assert compiled.is_due(end - SECOND + 1, "a")
    stored.read_again(end - SECOND + 1, "a")
    assert not compiled.is_due(end - 1, "a")
    assert compiled.may_follow(end + SECOND, "a")
    assert stored.read_again(end + SECOND, "a") == compiled.finish_state(stored._state, end + SECOND)


def test_the_comparison_notices_a_leaf_that_lacks_the_rows_of_the_next(
    reads: KeptReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halved(self: Any, leaf: Any, taken: Any = stretches.Stretches._taken_behind) -> Sequence[Any] | None:
        rows = taken(self, leaf)
        return rows and rows[: len(rows) // 2]

    monkeypatch.setattr(stretches.Stretches, "_taken_behind", halved)
    with pytest.raises(AssertionError):
        going_on(windows("10m", "1h"), KEYS[:8], (4, 6))


def test_a_read_of_other_panes_begins_anew(reads: KeptReads) -> None:
    stored = Stored(program(nested()), 1, closing=False)
    for number in range(40):
        stored.change(T0 + number * SECOND)
    before = stored.read(T0 + 60 * SECOND)
    stored.read(T0 + 60 * SECOND)
    assert (reads.hits, reads.misses) == (1, 1)
    stored.fields.update({name: data for name, data in flushed(stored).items() if name != b"h"})
    assert stored.read(T0 + 60 * SECOND) == before
    assert (reads.hits, reads.misses) == (1, 2)


def flushed(stored: Stored) -> dict[bytes, bytes]:
    stored._state.flush()
    return stored._state.changes()


def test_pipelines_and_keys_keep_their_reads_apart(reads: KeptReads) -> None:
    first, second = (Stored(program({"n": one}), 2, closing=False) for one in (Count(window="1h"), Sum("price", "1h")))
    for number in range(40):
        first.change(T0 + number * SECOND)
        second.change(T0 + number * SECOND)
    for key in ("a", "b"):
        for stored in (first, second):
            stored.read(T0 + HOUR // 2, key)
    assert (reads.hits, reads.misses) == (0, 4)
    for key in ("a", "b"):
        for stored in (first, second):
            stored.read(T0 + HOUR // 2, key)
    assert reads.hits == 4


def test_nothing_is_kept_of_a_key_that_is_gone(reads: KeptReads) -> None:
    stored = Stored(program(nested()), 4, closing=False)
    stored.change(T0)
    stored.read(T0, "a")
    assert reads.size > 0
    stored.fields.clear()
    assert stored.read(T0, "a") is None
    assert reads.size == 0


def test_what_is_kept_is_bounded_and_the_oldest_goes_first() -> None:
    kept = KeptReads(most_bytes=3 * KeptRead([], 0).size)
    for key in "abc":
        kept.put(key, kept.take(key, [], 0))
    kept.put("a", kept.take("a", [], 0))
    kept.put("d", kept.take("d", [], 0))
    assert kept.size <= kept.most_bytes
    held = {key: kept.take(key, [], 0) for key in "acd"}
    assert (kept.hits, len(held)) == (4, 3)
    kept.take("b", [], 0)
    assert kept.hits == 4


def test_what_is_kept_is_measured_with_the_rows_that_wait_in_the_buffer(reads: KeptReads) -> None:
    stored = Stored(program(nested()), 5, closing=False)
    stored.take((T0, T0, 0, "", None, 1, 1.0, 1))
    stored.read(T0, "a")
    before, held = reads.size, len(stored.fields[b"t"])
    stored.take((T0, T0, 1, "", None, 1, 1.0, 1))
    stored.read(T0, "a")
    assert reads.size - before == len(stored.fields[b"t"]) - held > 0
    stored.fields.clear()
    stored.read(T0, "a")
    assert reads.size == 0


def test_a_read_that_fails_leaves_nothing_behind(reads: KeptReads) -> None:
    stored = Stored(program(nested()), 3, closing=False)
    for number in range(60):
        stored.change(T0 + number * SECOND)
    row = stored.read(T0 + 60 * SECOND)
    sound = dict(stored.fields)
    stored.fields = {name: b"L" + FORMAT + b"\xc1" if data[:1] == b"L" else data for name, data in sound.items()}
    with pytest.raises(CorruptState):
        stored.read(T0 + 60 * SECOND)
    stored.fields = sound
    assert stored.read(T0 + 60 * SECOND) == row


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 15), (15, 16), (3, 32), (20, 21), (32, 32)])
def test_rows_that_came_to_a_buffer_are_found_behind_those_it_had(before: int, after: int) -> None:
    rows = [(number, number, 0, "", None, 3.5, 0) for number in range(after)]
    assert appended_rows(encode(rows[:before]), encode(rows)) == rows[before:]


def test_a_buffer_that_lost_or_changed_a_row_is_another() -> None:
    rows = [(number, number, 0, "", None, 3.5, 0) for number in range(20)]
    assert appended_rows(encode(rows), encode(rows[:-1])) is None
    assert appended_rows(encode(rows), encode(rows[1:])) is None
    assert appended_rows(encode(rows[:3]), encode([*rows[:2], *rows[3:]])) is None
