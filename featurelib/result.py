"""What a query gave: rows of Python values, turned into a dataframe only when one is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from featurelib.errors import MissingDriver

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa


class ThymeResult:
    """Rows of named columns.

    Attributes:
        columns: column names, in order.
        metadata: what the service says about the read: ``mode``, ``clock``, ``timestamp``, ``entity_type``.
        query_run_id: the audit record of this read; empty when the service sent none.
    """

    def __init__(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[Any]],
        metadata: Mapping[str, Any] | None = None,
        query_run_id: str = "",
    ) -> None:
        self.columns = list(columns)
        self.metadata = dict(metadata or {})
        self.query_run_id = query_run_id
        self._rows = [tuple(row) for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

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
        index = self.columns.index(column)
        return [row[index] for row in self._rows]

    def __repr__(self) -> str:
        return f"<ThymeResult {len(self)} rows: {', '.join(self.columns)}>"

    def to_dict(self) -> list[dict[str, Any]]:
        """One dictionary per row."""
        return [dict(zip(self.columns, row, strict=True)) for row in self._rows]

    def to_polars(self) -> pl.DataFrame:
        """A Polars frame.

        Raises:
            MissingDriver: polars is not installed.
        """
        frame: pl.DataFrame = _load("polars").DataFrame(self._by_column(), strict=False)
        return frame

    def to_pandas(self) -> Any:
        """A pandas frame.

        Raises:
            MissingDriver: pandas is not installed.
        """
        return _load("pandas").DataFrame(self._by_column())

    def to_arrow(self) -> pa.Table:
        """An Arrow table.

        Raises:
            MissingDriver: pyarrow is not installed.
        """
        return _load("pyarrow").table(self._by_column())

    def _by_column(self) -> dict[str, list[Any]]:
        return {column: self[column] for column in self.columns}


def _load(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError:
        raise MissingDriver(package, "engine") from None
