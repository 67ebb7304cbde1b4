"""The state of one key: a header, a small buffer of newest arrivals, and a tree of panes over event time.

    header   what is known of the key: applied position per input partition, rows, newest event time
    buffer   up to 32 rows in arrival order, not yet in the tree
    tree     radix 8 over microseconds: the pane at (level, index) covers [index·8^level, (index+1)·8^level)
             leaf    the rows of the pane, in total order; splits above 64 rows
             branch  the partials of its eight children

The shape is a function of the rows alone: a pane is a branch iff it ever held more than 64 rows (a pane
of one microsecond never splits: no window edge can fall inside it). A branch's partials are recomputed
from its children, never added to, so equal rows give equal bytes in any order of arrival.

Every window edge lies on one root-to-leaf path whose names follow from the instant alone; a read fetches
those paths in one round trip: O(levels) small fields however many events the window holds. The buffer
spares a key that gets one event at a time from rewriting a leaf and its ancestors each time. The exception
are thousands of events of one key in one microsecond: their leaf never splits and is rewritten whole.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from featurelib.clock import Duration, Instant
from featurelib.engine.aggregators import Aggregator, Partial, Row
from featurelib.engine.codec import decode, decode_rows, encode
from featurelib.errors import CorruptState

HEADER, BUFFER = b"h", b"b"
_BITS = 3
_FANOUT = 1 << _BITS
_LEAF_ROWS = 64
_BUFFER_ROWS = 32
# 8^17 µs = 71 years: three panes (index -1, 0, 1) hold every instant from 1899 to 2112.
_TOP_LEVEL = 17
_OLDEST_ROOT = -1

Pane = tuple[int, int]
"""``(level, index)``."""

Partials = list[Partial]
"""One partial per aggregator of the pipeline."""


def root_level(longest_window: Duration | None) -> int:
    """The level of the tree's roots: the lowest whose panes are as long as the longest window (``None``: lifetime)."""
    if longest_window is None:
        return _TOP_LEVEL
    return next((level for level in range(1, _TOP_LEVEL) if 1 << (_BITS * level) >= longest_window), _TOP_LEVEL)


def pane_field(pane: Pane) -> bytes:
    """The name of a pane's hash field."""
    return b"%d:%d" % pane


def path_of(instant: Instant, root: int) -> list[Pane]:
    """The panes that hold an instant, root first, down to eight microseconds.

    The one-microsecond level is left out: both window ends are included, so an edge never splits it.
    """
    return [(level, instant >> (_BITS * level)) for level in range(root, 0, -1)]


class Leaf(NamedTuple):
    """Rows of a pane, in total order."""

    rows: list[Row]


class Branch(NamedTuple):
    """Partials of the eight child panes; ``None`` for an empty child."""

    children: list[Partials | None]


Node = Leaf | Branch


def encode_node(node: Node) -> bytes:
    """Stored bytes of a pane."""
    return b"L" + encode(node.rows) if isinstance(node, Leaf) else b"B" + encode(node.children)


def decode_node(data: bytes) -> Node:
    """The pane of some stored bytes.

    Raises:
        CorruptState: they are neither a leaf nor a branch.
    """
    if data[:1] == b"L":
        return Leaf(decode_rows(data[1:]))
    if data[:1] == b"B":
        return Branch(decode(data[1:]))
    raise CorruptState(f"a pane begins with {data[:1]!r}; expected a leaf or a branch")


@dataclass
class Header:
    """What is known of a key, kept as long as the key is known (decision 9)."""

    applied: list[int]
    """Per input partition of the pipeline: rows below this offset are in the state."""
    rows: int = 0
    oldest_us: Instant | None = None
    """Oldest event time ever folded: before it the key is not known."""

    def known_at(self, at: Instant) -> bool:
        """Whether the key had a record by then (decision 9)."""
        return self.rows > 0 and self.oldest_us is not None and self.oldest_us <= at

    def encode(self) -> bytes:
        """Stored bytes."""
        return encode([self.applied, self.rows, self.oldest_us])

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """The header of some stored bytes."""
        return cls(*decode(data))


class Algebra:
    """The aggregators of a pipeline, side by side."""

    def __init__(self, aggregators: Sequence[Aggregator]) -> None:
        self.aggregators = tuple(aggregators)

    def fold(self, rows: Sequence[Row]) -> Partials:
        """Partials of some rows."""
        return [aggregator.fold(rows) for aggregator in self.aggregators]

    def merge(self, panes: Sequence[Partials | None]) -> Partials:
        """Partials of several panes, oldest first."""
        present = [pane for pane in panes if pane is not None]
        if len(present) == 1:
            return present[0]
        return [
            aggregator.merge_all([pane[slot] for pane in present]) for slot, aggregator in enumerate(self.aggregators)
        ]


