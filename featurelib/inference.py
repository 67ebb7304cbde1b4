"""The column type an expression yields, or what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel

from featurelib.clock import DAY, parse_duration
from featurelib.declarations import did_you_mean
from featurelib.expr import (
    FUNCTIONS,
    ArithNode,
    CallNode,
    ColumnNode,
    CompareNode,
    FillNullNode,
    Function,
    IsNullNode,
    JsonExtractNode,
    LiteralNode,
    LogicNode,
    children_of,
    columns_of,
    pattern_mistake,
)
from featurelib.types import INT_MAX, INT_MIN, Scalar, decimal_scale, element_type

UNKNOWN = "unknown"
"""The type of an expression with a mistake in it; it fits everything, so that one mistake is reported once."""

NUMBERS = frozenset({"int", "float", UNKNOWN})
"""Numbers but decimals, which have a scale: :func:`is_number` knows those too."""

_MOST_DIGITS, _MOST_SCALE = 15, 18
_LONGEST_SHIFT = 36_500 * DAY
# A body of JSON may nest 200 levels, of which a node takes two.
_DEEPEST, _LARGEST = 80, 10_000


class Columns(NamedTuple):
    """Columns in scope and the name to call them by in a message."""

    of: str
    types: Mapping[str, str]


class Mistake(NamedTuple):
    """What is wrong with an expression; ``about`` names the column that is missing, if one is."""

    code: str
    message: str
    hint: str = ""
    about: str = ""


def infer(node: BaseModel, columns: Columns, mistakes: list[Mistake]) -> str:
    """The type of an expression over the columns; every mistake in it is appended to ``mistakes``."""
    if _too_large(node):
        text = f"the expression is nested deeper than {_DEEPEST} or has more than {_LARGEST} parts"
        mistakes.append(Mistake("expression_too_large", text, "Split it over several assign(…)."))
        return UNKNOWN
    return _infer(node, columns, mistakes)


def fits(found: str, wanted: str) -> bool:
    """Whether a value of one type may stand where another is wanted without losing anything.

    The same type, ``int`` for ``float`` and for a decimal, or a decimal for one of at least its scale.
    """
    if found == wanted or UNKNOWN in {found, wanted} or (found, wanted) == ("int", "float"):
        return True
    scale, given = decimal_scale(wanted), 0 if found == "int" else decimal_scale(found)
    return scale is not None and given is not None and given <= scale


def is_number(type_name: str) -> bool:
    """Whether values of the type can be computed with."""
    return type_name in NUMBERS or decimal_scale(type_name) is not None


def common_type(found: Sequence[str]) -> str | None:
    """The type that values of all these types can be given, exactly but for numbers beside a float; ``None``: none."""
    kinds = set(found) - {UNKNOWN}
    if len(kinds) <= 1:
        return next(iter(kinds), UNKNOWN)
    if not all(map(is_number, kinds)):
        return None
    scales = [scale for kind in kinds if (scale := decimal_scale(kind)) is not None]
    return "float" if "float" in kinds else f"decimal({max(scales)})"


def kind_of_argument(kind: str) -> str:
    """What a kind of argument in :data:`~featurelib.expr.FUNCTIONS` takes, in words."""
    plain = kind.rstrip("?…")
    return _KINDS[plain][1] if plain in _KINDS else f"a constant: {plain}"


def unknown_column(name: str, columns: Columns) -> Mistake:
    """The mistake of naming a column that is not there."""
    hint = did_you_mean(name, list(columns.types), columns.of)
    return Mistake("unknown_column", f"there is no column `{name}` in {columns.of}", hint, f"{columns.of}.{name}")


def _too_large(node: BaseModel) -> bool:
    level, total = [node], 0
    for _ in range(_DEEPEST):
        total += len(level)
        level = [child for part in level for child in children_of(part)]
        if total > _LARGEST or not level:
            break
    return total > _LARGEST or bool(level)


def _infer(node: BaseModel, columns: Columns, mistakes: list[Mistake]) -> str:
    return _RULES[type(node)](node, columns, mistakes)


def _column(node: ColumnNode, columns: Columns, mistakes: list[Mistake]) -> str:
    if node.name not in columns.types:
        mistakes.append(unknown_column(node.name, columns))
        return UNKNOWN
    return columns.types[node.name]


def _literal(node: LiteralNode, columns: Columns, mistakes: list[Mistake]) -> str:  # noqa: ARG001  # one signature
    return _constant(node.value, mistakes)


def _constant(value: Scalar, mistakes: list[Mistake]) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        mistakes.append(Mistake("invalid_argument", f"the constant {value} is not a finite number"))
    elif isinstance(value, int) and not INT_MIN <= value <= INT_MAX:
        mistakes.append(Mistake("invalid_argument", f"the constant {value:.3e} does not fit 64 bits", "Write a float."))
    return type(value).__name__


def _arith(node: ArithNode, columns: Columns, mistakes: list[Mistake]) -> str:
    sides = _infer(node.left, columns, mistakes), _infer(node.right, columns, mistakes)
    for side in sides:
        if not is_number(side):
            mistakes.append(Mistake("type_mismatch", f"arithmetic ({node.op}) on {side}", _instead(side)))
            return UNKNOWN
    if node.op == "div" or "float" in sides:
        return "float"
    if UNKNOWN in sides:
        return UNKNOWN
    return _product(*sides, mistakes) if node.op == "mul" else common_type(sides) or UNKNOWN


def _instead(side: str) -> str:
    other = {"str": "concat(…) joins texts.", "datetime": 'Use x.plus("1h"), x.minus("1h") or x.seconds_since(y).'}
    return other.get(side, "It takes int, float and decimals.")


def _product(left: str, right: str, mistakes: list[Mistake]) -> str:
    scales = [scale for side in (left, right) if (scale := decimal_scale(side)) is not None]
    if sum(scales) <= _MOST_SCALE:
        return f"decimal({sum(scales)})" if scales else "int"
    text = f"{left} times {right} has {sum(scales)} digits after the point; a decimal holds {_MOST_SCALE}"
    mistakes.append(Mistake("type_mismatch", text, "Round one of them first: x.round(2)."))
    return UNKNOWN


def _compare(node: CompareNode, columns: Columns, mistakes: list[Mistake]) -> str:
    left, right = _infer(node.left, columns, mistakes), _infer(node.right, columns, mistakes)
    if common_type([left, right]) is None:
        mistakes.append(Mistake("type_mismatch", f"{left} is compared with {right}", "Compare values of one type."))
    elif left == "bool" and node.op not in {"eq", "ne"}:
        mistakes.append(Mistake("type_mismatch", f"bool has no order ({node.op})", "Use == or !=."))
    elif element_type(left):
        mistakes.append(Mistake("type_mismatch", f"{left} is compared ({node.op})", "Lists are not compared."))
    return "bool"


def _logic(node: LogicNode, columns: Columns, mistakes: list[Mistake]) -> str:
    for operand in node.operands:
        found = _infer(operand, columns, mistakes)
        if found not in {"bool", UNKNOWN}:
            mistakes.append(
                Mistake("type_mismatch", f"`{node.op}` takes conditions; found {found}", "Compare it first.")
            )
    wanted = "one operand" if node.op == "not" else "at least two operands"
    if (len(node.operands) != 1) if node.op == "not" else (len(node.operands) < 2):  # noqa: PLR2004  # and, or
        mistakes.append(Mistake("argument_count", f"`{node.op}` takes {wanted}; found {len(node.operands)}"))
    return "bool"


def _is_null(node: IsNullNode, columns: Columns, mistakes: list[Mistake]) -> str:
    _infer(node.operand, columns, mistakes)
    return "bool"


def _fill_null(node: FillNullNode, columns: Columns, mistakes: list[Mistake]) -> str:
    found, default = _infer(node.operand, columns, mistakes), _constant(node.default, mistakes)
    if found == UNKNOWN:
        return UNKNOWN
    common = common_type([found, default])
    if common is None:
        hint = f"Give a default of type {found}."
        mistakes.append(Mistake("type_mismatch", f"fill_null puts {default} into {found}", hint))
    return common or found


def _json_extract(node: JsonExtractNode, columns: Columns, mistakes: list[Mistake]) -> str:
    found = _infer(node.operand, columns, mistakes)
    if found not in {"str", UNKNOWN}:
        mistakes.append(Mistake("type_mismatch", f"json_extract reads JSON text; found {found}", "Use a str column."))
    wrong = _path(node.path)
    if wrong:
        mistakes.append(Mistake("invalid_argument", f"json_extract: {wrong}"))
    return "str"


def _call(node: CallNode, columns: Columns, mistakes: list[Mistake]) -> str:
    function = FUNCTIONS.get(node.function)
    if function is None:
        hint = did_you_mean(node.function, list(FUNCTIONS), "The platform")
        mistakes.append(Mistake("unknown_function", f"there is no function `{node.function}`", hint))
        return UNKNOWN
    kinds = _kinds(node, function)
    if kinds is None:
        text = f"{node.function} has {len(node.args)} arguments"
        mistakes.append(Mistake("argument_count", text, f"Write {function.written}."))
        return UNKNOWN
    before = len(mistakes)
    found = [
        _option(node.function, kind, each, mistakes)
        if kind in _OPTIONS
        else _argument(node.function, kind, each, columns, mistakes)
        for kind, each in zip(kinds, node.args, strict=True)
    ]
    values = [type_name for kind, type_name in zip(kinds, found, strict=True) if kind not in {*_OPTIONS, "condition"}]
    if node.function in _ALIKE and common_type(values) is None:
        text = f"{node.function} mixes {' and '.join(dict.fromkeys(values))}"
        mistakes.append(Mistake("type_mismatch", text, "Give it values of one type."))
    return UNKNOWN if len(mistakes) > before and function.gives not in _GIVEN else _result(function, values, node)


def _kinds(node: CallNode, function: Function) -> list[str] | None:
    """What each argument must be; ``None``: there are too few or too many."""
    count, takes = len(node.args), function.takes
    if node.function == "when":  # condition and value in turn; one value more at the end is that of `otherwise`
        return ["condition", "any"] * (count // 2) + ["any"] * (count % 2) if count > 1 else None
    repeated = takes[-1].removesuffix("…") if takes[-1].endswith("…") else None
    fewest = len([kind for kind in takes if not kind.endswith("?")])
    if count < fewest or (count > len(takes) and repeated is None):
        return None
    named = [kind.rstrip("?…") for kind in takes[:count]]
    return named + [repeated or ""] * (count - len(named))


def _argument(name: str, kind: str, node: BaseModel, columns: Columns, mistakes: list[Mistake]) -> str:
    found = _infer(node, columns, mistakes)
    if found != UNKNOWN and not _KINDS[kind][0](found):
        mistakes.append(Mistake("type_mismatch", f"{name} takes {kind_of_argument(kind)}; found {found}"))
        return UNKNOWN
    if kind == "constant" and columns_of(node):
        mistakes.append(Mistake("invalid_argument", f"{name}: the values are constants, the same for every row"))
    return found


def _option(name: str, kind: str, node: BaseModel, mistakes: list[Mistake]) -> str:
    if not isinstance(node, LiteralNode):
        mistakes.append(Mistake("invalid_argument", f"{name}: its {kind} is a constant, the same for every row"))
        return UNKNOWN
    wrong = _OPTIONS[kind](node.value)
    if wrong:
        mistakes.append(Mistake("invalid_argument", f"{name}: {wrong}"))
    return _constant(node.value, mistakes) if not wrong else UNKNOWN


def _result(function: Function, values: list[str], node: CallNode) -> str:
    options = [each.value for each in node.args if isinstance(each, LiteralNode)]
    match function.gives:
        case "same":
            return values[0]
        case "common":
            return common_type(values) or UNKNOWN
        case "rounded":
            scale = decimal_scale(values[0])
            return values[0] if scale is None else f"decimal({min(scale, int(options[-1]))})"
        case "scaled":
            return f"decimal({options[-1]})"
        case "typed":
            return str(options[-1])
    return function.gives


_GIVEN = frozenset({"bool", "int", "float", "str", "datetime", "list[str]"})
_ALIKE = frozenset({"clip", "least", "greatest", "when", "coalesce", "is_in", "between", "floor_div", "mod"})


def _is_scalar(kind: str) -> bool:
    return is_number(kind) or kind in {"str", "bool"}


_KINDS: dict[str, tuple[Callable[[str], bool], str]] = {
    "any": (lambda kind: element_type(kind) is None, "a value that is not a list"),
    "bool": (lambda kind: kind == "bool", "bool"),
    "condition": (lambda kind: kind == "bool", "a condition"),
    "constant": (lambda kind: element_type(kind) is None, "constants"),
    "datetime": (lambda kind: kind == "datetime", "a datetime"),
    "decimal": (lambda kind: is_number(kind) or kind == "str", "a number or text"),
    "instant": (lambda kind: kind in {"datetime", "str", "int", "float"}, "text, epoch seconds or a datetime"),
    "number": (is_number, "numbers"),
    "ordered": (lambda kind: is_number(kind) or kind in {"str", "datetime"}, "numbers, texts or datetimes"),
    "real": (lambda kind: kind in NUMBERS, "int and float"),
    "scalar": (_is_scalar, "a number, text or bool"),
    "scalar_or_time": (lambda kind: element_type(kind) is None, "a value that is not a list"),
    "sized": (lambda kind: kind == "str" or element_type(kind) is not None, "text or a list"),
    "str": (lambda kind: kind == "str", "text"),
}


def _whole(low: int, high: int) -> Callable[[Scalar], str | None]:
    def check(value: Scalar) -> str | None:
        fine = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if fine else f"{value!r:.40} is not an int from {low} to {high}"

    return check


def _duration(value: Scalar) -> str | None:
    try:
        length = parse_duration(str(value))
    except ValueError as error:
        return str(error)
    return None if length <= _LONGEST_SHIFT else f"{value!r} is longer than a hundred years"


def _path(value: Scalar) -> str | None:
    if not isinstance(value, str) or not all(value.split(".")):
        return f"{value!r:.80} is not a path; write object keys with dots between them, such as 'address.city'"
    return "a path cannot hold quotes or backslashes" if set(value) & set("'\"\\") else None


def _pattern(value: Scalar) -> str | None:
    return pattern_mistake(value) if isinstance(value, str) else f"{value!r:.40} is not text"


def _part(value: Scalar) -> str | None:
    return None if isinstance(value, str) and value else f"{value!r:.40} is not a text of at least one character"


def _text(value: Scalar) -> str | None:
    return None if isinstance(value, str) else f"{value!r:.40} is not text"


def _type(value: Scalar) -> str | None:
    return None if value in {"str", "int", "float", "bool"} else f"{value!r:.40} is not one of str, int, float, bool"


_OPTIONS: dict[str, Callable[[Scalar], str | None]] = {
    "count": _whole(0, 2**31 - 1),
    "digits": _whole(0, _MOST_DIGITS),
    "duration": _duration,
    "offset": _whole(-(2**31), 2**31 - 1),
    "part": _part,
    "path": _path,
    "pattern": _pattern,
    "scale": _whole(0, _MOST_SCALE),
    "text": _text,
    "type": _type,
}

_RULES: dict[type[BaseModel], Callable[[Any, Columns, list[Mistake]], str]] = {
    ColumnNode: _column,
    LiteralNode: _literal,
    ArithNode: _arith,
    CompareNode: _compare,
    LogicNode: _logic,
    IsNullNode: _is_null,
    FillNullNode: _fill_null,
    JsonExtractNode: _json_extract,
    CallNode: _call,
}
