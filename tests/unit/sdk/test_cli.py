"""The commands: exit codes, what goes to stdout and what to stderr."""

import json
import subprocess
import sys

import pytest

from featurelib.definitions import Commit
from tests.support.modules import VALID, write_module
from tests.unit.sdk.test_client import ANSWER, RECEIPT


def test_version_prints_the_version(run):
    assert run("version").stdout == "thyme 0.1.0\n"


def test_commit_sends_the_module_and_lists_the_changes(run, service, tmp_path):
    service.answers["POST /api/v1/commit"] = RECEIPT
    result = run("commit", write_module(tmp_path, VALID), "--message", "first")
    assert result.exit_code == 0
    assert "  + dataset:Sale@1" in result.stdout
    assert "committed abc: 1 added, 0 updated, 0 unchanged, 1 jobs started" in result.stdout
    assert Commit.model_validate_json(service.asked[0].body).message == "first"


def test_commit_of_known_content_says_so(run, service, tmp_path):
    service.answers["POST /api/v1/commit"] = {**RECEIPT, "no_op": True}
    assert run("commit", write_module(tmp_path, VALID)).stdout == "nothing to do: this is commit abc already\n"


def test_a_source_on_this_machine_is_no_source_of_another_one(run, service, tmp_path, monkeypatch):
    text = VALID.replace("@dataset(", '@source(PostgresSource(table="sales"), cursor="at")\n@dataset(', 1)
    text = text.replace("from featurelib import (", "from featurelib import (\n    PostgresSource,\n    source,", 1)
    path = write_module(tmp_path, text)
    service.answers["POST /api/v1/commit"] = RECEIPT
    assert "localhost" not in run("commit", path).stderr
    monkeypatch.setenv("THYME_ATTEMPTS", "1")
    refused = run("commit", path, "--api-url", "http://host.invalid/api/v1/commit")
    assert "the source of Sale is on localhost, which is another machine there" in refused.stderr


def test_a_commit_may_be_told_what_to_allow_and_answers_in_json(run, service, tmp_path):
    service.answers["POST /api/v1/commit"] = RECEIPT
    options = ("--allow-retention-narrowing", "--no-backfill", "--json")
    assert json.loads(run("commit", write_module(tmp_path, VALID), *options).stdout) == RECEIPT
    assert [service.asked[0].json[name] for name in ("allow_retention_narrowing", "backfill")] == [True, False]


def test_commit_takes_a_dotted_module(run, service, home):
    service.answers["POST /api/v1/commit"] = RECEIPT
    write_module(home, VALID, name="shop_definitions.py")
    assert run("commit", "-m", "shop_definitions").exit_code == 0


def test_a_dry_run_prints_the_body_and_sends_nothing(run, service, tmp_path):
    result = run("commit", write_module(tmp_path, VALID), "--dry-run")
    assert Commit.model_validate_json(result.stdout).datasets[0].name == "Sale"
    assert service.asked == []


def test_a_dry_run_writes_the_body_to_a_file(run, tmp_path):
    path = tmp_path / "body.json"
    result = run("commit", write_module(tmp_path, VALID), "--dry-run", "--output", path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert Commit.model_validate_json(path.read_text()).featuresets[0].name == "ShopFeatures"


def test_a_module_with_three_mistakes_lists_all_three_and_sends_nothing(run, service, tmp_path):
    text = VALID.replace('of="amount"', 'of="amout"').replace("pieces: int", "pieces: complex")
    text = text.replace("default=1.0", "default='x'")
    result = run("commit", write_module(tmp_path, text))
    assert (result.exit_code, result.stdout) == (1, "")
    assert [code in result.stderr for code in ("[unknown_type]", "[unknown_column]", "[default_type]")] == [True] * 3
    assert "features.py:" in result.stderr
    assert service.asked == []


def test_what_the_service_refuses_is_shown_like_our_own_problems(run, service, tmp_path):
    details = [{"code": "window_changed", "subject": "p", "message": "m", "hint": "h", "file": "f.py", "line": 3}]
    service.answers["POST /api/v1/commit"] = (409, {"error": "breaking_change", "detail": "d", "details": details})
    result = run("commit", write_module(tmp_path, VALID))
    assert result.exit_code == 1
    assert "f.py:3  p" in result.stderr
    assert "[breaking_change] Give the changed definition a new version." in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["commit"],
        ["commit", "a.py", "-m", "b"],
        ["commit", "a.py", "--output", "x"],
        ["query", "F"],
        ["query", "F", "-e", "@absent"],
        ["query", "F", "-e", "a", "--input", "novalue"],
        ["query", "F", "-e", "a,b", "--at", "2026-01-01"],
        ["query", "F", "-e", "a", "-f", "xml"],
        ["logs", "--limit", "0"],
        ["nonsense"],
    ],
)
def test_wrong_options_exit_with_two(run, arguments):
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


