"""What an editor infers: the types that mypy sees in a module of definitions and in a program that reads."""

import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.support.type_checks import check

PROGRAM = """\
from datetime import datetime
from typing import Any, Optional

from featurelib import (
    AsyncThymeClient, Count, Field, LastK, PipelineNode, PostgresSource, Secret, Sum, ThymeClient, col, dataset,
    expect_column_values_to_not_be_null, expectations, extractor, extractor_inputs, extractor_outputs, feature,
    featureset, field, inputs, lit, pipeline, source,
)


@source(PostgresSource(table="t", password=Secret(env="PASSWORD")), cursor="at", every="1m", cdc="append")
@dataset(index=True)
class Transaction:
    user: str = field(key=True)
    amount: float = field()
    note: Optional[str] = field()
    at: datetime = field(timestamp=True)

    @expectations
    def rules(cls) -> list[Any]:
        return [expect_column_values_to_not_be_null("amount")]


@dataset(index=True)
class Refund:
    user: Field[str] = field(key=True)
    amount: Field[float] = field()
    note: Field[Optional[str]] = field()
    at: Field[datetime] = field(timestamp=True)


@dataset(index=True)
class Spend:
    user: str = field(key=True)
    total: float = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Transaction, Refund)
    def by_user(cls, sales: PipelineNode, refunds: PipelineNode) -> PipelineNode:
        reveal_type(sales.filter(col("amount") > 0))
        reveal_type(sales.assign(double=col("amount") * 2))
        reveal_type(sales.join(refunds, on="user"))
        reveal_type(sales.groupby("user"))
        reveal_type(sales.groupby("user").aggregate(total=Sum(of="amount")))
        return sales.groupby("user").aggregate(total=Sum(of="amount", window="1d", where=col("amount") > lit(0)))


@featureset
class Shopper:
    user: str = feature()
    total: float = feature(ref=Spend.total, default=0.0)
    price: float = feature(request=True)
    affordable: bool = feature()

    @extractor
    @extractor_inputs("total", "price")
    @extractor_outputs("affordable")
    def afford(cls, ts: datetime, total: float, price: float) -> bool:
        return total > price


@featureset(entity_type="user")
class Owner:
    user: str = feature()


sale = Transaction(user="u", amount=1.0, note=None, at=datetime(2026, 1, 1))
refund = Refund(user="u", amount=1.0, note=None, at=datetime(2026, 1, 1))
reveal_type(sale.amount)
reveal_type(sale.note)
reveal_type(refund.amount)
reveal_type(refund.note)
reveal_type(Refund.amount)
reveal_type(Refund.note)
reveal_type(Shopper.total)
reveal_type(Shopper.afford)
reveal_type(Owner().user)

reveal_type(Count(window="1d"))
reveal_type(Sum("amount", "7d", where=col("amount") > 0, default=None))
reveal_type(LastK(of="amount", window="7d", k=3, dedup=True))

reveal_type(col("a"))
reveal_type(lit(1))
reveal_type(1 + col("a") / 2)
reveal_type(col("a") > 1)
reveal_type(col("a") == "x")
reveal_type((col("a") > 1) & ~col("b").is_null())
reveal_type(col("a").fill_null(0))
reveal_type(col("a").json_extract("b.c"))

with ThymeClient() as client:
    reveal_type(client)
    reveal_type(client.query(Shopper, "u", {"price": 2.0}))
    reveal_type(client.query_batch(Shopper, ["u"]))
    reveal_type(client.lookup(Spend, "u"))
    reveal_type(client.log(Transaction, [sale]))
    reveal_type(client.status())
    result = client.query("Shopper", "u")
    reveal_type(result.to_polars())
    reveal_type(result.to_dict())
    reveal_type(result["total"])
    reveal_type(len(result))
    reveal_type(result.query_run_id)


async def awaited() -> None:
    async with AsyncThymeClient() as client:
        reveal_type(await client.query(Shopper, "u", timestamp="2026-01-01"))
        reveal_type(await client.log(Transaction, [sale]))
"""

