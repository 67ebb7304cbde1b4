"""``thyme init`` and ``thyme discover``: what they write compiles, runs, and is about the records there are."""

import json
import runpy
import sys
from importlib.metadata import EntryPoint

import polars as pl
import pytest

from featurelib.cli import drafting
from featurelib.cli.discover import class_name, sample
from featurelib.cli.drafting import Column, choose_key, choose_timestamp, columns_of
from featurelib.cli.init import project
from featurelib.clock import DAY, parse_instant
from featurelib.compile import compile_module
from featurelib.errors import InvalidRequest
from featurelib.testing import MockContext

NOON = parse_instant("2026-03-01T12:00:00Z")

# init


@pytest.fixture
def starter(run, home):
    result = run("init", "demo")
    assert result.exit_code == 0, result.stderr
    assert "cd demo && thyme up && thyme commit features.py" in result.stdout
    return home / "demo"


def test_the_starter_compiles_and_its_own_tests_pass(starter, monkeypatch):
    monkeypatch.syspath_prepend(str(starter))
    monkeypatch.chdir(starter)
    sys.modules.pop("features", None)  # of another project
    tests = runpy.run_path(str(starter / "test_features.py"))
    sys.modules.pop("features")
    run = [test for name, test in tests.items() if name.startswith("test_")]
    assert len(run) == 3
    for test in run:
        test(MockContext)


def test_the_starters_records_are_such_as_its_definitions_take(starter):
    context = MockContext(str(starter / "features.py"))
    # As its source reads them.
    rides = sample(compile_module(str(starter / "features.py")).sources[0])
    context.add_events("Ride", rides)
    assert len(rides) == 400
    assert context.dead_letters("Ride") == []
    frame = pl.read_csv(starter / "training.csv")
    result = context.query_offline("RiderFeatures", frame)
    # Each row is asked at the end of one of its rider's rides, so at least that one counts.
    assert min(result["rides_1d"]) >= 1


def test_the_starters_windows_hold_something_whenever_it_is_written():
    for now in (NOON, NOON + 400 * DAY):
        newest = json.loads(project(now)["rides.jsonl"].splitlines()[-1])
        assert now - DAY < parse_instant(newest["ended_at"]) <= now
    assert project(NOON) == project(NOON)


def test_what_is_there_is_not_written_over(run, starter):
    (starter / "features.py").write_text("# mine\n")
    refused = run("init", "demo")
    assert (refused.exit_code, (starter / "features.py").read_text()) == (2, "# mine\n")
    assert "--force" in refused.stderr
    assert json.loads(run("init", "demo", "--force", "--json").stdout)["files"][0] == "README.md"
    assert "# mine" not in (starter / "features.py").read_text()


def test_a_folder_that_cannot_be_made_is_a_wrong_option(run, home):
    (home / "file").write_text("")
    assert run("init", "file/demo").exit_code == 2


# discover

ORDERS = [
    {
        "order_id": f"o{number}",
        "customer": f"c{number % 5}",
        "amount": number * 1.5,
        "pieces": number,
        "gift": number % 3 == 0,
        "note": None if number % 2 else "x",
        "tags": ["a"],
        "address": {"city": "Oslo"},
        "first name": "Ann",
        "café": 1,
        "__version": 2,
        "field": 1,
        "placed_at": f"2026-03-01T{number % 24:02}:00:00Z",
    }
    for number in range(40)
]


@pytest.fixture
def orders(home):
    path = home / "web-orders.jsonl"
    path.write_text("".join(json.dumps(order) + "\n" for order in ORDERS))
    return path


def test_a_module_is_drafted_from_records_and_computes_over_them(run, orders, home):
    result = run("discover", "--source-type", "jsonl", "--path", orders, "-u", 'who is "good"?', "-o", "drafted.py")
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    context = MockContext(str(home / "drafted.py"))
    context.add_events("WebOrders", ORDERS)
    assert context.dead_letters("WebOrders") == []
    row = context.query("WebOrdersFeatures", "c0", at="2026-03-01T23:00:00Z")
    own = [order for order in ORDERS if order["customer"] == "c0"]
    assert row["count_24h"] == len(own)
    assert row["amount_sum_24h"] == sum(order["amount"] for order in own)
    assert row["gift_count_24h"] == sum(order["gift"] for order in own)
    left_out = "# Left out for their values or their names: 'address', 'first name', 'café', '__version', 'field'."
    assert left_out in (home / "drafted.py").read_text()


def test_equal_records_give_an_equal_module(run, orders):
    arguments = ("discover", "--source-type", "jsonl", "--path", orders, "--windows", "1h,30d", "--dataset-name", "Buy")
    first, second = run(*arguments), run(*arguments)
    assert first.stdout == second.stdout
    assert "class BuyFeatures" in first.stdout
    assert "amount_sum_30d" in first.stdout


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_other_files_give_the_same_types(run, orders, home, form):
    columns = ["customer", "amount", "pieces", "gift", "note", "placed_at"]
    frame = pl.DataFrame([{name: order[name] for name in columns} for order in ORDERS])
    path = home / f"orders.{form}"
    frame.write_csv(path) if form == "csv" else frame.write_parquet(path)
    found = json.loads(run("discover", "--source-type", form, "--path", path, "--json").stdout)
    assert {each["name"]: each["type"] for each in found["columns"]} == {
        "customer": "str",
        "amount": "float",
        "pieces": "int",
        "gift": "bool",
        "note": "str",
        "placed_at": "datetime",
    }
    assert (found["key"], found["timestamp"]) == ("customer", "placed_at")
    assert [each["name"] for each in found["columns"] if each["optional"]] == ["note"]


