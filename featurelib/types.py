"""Column types: what a field may hold, and how Python annotations name them.

A type is stored as its Python name: ``int float str bool datetime``, ``decimal(<digits after the point>)``, or
``list[<scalar>]``. A feature, and what a caller sends for one, may also be a map, ``dict[str, <type>]``, a struct,
``struct[<member>: <type>, …]``, or a list of any of these. Every part of a value may be null.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, StringConstraints

ScalarName = Literal["int", "float", "str", "bool", "datetime"]
SCALARS: tuple[ScalarName, ...] = ("int", "float", "str", "bool", "datetime")

_SCALAR = r"(?:int|float|str|bool|datetime|decimal\((?:0|[1-9]|1[0-8])\))"
TypeName = Annotated[str, StringConstraints(pattern=rf"^(?:{_SCALAR}|list\[{_SCALAR}\])$")]
"""A scalar name, a decimal with its scale, or ``list[<scalar>]``."""

DEEPEST = 8
"""Most lists, maps and structs within each other."""
_MOST_MEMBERS = 300
_LONGEST = 8_192
_MEMBER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_LEAF = re.compile(_SCALAR)


def feature_type(text: str) -> str:
    """The stored spelling of the type of a feature.

    Raises:
        ValueError: it is none; says what is wrong and what a type may be.
    """
    if len(text) > _LONGEST:
        message = f"a type of {len(text)} characters; at most {_LONGEST} are taken. Give the struct fewer members."
        raise ValueError(message)
    return _spelled(text, 0)


FeatureTypeName = Annotated[str, AfterValidator(feature_type)]
"""As :data:`TypeName`, and ``dict[str, <type>]``, ``struct[<member>: <type>, …]``, and lists of these."""

Scalar = bool | int | float | str
"""A constant a definition may hold. ``bool`` comes first: in Python it is an ``int`` too."""

Value = Any
"""A feature value at run time: ``int float str bool Decimal None``, an ``Instant`` for datetimes, or a list of them.

A map is a ``dict``, a struct one of its members in their order.
"""

INT_MIN, INT_MAX = -(2**63), 2**63 - 1


def element_type(name: str) -> str | None:
    """``"list[int]"`` → ``"int"``; ``None`` for a scalar."""
    return name[5:-1] if name.startswith("list[") else None


def value_type(name: str) -> str | None:
    """``"dict[str, int]"`` → ``"int"``; ``None`` for anything but a map."""
    return name[10:-1] if name.startswith("dict[") else None


@lru_cache(maxsize=1_024)
def members_of(name: str) -> tuple[tuple[str, str], ...] | None:
    """``"struct[a: int, b: str]"`` → ``(("a", "int"), ("b", "str"))``; ``None`` for anything but a struct."""
    if not name.startswith("struct["):
        return None
    parts = (part.partition(":") for part in _parts(name[7:-1]))
    return tuple((member.strip(), kind.strip()) for member, _, kind in parts)


def is_nested(name: str) -> bool:
    """Whether values of the type are, or hold, maps, structs, or lists of lists."""
    element = element_type(name)
    return name.startswith(("dict[", "struct[")) if element is None else not _LEAF.fullmatch(element)


def decimal_scale(name: str) -> int | None:
    """``"decimal(2)"`` → 2; ``None`` for every other type."""
    return int(name[8:-1]) if name.startswith("decimal(") else None


def _spelled(text: str, depth: int) -> str:
    text = text.strip()
    if _LEAF.fullmatch(text):
        return text
    kind, bracket, inner = text.partition("[")
    if not bracket or not inner.endswith("]") or kind not in _SPELLED:
        message = f"{text[:60]!r} is no type of a feature; expected a scalar, list[…], dict[str, …] or struct[name: …]"
        raise ValueError(message)
    if depth == DEEPEST:
        message = f"lists, maps and structs within each other more than {DEEPEST} levels deep; flatten the type"
        raise ValueError(message)
    return _SPELLED[kind](inner[:-1], depth + 1)


def _list(inner: str, depth: int) -> str:
    return f"list[{_spelled(inner, depth)}]"


def _map(inner: str, depth: int) -> str:
    key, _, value = inner.partition(",")
    if key.strip() != "str":
        message = f"the keys of a map are str, found {key.strip()[:60]!r}; write dict[str, …]"
        raise ValueError(message)
    return f"dict[str, {_spelled(value, depth)}]"


def _struct(inner: str, depth: int) -> str:
    members = [part.partition(":") for part in _parts(inner)]
    names = [name.strip() for name, _, _ in members]
    wrong = next((name for name in names if not _MEMBER.fullmatch(name)), None)
    if wrong is not None:
        message = f"a struct has named members; found {wrong[:60]!r}"
        raise ValueError(message)
    if len(set(names)) < len(names) or len(names) > _MOST_MEMBERS:
        message = f"a struct has up to {_MOST_MEMBERS} members, each of a name of its own; found {len(names)}"
        raise ValueError(message)
    kinds = (_spelled(kind, depth) for _, _, kind in members)
    return f"struct[{', '.join(f'{name}: {kind}' for name, kind in zip(names, kinds, strict=True))}]"


_SPELLED = {"list": _list, "dict": _map, "struct": _struct}


def _parts(text: str) -> Iterator[str]:
    """What stands between the commas that are in no brackets."""
    depth = start = 0
    for place, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth == 0:
            yield text[start:place]
            start = place + 1
    yield text[start:]
