"""``@pipeline``, ``@inputs`` and the builder a pipeline's body receives.

A pipeline is a method of its output dataset. Its body is called once, when the class is declared, with
one :class:`PipelineNode` for the first input, or with one for each. Every call on a node returns a new
node; the steps keep the order in which they are written.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from types import FunctionType
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from featurelib.aggregates import AGGREGATES, UNSET
from featurelib.annotations import SUPPORTED, column_type, describe_annotation
from featurelib.capture import capture, function_node
from featurelib.clock import parse_duration, parse_instant
from featurelib.declarations import (
    FAILED,
    Declared,
    Reference,
    Site,
    assign_role,
    calling_site,
    declared_on,
    function_site,
    notes,
    refuse_here,
    run_body,
)
from featurelib.definitions import (
    AggregateStep,
    AssignStep,
    BackfillDef,
    DatasetDef,
    DedupStep,
    DropStep,
    ExplodeStep,
    FilterCodeStep,
    FilterStep,
    FirstStep,
    JoinStep,
    LatestStep,
    NamedAggregate,
    PipelineDef,
    PyCode,
    RenameStep,
    SelectStep,
    Step,
    TransformStep,
    UnionStep,
)
from featurelib.errors import DeclarationTypeError, DeclarationValueError
from featurelib.expr import Expr, Predicate, lit
from featurelib.types import Scalar, TypeName

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Backfill:
    """Where the history of a new pipeline begins: ``Backfill(since=<datetime with a zone>)``."""

    since: datetime | None = None

    def __post_init__(self) -> None:
        if self.since is None:
            return
        if not isinstance(self.since, datetime):
            text = f"since={self.since!r:.40} is not a datetime"
            refuse_here("invalid_value", "Backfill", text, "Write datetime(…, tzinfo=UTC).", DeclarationTypeError)
        elif self.since.tzinfo is None:
            text = f"since={self.since} has no zone"
            refuse_here("invalid_value", "Backfill", text, "Write datetime(…, tzinfo=UTC).", DeclarationValueError)


def pipeline(version: int = 1, backfill: Backfill | None = UNSET) -> Callable[[F], F]:
    """Mark a method of the output dataset as a pipeline.

    Args:
        version: raise it when the meaning of a committed pipeline changes.
        backfill: left out, all retained history is folded; ``None``, none of it.
    """
    if callable(version):
        refuse_here("invalid_value", "pipeline", "@pipeline is called", "Write @pipeline().", DeclarationTypeError)
        return version

    def mark(method: F) -> F:
        noted = assign_role(method, "pipeline")
        noted.version = version
        if isinstance(method, FunctionType):
            noted.pipeline = partial(_build, method, _backfill(backfill))
        return method

    return mark


def inputs(*datasets: Any) -> Callable[[F], F]:
    """Name the datasets a pipeline reads; the first is its left side."""

    def note(method: F) -> F:
        notes(method).inputs = datasets
        return method

    return note


@dataclass(frozen=True)
class _Body:
    """The method whose body is being read."""

    method: FunctionType
    declared: Declared
    subject: str

    def refuse(self, code: str, text: str, hint: str) -> None:
        """Raise at the line that is executed, or note it when a compile is collecting."""
        refuse_here(code, self.subject, text, hint, DeclarationTypeError)

    def keyword_site(self, call: Site, operator: str, keyword: str) -> Site:
        """The line of a keyword of the call that is executed; the call's own where the text does not show it."""
        found = function_node(self.method) if call.file == function_site(self.method).file else None
        for node in ast.walk(found[1]) if found else ():
            if isinstance(node, ast.Call) and _names_call(node, operator, call.line):
                return next((Site(call.file, k.value.lineno) for k in node.keywords if k.arg == keyword), call)
        return call


def _names_call(node: ast.Call, operator: str, line: int) -> bool:
    # A frame in a call stands on the line of the attribute's name, wherever the chain began.
    return isinstance(node.func, ast.Attribute) and node.func.attr == operator and node.func.end_lineno == line


