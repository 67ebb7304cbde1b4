"""The coercion table of engine/coerce.py, row by row, and column kernels against the cell rules."""

from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from featurelib.clock import parse_instant
from featurelib.definitions import DatasetDef, FieldDef
from featurelib.engine.coerce import coerce, coerce_value
from featurelib.engine.records import arrow_type
from featurelib.errors import RecordError

APRIL = parse_instant("2026-04-01T10:30:00Z")
NAN = float("nan")


def dataset(type_name: str, *, optional: bool = False) -> DatasetDef:
    return DatasetDef(
        name="Sample",
        fields=(
            FieldDef(name="id", type="str", key=True),
            FieldDef(name="at", type="datetime", timestamp=True),
            FieldDef(name="x", type=type_name, optional=optional),
        ),
    )


def optional_field(type_name: str) -> FieldDef:
    return FieldDef(name="x", type=type_name, optional=True)


ACCEPTED = [
    ("int", 3, 3),
    ("int", 3.0, 3),
    ("int", "3", 3),
    ("int", " +3 ", 3),
    ("int", "3.00", 3),
    ("int", "1e3", 1000),
    ("int", Decimal(7), 7),
    ("int", 2**63 - 1, 2**63 - 1),
    ("int", -(2**63), -(2**63)),
    ("int", "9007199254740993", 9007199254740993),
    ("int", "9223372036854775807", 2**63 - 1),
    ("float", 3, 3.0),
    ("float", 2.5, 2.5),
    ("float", "2.5", 2.5),
    ("float", "-1e-3", -0.001),
    ("float", ".5", 0.5),
    ("float", 2**60, float(2**60)),
    ("float", Decimal("0.25"), 0.25),
    ("str", "text", "text"),
    ("str", "", ""),
    ("bool", True, True),
    ("bool", "true", True),
    ("bool", "False", False),
    ("datetime", "2026-04-01T10:30:00Z", APRIL),
    ("datetime", "2026-04-01 10:30", APRIL),
    ("datetime", "2026-04-01T12:30:00+02:00", APRIL),
    ("datetime", "2026-04-01T10:30:00.123456789Z", APRIL + 123456),
    ("datetime", "2026-04-01", parse_instant("2026-04-01T00:00:00Z")),
    ("datetime", APRIL // 1_000_000, APRIL),
    ("datetime", APRIL / 1_000_000 + 0.5, APRIL + 500_000),
    ("datetime", str(APRIL // 1_000_000), APRIL),
    ("datetime", datetime(2026, 4, 1, 10, 30, tzinfo=UTC), APRIL),
    ("datetime", datetime(2026, 4, 1, 10, 30), APRIL),  # noqa: DTZ001  # no zone is UTC
    ("datetime", date(2026, 4, 1), parse_instant("2026-04-01")),
    ("list[int]", [1, 2.0, None, "3"], [1, 2, None, 3]),
    ("list[int]", [], []),
    ("list[int]", (1, 2), [1, 2]),
    ("list[str]", ["a", None], ["a", None]),
    ("list[decimal(1)]", ["0.5", 2], [Decimal("0.5"), Decimal("2.0")]),
    ("decimal(2)", 3, Decimal("3.00")),
    ("decimal(2)", "0.60", Decimal("0.60")),
    ("decimal(2)", "0.6", Decimal("0.60")),
    ("decimal(2)", " +1.500 ", Decimal("1.50")),
    ("decimal(2)", "1e1", Decimal("10.00")),
    ("decimal(2)", "12e-1", Decimal("1.20")),
    ("decimal(2)", 0.1, Decimal("0.10")),
    ("decimal(2)", 123456789.12, Decimal("123456789.12")),
    ("decimal(2)", 1e16, Decimal("10000000000000000.00")),
    ("decimal(2)", -0.0, Decimal("0.00")),
    ("decimal(2)", Decimal("1.5000"), Decimal("1.50")),
    ("decimal(0)", "99999999999999999999", Decimal(99999999999999999999)),
    ("decimal(18)", "-99999999999999999999.999999999999999999", Decimal("-99999999999999999999.999999999999999999")),
    ("decimal(18)", 2**63 - 1, Decimal(2**63 - 1)),
    ("decimal(2)", "0." + "0" * 5000, Decimal("0.00")),
]

REFUSED = [
    ("int", True, "wrong_type"),
    ("int", 3.5, "not_integral"),
    ("int", "3.5", "not_integral"),
    ("int", "abc", "wrong_type"),
    ("int", "1_000", "wrong_type"),
    ("int", "0x10", "wrong_type"),
    ("int", "٣", "wrong_type"),
    ("int", 2**63, "out_of_range"),
    ("int", -(2**63) - 1, "out_of_range"),
    ("int", 2.0**63, "out_of_range"),
    ("int", "1e999999999", "out_of_range"),
    ("int", float("inf"), "out_of_range"),
    ("int", [1], "wrong_type"),
    ("int", 10**5000, "out_of_range"),
    ("int", Decimal("Infinity"), "out_of_range"),
    ("int", Decimal("-Infinity"), "out_of_range"),
    ("int", Decimal("1e999999999"), "out_of_range"),
    ("int", "1e99999999999999999999", "out_of_range"),
    ("float", 10**5000, "out_of_range"),
    ("float", Decimal("Infinity"), "out_of_range"),
    ("str", "\ud800", "wrong_type"),
    ("str", 10**5000, "wrong_type"),
    ("list[str]", ["a", "\udfff"], "wrong_type"),
    ("list[int]", [10**5000], "out_of_range"),
    ("list[int]", 10**5000, "wrong_type"),
    ("int", [10**5000], "wrong_type"),
    ("datetime", 10**5000, "invalid_timestamp"),
    ("datetime", "\ud800", "invalid_timestamp"),
    ("datetime", "1_775_039_400", "invalid_timestamp"),
    ("datetime", "١٧٧٥٠٣٩٤٠٠", "invalid_timestamp"),
    ("bool", "\ud800", "wrong_type"),
    ("int", "\ud800", "wrong_type"),
    ("float", True, "wrong_type"),
    ("float", "nan", "wrong_type"),
    ("float", 2**53 + 1, "out_of_range"),
    ("float", 10**400, "out_of_range"),
    ("float", float("-inf"), "out_of_range"),
    ("float", "1e400", "out_of_range"),
    ("float", {"a": 1}, "wrong_type"),
    ("str", 3, "wrong_type"),
    ("str", b"bytes", "wrong_type"),
    ("str", {"a": 1}, "wrong_type"),
    ("bool", 1, "wrong_type"),
    ("bool", "yes", "wrong_type"),
    ("datetime", True, "invalid_timestamp"),
    ("datetime", "next tuesday", "invalid_timestamp"),
    ("datetime", 1_775_039_400_000, "invalid_timestamp"),
    ("datetime", "2026-02-30", "invalid_timestamp"),
    ("list[int]", 3, "wrong_type"),
    ("list[int]", [1, "x"], "wrong_type"),
    ("list[int]", [True, 1.5], "wrong_type"),
    ("list[int]", [1.5], "not_integral"),
    ("list[float]", [float("inf")], "out_of_range"),
    ("list[decimal(1)]", ["0.55"], "not_exact"),
    ("decimal(2)", "0.605", "not_exact"),
    ("decimal(2)", 0.605, "not_exact"),
    ("decimal(2)", 1e-300, "not_exact"),
    ("decimal(2)", Decimal("0.605"), "not_exact"),
    ("decimal(2)", "1e-999999999", "not_exact"),
    ("decimal(0)", "1.5", "not_exact"),
    ("decimal(2)", 10**20, "out_of_range"),
    ("decimal(2)", "100000000000000000000", "out_of_range"),
    ("decimal(2)", 1e20, "out_of_range"),
    ("decimal(2)", 10**5000, "out_of_range"),
    ("decimal(2)", "1e999999999", "out_of_range"),
    ("decimal(2)", float("inf"), "out_of_range"),
    ("decimal(2)", Decimal("Infinity"), "out_of_range"),
    ("decimal(2)", True, "wrong_type"),
    ("decimal(2)", "abc", "wrong_type"),
    ("decimal(2)", "٣", "wrong_type"),
    ("decimal(2)", [1], "wrong_type"),
]


def one(type_name: str, value: object, *, optional: bool = True):
    record = {"id": "a", "at": APRIL // 1_000_000, "x": value}
    return coerce([record], dataset(type_name, optional=optional))


def stored(value: object, type_name: str) -> object:
    # A stored datetime column gives datetimes; compare as instants.
    return parse_instant(value) if type_name == "datetime" and value is not None else value


@pytest.mark.parametrize(("type_name", "given_value", "expected"), ACCEPTED)
def test_an_accepted_cell_keeps_its_value(type_name, given_value, expected):
    result = one(type_name, given_value)
    assert result.rejected == []
    assert result.table.schema.field("x").type == arrow_type(type_name)
    assert stored(result.table["x"][0].as_py(), type_name) == expected
    assert coerce_value(given_value, optional_field(type_name)) == expected


# Named by place: pytest cannot print an integer of thousands of digits.
@pytest.mark.parametrize(
    ("type_name", "given_value", "reason"), REFUSED, ids=[f"{row[0]}-{place}" for place, row in enumerate(REFUSED)]
)
def test_a_refused_cell_names_reason_column_and_value(type_name, given_value, reason):
    result = one(type_name, given_value)
    (rejected,) = result.rejected
    assert (rejected.reason, rejected.field, rejected.row) == (reason, "x", 0)
    assert rejected.record["x"] == given_value
    assert rejected.message.startswith("x: ")
    assert len(result.table) == 0


@pytest.mark.parametrize("type_name", ["int", "float", "str", "bool", "datetime", "list[int]", "decimal(2)"])
def test_a_missing_value_is_null_where_optional_and_refused_where_not(type_name):
    assert one(type_name, None).table["x"].to_pylist() == [None]
    (rejected,) = one(type_name, None, optional=False).rejected
    assert rejected.reason == "missing_field"
    absent = coerce([{"id": "a", "at": 1}], dataset(type_name))
    assert [r.reason for r in absent.rejected] == ["missing_field"]


@pytest.mark.parametrize("type_name", ["int", "float", "decimal(2)"])
def test_nan_is_null_where_optional_and_refused_where_not(type_name):
    assert one(type_name, NAN).table["x"].to_pylist() == [None]
    (rejected,) = one(type_name, NAN, optional=False).rejected
    assert rejected.reason == "not_a_number"


@pytest.mark.parametrize("type_name", ["int", "float", "decimal(2)"])
@pytest.mark.parametrize("given_value", [Decimal("NaN"), Decimal("sNaN")])
def test_a_decimal_nan_is_a_nan(type_name, given_value):
    assert one(type_name, given_value).table["x"].to_pylist() == [None]
    (rejected,) = one(type_name, given_value, optional=False).rejected
    assert rejected.reason == "not_a_number"
    (rejected,) = one(f"list[{type_name}]", [given_value]).rejected
    assert rejected.reason == "out_of_range"


def test_one_surrogate_takes_no_neighbour_along_and_names_itself_in_ascii():
    records = [{"id": key, "at": 1, "x": "t"} for key in ("a", "\ud800", "b")]
    result = coerce(records, dataset("str"))
    assert result.table["id"].to_pylist() == ["a", "b"]
    (rejected,) = result.rejected
    assert (rejected.row, rejected.field, rejected.reason) == (1, "id", "wrong_type")
    assert "\\ud800" in rejected.message
    rejected.message.encode()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "empty_key"),
        (None, "missing_field"),
        (5, "wrong_type"),
        ("k" * 1_025, "invalid_key"),
        ("é" * 1_025, "invalid_key"),
        ("a\0b", "invalid_key"),
    ],
)
def test_a_key_must_be_a_text_that_a_read_can_name(key, reason):
    others = [{"id": good, "at": 1, "x": 1} for good in ("k" * 1_024, "é" * 1_024, "a b")]
    result = coerce([*others, {"id": key, "at": 1, "x": 1}], dataset("int"))
    (rejected,) = result.rejected
    assert (rejected.row, rejected.reason, rejected.field) == (3, reason, "id")
    assert len(rejected.message) < 200
    assert len(result.table) == 3


def test_a_bad_record_never_takes_its_neighbours_along():
    values = [1, "x", 3, None, "5", 2**63]
    records = [{"id": f"k{i}", "at": i, "x": value, "extra": object()} for i, value in enumerate(values)]
    result = coerce(records, dataset("int"))
    assert result.kept.tolist() == [0, 2, 4]
    assert result.table.column_names == ["id", "at", "x", "__time"]
    assert result.table["x"].to_pylist() == [1, 3, 5]
    assert result.table["__time"].to_pylist() == [0, 2_000_000, 4_000_000]
    assert [(r.row, r.reason) for r in result.rejected] == [
        (1, "wrong_type"),
        (3, "missing_field"),
        (5, "out_of_range"),
    ]


def test_the_first_declared_column_at_fault_is_the_one_named():
    (rejected,) = coerce([{"id": "", "at": "never", "x": "nope"}], dataset("int")).rejected
    assert rejected.field == "id"


def test_text_columns_of_a_csv_table_are_typed():
    table = pa.table(
        {
            "id": ["a", "b", "c"],
            "at": ["2026-04-01T10:30:00Z", "2026-04-01 10:30", "soon"],
            "x": ["7", None, "9"],
        }
    )
    result = coerce(table, dataset("int", optional=True))
    assert result.table["x"].to_pylist() == [7, None]
    assert result.table["__time"].to_pylist() == [APRIL, APRIL]
    (rejected,) = result.rejected
    assert (rejected.row, rejected.record) == (2, {"id": "c", "at": "soon", "x": "9"})


@pytest.mark.parametrize(
    ("array", "type_name", "expected"),
    [
        (pa.array([1, 2**63], pa.uint64()), "int", [1]),
        (pa.array([1.0, 2.5, NAN]), "int", [1]),
        (pa.array([1, 2], pa.int8()), "float", [1.0, 2.0]),
        (pa.array([1.5], pa.float32()), "float", [1.5]),
        (pa.array(["a", "b"]).dictionary_encode(), "str", ["a", "b"]),
        (pa.array(["a"], pa.large_string()), "str", ["a"]),
        (pa.array([Decimal("3.00"), Decimal("3.50")]), "int", [3]),
        (pa.array([datetime(2026, 4, 1, 10, 30)], pa.timestamp("ns")), "datetime", [APRIL]),  # noqa: DTZ001
        (pa.array([date(2026, 4, 1)]), "datetime", [parse_instant("2026-04-01")]),
        (pa.array([b"x"]), "str", []),
        (pa.array([Decimal("3.05"), Decimal("3.50")]), "decimal(2)", [Decimal("3.05"), Decimal("3.50")]),
        (pa.array([Decimal("3.05"), Decimal("3.50")]), "decimal(1)", [Decimal("3.5")]),
        (pa.array([Decimal(1)], pa.decimal128(38, 0)), "decimal(1)", [Decimal("1.0")]),
        (pa.array([1, 2**63], pa.uint64()), "decimal(0)", [Decimal(1), Decimal(2**63)]),
        (pa.array([1.5], pa.float32()), "decimal(1)", [Decimal("1.5")]),
        (pa.array([[1], None, [2, None], []], pa.list_(pa.int8())).slice(2), "list[int]", [[2, None], []]),
        (pa.array([[1.0], [1.5], [2.0]], pa.large_list(pa.float64())), "list[int]", [[1], [2]]),
        (pa.array([["a"], ["b"]]).cast(pa.list_(pa.dictionary(pa.int32(), pa.string()))), "list[str]", [["a"], ["b"]]),
        (pa.array([[], [None]]), "list[float]", [[], [None]]),
    ],
)
def test_every_arrow_type_a_parquet_file_brings_is_taken_or_refused(array, type_name, expected):
    count = len(array)
    table = pa.table({"id": ["k"] * count, "at": [0] * count, "x": array})
    result = coerce(table, dataset(type_name))
    assert [stored(value, type_name) for value in result.table["x"].to_pylist()] == expected
    assert result.table.schema.field("x").type == arrow_type(type_name)
    assert len(result.rejected) == count - len(expected)


def test_an_empty_batch_has_the_dataset_schema():
    result = coerce([], dataset("float"))
    assert result.table.schema.names == ["id", "at", "x", "__time"]
    assert len(result.table) == len(result.kept) == 0


_NUMBER_TEXT = st.one_of(
    st.integers(-(2**64), 2**64).map(str),
    st.floats().map(repr),
    st.from_regex(r"[+-]?[0-9]{1,20}(\.0{0,3})?", fullmatch=True),
    st.sampled_from(["", " 1", "1 ", "1.", ".", "+", "0x1", "1e3", "1_0", "true", "-0", "-0.0"]),
)
_INSTANT_TEXT = st.one_of(
    st.datetimes().map(lambda d: d.isoformat()),
    st.datetimes(timezones=st.just(UTC)).map(lambda d: d.isoformat(" ")),
    st.sampled_from(["2026-04-01", "2026-04-01T10", "20260401", "2026-04-01t10:30:00z", "1e9", "2026-04-01T24:00"]),
)
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), _NUMBER_TEXT, _INSTANT_TEXT, st.text()
)
_KINDS = (st.integers(), st.floats(), _NUMBER_TEXT, _INSTANT_TEXT, _SCALARS)
_COLUMNS = st.one_of(*(st.lists(kind | st.none(), max_size=6) for kind in _KINDS))


