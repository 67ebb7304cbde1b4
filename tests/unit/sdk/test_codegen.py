"""``thyme codegen python``: stubs that a strict type checker takes, and that make it refuse wrong reads."""

import ast

import pytest
from typer.testing import CliRunner

from featurelib.aggregates import Last, Max, Sum
from featurelib.cli import app
from featurelib.codegen import stubs
from featurelib.compile import compile_module
from featurelib.definitions import (
    AggregateStep,
    Commit,
    DatasetDef,
    ExtractorDef,
    FeatureDef,
    FeaturesetDef,
    FieldDef,
    LookupDef,
    NamedAggregate,
    PipelineDef,
    PyCode,
)
from featurelib.errors import DefinitionError
from tests.support.modules import VALID, write_module
from tests.support.type_checks import check

AT = FieldDef(name="at", type="datetime", timestamp=True)
SALE = DatasetDef(
    name="Sale",
    index=True,
    fields=(
        FieldDef(name="user", type="str", key=True),
        FieldDef(name="float", type="float"),
        FieldDef(name="list", type="list[int]"),
        FieldDef(name="price", type="decimal(2)"),
        FieldDef(name="note", type="str", optional=True),
        AT,
    ),
)
HTTP_STATS = DatasetDef(
    name="HTTPStats",
    fields=(
        FieldDef(name="user", type="str", key=True),
        FieldDef(name="total", type="float"),
        FieldDef(name="newest", type="str"),
        FieldDef(name="known", type="str"),
        FieldDef(name="most", type="float"),
        AT,
    ),
)
BY_USER = PipelineDef(
    name="by_user",
    input_datasets=("Sale",),
    output_dataset="HTTPStats",
    steps=(
        AggregateStep(
            keys=("user",),
            aggregates=(
                NamedAggregate(output="total", aggregate=Sum(of="float", window="1d")),
                NamedAggregate(output="newest", aggregate=Last(of="note")),
                NamedAggregate(output="known", aggregate=Last(of="note", default="none")),
                NamedAggregate(output="most", aggregate=Max(of="float")),
            ),
        ),
    ),
)
CODE = PyCode(entry_point="f", source="def f(cls, ts, *given): ...")
SHOPPER = FeaturesetDef(
    name="Shopper",
    features=(
        FeatureDef(name="user", type="str"),
        FeatureDef(name="total", type="float", lookup=LookupDef(dataset="HTTPStats", field="total"), default=0.0),
        FeatureDef(name="newest", type="str", lookup=LookupDef(dataset="HTTPStats", field="newest"), default=""),
        FeatureDef(name="most", type="float", lookup=LookupDef(dataset="HTTPStats", field="most")),
        FeatureDef(name="limit", type="float", request=True),
        FeatureDef(name="since", type="datetime", request=True, default="2026-01-01"),
        FeatureDef(name="rich", type="bool"),
    ),
    extractors=(ExtractorDef(name="f", inputs=("limit", "Market.rate", "Market.limit"), outputs=("rich",), code=CODE),),
)
MARKET = FeaturesetDef(
    name="Market",
    features=(
        FeatureDef(name="code", type="int"),
        FeatureDef(name="rate", type="float", request=True, default=1.0),
        FeatureDef(name="limit", type="float", request=True, default=1.0),
    ),
)
COMMIT = Commit(datasets=(SALE, HTTP_STATS), pipelines=(BY_USER,), featuresets=(SHOPPER, MARKET))

PROGRAM = """\
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from features import AsyncThymeClient, Market, Sale, Shopper, ShopperInputs, ShopperRow, ThymeClient
else:
    from featurelib import AsyncThymeClient, ThymeClient


def spent(client: ThymeClient, given: ShopperInputs) -> float:
    rows: list[ShopperRow] = client.query("Shopper", "u1", given).to_dict()
    return rows[0]["total"] + sum(row["total"] for row in client.query_batch(Shopper, ["u1"], given))


def table(client: ThymeClient) -> pl.DataFrame:
    return client.query_offline("Market", [], entity_column="id", timestamp_column="at").to_polars()


async def awaited(client: AsyncThymeClient, given: ShopperInputs) -> None:
    found = await client.query("Shopper", "u1", given, explain=True)
    reveal_type(found["total"])
    reveal_type(await client.status())


sale = Sale(user="u", float=1.0, list=[1], price=Decimal(2), note=None, at=datetime(2026, 1, 1))
reveal_type(sale.float)
reveal_type(sale.list)
reveal_type(sale.price)
reveal_type(sale.note)
reveal_type(Sale.at)

with ThymeClient() as client:
    given: ShopperInputs = {"limit": 2.0, "since": datetime(2026, 1, 1), "Market.limit": 3.0}
    read = client.query("Shopper", "u1", given)
    reveal_type(read["total"])
    reveal_type(read["newest"])
    reveal_type(read["most"])
    reveal_type(read["since"])
    reveal_type(client.query("Market", 7)["rate"])
    reveal_type(client.query_offline(Market, [], entity_column="id", timestamp_column="at")["timestamp"])
    stats = client.lookup("HTTPStats", "u1", timestamp="2026-01-01")
    reveal_type(stats["newest"])
    reveal_type(stats["known"])
    reveal_type(client.lookup("Sale", "u1").to_dict()[0]["at"])
"""

