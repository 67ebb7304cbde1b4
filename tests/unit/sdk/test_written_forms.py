"""Windows, aggregates and expressions as users write them, rightly and wrongly, outside any module."""

import pytest

from featurelib import (
    ApproxPercentile,
    Continuous,
    Count,
    Hopping,
    Lifetime,
    Session,
    Sum,
    Tumbling,
    coalesce,
    col,
    dataset,
    field,
    when,
)
from featurelib.compile import compile_module
from featurelib.errors import DefinitionError
from tests.support.modules import EVENT, HEAD, write_module

REFUSED = {
    "session of no gap": (Session, "Session() needs gap=, a duration such as '30m'"),
    "tumbling of no size": (Tumbling, "Tumbling() needs size=, a duration"),
    "hopping of nothing": (Hopping, "Hopping() needs size= and stride=, a duration"),
    "hopping of no stride": (lambda: Hopping("1h"), "Hopping() needs stride=, a duration"),
    "continuous of no size": (Continuous, "Continuous() needs size=, a duration"),
    "session with a size": (lambda: Session(size="1h"), "Session() takes no size=; it takes gap="),
    "tumbling with a look-back": (lambda: Tumbling("1h", lookback="1d"), "takes no lookback=; it takes size=, offset="),
    "gap of another unit": (lambda: Session("5min"), "Session(gap=…): '5min' is not a duration"),
    "gap as a number": (lambda: Session(30), "Session(gap=…): 30 is not a duration"),
    "window of a class": (lambda: Sum("a", Tumbling), "write Tumbling(…)"),
    "window of zero": (lambda: Sum("a", 0), "0 is not a duration"),
    "misspelt keyword": (
        lambda: Sum("a", windows="1d"),
        "Sum() takes no windows=; it takes of, window, where, default",
    ),
    "sum of an expression": (lambda: Sum(col("a") * 2), "Sum(of=…) takes a column's name; found an expression"),
    "sum of a number": (lambda: Sum(5), "Sum(of=…) takes a column's name or reference; found int 5"),
    "where as text": (lambda: Sum("a", where="b > 1"), 'Sum(where=…) takes a condition such as col("paid"); found str'),
    "where that waits": (lambda: Count(where=when(col("a"))), "Count(where=…) takes a condition"),
    "where not called": (lambda: Count(where=col("a").is_null), "found a method"),
    "default of no value": (lambda: Sum("a", default=object()), "default= takes a value of the column's type, or None"),
    "column of a number": (lambda: col(5), "col() takes a column's name or reference; found int 5"),
    "comparison with None": (lambda: col("a") == None, "ask for it with .is_null()"),  # noqa: E711  # the mistake
    "condition that is none": (lambda: when(True).then(1), "when() takes a condition"),
    "later condition that is none": (lambda: when(col("a")).then(1).when("b"), "when() takes a condition"),
    "letters of a text": (lambda: col("a").is_in("abc"), "is_in() takes a list of constants; found str 'abc'"),
    "one of a number": (lambda: col("a").is_in(5), "is_in() takes a list of constants; found int 5"),
    "a list as a value": (lambda: coalesce(col("a"), [1]), "list [1] cannot stand in an expression"),
}


@dataset()
class Order:
    shop: str = field(key=True)
    amount: float = field()
    at: str = field(timestamp=True)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_written_wrongly_is_refused_with_what_was_expected(name):
    write, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        write()
    assert message in str(caught.value)
    assert "pydantic" not in str(caught.value)
    assert " at 0x" not in str(caught.value)


def test_a_column_may_be_named_by_reference_in_an_expression():
    assert (col(Order.amount) > 1).node == (col("amount") > 1).node


def test_every_expression_may_stand_in_where():
    chosen = when(col("paid")).then(col("big")).otherwise(value=False)
    assert Count(where=col("paid")).where == col("paid").node
    assert Count(where=chosen).where == chosen.node


def test_no_window_and_an_empty_one_are_the_lifetime():
    assert Sum("a").window == Sum("a", "").window == Sum("a", None).window == Lifetime()


def test_a_percentile_takes_the_precision_third():
    assert ApproxPercentile("a", "1d", 50) == ApproxPercentile(of="a", window="1d", precision=50)


def test_quoted_annotations_name_the_types_they_quote(tmp_path):
    text = HEAD + EVENT.replace("amount: float", 'amount: "float"').replace("Optional[str]", '"Optional[str]"')
    commit = compile_module(write_module(tmp_path, text))
    assert {column.name: (column.type, column.optional) for column in commit.datasets[0].fields} == {
        "shop": ("str", False),
        "amount": ("float", False),
        "pieces": ("int", False),
        "paid": ("bool", False),
        "note": ("str", True),
        "at": ("datetime", False),
    }


def test_a_failed_import_is_told_without_the_folder_of_the_package(tmp_path):
    with pytest.raises(DefinitionError) as caught:
        compile_module(write_module(tmp_path, "from polars import nothing_of_this_name\n"))
    (problem,) = caught.value.problems
    assert problem.message.endswith("cannot import name 'nothing_of_this_name' from 'polars'")


def test_a_module_that_still_imports_the_stock_sdk_is_told_what_to_import(tmp_path):
    with pytest.raises(DefinitionError) as caught:
        compile_module(write_module(tmp_path, "from thyme import dataset\n"))
    assert caught.value.problems[0].hint == "Write `from featurelib import …`: the names are the same."
