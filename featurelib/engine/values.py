"""Single values: lossless casts to a declared type, and the forms a value takes outside the engine.

Inside the engine a datetime is an ``Instant``; user code sees ``datetime``; the wire sees ISO text. A decimal is a
``Decimal`` to both; the wire sees its text with the digits of its type (``"0.60"``), which is exact where a JSON number
may not be.
Whole columns are coerced in :mod:`featurelib.engine.coerce`; this is the request's side of the same rule.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from datetime import datetime
from typing import Any

from featurelib.clock import format_instant, parse_instant, to_datetime
from featurelib.definitions import FieldDef
from featurelib.engine.coerce import coerce_value
from featurelib.errors import InvalidTimestamp, RecordError
from featurelib.types import INT_MAX, INT_MIN, Value, decimal_scale, element_type

Cast = Callable[[Any], Value]
"""Gives the value in the engine's form, ``None`` for ``None``; ``ValueError`` says why a value does not fit."""


def caster(type_name: str) -> Cast:
    """The lossless cast to a column type: ``3.0`` is an ``int``, ``3.5`` is not, ``True`` is not a ``float``."""
    element, scale = element_type(type_name), decimal_scale(type_name)
    if element:
        return _list_caster(caster(element))
    return _SCALARS[type_name] if scale is None else _decimal_caster(scale)


def text_caster(type_name: str) -> Cast:
    """As :func:`caster`, and text is read as the type too: the form of ids in a URL."""
    cast = caster(type_name)
    read = _TEXT_READERS.get(type_name)
    if read is None:
        return cast
    reader = read
    return lambda value: cast(reader(value) if isinstance(value, str) else value)


def shown(type_name: str) -> Callable[[Value], Value] | None:
    """How the wire shows a value of the type; ``None``: as it is."""
    scale = decimal_scale(element_type(type_name) or type_name)
    if scale is not None:
        digits = f".{scale}f"
        return _form(type_name, lambda value: format(value, digits))
    return _form(type_name, format_instant) if "datetime" in type_name else None


def handed(type_name: str) -> Callable[[Value], Any] | None:
    """How user code sees a value of the type; ``None``: as it is."""
    return _form(type_name, to_datetime) if "datetime" in type_name else None


def _form(type_name: str, form: Callable[[Any], Any]) -> Callable[[Value], Any]:
    if element_type(type_name) is None:
        return lambda value: None if value is None else form(value)
    return lambda value: None if value is None else [None if v is None else form(v) for v in value]


def _to_int(value: Any) -> Value:
    if type(value) is int or value is None:
        return _in_range(value)
    value = _plain(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return _in_range(int(value))
    if isinstance(value, float) and value.is_integer():
        return _in_range(int(value))
    raise _unfit(value, "an int")


def _in_range(value: int | None) -> Value:
    if value is None or INT_MIN <= value <= INT_MAX:
        return value
    message = f"{str(value)[:40]} does not fit in 64 bits"
    raise ValueError(message)


def _to_float(value: Any) -> Value:
    if value is None:
        return None
    if type(value) is not float:
        value = _plain(value)
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise _unfit(value, "a float")
        value = _float_of(value)
    # Neither NaN nor infinity has a place on the wire: both are "no number", which is null.
    return value if math.isfinite(value) else None


def _float_of(value: numbers.Real) -> float:
    try:
        return float(value)
    except OverflowError:
        raise _unfit(value, "a float") from None


def _to_str(value: Any) -> Value:
    if value is None or (type(value) is str and value.isascii()):
        return value
    value = _plain(value)
    if not isinstance(value, str):
        raise _unfit(value, "a str")
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which no answer can carry
        message = f"{value!r:.80} is text that no UTF-8 spells"
        raise ValueError(message) from None
    return str(value)


def _to_bool(value: Any) -> Value:
    if value is None or value is True or value is False:
        return value
    value = _plain(value)
    if isinstance(value, bool):
        return value
    raise _unfit(value, "a bool")


def _to_instant(value: Any) -> Value:
    if value is None:
        return None
    value = _plain(value)
    if not isinstance(value, datetime | str | int | float):
        raise _unfit(value, "a datetime")
    try:
        return parse_instant(value, "value")
    except InvalidTimestamp:
        raise _unfit(value, "a datetime") from None


def _decimal_caster(scale: int) -> Cast:
    # The same rule as for a record's cell: text, int, Decimal, or what a float's text says, without losing a digit.
    field = FieldDef(name="value", type=f"decimal({scale})", optional=True)

    def to_decimal(value: Any) -> Value:
        try:
            return coerce_value(_plain(value), field)
        except RecordError:
            raise _unfit(value, f"a decimal with {scale} digits after the point") from None

    return to_decimal


def _list_caster(cast: Cast) -> Cast:
    def to_list(value: Any) -> Value:
        if value is None:
            return None
        value = listed(value)
        if not isinstance(value, list | tuple):
            raise _unfit(value, "a list")
        return [cast(part) for part in value]

    return to_list


def _read_int(text: str) -> Any:
    # int() also takes "1_000" and surrounding blanks; an id must be spelled one way only.
    digits = text.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) <= 19:  # noqa: PLR2004  # digits of 2**63
        return int(text)
    raise _unfit(text, "an int")


def _read_float(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        raise _unfit(text, "a float") from None


def _read_bool(text: str) -> Any:
    if text in {"true", "false"}:
        return text == "true"
    raise _unfit(text, "a bool (true or false)")


def listed(value: Any) -> Any:
    """A NumPy array or a Series of Polars or pandas as a list; anything else as it is."""
    package = type(value).__module__.partition(".")[0]
    if package in {"numpy", "pandas"} and hasattr(value, "tolist"):
        return value.tolist()
    return value.to_list() if package == "polars" and hasattr(value, "to_list") else value


def _plain(value: Any) -> Any:
    # NumPy's scalars are what an extractor that computes with NumPy returns; .item() is their Python value.
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value


def _unfit(value: object, wanted: str) -> ValueError:
    return ValueError(f"{repr(value)[:80]} is not {wanted}")


_SCALARS: dict[str, Cast] = {
    "int": _to_int,
    "float": _to_float,
    "str": _to_str,
    "bool": _to_bool,
    "datetime": _to_instant,
}
_TEXT_READERS: dict[str, Callable[[str], Any]] = {"int": _read_int, "float": _read_float, "bool": _read_bool}
