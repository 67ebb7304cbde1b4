"""Many windows at once: rows of many keys in one order, and aggregates of slices of it.

Rows are put by key and, within a key, in the total order. The rows a window holds at an instant are then a slice
``[low, high)``; an aggregate with a kernel answers every slice in a few passes over arrays:

    sums       prefix sums of integers: exact, so a small window next to huge values loses nothing
    the rest   a binary tree of merged neighbours; a slice is at most two nodes per level
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import cached_property
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from featurelib.clock import Duration
from featurelib.engine.operators import IDENTITY
from featurelib.engine.records import TIME

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Nodes = tuple[npt.NDArray[Any], ...]
"""One array per member of a merged value."""
Combine = Callable[[Nodes, Nodes], Nodes]

_MASK = "__mask"
_AFTER_TIME = [name for name in IDENTITY if name != TIME]
# Of a mark, which is a key's code and a tick; one is left for the sign.
_MARK_BITS = 63
# Of a float's limbs: enough for values whose largest and smallest bits lie 150 binary places apart.
_MOST_LIMBS = 4
_MOST_SQUARE_LIMBS = 7
_LIMB_BITS = 45
# Values split at a time: what fits the processor's nearer cache is three times as fast.
_BLOCK = 16_384
_INT_LIMB_BITS = 32
# The square of a float between these has an error term that is a float too; 2^27 + 1 splits a float in halves.
_LEAST_ROOT, _LARGEST_ROOT, _SPLITTER = 1e-135, 1e145, 134_217_729.0
# Halving 3,000 times leaves nothing of any float.
_MOST_HALVINGS = 3_000


class ExactSums:
    """Prefix sums of integers ("limbs"), which together are the exact sum of any slice.

    A value is ``Σ limb[i] · 2^(bits · (last - i) + exponent)``; no sum of limbs leaves 64 bits.
    """

    def __init__(self, prefixes: Sequence[Ints], bits: int, exponent: int) -> None:
        self._prefixes = prefixes
        self._bits = bits
        self.exponent = exponent

    @classmethod
    def of_ints(cls, values: Ints) -> ExactSums:
        """Sums of 64-bit integers."""
        largest = max(abs(int(values.max())), abs(int(values.min()))) if len(values) else 0
        if largest * len(values) < 1 << 63:
            return cls([_prefix(values)], _INT_LIMB_BITS, 0)
        limbs = (values >> _INT_LIMB_BITS, values & ((1 << _INT_LIMB_BITS) - 1))
        return cls([_prefix(limb) for limb in limbs], _INT_LIMB_BITS, 0)

    @classmethod
    def of_floats(cls, values: Floats, most_limbs: int = _MOST_LIMBS) -> ExactSums | None:
        """Sums of floats; ``None`` when their magnitudes lie too far apart, or one is not finite."""
        largest = float(np.abs(values).max(initial=0.0))
        if not np.isfinite(largest):
            return None
        bits = min(_LIMB_BITS, 62 - len(values).bit_length())
        top = int(np.frexp(largest)[1])
        limbs = [np.zeros(len(values) + 1, dtype=np.int64)]
        for start in range(0, len(values), _BLOCK):
            block = values[start : start + _BLOCK]
            rest = _scaled(block, -top)
            lost = np.count_nonzero(rest) != np.count_nonzero(block)
            if lost or not _split(rest, bits, limbs, start + 1, most_limbs):
                return None
        for limb in limbs:
            np.cumsum(limb, out=limb)
        return cls(limbs, bits, top - bits * len(limbs))

    @classmethod
    def of_squares(cls, values: npt.NDArray[Any]) -> ExactSums | None:
        """Sums of squares, where value ``i`` is members ``2i`` and ``2i + 1``; ``None`` as above."""
        pairs: npt.NDArray[Any] = np.zeros(2 * len(values), dtype=values.dtype)
        largest = float(np.abs(values.astype(np.float64)).max(initial=0.0))
        if values.dtype == np.int64:
            if largest >= 2.0**31:
                return None
            pairs[::2] = values * values
            return cls.of_ints(pairs)
        least = float(np.abs(values[values != 0]).min(initial=1.0))
        if least < _LEAST_ROOT or largest > _LARGEST_ROOT:
            return None
        # Dekker: the square and its rounding error, both exact.
        scaled = values * _SPLITTER
        high = scaled - (scaled - values)
        low = values - high
        pairs[::2] = values * values
        pairs[1::2] = ((high * high - pairs[::2]) + 2.0 * high * low) + low * low
        return cls.of_floats(pairs, _MOST_SQUARE_LIMBS)

    def exact(self, low: Ints, high: Ints) -> list[int]:
        """The sum of each slice in units of ``2^exponent``."""
        limbs: list[list[int]] = [limb.tolist() for limb in self._sums(low, high)]
        totals = limbs[0]
        for limb in limbs[1:]:
            totals = [(total << self._bits) + part for total, part in zip(totals, limb, strict=True)]
        return totals

    def ints(self, low: Ints, high: Ints) -> tuple[Ints, Bools]:
        """The sum of each slice, and whether it fits 64 bits."""
        limbs = self._sums(low, high)
        if len(limbs) == 1:
            return limbs[0], np.ones(len(low), dtype=np.bool_)
        half = 1 << (63 - self._bits)
        fits = (limbs[0] >= -half) & (limbs[0] < half)
        return (limbs[0] << self._bits) + limbs[1], fits

    def floats(self, low: Ints, high: Ints) -> Floats:
        """The sum of each slice, rounded; infinite beyond what a float holds."""
        limbs = self._sums(low, high)
        total = limbs[0].astype(np.float64)
        for limb in limbs[1:]:
            total = total * 2.0**self._bits + limb
        with np.errstate(over="ignore"):
            return _scaled(total, self.exponent)

    def _sums(self, low: Ints, high: Ints) -> list[Ints]:
        """Limbs of each slice's sum; all but the first lie within ``[0, 2^bits)``."""
        sums = [prefix[high] - prefix[low] for prefix in self._prefixes]
        for i in range(len(sums) - 1, 0, -1):
            sums[i - 1] = sums[i - 1] + (sums[i] >> self._bits)
            sums[i] = sums[i] & ((1 << self._bits) - 1)
        return sums


