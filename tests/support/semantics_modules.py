"""Feature modules for golden cases: what a case's spec says, as a user of the SDK would write it."""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import featurelib
from featurelib.aggregates import result_type

HEAD = """\
from datetime import datetime
from decimal import Decimal
from typing import Optional

from featurelib import *
"""
ROW_ID = "row_id"
"""The key of a raw dataset without a single column for it: several columns as one text, or a row's own id."""


class NotOffered(Exception):
    """A case, or one of its values, asks for something the platform has not; the text is the reason."""


@dataclass(frozen=True)
class Table:
    """A raw dataset: column → type name, and how its records follow each other."""

    name: str
    columns: Mapping[str, str]
    key: str = ROW_ID
    clock: str = "ts"
    cdc: str = "append"
    event_id: str = ""
    max_lateness: str = ""
    index: bool = False
    expectations: Sequence[str] = ()

    def text(self) -> str:
        """The class."""
        lines = [f"{self._source()}@dataset({self._options()})", f"class {self.name}:"]
        lines.append(f"    {self.key}: {self.columns.get(self.key, 'str')} = field(key=True)")
        lines += [_column(n, kind, required=n == self.event_id) for n, kind in self.columns.items() if n != self.key]
        lines += [f"    {self.clock}: datetime = field(timestamp=True)"]
        return "\n".join([*lines, *self._expectations(), ""])

    def _expectations(self) -> list[str]:
        rules = ", ".join(self.expectations)
        return ["", "    @expectations", "    def rules(cls):", f"        return [{rules}]"] if rules else []

    def _source(self) -> str:
        if self.cdc == "append" and not self.max_lateness:
            return ""
        # Records are sent by hand: what the source itself reads is empty.
        options = ['FileSource(path="/dev/null", format="jsonl")', f'cdc="{self.cdc}"']
        options += [f'max_lateness="{self.max_lateness}"'] if self.max_lateness else []
        return f"@source({', '.join(options)})\n"

    def _options(self) -> str:
        return ", ".join(
            [*(["index=True"] if self.index else []), *([f'event_id="{self.event_id}"'] if self.event_id else [])]
        )


@dataclass(frozen=True)
class Output:
    """A dataset filled by a pipeline: its body is a chain over the nodes named like the inputs, in lower case."""

    name: str
    keys: Sequence[str]
    key_types: Mapping[str, str]
    columns: Mapping[str, str]
    inputs: Sequence[str]
    chain: str
    clock: str = "ts"

    @property
    def key(self) -> str:
        """The key column: several group keys make one text."""
        return self.keys[0] if len(self.keys) == 1 else "group_key"

    @property
    def key_type(self) -> str:
        return self.key_types[self.keys[0]] if len(self.keys) == 1 else "str"

    def text(self) -> str:
        """The class."""
        nodes = ", ".join(f"node{place}" for place in range(len(self.inputs)))
        lines = ["@dataset(index=True)", f"class {self.name}:", f"    {self.key}: {self.key_type} = field(key=True)"]
        lines += [_column(name, kind) for name, kind in self.columns.items()]
        lines += [f"    {self.clock}: datetime = field(timestamp=True)", "", "    @pipeline()"]
        lines += [f"    @inputs({', '.join(self.inputs)})", f"    def fill_{self.name}(cls, {nodes}):"]
        return "\n".join([*lines, f"        return {self.chain}", ""])


@dataclass(frozen=True)
class Features:
    """A featureset of looked-up columns (``features``: name → (dataset, column, type, default)) and more lines."""

    name: str
    entity: str
    entity_type: str
    looked_up: Mapping[str, tuple[str, str, str, Any]]
    more: str = ""

    def text(self) -> str:
        """The class."""
        lines = ["@featureset", f"class {self.name}:", f"    {self.entity}: {self.entity_type} = feature()"]
        for name, (dataset, column, kind, default) in self.looked_up.items():
            given = "" if default is None else f", default={default!r}"
            lines.append(f"    {name}: {annotation(kind)} = feature(ref={dataset}.{column}{given})")
        return "\n".join([*lines, self.more, ""])


@dataclass
class Module:
    """A module in the making: its classes in order."""

    prefix: str
    parts: list[str] = field(default_factory=list)

    def name(self, text: str) -> str:
        """A class name of this module."""
        return f"{self.prefix}_{re.sub(r'[^A-Za-z0-9_]', '_', text)}"

    def add(self, part: Table | Output | Features) -> str:
        """Add a class; returns its name."""
        self.parts.append(part.text())
        return part.name

    @property
    def text(self) -> str:
        return "\n\n".join([HEAD, *self.parts])


