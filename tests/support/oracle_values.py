"""What an aggregate and an expression mean, in lists and loops; see :mod:`tests.support.oracle`."""

from __future__ import annotations

import json
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

MAX_INT = 2**63


def folded(aggregate: Any, found: list[tuple[Any, int]], kind: str, end: int) -> Any:
    """An aggregate over ``(value, time)`` pairs in total order.

    ``kind`` is the column's type, ``end`` the last instant of the window.
    """
    keeps_nulls = aggregate.type in ("last", "last_k", "first", "first_k") and not aggregate.dropnull
    found = found if keeps_nulls else [(value, time) for value, time in found if value is not None]
    if not found and aggregate.default is not None:
        return aggregate.default.value
    return _FOLDS[aggregate.type](aggregate, found, kind, end)


def _sum(values: list[Any], kind: str) -> Any:
    return math.fsum(values) if kind == "float" else sum(values, Decimal(0) if kind.startswith("decimal") else 0)


def _variance(values: list[Any]) -> float:
    floats = [float(value) for value in values]
    mean = math.fsum(floats) / len(floats) if floats else 0.0
    return math.fsum((value - mean) ** 2 for value in floats) / len(floats) if floats else 0.0


def _extreme(pick: Callable[[list[Any]], Any], values: list[Any], kind: str) -> Any:
    return pick(values) if values else (0 if kind in ("int", "float") or kind.startswith("decimal") else None)


def _distinct(values: Iterable[Any]) -> list[Any]:
    return list({(type(value), value): value for value in values}.values())


def _some(aggregate: Any, newest_first: list[Any]) -> list[Any]:
    return (_distinct(newest_first) if aggregate.dedup else newest_first)[: aggregate.k]


def _rank(values: list[Any]) -> float:
    if len(values) < 2:
        return 0.5 if values else 0.0
    below = [value for value in values if value < values[-1]]
    return len(below) / len(values)


def _quantile(values: list[Any], share: float) -> float:
    """Between the two nearest ranks, by straight line."""
    if not values:
        return 0.0
    ordered: list[float] = sorted(map(float, values))
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _percentile(aggregate: Any, values: list[Any]) -> Any:
    return _rank(values) if aggregate.pct is None else _quantile(values, aggregate.pct / 100)


def _top(values: list[Any], k: int) -> list[Any]:
    counted = Counter((type(value).__name__, value) for value in values)
    return [value for (_, value), _ in sorted(counted.items(), key=lambda item: (-item[1], item[0][1]))][:k]


def _decayed(found: list[Any], half_life: int, end: int) -> float:
    return math.fsum(float(value) * 2.0 ** (-(end - time) / half_life) for value, time in found)


def _of(fold: Callable[[Any, list[Any], str], Any]) -> Callable[[Any, list[Any], str, int], Any]:
    return lambda aggregate, found, kind, _: fold(aggregate, [value for value, _ in found], kind)


_FOLDS: dict[str, Callable[[Any, list[Any], str, int], Any]] = {
    "count": _of(lambda _, values, __: len(values)),
    "sum": _of(lambda _, values, kind: _sum(values, kind)),
    "avg": _of(lambda _, values, kind: float(_sum(values, kind) / len(values)) if values else 0.0),
    "min": _of(lambda _, values, kind: _extreme(min, values, kind)),
    "max": _of(lambda _, values, kind: _extreme(max, values, kind)),
    "variance": _of(lambda _, values, __: _variance(values)),
    "stddev": _of(lambda _, values, __: math.sqrt(_variance(values))),
    "last": _of(lambda _, values, __: values[-1] if values else None),
    "first": _of(lambda _, values, __: values[0] if values else None),
    "last_k": _of(lambda aggregate, values, _: _some(aggregate, values[::-1])),
    "first_k": _of(lambda aggregate, values, _: _some(aggregate, values)),
    "distinct": _of(lambda _, values, __: sorted(_distinct(values))),
    "approx_distinct": _of(lambda _, values, __: len(_distinct(values))),
    "top_k": _of(lambda aggregate, values, _: _top(values, aggregate.k)),
    "quantile": _of(lambda aggregate, values, _: _quantile(values, aggregate.q)),
    "approx_percentile": _of(lambda aggregate, values, _: _percentile(aggregate, values)),
    "exp_decay_sum": lambda aggregate, found, _, end: _decayed(found, aggregate.half_life_us, end),
}


def result_of(aggregate: Any, of: str) -> str:
    """The type of an aggregate's value over a column of type ``of``."""
    kind = aggregate.type
    if kind in ("count", "approx_distinct"):
        return "int"
    if kind in ("last_k", "first_k", "distinct", "top_k"):
        return f"list[{of}]"
    return of if kind in ("sum", "min", "max", "last", "first") else "float"


_COMPARE = {name: getattr(operator, name) for name in ("eq", "ne", "lt", "le", "gt", "ge")}
_ARITH = {name: getattr(operator, name) for name in ("add", "sub", "mul")}


def evaluate(node: Any, row: Mapping[str, Any]) -> Any:  # noqa: PLR0911  # a table
    """An expression over one row. Null rules: arithmetic with null is null, a comparison with null is false."""
    match node.node:
        case "column":
            return row[node.name]
        case "literal":
            return node.value
        case "arith":
            left, right = evaluate(node.left, row), evaluate(node.right, row)
            if left is None or right is None or (node.op == "div" and right == 0):
                return None
            return float(left) / right if node.op == "div" else _ARITH[node.op](left, right)
        case "compare":
            left, right = evaluate(node.left, row), evaluate(node.right, row)
            return left is not None and right is not None and _COMPARE[node.op](left, right)
        case "logic":
            operands = [evaluate(operand, row) is True for operand in node.operands]
            return not operands[0] if node.op == "not" else (all if node.op == "and" else any)(operands)
        case "is_null":
            return evaluate(node.operand, row) is None
        case "fill_null":
            value = evaluate(node.operand, row)
            return node.default if value is None else value
        case "json_extract":
            return _at_path(evaluate(node.operand, row), node.path.split("."))
    raise NotImplementedError(node.node)


def _at_path(text: str | None, path: list[str]) -> str | None:
    found = json.loads(text) if text is not None else None
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found if found is None or isinstance(found, str) else json.dumps(found, separators=(",", ":"))


def fits(value: Any) -> Any:
    """What a column can hold: no infinity, no integer beyond 64 bits."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    too_large = isinstance(value, int) and not -MAX_INT <= value < MAX_INT
    return None if too_large else value


def type_of(node: Any, types: Mapping[str, str]) -> str:
    """The type of an expression."""
    match node.node:
        case "column":
            return types[node.name]
        case "literal":
            return type(node.value).__name__
        case "fill_null":
            return type_of(node.operand, types)
        case "json_extract":
            return "str"
        case "arith":
            sides = {type_of(node.left, types), type_of(node.right, types)}
            return "int" if sides == {"int"} and node.op != "div" else "float"
    return "bool"
