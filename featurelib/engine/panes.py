"""The state of one key: a header, a small buffer of newest arrivals, and a tree of panes over event time.

    header   what is known of the key: applied position per input partition, rows, oldest event time, and a stamp of
             the tree, another one after each change of a pane
    buffer   up to 32 rows in arrival order, not yet in the tree; the newest few of them, the *tail*, stand in a
             field of their own, so that a row that comes rewrites these and not all that wait
    tree     radix 8 over microseconds: the pane at (level, index) covers [index·8^level, (index+1)·8^level)
             leaf    the rows of the pane, in total order; splits above 64 rows
             branch  the partials of its eight children

The shape is a function of the rows alone: a pane is a branch iff it ever held more than 64 rows (a pane
of one microsecond never splits: no window edge can fall inside it). A branch's partials are recomputed
from its children, never added to, so equal rows give equal bytes in any order of arrival.

A row that a newer version of its key has closed stays, with the instant it counts until. A branch's partials
are of the open rows of each child; beside them stands the latest closing among the child's rows. A read at or
after it takes the partials, an earlier one goes down to the rows.

Every window edge lies on one root-to-leaf path whose names follow from the instant alone; a read fetches
those paths in one round trip: O(levels) small fields however many events the window holds. The buffer
spares a key that gets one event at a time from rewriting a leaf and its ancestors each time. The exception
are thousands of events of one key in one microsecond: their leaf never splits and is rewritten whole.

A pane that no window edge comes near may be *sealed*: it and all below it are gone, its partials stay in the branch
above. A read of whole panes does not notice; one whose edge falls into it raises Sealed. A row that comes late
is merged into the partials, and :meth:`KeyState.unseal` builds the pane again from its rows. Where every window ends,
panes below the header's *floor* are gone altogether.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from operator import itemgetter
from typing import Any, NamedTuple

from featurelib.clock import Duration, Instant
from featurelib.engine.codec import (
    FIRST_FORMAT,
    FORMAT,
    decode,
    decode_branch,
    decode_parts,
    decode_rows,
    encode,
    encode_branch,
    encode_header,
)
from featurelib.engine.partials import Aggregator, Input, Partial, Row
from featurelib.errors import CorruptState

HEADER, BUFFER, TAIL = b"h", b"b", b"t"
BESIDE_THE_TREE = (HEADER, BUFFER, TAIL)
"""The fields of a key that are no panes."""
BITS = 3
FANOUT = 1 << BITS
_IDENTITY = 4
UNTIL = 4
"""Which member of a row is the instant it counts until."""
_identity = itemgetter(*range(_IDENTITY))
_time = itemgetter(0)
_LEAF_ROWS = 64
_BUFFER_ROWS = 32
# Of a key that gets one row at a time 5 rows are written for each with a tail of 4 to 8, and 16 without.
_TAIL_ROWS = 6
# 8^17 µs = 71 years: three panes (index -1, 0, 1) hold every instant from 1899 to 2112.
_TOP_LEVEL = 17
OLDEST_ROOT = -1
EMPTY_TREE = b""
"""The stamp of a key of which no pane was ever written."""
_STAMP_BYTES = 8

Pane = tuple[int, int]
"""``(level, index)``."""

Partials = list[Partial]
"""One partial per aggregator of the pipeline."""


def root_level(longest_window: Duration | None) -> int:
    """The level of the tree's roots: the lowest whose panes are as long as the longest window (``None``: lifetime)."""
    if longest_window is None:
        return _TOP_LEVEL
    return next((level for level in range(1, _TOP_LEVEL) if 1 << (BITS * level) >= longest_window), _TOP_LEVEL)


def pane_field(pane: Pane) -> bytes:
    """The name of a pane's hash field."""
    return b"%d:%d" % pane


def pane_of(name: bytes) -> Pane:
    """The pane of a hash field."""
    level, index = name.split(b":")
    return int(level), int(index)


def path_of(instant: Instant, root: int) -> list[Pane]:
    """The panes that hold an instant, root first, down to eight microseconds.

    The one-microsecond level is left out: both window ends are included, so an edge never splits it.
    """
    return [(level, instant >> (BITS * level)) for level in range(root, 0, -1)]


class Leaf(NamedTuple):
    """Rows of a pane, in total order."""

    rows: list[Row]


