"""Typed values out of JSON texts: what stands under a path of object keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from featurelib.types import INT_MAX, INT_MIN, Value

_DECODE = msgspec.json.Decoder().decode


def values_at(texts: Iterable[str | None], path: Sequence[str], type_name: str) -> list[Value | None]:
    """The value under the path in each text; null where the text is no JSON, or holds nothing of the type there.

    Args:
        texts: JSON documents.
        path: object keys from the top down; an array is not looked into.
        type_name: ``str``, ``int`` (also a float without fraction), ``float`` (also an int) or ``bool``.
    """
    read = _READERS[type_name]
    return [None if text is None else read(_at(text, path)) for text in texts]


def _at(text: str, path: Sequence[str]) -> Any:
    try:
        value = _DECODE(text)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError):  # no JSON, or a number no float holds
        return None
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _int(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and INT_MIN <= value <= INT_MAX else None


def _float(value: Any) -> float | None:
    return float(value) if type(value) in {int, float} else None


_READERS: dict[str, Callable[[Any], Value | None]] = {
    "str": lambda value: value if isinstance(value, str) else None,
    "int": _int,
    "float": _float,
    "bool": lambda value: value if isinstance(value, bool) else None,
}
