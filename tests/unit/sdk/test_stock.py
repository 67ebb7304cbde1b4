"""The body the stock SDK posts means what our own compile of the same module means."""

import copy
import json
from pathlib import Path

import polars as pl
import pytest

from featurelib.compile import compile_module
from featurelib.definitions import Definitions, FilterCodeStep, canonical_bytes
from featurelib.errors import DefinitionError, InvalidRequest
from featurelib.plan import commit_id
from featurelib.stock import read_commit
from tests.support.modules import VALID, write_module

FIXTURES = Path(__file__).parents[2] / "fixtures" / "thyme_commit"
STOCK_CONNECTORS = {"postgres", "kafka", "s3_json"}
# What the stock SDK writes around a user's function (its README beside the fixtures says so): a transform's adapter
# gives the frame back, a filter's the numbers of the rows it keeps.
TRANSFORM = """\
import polars as pl

def with_hours(df: pl.DataFrame) -> pl.DataFrame:
    return df.with_columns((pl.col("delay_minutes") / 60).alias("hours"))

def adapter(df):
    return with_hours(df)
"""
FILTER = """\
import polars as pl

def only_late(df: pl.DataFrame) -> pl.DataFrame:
    return df.filter(pl.col("delay_minutes") > 0)

def adapter(df):
    kept = only_late(df.with_columns(pl.int_range(pl.len()).alias("__thyme_row_id")))
    return kept["__thyme_row_id"].to_list()
"""


@pytest.fixture
def body():
    return json.loads((FIXTURES / "flights_features.json").read_text())


def _read(tree):
    return read_commit(json.dumps(tree).encode())


def _module_text():
    text = (FIXTURES / "flights_features.py").read_text()
    return text.replace("from thyme import", "from featurelib import").replace("from thyme.", "from featurelib.")


def _specs(body):
    return body["pipelines"][0]["operators"][-1]["aggregate"]["specs"]


def _last(body):
    return _read(body).pipelines[0].last_step


def _insert(body, operator):
    body["pipelines"][0]["operators"].insert(0, operator)


def _frame():
    return pl.DataFrame({"delay_minutes": [-6.0, 30.0, 60.0]})


def _called(code, frame):
    names = {}
    exec(code.source, names)
    return names[code.entry_point](frame)


def _codes(tree):
    with pytest.raises(DefinitionError) as caught:
        _read(tree)
    return [problem.code for problem in caught.value.problems]


def test_the_stock_module_and_the_stock_body_mean_the_same(body, tmp_path):
    ours = compile_module(write_module(tmp_path, _module_text()))
    theirs = _read(body)
    for kind in ("datasets", "pipelines", "featuresets", "sources"):
        mine = [canonical_bytes(each) for each in getattr(ours, kind)]
        assert mine == [canonical_bytes(each) for each in getattr(theirs, kind)]
    assert commit_id(ours) == commit_id(theirs)


def test_the_stock_module_needs_only_its_import_lines_changed(tmp_path):
    ours = compile_module(write_module(tmp_path, _module_text()))
    assert {source.connector.type for source in ours.sources} == STOCK_CONNECTORS


def test_a_percentile_is_read_with_its_precision(body):
    (percentile,) = [spec for spec in _specs(body) if spec["type"] == "approx_percentile"]
    percentile["precision"] = 50
    (read,) = [named.aggregate for named in _last(body).aggregates if named.output == "delay_rank_7d"]
    assert (read.type, read.precision, read.pct) == ("approx_percentile", 50, None)


def test_the_options_of_the_newest_values_are_read(body):
    (read,) = [named.aggregate for named in _last(body).aggregates if named.output == "recent_origins"]
    assert (read.k, read.dedup, read.dropnull) == (3, True, True)


def test_an_aggregate_that_is_not_offered_is_a_problem_that_names_it(body):
    _specs(body)[0]["type"] = "harmonic_mean"
    with pytest.raises(DefinitionError) as caught:
        _read(body)
    (problem,) = caught.value.problems
    assert (problem.code, problem.subject) == ("unsupported_aggregate", "CarrierStats.by_carrier")
    assert "departures_1h" in problem.message
    assert "approx_percentile" in problem.hint


