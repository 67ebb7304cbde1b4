"""Months that are over are stored sorted, so that a key's rows lie together; whatever is archived meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, WriterProperties

from featurelib.clock import DAY, parse_instant
from featurelib.definitions import DatasetDef, FieldDef
from featurelib.stores import archive as archive_module
from featurelib.stores.archive import KEY_GROUP, MONTH, Archive
from tests.support.log_records import log_records

JANUARY = parse_instant("2026-01-01")
PAYMENT = DatasetDef(
    name="Payment",
    fields=(FieldDef(name="user", type="str", key=True), FieldDef(name="at", type="datetime", timestamp=True)),
)


def payments(first: int, count: int, day: int) -> pa.Table:
    """Log records with these offsets, all within so many days and the next 20."""
    at = {number: JANUARY + (day + number % 20) * DAY for number in range(first, first + count)}
    return log_records(PAYMENT, {number: {"user": f"u{number * 7 % 40}", "at": at[number]} for number in at})


def named_at_length(records: pa.Table) -> pa.Table:
    """Records of users with names of 40 characters, hardly two of one name."""
    names = [f"{offset * 7_919 % 100_003:05d}" * 8 for offset in records["__offset"].to_pylist()]
    return records.set_column(records.schema.get_field_index("user"), records.schema.field("user"), pa.array(names))


@pytest.fixture
def archive(tmp_path) -> Archive:
    """January in three commits, February in one."""
    made = Archive(str(tmp_path / "archive"))
    for first in (0, 100, 200):
        made.append(PAYMENT, payments(first, 100, 0))
    made.append(PAYMENT, payments(300, 50, 31))
    return made


def files_of(archive: Archive, month: int) -> list[str]:
    return DeltaTable(archive.location(PAYMENT)).file_uris(file_pruning_predicate=[(MONTH, "=", str(month))])


def offsets(archive: Archive) -> list[int]:
    return sorted(archive.read(PAYMENT)["__offset"].to_pylist())


def meanwhile(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> None:
    """Make a call after a month was read to be sorted, and before it is written."""
    reading = archive_module._sorted

    def then_call(*arguments: Any) -> Any:
        yield from reading(*arguments)
        # The table's writer, which asks for the rows, cannot write another table in its own threads.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(call).result()

    monkeypatch.setattr(archive_module, "_sorted", then_call)


def test_a_month_that_is_over_is_stored_by_key_group_key_and_time(archive):
    archive.compact(PAYMENT)
    (file,) = files_of(archive, 202601)
    rows = pq.ParquetFile(file.removeprefix("file://")).read([KEY_GROUP, "user", "__time"]).to_pylist()
    assert rows == sorted(rows, key=lambda row: (row[KEY_GROUP], row["user"], row["__time"]))
    assert (len(rows), offsets(archive)) == (300, list(range(350)))


def test_a_sorted_month_is_not_written_again(archive):
    archive.compact(PAYMENT)
    files = files_of(archive, 202601)
    archive.compact(PAYMENT)
    assert files_of(archive, 202601) == files


def test_a_sorted_month_of_files_that_are_not_quite_full_is_not_written_again(archive, monkeypatch):
    monkeypatch.setattr(archive_module, "WRITER", WriterProperties(max_row_group_size=2_000, compression="ZSTD"))
    monkeypatch.setattr(archive_module, "_TARGET_BYTES", 120_000)
    for first in range(350, 30_350, 3_000):
        archive.append(PAYMENT, named_at_length(payments(first, 3_000, 0)))
    archive.compact(PAYMENT)
    files = files_of(archive, 202601)
    assert len(files) > 1 + sum(Path(file.removeprefix("file://")).stat().st_size for file in files) // 120_000
    archive.compact(PAYMENT)
    assert files_of(archive, 202601) == files


def test_of_a_month_larger_than_what_is_sorted_at_once_the_rows_of_a_key_group_lie_together(archive, monkeypatch):
    monkeypatch.setattr(archive_module, "_SORTED_ROWS", 40)
    archive.compact(PAYMENT)
    groups = [
        group
        for file in files_of(archive, 202601)
        for group in pq.ParquetFile(file.removeprefix("file://")).read([KEY_GROUP])[KEY_GROUP].to_pylist()
    ]
    runs = [group for group, _ in groupby(groups)]
    assert (len(groups), len(runs)) == (300, len(set(groups)))


def test_records_of_the_newest_month_that_come_meanwhile_do_not_hinder_it(archive, monkeypatch):
    meanwhile(monkeypatch, lambda: archive.append(PAYMENT, payments(350, 10, 31)))
    archive.compact(PAYMENT)
    assert len(files_of(archive, 202601)) == 1
    assert offsets(archive) == list(range(360))


def test_a_late_record_that_comes_meanwhile_is_kept_and_the_month_sorted_the_next_time(archive, monkeypatch):
    with monkeypatch.context() as patched:
        meanwhile(patched, lambda: archive.append(PAYMENT, payments(350, 10, 0)))
        archive.compact(PAYMENT)
    assert offsets(archive) == list(range(360))
    archive.compact(PAYMENT)
    assert len(files_of(archive, 202601)) == 1
    assert offsets(archive) == list(range(360))


def test_a_read_that_is_cut_below_what_is_archived_leaves_the_rest_out(archive):
    assert sorted(archive.read(PAYMENT, below={0: 320})["__offset"].to_pylist()) == list(range(320))
    assert len(archive.read(PAYMENT, below={0: 400})) == 350
    assert len(archive.read(PAYMENT, below={1: 400})) == 0
