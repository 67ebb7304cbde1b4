"""The rows of many (key, instant) pairs at once: training sets and batch queries.

What a pair's row holds is what :class:`~featurelib.engine.panes.KeyState` gives for it; this module only gets there
faster. Aggregates with a kernel (``Aggregator.over``) answer all pairs from one sorted table; the rest, and keys
with rows that a newer version has closed, go through a KeyState built once per key.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import polars as pl

from featurelib.engine.column_types import polars_type
from featurelib.engine.fold import KEY, Fold
from featurelib.engine.operators import UNTIL
from featurelib.engine.panes import KeyState
from featurelib.engine.partials import Row
from featurelib.engine.program import Program
from featurelib.engine.records import ACCEPTED_AT, DELETED, TIME
from featurelib.engine.slices import Answers, Bools, Ints, Slices, SliceTree, SortedRows, codes_of, sorted_places
from featurelib.errors import InvalidRequest
from featurelib.types import Value
from featurelib.windows import AnyWindow, Session

KNOWN = "__known"
_LINE = "__line"
Knowledge = Literal["latest", "as_served"]


class _Pairs(NamedTuple):
    """(key, instant) pairs, by key and then instant. ``line`` is where each stands in the request."""

    keys: pl.Series
    code: Ints
    at: Ints
    line: Ints

    def only(self, wanted: Bools) -> _Pairs:
        return _Pairs(self.keys, self.code[wanted], self.at[wanted], self.line[wanted])


def evaluate(
    program: Program,
    shaped: pl.DataFrame,
    keys: Sequence[str] | pl.Series,
    instants: Ints,
    *,
    knowledge: Knowledge = "latest",
) -> pl.DataFrame:
    """The output rows of many keys, each at its own instant.

    Args:
        program: the pipeline.
        shaped: every row that may count, as :meth:`Program.shape_all` gives them, in any order.
        keys: key texts, one per pair.
        instants: µs, one per pair.
        knowledge: ``as_served`` counts only rows accepted at or before their pair's instant.

    Returns:
        One line per pair, in order: ``__known`` (the key had a row by then) and the outputs, null where it is false.

    Raises:
        ValueOverflow: an integer sum left the 64-bit range, or a float sum the finite floats.
        InvalidRequest: ``as_served`` of a pipeline whose rows depend on other records than their own.
    """
    pairs = _pairs(keys, instants)
    codes = codes_of(shaped[KEY], pairs.keys)
    rows = SortedRows(shaped, codes, TIME)
    if knowledge == "as_served":
        _refuse_memory(program)
        by_state = _has_unseen_rows(rows, pairs)
    else:
        by_state = _has_closed_rows(shaped, codes, pairs)
    found = _by_kernels(program.fold, rows, pairs.only(~by_state))
    if by_state.any():
        states = _by_states(program.fold, rows, pairs.only(by_state), as_served=knowledge == "as_served")
        found = pl.concat([found, states])
    return _served(_in_lines(found))


def _in_lines(found: pl.DataFrame) -> pl.DataFrame:
    """The rows in the order of the request."""
    line = found.drop_in_place(_LINE).to_numpy()
    if (line[1:] > line[:-1]).all():
        return found
    place = np.empty(len(line), dtype=np.uint32)
    place[line] = np.arange(len(line), dtype=np.uint32)
    return found[pl.Series(place)]


def _refuse_memory(program: Program) -> None:
    # A joined value, or a version's end, may come from a record accepted after the instant.
    if not program.plain or program.pipeline.joins:
        raise InvalidRequest(
            f"{program.ref}: knowledge=as_served over many instants is offered for pipelines that only filter and "
            "compute; this one joins, or keeps versions or newest rows. Ask for one instant at a time"
        )


def _served(frame: pl.DataFrame) -> pl.DataFrame:
    # An index keeps tombstones: a key whose newest record is one has no row.
    if DELETED not in frame.columns:
        return frame
    known = pl.col(KNOWN) & ~pl.col(DELETED).fill_null(value=False)
    outputs = [name for name in frame.columns if name not in (KNOWN, DELETED)]
    return frame.select(known.alias(KNOWN), *(pl.when(known).then(pl.col(name)).alias(name) for name in outputs))


def _pairs(keys: Sequence[str] | pl.Series, instants: Ints) -> _Pairs:
    texts = pl.Series(keys, dtype=pl.String)
    distinct = texts.unique().drop_nulls()
    code = codes_of(texts, distinct)
    line = sorted_places(code, np.asarray(instants, dtype=np.int64))
    return _Pairs(distinct, code[line], np.asarray(instants, dtype=np.int64)[line], line)


def _has_closed_rows(ordered: pl.DataFrame, codes: Ints, pairs: _Pairs) -> Bools:
    closed = codes[ordered[UNTIL].is_not_null().to_numpy()]
    return np.isin(pairs.code, closed[closed >= 0])


def _has_unseen_rows(rows: SortedRows, pairs: _Pairs) -> Bools:
    """Pairs with a row dated by their instant and accepted after it."""
    accepted = rows.column(ACCEPTED_AT).to_numpy()
    tree = SliceTree((accepted,), lambda a, b: (np.maximum(a[0], b[0]),), (int(np.iinfo(np.int64).min),))
    newest = tree.merged(rows.first(pairs.code), rows.place(pairs.code, pairs.at, "right"))[0]
    return np.asarray(newest > pairs.at)


def _by_kernels(fold: Fold, rows: SortedRows, pairs: _Pairs) -> pl.DataFrame:
    """Outputs with a kernel from slices, the others from states."""
    first, end = rows.first(pairs.code), rows.place(pairs.code, pairs.at, "right")
    slices = [_slices(rows, pairs, window, first, end) for window in fold.windows]
    known = pl.Series(end > first)
    columns = {_LINE: pl.Series(pairs.line), KNOWN: known}
    for output in fold.layout:
        held = slices[output.window]
        answer = output.aggregator.over(held) if held is not None else None
        if answer is not None:
            kind = polars_type(fold.output_types[output.name])
            values = _values(answer, kind, output.default, output.has_default)
            columns[output.name] = values if known.all() else pl.select(pl.when(known).then(values)).to_series()
    frame = pl.DataFrame(columns)
    others = [name for name in fold.outputs if name not in columns]
    if others:
        rest = _by_states(fold.only(others), rows, pairs, as_served=False)
        frame = frame.join(rest.drop(KNOWN), on=_LINE, maintain_order="left")
    return frame.select(_LINE, KNOWN, *fold.outputs)


def _slices(rows: SortedRows, pairs: _Pairs, window: AnyWindow, first: Ints, end: Ints) -> Slices | None:
    """The rows of a window at each pair; ``None`` for a session, whose start depends on its rows.

    ``first`` and ``end`` are where each pair's key begins, and where its rows up to the instant end.
    """
    if isinstance(window, Session):
        return None
    # Bounds are integer arithmetic: what holds for one instant holds for an array of them.
    low, high, _ = cast("tuple[Ints | None, Ints, Ints]", window.bounds(cast("Any", pairs.at)))
    low = first if low is None else rows.place(pairs.code, low, "left")
    return Slices(rows, low, end if high is pairs.at else rows.place(pairs.code, high, "right"), high)


def _values(answer: Answers, kind: Any, default: Value, has_default: bool) -> pl.Series:
    found = answer.values.cast(kind)
    if not has_default or not answer.empty.any():
        return found
    return found.zip_with(pl.Series(~answer.empty), pl.Series([default], dtype=kind, strict=False))


def _by_states(fold: Fold, rows: SortedRows, pairs: _Pairs, *, as_served: bool) -> pl.DataFrame:
    """The rows of pairs from one state per key, or per key and instant when what was known then counts."""
    found = [row for start, end in _runs(pairs.code) for row in _rows_of_key(fold, rows, pairs, start, end, as_served)]
    known = [row is not None for row in found]
    columns = {_LINE: pl.Series(pairs.line), KNOWN: pl.Series(known, dtype=pl.Boolean)}
    for name in fold.outputs:
        values = [None if row is None else row[name] for row in found]
        columns[name] = pl.Series(values, dtype=polars_type(fold.output_types[name]), strict=False)
    return pl.DataFrame(columns)


def _rows_of_key(
    fold: Fold, rows: SortedRows, pairs: _Pairs, start: int, end: int, as_served: bool
) -> Iterator[dict[str, Value] | None]:
    code, at = pairs.code[start:end], pairs.at[start:end]
    held = rows.lines(int(rows.first(code[:1])[0]), int(rows.place(code[-1:], at[-1:], "right")[0]))
    state = _state(fold, held)
    for instant in at.tolist():
        if as_served:
            state = _state(fold, [row for row in held if row[1] <= instant])
        yield fold.finish_state(state, instant) if state.header.known_at(instant) else None


def _state(fold: Fold, held: list[Row]) -> KeyState:
    state = fold.new_state(1)
    if held:
        state.add(held)
    return state


def _runs(codes: Ints) -> Iterator[tuple[int, int]]:
    edges = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), len(codes)]
    yield from ((start, end) for start, end in pairwise(edges) if start < end)
