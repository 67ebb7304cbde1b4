"""Python annotations as column types: ``T``, ``Optional[T]``, ``T | None``, ``list[T]``, ``Field[...]`` of these."""

from __future__ import annotations

import sys
import types
import typing
from datetime import datetime
from typing import Any, ClassVar, NamedTuple, Union

from featurelib.declarations import Reference
from featurelib.types import SCALARS

_NAMES: dict[object, str] = {int: "int", float: "float", str: "str", bool: "bool", datetime: "datetime"}

SUPPORTED = (
    f"Supported are {', '.join(SCALARS)}, Optional[...] of these, and list[...] of these for the result of LastK."
)


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


def column_type(annotation: Any) -> ColumnType | None:
    """The column type an annotation names; ``None`` when it names none."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(origin, type) and issubclass(origin, Reference):
        return column_type(arguments[0])
    if origin is Union or origin is types.UnionType:
        return _optional(arguments)
    if origin is list and len(arguments) == 1 and arguments[0] in _NAMES:
        return ColumnType(f"list[{_NAMES[arguments[0]]}]", optional=False)
    name = _NAMES.get(annotation) if isinstance(annotation, type) else None
    return ColumnType(name, optional=False) if name else None


def describe_annotation(annotation: Any) -> str:
    """The annotation as a user would write it."""
    return annotation.__name__ if type(annotation) is type else str(annotation)


def _optional(arguments: tuple[Any, ...]) -> ColumnType | None:
    kept = [argument for argument in arguments if argument is not types.NoneType]
    inner = column_type(kept[0]) if len(kept) == 1 else None
    return ColumnType(inner.name, optional=True) if inner else None


def _evaluated(annotation: Any, namespace: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, dict(namespace))  # noqa: S307  # the user's own annotation, in the user's own module
    except (NameError, SyntaxError, TypeError, AttributeError):
        return annotation  # left as text, it names no column type and is reported with its line
