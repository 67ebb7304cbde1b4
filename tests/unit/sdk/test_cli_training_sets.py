"""``thyme training-sets`` against a stand-in service: what is asked, shown and written, and how it exits."""

from __future__ import annotations

import hashlib
import json

import polars as pl
import pyarrow as pa
import pytest

ID = "5b0f4a53-9a68-4d36-8a2f-4e1f2f6b6e11"
ONE = f"/api/v1/training-sets/{ID}"
ROWS = b"PAR1 rows, as they are stored"
MADE = {
    "id": ID,
    "featureset": "Rider",
    "spine": None,
    "like": None,
    "entity_column": "rider",
    "timestamp_column": "timestamp",
    "knowledge": "latest",
    "state": "requested",
    "error": None,
    "detail": "",
    "submission_id": None,
    "attempt": 1,
    "rows": 1_200,
    "parts": None,
    "parts_done": 0,
    "requested_by": "1f0c9a2b",
    "created_at": "2026-03-01T12:00:00Z",
    "updated_at": "2026-03-01T12:00:09Z",
    "manifest": None,
}
MANIFEST = {
    "registry_version": 3,
    "definition": "d" * 8,
    "read_at": "2026-03-01T12:00:01Z",
    "complete_rows": 1_100,
    "rows_sha256": "r" * 8,
    "inputs": {"Trip@1": {"offsets": [1_000, 234], "table_version": 7}},
    "columns": {"rider": "int64", "trips": "int64"},
    "files": [{"name": "data.parquet", "bytes": len(ROWS), "sha256": hashlib.sha256(ROWS).hexdigest()}],
}
WHOLE = {**MADE, "state": "complete", "parts": 3, "parts_done": 3, "manifest": MANIFEST}
FAILED = {**MADE, "state": "failed", "error": "erased", "detail": "records of Trip were erased"}


def one_after_the_other(*found):
    """What the service answers when it is asked again and again."""
    left = list(found)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_those_that_were_asked_for_are_listed(run, service):
    service.answers["GET /api/v1/training-sets"] = [{**MADE, "state": "running", "parts": 20, "parts_done": 7}]
    result = run("training-sets", "list", "rides:Rider", "-n", 5)
    assert service.asked[0].parameters == {"featureset": "Rider", "limit": "5"}
    assert all(cell in result.stdout for cell in (ID, "Rider", "running", "1,200", "7 of 20"))
    assert json.loads(run("training-sets", "list", "--json").stdout)[0]["parts_done"] == 7


def test_one_is_shown_with_what_it_was_made_of(run, service):
    service.answers[f"GET {ONE}"] = WHOLE
    out = run("training-sets", "show", ID).stdout
    shown = ("complete", "3 of 3", "records of Trip@1", "1,234", "rider, trips", MANIFEST["files"][0]["sha256"])
    assert all(cell in out for cell in shown)
    assert json.loads(run("training-sets", "show", ID, "--json").stdout) == WHOLE
    service.answers[f"GET {ONE}"] = FAILED
    failed = run("training-sets", "show", ID)
    assert (failed.exit_code, "records of Trip were erased" in failed.stdout, "read_at" in failed.stdout) == (
        0,
        True,
        False,
    )


