"""Many rows at once give what one state per key gives, whatever the aggregate, the window and the values."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurelib import aggregates as agg
from featurelib.aggregates import Aggregate
from featurelib.clock import HOUR, MINUTE, SECOND
from featurelib.definitions import (
    AggregateStep,
    ConnectorDef,
    DatasetDef,
    Definitions,
    FieldDef,
    JoinStep,
    NamedAggregate,
    PipelineDef,
    SourceDef,
)
from featurelib.engine import asof
from featurelib.engine.asof import KNOWN, evaluate
from featurelib.engine.program import Program, states_of
from featurelib.engine.records import record_schema
from featurelib.engine.slices import ExactSums, SliceTree, SortedRows, Ticks, codes_of
from featurelib.errors import InvalidRequest, ValueOverflow
from featurelib.expr import col
from featurelib.windows import AnyWindow, Continuous, Hopping, Lifetime, Session, Tumbling

T0 = 1_700_006_400_000_000
EVENTS = DatasetDef(
    name="Event",
    fields=(
        FieldDef(name="user", type="str", key=True),
        FieldDef(name="amount", type="int", optional=True),
        FieldDef(name="price", type="float", optional=True),
        FieldDef(name="cost", type="decimal(2)", optional=True),
        FieldDef(name="city", type="str", optional=True),
        FieldDef(name="paid", type="bool", optional=True),
        FieldDef(name="seen", type="datetime", optional=True),
        FieldDef(name="at", type="datetime", timestamp=True),
    ),
)
CITIES = DatasetDef(
    name="City",
    fields=(
        FieldDef(name="city", type="str", key=True),
        FieldDef(name="people", type="int"),
        FieldDef(name="at", type="datetime", timestamp=True),
    ),
)
PAID = col("paid") == True  # noqa: E712  # an expression
WINDOWS: list[AnyWindow] = [
    Continuous("1m"),
    Continuous("1h"),
    Continuous("10m", offset="5m"),
    Continuous("1h", max_rows=3),
    Lifetime(),
    Lifetime(offset="7m"),
    Lifetime(max_rows=2),
    Tumbling("10m"),
    Hopping("20m", "5m", lookback="1m"),
]
AGGREGATES: list[tuple[str, Mapping[str, Any]]] = [
    ("Count", {}),
    ("Count", {"where": PAID}),
    ("Count", {"of": "price", "default": None}),
    ("Sum", {"of": "amount"}),
    ("Sum", {"of": "price"}),
    ("Sum", {"of": "cost", "where": PAID}),
    ("Avg", {"of": "amount", "where": col("amount") > 3}),
    ("Avg", {"of": "price", "default": -1.5}),
    ("Avg", {"of": "cost"}),
    ("Min", {"of": "amount"}),
    ("Min", {"of": "price", "where": PAID}),
    ("Min", {"of": "city"}),
    ("Max", {"of": "cost"}),
    ("Max", {"of": "city", "default": "none"}),
    ("Max", {"of": "price"}),
    ("Last", {"of": "city"}),
    ("Last", {"of": "amount", "dropnull": True, "where": PAID}),
    ("Last", {"of": "seen"}),
    ("First", {"of": "price"}),
    ("First", {"of": "cost", "dropnull": True}),
    ("LastK", {"of": "city", "k": 2}),
    ("LastK", {"of": "amount", "k": 3, "dropnull": True, "dedup": True}),
    ("FirstK", {"of": "price", "k": 2, "dropnull": True}),
    ("Variance", {"of": "amount"}),
    ("Stddev", {"of": "price", "where": PAID}),
    ("ExpDecaySum", {"of": "price", "half_life": "5m"}),
    ("ExpDecaySum", {"of": "amount", "half_life": "1h", "where": PAID}),
    ("Distinct", {"of": "city"}),
    ("ApproxDistinct", {"of": "amount"}),
    ("Quantile", {"of": "price", "q": 0.5}),
    ("TopK", {"of": "city", "k": 2}),
    ("ApproxPercentile", {"of": "price"}),
]


def aggregate(name: str, options: Mapping[str, Any], window: AnyWindow) -> Aggregate:
    made: Aggregate = getattr(agg, name)(**{**options, "window": window})
    return made


def program_of(aggregates: Sequence[Aggregate], *, cdc: str = "append", joined: bool = False) -> Program:
    named = tuple(NamedAggregate(output=f"f{n}", aggregate=one) for n, one in enumerate(aggregates))
    join = (JoinStep(right="City", on="city", fields=("people",)),) if joined else ()
    pipeline = PipelineDef(
        name="totals",
        input_datasets=("Event", "City") if joined else ("Event",),
        output_dataset="Out",
        steps=(*join, AggregateStep(keys=("user",), aggregates=named)),
    )
    out = DatasetDef(name="Out", fields=(EVENTS.key, EVENTS.timestamp))
    source: Any = SourceDef(dataset="Event", connector=ConnectorDef(type="files", config={}), cdc=cdc)
    return Program.compile(pipeline, Definitions(datasets=(EVENTS, CITIES, out), sources=(source,)))


def records_of(chosen: random.Random, count: int, users: int = 4) -> pa.Table:
    """Accepted records in total order; many share an instant, some came long after it."""
    rows = []
    for offset in range(count):
        time = T0 + chosen.randrange(90) * MINUTE + chosen.choice((0, 0, 0, 1, SECOND))
        rows.append(
            {
                "user": f"u{chosen.randrange(users)}",
                "amount": chosen.choice((None, *range(-4, 9))),
                "price": chosen.choice((None, 0.1, -2.75, 1e9, 1e-7, -1e9, 3.0)),
                "cost": chosen.choice((None, "0.10", "-12.34", "99999999.99")),
                "city": chosen.choice((None, "Oslo", "Ås", "Bergen", "")),
                "paid": chosen.choice((None, True, True, False)),
                "seen": chosen.choice((None, time - HOUR)),
                "at": time,
                "__time": time,
                "__accepted_at": time + chosen.choice((0, 0, SECOND, 40 * MINUTE)),
                "__partition": 0,
                "__offset": offset,
                "__late": False,
                "__deleted": False,
                "__erased": False,
            }
        )
    return table(sorted(rows, key=lambda row: (row["__time"], row["__accepted_at"], row["__offset"])))


def table(rows: list[dict[str, Any]]) -> pa.Table:
    schema = record_schema(EVENTS)
    columns = []
    for field in schema:
        values = [row[field.name] for row in rows]
        text = pa.types.is_decimal(field.type)
        columns.append(pa.array(values, pa.string()).cast(field.type) if text else pa.array(values, field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def pairs_of(chosen: random.Random, records: pa.Table, count: int) -> tuple[list[str], np.ndarray]:
    """Keys, an unknown one among them, at instants on, around and far from the records and the windows' edges."""
    times = records["__time"].to_pylist() or [T0]
    edges = (0, SECOND, MINUTE, 10 * MINUTE, 40 * MINUTE, HOUR)
    near = (0, 0, *edges, *(edge - 1 for edge in edges), HOUR + 1, -2 * HOUR, 9 * HOUR)
    keys = [f"u{chosen.randrange(5)}" for _ in range(count)]
    return keys, np.array([chosen.choice(times) + chosen.choice(near) for _ in range(count)], dtype=np.int64)


