"""A key's rows between window edges: one walk over its panes for all windows, and what of it serves the next read.

What lies between two neighbouring cuts is a stretch (:mod:`featurelib.engine.edges`): the partials of whole panes, and
rows of the leaves that a cut goes through. A cut may move without changing anything until it meets a row or the end of
its pane. So a read of the same bytes a little later takes over everything but the leaves where a cut passed a row.

A cut in the last eighth of its leaf takes the next leaf for a part of it, where that was read too, and goes on into it.
When that eighth begins differs with the leaf, not with the key. So a walk is *due* to be made anew, with the next leaf,
at an instant within the eighth that a share, the key's own, says. Until the leaf ends it still serves.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Literal, NamedTuple

from featurelib.clock import Duration, Instant
from featurelib.engine.codec import decode_parts
from featurelib.engine.edges import BEGINNING, Group, Span, ahead
from featurelib.engine.panes import (
    BITS,
    FANOUT,
    NO_CLOSINGS,
    OLDEST_ROOT,
    UNTIL,
    Algebra,
    Branch,
    Leaf,
    Pane,
    PanesMissing,
    Partials,
    Readable,
    Sealed,
    StoredBranch,
)
from featurelib.engine.partials import IDENTITY, Row

_time = itemgetter(0)
_identity = itemgetter(*range(IDENTITY))
_NONE: list[int] = []
_NEVER, _FOREVER = -(1 << 63), 1 << 63


class Limits(NamedTuple):
    """A cut ``c`` with ``after < c <= upto`` has the same rows before it and behind it."""

    after: Instant
    upto: Instant


class _Calm(NamedTuple):
    """Where the last cut may be, with all others as far from it as they are, before one passes a row."""

    since: Instant
    until: Instant

    @classmethod
    def of(cls, limits: Sequence[Limits], cuts: Sequence[Instant]) -> _Calm:
        """That of a group's cuts. The beginning of all time does not move."""
        last = cuts[-1]
        moving = [(last - cut, limit) for cut, limit in zip(cuts, limits, strict=True) if cut != BEGINNING]
        return cls(max([far + after for far, (after, _) in moving]) + 1, min([far + upto for far, (_, upto) in moving]))


class Stored(NamedTuple):
    """The panes a walk goes over."""

    nodes: Mapping[Pane, Any]
    read: Callable[[Any], Readable]
    """Makes a pane of what stands for it in ``nodes``, where ``None`` is a pane known to be absent."""
    whole: bool
    """Whether what ``nodes`` does not have is absent; else it is missing."""


class _Step(NamedTuple):
    window: int
    stretches: tuple[int, ...]
    goes_on: bool
    """Whether the window before it, which is shorter, is its newest part."""


class Plan:
    """How the windows of a group are put together from stretches: the same for all instants with these spans.

    Args:
        spans: of the windows of a group.
        used: per window, the accumulators that its outputs finish.
        steady: whether all cuts move as time does.
    """

    def __init__(
        self, algebra: Algebra, spans: Sequence[Span], used: Sequence[frozenset[int]], *, steady: bool
    ) -> None:
        self.algebra = algebra
        self.steady = steady
        self.spans = tuple(spans)
        count = max(span.end for span in spans) + 1
        per_stretch = [
            {slot for window, first, end in spans if first <= stretch < end for slot in used[window]}
            for stretch in range(count)
        ]
        self.needed = [tuple(sorted(slots)) for slots in per_stretch]
        """Per stretch, the accumulators wanted of it."""
        slots = sorted({slot for slots in per_stretch for slot in slots})
        self._steps = [
            (slot, algebra.aggregators[slot].merge, _steps([span for span in spans if slot in used[span.window]]))
            for slot in slots
        ]
        self._takers = [
            [
                (
                    slot,
                    algebra.aggregators[slot].both,
                    [s.window for s in spans if _takes(s, stretch) and slot in used[s.window]],
                )
                for slot in self.needed[stretch]
            ]
            for stretch in range(count)
        ]

    def merged(self, stretches: Sequence[Sequence[Partials]], into: Sequence[dict[int, Any]]) -> None:
        """Put the partials of each window, by slot, where they belong.

        Args:
            stretches: per stretch, partials that together are all of it, oldest first.
            into: per window.
        """
        for slot, merge, steps in self._steps:
            partial: Any = None
            for window, own, goes_on in steps:
                parts = [part[slot] for stretch in own for part in stretches[stretch]]
                if goes_on:
                    parts.append(partial)
                partial = into[window][slot] = merge(parts)

    def add(self, got: Sequence[Partials | None], into: Sequence[dict[int, Any]]) -> None:
        """Add to the partials of each window what its stretches got beside what they had."""
        for part, takers in zip(got, self._takers, strict=True):
            if part is None:
                continue
            for slot, both, windows in takers:
                if (own := part[slot]) is not None:
                    for window in windows:
                        of = into[window]
                        of[slot] = both(of[slot], own)


