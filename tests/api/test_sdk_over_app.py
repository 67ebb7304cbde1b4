"""The client's operations against the whole application: what one side writes, the other reads."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from featurelib.client import AsyncThymeClient, Config
from featurelib.compile import compile_module
from featurelib.errors import FailedPrecondition, Forbidden, InvalidRequest, NotFound, Unauthenticated
from tests.api.conftest import InProcess

RIDES = Path(__file__).parent / "rides.py"


def client_of(platform, role="writer"):
    key = "" if role is None else platform.keys[role][1]
    config = Config("http://thyme/api/v1/commit", "http://thyme", "http://thyme", api_key=key)
    return AsyncThymeClient(config, transport=InProcess(platform))


@pytest.fixture
async def sdk(platform, rides):
    """A writer's client of a platform that serves the rides."""
    async with client_of(platform) as made:
        yield made


async def test_one_entity_a_batch_and_a_look_up_agree(sdk):
    (one,) = (await sdk.query("Rider", 7)).to_dict()
    batch = await sdk.query_batch("Rider", [8, 7, 99])
    assert batch.to_arrow().num_rows == 3
    assert batch.to_dict()[1] == one
    assert [batch.columns[0], batch["entity_id"]] == ["entity_id", ["8", "7", "99"]]
    assert batch.query_run_id
    assert len(await sdk.lookup("NoSuchDataset", 7)) == 0


async def test_a_training_set_is_what_single_reads_of_the_past_give(sdk):
    rows = pl.DataFrame(
        {
            "rider": [8, 7, 7],
            "at": ["2026-03-01 10:30:00+00:00", "2026-03-01T11:30:00Z", "2026-03-01T09:30+00:00"],
        }
    )
    result = await sdk.query_offline("Rider", rows, entity_column="rider", timestamp_column="at", batch_size=2)
    assert result.columns[:2] == ["entity_id", "timestamp"]
    for asked, got in zip(rows.to_dicts(), result.to_dict(), strict=True):
        (alone,) = (await sdk.query("Rider", asked["rider"], timestamp=asked["at"])).to_dict()
        assert {name: got[name] for name in alone} == alone


async def test_an_explained_read_is_the_same_read_with_its_reasons(sdk):
    asked = {"timestamp": "2026-03-01T11:30:00Z"}
    plain, explained = (
        await sdk.query("Rider", 7, **asked),
        await sdk.query("Rider", 7, {"fee": 2.0}, explain=True, **asked),
    )
    assert explained.to_dict() == plain.to_dict()
    assert plain.explained == {}
    assert set(explained.explained) == set(plain.columns) - {"entity_id"}
    assert explained.explained["spent"]["row"]["dataset"] == "RiderStats@1"
    looked_up = await sdk.lookup("RiderStats", 7, explain=True, **asked)
    assert looked_up.explained["spent"]["value"] == looked_up["spent"][0]


async def test_a_read_is_recorded_found_and_replayed(platform, sdk):
    result = await sdk.query("Rider", 7)
    await platform.services.writer.flush()
    assert [run["id"] for run in await sdk.query_runs(featureset="Rider", kind="online")] == [result.query_run_id]
    assert await sdk.query_runs(error=True) == []
    replayed = await sdk.replay(result.query_run_id, knowledge="as_served")
    assert (replayed["kind"], set(replayed["features"].values())) == ("online", {"same"})


async def test_arrow_and_json_say_the_same(sdk, monkeypatch):
    rows = [{"entity_id": 7, "timestamp": "2026-03-01T11:30:00Z"}, {"entity_id": 99, "timestamp": 0}]
    arrow = (await sdk.query_batch("Rider", [7, 99]), await sdk.query_offline("Rider", rows))
    monkeypatch.setattr("featurelib.client.reads.has_arrow", lambda: False)
    plain = (await sdk.query_batch("Rider", [7, 99]), await sdk.query_offline("Rider", rows))
    for one, other in zip(arrow, plain, strict=True):
        assert one.to_dict() == other.to_dict()


async def test_a_plan_stores_nothing_and_a_commit_of_the_same_does_nothing(sdk):
    commit = compile_module(RIDES)
    planned = await sdk.plan(commit, assumed={"keys": 5})
    assert planned["no_op"] is True
    assert (await sdk.commit(commit)).no_op
    assert len(await sdk.commits()) == 1


async def test_an_admin_makes_a_key_that_opens_until_it_is_revoked(platform, sdk):
    async with client_of(platform, "admin") as admin:
        made = await admin.create_key("reader", name="dashboard")
        async with AsyncThymeClient(
            Config(query_url="http://thyme", api_key=made["key"]), transport=InProcess(platform)
        ) as reader:
            assert len(await reader.query("Rider", 7)) == 1
            await admin.revoke_key(made["fingerprint"])
            with pytest.raises(Unauthenticated):
                await reader.query("Rider", 7)
        assert made["fingerprint"] in {key["fingerprint"] for key in await admin.keys()}
    with pytest.raises(Forbidden):
        await sdk.keys()