REVEALED = {
    'sales.filter(col("amount") > 0)': "PipelineNode",
    'sales.assign(double=col("amount") * 2)': "PipelineNode",
    'sales.join(refunds, on="user")': "PipelineNode",
    'sales.groupby("user")': "PipelineNode",
    'sales.groupby("user").aggregate(total=Sum(of="amount"))': "PipelineNode",
    "sale.amount": "float",
    "sale.note": "str | None",
    "refund.amount": "float",
    "refund.note": "str | None",
    "Refund.amount": "Field[float]",
    "Refund.note": "Field[str | None]",
    "Shopper.total": "float",
    "Shopper.afford": "def (cls: Shopper, ts: datetime, total: float, price: float) -> bool",
    "Owner().user": "str",
    'Count(window="1d")': "Count",
    'Sum("amount", "7d", where=col("amount") > 0, default=None)': "Sum",
    'LastK(of="amount", window="7d", k=3, dedup=True)': "LastK",
    'col("a")': "Expr",
    "lit(1)": "Expr",
    '1 + col("a") / 2': "Expr",
    'col("a") > 1': "Predicate",
    'col("a") == "x"': "Predicate",
    '(col("a") > 1) & ~col("b").is_null()': "Predicate",
    'col("a").fill_null(0)': "Expr",
    'col("a").json_extract("b.c")': "Expr",
    "client": "ThymeClient",
    'client.query(Shopper, "u", {"price": 2.0})': "ThymeResult",
    'client.query_batch(Shopper, ["u"])': "ThymeResult",
    'client.lookup(Spend, "u")': "ThymeResult",
    "client.log(Transaction, [sale])": "int",
    "client.status()": "dict[str, Any]",
    'await client.query(Shopper, "u", timestamp="2026-01-01")': "ThymeResult",
    "await client.log(Transaction, [sale])": "int",
    "result.to_polars()": "DataFrame",
    "result.to_dict()": "list[dict[str, Any]]",
    'result["total"]': "list[Any]",
    "len(result)": "int",
    "result.query_run_id": "str",
}

MISTAKES = """
Transaction(user="u", amount="much", note=None, at=datetime(2026, 1, 1))  #! arg-type
Transaction(user="u", amount=1.0)  #! call-arg
Transaction(user="u", amount=1.0, note=None, at=datetime(2026, 1, 1), tip=1.0)  #! call-arg
Refund(user="u", amount="much", note=None, at=datetime(2026, 1, 1))  #! arg-type
sale.amount = "much"  #! assignment
sale.amout  #! attr-defined
Refund.amout  #! attr-defined
Refund(user="u", amount=Refund.amount, note=None, at=datetime(2026, 1, 1))  #! arg-type
(col("a") > 1) & 3  #! operator
dataset(indexed=3, version="1")  #! arg-type
lit([1])  #! arg-type
Sum(of="amount", window=["1d"])  #! arg-type
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.getbasetemp() / "mypy"


@pytest.fixture(scope="module")
def checked(tmp_path_factory, cache):
    return check(tmp_path_factory.mktemp("typed"), PROGRAM + MISTAKES, cache)


@pytest.mark.parametrize("expression", REVEALED)
def test_an_editor_infers_the_type_of(expression, checked):
    assert checked.revealed[expression] == REVEALED[expression]


def test_every_mistake_of_a_program_is_flagged_and_nothing_else(checked):
    expected = [(line, line.partition("#! ")[2]) for line in MISTAKES.strip().splitlines()]
    assert sorted(checked.errors) == sorted(expected), checked.report


def test_the_marker_of_typed_packages_is_in_the_wheel(tmp_path):
    root = Path(__file__).parents[3]
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "featurelib/py.typed" in names
    assert "Typing :: Typed" in distribution("thyme-on-ray").metadata.get_all("Classifier")