def _takes(span: Span, stretch: int) -> bool:
    return span.first <= stretch < span.end


def _steps(spans: Sequence[Span]) -> list[_Step]:
    # Windows that end together are taken from the shortest up: each is the one before it plus older stretches, so
    # that every pane is merged once however many windows hold it.
    steps: list[_Step] = []
    last: Span | None = None
    for span in spans:
        goes_on = last is not None and last.end == span.end
        end = last.first if last is not None and goes_on else span.end
        steps.append(_Step(span.window, tuple(range(span.first, end)), goes_on))
        last = span
    return steps


class _CutLeaf:
    """A leaf that cuts go through, or that is read though none does; with it the next one, where cuts come near it."""

    __slots__ = ("closed", "cuts", "due_level", "end", "held", "pieces", "start")

    def __init__(self, held: Sequence[Any], pane: Pane, cuts: range, *, closed: bool) -> None:
        self.held = held
        """What stands for it, and for the next one, in the panes of the walk; nothing for a pane without rows."""
        level, index = pane
        self.start = index << (BITS * level)
        self.end = (index + 1) << (BITS * level)
        """Where the next rows may begin: behind the next leaf, once it is a part, and behind empty panes."""
        self.due_level: int | None = level
        """The level of the pane behind that is to be read before a cut gets there; ``None``: none is."""
        self.cuts = cuts
        """Numbers of the cuts; the oldest rows are of the stretch of the first one's number."""
        self.closed = closed
        """Whether some of its rows may have an end."""
        self.pieces: list[Partials | None] | None = None
        """Partials of the rows before, between and behind the cuts; ``None`` as long as no cut has passed a row."""

    def takes(self, cuts: Sequence[Instant]) -> bool:
        """Whether its cuts still go through it."""
        return all(self.start < cuts[number] < self.end for number in self.cuts)


class _Stretch:
    """What was found between two cuts."""

    __slots__ = ("edge", "leaves", "loose", "stored", "whole")

    def __init__(self) -> None:
        self.stored: list[bytes | None] = []
        self.whole: list[Partials | None] = []
        """Partials of whole panes; where their order does not matter, merged into one."""
        self.leaves: list[tuple[_CutLeaf, int]] = []
        """Leaves with rows of it, and which piece of theirs."""
        self.loose: list[Row] = []
        self.edge: Partials | None = None
        """Partials of the rows of all its leaves, until a cut passes one."""

    def parts(self) -> list[Partials]:
        """Partials that together are all of it."""
        found = self.whole if self.edge is None else [*self.whole, self.edge]
        return [part for part in found if part is not None]


class _Bounded:
    """What was laid between cuts, and how far the cuts may move before a row changes sides."""

    _limits: list[Limits]
    _calm: _Calm | None
    _versioned: bool
    """Whether versions end in it: then all this is true as of one instant alone."""

    def lasts(self, group: Group) -> Duration:
        """How long all cuts may move on as time does, from those of this group, before one passes a row."""
        if self._versioned:
            return 0
        if self._calm is None:
            self._calm = _Calm.of(self._limits, group.cuts)
        return self._calm.until - group.cuts[-1]


