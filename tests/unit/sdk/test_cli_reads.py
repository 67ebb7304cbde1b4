"""The commands that read: every form of an answer, where it goes, and what a person sees meanwhile."""

import json
import os
import pty
import subprocess
import sys

import polars as pl
import pyarrow as pa
import pytest

from featurelib.client import reads
from tests.unit.sdk.test_client import ANSWER

BATCH = {"features": ["entity_id", "n", "l"], "values": [["a", 1, ["x"]], ["b", None, []]]}
ROWS = [{"entity_id": "a", "n": 1, "l": ["x"]}, {"entity_id": "b", "n": None, "l": []}]
FEATURES = [{"name": "price", "dtype": "float", "request": True}, {"name": "code", "dtype": "str", "request": True}]


@pytest.fixture
def offline(service):
    """Offline answers that name the row they are of."""

    def answer():
        asked = service.asked[-1].json["queries"]
        results = [{**each, "features": {"x": f"of {each['entity_id']}"}} for each in asked]
        return (200, {"results": results}, {"X-Query-Run-Id": f"run-{len(service.asked)}"})

    service.answers["POST /features/offline"] = answer
    service.answers["GET /api/v1/featuresets"] = [{"name": "F", "spec": {"features": FEATURES}}]
    return service


# Forms


@pytest.mark.parametrize(
    ("form", "read"),
    [
        ("parquet", lambda path: pl.read_parquet(path).to_dicts()),
        ("arrow", lambda path: pa.ipc.open_file(path).read_all().to_pylist()),
        ("json", lambda path: json.loads(path.read_text())),
    ],
)
def test_rows_are_written_to_a_file(run, service, tmp_path, form, read):
    service.answers["POST /features/batch"] = BATCH
    path = tmp_path / "rows"
    result = run("query", "F", "-e", "a,b", "-f", form, "-o", path)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", f"wrote 2 rows to {path}\n")
    assert read(path) == ROWS


def test_bools_are_written_as_csv_readers_know_them(run, service):
    service.answers["POST /features/batch"] = {"features": ["entity_id", "b"], "values": [["a", True], ["b", False]]}
    found = pl.read_csv(run("query", "F", "-e", "a,b", "-f", "csv").stdout.encode())
    assert found["b"].to_list() == [True, False]