def test_a_transform_of_the_stock_sdk_runs_its_adapter(body):
    code = {"entry_point": "adapter", "source_code": TRANSFORM}
    _insert(body, {"transform": {"pycode": code, "output_columns": {"hours": "float"}}})
    step = _read(body).pipelines[0].steps[0]
    assert step.columns == (("hours", "float"),)
    assert _called(step.code, _frame())["hours"].to_list() == [-0.1, 0.5, 1.0]


def test_a_filter_of_the_stock_sdk_gives_the_rows_whose_numbers_its_adapter_keeps(body):
    _insert(body, {"filter": {"pycode": {"entry_point": "adapter", "source_code": FILTER}}})
    step = _read(body).pipelines[0].steps[0]
    assert isinstance(step, FilterCodeStep)
    frame = _frame().with_columns(pl.Series("__thyme_row_id", [7, 8, 9]))
    assert _called(step.code, frame)["__thyme_row_id"].to_list() == [8, 9]


def test_the_columns_of_a_stock_transform_are_told_from_their_use(body):
    _insert(body, {"transform": {"pycode": {"entry_point": "adapter", "source_code": TRANSFORM}}})
    body["datasets"][3]["fields"].insert(1, {"name": "hours_7d", "type": "float"})
    _specs(body).append({"type": "sum", "field": "hours", "window": "7d", "output_field": "hours_7d"})
    _specs(body).append({"type": "last", "field": "band", "window": "7d", "output_field": "last_origin"})
    _specs(body).remove(next(spec for spec in _specs(body) if spec["output_field"] == "last_origin"))
    columns = dict(_read(body).pipelines[0].steps[0].columns)
    assert (columns["hours"], columns["band"]) == ("float", "str")
    assert columns["delay_minutes"] == "float"


def test_the_connector_type_is_stored_with_an_underscore(body):
    assert _read(body).sources[2].connector.type == "s3_json"


def test_members_nobody_knows_are_ignored(body):
    body["allow_retention_narrowing"] = False
    body["datasets"][0]["colour"] = "red"
    assert _read(body).datasets[0].name == "Departure"


def test_options_of_a_commit_are_read_and_change_none_of_its_definitions(body):
    plain = _read(body)
    assert (plain.backfill, plain.allow_retention_narrowing, plain.message) == (True, False, "")
    said = _read({**body, "backfill": False, "allow_retention_narrowing": True, "message": "autumn"})
    assert (said.backfill, said.allow_retention_narrowing, said.message) == (False, True, "autumn")
    assert commit_id(said) == commit_id(plain)


@pytest.mark.parametrize(
    ("name", "stored"),
    [("list[str]", "list[str]"), ("List[int]", "list[int]"), ("typing.List[float]", "list[float]")],
)
def test_a_list_column_is_read_in_the_ways_python_spells_it(body, name, stored):
    body["datasets"][0]["fields"][1]["type"] = name
    assert _read(body).datasets[0].fields[1].type == stored


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_is_not_finite_is_an_invalid_request_that_names_its_place(body, number):
    body["datasets"][0]["expectations"][0]["mostly"] = "here"
    with pytest.raises(InvalidRequest, match=r"body\.datasets\[0\]\.expectations\[0\]\.mostly"):
        read_commit(json.dumps(body).replace('"here"', number).encode())


def test_a_pipelines_own_backfill_is_read(body):
    body["pipelines"][0]["backfill"] = {"enabled": True, "since": "2026-06-01T00:00:00Z"}
    assert _read(body).pipelines[0].backfill.since_us == 1_780_272_000_000_000


def test_a_join_without_columns_brings_those_of_the_right_dataset(body):
    join = body["pipelines"][0]["operators"][3]["temporal_join"]
    join["select_fields"] = []
    assert _read(body).pipelines[0].joins[0].fields == ("wind_speed", "visibility")


