"""Feature services: what a declaration becomes, which mistakes are found in it, and what may change of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from featurelib.compile import compile_module
from featurelib.definitions import FeatureServiceDef, ParameterDef, ServedViewDef
from featurelib.errors import BreakingChange, DefinitionError
from featurelib.lineage import dependents
from featurelib.plan import commit_id, plan
from featurelib.stock import read_commit
from tests.support.modules import VALID, expected_mistakes, write_module

TWO = (
    VALID
    + """
@featureset
class ShopNames:
    shop: str = feature()
    note: Optional[str] = feature(ref=Sale.note)

@featureset
class NumberedShop:
    number: int = feature()
    factor: int = feature(request=True)
"""
)


def services(folder: Path, text: str) -> tuple[FeatureServiceDef, ...]:
    return compile_module(write_module(folder, TWO + text)).feature_services


def test_what_is_left_out_follows_from_the_featuresets(tmp_path):
    (service,) = services(tmp_path, 's = FeatureService("shops", [ShopFeatures, ShopNames])\n')
    assert service == FeatureServiceDef(
        name="shops",
        views=(
            ServedViewDef(
                name="ShopFeatures", featureset="ShopFeatures", features=("total_1d", "scaled"), join_keys=("shop",)
            ),
            ServedViewDef(name="ShopNames", featureset="ShopNames", features=("note",), join_keys=("shop",)),
        ),
        join_keys=(ParameterDef(name="shop", type="str"),),
        request_context=(ParameterDef(name="factor", type="float"),),
    )
    assert service.feature_names == ("ShopFeatures.total_1d", "ShopFeatures.scaled", "ShopNames.note")
    assert (service.qualified_name, len(service.id)) == ("prod/shops", 32)


def test_a_slice_has_an_order_a_name_and_join_keys_of_its_own(tmp_path):
    text = """
s = FeatureService(
    "shops",
    [ShopFeatures.slice("scaled", ShopFeatures.total_1d), Slice(ShopNames, name="Other", join_keys=["other"])],
    workspace="test", version=3, owner="ann", tags=["hot"],
)
"""
    (service,) = services(tmp_path, text)
    assert service.feature_names == ("ShopFeatures.scaled", "ShopFeatures.total_1d", "Other.note")
    assert [(key.name, key.type) for key in service.join_keys] == [("shop", "str"), ("other", "str")]
    assert (service.qualified_name, service.version) == ("test/shops", 3)
    assert (service.metadata.owner, service.metadata.tags) == ("ann", {"hot": ""})


def test_a_feature_named_slice_keeps_its_name(tmp_path):
    text = """
@featureset
class Cake:
    cake: str = feature()
    slice: float = feature(request=True)
