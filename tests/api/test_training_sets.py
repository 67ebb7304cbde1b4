"""Training sets: of spines in files of every form, in order and whole, the same again, gone on with when they stop."""

from __future__ import annotations

import json
import random
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from featurelib.clock import DAY, MINUTE, format_instant, to_datetime
from featurelib.errors import (
    ArchiveUnavailable,
    Conflict,
    CorruptState,
    Erased,
    NotFound,
    StoreUnavailable,
    ThymeError,
    UserCodeError,
)
from featurelib.stores.archive import Archive
from featurelib.stores.training_files import Manifest, read_manifest
from jobs import training_run
from jobs.training_run import Progress, TrainingAsked, TrainingRun, Work
from jobs.training_set import read_here
from tests.api.conftest import NOON, Platform
from tests.api.test_offline import START, archive_all, sent, take_trips, trips

ROWS = 60


@pytest.fixture
async def taken(platform: Platform, client: httpx2.AsyncClient) -> Platform:
    """A platform with trips, some archived and some in the log alone."""
    await take_trips(platform, client)
    return platform


def spine(rows: int = ROWS, seed: int = 3) -> pa.Table:
    """Riders of whom two never took a trip, in no order and some twice, with a label and a request feature."""
    chosen = random.Random(seed)
    instants = [START + chosen.randrange(-100, 900) * MINUTE for _ in range(rows)]
    return pa.table(
        {
            "label": pa.array([chosen.choice(["bought", "left", None]) for _ in range(rows)]),
            "rider": pa.array([chosen.randrange(8) for _ in range(rows)], pa.int64()),
            "seen_at": pa.array(instants, pa.int64()).cast(pa.timestamp("us", "UTC")),
            "price": pa.array([chosen.choice([None, 0.5, 2.0]) for _ in range(rows)]),
            "weight": pa.array([chosen.random() for _ in range(rows)]),
        }
    )


def stored(table: pa.Table, folder: Path, form: str = "parquet") -> str:
    folder.mkdir(exist_ok=True)
    path = folder / f"spine.{form}"
    WRITERS[form](table, path)
    return str(path)


def write_arrow_file(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_arrow_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_folder(table: pa.Table, path: Path) -> None:
    path.mkdir()
    for number in range(3):
        pq.write_table(table.slice(number * 20, 20), path / f"part-{number}.parquet")


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "parquet": pq.write_table,
    "csv": pacsv.write_csv,
    "arrow": write_arrow_file,
    "arrows": write_arrow_stream,
    "folder": write_folder,
    "delta": lambda table, path: write_deltalake(path, table),
}


def asked(spine_path: str, output: Path, **more: Any) -> TrainingAsked:
    given = {"featureset": "Rider", "timestamp_column": "seen_at", **more}
    return TrainingAsked(output=str(output), spine=spine_path, **given)


def made(platform: Platform, wanted: TrainingAsked, **more: Any) -> Manifest:
    run = TrainingRun(platform.settings, platform.clock)
    return run.make(wanted, lambda work: read_here(platform.settings, work), **more)


def rows_of(output: Path) -> pa.Table:
    return pq.read_table(output / "data.parquet")


async def online_rows(client: httpx2.AsyncClient, table: pa.Table, knowledge: str) -> list[dict[str, Any]]:
    """What the query server answers to the same rows."""
    queries = [
        {
            "entity_id": row["rider"],
            "timestamp": row["seen_at"].isoformat(),
            **({} if row["price"] is None else {"inputs": {"price": row["price"]}}),
        }
        for row in table.to_pylist()
    ]
    body = {"featureset": "Rider", "queries": queries, "knowledge": knowledge}
    answer = await client.post(
        "/features/offline", json=body, headers={"Accept": "application/vnd.apache.arrow.stream"}
    )
    assert answer.status_code == 200, answer.text
    return pa.ipc.open_stream(answer.content).read_all().drop_columns(["entity_id", "timestamp"]).to_pylist()


