"""The newest rows of a buffer stand in a field of their own: fewer bytes written, the same rows read."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from featurelib.engine.codec import SECOND_FORMAT, decode_rows, encode, joined_rows
from featurelib.engine.panes import BESIDE_THE_TREE, BUFFER, HEADER, TAIL, Algebra, Header, KeyState, root_level
from featurelib.engine.partials import Row
from featurelib.errors import CorruptState
from tests.laws.test_windows import Store, program, table

T0 = 1_700_000_000_000_000
ROOT = root_level(None)


def row(number: int) -> Row:
    return (T0 + number, T0, number, "", None)


def fresh() -> KeyState:
    return KeyState(Algebra(()), ROOT, Header([0]), whole=True)


def loaded(fields: dict[bytes, bytes]) -> KeyState:
    _, *waiting = BESIDE_THE_TREE
    return KeyState.stored(Algebra(()), ROOT, fields[HEADER], *map(fields.get, waiting))


def waiting(fields: dict[bytes, bytes]) -> list[Row]:
    data = joined_rows(fields.get(BUFFER), fields.get(TAIL))
    return decode_rows(data) if data is not None else []


def test_a_key_that_gets_one_row_at_a_time_writes_a_third_of_the_rows_that_wait():
    state, written, held = fresh(), 0, 0
    for number in range(32):
        state.add([row(number)])
        changes = state.changes()
        written += sum(len(decode_rows(changes[name])) for name in (BUFFER, TAIL) if name in changes)
        held += number + 1
    assert written < held / 3


@pytest.mark.parametrize("seed", range(8))
def test_what_waits_is_the_same_however_the_rows_come_and_wherever_it_is_loaded_again(seed):
    draw, fields, state, expected = random.Random(seed), {}, fresh(), []
    number = 0
    for _ in range(300):
        rows = [row(number + place) for place in range(draw.choice((1, 1, 1, 2, 5, 40)))]
        number += len(rows)
        expected += rows
        state.add(rows)
        if draw.random() < 0.2:
            gone = draw.sample(expected, min(len(expected), 2)) if state.whole else expected[-1:]
            gone = [each for each in gone if each in state.buffer]
            state.replace(gone, [])
            expected = [each for each in expected if each not in gone]
        if len(expected) > 32 or not state.buffer:
            expected = []
        fields |= state.changes()
        assert waiting(fields) == state.buffer == expected
        if draw.random() < 0.3 and len(state.buffer) < 26:
            state = loaded(fields)
            assert state.changes() == {}
        if draw.random() < 0.1:
            state.nodes, state.whole = {}, True
            state.flush()
            expected = []
            fields |= state.changes()
            assert waiting(fields) == []


def test_a_buffer_of_an_earlier_format_is_written_whole_with_the_next_row():
    rows = [row(number) for number in range(3)]
    fields = {HEADER: Header([0], rows=3, oldest_us=T0).encode(), BUFFER: SECOND_FORMAT + encode(rows)[1:]}
    state = loaded(fields)
    state.add([row(3)])
    fields |= state.changes()
    assert TAIL not in fields
    assert decode_rows(fields[BUFFER]) == [*rows, row(3)]
    state.add([row(4)])
    assert state.changes()[TAIL] == encode([row(4)])


def test_a_pipeline_whose_rows_do_not_wait_has_no_tail():
    state = fresh()
    state.algebra.buffer_rows = 0
    for number in range(10):
        state.add([row(number)])
        assert TAIL not in state.changes()


def test_rows_of_two_formats_are_not_joined():
    with pytest.raises(CorruptState, match="stand in one buffer"):
        joined_rows(SECOND_FORMAT + encode([row(1)])[1:], encode([row(2)]))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 3), (3, 0), (3, 4), (15, 1), (16, 16), (31, 1)])
def test_joined_rows_are_those_of_both(first, second):
    rows = [row(number) for number in range(first + second)]
    assert decode_rows(joined_rows(encode(rows[:first]), encode(rows[first:]))) == rows


def test_a_read_counts_the_rows_of_the_tail():
    store, events = Store(program("1h")), [(T0 + number, 1, "a") for number in range(9)]
    for number in range(9):
        store.add(table(events).slice(number, 1))
        assert store.read(T0 + 60)["count_1h"] == number + 1
    assert len(decode_rows(store.fields[TAIL])) == 2


def runs_over(turn: int, come: list[int]) -> list[int]:
    """How many rows a key had when its buffer went into the tree, given how many come at a time."""
    state, found = KeyState(Algebra((), turn), ROOT, Header([0]), whole=True), []
    for more in come:
        state.add([row(state.header.rows + place) for place in range(more)])
        assert len(state.buffer) <= state.algebra.buffer_rows
        if not state.buffer:
            found.append(state.header.rows)
    return found


def test_the_buffers_of_two_pipelines_run_over_at_other_rows_of_a_key():
    one, other = program("1h").algebra.turn, program("24h").algebra.turn
    assert one % 33 != other % 33
    first, second = (runs_over(turn, [1] * 400) for turn in (one, other))
    for found in (first, second):
        assert found[0] == 33
        assert {later - earlier for earlier, later in pairwise(found[1:])} == {33}
    assert {*first} & {*second} == {33}


@pytest.mark.parametrize("turn", [0, 7, 1_000_003])
def test_a_buffer_runs_over_as_often_however_many_rows_come_at_once(turn):
    assert runs_over(turn, [33] * 10) == [33 * number for number in range(1, 11)]
    assert len(runs_over(turn, [5] * 66)) in (9, 10, 11)
    assert len(runs_over(turn, [100] * 10)) == 10


@pytest.mark.parametrize("turn", range(33))
def test_a_row_that_takes_the_place_of_another_fills_a_buffer_no_further(turn):
    for rows in (1, 40):
        state = KeyState(Algebra((), turn), ROOT, Header([0]), whole=True)
        state.add([row(number) for number in range(rows)])
        state.changes()
        into_the_tree = 0
        for _ in range(60):
            state.replace([row(rows - 1)], [row(rows - 1)])
            into_the_tree += not state.buffer
        assert into_the_tree == 0


@pytest.mark.parametrize("turn", range(0, 33, 4))
def test_what_a_buffer_needs_of_the_tree_is_named_before_it_runs_over(turn):
    whole = KeyState(Algebra((), turn), ROOT, Header([0]), whole=True)
    whole.add([row(0)])
    fields = whole.changes()
    for number in range(1, 150):
        _, *waits = BESIDE_THE_TREE
        stored = KeyState.stored(Algebra((), turn), ROOT, fields[HEADER], *map(fields.get, waits))
        needed = stored.missing([row(number)], flushing=False)
        whole.add([row(number)])
        changes = whole.changes()
        assert bool(needed) == any(name not in BESIDE_THE_TREE for name in changes)
        fields.update(changes)
