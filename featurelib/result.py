"""What a query gave: rows of Python values, or the columns of an Arrow table; each becomes the other when asked for.

In rows an instant and a decimal are text, as JSON has neither; in the columns of an Arrow answer they have their type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurelib.clock import format_instant, parse_instant, to_datetime
from featurelib.errors import InvalidRequest, InvalidTimestamp, MissingDriver
from featurelib.types import decimal_scale, element_type, members_of, value_type

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

_BATCH_ROWS = 10_000
_PLAIN = frozenset({"bool", "int64", "double", "string", "large_string", "null"})


class ThymeResult:
    """Rows of named columns.

    Attributes:
        columns: column names, in order.
        metadata: what the service says about the read: ``mode``, ``clock``, ``timestamp``, ``entity_type``.
        query_run_id: the audit record of this read, of its last part where it took several; empty when there is none.

    ``types`` are the declared ones of columns, where they are known: tables have them whatever the values are.
    """

    def __init__(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        metadata: Mapping[str, Any] | None = None,
        query_run_id: str = "",
        types: Mapping[str, str] | None = None,
    ) -> None:
        self.columns = list(columns)
        self.metadata = dict(metadata or {})
        self.query_run_id = query_run_id
        self._types = dict(types or {})
        self._given: Sequence[Sequence[Any]] = rows
        self._table: pa.Table | None = None

    @classmethod
    def of_table(
        cls, table: pa.Table, metadata: Mapping[str, Any] | None = None, query_run_id: str = ""
    ) -> ThymeResult:
        """The rows of an Arrow table."""
        made = cls(table.column_names, (), metadata, query_run_id)
        made._table = table
        return made

    def __len__(self) -> int:
        return len(self._given) if self._table is None else int(self._table.num_rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.to_dict())

    def __getitem__(self, column: str) -> list[Any]:
        """The values of a column, in order of the rows.

        Raises:
            KeyError: there is no such column; lists those there are.
        """
        if column not in self.columns:
            message = f"{column!r}; the columns are {', '.join(self.columns)}"
            raise KeyError(message)
        if self._table is not None:
            return _values(self._table.column(column))
        index = self.columns.index(column)
        return [row[index] for row in self._rows]

    def __repr__(self) -> str:
        return f"<ThymeResult {len(self)} rows: {', '.join(self.columns)}>"

    @property
    def explained(self) -> dict[str, Any]:
        """Where each value came from, by feature; empty unless the read was asked to explain."""
        return dict(self.metadata.get("explain") or {})

    def with_columns(self, columns: Mapping[str, Sequence[Any]], *, after: int) -> ThymeResult:
        """The rows with more columns, put behind the first ``after`` ones; a value per row.

        Raises:
            InvalidRequest: there is a column of that name.
        """
        taken = next((name for name in columns if name in self.columns), None)
        if taken is not None:
            raise InvalidRequest(f"{taken!r} is a column of the result already; rename yours")
        if not columns:
            return self
        if self._table is not None:
            table = self._table
            for place, (name, values) in enumerate(columns.items()):
                table = table.add_column(after + place, name, _load("pyarrow").array(values))
            return ThymeResult.of_table(table, self.metadata, self.query_run_id)
        names = [*self.columns[:after], *columns, *self.columns[after:]]
        added = list(zip(*columns.values(), strict=True)) or [()] * len(self)
        rows = [(*row[:after], *more, *row[after:]) for row, more in zip(self._rows, added, strict=True)]
        return ThymeResult(names, rows, self.metadata, self.query_run_id, self._types)

    def to_dict(self) -> list[dict[str, Any]]:
        """One dictionary per row."""
        return [dict(zip(self.columns, row, strict=True)) for row in self._rows]

    def to_polars(self) -> pl.DataFrame:
        """A Polars frame.

        Raises:
            MissingDriver: polars is not installed.
        """
        polars = _load("polars")
        if self._table is not None or self._types:
            found: pl.DataFrame = polars.from_arrow(self.to_arrow())
            return found
        frame: pl.DataFrame = polars.DataFrame(self._by_column(), strict=False)
        return frame

    def to_lazy(self) -> pl.LazyFrame:
        """The Polars frame, lazily."""
        return self.to_polars().lazy()

    def to_pandas(self) -> Any:
        """A pandas frame.

        Raises:
            MissingDriver: pandas is not installed.
        """
        pandas = _load("pandas")
        if self._table is not None or self._types:
            return self.to_arrow().to_pandas()
        return pandas.DataFrame(self._by_column())

    def to_arrow(self) -> pa.Table:
        """An Arrow table.

        Raises:
            MissingDriver: pyarrow is not installed.
        """
        if self._table is not None:
            return self._table
        columns = {name: _typed(values, self._types.get(name)) for name, values in self._by_column().items()}
        return _load("pyarrow").table(columns)

    def iter_batches(self, batch_size: int = _BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Arrow batches of at most ``batch_size`` rows.

        Raises:
            MissingDriver: pyarrow is not installed.
        """
        yield from self.to_arrow().to_batches(max_chunksize=batch_size)

    def sink_parquet(self, path: str | Path) -> None:
        """Write the rows to a Parquet file.

        Raises:
            MissingDriver: pyarrow is not installed.
        """
        _load("pyarrow.parquet").write_table(self.to_arrow(), path)

    def sink_arrow(self, path: str | Path) -> None:
        """Write the rows to an Arrow IPC file.

        Raises:
            MissingDriver: pyarrow is not installed.
        """
        table = self.to_arrow()
        with _load("pyarrow.ipc").new_file(str(path), table.schema) as file:
            file.write_table(table)

    @cached_property
    def _rows(self) -> list[tuple[Any, ...]]:
        if self._table is None:
            return [tuple(row) for row in self._given]
        return list(zip(*(_values(column) for column in self._table.columns), strict=True))

    def _by_column(self) -> dict[str, list[Any]]:
        return {column: self[column] for column in self.columns}


