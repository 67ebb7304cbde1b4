"""An archive keeps the tables it opened and the footers it parsed; nobody ever reads what was there before."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable
from pyarrow import fs

from featurelib.clock import DAY, parse_instant
from featurelib.definitions import DatasetDef, FieldDef
from featurelib.stores.archive import Archive, files_of
from featurelib.stores.archive_footers import Bound, Footers
from tests.support.log_records import log_records

JANUARY = parse_instant("2026-01-01")
USERS = 40
PAYMENT = DatasetDef(
    name="Payment",
    fields=(FieldDef(name="user", type="str", key=True), FieldDef(name="at", type="datetime", timestamp=True)),
)


def payments(first: int, count: int, dataset: DatasetDef = PAYMENT) -> pa.Table:
    """Log records with these offsets, a day apart, of each user in turn."""
    numbers = range(first, first + count)
    return log_records(dataset, {n: {"user": f"u{n % USERS}", "at": JANUARY + n * DAY} for n in numbers})


def offsets_of(archive: Archive, user: str, dataset: DatasetDef = PAYMENT) -> list[int]:
    return sorted(archive.read(dataset, keys=[user])["__offset"].to_pylist())


@pytest.fixture
def writer(tmp_path: Path) -> Archive:
    return Archive(str(tmp_path / "archive"))


@pytest.fixture
def reader(tmp_path: Path) -> Archive:
    return Archive(str(tmp_path / "archive"))


def test_every_commit_of_another_is_seen_at_once_however_close_they_follow(writer: Archive, reader: Archive) -> None:
    for number in range(0, 60, 2):
        writer.append(PAYMENT, payments(number, 1))
        assert reader.archived_offset(PAYMENT, 0) == number + 1
        writer.append(PAYMENT, payments(number + 1, 1))
        assert reader.archived_offset(PAYMENT, 0) == number + 2
        assert offsets_of(reader, "u1") == [each for each in (1, 41) if each <= number + 1]


def test_an_unchanged_table_is_opened_once(writer: Archive, reader: Archive) -> None:
    writer.append(PAYMENT, payments(0, 10))
    before = reader.snapshot(PAYMENT)
    assert reader.snapshot(PAYMENT) is before
    writer.append(PAYMENT, payments(10, 1))
    assert reader.snapshot(PAYMENT) is not before
    assert before.archived_offset(0) == 10


def test_a_table_put_in_the_place_of_another_with_as_many_commits_is_not_taken_for_it(
    writer: Archive, reader: Archive, tmp_path: Path
) -> None:
    writer.append(PAYMENT, payments(0, 100))
    assert offsets_of(reader, "u3") == [3, 43, 83]
    shutil.rmtree(tmp_path / "archive")
    assert reader.snapshot(PAYMENT).version == -1
    assert offsets_of(reader, "u3") == []
    writer.append(PAYMENT, payments(0, 50))
    assert offsets_of(reader, "u3") == [3, 43]


def test_compaction_and_erasure_are_seen_by_who_holds_the_files_before(writer: Archive, reader: Archive) -> None:
    for first in range(0, 200, 50):
        writer.append(PAYMENT, payments(first, 50))
    assert offsets_of(reader, "u7") == [7, 47, 87, 127, 167]
    writer.compact(PAYMENT)
    writer.vacuum(PAYMENT, 0)
    assert offsets_of(reader, "u7") == [7, 47, 87, 127, 167]
    writer.erase(PAYMENT, {"u7": 127})
    writer.purge(PAYMENT)
    assert offsets_of(reader, "u7") == [167]
    assert offsets_of(reader, "u8") == [8, 48, 88, 128, 168]


def test_a_field_added_since_is_in_what_is_read_though_no_file_changed(writer: Archive, reader: Archive) -> None:
    writer.append(PAYMENT, payments(0, 10))
    assert "tip" not in reader.read(PAYMENT, keys=["u3"]).column_names
    wider = PAYMENT.model_copy(update={"fields": (*PAYMENT.fields, FieldDef(name="tip", type="int", optional=True))})
    assert reader.read(wider, keys=["u3"])["tip"].to_pylist() == [None]
    writer.append(wider, payments(10, 40, wider))
    assert offsets_of(reader, "u3", wider) == [3, 43]


def test_row_groups_that_cannot_hold_a_key_are_left_out_and_old_footers_go(tmp_path: Path) -> None:
    names = [f"u{number:04}" for number in range(1_000)]
    for file in range(3):
        table = pa.table({"user": names, "n": list(range(1_000))})
        ds.write_dataset(table, tmp_path / str(file), format="parquet", max_rows_per_group=100)
    stored = ds.dataset([ds.dataset(tmp_path / str(file)) for file in range(3)]).children
    footers = Footers(most_chunks=40)
    for files in (*stored, *stored):
        found = footers.narrowed("t", files, None, [Bound("user", "u0150", "u0150"), Bound("n", None, 400)])
        assert [len(part.row_groups) for part in found.get_fragments()] == [1]
        assert found.to_table(filter=ds.field("user") == "u0150")["n"].to_pylist() == [150]
        assert sum(footer.chunks for footer in footers._held.values()) <= 40
    nowhere = footers.narrowed("t", stored[0], None, [Bound("user", "v", "w")])
    assert nowhere.to_table().num_rows == 0


@pytest.mark.parametrize("name", ["plain", "a b#c?d", "ä"])
def test_local_files_are_read_without_python_in_arrows_threads(tmp_path, name):
    """A process that ends while one of them is in Python aborts, once in a few times."""
    archive = Archive(str(tmp_path / name))
    archive.append(PAYMENT, payments(0, 200))
    assert offsets_of(archive, "u7") == list(range(7, 200, USERS))
    stored = files_of(DeltaTable(archive.location(PAYMENT)))
    assert not isinstance(stored.filesystem, fs.PyFileSystem)
    assert stored.count_rows() == 200
