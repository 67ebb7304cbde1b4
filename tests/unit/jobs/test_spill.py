"""Rows put apart by key: nothing is lost, keys stay together, memory and disk hold the same, a full disk says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from featurelib.engine.fold import KEY
from featurelib.engine.keys import key_groups
from featurelib.engine.operators import IDENTITY, PLACE, SUB
from featurelib.engine.records import ACCEPTED_AT, TIME
from featurelib.errors import StoreUnavailable
from jobs.spill import Spill

GROUPS = range(16, 48)


def rows(count: int, seed: int) -> pl.DataFrame:
    chosen = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            KEY: [f"k{n}" for n in chosen.integers(0, 500, count).tolist()],
            TIME: chosen.integers(0, 1_000, count),
            ACCEPTED_AT: chosen.integers(0, 1_000, count),
            PLACE: np.arange(count) + seed * 1_000_000,
            SUB: [""] * count,
            "__value_n": chosen.integers(0, 9, count),
        }
    )


def put_apart(folder: Path, run_rows: int, expected: int = 0) -> tuple[Spill, pl.DataFrame]:
    spill = Spill(folder, GROUPS, expected, run_rows=run_rows)
    pieces = [rows(300, seed) for seed in range(10)]
    for piece in pieces:
        spill.add(piece, key_groups(piece[KEY]))
    return spill, pl.concat(pieces)


@pytest.mark.parametrize("run_rows", [10_000, 700, 100], ids=["memory", "some on disk", "all on disk"])
def test_each_group_gives_its_rows_in_order_wherever_they_wait(tmp_path: Path, run_rows: int) -> None:
    spill, whole = put_apart(tmp_path / "s", run_rows)
    assert (tmp_path / "s").exists() == (run_rows < 3_000)
    groups = pl.Series(key_groups(whole[KEY]))
    for group in GROUPS:
        (found,) = list(spill.of(group)) or [whole.clear()]
        mine = whole.filter(groups == group)
        assert found.equals(mine.sort(IDENTITY)), group
        assert spill.rows[group] == len(mine)
    spill.close()
    assert not (tmp_path / "s").exists()


def test_a_large_group_comes_in_buckets_that_part_no_key(tmp_path: Path) -> None:
    spill, whole = put_apart(tmp_path, 700, expected=4 * 100_000 * len(GROUPS))
    group = int(key_groups(whole[KEY])[0])
    buckets = list(spill.of(group if group in GROUPS else GROUPS.start))
    assert len(buckets) > 1
    keys = [set(bucket[KEY]) for bucket in buckets]
    assert sum(map(len, keys)) == len(set().union(*keys))
    spill.close()


def test_a_disk_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreUnavailable, match="cannot be put apart in"):
        put_apart(tmp_path / "file" / "s", 100)
