"""The window edges of a read at one instant, and the panes on their paths.

Edges cut time into *stretches*: stretch ``k`` lies between the cuts ``k - 1`` and ``k``, and a window is a run of
neighbouring stretches. What a read needs is looked up once per instant for all pipelines with the same windows.

An edge that moves as time does leaves its pane for the next one, and it does so for all keys at the same instant: panes
lie alike for all of them. So whoever keeps what was read renews it in the last eighth of the pane, each key at an
instant of its own (:mod:`featurelib.engine.stretches`), and reads *ahead* then: the next pane too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

from featurelib.clock import Duration, Instant
from featurelib.engine.panes import BESIDE_THE_TREE, BITS, OLDEST_ROOT, Pane, pane_field
from featurelib.windows import AnyWindow, Bounds, Continuous, Lifetime

BEGINNING = -(1 << 62)
"""The cut before everything: where a window without a start begins."""
# Below it a pane is shorter than two seconds: keys that leave it at once are not told apart by a part of that.
_LEAST_LEVEL_READ_AHEAD = 7
# A request reads one instant; a batch of past instants would not find its edges again.
_KEPT_EDGES = 16


class Span(NamedTuple):
    """A window and its stretches: from ``first`` to before ``end``."""

    window: int
    first: int
    end: int


class Group(NamedTuple):
    """Windows that count the versions of one instant."""

    as_of: Instant
    cuts: tuple[Instant, ...]
    """In order. A row of a cut's instant lies behind it."""
    spans: tuple[Span, ...]
    """Windows that end together stand together, from the shortest up."""


def is_steady(windows: Iterable[AnyWindow]) -> bool:
    """Whether every edge of these windows moves as time does, or not at all."""
    return all(isinstance(window, Continuous | Lifetime) for window in windows)


def ahead(level: int) -> Duration:
    """How long before the end of a pane of a level a read ahead reads the next one: an eighth of it; 0: not at all."""
    return 1 << (BITS * (level - 1)) if level >= _LEAST_LEVEL_READ_AHEAD else 0


class Edges:
    """What a read at an instant must look at, for some windows over trees of one height.

    Args:
        windows: the windows.
        root: the level of the trees' roots.
        at: the instant.
        steady: whether :func:`is_steady` says so of the windows.
    """

    def __init__(self, windows: Sequence[AnyWindow], root: int, at: Instant, *, steady: bool) -> None:
        self.bounds = [window.bounds(at) for window in windows]
        self._root = root
        self._steady = steady

    @cached_property
    def highs(self) -> list[Instant]:
        """Per window, its last instant."""
        return [bounds.high for bounds in self.bounds]

    def reach_below(self, floor: Instant) -> bool:
        """Whether a window begins before an instant."""
        return any(low is None or low < floor for low, _, _ in self.bounds)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The windows, by the instant whose versions they count."""
        members: dict[Instant, list[int]] = {}
        for window, bounds in enumerate(self.bounds):
            members.setdefault(bounds.as_of, []).append(window)
        return tuple(_group(as_of, windows, self.bounds) for as_of, windows in members.items())

    @cached_property
    def panes(self) -> list[Pane]:
        """The roots that windows touch and the path of every edge, the highest level first.

        The one-microsecond level is left out: both window ends are included, so an edge never splits it.
        """
        root, shift = self._root, BITS * self._root
        roots: dict[Pane, None] = {}
        for low, high, _ in self.bounds:
            first = OLDEST_ROOT if low is None else low >> shift
            roots.update(dict.fromkeys((root, index) for index in range(first, (high >> shift) + 1)))
        paths = dict.fromkeys([(level, edge >> (BITS * level)) for level in self._below for edge in self._ends])
        return [*roots, *paths]

    @cached_property
    def panes_ahead(self) -> list[Pane]:
        """With them those behind the edges that will soon be in them."""
        if not self._steady:
            return self.panes
        long = [(level, ahead(level)) for level in range(self._root, 0, -1) if ahead(level)]
        behind = [(level, (edge + further) >> (BITS * level)) for level, further in long for edge in self._ends]
        return [*dict.fromkeys([*self.panes, *behind])]

    @cached_property
    def fields(self) -> list[bytes]:
        """The hash fields of header, buffer and panes."""
        return [*BESIDE_THE_TREE, *map(pane_field, self.panes)]

    @cached_property
    def fields_ahead(self) -> list[bytes]:
        """The hash fields of a read ahead."""
        return [*BESIDE_THE_TREE, *map(pane_field, self.panes_ahead)]

    @property
    def _below(self) -> range:
        return range(self._root - 1, 0, -1)

    @cached_property
    def _ends(self) -> dict[Instant, None]:
        edges: dict[Instant, None] = {}
        for low, high, _ in self.bounds:
            edges[high] = None
            if low is not None:
                edges[low] = None
        return edges


def _group(as_of: Instant, windows: Iterable[int], bounds: Sequence[Bounds]) -> Group:
    starts = {window: BEGINNING if (low := bounds[window].low) is None else low for window in windows}
    cuts = sorted({*starts.values(), *(bounds[window].high + 1 for window in starts)})
    place = {cut: number for number, cut in enumerate(cuts)}
    spans = [Span(window, place[low] + 1, place[bounds[window].high + 1] + 1) for window, low in starts.items()]
    return Group(as_of, tuple(cuts), tuple(sorted(spans, key=_shortest_first)))


def _shortest_first(span: Span) -> tuple[int, int]:
    return span.end, -span.first


class WindowSet:
    """Some windows over trees of one height."""

    def __init__(self, windows: Sequence[AnyWindow], root: int) -> None:
        self._windows = windows
        self._root = root
        self._steady = is_steady(windows)
        self._kept: dict[Instant, Edges] = {}

    def edges(self, at: Instant) -> Edges:
        """The edges of a read at an instant."""
        kept = self._kept.get(at)
        if kept is None:
            if len(self._kept) >= _KEPT_EDGES:
                self._kept.clear()
            kept = self._kept[at] = Edges(self._windows, self._root, at, steady=self._steady)
        return kept


_interned: dict[tuple[int, tuple[AnyWindow, ...]], WindowSet] = {}


def window_set(windows: Sequence[AnyWindow], root: int) -> WindowSet:
    """One set for all pipelines with these windows: the views that a request reads mostly share theirs."""
    return _interned.setdefault((root, tuple(windows)), WindowSet(windows, root))