@dataclass(frozen=True)
class PipelineNode:
    """A dataset and the steps applied to it so far; every method returns a new node.

    Columns are named by text or by reference, ``"amount"`` or ``Transaction.amount``.
    """

    dataset: str
    schema: DatasetDef | None = field(repr=False)
    body: _Body = field(repr=False, compare=False)
    steps: tuple[Step, ...] = ()
    sites: tuple[tuple[str, Site], ...] = field(default=(), repr=False, compare=False)
    keys: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    def filter(self, predicate: Predicate | Expr | Callable[[Any], Any]) -> PipelineNode:
        """Keep the rows where the predicate holds, or those a function over a Polars frame gives back.

        Raises:
            DeclarationTypeError: ``predicate`` is neither, or a lambda or closure.
        """
        if isinstance(predicate, Expr):
            return self._then(FilterStep(predicate=predicate.node))
        if not callable(predicate):
            text = f"filter() takes an expression or a function; found {_described(predicate)}"
            self.body.refuse("invalid_predicate", text, 'Write .filter(col("amount") > 0).')
            return self
        return self._then(FilterCodeStep(code=self._code(predicate, "filter")))

    def transform(
        self, function: Callable[[Any], Any], *, output_columns: Mapping[Any, Any] | None = None
    ) -> PipelineNode:
        """Add or overwrite columns by a function over a Polars frame that keeps the number of rows.

        Args:
            function: a named function of a module; its text travels with the commit.
            output_columns: the columns it gives, with their types. Left out, the types of columns that later
                steps read and nothing else gives are told from their use.

        Raises:
            DeclarationTypeError: ``function`` is a lambda, a closure or no function.
        """
        columns = tuple(self._typed(_name(name), kind) for name, kind in (output_columns or {}).items())
        code = self._code(function, "transform")
        return self._then(TransformStep(code=code, columns=tuple(column for column in columns if column)))

    def assign(self, **columns: Expr | Scalar) -> PipelineNode:
        """Add or overwrite columns, one after the other."""
        node, call = self, calling_site()
        for name, value in columns.items():
            if isinstance(value, Expr | bool | int | float | str):
                step = AssignStep(column=name, value=_expression(value).node)
                node = node._then(step, self.body.keyword_site(call, "assign", name))
            else:
                text = f"assign({name}=…) takes an expression or a constant; found {_described(value)}"
                self.body.refuse("invalid_expression", text, 'Write col("…").')
        return node

    def rename(self, columns: Mapping[Any, str] | None = None, /, **renamed: str) -> PipelineNode:
        """Give columns other names: ``rename(old="new")`` or ``rename({"old": "new"})``, all at once."""
        pairs = {_name(old): _name(new) for old, new in {**(columns or {}), **renamed}.items()}
        return self._then(RenameStep(columns=tuple(pairs.items())))

    def select(self, *columns: Any) -> PipelineNode:
        """Keep only these columns; a row's event time is never lost."""
        return self._then(SelectStep(columns=self._names("select", columns)))

    def drop(self, *columns: Any) -> PipelineNode:
        """Leave these columns out."""
        return self._then(DropStep(columns=self._names("drop", columns)))

    def dedup(self, *by: Any) -> PipelineNode:
        """Of rows equal in these columns (left out: in all), keep the first in the total order."""
        return self._then(DedupStep(by=self._names("dedup", by)))

    def explode(self, column: Any) -> PipelineNode:
        """One row for each element of a list column; an empty or null list gives none."""
        names = self._names("explode", (column,))
        return self._then(ExplodeStep(column=names[0])) if names else self

    def union(self, other: Any) -> PipelineNode:
        """These rows and those of another dataset, or of a node of one; both have the same columns."""
        node = other if isinstance(other, PipelineNode) else self._node_of(other, "union")
        if node is None:
            return self
        place = str(len(self.steps))
        inner = tuple((f"{place}.{path}", site) for path, site in node.sites)
        made = self._then(UnionStep(dataset=node.dataset, steps=node.steps))
        return replace(made, others=(*made.others, node.dataset, *node.others), sites=(*made.sites, *inner))

    def join(
        self, right: Any, *, on: Any, fields: Sequence[Any] | None = None, within: str | None = None
    ) -> PipelineNode:
        """Bring over columns of the newest right row whose event time is not after the left row's.

        Args:
            right: a dataset class, or the node of another input.
            on: the left column that holds the right dataset's key.
            fields: right columns to bring over; left out, all but its key and timestamp.
            within: how old the right row may be, ``<int><d|h|m|s>``; older ones give nulls.
        """
        node = right if isinstance(right, PipelineNode) else self._node_of(right, "join")
        if node is None:
            return self
        if node.steps:
            text = f"the right side of a join is a dataset as it is; found one with {', '.join(_operators(node))}"
            self.body.refuse("join_right", text, "Give what you join a dataset and a pipeline of its own.")
            return self
        chosen = self._names("join", fields) if fields is not None else _value_columns(node.schema)
        step = JoinStep(right=node.dataset, on=_name(on), fields=chosen, within_us=self._within(within))
        made = self._then(step)
        return replace(made, others=(*made.others, node.dataset))

    def groupby(self, *keys: Any) -> PipelineNode:
        """Name the group keys; ``aggregate``, ``latest`` or ``first`` follows."""
        return replace(self, keys=self._names("groupby", keys))

    def aggregate(self, *, emit: Literal["on_change", "on_event"] = "on_change", **aggregates: Any) -> PipelineNode:
        """Fold each group; each keyword names a column: of the output dataset, or for the steps that follow.

        Args:
            emit: what a later step sees of a value that also changes as time passes: refused, or with
                ``"on_event"`` its value at each event.
            **aggregates: the columns.

        Raises:
            DeclarationTypeError: a value is not an aggregate.
        """
        if emit not in {"on_change", "on_event"}:
            text = f'emit is "on_change" or "on_event"; found {_described(emit)}'
            self.body.refuse("invalid_value", text, "Leave it out.")
            emit = "on_change"
        given = {name: value for name, value in aggregates.items() if self._is_aggregate(name, value)}
        named = tuple(NamedAggregate(output=name, aggregate=value) for name, value in given.items())
        call, place = calling_site(), len(self.steps)
        made = self._keyed(AggregateStep(keys=self.keys, aggregates=named, emit=emit))
        lines = tuple((f"{place}.{name}", self.body.keyword_site(call, "aggregate", name)) for name in given)
        return replace(made, sites=(*made.sites, *lines))

    def latest(self) -> PipelineNode:
        """Of each group the newest row: a row counts until the next one of its key."""
        return self._keyed(LatestStep(keys=self.keys))

    def first(self) -> PipelineNode:
        """Of each group the first row in the total order."""
        return self._keyed(FirstStep(keys=self.keys))

    def _then(self, step: Step, site: Site | None = None) -> PipelineNode:
        place = str(len(self.steps))
        return replace(self, steps=(*self.steps, step), sites=(*self.sites, (place, site or calling_site())))

    def _keyed(self, step: AggregateStep | LatestStep | FirstStep) -> PipelineNode:
        # What follows is of other rows: it names its own groups.
        return replace(self._then(step), keys=())

    def _node_of(self, thing: Any, operator: str) -> PipelineNode | None:
        if declared_on(thing) is not None:
            return PipelineNode(dataset=thing.__name__, schema=_schema(thing), body=self.body)
        text = f"{operator}() takes a dataset; found {_described(thing)}"
        self.body.refuse("not_a_dataset", text, "Decorate it with @dataset(…).")
        return None

    def _names(self, operator: str, columns: Sequence[Any]) -> tuple[str, ...]:
        if isinstance(columns, str):
            text = f"{operator}() takes a list of columns; found the text {columns!r:.40}"
            self.body.refuse("invalid_column", text, f'Write ["{columns:.40}"].')
            return (columns,)
        for column in columns:
            if not isinstance(column, str | Reference):
                text = f"{operator}() takes names of columns; found {_described(column)}"
                self.body.refuse("invalid_column", text, 'Write "amount" or SomeDataset.amount.')
        return tuple(_name(column) for column in columns if isinstance(column, str | Reference))

    def _typed(self, name: str, kind: Any) -> tuple[str, str] | None:
        known = _type_name(kind)
        if known is not None:
            return name, known
        text = f"output_columns: {describe_annotation(kind)} is not a column type"
        self.body.declared.problem("unknown_type", self.body.subject, text, SUPPORTED, site=calling_site())
        self.body.declared.broken.add(f"{self.dataset}.{name}")
        return None

    def _within(self, text: str | None) -> int | None:
        try:
            return parse_duration(text) if text is not None else None
        except ValueError as error:
            subject = self.body.subject
            refuse_here("invalid_duration", subject, f"within: {error}", "Write within='7d'.", DeclarationValueError)
            return None

    def _code(self, function: Any, operator: str) -> PyCode:
        """The function's text; an empty one, marked as broken, when a problem was noted instead."""
        unfit = _unfit(function)
        if unfit:
            text = f"{operator}() takes a function of a module over one frame; found {unfit}"
            self.body.refuse("invalid_function", text, "Define it with def at the top of the module, and name it here.")
        code = None if unfit else capture(function, self.body.subject, self.body.declared)
        if code is not None:
            return code
        entry = getattr(function, "__name__", operator)
        self.body.declared.broken.add(f"{self.body.subject}.{entry}")
        return PyCode(entry_point=entry, source="")

    def _is_aggregate(self, name: str, value: Any) -> bool:
        if isinstance(value, AGGREGATES):
            return True
        offered = ", ".join(kind.__name__ for kind in AGGREGATES)
        text = f"`{name}` is not an aggregate; found {_described(value)}"
        self.body.refuse("invalid_aggregate", text, f"Use one of {offered}.")
        groups = f"the aggregate by {', '.join(self.keys)}"
        self.body.declared.broken |= {f"{self.body.declared.name}.{name}", f"{groups}.{name}"}
        return False


