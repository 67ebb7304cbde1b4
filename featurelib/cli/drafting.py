"""Records seen → a module of definitions that compiles: what ``thyme discover`` writes.

:func:`draft` is the drafter that is always there: equal records give an equal module. Others come with packages, as
entry points of the group ``thyme.drafters``: a callable that takes a :class:`Brief` and gives the module's text.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import featurelib
from featurelib.clock import parse_duration, parse_instant
from featurelib.errors import ConfigError, InvalidRequest, InvalidTimestamp

Drafter = Callable[["Brief"], str]
GROUP = "thyme.drafters"
OWN = "deterministic"
_TIME_NAMES = re.compile(r"(^|_)(at|ts|time|timestamp|date|datetime|when)$", re.IGNORECASE)
_ID_NAMES = re.compile(r"(^|_)(id|uuid|key|code|number|no)$", re.IGNORECASE)
# Other letters are in no name; in a class Python spells a name that begins with two underscores in another way.
_NAME = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]{0,99}")
# Numbers that may be instants: 2000 to 2100, in seconds. Outside it a number in a column named like a time is a number.
_SECONDS = range(946_684_800, 4_102_444_800)
# A column with more different values than this in the sample is a name or an id, of which counts tell nothing.
_MOST_CATEGORIES = 20
# In the body of a class a column of such a name would stand in the way of the type or the function.
_TAKEN = frozenset({"datetime", "Optional", "bool", "float", "int", "list", "str", *featurelib.__all__})
_SCALARS = {bool: "bool", int: "int", float: "float", str: "str", Decimal: "float"}


class Column(NamedTuple):
    """A column of the records.

    Attributes:
        name: as the records have it.
        type: as a dataset declares it; empty for what a dataset cannot hold.
        optional: whether a record had none.
        distinct: how many different values were seen.
    """

    name: str
    type: str
    optional: bool
    distinct: int


class Brief(NamedTuple):
    """What a drafter is told.

    Attributes:
        dataset: name of the dataset to declare.
        source: the expression of its connector, such as ``FileSource(path='rides.jsonl')``.
        imports: names of ``featurelib`` that the expression needs.
        schedule: the further arguments of ``@source``, as text: ``cursor='at', every='10s'``.
        columns: those of the records.
        key: the column of entities.
        timestamp: the column of event time.
        windows: durations.
        use_case: what the features are for, in the user's words.
        sample: a few records.
        api_key: for a drafter that asks a service; empty when none was given.
    """

    dataset: str
    source: str
    imports: tuple[str, ...]
    schedule: str
    columns: tuple[Column, ...]
    key: Column
    timestamp: Column
    windows: tuple[str, ...]
    use_case: str = ""
    sample: tuple[Mapping[str, Any], ...] = ()
    api_key: str = ""


def drafter(name: str) -> Drafter:
    """Our own drafter, or that of an installed package.

    Raises:
        ConfigError: there is none of that name; lists those there are.
    """
    if name == OWN:
        return draft
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        message = f"there is no drafter {name!r}; installed are: {', '.join(sorted({OWN, *found}))}"
        raise ConfigError(message)
    made: Drafter = found[name].load()
    return made


def columns_of(records: Sequence[Mapping[str, Any]], *, texts: bool) -> tuple[Column, ...]:
    """The columns of some records, in the order in which they turn up.

    Args:
        records: as they came.
        texts: values are text that stands for others, as in CSV.
    """
    names = dict.fromkeys(name for record in records for name in record)
    return tuple(_column(name, [record.get(name) for record in records], texts=texts) for name in names)


def _column(name: str, values: Sequence[Any], *, texts: bool) -> Column:
    there = [value for value in values if value is not None and value != ""]
    kinds = {_type(value, name, texts=texts) for value in there}
    kind = "float" if kinds == {"int", "float"} else kinds.pop() if len(kinds) == 1 else "str" if texts else ""
    if not is_name(name) or name in _TAKEN:
        kind = ""
    return Column(name, kind, len(there) < len(values), len({json.dumps(value, default=str) for value in there}))


def is_name(text: str) -> bool:
    """Whether a definition can be named so, in the body of a class too, with a window behind it."""
    return bool(_NAME.fullmatch(text)) and not keyword.iskeyword(text)


def _type(value: Any, name: str, *, texts: bool) -> str:
    if isinstance(value, list | tuple):
        inner = {_type(each, "", texts=False) for each in value}
        return f"list[{inner.pop()}]" if len(inner) == 1 and inner <= set(_SCALARS.values()) else ""
    if isinstance(value, datetime | date):
        return "datetime"
    if isinstance(value, str):
        return _type_of_text(value, texts=texts)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "datetime" if _TIME_NAMES.search(name) and int(value) in _SECONDS else _SCALARS[type(value)]
    return _SCALARS.get(type(value), "")


def _type_of_text(text: str, *, texts: bool) -> str:
    if re.match(r"\d{4}-\d{2}-\d{2}", text) and _is_instant(text):
        return "datetime"
    if texts and text.lower() in {"true", "false"}:
        return "bool"
    if texts and re.fullmatch(r"[+-]?(0|[1-9]\d{0,17})", text):
        return "int"
    return "float" if texts and re.fullmatch(r"[+-]?(0|[1-9]\d*)(\.\d*)?([eE][+-]?\d+)?", text) else "str"


def _is_instant(text: str) -> bool:
    try:
        parse_instant(text)
    except InvalidTimestamp:
        return False
    return True


def choose_key(columns: Sequence[Column], rows: int, wanted: str = "") -> Column:
    """The column of entities: the wanted one, else a text or whole number that repeats, best one named like an id.

    Raises:
        InvalidRequest: there is none; lists the columns.
    """
    able = [each for each in columns if each.type in {"str", "int"} and not each.optional]
    if wanted:
        able = [each for each in able if each.name == wanted]
    repeated = [each for each in able if each.distinct < rows]
    named = [each for each in (repeated or able) if _ID_NAMES.search(each.name)]
    return _first(named or repeated or able, columns, wanted or "a key", "--entity-key")


def choose_timestamp(columns: Sequence[Column], wanted: str = "") -> Column:
    """The column of event time: the wanted one, else one of instants, best one named like it.

    Raises:
        InvalidRequest: there is none; lists the columns.
    """
    able = [each for each in columns if each.type == "datetime" and not each.optional]
    if wanted:
        able = [each for each in able if each.name == wanted]
    named = [each for each in able if _TIME_NAMES.search(each.name)]
    return _first(named or able, columns, wanted or "an event time", "--timestamp")


def _first(able: Sequence[Column], columns: Sequence[Column], wanted: str, option: str) -> Column:
    if able:
        return able[0]
    listed = ", ".join(f"{each.name}: {each.type or 'mixed'}{' or none' if each.optional else ''}" for each in columns)
    message = f"no column can be {wanted}; {option} names one of: {listed or 'no columns'}"
    raise InvalidRequest(message)


def draft(brief: Brief) -> str:
    """The module: the dataset, a pipeline of windowed aggregates per entity, and a featureset that looks them up."""
    aggregates = list(_aggregates(brief))
    used = sorted({each.kind for each in aggregates})
    fixed = ("dataset", "feature", "featureset", "field", "inputs", "pipeline", "source")
    conditions = ("col",) if any("col(" in each.code for each in aggregates) else ()
    names = sorted({*fixed, *conditions, *used, *brief.imports}, key=lambda name: (name[0].islower(), name))
    parts = [_head(brief, names), _dataset(brief), _stats(brief, aggregates), _featureset(brief, aggregates)]
    return "\n\n".join(parts) + "\n"


class _Aggregate(NamedTuple):
    """An aggregate's output column, the operator, its declaration, and what an empty window gives."""

    output: str
    kind: str
    code: str
    type: str
    default: str


