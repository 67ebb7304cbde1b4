"""``thyme plan``: what a commit would do, what it would break, and the memory it would take."""

import json
import sys

import pytest
from typer.testing import CliRunner

from featurelib.cli import app
from featurelib.cli.plan import read_size, shown_size
from featurelib.compile import compile_module
from featurelib.definitions import Definitions
from featurelib.plan import plan
from tests.support.modules import EVENT, FEATURES, HEAD, RATE, STATS, VALID, write_module

PLANNED = {
    "commit_id": "8adc448eeee694faa1c8c21348970745",
    "no_op": False,
    "compared_with": "1111448eeee694faa1c8c21348970745",
    "accepted": True,
    "steps": [
        {"step": "store_definition", "definition": "pipeline:by_shop@2", "digest": "5e0c"},
        {"step": "start_job", "pipeline": "by_shop@2", "backfill": {"enabled": True, "since_us": None}},
    ],
    "changes": {"added": ["pipeline:by_shop@2"], "updated": ["dataset:Sale@1"], "unchanged": []},
    "breaks": [],
    "warnings": ["the retention of Sale@1 becomes shorter: what is older than 7d goes"],
    "assumed": {"keys": 10, "events_per_key": 20, "over": "7d", "distinct": 5},
    "pipelines": [
        {
            "pipeline": "by_shop@2",
            "fields_per_key": 3,
            "bytes_per_key": 400,
            "total_bytes": 4_000,
            "bytes_per_distinct": None,
            "held_rows": [{"step": "rows of Rate, joined", "bytes_per_row": 64}],
        }
    ],
    "total_bytes": 4_000,
}
BREAK = {
    "code": "field_removed",
    "subject": "Sale.amount",
    "message": "the column `amount` is removed",
    "hint": "Give the dataset a new version.",
    "file": "shop.py",
    "line": 7,
}


@pytest.fixture
def ask(home, service, monkeypatch):
    """Run the command against a service that gives the plan it was told."""
    monkeypatch.setenv("THYME_API_BASE", service.url)
    monkeypatch.setenv("THYME_API_URL", f"{service.url}/api/v1/commit")
    monkeypatch.setenv("COLUMNS", "200")
    service.answers["POST /api/v1/plan"] = PLANNED

    def invoke(*arguments):
        return CliRunner().invoke(app, ["plan", *(str(argument) for argument in arguments)])

    return invoke


@pytest.fixture
def run(ask):
    """Plan without the service, which would count every call."""
    return lambda *arguments: ask(*arguments, "--local")


@pytest.fixture
def tree(run):
    """The plan of a module's text as JSON."""

    def made(path, *arguments):
        result = run(path, "--json", *arguments)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return made


def test_the_service_says_what_the_commit_would_do_there(ask, service, tmp_path):
    path = write_module(tmp_path, VALID)
    result = ask(path, "--keys", 10, "--events-per-key", 20, "--over", "7d", "--distinct", 5)
    assert result.exit_code == 0, result.output
    for line in (
        "compared with commit 1111448eeee694faa1c8c21348970745",
        "  + pipeline:by_shop@2",
        "  ~ dataset:Sale@1",
        "  start job by_shop@2, with all history",
        "warning: the retention of Sale@1 becomes shorter",
        "10 keys with 20 rows each over 7d",
        "by_shop@2 keeps in its workers' memory: rows of Rate, joined, 64 B a row",
        "total 4.0 kB",
    ):
        assert line in result.stdout
    (asked,) = service.asked
    assert asked.parameters == {"keys": "10", "events_per_key": "20", "over": "7d", "distinct": "5"}
    assert asked.json == compile_module(path).model_dump(mode="json")


