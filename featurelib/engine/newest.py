"""The newest event of a key at an instant, found in the key's stored state.

Rows wait in the buffer or lie in the tree, whose branches say which of their children have any: the search goes down
the latest of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from featurelib.clock import Instant
from featurelib.engine.codec import decode_rows
from featurelib.engine.panes import (
    BESIDE_THE_TREE,
    BITS,
    FANOUT,
    Header,
    Leaf,
    Pane,
    PanesMissing,
    Sealed,
    pane_field,
    path_of,
    read_node,
)

# A key quiet for longer than this many of its longest windows is looked up in history instead.
_MOST_ROOTS = 64


def first_fields(at: Instant, root: int) -> tuple[list[Pane], list[bytes]]:
    """The panes a search begins with, and the hash fields of header, buffer and these panes."""
    panes = path_of(at, root)
    return panes, [*BESIDE_THE_TREE, *map(pane_field, panes)]


def newest_event(
    header: Header, waiting: bytes | None, stored: Mapping[Pane, bytes | None], at: Instant, root: int
) -> Instant | None:
    """The event time of the newest row at or before an instant; ``None`` for a key unknown by then.

    Args:
        header: of the key.
        waiting: stored bytes of buffer and tail, joined.
        stored: panes by place, as stored; ``None``: there is no such pane.
        at: the instant.
        root: level of the state's roots.

    Raises:
        PanesMissing: these panes are needed too.
        Sealed: it lies where only partials are kept; history has it.
        CorruptState: the bytes do not decode.
    """
    if not header.known_at(at):
        return None
    rows = decode_rows(waiting) if waiting else []
    in_buffer = max((row[0] for row in rows if row[0] <= at), default=None)
    in_tree = _Search(stored, at, root, in_buffer).newest(header)
    found = max((each for each in (in_buffer, in_tree) if each is not None), default=None)
    if found is None:
        # Known, and of nothing that is stored any more: what there was lies below the floor.
        raise Sealed
    return found


class _Search:
    """Looks through a tree for a row newer than ``known``."""

    def __init__(self, stored: Mapping[Pane, bytes | None], at: Instant, root: int, known: Instant | None) -> None:
        self._stored = stored
        self._at = at
        self._root = root
        self._known = known

    def newest(self, header: Header) -> Instant | None:
        """The newest row at or before the instant, if it is newer than what is known."""
        roots = list(self._roots(header))
        unread = [pane for pane in roots if pane not in self._stored]
        if len(unread) > _MOST_ROOTS:
            raise Sealed
        if unread:
            raise PanesMissing(unread)
        return next((found for pane in roots if (found := self._below(pane, must=False)) is not None), None)

    def _roots(self, header: Header) -> Iterator[Pane]:
        oldest = max(each for each in (header.oldest_us, header.floor, self._known) if each is not None)
        shift = BITS * self._root
        return ((self._root, index) for index in range(self._at >> shift, (oldest >> shift) - 1, -1))

    def _below(self, pane: Pane, *, must: bool) -> Instant | None:
        """The newest row in a pane, at or before the instant; ``must``: the branch above says that it has rows."""
        level, index = pane
        if level == 0:
            return index
        if pane not in self._stored:
            raise PanesMissing([pane])
        data = self._stored[pane]
        if data is None:
            if must:
                raise Sealed
            return None
        node = read_node(data)
        if isinstance(node, Leaf):
            return max((row[0] for row in node.rows if row[0] <= self._at), default=None)
        for place in reversed(range(FANOUT)):
            child = (level - 1, index * FANOUT + place)
            if node.children[place] is None or not self._matters(child):
                continue
            if (found := self._below(child, must=True)) is not None:
                return found
        return None

    def _matters(self, pane: Pane) -> bool:
        """Whether it may hold a row at or before the instant and newer than what is known."""
        level, index = pane
        start, end = index << (BITS * level), (index + 1) << (BITS * level)
        return start <= self._at and (self._known is None or end > self._known)
