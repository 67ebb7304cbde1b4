"""Training sets over HTTP: uploaded, named and repeated spines, progress, rows, and what is refused without a trace."""

from __future__ import annotations

import asyncio
import io
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurelib.clock import to_datetime
from featurelib.errors import Conflict, InvalidRequest, StoreUnavailable, ThymeError
from featurelib.settings import Settings
from featurelib.stores.training_places import allowed_spine
from featurelib.stores.training_requests import TrainingRequests
from jobs import training_run
from jobs.requested_training import make
from jobs.training_run import Work
from jobs.training_set import read_here
from serve_apps.routes.training_sets import TrainingSetDetail, TrainingSetView
from tests.api.conftest import NOON, Platform
from tests.api.test_offline import sent, take_trips, trips
from tests.api.test_sdk_over_app import client_of
from tests.api.test_training_sets import (
    MISTAKES,
    ROWS,
    Stopped,
    asked,
    dying_after,
    full_disk,
    made,
    rows_of,
    spine,
    stored,
)

SETS = "/api/v1/training-sets"
PARQUET, ARROW = "application/vnd.apache.parquet", "application/vnd.apache.arrow.stream"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """Spines may be named below one folder, and a part is small."""
    training = settings.training.model_copy(update={"spine_roots": (str(tmp_path / "spines"),)})
    return settings.model_copy(update={"training": training})


