"""Rules for datasets: their columns, what may stand in them, and what feeds them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from featurelib.definitions import INDEX_SUFFIX, LONGEST_NAME, DatasetDef, Definitions, FieldDef
from featurelib.expr import pattern_mistake
from featurelib.inference import Columns, is_number, unknown_column
from featurelib.types import element_type
from featurelib.validation.findings import Finding, of_mistake
from featurelib.validation.types import KEY_TYPES, holds, shown_type

_EVENT_ID_TYPES = ("str", "int")


def check_dataset(dataset: DatasetDef, world: Definitions) -> Iterator[Finding]:
    """Every mistake of a dataset."""
    key = f"dataset:{dataset.name}"
    yield from _roles(dataset, key)
    yield from _names(dataset, key)
    for column in dataset.fields:
        place, subject = f"{key}.{column.name}", f"{dataset.name}.{column.name}"
        for text, hint in _restrictions(column):
            yield Finding("invalid_restriction", place, subject, text, hint)
    yield from _event_id(dataset, key)
    yield from _expectations(dataset, key)
    yield from _feeding(dataset, key, world)


def _roles(dataset: DatasetDef, key: str) -> Iterator[Finding]:
    for role in ("key", "timestamp"):
        marked = [column.name for column in dataset.fields if getattr(column, role)]
        if len(marked) != 1:
            text = f"a dataset has exactly one {role} column; found {', '.join(marked) or 'none'}"
            yield Finding(f"{role}_count", key, dataset.name, text, f"Mark one column with field({role}=True).")
    for column in dataset.fields:
        place, subject = f"{key}.{column.name}", f"{dataset.name}.{column.name}"
        if column.key and column.optional:
            text = f"the key `{column.name}` is optional"
            yield Finding("optional_key", place, subject, text, "A key is never null.")
        if column.key and column.type not in KEY_TYPES:
            text = f"a key is one of {', '.join(sorted(KEY_TYPES))}; found {column.type}"
            yield Finding("key_type", place, subject, text, "Declare it as str, or mark another column.")
        if column.timestamp and (column.type != "datetime" or column.optional):
            text = f"the event time is a datetime that is never null; found {shown_type(column)}"
            yield Finding("timestamp_type", place, subject, text, f"Write `{column.name}: datetime`.")


def _names(dataset: DatasetDef, key: str) -> Iterator[Finding]:
    if dataset.index and len(dataset.name) > LONGEST_NAME - len(INDEX_SUFFIX):
        text = f"an indexed dataset has a name of at most {LONGEST_NAME - len(INDEX_SUFFIX)} characters"
        yield Finding("invalid_value", key, dataset.name, f"{text}; found {len(dataset.name)}", "Shorten it.")
    for name, count in Counter(column.name for column in dataset.fields).items():
        if count > 1:
            text = f"the column `{name}` is declared {count} times"
            yield Finding("duplicate_name", key, f"{dataset.name}.{name}", text, "Leave one of them out.")
        if name.startswith("__"):
            text = f"`{name}`: names with two leading underscores belong to the platform"
            yield Finding("reserved_name", f"{key}.{name}", f"{dataset.name}.{name}", text, "Rename the column.")


def _restrictions(column: FieldDef) -> Iterator[tuple[str, str]]:
    """What is wrong with ``min``, ``max``, ``one_of`` and ``regex``, with hints."""
    bounds = [bound for bound in (column.minimum, column.maximum) if bound is not None]
    if bounds and not is_number(column.type):
        yield f"min and max bound numbers; `{column.name}` is {column.type}", "Leave them out, or write one_of=[…]."
    elif not all(math.isfinite(bound) for bound in bounds):
        yield f"a bound is a finite number; found {column.minimum} … {column.maximum}", "Leave an open side out."
    elif len(bounds) == 2 and bounds[0] > bounds[1]:  # noqa: PLR2004  # both sides are given
        yield f"min={column.minimum} is above max={column.maximum}; no value fits", "Swap them."
    if column.one_of and element_type(column.type):
        yield f"one_of lists single values; `{column.name}` is {column.type}", "Leave it out."
    strange = [value for value in column.one_of if not element_type(column.type) and not holds(column.type, value)]
    if strange:
        yield f"one_of holds {strange[0]!r}, which is no {column.type}", f"Give values of type {column.type}."
    if column.regex is not None:
        yield from _regex(column, column.regex)


def _regex(column: FieldDef, pattern: str) -> Iterator[tuple[str, str]]:
    if column.type != "str":
        yield f"regex matches text; `{column.name}` is {column.type}", "Leave it out, or declare the column as str."
    wrong = pattern_mistake(pattern)
    if wrong:
        yield f"regex={pattern!r:.60}: {wrong}", "Write a regular expression; the whole value must fit it."


def _event_id(dataset: DatasetDef, key: str) -> Iterator[Finding]:
    if dataset.event_id is None:
        return
    column = dataset.field(dataset.event_id)
    if column is None:
        types = Columns(dataset.name, {column.name: column.type for column in dataset.fields})
        yield of_mistake(unknown_column(dataset.event_id, types), key, dataset.name, "event_id")
    elif column.type not in _EVENT_ID_TYPES or column.optional:
        text = f"event_id names a str or int that is never null; `{column.name}` is {shown_type(column)}"
        yield Finding("event_id_type", key, dataset.name, text, "Name a column that identifies each event.")


def _expectations(dataset: DatasetDef, key: str) -> Iterator[Finding]:
    columns = Columns(dataset.name, {column.name: column.type for column in dataset.fields})
    for rule in dataset.expectations:
        place, subject = f"{key}.{rule.type}({rule.column})", f"{dataset.name}.{rule.type}"
        if rule.column not in columns.types:
            yield of_mistake(unknown_column(rule.column, columns), place, subject)
        elif rule.type == "column_values_between" and not is_number(columns.types[rule.column]):
            text = f"`{rule.column}` is {columns.types[rule.column]}; bounds hold for numbers"
            yield Finding("type_mismatch", place, subject, text, "Expect values in a set instead.")


def _feeding(dataset: DatasetDef, key: str, world: Definitions) -> Iterator[Finding]:
    makers = sorted({p.name for p in world.pipelines if p.output_dataset == dataset.name})
    if len(makers) > 1:
        text = f"several pipelines fill it: {', '.join(makers)}"
        yield Finding("two_producers", key, dataset.name, text, "Give each an output dataset of its own.")
    if makers and world.source(dataset.name):
        text = f"it has a source and is filled by the pipeline `{makers[0]}`"
        yield Finding("source_on_derived", key, dataset.name, text, "A dataset is fed by one of them.")
    if dataset.upsert and (makers or world.cdc(dataset.name) != "append"):
        by = f"the pipeline `{makers[0]}` says" if makers else f"its source's cdc={world.cdc(dataset.name)!r} says"
        text = f"upsert=True is of records that are appended; {by} which of them count"
        yield Finding("upsert_without_records", key, dataset.name, text, "Leave out upsert=True.")