def _build(method: FunctionType, backfill: BackfillDef, declared: Declared) -> None:
    """Call the body and add the pipeline to the output dataset's declarations."""
    name, noted = method.__name__, notes(method)
    subject, site = f"{declared.name}.{name}", function_site(method)
    declared.locations[f"pipeline:{name}"] = site.location
    classes = _input_classes(noted.inputs, declared, subject, site)
    arguments = _arguments(_Body(method, declared, subject), classes, site) if classes else None
    if arguments is None:
        return
    node = run_body(lambda: method(None, *arguments), method, subject, declared, "pipeline_body")
    if node is FAILED or not _ends_well(node, declared, subject, site):
        return
    _locate(node, f"pipeline:{name}", declared)
    try:
        definition = PipelineDef(
            name=name,
            version=noted.version,
            input_datasets=tuple(dict.fromkeys((node.dataset, *(cls.__name__ for cls in classes), *node.others))),
            output_dataset=declared.name,
            steps=node.steps,
            backfill=backfill,
        )
    except ValidationError as error:
        declared.invalid(error, subject, site)
    else:
        declared.definitions.append(definition)


def _locate(node: PipelineNode, key: str, declared: Declared) -> None:
    """The line of each step and of each aggregate; those of the last step also under the output's own name."""
    last = f"{len(node.steps) - 1}."
    for place, site in node.sites:
        declared.locations[f"{key}.{place}"] = site.location
        if place.startswith(last):
            declared.locations[f"{key}.{place.removeprefix(last)}"] = site.location


