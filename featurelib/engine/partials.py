"""What each aggregate computes: an algebra of partials.

An aggregator folds the rows of one pane into a *partial*, merges partials (older pane first) and
finishes one into a value. Laws, tested for every class: merging ``None`` (the empty partial) changes
nothing; merging is associative; any cut of the rows gives the same finish; ``remove`` inverts the merge.
A digest of more than 4,096 values keeps them within its error of the rank.

A row is a tuple ``(time, accepted_at, place, sub, until, value…, mask)``; the first four are its total
order (decision 8) and its identity. ``mask`` has one bit per distinct ``where`` predicate of the pipeline.
Partials are plain values (numbers, text, bytes, lists) and are never changed in place, so that the codec needs
to know none of these classes. A decimal is an integer in them, scaled up by its column's digits; in a row it is a
Decimal, or its text, as the codec stores it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Context, Decimal
from functools import cache
from typing import Any, Literal, NamedTuple

from featurelib.clock import Instant
from featurelib.engine.slices import Answers, Part, Slices
from featurelib.types import Value, decimal_scale, element_type

Row = tuple[Any, ...]
Partial = Any
"""A folded pane; ``None`` is empty."""

FIRST_VALUE = 5
"""Index of a row's first value."""
IDENTITY = 4
"""How many members of a row are its identity."""
_EXACT = Context(prec=2 * 38)


@cache
def scale_of(kind: str | None) -> int | None:
    """Digits behind a decimal type's point; ``None`` for every other type. Asked for every partial and value."""
    return decimal_scale(kind) if kind else None


class Input(NamedTuple):
    """Where a row carries an aggregator's input: index of the value (``None``: none) and bit of its predicate."""

    column: int | None
    type: str | None
    bit: int | None

    @property
    def scale(self) -> int:
        """Digits behind a decimal column's point; 0 for every other type."""
        return scale_of(self.type) or 0

    def rows(self, rows: Iterable[Row]) -> list[Row]:
        """The rows its predicate lets through."""
        if self.bit is None:
            return rows if isinstance(rows, list) else list(rows)
        flag = 1 << self.bit
        return [row for row in rows if row[-1] & flag]

    def values(self, rows: Iterable[Row]) -> list[Any]:
        """The non-null values its predicate lets through, decimals as integers; without a column, the rows."""
        column = self.column
        if column is None:
            return self.rows(rows)
        if self.bit is None:
            found = [value for row in rows if (value := row[column]) is not None]
        else:
            flag = 1 << self.bit
            found = [value for row in rows if row[-1] & flag and (value := row[column]) is not None]
        scale = scale_of(self.type)
        return found if scale is None else [unscaled(value, scale) for value in found]


class Aggregator:
    """One accumulator. Windows share it: a window only chooses which partials are merged."""

    needs: Literal["values", "rows"] = "values"
    """Whether :meth:`fold_values` of its input's values is enough, so that equal inputs are read once."""
    invertible = False
    """Whether :meth:`remove` takes a part back out exactly."""
    ages = False
    """Whether the value of the same rows is another one at another instant."""
    chronological = False
    """Whether partials must be merged strictly by time, oldest first, none overlapping another."""

    def __init__(self, source: Input) -> None:
        self.source = source

    @property
    def state(self) -> tuple[Any, ...]:
        """Equal for aggregators whose partials are equal, so that they may share one."""
        return (type(self).__name__, self.source)

    def fold(self, rows: Sequence[Row]) -> Partial:
        """The partial of some rows in total order; ``None`` when none of them counts."""
        return self.fold_values(self.source.values(rows))

    def fold_values(self, values: list[Any]) -> Partial:
        """The partial of what ``source.values(rows)`` gives; only where ``needs`` says so."""
        raise NotImplementedError

    def merge(self, partials: Iterable[Partial]) -> Partial:
        """The partial of all rows behind some partials, oldest first; empty ones add nothing."""
        present = [partial for partial in partials if partial is not None]
        if len(present) <= 1:
            return present[0] if present else None
        return self._merged(present)

    def both(self, older: Partial, newer: Partial) -> Partial:
        """Two partials as one; either may be empty."""
        if older is None:
            return newer
        return older if newer is None else self._merged((older, newer))

    def _merged(self, partials: Sequence[Partial]) -> Partial:
        """Two or more partials as one, none of them empty."""
        raise NotImplementedError

    def remove(self, total: Partial, part: Partial) -> Partial:
        """Take a non-empty part out of a total that holds it; ``None`` when nothing is left."""
        raise NotImplementedError

    def holds(self, partial: Partial) -> bool:
        """Whether anything was aggregated; if not, the declared default is the value."""
        return partial is not None

    def finish(self, partial: Partial, at: Instant) -> Value:
        """The value of a partial at the end of its window; of ``None``, that of an empty window (decision 9)."""
        raise NotImplementedError

    def over(self, slices: Slices) -> Answers | None:  # noqa: ARG002
        """What :meth:`finish` gives for the rows of every slice at once; ``None``: not for such rows, fold them."""
        return None

    def _part(self, slices: Slices, *, dropnull: bool = True) -> Part:
        return slices.part(self.source.column, self.source.bit, dropnull=dropnull)


def plain(value: Any, kind: str | None) -> Any:
    """A row's value as a partial holds it: decimals as integers, in lists too."""
    if kind is None or value is None or "decimal" not in kind:
        return value
    inner = element_type(kind)
    if inner is not None:
        return [plain(item, inner) for item in value]
    return unscaled(value, decimal_scale(kind) or 0)


def unscaled(value: Decimal | str | int, scale: int) -> int:
    """The integer that a decimal is in a partial."""
    if isinstance(value, int):
        return value
    return int(Decimal(value).scaleb(scale, _EXACT))


def shown(value: Any, kind: str | None) -> Value:
    """The value of what a partial holds."""
    if kind is None or value is None or "decimal" not in kind:
        return value
    inner = element_type(kind)
    if inner is not None:
        return [shown(item, inner) for item in value]
    # From text, so that no context rounds it.
    return Decimal(f"{value}e-{decimal_scale(kind)}")