@pytest.mark.parametrize("knowledge", ["latest", "as_served"])
async def test_each_row_is_what_the_query_server_answers_and_keeps_its_place_and_labels(
    taken, client, tmp_path, monkeypatch, knowledge
):
    monkeypatch.setattr(training_run, "_ROWS_OF_A_PART", 9)
    given = spine()
    manifest = made(taken, asked(stored(given, tmp_path / "in"), tmp_path / "out", knowledge=knowledge))
    rows = rows_of(tmp_path / "out")
    assert rows.select(["label", "seen_at", "weight"]).equals(given.select(["label", "seen_at", "weight"]))
    expected = await online_rows(client, given, knowledge)
    assert rows.select(list(expected[0])).to_pylist() == expected
    assert rows.column_names == list(manifest.columns)
    assert (manifest.rows, manifest.complete_rows) == (ROWS, sum(None not in row.values() for row in expected))
    assert [each.name for each in (tmp_path / "out").iterdir() if each.name.startswith("_work")] == []


async def test_a_spine_of_every_form_gives_the_same_features(taken, tmp_path):
    names = ["trips_1h", "fares_3h", "toll", "cities", "cost", "since", "city_riders"]
    found = []
    for form in WRITERS:
        path = stored(spine(), tmp_path / "in", form)
        manifest = made(taken, asked(path, tmp_path / form, entity_column="rider"))
        assert (manifest.rows, manifest.request.spine.version) == (ROWS, 0 if form == "delta" else None), form
        found.append(rows_of(tmp_path / form).select(names).to_pylist())
    assert found == [found[0]] * len(WRITERS)


async def test_the_same_rows_come_in_every_form_of_output(taken, tmp_path):
    path = stored(spine(), tmp_path / "in")
    manifests = {form: made(taken, asked(path, tmp_path / form, form=form)) for form in ("parquet", "arrow", "delta")}
    expected = rows_of(tmp_path / "parquet")
    assert pa.ipc.open_stream(tmp_path / "arrow" / "data.arrow").read_all().equals(expected)
    delta = pa.table(pl.read_delta(str(tmp_path / "delta")).to_arrow()).cast(expected.schema)
    assert delta.to_pylist() == expected.to_pylist()
    assert len({manifest.rows_sha256 for manifest in manifests.values()}) == 1
    names = {form: [file.name for file in manifest.files] for form, manifest in manifests.items()}
    assert names == {"parquet": ["data.parquet"], "arrow": ["data.arrow"], "delta": []}


async def test_rows_without_an_id_or_an_instant_keep_their_place_and_have_no_features(taken, tmp_path):
    given = spine(6)
    riders = pa.array([None, *given["rider"].to_pylist()[1:]], pa.int64())
    instants = pa.array([*given["seen_at"].to_pylist()[:5], None], given["seen_at"].type)
    given = given.set_column(1, "rider", riders).set_column(2, "seen_at", instants)
    made(taken, asked(stored(given, tmp_path / "in"), tmp_path / "out"))
    rows = rows_of(tmp_path / "out")
    assert rows["weight"].equals(given["weight"])
    assert rows["price"].null_count == rows["home"].null_count == 2
    assert [row["home"] is None for row in rows.to_pylist()] == [True, False, False, False, False, True]


async def test_a_spine_without_rows_is_a_training_set_without_rows(taken, tmp_path):
    manifest = made(taken, asked(stored(spine(0), tmp_path / "in"), tmp_path / "out"))
    assert (manifest.rows, len(rows_of(tmp_path / "out"))) == (0, 0)
    assert "fares_3h" in rows_of(tmp_path / "out").column_names


