"""How rows are printed: a table for people, JSON or CSV for programs."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any, TextIO

_EXACT_BELOW = 100_000


class Format(StrEnum):
    """How a result is printed."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    ARROW = "arrow"

    @property
    def is_binary(self) -> bool:
        """Whether it is written to a file only."""
        return self in {Format.PARQUET, Format.ARROW}


def print_rows(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], form: Format) -> None:
    """Rows on stdout, nothing else, as a table, JSON or CSV."""
    if form is Format.JSON:
        print_json(list(rows))
    elif form is Format.CSV:
        write_csv(columns, rows, sys.stdout)
    elif rows and _is_wide(columns, rows):
        print_table(["", *("" for _ in rows)], [[name, *(_text(row.get(name)) for row in rows)] for name in columns])
    else:
        print_table(columns, [[_text(row.get(name)) for name in columns] for row in rows])


def write_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], file: TextIO) -> None:
    """Rows as CSV; lists, objects and bools as JSON text."""
    writer = csv.DictWriter(file, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(row.get(name)) for name in columns} for row in rows)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, whole: Sequence[str] = ()) -> None:
    """A table that wraps long cells and never cuts them, those of the columns in ``whole`` last."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
        column.no_wrap = column.header in whole
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)


def age(seconds: float | None) -> str:
    """A span of time in the unit people would use, rounded; empty for ``None``."""
    if seconds is None:
        return ""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"


def number(count: int | None) -> str:
    """A count, rounded where it has more digits than people read at a glance; empty for ``None``."""
    if count is None:
        return ""
    for letter, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= max(size, _EXACT_BELOW):
            return f"{count / size:.1f} {letter}"
    return f"{count:,}"


def say(found: Any, said: str, *, as_json: bool) -> None:
    """What was done: as JSON, or in a sentence."""
    if as_json:
        print_json(found)
    else:
        print(said)


def print_json(value: Any) -> None:
    """Indented JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _is_wide(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a few rows of many columns read better on their side: one line per column."""
    from rich.console import Console

    needed = sum(3 + max(len(name), *(len(_text(row.get(name))) for row in rows)) for name in columns)
    return len(rows) < len(columns) and needed > Console().width


def _cell(value: Any) -> Any:
    # Readers of CSV know `true`, not Python's `True`: Polars would make texts of them.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict | bool) else value


def _text(value: Any) -> str:
    if isinstance(value, list | dict | bool) or value is None:
        return json.dumps(value, ensure_ascii=False)
    return str(value)