@pytest.fixture
async def taken(platform: Platform, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """A platform with trips, where a spine has several parts."""
    monkeypatch.setattr(training_run, "_ROWS_OF_A_PART", 25)
    await take_trips(platform, client)
    return platform


def parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def arrow(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


async def upload(client: httpx2.AsyncClient, body: bytes, form: str = PARQUET, **query: Any) -> httpx2.Response:
    how = {"featureset": "Rider", "timestamp_column": "seen_at", **query}
    return await client.post(SETS, params=how, content=body, headers={"Content-Type": form})


async def begun(client: httpx2.AsyncClient, **query: Any) -> dict[str, Any]:
    answer = await upload(client, parquet(spine()), **query)
    assert answer.status_code == 202, answer.text
    return answer.json()


def carry_out(platform: Platform, training_id: str, read: Callable[[Work], Iterator[int]] | None = None) -> bool:
    """What its job does; whether it is over."""
    settings = platform.settings
    return make(settings, training_id, platform.clock, read or (lambda work: read_here(settings, work)))


async def shown(client: httpx2.AsyncClient, training_id: str) -> dict[str, Any]:
    answer = await client.get(f"{SETS}/{training_id}")
    assert answer.status_code == 200, answer.text
    return TrainingSetDetail.model_validate(answer.json(), extra="forbid").model_dump(mode="json")


async def rows(client: httpx2.AsyncClient, training_id: str) -> pa.Table:
    answer = await client.get(f"{SETS}/{training_id}/rows")
    assert (answer.status_code, answer.headers["content-type"]) == (200, ARROW), answer.text
    return pa.ipc.open_stream(answer.content).read_all()


def kept(platform: Platform) -> list[str]:
    """Files below the root of training sets."""
    return [str(path) for path in Path(platform.settings.training_url).rglob("*") if path.is_file()]


async def test_an_uploaded_spine_becomes_the_training_set_that_the_job_makes_of_the_file(taken, client, tmp_path):
    expected = made(taken, asked(stored(spine(), tmp_path / "in"), tmp_path / "out"))
    for body, form in ((parquet(spine()), PARQUET), (arrow(spine()), ARROW)):
        answer = await upload(client, body, form)
        assert (answer.status_code, answer.json()["state"], answer.json()["rows"]) == (202, "requested", ROWS)
        training_id = answer.json()["id"]
        assert carry_out(taken, training_id)
        found = await shown(client, training_id)
        assert (found["state"], found["parts_done"], found["parts"]) == ("complete", 3, 3)
        assert found["manifest"]["rows_sha256"] == expected.rows_sha256
        assert (await rows(client, training_id)).equals(rows_of(tmp_path / "out"))
        whole = await client.get(f"{SETS}/{training_id}/rows", headers={"Accept": PARQUET})
        assert (whole.headers["content-type"], whole.content) == (PARQUET, (tmp_path / "out/data.parquet").read_bytes())
        head = await client.head(f"{SETS}/{training_id}/rows")
        assert (head.status_code, head.headers["content-type"], head.content) == (200, ARROW, b"")


async def test_a_spine_may_be_named_below_the_folders_that_the_settings_name_and_nowhere_else(taken, client, tmp_path):
    inside = stored(spine(), tmp_path / "spines")
    outside = stored(spine(), tmp_path / "elsewhere")
    (tmp_path / "spines/link.parquet").symlink_to(outside)
    order = {"featureset": "Rider", "timestamp_column": "seen_at"}
    answer = await client.post(SETS, json={**order, "spine": inside})
    assert (answer.status_code, answer.json()["spine"]) == (202, inside)
    assert carry_out(taken, answer.json()["id"])
    assert len(await rows(client, answer.json()["id"])) == ROWS
    hidden = (outside, f"{tmp_path}/spines/../elsewhere/spine.parquet", f"{tmp_path}/spines/link.parquet")
    for named in (*hidden, f"file://{inside}", f"{tmp_path}/spines2/x.parquet", "s3://bucket/x.parquet", "\x00"):
        refused = await client.post(SETS, json={**order, "spine": named})
        assert (refused.status_code, refused.json()["error"]) == (400, "invalid_request"), named
        assert "training.spine_roots" in refused.json()["detail"]


async def test_a_csv_file_is_read_with_its_ids_as_text_and_a_large_one_by_its_job_alone(taken, client, tmp_path):
    order = {"featureset": "Rider", "timestamp_column": "seen_at"}
    table = spine(ROWS).select(["rider", "seen_at", "price"])
    small = stored(table, tmp_path / "spines", "csv")
    wide = table.append_column("note", pa.array(["n" * 2_000] * ROWS))  # more than a body may have
    counted = []
    for named in (small, stored(wide, tmp_path / "spines" / "wide", "csv")):
        asked_for = (await client.post(SETS, json={**order, "spine": named})).json()
        counted.append(asked_for["rows"])
        assert carry_out(taken, asked_for["id"])
        found = await shown(client, asked_for["id"])
        assert (found["state"], found["rows"], found["manifest"]["rows"]) == ("complete", ROWS, ROWS)
    assert counted == [ROWS, None]


@pytest.mark.parametrize(
    ("given", "opened"),
    [
        ("s3://b/spines/x.parquet", "s3://key:secret@b/spines/x.parquet?region=eu"),
        ("s3://b/spines/a/../x.parquet", "s3://key:secret@b/spines/x.parquet?region=eu"),
        ("s3://b/spines/../x.parquet", None),
        ("s3://b/spines/%2e%2E/x.parquet", None),
        ("s3://b/spines/a%2F..%2F..%2Fx.parquet", None),
        ("s3://b/spines/a%20b.parquet", "s3://key:secret@b/spines/a%20b.parquet?region=eu"),
        ("s3://b/spines2/x.parquet", None),
        ("s3://other/spines/x.parquet", None),
        ("s3://me:too@b/spines/x.parquet", None),
        ("s3://b/spines/x.parquet?endpoint_override=evil", None),
        ("gs://b/spines/x.parquet", None),
        ("s3://[b/spines/x.parquet", None),
    ],
)
def test_a_url_is_opened_with_the_credentials_of_the_settings_and_with_none_of_the_request(given, opened):
    roots = ("s3://key:secret@b/spines?region=eu",)
    if opened is not None:
        assert allowed_spine(given, roots) == opened
        return
    with pytest.raises(InvalidRequest) as refused:
        allowed_spine(given, roots)
    assert "secret" not in str(refused.value)


def test_a_file_url_leads_nowhere_but_below_its_root_whatever_it_encodes_or_links_to(tmp_path):
    inside, outside = stored(spine(), tmp_path / "spines"), stored(spine(), tmp_path / "elsewhere")
    (tmp_path / "spines/link.parquet").symlink_to(outside)
    roots = (f"file://{tmp_path}/spines",)
    assert allowed_spine(f"file://{inside}", roots) == inside
    for name in ("%2e%2e/elsewhere/spine.parquet", "..%2felsewhere/spine.parquet", "link.parquet"):
        with pytest.raises(InvalidRequest, match="spine_roots"):
            allowed_spine(f"{roots[0]}/{name}", roots)


def test_a_path_that_leads_nowhere_at_all_is_refused_as_one_outside(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for named in ("~nobody-of-that-name/x.parquet", f"{tmp_path}/circle", f"{tmp_path}/circle/x.parquet"):
        with pytest.raises(InvalidRequest, match="spine_roots"):
            allowed_spine(named, (str(tmp_path),))


async def test_made_like_another_one_it_has_the_same_bytes_whatever_came_since(taken, client):
    first = await begun(client)
    early = await client.post(SETS, json={"like": first["id"]})
    assert (early.status_code, early.json()["error"]) == (409, "conflict")
    assert carry_out(taken, first["id"])
    await sent(client, "Trip", trips(random.Random(9)))
    newer = await begun(client)
    again = (await client.post(SETS, json={"like": first["id"]})).json()
    assert (again["featureset"], again["timestamp_column"], again["like"]) == ("Rider", "seen_at", first["id"])
    for training_id in (newer["id"], again["id"]):
        assert carry_out(taken, training_id)
    once_more = (await client.post(SETS, json={"like": again["id"]})).json()
    assert carry_out(taken, once_more["id"])
    digests = [
        (await shown(client, each["id"]))["manifest"]["rows_sha256"] for each in (first, again, once_more, newer)
    ]
    assert digests[0] == digests[1] == digests[2] != digests[3]


async def test_what_was_erased_since_is_told_and_nothing_is_made(taken, client):
    first = await begun(client)
    assert carry_out(taken, first["id"])
    async with taken.client("admin") as admin:
        await admin.post("/api/v1/erase", json={"dataset": "Trip", "entity_ids": ["1"]})
    again = (await client.post(SETS, json={"like": first["id"]})).json()
    assert carry_out(taken, again["id"])
    found = await shown(client, again["id"])
    assert (found["state"], found["error"], found["manifest"]) == ("failed", "erased", None)
    refused = await client.get(f"{SETS}/{again['id']}/rows")
    assert (refused.status_code, "is failed" in refused.json()["detail"]) == (409, True)


async def test_a_spine_that_is_wrong_is_refused_at_once_and_nothing_of_it_is_kept(taken, client):
    for mistake, (change, more, message) in MISTAKES.items():
        if "form" in more:
            continue  # of another output than HTTP gives
        answer = await upload(client, parquet(change(spine(3))), **more)
        assert (answer.status_code, answer.json()["error"][:7]) == (400, "invalid"), mistake
        assert re.search(message, answer.json()["detail"]), (mistake, answer.text)
    assert kept(taken) == []
    assert (await client.get(SETS)).json() == []


async def test_a_body_that_is_no_whole_spine_is_refused_and_nothing_of_it_is_kept(taken, client):
    for form, whole in ((PARQUET, parquet(spine())), (ARROW, arrow(spine()))):
        for body in (whole[: len(whole) // 2], b"", b"PAR1 and nothing else"):
            answer = await upload(client, body, form)
            assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request"), (form, body[:8])
            assert "cannot be read" in answer.json()["detail"]
    assert kept(taken) == []


async def test_an_upload_that_is_too_large_or_finds_the_disk_full_leaves_nothing(taken, client):
    uploads = taken.application._streaming[1]
    uploads.body_limit = 1_000
    answer = await upload(client, parquet(spine()))
    assert (answer.status_code, answer.json()["error"]) == (413, "payload_too_large")
    uploads.body_limit = taken.settings.training.upload_bytes
    # More than what this process logs meanwhile.
    with full_disk(1 << 20):
        answer = await upload(client, bytes(1 << 21))
    assert (answer.status_code, answer.json()["error"]) == (503, "store_unavailable")
    assert kept(taken) == []


@pytest.mark.parametrize(("limit", "spines"), [("most_kept", 0), ("kept_bytes", 1.0), ("kept_bytes", 1.5)])
async def test_no_more_are_taken_than_may_be_kept_until_some_are_deleted(taken, client, monkeypatch, limit, spines):
    first, body = await begun(client), parquet(spine())
    most = int(len(body) * spines) or 1
    with monkeypatch.context() as limited:
        limited.setitem(taken.settings.training.__dict__, limit, most)
        answers = [await upload(client, body)]
        if spines <= 1:
            answers.append(await client.post(SETS, json={"like": first["id"]}))
            answers.append(await client.post(SETS, json={"featureset": "Rider", "spine": "x"}))
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]) == (507, "quota_exceeded"), answer.text
            assert f"training.{limit}" in answer.json()["detail"]
        assert len(kept(taken)) == 1
        assert carry_out(taken, first["id"])
        assert (await client.delete(f"{SETS}/{first['id']}")).status_code == 200
        assert (await upload(client, body)).status_code == 202


@pytest.mark.parametrize(("limit", "spines"), [("most_kept", 0), ("kept_bytes", 2.5)])
async def test_of_uploads_that_come_at_once_none_is_kept_beyond_the_limit(taken, client, monkeypatch, limit, spines):
    body = parquet(spine())
    monkeypatch.setitem(taken.settings.training.__dict__, limit, int(len(body) * spines) or 2)
    answers = await asyncio.gather(*(upload(client, body) for _ in range(5)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {202, 507}
    assert len(kept(taken)) == len((await client.get(SETS)).json()) == statuses.count(202)
    # Those whose bytes are all there before any is counted may all be refused.
    assert statuses.count(202) in ({2} if limit == "most_kept" else {0, 1, 2})


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"featureset": "Nobody"}, "Nobody"),
        ({"featureset": ""}, "query.featureset"),
        ({"knowledge": "maybe"}, "query.knowledge"),
        ({"colour": "red"}, "query.colour"),
        ({"like": "x"}, "query.like"),
    ],
)
async def test_a_query_of_an_upload_that_is_wrong_is_refused_by_its_parameter(taken, client, query, message):
    answer = await upload(client, parquet(spine()), **query)
    assert (answer.status_code in (400, 404), message in answer.json()["detail"]) == (True, True), answer.text
    assert kept(taken) == []


@pytest.mark.parametrize(
    ("order", "status", "message"),
    [
        ({}, 400, "featureset: missing"),
        ({"featureset": "Rider"}, 400, "spine: missing"),
        ({"like": "x", "featureset": "Rider"}, 400, "like: give nothing else"),
        ({"like": "x"}, 404, "no training set"),
        ({"featureset": "Rider", "spine": "x", "format": "csv"}, 400, "format"),
    ],
)
async def test_an_order_that_is_wrong_says_what_is_missing(taken, client, order, status, message):
    answer = await client.post(SETS, json=order)
    assert (answer.status_code, message in answer.json()["detail"]) == (status, True), answer.text


async def test_a_job_that_was_killed_is_gone_on_with_and_nothing_is_seen_before_all_is_there(taken, client):
    undisturbed = await begun(client)
    assert carry_out(taken, undisturbed["id"])
    training_id, read = (await begun(client))["id"], list[int]()
    with pytest.raises(Stopped):
        carry_out(taken, training_id, dying_after(taken, 2, read))
    found = await shown(client, training_id)
    assert (found["parts_done"], found["parts"], found["manifest"]) == (1, 3, None)
    assert (await client.get(f"{SETS}/{training_id}/rows")).status_code == 409
    await sent(client, "Trip", trips(random.Random(9)))
    assert carry_out(taken, training_id, dying_after(taken, 0, read))
    assert sorted(read) == list(range(3))
    digests = {(await shown(client, each))["manifest"]["rows_sha256"] for each in (training_id, undisturbed["id"])}
    assert len(digests) == 1


async def test_a_store_that_is_away_is_for_another_job_and_what_an_extractor_raises_for_none(taken, client):
    training_id = (await begun(client))["id"]
    with full_disk(), pytest.raises(StoreUnavailable):
        carry_out(taken, training_id)
    in_the_way = Path(taken.settings.training_url) / training_id / "made"
    shutil.rmtree(in_the_way)
    in_the_way.write_text("not a folder")
    assert not carry_out(taken, training_id)
    waiting = await shown(client, training_id)
    in_the_way.unlink()
    assert (waiting["state"], "cannot be read or written" in waiting["detail"]) == ("requested", True)
    assert carry_out(taken, training_id)
    assert (await shown(client, training_id))["state"] == "complete"
    given = pa.table({"rider": [7], "timestamp": [to_datetime(NOON)]})
    failing = await upload(client, parquet(given), featureset="Failing", timestamp_column="timestamp")
    assert carry_out(taken, failing.json()["id"])
    found = await shown(client, failing.json()["id"])
    assert (found["state"], found["error"], "trips.py:" in found["detail"]) == ("failed", "user_code_error", True)


async def test_of_one_whose_files_are_gone_no_rows_are_given_and_it_is_said_why(taken, client, tmp_path):
    training_id = (await begun(client))["id"]
    assert carry_out(taken, training_id)
    shutil.rmtree(Path(taken.settings.training_url) / training_id)
    assert (await shown(client, training_id))["manifest"] is None
    for accept in (ARROW, PARQUET):
        answer = await client.get(f"{SETS}/{training_id}/rows", headers={"Accept": accept})
        assert (answer.status_code, "are gone: delete it" in answer.json()["detail"]) == (409, True), answer.text
    async with client_of(taken) as sdk:
        for name in ("rows.parquet", "rows.arrows"):
            with pytest.raises(Conflict, match="are gone"):
                await sdk.download_training_set(training_id, tmp_path / name)
        with pytest.raises(Conflict, match="are gone"):
            await sdk.training_set_rows(training_id)
    assert list(tmp_path.glob("*rows*")) == []


async def test_one_that_is_cancelled_ends_at_its_next_part_and_is_never_complete(taken, client):
    training_id, read = (await begun(client))["id"], list[int]()

    def cancelling(work: Work) -> Iterator[int]:
        for number in read_here(taken.settings, work):
            read.append(number)
            TrainingRequests(taken.registry.database, taken.clock).cancel(training_id)
            yield number

    assert carry_out(taken, training_id, cancelling)
    assert len(read) == 1
    found = await shown(client, training_id)
    assert (found["state"], found["manifest"]) == ("cancelling", None)
    again = await client.post(f"{SETS}/{training_id}/cancel")
    assert (again.status_code, TrainingSetView.model_validate(again.json(), extra="forbid").state) == (
        200,
        "cancelling",
    )
    assert carry_out(taken, training_id, dying_after(taken, 1, read))  # nobody reads for it any more


async def test_it_is_ended_and_deleted_with_its_own_key_or_a_writers(taken, client):
    async with taken.client("reader") as reader:
        own, writers = await begun(reader), await begun(client)
        refused = await reader.post(f"{SETS}/{writers['id']}/cancel")
        assert (refused.status_code, refused.json()["error"]) == (403, "forbidden")
        assert (await reader.delete(f"{SETS}/{writers['id']}")).status_code == 403
        assert (await client.post(f"{SETS}/{writers['id']}/cancel")).status_code == 200
        early = await reader.delete(f"{SETS}/{own['id']}")
        assert (early.status_code, "cancel it, or wait" in early.json()["detail"]) == (409, True)
        assert carry_out(taken, own["id"])
        late = await reader.post(f"{SETS}/{own['id']}/cancel")
        assert (late.status_code, late.json()["error"]) == (409, "conflict")
        assert (await reader.delete(f"{SETS}/{own['id']}")).status_code == 200
        assert (await reader.get(f"{SETS}/{own['id']}")).status_code == 404
    assert [each for each in kept(taken) if own["id"] in each] == []


async def test_they_are_listed_newest_first_and_told_of(taken, client):
    first, second = await begun(client), await begun(client)
    assert carry_out(taken, first["id"])
    listed = (await client.get(SETS)).json()
    assert [each["id"] for each in listed] == [second["id"], first["id"]]
    for each in listed:
        assert TrainingSetView.model_validate(each, extra="forbid").model_dump() == each
    assert (await client.get(f"{SETS}?featureset=Toll")).json() == []
    assert len((await client.get(f"{SETS}?featureset=Rider&limit=1")).json()) == 1
    events = (await client.get("/api/v1/events?subject=Rider")).json()
    kinds = [event["event_type"] for event in events if event["event_type"].startswith("training")]
    assert kinds == ["training_set_completed", "training_set_requested", "training_set_requested"]


async def test_whoever_waits_hears_of_it_as_soon_as_it_gets_further(taken, client):
    training_id = (await begun(client))["id"]
    waiting = asyncio.create_task(client.get(f"{SETS}/{training_id}?wait_s=20"))
    await asyncio.to_thread(carry_out, taken, training_id)
    while (answer := (await waiting).json())["state"] != "complete":
        waiting = asyncio.create_task(client.get(f"{SETS}/{training_id}?wait_s=20"))
    assert answer["manifest"]["rows"] == ROWS


async def carried_out(platform: Platform, ends: asyncio.Task[Any]) -> None:
    """What the supervisor does: have everything made that is asked for, until the task is over."""
    requests = TrainingRequests(platform.registry.database, platform.clock)
    while not ends.done():
        for each in await asyncio.to_thread(requests.open):
            await asyncio.to_thread(carry_out, platform, each.id)
        await asyncio.wait([ends], timeout=0.05)


async def test_the_client_has_all_rows_read_together_and_brings_the_manifest(taken, client):
    given = spine(12).select(["rider", "seen_at", "price", "label"]).to_pylist()
    how = {"entity_column": "rider", "timestamp_column": "seen_at", "labels": True}
    async with client_of(taken, "reader") as sdk:
        parts = await sdk.query_offline("Rider", given, **how, batch_size=5)
        asked_for = asyncio.create_task(sdk.query_offline("Rider", given, **how, training_set=True))
        await carried_out(taken, asked_for)
        whole = asked_for.result()
        assert whole.to_arrow().schema == parts.to_arrow().schema
        assert whole.to_dict() == parts.to_dict()
        assert whole.metadata["manifest"]["rows"] == len(given)
        again = await sdk.request_training_set(like=whole.metadata["training_set"])
        assert carry_out(taken, again["id"])
        repeated = await sdk.training_set_rows(again["id"])
        assert repeated.metadata["manifest"]["rows_sha256"] == whole.metadata["manifest"]["rows_sha256"]


async def test_instants_of_which_some_name_a_zone_are_refused_alike_however_many_there_are(taken, client):
    given = [{"entity_id": 7, "timestamp": text} for text in ("2026-03-01 10:00", "1772359200", "2026-03-01T10:00Z")]
    async with client_of(taken, "reader") as sdk:
        ways = [
            lambda: sdk.query_offline("Rider", given, training_set=False),
            lambda: sdk.query_offline("Rider", given, training_set=True),
            lambda: sdk.request_training_set("Rider", given),
        ]
        said = []
        for way in ways:
            with pytest.raises(InvalidRequest) as refused:
                await way()
            said.append(str(refused.value))
    mixed = "spine, 'timestamp': row 2 names a zone and row 0 does not"
    assert set(said) == {f"{mixed}; give all of them one, or none of them, which means UTC"}


@pytest.mark.parametrize("form", ["parquet", "csv", "list"])
async def test_the_client_sends_a_spine_of_any_form(taken, client, tmp_path, form):
    table = spine(5).select(["rider", "seen_at", "weight"])
    given = table.to_pylist() if form == "list" else stored(table, tmp_path / "in", form)
    async with client_of(taken) as sdk:
        begun = await sdk.request_training_set("Rider", given, timestamp_column="seen_at")
        assert carry_out(taken, begun["id"])
        found = await sdk.training_set_rows(begun["id"])
        assert (found.columns[:2], found["weight"]) == (["seen_at", "weight"], table["weight"].to_pylist())
        told = await sdk.download_training_set(begun["id"], tmp_path / "rows.parquet")
        await sdk.download_training_set(begun["id"], tmp_path / "rows.arrows")
        assert (tmp_path / "rows.parquet").stat().st_size == told["manifest"]["files"][0]["bytes"]
        assert pq.read_table(tmp_path / "rows.parquet").equals(found.to_arrow())
        assert pa.ipc.open_stream((tmp_path / "rows.arrows").read_bytes()).read_all().equals(found.to_arrow())
        assert [each["id"] for each in await sdk.training_sets(featureset="Rider")] == [begun["id"]]
        assert (await sdk.training_set(begun["id"], wait_s=1))["state"] == "complete"
        assert (await sdk.delete_training_set(begun["id"]))["id"] == begun["id"]


async def test_what_a_training_set_failed_with_is_what_the_client_raises(taken, client):
    given = [{"entity_id": 7, "timestamp": "2026-03-01T11:00:00Z"}]
    async with client_of(taken) as sdk:
        begun = await sdk.request_training_set("Failing", given)
        assert carry_out(taken, begun["id"])
        with pytest.raises(ThymeError, match=r"user_code_error: training set .*trips\.py:"):
            await sdk.training_set_rows(begun["id"])
        begun = await sdk.request_training_set("Rider", given)
        await sdk.cancel_training_set(begun["id"])
        with pytest.raises(InvalidRequest, match="several types"):
            await sdk.request_training_set("Rider", [{"entity_id": 7, "timestamp": 0}, {"entity_id": "x"}])
        with pytest.raises(InvalidRequest, match="beyond 64 bits"):
            await sdk.request_training_set("Rider", [{"entity_id": 1 << 70, "timestamp": 0}])