def test_a_join_may_name_a_dataset_that_is_committed_already(body):
    context = Definitions(datasets=_read(body).datasets)
    body["pipelines"][0]["operators"][3]["temporal_join"]["select_fields"] = []
    body["datasets"] = [each for each in body["datasets"] if each["name"] != "Weather"]
    made = read_commit(json.dumps(body).encode(), context)
    assert made.pipelines[0].joins[0].fields == ("wind_speed", "visibility")


def test_imports_of_captured_code_come_before_the_function(body):
    body["featuresets"][1]["extractors"][0]["pycode"]["imports"] = "import math"
    source = _read(body).featuresets[1].extractors[0].code.source
    assert source.startswith("import math\n\ndef is_risky(cls, ts, late_share):\n")


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        pytest.param(("datasets", 0, "fields", 1, "type"), "Decimal", "unknown_type", id="unknown type"),
        pytest.param(("datasets", 0, "fields", 1, "type"), "dict[str, int]", "unknown_type", id="map"),
        pytest.param(("datasets", 0, "version"), 0, "invalid_value", id="version zero"),
        pytest.param(("datasets", 0, "retention"), "1mo", "invalid_value", id="retention"),
        pytest.param(("datasets", 0, "fields"), None, "malformed_commit", id="no fields"),
        pytest.param(("pipelines",), 5, "malformed_commit", id="no list"),
        pytest.param(
            ("pipelines", 0, "operators", 0),
            {"transform": {"pycode": {"entry_point": "f", "source_code": "def f(:"}}},
            "malformed_commit",
            id="broken transform",
        ),
        pytest.param(
            ("pipelines", 0, "operators", 0),
            {"filter": {"pycode": {"source_code": "def f(df):\n    return []\n"}}},
            "malformed_commit",
            id="filter without entry point",
        ),
        pytest.param(
            ("pipelines", 0, "operators", 0),
            {
                "transform": {
                    "pycode": {"entry_point": "f", "source_code": "def f(df):\n    return df\n"},
                    "output_columns": {"x": "complex"},
                }
            },
            "unknown_type",
            id="transform of an unknown type",
        ),
        pytest.param(("pipelines", 0, "operators", 0), {"explode": {}}, "unsupported_operator", id="unknown operator"),
        pytest.param(
            ("pipelines", 0, "operators", 1, "assign", "value"),
            {"kind": {"Sqrt": {}}},
            "unsupported_expression",
            id="expression",
        ),
        pytest.param(
            ("pipelines", 0, "operators", 4, "aggregate", "specs", 0, "window"), "5min", "invalid_value", id="window"
        ),
        pytest.param(("featuresets", 0, "extractors", 4, "pycode"), None, "malformed_commit", id="no code"),
        pytest.param(
            ("featuresets", 0, "extractors", 4, "pycode", "source_code"),
            "def f(:",
            "malformed_commit",
            id="broken code",
        ),
        pytest.param(("sources", 0, "cdc"), "merge", "invalid_value", id="cdc"),
        pytest.param(("sources", 0), "kafka", "malformed_commit", id="no object"),
    ],
)
def test_a_malformed_or_foreign_member_is_a_problem_and_not_a_crash(body, path, value, code):
    tree = copy.deepcopy(body)
    parent = tree
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    assert _codes(tree) == [code]


def test_two_mistakes_come_together(body):
    body["sources"][0]["cdc"] = "merge"
    body["datasets"][0]["fields"][1]["type"] = "Decimal"
    assert _codes(body) == ["unknown_type", "invalid_value"]


def test_our_own_body_is_read_as_it_is(tmp_path):
    commit = compile_module(write_module(tmp_path, VALID))
    assert read_commit(commit.model_dump_json().encode()) == commit


def test_our_own_body_with_a_strange_member_lists_each_problem(tmp_path):
    tree = json.loads(compile_module(write_module(tmp_path, VALID)).model_dump_json())
    tree["datasets"][0]["colour"] = "red"
    tree["pipelines"][0]["version"] = -1
    assert _codes(tree) == ["malformed_commit", "malformed_commit"]


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"\xff\xfe"])
def test_a_body_that_is_no_json_object_is_an_invalid_request(body):
    with pytest.raises(InvalidRequest):
        read_commit(body)