def test_what_would_break_is_listed_and_fails(ask, service, tmp_path):
    service.answers["POST /api/v1/plan"] = PLANNED | {"accepted": False, "breaks": [BREAK], "pipelines": []}
    result = ask(write_module(tmp_path, VALID))
    assert result.exit_code == 1
    assert "would be refused: 1 thing breaks" in result.stdout
    assert "shop.py:7  Sale.amount: the column `amount` is removed  [field_removed]" in result.stdout
    assert "Give the dataset a new version." in result.stdout


def test_the_json_of_the_service_is_printed_with_the_budget(ask, tmp_path):
    result = ask(write_module(tmp_path, VALID), "--json", "--budget", "1kB")
    assert (result.exit_code, json.loads(result.stdout)) == (1, PLANNED | {"budget_bytes": 1_000})
    assert "over the budget of 1.0 kB; most of it is by_shop@2" in result.stderr


def test_a_commit_that_changes_nothing_says_so(ask, service, tmp_path):
    nothing = {"no_op": True, "steps": [], "changes": {"added": [], "updated": [], "unchanged": []}, "pipelines": []}
    service.answers["POST /api/v1/plan"] = PLANNED | nothing
    assert "nothing to do" in ask(write_module(tmp_path, VALID)).stdout


def test_without_a_service_the_command_fails_and_a_local_plan_does_not(ask, run, service, tmp_path, monkeypatch):
    service.answers["POST /api/v1/plan"] = (401, {"error": "unauthenticated", "detail": "no bearer key was sent"})
    path = write_module(tmp_path, VALID)
    result = ask(path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no bearer key was sent" in result.stderr
    assert run(path).exit_code == 0


def test_the_plan_lists_changes_and_steps_and_sends_nothing(run, service, tmp_path):
    result = run(write_module(tmp_path, VALID))
    assert result.exit_code == 0
    for line in (
        "compared with an empty platform",
        "  + pipeline:by_shop@1",
        "  + featureset:ShopFeatures",
        "  create log Sale@1",
        "  start job by_shop@1, with all history",
    ):
        assert line in result.stdout
    assert service.asked == []


def test_the_json_plan_is_the_plan_that_a_commit_on_an_empty_platform_follows(tree, tmp_path):
    path = write_module(tmp_path, VALID)
    found = tree(path)
    expected = plan(Definitions(), compile_module(path)).model_dump(mode="json")
    assert {name: found[name] for name in expected} == expected
    assert found["compared_with"] is None


def test_every_pipeline_and_index_is_predicted(tree, tmp_path):
    found = tree(write_module(tmp_path, VALID), "--keys", 100)
    assert [each["pipeline"] for each in found["pipelines"]] == ["by_shop@1", "Sale_index@1"]
    for each in found["pipelines"]:
        assert each["total_bytes"] == pytest.approx(100 * each["bytes_per_key"], rel=0.001)
    assert found["total_bytes"] == sum(each["total_bytes"] for each in found["pipelines"])


def test_more_keys_and_more_rows_take_more(tree, tmp_path):
    path = write_module(tmp_path, VALID)
    few = tree(path, "--keys", 10, "--events-per-key", 100)["total_bytes"]
    assert tree(path, "--keys", 20, "--events-per-key", 100)["total_bytes"] == pytest.approx(2 * few, rel=0.001)
    assert tree(path, "--keys", 10, "--events-per-key", 1_000)["total_bytes"] > 5 * few


def test_the_assumptions_are_told(run, tree, tmp_path):
    path = write_module(tmp_path, VALID)
    options = ("--keys", 1_000, "--events-per-key", 20, "--over", "7d", "--distinct", 5)
    assert tree(path, *options)["assumed"] == {"keys": 1_000, "events_per_key": 20, "over": "7d", "distinct": 5}
    assert "1,000 keys with 20 rows each over 7d" in run(path, *options).stdout


def test_a_state_over_the_budget_fails_and_names_the_largest(run, tmp_path):
    path = write_module(tmp_path, VALID)
    result = run(path, "--keys", 1_000_000, "--budget", "1GB")
    assert result.exit_code == 1
    assert "over the budget of 1.0 GB; most of it is " in result.stderr
    assert "start job by_shop@1" in result.stdout
    assert run(path, "--keys", 1_000, "--budget", "1GB").exit_code == 0


def test_the_budget_is_in_the_json_and_decides_there_too(run, tmp_path):
    result = run(write_module(tmp_path, VALID), "--json", "--budget", "1kB")
    assert (result.exit_code, json.loads(result.stdout)["budget_bytes"]) == (1, 1_000)


def test_a_joined_dataset_is_told_to_be_in_the_workers_memory(run, tree, tmp_path):
    joined = STATS.replace("@inputs(Sale)", "@inputs(Sale, Rate)").replace("sales):", "sales, rates):")
    joined = joined.replace("sales.groupby", 'sales.join(rates, on="shop").groupby')
    path = write_module(tmp_path, HEAD + EVENT + RATE + joined)
    held = {each["pipeline"]: each["held_rows"] for each in tree(path)["pipelines"]}
    assert [each["step"] for each in held["by_shop@1"]] == ["rows of Rate, joined"]
    # Key, value, and five columns of the engine.
    assert 40 <= held["by_shop@1"][0]["bytes_per_row"] <= 120
    assert "by_shop@1 keeps in its workers' memory: rows of Rate, joined" in run(path).stdout


def test_a_set_says_what_each_distinct_value_takes(run, tree, tmp_path):
    text = STATS.replace("total_1d: float", "paid: list[float]").replace(
        'total_1d=Sum(of="amount", window="1d")', 'paid=Distinct(of="amount")'
    )
    path = write_module(tmp_path, HEAD + EVENT + text)
    (adds,) = (each["bytes_per_distinct"] for each in tree(path)["pipelines"] if each["pipeline"] == "by_shop@1")
    assert adds > 8
    told = f"by_shop@1 keeps every distinct value of a key: each of the 100 assumed adds {adds:,} B to its key"
    assert told in run(path).stdout


def test_a_pipeline_that_keeps_nothing_beside_its_state_says_nothing_of_it(run, tmp_path):
    assert "workers' memory" not in run(write_module(tmp_path, VALID)).stdout


def test_without_the_engine_the_command_names_the_extra(run, tmp_path, monkeypatch):
    for name in ("featurelib.engine.sizing", "featurelib.engine.forecast"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run(write_module(tmp_path, VALID))
    assert (result.exit_code, "thyme-on-ray[engine]" in result.stderr) == (1, True)


def test_a_module_with_mistakes_lists_them(run, tmp_path):
    result = run(write_module(tmp_path, VALID.replace('of="amount"', 'of="amout"')))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "[unknown_column]" in result.stderr


def test_a_dotted_module_is_planned_too(run, home):
    write_module(home, HEAD + EVENT + STATS + FEATURES, name="planned_shop.py")
    assert "+ pipeline:by_shop@1" in run("-m", "planned_shop").stdout


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ((), "give either PATH or --module"),
        (("-m", "x"), "give either PATH or --module"),
        (("--over", "1mo"), "1mo"),
        (("--budget", "4 gigs"), "is not a size"),
        (("--keys", "0"), "--keys"),
    ],
    ids=["nothing", "both", "over", "budget", "keys"],
)
def test_a_wrong_option_is_refused(options, complaint, run, tmp_path):
    path = () if not options else (write_module(tmp_path, VALID),)
    result = run(*path, *options)
    assert result.exit_code == 2
    assert complaint in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4_000_000_000), ("1.5 MB", 1_500_000), ("2GiB", 2_147_483_648), ("512B", 512), ("1kB", 1_000)],
)
def test_a_size_is_read_in_decimal_and_binary_units(text, size):
    assert read_size(text) == size


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (48_400_000_000, "48.4 GB")])
def test_a_size_is_shown_in_the_largest_unit(size, text):
    assert shown_size(size) == text
