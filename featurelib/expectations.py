"""Expectations: rules about a dataset's columns that are observed and never reject a record."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import FunctionType
from typing import Any, TypeVar

from pydantic import ValidationError

from featurelib.declarations import FAILED, Declared, assign_role, function_site, refuse_here, run_body
from featurelib.definitions import ExpectationDef
from featurelib.errors import DeclarationValueError
from featurelib.types import Scalar

F = TypeVar("F", bound=Callable[..., Any])


def expectations(method: F) -> F:
    """Mark a dataset's method ``def rules(cls)`` that returns a list of ``expect_column_*`` results."""
    if isinstance(method, FunctionType):
        assign_role(method, "expectations").expectations = partial(_build, method)
    return method


def expect_column_values_to_be_between(
    column: str, min_value: float | None = None, max_value: float | None = None, mostly: float = 1.0
) -> ExpectationDef:
    """Numbers lie between the bounds, both included; null and non-numbers fail."""
    return ExpectationDef(
        type="column_values_between",
        column=column,
        min_value=min_value,
        max_value=max_value,
        mostly=_share(column, mostly),
    )


def expect_column_values_to_not_be_null(column: str, mostly: float = 1.0) -> ExpectationDef:
    """Values are present and not null."""
    return ExpectationDef(type="column_values_not_null", column=column, mostly=_share(column, mostly))


def expect_column_values_to_be_in_set(column: str, values: Iterable[Scalar], mostly: float = 1.0) -> ExpectationDef:
    """Values are among ``values``."""
    return ExpectationDef(
        type="column_values_in_set", column=column, values=tuple(values), mostly=_share(column, mostly)
    )


def expect_column_values_to_be_of_type(column: str, type_name: str, mostly: float = 1.0) -> ExpectationDef:
    """Values are of the type ``int``, ``float`` (which takes ``int`` too), ``str`` or ``bool``."""
    return ExpectationDef(
        type="column_values_of_type", column=column, type_name=type_name, mostly=_share(column, mostly)
    )


def _share(column: str, mostly: float) -> float:
    if not 0.0 <= mostly <= 1.0:
        hint = "Write mostly=0.99 for 99 % of a batch."
        refuse_here("invalid_value", column, f"mostly={mostly} is not a share", hint, DeclarationValueError)
        return 1.0
    return mostly


def _build(method: FunctionType, declared: Declared) -> tuple[ExpectationDef, ...]:
    subject = f"{declared.name}.{method.__name__}"
    returned = run_body(lambda: method(None), method, subject, declared, "expectations_body")
    if returned is FAILED:
        return ()
    if not isinstance(returned, list | tuple):
        text, hint = f"the body returned {returned!r:.40}", "Return a list of expect_column_* results."
        declared.problem("expectations_body", subject, text, hint, site=function_site(method))
        return ()
    try:
        found = tuple(ExpectationDef.model_validate(rule) for rule in returned)
    except ValidationError as error:
        declared.invalid(error, subject, function_site(method))
        return ()
    for rule in found:
        declared.locations[f"dataset:{declared.name}.{rule.type}({rule.column})"] = function_site(method).location
    return found
