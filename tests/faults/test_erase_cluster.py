"""An entity erased from a running platform: workers, archiver and query server, each in its own process."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from cluster.processes import wait_until
from tests.support.towns import CITIES, DEADLINE_S, RIDERS, running_town

pytestmark = pytest.mark.cluster


def test_an_erasure_of_a_running_platform_completes_and_every_count_is_without_it(tmp_path: Path) -> None:
    erased = RIDERS[3]
    with running_town(tmp_path) as town:
        town.settles()
        said = town.platform.thyme("erase", "Ride", "-e", erased, "--wait")
        rides = pl.read_parquet(tmp_path / "rides" / "*.parquet").filter(pl.col("rider") != erased)
        left = {city: (count, cents) for city, count, cents in by_city(rides).rows()}
        assert town.served()[1] == {city: left[city] for city in CITIES}
        assert town.client.lookup("RiderStats", erased).to_dict() == []
        (receipt,) = town.client.erasures()
        assert receipt["state"] == "complete", said
        assert receipt["progress"]["archive_rows"] > 0
        # What comes later counts anew; what the source has read is not read again.
        town.drive(1, 400)
        again = pl.read_parquet(tmp_path / "rides" / "00001.parquet").filter(pl.col("rider") == erased)
        assert len(again)
        assert wait_until(lambda: town.counts() == len(rides) + 400, DEADLINE_S, every_s=0.2)
        assert wait_until(lambda: town.served()[0][erased][0] is not None, DEADLINE_S, every_s=0.2)
        assert town.served()[0][erased][0] == len(again)


def by_city(rides: pl.DataFrame) -> pl.DataFrame:
    return rides.group_by("city").agg(pl.len(), pl.col("cents").sum())
