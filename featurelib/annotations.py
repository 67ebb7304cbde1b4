"""Python annotations as column types: ``T``, ``Optional[T]``, ``T | None``, ``list[T]``, ``Field[...]`` of these.

``Decimal`` names a type only together with its digits after the point, which ``field(scale=)`` gives. A feature may
also be a ``dict[str, T]``, a dataclass or a ``TypedDict``.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar, NamedTuple, Union

from featurelib.declarations import Reference
from featurelib.types import DEEPEST, SCALARS

_NAMES: dict[object, str] = {int: "int", float: "float", str: "str", bool: "bool", datetime: "datetime"}

MAX_SCALE = 18
"""The most digits after the point of a ``Decimal`` column."""

SUPPORTED = f"Supported are {', '.join(SCALARS)}, Decimal with scale=, Optional[...] and list[...] of these."
SUPPORTED_OF_FEATURES = (
    f"Supported are {', '.join(SCALARS)}, Decimal with scale=, dict[str, ...], dataclasses and TypedDicts of supported "
    f"types, Optional[...] and list[...] of these, {DEEPEST} levels deep at most."
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


def type_of_feature(annotation: Any, scale: int | None = None) -> ColumnType | None:
    """The type of a feature that an annotation names; ``None`` when it names none.

    A dataclass and a ``TypedDict`` are structs of their fields, in order.

    Args:
        annotation: what the user wrote.
        scale: digits after the point, for every ``Decimal`` in it.
    """
    return _of_feature(annotation, scale, 0)


def is_decimal(annotation: Any) -> bool:
    """Whether the annotation names ``Decimal``, alone or inside of what it is made of."""
    left, seen = [annotation], list[Any]()
    while left:
        each = left.pop()
        if each is Decimal:
            return True
        if each not in seen:  # a class may be a member of itself
            seen.append(each)
            left += [*typing.get_args(each), *(_members(each) or {}).values()]
    return False


def describe_annotation(annotation: Any) -> str:
    """The annotation as a user would write it."""
    return annotation.__name__ if type(annotation) is type else str(annotation)


def _scalar(annotation: Any, scale: int | None) -> str | None:
    if annotation is Decimal:
        fits = type(scale) is int and scale in range(MAX_SCALE + 1)  # True and 2.0 are equal to numbers of the range
        return f"decimal({scale})" if fits else None
    return _NAMES.get(annotation) if isinstance(annotation, type) else None


def _of_feature(annotation: Any, scale: int | None, depth: int) -> ColumnType | None:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(origin, type) and issubclass(origin, Reference):
        return _of_feature(arguments[0], scale, depth)
    if origin is Union or origin is types.UnionType:
        kept = [argument for argument in arguments if argument is not types.NoneType]
        inner = _of_feature(kept[0], scale, depth) if len(kept) == 1 else None
        return ColumnType(inner.name, optional=True) if inner else None
    plain = _scalar(annotation, scale)
    if plain is not None:
        return ColumnType(plain, optional=False)
    name = _container(annotation, scale, depth + 1) if depth < DEEPEST else None
    return ColumnType(name, optional=False) if name else None


def _container(annotation: Any, scale: int | None, depth: int) -> str | None:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is list and len(arguments) == 1:
        element = _of_feature(arguments[0], scale, depth)
        return f"list[{element.name}]" if element else None
    if origin in (dict, Mapping) and len(arguments) == 2 and arguments[0] is str:  # noqa: PLR2004  # key and value
        value = _of_feature(arguments[1], scale, depth)
        return f"dict[str, {value.name}]" if value else None
    members = _members(annotation)
    if not members:
        return None
    parts = []
    for name, kind in members.items():
        found = _of_feature(kind, scale, depth)
        if found is None:
            return None
        parts.append(f"{name}: {found.name}")
    return f"struct[{', '.join(parts)}]"


def _members(annotation: Any) -> dict[str, Any] | None:
    """The annotations of the fields of a dataclass or a ``TypedDict``; ``None`` for anything else."""
    is_class = isinstance(annotation, type)
    if not is_class or not (dataclasses.is_dataclass(annotation) or typing.is_typeddict(annotation)):
        return None
    try:
        hints = typing.get_type_hints(annotation)
    except (NameError, SyntaxError, TypeError, AttributeError):  # a name that is bound nowhere in its module
        return None
    if dataclasses.is_dataclass(annotation):
        return {each.name: hints[each.name] for each in dataclasses.fields(annotation)}
    return hints


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