def test_a_table_is_written_as_csv(run, service, tmp_path):
    service.answers["POST /features/batch"] = BATCH
    run("query", "F", "-e", "a,b", "-o", tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == 'entity_id,n,l\na,1,"[""x""]"\nb,,[]\n'


@pytest.mark.parametrize(
    "arguments",
    [
        ["query", "F", "-e", "a", "-f", "parquet"],
        ["query", "F", "-e", "a", "-f", "json", "-o", "absent/rows"],
        ["query", "F", "-e", "a,b", "--explain"],
        ["query-offline", "F"],
        ["query-offline", "F", "-e", "a"],
        ["query-offline", "F", "-e", "a", "--at", "2026-01-01", "-i", "rows.csv"],
        ["query-offline", "F", "-i", "rows.xlsx"],
        ["query-offline", "F", "-i", "absent.csv"],
        ["query-offline", "F", "-i", "no.json"],
        ["login", "--url", "http://h"],
        ["login", "--url", "http://h", "--api-key", " "],
    ],
)
def test_wrong_options_of_a_read_exit_with_two(run, service, home, arguments):
    (home / "no.json").write_text("5")
    service.answers["GET /features"] = ANSWER
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr


def test_json_is_short_for_the_format(run, service):
    service.answers["GET /features"] = ANSWER
    assert json.loads(run("query", "F", "-e", "s1", "--json").stdout)[0]["total_1d"] == 2.5
    assert json.loads(run("lookup", "D", "-e", "s1", "--json").stdout)[0]["total_1d"] == 2.5
    assert json.loads(run("version", "--json").stdout) == {"version": "0.1.0"}


def test_an_explained_read_says_where_each_value_came_from(run, service):
    row = {"dataset": "ShopStats", "key": "s1", "column": "total_1d", "known": True, "value": 2.5}
    extractor = {"name": "compare", "version": 1, "inputs": {"price": 2.0, "total": None}}
    why = {
        "total_1d": {"value": 2.5, "status": "present", "source": "lookup", "row": row, "age_seconds": 7200.0},
        "over": {"value": None, "status": "null", "source": "extractor", "extractor": extractor, "why": "it said so"},
        "shop": {"value": "s1", "status": "present", "source": "entity"},
    }
    service.answers["GET /features"] = {**ANSWER, "explain": why}
    result = run("query", "F", "-e", "s1", "--explain")
    assert service.asked[0].parameters["explain"] == "true"
    for text in ("ShopStats.total_1d of s1", "2 h", "compare(price=2.0, total=null)", "it said so", "entity"):
        assert text in result.stdout
    assert json.loads(run("query", "F", "-e", "s1", "--explain", "--json").stdout) == why


# Offline


def write_rows(path):
    rows = {"user": ["a", "b", "c"], "at": ["2026-01-01T00:00Z", "2026-01-02 10:30Z", "2026-01-03T00:00:00+01:00"]}
    frame = pl.DataFrame({**rows, "price": ["1.5", "2", None], "code": ["07", "08", "09"]})
    writers = {
        ".parquet": frame.write_parquet,
        ".csv": frame.write_csv,
        ".tsv": lambda to: frame.write_csv(to, separator="\t"),
        ".jsonl": frame.write_ndjson,
        ".ndjson": frame.write_ndjson,
        ".json": lambda to: to.write_text(json.dumps(frame.to_dicts())),
    }
    writers[path.suffix](path)


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".tsv", ".jsonl", ".ndjson", ".json"])
def test_rows_of_a_file_are_asked_with_their_inputs_in_order(run, offline, tmp_path, ending):
    path = tmp_path / f"rows{ending}"
    write_rows(path)
    columns = ("--entity-column", "user", "--timestamp-column", "at")
    result = run("query-offline", "m:F", "-i", path, *columns, "--batch-size", 2, "--json")
    assert result.exit_code == 0, result.stderr
    assert [row["x"] for row in json.loads(result.stdout)] == ["of a", "of b", "of c"]
    asked = [query for each in offline.asked if each.method == "POST" for query in each.json["queries"]]
    assert [query["timestamp"] for query in asked] == [
        "2026-01-01T00:00:00Z",
        "2026-01-02T10:30:00Z",
        "2026-01-02T23:00:00Z",
    ]
    assert [query["inputs"] for query in asked] == [
        {"price": 1.5, "code": "07"},
        {"price": 2, "code": "08"},
        {"code": "09"},
    ]


def test_labels_of_a_file_are_kept_when_asked_for_and_knowledge_is_sent(run, offline, tmp_path):
    write_rows(tmp_path / "rows.parquet")
    table = pl.read_parquet(tmp_path / "rows.parquet").with_columns(bought=pl.Series([True, False, None]))
    table.write_ipc(tmp_path / "rows.arrow")
    (tmp_path / "folder").mkdir()
    table.write_parquet(tmp_path / "folder" / "part.parquet")
    columns = ("--entity-column", "user", "--timestamp-column", "at", "--labels", "--json", "--batch-size", 2)
    for name in ("rows.arrow", "folder"):
        result = run("query-offline", "F", "-i", tmp_path / name, *columns, "--knowledge", "as_served")
        assert result.exit_code == 0, result.stderr
        rows = json.loads(result.stdout)
        assert list(rows[0]) == ["entity_id", "timestamp", "bought", "x"]
        assert [(row["bought"], row["x"]) for row in rows] == [(True, "of a"), (False, "of b"), (None, "of c")]
    assert {each.json["knowledge"] for each in offline.asked if each.method == "POST"} == {"as_served"}