class Stretches(_Bounded):
    """What lies between the cuts of a group, from one walk over a key's panes.

    Args:
        plan: of the group.
        group: the cuts.
        root: the level of the tree's roots.
        stored: the panes.
        share: of the last eighth of a leaf that must be left for the cuts in it; 0 to 1.

    Raises:
        PanesMissing: fetch these panes and walk again.
        Sealed: some of these rows are not stored any more.
    """

    def __init__(self, plan: Plan, group: Group, root: int, stored: Stored, share: float = 0.0) -> None:
        self._plan = plan
        # Who holds all panes reads none of them twice, and where order matters no cut passes a row.
        self._reads_ahead = plan.steady and not stored.whole and not plan.algebra.chronological
        self._share = share
        self._root = root
        self._begun: dict[Pane, Literal["leaf", "branch"]] = {}
        """Leaves that stand with the one before them already, and the branches that begin with them."""
        self._nodes = stored.nodes
        self._read = stored.read
        self._is_whole = stored.whole
        self._cuts = group.cuts
        self._as_of = group.as_of
        self._limits = [Limits(cut - 1, cut) for cut in group.cuts]
        self._calm = None
        self._leaves: list[_CutLeaf] = []
        self._versioned = False
        self._missing: list[Pane] = []
        self._found = [_Stretch() for _ in range(len(group.cuts) + 1)]
        self._walk(root)
        self._nodes = {}
        self._dues = sorted(self._due_instants())
        """Where the last cut is from when on one of the cuts is to be given what is behind its leaf."""
        self._settle()
        self.parts = [stretch.parts() for stretch in self._found]
        """Per stretch, partials that together are all of it, oldest first."""

    def moved_to(self, group: Group) -> bool | None:
        """Follow the cuts of another read of the same bytes.

        Returns:
            Whether anything changed; ``None``: it cannot follow, walk again.
        """
        passed = self._passed(group)
        if not passed:
            return None if passed is None else False
        self._cuts, self._as_of = group.cuts, group.as_of
        self._calm = None
        for leaf in self._leaves_at(passed):
            self._take_apart(leaf)
        return True

    def follows(self, group: Group) -> bool:
        """Whether :meth:`moved_to` can follow."""
        return self._passed(group) is not None

    def is_due(self, group: Group) -> bool:
        """Whether a cut will soon need the leaf behind its own."""
        return bool(self._dues) and group.cuts[-1] > self._dues[0]

    def lasts(self, group: Group) -> Duration:
        """How long all cuts may move on before one passes a row, or is due."""
        lasts = super().lasts(group)
        return max(0, min(lasts, self._dues[0] - group.cuts[-1])) if self._dues else lasts

    def _passed(self, group: Group) -> list[int] | None:
        """Numbers of the cuts that pass a row; ``None``: one leaves its leaf."""
        cuts, calm = group.cuts, self._calm
        if calm is not None and calm.since <= cuts[-1] <= calm.until:
            return _NONE
        if self._versioned and group.as_of != self._as_of:
            return None
        passed = [n for n, (after, upto) in enumerate(self._limits) if not after < cuts[n] <= upto]
        if not passed:
            if self._plan.steady and not self._versioned:
                self._calm = _Calm.of(self._limits, cuts)
            return passed
        followed = {n for leaf in self._leaves_at(passed) for n in leaf.cuts if leaf.takes(cuts)}
        return None if self._plan.algebra.chronological or not followed.issuperset(passed) else passed

    def _due_instants(self) -> Iterator[Instant]:
        for leaf in self._leaves:
            if leaf.cuts and leaf.due_level is not None and (further := ahead(leaf.due_level)):
                cut = self._cuts[leaf.cuts.stop - 1]
                # A read that was not ahead may have come late: then the next one makes up for it.
                yield self._cuts[-1] + max(0, leaf.end - round(self._share * further) - cut)

    def _leaves_at(self, passed: Sequence[int]) -> list[_CutLeaf]:
        return [leaf for leaf in self._leaves if any(number in leaf.cuts for number in passed)]

    # The walk

    def _walk(self, root: int) -> None:
        cuts, shift = self._cuts, BITS * root
        first = OLDEST_ROOT if cuts[0] == BEGINNING else cuts[0] >> shift
        for index in range(first, ((cuts[-1] - 1) >> shift) + 1):
            self._visit((root, index), bisect_right(cuts, index << shift), holds=False, closed=True)
        if self._missing:
            raise PanesMissing(self._missing)

    def _visit(self, pane: Pane, first: int, *, holds: bool, closed: bool) -> None:
        """Add what a pane has to its stretches.

        Args:
            pane: known to be needed.
            first: number of the first cut behind the pane's start.
            holds: the branch above says that it has rows.
            closed: some of them may have an end.
        """
        if self._begun.get(pane) == "leaf":
            return
        level, index = pane
        inside = range(first, bisect_left(self._cuts, (index + 1) << (BITS * level), first))
        held = self._nodes.get(pane)
        if held is None:
            if not self._is_whole and pane not in self._nodes:
                self._missing.append(pane)
            elif holds:
                raise Sealed
            self._visit_leaf(pane, None, [], inside, closed=False)
            return
        node = self._read(held)
        if isinstance(node, Leaf):
            self._visit_leaf(pane, held, node.rows, inside, closed=closed)
        else:
            self._visit_branch(level - 1, index << BITS, node, inside)

    def _visit_branch(self, level: int, base: int, node: Branch | StoredBranch, inside: range) -> None:
        shift, cuts = BITS * level, self._cuts
        place, number = 0, inside.start
        while number < inside.stop:
            cut = cuts[number]
            child = cut >> shift
            if child - base > place:
                self._take(level, base, node, place, child - base, number)
                place = child - base
            if cut == child << shift:
                number += 1
                continue
            following = number + 1
            while following < inside.stop and cuts[following] >> shift == child and cuts[following] != child << shift:
                following += 1
            own = range(number, following)
            if node.children[place] is None:
                self._visit_leaf((level, child), None, [], own, closed=False)
            else:
                self._visit((level, child), number, holds=True, closed=node.closings[place] is not None)
            self._widen(own, (child + 1) << shift, shift, node.children[place + 1 :])
            place, number = place + 1, following
        if place < FANOUT:
            self._take(level, base, node, place, FANOUT, number)

    def _take(self, level: int, base: int, node: Branch | StoredBranch, first: int, end: int, number: int) -> None:
        """Add whole children to a stretch: their partials, or their rows where those do not count as of now."""
        if not self._plan.needed[number]:
            return
        for place in range(first, end) if self._begun else ():
            if (level, base + place) in self._begun:
                self._visit((level, base + place), number, holds=True, closed=True)
                first = place + 1  # those before it are empty, or stand with the leaf as well
        stretch, closings = self._found[number], node.closings
        found: list[Any] = stretch.stored if isinstance(node, StoredBranch) else stretch.whole
        if closings is NO_CLOSINGS or not any(closing is not None for closing in closings[first:end]):
            found += node.children[first:end]
            return
        self._versioned = True
        for place in range(first, end):
            closing = closings[place]
            if closing is None or closing <= self._as_of:
                found.append(node.children[place])
            else:
                self._visit((level, base + place), number, holds=True, closed=True)

    def _widen(self, cuts: range, end: Instant, shift: int, after: Sequence[Any]) -> None:
        """Let cuts that may move to the end of a pane move on over the empty ones behind it: now mostly lies there."""
        empty = next((place for place, child in enumerate(after) if child is not None), len(after))
        if empty:
            for leaf in self._leaves_at(cuts):
                if leaf.end == end:
                    leaf.end += empty << shift
            for number in cuts:
                if self._limits[number].upto == end:
                    self._limits[number] = Limits(self._limits[number].after, end + (empty << shift))

    # Leaves

    def _visit_leaf(self, pane: Pane, held: Any, rows: list[Row], cuts: range, *, closed: bool) -> None:
        """Add the rows of a leaf to their stretches.

        Args:
            pane: the leaf, or a pane without rows.
            held: what stands for it; ``None`` for one without rows.
            rows: its rows.
            cuts: numbers of those that go through it.
            closed: some of the rows may have an end.
        """
        if held is None and (not cuts or any(cuts.start in leaf.cuts for leaf in self._leaves)):
            return  # nothing, or between two leaves that stand together
        leaf = _CutLeaf(() if held is None else (held,), pane, cuts, closed=closed)
        if not (cuts and self._reads_ahead):
            leaf.due_level = None
        while leaf.due_level is not None and (behind := self._taken_behind(leaf)) is not None:
            rows = [*rows, *behind]
        self._leaves.append(leaf)
        algebra = self._plan.algebra
        for number, (piece, own) in enumerate(self._pieces(leaf, rows)):
            stretch, needed = self._found[piece], self._plan.needed[piece]
            if needed and algebra.chronological:
                self._decode(stretch)
                stretch.whole.append(algebra.fold_some(own, needed) if own else None)
            elif needed:
                stretch.loose += own
                stretch.leaves.append((leaf, number))

    def _taken_behind(self, leaf: _CutLeaf) -> list[Row] | None:
        """Make what is behind a leaf a part of it, where the last of its cuts is near and it is at hand.

        It may be in another branch: the highest pane that begins there is looked at first, and then down. A leaf of a
        lower level than the one before it is only read once a cut is as near as that level asks for.

        Returns:
            Its rows, none of an empty pane; ``None`` when there is nothing more to take.
        """
        end, level = leaf.end, leaf.due_level
        assert level is not None
        top = level
        while top < self._root and end % (1 << (BITS * (top + 1))) == 0:
            top += 1
        branches: list[Pane] = []
        for at in range(top, 0, -1):
            pane = (at, end >> (BITS * at))
            if pane not in self._nodes:
                leaf.due_level = min(level, at)
                return None
            held = self._nodes[pane]
            if held is None:
                if self._holds(pane):
                    break
                # What is behind it may be taken next: then these have a child less, too.
                self._begun |= dict.fromkeys(branches, "branch")
                leaf.end, leaf.due_level = (pane[1] + 1) << (BITS * at), min(level, at)
                return []
            node = self._read(held)
            if isinstance(node, Leaf):
                self._begun |= dict.fromkeys(branches, "branch")
                self._begun[pane] = "leaf"
                leaf.end, leaf.due_level = (pane[1] + 1) << (BITS * at), at
                leaf.held, leaf.closed = (*leaf.held, held), True
                leaf.cuts = range(leaf.cuts.start, bisect_left(self._cuts, leaf.end, leaf.cuts.stop))
                return node.rows
            branches.append(pane)
        leaf.due_level = None
        return None

    def _holds(self, pane: Pane) -> bool:
        """Whether a pane that is not stored has rows: it is sealed."""
        level, index = pane
        above = self._nodes.get((level + 1, index >> BITS))
        node = None if above is None else self._read(above)
        return isinstance(node, Branch | StoredBranch) and node.children[index % FANOUT] is not None

    def _pieces(self, leaf: _CutLeaf, rows: list[Row]) -> list[tuple[int, list[Row]]]:
        """Per stretch, the rows of a leaf that count; looks how far its cuts may move, too."""
        first, last, low = leaf.start, leaf.end, 0
        pieces = []
        for number in leaf.cuts:
            high = _place(rows, self._cuts[number])
            after = max(rows[high - 1][0], first) if high else first
            self._limits[number] = Limits(after, min(rows[high][0], last) if high < len(rows) else last)
            pieces.append((number, rows[low:high]))
            low = high
        pieces.append((leaf.cuts.stop, rows[low:]))
        if leaf.closed and any(row[UNTIL] is not None for row in rows):
            self._versioned = True
            return [(stretch, _counting(own, self._as_of)) for stretch, own in pieces]
        return pieces

    def _take_apart(self, leaf: _CutLeaf) -> None:
        """A cut passed a row of the leaf: from now on each leaf of the stretches beside it stands for itself."""
        touched = [stretch for stretch in self._found if any(own is leaf for own, _ in stretch.leaves)]
        leaf.pieces = None
        for stretch in touched:
            stretch.edge = None
            for own, _ in stretch.leaves:
                if own.pieces is None:
                    own.pieces = self._folded(own)
        for number, stretch in enumerate(self._found):
            if stretch in touched:
                pieces = [own.pieces[piece] for own, piece in stretch.leaves if own.pieces is not None]
                self.parts[number] = [part for part in (*stretch.whole, *pieces) if part is not None]

    def _folded(self, leaf: _CutLeaf) -> list[Partials | None]:
        leaves = [each for each in map(self._read, leaf.held) if isinstance(each, Leaf)]
        rows = [row for each in leaves for row in each.rows]
        fold, needed = self._plan.algebra.fold_some, self._plan.needed
        return [fold(own, needed[s]) if own and needed[s] else None for s, own in self._pieces(leaf, rows)]

    # What was found

    def _settle(self) -> None:
        """Make partials of what was found; where their order does not matter, one of whole panes and one of rows."""
        algebra = self._plan.algebra
        for stretch, needed in zip(self._found, self._plan.needed, strict=True):
            if not needed:
                continue
            self._decode(stretch)
            if algebra.chronological:
                continue
            whole = [part for part in stretch.whole if part is not None]
            stretch.whole = [algebra.merge_some(whole, needed)] if whole else []
            if stretch.loose:
                stretch.edge = algebra.fold_some(stretch.loose, needed)
                stretch.loose = []

    def _decode(self, stretch: _Stretch) -> None:
        if stretch.stored:
            stretch.whole += decode_parts(stretch.stored)
            stretch.stored.clear()  # in place: the walk above is in the middle of filling it


