"""Expressions over a batch: a stored expression node becomes a Polars expression.

One evaluator serves the stream, the backfill and the point-in-time read. Null rules are those of
:mod:`featurelib.expr`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import polars as pl
from pydantic import BaseModel

from featurelib.expr import (
    ArithNode,
    ColumnNode,
    CompareNode,
    FillNullNode,
    IsNullNode,
    JsonExtractNode,
    LiteralNode,
    LogicNode,
)

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
_ARITH: dict[str, Callable[[Any, Any], Any]] = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}


def expression(node: BaseModel) -> pl.Expr:
    """The Polars expression that computes a node."""
    return _BUILDERS[type(node)](node)


def _column(node: ColumnNode) -> pl.Expr:
    return pl.col(node.name)


def _literal(node: LiteralNode) -> pl.Expr:
    return pl.lit(node.value)


def _arith(node: ArithNode) -> pl.Expr:
    left, right = expression(node.left), expression(node.right)
    if node.op == "div":
        # Dividing by zero gives null: infinity has no place in a feature or on the wire.
        return pl.when(right != 0).then(left.cast(pl.Float64) / right)
    return _ARITH[node.op](left, right)  # type: ignore[no-any-return]


def _compare(node: CompareNode) -> pl.Expr:
    return _COMPARE[node.op](expression(node.left), expression(node.right)).fill_null(value=False)  # type: ignore[no-any-return]


def _logic(node: LogicNode) -> pl.Expr:
    operands = [expression(operand) for operand in node.operands]
    if node.op == "not":
        return ~operands[0]
    return reduce(operator.and_ if node.op == "and" else operator.or_, operands)


def _is_null(node: IsNullNode) -> pl.Expr:
    return expression(node.operand).is_null()


def _fill_null(node: FillNullNode) -> pl.Expr:
    return expression(node.operand).fill_null(pl.lit(node.default))


def _json_extract(node: JsonExtractNode) -> pl.Expr:
    path = "$." + node.path
    return expression(node.operand).str.json_path_match(pl.lit(path))


_BUILDERS: dict[type[BaseModel], Callable[[Any], pl.Expr]] = {
    ColumnNode: _column,
    LiteralNode: _literal,
    ArithNode: _arith,
    CompareNode: _compare,
    LogicNode: _logic,
    IsNullNode: _is_null,
    FillNullNode: _fill_null,
    JsonExtractNode: _json_extract,
}