class SliceTree:
    """Merged neighbours of neighbours: any slice is the merge of at most two nodes per level.

    Args:
        leaves: one array per member of a value.
        combine: merges older values with newer ones, member by member.
        identity: the value that changes nothing.
    """

    def __init__(self, leaves: Nodes, combine: Combine, identity: Sequence[float | int]) -> None:
        self._combine = combine
        self._identity = identity
        self._levels = [leaves]
        while len(leaves[0]) > 1:
            even = len(leaves[0]) // 2 * 2
            leaves = combine(tuple(m[0:even:2] for m in leaves), tuple(m[1:even:2] for m in leaves))
            self._levels.append(leaves)

    def merged(self, low: Ints, high: Ints) -> Nodes:
        """The merge of each slice, in order."""
        older, newer = self._empty(len(low)), self._empty(len(low))
        active = np.flatnonzero(low < high)
        low, high = low[active], high[active]
        for level in self._levels:
            odd = (low & 1) == 1
            self._merge_into(older, active[odd], level, low[odd], from_left=True)
            low = low + odd
            odd = ((high & 1) == 1) & (low < high)
            self._merge_into(newer, active[odd], level, high[odd] - 1, from_left=False)
            high = high - odd
            left = low < high
            active, low, high = active[left], low[left] >> 1, high[left] >> 1
            if not len(active):
                break
        return self._combine(older, newer)

    def _merge_into(self, into: Nodes, rows: Ints, level: Nodes, nodes: Ints, *, from_left: bool) -> None:
        if not len(rows):
            return
        held = tuple(member[rows] for member in into)
        found = tuple(member[nodes] for member in level)
        merged = self._combine(held, found) if from_left else self._combine(found, held)
        for member, values in zip(into, merged, strict=True):
            member[rows] = values

    def _empty(self, count: int) -> Nodes:
        return tuple(
            np.full(count, value, dtype=leaf.dtype) for value, leaf in zip(self._identity, self._levels[0], strict=True)
        )


