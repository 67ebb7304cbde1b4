"""Expressions over columns.

Two layers: *nodes* are inert frozen values (the stored form); :class:`Expr` and :class:`Predicate`
wrap a node and overload Python's operators, so that ``col("amount") * 2 > 10`` builds one.

:data:`FUNCTIONS` is the one table of functions: what each takes and gives, and its null rule. Operators follow two
rules: arithmetic with a null is null; a comparison with a null is false, also ``!=``. What has no number (division
by zero, a float that is not finite, an integer beyond 64 bits) is null.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from featurelib.clock import format_instant, parse_instant
from featurelib.types import Scalar

Constant = Scalar | Decimal | datetime
"""What may stand for a value in an expression as it is."""


@runtime_checkable
class Named(Protocol):
    """A column's reference, such as ``Transaction.amount``."""

    name: str


Column = str | Named


class _Node(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ColumnNode(_Node):
    """The value of a column."""

    node: Literal["column"] = "column"
    name: str


class LiteralNode(_Node):
    """A constant."""

    node: Literal["literal"] = "literal"
    value: Scalar


class ArithNode(_Node):
    """``left op right``; ``div`` is true division."""

    node: Literal["arith"] = "arith"
    op: Literal["add", "sub", "mul", "div"]
    left: Node
    right: Node


class CompareNode(_Node):
    """``left op right``; false when either side is null."""

    node: Literal["compare"] = "compare"
    op: Literal["eq", "ne", "lt", "le", "gt", "ge"]
    left: Node
    right: Node


class LogicNode(_Node):
    """``and`` / ``or`` over two or more operands, ``not`` over one."""

    node: Literal["logic"] = "logic"
    op: Literal["and", "or", "not"]
    operands: tuple[Node, ...]


class IsNullNode(_Node):
    """True where the operand is missing or null."""

    node: Literal["is_null"] = "is_null"
    operand: Node


class FillNullNode(_Node):
    """The operand, or ``default`` where it is null."""

    node: Literal["fill_null"] = "fill_null"
    operand: Node
    default: Scalar


class JsonExtractNode(_Node):
    """The value at a dotted path of object keys; any miss is null."""

    node: Literal["json_extract"] = "json_extract"
    operand: Node
    path: str


class CallNode(_Node):
    """A function of :data:`FUNCTIONS` over its arguments; options such as a pattern are literals among them."""

    node: Literal["call"] = "call"
    function: str
    args: tuple[Node, ...]


Node = Annotated[
    ColumnNode
    | LiteralNode
    | ArithNode
    | CompareNode
    | LogicNode
    | IsNullNode
    | FillNullNode
    | JsonExtractNode
    | CallNode,
    Field(discriminator="node"),
]
for _class in (ArithNode, CompareNode, LogicNode, IsNullNode, FillNullNode, JsonExtractNode, CallNode):
    _class.model_rebuild()


class Function(NamedTuple):
    """A row of the table of functions.

    ``takes`` names the kind of each argument (:mod:`featurelib.inference` says what fits): ``?`` may be left out,
    ``…`` repeats. ``gives`` is a column type, or how it follows from the arguments: ``same`` as the first, their
    ``common`` type, ``rounded``, ``scaled`` or ``typed`` by an option. ``nulls`` is what a null argument makes of it.
    """

    written: str
    takes: tuple[str, ...]
    gives: str
    nulls: str
    about: str


_NULL, _FALSE = "null", "false"
FUNCTIONS: dict[str, Function] = {
    # Numbers.
    "neg": Function("-x", ("number",), "same", _NULL, "the number with the other sign"),
    "floor_div": Function("x // y", ("real", "real"), "common", _NULL, "the quotient rounded down; by zero: null"),
    "mod": Function(
        "x % y", ("real", "real"), "common", _NULL, "the rest of the division, with the sign of y; by zero: null"
    ),
    "pow": Function("x ** y", ("number", "number"), "float", _NULL, "x to the power of y"),
    "abs": Function("x.abs()", ("number",), "same", _NULL, "the size without the sign"),
    "round": Function(
        "x.round(digits=0)", ("number", "digits"), "rounded", _NULL, "to so many digits, halves to the even one"
    ),
    "floor": Function("x.floor()", ("number",), "int", _NULL, "the largest whole number not above"),
    "ceil": Function("x.ceil()", ("number",), "int", _NULL, "the smallest whole number not below"),
    "sqrt": Function("x.sqrt()", ("number",), "float", _NULL, "the square root; of less than zero: null"),
    "log": Function("x.log()", ("number",), "float", _NULL, "the natural logarithm; of zero or less: null"),
    "exp": Function("x.exp()", ("number",), "float", _NULL, "e to the power of x"),
    "clip": Function(
        "x.clip(low, high)", ("number", "number", "number"), "common", _NULL, "x moved to the nearer bound, if outside"
    ),
    "least": Function("least(x, y, …)", ("ordered", "ordered…"), "common", _NULL, "the smallest of all"),
    "greatest": Function("greatest(x, y, …)", ("ordered", "ordered…"), "common", _NULL, "the largest of all"),
    # Types.
    "to_int": Function(
        "x.to_int()", ("scalar",), "int", _NULL, "a fraction is cut off; text that spells no whole number: null"
    ),
    "to_float": Function("x.to_float()", ("scalar",), "float", _NULL, "text that spells no number: null"),
    "to_decimal": Function(
        "x.to_decimal(scale)", ("decimal", "scale"), "scaled", _NULL, "what it cannot hold exactly: null"
    ),
    "to_str": Function("x.to_str()", ("any",), "str", _NULL, "as JSON shows it, without quotes"),
    "to_datetime": Function(
        "x.to_datetime()", ("instant",), "datetime", _NULL, "ISO 8601 text or epoch seconds; other text: null"
    ),
    # Text.
    "lower": Function("x.lower()", ("str",), "str", _NULL, "in lower case"),
    "upper": Function("x.upper()", ("str",), "str", _NULL, "in upper case"),
    "strip": Function("x.strip()", ("str",), "str", _NULL, "without white space at both ends"),
    "length": Function("x.length()", ("sized",), "int", _NULL, "characters of a text, elements of a list"),
    "contains": Function("x.contains(y)", ("str", "str"), "bool", _FALSE, "whether the text y stands in x"),
    "starts_with": Function("x.starts_with(y)", ("str", "str"), "bool", _FALSE, "whether x begins with y"),
    "ends_with": Function("x.ends_with(y)", ("str", "str"), "bool", _FALSE, "whether x ends with y"),
    "matches": Function(
        "x.matches(pattern)", ("str", "pattern"), "bool", _FALSE, "whether the whole text fits the regular expression"
    ),
    "replace": Function(
        "x.replace(old, new)", ("str", "part", "text"), "str", _NULL, "every `old` replaced; no pattern"
    ),
    "slice": Function(
        "x.slice(offset, length=None)",
        ("str", "offset", "count?"),
        "str",
        _NULL,
        "`length` characters from `offset` on, which counts from the end if negative",
    ),
    "concat": Function("concat(x, y, …)", ("str", "str…"), "str", _NULL, "one text after the other"),
    "split": Function("x.split(by)", ("str", "part"), "list[str]", _NULL, "the parts between every `by`"),
    # Time.
    "year": Function("x.year()", ("datetime",), "int", _NULL, "the year, UTC like all below"),
    "month": Function("x.month()", ("datetime",), "int", _NULL, "1 to 12"),
    "day": Function("x.day()", ("datetime",), "int", _NULL, "day of the month, 1 to 31"),
    "hour": Function("x.hour()", ("datetime",), "int", _NULL, "0 to 23"),
    "minute": Function("x.minute()", ("datetime",), "int", _NULL, "0 to 59"),
    "second": Function("x.second()", ("datetime",), "int", _NULL, "0 to 59"),
    "weekday": Function("x.weekday()", ("datetime",), "int", _NULL, "Monday 1 to Sunday 7"),
    "truncate": Function(
        "x.truncate(every)", ("datetime", "duration"), "datetime", _NULL, "the start of its interval, from the epoch on"
    ),
    "seconds_since": Function("x.seconds_since(y)", ("datetime", "datetime"), "float", _NULL, "seconds from y to x"),
    "epoch_seconds": Function("x.epoch_seconds()", ("datetime",), "float", _NULL, "seconds since the Unix epoch"),
    "plus": Function("x.plus(duration)", ("datetime", "duration"), "datetime", _NULL, "later; after 2200: null"),
    "minus": Function("x.minus(duration)", ("datetime", "duration"), "datetime", _NULL, "earlier; before 1900: null"),
    # Choice.
    "when": Function(
        "when(c).then(x)….otherwise(y)",
        ("condition", "any…"),
        "common",
        "a null condition does not hold",
        "the value of the first condition that holds; none and no `otherwise`: null",
    ),
    "coalesce": Function("coalesce(x, y, …)", ("any", "any…"), "common", "passed over", "the first that is not null"),
    "is_in": Function("x.is_in([…])", ("scalar_or_time", "constant…"), "bool", _FALSE, "whether x is one of these"),
    "between": Function(
        "x.between(low, high)", ("ordered", "ordered", "ordered"), "bool", _FALSE, "low ≤ x ≤ high, both included"
    ),
    # JSON.
    "json_extract": Function(
        "x.json_extract(path, type)",
        ("str", "path", "type"),
        "typed",
        _NULL,
        "the value under a dotted path of object keys; a miss or another type: null",
    ),
}
"""Every function of a :class:`CallNode`. Its evaluation is in :mod:`featurelib.engine.batch`."""


def columns_of(node: BaseModel) -> set[str]:
    """Names of every column the expression reads."""
    return {part.name for part in parts_of(node) if isinstance(part, ColumnNode)}


def parts_of(node: BaseModel) -> Iterable[BaseModel]:
    """The node and every node below it."""
    waiting = [node]
    while waiting:
        part = waiting.pop()
        yield part
        waiting += children_of(part)


def children_of(node: BaseModel) -> list[BaseModel]:
    """The nodes right below it."""
    values = (getattr(node, name) for name in type(node).model_fields)
    parts = (part for value in values for part in (value if isinstance(value, tuple) else (value,)))
    return [part for part in parts if isinstance(part, BaseModel)]


_NOT_OFFERED = re.compile(r"\(\?(?!:|P<[A-Za-z_]\w*>|[ims]+[):])|[*+?}]\+|\\[0-9ZN]")
_SET = re.compile(r"\[\^?\]?(?:\\.|[^\]\\])*\]")
_LONGEST_REPEAT = 1_000
_REPEAT = re.compile(r"\{(\d+)?,?(\d+)?\}")


def pattern_mistake(pattern: str) -> str | None:
    r"""What is wrong with a regular expression; ``None``: nothing.

    Patterns run in time linear in the text, so there is no looking around and no reference to a group:

    >>> pattern_mistake(r"[A-Z]{2}\d+")
    >>> pattern_mistake(r"(a)\1")
    '`\\1` is not offered in a pattern'
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as "possible nested set": it will mean something else one day
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError, FutureWarning, DeprecationWarning) as error:
        return f"not a regular expression: {error}"
    plain = _SET.sub("_", pattern.replace(r"\\", "_"))
    found = _NOT_OFFERED.search(plain)
    if found:
        return f"`{found[0]}` is not offered in a pattern"
    repeats = [int(number) for pair in _REPEAT.findall(plain) for number in pair if number]
    return f"a repeat is longer than {_LONGEST_REPEAT}" if max(repeats, default=0) > _LONGEST_REPEAT else None


class _Operators:
    """Python's operators. Comparing two gives a :class:`Predicate`."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]  # == builds a predicate
    node: Any

    def __add__(self, other: Expr | Constant) -> Expr:
        return _arith("add", self, other)

    def __radd__(self, other: Constant) -> Expr:
        return _arith("add", other, self)

    def __sub__(self, other: Expr | Constant) -> Expr:
        return _arith("sub", self, other)

    def __rsub__(self, other: Constant) -> Expr:
        return _arith("sub", other, self)

    def __mul__(self, other: Expr | Constant) -> Expr:
        return _arith("mul", self, other)

    def __rmul__(self, other: Constant) -> Expr:
        return _arith("mul", other, self)

    def __truediv__(self, other: Expr | Constant) -> Expr:
        return _arith("div", self, other)

    def __rtruediv__(self, other: Constant) -> Expr:
        return _arith("div", other, self)

    def __floordiv__(self, other: Expr | Constant) -> Expr:
        return _call("floor_div", self, other)

    def __rfloordiv__(self, other: Constant) -> Expr:
        return _call("floor_div", other, self)

    def __mod__(self, other: Expr | Constant) -> Expr:
        return _call("mod", self, other)

    def __rmod__(self, other: Constant) -> Expr:
        return _call("mod", other, self)

    def __pow__(self, other: Expr | Constant) -> Expr:
        return _call("pow", self, other)

    def __rpow__(self, other: Constant) -> Expr:
        return _call("pow", other, self)

    def __neg__(self) -> Expr:
        return _call("neg", self)

    def __abs__(self) -> Expr:
        return _call("abs", self)

    def __eq__(self, other: object) -> Predicate:  # type: ignore[override]
        return _compare("eq", self, other)

    def __ne__(self, other: object) -> Predicate:  # type: ignore[override]
        return _compare("ne", self, other)

    def __lt__(self, other: Expr | Constant) -> Predicate:
        return _compare("lt", self, other)

    def __le__(self, other: Expr | Constant) -> Predicate:
        return _compare("le", self, other)

    def __gt__(self, other: Expr | Constant) -> Predicate:
        return _compare("gt", self, other)

    def __ge__(self, other: Expr | Constant) -> Predicate:
        return _compare("ge", self, other)

    def __and__(self, other: Expr) -> Predicate:
        return Predicate(LogicNode(op="and", operands=(self.node, _node(other))))

    def __or__(self, other: Expr) -> Predicate:
        return Predicate(LogicNode(op="or", operands=(self.node, _node(other))))

    def __invert__(self) -> Predicate:
        return Predicate(LogicNode(op="not", operands=(self.node,)))

    def __bool__(self) -> bool:
        message = "an expression has no truth value; combine predicates with &, | and ~ instead of and, or, not"
        raise TypeError(message)


class _Numbers(_Operators):
    """Functions of numbers, and from one type to another."""

    __slots__ = ()

    def abs(self) -> Expr:
        """The size without the sign."""
        return _call("abs", self)

    def round(self, digits: int = 0) -> Expr:
        """Rounded to so many digits after the point, halves to the even digit; the type stays."""
        return _call("round", self, digits)

    def floor(self) -> Expr:
        """The largest whole number not above, as an int."""
        return _call("floor", self)

    def ceil(self) -> Expr:
        """The smallest whole number not below, as an int."""
        return _call("ceil", self)

    def sqrt(self) -> Expr:
        """The square root; of a number below zero it is null."""
        return _call("sqrt", self)

    def log(self) -> Expr:
        """The natural logarithm; of zero or less it is null."""
        return _call("log", self)

    def exp(self) -> Expr:
        """``e`` to the power of the value; null where no float holds it."""
        return _call("exp", self)

    def clip(self, low: Expr | Constant, high: Expr | Constant) -> Expr:
        """The value, or the bound it lies beyond."""
        return _call("clip", self, low, high)

    def to_int(self) -> Expr:
        """As an int: a fraction is cut off, text must spell a whole number, else it is null."""
        return _call("to_int", self)

    def to_float(self) -> Expr:
        """As a float: text must spell a number, else it is null."""
        return _call("to_float", self)

    def to_decimal(self, scale: int) -> Expr:
        """As a decimal with ``scale`` digits after the point; null where that would lose a digit."""
        return _call("to_decimal", self, scale)

    def to_str(self) -> Expr:
        """As text."""
        return _call("to_str", self)

    def to_datetime(self) -> Expr:
        """As an instant: ISO 8601 text or epoch seconds; null where it is neither."""
        return _call("to_datetime", self)


class _Text(_Operators):
    """Functions of text; characters are Unicode code points."""

    __slots__ = ()

    def lower(self) -> Expr:
        """In lower case."""
        return _call("lower", self)

    def upper(self) -> Expr:
        """In upper case."""
        return _call("upper", self)

    def strip(self) -> Expr:
        """Without white space at both ends."""
        return _call("strip", self)

    def length(self) -> Expr:
        """How many characters a text, or elements a list, has."""
        return _call("length", self)

    def contains(self, text: Expr | str) -> Predicate:
        """Whether the text stands in it, letter for letter."""
        return _condition("contains", self, text)

    def starts_with(self, text: Expr | str) -> Predicate:
        """Whether it begins with the text."""
        return _condition("starts_with", self, text)

    def ends_with(self, text: Expr | str) -> Predicate:
        """Whether it ends with the text."""
        return _condition("ends_with", self, text)

    def matches(self, pattern: str) -> Predicate:
        """Whether the whole text fits a regular expression (without look-around and back references)."""
        return _condition("matches", self, pattern)

    def replace(self, old: str, new: str) -> Expr:
        """Every ``old`` replaced by ``new``, letter for letter."""
        return _call("replace", self, old, new)

    def slice(self, offset: int, length: int | None = None) -> Expr:
        """``length`` characters (all, if left out) from ``offset`` on; a negative offset counts from the end."""
        return _call("slice", self, offset) if length is None else _call("slice", self, offset, length)

    def split(self, by: str) -> Expr:
        """The parts between every ``by``, as a list."""
        return _call("split", self, by)

    def json_extract(self, path: str, type: Any = None) -> Expr:  # noqa: A002  # the name the docs teach
        """The value under a dotted path of object keys of a JSON text; any miss is null.

        Args:
            path: object keys, such as ``"address.city"``.
            type: ``str``, ``int``, ``float`` or ``bool``: a value of another type is null too. Left out, every value
                is given as text.
        """
        if type is None:
            return Expr(JsonExtractNode(operand=self.node, path=path))
        return _call("json_extract", self, path, getattr(type, "__name__", type))


class _Times(_Operators):
    """Functions of instants; all of them are UTC."""

    __slots__ = ()

    def year(self) -> Expr:
        """The year."""
        return _call("year", self)

    def month(self) -> Expr:
        """The month, 1 to 12."""
        return _call("month", self)

    def day(self) -> Expr:
        """The day of the month, 1 to 31."""
        return _call("day", self)

    def hour(self) -> Expr:
        """The hour, 0 to 23."""
        return _call("hour", self)

    def minute(self) -> Expr:
        """The minute, 0 to 59."""
        return _call("minute", self)

    def second(self) -> Expr:
        """The second, 0 to 59."""
        return _call("second", self)

    def weekday(self) -> Expr:
        """The day of the week, Monday 1 to Sunday 7."""
        return _call("weekday", self)

    def truncate(self, every: str) -> Expr:
        """The start of its interval of the duration ``every``; intervals follow each other from the Unix epoch."""
        return _call("truncate", self, every)

    def seconds_since(self, earlier: Expr | datetime) -> Expr:
        """Seconds from ``earlier`` to it, with fraction."""
        return _call("seconds_since", self, earlier)

    def epoch_seconds(self) -> Expr:
        """Seconds since the Unix epoch, with fraction."""
        return _call("epoch_seconds", self)

    def plus(self, duration: str) -> Expr:
        """Later by a duration such as ``"90m"``."""
        return _call("plus", self, duration)

    def minus(self, duration: str) -> Expr:
        """Earlier by a duration such as ``"90m"``."""
        return _call("minus", self, duration)


class Expr(_Numbers, _Text, _Times):
    """A value built from columns."""

    __slots__ = ("node",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, node: Any) -> None:
        self.node = node

    def is_null(self) -> Predicate:
        """True where the column is missing or null.

        Raises:
            TypeError: when called on anything but a column.
        """
        if not isinstance(self.node, ColumnNode):
            message = "is_null() is defined on a column: col('name').is_null(); of anything else, ~x.is_not_null()"
            raise TypeError(message)
        return Predicate(IsNullNode(operand=self.node))

    def is_not_null(self) -> Predicate:
        """True where there is a value."""
        return Predicate(LogicNode(op="not", operands=(IsNullNode(operand=self.node),)))

    def fill_null(self, default: Expr | Constant) -> Expr:
        """The value, or ``default`` where it is null."""
        if isinstance(default, bool | int | float | str):
            return Expr(FillNullNode(operand=self.node, default=default))
        return _call("coalesce", self, default)

    def is_in(self, values: Iterable[Constant]) -> Predicate:
        """Whether it is one of the values.

        Raises:
            TypeError: ``values`` is no list of constants.
        """
        if isinstance(values, str | _Operators) or not isinstance(values, Iterable):
            message = f"is_in() takes a list of constants; found {shown(values)}"
            raise TypeError(message)
        return _condition("is_in", self, *values)

    def between(self, low: Expr | Constant, high: Expr | Constant) -> Predicate:
        """Whether it lies between the bounds, both included."""
        return _condition("between", self, low, high)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.node!r})"


