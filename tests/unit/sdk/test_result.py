"""What a read gave: rows and tables of the same values, in parts and whole, here and in files."""

from datetime import UTC, datetime
from decimal import Decimal

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from featurelib.errors import MissingDriver
from featurelib.result import ThymeResult, joined

AT = datetime(2026, 1, 1, 12, 0, 0, 250_000, tzinfo=UTC)
TABLE = pa.table(
    {
        "entity_id": ["a", "b"],
        "n": pa.array([1, None], pa.int64()),
        "at": pa.array([AT, None], pa.timestamp("us", tz="UTC")),
        "price": pa.array([Decimal("1.50"), None], pa.decimal128(18, 2)),
        "days": pa.array([[AT], []], pa.list_(pa.timestamp("us", tz="UTC"))),
    }
)
ROWS = [
    {"entity_id": "a", "n": 1, "at": "2026-01-01T12:00:00.250000Z", "price": "1.50"}
    | {"days": ["2026-01-01T12:00:00.250000Z"]},
    {"entity_id": "b", "n": None, "at": None, "price": None, "days": []},
]


def test_rows_of_a_table_are_as_json_would_have_them():
    result = ThymeResult.of_table(TABLE, {"mode": "online"}, "run")
    assert result.to_dict() == ROWS
    assert result["at"] == [ROWS[0]["at"], None]
    assert (len(result), result.columns, result.query_run_id) == (2, TABLE.column_names, "run")


def test_a_table_keeps_its_types_in_every_frame():
    result = ThymeResult.of_table(TABLE)
    assert result.to_arrow() is TABLE
    assert result.to_polars().schema["at"] == pl.Datetime("us", "UTC")
    assert result.to_lazy().select("n").collect().rows() == [(1,), (None,)]
    assert isinstance(result.to_pandas()["at"].dtype, pd.DatetimeTZDtype)


@pytest.mark.parametrize(
    "result", [ThymeResult.of_table(TABLE), ThymeResult(["entity_id", "n"], [["a", 1], ["b", None]])]
)
def test_a_result_is_written_and_read_in_parts(result, tmp_path):
    result.sink_parquet(tmp_path / "rows.parquet")
    result.sink_arrow(tmp_path / "rows.arrow")
    assert pl.read_parquet(tmp_path / "rows.parquet")["entity_id"].to_list() == ["a", "b"]
    assert pa.ipc.open_file(tmp_path / "rows.arrow").read_all().num_rows == 2
    assert [batch.num_rows for batch in result.iter_batches(1)] == [1, 1]


def test_parts_are_joined_in_their_order_with_all_their_runs():
    parts = [ThymeResult.of_table(TABLE.slice(0, 1), {}, "r1"), ThymeResult.of_table(TABLE.slice(1), {}, "r2")]
    whole = joined(parts, {"featureset": "F"})
    assert whole.to_arrow().equals(TABLE)
    assert (whole.query_run_id, whole.metadata) == ("r2", {"featureset": "F", "query_run_ids": ["r1", "r2"]})
    assert joined([whole, *parts], {}).metadata["query_run_ids"] == ["r1", "r2", "r1", "r2"]


def test_parts_of_different_types_are_joined_as_rows():
    other = pa.table({"entity_id": ["c"], "n": ["many"]})
    whole = joined([ThymeResult.of_table(TABLE.select(["entity_id", "n"])), ThymeResult.of_table(other)], {})
    assert whole["n"] == [1, None, "many"]


def test_nothing_joined_is_no_rows_of_an_id():
    assert (joined([], {}).columns, joined([], {}).to_dict()) == (["entity_id"], [])


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(MissingDriver, match=r"polars .*thyme-on-ray\[engine\]"):
        ThymeResult(["a"], [[1]]).to_polars()
