"""Rows that a caller holds in any form, as mappings; and what of a value JSON can carry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import date, datetime
from decimal import Decimal
from importlib.util import find_spec
from os import PathLike, fspath
from typing import Any

from featurelib.clock import format_instant, parse_instant
from featurelib.errors import InvalidRequest, MissingDriver

_ROWS_READ = 65_536


def rows_of(given: Any) -> list[Mapping[str, Any]]:
    """The rows of a Polars, pandas or Arrow table, or of a list of mappings or row objects.

    Raises:
        InvalidRequest: it is something else; says which row.
    """
    package = type(given).__module__.partition(".")[0]
    if package == "polars" and hasattr(given, "to_dicts"):
        return list(given.to_dicts())
    if package == "pandas" and hasattr(given, "to_dict"):
        # As objects: a missing value would be NaN, which JSON has not.
        return list(given.astype(object).where(given.notna(), None).to_dict("records"))
    if package == "pyarrow" and hasattr(given, "to_pylist"):
        return list(given.to_pylist())
    if isinstance(given, Mapping | str | bytes) or not hasattr(given, "__iter__"):
        message = f"rows are a table or a list of mappings, not {type(given).__name__}"
        raise InvalidRequest(message)
    return [record(row, number) for number, row in enumerate(given)]


def spine_rows(given: Any, text: Sequence[str] = ()) -> list[Mapping[str, Any]]:
    """Like :func:`rows_of`, and the rows of a file, a folder of Parquet files or a Delta table, at a path or URL.

    Args:
        given: rows, or where they are.
        text: columns that stay text in a CSV file: an id ``007`` is not 7.

    Raises:
        InvalidRequest: it is none of these, or cannot be read.
        MissingDriver: a package that reads files is not installed.
    """
    if not isinstance(given, str | PathLike):
        return rows_of(given)
    try:
        from featurelib.stores.spine_sources import open_spine
    except ImportError:
        raise MissingDriver("deltalake", "platform") from None
    return [row for batch in open_spine(fspath(given), text).batches(_ROWS_READ) for row in batch.to_pylist()]


def record(row: Any, number: int = 0) -> Mapping[str, Any]:
    """A record as a mapping; a row object of a declared dataset is a dataclass.

    Raises:
        InvalidRequest: it is neither.
    """
    if is_dataclass(row) and not isinstance(row, type):
        return asdict(row)
    if not isinstance(row, Mapping):
        message = f"row {number} is {type(row).__name__}; it must be a mapping or a row object"
        raise InvalidRequest(message)
    return row


def plain(value: Any) -> Any:
    """The value as JSON takes it: instants, dates and decimals as text, numbers of NumPy as Python's."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, datetime):
        return format_instant(parse_instant(value))
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    return value.item() if type(value).__module__ == "numpy" else value


def instant_text(timestamp: Any, field: str = "timestamp") -> str:
    """An instant as the services take it. It is read here too, so that a wrong one fails before the call.

    Raises:
        InvalidTimestamp: naming ``field`` and what was found.
    """
    moment = timestamp.isoformat() if type(timestamp) is date else plain(timestamp)
    return format_instant(parse_instant(moment, field))


def chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive parts of at most ``size``."""
    yield from (values[start : start + size] for start in range(0, len(values), size))


def has_arrow() -> bool:
    """Whether an answer in Arrow can be read here."""
    return find_spec("pyarrow") is not None
