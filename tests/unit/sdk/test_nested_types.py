"""Maps and structs as types of features: how they are declared, what they are called, and which are refused."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from featurelib.clock import parse_instant
from featurelib.codegen import stubs
from featurelib.compile import compile_module
from featurelib.engine.nested import nested_array
from featurelib.engine.read_plan import compile_plan
from featurelib.engine.spine_columns import SpineColumns, roles_of
from featurelib.engine.statistics import summary_of
from featurelib.engine.values import caster
from featurelib.errors import DefinitionError
from featurelib.result import ThymeResult
from featurelib.stock import read_commit
from featurelib.types import DEEPEST, feature_type, is_nested, members_of, value_type
from tests.support.modules import HEAD, expected_mistakes, write_module

MONEY = "struct[units: int, price: decimal(2), at: datetime]"
DECLARED = (
    HEAD
    + """
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import TypedDict

@dataclass
class Money:
    units: int
    price: Decimal
    at: Optional[datetime] = None

class Line(TypedDict):
    money: Money
    tags: list[dict[str, bool]]

@featureset
class Basket:
    user: str = feature()
    money: Optional[Money] = feature(request=True, scale=2)
    line: Line = feature(request=True, scale=2)
    lines: list[Line] = feature(request=True, scale=2)
    weights: dict[str, float] = feature(request=True)
    shares: Mapping[str, list[int]] = feature(request=True)

basket = FeatureService("basket", [Basket.slice("weights")])
given = FeatureService(
    "given", [Basket.slice("weights")], request_context={
        "weights": dict[str, float], "shares": dict[str, list[int]],
    },
)
"""
)


def test_dataclasses_typed_dicts_and_dicts_are_types_of_features(tmp_path):
    text = DECLARED[: DECLARED.index("given =")]
    commit = compile_module(write_module(tmp_path, text))
    features = {each.name: (each.type, each.optional) for each in commit.featuresets[0].features}
    line = f"struct[money: {MONEY}, tags: list[dict[str, bool]]]"
    assert features == {
        "user": ("str", False),
        "money": (MONEY, True),
        "line": (line, False),
        "lines": (f"list[{line}]", False),
        "weights": ("dict[str, float]", False),
        "shares": ("dict[str, list[int]]", False),
    }
    assert {each.name: each.type for each in commit.feature_services[0].request_context}["lines"] == f"list[{line}]"


@pytest.mark.parametrize(
    ("given", "spelled"),
    [
        ("struct[ a:int,b :dict[str,list[float]] ]", "struct[a: int, b: dict[str, list[float]]]"),
        ("list[struct[a: decimal(2)]]", "list[struct[a: decimal(2)]]"),
        ("list[list[int]]", "list[list[int]]"),
    ],
)
def test_a_type_has_one_spelling(given, spelled):
    assert feature_type(given) == feature_type(spelled) == spelled


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("struct[]", "named members"),
        ("struct[a: int, a: str]", "a name of its own"),
        ("struct[a]", "no type of a feature"),
        ("struct[a: int", "no type of a feature"),
        ("dict[int, str]", "keys of a map are str"),
        ("dict[str]", "no type of a feature"),
        ("set[int]", "no type of a feature"),
        ("list[int], list[int]", "no type of a feature"),
        ("list[" * (DEEPEST + 1) + "int" + "]" * (DEEPEST + 1), f"more than {DEEPEST} levels deep"),
        (f"struct[{', '.join(f'm{n}: int' for n in range(301))}]", "up to 300 members"),
        ("list[" * 5_000, "at most 8192"),
    ],
)
def test_what_is_no_type_says_why(given, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        feature_type(given)


def test_the_parts_of_a_type_are_told():
    assert members_of("struct[a: int, b: dict[str, list[int]]]") == (("a", "int"), ("b", "dict[str, list[int]]"))
    assert value_type("dict[str, list[int]]") == "list[int]"
    assert [is_nested(each) for each in ("int", "list[int]", "list[list[int]]", "dict[str, int]")] == [
        False,
        False,
        True,
        True,
    ]


ITSELF = """
from dataclasses import dataclass

@dataclass
class Node:
    left: "Optional[Node]"
    right: "Optional[Node]"

@dataclass
class Strange:
    values: set[int]

@dataclass
class Money:
    units: int