def annotation(kind: str) -> str:
    """The annotation of a column that may be null."""
    return f"Optional[{re.sub(_DECIMAL, 'Decimal', kind)}]"


_DECIMAL = r"decimal\((\d+)\)"


def _column(name: str, kind: str, *, required: bool = False) -> str:
    decimal = re.search(_DECIMAL, kind)
    return f"    {name}: {kind if required else annotation(kind)} = field({f'scale={decimal[1]}' if decimal else ''})"


def column_types(
    rows: Iterable[Mapping[str, Any]], decimals: Sequence[str] = (), skip: Sequence[str] = ()
) -> dict[str, str]:
    """A type for each column of some rows."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in skip:
                values.setdefault(name, []).append(value)
    for name in values:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise NotOffered(f"a column cannot be called {name!r}")
    return {name: _decimal(found) if name in decimals else _type(found) for name, found in values.items()}


def _decimal(values: Sequence[Any]) -> str:
    return f"decimal({max(len(str(value).partition('.')[2]) for value in values if value is not None)})"


def _type(values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {list}:
        return f"list[{_type([part for value in values for part in value or ()])}]"
    if dict in kinds or kinds - {bool, int, float, str, list}:
        return "str"
    if kinds and kinds <= {int, float}:
        return "float" if float in kinds else "int"
    return next(iter(kinds)).__name__ if len(kinds) == 1 else "str"


def window_text(spec: Mapping[str, Any]) -> str:
    """A window as the SDK writes it.

    Raises:
        NotOffered: the platform has no such window.
    """
    kind, options = str(spec.get("type", "continuous")), {k: v for k, v in spec.items() if k != "type"}
    known = _WINDOWS.get(kind)
    if known is None:
        raise NotOffered(f"the platform has no {kind} windows")
    name, members = known
    strange = set(options) - set(members)
    if strange:
        raise NotOffered(f"a {kind} window has no {', '.join(sorted(strange))}")
    given = [f"{members[key]}={value!r}" for key, value in options.items() if value is not None]
    return f"{name}({', '.join(given)})"


_WINDOWS: dict[str, tuple[str, dict[str, str]]] = {
    "continuous": ("Continuous", {"size": "size", "offset": "offset", "lookback": "offset", "max_rows": "max_rows"}),
    "sliding": ("Continuous", {"size": "size", "offset": "offset", "max_rows": "max_rows"}),
    "lifetime": ("Lifetime", {"offset": "offset", "max_rows": "max_rows"}),
    "forever": ("Lifetime", {}),
    "tumbling": ("Tumbling", {"size": "size", "duration": "size", "offset": "offset"}),
    "hopping": (
        "Hopping",
        {"size": "size", "duration": "size", "stride": "stride", "offset": "offset", "lookback": "lookback"},
    ),
    "session": ("Session", {"gap": "gap"}),
}

_AGGREGATES: dict[str, str] = {
    "count": "Count",
    "sum": "Sum",
    "avg": "Avg",
    "mean": "Avg",
    "average": "Avg",
    "min": "Min",
    "max": "Max",
    "stddev_pop": "Stddev",
    "stddev": "Stddev",
    "std_pop": "Stddev",
    "var_pop": "Variance",
    "variance_pop": "Variance",
    "variance": "Variance",
    "last": "Last",
    "latest": "Last",
    "first": "First",
    "last_k": "LastK",
    "first_k": "FirstK",
    "distinct": "Distinct",
    "distinct_values": "Distinct",
    "unique": "Distinct",
    "collect_set": "Distinct",
    "count_distinct": "Distinct",
    "distinct_count": "Distinct",
    "count_unique": "Distinct",
    "approx_count_distinct": "ApproxDistinct",
    "approx_distinct": "ApproxDistinct",
    "approx_count_unique": "ApproxDistinct",
    "percentile_rank_of_last": "ApproxPercentile",
    "percentile_rank": "ApproxPercentile",
    "approx_percentile": "ApproxPercentile",
    "quantile": "Quantile",
    "approx_quantile": "Quantile",
    "percentile": "Quantile",
    "median": "Quantile",
    "top_k": "TopK",
    "topk": "TopK",
    "approx_top_k": "TopK",
    "exp_decay_sum": "ExpDecaySum",
    "exp_decay": "ExpDecaySum",
    "decayed_sum": "ExpDecaySum",
}
_SAMPLES = {"stddev_samp", "var_samp", "variance_samp", "std_samp"}
COUNTED = {"count_distinct", "distinct_count", "count_unique"}
"""Exact counts of distinct values: the size of what Distinct gives."""
_QUANTILE = "q"


def aggregate_text(spec: Mapping[str, Any]) -> str:
    """An aggregate as the SDK writes it.

    Raises:
        NotOffered: the platform has no such aggregate, or not that option of it.
    """
    fn = str(spec["fn"])
    if fn in _SAMPLES:
        raise NotOffered(f"{fn}: deviations are of the population")
    name = _AGGREGATES.get(fn)
    if name is None or not hasattr(featurelib, name):
        raise NotOffered(f"the platform has no aggregate {fn}")
    given = [f"of={spec['of']!r}"] if spec.get("of") else []
    given.append(f"window={window_text(spec.get('window') or {'type': 'lifetime'})}")
    rest = {k: v for k, v in spec.items() if k not in ("name", "fn", "of", "window")}
    return f"{name}({', '.join([*given, *_options(fn, rest)])})"


def _options(fn: str, spec: Mapping[str, Any]) -> list[str]:
    found = ["q=0.5"] if fn == "median" else []
    for key, value in spec.items():
        if key == "where":
            found.append(f"where={predicate_text(value)}")
        elif key in ("q", "p", "quantile", "pct", "percentile"):
            found.append(_share(fn, key, float(value)))
        elif key in ("k", "dedup", "dropnull", "default"):
            found.append(f"{key}={value!r}")
        elif key in ("drop_null", "drop_nulls", "dropnulls"):
            found.append(f"dropnull={value!r}")
        elif key in ("half_life", "halflife"):
            found.append(f"half_life={value!r}")
        else:
            raise NotOffered(f"{fn} has no option {key}")
    return found


def _share(fn: str, key: str, value: float) -> str:
    percent = value if key in ("pct", "percentile") or value > 1 else value * 100
    return f"pct={percent!r}" if _AGGREGATES[fn] == "ApproxPercentile" else f"{_QUANTILE}={percent / 100!r}"


def predicate_text(spec: Any) -> str:
    """A predicate of a case (``field op value``, ``and``, ``or``, ``not``) as an expression.

    Raises:
        NotOffered: it has a form expressions do not have.
    """
    for word, sign in (("and", " & "), ("or", " | ")):
        if word in spec:
            return sign.join(f"({predicate_text(part)})" for part in spec[word])
    if "not" in spec:
        return f"~({predicate_text(spec['not'])})"
    column, op, value = f"col({(spec.get('field') or spec['column'])!r})", spec["op"], spec.get("value")
    if op in _NULL_TESTS or (value is None and op in _EQUAL):
        positive = op in ("is_null", "isnull") or (value is None and op in ("==", "eq", "="))
        return f"{'' if positive else '~'}{column}.is_null()"
    if op in ("in", "not_in", "not in"):
        within = " | ".join(f"({column} == {each!r})" for each in value or spec["values"])
        return f"{'' if op == 'in' else '~'}({within})"
    if op == "between":
        return f"({column} >= {value[0]!r}) & ({column} <= {value[1]!r})"
    if op not in _SIGNS:
        raise NotOffered(f"a predicate has no operator {op}")
    return f"{column} {_SIGNS[op]} {value!r}"


_NULL_TESTS = ("is_null", "isnull", "is_not_null", "not_null", "notnull")
_EQUAL = ("==", "eq", "=", "!=", "ne")
_SIGNS = {sign: sign for sign in ("==", "!=", "<", "<=", ">", ">=")} | {
    "=": "==", "eq": "==", "ne": "!=", "<>": "!=",
    "lt": "<", "le": "<=", "lte": "<=", "gt": ">", "ge": ">=", "gte": ">=",
}  # fmt: skip


def aggregate_type(text: str, columns: Mapping[str, str]) -> str:
    """The type of an aggregate's value.

    Raises:
        NotOffered: the SDK refuses the aggregate.
    """
    try:
        built = eval(text, dict(vars(featurelib)))  # our own text, in the SDK's names
        return result_type(built, columns.get(built.of))
    except (ValueError, TypeError, NameError) as error:
        raise NotOffered(f"the SDK refuses {text}: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The start of an error's text, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def as_text(value: Any) -> Any:
    """A value as a record carries it: objects travel as JSON text."""
    return json.dumps(value) if isinstance(value, dict) else value