def test_query_prints_rows_on_stdout_and_the_run_on_stderr(run, service):
    service.answers["GET /features"] = (200, ANSWER, {"X-Query-Run-Id": "run-1"})
    result = run("query", "shops.features:ShopFeatures", "-e", "s1", "-f", "json")
    assert json.loads(result.stdout) == [{"entity_id": "s1", **ANSWER["features"]}]
    assert result.stderr == "Query run: run-1\n"
    assert service.asked[0].parameters["featureset"] == "ShopFeatures"


def test_query_names_the_page_of_the_run_when_there_is_a_front_end(run, service, monkeypatch):
    monkeypatch.setenv("THYME_FRONTEND_URL", "http://ui")
    service.answers["GET /features"] = (200, ANSWER, {"X-Query-Run-Id": "run-1"})
    assert "Results: http://ui/query-runs/run-1" in run("query", "F", "-e", "s1").stderr


def test_query_prints_csv_with_lists_as_json(run, service):
    service.answers["GET /features"] = ANSWER
    result = run("query", "F", "-e", "s1", "-f", "csv")
    assert result.stdout == 'entity_id,shop,total_1d,recent\ns1,s1,2.5,"[""a"", ""b""]"\n'


def test_query_prints_a_table(run, service):
    service.answers["GET /features"] = ANSWER
    result = run("query", "F", "-e", "s1")
    assert "total_1d" in result.stdout
    assert '["a", "b"]' in result.stdout


def test_inputs_are_json_where_they_can_be_and_text_otherwise(run, service):
    service.answers["GET /api/v1/featuresets"] = []
    service.answers["POST /features"] = ANSWER
    run("query", "F", "-e", "s1", "--input", "n=3", "--input", "flag=true", "--input", "name=AA", "--input", "a=b=c")
    assert service.asked[-1].json["inputs"] == {"n": 3, "flag": True, "name": "AA", "a": "b=c"}


def test_many_entities_go_as_a_batch(run, service, home):
    (home / "ids.txt").write_text("c\n\nd\n")
    service.answers["POST /features/batch"] = {"features": ["entity_id"], "values": [[each] for each in "abcd"]}
    result = run("query", "F", "-e", "a,b", "-e", "@ids.txt", "-f", "csv")
    assert service.asked[0].json["entity_ids"] == ["a", "b", "c", "d"]
    assert result.stdout.split() == ["entity_id", "a", "b", "c", "d"]


def test_a_table_is_cut_at_the_limit_and_says_so(run, service):
    service.answers["POST /features/batch"] = {"features": ["entity_id"], "values": [["x1"], ["x2"], ["x3"]]}
    result = run("query", "F", "-e", "x1,x2,x3", "--limit", "2")
    assert "x3" not in result.stdout
    assert "1 more rows" in result.stderr


def test_lookup_reads_a_dataset_as_of_an_instant(run, service):
    service.answers["GET /features"] = ANSWER
    result = run("lookup", "ShopStats", "-e", "s1", "--at", "2026-01-01T10:30", "-f", "json")
    assert service.asked[0].parameters["timestamp"] == "2026-01-01T10:30:00Z"
    assert json.loads(result.stdout)[0]["total_1d"] == 2.5


