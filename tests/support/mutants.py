"""Engines broken on purpose. Each breaks one rule, as a small slip of the hand would; the oracle must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pytest

from featurelib import windows
from featurelib.engine import aggregators, edges, fold, nodes, operators, panes, records, stretches
from tests.support.paths import Path, from_states, streamed

Break = Callable[[pytest.MonkeyPatch], None]


class Mutant(NamedTuple):
    """A broken engine, and the way through it on which that shows."""

    name: str
    break_it: Break
    path: Path


def _shifted_bounds(kind: Any, low: int = 0, high: int = 0) -> Break:
    def break_it(patch: pytest.MonkeyPatch) -> None:
        right = kind.bounds

        def wrong(self: Any, at: int) -> windows.Bounds:
            bounds = right(self, at)
            return windows.Bounds(*bounds)._replace(
                low=None if bounds.low is None else bounds.low + low, high=bounds.high + high
            )

        patch.setattr(kind, "bounds", wrong)
        # Edges looked up before, and after, are the right ones.
        patch.setattr(edges, "_interned", {})

    return break_it


def _lost_retraction(patch: pytest.MonkeyPatch) -> None:
    right = panes.KeyState.replace
    patch.setattr(panes.KeyState, "replace", lambda self, removed, added: right(self, [], added))


def _lost_late_right_side(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(operators.RightTable, "touched_since", lambda self, changed, left: left.clear())


def _swapped_tie(patch: pytest.MonkeyPatch) -> None:
    """Of rows with one event time, the one accepted first counts as the newest."""
    shape = fold.Fold.shape

    def swapped(self: Any, frame: pl.DataFrame) -> pl.DataFrame:
        return shape(self, frame.with_columns(-pl.col(operators.IDENTITY[1]), -pl.col(operators.PLACE)))

    patch.setattr(fold.Fold, "shape", swapped)


def _closed_version_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stretches, "_counting", lambda rows, as_of: rows)


def _version_ends_late(patch: pytest.MonkeyPatch) -> None:
    right = stretches._counting
    patch.setattr(stretches, "_counting", lambda rows, as_of: right(rows, as_of - 1))


def _pane_forgets_its_last_instant(patch: pytest.MonkeyPatch) -> None:
    right = stretches._place
    patch.setattr(stretches, "_place", lambda rows, cut: right(rows, cut - 1))


def _open_within(patch: pytest.MonkeyPatch) -> None:
    right = operators.RightTable.join

    def wrong(self: Any, left: pl.DataFrame) -> pl.DataFrame:
        if self.step.within_us is None:
            return right(self, left)
        shorter = operators.RightTable(
            self.step.model_copy(update={"within_us": self.step.within_us - 1}), self._key, self.frame
        )
        return right(shorter, left)

    patch.setattr(operators.RightTable, "join", wrong)


def _session_breaks_at_its_gap(patch: pytest.MonkeyPatch) -> None:
    right = aggregators.SessionAggregator.__init__
    patch.setattr(aggregators.SessionAggregator, "__init__", lambda self, inner, gap_us: right(self, inner, gap_us - 1))


def _cap_of_one_more(patch: pytest.MonkeyPatch) -> None:
    right = aggregators.CappedAggregator.__init__
    patch.setattr(
        aggregators.CappedAggregator,
        "__init__",
        lambda self, aggregate, source, max_rows: right(self, aggregate, source, max_rows + 1),
    )


def _first_is_the_last(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        nodes.FirstNode,
        "_of_keys",
        lambda self, rows: rows.sort(operators.IDENTITY).unique(self._keys, keep="last", maintain_order=True),
    )


def _late_records_count(patch: pytest.MonkeyPatch) -> None:
    right = operators.source_rows

    def wrong(table: Any) -> pl.DataFrame:
        timely = pa.array([False] * len(table), pa.bool_())
        return right(table.set_column(table.column_names.index(records.LATE), records.LATE, timely))

    for module in (operators, nodes):
        patch.setattr(module, "source_rows", wrong)


MUTANTS = [
    Mutant("a continuous window begins a microsecond late", _shifted_bounds(windows.Continuous, low=1), from_states),
    Mutant("a continuous window begins a microsecond early", _shifted_bounds(windows.Continuous, low=-1), from_states),
    Mutant("a continuous window ends a microsecond early", _shifted_bounds(windows.Continuous, high=-1), from_states),
    Mutant("a lifetime ends a microsecond early", _shifted_bounds(windows.Lifetime, high=-1), from_states),
    Mutant("a tumbling window takes the instant it ends at", _shifted_bounds(windows.Tumbling, high=1), from_states),
    Mutant("a hopping window begins a microsecond late", _shifted_bounds(windows.Hopping, low=1), from_states),
    Mutant("a retraction is lost", _lost_retraction, streamed),
    Mutant("a right side that comes late is not heard", _lost_late_right_side, streamed),
    Mutant("a tie in the total order is swapped", _swapped_tie, from_states),
    Mutant("a closed version still counts", _closed_version_counts, from_states),
    Mutant("a version ends a microsecond late", _version_ends_late, from_states),
    Mutant("a pane forgets its last instant", _pane_forgets_its_last_instant, from_states),
    Mutant("within leaves out its bound", _open_within, from_states),
    Mutant("a session breaks at its gap", _session_breaks_at_its_gap, from_states),
    Mutant("a row cap takes one more", _cap_of_one_more, from_states),
    Mutant("of equal rows the last is kept", _first_is_the_last, from_states),
    Mutant("late records count", _late_records_count, from_states),
]
