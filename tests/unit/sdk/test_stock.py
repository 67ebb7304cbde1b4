"""The body the stock SDK posts means what our own compile of the same module means."""

import copy
import json
from pathlib import Path

import pytest

from featurelib.compile import compile_module
from featurelib.definitions import Definitions, canonical_bytes
from featurelib.errors import DefinitionError, InvalidRequest
from featurelib.plan import commit_id
from featurelib.stock import read_commit
from tests.support.modules import VALID, write_module

FIXTURES = Path(__file__).parents[2] / "fixtures" / "thyme_commit"
STOCK_CONNECTORS = {"postgres", "kafka", "s3_json"}
RANK_LINES = (
    "    delay_rank_7d: float = field()\n",
    '                delay_rank_7d=ApproxPercentile(of="delay_minutes", window="7d"),\n',
)


@pytest.fixture
def body():
    return json.loads((FIXTURES / "flights_features.json").read_text())


@pytest.fixture
def offered(body):
    """The body without the one aggregate that is not offered."""
    stats = body["datasets"][3]
    stats["fields"] = [column for column in stats["fields"] if column["name"] != "delay_rank_7d"]
    aggregate = body["pipelines"][0]["operators"][-1]["aggregate"]
    aggregate["specs"] = [spec for spec in aggregate["specs"] if spec["output_field"] != "delay_rank_7d"]
    return body


def _read(tree):
    return read_commit(json.dumps(tree).encode())


def _module_text():
    text = (FIXTURES / "flights_features.py").read_text()
    return text.replace("from thyme import", "from featurelib import").replace("from thyme.", "from featurelib.")


def _codes(tree):
    with pytest.raises(DefinitionError) as caught:
        _read(tree)
    return [problem.code for problem in caught.value.problems]


def test_the_stock_module_and_the_stock_body_mean_the_same(offered, tmp_path):
    text = _module_text()
    for line in RANK_LINES:
        assert line in text
        text = text.replace(line, "")
    ours = compile_module(write_module(tmp_path, text), connectors=STOCK_CONNECTORS)
    theirs = _read(offered)
    for kind in ("datasets", "pipelines", "featuresets", "sources"):
        mine = [canonical_bytes(each) for each in getattr(ours, kind)]
        assert mine == [canonical_bytes(each) for each in getattr(theirs, kind)]
    assert commit_id(ours) == commit_id(theirs)


def test_the_stock_module_as_it_is_names_what_is_not_offered_with_its_lines(tmp_path):
    text = _module_text()
    with pytest.raises(DefinitionError) as caught:
        compile_module(write_module(tmp_path, text))
    lines = text.splitlines()
    found = [(problem.code, lines[problem.line - 1].strip()[:16]) for problem in caught.value.problems]
    assert found == [
        ("unsupported_connector", "@source("),
        ("unsupported_connector", "@source(KafkaSou"),
        ("unsupported_connector", "@source(S3JsonSo"),
        ("unsupported_aggregate", "delay_rank_7d=Ap"),
    ]


def test_an_aggregate_that_is_not_offered_is_a_problem_that_names_it(body):
    with pytest.raises(DefinitionError) as caught:
        _read(body)
    (problem,) = caught.value.problems
    assert (problem.code, problem.subject) == ("unsupported_aggregate", "CarrierStats.by_carrier")
    assert "delay_rank_7d" in problem.message


def test_the_connector_type_is_stored_with_an_underscore(offered):
    assert _read(offered).sources[2].connector.type == "s3_json"


def test_members_nobody_knows_are_ignored(offered):
    offered["allow_retention_narrowing"] = False
    offered["datasets"][0]["colour"] = "red"
    assert _read(offered).datasets[0].name == "Departure"


def test_a_commit_wide_refusal_of_backfills_reaches_every_pipeline(offered):
    offered["backfill"] = False
    assert [each.backfill.enabled for each in _read(offered).pipelines] == [False]


def test_a_pipelines_own_backfill_is_read(offered):
    offered["pipelines"][0]["backfill"] = {"enabled": True, "since": "2026-06-01T00:00:00Z"}
    assert _read(offered).pipelines[0].backfill.since_us == 1_780_272_000_000_000


def test_a_join_without_columns_brings_those_of_the_right_dataset(offered):
    join = offered["pipelines"][0]["operators"][3]["temporal_join"]
    join["select_fields"] = []
    assert _read(offered).pipelines[0].joins[0].fields == ("wind_speed", "visibility")


def test_a_join_may_name_a_dataset_that_is_committed_already(offered):
    context = Definitions(datasets=_read(offered).datasets)
    offered["pipelines"][0]["operators"][3]["temporal_join"]["select_fields"] = []
    offered["datasets"] = [each for each in offered["datasets"] if each["name"] != "Weather"]
    made = read_commit(json.dumps(offered).encode(), context)
    assert made.pipelines[0].joins[0].fields == ("wind_speed", "visibility")


def test_imports_of_captured_code_come_before_the_function(offered):
    offered["featuresets"][1]["extractors"][0]["pycode"]["imports"] = "import math"
    source = _read(offered).featuresets[1].extractors[0].code.source
    assert source.startswith("import math\n\ndef is_risky(cls, ts, late_share):\n")


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        pytest.param(("datasets", 0, "fields", 1, "type"), "Decimal", "unknown_type", id="unknown type"),
        pytest.param(("datasets", 0, "version"), 0, "invalid_value", id="version zero"),
        pytest.param(("datasets", 0, "retention"), "1mo", "invalid_value", id="retention"),
        pytest.param(("datasets", 0, "fields"), None, "malformed_commit", id="no fields"),
        pytest.param(("pipelines",), 5, "malformed_commit", id="no list"),
        pytest.param(
            ("pipelines", 0, "operators", 0),
            {"transform": {"pycode": {"entry_point": "f", "source_code": "def f(df):\n    return df\n"}}},
            "unsupported_operator",
            id="transform",
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
def test_a_malformed_or_foreign_member_is_a_problem_and_not_a_crash(offered, path, value, code):
    tree = copy.deepcopy(offered)
    parent = tree
    for step in path[:-1]:
        parent = parent[step]
    parent[path[-1]] = value
    assert _codes(tree) == [code]


def test_two_mistakes_come_together(offered):
    offered["sources"][0]["cdc"] = "merge"
    offered["datasets"][0]["fields"][1]["type"] = "Decimal"
    assert _codes(offered) == ["unknown_type", "invalid_value"]


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