s = FeatureService("cakes", [Slice(Cake, "slice")])
"""
    (service,) = services(tmp_path, text)
    assert service.feature_names == ("Cake.slice",)


def test_a_service_imported_from_another_module_is_committed_too(tmp_path):
    write_module(tmp_path, TWO + 's = FeatureService("shops", [ShopNames])\n', "declared.py")
    commit = compile_module(write_module(tmp_path, "from declared import *\n"))
    assert [service.name for service in commit.feature_services] == ["shops"]


MISTAKES = {
    "not a featureset": 's = FeatureService("s", [Sale])  #! invalid_feature\n',
    "not a class": 's = FeatureService("s", [7])  #! invalid_feature\n',
    "no features": 's = FeatureService("s", [])  #! invalid_value, invalid_value\n',
    "a name with a dot": 's = FeatureService("a.b", [ShopNames])  #! invalid_value\n',
    "a workspace with a slash": 's = FeatureService("s", [ShopNames], workspace="a/b")  #! invalid_value\n',
    "no type": 's = FeatureService("s", [ShopNames], join_keys={"shop": complex})  #! unknown_type\n',
    "unknown feature": 's = FeatureService("s", [ShopNames.slice("nope")])  #! unknown_feature\n',
    "a feature twice": 's = FeatureService("s", [ShopNames.slice("note", "note")])  #! duplicate_name\n',
    "a part twice": 's = FeatureService("s", [ShopNames, ShopNames])  #! duplicate_name\n',
    "a service twice": (
        's = FeatureService("s", [ShopNames])\nt = FeatureService("s", [ShopNames])  #! duplicate_name\n'
    ),
    "another key type": ('s = FeatureService("s", [ShopNames], join_keys={"shop": int})  #! key_type_mismatch\n'),
    "unknown join key": (
        's = FeatureService("s", [ShopNames], join_keys={"store": str})  #! unknown_join_key, unused_join_key\n'
    ),
    "too many join keys": ('s = FeatureService("s", [Slice(ShopNames, join_keys=["a", "b"])])  #! join_key_count\n'),
    "missing context": (
        's = FeatureService("s", [Slice(NumberedShop, "factor")], request_context={})  #! missing_context\n'
    ),
    "unused context": ('s = FeatureService("s", [ShopNames], request_context={"a": int})  #! unused_context\n'),
    "another context type": (
        's = FeatureService("s", [ShopFeatures], request_context={"factor": int})  #! context_type_mismatch\n'
    ),
    "a key that is context too": (
        's = FeatureService("s", [ShopFeatures], request_context={"factor": float, "shop": str})'
        "  #! duplicate_name, unused_context\n"
    ),
    "a wildcard that is no key": (
        's = FeatureService("s", [ShopNames], wildcard=Wildcard("ad", ShopNames.note))  #! unknown_join_key\n'
    ),
    "a wildcard of no list": (
        's = FeatureService("s", [ShopNames], wildcard=Wildcard("shop", ShopNames.note))'
        "  #! wildcard_by_itself, wildcard_type\n"
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_reported_at_its_line_with_what_to_do(name, tmp_path):
    text = TWO + MISTAKES[name]
    with pytest.raises(DefinitionError) as caught:
        compile_module(write_module(tmp_path, text))
    assert sorted((problem.code, problem.line) for problem in caught.value.problems) == expected_mistakes(text)
    assert all(problem.subject and problem.message and problem.hint for problem in caught.value.problems)


def test_a_broken_featureset_is_one_mistake_and_its_service_none(tmp_path):
    text = TWO.replace("note: Optional[str] = feature(ref=Sale.note)", "note: complex = feature(ref=Sale.note)")
    with pytest.raises(DefinitionError) as caught:
        compile_module(write_module(tmp_path, text + 's = FeatureService("s", [ShopNames.slice("note")])\n'))
    assert [problem.code for problem in caught.value.problems] == ["unknown_type"]


SERVICE = 's = FeatureService("s", [ShopFeatures], join_keys={"shop": str}, request_context={"factor": float})\n'


@pytest.mark.parametrize(
    ("changed", "codes"),
    [
        (SERVICE.replace("[ShopFeatures]", "[ShopFeatures, ShopNames]"), []),
        (SERVICE.replace("[ShopFeatures]", '[ShopFeatures.slice("scaled", "total_1d")]'), []),
        (SERVICE.replace("[ShopFeatures]", '[ShopFeatures.slice("scaled")]'), ["feature_removed"]),
        (SERVICE.replace("[ShopFeatures]", '[Slice(ShopFeatures, name="Renamed")]'), ["feature_removed"] * 2),
        (SERVICE.replace('{"factor": float}', "{}"), ["request_changed"]),
        (SERVICE.replace(', join_keys={"shop": str}', ', version=2, join_keys={"shop": str}'), []),
        (SERVICE.replace(', join_keys={"shop": str}', ', workspace="test", join_keys={"shop": str}'), []),
    ],
)
def test_what_a_service_gives_and_takes_stays_within_a_version(changed, codes, tmp_path):
    before = compile_module(write_module(tmp_path, TWO + SERVICE))
    after = compile_module(write_module(tmp_path, TWO + changed))
    if not codes:
        assert not plan(before, after).no_op
        return
    with pytest.raises(BreakingChange) as caught:
        plan(before, after)
    assert [problem.code for problem in caught.value.problems] == codes


def test_another_join_key_is_a_break(tmp_path):
    before = compile_module(write_module(tmp_path, TWO + SERVICE))
    store = SERVICE.replace("[ShopFeatures]", '[Slice(ShopFeatures, join_keys=["store"])]').replace('"shop"', '"store"')
    with pytest.raises(BreakingChange, match="from shop: str to store: str"):
        plan(before, compile_module(write_module(tmp_path, TWO + store)))


def test_a_commit_of_the_same_does_nothing_and_reads_back_from_json(tmp_path):
    commit = compile_module(write_module(tmp_path, TWO + SERVICE))
    assert plan(commit, commit).no_op
    assert read_commit(commit.model_dump_json().encode()) == commit


def test_a_commit_without_services_has_the_bytes_it_always_had(tmp_path):
    commit = compile_module(write_module(tmp_path, TWO))
    assert "feature_services" not in commit.model_dump(mode="json")
    with_service = compile_module(write_module(tmp_path, TWO + SERVICE))
    assert commit_id(commit) != commit_id(with_service)


def test_a_service_depends_on_its_featuresets(tmp_path):
    commit = compile_module(write_module(tmp_path, TWO + SERVICE))
    assert [edge.end for edge in dependents(commit, "featureset:ShopFeatures")] == ["feature_service:prod/s"]


ASKING = TWO.replace("(ref=Sale.note)", "(ref=Sale.note)\n    extra: int = feature(request=True)")
COMPUTED = """
@featureset
class Greeting:
    shop: str = feature()
    extra: int = feature(request=True{default})
    greeting: str = feature()

    @extractor
    @extractor_inputs({inputs})
    @extractor_outputs("greeting")
    def greet(cls, ts, given):
        return str(given)
"""
ALONE = 's = FeatureService("s", [Greeting.slice("greeting")], request_context={})\n'


def test_a_featureset_that_asks_for_more_leaves_services_alone_whose_features_are_not_made_of_it(tmp_path):
    committed = compile_module(write_module(tmp_path, TWO + 's = FeatureService("s", [ShopNames])\n'))
    assert not plan(committed, compile_module(write_module(tmp_path, ASKING))).no_op


def test_a_featureset_that_asks_for_more_breaks_the_services_whose_features_are_made_of_it(tmp_path):
    before = COMPUTED.format(default=", default=1", inputs='"extra"')
    committed = compile_module(write_module(tmp_path, TWO + before + ALONE))
    changed = compile_module(write_module(tmp_path, TWO + COMPUTED.format(default="", inputs='"extra"')))
    with pytest.raises(DefinitionError, match="takes `extra` from the request"):
        plan(committed, changed)


def test_a_slice_needs_no_context_that_none_of_its_features_is_made_of(tmp_path):
    module = TWO + COMPUTED.format(default="", inputs='"shop"')
    compile_module(write_module(tmp_path, module + ALONE))
    declared = ALONE.replace("{}", '{"extra": int}')
    compile_module(write_module(tmp_path, module + declared))
    with pytest.raises(DefinitionError, match="`extra` is float in the request context"):
        compile_module(write_module(tmp_path, module + declared.replace("int", "float")))