async def test_a_principal_keeps_secrets_as_far_as_its_role_goes(platform):
    async with client_of(platform, "admin") as admin:
        await admin.create_principal("service_account", "load")
        made = await admin.create_key("reader", principal="load")
        await admin.create_scope("payments")
        await admin.put_secret("payments", "password", "s3cret")
        config = Config("http://thyme/api/v1/commit", "http://thyme", "http://thyme", api_key=made["key"])
        async with AsyncThymeClient(config, transport=InProcess(platform)) as load:
            with pytest.raises(Forbidden):
                await load.secret("payments", "password")
            await admin.assign_role("read_scope_role", "load", "scope:payments")
            assert (await load.secret_scopes(), await load.secrets("payments")) == (["payments"], ["password"])
            assert await load.secret("payments", "password") == "s3cret"
            with pytest.raises(Forbidden):
                await load.delete_secret("payments", "password")
            await admin.unassign_role("read_scope_role", "load", "scope:payments")
            assert await load.secret_scopes() == []
        assert (await admin.rotate_secrets())["values"] == 1
        with pytest.raises(FailedPrecondition, match="holds 1 secret"):
            await admin.delete_scope("payments")
        await admin.delete_secret("payments", "password")
        await admin.delete_scope("payments")
        with pytest.raises(NotFound):
            await admin.secrets("payments")


async def test_the_catalogue_is_found_followed_and_edited(sdk):
    found = await sdk.search("rider", kinds=["featureset", "dataset"])
    assert "Rider" in {each["name"] for each in found["featuresets"]}
    lineage = await sdk.lineage("Ride", direction="downstream")
    assert lineage["nodes"]
    assert await sdk.dependents("dataset", "Ride")
    assert [each["version"] for each in await sdk.featureset_versions("Rider")] == [1]
    assert (await sdk.featureset_version("Rider", 1))["name"] == "Rider"
    assert (await sdk.edit_metadata("featureset", "Rider", owner="ann", tags=["hot"]))["owner"] == "ann"
    assert (await sdk.deprecate("Rider", reason="old"))["deprecation_reason"] == "old"
    await sdk.restore("Rider")


async def test_jobs_and_backfills_are_ordered_and_refused(sdk):
    (job, *_) = await sdk.jobs()
    assert (await sdk.pause_job(job["name"]))["paused"] is True
    assert (await sdk.resume_job(job["name"]))["paused"] is False
    assert (await sdk.job(job["name"]))["name"] == job["name"]
    asked = await sdk.start_backfill(job["name"])
    assert (await sdk.backfill(asked["id"]))["id"] == asked["id"]
    assert [each["id"] for each in await sdk.backfills()] == [asked["id"]]
    assert (await sdk.cancel_backfill(asked["id"]))["state"] in {"cancelling", "cancelled"}
    with pytest.raises(NotFound):
        await sdk.pause_job("nothing")


async def test_tables_and_lines_of_any_length_are_logged_once_under_their_key(platform, sdk, monkeypatch):
    monkeypatch.setattr("featurelib.client.parts._ROWS_PER_PART", 2)
    monkeypatch.setattr("featurelib.client.parts._BYTES_PER_PART", 200)
    rows = [
        {"ride": f"n{number}", "rider": number, "city": "Oslo", "fare": -number / 0.5, "at": "2026-03-01T09:00:00Z"}
        for number in range(5)
    ]
    table = pl.DataFrame(rows)
    before = sum(head.next_offset for head in platform.log.heads("Ride@1", 2))
    for given, accepted in ((table, 5), (table.to_arrow(), 0), (table.to_arrow().to_reader(), 0)):
        done = await sdk.log_arrow("Ride", given, idempotency_key="may")
        assert (done["records"], done["events_sent"], done["duplicates"]) == (5, accepted, 5 - accepted)
    assert (await sdk.log_arrow("Ride", table.to_pandas()))["events_sent"] == 5
    texts = [json.dumps(row) for row in rows[:2]] + [json.dumps(rows[2]).encode() + b"\r\n", "nonsense\n", rows[3]]
    for accepted in (4, 0):
        done = await sdk.log_lines("Ride", texts, idempotency_key="june")
        assert (done["records"], done["events_sent"], done["duplicates"]) == (5, accepted, 4 - accepted)
        assert [(bad["row"], bad["reason"]) for bad in done["problems"]] == [(3, "malformed")]
    assert sum(head.next_offset for head in platform.log.heads("Ride@1", 2)) == before + 14
    with pytest.raises(InvalidRequest, match="list"):
        await sdk.log_arrow("Ride", rows)
