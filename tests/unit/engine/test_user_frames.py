"""User functions over frames: what they may change, and how one bad row costs only itself."""

from __future__ import annotations

import polars as pl
import pytest

from featurelib.definitions import FilterCodeStep, PyCode, TransformStep
from featurelib.engine.user_code import Guard, Limits, load
from featurelib.engine.user_frames import ROW_ID, UdfResult, keep, transform

FRAME = pl.DataFrame({"__time": [10, 20, 30, 40], "a": [4, 3, 2, 1], "s": ["w", "x", "y", "z"]})


def code(source: str) -> PyCode:
    return PyCode(entry_point="f", source=f"import polars as pl\n{source}", file="flows.py", line=7)


def transformed(source: str, frame: pl.DataFrame = FRAME, guard: Guard | None = None, **columns: str) -> UdfResult:
    step = TransformStep(code=code(source), columns=tuple(columns.items()))
    return transform(frame, step, load(step.code, "P.by_a", guard=guard))


def kept(source: str, frame: pl.DataFrame = FRAME) -> UdfResult:
    step = FilterCodeStep(code=code(source))
    return keep(frame, step, load(step.code, "P.by_a"))


def test_a_transform_adds_its_columns_and_leaves_the_rest():
    result = transformed("def f(df): return df.with_columns(b=pl.col('a') * 1.5)", b="float")
    assert result.failed == []
    assert result.frame.equals(FRAME.with_columns(b=pl.col("a") * 1.5))


def test_a_transform_may_overwrite_a_column_in_its_own_type():
    result = transformed("def f(df): return df.with_columns(pl.col('s').str.to_uppercase())")
    assert result.frame["s"].to_list() == ["W", "X", "Y", "Z"]


def test_a_transform_sees_no_hidden_column_and_cannot_change_one():
    source = "def f(df):\n    assert df.columns == ['a', 's', '__thyme_row_id']\n    return df.with_columns(__time=0)"
    result = transformed(source)
    assert (result.failed, result.frame["__time"].to_list()) == ([], [10, 20, 30, 40])


def test_rows_are_matched_by_their_id_when_a_transform_sorts():
    source = "def f(df): return df.sort('a').with_columns(n=pl.col('a').cum_count().cast(pl.Int64))"
    assert transformed(source, n="int").frame["n"].to_list() == [4, 3, 2, 1]


def test_rows_are_matched_by_place_where_the_id_is_left_out():
    assert transformed("def f(df): return df.select(b=pl.col('a') + 1)", b="int").frame["b"].to_list() == [5, 4, 3, 2]


def test_a_transform_that_changes_its_input_in_place_changes_nothing_of_ours():
    source = "def f(df):\n    df[0, 'a'] = 99\n    df.drop_in_place('s')\n    return df.with_columns(b=pl.col('a'))"
    before = FRAME.clone()
    result = transformed(source, b="int")
    assert FRAME.equals(before)
    assert result.frame["b"].to_list() == [99, 3, 2, 1]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ("pl.Series([1, 2, 3, 4], dtype=pl.Int8)", "int", [1, 2, 3, 4]),
        ("pl.Series([1.0, None, 3.0, 4.0])", "int", [1, None, 3, 4]),
        ("pl.Series([1, 2, 3, 4])", "float", [1.0, 2.0, 3.0, 4.0]),
        ("pl.Series([1.0, float('nan'), float('inf'), None])", "float", [1.0, None, None, None]),
        ("pl.Series([None] * 4)", "str", [None] * 4),
        ("pl.Series(['a'] * 4, dtype=pl.Categorical)", "str", ["a"] * 4),
        ("pl.Series([[1], [], None, [2]])", "list[int]", [[1], [], None, [2]]),
    ],
)
def test_what_becomes_the_declared_type_without_loss_is_taken(values, kind, expected):
    result = transformed(f"def f(df): return df.with_columns(b={values}.gather(df['__thyme_row_id']))", b=kind)
    assert (result.failed, result.frame["b"].to_list()) == ([], expected)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("df", "returned no column 'b'"),
        ("df.with_columns(b=pl.lit('text'))", "column 'b' is String; expected Int64"),
        ("df.with_columns(b=pl.lit(1.5))", "column 'b' is Float64"),
        ("df.with_columns(b=pl.lit(True))", "column 'b' is Boolean"),
        ("df.with_columns(b=1, a=pl.lit('no'))", "column 'a' is String; expected Int64"),
        ("df.clear()", "returned 0 rows for 1"),
        ("pl.concat([df, df])", "returned 2 rows for 1"),
        ("df.with_columns(b=1, __thyme_row_id=7)", "changed the column __thyme_row_id"),
        ("df.lazy()", "returned a LazyFrame; expected a polars.DataFrame"),
        ("None", "returned a NoneType"),
        ("[][0]", "IndexError"),
        ("df.select('missing')", "ColumnNotFoundError"),
    ],
)
def test_a_transform_of_another_shape_or_type_fails_every_row_with_the_reason(returned, said):
    result = transformed(f"def f(df): return {returned}", b="int")
    assert [row for row, _ in result.failed] == [0, 1, 2, 3]
    assert all(message.startswith("flows.py:7 in P.by_a: ") and said in message for _, message in result.failed)
    assert result.frame.schema == FRAME.schema | {"b": pl.Int64}
    assert result.frame.is_empty()