class Predicate(Expr):
    """A condition per row."""

    __slots__ = ()
    __hash__ = None


class When(NamedTuple):
    """A condition that waits for its ``then``; ``before`` holds the branches that stand above it."""

    before: tuple[Any, ...]
    condition: Expr

    def then(self, value: Expr | Constant) -> Then:
        """The value where the condition holds and none before it does."""
        return Then(CallNode(function="when", args=(*self.before, self.condition.node, _node(value))))


class Then(Expr):
    """Conditions with their values; null where none holds, until ``otherwise`` says more."""

    __slots__ = ()
    __hash__ = None

    def when(self, condition: Expr) -> When:
        """The next condition."""
        return When(self.node.args, _checked(condition))

    def otherwise(self, value: Expr | Constant) -> Expr:
        """The value where no condition holds."""
        return Expr(CallNode(function="when", args=(*self.node.args, _node(value))))


def col(name: Column) -> Expr:
    """The column of the current row, by name or by reference: ``col("amount")``, ``col(Sale.amount)``.

    Raises:
        TypeError: it is neither.
    """
    found = name.name if isinstance(name, Named) else name
    if not isinstance(found, str):
        message = f"col() takes a column's name or reference; found {shown(name)}"
        raise TypeError(message)
    return Expr(ColumnNode(name=found))


