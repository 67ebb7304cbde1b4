"""Tables of derived datasets: their rows are what a read of the past gives, in order of arrival or out of it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import polars as pl
import pytest
from deltalake import DeltaTable

from featurelib.clock import HOUR, format_instant
from featurelib.engine.read_plan import compile_views
from featurelib.errors import NotFound
from featurelib.stores import archive
from featurelib.stores.archive import Archive
from featurelib.stores.derived import DerivedTable
from featurelib.stores.erasures import Erasures
from jobs.derived import DerivedTables, Refreshed
from tests.api.conftest import Platform
from tests.api.test_offline import START, archive_all, sent, take_trips, trips, wire

SHOWN = {"ByRider": "rider", "ByCity": "city", "Newest": "rider", "Ending": "city"}


@pytest.fixture
async def taken(platform: Platform, client: httpx2.AsyncClient) -> Platform:
    await take_trips(platform, client)
    return platform


@pytest.fixture
def tables(taken: Platform) -> Iterator[DerivedTables]:
    with closing(DerivedTables(taken.settings, taken.clock)) as tables:
        yield tables


def table_of(platform: Platform, dataset: str) -> pl.DataFrame:
    found = platform.registry.definitions().dataset(dataset)
    assert found is not None
    return pl.read_delta(Archive(platform.settings.archive_url).location(found))


def newest(frame: pl.DataFrame, key: str) -> pl.DataFrame:
    """Of the rows of a key and an instant the one that the table learnt of last."""
    return frame.sort("__accepted_at").group_by(key, "__time").last()


async def check(platform: Platform, client: httpx2.AsyncClient, dataset: str, rows: int, seed: int = 1) -> None:
    """Some rows of a table against reads of the past."""
    key = SHOWN[dataset]
    frame = newest(table_of(platform, dataset), key)
    for row in frame.sample(min(rows, len(frame)), seed=seed).iter_rows(named=True):
        at = format_instant(row["__time"])
        answer = await client.get(f"/features?entity_type={dataset}&entity_id={row[key]}&timestamp={at}")
        expected = answer.json()["features"]
        assert row["__deleted"] == (expected is None)
        shown = {name: wire(value) for name, value in row.items() if name in (expected or ())}
        assert shown == {name: value for name, value in (expected or {}).items() if name in row}, (dataset, at)


async def test_every_row_of_a_derived_table_is_what_a_read_of_the_past_gives(taken, client, tables):
    done = tables.refresh()
    assert [each.dataset for each in done] == ["ByCity@1", "ByRider@1", "Ending@1", "Newest@1"]
    for each, dataset in zip(done, sorted(SHOWN), strict=True):
        assert each == Refreshed(f"{dataset}@1", len(table_of(taken, dataset)), anew=True)
        await check(taken, client, dataset, 6)
    assert {each.rows for each in tables.refresh()} == {0}


async def test_records_that_come_later_are_added_and_change_what_their_windows_reach(taken, client, tables):
    tables.refresh("ByCity")
    before = table_of(taken, "ByCity")
    taken.clock.advance(HOUR)
    # Dated among those that are there: rows up to three hours after each are others now.
    await sent(client, "Trip", trips(random.Random(8))[:5])
    archive_all(taken)
    (done,) = tables.refresh("ByCity")
    after = table_of(taken, "ByCity")
    assert (done.anew, len(after)) == (False, len(before) + done.rows)
    assert len(before) > done.rows > 5
    await check(taken, client, "ByCity", 30, seed=2)
    assert after.join(before, on=before.columns, how="semi", nulls_equal=True).height == len(before)


async def test_where_a_record_may_change_other_rows_the_table_is_made_anew(taken, client, tables):
    tables.refresh("ByRider")
    await sent(client, "Weather", [{"city": "Oslo", "rain": 9.0, "at": format_instant(START + HOUR)}])
    (done,) = tables.refresh("ByRider")
    assert (done.anew, len(table_of(taken, "ByRider"))) == (True, done.rows)
    await check(taken, client, "ByRider", 6)


def files_of(location: str) -> int:
    return len(list(Path(location).rglob("*.parquet")))


async def test_what_was_erased_leaves_the_tables_and_their_files(taken, tables):
    tables.refresh("ByRider")
    async with taken.client("admin") as admin:
        done = await admin.post("/api/v1/erase", json={"dataset": "Trip", "entity_ids": ["1"]})
    assert done.status_code in {200, 202}, done.text
    (refreshed,) = tables.refresh("ByRider")
    assert refreshed.anew
    assert 1 not in set(table_of(taken, "ByRider")["rider"])
    location = Archive(taken.settings.archive_url).location(taken.registry.definitions().dataset("ByRider"))
    assert files_of(location) == len(DeltaTable(location).file_uris())


async def test_what_was_erased_while_a_table_was_made_leaves_it_the_next_time(taken, client, tables, monkeypatch):
    written = DerivedTable.write
    taken.clock.advance(HOUR)
    async with taken.client("admin") as admin:
        done = await admin.post("/api/v1/erase", json={"dataset": "Trip", "entity_ids": ["1"]})
    receipt = Erasures(taken.registry.database, taken.clock)
    (erasure,) = receipt.list()
    assert done.json()["erasure_id"] == erasure.id

    def write_after_it(*arguments: Any, **more: Any) -> None:
        taken.clock.advance(HOUR)
        receipt.move(erasure.id, "complete", {})
        taken.clock.advance(HOUR)
        written(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(DerivedTable, "write", write_after_it)
        tables.refresh("ByCity")
    await sent(client, "Trip", trips(random.Random(8))[:1])
    (refreshed,) = tables.refresh("ByCity")
    assert refreshed.anew


async def test_a_reader_opens_the_months_and_row_groups_it_asks_for(taken, tables):
    tables.refresh("ByCity")
    frame: Any = table_of(taken, "ByCity")
    assert frame.columns[:6] == ["__month", "__key_group", "__time", "__accepted_at", "__deleted", "city"]
    assert set(frame["__month"]) == {202603}
    assert frame["__key_group"].is_sorted()


async def test_a_scheduled_run_brings_all_up_to_date_merges_their_files_and_deletes_what_nobody_needs(
    taken, client, tables, monkeypatch
):
    monkeypatch.setattr(archive, "_COMPACT_ABOVE_FILES", 4)
    upkeep = taken.settings.archive.model_copy(update={"derived_anew_every_s": 0, "history_hours": 0})
    first = tables.keep_up(upkeep)
    assert ([each.anew for each in first.done], first.failures) == ([True] * 4, [])
    for round_ in range(6):
        taken.clock.advance(HOUR)
        await sent(client, "Trip", trips(random.Random(20 + round_))[:3])
        kept = tables.keep_up(upkeep)
        assert {each.dataset: each.anew for each in kept.done}["ByCity@1"] is False
    location = Archive(taken.settings.archive_url).location(taken.registry.definitions().dataset("ByCity"))
    # A handful of appends stay as they are; more are merged, and the files they were in go.
    assert files_of(location) == len(DeltaTable(location).file_uris()) <= 4
    await check(taken, client, "ByCity", 30, seed=3)
    assert {each.rows for each in tables.keep_up(upkeep).done} == {0}


async def test_a_table_that_can_only_be_made_anew_waits_for_its_turn_unless_something_was_erased(taken, client, tables):
    tables.refresh("ByRider")
    await sent(client, "Weather", [{"city": "Oslo", "rain": 9.0, "at": format_instant(START + HOUR)}])
    rarely = taken.settings.archive
    assert Refreshed("ByRider@1", 0, anew=False) in tables.keep_up(rarely).done
    async with taken.client("admin") as admin:
        await admin.post("/api/v1/erase", json={"dataset": "Trip", "entity_ids": ["1"]})
    (rider,) = [each for each in tables.keep_up(rarely).done if each.dataset == "ByRider@1"]
    assert rider.anew
    assert 1 not in set(table_of(taken, "ByRider")["rider"])


async def test_merging_files_does_not_hide_that_rows_are_older_than_an_erasure(taken, client, tables):
    tables.refresh("ByCity")
    view = compile_views(taken.registry.definitions())[0]["ByCity"]
    table = DerivedTable(Archive(taken.settings.archive_url), view.dataset, view.program, {"Trip@1": 2})
    read_at = table.read_at()
    DeltaTable(table.location).optimize.z_order(["__key_group", "__time"])
    archive._sort(DeltaTable(table.location), view.dataset, 202603)
    assert (table.read_at(), DeltaTable(table.location).version()) == (read_at, 2)
    taken.clock.advance(HOUR)
    await sent(client, "Trip", trips(random.Random(8))[:5])
    tables.refresh("ByCity")
    assert table.read_at() > read_at


def put_in_the_way(location: str) -> None:
    Path(location).parent.mkdir(parents=True)
    Path(location).write_text("no folder")


async def test_a_table_that_fails_holds_up_no_other(taken, tables):
    put_in_the_way(Archive(taken.settings.archive_url).location(taken.registry.definitions().dataset("ByCity")))
    kept = tables.keep_up(taken.settings.archive)
    assert [each.dataset for each in kept.done] == ["ByRider@1", "Ending@1", "Newest@1"]
    assert [each.partition(": ")[0] for each in kept.failures] == ["ByCity@1"]


def test_a_dataset_that_no_pipeline_gives_is_refused(tables):
    with pytest.raises(NotFound, match=r"those are ByCity, ByRider, Ending, Newest"):
        tables.refresh("Trip")
