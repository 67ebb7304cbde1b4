"""Column types: what a field may hold, and how Python annotations name them.

A type is stored as its Python name: ``int float str bool datetime``, ``decimal(<digits after the point>)``, or
``list[<scalar>]``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import StringConstraints

ScalarName = Literal["int", "float", "str", "bool", "datetime"]
SCALARS: tuple[ScalarName, ...] = ("int", "float", "str", "bool", "datetime")

_SCALAR = r"(?:int|float|str|bool|datetime|decimal\((?:0|[1-9]|1[0-8])\))"
TypeName = Annotated[str, StringConstraints(pattern=rf"^(?:{_SCALAR}|list\[{_SCALAR}\])$")]
"""A scalar name, a decimal with its scale, or ``list[<scalar>]``."""

Scalar = bool | int | float | str
"""A constant a definition may hold. ``bool`` comes first: in Python it is an ``int`` too."""

Value = Any
"""A feature value at run time: ``int float str bool Decimal None``, an ``Instant`` for datetimes, or a list of them."""

INT_MIN, INT_MAX = -(2**63), 2**63 - 1


def element_type(name: str) -> str | None:
    """``"list[int]"`` → ``"int"``; ``None`` for a scalar."""
    return name[5:-1] if name.startswith("list[") else None


def decimal_scale(name: str) -> int | None:
    """``"decimal(2)"`` → 2; ``None`` for every other type."""
    return int(name[8:-1]) if name.startswith("decimal(") else None
