"""Every mistake is reported with its code at the user's own line, with what was found and what to do."""

import json

import pytest

from featurelib.compile import compile_module, validate
from featurelib.definitions import Commit, Definitions
from featurelib.errors import DefinitionError
from tests.support.mistake_texts import SAYS
from tests.support.mistaken_modules import mistaken_modules
from tests.support.modules import (
    EVENT,
    FEATURES,
    HEAD,
    RATE,
    STATS,
    VALID,
    expected_mistakes,
    pipeline_module,
    write_module,
)

MISTAKES = mistaken_modules()


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported_at_its_line_with_its_words_and_nothing_else_is(name, tmp_path):
    path = write_module(tmp_path, MISTAKES[name])
    with pytest.raises(DefinitionError) as caught:
        compile_module(path)
    problems = caught.value.problems
    assert sorted((problem.code, problem.line) for problem in problems) == expected_mistakes(MISTAKES[name])
    assert {problem.file for problem in problems} == {str(path)}
    for problem, (message, hint) in zip(problems, SAYS[name], strict=True):
        assert problem.subject
        assert message in problem.message
        assert hint
        assert hint in problem.hint


def test_the_words_of_every_mistake_are_stated():
    assert SAYS.keys() == MISTAKES.keys()
    assert len(SAYS) >= 60


def test_three_mistakes_in_three_classes_come_together_in_the_order_of_the_lines(tmp_path):
    text = (
        VALID.replace('of="amount"', 'of="amout"')
        .replace("pieces: int", "pieces: complex")
        .replace("default=1.0", "default='x'")
    )
    with pytest.raises(DefinitionError) as caught:
        compile_module(write_module(tmp_path, text))
    problems = caught.value.problems
    assert [problem.code for problem in problems] == ["unknown_type", "unknown_column", "default_type"]
    assert [problem.line for problem in problems] == sorted(problem.line for problem in problems)
    assert str(caught.value).endswith("3 problems; nothing was committed.")


def test_a_misspelt_column_is_answered_with_the_nearest_one(tmp_path):
    text = VALID.replace('of="amount"', 'of="amout"')
    with pytest.raises(DefinitionError, match="Did you mean `amount`"):
        compile_module(write_module(tmp_path, text))


def test_a_column_that_fell_out_is_not_reported_missing_as_well(tmp_path):
    text = VALID.replace("amount: float", "amount: complex")
    with pytest.raises(DefinitionError) as caught:
        compile_module(write_module(tmp_path, text))
    assert [problem.code for problem in caught.value.problems] == ["unknown_type"]


def _without_inputs(tree):
    tree["pipelines"][0]["input_datasets"] = []


def _without_steps(tree):
    tree["pipelines"][0]["steps"] = []


def _with_drift_between(tree):
    first = json.loads(json.dumps(tree["pipelines"][0]["steps"][-1]))
    first["aggregates"][0]["output"] = "amount"
    tree["pipelines"][0]["steps"].insert(0, first)


def _with_circle(tree):
    tree["pipelines"][0]["input_datasets"].append("ShopStats")
    tree["pipelines"][0]["steps"].insert(0, {"op": "join", "right": "ShopStats", "on": "shop", "fields": []})


def _with_wrong_restriction(tree):
    tree["datasets"][0]["fields"][1]["one_of"] = ["much"]


def _with_empty_transform(tree):
    code = {"entry_point": "f", "source": ""}
    tree["pipelines"][0]["steps"].insert(0, {"op": "transform", "code": code, "columns": []})


def _with_transform_of_a_column_twice(tree):
    code = {"entry_point": "f", "source": "def f(frame):\n    return frame\n"}
    columns = [["pieces", "int"], ["pieces", "float"]]
    tree["pipelines"][0]["steps"].insert(0, {"op": "transform", "code": code, "columns": columns})


def _with_unknown_union(tree):
    tree["pipelines"][0]["steps"].insert(0, {"op": "union", "dataset": "Sales", "steps": []})


def _without_group_keys(tree):
    tree["pipelines"][0]["steps"][-1]["keys"] = []


def _with_broken_code(tree):
    tree["featuresets"][0]["extractors"][0]["code"]["source"] = "def f(:"


