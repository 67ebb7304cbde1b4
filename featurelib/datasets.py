"""``@dataset`` and ``field``: a class that names the columns of an event stream.

The decorated class is a plain dataclass of rows: ``Transaction(user="u1", amount=2.0, at=now)`` holds
values, while ``Transaction.amount`` is the column itself, for ``feature(ref=Transaction.amount)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast, dataclass_transform, overload

from pydantic import ValidationError

from featurelib.annotations import SUPPORTED, annotations_of, column_type, describe_annotation
from featurelib.clock import parse_duration
from featurelib.declarations import (
    Declared,
    Reference,
    Site,
    attach,
    calling_site,
    catalog_metadata,
    members,
    refuse,
    refuse_here,
)
from featurelib.definitions import DatasetDef, ExpectationDef, FieldDef
from featurelib.errors import DeclarationTypeError, DeclarationValueError, Problem

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Field(Reference, Generic[T]):
    """A column. On the class it is the column itself, on an instance it is the row's value."""

    def __init__(self, site: Site, *, key: bool = False, timestamp: bool = False) -> None:
        super().__init__(site)
        self.key = key
        self.timestamp = timestamp
        self.optional = False

    @overload
    def __get__(self, instance: None, owner: type) -> Field[T]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: object | None, owner: type) -> Field[T] | T:
        if instance is None:
            return self
        return cast("T", vars(instance)[self.name])

    def __set__(self, instance: object, value: T | Field[T]) -> None:
        # A column left out of the constructor arrives as the descriptor, which is the dataclass default.
        if value is self and not self.optional:
            message = f"{type(instance).__name__}() is missing {self.name!r}"
            raise TypeError(message)
        vars(instance)[self.name] = None if value is self else value

    def __repr__(self) -> str:
        return f"<Field {self.fqn()}>"


def field(key: bool = False, timestamp: bool = False) -> Any:
    """Declare a column.

    Args:
        key: the entity key; a dataset has exactly one.
        timestamp: the event time; a dataset has exactly one.
    """
    return Field[Any](calling_site(), key=key, timestamp=timestamp)


@dataclass_transform(field_specifiers=(field,))
def dataset(index: bool = False, version: int = 1, retention: str | None = None, **catalog: Any) -> Callable[[C], C]:
    """Declare a dataset.

    Args:
        index: keep the newest row of each key, for look-ups and looked-up features.
        version: raise it when the meaning of a committed dataset changes.
        retention: how long the log is kept, ``<int><d|h|m|s>``; also how far back a backfill can reach.
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
        _build(cls, declared, fields, site, index=index, version=version, retention=retention, catalog=catalog)
        for _, _, noted in members(cls, "pipeline"):
            if noted.pipeline is not None:
                noted.pipeline(declared)
        return dataclass(cls)  # type: ignore[return-value]

    return decorate


def _build(  # noqa: PLR0913  # one argument per keyword of the decorator
    cls: type,
    declared: Declared,
    fields: tuple[FieldDef, ...],
    site: Site,
    *,
    index: bool,
    version: int,
    retention: str | None,
    catalog: dict[str, Any],
) -> None:
    declared.locations[f"dataset:{cls.__name__}"] = site.location
    expectations = _expectations(cls, declared)
    try:
        definition = DatasetDef(
            name=cls.__name__,
            version=version,
            fields=fields,
            index=index,
            retention_us=_retention(cls.__name__, retention),
            expectations=expectations,
            metadata=catalog_metadata(catalog),
        )
    except ValidationError as error:
        declared.invalid(error, cls.__name__, site)
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
    known = column_type(annotation)
    if known is None:
        text = f"{describe_annotation(annotation)} is not a column type"
        declared.problem("unknown_type", subject, text, SUPPORTED, site=descriptor.site)
        declared.broken.add(subject)
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
        )
    except ValidationError as error:
        declared.invalid(error, subject, descriptor.site)
        declared.broken.add(subject)
        return None


def _plain(cls: type, declared: Declared, name: str, value: object) -> Field[Any]:
    """A descriptor for a column written as a bare annotation."""
    if value is not None:
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
        refuse_here("invalid_duration", name, f"retention: {error}", "", DeclarationValueError)
        return None


def _refuse(code: str, subject: str, message: str, hint: str, site: Site) -> None:
    refuse(Problem(code, subject, message, hint, site.file, site.line), DeclarationValueError)


def _expectations(cls: type, declared: Declared) -> tuple[ExpectationDef, ...]:
    found: tuple[ExpectationDef, ...] = ()
    for _, _, noted in members(cls, "expectations"):
        if noted.expectations is not None:
            found += noted.expectations(declared)
    return found