_PARTS = st.lists(_SCALARS, max_size=4)
_COLUMNS = (
    _COLUMNS | st.lists(_PARTS | st.none(), max_size=4) | st.lists(st.lists(st.integers()) | st.none(), max_size=4)
)
_TYPES = [
    "int",
    "float",
    "str",
    "bool",
    "datetime",
    "decimal(0)",
    "decimal(2)",
    "list[int]",
    "list[float]",
    "list[str]",
]


@example(values=[1.5, True], type_name="float", optional=False)
@example(values=[2**53 + 1, 1.5], type_name="float", optional=False)
@example(values=["a", b"b"], type_name="str", optional=True)
@example(values=[[True, 1.5]], type_name="list[float]", optional=False)
@given(values=_COLUMNS, type_name=st.sampled_from(_TYPES), optional=st.booleans())
def test_a_whole_column_is_judged_exactly_as_its_cells_one_by_one(values, type_name, optional):
    field = FieldDef(name="x", type=type_name, optional=optional)
    expected, refused = [], {}
    for row, value in enumerate(values):
        try:
            expected.append(coerce_value(value, field))
        except RecordError as error:
            refused[row] = error.reason
    records = [{"id": "k", "at": 0, "x": value} for value in values]
    result = coerce(records, dataset(type_name, optional=optional))
    assert [stored(value, type_name) for value in result.table["x"].to_pylist()] == expected
    assert {r.row: r.reason for r in result.rejected} == refused
    assert sorted([*result.kept.tolist(), *refused]) == list(np.arange(len(values)))


