"""Every function and operator of an expression against a naive evaluation in Python, over every mix of edge values."""

from __future__ import annotations

import itertools
import json
import math
import operator
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal
from typing import Any, NamedTuple

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurelib.engine.batch import condition, decimal_dtype, evaluate, expression
from featurelib.expr import FUNCTIONS, CallNode, Expr, coalesce, col, concat, greatest, least, lit, parts_of, when
from featurelib.inference import Columns, infer
from featurelib.types import INT_MAX, INT_MIN

EXACT = Context(prec=100)
LIMIT = Decimal(10) ** 20
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST, LAST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
DTYPES = {
    "int": pl.Int64,
    "float": pl.Float64,
    "str": pl.String,
    "bool": pl.Boolean,
    "datetime": pl.Datetime("us", "UTC"),
    "decimal(0)": decimal_dtype(0),
    "decimal(1)": decimal_dtype(1),
    "decimal(2)": decimal_dtype(2),
    "decimal(3)": decimal_dtype(3),
    "decimal(4)": decimal_dtype(4),
    "decimal(5)": decimal_dtype(5),
    "list[int]": pl.List(pl.Int64),
    "list[str]": pl.List(pl.String),
}


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


INTS = [None, 0, 1, -1, 2, -3, 7, 10**6, 2**53 + 1, 3037000500, INT_MAX, INT_MAX - 1, INT_MIN, INT_MIN + 1]
FLOATS = [None, 0.0, -0.0, 0.5, 1.5, -2.5, 2.0, 0.1, 1e16, 2.0**63, 1e308, -1e308, 5e-324, 123.456, -7.0]
DECIMALS = [None, "0", "0.10", "-0.05", "1.25", "-2.35", "7.00", "99999999999999999999.99", "-99999999999999999999.99"]
TEXTS = [
    None,
    "",
    "a",
    "A b",
    " pad\t",
    "héllo wörld",
    "日本",
    "🙂🙂x",
    "a.b.a",
    "3",
    "-4.0",
    "2.5",
    "1e3",
    "nan",
    "x" * 40,
]
INSTANTS = [
    None,
    *map(at, ("1970-01-01T00:00:00Z", "2026-04-01T10:30:15.000001Z", "1969-12-31T23:59:59.999999Z")),
    *map(at, ("2000-02-29T12:00:00Z", "1900-01-01T00:00:00Z", "2200-01-01T00:00:00Z", "2024-12-31T23:59:59Z")),
]
JSONS = [
    None, "", "{", "null", "[1]", '{"a": {"b": 3}}', '{"a": {"b": 3.0}}', '{"a": {"b": 3.5}}', '{"a": {"b": "3"}}',
    '{"a": {"b": true}}', '{"a": {"b": null}}', '{"a": [{"b": 1}]}', '{"a": {"b": 9223372036854775808}}',
    '{"a": {"b": {"c": 1}}}', '{"a.b": 1}', '{"a": {"b": "é"}} ', '{"a": {"b": false}}', '{"b": 1}',
]  # fmt: skip
COLUMNS: dict[str, tuple[str, list[Any]]] = {
    "i": ("int", INTS),
    "j": ("int", INTS),
    "f": ("float", FLOATS),
    "g": ("float", FLOATS),
    "d": ("decimal(2)", [None if v is None else Decimal(v).quantize(Decimal("0.01")) for v in DECIMALS]),
    "e": ("decimal(3)", [None, *map(Decimal, ("0.000", "1.125", "-3.500", "99999999999999999999.999"))]),
    "s": ("str", TEXTS),
    "t": ("str", TEXTS),
    "p": ("bool", [None, True, False]),
    "q": ("bool", [None, True, False]),
    "at": ("datetime", INSTANTS),
    "since": ("datetime", INSTANTS),
    "l": ("list[int]", [None, [], [1], [1, None, 3]]),
    "doc": ("str", JSONS),
}  # fmt: skip
TYPES = Columns("rows", {name: kind for name, (kind, _) in COLUMNS.items()})