def test_one_is_asked_for_with_rows_and_followed_to_its_end(run, service, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    rows = tmp_path / "spine.parquet"
    pl.DataFrame({"rider": [7], "timestamp": ["2026-01-01"]}).write_parquet(rows)
    service.answers["POST /api/v1/training-sets"] = (202, MADE)
    running = [{**MADE, "state": "running", "parts": 3, "parts_done": done} for done in (1, 2)]
    service.answers[f"GET {ONE}"] = one_after_the_other(*running, WHOLE)
    result = run("training-sets", "start", "Rider", "-i", rows, "--entity-column", "rider", "--follow")
    assert (result.exit_code, result.stdout) == (0, f"training set {ID} of Rider is complete: 1200 rows\n")
    assert service.asked[0].parameters == {"featureset": "Rider", "entity_column": "rider"}
    assert service.asked[0].body == rows.read_bytes()
    assert [each.parameters for each in service.asked[1:]] == [{"wait_s": "5.0"}] * 3
    assert "2/3" in result.stderr


def test_ids_of_a_csv_file_are_sent_as_they_are_written(run, service, tmp_path):
    features = [{"name": "rider", "dtype": "str"}, {"name": "price", "dtype": "float"}]
    service.answers["GET /api/v1/featuresets"] = [{"name": "Rider", "spec": {"features": features}}]
    service.answers["POST /api/v1/training-sets"] = (202, MADE)
    rows = tmp_path / "spine.csv"
    rows.write_text("rider,timestamp,price\n007,1772359200,1.5\n")
    assert run("training-sets", "start", "Rider", "-i", rows).exit_code == 0
    sent = pa.ipc.open_stream(service.asked[-1].body).read_all().to_pylist()
    assert sent == [{"rider": "007", "timestamp": "1772359200", "price": 1.5}]


def test_rows_that_the_platform_reads_itself_and_those_of_another_one_are_only_named(run, service):
    service.answers["POST /api/v1/training-sets"] = (202, MADE)
    run("training-sets", "start", "Rider", "--where", "s3://spines/march.parquet", "--knowledge", "as_served")
    assert run("training-sets", "start", "--like", ID).stdout == f"training set {ID} of Rider is requested\n"
    named = {"featureset": "Rider", "spine": "s3://spines/march.parquet", "knowledge": "as_served"}
    assert [each.json for each in service.asked] == [named, {"like": ID}]


@pytest.mark.parametrize("options", [("training-sets", "follow", ID), ("training-sets", "rows", ID, "-o", "x.parquet")])
def test_one_that_fails_is_said_and_exits_1(run, service, home, options):
    service.answers[f"GET {ONE}"] = one_after_the_other(MADE, FAILED)
    result = run(*options)
    assert (result.exit_code, list(home.iterdir())) == (1, [])
    assert result.stdout == f"training set {ID} of Rider is failed: records of Trip were erased\n"
    assert json.loads(run(*options, "--json").stdout)["error"] == "erased"


def test_rows_are_written_to_a_file_as_the_platform_has_them(run, service, home):
    service.answers[f"GET {ONE}"] = one_after_the_other(MADE, WHOLE)
    service.answers[f"GET {ONE}/rows"] = (200, ROWS, {"Content-Type": "application/vnd.apache.parquet"})
    result = run("training-sets", "rows", ID, "-o", "rows.parquet")
    assert (result.exit_code, result.stdout) == (0, "wrote 1200 rows to rows.parquet\n")
    assert [(path.name, path.read_bytes()) for path in home.iterdir()] == [("rows.parquet", ROWS)]
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, pa.schema([("x", pa.int64())])):
        pass
    told = {"Content-Type": "application/vnd.apache.arrow.stream"}
    service.answers[f"GET {ONE}/rows"] = (200, stream.getvalue().to_pybytes(), told)
    assert json.loads(run("training-sets", "rows", ID, "-o", "rows.arrows", "--json").stdout) == WHOLE
    assert pa.ipc.open_stream((home / "rows.arrows").read_bytes()).schema.names == ["x"]


def test_rows_that_are_not_those_of_the_manifest_leave_the_file_that_was_there(run, service, home):
    (home / "rows.parquet").write_text("before")
    service.answers[f"GET {ONE}"] = WHOLE
    service.answers[f"GET {ONE}/rows"] = (200, ROWS[:-1], {"Content-Type": "application/vnd.apache.parquet"})
    result = run("training-sets", "rows", ID, "-o", "rows.parquet")
    assert (result.exit_code, "not with the file that the manifest names" in result.stderr) == (1, True)
    assert [(path.name, path.read_text()) for path in home.iterdir()] == [("rows.parquet", "before")]


def test_one_is_cancelled_and_deleted(run, service):
    service.answers[f"POST {ONE}/cancel"] = {**MADE, "state": "cancelling", "detail": "cancelled with the key 1f0c9a2b"}
    said = run("training-sets", "cancel", ID).stdout
    assert said == f"training set {ID} of Rider is cancelling: cancelled with the key 1f0c9a2b\n"
    service.answers[f"GET {ONE}"] = {**MADE, "state": "cancelled"}
    assert "is cancelled" in run("training-sets", "cancel", ID, "--follow").stdout
    service.answers[f"DELETE {ONE}"] = WHOLE
    assert run("training-sets", "delete", ID).stdout == f"training set {ID} of Rider is deleted\n"
    assert json.loads(run("training-sets", "delete", ID, "--json").stdout)["id"] == ID


@pytest.mark.parametrize(
    "arguments",
    [
        ["start", "Rider"],
        ["start", "Rider", "--where", "x.parquet", "--like", ID],
        ["start", "Rider", "--like", ID],
        ["start", "--like", ID, "--knowledge", "as_served"],
        ["start", "--where", "x.parquet"],
        ["rows", ID],
        ["rows", ID, "-o", "rows.csv"],
        ["rows", ID, "-o", "absent/rows.parquet"],
        ["rows", ID, "-o", "folder.parquet"],
        ["list", "-n", "0"],
    ],
)
def test_wrong_options_exit_with_two_before_anything_is_asked(run, service, home, arguments):
    (home / "folder.parquet").mkdir()
    result = run("training-sets", *arguments)
    assert (result.exit_code, result.stdout, service.asked) == (2, "", [])
    assert result.stderr
