"""Values as clients of Tecton's API send them, read as the request features and entity ids of our own.

Protobuf's JSON: an ``int64`` may be its digits, a ``float64`` the text of a number, a struct the list of its values in
order or an object. What comes out is JSON that a request to ``/features`` could hold, so that a read can be recorded
and replayed like any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from featurelib.engine.values import caster, shown
from featurelib.types import element_type, is_nested, members_of, value_type

_NOT_FINITE = frozenset({"NaN", "Infinity", "-Infinity"})


def read_sent(type_name: str, given: Any, *, ignore_extra: bool = False) -> Any:
    """A value of a type as our own requests spell it; null where it is null, or a number that is not finite.

    Args:
        type_name: of the request feature.
        given: JSON.
        ignore_extra: whether members that a struct has not are left out, not refused.

    Raises:
        ValueError: it is not of the type; says which part of it is not.
    """
    if given is None:
        return None
    if not is_nested(type_name) and element_type(type_name) is None:
        return read_scalar(type_name, given)
    element, value = element_type(type_name), value_type(type_name)
    if element is not None:
        if not isinstance(given, list):
            raise _unfit(given, "an array")
        return [_part(f"[{place}]", element, each, ignore_extra) for place, each in enumerate(given)]
    if value is not None:
        if not isinstance(given, dict):
            raise _unfit(given, "an object")
        return {name: _part(name, value, each, ignore_extra) for name, each in given.items()}
    members = members_of(type_name) or ()
    values = _by_name(given, [name for name, _ in members], ignore_extra=ignore_extra)
    return {name: _part(name, kind, values.get(name), ignore_extra) for name, kind in members}


def read_scalar(type_name: str, given: Any) -> Any:
    """As :func:`read_sent`, of a scalar type."""
    if isinstance(given, str):
        given = _number(type_name, given) if type_name in {"int", "float"} else given
    elif isinstance(given, list | dict) or type_name == "datetime":
        raise _unfit(given, type_name)
    value, form = caster(type_name)(given), shown(type_name)
    return value if form is None else form(value)


def _part(where: str, type_name: str, given: Any, ignore_extra: bool) -> Any:
    try:
        return read_sent(type_name, given, ignore_extra=ignore_extra)
    except ValueError as error:
        message = f"{where[:60]}: {error}"
        raise ValueError(message) from None


def _by_name(given: Any, names: list[str], *, ignore_extra: bool) -> Mapping[str, Any]:
    """The members of a struct by name, from either of its two forms."""
    if isinstance(given, list):
        if len(given) != len(names):
            message = f"{len(given)} values; the struct has {len(names)}: {', '.join(names)}"
            raise ValueError(message)
        return dict(zip(names, given, strict=True))
    if not isinstance(given, dict):
        raise _unfit(given, f"an array or an object of {', '.join(names)}")
    strange = next((name for name in given if name not in names), None)
    if strange is not None and not ignore_extra:
        message = f"unknown field {strange[:60]!r}, expected one of: [{' '.join(names)}]"
        raise ValueError(message)
    return given


def _number(type_name: str, text: str) -> int | float:
    if type_name == "float":
        number = float(text.replace("_", "?"))  # Python's own digits may be set apart with _, a caller's may not
        if text not in _NOT_FINITE and not math.isfinite(number):
            raise _unfit(text, "a number of 64 bits")
        return number
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 20):  # noqa: PLR2004  # digits of 2**63
        raise _unfit(text, "an int64")
    return int(text)


def _unfit(given: Any, wanted: str) -> ValueError:
    return ValueError(f"{given!r:.40} is not {wanted}")