def _aggregates(brief: Brief) -> Iterator[_Aggregate]:
    for window in brief.windows:
        yield _Aggregate(f"count_{window}", "Count", f'Count(window="{window}")', "int", "0")
    others = [each for each in brief.columns if each.type and each not in {brief.key, brief.timestamp}]
    for column in others:
        if column.type in {"int", "float"} and not _ID_NAMES.search(column.name):
            yield from _of_number(column, brief.windows)
        elif column.type == "bool":
            yield from _of_condition(column, brief.windows)
        elif column.type == "str":
            yield from _of_text(column, brief.windows)


def _of_number(column: Column, windows: Sequence[str]) -> Iterator[_Aggregate]:
    zero = "0" if column.type == "int" else "0.0"
    for window in windows:
        of = f'of="{column.name}", window="{window}"'
        yield _Aggregate(f"{column.name}_sum_{window}", "Sum", f"Sum({of})", column.type, zero)
        yield _Aggregate(f"{column.name}_avg_{window}", "Avg", f"Avg({of})", "float", "0.0")
        yield _Aggregate(f"{column.name}_max_{window}", "Max", f"Max({of})", column.type, zero)


def _of_condition(column: Column, windows: Sequence[str]) -> Iterator[_Aggregate]:
    for window in windows:
        code = f'Count(window="{window}", where=col("{column.name}") == True)'
        yield _Aggregate(f"{column.name}_count_{window}", "Count", code, "int", "0")