def by_state(program: Program, records: pa.Table, keys: Sequence[str], instants: np.ndarray) -> list[Any]:
    states = states_of(program, {"Event": records})
    return [
        program.finish_state(states[key], at) if key in states else None
        for key, at in zip(keys, instants.tolist(), strict=True)
    ]


def assert_same(program: Program, found: pl.DataFrame, expected: Sequence[Mapping[str, Any] | None]) -> None:
    assert found.columns == [KNOWN, *program.outputs]
    assert found[KNOWN].to_list() == [row is not None for row in expected]
    for name in program.outputs:
        column = found[name]
        values = (column.dt.epoch("us") if column.dtype == pl.Datetime else column).to_list()
        for line, (value, row) in enumerate(zip(values, expected, strict=True)):
            assert alike(value, None if row is None else row[name]), (name, line, value, row and row[name])


def alike(found: Any, expected: Any) -> bool:
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(alike, found, expected))
    if isinstance(found, dict) and isinstance(expected, list | tuple | dict):
        members = expected.values() if isinstance(expected, dict) else expected
        return all(map(alike, found.values(), members))
    if isinstance(found, float) and expected is not None:
        return math.isclose(found, float(expected), rel_tol=1e-9, abs_tol=1e-12)
    return bool(found == expected)


@pytest.mark.parametrize("window", WINDOWS, ids=repr)
def test_every_aggregate_gives_the_values_of_a_state(window: AnyWindow) -> None:
    chosen = random.Random(repr(window))
    program = program_of([aggregate(name, options, window) for name, options in AGGREGATES])
    for count in (0, 1, 3, 40, 150):
        records = records_of(chosen, count)
        keys, instants = pairs_of(chosen, records, 60)
        found = evaluate(program, program.shape_all({"Event": records}), keys, instants)
        assert_same(program, found, by_state(program, records, keys, instants))


