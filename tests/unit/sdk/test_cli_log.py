"""``thyme log``: what it sends of a file, and what it says of the answers."""

import json

import polars as pl
import pyarrow as pa
import pytest

from featurelib.client.wire import ARROW, LINES

ROWS = [{"sale": "a", "total": 1.5}, {"sale": "b", "total": None}]
PROBLEM = {"row": 1, "reason": "missing_field", "field": "total", "message": "total: missing"}
ANSWER = {
    "events_sent": 1,
    "duplicates": 0,
    "late": 0,
    "rejected": 1,
    "erased": 0,
    "problems": [PROBLEM],
    "outcomes": [{"outcome": "accepted", "records": 1}, {"outcome": "dead_letter", "records": 1}],
}


@pytest.fixture
def answered(service):
    service.answers["POST /api/v1/log"] = ANSWER
    return service


def table_of(body: bytes) -> list[dict]:
    return pa.ipc.open_stream(body).read_all().to_pylist()


def test_lines_are_sent_as_they_are(run, answered, home):
    (home / "sales.ndjson").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    result = run("log", "shop:Sale", "sales.ndjson", "-k", "may")
    assert (result.exit_code, result.stdout.splitlines()[0]) == (
        0,
        "2 records: 1 accepted, 0 duplicates, 0 late, 1 rejected, 0 erased",
    )
    assert "total: missing" in result.stdout
    (asked,) = answered.asked
    assert [json.loads(line) for line in asked.body.split(b"\n")] == ROWS
    assert (asked.headers["Content-Type"], asked.headers["Idempotency-Key"]) == (LINES, "may.0")
    assert asked.parameters == {"dataset": "Sale"}


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("s.parquet", lambda path: pl.DataFrame(ROWS).write_parquet(path)),
        ("s.arrow", lambda path: pl.DataFrame(ROWS).write_ipc(path)),
        ("s.arrows", lambda path: pl.DataFrame(ROWS).write_ipc_stream(path)),
    ],
)
def test_tables_are_sent_as_arrow(run, answered, home, name, write):
    write(home / name)
    assert run("log", "Sale", name).exit_code == 0
    (asked,) = answered.asked
    assert (asked.headers["Content-Type"], table_of(asked.body)) == (ARROW, ROWS)


@pytest.mark.parametrize(
    ("name", "text", "sent"),
    [
        ("s.json", json.dumps(ROWS), ROWS),
        ("s.json", json.dumps(ROWS[0]), ROWS[:1]),
        ("s.csv", "sale,total\na,1.5\nb,\n", [{"sale": "a", "total": "1.5"}, {"sale": "b", "total": None}]),
        ("s.tsv", "sale\ttotal\na\t1.5\n", [{"sale": "a", "total": "1.5"}]),
    ],
)
def test_other_files_are_sent_as_lines(run, answered, home, name, text, sent):
    (home / name).write_text(text)
    assert run("log", "Sale", name).exit_code == 0
    assert [json.loads(line) for line in answered.asked[0].body.split(b"\n")] == sent


@pytest.mark.parametrize(
    ("name", "write", "whole"),
    [
        ("s.csv", lambda path: path.write_text("sale,total\ná,1.5\n", encoding="utf-8"), "18/18"),
        ("s.ndjson", lambda path: path.write_text(json.dumps(ROWS[0]) + "\n"), "28/28"),
        ("s.json", lambda path: path.write_text(json.dumps(ROWS)), "2/2"),
        ("s.parquet", lambda path: pl.DataFrame(ROWS).write_parquet(path), "2/2"),
        ("s.arrow", lambda path: pl.DataFrame(ROWS).write_ipc(path), "1/1"),
    ],
)
def test_a_bar_shows_how_much_of_a_file_is_sent(run, answered, home, monkeypatch, *, name, write, whole):
    monkeypatch.setattr("featurelib.cli.progress._SHOWN_AFTER_S", 0.0)
    write(home / name)
    assert "━" not in run("log", "Sale", name).stderr
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert whole in run("log", "Sale", name).stderr


def test_lines_may_come_from_standard_input(run, answered):
    assert run("log", "Sale", "-", typed='{"sale": "a"}\n').exit_code == 0
    assert answered.asked[0].body == b'{"sale": "a"}'


def test_as_json_it_gives_the_counts_and_nothing_else(run, answered, home):
    (home / "s.jsonl").write_text("{}\n")
    told = json.loads(run("log", "Sale", "s.jsonl", "--json").stdout)
    assert (told["records"], told["problems"]) == (2, [PROBLEM])


@pytest.mark.parametrize(("name", "text"), [("s.xml", "ending"), ("none.csv", "no such file"), ("bad.parquet", "bad")])
def test_a_file_that_cannot_be_sent_is_named(run, answered, home, name, text):
    (home / "s.xml").write_text("")
    (home / "bad.parquet").write_text("no parquet")
    result = run("log", "Sale", name)
    assert result.exit_code == 2
    assert text in result.stderr
    assert answered.asked == []


def test_a_service_that_fails_says_under_which_key_to_go_on(run, service, home):
    service.answers["POST /api/v1/log"] = (404, {"error": "not_found", "detail": "dataset 'Sale' is not committed"})
    (home / "s.jsonl").write_text("{}\n")
    result = run("log", "Sale", "s.jsonl", "-k", "may")
    assert result.exit_code == 1
    assert "--idempotency-key may" in result.stderr