class Branch(NamedTuple):
    """Per child pane, partials of its open rows (``None``: it has no rows) and the latest closing of the others."""

    children: list[Partials | None]
    closings: list[Instant | None]

    @classmethod
    def empty(cls) -> Branch:
        """A branch without rows."""
        return cls([None] * FANOUT, [None] * FANOUT)


class StoredBranch(NamedTuple):
    """A branch as it is read: a child's partials stay bytes until they are needed, which most are not."""

    children: list[bytes | None]
    closings: list[Instant | None]


Node = Leaf | Branch
Readable = Leaf | Branch | StoredBranch
_STORED_BRANCH = b"B" + FORMAT
NO_CLOSINGS: list[Instant | None] = [None] * FANOUT


def encode_node(node: Node) -> bytes:
    """Stored bytes of a pane."""
    if isinstance(node, Leaf):
        return b"L" + encode(node.rows)
    closed = any(closing is not None for closing in node.closings)
    return b"B" + encode_branch(node.children, node.closings if closed else None)


def decode_node(data: bytes) -> Node:
    """The pane of some stored bytes.

    Raises:
        CorruptState: they are neither a leaf nor a branch.
    """
    if data[:1] == b"L":
        return Leaf(decode_rows(data[1:]))
    if data[:1] == b"B":
        if data[1:2] == FORMAT:
            parts, closings = decode_branch(data[1:])
            children = iter(decode_parts(parts))
            return Branch([None if part is None else next(children) for part in parts], closings or [None] * FANOUT)
        stored = decode(data[1:])
        whole, closings = (stored, None) if data[1:2] == FIRST_FORMAT else stored
        return Branch(whole, closings or [None] * FANOUT)
    raise CorruptState(f"a pane begins with {data[:1]!r}; expected a leaf or a branch")


def read_node(data: bytes) -> Leaf | StoredBranch | Branch:
    """Like :func:`decode_node`, for a read: see :class:`StoredBranch`."""
    if data[:2] != _STORED_BRANCH:
        return decode_node(data)
    children, closings = decode_branch(data[1:])
    return StoredBranch(children, closings or NO_CLOSINGS)


class Sealed(Exception):  # not a failure: the read goes to history instead
    """A read needs rows of a pane that keeps only its partials, or reaches below the floor."""


class PanesMissing(Exception):  # not a failure: what a read must fetch to go on
    """A read at an instant before the latest closing needs panes off the paths of its window edges."""

    def __init__(self, panes: Sequence[Pane]) -> None:
        super().__init__(f"{len(panes)} panes")
        self.panes = tuple(panes)


@dataclass
class Header:
    """What is known of a key, kept as long as the key is known (decision 9)."""

    applied: list[int]
    """Per input partition of the pipeline: rows below this offset are in the state."""
    rows: int = 0
    oldest_us: Instant | None = None
    """Oldest event time ever folded: before it the key is not known."""
    floor: Instant | None = None
    """Nothing is stored of earlier rows; they are in no window any more."""
    tree: bytes | None = None
    """The tree's stamp: wherever it is the same, so are the rows of the tree. ``None``: written before there were any.

    A digest of the stamp before, of the positions, and of the panes that a change writes: never counted up, since a key
    that is erased and comes again, a store taken back to an earlier day, and another build of the state would meet an
    earlier number again over other rows.
    """

    def known_at(self, at: Instant) -> bool:
        """Whether the key had a record by then (decision 9)."""
        return self.rows > 0 and self.oldest_us is not None and self.oldest_us <= at

    def encode(self) -> bytes:
        """Stored bytes."""
        return encode_header([self.applied, self.rows, self.oldest_us, self.floor, self.tree])

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """The header of some stored bytes."""
        return cls(*decode(data))