def test_sessions_give_the_values_of_a_state() -> None:
    chosen = random.Random(5)
    kinds = [("Count", {}), ("Sum", {"of": "amount"}), ("Last", {"of": "city"})]
    program = program_of([aggregate(name, options, Session("4m")) for name, options in kinds])
    records = records_of(chosen, 80)
    keys, instants = pairs_of(chosen, records, 80)
    found = evaluate(program, program.shape_all({"Event": records}), keys, instants)
    assert_same(program, found, by_state(program, records, keys, instants))


@pytest.mark.parametrize("cdc", ["upsert", "debezium"])
def test_rows_that_a_newer_version_closed_count_until_then(cdc: str) -> None:
    chosen = random.Random(cdc)
    windows = (Continuous("1h"), Lifetime(), Hopping("20m", "5m", lookback="1m"))
    program = program_of([aggregate(*one, window) for one in AGGREGATES[:20] for window in windows], cdc=cdc)
    records = records_of(chosen, 60)
    keys, instants = pairs_of(chosen, records, 80)
    found = evaluate(program, program.shape_all({"Event": records}), keys, instants)
    assert_same(program, found, by_state(program, records, keys, instants))


def test_windows_and_defaults_side_by_side_keep_to_their_columns() -> None:
    chosen = random.Random(8)
    every = [(*one, window) for one in AGGREGATES for window in WINDOWS]
    for _ in range(12):
        program = program_of([aggregate(*one) for one in chosen.sample(every, 9)])
        records = records_of(chosen, 50)
        keys, instants = pairs_of(chosen, records, 40)
        found = evaluate(program, program.shape_all({"Event": records}), pl.Series(keys), instants)
        assert_same(program, found, by_state(program, records, keys, instants))


def test_the_order_of_the_rows_given_does_not_matter() -> None:
    chosen = random.Random(3)
    program = program_of([aggregate(*one, Continuous("1h")) for one in AGGREGATES[:25]])
    records = records_of(chosen, 120)
    shaped = program.shape_all({"Event": records})
    keys, instants = pairs_of(chosen, records, 60)
    shuffled = shaped.sample(fraction=1.0, shuffle=True, seed=1)
    assert evaluate(program, shuffled, keys, instants).equals(evaluate(program, shaped, keys, instants))


def test_as_served_counts_what_was_accepted_by_the_instant() -> None:
    chosen = random.Random(21)
    program = program_of([aggregate(*one, w) for one in AGGREGATES[:25] for w in (Continuous("1h"), Lifetime())])
    records = records_of(chosen, 60)
    keys, instants = pairs_of(chosen, records, 200)
    found = evaluate(program, program.shape_all({"Event": records}), keys, instants, knowledge="as_served")
    accepted = np.array(records["__accepted_at"])
    expected = [
        by_state(program, records.filter(pa.array(accepted <= at)), [key], np.array([at]))[0]
        for key, at in zip(keys, instants.tolist(), strict=True)
    ]
    assert_same(program, found, expected)
    latest = evaluate(program, program.shape_all({"Event": records}), keys, instants)
    assert not found.equals(latest), "no record came late enough to tell the two apart"