ON_BAD_ROW = """
def f(df):
    for value in df["a"]:
        if value % 100 == 13:
            raise ValueError(f"{value} is unlucky")
    return df.with_columns(b=pl.col("a") * 2)
"""


def test_rows_at_fault_are_found_and_every_other_one_is_done():
    frame = pl.DataFrame({"a": list(range(1_000))})
    result = transformed(ON_BAD_ROW, frame, b="int")
    unlucky = list(range(13, 1_000, 100))
    assert [row for row, _ in result.failed] == unlucky
    assert result.failed[0][1] == "flows.py:10 in P.by_a: ValueError: 13 is unlucky"
    assert result.frame["a"].to_list() == [a for a in range(1_000) if a not in unlucky]
    assert result.frame["b"].to_list() == [2 * a for a in range(1_000) if a not in unlucky]


def test_a_row_that_hangs_is_found_too():
    guard = Guard(Limits(soft_s=0.03, hard_s=60.0))
    source = "def f(df):\n    while 3 in df['a']: pass\n    return df"
    result = transformed(source, guard=guard)
    guard.close()
    assert [row for row, _ in result.failed] == [1]
    assert "was interrupted" in result.failed[0][1]
    assert result.frame["a"].to_list() == [4, 2, 1]


def test_a_function_that_always_hangs_costs_a_bounded_number_of_limits():
    guard = Guard(Limits(soft_s=0.005, hard_s=60.0))
    frame = pl.DataFrame({"a": list(range(5_000))})
    result = transformed("def f(df):\n    while True: pass", frame, guard=guard)
    guard.close()
    assert [row for row, _ in result.failed] == list(range(5_000))


def test_a_filter_keeps_the_rows_it_gives_back_in_their_order():
    result = kept("def f(df): return df.sort('a').filter(pl.col('a') != 2)")
    assert result.failed == []
    assert result.frame.equals(FRAME.filter(pl.col("a") != 2))


def test_a_filter_changes_no_value():
    assert kept("def f(df): return df.with_columns(a=pl.lit('changed'))").frame.equals(FRAME)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("df.drop('__thyme_row_id')", "dropped the column __thyme_row_id"),
        ("df.with_columns(__thyme_row_id=7)", "changed the column __thyme_row_id"),
        ("df.with_columns(pl.col('__thyme_row_id').cast(str))", "changed the column __thyme_row_id"),
        ("pl.concat([df, df])", "changed the column __thyme_row_id"),
        ("df['a']", "returned a Series"),
    ],
)
def test_a_filter_that_loses_track_of_its_rows_fails_them(returned, said):
    result = kept(f"def f(df): return {returned}")
    assert {row for row, message in result.failed if said in message} == {0, 1, 2, 3}


@pytest.mark.parametrize("frame", [FRAME.clear(), FRAME.select("a").clear()])
def test_an_empty_frame_is_not_shown_to_the_function(frame):
    source = "def f(df): raise ValueError"
    assert kept(source, frame).frame.equals(frame)
    assert kept(source, frame).failed == []
    result = transformed(source, frame, b="str")
    assert (result.failed, result.frame.schema) == ([], frame.schema | {"b": pl.String})


def test_the_row_id_is_gone_afterwards():
    assert ROW_ID not in kept("def f(df): return df").frame.columns
    assert ROW_ID not in transformed("def f(df): return df").frame.columns


def test_a_function_that_works_only_row_by_row_fails_all_its_rows():
    result = transformed("def f(df): return df.head(1)")
    assert [row for row, _ in result.failed] == [0, 1, 2, 3]
    assert "rows" in result.failed[0][1]
    assert result.frame.is_empty()
