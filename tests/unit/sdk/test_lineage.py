"""The graph of definitions."""

from featurelib.compile import compile_module
from featurelib.definitions import Definitions
from featurelib.lineage import Edge, cycle, dependents, downstream, edges
from tests.support.modules import EVENT, FEATURES, HEAD, STATS, write_module

TEXT = (
    HEAD
    + '\n@source(FileSource(path="/data/sales.csv"))'
    + EVENT
    + STATS
    + FEATURES
    + """
@featureset
class Risk:
    shop: str = feature()
    risky: bool = feature()

    @extractor(deps=[ShopFeatures])
    @extractor_inputs(ShopFeatures.scaled)
    @extractor_outputs("risky")
    def judge(cls, ts, scaled):
        return scaled > 1
"""
)


def test_edges_follow_the_data(tmp_path):
    commit = compile_module(write_module(tmp_path, TEXT))
    assert edges(commit) == (
        Edge("dataset:Sale", "pipeline:by_shop", "pipeline_input"),
        Edge("dataset:ShopStats", "featureset:ShopFeatures", "featureset_lookup"),
        Edge("featureset:ShopFeatures", "featureset:Risk", "featureset_dep"),
        Edge("pipeline:by_shop", "dataset:ShopStats", "pipeline_output"),
        Edge("source:Sale", "dataset:Sale", "source_feeds"),
    )


def test_everything_downstream_of_a_source_is_reached(tmp_path):
    commit = compile_module(write_module(tmp_path, TEXT))
    assert downstream(commit, "source:Sale") == {
        "dataset:Sale",
        "pipeline:by_shop",
        "dataset:ShopStats",
        "featureset:ShopFeatures",
        "featureset:Risk",
    }
    assert downstream(commit, "featureset:Risk") == frozenset()


CHAINED = (
    TEXT.replace('window="1d"', "window=Lifetime()")
    + """
@dataset()
class Visit:
    shop: str = field(key=True)
    total_1d: float = field()
    at: datetime = field(timestamp=True)

@dataset()
class Top:
    shop: str = field(key=True)
    top: float = field()
    at: datetime = field(timestamp=True)

    @pipeline()
    @inputs(ShopStats)
    def highest(cls, stats):
        return stats.union(Visit).groupby("shop").aggregate(top=Max(of="total_1d"))
"""
)


def test_data_flows_through_a_pipeline_into_the_next_and_from_both_sides_of_a_union(tmp_path):
    commit = compile_module(write_module(tmp_path, CHAINED))
    assert Edge("dataset:ShopStats", "pipeline:highest", "pipeline_input") in edges(commit)
    assert Edge("dataset:Visit", "pipeline:highest", "pipeline_input") in edges(commit)
    assert "dataset:Top" in downstream(commit, "source:Sale")


def test_dependents_are_one_step_away(tmp_path):
    commit = compile_module(write_module(tmp_path, TEXT))
    assert [edge.end for edge in dependents(commit, "dataset:ShopStats")] == ["featureset:ShopFeatures"]


def test_a_circle_begins_and_ends_with_the_same_node():
    found = cycle({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]})
    assert found[0] == found[-1]
    assert set(found) == {"a", "b", "c"}
    assert cycle({"a": ["b"], "b": []}) == []


def test_nothing_has_no_edges():
    assert edges(Definitions()) == ()