def restricted(type_name: str, **accepts: object) -> DatasetDef:
    plain = dataset(type_name, optional=True)
    return plain.model_copy(
        update={"fields": (*plain.fields[:2], FieldDef(name="x", type=type_name, optional=True, **accepts))}
    )


RESTRICTIONS = [
    ("int", {"minimum": 0}, [-1, 0, None, "-3"], {0: "below_minimum", 3: "below_minimum"}),
    ("int", {"maximum": 9}, [9, 10, "10"], {1: "above_maximum", 2: "above_maximum"}),
    ("int", {"minimum": 0.5, "maximum": 2.5}, [0, 1, 2, 3], {0: "below_minimum", 3: "above_maximum"}),
    ("int", {"maximum": 2.0**53}, [2**53, 2**53 + 1], {1: "above_maximum"}),
    ("int", {"minimum": 1e300}, [2**63 - 1], {0: "below_minimum"}),
    ("float", {"minimum": 0, "maximum": 1}, [-0.0, 0.5, 1, 1.0000001, "7"], {3: "above_maximum", 4: "above_maximum"}),
    ("decimal(2)", {"minimum": 0.1}, ["0.10", 0.1, "0.09"], {2: "below_minimum"}),
    ("decimal(2)", {"maximum": 9.99}, ["9.99", 9.99, 10], {2: "above_maximum"}),
    ("str", {"one_of": ("a", "b")}, ["a", "b", "c", "", None], {2: "not_one_of", 3: "not_one_of"}),
    ("int", {"one_of": (1, 2)}, [1, "2", 3, 1.0], {2: "not_one_of"}),
    ("decimal(1)", {"one_of": (0.5, "1")}, ["0.5", 1, 2], {2: "not_one_of"}),
    ("datetime", {"one_of": ("2026-04-01T10:30",)}, ["2026-04-01T10:30:00Z", 0], {1: "not_one_of"}),
    ("bool", {"one_of": (True,)}, [True, False, "true"], {1: "not_one_of"}),
    ("str", {"regex": "[A-Z]{2}"}, ["DE", "de", "DEU", "xDE", "DE\n"], dict.fromkeys([1, 2, 3, 4], "no_match")),
    ("str", {"regex": "a|b"}, ["a", "b", "ab"], {2: "no_match"}),
    ("str", {"regex": "("}, ["a"], {0: "no_match"}),
]  # fmt: skip


