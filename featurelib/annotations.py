"""Python annotations as column types: ``T``, ``Optional[T]``, ``T | None``, ``list[T]``, ``Field[...]`` of these.

``Decimal`` names a type only together with its digits after the point, which ``field(scale=)`` gives.
"""

from __future__ import annotations

import sys
import types
import typing
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, NamedTuple, Union

from featurelib.declarations import Reference
from featurelib.types import SCALARS

_NAMES: dict[object, str] = {int: "int", float: "float", str: "str", bool: "bool", datetime: "datetime"}

MAX_SCALE = 18
"""The most digits after the point of a ``Decimal`` column."""

SUPPORTED = f"Supported are {', '.join(SCALARS)}, Decimal with scale=, Optional[...] and list[...] of these."


class ColumnType(NamedTuple):
    """A column type by its stored name."""

    name: str
    optional: bool


def annotations_of(cls: type) -> dict[str, Any]:
    """The class's annotations, inherited ones first, class variables left out; text is evaluated where it can be."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__[:-1]):
        namespace = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
        for name, annotation in vars(base).get("__annotations__", {}).items():
            value = _evaluated(annotation, namespace)
            if typing.get_origin(value) is not ClassVar and value is not ClassVar:
                found[name] = value
    return found


def column_type(annotation: Any, scale: int | None = None) -> ColumnType | None:
    """The column type an annotation names; ``None`` when it names none.

    Args:
        annotation: what the user wrote.
        scale: digits after the point, for ``Decimal``.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(origin, type) and issubclass(origin, Reference):
        return column_type(arguments[0], scale)
    if origin is Union or origin is types.UnionType:
        return _optional(arguments, scale)
    if origin is list and len(arguments) == 1:
        element = _scalar(arguments[0], scale)
        return ColumnType(f"list[{element}]", optional=False) if element else None
    name = _scalar(annotation, scale)
    return ColumnType(name, optional=False) if name else None


def is_decimal(annotation: Any) -> bool:
    """Whether the annotation names ``Decimal``, alone or as ``Optional``, ``list`` or ``Field`` of it."""
    return annotation is Decimal or any(is_decimal(argument) for argument in typing.get_args(annotation))


def describe_annotation(annotation: Any) -> str:
    """The annotation as a user would write it."""
    return annotation.__name__ if type(annotation) is type else str(annotation)


def _scalar(annotation: Any, scale: int | None) -> str | None:
    if annotation is Decimal:
        fits = type(scale) is int and scale in range(MAX_SCALE + 1)  # True and 2.0 are equal to numbers of the range
        return f"decimal({scale})" if fits else None
    return _NAMES.get(annotation) if isinstance(annotation, type) else None


def _optional(arguments: tuple[Any, ...], scale: int | None) -> ColumnType | None:
    kept = [argument for argument in arguments if argument is not types.NoneType]
    inner = column_type(kept[0], scale) if len(kept) == 1 else None
    return ColumnType(inner.name, optional=True) if inner else None


def _evaluated(annotation: Any, namespace: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(namespace))  # noqa: S307  # the user's own annotation, in the user's own module
    except (NameError, SyntaxError, TypeError, AttributeError):
        return annotation  # left as text, it names no column type and is reported with its line