async def test_made_like_its_manifest_a_training_set_has_the_same_bytes_whatever_came_since(
    taken, client, tmp_path, monkeypatch
):
    path = stored(spine(), tmp_path / "in")
    made(taken, asked(path, tmp_path / "first"))
    await sent(client, "Trip", trips(random.Random(9)))
    archive_all(taken)
    archive = Archive(taken.settings.archive_url)
    for dataset in taken.registry.definitions().datasets:
        archive.compact(dataset)
        archive.vacuum(dataset, 0)
    again = TrainingAsked(output=str(tmp_path / "again"), like=str(tmp_path / "first" / "_manifest.json"))
    monkeypatch.setattr(training_run, "_MOST_PARTS", 1)
    made(taken, again)
    newer = made(taken, asked(path, tmp_path / "newer"))
    for name in ("data.parquet", "_manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()
    assert newer.rows_sha256 != read_manifest(str(tmp_path / "first" / "_manifest.json")).rows_sha256


async def test_what_was_erased_since_is_told_and_nothing_is_made(taken, tmp_path):
    path = stored(spine(), tmp_path / "in")
    made(taken, asked(path, tmp_path / "first"))
    async with taken.client("admin") as admin:
        erased = await admin.post("/api/v1/erase", json={"dataset": "Trip", "entity_ids": ["1"]})
    assert erased.status_code in {200, 202}, erased.text
    again = TrainingAsked(output=str(tmp_path / "again"), like=str(tmp_path / "first" / "_manifest.json"))
    with pytest.raises(Erased, match=r"records of Trip were erased after .* Make a new one"):
        made(taken, again)
    assert not (tmp_path / "again" / "_manifest.json").exists()


class Stopped(Exception):
    """The process is gone."""


def dying_after(platform: Platform, parts: int, read: list[int]) -> Callable[[Work], Iterator[int]]:
    def reading(work: Work) -> Iterator[int]:
        for number in read_here(platform.settings, work):
            read.append(number)
            if len(read) == parts:
                raise Stopped
            yield number

    return reading


async def test_a_run_that_was_killed_goes_on_with_the_parts_that_are_left_and_ends_in_the_same_bytes(
    taken, client, tmp_path, monkeypatch
):
    monkeypatch.setattr(training_run, "_ROWS_OF_A_PART", 9)
    path = stored(spine(), tmp_path / "in")
    undisturbed = made(taken, asked(path, tmp_path / "undisturbed"))
    run, read = TrainingRun(taken.settings, taken.clock), list[int]()
    with pytest.raises(Stopped):
        run.make(asked(path, tmp_path / "out"), dying_after(taken, 3, read))
    assert [each.name for each in (tmp_path / "out").iterdir() if not each.name.startswith("_work")] == []
    # What comes meanwhile is none of its records.
    await sent(client, "Trip", trips(random.Random(9)))
    told: list[Progress] = []
    manifest = run.make(asked(path, tmp_path / "out"), dying_after(taken, 0, read), told.append)
    assert sorted(read) == list(range(7))
    assert told == [Progress(done, 7, ROWS) for done in range(3, 8)]
    assert manifest.rows_sha256 == undisturbed.rows_sha256


async def test_a_full_disk_is_told_and_the_same_request_goes_on(taken, tmp_path):
    path = stored(spine(), tmp_path / "in")
    with full_disk(), pytest.raises(StoreUnavailable):
        made(taken, asked(path, tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*.*"))
    assert made(taken, asked(path, tmp_path / "out")).rows == ROWS


@contextmanager
def full_disk(most: int = 64) -> Iterator[None]:
    """No file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


async def test_an_archive_that_is_compacted_meanwhile_changes_nothing(taken, tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "_ROWS_OF_A_PART", 9)
    path = stored(spine(), tmp_path / "in")
    expected = made(taken, asked(path, tmp_path / "expected"))
    archive, over = Archive(taken.settings.archive_url), threading.Event()
    datasets = taken.registry.definitions().datasets

    def compact() -> None:
        while not over.is_set():
            for dataset in datasets:
                archive.compact(dataset)
                archive.vacuum(dataset, 1)

    thread = threading.Thread(target=compact)
    thread.start()
    try:
        found = made(taken, asked(path, tmp_path / "out"))
    finally:
        over.set()
        thread.join()
    assert found.rows_sha256 == expected.rows_sha256


async def test_what_an_extractor_raises_ends_the_run_with_its_line_and_leaves_no_training_set(taken, tmp_path):
    given = pa.table({"rider": [7], "timestamp": [to_datetime(NOON)]})
    wanted = asked(stored(given, tmp_path / "in"), tmp_path / "out", featureset="Failing", timestamp_column="timestamp")
    with pytest.raises(UserCodeError, match=r"trips\.py:"):
        made(taken, wanted)
    assert not (tmp_path / "out" / "_manifest.json").exists()


async def test_a_training_set_that_is_there_is_replaced_only_when_asked_to(taken, tmp_path):
    path = stored(spine(), tmp_path / "in")
    first = made(taken, asked(path, tmp_path / "out"))
    with pytest.raises(Conflict, match="--overwrite"):
        made(taken, asked(path, tmp_path / "out"))
    assert read_manifest(str(tmp_path / "out" / "_manifest.json")) == first
    made(taken, asked(stored(spine(5), tmp_path / "other"), tmp_path / "out", form="arrow", overwrite=True))
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["_manifest.json", "data.arrow"]


def replaced(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, values)


HERE = to_datetime(START)
MISTAKES: dict[str, tuple[Callable[[pa.Table], pa.Table], dict[str, Any], str]] = {
    "no column of ids": (lambda t: t.drop_columns(["rider"]), {}, "no column 'entity_id' of ids"),
    "no column of instants": (lambda t: t.drop_columns(["seen_at"]), {}, "no column 'seen_at' of instants"),
    "instants of another type": (replaced("seen_at", pa.array([True] * 3)), {}, "'seen_at' is bool"),
    "ids of another type": (replaced("rider", pa.array(["1", "2", "x"])), {}, r"'x' is not an int \(row 2\)"),
    "an instant that is none": (
        replaced("seen_at", pa.array([str(HERE), None, "soon"])),
        {},
        r"'soon' is not a timestamp .* \(row 2\)",
    ),
    "zones mixed": (
        replaced("seen_at", pa.array(["2026-03-01 10:00", "2026-03-01T10:00:00+01:00", None])),
        {},
        "row 1 names a zone and row 0 does not",
    ),
    "zones mixed in a dictionary": (
        replaced("seen_at", pa.array(["2026-03-01 10:00", "2026-03-01T10:00:00+01:00", None]).dictionary_encode()),
        {},
        "row 1 names a zone and row 0 does not",
    ),
    "an instant to come": (
        replaced("seen_at", pa.array([HERE, to_datetime(NOON + DAY), HERE])),
        {},
        "row 1: .* is later than this read",
    ),
    "two columns of one name": (lambda t: t.append_column("label", t["label"]), {}, "more than one column 'label'"),
    "a label named like a feature": (
        lambda t: t.append_column("home", t["label"]),
        {},
        "'home' is named like a feature",
    ),
    "a request feature of another type": (
        replaced("price", pa.array(["1", "2", "dear"])),
        {},
        r"row 0: inputs.price",
    ),
    "ids named like another feature": (
        lambda t: t.append_column("home", t["rider"]),
        {"entity_column": "home"},
        "'home' is named like a feature",
    ),
    "a label that Delta has no type for": (
        lambda t: t.append_column("late_by", pa.array([1, 2, None], pa.duration("us"))),
        {"form": "delta"},
        "'late_by' is duration",
    ),
    "one column for both": (lambda t: t, {"entity_column": "seen_at"}, "of ids and of instants"),
}


async def test_a_spine_that_is_wrong_is_refused_with_column_and_row(taken, tmp_path):
    for mistake, (change, more, message) in MISTAKES.items():
        with pytest.raises(ThymeError, match=message) as refused:
            made(taken, asked(stored(change(spine(3)), tmp_path / mistake), tmp_path / "out", **more))
        assert (refused.value.status, refused.value.retryable) == (400, False), mistake
    assert not list((tmp_path / "out").glob("*"))


def broken(folder: Path, form: str) -> Path:
    """A file of which half is there, or something else that is no spine."""
    path = folder / f"spine.{form}"
    if form == "folder":
        path.mkdir()
    elif form != "nothing":
        whole = Path(stored(spine(), folder / "in", form if form in WRITERS else "parquet")).read_bytes()
        path.write_bytes(b'a,b\n"' if form == "csv" else whole[: len(whole) // 2])
    return path


async def test_a_file_that_cannot_be_read_is_refused_by_its_name(taken, tmp_path):
    for form in ("parquet", "arrow", "arrows", "csv", "nothing", "xlsx", "folder"):
        with pytest.raises(ThymeError, match=rf"spine: .*spine\.{form}") as refused:
            made(taken, asked(str(broken(tmp_path, form)), tmp_path / "out"))
        assert (refused.value.status, refused.value.retryable) == (400, False), form


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garble(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:4] + bytes(255 - each for each in data[4:-8]) + data[-8:])


def archived_files(platform: Platform, dataset: str) -> list[Path]:
    found = platform.registry.definitions().dataset(dataset)
    return list(Path(Archive(platform.settings.archive_url).location(found)).rglob("*.parquet"))


@pytest.mark.parametrize(
    ("damage", "error"),
    [(cut_in_half, CorruptState), (garble, ThymeError), (Path.unlink, ArchiveUnavailable)],
    ids=["cut in half", "garbled", "gone"],
)
async def test_a_damaged_file_of_the_archive_is_named_and_nothing_is_made(taken, client, tmp_path, damage, error):
    archive_all(taken)
    for file in archived_files(taken, "Trip"):
        damage(file)
    with pytest.raises(error, match=r"part-\d+.*\.parquet"):
        made(taken, asked(stored(spine(), tmp_path / "in"), tmp_path / "out"))
    assert not (tmp_path / "out" / "_manifest.json").exists()
    answer = await client.get("/features?featureset=Rider&entity_id=1&timestamp=2026-03-01T10:00:00Z")
    assert answer.json()["error"] in ("corrupt_state", "archive_unavailable")
    assert ".parquet" in answer.json()["detail"]


async def test_instants_before_all_records_have_defaults_and_no_rows(taken, tmp_path):
    given = pa.table({"rider": [1], "timestamp": pa.array(["1999-01-01T00:00:00Z"])})
    made(taken, asked(stored(given, tmp_path / "in"), tmp_path / "out", timestamp_column="timestamp"))
    (row,) = rows_of(tmp_path / "out").to_pylist()
    assert (row["trips_1h"], row["mean_1d"], row["fare"], row["home"]) == (0, -1.0, None, "nowhere")


async def test_an_unknown_featureset_and_another_spine_for_a_manifest_are_refused(taken, tmp_path):
    path = stored(spine(), tmp_path / "in")
    with pytest.raises(NotFound, match=r"committed are .*Rider"):
        made(taken, asked(path, tmp_path / "out", featureset="Nobody"))
    made(taken, asked(path, tmp_path / "first"))
    like = str(tmp_path / "first" / "_manifest.json")
    other = stored(spine(seed=4), tmp_path / "other")
    with pytest.raises(ThymeError, match="is not the spine that the manifest names"):
        made(taken, TrainingAsked(output=str(tmp_path / "out"), spine=other, like=like))
    with pytest.raises(ThymeError, match="is of 'Rider', not of 'Toll'"):
        made(taken, TrainingAsked(output=str(tmp_path / "out"), featureset="Toll", like=like))


async def test_a_manifest_names_what_the_rows_were_made_of(taken, tmp_path):
    path = stored(spine(), tmp_path / "in")
    made(taken, asked(path, tmp_path / "out"))
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    heads = taken.log.heads("Trip@1", taken.log.partitions("Trip@1"))
    assert manifest["inputs"]["Trip@1"]["offsets"] == [head.next_offset for head in heads]
    location = Archive(taken.settings.archive_url).location(taken.registry.definitions().dataset("Trip"))
    assert manifest["inputs"]["Trip@1"]["table_version"] == DeltaTable(location).version()
    assert manifest["read_at"] == format_instant(taken.clock.now())
    assert set(manifest["code"]) == {"thyme", "python", "polars", "pyarrow"}
    assert manifest["request"]["spine"]["url"] == path
