"""Single values: lossless casts to a declared type, and the forms a value takes outside the engine.

Inside the engine a datetime is an ``Instant``; user code sees ``datetime``; the wire sees ISO text. A decimal is a
``Decimal`` to both; the wire sees its text with the digits of its type (``"0.60"``), which is exact where a JSON number
may not be. A map is a ``dict`` everywhere, a struct one of all its members in order; user code may also name the
members of a struct as attributes, unless a method of ``dict`` has the name, and give a dataclass for one.
Whole columns are coerced in :mod:`featurelib.engine.coerce`; this is the request's side of the same rule.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from featurelib.clock import format_instant, parse_instant, to_datetime
from featurelib.definitions import FieldDef
from featurelib.engine.coerce import coerce_value
from featurelib.errors import InvalidTimestamp, RecordError
from featurelib.types import INT_MAX, INT_MIN, Value, decimal_scale, element_type, members_of, value_type

Form = Callable[[Value], Any]
Cast = Callable[[Any], Value]
"""Gives the value in the engine's form, ``None`` for ``None``; ``ValueError`` says why a value does not fit."""


def caster(type_name: str) -> Cast:
    """The lossless cast to a column type: ``3.0`` is an ``int``, ``3.5`` is not, ``True`` is not a ``float``."""
    element, scale = element_type(type_name), decimal_scale(type_name)
    if element:
        return _list_caster(caster(element))
    value, members = value_type(type_name), members_of(type_name)
    if value:
        return _map_caster(caster(value))
    if members:
        return _struct_caster({name: caster(kind) for name, kind in members})
    return _SCALARS[type_name] if scale is None else _decimal_caster(scale)


def text_caster(type_name: str) -> Cast:
    """As :func:`caster`, and text is read as the type too: the form of ids in a URL."""
    cast = caster(type_name)
    read = _TEXT_READERS.get(type_name)
    if read is None:
        return cast
    reader = read
    return lambda value: cast(reader(value) if isinstance(value, str) else value)


def shown(type_name: str) -> Form | None:
    """How the wire shows a value of the type; ``None``: as it is."""
    return _form(type_name, _shown_scalar)


def handed(type_name: str) -> Form | None:
    """How user code sees a value of the type; ``None``: as it is. Maps and structs are copies."""
    return _form(type_name, _handed_scalar, Members)


def unspelled(type_name: str) -> Form | None:
    """How a value is read whose decimals travelled as their text; ``None``: it holds none."""
    return _form(type_name, lambda scalar: None if decimal_scale(scalar) is None else Decimal)


class Members(dict[str, Any]):
    """A struct as user code sees it: members by name, and as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            message = f"the struct has no member {name!r}; it has {', '.join(self)}"
            raise AttributeError(message) from None


def _form(type_name: str, of_scalar: Callable[[str], Form | None], struct: type[Members] | None = None) -> Form | None:
    """A form of values, made of those of their scalars; with ``struct`` maps and structs are made anew in any case."""
    members = members_of(type_name)
    if members:
        forms = [(name, _part_form(kind, of_scalar, struct)) for name, kind in members]
        return _struct_form(forms, struct or dict) if struct or any(form for _, form in forms) else None
    value, element = value_type(type_name), element_type(type_name)
    part = value or element
    inner = _part_form(part, of_scalar, struct) if part else of_scalar(type_name)
    if inner is None:
        return _copied_map if value and struct else None
    form = inner
    if value:
        return lambda given: None if given is None else {name: form(each) for name, each in given.items()}
    if element:
        return lambda given: None if given is None else [form(each) for each in given]
    return lambda given: None if given is None else form(given)


def _part_form(type_name: str, of_scalar: Callable[[str], Form | None], struct: type[Members] | None) -> Form | None:
    form = _form(type_name, of_scalar, struct)
    return _copied_list if form is None and struct and element_type(type_name) else form


def _copied_list(given: Value) -> Any:
    return None if given is None else list(given)


def _struct_form(forms: Sequence[tuple[str, Form | None]], struct: type[dict[str, Any]]) -> Form:
    def of_struct(given: Value) -> Any:
        if given is None:
            return None
        return struct({name: given.get(name) if form is None else form(given.get(name)) for name, form in forms})

    return of_struct


def _copied_map(given: Value) -> Any:
    return None if given is None else dict(given)


def _shown_scalar(type_name: str) -> Form | None:
    scale = decimal_scale(type_name)
    if scale is not None:
        digits = f".{scale}f"
        return lambda value: format(value, digits)
    return format_instant if type_name == "datetime" else None


def _handed_scalar(type_name: str) -> Form | None:
    return to_datetime if type_name == "datetime" else None


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


def _map_caster(cast: Cast) -> Cast:
    def to_map(value: Any) -> Value:
        if value is None:
            return None
        value = _entries(value)
        if not isinstance(value, Mapping):
            raise _unfit(value, "a map")
        return {_map_key(name): _at(name, cast, part) for name, part in value.items()}

    return to_map


def _entries(value: Any) -> Any:
    """A map that is a list of entries, as a Series has it; anything else as it is."""
    if isinstance(value, list) and all(isinstance(each, dict) and [*each] == ["key", "value"] for each in value):
        return {_map_key(each["key"]): each["value"] for each in value}
    return value


def _map_key(given: Any) -> str:
    if not isinstance(given, str):
        raise _unfit(given, "text, which the keys of a map are")
    return str(_to_str(given))


def _struct_caster(casts: Mapping[str, Cast]) -> Cast:
    def to_struct(value: Any) -> Value:
        if value is None:
            return None
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        if not isinstance(value, Mapping):
            raise _unfit(value, f"a struct of {', '.join(casts)}")
        strange = next((name for name in value if name not in casts), None)
        if strange is not None:
            message = f"{str(strange)[:60]!r} is no member of the struct; it has {', '.join(casts)}"
            raise ValueError(message)
        return {name: _at(name, cast, value.get(name)) for name, cast in casts.items()}

    return to_struct


def _at(name: str, cast: Cast, part: Any) -> Value:
    try:
        return cast(part)
    except ValueError as error:
        message = f"{name[:60]}: {error}"
        raise ValueError(message) from None


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