@dataclass
class KeyState:
    """The state of one key in a worker's memory; panes are loaded when first touched."""

    algebra: Algebra
    root: int
    header: Header
    buffer: list[Row] = field(default_factory=list)
    nodes: dict[Pane, Node | None] = field(default_factory=dict)
    """Panes loaded or made; ``None`` marks a pane known to be absent."""
    whole: bool = False
    """Whether everything stored of the key is in memory, so that nothing must be loaded."""
    dirty: set[bytes] = field(default_factory=set)

    def add(self, rows: Sequence[Row]) -> None:
        """Take rows in arrival order. :meth:`missing` must have been satisfied when it named panes."""
        self.header.rows += len(rows)
        oldest = min(row[0] for row in rows)
        if self.header.oldest_us is None or oldest < self.header.oldest_us:
            self.header.oldest_us = oldest
        self.buffer.extend(rows)
        self.dirty |= {HEADER, BUFFER}
        if len(self.buffer) > _BUFFER_ROWS:
            self.flush()

    def flush(self) -> None:
        """Move the buffer into the tree."""
        rows, self.buffer = self.buffer, []
        self.dirty.add(BUFFER)
        for index, group in _by_pane(rows, self.root):
            self._insert((self.root, index), group)

    def replace(self, removed: Iterable[Row], added: Sequence[Row]) -> None:
        """Take rows out by identity (missing ones are ignored) and put others in, as one change.

        A row that is put in takes the place of one with its identity, so repeating a change changes nothing.
        """
        gone = {row[:3] for row in (*removed, *added)}
        kept = [row for row in self.buffer if row[:3] not in gone]
        in_buffer = len(self.buffer) - len(kept)
        if in_buffer:
            gone -= {row[:3] for row in self.buffer}
            self.buffer = kept
        taken = in_buffer + self._remove(gone)
        self.header.rows -= taken
        self.dirty |= {HEADER, BUFFER}
        if added:
            self.add(added)

    def missing(self, rows: Sequence[Row], *, flushing: bool) -> list[Pane]:
        """Panes that must be loaded before these rows are added or, when ``flushing``, put into the tree.

        What is loaded may show that more is needed: ask again until nothing is missing.
        """
        if self.whole or (not flushing and len(self.buffer) + len(rows) <= _BUFFER_ROWS):
            return []
        panes: dict[Pane, None] = {}
        for instant in {row[0] for row in (*self.buffer, *rows)}:
            panes.update(dict.fromkeys(self._unknown_below(instant)))
        return list(panes)

    def forget_panes(self, most: int = 256) -> None:
        """Drop leaves from memory; they are loaded again when touched. Call it when nothing is dirty.

        Branches stay unless they are more than ``most``: they say which single leaf an instant needs. Without
        them a batch of 4,000 instants asks for 60,000 panes on paths it cannot know to be empty.
        """
        assert not self.dirty
        branches = {pane: node for pane, node in self.nodes.items() if isinstance(node, Branch)}
        self.nodes = dict(branches) if len(branches) <= most else {}
        self.whole = False

    def changes(self) -> dict[bytes, bytes]:
        """Fields to write since the last call, and their bytes."""
        fields: dict[bytes, bytes] = {}
        for name in self.dirty:
            if name == HEADER:
                fields[name] = self.header.encode()
            elif name == BUFFER:
                fields[name] = encode(self.buffer)
            else:
                level, index = name.split(b":")
                node = self.nodes[(int(level), int(index))]
                assert node is not None
                fields[name] = encode_node(node)
        self.dirty.clear()
        return fields

    def _unknown_below(self, instant: Instant) -> list[Pane]:
        # Walks down what is known; a branch with an empty child, a leaf or an absent pane end the path.
        path = [*path_of(instant, self.root), (0, instant)]
        for depth, pane in enumerate(path):
            if pane not in self.nodes:
                # Below a known branch it is most likely a leaf that was dropped; with nothing known, the whole path
                # is asked for at once rather than a level per round trip.
                return path[depth : depth + 1] if depth else path
            node = self.nodes[pane]
            if not isinstance(node, Branch):
                return []
            if node.children[(instant >> (_BITS * (pane[0] - 1))) % _FANOUT] is None:
                return []
        return []

    def _insert(self, pane: Pane, rows: list[Row]) -> Partials:
        node = self.nodes.get(pane)
        if isinstance(node, Branch):
            return self._insert_below(pane, node, rows)
        held = sorted([*(node.rows if node else ()), *rows], key=_identity)
        if len(held) > _LEAF_ROWS and pane[0] > 0:
            return self._insert_below(pane, Branch([None] * _FANOUT), held)
        self._put(pane, Leaf(held))
        return self.algebra.fold(held)

    def _insert_below(self, pane: Pane, branch: Branch, rows: list[Row]) -> Partials:
        level, index = pane
        for child, group in _by_pane(rows, level - 1):
            branch.children[child - index * _FANOUT] = self._insert((level - 1, child), group)
        self._put(pane, branch)
        return self.algebra.merge(branch.children)

    def _remove(self, identities: set[tuple[Any, ...]]) -> int:
        taken = 0
        for index in {identity[0] >> (_BITS * self.root) for identity in identities}:
            inside = [i for i in identities if i[0] >> (_BITS * self.root) == index]
            taken += self._remove_from((self.root, index), inside)[1]
        return taken

    def _remove_from(self, pane: Pane, identities: list[tuple[Any, ...]]) -> tuple[Partials | None, int]:
        node = self.nodes.get(pane)
        if node is None:
            return None, 0
        if isinstance(node, Leaf):
            gone = set(identities)
            kept = [row for row in node.rows if row[:3] not in gone]
            self._put(pane, Leaf(kept))
            return (self.algebra.fold(kept) if kept else None), len(node.rows) - len(kept)
        level, index = pane
        taken = 0
        for child, group in _by_pane(identities, level - 1):
            place = child - index * _FANOUT
            if node.children[place] is not None:
                node.children[place], count = self._remove_from((level - 1, child), group)
                taken += count
        self._put(pane, node)
        present = any(child is not None for child in node.children)
        return (self.algebra.merge(node.children) if present else None), taken

    def _put(self, pane: Pane, node: Node) -> None:
        self.nodes[pane] = node
        self.dirty.add(pane_field(pane))