def _input_classes(classes: tuple[Any, ...] | None, declared: Declared, subject: str, site: Site) -> list[type]:
    if not classes:
        hint = "Write @inputs(SomeDataset) below @pipeline(…)."
        declared.problem("missing_inputs", subject, "the pipeline names no input", hint, site=site)
        return []
    for cls in classes:
        if declared_on(cls) is None:
            text = f"@inputs takes datasets; found {_described(cls)}"
            declared.problem("not_a_dataset", subject, text, "Decorate it with @dataset(…).", site=site)
    return list(classes) if all(declared_on(cls) for cls in classes) else []


def _arguments(body: _Body, classes: list[type], site: Site) -> tuple[PipelineNode, ...] | None:
    """One node for the first input, or one for each, as the body's parameters ask."""
    method = body.method
    nodes = tuple(PipelineNode(dataset=cls.__name__, schema=_schema(cls), body=body) for cls in classes)
    for offered in (nodes, nodes[:1]):
        try:
            inspect.signature(method).bind(None, *offered)
        except TypeError:
            continue
        return offered
    text = f"the body does not take {', '.join(cls.__name__ for cls in classes)}"
    hint = f"Write def {method.__name__}(cls, {', '.join(cls.__name__.lower() for cls in classes)})."
    body.declared.problem("pipeline_signature", body.subject, text, hint, site=site)
    return None


