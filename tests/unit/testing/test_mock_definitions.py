"""What a context can be made of, and what is said when it cannot."""

import subprocess
import sys
import textwrap
from datetime import datetime
from types import ModuleType

import pytest

from featurelib import Count, dataset, feature, featureset, field, inputs, pipeline
from featurelib.compile import compile_module
from featurelib.errors import DefinitionError, InvalidRequest
from featurelib.testing import MockContext
from tests.unit.testing import shop
from tests.unit.testing.shop import Aggregates, Order, Orders, Purchase, Shop, UserFeatures
from tests.unit.testing.test_mock_aggregates import purchase

MODULE = """
from datetime import datetime
from featurelib import *

@dataset()
class Tick:
    name: str = field(key=True)
    at: datetime = field(timestamp=True)

@dataset(index=True)
class Ticks:
    name: str = field(key=True)
    n: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Tick)
    def count(cls, ticks):
        return ticks.groupby("name").aggregate(n=Count())
"""


def counts(ctx):
    ctx.add_events("Tick", [{"name": "a", "at": "2026-04-01"}])
    return ctx.get_aggregates("Ticks", "a") == {"n": 1}


@pytest.mark.parametrize("form", ["path", "text", "commit", "definitions", "beside"])
def test_a_context_is_made_of_a_path_a_commit_or_definitions(tmp_path, form):
    path = tmp_path / "ticks.py"
    path.write_text(MODULE)
    commit = compile_module(path)
    made = {
        "path": lambda: MockContext(path),
        "text": lambda: MockContext(str(path)),
        "commit": lambda: MockContext(commit),
        "definitions": lambda: MockContext(definitions=commit),
        "beside": lambda: MockContext(Order, Orders, definitions=commit),
    }
    assert counts(made[form]())


def test_classes_bring_what_they_name_along():
    ctx = MockContext(UserFeatures)
    names = {dataset.name for dataset in ctx.definitions.datasets}
    assert names == {"Aggregates", "Purchase", "Shop"}
    ctx.add_events(Purchase, [purchase("10:00:00")])
    assert ctx.query(UserFeatures, "ann", {"wanted": 1})["count"] == 1


def test_two_modules_may_refer_to_each_other():
    raw, made = ModuleType("raw"), ModuleType("made")
    raw.Purchase, raw.Shop = Purchase, Shop
    made.Aggregates, made.UserFeatures = Aggregates, UserFeatures
    for ctx in (MockContext(raw, made), MockContext(made, raw), MockContext(raw, Aggregates, UserFeatures)):
        assert ctx.definitions.featureset("UserFeatures") is not None


def test_without_arguments_a_context_holds_everything_declared(tmp_path):
    code = MODULE + textwrap.dedent(
        """
        from featurelib.testing import MockContext
        ctx = MockContext()
        ctx.add_events(Tick, [{"name": "a", "at": "2026-04-01"}])
        print(ctx.get_aggregates(Ticks, "a"))
        """
    )
    file = tmp_path / "script.py"
    file.write_text(code)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'n': 1}"


def test_the_package_alone_loads_neither_the_engine_nor_this():
    heavy = "{'polars', 'pyarrow', 'pandas', 'numpy', 'featurelib.testing', 'featurelib.engine'}"
    for module in ("featurelib", "featurelib.testing.plugin"):
        code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "polars" not in done.stdout
        assert "engine" not in done.stdout


def test_testing_loads_no_store_and_no_service():
    code = "import sys, featurelib.testing; print(sorted({'redis', 'sqlalchemy', 'ray', 'fastapi'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_mistake_of_every_definition_is_told_at_once(tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(
        MODULE.replace("n=Count()", 'n=Count(of="nmae")')
        + """
@featureset
class Wrong:
    name: str = feature()
    n: int = feature(ref=Ticks.n)
    m: int = feature()
"""
    )
    with pytest.raises(DefinitionError) as caught:
        MockContext(path)
    assert {problem.code for problem in caught.value.problems} == {"unknown_column", "unproduced_feature"}
    assert all(problem.file and problem.line for problem in caught.value.problems)


def test_an_extractor_that_does_not_load_is_a_mistake_of_its_definition(tmp_path, monkeypatch):
    path = tmp_path / "loading.py"
    path.write_text(
        """
import os

from featurelib import *

LIMIT = int(os.environ["LIMIT_OF_THE_TEST"])

@featureset
class Loading:
    name: str = feature()
    n: int = feature()

    @extractor
    @extractor_inputs("name")
    @extractor_outputs("n")
    def make(cls, ts, name):
        return LIMIT
"""
    )
    monkeypatch.setenv("LIMIT_OF_THE_TEST", "3")
    commit = compile_module(path)
    assert MockContext(commit).query("Loading", "a")["n"] == 3
    monkeypatch.delenv("LIMIT_OF_THE_TEST")
    with pytest.raises(DefinitionError, match=r"Loading\.make\n *KeyError: 'LIMIT_OF_THE_TEST'  \[user_code_error\]"):
        MockContext(commit)


def test_two_datasets_of_one_name_are_refused():
    @dataset()
    class Shop:
        shop: str = field(key=True)
        city: str = field()
        at: datetime = field(timestamp=True)

    with pytest.raises(DefinitionError, match="holds the dataset `Shop@1` 2 times"):
        MockContext(shop, Shop)


def test_a_class_local_to_a_test_may_be_given_with_what_it_names():
    @dataset(index=True)
    class Buyers:
        shop: str = field(key=True)
        n: int = field()
        at: datetime = field(timestamp=True)

        @pipeline(version=1)
        @inputs(Purchase)
        def buyers(cls, purchases):  # noqa: N805  # a pipeline's body
            return purchases.groupby("shop").aggregate(n=Count())

    @featureset
    class Popular:
        shop: str = feature()
        n: int = feature(ref=Buyers.n, default=0)

    ctx = MockContext(Popular, Buyers, Purchase)
    ctx.add_events(Purchase, [purchase("10:00:00")])
    assert ctx.query(Popular, "north") == {"shop": "north", "n": 1}
    with pytest.raises(DefinitionError, match="unknown_dataset"):
        MockContext(Popular)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "MockContext takes a module, its name or path, a declared class, or a Commit; found a int"),
        (int, r"int declares nothing; decorate it with @dataset"),
        (textwrap, "the module textwrap declares nothing"),
    ],
)
def test_what_is_no_definition_is_refused(target, message):
    with pytest.raises(InvalidRequest, match=message):
        MockContext(target)


def test_nothing_is_folded_anew_until_events_arrive(ctx):
    ctx.add_events(Purchase, [purchase("10:00:00")])
    table = ctx._reader.table("Aggregates")
    ctx.get_aggregates(Aggregates, "ann")
    folded = table.known()
    ctx.add_events(Order, [{"user": "ann", "number": "a", "amount": 1, "at": "2026-04-01"}])
    assert table.known() is folded
    ctx.add_events(Purchase, [purchase("11:00:00")])
    assert table.known() is not folded