class Selection:
    """The rows an aggregator takes, in order, and where slices of all rows lie among them."""

    def __init__(self, rows: SortedRows, values: pl.Series | None, taken: Bools | None) -> None:
        self._rows = rows
        self._values = values if values is None or taken is None else values.filter(pl.Series(taken))
        self._taken = taken
        self._before = None if taken is None else _prefix(taken)
        self._trees: dict[object, SliceTree] = {}

    @property
    def values(self) -> pl.Series:
        """The values of the column that was selected."""
        assert self._values is not None
        return self._values

    def cut(self, low: Ints, high: Ints) -> tuple[Ints, Ints]:
        """Slices of all rows as slices of the selected ones."""
        return (low, high) if self._before is None else (self._before[low], self._before[high])

    @cached_property
    def times(self) -> Ints:
        """Event times of the selected rows."""
        return self._rows.times if self._taken is None else self._rows.times[self._taken]

    @cached_property
    def numbers(self) -> npt.NDArray[Any] | None:
        """The values as 64-bit integers, decimals scaled up, or as floats; ``None`` for what is neither."""
        kind = self.values.dtype
        if isinstance(kind, pl.Decimal):
            scaled = self.values.to_physical()
            narrow = scaled.cast(pl.Int64, strict=False)
            return narrow.to_numpy() if narrow.null_count() == scaled.null_count() else None
        return self.values.to_numpy() if kind.is_integer() or kind.is_float() else None

    @cached_property
    def sums(self) -> ExactSums | None:
        """Exact sums of the values; ``None`` when there are none for such values."""
        numbers = self.numbers
        if numbers is None:
            return None
        return ExactSums.of_ints(numbers) if numbers.dtype == np.int64 else ExactSums.of_floats(numbers)

    @cached_property
    def squares(self) -> ExactSums | None:
        """Exact sums of the squares of the values; ``None`` likewise."""
        return None if self.numbers is None else ExactSums.of_squares(self.numbers)

    @cached_property
    def ranks(self) -> Selection:
        """The same rows, each value replaced by its place among the sorted distinct ones."""
        places = pl.Series(codes_of(self.values, self.values.unique().sort()))
        return Selection(self._rows, places, None)

    def tree(self, mark: object, make: Callable[[Selection], SliceTree]) -> SliceTree:
        """A tree over the values, made once however many windows ask for it."""
        if mark not in self._trees:
            self._trees[mark] = make(self)
        return self._trees[mark]


class Ticks:
    """Instants as small integers in the order of time: what lies beyond all rows is one tick beyond them.

    Args:
        times: of all rows.
        bits: as many as a tick may have.
    """

    def __init__(self, times: Ints, bits: int) -> None:
        self._first = int(times.min()) if len(times) else 0
        self._last = int(times.max()) if len(times) else 0
        self.bits = (self._last - self._first + 2).bit_length()
        self._distinct: Ints | None = None
        if self.bits > bits:
            self._distinct = np.unique(times)
            self.bits = (2 * len(self._distinct)).bit_length()

    def of(self, instants: Ints) -> Ints:
        """The ticks of instants, those of rows among them."""
        if self._distinct is None:
            return np.asarray(np.clip(instants, self._first - 1, self._last + 1) - (self._first - 1))
        place = np.searchsorted(self._distinct, instants)
        found = self._distinct[np.minimum(place, len(self._distinct) - 1)] == instants
        return np.asarray(2 * place + found)


