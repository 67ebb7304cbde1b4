"""``@pipeline``, ``@inputs`` and the builder a pipeline's body receives.

A pipeline is a method of its output dataset. Its body is called once, when the class is declared, with
one :class:`PipelineNode` for the first input, or with one for each. Every call on a node returns a new
node; the steps keep the order in which they are written.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from types import FunctionType
from typing import Any, TypeVar

from pydantic import ValidationError

from featurelib.aggregates import AGGREGATES, UNSET
from featurelib.capture import keyword_lines
from featurelib.clock import parse_instant
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
    FilterStep,
    JoinStep,
    Location,
    NamedAggregate,
    PipelineDef,
    Step,
)
from featurelib.errors import DeclarationTypeError, DeclarationValueError
from featurelib.expr import Expr, Predicate, lit
from featurelib.types import Scalar

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


@dataclass(frozen=True)
class ApproxPercentile:
    """An aggregate of the stock SDK that this platform does not offer: a commit that uses it says so, with its line."""

    of: str = ""
    window: str = ""
    precision: int = 100
    where: Predicate | None = None


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
class PipelineNode:
    """A dataset and the steps applied to it so far; every method returns a new node."""

    dataset: str
    schema: DatasetDef | None = field(repr=False)
    declared: Declared = field(repr=False, compare=False)
    subject: str = ""
    steps: tuple[Step, ...] = ()
    sites: tuple[Site, ...] = field(default=(), compare=False)
    keys: tuple[str, ...] = ()
    rights: tuple[str, ...] = ()

    def filter(self, predicate: Predicate | Expr) -> PipelineNode:
        """Keep the rows where the predicate holds.

        Raises:
            DeclarationTypeError: ``predicate`` is a function.
        """
        if not isinstance(predicate, Expr):
            text = f"filter() takes an expression; found {_described(predicate)}"
            refuse_here(
                "invalid_predicate", self.subject, text, 'Write .filter(col("amount") > 0).', DeclarationTypeError
            )
            return self
        return self._then(FilterStep(predicate=predicate.node))

    def assign(self, **columns: Expr | Scalar) -> PipelineNode:
        """Add or overwrite columns, one after the other."""
        node = self
        for name, value in columns.items():
            if isinstance(value, Expr | bool | int | float | str):
                node = node._then(AssignStep(column=name, value=_expression(value).node))
            else:
                text = f"assign({name}=…) takes an expression or a constant; found {_described(value)}"
                refuse_here("invalid_expression", self.subject, text, 'Write col("…").', DeclarationTypeError)
        return node

    def join(self, right: Any, *, on: Any, fields: list[str] | None = None) -> PipelineNode:
        """Bring over columns of the newest right row whose event time is not after the left row's.

        Args:
            right: a dataset class, or the node of another input.
            on: the left column that holds the right dataset's key.
            fields: right columns to bring over; left out, all but its key and timestamp.
        """
        if isinstance(right, PipelineNode) and not right.steps:
            name, schema = right.dataset, right.schema
        elif declared_on(right) is not None:
            name, schema = right.__name__, _schema(right)
        else:
            text = f"join() takes a dataset; found {_described(right)}"
            refuse_here("not_a_dataset", self.subject, text, "Decorate it with @dataset(…).", DeclarationTypeError)
            return self
        chosen = tuple(_name(column) for column in fields) if fields is not None else _value_columns(schema)
        node = self._then(JoinStep(right=name, on=_name(on), fields=chosen))
        return replace(node, rights=(*node.rights, name))

    def groupby(self, *keys: Any) -> PipelineNode:
        """Name the group keys; ``aggregate`` follows."""
        return replace(self, keys=tuple(_name(key) for key in keys))

    def aggregate(self, **aggregates: Any) -> PipelineNode:
        """Fold each group; each keyword names a column of the output dataset.

        Raises:
            DeclarationTypeError: a value is not an aggregate.
        """
        named = tuple(
            NamedAggregate(output=name, aggregate=value)
            for name, value in aggregates.items()
            if self._is_offered(name, value)
        )
        return self._then(AggregateStep(keys=self.keys, aggregates=named))

    def _is_offered(self, name: str, value: Any) -> bool:
        if isinstance(value, AGGREGATES):
            return True
        offered = ", ".join(kind.__name__ for kind in AGGREGATES)
        if isinstance(value, ApproxPercentile):
            text = f"`{name}` uses ApproxPercentile, which this platform does not offer"
            line = Site(self.declared.site.file, self._line(name))
            self.declared.problem("unsupported_aggregate", self.subject, text, f"Offered are {offered}.", site=line)
        else:
            text = f"`{name}` is not an aggregate; found {_described(value)}"
            refuse_here("invalid_aggregate", self.subject, text, f"Use one of {offered}.", DeclarationTypeError)
        self.declared.broken.add(f"{self.declared.name}.{name}")
        return False

    def _line(self, keyword: str) -> int:
        lines = self.declared.locations.get(f"pipeline:{self.subject.split('.')[-1]}.{keyword}")
        return lines.line if lines else calling_site().line

    def _then(self, step: Step) -> PipelineNode:
        if self.steps and isinstance(self.steps[-1], AggregateStep):
            text, hint = f"{step.op} follows aggregate", "aggregate(…) is the last step."
            refuse_here("step_after_aggregate", self.subject, text, hint, DeclarationTypeError)
            return self
        return replace(self, steps=(*self.steps, step), sites=(*self.sites, calling_site()))


def _build(method: FunctionType, backfill: BackfillDef, declared: Declared) -> None:
    """Call the body and add the pipeline to the output dataset's declarations."""
    name, noted = method.__name__, notes(method)
    subject, site = f"{declared.name}.{name}", function_site(method)
    declared.locations[f"pipeline:{name}"] = site.location
    for keyword, line in keyword_lines(method).items():
        declared.locations[f"pipeline:{name}.{keyword}"] = Location(file=site.file, line=line)
    classes = _input_classes(noted.inputs, declared, subject, site)
    arguments = _arguments(method, classes, declared, subject, site) if classes else None
    if arguments is None:
        return
    node = run_body(lambda: method(None, *arguments), method, subject, declared, "pipeline_body")
    if node is FAILED or not _ends_well(node, declared, subject, site):
        return
    for index, where in enumerate(node.sites):
        declared.locations[f"pipeline:{name}.{index}"] = where.location
    try:
        definition = PipelineDef(
            name=name,
            version=noted.version,
            input_datasets=tuple(dict.fromkeys((node.dataset, *(cls.__name__ for cls in classes), *node.rights))),
            output_dataset=declared.name,
            steps=node.steps,
            backfill=backfill,
        )
    except ValidationError as error:
        declared.invalid(error, subject, site)
    else:
        declared.definitions.append(definition)


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