def joined(parts: Sequence[ThymeResult], metadata: Mapping[str, Any]) -> ThymeResult:
    """The rows of answers of one question that was asked in parts, in their order."""
    run_ids = [run for part in parts for run in part.metadata.get("query_run_ids", [part.query_run_id]) if run]
    about = {**metadata, "query_run_ids": run_ids}
    last = run_ids[-1] if run_ids else ""
    filled = [part for part in parts if part.columns]
    tables = [part._table for part in filled if part._table is not None]  # noqa: SLF001  # of this module
    whole = _concatenated(tables) if tables and len(tables) == len(filled) else None
    if whole is not None:
        return ThymeResult.of_table(whole, about, last)
    columns = filled[0].columns if filled else ["entity_id"]
    return ThymeResult(columns, [row for part in filled for row in part._rows], about, last)  # noqa: SLF001


def _concatenated(tables: Sequence[pa.Table]) -> pa.Table | None:
    """One table; ``None`` where a column has another type in another part, as a commit in between may give it."""
    arrow = _load("pyarrow")
    try:
        return arrow.concat_tables(tables, promote_options="default")
    except (arrow.ArrowInvalid, arrow.ArrowTypeError):
        return None


def _typed(values: list[Any], type_name: str | None) -> Any:
    """A column of its declared type; of its values' own where none is declared, or they do not fit it."""
    arrow = _load("pyarrow")
    if type_name is None:
        return arrow.array(values)
    from featurelib.engine.records import arrow_type

    try:
        return arrow.array([_read(value, type_name) for value in values], arrow_type(type_name))
    except (ValueError, TypeError, ArithmeticError, InvalidTimestamp):
        return arrow.array(values)


def _read(value: Any, type_name: str) -> Any:
    """The value of a text that stands for it."""
    element = element_type(type_name)
    if element is not None and isinstance(value, list):
        return [_read(each, element) for each in value]
    inner, members = value_type(type_name), members_of(type_name)
    if isinstance(value, dict):
        if inner is not None:  # Arrow builds a map of pairs
            return [(name, _read(each, inner)) for name, each in value.items()]
        return {name: _read(value.get(name), kind) for name, kind in members or ()} or value
    if type_name == "datetime" and isinstance(value, str):
        return to_datetime(parse_instant(value))
    return Decimal(value) if decimal_scale(type_name) is not None and isinstance(value, str) else value


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Python values; those that JSON has no form for as text."""
    values: list[Any] = column.to_pylist(maps_as_pydicts="strict")
    return values if str(column.type) in _PLAIN else [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return format_instant(parse_instant(value))
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _load(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError:
        raise MissingDriver(package.partition(".")[0], "engine") from None