class Algebra:
    """The aggregators of a pipeline, side by side.

    Args:
        aggregators: in the order of their slots.
        turn: mostly another number for each pipeline; says which of every 33 rows of a key has its buffer go into the
            tree. It may change: nothing that is stored depends on it.
    """

    def __init__(self, aggregators: Sequence[Aggregator], turn: int = 0) -> None:
        self.aggregators = tuple(aggregators)
        # Sessions and sketches are merged strictly by time: their rows may not wait in the buffer.
        self.chronological = any(aggregator.chronological for aggregator in self.aggregators)
        self.buffer_rows = 0 if self.chronological else _BUFFER_ROWS
        self.turn = turn
        self._shared: dict[tuple[int, ...], tuple[list[int], list[tuple[Input, list[int]]]]] = {}
        # Aggregators with one input read it once.
        self._inputs = list(dict.fromkeys(a.source for a in self.aggregators if a.needs == "values"))
        self._places = [(a, self._inputs.index(a.source) if a.needs == "values" else None) for a in self.aggregators]

    def runs_over(self, waiting: int, before: int, after: int) -> bool:
        """Whether the rows of a buffer go into the tree.

        A buffer that gets a row at a time is full after 33. Which row that is differs with the pipeline, from the 34th
        on: all views of a key count the same events, and a read after their buffers ran over looks at each tree anew.

        Args:
            waiting: rows in the buffer, with those that come.
            before: rows of the key.
            after: rows of the key, with those that come.
        """
        size = self.buffer_rows + 1
        return waiting >= size or (before >= size and (after + self.turn) // size > (before + self.turn) // size)

    def fold(self, rows: Sequence[Row]) -> Partials:
        """Partials of some rows, which must be in total order."""
        values = [source.values(rows) for source in self._inputs]
        return [
            aggregator.fold(rows) if place is None else aggregator.fold_values(values[place])
            for aggregator, place in self._places
        ]

    def fold_some(self, rows: Sequence[Row], slots: tuple[int, ...]) -> Partials:
        """Like :meth:`fold`, for some aggregators; the others' partials are empty."""
        found: Partials = [None] * len(self.aggregators)
        of_rows, of_values = self._sharing(slots)
        for slot in of_rows:
            found[slot] = self.aggregators[slot].fold(rows)
        for source, takers in of_values:
            values = source.values(rows)
            for slot in takers:
                found[slot] = self.aggregators[slot].fold_values(values)
        return found

    def merge_some(self, panes: Sequence[Partials], slots: tuple[int, ...]) -> Partials:
        """Like :meth:`merge`, for some aggregators."""
        if len(panes) == 1:
            return panes[0]
        found: Partials = [None] * len(self.aggregators)
        for slot in slots:
            found[slot] = self.aggregators[slot].merge([pane[slot] for pane in panes])
        return found

    def _sharing(self, slots: tuple[int, ...]) -> tuple[list[int], list[tuple[Input, list[int]]]]:
        if slots not in self._shared:
            by_input: dict[Input, list[int]] = {}
            for slot in slots:
                if self.aggregators[slot].needs == "values":
                    by_input.setdefault(self.aggregators[slot].source, []).append(slot)
            others = [slot for slot in slots if self.aggregators[slot].needs != "values"]
            self._shared[slots] = others, list(by_input.items())
        return self._shared[slots]

    def merge(self, panes: Sequence[Partials | None]) -> Partials:
        """Partials of several panes, oldest first."""
        present = [pane for pane in panes if pane is not None]
        if len(present) == 1:
            return present[0]
        return [aggregator.merge([pane[slot] for pane in present]) for slot, aggregator in enumerate(self.aggregators)]


def _stamp(header: Header, panes: Mapping[bytes, bytes]) -> bytes:
    """The tree's next stamp, when these panes are written."""
    digest = blake2b(header.encode(), digest_size=_STAMP_BYTES)
    for name, data in panes.items():
        digest.update(name)
        digest.update(data)
    return digest.digest()


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
    settled: int | None = 0
    """How many rows of the buffer, from the oldest, stand in front of the tail; ``None``: all, and in a format that can
    have no tail."""
    has_tail: bool = False
    """Whether rows are stored in the tail."""

    @classmethod
    def stored(cls, algebra: Algebra, root: int, header: bytes, buffer: bytes | None, tail: bytes | None) -> KeyState:
        """The state of a key as it is stored, without its panes.

        Raises:
            CorruptState: the bytes do not decode.
        """
        settled, newest = _waiting(buffer), _waiting(tail)
        state = cls(algebra, root, Header.decode(header), [*settled, *newest])
        state.settled = None if buffer is not None and buffer[:1] != FORMAT else len(settled)
        state.has_tail = bool(newest)
        return state

    def add(self, rows: Sequence[Row]) -> None:
        """Take rows in arrival order. :meth:`missing` must have been satisfied when it named panes."""
        self._add(rows, self.header.rows)

    def _add(self, rows: Sequence[Row], before: int) -> None:
        """Take rows; ``before`` is how many the key had before the change they are a part of."""
        self.header.rows += len(rows)
        oldest = min(map(_time, rows))
        if self.header.oldest_us is None or oldest < self.header.oldest_us:
            self.header.oldest_us = oldest
        self.buffer.extend(rows)
        self.dirty |= {HEADER, TAIL}
        if self.algebra.runs_over(len(self.buffer), before, self.header.rows):
            self.flush()
        elif self.settled is None or len(self.buffer) - self.settled > _TAIL_ROWS:
            self._settle()

    def flush(self) -> None:
        """Move the buffer into the tree."""
        rows, self.buffer = self.buffer, []
        self._settle()
        floor = self.header.floor
        if floor is not None:
            rows = [row for row in rows if row[0] >= floor]
        for index, group in _by_pane(rows, self.root):
            self._insert((self.root, index), group)

    def replace(self, removed: Iterable[Row], added: Sequence[Row]) -> None:
        """Take rows out by identity (missing ones are ignored) and put others in, as one change.

        A row that is put in takes the place of one with its identity, so repeating a change changes nothing. A state
        that :meth:`loses_its_oldest` must be whole.
        """
        removed = list(removed)
        lost = self.loses_its_oldest(removed, added)
        gone = {row[:_IDENTITY] for row in (*removed, *added)}
        kept = [row for row in self.buffer if row[:_IDENTITY] not in gone]
        in_buffer = len(self.buffer) - len(kept)
        if in_buffer:
            gone -= {row[:_IDENTITY] for row in self.buffer}
            self.buffer = kept
            self._settle()
        before = self.header.rows
        self.header.rows -= in_buffer + self._remove(gone)
        self.dirty.add(HEADER)
        if added:
            self._add(added, before)
        if lost:
            assert self.whole
            self.header.oldest_us = min((row[0] for row in self._rows()), default=None)

    def loses_its_oldest(self, removed: Iterable[Row], added: Iterable[Row]) -> bool:
        """Whether the change may take the key's oldest row, so that the next oldest must be looked for."""
        oldest = self.header.oldest_us
        stays = {row[:_IDENTITY] for row in added}
        return oldest is not None and any(row[0] <= oldest and row[:_IDENTITY] not in stays for row in removed)

    def newest(self, at: Instant) -> Instant | None:
        """The newest row at or before an instant, of a state that is whole; ``None``: there is none."""
        return max((row[0] for row in self._rows() if row[0] <= at), default=None)

    def _rows(self) -> Iterator[Row]:
        yield from self.buffer
        for node in self.nodes.values():
            if isinstance(node, Leaf):
                yield from node.rows

    def missing(self, rows: Sequence[Row], *, flushing: bool) -> list[Pane]:
        """Panes that must be loaded before these rows are added or, when ``flushing``, put into the tree.

        What is loaded may show that more is needed: ask again until nothing is missing.
        """
        waiting, known = len(self.buffer) + len(rows), self.header.rows
        if self.whole or not (flushing or self.algebra.runs_over(waiting, known, known + len(rows))):
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
        fields = {name: self._encoded(name) for name in sorted(self.dirty.difference(BESIDE_THE_TREE))}
        if fields:
            self.header.tree = _stamp(self.header, fields)
            self.dirty.add(HEADER)
        if HEADER in self.dirty:
            fields[HEADER] = self.header.encode()
        if BUFFER in self.dirty:
            fields[BUFFER] = encode(self.buffer[: self.settled])
        if TAIL in self.dirty:
            tail = self.buffer[self.settled :]
            if tail or self.has_tail:
                fields[TAIL] = encode(tail)
            self.has_tail = bool(tail)
        self.dirty.clear()
        return fields

    def _settle(self) -> None:
        """Put all rows of the buffer in front of the tail."""
        self.settled = len(self.buffer)
        self.dirty |= {BUFFER, TAIL}

    def _encoded(self, name: bytes) -> bytes:
        node = self.nodes[pane_of(name)]
        assert node is not None
        return encode_node(node)

    def forget(self, panes: Iterable[Pane]) -> None:
        """These panes were sealed, or lie below the floor. Call it when nothing is dirty.

        The tree's stamp stays: the rows are the same, only that some are not stored any more.
        """
        assert not self.dirty
        for pane in panes:
            if pane in self.nodes:
                self.nodes[pane] = None

    def is_sealed(self, pane: Pane) -> bool:
        """Whether the pane has rows and keeps only their partials; what is stored on its path must be loaded."""
        if self.nodes.get(pane) is not None:
            return False
        level, index = pane
        above = self.nodes.get((level + 1, index >> BITS))
        return isinstance(above, Branch) and above.children[index % FANOUT] is not None

    def unseal(self, pane: Pane, rows: Sequence[Row]) -> None:
        """Build a sealed pane again from all of its rows that are applied; those in the buffer are left out."""
        waiting = {row[:_IDENTITY] for row in self.buffer}
        self._insert(pane, [row for row in rows if row[:_IDENTITY] not in waiting])

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
            if node.children[(instant >> (BITS * (pane[0] - 1))) % FANOUT] is None:
                return []
        return []

    def _insert(self, pane: Pane, rows: list[Row]) -> None:
        node = self.nodes.get(pane)
        if isinstance(node, Branch):
            self._insert_below(pane, node, rows)
            return
        held = sorted([*(node.rows if node else ()), *rows], key=_identity)
        if len(held) > _LEAF_ROWS and pane[0] > 0:
            self._insert_below(pane, Branch.empty(), held)
        else:
            self._put(pane, Leaf(held))

    def _insert_below(self, pane: Pane, branch: Branch, rows: list[Row]) -> None:
        level, index = pane
        for child, group in _by_pane(rows, level - 1):
            place = child - index * FANOUT
            held = branch.children[place]
            if held is not None and self.nodes.get((level - 1, child)) is None:
                branch.children[place] = self.algebra.merge([held, self.algebra.fold(sorted(group, key=_identity))])
                continue
            self._insert((level - 1, child), group)
            self._summarize(branch, place, (level - 1, child))
        self._put(pane, branch)

    def _summarize(self, branch: Branch, place: int, child: Pane) -> None:
        """Write into a branch what one of its children holds now."""
        node = self.nodes[child]
        if isinstance(node, Leaf):
            opened = [row for row in node.rows if row[UNTIL] is None]
            branch.children[place] = self.algebra.fold(opened) if node.rows else None
            branch.closings[place] = max((r[UNTIL] for r in node.rows if r[UNTIL] is not None), default=None)
        elif isinstance(node, Branch):
            present = any(below is not None for below in node.children)
            branch.children[place] = self.algebra.merge(node.children) if present else None
            branch.closings[place] = max((c for c in node.closings if c is not None), default=None)

    def _remove(self, identities: set[tuple[Any, ...]]) -> int:
        taken = 0
        for index, group in _by_pane(list(identities), self.root):
            taken += self._remove_from((self.root, index), group)
        return taken

    def _remove_from(self, pane: Pane, identities: list[tuple[Any, ...]]) -> int:
        node = self.nodes.get(pane)
        if node is None:
            return 0
        if isinstance(node, Leaf):
            gone = set(identities)
            kept = [row for row in node.rows if row[:_IDENTITY] not in gone]
            if len(kept) < len(node.rows):
                self._put(pane, Leaf(kept))
            return len(node.rows) - len(kept)
        level, index = pane
        taken = 0
        for child, group in _by_pane(identities, level - 1):
            place = child - index * FANOUT
            if node.children[place] is None:
                continue
            if self.nodes.get((level - 1, child)) is None:
                raise CorruptState(f"rows of pane {(level - 1, child)} are to be taken out, but it is sealed")
            if count := self._remove_from((level - 1, child), group):
                self._summarize(node, place, (level - 1, child))
                taken += count
        if taken:
            self._put(pane, node)
        return taken

    def _put(self, pane: Pane, node: Node) -> None:
        self.nodes[pane] = node
        self.dirty.add(pane_field(pane))


def _waiting(data: bytes | None) -> list[Row]:
    return [] if data is None else decode_rows(data)


def _by_pane(rows: Sequence[Row], level: int) -> list[tuple[int, list[Row]]]:
    shift = BITS * level
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[0] >> shift, []).append(row)
    return sorted(groups.items())
