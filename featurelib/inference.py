"""The column type an expression yields, or what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from featurelib.declarations import did_you_mean
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

UNKNOWN = "unknown"
"""The type of an expression with a mistake in it; it fits everything, so that one mistake is reported once."""

NUMBERS = frozenset({"int", "float", UNKNOWN})


class Columns(NamedTuple):
    """Columns in scope and the name to call them by in a message."""

    of: str
    types: Mapping[str, str]


class Mistake(NamedTuple):
    """What is wrong with an expression; ``about`` names the column that is missing, if one is."""

    code: str
    message: str
    hint: str = ""
    about: str = ""


def infer(node: BaseModel, columns: Columns, mistakes: list[Mistake]) -> str:
    """The type of an expression over the columns; every mistake in it is appended to ``mistakes``."""
    return _RULES[type(node)](node, columns, mistakes)


def fits(found: str, wanted: str) -> bool:
    """Whether a value of one type may stand where another is wanted: the same, or ``int`` for ``float``."""
    return found == wanted or UNKNOWN in {found, wanted} or (found, wanted) == ("int", "float")


def unknown_column(name: str, columns: Columns) -> Mistake:
    """The mistake of naming a column that is not there."""
    hint = did_you_mean(name, list(columns.types), columns.of)
    return Mistake("unknown_column", f"there is no column `{name}` in {columns.of}", hint, f"{columns.of}.{name}")


def _column(node: ColumnNode, columns: Columns, mistakes: list[Mistake]) -> str:
    if node.name not in columns.types:
        mistakes.append(unknown_column(node.name, columns))
        return UNKNOWN
    return columns.types[node.name]


def _literal(node: LiteralNode, columns: Columns, mistakes: list[Mistake]) -> str:  # noqa: ARG001  # one signature
    return type(node.value).__name__


def _arith(node: ArithNode, columns: Columns, mistakes: list[Mistake]) -> str:
    sides = infer(node.left, columns, mistakes), infer(node.right, columns, mistakes)
    for side in sides:
        if side not in NUMBERS:
            mistakes.append(Mistake("type_mismatch", f"arithmetic ({node.op}) on {side}", "It takes int and float."))
            return UNKNOWN
    if node.op == "div" or "float" in sides:
        return "float"
    return UNKNOWN if UNKNOWN in sides else "int"


def _compare(node: CompareNode, columns: Columns, mistakes: list[Mistake]) -> str:
    left, right = infer(node.left, columns, mistakes), infer(node.right, columns, mistakes)
    if left != right and not {left, right} <= NUMBERS and UNKNOWN not in {left, right}:
        mistakes.append(Mistake("type_mismatch", f"{left} is compared with {right}", "Compare values of one type."))
    elif left == "bool" and node.op not in {"eq", "ne"}:
        mistakes.append(Mistake("type_mismatch", f"bool has no order ({node.op})", "Use == or !=."))
    return "bool"


def _logic(node: LogicNode, columns: Columns, mistakes: list[Mistake]) -> str:
    for operand in node.operands:
        found = infer(operand, columns, mistakes)
        if found not in {"bool", UNKNOWN}:
            mistakes.append(
                Mistake("type_mismatch", f"`{node.op}` takes conditions; found {found}", "Compare it first.")
            )
    return "bool"


def _is_null(node: IsNullNode, columns: Columns, mistakes: list[Mistake]) -> str:
    infer(node.operand, columns, mistakes)
    return "bool"


def _fill_null(node: FillNullNode, columns: Columns, mistakes: list[Mistake]) -> str:
    found, default = infer(node.operand, columns, mistakes), type(node.default).__name__
    if {found, default} <= NUMBERS:
        return UNKNOWN if found == UNKNOWN else "float" if "float" in {found, default} else "int"
    if not fits(default, found):
        hint = f"Give a default of type {found}."
        mistakes.append(Mistake("type_mismatch", f"fill_null puts {default} into {found}", hint))
    return found


def _json_extract(node: JsonExtractNode, columns: Columns, mistakes: list[Mistake]) -> str:
    found = infer(node.operand, columns, mistakes)
    if found not in {"str", UNKNOWN}:
        mistakes.append(Mistake("type_mismatch", f"json_extract reads JSON text; found {found}", "Use a str column."))
    return "str"


_RULES: dict[type[BaseModel], Callable[[Any, Columns, list[Mistake]], str]] = {
    ColumnNode: _column,
    LiteralNode: _literal,
    ArithNode: _arith,
    CompareNode: _compare,
    LogicNode: _logic,
    IsNullNode: _is_null,
    FillNullNode: _fill_null,
    JsonExtractNode: _json_extract,
}