@pytest.mark.parametrize("options", [{"joined": True}, {"cdc": "upsert"}], ids=str)
def test_as_served_is_refused_where_a_row_depends_on_other_records(options: dict[str, Any]) -> None:
    program = program_of([agg.Count(window="1h")], **options)
    shaped = program.shape_all({"Event": records_of(random.Random(1), 5)})
    with pytest.raises(InvalidRequest, match="as_served over many instants"):
        evaluate(program, shaped, ["u1"], np.array([T0]), knowledge="as_served")


def test_no_pairs_give_no_lines_with_the_columns_and_types_of_any_other_answer() -> None:
    program = program_of([aggregate(*one, Lifetime()) for one in AGGREGATES])
    records = records_of(random.Random(2), 20)
    shaped = program.shape_all({"Event": records})
    none = evaluate(program, shaped, [], np.array([], dtype=np.int64))
    some = evaluate(program, shaped, ["u1"], np.array([T0 + HOUR]))
    assert none.schema == some.schema
    assert len(none) == 0


def test_a_sum_beyond_64_bits_is_an_error_and_one_that_comes_back_is_a_sum() -> None:
    program = program_of([agg.Sum(of="amount", window="1h")])
    high = 2**63 - 1
    base = records_of(random.Random(1), 3, users=1).to_pylist()
    for row, amount, minute in zip(base, (high, high, -high), (0, 1, 2), strict=True):
        row |= {"amount": amount, "cost": None, "__time": T0 + minute * MINUTE}
    shaped = program.shape_all({"Event": table(base)})
    assert evaluate(program, shaped, ["u0"], np.array([T0 + 2 * MINUTE]))["f0"].to_list() == [high]
    with pytest.raises(ValueOverflow):
        evaluate(program, shaped, ["u0"], np.array([T0 + MINUTE]))


@pytest.mark.parametrize("seed", range(3))
def test_the_order_in_which_rows_are_given_does_not_matter(seed: int) -> None:
    """Ties within an instant included, of which there are many."""
    chosen = random.Random(seed)
    program = program_of([aggregate(name, options, Continuous("1h")) for name, options in AGGREGATES])
    records = records_of(chosen, 150)
    shaped = program.shape_all({"Event": records})
    keys, instants = pairs_of(chosen, records, 60)
    shuffled = shaped.sample(fraction=1.0, shuffle=True, seed=seed)
    assert evaluate(program, shuffled, keys, instants).equals(evaluate(program, shaped, keys, instants))


@given(
    times=st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=20),
    others=st.lists(st.integers(-(2**41), 2**41), max_size=20),
    bits=st.sampled_from([6, 62]),
)
def test_ticks_of_rows_and_other_instants_compare_as_they_do(times: list[int], others: list[int], bits: int) -> None:
    rows = np.array(times, dtype=np.int64)
    ticks = Ticks(rows, bits)
    asked = np.array([*others, *times, *(time + 1 for time in times)], dtype=np.int64)
    of_rows, of_asked = ticks.of(rows), ticks.of(asked)
    assert np.array_equal(np.sign(of_rows[:, None] - of_asked), np.sign(rows[:, None] - asked))
    assert max(int(of_asked.max()), int(of_rows.max())).bit_length() <= ticks.bits <= max(bits, 42)
    assert min(int(of_asked.min()), int(of_rows.min())) >= 0


WITH_KERNELS = ["Count", "Sum", "Avg", "Min", "Max", "Variance", "Stddev", "Last", "First", "FirstK", "ExpDecaySum"]


