"""Expressions over columns.

Two layers: *nodes* are inert frozen values (the stored form); :class:`Expr` and :class:`Predicate`
wrap a node and overload Python's operators, so that ``col("amount") * 2 > 10`` builds one.

Null rules: arithmetic with a null operand is null; comparing with a null operand is false, also for
``!=``; division by zero is null, since infinity has no place in a feature or on the wire.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from featurelib.types import Scalar


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


Node = Annotated[
    ColumnNode | LiteralNode | ArithNode | CompareNode | LogicNode | IsNullNode | FillNullNode | JsonExtractNode,
    Field(discriminator="node"),
]
for _class in (ArithNode, CompareNode, LogicNode, IsNullNode, FillNullNode, JsonExtractNode):
    _class.model_rebuild()


def columns_of(node: BaseModel) -> set[str]:
    """Names of every column the expression reads."""
    if isinstance(node, ColumnNode):
        return {node.name}
    found: set[str] = set()
    for name in type(node).model_fields:
        child = getattr(node, name)
        for part in child if isinstance(child, tuple) else (child,):
            if isinstance(part, BaseModel):
                found |= columns_of(part)
    return found


class Expr:
    """A value built from columns. Comparing two gives a :class:`Predicate`."""

    __slots__ = ("node",)
    __hash__ = None  # type: ignore[assignment]  # == builds a predicate

    def __init__(self, node: Any) -> None:
        self.node = node

    def _arith(self, op: str, left: Any, right: Any) -> Expr:
        return Expr(ArithNode(op=op, left=_node(left), right=_node(right)))

    def _compare(self, op: str, other: Any) -> Predicate:
        return Predicate(CompareNode(op=op, left=self.node, right=_node(other)))

    def __add__(self, other: Expr | Scalar) -> Expr:
        return self._arith("add", self, other)

    def __radd__(self, other: Scalar) -> Expr:
        return self._arith("add", other, self)

    def __sub__(self, other: Expr | Scalar) -> Expr:
        return self._arith("sub", self, other)

    def __rsub__(self, other: Scalar) -> Expr:
        return self._arith("sub", other, self)

    def __mul__(self, other: Expr | Scalar) -> Expr:
        return self._arith("mul", self, other)

    def __rmul__(self, other: Scalar) -> Expr:
        return self._arith("mul", other, self)

    def __truediv__(self, other: Expr | Scalar) -> Expr:
        return self._arith("div", self, other)

    def __rtruediv__(self, other: Scalar) -> Expr:
        return self._arith("div", other, self)

    def __eq__(self, other: object) -> Predicate:  # type: ignore[override]
        return self._compare("eq", other)

    def __ne__(self, other: object) -> Predicate:  # type: ignore[override]
        return self._compare("ne", other)

    def __lt__(self, other: Expr | Scalar) -> Predicate:
        return self._compare("lt", other)

    def __le__(self, other: Expr | Scalar) -> Predicate:
        return self._compare("le", other)

    def __gt__(self, other: Expr | Scalar) -> Predicate:
        return self._compare("gt", other)

    def __ge__(self, other: Expr | Scalar) -> Predicate:
        return self._compare("ge", other)

    def is_null(self) -> Predicate:
        """True where the column is missing or null.

        Raises:
            TypeError: when called on anything but a column.
        """
        if not isinstance(self.node, ColumnNode):
            message = "is_null() is defined on a column: col('name').is_null()"
            raise TypeError(message)
        return Predicate(IsNullNode(operand=self.node))

    def fill_null(self, default: Scalar) -> Expr:
        """The value, or ``default`` where it is null."""
        return Expr(FillNullNode(operand=self.node, default=default))

    def json_extract(self, path: str) -> Expr:
        """The value under a dotted path of object keys; text is parsed as JSON first; any miss is null."""
        return Expr(JsonExtractNode(operand=self.node, path=path))

    def __bool__(self) -> bool:
        message = "an expression has no truth value; combine predicates with &, | and ~ instead of and, or, not"
        raise TypeError(message)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.node!r})"


class Predicate(Expr):
    """A condition per row."""

    __slots__ = ()
    __hash__ = None

    def __and__(self, other: Predicate) -> Predicate:
        return Predicate(LogicNode(op="and", operands=(self.node, _node(other))))

    def __or__(self, other: Predicate) -> Predicate:
        return Predicate(LogicNode(op="or", operands=(self.node, _node(other))))

    def __invert__(self) -> Predicate:
        return Predicate(LogicNode(op="not", operands=(self.node,)))


def col(name: str) -> Expr:
    """The column ``name`` of the current row."""
    return Expr(ColumnNode(name=name))


def lit(value: Scalar) -> Expr:
    """A constant."""
    return Expr(LiteralNode(value=value))


def _node(value: Any) -> Any:
    if isinstance(value, Expr):
        return value.node
    if isinstance(value, bool | int | float | str):
        return LiteralNode(value=value)
    message = f"{value!r} cannot stand in an expression; use col(...), or an int, float, str or bool"
    raise TypeError(message)