class Case(NamedTuple):
    """An expression, the type it has, and what it is in Python for the values of its columns, none of them null."""

    written: Expr
    reads: str
    gives: str
    naive: Callable[..., Any]
    nulls: str = "null"
    """What a null makes of it: ``null``, ``false``, or ``own``: the naive form says."""


def micros(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(microseconds=1)


def instant(value: int) -> datetime:
    return EPOCH + timedelta(microseconds=value)


def scaled(digits: int, rounding: str = ROUND_HALF_EVEN) -> Callable[[Decimal], Decimal]:
    return lambda value: value.quantize(Decimal(1).scaleb(-digits), rounding=rounding, context=EXACT)


def rounded(value: float, digits: int) -> float:
    return round(value * 10.0**digits) / 10.0**digits if abs(value * 10.0**digits) < 2.0**52 else value


def spelled_int(text: str) -> int | None:
    number = spelled(text)
    return int(number) if number is not None and number == int(number) else None


def spelled(text: str) -> Decimal | None:
    return Decimal(text.strip()) if re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", text.strip()) else None


def exactly(value: Decimal | None, digits: int) -> Decimal | None:
    return value if value is not None and value == scaled(digits)(value) else None


def shown(value: datetime) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%S") + (f".{value.microsecond:06d}" if value.microsecond else "") + "Z"


def under(text: str, *path: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def of_type(kind: type) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = under(text, "a", "b")
        if kind is int:
            return int(value) if type(value) in {int, float} and value == int(value) else None
        if kind is float:
            return float(value) if type(value) in {int, float} else None
        return value if type(value) is kind else None

    return read


def as_text(text: str) -> str | None:
    value = under(text, "a", "b")
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"))


def exact(compute: Callable[..., Decimal]) -> Callable[..., Any]:
    return lambda *values: compute(*(Decimal(value) for value in values))


def choice(p: bool | None, q: bool | None, i: int | None) -> Any:
    return i if p else 7 if q else None


N, J, F, G, D, E, S, T, P, Q = (col(name) for name in ("i", "j", "f", "g", "d", "e", "s", "t", "p", "q"))
AT, SINCE, L, DOC = col("at"), col("since"), col("l"), col("doc")
NOON = at("2026-04-01T12:00:00Z")

CASES = {
    # Arithmetic.
    "int +": Case(N + J, "i j", "int", operator.add),
    "int -": Case(N - J, "i j", "int", operator.sub),
    "int *": Case(N * J, "i j", "int", operator.mul),
    "int + constant": Case(1 + N, "i", "int", lambda i: 1 + i),
    "int /": Case(N / J, "i j", "float", lambda i, j: float(i) / float(j)),
    "int //": Case(N // J, "i j", "int", operator.floordiv),
    "int %": Case(N % J, "i j", "int", operator.mod),
    "constant % int": Case(10 % N, "i", "int", lambda i: 10 % i),
    "int **": Case(N**2, "i", "float", lambda i: float(i) ** 2.0),
    "float +": Case(F + G, "f g", "float", operator.add),
    "float -": Case(1.5 - F, "f", "float", lambda f: 1.5 - f),
    "float *": Case(F * G, "f g", "float", operator.mul),
    "float /": Case(F / G, "f g", "float", operator.truediv),
    "float //": Case(F // G, "f g", "float", lambda f, g: float(math.floor(f / g))),
    "float %": Case(F % G, "f g", "float", lambda f, g: f - math.floor(f / g) * g),
    "float **": Case(F**G, "f g", "float", math.pow),
    "float + int": Case(F + N, "f i", "float", lambda f, i: f + float(i)),
    "decimal +": Case(D + E, "d e", "decimal(3)", EXACT.add),
    "decimal -": Case(D - E, "d e", "decimal(3)", EXACT.subtract),
    "decimal *": Case(D * E, "d e", "decimal(5)", EXACT.multiply),
    "decimal + int": Case(D + N, "d i", "decimal(2)", lambda d, i: EXACT.add(d, Decimal(i))),
    "decimal * int": Case(D * N, "d i", "decimal(2)", lambda d, i: EXACT.multiply(d, Decimal(i))),
    "decimal * decimal constant": Case(
        D * Decimal("1.19"), "d", "decimal(4)", lambda d: EXACT.multiply(d, Decimal("1.19"))
    ),
    "decimal + float": Case(D + F, "d f", "float", lambda d, f: float(d) + f),
    "decimal /": Case(D / E, "d e", "float", lambda d, e: float(d) / float(e)),
    "neg of int": Case(-N, "i", "int", operator.neg),
    "neg of float": Case(-F, "f", "float", operator.neg),
    "neg of decimal": Case(-D, "d", "decimal(2)", operator.neg),
    "a sum inside": Case((N + J) * 2 - N, "i j", "int", lambda i, j: within(within(within(i + j) * 2) - i)),
    # Numbers.
    "abs of int": Case(abs(N), "i", "int", abs),
    "abs of float": Case(F.abs(), "f", "float", abs),
    "abs of decimal": Case(D.abs(), "d", "decimal(2)", abs),
    "round of float": Case(F.round(), "f", "float", lambda f: rounded(f, 0)),
    "round of float to digits": Case(F.round(2), "f", "float", lambda f: rounded(f, 2)),
    "round of int": Case(N.round(1), "i", "int", lambda i: i),
    "round of decimal": Case(D.round(1), "d", "decimal(1)", scaled(1)),
    "round of decimal to more digits": Case(D.round(5), "d", "decimal(2)", lambda d: d),
    "round of decimal to none": Case(D.round(), "d", "decimal(0)", scaled(0)),
    "floor of float": Case(F.floor(), "f", "int", math.floor),
    "floor of decimal": Case(D.floor(), "d", "int", lambda d: int(scaled(0, ROUND_FLOOR)(d))),
    "floor of int": Case(N.floor(), "i", "int", lambda i: i),
    "ceil of float": Case(F.ceil(), "f", "int", math.ceil),
    "ceil of decimal": Case(D.ceil(), "d", "int", lambda d: int(scaled(0, ROUND_CEILING)(d))),
    "sqrt": Case(F.sqrt(), "f", "float", math.sqrt),
    "sqrt of decimal": Case(D.sqrt(), "d", "float", math.sqrt),
    "log": Case(F.log(), "f", "float", math.log),
    "log of int": Case(N.log(), "i", "float", math.log),
    "exp": Case(F.exp(), "f", "float", math.exp),
    "clip of int": Case(N.clip(-1, J), "i j", "int", lambda i, j: min(max(i, -1), j)),
    "clip of float between ints": Case(F.clip(-1, 2), "f", "float", lambda f: float(min(max(f, -1), 2))),
    "least": Case(least(N, J, 5), "i j", "int", lambda i, j: min(i, j, 5)),
    "least of int and float": Case(least(N, F), "i f", "float", lambda i, f: min(float(i), f)),
    "greatest": Case(greatest(D, E, 0), "d e", "decimal(3)", lambda d, e: max(d, e, Decimal(0))),
    "greatest text": Case(greatest(S, T), "s t", "str", max),
    "least instant": Case(least(AT, SINCE), "at since", "datetime", min),
    # Types.
    "to_int of float": Case(F.to_int(), "f", "int", int),
    "to_int of decimal": Case(D.to_int(), "d", "int", int),
    "to_int of text": Case(S.to_int(), "s", "int", spelled_int),
    "to_int of bool": Case(P.to_int(), "p", "int", int),
    "to_int of int": Case(N.to_int(), "i", "int", int),
    "to_float of text": Case(S.to_float(), "s", "float", lambda s: None if spelled(s) is None else float(s)),
    "to_float of int": Case(N.to_float(), "i", "float", float),
    "to_float of decimal": Case(D.to_float(), "d", "float", float),
    "to_float of bool": Case(P.to_float(), "p", "float", float),
    "to_decimal of text": Case(S.to_decimal(1), "s", "decimal(1)", lambda s: exactly(spelled(s), 1)),
    "to_decimal of float": Case(F.to_decimal(1), "f", "decimal(1)", lambda f: exactly(Decimal(repr(f)), 1)),
    "to_decimal of int": Case(N.to_decimal(4), "i", "decimal(4)", Decimal),
    "to_decimal of less digits": Case(D.to_decimal(1), "d", "decimal(1)", lambda d: exactly(d, 1)),
    "to_decimal of more digits": Case(D.to_decimal(4), "d", "decimal(4)", lambda d: d),
    "to_str of int": Case(N.to_str(), "i", "str", str),
    "to_str of bool": Case(P.to_str(), "p", "str", lambda p: str(p).lower()),
    "to_str of decimal": Case(D.to_str(), "d", "str", lambda d: f"{d:.2f}"),
    "to_str of float": Case(F.to_str(), "f", "str", repr),
    "to_str of instant": Case(AT.to_str(), "at", "str", shown),
    "to_str of text": Case(S.to_str(), "s", "str", str),
    "to_datetime of int": Case(
        (N * 1).to_datetime(), "i", "datetime", lambda i: instant(i * 10**6) if abs(i) < 2**33 else None
    ),
    "to_datetime of instant": Case(AT.to_datetime(), "at", "datetime", lambda x: x),
    "to_datetime of text": Case(
        S.to_datetime(), "s", "datetime", lambda s: None if spelled(s) is None else EPOCH + timedelta(seconds=float(s))
    ),
    # Comparison, logic, nulls.
    **{
        f"int {name}": Case(compare(N, J), "i j", "bool", compare, "false")
        for name, compare in vars(operator).items()
        if name in {"eq", "ne", "lt", "le", "gt", "ge"}
    },
    "int == float": Case(N == F, "i f", "bool", lambda i, f: float(i) == f, "false"),
    "decimal > constant": Case(lit(Decimal("1.249")) < D, "d", "bool", lambda d: d > Decimal("1.249"), "false"),
    "decimal == int": Case(D == N, "d i", "bool", operator.eq, "false"),
    "decimal <= decimal": Case(D <= E, "d e", "bool", operator.le, "false"),
    "decimal < float": Case(D < F, "d f", "bool", lambda d, f: float(d) < f, "false"),
    "text <": Case(S < T, "s t", "bool", lambda s, t: s.encode() < t.encode(), "false"),
    "bool ==": Case(P == Q, "p q", "bool", operator.eq, "false"),
    "instant >= constant": Case(AT >= NOON, "at", "bool", lambda x: x >= NOON, "false"),
    "and": Case(P & Q, "p q", "bool", lambda p, q: bool(p and q), "own"),
    "or": Case(P | Q, "p q", "bool", lambda p, q: bool(p or q), "own"),
    "not": Case(~P, "p", "bool", lambda p: not p, "own"),
    "not of a comparison": Case(~(N > 0), "i", "bool", lambda i: not (i is not None and i > 0), "own"),
    "is_null": Case(S.is_null(), "s", "bool", lambda s: s is None, "own"),
    "is_not_null": Case((N + J).is_not_null(), "i j", "bool", lambda i, j: added(i, j) is not None, "own"),
    "fill_null": Case(N.fill_null(7), "i", "int", lambda i: 7 if i is None else i, "own"),
    "fill_null with float": Case(N.fill_null(0.5), "i", "float", lambda i: float(0.5 if i is None else i), "own"),
    "fill_null of decimal": Case(D.fill_null(1), "d", "decimal(2)", lambda d: Decimal(1) if d is None else d, "own"),
    "fill_null with column": Case(N.fill_null(J), "i j", "int", lambda i, j: j if i is None else i, "own"),
    "fill_null of instant": Case(AT.fill_null(NOON), "at", "datetime", lambda x: NOON if x is None else x, "own"),
    "coalesce": Case(
        coalesce(N, F, 3), "i f", "float", lambda i, f: float(next(v for v in (i, f, 3) if v is not None)), "own"
    ),
    "when": Case(when(P).then(N).when(Q).then(7), "p q i", "int", choice, "own"),
    "when and otherwise": Case(
        when(N > 0).then("more").when(N == 0).then(S).otherwise("less"),
        "i s",
        "str",
        lambda i, s: "less" if i is None or i < 0 else s if i == 0 else "more",
        "own",
    ),
    "when of mixed numbers": Case(when(P).then(D).otherwise(1), "p d", "decimal(2)", lambda p, d: d if p else 1, "own"),
    "is_in": Case(N.is_in([1, 7, -1]), "i", "bool", lambda i: i in {1, 7, -1}, "false"),
    "is_in of float": Case(F.is_in([2, 0.5]), "f", "bool", lambda f: f in {2, 0.5}, "false"),
    "is_in of decimal": Case(
        D.is_in([Decimal("0.1"), 7]), "d", "bool", lambda d: d in {Decimal("0.1"), Decimal(7)}, "false"
    ),
    "is_in of instant": Case(AT.is_in([EPOCH, NOON]), "at", "bool", lambda x: x in {EPOCH, NOON}, "false"),
    "is_in of text": Case(S.is_in(["a", "日本"]), "s", "bool", lambda s: s in {"a", "日本"}, "false"),
    "between": Case(N.between(J, 10), "i j", "bool", lambda i, j: j <= i <= 10, "false"),
    "between instants": Case(AT.between(EPOCH, SINCE), "at since", "bool", lambda x, y: EPOCH <= x <= y, "false"),
    # Text.
    "lower": Case(S.lower(), "s", "str", str.lower),
    "upper": Case(S.upper(), "s", "str", str.upper),
    "strip": Case(S.strip(), "s", "str", str.strip),
    "length": Case(S.length(), "s", "int", len),
    "length of list": Case(L.length(), "l", "int", len),
    "contains": Case(S.contains("a."), "s", "bool", lambda s: "a." in s, "false"),
    "contains column": Case(S.contains(T), "s t", "bool", lambda s, t: t in s, "false"),
    "starts_with": Case(S.starts_with("hé"), "s", "bool", lambda s: s.startswith("hé"), "false"),
    "starts_with column": Case(S.starts_with(T), "s t", "bool", str.startswith, "false"),
    "ends_with": Case(S.ends_with("🙂x"), "s", "bool", lambda s: s.endswith("🙂x"), "false"),
    "ends_with column": Case(S.ends_with(T), "s t", "bool", str.endswith, "false"),
    "matches": Case(
        S.matches("[a-z]+|.*\\.[ab]"), "s", "bool", lambda s: bool(re.fullmatch("[a-z]+|.*\\.[ab]", s)), "false"
    ),
    "replace": Case(S.replace(".", "$0"), "s", "str", lambda s: s.replace(".", "$0")),
    "slice": Case(S.slice(1, 3), "s", "str", lambda s: s[1:4]),
    "slice to the end": Case(S.slice(2), "s", "str", lambda s: s[2:]),
    "slice from the end": Case(S.slice(-2), "s", "str", lambda s: s[-2:]),
    "concat": Case(concat(S, "-", T), "s t", "str", lambda s, t: f"{s}-{t}"),
    "split": Case(S.split("."), "s", "list[str]", lambda s: s.split(".")),
    # Time.
    **{
        name: Case(getattr(AT, name)(), "at", "int", operator.attrgetter(name))
        for name in ("year", "month", "day", "hour", "minute", "second")
    },
    "weekday": Case(AT.weekday(), "at", "int", datetime.isoweekday),
    "truncate": Case(AT.truncate("1d"), "at", "datetime", lambda x: aligned(x, 86_400)),
    "truncate to 7 hours": Case(
        AT.truncate("7h"), "at", "datetime", lambda x: aligned(x, 7 * 3_600)
    ),
    "seconds_since": Case(AT.seconds_since(SINCE), "at since", "float", lambda x, y: (micros(x) - micros(y)) / 1e6),
    "epoch_seconds": Case(AT.epoch_seconds(), "at", "float", lambda x: micros(x) / 1e6),
    "plus": Case(AT.plus("90m"), "at", "datetime", lambda x: bounded(micros(x) + 5400 * 10**6)),
    "minus": Case(AT.minus("1d"), "at", "datetime", lambda x: bounded(micros(x) - 86400 * 10**6)),
    # JSON.
    "json_extract": Case(DOC.json_extract("a.b"), "doc", "str", as_text),
    **{
        f"json_extract {kind.__name__}": Case(DOC.json_extract("a.b", kind), "doc", kind.__name__, of_type(kind))
        for kind in (str, int, float, bool)
    },
}  # fmt: skip


def within(value: int | None) -> Any:
    if value is None or not INT_MIN <= value <= INT_MAX:
        raise OverflowError
    return value


def added(i: int | None, j: int | None) -> int | None:
    return None if i is None or j is None or not INT_MIN <= i + j <= INT_MAX else i + j


def bounded(value: int) -> datetime | None:
    return instant(value) if FIRST <= instant(value) <= LAST else None


def aligned(value: datetime, seconds: int) -> datetime | None:
    return bounded(micros(value) // (seconds * 10**6) * seconds * 10**6)


def rows_of(case: Case) -> list[tuple[Any, ...]]:
    return list(itertools.product(*(COLUMNS[name][1] for name in case.reads.split())))


def frame_of(case: Case, rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    names = case.reads.split()
    values = zip(*rows, strict=True) if rows else [[] for _ in names]
    return pl.DataFrame(
        [pl.Series(name, list(each), dtype=DTYPES[COLUMNS[name][0]]) for name, each in zip(names, values, strict=True)]
    )


def naive_value(case: Case, row: tuple[Any, ...]) -> Any:
    """The value in plain Python: what raises, is not finite or leaves its type is null."""
    if case.nulls != "own" and None in row:
        return False if case.nulls == "false" else None
    try:
        value = case.naive(*row)
    except (ArithmeticError, ValueError):
        return None
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if case.gives == "int" and value is not None and not INT_MIN <= value <= INT_MAX:
        return None
    if case.gives.startswith("decimal") and value is not None and abs(value) >= LIMIT:
        return None
    return value


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float) and isinstance(found, float):
        return math.isclose(found, wanted, rel_tol=1e-12, abs_tol=1e-300)
    return found == wanted


every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@every_case
def test_every_row_has_the_value_that_plain_python_gives_it(case: Case):
    rows = rows_of(case)
    found = evaluate(case.written.node, frame_of(case, rows)).to_list()
    wrong = [
        (row, value, naive_value(case, row))
        for row, value in zip(rows, found, strict=True)
        if not same(value, naive_value(case, row))
    ]
    assert wrong == []


@every_case
def test_a_row_on_its_own_has_the_value_it_has_in_the_batch(case: Case):
    rows = rows_of(case)[::3]
    frame = frame_of(case, rows)
    together = evaluate(case.written.node, frame).to_list()
    alone = [evaluate(case.written.node, frame[place]).to_list()[0] for place in range(len(rows))]
    assert alone == together


@every_case
@pytest.mark.parametrize("rows", ["all", "none", "null"])
def test_the_column_is_of_the_type_that_is_inferred(case: Case, rows: str):
    mistakes: list[Any] = []
    assert infer(case.written.node, TYPES, mistakes) == case.gives
    assert mistakes == []
    taken = {"all": rows_of(case), "none": [], "null": [(None,) * len(case.reads.split())] * 2}[rows]
    assert evaluate(case.written.node, frame_of(case, taken)).dtype == DTYPES[case.gives]


@every_case
def test_a_stored_expression_means_the_same(case: Case):
    node = case.written.node
    assert type(node).model_validate_json(node.model_dump_json()) == node


@every_case
def test_a_query_gives_the_same_column(case: Case):
    frame = frame_of(case, rows_of(case)[:50])
    assert frame.select(expression(case.written.node).alias("x"))["x"].equals(evaluate(case.written.node, frame))


def test_every_function_of_the_table_is_tried():
    tried = {
        part.function for case in CASES.values() for part in parts_of(case.written.node) if isinstance(part, CallNode)
    }
    assert tried == set(FUNCTIONS)


def test_a_condition_that_is_null_does_not_hold():
    frame = pl.DataFrame({"p": [True, None, False]})
    assert condition(col("p").node, frame).to_list() == [True, False, False]
    assert frame.filter(condition(col("p").node, frame)).height == 1


def test_a_constant_fills_its_column():
    frame = pl.DataFrame({"i": [1, 2]})
    assert evaluate((lit(2) + 3).node, frame).to_list() == [5, 5]
    assert frame.select(expression((lit(2) + 3).node).alias("x"))["x"].to_list() == [5]
    assert evaluate(lit(Decimal("1.50")).node, frame).to_list() == [Decimal("1.50")] * 2


def test_columns_of_narrower_types_are_widened():
    frame = pl.DataFrame({"a": pl.Series([250, 255], dtype=pl.UInt8), "b": pl.Series([0.5, 1.5], dtype=pl.Float32)})
    assert evaluate((col("a") + 10).node, frame).to_list() == [260, 265]
    assert evaluate((col("b") * 2).node, frame).dtype == pl.Float64


def test_keys_of_a_path_are_never_read_as_indices_or_wildcards():
    frame = pl.DataFrame({"doc": ['{"a[0]": "key", "a": ["index"], "*": "star", "x y": "space"}']})
    for path, wanted in (("a[0]", "key"), ("*", "star"), ("x y", "space"), ("a.0", None)):
        assert evaluate(col("doc").json_extract(path).node, frame).to_list() == [wanted]
        assert evaluate(col("doc").json_extract(path, str).node, frame).to_list() == [wanted]


_OPERATORS = [operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, lambda a, b: least(a, -b)]
_EXPRESSIONS = st.recursive(
    st.sampled_from([N, J, lit(3), lit(-1)]),
    lambda inner: st.builds(lambda op, a, b: op(a, b), st.sampled_from(_OPERATORS), inner, inner),
    max_leaves=8,
)


@given(
    written=_EXPRESSIONS,
    rows=st.lists(st.tuples(*[st.sampled_from(INTS) | st.integers(INT_MIN, INT_MAX)] * 2), max_size=5),
)
def test_nested_arithmetic_is_exact_or_null(written: Expr, rows: list[tuple[int | None, int | None]]):
    frame = pl.DataFrame({"i": [r[0] for r in rows], "j": [r[1] for r in rows]}, schema={"i": pl.Int64, "j": pl.Int64})
    wanted = [exactly_computed(written.node, {"i": i, "j": j}) for i, j in rows]
    assert evaluate(written.node, frame).to_list() == wanted


def exactly_computed(node: Any, row: dict[str, int | None]) -> int | None:
    """The value of nested integer arithmetic: unbounded integers, cut to 64 bits after every step."""
    if node.node in {"column", "literal"}:
        return row[node.name] if node.node == "column" else node.value
    if node.node == "arith":
        values, compute = (node.left, node.right), getattr(operator, node.op)
    else:
        names = {"floor_div": operator.floordiv, "mod": operator.mod, "least": min, "neg": operator.neg}
        values, compute = node.args, names[node.function]
    found = [exactly_computed(value, row) for value in values]
    try:
        return None if None in found else within(compute(*found))
    except ArithmeticError:
        return None
