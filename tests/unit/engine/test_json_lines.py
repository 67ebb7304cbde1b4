"""A block of lines means what its records mean one by one, whichever way it is read."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurelib.definitions import DatasetDef, ExpectationDef, FieldDef
from featurelib.engine.coerce import coerce
from featurelib.engine.drift import look
from featurelib.engine.json_lines import read_json_lines

READ = json.JSONDecoder()
SALE = DatasetDef(
    name="Sale",
    version=1,
    fields=(
        FieldDef(name="id", type="str", key=True),
        FieldDef(name="total", type="float", minimum=0, optional=True),
        FieldDef(name="count", type="int"),
        FieldDef(name="paid", type="bool", optional=True),
        FieldDef(name="cost", type="decimal(2)", optional=True),
        FieldDef(name="tags", type="list[str]", optional=True),
        FieldDef(name="marks", type="list[float]", optional=True),
        FieldDef(name="at", type="datetime", timestamp=True),
    ),
)
GOOD = {
    "id": "s1",
    "total": 2.5,
    "count": 3,
    "paid": True,
    "tags": ["a"],
    "marks": [1, 2.5],
    "at": "2026-03-01T09:00:00Z",
}


def block(*records) -> bytes:
    return b"".join((each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in records)


def one_by_one(data: bytes):
    """The records of the lines that are objects, and the places of the others."""
    lines = [line for line in data.split(b"\n") if line.strip()]
    records, rows, others = [], [], []
    for row, line in enumerate(lines):
        try:
            record = READ.decode(line.decode())
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
            rows.append(row)
        else:
            others.append(row)
    return records, rows, others


def assert_same(data: bytes, dataset: DatasetDef = SALE):
    """Both ways give the same table, refuse the same records, and see the same columns; the block as it was read."""
    found = read_json_lines(data, dataset, "append", READ)
    records, rows, others = one_by_one(data)
    assert found.rows.tolist() == rows
    assert [bad.row for bad in found.malformed] == others
    mine, theirs = coerce(found.records, dataset), coerce(records, dataset)
    # Written out: a NaN or a minus zero would compare as equal.
    assert repr(mine.table.to_pylist()) == repr(theirs.table.to_pylist())
    assert mine.table.schema == theirs.table.schema
    assert [bad[:1] + bad[2:4] for bad in mine.rejected] == [bad[:1] + bad[2:4] for bad in theirs.rejected]
    came = found.came
    assert [came.record(bad.row) if came else bad.record for bad in mine.rejected] == [
        bad.record for bad in theirs.rejected
    ]
    assert (came.sight if came else look(found.records)) == look(records)
    return found


def test_a_clean_block_becomes_columns_at_once():
    found = assert_same(block(*({**GOOD, "id": f"s{number}", "total": number} for number in range(200))))
    assert isinstance(found.records, pa.Table)


@pytest.mark.parametrize(
    "line",
    [
        {**GOOD, "total": -1},
        {**GOOD, "total": "2.5"},
        {**GOOD, "total": 2**53 + 1},
        {**GOOD, "total": 1e300},
        {**GOOD, "count": 3.0},
        {**GOOD, "count": 3.5},
        {**GOOD, "count": 2**63},
        {**GOOD, "count": True},
        {**GOOD, "count": None},
        {**GOOD, "cost": 1.005},
        {**GOOD, "cost": "1.25"},
        {**GOOD, "tags": [1]},
        {**GOOD, "tags": "a"},
        {**GOOD, "marks": [2**53 + 1]},
        {**GOOD, "at": 1_772_355_600},
        {**GOOD, "at": 1_772_355_600.5},
        {**GOOD, "at": "2026-03-01"},
        {**GOOD, "at": "yesterday"},
        {**GOOD, "id": ""},
        {**GOOD, "id": 5},
        {**GOOD, "coupon": {"deep": [1, {"a": None}]}},
        {"id": "s1"},
        {},
        b'{"id": "s1", "count": 1, "total": -0, "at": 0}',
        b'{"id": "s1", "count": 1, "total": NaN, "at": 0}',
        b'{"id": "s1", "count": 1, "total": Infinity, "at": 0}',
        b'{"id": "s1", "count": 1, "total": Inf, "at": 0}',
        b'{"id": "s1", "count": 1e2, "total": 1E400, "at": 0}',
        b'{"id": "s1", "count": 01, "at": 0}',
        b'{"id": "s1", "id": "s2", "count": 1, "at": 0}',
        b'{"id": "\\ud800", "count": 1, "at": 0}',
        b'{"id": "\\u0000", "count": 1, "at": 0}',
        b'{"id": "\xff", "count": 1, "at": 0}',
        b'{"id": "s1", "count": 1, "at": 0} {"id": "s2", "count": 1, "at": 0}',
        b'{"id": "s1", "count": 1,\n"at": 0}',
        b'{"id": "s1", "count": 1, "at": 0}\r',
        b"[1]",
        b"null",
        b"nonsense",
        b"   ",
        b"",
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_whatever_one_line_holds_the_block_means_the_same(line, place):
    lines = [GOOD, {**GOOD, "id": "s2"}]
    lines.insert(place, line)
    assert_same(block(*lines))
    assert_same(block(line))


def test_the_kinds_of_all_records_count_and_not_of_the_first():
    for odd in ({"total": 1}, {"total": "1"}, {"count": 2.0}, {"at": 0}, {"cost": 5}, {"id": 7}):
        assert_same(block(*({**GOOD, "id": f"s{number}"} for number in range(300)), {**GOOD, **odd}))


def test_a_rule_that_looks_at_the_number_as_it_came_is_asked_for_that_number():
    whole = ExpectationDef(type="column_values_of_type", column="total", type_name="int", mostly=1.0)
    judged = SALE.model_copy(update={"expectations": (whole,)})
    found = read_json_lines(block({**GOOD, "total": 5}, {**GOOD, "total": 5.5}), judged, "append", READ)
    assert [record["total"] for record in found.records] == [5, 5.5]


def test_changes_are_read_one_by_one():
    assert isinstance(read_json_lines(block(GOOD), SALE, "debezium", READ).records, list)


def test_deep_nesting_is_a_line_that_is_no_record():
    deep = b'{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    assert_same(block(GOOD, deep, GOOD))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**65), 2**65),
    st.floats(),
    st.sampled_from(["", "a", "3", "2.50", "true", "2026-03-01T09:00:00Z", "2026-03-01T09:00:00+02:00", 'é\n\t"\\']),
    st.lists(st.one_of(st.none(), st.integers(-5, 5), st.floats(-5, 5), st.text(max_size=2)), max_size=3),
    st.dictionaries(st.sampled_from(["a", "b"]), st.integers(), max_size=1),
)
RECORDS = st.dictionaries(st.sampled_from([*SALE.model_fields_set, *(f.name for f in SALE.fields), "x"]), VALUES)
# Mostly records that fit, with one member changed: blocks of which some go the quick way.
CHANGED = st.builds(
    lambda changed: {**GOOD, **changed}, st.dictionaries(st.sampled_from(list(GOOD)), VALUES, max_size=1)
)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.one_of(CHANGED, CHANGED, RECORDS, st.just(GOOD)), max_size=6))
def test_any_block_means_what_its_records_mean(records):
    assert_same(block(*records))