"""
MISTAKES = {
    "of itself": "    node: Node = feature(request=True)  #! unknown_type\n",
    "of an unknown type": "    strange: Strange = feature(request=True)  #! unknown_type\n",
    "a map of numbers": "    numbers: dict[int, str] = feature(request=True)  #! unknown_type\n",
    "a scale and no decimal": "    money: Money = feature(request=True, scale=2)  #! invalid_scale\n",
    "a default": "    weights: dict[str, int] = feature(request=True, default=1)  #! default_type\n",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_struct_that_cannot_be_one_is_reported_at_its_line(name, tmp_path):
    text = HEAD + ITSELF + "\n@featureset\nclass F:\n    user: str = feature()\n" + MISTAKES[name]
    with pytest.raises(DefinitionError) as caught:
        compile_module(write_module(tmp_path, text))
    assert [(problem.code, problem.line) for problem in caught.value.problems] == expected_mistakes(text)


@pytest.mark.parametrize(
    "text",
    [
        "\n@featureset\nclass F:\n    money: Money = feature()  #! invalid_key_type\n",
        (
            "\n@featureset\nclass F:\n    user: str = feature()\n    a: int = feature(request=True)\n"
            's = FeatureService("s", [Slice(F, "a", join_keys=["m"])], join_keys={"m": Money})'
            "  #! invalid_key_type, key_type_mismatch\n"
        ),
        (
            "\n@dataset(index=True)\nclass D:\n    user: str = field(key=True)\n"
            "    money: Money = field()  #! unknown_type\n    at: datetime = field(timestamp=True)\n"
        ),
    ],
    ids=["an entity id", "a join key", "a column of a dataset"],
)
def test_keys_and_columns_of_datasets_are_never_nested(text, tmp_path):
    text = HEAD + ITSELF + text
    with pytest.raises(DefinitionError) as caught:
        compile_module(write_module(tmp_path, text))
    assert sorted((problem.code, problem.line) for problem in caught.value.problems) == expected_mistakes(text)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("dict[str, int]", "dict[str, int]"),
        ("typing.Dict[str, typing.List[float]]", "dict[str, list[float]]"),
        ("struct[a: int, b: list[str]]", "struct[a: int, b: list[str]]"),
    ],
)
def test_a_stock_commit_may_name_them_for_features_and_not_for_columns(given, stored):
    body = json.loads((Path(__file__).parents[2] / "fixtures/thyme_commit/flights_features.json").read_text())
    (computed,) = (each for each in body["featuresets"][1]["features"] if each["name"] == "risky")
    computed["dtype"] = given
    risky = read_commit(json.dumps(body).encode()).featuresets[1].feature("risky")
    assert risky is not None
    assert risky.type == stored
    body["datasets"][0]["fields"][1]["type"] = given
    with pytest.raises(DefinitionError, match="not a column type"):
        read_commit(json.dumps(body).encode())


class TestValues:
    """Values of the engine and of a client's frames."""

    VALUE = {"units": 3, "price": Decimal("0.60"), "at": 1_772_366_400_000_000}  # noqa: RUF012  # never changed

    def test_a_client_gives_them_their_type_in_every_frame(self):
        shown = {"units": 3, "price": "0.60", "at": "2026-03-01T12:00:00Z"}
        columns = ["entity_id", "money", "seen"]
        types = {"money": MONEY, "seen": "dict[str, datetime]"}
        result = ThymeResult(columns, [["a", shown, {"x": "2026-03-01T12:00:00Z"}], ["b", None, {}]], types=types)
        table = result.to_arrow()
        assert table.column("money").type == nested_array(MONEY, []).type
        assert pa.types.is_map(table.column("seen").type)
        assert ThymeResult.of_table(table).to_dict() == result.to_dict()
        assert isinstance(result.to_polars().schema["money"], pl.Struct)

    def test_a_spine_has_them_as_columns(self, tmp_path):
        commit = compile_module(write_module(tmp_path, DECLARED[: DECLARED.index("given =")]))
        basket = commit.featuresets[0].model_copy(update={"features": commit.featuresets[0].features[:2]})
        plan = compile_plan(basket, commit, {})
        money = nested_array(MONEY, [self.VALUE, {**self.VALUE, "at": None}])
        spine = pa.record_batch({"user": ["a", "b"], "timestamp": ["2026-01-01", "2026-01-02"], "money": money})
        read = SpineColumns(plan, roles_of(plan, spine.schema, None, "timestamp"), parse_instant("2026-06-01"))
        told = [json.loads(inputs or "") for inputs in read.read(spine).inputs]
        assert told[0] == {"money": {"units": 3, "price": "0.60", "at": "2026-03-01T12:00:00Z"}}
        assert told[1]["money"]["at"] is None

    def test_statistics_count_them_and_tell_nothing_more(self):
        summary = summary_of(MONEY, [caster(MONEY)({"units": 1}), None])
        assert (summary.rows, summary.nulls, summary.distinct, summary.numbers) == (2, 1, None, 0)


def test_stubs_have_a_type_for_them(tmp_path):
    commit = compile_module(write_module(tmp_path, DECLARED[: DECLARED.index("given =")]))
    text = stubs(commit)["basket.pyi"]
    assert "dict[str, float]" in text
    assert "dict[str, Any]" in text