def lit(value: Constant) -> Expr:
    """A constant."""
    return Expr(_node(value))


def when(condition: Expr) -> When:
    """A choice: ``when(col("a") > 1).then("many").otherwise("few")``.

    Raises:
        TypeError: the condition is no expression.
    """
    return When((), _checked(condition))


def coalesce(*values: Expr | Constant) -> Expr:
    """The first value that is not null."""
    return _call("coalesce", *values)


def concat(*texts: Expr | str) -> Expr:
    """One text after the other; null if one of them is."""
    return _call("concat", *texts)


def least(*values: Expr | Constant) -> Expr:
    """The smallest of all; null if one of them is."""
    return _call("least", *values)


def greatest(*values: Expr | Constant) -> Expr:
    """The largest of all; null if one of them is."""
    return _call("greatest", *values)


def _arith(op: Any, left: Any, right: Any) -> Expr:
    return Expr(ArithNode(op=op, left=_node(left), right=_node(right)))


def _compare(op: Any, left: Any, right: Any) -> Predicate:
    return Predicate(CompareNode(op=op, left=_node(left), right=_node(right)))


def _call(function: str, *arguments: Any) -> Expr:
    return Expr(CallNode(function=function, args=tuple(map(_node, arguments))))


def _condition(function: str, *arguments: Any) -> Predicate:
    return Predicate(CallNode(function=function, args=tuple(map(_node, arguments))))