def read_panes(windows: Iterable[Duration | None], at: Instant, root: int) -> list[Pane]:
    """Panes a read at ``at`` needs: the roots its windows touch, and the path of every window edge."""
    panes: dict[Pane, None] = {}
    edges = [at]
    oldest = at
    for window in windows:
        if window is None:
            oldest = min(oldest, _OLDEST_ROOT << (_BITS * root))
        else:
            edges.append(at - window)
            oldest = min(oldest, at - window)
    for index in range(oldest >> (_BITS * root), (at >> (_BITS * root)) + 1):
        panes[(root, index)] = None
    for edge in edges:
        panes.update(dict.fromkeys(path_of(edge, root)))
    return list(panes)


class PaneReader:
    """Partials of a time range over the panes of one key."""

    def __init__(self, algebra: Algebra, root: int, nodes: Mapping[Pane, Node], buffer: Sequence[Row]) -> None:
        self._algebra = algebra
        self._root = root
        self._nodes = nodes
        self._buffer = buffer

    def partials(self, low: Instant | None, high: Instant) -> list[Partials]:
        """Partials of the rows with ``low <= time <= high``, oldest pane first, loose rows last."""
        loose: list[Row] = [row for row in self._buffer if (low is None or row[0] >= low) and row[0] <= high]
        whole: list[Partials] = []
        shift = _BITS * self._root
        start = _OLDEST_ROOT if low is None else low >> shift
        floor = _OLDEST_ROOT << shift if low is None else low
        for index in range(start, (high >> shift) + 1):
            for part in self._within((self._root, index), floor, high):
                if isinstance(part, Leaf):
                    loose.extend(part.rows)
                else:
                    whole.append(part)
        return [*whole, self._algebra.fold(loose)] if loose else whole

    def _within(self, pane: Pane, low: Instant, high: Instant) -> Iterator[Partials | Leaf]:
        node = self._nodes.get(pane)
        if node is None:
            return
        if isinstance(node, Leaf):
            yield Leaf(_between(node.rows, low, high))
            return
        level, index = pane
        size = 1 << (_BITS * (level - 1))
        for place, partials in enumerate(node.children):
            start = (index * _FANOUT + place) * size
            if partials is None or start > high or start + size <= low:
                continue
            if low <= start and start + size - 1 <= high:
                yield partials
            else:
                yield from self._within((level - 1, index * _FANOUT + place), low, high)


def _between(rows: list[Row], low: Instant, high: Instant) -> list[Row]:
    first = bisect_left(rows, low, key=_time)
    return rows[first : bisect_left(rows, high + 1, key=_time)]


def _by_pane(rows: Sequence[Row], level: int) -> list[tuple[int, list[Row]]]:
    shift = _BITS * level
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[0] >> shift, []).append(row)
    return sorted(groups.items())


def _time(row: Row) -> Instant:
    return row[0]  # type: ignore[no-any-return]


def _identity(row: Row) -> Row:
    return row[:3]
