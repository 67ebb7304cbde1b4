"""The type an expression has, and every mistake in one with what to do about it."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import pytest

from featurelib.expr import (
    FUNCTIONS,
    CallNode,
    Expr,
    LiteralNode,
    LogicNode,
    coalesce,
    col,
    concat,
    greatest,
    least,
    lit,
    pattern_mistake,
    when,
)
from featurelib.inference import UNKNOWN, Columns, Mistake, common_type, fits, infer

COLUMNS = Columns(
    "Order",
    {
        "n": "int",
        "x": "float",
        "price": "decimal(2)",
        "fine": "decimal(17)",
        "note": "str",
        "paid": "bool",
        "at": "datetime",
        "tags": "list[str]",
    },
)
n, x, price, fine, note, paid, at, tags = (col(name) for name in COLUMNS.types)


def inferred(expression: Expr) -> tuple[str, list[Mistake]]:
    mistakes: list[Mistake] = []
    return infer(expression.node, COLUMNS, mistakes), mistakes


TYPES = [
    (price + 1, "decimal(2)"),
    (price * Decimal("1.195"), "decimal(5)"),
    (price * 0.5, "float"),
    (price / 2, "float"),
    (price.fill_null(0), "decimal(2)"),
    (price.fill_null(0.5), "float"),
    (price.fill_null(Decimal("0.001")), "decimal(3)"),
    (n // 2, "int"),
    (n**2, "float"),
    (least(n, price), "decimal(2)"),
    (greatest(n, x, price), "float"),
    (coalesce(note, "none"), "str"),
    (when(paid).then(n).otherwise(x), "float"),
    (when(paid).then(at), "datetime"),
    (at > datetime(2026, 4, 1), "bool"),  # noqa: DTZ001  # no zone is UTC
    (tags.length(), "int"),
    (price.round(0), "decimal(0)"),
    (col("missing").fill_null(0), UNKNOWN),
    (col("missing") > 3, "bool"),
]


@pytest.mark.parametrize(("expression", "wanted"), TYPES)
def test_an_expression_has_a_type(expression, wanted):
    found, mistakes = inferred(expression)
    assert found == wanted
    assert [mistake.code for mistake in mistakes] == (["unknown_column"] if "missing" in repr(expression) else [])


MISTAKES = {
    "unknown column": (col("prise") * 2, "unknown_column", "Did you mean `price`?"),
    "arithmetic on text": (note + "x", "type_mismatch", "concat"),
    "arithmetic on time": (at - 3600, "type_mismatch", "seconds_since"),
    "arithmetic on bool": (paid * 2, "type_mismatch", "It takes int, float and decimals."),
    "arithmetic on list": (tags + 1, "type_mismatch", "It takes"),
    "too many digits": (fine * price, "type_mismatch", "round"),
    "decimal //": (price // 2, "type_mismatch", "int and float"),
    "decimal %": (price % 2, "type_mismatch", "int and float"),
    "sqrt of text": (note.sqrt(), "type_mismatch", "numbers; found str"),
    "neg of bool": (-paid, "type_mismatch", "numbers; found bool"),
    "lower of number": (n.lower(), "type_mismatch", "text; found int"),
    "year of number": (n.year(), "type_mismatch", "a datetime; found int"),
    "length of number": (n.length(), "type_mismatch", "text or a list"),
    "seconds since a number": (at.seconds_since(n), "type_mismatch", "a datetime; found int"),
    "to_int of datetime": (at.to_int(), "type_mismatch", "a number, text or bool"),
    "to_str of list": (tags.to_str(), "type_mismatch", "not a list"),
    "compare text with number": (note > 3, "type_mismatch", "Compare values of one type."),
    "compare time with text": (at > "2026-04-01", "type_mismatch", "Compare values of one type."),
    "order of bools": (paid > True, "type_mismatch", "Use == or !=."),
    "compare lists": (tags == tags, "type_mismatch", "Lists are not compared."),  # noqa: PLR0124
    "and of a number": ((n > 1) & n, "type_mismatch", "Compare it first."),
    "fill text with number": (note.fill_null(0), "type_mismatch", "Give a default of type str."),
    "coalesce of mixed types": (coalesce(note, n), "type_mismatch", "one type"),
    "choice of mixed types": (when(paid).then(1).otherwise("no"), "type_mismatch", "int and str"),
    "a number as a condition": (when(n).then(1), "type_mismatch", "a condition; found int"),
    "least of mixed types": (least(note, n), "type_mismatch", "str and int"),
    "least of bools": (least(1, paid), "type_mismatch", "numbers, texts or datetimes"),
    "between mixed types": (n.between("a", "b"), "type_mismatch", "int and str"),
    "is_in of mixed types": (n.is_in(["a"]), "type_mismatch", "int and str"),
    "is_in of a column": (n.is_in([x]), "invalid_argument", "constants"),
    "is_in of nothing": (n.is_in([]), "argument_count", "x.is_in([…])"),
    "least of one": (least(n), "argument_count", "least(x, y, …)"),
    "concat of one": (concat("a"), "argument_count", "concat(x, y, …)"),
    "concat of a number": (concat(note, n), "type_mismatch", "text; found int"),
    "bad pattern": (note.matches("("), "invalid_argument", "not a regular expression"),
    "a pattern that looks ahead": (note.matches("(?=a)"), "invalid_argument", "not offered in a pattern"),
    "bad duration": (at.plus("5min"), "invalid_argument", "is not a duration"),
    "a negative duration": (at.minus("-1d"), "invalid_argument", "is not a duration"),
    "a duration of a thousand years": (at.truncate("365000d"), "invalid_argument", "a hundred years"),
    "bad path": (note.json_extract("a..b"), "invalid_argument", "is not a path"),
    "bad typed path": (note.json_extract("", int), "invalid_argument", "is not a path"),
    "a path with quotes": (note.json_extract("a'b"), "invalid_argument", "quotes"),
    "bad type": (note.json_extract("a", list), "invalid_argument", "one of str, int, float, bool"),
    "json of a number": (n.json_extract("a"), "type_mismatch", "Use a str column."),
    "typed json of a number": (n.json_extract("a", int), "type_mismatch", "text; found int"),
    "round to too many digits": (x.round(16), "invalid_argument", "an int from 0 to 15"),
    "round to half a digit": (x.round(0.5), "invalid_argument", "0.5 is not an int"),
    "a scale that is no int": (x.to_decimal(True), "invalid_argument", "an int from 0 to 18"),
    "a scale per row": (x.to_decimal(n), "invalid_argument", "the same for every row"),
    "replace nothing": (note.replace("", "x"), "invalid_argument", "at least one character"),
    "replace with a number": (note.replace("a", 1), "invalid_argument", "is not text"),
    "split by nothing": (note.split(""), "invalid_argument", "at least one character"),
    "a negative length": (note.slice(0, -1), "invalid_argument", "an int from 0"),
    "an infinite constant": (x * float("inf"), "invalid_argument", "not a finite number"),
    "a constant beyond 64 bits": (n + 2**63, "invalid_argument", "does not fit 64 bits"),
    "an infinite default": (x.fill_null(float("nan")), "invalid_argument", "not a finite number"),
    "an unknown function": (Expr(CallNode(function="lowr", args=(note.node,))), "unknown_function", "`lower`?"),
    "too many arguments": (Expr(CallNode(function="sqrt", args=(x.node, x.node))), "argument_count", "x.sqrt()"),
    "no arguments": (Expr(CallNode(function="when", args=())), "argument_count", "when(c)"),
    "not of two": (Expr(LogicNode(op="not", operands=(paid.node, paid.node))), "argument_count", "one operand"),
    "and of one": (Expr(LogicNode(op="and", operands=(paid.node,))), "argument_count", "at least two"),
}


@pytest.mark.parametrize(("expression", "code", "says"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_has_a_code_and_says_what_to_do(expression, code, says):
    (mistake,) = inferred(expression)[1]
    assert mistake.code == code
    assert says in f"{mistake.message} {mistake.hint}"


def test_a_mistake_inside_is_reported_once():
    _, mistakes = inferred(((note + 1) * 2).round(2).clip(0, 1) > price)
    assert [mistake.code for mistake in mistakes] == ["type_mismatch"]


def test_every_mistake_of_an_expression_is_reported():
    _, mistakes = inferred(when(col("pade")).then(note.sqrt()).otherwise(at.plus("1mo").epoch_seconds()))
    assert [mistake.code for mistake in mistakes] == ["unknown_column", "type_mismatch", "invalid_argument"]


@pytest.mark.parametrize("depth", [500, 100_000])
def test_an_expression_nested_too_deeply_is_refused(depth):
    node = n.node
    for _ in range(depth):
        node = CallNode.model_construct(node="call", function="neg", args=(node,))
    mistakes: list[Mistake] = []
    assert infer(node, COLUMNS, mistakes) == UNKNOWN
    assert [mistake.code for mistake in mistakes] == ["expression_too_large"]


def test_an_expression_of_too_many_parts_is_refused():
    _, mistakes = inferred(n.is_in(range(10_001)))
    assert [mistake.code for mistake in mistakes] == ["expression_too_large"]


@pytest.mark.parametrize(
    ("found", "wanted", "answer"),
    [
        ("int", "float", True),
        ("float", "int", False),
        ("int", "decimal(0)", True),
        ("decimal(0)", "decimal(2)", True),
        ("decimal(2)", "decimal(2)", True),
        ("decimal(3)", "decimal(2)", False),
        ("decimal(2)", "float", False),
        ("float", "decimal(2)", False),
        ("list[int]", "list[int]", True),
        (UNKNOWN, "list[int]", True),
    ],
)
def test_a_value_fits_where_nothing_of_it_is_lost(found, wanted, answer):
    assert fits(found, wanted) is answer


def test_numbers_have_a_common_type_and_other_types_only_themselves():
    assert common_type(["int", "decimal(2)", "decimal(4)"]) == "decimal(4)"
    assert common_type(["int", "decimal(2)", "float"]) == "float"
    assert common_type(["str", UNKNOWN]) == "str"
    assert common_type(["str", "int"]) is None
    assert common_type(["bool", "int"]) is None


@pytest.mark.parametrize(
    "pattern", [r"[A-Z]{2}\d+", r"^[^@]+@[^@]+\.[a-z]+$", "(?i:a)|(?P<x>b)", r"[.*+]+", r"a\\1", r"\+\+", r"[]a]"]
)
def test_a_pattern_that_every_library_knows_is_taken(pattern):
    assert pattern_mistake(pattern) is None


@pytest.mark.parametrize(
    "pattern",
    [
        *("(", "a{2,1}", "(?=a)", "(?!a)", "(?<=a)b", r"(a)\1", "(?P<x>a)(?P=x)"),
        *("a++", "(?>a)", r"a\Z", "(?x)a", "[[a]", "a{5000}"),
    ],
)
def test_a_pattern_that_is_none_or_looks_around_is_refused(pattern):
    assert pattern_mistake(pattern)


def test_a_constant_is_stored_as_what_it_is():
    assert lit(3).node == LiteralNode(value=3)
    assert lit(Decimal("1.50")).node == CallNode(
        function="to_decimal", args=(LiteralNode(value="1.50"), LiteralNode(value=2))
    )
    assert lit(Decimal("1e3")).node.args[0] == LiteralNode(value="1000")
    moment = datetime(2026, 4, 1, 10, 30)  # noqa: DTZ001  # no zone is UTC
    assert lit(moment).node == CallNode(function="to_datetime", args=(LiteralNode(value="2026-04-01T10:30:00Z"),))


@pytest.mark.parametrize("value", [None, [1], {"a": 1}, b"x", Decimal("NaN"), Decimal("Infinity")])
def test_anything_else_cannot_stand_in_an_expression(value):
    with pytest.raises(TypeError, match="cannot stand in an expression"):
        lit(value)


def test_is_null_asks_a_column_and_is_not_null_anything():
    with pytest.raises(TypeError, match="is_not_null"):
        (n + 1).is_null()
    assert (n + 1).is_not_null().node.operands[0].operand == (n + 1).node


def test_an_expression_has_no_truth_value():
    with pytest.raises(TypeError, match="no truth value"):
        bool(n > 1)


def test_json_without_a_type_is_stored_as_the_stock_sdk_stores_it():
    assert note.json_extract("a.b").node.model_dump() == {
        "node": "json_extract",
        "operand": {"node": "column", "name": "note"},
        "path": "a.b",
    }


def test_every_kind_of_argument_in_the_table_is_known():
    from featurelib.inference import _KINDS, _OPTIONS

    kinds = {kind.rstrip("?…") for function in FUNCTIONS.values() for kind in function.takes}
    assert kinds <= set(_KINDS) | set(_OPTIONS)
