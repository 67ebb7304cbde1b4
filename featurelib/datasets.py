"""``@dataset`` and ``field``: a class that names the columns of an event stream.

The decorated class is a plain dataclass of rows: ``Transaction(user="u1", amount=2.0, at=now)`` holds
values, while ``Transaction.amount`` is the column itself, for ``feature(ref=Transaction.amount)``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from types import FunctionType
from typing import Any, Generic, TypeVar, cast, dataclass_transform, overload

from pydantic import ValidationError

from featurelib.annotations import (
    MAX_SCALE,
    SUPPORTED,
    annotations_of,
    column_type,
    describe_annotation,
    is_decimal,
)
from featurelib.clock import parse_duration
from featurelib.declarations import (
    Declared,
    Reference,
    Site,
    attach,
    calling_site,
    catalog_metadata,
    function_site,
    members,
    notes,
    refuse,
    refuse_here,
)
from featurelib.definitions import DatasetDef, ExpectationDef, FieldDef
from featurelib.errors import DeclarationTypeError, DeclarationValueError, Problem
from featurelib.types import Scalar

T = TypeVar("T")
C = TypeVar("C", bound=type)


@dataclass(frozen=True)
class Restrictions:
    """What a value must be to be accepted; anything else goes to the dead letters (decision 23).

    ``scale``: digits after the point of a ``Decimal`` column.
    """

    minimum: float | Decimal | None = None
    maximum: float | Decimal | None = None
    one_of: Any = None
    regex: str | None = None
    scale: int | None = None


class Field(Reference, Generic[T]):
    """A column. On the class it is the column itself, on an instance it is the row's value."""

    def __init__(
        self, site: Site, *, key: bool = False, timestamp: bool = False, accepts: Restrictions = Restrictions()
    ) -> None:
        super().__init__(site)
        self.key = key
        self.timestamp = timestamp
        self.accepts = accepts
        self.optional = False

    @overload
    def __get__(self, instance: None, owner: type) -> Field[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Field[T] | T:
        if instance is None:
            return self
        return cast("T", vars(instance)[self.name])

    def __set__(self, instance: object, value: T) -> None:
        # A column left out of the constructor arrives as the descriptor, which is the dataclass default.
        left_out = cast("object", value) is self
        if left_out and not self.optional:
            message = f"{type(instance).__name__}() is missing {self.name!r}"
            raise TypeError(message)
        vars(instance)[self.name] = None if left_out else value

    def __repr__(self) -> str:
        return f"<Field {self.fqn()}>"


def field(
    key: bool = False,
    timestamp: bool = False,
    *,
    min: float | Decimal | None = None,  # noqa: A002  # the word users know
    max: float | Decimal | None = None,  # noqa: A002
    one_of: Iterable[Scalar] | None = None,
    regex: str | None = None,
    scale: int | None = None,
) -> Any:
    """Declare a column. A record whose value does not fit goes to the dataset's dead letters.

    Args:
        key: the entity key; a dataset has exactly one.
        timestamp: the event time; a dataset has exactly one.
        min: the smallest number accepted.
        max: the largest number accepted.
        one_of: the only values accepted.
        regex: a Python regular expression that the whole text matches.
        scale: digits after the point of a ``Decimal`` column, 0 to 18.
    """
    accepts = Restrictions(min, max, one_of, regex, scale)
    return Field[Any](calling_site(), key=key, timestamp=timestamp, accepts=accepts)


@dataclass_transform(field_specifiers=(field,))
def dataset(
    index: bool = False,
    version: int = 1,
    retention: str | None = None,
    event_id: str | None = None,
    upsert: bool = False,
    **catalog: Any,
) -> Callable[[C], C]:
    """Declare a dataset.

    Args:
        index: keep the newest row of each key, for look-ups and looked-up features.
        version: raise it when the meaning of a committed dataset changes.
        retention: how long the log is kept, ``<int><d|h|m|s>``; also how far back a backfill can reach.
        event_id: the column that identifies an event; a log partition takes each value once.
        upsert: a record replaces the one of the same key and event time: only the newest of them counts, in every
            pipeline over it.
        **catalog: ``description, owner, tags, project, deprecated, deprecation_reason, replacement``.

    Raises:
        DeclarationValueError: not exactly one key and one timestamp, a nullable key, or a malformed retention.
    """
    site = calling_site()
    if isinstance(index, type):
        refuse_here("invalid_value", index.__name__, "@dataset is called", "Write @dataset().", DeclarationTypeError)
        return cast("Callable[[C], C]", index)

    def decorate(cls: C) -> C:
        declared = attach(cls, site)
        fields = _fields(cls, declared)
        _check_roles(cls, fields, site)
        given = {"index": index, "version": version, "event_id": event_id, "upsert": upsert}
        _build(cls, declared, fields, given, retention=retention, catalog=catalog)
        for _, _, noted in members(cls, "pipeline"):
            if noted.pipeline is not None:
                noted.pipeline(declared)
        return dataclass(cls)  # type: ignore[return-value]

    return decorate


def _build(
    cls: type,
    declared: Declared,
    fields: tuple[FieldDef, ...],
    given: dict[str, Any],
    *,
    retention: str | None,
    catalog: dict[str, Any],
) -> None:
    """Make the record; ``given`` are the decorator's keywords that it holds as they are."""
    declared.locations[f"dataset:{cls.__name__}"] = declared.site.location
    expectations = _expectations(cls, declared)
    try:
        definition = DatasetDef(
            name=cls.__name__,
            fields=fields,
            retention_us=_retention(cls.__name__, retention),
            expectations=expectations,
            metadata=catalog_metadata(catalog),
            **given,
        )
    except ValidationError as error:
        declared.invalid(error, cls.__name__, declared.site)
        declared.broken.add(cls.__name__)
    else:
        declared.definitions.insert(0, definition)


def _fields(cls: type, declared: Declared) -> tuple[FieldDef, ...]:
    annotations = annotations_of(cls)
    found = [_field(cls, declared, name, annotation) for name, annotation in annotations.items()]
    for name, value in vars(cls).items():
        if isinstance(value, Field) and name not in annotations:
            subject = f"{cls.__name__}.{name}"
            declared.problem(
                "missing_annotation",
                subject,
                "the column has no type",
                f"Write `{name}: <type> = field()`.",
                site=value.site,
            )
            declared.broken.add(subject)
    return tuple(column for column in found if column is not None)


def _field(cls: type, declared: Declared, name: str, annotation: Any) -> FieldDef | None:
    """The column's record; makes sure that its descriptor stands on the class."""
    subject, value = f"{cls.__name__}.{name}", getattr(cls, name, None)
    descriptor = value if isinstance(value, Field) else _plain(cls, declared, name, value)
    known = column_type(annotation, descriptor.accepts.scale)
    problem = _type_problem(annotation, descriptor) if known is None else _restriction_problem(annotation, descriptor)
    if problem is not None:
        declared.problems.append(problem._replace(subject=subject))
        declared.broken.add(subject)
    if known is None:
        return None
    descriptor.optional = known.optional
    declared.locations[f"dataset:{cls.__name__}.{name}"] = descriptor.site.location
    try:
        return FieldDef(
            name=name,
            type=known.name,
            key=descriptor.key,
            timestamp=descriptor.timestamp,
            optional=known.optional,
            **({} if problem else _accepted(descriptor.accepts)),
        )
    except ValidationError as error:
        declared.invalid(error, subject, descriptor.site)
        declared.broken.add(subject)
        return None


def _accepted(accepts: Restrictions) -> dict[str, Any]:
    """The restrictions as a column's record holds them."""
    bounds = {"minimum": accepts.minimum, "maximum": accepts.maximum}
    numbers = {name: _plain_number(bound) for name, bound in bounds.items()}
    return {**numbers, "one_of": tuple(accepts.one_of or ()), "regex": accepts.regex}


def _plain_number(bound: Any) -> Any:
    return float(bound) if isinstance(bound, Decimal) else bound


def _type_problem(annotation: Any, descriptor: Field[Any]) -> Problem:
    site, scale = descriptor.site, descriptor.accepts.scale
    if is_decimal(annotation):
        text = f"a Decimal column has 0 to {MAX_SCALE} digits after the point; found scale={scale!r:.40}"
        return Problem("invalid_scale", "", text, "Write field(scale=2).", site.file, site.line)
    text = f"{describe_annotation(annotation)} is not a column type"
    return Problem("unknown_type", "", text, SUPPORTED, site.file, site.line)


def _restriction_problem(annotation: Any, descriptor: Field[Any]) -> Problem | None:
    """Restrictions that are no values of their kind; whether they fit the column is checked with the commit."""
    accepts, site = descriptor.accepts, descriptor.site
    text, hint = "", ""
    if accepts.scale is not None and not is_decimal(annotation):
        text = f"scale= is for Decimal columns; found {describe_annotation(annotation)}"
        hint = "Leave it out, or declare the column as Decimal."
    elif not all(map(_is_bound, _bounds(accepts))):
        text = f"min and max are numbers; found min={accepts.minimum!r:.40}, max={accepts.maximum!r:.40}"
        hint = "Write field(min=0, max=100)."
    elif accepts.one_of is not None and not _lists_values(accepts.one_of):
        text = f"one_of lists the values accepted; found {accepts.one_of!r:.40}"
        hint = 'Write field(one_of=["a", "b"]).'
    return Problem("invalid_restriction", "", text, hint, site.file, site.line) if text else None


def _lists_values(given: object) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, str) and bool(given)