class SortedRows:
    """The rows of some keys, by key and then in total order.

    Args:
        shaped: rows in any order, those of other keys too.
        codes: each row's index among the wanted keys, -1 for a row of another key.
        time: the column of event times.
    """

    def __init__(self, shaped: pl.DataFrame, codes: Ints, time: str) -> None:
        self._shaped = shaped
        times = shaped[time].to_numpy()
        self._ticks = Ticks(times, _MARK_BITS - int(codes.max(initial=0)).bit_length())
        # One integer holds key and time, so a plain sort of integers orders all but what happened at once.
        marks = self._marks_of(codes, times)
        order: npt.NDArray[Any]
        if codes.min(initial=0) < 0:
            chosen = np.flatnonzero(codes >= 0)
            marks = marks[chosen]
            order = chosen[np.argsort(marks)]
        else:
            order = np.argsort(marks)
        marks.sort()
        self._marks = marks
        self._order = self._in_total_order(order.astype(np.uint32))
        self._selections: dict[object, Selection] = {}

    def _marks_of(self, codes: Ints, instants: Ints) -> Ints:
        return np.asarray((codes << self._ticks.bits) | self._ticks.of(instants))

    def _in_total_order(self, order: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """The same places, those of one key and time in the order of their rows."""
        same = self._marks[1:] == self._marks[:-1]
        if not same.any():
            return order
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        places = order[tied]
        rows = self._shaped.select(_AFTER_TIME)[pl.Series(places)].with_columns(mark=self._marks[tied], place=places)
        order[tied] = rows.sort("mark", *_AFTER_TIME)["place"].to_numpy()
        return order

    def __len__(self) -> int:
        return len(self._marks)

    @cached_property
    def positions(self) -> pl.Series:
        """Where each row stands in the shaped frame."""
        return pl.Series(self._order)

    @cached_property
    def times(self) -> Ints:
        """Event times."""
        return self.column(TIME).to_numpy()

    def column(self, name: str) -> pl.Series:
        """A column of the shaped frame, in this order."""
        held = self._shaped[name]
        if held.dtype in (pl.Int64, pl.Float64) and not held.null_count():
            return pl.Series(name, held.to_numpy().take(self._order))
        return held.gather(self.positions)

    def lines(self, start: int, end: int) -> list[tuple[Any, ...]]:
        """Some rows as tuples, in order."""
        return self._shaped[self.positions[start:end]].drop(self._shaped.columns[0]).rows()

    def first(self, codes: Ints) -> Ints:
        """The place of each key's first row."""
        return _ranks(self._marks, codes << self._ticks.bits, "left")

    def place(self, codes: Ints, instants: Ints, side: Literal["left", "right"]) -> Ints:
        """How many rows lie before an instant of a key: ``left`` without those at the instant, ``right`` with them."""
        return _ranks(self._marks, self._marks_of(codes, instants), side)

    def selection(self, column: int | None, bit: int | None, *, dropnull: bool) -> Selection:
        """The rows whose predicate holds (``bit``), with the values of a row's member ``column``."""
        mark = (column, bit, dropnull)
        if mark not in self._selections:
            self._selections[mark] = self._select(column, bit, dropnull=dropnull)
        return self._selections[mark]

    def _select(self, column: int | None, bit: int | None, *, dropnull: bool) -> Selection:
        # A row is the shaped frame's line without its first column, the key.
        values = self.column(self._shaped.columns[column + 1]) if column is not None else None
        taken = None if bit is None else (self._bitmask >> bit) & 1 == 1
        if dropnull and values is not None and values.null_count():
            present = values.is_not_null().to_numpy()
            taken = present if taken is None else taken & present
        return Selection(self, values, taken)

    @cached_property
    def _bitmask(self) -> Ints:
        return self.column(_MASK).to_numpy()


class Answers(NamedTuple):
    """An aggregate's value per slice, and which slices held nothing for it."""

    values: pl.Series
    empty: Bools


class Part(NamedTuple):
    """What an aggregator takes of each slice: values ``[low, high)`` of a selection; the window ends at ``at``."""

    selection: Selection
    low: Ints
    high: Ints
    at: Ints

    @property
    def counts(self) -> Ints:
        """Values per slice."""
        return self.high - self.low

    @property
    def empty(self) -> Bools:
        """Slices without a value."""
        return np.asarray(self.high == self.low)

    def ends(self, *, newest: bool) -> pl.Series:
        """The newest, or the oldest, value of each slice; null for none."""
        places = pl.Series(self.high - 1 if newest else self.low, dtype=pl.Int64)
        return self.selection.values.gather(pl.select(pl.when(~pl.Series(self.empty)).then(places)).to_series())

    def runs(self, most: int, *, newest: bool) -> pl.Series:
        """Up to ``most`` values of each slice as a list: the newest, newest first, or the oldest, oldest first."""
        lengths = np.minimum(self.counts, most)
        offsets = _prefix(lengths)
        steps = np.arange(offsets[-1], dtype=np.int64) - np.repeat(offsets[:-1], lengths)
        places = np.repeat(self.high - 1, lengths) - steps if newest else np.repeat(self.low, lengths) + steps
        values = self.selection.values.gather(pl.Series(places, dtype=pl.Int64)).to_arrow()
        lists = pa.LargeListArray.from_arrays(pa.array(offsets), values)
        return pl.Series(pl.from_arrow(lists))

    def totals(self) -> Floats | None:
        """The sum of each slice, decimals scaled up; ``None`` without exact sums."""
        sums = self.selection.sums
        return None if sums is None else sums.floats(self.low, self.high)

    def variances(self, divisor: int) -> Floats | None:
        """The population variance of each slice over ``divisor``, 0.0 for none; ``None`` without exact sums.

        Raises:
            OverflowError: one is beyond what a float holds.
        """
        sums, squares = self.selection.sums, self.selection.squares
        if sums is None or squares is None:
            return None
        totals, seconds = sums.exact(self.low, self.high), squares.exact(2 * self.low, 2 * self.high)
        # Both in units of a common power of two, so that nothing is rounded before the division.
        unit = min(2 * sums.exponent, squares.exponent)
        up, down = 1 << max(0, unit), divisor << max(0, -unit)
        first, second = 2 * sums.exponent - unit, squares.exponent - unit
        return np.array(
            [
                up * (size * (square << second) - (total * total << first)) / (size * size * down) if size else 0.0
                for size, total, square in zip(self.counts.tolist(), totals, seconds, strict=True)
            ],
            dtype=np.float64,
        )

    def extremes(self, *, largest: bool) -> pl.Series | None:
        """The largest or smallest value of each slice, null for none, decimals scaled up; ``None`` without a kernel."""
        if self.selection.numbers is not None:
            return self._extremes(largest=largest)
        values = self.selection.values
        if values.dtype not in (pl.String, pl.Boolean):
            return None
        # The order of values is that of their places among the sorted distinct ones.
        places = Part(self.selection.ranks, self.low, self.high, self.at).extremes(largest=largest)
        return values.unique().sort().gather(cast("pl.Series", places))

    def decayed(self, half_life: Duration, unit: int) -> Floats | None:
        """The sum of each slice, every value halved once per half-life of its age; 0.0 for none.

        It is held as of the end of a half-life cell, as a float and what rounding took from it: from cell to cell
        only whole half-lives pass, and dividing by a power of two is exact.
        """
        numbers = self.selection.numbers
        if numbers is None:
            return None

        def make(selection: Selection) -> SliceTree:
            cell = -(-selection.times // half_life)
            since = (selection.times - cell * half_life) / half_life
            terms = numbers / unit * 2.0**since
            return SliceTree((cell, terms, np.zeros(len(terms))), _add_decayed, (-(1 << 60), 0.0, 0.0))

        cell, total, _ = self.merged(("decayed", half_life), make)
        cell = np.where(self.empty, self.at // half_life, cell).astype(np.int64)
        lives, rest = np.divmod(cell * half_life - self.at, half_life)
        lives = np.maximum(lives, -_MOST_HALVINGS).astype(np.int32)
        with np.errstate(over="ignore"):
            return np.asarray(np.ldexp(total.astype(np.float64) * 2.0 ** (rest / half_life - 1), lives + 1))

    def merged(self, mark: object, make: Callable[[Selection], SliceTree]) -> Nodes:
        """What a tree over the selection gives for each slice; ``mark`` names the tree."""
        return self.selection.tree(mark, make).merged(self.low, self.high)

    def _extremes(self, *, largest: bool) -> pl.Series:
        combine = np.maximum if largest else np.minimum

        def make(selection: Selection) -> SliceTree:
            leaves = selection.numbers
            assert leaves is not None
            limits = np.iinfo(np.int64) if leaves.dtype == np.int64 else np.finfo(np.float64)
            outside = limits.min if largest else limits.max
            return SliceTree((leaves,), lambda a, b: (combine(a[0], b[0]),), (outside,))

        found = pl.Series(self.merged(("extreme", largest), make)[0])
        return pl.select(pl.when(~pl.Series(self.empty)).then(found)).to_series()


class Slices(NamedTuple):
    """What one window holds at each of many instants: rows ``[low, high)``; it ends at ``at``."""

    rows: SortedRows
    low: Ints
    high: Ints
    at: Ints

    def newest(self, most: int) -> Slices:
        """Only the newest rows of each slice."""
        return self._replace(low=np.maximum(self.low, self.high - most))

    def part(self, column: int | None, bit: int | None, *, dropnull: bool) -> Part:
        """What an input takes of each slice; see :meth:`SortedRows.selection`."""
        selection = self.rows.selection(column, bit, dropnull=dropnull)
        return Part(selection, *selection.cut(self.low, self.high), self.at)


def decimals(scaled: pl.Series, scale: int) -> pl.Series:
    """Integers as decimals with their last ``scale`` digits behind the point."""
    return scaled.cast(pl.Decimal(38, 0)) * Decimal(1).scaleb(-scale)


def codes_of(values: pl.Series, distinct: pl.Series) -> Ints:
    """Each value's index in ``distinct``, -1 for another value."""
    if not len(values) or not len(distinct):
        return np.full(len(values), -1, dtype=np.int64)
    places = pl.Series(np.arange(len(distinct), dtype=np.int64))
    return values.replace_strict(distinct, places, default=-1, return_dtype=pl.Int64).to_numpy()


def sorted_places(codes: Ints, instants: Ints) -> Ints:
    """Where what is sorted by code and then by instant stands."""
    ticks = Ticks(instants, _MARK_BITS - int(codes.max(initial=0)).bit_length())
    return np.argsort((codes << ticks.bits) | ticks.of(instants))


def _add_decayed(older: Nodes, newer: Nodes) -> Nodes:
    cell = np.maximum(older[0], newer[0])
    first, second = _halved(older, cell), _halved(newer, cell)
    # Knuth: a sum and its rounding error, exactly.
    with np.errstate(over="ignore", invalid="ignore"):
        total = first[0] + second[0]
        part = total - first[0]
        error = (first[0] - (total - part)) + (second[0] - part) + (first[1] + second[1])
        rounded = total + error
        return cell, rounded, error - (rounded - total)


def _halved(node: Nodes, cell: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    times = np.maximum(node[0] - cell, -_MOST_HALVINGS).astype(np.int32)
    return np.ldexp(node[1].astype(np.float64), times), np.ldexp(node[2].astype(np.float64), times)


def _ranks(ordered: Ints, wanted: Ints, side: Literal["left", "right"]) -> Ints:
    # Searched in order, neighbours walk the same path through the cache: eight times as fast for millions of rows.
    if (wanted[1:] >= wanted[:-1]).all():
        return np.searchsorted(ordered, wanted, side)
    order = np.argsort(wanted)
    ranks = np.empty(len(wanted), dtype=np.int64)
    ranks[order] = np.searchsorted(ordered, wanted[order], side)
    return ranks


def _split(rest: Floats, bits: int, limbs: list[Ints], start: int, most: int) -> bool:
    """Write limbs of floats below 1 from ``start`` on, more arrays where needed; False when not all of them fit."""
    # Every step is exact: a product with a power of two, and the part of a float behind its point.
    for index in range(most):
        if not rest.any():
            return True
        if index == len(limbs):
            limbs.append(np.zeros(len(limbs[0]), dtype=np.int64))
        rest *= 2.0**bits
        whole = np.trunc(rest)
        rest -= whole
        limbs[index][start : start + len(rest)] = whole
    return not rest.any()


def _prefix(values: npt.NDArray[np.generic]) -> Ints:
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def _scaled(values: Floats, exponent: int) -> Floats:
    # Two steps, since 2^exponent itself may be no float.
    return values * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