@pytest.mark.parametrize(("type_name", "accepts", "values", "refused"), RESTRICTIONS)
def test_a_value_outside_of_what_the_column_accepts_is_refused(type_name, accepts, values, refused):
    wanted = restricted(type_name, **accepts)
    result = coerce([{"id": "k", "at": 0, "x": value} for value in values], wanted)
    assert {r.row: r.reason for r in result.rejected} == refused
    assert {row: reason for row, value in enumerate(values) if (reason := fault(value, wanted.fields[2]))} == refused


def fault(value: object, field: FieldDef) -> str | None:
    try:
        coerce_value(value, field)
    except RecordError as error:
        return error.reason
    return None


def test_a_refusal_names_the_bound():
    (rejected,) = coerce([{"id": "k", "at": 0, "x": 12}], restricted("int", maximum=9)).rejected
    assert rejected.message == "x: 12 is above the maximum 9"


def test_a_key_outside_of_its_pattern_is_refused():
    keyed = dataset("int").model_copy(
        update={"fields": (FieldDef(name="id", type="str", key=True, regex="u[0-9]+"), *dataset("int").fields[1:])}
    )
    result = coerce([{"id": "u1", "at": 0, "x": 1}, {"id": "v1", "at": 0, "x": 1}], keyed)
    assert [(r.row, r.reason) for r in result.rejected] == [(1, "no_match")]


def test_a_record_that_takes_its_key_away_needs_only_key_and_time():
    records = [
        {"id": "a", "at": 0},
        {"id": "b", "at": 0, "x": "junk"},
        {"id": "c", "at": 0, "x": 12},
        {"id": "", "at": 0},
        {"id": "d"},
        {"id": "e", "at": 0},
    ]
    deleted = np.array([True, True, True, True, True, False])
    result = coerce(
        records,
        restricted(
            "int",
            maximum=9,
        ),
        deleted,
    )
    assert result.kept.tolist() == [0, 1, 2, 5]
    assert result.table["x"].to_pylist() == [None, None, None, None]
    assert [(r.row, r.reason) for r in result.rejected] == [(3, "empty_key"), (4, "missing_field")]