def test_rows_of_which_some_name_a_zone_are_refused_together_however_they_are_sent(run, offline, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("entity_id,timestamp\na,2026-01-01\nb,1767225600\nc,2026-01-03T00:00:00+01:00\n")
    for options in ((), ("--batch-size", 1), ("--manifest", tmp_path / "m.json")):
        result = run("query-offline", "F", "-i", path, *options)
        assert (result.exit_code, offline.asked) == (1, [])
        assert "spine, 'timestamp': row 2 names a zone and row 0 does not; give all of them one" in result.stderr


def test_pairs_of_options_are_rows_too(run, offline):
    result = run("query-offline", "F", "-e", "a", "--at", "2026-01-01", "-e", "b", "--at", "1767225600", "-f", "csv")
    assert result.stdout.splitlines()[1:] == ["a,2026-01-01T00:00:00Z,of a", "b,2026-01-01T00:00:00Z,of b"]
    assert result.stderr == "Query run: run-1\n"


# Who may, and what is there


def test_a_login_is_kept_and_used_and_forgotten(run, service, home, monkeypatch):
    for name in ("THYME_API_BASE", "THYME_QUERY_URL"):
        monkeypatch.delenv(name)
    service.answers["GET /health"] = {"status": "ok"}
    service.answers["GET /features"] = ANSWER
    assert run("login", "--url", service.url, "--api-key", "tk_1").exit_code == 0
    run("query", "F", "-e", "s1")
    assert service.asked[-1].headers["Authorization"] == "Bearer tk_1"
    assert run("logout").stdout.startswith("removed ")
    assert json.loads(run("logout", "--json").stdout) == {"removed": False}
    assert not (home / ".thyme" / "credentials").exists()


def test_a_login_to_a_service_that_is_away_is_kept_all_the_same(run, home):
    result = run("login", "--url", "http://127.0.0.1:1", "--api-key", "-", "--json", typed="tk_typed\n")
    assert json.loads(result.stdout)["healthy"] is False
    assert json.loads((home / ".thyme" / "credentials").read_text())["api_key"] == "tk_typed"
    assert "tk_typed" not in result.output


STATUS = {
    "featuresets": [
        {
            "name": "ShopFeatures",
            "features": [
                {"name": "shop", "dtype": "str", "request": False, "default": None},
                {"name": "total", "dtype": "float", "request": False, "default": 0.0},
                {"name": "price", "dtype": "float", "request": True, "default": None},
                {"name": "over", "dtype": "bool", "request": False, "default": None},
            ],
            "extractors": [
                {
                    "name": "_thyme_lookup_total",
                    "inputs": [],
                    "outputs": ["total"],
                    "lookup_info": {"dataset_name": "ShopStats", "field_name": "total_1d"},
                },
                {"name": "compare", "inputs": ["price", "total"], "outputs": ["over"], "lookup_info": None},
            ],
        }
    ]
}


def test_inspect_says_where_each_feature_comes_from(run, service):
    service.answers["GET /api/v1/status"] = STATUS
    about = {"owner": "ann", "tags": {"raw": "", "team": "x"}, "deprecated": True}
    service.answers["GET /api/v1/featuresets"] = [{"name": "ShopFeatures", "metadata": about}]
    out = run("inspect", "shops:ShopFeatures").stdout
    for text in ("the entity", "ShopStats.total_1d", "the request", "compare(price, total)", "owner: ann"):
        assert text in out
    assert "tags: raw, team:x" in out
    assert "deprecated: yes" in out
    assert json.loads(run("inspect", "ShopFeatures", "--json").stdout)["features"][0]["name"] == "shop"
    assert "ShopFeatures" in run("inspect").stdout
    assert json.loads(run("inspect", "--json").stdout) == STATUS
    result = run("inspect", "Nope")
    assert (result.exit_code, "there are: ShopFeatures" in result.stderr) == (1, True)


# The shell, and the person before it


def complete(service, words):
    """What the shell gets for a line that ends with a tabulator."""
    environment = {
        **os.environ,
        "_THYME_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "THYME_API_BASE": service.url if service else "http://127.0.0.1:1",
    }
    command = [sys.executable, "-c", "from featurelib.cli import app; app(prog_name='thyme')"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


def test_the_shell_completes_names_of_the_platform(home, service):
    service.answers["GET /api/v1/featuresets"] = [{"name": "ShopFeatures"}, {"name": "UserFeatures"}]
    service.answers["GET /api/v1/datasets"] = [{"name": "ShopStats", "version": 1}, {"name": "ShopStats", "version": 2}]
    assert complete(service, "thyme query Sh") == ["ShopFeatures"]
    assert complete(service, "thyme lookup Sh") == ["ShopStats"]


def test_the_shell_completes_nothing_where_the_platform_is_away(home):
    assert complete(None, "thyme query Sh") == []


def test_a_bar_is_for_a_terminal_only(run, offline, tmp_path, monkeypatch):
    monkeypatch.setattr("featurelib.cli.progress._SHOWN_AFTER_S", 0.0)
    path = tmp_path / "rows.csv"
    path.write_text("entity_id,timestamp\n" + "".join(f"{n},2026-01-01\n" for n in range(10)))
    quiet = run("query-offline", "F", "-i", path, "--batch-size", 5, "-f", "csv")
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = run("query-offline", "F", "-i", path, "--batch-size", 5, "-f", "csv")
    assert "rows" not in quiet.stderr
    assert "10/10" in shown.stderr
    assert shown.stdout == quiet.stdout


def test_results_that_are_redirected_hold_nothing_but_the_results(home, service):
    service.answers["GET /features"] = ANSWER
    primary, secondary = pty.openpty()  # standard error is a terminal, standard output is not
    command = [sys.executable, "-c", "from featurelib.cli import app; app()", "query", "F", "-e", "s1", "--json"]
    environment = {**os.environ, "THYME_QUERY_URL": service.url}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=secondary, check=True)
    os.close(secondary)
    os.close(primary)
    assert json.loads(done.stdout)[0]["shop"] == "s1"


@pytest.mark.parametrize("option", ["--manifest", "--output"])
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_asked(run, offline, home, option):
    (home / "file").write_text("")
    for path in ("absent/m.json", home, "file/m.json"):
        result = run("query-offline", "F", "-e", "a", "--at", "2026-01-01", option, path)
        assert (result.exit_code, str(path) in result.stderr, offline.asked) == (2, True, []), result.stderr


@pytest.mark.parametrize("large", [False, True])
def test_many_rows_or_those_of_whom_a_manifest_is_asked_for_are_read_together(
    run, offline, tmp_path, monkeypatch, large
):
    if large:
        monkeypatch.setattr(reads, "TRAINING_ROWS", 1)
    path, manifest = tmp_path / "rows.csv", tmp_path / "manifest.json"
    path.write_text("entity_id,timestamp,label\n007,2026-01-01T00:00:00Z,x\n8,2026-01-02T00:00:00Z,\n")
    made = pa.table({"__entity_id": ["007", "8"], "__timestamp": ["", ""], "price": [2.0, None]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_table(made)
    offline.answers["POST /api/v1/training-sets"] = (202, {"id": "t"})
    found = {"state": "complete", "featureset": "F", "manifest": {"rows": 2}}
    offline.answers["GET /api/v1/training-sets/t"] = found
    stream = {"Content-Type": "application/vnd.apache.arrow.stream"}
    offline.answers["GET /api/v1/training-sets/t/rows"] = (200, sink.getvalue().to_pybytes(), stream)
    result = run("query-offline", "F", "-i", path, *([] if large else ["--manifest", manifest]), "--labels", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [(row["entity_id"], row["label"], row["price"]) for row in rows] == [("007", "x", 2.0), ("8", None, None)]
    assert large or json.loads(manifest.read_text()) == {"rows": 2}
    sent = next(each for each in offline.asked if each.path == "/api/v1/training-sets")
    asked = pa.ipc.open_stream(sent.body).read_all().to_pydict()
    assert asked["__entity_id"] == ["007", "8"]