def _with_another_function(tree):
    tree["featuresets"][0]["extractors"][0]["code"]["entry_point"] = "other"


def _with_platform_column(tree):
    tree["datasets"][0]["fields"][2]["name"] = "__time"


def _with_column_twice(tree):
    tree["datasets"][0]["fields"].append(tree["datasets"][0]["fields"][2])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_without_inputs, "missing_inputs"),
        (_without_steps, "no_aggregate"),
        (_with_drift_between, "unstable_input"),
        (_with_wrong_restriction, "invalid_restriction"),
        (_with_empty_transform, "invalid_code"),
        (_with_transform_of_a_column_twice, "duplicate_column"),
        (_with_unknown_union, "unknown_dataset"),
        (_without_group_keys, "no_group_key"),
        (_with_broken_code, "invalid_code"),
        (_with_another_function, "invalid_code"),
        (_with_platform_column, "reserved_name"),
        (_with_column_twice, "duplicate_name"),
    ],
)
def test_what_no_decorator_lets_pass_is_found_in_a_body_written_by_hand(tmp_path, change, code):
    tree = json.loads(compile_module(write_module(tmp_path, VALID)).model_dump_json())
    change(tree)
    problems = validate(Commit.model_validate(tree), Definitions())
    assert [problem.code for problem in problems] == [code]
    assert problems[0].line is not None


def test_a_pipeline_that_reads_what_it_fills_runs_in_a_circle(tmp_path):
    tree = json.loads(compile_module(write_module(tmp_path, VALID)).model_dump_json())
    _with_circle(tree)
    problems = validate(Commit.model_validate(tree), Definitions())
    assert "cycle" in {problem.code for problem in problems}
    assert "ShopStats → by_shop → ShopStats" in str(problems[0])


def test_a_missing_file_is_a_problem(tmp_path):
    with pytest.raises(DefinitionError) as caught:
        compile_module(tmp_path / "absent.py")
    assert [problem.code for problem in caught.value.problems] == ["module_not_found"]


def test_an_empty_module_is_a_problem(tmp_path):
    with pytest.raises(DefinitionError) as caught:
        compile_module(write_module(tmp_path, "x = 1\n"))
    assert [problem.code for problem in caught.value.problems] == ["nothing_declared"]


def test_the_base_of_these_tables_has_no_mistake(tmp_path):
    commit = compile_module(write_module(tmp_path, HEAD + EVENT + RATE + STATS + FEATURES))
    assert [definition.name for definition in commit.datasets] == ["Sale", "Rate", "ShopStats"]


@pytest.mark.parametrize(
    "upstream",
    [
        '.aggregate(part=Sum(of="amount"))',
        '.aggregate(part=Sum(of="amount", window=Lifetime(max_rows=5)))',
        '.aggregate(part=Sum(of="amount", window=Tumbling("1d")), most=Max(of="amount", window=Tumbling("1d")))',
        '.aggregate(part=Sum(of="amount", window=Session("10m")), n=Count())',
        '.aggregate(emit="on_event", part=Sum(of="amount", window="1h"))',
        '.aggregate(emit="on_event", part=ExpDecaySum(of="amount", half_life="1h"))',
        '.latest().rename(amount="part")',
        '.first().rename(amount="part")',
    ],
)
def test_what_only_events_change_may_feed_an_aggregate(upstream, tmp_path):
    body = f'return sales.groupby("shop", "note"){upstream}.groupby("shop").aggregate(total=Max(of="part"))'
    commit = compile_module(write_module(tmp_path, pipeline_module(body)))
    assert commit.pipelines[0].keys == ("shop",)


@pytest.mark.parametrize("cdc", ["append", "upsert", "debezium"])
@pytest.mark.parametrize("side", [EVENT, RATE])
def test_any_side_of_a_pipeline_may_be_fed_with_versions(cdc, side, tmp_path):
    fed = f'\n@source(FileSource(path="/data/x.jsonl"), cdc="{cdc}")\n' + side.lstrip()
    sources = (EVENT + RATE).replace(side, fed)
    body = 'return sales.join(Rate, on="shop").groupby("shop").aggregate(total=Sum(of="rate"))'
    commit = compile_module(write_module(tmp_path, pipeline_module(body, sources=sources)))
    assert [source.cdc for source in commit.sources] == [cdc]
