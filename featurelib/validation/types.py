"""What the rules need to know of column types."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation

from featurelib.definitions import FieldDef
from featurelib.types import Scalar, decimal_scale

KEY_TYPES = frozenset({"str", "int", "bool", "datetime"})
"""Types a key may have: values whose text names one entity."""


def holds(type_name: str, value: Scalar) -> bool:
    """Whether a constant is a value of the type; no constant is a list."""
    if decimal_scale(type_name) is not None:
        return _is_decimal(value)
    return type_name in _HOLDS and _HOLDS[type_name](value)


def shown_type(column: FieldDef) -> str:
    """The type as a user would write it."""
    return f"Optional[{column.type}]" if column.optional else column.type


def _is_decimal(value: Scalar) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return Decimal(str(value)).is_finite()
    except InvalidOperation:
        return False


_HOLDS: dict[str, Callable[[Scalar], bool]] = {
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "datetime": lambda value: isinstance(value, str),
}