def _of_text(column: Column, windows: Sequence[str]) -> Iterator[_Aggregate]:
    longest = max(windows, key=parse_duration)
    of = f'of="{column.name}", window="{longest}"'
    if column.distinct <= _MOST_CATEGORIES:
        yield _Aggregate(f"{column.name}_last_{longest}", "Last", f"Last({of})", "str", "")
    yield _Aggregate(f"{column.name}_distinct_{longest}", "ApproxDistinct", f"ApproxDistinct({of})", "int", "0")


def _head(brief: Brief, names: Sequence[str]) -> str:
    about = f"{brief.dataset}, drafted from records of its source."
    imports = "\n".join(f"    {name}," for name in names)
    typing = "from typing import Optional\n" if any(each.optional for each in _declared(brief)) else ""
    skipped = [each.name for each in brief.columns if not each.type]
    left_out = f"\n# Left out for their values or their names: {', '.join(map(repr, skipped))}.\n" if skipped else ""
    text = _one_line(brief.use_case)
    why = f"\n\n{text}\n" if text else ""
    return (
        f'"""{about}{why}"""\n\nfrom datetime import datetime\n{typing}\n'
        f"from featurelib import (\n{imports}\n)\n{left_out}"
    )


def _one_line(text: str) -> str:
    """Free text that can stand in a docstring."""
    return " ".join(text.replace("\\", "/").replace('"', "'").split())


def _declared(brief: Brief) -> list[Column]:
    return [each for each in brief.columns if each.type]


def _dataset(brief: Brief) -> str:
    schedule = f", {brief.schedule}" if brief.schedule else ""
    lines = [f"@source({brief.source}{schedule})", "@dataset(version=1)", f"class {brief.dataset}:"]
    for each in _declared(brief):
        mark = "key=True" if each == brief.key else "timestamp=True" if each == brief.timestamp else ""
        of = f"Optional[{each.type}]" if each.optional else each.type
        lines.append(f"    {each.name}: {of} = field({mark})")
    return "\n".join(lines) + "\n"


def _stats(brief: Brief, aggregates: Sequence[_Aggregate]) -> str:
    key = brief.key
    outputs = [f"    {each.output}: {each.type} = field()" for each in aggregates]
    specs = [f"            {each.output}={each.code}," for each in aggregates]
    lines = [
        "@dataset(index=True, version=1)",
        f"class {brief.dataset}Stats:",
        f"    {key.name}: {key.type} = field(key=True)",
        *outputs,
        f"    {_free('as_of', brief, aggregates)}: datetime = field(timestamp=True)",
        "",
        "    @pipeline(version=1)",
        f"    @inputs({brief.dataset})",
        f"    def {_snake(brief.dataset)}_by_{key.name}(cls, records):",
        f'        return records.groupby("{key.name}").aggregate(',
        *specs,
        "        )",
    ]
    return "\n".join(lines) + "\n"


def _featureset(brief: Brief, aggregates: Sequence[_Aggregate]) -> str:
    key, stats = brief.key, f"{brief.dataset}Stats"
    text = _one_line(brief.use_case)
    about = f", description={json.dumps(text, ensure_ascii=False)}" if text else ""
    lines = [
        f'@featureset(entity_type="{key.name}"{about})',
        f"class {brief.dataset}Features:",
        f"    {key.name}: {key.type} = feature()",
    ]
    for each in aggregates:
        default = f", default={each.default}" if each.default else ""
        lines.append(f"    {each.output}: {each.type} = feature(ref={stats}.{each.output}{default})")
    return "\n".join(lines)


def _snake(name: str) -> str:
    """``RideEvents`` → ``ride_events``; a pipeline's name is its own on the platform."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _free(name: str, brief: Brief, aggregates: Sequence[_Aggregate]) -> str:
    taken = {brief.key.name, *(each.output for each in aggregates)}
    return name if name not in taken else f"{name}_instant"