REVEALED = {
    'found["total"]': "list[float]",
    "await client.status()": "dict[str, Any]",
    "sale.float": "float",
    "sale.list": "list[int]",
    "sale.price": "Decimal",
    "sale.note": "str | None",
    "Sale.at": "Field[datetime]",
    'read["total"]': "list[float]",
    'read["newest"]': "list[str | None]",
    'read["most"]': "list[float | None]",
    'read["since"]': "list[str]",
    'client.query("Market", 7)["rate"]': "list[float]",
    'client.query_offline(Market, [], entity_column="id", timestamp_column="at")["timestamp"]': "list[str]",
    'stats["newest"]': "list[str | None]",
    'stats["known"]': "list[str]",
    'client.lookup("Sale", "u1").to_dict()[0]["at"]': "str",
}

MISTAKES = """
client.query("Shoper", "u1", given)  #! call-overload
client.query("Shopper", "u1")  #! call-overload
client.query("Shopper", "u1", {"limit": "much"})  #! call-overload
client.query("Shopper", "u1", {"limit": 1.0, "rat": 1.0})  #! call-overload
client.query("Shopper", 7, given)  #! call-overload
client.query_batch("Shopper", "u1", 3)  #! call-overload
client.query_offline("Market", [], batch_size="many")  #! call-overload
client.lookup("Shopper", "u1")  #! call-overload
read.to_dict()[0]["totl"]  #! typeddict-item
read["totl"]  #! call-overload
sale.flaot  #! attr-defined
Sale(user=3, float=1.0, list=[1], price=Decimal(2), note=None, at=datetime(2026, 1, 1))  #! arg-type
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.getbasetemp() / "mypy"


def _write(folder, files):
    (folder / "features").mkdir()
    for name, text in files.items():
        (folder / "features" / name).write_text(text, encoding="utf-8")


@pytest.fixture(scope="module")
def checked(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("stubs")
    _write(folder, stubs(COMMIT))
    return check(folder, PROGRAM + MISTAKES, cache)


@pytest.mark.parametrize("expression", REVEALED)
def test_a_program_over_the_stubs_sees_the_type_of(expression, checked):
    assert checked.revealed[expression] == REVEALED[expression]


def test_every_wrong_read_is_flagged_and_nothing_else_in_program_or_stubs(checked):
    expected = [(line, line.partition("#! ")[2]) for line in MISTAKES.strip().splitlines()]
    assert sorted(checked.errors) == sorted(expected), checked.report


@pytest.mark.parametrize("kept", [{"featuresets": (MARKET,)}, {"datasets": (SALE,)}], ids=["featureset", "dataset"])
def test_the_stubs_of_a_single_definition_are_as_strict(kept, tmp_path, cache):
    _write(tmp_path, stubs(Commit(**kept)))
    found = check(tmp_path, "from features import ThymeClient\n\nThymeClient().lookup(3)\n", cache)
    assert {line for line, _ in found.errors} == {"ThymeClient().lookup(3)"}, found.report


def test_there_is_one_stub_per_definition_in_snake_case():
    assert set(stubs(COMMIT)) == {
        "__init__.pyi", "_client.pyi", "http_stats.pyi", "market.pyi", "sale.pyi", "shopper.pyi",
    }  # fmt: skip


def test_the_package_exports_every_name_of_every_stub():
    files = stubs(COMMIT)
    defined = {
        node.name if isinstance(node, ast.ClassDef) else node.targets[0].id
        for name, text in files.items()
        if name != "__init__.pyi"
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef | ast.Assign)
    }
    exported = next(node for node in ast.parse(files["__init__.pyi"]).body if isinstance(node, ast.Assign))
    assert ast.literal_eval(exported.value) == sorted(defined)


def test_a_dataset_that_cannot_be_looked_up_has_no_read():
    files = stubs(Commit(datasets=(SALE.model_copy(update={"index": False}),)))
    assert "SaleResult" not in files["sale.pyi"]
    assert "lookup" not in files["_client.pyi"]


def test_the_order_of_definitions_does_not_change_a_byte():
    turned = Commit(datasets=(HTTP_STATS, SALE), pipelines=(BY_USER,), featuresets=(MARKET, SHOPPER))
    assert list(stubs(turned).items()) == list(stubs(COMMIT).items())


def test_names_that_no_program_can_write_and_types_without_a_python_type_are_all_named():
    strange = FeatureDef.model_construct(name="shape", type="map[str]", optional=False, request=False, lookup=None)
    bad = FeaturesetDef.model_construct(name="Bad", features=(FeatureDef(name="class", type="int"), strange))
    with pytest.raises(DefinitionError) as refused:
        stubs(Commit.model_construct(featuresets=(bad,)))
    assert [(problem.code, problem.subject) for problem in refused.value.problems] == [
        ("keyword_name", "Bad.class"),
        ("untyped", "Bad.shape"),
    ]
    assert "map[str]" in str(refused.value)


@pytest.mark.parametrize("name", ["sale", "SALE", "SaleRow", "ThymeClient"])
def test_two_stubs_of_one_name_are_refused(name):
    other = SALE.model_copy(update={"name": name})
    with pytest.raises(DefinitionError) as refused:
        stubs(Commit(datasets=(SALE, other)))
    assert {problem.code for problem in refused.value.problems} == {"stub_collision"}


def test_a_name_that_is_a_keyword_in_lower_case_can_still_be_imported():
    files = stubs(Commit(featuresets=(MARKET.model_copy(update={"name": "Import"}),)))
    assert "import_.pyi" in files
    ast.parse(files["__init__.pyi"])


@pytest.fixture
def run(home):
    def invoke(*arguments):
        return CliRunner().invoke(app, ["codegen", "python", *(str(argument) for argument in arguments)])

    return invoke


def _texts(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


@pytest.mark.parametrize("option", [(), ("--path",), ("-m",)], ids=["argument", "path", "module"])
def test_the_command_writes_the_stubs_of_a_module(option, run, home, tmp_path):
    path = write_module(home, VALID, name="shop_stubs.py")
    result = run(*option, "shop_stubs" if option == ("-m",) else path, "--out", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (0, f"wrote 5 stubs to {tmp_path / 'out'}\n")
    assert _texts(tmp_path / "out") == stubs(compile_module(path))
    assert ("deprecated" in result.stderr) == (option == ("-m",))


def test_a_second_run_writes_the_same_bytes(run, tmp_path):
    path = write_module(tmp_path, VALID)
    run(path, "--out", tmp_path / "out")
    before = _texts(tmp_path / "out")
    assert run(path, "--out", tmp_path / "out").exit_code == 0
    assert _texts(tmp_path / "out") == before


def test_a_file_that_differs_is_replaced_only_by_force(run, tmp_path):
    path, out = write_module(tmp_path, VALID), tmp_path / "out"
    out.mkdir()
    (out / "sale.pyi").write_text("mine")
    refused = run(path, "--out", out)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert _texts(out) == {"sale.pyi": "mine"}
    assert run(path, "--out", out, "--force").exit_code == 0
    assert _texts(out) == stubs(compile_module(path))


def test_a_folder_that_cannot_be_made_is_a_wrong_option(run, tmp_path):
    path = write_module(tmp_path, VALID)
    result = run(path, "--out", path / "below")
    assert (result.exit_code, "Not a directory" in result.stderr) == (2, True)


def test_exactly_one_module_is_given(run, tmp_path):
    path = write_module(tmp_path, VALID)
    assert run("--out", tmp_path).exit_code == 2
    assert run(path, "--path", path, "--out", tmp_path).exit_code == 2
    assert run(path).exit_code == 2


def test_a_keyword_in_a_module_is_named_with_its_line(run, tmp_path):
    text = VALID + (
        "\nbody = {'__module__': __name__, '__annotations__': {'shop': str, 'class': float}}\n"
        "Worse = featureset(type('Worse', (), body | {'shop': feature(), 'class': feature(request=True)}))\n"
    )
    result = run(write_module(tmp_path, text), "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert f"features.py:{len(text.splitlines())}  Worse.class" in result.stderr
    assert "[keyword_name]" in result.stderr
    assert not (tmp_path / "out").exists()
