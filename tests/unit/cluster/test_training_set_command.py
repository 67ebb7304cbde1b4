"""``thyme training-set``: what it submits, what it shows, how it ends. Over a stand-in for Ray's job interface."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cluster import training_set
from featurelib.cli import app
from tests.support.http_service import HttpService, http_service

PROGRESS = "\x1b[2m2026-03-01\x1b[0m [info] training_set_progress parts=3 parts_done={} rows=120\n"
Run = Callable[..., Result]


@pytest.fixture
def service() -> Iterator[HttpService]:
    with http_service() as service:
        yield service


@pytest.fixture
def run(service: HttpService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command against the stand-in."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "ray-token").write_text("token")
    monkeypatch.setenv("THYME_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("THYME_CLUSTER__DASHBOARD_PORT", service.url.rpartition(":")[2])
    monkeypatch.setattr(training_set, "_ASK_EVERY_S", 0.0)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["training-set", *arguments])


def answer(service: HttpService, ends: str, *outputs: str) -> None:
    """The job runs for one question per output and then has ended."""
    told: list[str] = []

    def submit() -> tuple[int, dict[str, Any]]:
        job = service.asked[-1].json["submission_id"]
        service.answers[f"GET /api/jobs/{job}"] = lambda: (200, state(job))
        service.answers[f"GET /api/jobs/{job}/logs"] = lambda: (200, {"logs": "".join(told)})
        return 200, {"submission_id": job}

    def state(job: str) -> dict[str, Any]:
        told.append(outputs[len(told)])
        status = "RUNNING" if len(told) < len(outputs) else ends
        return {"submission_id": job, "status": status, "entrypoint": "python"}

    service.answers["POST /api/jobs/"] = submit


def test_the_job_is_given_what_was_asked_with_whole_paths_and_its_last_line_is_shown(run, service, tmp_path):
    answer(service, "SUCCEEDED", "starting\n", PROGRESS.format(1), PROGRESS.format(3), "out: 120 rows, sha256 ab\n")
    result = run("Rider", "--spine", "my spine.parquet", "--output", "s3://bucket/out", "--overwrite")
    assert (result.exit_code, result.stdout) == (0, "out: 120 rows, sha256 ab\n"), result.output
    assert shlex.split(service.asked[0].json["entrypoint"]) == [
        *("python", "-m", "jobs.training_set", "--featureset", "Rider"),
        *("--spine", str(tmp_path / "my spine.parquet"), "--output", "s3://bucket/out"),
        *("--format", "parquet", "--timestamp-column", "timestamp", "--knowledge", "latest", "--overwrite"),
    ]


def test_what_was_made_is_json(run, service):
    answer(service, "SUCCEEDED", "s3://bucket/a: b: 120 rows, sha256 ab\n")
    result = run("Rider", "--spine", "rows.csv", "--output", "s3://bucket/a: b", "--json")
    assert json.loads(result.stdout) == {"output": "s3://bucket/a: b", "rows": 120, "rows_sha256": "ab"}


def test_what_ended_the_job_is_told_and_the_command_fails(run, service):
    error = "invalid_request: spine: no column 'rider' of ids\nCorrect the request.\n"
    answer(service, "FAILED", PROGRESS.format(0), error)
    result = run("Rider", "--spine", "rows.csv", "--output", "out")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no column 'rider' of ids" in result.stderr


def test_progress_is_read_from_what_the_job_prints(service, run):
    from cluster.launcher import Launcher

    answer(service, "SUCCEEDED", "starting\n", PROGRESS.format(2), "done\n")
    with Launcher(service.url, "token") as launcher:
        launcher.submit("python", "job-1")
        seen = []
        for now in training_set.follow(launcher, "job-1"):
            seen.append((now.done, now.job.running))
            if not now.job.running:
                break
    assert seen == [(None, True), ((2, 3, 120), True), ((2, 3, 120), False)]


def test_without_a_platform_or_an_output_it_says_so(run, service):
    assert run("Rider", "--spine", "rows.csv").exit_code == 2
    service.answers["POST /api/jobs/"] = (500, {"error": "down"})
    refused = run("Rider", "--spine", "rows.csv", "--output", "out")
    assert (refused.exit_code, "error:" in refused.stderr) == (1, True)