def _arguments(
    method: FunctionType, classes: list[type], declared: Declared, subject: str, site: Site
) -> tuple[PipelineNode, ...] | None:
    """One node for the first input, or one for each, as the body's parameters ask."""
    nodes = tuple(
        PipelineNode(dataset=cls.__name__, schema=_schema(cls), declared=declared, subject=subject) for cls in classes
    )
    for offered in (nodes, nodes[:1]):
        try:
            inspect.signature(method).bind(None, *offered)
        except TypeError:
            continue
        return offered
    text = f"the body does not take {', '.join(cls.__name__ for cls in classes)}"
    hint = f"Write def {method.__name__}(cls, {', '.join(cls.__name__.lower() for cls in classes)})."
    declared.problem("pipeline_signature", subject, text, hint, site=site)
    return None


def _ends_well(node: Any, declared: Declared, subject: str, site: Site) -> bool:
    if not isinstance(node, PipelineNode):
        text = f"the body returned {_described(node)}"
        declared.problem("pipeline_body", subject, text, "Return the chain that ends in .aggregate(…).", site=site)
        return False
    if not node.steps or not isinstance(node.steps[-1], AggregateStep):
        text, hint = "the pipeline does not aggregate", "End it with .groupby(…).aggregate(…)."
        declared.problem("no_aggregate", subject, text, hint, site=site)
        return False
    if not node.steps[-1].keys:
        text, hint = "the aggregate has no group key", "Write .groupby(<the output dataset's key>) before it."
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


def _name(column: Any) -> str:
    return column.name if isinstance(column, Reference) else str(column)


def _expression(value: Expr | Scalar) -> Expr:
    return value if isinstance(value, Expr) else lit(value)


def _described(value: Any) -> str:
    if isinstance(value, FunctionType):
        return "a lambda" if value.__name__ == "<lambda>" else f"the function {value.__name__}"
    return f"{type(value).__name__} {value!r:.40}"