def _ends_well(node: Any, declared: Declared, subject: str, site: Site) -> bool:
    if not isinstance(node, PipelineNode):
        text = f"the body returned {_described(node)}"
        declared.problem("pipeline_body", subject, text, "Return the chain that ends in .aggregate(…).", site=site)
        return False
    last = node.steps[-1] if node.steps else None
    if not isinstance(last, AggregateStep | LatestStep | FirstStep):
        text = "the pipeline neither aggregates nor keeps a row per key"
        hint = "End it with .groupby(…).aggregate(…), .latest() or .first()."
        declared.problem("no_aggregate", subject, text, hint, site=site)
        return False
    if not last.keys:
        text, hint = f"{last.op}() has no group key", "Write .groupby(<the output dataset's key>) before it."
        declared.problem("no_group_key", subject, text, hint, site=site)
        return False
    return True


def _backfill(value: Any) -> BackfillDef:
    if value is None:
        return BackfillDef(enabled=False)
    if value is not UNSET and not isinstance(value, Backfill):
        text = f"backfill= takes Backfill(since=…) or None; found {_described(value)}"
        refuse_here("invalid_value", "pipeline", text, "Leave it out to fold all history.", DeclarationTypeError)
    since = value.since if isinstance(value, Backfill) else None
    return BackfillDef(since_us=parse_instant(since) if isinstance(since, datetime) else None)


def _schema(cls: type) -> DatasetDef | None:
    declared = declared_on(cls)
    found = declared.definitions if declared else []
    return next((item for item in found if isinstance(item, DatasetDef)), None)


def _value_columns(definition: DatasetDef | None) -> tuple[str, ...]:
    if definition is None:
        return ()
    return tuple(column.name for column in definition.fields if not column.key and not column.timestamp)


def _operators(node: PipelineNode) -> list[str]:
    return list(dict.fromkeys(step.op for step in node.steps))


_TYPE: TypeAdapter[str] = TypeAdapter(TypeName)


def _type_name(kind: Any) -> str | None:
    """A column type by its Python type, or by its stored name, such as ``"decimal(2)"``."""
    if not isinstance(kind, str):
        known = column_type(kind)
        return known.name if known else None
    try:
        return _TYPE.validate_python(kind)
    except ValidationError:
        return None


def _unfit(function: Any) -> str:
    """Why a function's text cannot travel or does not take one frame; empty when it does."""
    if not isinstance(function, FunctionType) or function.__name__ == "<lambda>":
        return _described(function)
    name = f"`{function.__name__}`"
    if function.__code__.co_freevars:
        return f"the closure {name}, which reads {', '.join(function.__code__.co_freevars)} of an enclosing function"
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        return f"{name}, which does not return its result: it is async or yields"
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return f"{name}{inspect.signature(function)}, which does not take one argument"
    return ""


def _name(column: Any) -> str:
    return column.name if isinstance(column, Reference) else str(column)


def _expression(value: Expr | Scalar) -> Expr:
    return value if isinstance(value, Expr) else lit(value)


def _described(value: Any) -> str:
    if isinstance(value, FunctionType):
        return "a lambda" if value.__name__ == "<lambda>" else f"the function {value.__name__}"
    if value is None:
        return "None"
    return f"the class {value.__name__}" if isinstance(value, type) else f"{type(value).__name__} {value!r:.40}"