def test_lookup_of_an_unknown_key_says_so(run, service):
    service.answers["GET /features"] = {**ANSWER, "features": None}
    result = run("lookup", "ShopStats", "-e", "s9", "-f", "json")
    assert (json.loads(result.stdout), result.stderr) == ([], "ShopStats has no row for s9\n")


def test_an_unknown_featureset_exits_with_one_and_its_correlation_id(run, service):
    body = {"error": "not_found", "detail": "no featureset Nope", "correlation_id": "c-1"}
    service.answers["GET /features"] = (404, body)
    result = run("query", "Nope", "-e", "s1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no featureset Nope" in result.stderr
    assert "correlation id: c-1" in result.stderr


STATUS = {
    "featuresets": [{"name": "ShopFeatures"}],
    "jobs": [{"name": "by_shop_job", "partition_count": 2}],
    "backfills": [],
    "latest_commit": {"id": "abc", "status": "applied", "created_at": "2026-01-01T00:00:00Z"},
    "recent_events": [
        {"created_at": "2026-01-01T00:00:00Z", "event_type": "commit", "severity": "info", "message": "done"}
    ],
}


def test_status_as_json_is_the_body_and_the_services(run, service):
    service.answers["GET /api/v1/status"] = STATUS
    service.answers["GET /health"] = {"status": "ok"}
    result = run("status", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "status": STATUS,
        "services": {"definition_service": "up", "query_server": "up"},
    }


def test_status_names_both_services_and_exits_with_one_while_either_is_down(run, service):
    service.answers["GET /api/v1/status"] = STATUS
    service.answers["GET /health"] = {"status": "ok"}
    result = run("status", "--json", "--query-url", "http://127.0.0.1:1")
    assert (result.exit_code, json.loads(result.stdout)["status"]) == (1, STATUS)
    assert json.loads(result.stdout)["services"] == {"definition_service": "up", "query_server": "down"}
    result = run("status", "--api-url", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stdout == "definition_service: down\nquery_server: up\n"
    assert "does not answer" in result.stderr
    result = run("status", "--json", "--api-url", "http://127.0.0.1:1")
    assert json.loads(result.stdout) == {
        "status": {},
        "services": {"definition_service": "down", "query_server": "up"},
    }


def test_a_page_of_something_else_on_the_port_is_no_service(run, service):
    for path in ("/health", "/api/v1/status", "/features"):
        service.answers[f"GET {path}"] = (200, b"<html>hello</html>", {"Content-Type": "text/html"})
    result = run("status")
    assert (result.exit_code, result.stdout) == (1, "definition_service: down\nquery_server: down\n")
    result = run("query", "F", "-e", "s1")
    assert (result.exit_code, result.stdout, result.exception.__class__) == (1, "", SystemExit)
    assert "not as a service of the platform does" in result.stderr


def test_an_output_that_cannot_be_written_is_a_wrong_option(run, tmp_path):
    result = run("commit", write_module(tmp_path, VALID), "--dry-run", "--output", tmp_path / "absent" / "x.json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "No such file" in result.stderr


@pytest.mark.parametrize("command", ["query", "lookup"])
def test_a_module_may_be_named_and_does_not_matter(run, service, command):
    service.answers["GET /features"] = ANSWER
    assert run(command, "ShopFeatures", "-m", "shops.features", "-e", "s1").exit_code == 0
    assert run(command, "ShopFeatures", "--module", "shops.features", "-e", "s1").exit_code == 0


def test_an_input_of_a_text_feature_is_sent_as_it_was_typed(run, service):
    features = [{"name": "code", "dtype": "str", "request": True}, {"name": "n", "dtype": "int", "request": True}]
    service.answers["GET /api/v1/featuresets"] = [{"name": "F", "spec": {"features": features}}]
    service.answers["POST /features"] = ANSWER
    run("query", "m:F", "-e", "s1", "--input", "code=7.50", "--input", "n=3")
    assert service.asked[-1].json["inputs"] == {"code": "7.50", "n": 3}


def test_status_for_people_names_services_commit_jobs_and_events(run, service):
    service.answers["GET /api/v1/status"] = STATUS
    service.answers["GET /health"] = {"status": "ok"}
    out = run("status").stdout
    assert "query_server: up" in out
    assert "latest commit: abc" in out
    assert "by_shop_job" in out
    assert "done" in out


JOB = {
    "name": "by_shop_job",
    "version": 2,
    "state": "degraded",
    "partition_count": 3,
    "workers": [{"state": "running"}, {"state": "running"}, {"state": "stalled"}],
    "detail": "one step has taken 61 s",
    "freshness": {
        "event_time_lag_s": 7_200.0,
        "records_behind": 12_345,
        "waiting_s": 4.25,
        "rows_in": 1_000_000,
        "rows_out": 999_000,
        "rows_late": 7,
        "rows_failed": 1,
    },
}


def test_jobs_are_shown_in_units_that_people_use(run, service):
    service.answers["GET /api/v1/jobs"] = [JOB]
    out = run("jobs").stdout
    for cell in ("by_shop_job@2", "degraded", "2 h", "12,345, 4.2 s", "1.0 M", "999.0 k", "7, 1"):
        assert cell in out
    assert "by_shop_job@2: 2 running, 1 stalled; one step has taken 61 s" in out
    assert json.loads(run("jobs", "--json").stdout) == [JOB]


def test_scaling_a_job_sends_the_number(run, service):
    service.answers["PATCH /api/v1/jobs/by_shop@2"] = JOB
    result = run("jobs", "scale", "by_shop@2", "4")
    assert (result.exit_code, service.asked[-1].json) == (0, {"partition_count": 4})
    assert "by_shop_job shall have 4 workers" in result.stdout
    assert run("jobs", "scale", "by_shop", "65").exit_code == 2


def test_status_shows_how_fresh_each_dataset_is(run, service):
    parts = [{"idle": False, "watermark": "2026-01-01T00:00:05Z"}, {"idle": True, "watermark": "2026-01-01T00:00:01Z"}]
    fresh = {
        "event_time_lag_s": 0.3,
        "records_behind": 2,
        "waiting_s": None,
        "archive_records_behind": None,
        "rows_in": 11,
        "rows_out": 10,
        "rows_late": 0,
        "rows_dead": 1,
        "partitions": parts,
    }
    datasets = [
        {"name": "Sale", "version": 1, "freshness": fresh},
        {"name": "ShopStats", "version": 1, "freshness": None},
    ]
    service.answers["GET /api/v1/status"] = {**STATUS, "jobs": [JOB], "datasets": datasets}
    service.answers["GET /health"] = {"status": "ok"}
    out = run("status").stdout
    for cell in ("Sale@1", "0.3 s", "1 of 2", "2026-01-01T00:00:01Z", "by_shop_job@2"):
        assert cell in out
    assert "ShopStats" not in out


def test_the_commit_url_may_stand_for_the_base(run, service):
    service.answers["GET /api/v1/status"] = STATUS
    service.answers["GET /health"] = {"status": "ok"}
    assert run("status", "--json", "--api-url", f"{service.url}/api/v1/commit").exit_code == 0


def test_logs_filter_and_print(run, service):
    service.answers["GET /api/v1/events"] = [{**STATUS["recent_events"][0], "subject": "abc"}]
    result = run("logs", "-n", "5", "-s", "warn", "--event-type", "commit")
    assert service.asked[0].parameters == {"limit": "5", "severity": "warn", "event_type": "commit"}
    assert "done" in result.stdout
    assert json.loads(run("logs", "--json").stdout)[0]["subject"] == "abc"


def test_help_loads_neither_the_client_nor_anything_heavy():
    script = (
        "import sys\n"
        "from featurelib.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = 'ray redis sqlalchemy polars pyarrow pandas numpy httpx2 fastapi'.split()\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "commit" in out
    assert out.splitlines()[-1] == "[]"