def test_a_draft_may_be_committed_at_once(run, orders, service):
    from tests.unit.sdk.test_client import RECEIPT

    service.answers["POST /api/v1/commit"] = RECEIPT
    result = run("discover", "--source-type", "jsonl", "--path", orders, "-o", "drafted.py", "--auto-commit")
    assert "committed abc" in result.stdout
    assert [each["name"] for each in service.asked[0].json["featuresets"]] == ["WebOrdersFeatures"]


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--source-type", "jsonl"], 2, "--path"),
        (["--source-type", "postgres"], 2, "--pg-table"),
        (["--source-type", "kafka"], 2, "--kafka-topic"),
        (["--source-type", "s3json"], 2, "--s3-bucket"),
        ([], 2, "--table"),
        (["--source-type", "xml"], 2, "xml"),
        (["--source-type", "jsonl", "--path", "web-orders.jsonl", "--windows", "1w"], 2, "not a duration"),
        (["--source-type", "jsonl", "--path", "web-orders.jsonl", "--windows", ","], 2, "no window"),
        (["--source-type", "jsonl", "--path", "web-orders.jsonl", "--entity-key", "note"], 1, "customer: str"),
        (["--source-type", "jsonl", "--path", "web-orders.jsonl", "--timestamp", "amount"], 1, "--timestamp"),
        (["--source-type", "jsonl", "--path", "web-orders.jsonl", "--drafter", "nobody"], 1, "deterministic"),
        (["--source-type", "jsonl", "--path", "web-orders.jsonl", "--dataset-name", "a b"], 2, "--dataset-name"),
        (["--source-type", "jsonl", "--path", "empty.jsonl"], 1, "no records"),
        (["--source-type", "jsonl", "--path", "absent.jsonl"], 1, "absent.jsonl"),
        (["--source-type", "jsonl", "--path", "web-orders.jsonl", "-o", "absent/x.py"], 2, "No such file"),
    ],
)
def test_what_cannot_be_discovered_says_why(run, orders, home, arguments, status, text):
    (home / "empty.jsonl").write_text("")
    result = run("discover", *arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert text in result.stderr


def test_a_drafter_of_an_installed_package_is_told_what_there_is_and_checked(run, orders, monkeypatch):
    told = []

    def written(brief):
        told.append(brief)
        return drafting.draft(brief) if brief.use_case == "good" else "class Broken:\n    x: int = field()\n"

    point = EntryPoint("poet", "poets:write", drafting.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda _: written)
    monkeypatch.setattr(drafting, "entry_points", lambda group: [point] if group == drafting.GROUP else [])
    arguments = ("discover", "--source-type", "jsonl", "--path", orders, "--drafter", "poet", "--sample-n", 2)
    assert run(*arguments, "-u", "good", "--api-key", "sk-1").exit_code == 0
    assert (told[0].key.name, len(told[0].sample), told[0].api_key) == ("customer", 2, "sk-1")
    broken = run(*arguments, "-u", "bad")
    assert (broken.exit_code, broken.stdout) == (1, "")


def test_a_password_is_never_written_into_a_draft():
    from featurelib.cli.discover import Place, _expression

    settings = {"host": "h", "table": 't"1', "password": "s3cret"}
    text = _expression(Place("PostgresSource", settings, {"password": "POSTGRES_PASSWORD"}, "t"))
    assert text == 'PostgresSource(host="h", table="t\\"1", password=Secret(env="POSTGRES_PASSWORD"))'


@pytest.mark.parametrize(
    ("values", "texts", "expected"),
    [
        ([1, 2.5], False, "float"),
        ([1, True], False, ""),
        (["1", "2"], False, "str"),
        (["1", "2"], True, "int"),
        (["1", "x"], True, "str"),
        (["007"], True, "str"),
        (["0.5", "1e3"], True, "float"),
        (["true", "False"], True, "bool"),
        (["2026-03-01"], False, "datetime"),
        (["2026-13-01"], False, "str"),
        ([[1], [2]], False, "list[int]"),
        ([[1, "a"]], False, ""),
        ([None], False, ""),
    ],
)
def test_the_type_of_a_column_is_that_of_all_its_values(values, texts, expected):
    (column,) = columns_of([{"c": value} for value in values], texts=texts)
    assert column.type == expected


def test_numbers_are_instants_where_the_column_says_so():
    columns = columns_of([{"created_at": 1_770_000_000, "n": 1_770_000_000, "time": 12}], texts=False)
    assert [column.type for column in columns] == ["datetime", "int", "int"]


def test_a_key_is_what_repeats_and_a_time_is_what_is_named_so():
    columns = (
        Column("id", "int", optional=False, distinct=10),
        Column("city", "str", optional=False, distinct=3),
        Column("user_id", "int", optional=False, distinct=4),
        Column("born", "datetime", optional=False, distinct=9),
        Column("seen_at", "datetime", optional=False, distinct=9),
    )
    assert choose_key(columns, 10).name == "user_id"
    assert choose_timestamp(columns).name == "seen_at"
    with pytest.raises(InvalidRequest, match="user_id: int"):
        choose_key(columns, 10, "born")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ride-events", "RideEvents"),
        ("2026 rides", "Dataset2026Rides"),
        ("count", "DatasetCount"),
        ("øl", "L"),
        ("none", "DatasetNone"),
    ],
)
def test_a_dataset_is_named_like_its_source(text, name):
    assert class_name(text) == name


def test_the_drafted_module_is_as_the_compiler_reads_it(run, orders, home):
    run("discover", "--source-type", "jsonl", "--path", orders, "-o", "drafted.py")
    commit = compile_module(str(home / "drafted.py"))
    assert commit.sources[0].connector.config["path"] == str(orders)
    assert commit.featuresets[0].entity_type == "customer"