def _node(value: Any) -> Any:
    if isinstance(value, _Operators):
        return value.node
    if isinstance(value, bool | int | float | str):
        return LiteralNode(value=value)
    if isinstance(value, Decimal) and value.is_finite():
        scale = max(0, -int(value.as_tuple().exponent))
        return CallNode(function="to_decimal", args=(LiteralNode(value=f"{value:f}"), LiteralNode(value=scale)))
    if isinstance(value, datetime):
        return CallNode(function="to_datetime", args=(LiteralNode(value=format_instant(parse_instant(value))),))
    if value is None:
        message = (
            "None cannot stand in an expression; ask for it with .is_null(), or leave .otherwise(…) out to give it"
        )
        raise TypeError(message)
    allowed = "use col(...), or an int, float, str, bool, Decimal or datetime"
    message = f"{shown(value)} cannot stand in an expression; {allowed}"
    raise TypeError(message)


def _checked(condition: Any) -> Expr:
    if isinstance(condition, Expr):
        return condition
    message = f'when() takes a condition such as col("amount") > 1; found {shown(condition)}'
    raise TypeError(message)


def shown(value: object) -> str:
    """A value as a message quotes it: its type, and itself where its text says something to a user."""
    if isinstance(value, Expr):
        return "an expression"
    plain = isinstance(value, str | int | float | Decimal | list | tuple)
    return f"{type(value).__name__} {value!r:.40}" if plain else f"a {type(value).__name__}"