def _counting(rows: list[Row], as_of: Instant) -> list[Row]:
    return [row for row in rows if row[UNTIL] is None or row[UNTIL] > as_of]


def _place(rows: Sequence[Row], cut: Instant) -> int:
    return bisect_left(rows, cut, key=_time)


class Buffered(_Bounded):
    """The rows of a key's buffer, laid into the stretches of a group."""

    def __init__(self, plan: Plan, group: Group, rows: Sequence[Row]) -> None:
        self._plan = plan
        self._as_of = group.as_of
        self._versioned = False
        self._limits = [Limits(_NEVER, _FOREVER)] * len(group.cuts)
        self._calm = None
        self._parts: list[list[Partials]] = [[] for _ in range(len(group.cuts) + 1)]
        self.extend(group, rows)

    def extend(self, group: Group, rows: Sequence[Row]) -> list[Partials | None]:
        """Lay more rows into the stretches, and say what each stretch got."""
        if len(rows) == 1:
            return self._extend_by_one(group, rows[0])
        self._calm = None
        ordered = sorted(rows, key=_identity)
        self._as_of = group.as_of  # rows that have no end are the same as of any instant; those that come are of this
        self._versioned = self._versioned or any(row[UNTIL] is not None for row in ordered)
        got: list[Partials | None] = [None] * len(self._parts)
        low = 0
        for number, cut in enumerate(group.cuts):
            high = _place(ordered, cut)
            after, upto = self._limits[number]
            self._limits[number] = Limits(
                max(after, ordered[high - 1][0]) if high else after,
                min(upto, ordered[high][0]) if high < len(ordered) else upto,
            )
            needed = self._plan.needed[number]
            if high > low and needed and (counting := _counting(ordered[low:high], group.as_of)):
                own = got[number] = self._plan.algebra.fold_some(counting, needed)
                self._parts[number].append(own)
            low = high
        return got

    def _extend_by_one(self, group: Group, row: Row) -> list[Partials | None]:
        """What :meth:`extend` does, for the most common case."""
        time, limits = row[0], self._limits
        self._as_of = group.as_of
        self._versioned = self._versioned or row[UNTIL] is not None
        cuts = group.cuts
        place = bisect_right(cuts, time)
        if self._calm is not None:
            since, until = self._calm
            if place:
                until = min(until, cuts[-1] + time - cuts[place - 1])
            if place < len(cuts):
                since = max(since, cuts[-1] - cuts[place] + time + 1)
            self._calm = _Calm(since, until)
        for number, (after, upto) in enumerate(limits):
            if number < place:
                if time < upto:
                    limits[number] = Limits(after, time)
            elif time > after:
                limits[number] = Limits(time, upto)
        got: list[Partials | None] = [None] * len(self._parts)
        needed = self._plan.needed[place]
        if needed and (row[UNTIL] is None or row[UNTIL] > group.as_of):
            own = got[place] = self._plan.algebra.fold_some([row], needed)
            self._parts[place].append(own)
        return got

    def beside(self, stretches: Sequence[Sequence[Partials]]) -> Sequence[Sequence[Partials]]:
        """The stretches of the tree with these rows."""
        return [[*parts, *own] if own else parts for parts, own in zip(stretches, self._parts, strict=True)]

    def same_for(self, group: Group) -> bool:
        """Whether the rows lie the same for other cuts, as many as there were."""
        calm = self._calm
        if calm is not None and not self._versioned and calm.since <= group.cuts[-1] <= calm.until:
            return True
        if self._versioned and group.as_of != self._as_of:
            return False
        limits = zip(group.cuts, self._limits, strict=True)
        return all(after < cut <= upto for cut, (after, upto) in limits)
