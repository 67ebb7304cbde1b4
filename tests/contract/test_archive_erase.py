"""Rows erased from the archive: gone from every file and from the table's own log; all else stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake.exceptions import CommitFailedError

from featurelib.clock import DAY, parse_instant
from featurelib.definitions import DatasetDef, FieldDef
from featurelib.stores import archive as archive_module
from featurelib.stores.archive import Archive
from tests.support.log_records import log_records

START = parse_instant("2026-01-20")
KEYS = {"str": [f"person-{n}-of-ten" for n in range(10)], "int": [f"{70_000_001 + n}" for n in range(10)]}


def dataset(kind: str) -> DatasetDef:
    return DatasetDef(
        name="Trip",
        fields=(
            FieldDef(name="rider", type=kind, key=True),
            FieldDef(name="note", type="str"),
            FieldDef(name="at", type="datetime", timestamp=True),
        ),
    )


def records(of: DatasetDef, first: int, count: int) -> pa.Table:
    """Records with these offsets of partition 0, a day apart: their months differ."""
    keys = KEYS[of.key.type]
    rows = {
        n: {
            "rider": keys[n % 10] if of.key.type == "str" else int(keys[n % 10]),
            "note": f"note of {keys[n % 10]}",
            "at": START + n * DAY,
        }
        for n in range(first, first + count)
    }
    return log_records(of, rows)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(str(tmp_path))


def held(root: Path, text: str) -> list[Path]:
    # Integers are found in the table's log only, where they are text.
    return [path for path in root.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.parametrize("kind", KEYS)
def test_rows_of_a_key_up_to_its_tombstone_go_and_the_rest_stays(archive: Archive, tmp_path: Path, kind: str) -> None:
    of, gone = dataset(kind), KEYS[kind][3]
    archive.append(of, records(of, 0, 40))
    archive.append(of, records(of, 40, 20))
    assert archive.erase(of, {gone: 43}) == 5
    archive.purge(of)
    left = archive.read(of, keys=[gone])
    assert left["__offset"].to_pylist() == [53]
    assert sorted(archive.read(of)["__offset"].to_pylist()) == [n for n in range(60) if n % 10 != 3 or n == 53]
    assert archive.archived_offset(of, 0) == 60
    assert archive.append(of, records(of, 50, 20)) == 10
    assert archive.erase(of, {gone: 63}) == 2
    archive.purge(of)
    assert held(tmp_path, gone) == []
    assert sorted(archive.read(of, keys=KEYS[kind][4:5])["__offset"].to_pylist()) == list(range(4, 70, 10))


@pytest.mark.parametrize("kind", KEYS)
def test_no_key_is_ever_in_the_tables_own_log(archive: Archive, tmp_path: Path, kind: str) -> None:
    of = dataset(kind)
    archive.append(of, records(of, 0, 10))
    archive.append(of, records(of, 10, 40))
    archive.compact(of)
    archive.erase(of, {KEYS[kind][0]: 30})
    logged = tmp_path / "Trip" / "v1" / "_delta_log"
    assert [held(logged, key) for key in KEYS[kind]] == [[]] * 10


def test_erasing_again_removes_nothing_and_what_is_not_there_is_no_failure(archive: Archive) -> None:
    of = dataset("str")
    archive.purge(of)
    assert archive.erase(of, {"person-0-of-ten": 9}) == 0
    archive.append(of, records(of, 0, 10))
    assert archive.erase(of, {"person-0-of-ten": 9, "nobody": 9}) == 1
    assert archive.erase(of, {"person-0-of-ten": 9}) == 0
    assert archive.erase(of, {}) == 0


def test_a_file_that_a_writer_left_before_its_commit_goes_as_well(archive: Archive, tmp_path: Path) -> None:
    of, gone = dataset("str"), KEYS["str"][3]
    archive.append(of, records(of, 0, 10))
    (written,) = tmp_path.rglob("*.parquet")
    left = written.with_name("part-00001-00000000-0000-4000-8000-000000000000-c000.zstd.parquet")
    left.write_bytes(written.read_bytes())
    archive.vacuum(of)
    assert left.exists()  # it may be of a commit under way
    archive.erase(of, {gone: 9})
    archive.purge(of)
    assert held(tmp_path, gone) == []
    assert not left.exists()
    assert len(archive.read(of)) == 9


def test_another_writer_in_between_has_the_rows_looked_for_again(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = dataset("str")
    archive.append(of, records(of, 0, 10))
    rewrite, refused = archive_module._rewrite_without, []

    def second(*month: Any) -> int:
        if not refused:
            refused.append(month)
            raise CommitFailedError("another was faster")
        return rewrite(*month)

    monkeypatch.setattr(archive_module, "_rewrite_without", second)
    assert archive.erase(of, {KEYS["str"][3]: 9}) == 1


def test_an_archive_without_a_row_left_goes_on(archive: Archive) -> None:
    of = dataset("str")
    archive.append(of, records(of, 0, 10))
    assert archive.erase(of, dict.fromkeys(KEYS["str"], 99)) == 10
    archive.purge(of)
    assert len(archive.read(of)) == 0
    assert archive.archived_offset(of, 0) == 10
    assert archive.append(of, records(of, 10, 5)) == 5
