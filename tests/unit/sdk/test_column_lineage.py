"""How columns become columns and features, step by step."""

from __future__ import annotations

import pytest

from featurelib.column_lineage import ColumnEdge, column_edges
from featurelib.compile import compile_module
from featurelib.definitions import Definitions
from tests.support.modules import EVENT, FEATURES, HEAD, RATE, STATS, write_module

OUTPUT = """
@dataset(index=True)
class Out:
    shop: str = field(key=True)
    value: {type} = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs({inputs})
    def made(cls, sales{more}):
        return {steps}
"""
CHANGE = """
def doubled(frame):
    return frame.with_columns(twice=frame["amount"] * 2)
"""


def feeding(definitions: Definitions, node: str) -> set[str]:
    return {edge.start for edge in column_edges(definitions) if edge.end == node}


def made_of(tmp_path, steps: str, inputs: str = "Sale", kind: str = "float") -> set[str]:
    more = ", rates" if "," in inputs else ""
    text = HEAD + EVENT + RATE + OUTPUT.format(steps=steps, inputs=inputs, more=more, type=kind)
    return feeding(compile_module(write_module(tmp_path, text)), "field:Out.value")


@pytest.mark.parametrize(
    ("steps", "origins"),
    [
        ('sales.groupby("shop").aggregate(value=Sum(of="amount", window="1d"))', {"Sale.amount"}),
        (
            'sales.groupby("shop").aggregate(value=Sum(of="amount", where=col("paid") == True, window="1d"))',
            {"Sale.amount", "Sale.paid"},
        ),
        (
            'sales.filter(col("paid") == True).groupby("shop").aggregate(value=Sum(of="amount", window="1d"))',
            {"Sale.amount"},
        ),
        (
            'sales.assign(x=col("amount") / col("pieces")).groupby("shop").aggregate(value=Avg(of="x", window="1d"))',
            {"Sale.amount", "Sale.pieces"},
        ),
        (
            'sales.rename(amount="x").select("shop", "x").groupby("shop").aggregate(value=Sum(of="x", window="1d"))',
            {"Sale.amount"},
        ),
        (
            'sales.rename({"amount": "value"}).drop("note").groupby("shop").latest()',
            {"Sale.amount"},
        ),
    ],
    ids=["sum", "where", "filter", "assign", "rename", "latest"],
)
def test_values_are_followed_through_the_steps_of_a_pipeline(tmp_path, steps, origins):
    assert made_of(tmp_path, steps) == {f"field:{origin}" for origin in origins}


def test_a_count_of_rows_comes_from_no_column(tmp_path):
    assert made_of(tmp_path, 'sales.groupby("shop").aggregate(value=Count(window="1d"))', kind="int") == set()


def test_both_sides_of_a_join_and_of_a_union_count(tmp_path):
    joined = (
        'sales.join(Rate, on="shop", fields=["rate"]).assign(x=col("amount") * col("rate"))'
        '.groupby("shop").aggregate(value=Sum(of="x", window="1d"))'
    )
    assert made_of(tmp_path, joined, "Sale, Rate") == {"field:Sale.amount", "field:Rate.rate"}
    united = (
        'sales.select("shop", "amount").union(rates.rename(rate="amount").select("shop", "amount"))'
        '.groupby("shop").aggregate(value=Sum(of="amount", window="1d"))'
    )
    assert made_of(tmp_path, united, "Sale, Rate") == {"field:Sale.amount", "field:Rate.rate"}


def test_a_function_over_rows_may_use_every_column(tmp_path):
    steps = (
        'sales.select("shop", "amount").transform(doubled, output_columns={"twice": float}).groupby("shop")'
        '.aggregate(value=Sum(of="twice", window="1d"))'
    )
    text = HEAD + CHANGE + EVENT + OUTPUT.format(steps=steps, inputs="Sale", more="", type="float")
    commit = compile_module(write_module(tmp_path, text))
    assert feeding(commit, "field:Out.value") == {"field:Sale.amount", "field:Sale.shop"}


def test_features_come_from_columns_and_from_features(tmp_path):
    commit = compile_module(write_module(tmp_path, HEAD + EVENT + STATS + FEATURES))
    edges = column_edges(commit)
    assert ColumnEdge("field:ShopStats.total_1d", "feature:ShopFeatures.total_1d", "feature_lookup") in edges
    assert {edge.start: edge.via for edge in edges if edge.end == "feature:ShopFeatures.scaled"} == {
        "feature:ShopFeatures.total_1d": "scale",
        "feature:ShopFeatures.factor": "scale",
    }
    assert ColumnEdge("field:Sale.shop", "field:ShopStats.shop", "field_input", "by_shop") in edges
