"""What the rules need to know of column types."""

from __future__ import annotations

import sys
from collections.abc import Callable
from decimal import Context, Decimal, InvalidOperation

from featurelib.clock import parse_instant
from featurelib.definitions import FieldDef
from featurelib.errors import InvalidTimestamp
from featurelib.types import INT_MAX, INT_MIN, Scalar, decimal_scale

KEY_TYPES = frozenset({"str", "int", "bool", "datetime"})
"""Types a key may have: values whose text names one entity."""

_DECIMALS = Context(prec=38)


def holds(type_name: str, value: Scalar) -> bool:
    """Whether a constant is a value of the type; no constant is a list."""
    scale = decimal_scale(type_name)
    if scale is not None:
        return _is_decimal(value, scale)
    return type_name in _HOLDS and _HOLDS[type_name](value)


def shown_type(column: FieldDef) -> str:
    """The type as a user would write it."""
    return f"Optional[{column.type}]" if column.optional else column.type


def _is_decimal(value: Scalar, scale: int) -> bool:
    """Whether the number is exact with ``scale`` digits after the point, 38 in all."""
    if isinstance(value, bool):
        return False
    try:
        number = Decimal(str(value))
        return number.is_finite() and number == number.quantize(Decimal(1).scaleb(-scale), context=_DECIMALS)
    except InvalidOperation:
        return False


def _is_instant(value: Scalar) -> bool:
    try:
        parse_instant(value)
    except InvalidTimestamp:
        return False
    return isinstance(value, str)


_HOLDS: dict[str, Callable[[Scalar], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool) and INT_MIN <= value <= INT_MAX,
    "float": lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    ),
    "str": lambda value: isinstance(value, str),
    "datetime": _is_instant,
}
