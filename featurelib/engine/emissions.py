"""An aggregate before other steps: its values over time, as rows (decision 15)."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl

from featurelib.aggregates import Count
from featurelib.clock import Instant
from featurelib.definitions import (
    AggregateStep,
    NamedAggregate,
)
from featurelib.engine.batch import INSTANT
from featurelib.engine.column_types import column_types, polars_type
from featurelib.engine.fold import Fold
from featurelib.engine.keys import key_texts
from featurelib.engine.nodes import Batch, Delta, Node
from featurelib.engine.operators import (
    ENGINE_COLUMNS,
    IDENTITY,
    SUB,
)
from featurelib.engine.panes import KeyState
from featurelib.engine.partials import Row
from featurelib.errors import ValueOverflow
from featurelib.windows import Lifetime, Tumbling

PLACE = IDENTITY[2]
_ROWS = "__rows"
# Which row a first or a newest is: what tells one pick from another.
CHOSEN = ("__chosen_time", "__chosen_accepted_at", "__chosen_place", "__chosen_sub")
CHOSEN_SUB = CHOSEN[3]
_NULL_KEY = "\0null"


class EmitNode(Node):
    """An aggregate before other steps: per key one row for each instant at which events change its value.

    The row is dated at that instant and counts until the next one. An event always gives a row, a closing only when
    the value differs. A tumbling window gives one row per window that has events, dated at its end.

    With ``chosen`` the aggregates pick one row of the key, the first or the newest: only another pick gives a row.
    """

    closes = True
    retracts = True

    def __init__(
        self, child: Node, step: AggregateStep, timestamp: str, *, null_keys: bool = False, chosen: bool = False
    ) -> None:
        self.inputs = (child,)
        self._timestamp = timestamp
        self._null_keys = null_keys
        self._chosen = chosen
        window = step.aggregates[0].aggregate.window if step.aggregates else Lifetime()
        self._tumbling = window if isinstance(window, Tumbling) else None
        self._keys = step.keys
        self.fold = Fold.compile(_counted(step), column_types(child.empty))
        self._outputs = tuple(named.output for named in step.aggregates)
        self._streams: dict[str, _KeyStream] = {}
        self.empty = self._frame([])

    def apply(self, batch: Batch) -> Delta:
        """The emissions that go and come, over all touched keys."""
        removed, added = self.inputs[0].apply(batch)
        gone, come = self._by_stream(removed), self._by_stream(added)
        old: list[_Emission] = []
        new: list[_Emission] = []
        for name in {**gone, **come}:
            stream = self._streams.get(name) or self._streams.setdefault(name, self._new_stream(name, come))
            before, after = stream.change(gone.get(name, _Change()).rows, come.get(name, _Change()).rows)
            old += before
            new += after
        return Delta(self._frame(old), self._frame(new))

    def _new_stream(self, name: str, come: Mapping[str, _Change]) -> _KeyStream:
        change = come[name]
        return _KeyStream(
            self.fold, self.fold.new_state(0), change.key, change.values, change.opens_at, chosen=self._chosen
        )

    def _by_stream(self, frame: pl.DataFrame) -> dict[str, _Change]:
        if not len(frame):
            return {}
        filled = self._text_keys(frame) if self._null_keys else frame
        shaped = self.fold.shape(filled).with_columns(pl.int_range(pl.len()).alias("__line"))
        keyed = frame if self._null_keys else frame.filter(key_texts([frame[k] for k in self._keys]).is_not_null())
        values = keyed.select(self._keys).rows()
        found: dict[str, _Change] = {}
        for key, rows in self.fold.rows_by_key(shaped):
            for row in rows:
                ends = self._window_end(row[0])
                change = found.setdefault(f"{key}\0{ends}", _Change(key, values[row[-1]], ends))
                change.rows.append(row[:-1])
        return found

    def _text_keys(self, frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(_key_part(frame, name).fill_null(_NULL_KEY) for name in self._keys)

    def _window_end(self, instant: Instant) -> Instant | None:
        if self._tumbling is None:
            return None
        size, offset = self._tumbling.size_us, self._tumbling.offset_us
        return (instant - offset) // size * size + offset + size

    def _frame(self, emissions: Sequence[_Emission]) -> pl.DataFrame:
        data: dict[str, list[Any]] = {}
        schema: dict[str, Any] = {}
        for index, name in enumerate(self._keys):
            data[name] = [emission.key_values[index] for emission in emissions]
            schema[name] = self.inputs[0].empty.schema[name]
        for name in self._outputs:
            data[name] = [emission.values[name] for emission in emissions]
            schema[name] = polars_type(self.fold.output_types[name])
        data[self._timestamp] = [emission.time for emission in emissions]
        schema[self._timestamp] = INSTANT
        for name, member in zip(ENGINE_COLUMNS, ("time", "accepted_at", "place", "key", "until"), strict=True):
            data[name] = [getattr(emission, member) for emission in emissions]
            schema[name] = pl.String if name == SUB else pl.Int64
        return pl.DataFrame({name: pl.Series(name, column, dtype=schema[name]) for name, column in data.items()})


class _Emission(NamedTuple):
    time: Instant
    accepted_at: Instant
    place: int
    key: str
    key_values: tuple[Any, ...]
    until: Instant | None
    values: Mapping[str, Any]

    @property
    def identity(self) -> tuple[Any, ...]:
        return self[:4]

    def repeats(self, earlier: _Emission) -> bool:
        """Whether it says what an earlier one said."""
        mine, theirs = ({**e.values, _ROWS: e.counts} for e in (self, earlier))
        return mine == theirs

    @property
    def counts(self) -> bool:
        # A key none of whose rows count any more gives nothing until one does.
        return bool(self.values[_ROWS])


@dataclass
class _Change:
    key: str = ""
    values: tuple[Any, ...] = ()
    opens_at: Instant | None = None
    rows: list[Row] = field(default_factory=list)


@dataclass
class _KeyStream:
    """One key's rows, and the emissions that follow from them."""

    fold: Fold
    state: KeyState
    key: str
    key_values: tuple[Any, ...]
    opens_at: Instant | None
    """Of a tumbling window: its end, before which nothing is emitted."""
    chosen: bool
    rows: dict[tuple[Any, ...], Row] = field(default_factory=dict)
    triggers: list[tuple[Instant, int, Instant, int]] = field(default_factory=list)
    """``(instant, 1 for an event or 0 for a closing, accepted_at, place)`` of every row, in order."""
    emitted: list[_Emission] = field(default_factory=list)

    def change(self, removed: Sequence[Row], added: Sequence[Row]) -> tuple[list[_Emission], list[_Emission]]:
        """Emissions that go, and those that come."""
        first = min(self._instant(row[0]) for row in (*removed, *added))
        self.state.replace(removed, added)
        for row in (*removed, *(self.rows[r[:4]] for r in added if r[:4] in self.rows)):
            held = self.rows.pop(row[:4], None)
            for trigger in self._triggers_of(held) if held else ():
                del self.triggers[bisect_left(self.triggers, trigger)]
        for row in added:
            self.rows[row[:4]] = row
            for trigger in self._triggers_of(row):
                insort(self.triggers, trigger)
        return self._emit_from(first)

    def _emit_from(self, first: Instant) -> tuple[list[_Emission], list[_Emission]]:
        # The emission before the first changed instant is given again: its end may have moved.
        start = max(0, bisect_left(self.emitted, first, key=lambda emission: emission.time) - 1)
        old = self.emitted[start:]
        kept = [e for e in old if e.time < first]
        new = _ended([*kept, *self._fresh(first, kept[-1] if kept else None)])
        self.emitted[start:] = new
        was, now = {e.identity: e for e in old if e.counts}, {e.identity: e for e in new if e.counts}
        gone = [e for e in was.values() if now.get(e.identity) != e]
        return gone, [e for e in now.values() if was.get(e.identity) != e]

    def _points(self, first: Instant) -> list[tuple[Instant, int, Instant, int]]:
        # Of several triggers at one instant the last, an event before a closing.
        points: dict[Instant, tuple[Instant, int, Instant, int]] = {}
        for trigger in self.triggers[bisect_left(self.triggers, (first,)) :]:
            points[trigger[0]] = trigger
        return list(points.values())

    def _fresh(self, first: Instant, last: _Emission | None) -> list[_Emission]:
        fresh = []
        for instant, event, accepted_at, place in self._points(first):
            values = self._values(instant)
            key = f"{values[CHOSEN_SUB]}\0{self.key}" if self.chosen else self.key
            emission = _Emission(instant, accepted_at, place, key, self.key_values, None, values)
            if last is None or (event and not self.chosen) or not emission.repeats(last):
                fresh.append(emission)
                last = emission
        return fresh

    def _values(self, instant: Instant) -> Mapping[str, Any]:
        try:
            return self.fold.finish_state(self.state, instant)
        except ValueOverflow:
            # Too large for a column: null downstream, as an expression's overflow is.
            return {**dict.fromkeys(self.fold.outputs), _ROWS: 1}

    def _triggers_of(self, row: Row) -> list[tuple[Instant, int, Instant, int]]:
        _, accepted_at, place, _, until = row[:5]
        opening = self._instant(row[0])
        found = [(opening, 1, accepted_at, place)]
        if until is not None and until > opening:
            found.append((until, 0, accepted_at, place))
        return found

    def _instant(self, time: Instant) -> Instant:
        return time if self.opens_at is None else self.opens_at


def _ended(emissions: list[_Emission]) -> list[_Emission]:
    """Each emission until the next."""
    following = [*(emission.time for emission in emissions[1:]), None]
    return [e._replace(until=until) for e, until in zip(emissions, following, strict=False)]


def _counted(step: AggregateStep) -> AggregateStep:
    # A tumbling window's rows are a stream of their own, so within it the window is a lifetime.
    aggregates = [
        n if not isinstance(n.aggregate.window, Tumbling)
        else NamedAggregate(output=n.output, aggregate=n.aggregate.model_copy(update={"window": Lifetime()}))
        for n in step.aggregates
    ]  # fmt: skip
    counted = NamedAggregate(output=_ROWS, aggregate=Count())
    return AggregateStep(keys=step.keys, aggregates=(*aggregates, counted), emit=step.emit)


def _key_part(frame: pl.DataFrame, name: str) -> pl.Expr:
    """The text of a column's values; of a list, that of its elements."""
    column = pl.col(name)
    if not isinstance(frame.schema[name], pl.List):
        return column.cast(pl.String)
    spelled = pl.struct(column.cast(pl.List(pl.String))).struct.json_encode()
    return pl.when(column.is_not_null()).then(spelled).alias(name)