def test_the_aggregates_of_most_pipelines_have_kernels() -> None:
    """Without this, a kernel that always declined would pass every other test here, at the speed of states."""
    chosen = [one for one in AGGREGATES if one[0] in WITH_KERNELS] + [("LastK", {"of": "city", "k": 2})]
    assert {name for name, _ in chosen} == {*WITH_KERNELS, "LastK"}
    program = program_of([aggregate(*one, window) for one in chosen for window in WINDOWS])
    shaped = program.shape_all({"Event": records_of(random.Random(4), 60)})
    pairs = asof._pairs(["u1", "u2"], np.array([T0 + HOUR, T0]))
    rows = SortedRows(shaped, codes_of(shaped["__key"], pairs.keys), "__time")
    first, end = rows.first(pairs.code), rows.place(pairs.code, pairs.at, "right")
    for output in program.fold.layout:
        slices = asof._slices(rows, pairs, program.fold.windows[output.window], first, end)
        assert slices is not None
        assert output.aggregator.over(slices) is not None, output.aggregator


FLOATS = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=64), max_size=40)
CENTS = st.lists(st.integers(-(10**9), 10**9).map(lambda cents: cents / 100), max_size=60)
WIDE = st.lists(st.sampled_from([1e15, -1e15, 1e-9, 0.1, -0.0, 7e-12, 1.0]), max_size=40)


@given(values=st.one_of(FLOATS, CENTS, WIDE), cuts=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60))))
def test_sums_of_floats_are_those_of_fractions_rounded(values: list[float], cuts: list[tuple[int, int]]) -> None:
    sums = ExactSums.of_floats(np.array(values, dtype=np.float64))
    if sums is None:
        return  # the magnitudes lie too far apart; a state answers then
    slices = [tuple(sorted((min(a, len(values)), min(b, len(values))))) for a, b in cuts]
    low = np.array([a for a, _ in slices], dtype=np.int64)
    high = np.array([b for _, b in slices], dtype=np.int64)
    for (a, b), found in zip(slices, sums.floats(low, high).tolist(), strict=True):
        exact = sum((Fraction(value) for value in values[a:b]), Fraction(0))
        assert Fraction(found) == exact or abs(Fraction(found) - exact) <= abs(exact) * Fraction(1, 2**50), (a, b)


@pytest.mark.parametrize("values", [[0.1, 1e15, -1e15, 2e-9], [100.25, -3.5, 0.01], [5e-324, 1e-310]], ids=str)
def test_floats_of_ordinary_spread_have_exact_sums(values: list[float]) -> None:
    assert ExactSums.of_floats(np.array(values)) is not None


@pytest.mark.parametrize("values", [[1e300, 1e-300], [math.inf], [math.nan, 1.0]], ids=str)
def test_floats_too_far_apart_have_none(values: list[float]) -> None:
    assert ExactSums.of_floats(np.array(values)) is None


@given(values=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40), a=st.integers(0, 40), b=st.integers(0, 40))
def test_sums_of_integers_are_exact_or_said_not_to_fit(values: list[int], a: int, b: int) -> None:
    low, high = sorted((min(a, len(values)), min(b, len(values))))
    totals, fits = ExactSums.of_ints(np.array(values, dtype=np.int64)).ints(np.array([low]), np.array([high]))
    exact = sum(values[low:high])
    assert bool(fits[0]) == (-(2**63) <= exact < 2**63)
    assert not fits[0] or int(totals[0]) == exact


@given(size=st.integers(1, 70), a=st.integers(0, 70), b=st.integers(0, 70))
def test_a_tree_merges_a_slice_in_order_and_each_value_once(size: int, a: int, b: int) -> None:
    low, high = sorted((min(a, size), min(b, size)))
    # Runs of consecutive integers: [first, last], where a gap or a turn shows as -9.
    leaves = np.arange(size, dtype=np.int64)

    def joined(older: Any, newer: Any) -> Any:
        (first, last), (start, end) = older, newer
        fits = np.where(last + 1 == start, True, False)
        both = (first >= 0) & (start >= 0)
        return (
            np.where(first == -1, start, np.where(start == -1, first, np.where(both & fits, first, -9))),
            np.where(start == -1, last, end),
        )

    tree = SliceTree((leaves, leaves), joined, (-1, -1))
    first, last = tree.merged(np.array([low]), np.array([high]))
    assert (int(first[0]), int(last[0])) == ((low, high - 1) if low < high else (-1, -1))