def _is_bound(given: object) -> bool:
    """Whether it is left open, or a number that a bound can hold; of integers those that a float reaches."""
    if isinstance(given, int) and not isinstance(given, bool):
        return abs(given) <= sys.float_info.max
    return isinstance(given, float | Decimal | None)


def _bounds(accepts: Restrictions) -> tuple[Any, Any]:
    return accepts.minimum, accepts.maximum


def _plain(cls: type, declared: Declared, name: str, value: object) -> Field[Any]:
    """A descriptor for a column written as a bare annotation."""
    if isinstance(value, FunctionType):
        members(cls, notes(value).role)  # taken up: it is reported once
        subject, text = f"{cls.__name__}.{name}", f"`{name}` names a column and a method of the class"
        declared.problem("duplicate_name", subject, text, "Rename one of them.", site=function_site(value))
    elif value is not None:
        subject = f"{cls.__name__}.{name}"
        declared.problem("invalid_value", subject, "a column has no default", f"Write `{name}: <type> = field()`.")
    descriptor = Field[Any](declared.site)
    descriptor.__set_name__(cls, name)
    setattr(cls, name, descriptor)
    return descriptor


def _check_roles(cls: type, fields: Iterable[FieldDef], site: Site) -> None:
    marked = [value for value in vars(cls).values() if isinstance(value, Field)]
    known = {column.name for column in fields}
    for role in ("key", "timestamp"):
        found = [column.name for column in marked if getattr(column, role)]
        if len(found) != 1:
            shown = ", ".join(found) or "none"
            _refuse(
                f"{role}_count", cls.__name__, f"a dataset has exactly one {role} column; found {shown}",
                f"Mark one column with field({role}=True).", site,
            )  # fmt: skip
    for column in (column for column in marked if column.key and column.optional and column.name in known):
        message = f"the key `{column.name}` is optional"
        _refuse("optional_key", f"{cls.__name__}.{column.name}", message, "A key is never null.", column.site)


def _retention(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        refuse_here("invalid_duration", name, f"retention: {error}", "Write retention='30d'.", DeclarationValueError)
        return None


def _refuse(code: str, subject: str, message: str, hint: str, site: Site) -> None:
    refuse(Problem(code, subject, message, hint, site.file, site.line), DeclarationValueError)


def _expectations(cls: type, declared: Declared) -> tuple[ExpectationDef, ...]:
    found: tuple[ExpectationDef, ...] = ()
    for _, _, noted in members(cls, "expectations"):
        if noted.expectations is not None:
            found += noted.expectations(declared)
    return found
