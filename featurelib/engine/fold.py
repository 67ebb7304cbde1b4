"""A compiled aggregate step: rows of a frame in, state per key, and the finish of a key's state at an instant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import polars as pl
from pydantic import BaseModel

from featurelib.aggregates import result_type
from featurelib.clock import Duration, Instant
from featurelib.definitions import AggregateStep, NamedAggregate
from featurelib.engine.aggregators import aggregator_for
from featurelib.engine.batch import condition
from featurelib.engine.codec import decode_rows
from featurelib.engine.keys import key_texts
from featurelib.engine.operators import IDENTITY, UNTIL
from featurelib.engine.panes import (
    BUFFER,
    HEADER,
    Algebra,
    Header,
    KeyState,
    Pane,
    PaneReader,
    Partials,
    pane_field,
    read_node,
    read_panes,
    root_level,
)
from featurelib.engine.partials import Aggregator, Input, Row
from featurelib.expr import columns_of
from featurelib.types import Value
from featurelib.windows import AnyWindow, Bounds

KEY = "__key"
_MASK = "__mask"
_FIRST_VALUE = 5


class _Output(NamedTuple):
    name: str
    aggregator: Aggregator
    slot: int  # of the accumulator it finishes, which others may share
    window: int
    default: Any
    has_default: bool


class KeyRows(NamedTuple):
    """Rows of one key, in the order of their frame."""

    key: str
    rows: list[Row]


@dataclass(frozen=True)
class Fold:
    """An aggregate step, ready to run. Make one with :meth:`compile`."""

    keys: tuple[str, ...]
    algebra: Algebra
    root: int
    windows: tuple[AnyWindow, ...]
    output_types: Mapping[str, str]
    _outputs: tuple[_Output, ...]
    _value_columns: tuple[str, ...]
    _predicates: tuple[BaseModel, ...]

    @classmethod
    def compile(cls, step: AggregateStep, types: Mapping[str, str]) -> Fold:
        """Share accumulators between windows and lay rows out.

        Args:
            step: a validated step.
            types: type name of every column in scope.
        """
        layout = _Layout(step.aggregates, types)
        return cls(
            keys=step.keys,
            algebra=Algebra(layout.slots),
            root=root_level(_longest(layout.windows)),
            windows=tuple(layout.windows),
            output_types={n.output: result_type(n.aggregate, types.get(n.aggregate.of)) for n in step.aggregates},
            _outputs=tuple(layout.outputs),
            _value_columns=tuple(layout.values),
            _predicates=tuple(layout.predicates),
        )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Output columns, in declared order."""
        return tuple(output.name for output in self._outputs)

    @property
    def layout(self) -> tuple[_Output, ...]:
        """Per output column, its accumulator and window."""
        return self._outputs

    def only(self, names: Sequence[str]) -> Fold:
        """The same step with fewer outputs and only their accumulators; rows stay as they are."""
        kept = [output for output in self._outputs if output.name in names]
        slots, windows = sorted({o.slot for o in kept}), sorted({o.window for o in kept})
        moved = [o._replace(slot=slots.index(o.slot), window=windows.index(o.window)) for o in kept]
        return replace(
            self,
            algebra=Algebra([self.algebra.aggregators[slot] for slot in slots]),
            windows=tuple(self.windows[window] for window in windows),
            _outputs=tuple(moved),
        )

    @property
    def horizon(self) -> Duration | None:
        """How far back the longest window reaches; ``None``: for ever."""
        return _longest(self.windows)

    @property
    def columns(self) -> set[str]:
        """Columns the aggregates and their predicates read."""
        return {*self._value_columns, *(column for node in self._predicates for column in columns_of(node))}

    def shape(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The columns a row is made of: ``__key``, identity, ``__until``, value columns and ``__mask``."""
        keyed = frame.with_columns(key_texts([frame[name] for name in self.keys]).alias(KEY))
        bits = [condition(node, frame).cast(pl.Int64) * (1 << bit) for bit, node in enumerate(self._predicates)]
        mask = pl.sum_horizontal(bits).alias(_MASK) if bits else pl.lit(0, dtype=pl.Int64).alias(_MASK)
        values = [_stored(keyed.schema[name], name) for name in self._value_columns]
        return keyed.select(KEY, *IDENTITY, UNTIL, *values, mask).filter(pl.col(KEY).is_not_null())

    def rows_by_key(self, shaped: pl.DataFrame) -> Iterator[KeyRows]:
        """Rows of each key, keys in text order, rows in the frame's order."""
        ordered = shaped.sort(KEY, maintain_order=True)
        runs = ordered[KEY].rle().struct.unnest()
        rows = ordered.drop(KEY).rows()
        start = 0
        for length, key in zip(runs["len"].to_list(), runs["value"].to_list(), strict=True):
            yield KeyRows(key, rows[start : start + length])
            start += length

    def new_state(self, inputs: int) -> KeyState:
        """The state of a key never seen; ``inputs`` is the number of input partitions of the pipeline."""
        return KeyState(self.algebra, self.root, Header([0] * inputs), whole=True)

    def read_fields(self, at: Instant) -> list[bytes]:
        """Hash fields a read at ``at`` needs: header, buffer, and the path of every window edge."""
        return [HEADER, BUFFER, *(pane_field(pane) for pane in self.read_panes(at))]

    def read_panes(self, at: Instant) -> list[Pane]:
        """The panes among :meth:`read_fields`."""
        return read_panes([window.bounds(at) for window in self.windows], self.root)

    def finish(
        self, values: Sequence[bytes | None], at: Instant, more: Mapping[Pane, bytes | None] | None = None
    ) -> dict[str, Value] | None:
        """The output row of a key at an instant.

        Args:
            values: stored bytes, in the order of ``read_fields(at)``.
            at: the instant R.
            more: panes fetched because an earlier call raised PanesMissing.

        Returns:
            Column → value; ``None`` for a key that had no record by then.

        Raises:
            PanesMissing: a read before the latest closing of a row needs these panes too.
            Sealed: an edge falls where only partials are kept; history has the rows.
            ValueOverflow: a sum left the 64-bit range, or the finite floats.
            CorruptState: the bytes do not decode.
        """
        if values[0] is None:
            return None
        header = Header.decode(values[0])
        if not header.known_at(at):
            return None
        stored = {**dict(zip(self.read_panes(at), values[2:], strict=True)), **(more or {})}
        nodes = {pane: read_node(data) if data is not None else None for pane, data in stored.items()}
        buffer = decode_rows(values[1]) if values[1] is not None else []
        return self._finish(PaneReader(self.algebra, self.root, nodes, buffer, header.floor, whole=False), at)

    def finish_state(self, state: KeyState, at: Instant) -> dict[str, Value]:
        """The output row of a state held in memory, every pane loaded."""
        floor = state.header.floor
        return self._finish(PaneReader(self.algebra, self.root, state.nodes, state.buffer, floor, whole=True), at)

    def _finish(self, reader: PaneReader, at: Instant) -> dict[str, Value]:
        bounds = [window.bounds(at) for window in self.windows]
        merged = self._by_window(reader, bounds)
        row: dict[str, Value] = {}
        for output in self._outputs:
            partial = merged[output.window][output.slot]
            if output.has_default and not output.aggregator.holds(partial):
                row[output.name] = output.default
            else:
                row[output.name] = output.aggregator.finish(partial, bounds[output.window].high)
        return row

    def _by_window(self, reader: PaneReader, bounds: Sequence[Bounds]) -> list[Partials]:
        # Windows that end together are taken from the shortest up: each is the one before it plus an older
        # slice, so every pane is merged once however many windows hold it.
        merged: list[Partials] = [[] for _ in bounds]
        last: int | None = None
        for index in sorted(range(len(bounds)), key=lambda i: _shortest_first(bounds[i])):
            low, high, as_of = bounds[index]
            newer: list[Partials] = []
            if last is not None and bounds[last][1:] == (high, as_of):
                newer, inner = [merged[last]], bounds[last].low
                if inner is None:  # a lifetime holds all there is; those of sessions and row caps end with it
                    merged[index] = merged[last]
                    continue
                high = inner - 1
            older = [] if low is not None and high < low else reader.partials(low, high, as_of)
            merged[index] = self.algebra.merge([*older, *newer])
            last = index
        return merged


def _longest(windows: Sequence[AnyWindow]) -> Duration | None:
    """How far the longest window reaches; of a table without columns beside its key, as of every table, for ever."""
    reaches = [window.reach_us for window in windows]
    return None if None in reaches else max((reach for reach in reaches if reach is not None), default=None)


def _shortest_first(bounds: Bounds) -> tuple[Instant, Instant, bool, Instant]:
    return bounds.high, bounds.as_of, bounds.low is None, -(bounds.low or 0)


class _Layout:
    """Distinct value columns, predicates, accumulators and windows of an aggregate step."""

    def __init__(self, aggregates: Sequence[NamedAggregate], types: Mapping[str, str]) -> None:
        self._types = types
        self.values = sorted({a.aggregate.of for a in aggregates if a.aggregate.of})
        self.predicates: list[BaseModel] = []
        self.slots: list[Aggregator] = []
        self._known: dict[Any, int] = {}
        self.windows: list[AnyWindow] = list(dict.fromkeys(named.aggregate.window for named in aggregates))
        # Slots follow the outputs' names: declaring them in another order lays state out the same.
        made = {named.output: self._output(named) for named in sorted(aggregates, key=lambda named: named.output)}
        self.outputs = [made[named.output] for named in aggregates]

    def _output(self, named: NamedAggregate) -> _Output:
        default = named.aggregate.default
        aggregator = aggregator_for(named.aggregate, self._input(named))
        return _Output(
            name=named.output,
            aggregator=aggregator,
            slot=self._slot(aggregator),
            window=self.windows.index(named.aggregate.window),
            default=default.as_value(result_type(named.aggregate, self._types.get(named.aggregate.of)))
            if default
            else None,
            has_default=default is not None,
        )

    def _slot(self, aggregator: Aggregator) -> int:
        # Windows and defaults apart, equal aggregates share an accumulator.
        if aggregator.state not in self._known:
            self._known[aggregator.state] = len(self.slots)
            self.slots.append(aggregator)
        return self._known[aggregator.state]

    def _input(self, named: NamedAggregate) -> Input:
        column, where = named.aggregate.of, named.aggregate.where
        if where is not None and where not in self.predicates:
            self.predicates.append(where)
        return Input(
            column=_FIRST_VALUE + self.values.index(column) if column else None,
            type=self._types.get(column),
            bit=self.predicates.index(where) if where is not None else None,
        )


def _stored(kind: pl.DataType, name: str) -> pl.Expr:
    # Instants are stored as integers, microseconds, like every other instant.
    column = pl.col(name)
    return (column.dt.epoch("us") if kind.is_temporal() else column).alias(f"__value_{name}")
