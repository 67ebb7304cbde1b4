"""A pipeline's steps as a graph that remembers: records in, changes of rows out.

Steps such as a join with a late right side, a table of newest rows or an aggregate of aggregates may take
back what they gave before. Each node keeps the rows it needs and turns a change of its input (rows removed,
rows added) into a change of its output. What a node gives after a series of changes is a function of all the
records in them, not of their order or cut: the backfill applies one change, the stream many.

A row is named by its identity (:mod:`featurelib.engine.operators`); adding a row that is there replaces it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from featurelib.aggregates import Count, First, Last
from featurelib.clock import Instant
from featurelib.definitions import (
    AggregateStep,
    Cdc,
    DatasetDef,
    DedupStep,
    Definitions,
    FilterCodeStep,
    FirstStep,
    JoinStep,
    LatestStep,
    NamedAggregate,
    PipelineDef,
    Step,
    TransformStep,
    UnionStep,
)
from featurelib.engine.batch import INSTANT
from featurelib.engine.fold import Fold
from featurelib.engine.keys import key_texts
from featurelib.engine.operators import (
    ENGINE_COLUMNS,
    IDENTITY,
    SUB,
    UNTIL,
    RightTable,
    UserFailure,
    is_stateless,
    run_step,
    source_rows,
)
from featurelib.engine.panes import KeyState
from featurelib.engine.partials import Row
from featurelib.engine.records import DELETED, TIME, record_schema
from featurelib.errors import ValueOverflow
from featurelib.types import decimal_scale, element_type
from featurelib.windows import Lifetime, Tumbling

PLACE = IDENTITY[2]
Batch = Mapping[str, pa.Table]
"""Records by dataset name."""

_ROWS = "__rows"
# Which row a first or a newest is: what tells one pick from another.
_CHOSEN = ("__chosen_time", "__chosen_accepted_at", "__chosen_place", "__chosen_sub")
_CHOSEN_SUB = _CHOSEN[3]
_NULL_KEY = "\0null"


class Delta(NamedTuple):
    """A change of rows; both frames have the node's columns."""

    removed: pl.DataFrame
    added: pl.DataFrame


class Node:
    """One step of the graph.

    Attributes:
        empty: a frame of the node's columns without rows.
        closes: whether its rows may end (``__until``), so that another row may count again after them.
        inputs: the nodes it takes rows from, in order.
    """

    empty: pl.DataFrame
    closes: bool = False
    inputs: tuple[Node, ...] = ()

    def apply(self, batch: Batch) -> Delta:
        """Take records in, give the change they make."""
        raise NotImplementedError


class SourceNode(Node):
    """The records of a dataset; of one with key versions (cdc), tombstones included."""

    def __init__(self, dataset: DatasetDef, cdc: Cdc) -> None:
        self._dataset = dataset
        self._versions = cdc != "append"
        self.empty = self._rows(record_schema(dataset).empty_table())

    def apply(self, batch: Batch) -> Delta:
        """The dataset's part of the batch."""
        records = batch.get(self._dataset.name)
        return Delta(self.empty, self.empty if records is None else self._rows(records))

    def _rows(self, records: pa.Table) -> pl.DataFrame:
        rows = source_rows(records.select(record_schema(self._dataset).names))
        return rows if self._versions else rows.drop(DELETED)


class MapNode(Node):
    """Steps without memory."""

    def __init__(self, child: Node, steps: Sequence[Step], failures: list[UserFailure]) -> None:
        self.inputs = (child,)
        self._steps = tuple(steps)
        self._failures = failures
        self.empty = self._run(child.empty)
        self.closes = child.closes

    def apply(self, batch: Batch) -> Delta:
        """Both sides of the change, step by step."""
        removed, added = self.inputs[0].apply(batch)
        return Delta(self._run(removed), self._run(added, self._failures))

    def _run(self, frame: pl.DataFrame, failures: list[UserFailure] | None = None) -> pl.DataFrame:
        for step in self._steps:
            frame = run_step(frame, step, failures)
        return frame


class CodeNode(MapNode):
    """A user's function over rows that may be taken back.

    What it gave is kept: a row goes as it came, also when the function would say something else by now, or fail.
    """

    def __init__(self, child: Node, steps: Sequence[Step], failures: list[UserFailure]) -> None:
        super().__init__(child, steps, failures)
        self._given = self.empty

    def apply(self, batch: Batch) -> Delta:
        """What it gave for the rows that go, and what it gives for those that come."""
        removed, added = self.inputs[0].apply(batch)
        gone = self._given.join(removed.select(IDENTITY), on=IDENTITY, how="semi")
        come = self._run(added, self._failures)
        self._given = _with(_without(self._given, gone), come)
        return Delta(gone, come)


class DatasetNode(Node):
    """The rows of a pipeline's output, under the column names of its output dataset."""

    def __init__(self, child: Node, pipeline: PipelineDef, dataset: DatasetDef) -> None:
        self.inputs = (child,)
        self._keys = pipeline.keys
        self._dataset = dataset
        self.empty = self._renamed(child.empty)
        self.closes = child.closes

    def apply(self, batch: Batch) -> Delta:
        """The child's change, renamed."""
        removed, added = self.inputs[0].apply(batch)
        return Delta(self._renamed(removed), self._renamed(added))

    def _renamed(self, frame: pl.DataFrame) -> pl.DataFrame:
        key = frame[self._keys[0]] if len(self._keys) == 1 else key_texts([frame[name] for name in self._keys])
        named = {self._dataset.key.name: key, self._dataset.timestamp.name: frame[TIME].cast(INSTANT)}
        columns = [named[f.name].alias(f.name) if f.name in named else frame[f.name] for f in self._dataset.fields]
        return pl.DataFrame([*columns, *(frame[name] for name in ENGINE_COLUMNS)])


class UnionNode(Node):
    """The rows of several nodes with the same columns; which one a row comes from is part of its identity."""

    def __init__(self, children: Sequence[Node]) -> None:
        self.inputs = tuple(children)
        self.empty = children[0].empty
        self.closes = any(child.closes for child in children)

    def apply(self, batch: Batch) -> Delta:
        """All changes, one after the other."""
        deltas = [child.apply(batch) for child in self.inputs]
        return Delta(self._all([delta.removed for delta in deltas]), self._all([delta.added for delta in deltas]))

    def _all(self, frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
        # Two sides may hold rows of one record, or of records of two datasets that stand at one place.
        return pl.concat(
            frame.select(self.empty.columns).with_columns((pl.lit(str(side)) + pl.col(SUB)).alias(SUB))
            for side, frame in enumerate(frames)
        )


class JoinNode(Node):
    """An as-of join; left rows are kept for right ones that come late (decision 14)."""

    def __init__(self, left: Node, right: Node, right_key: str, step: JoinStep) -> None:
        self.inputs = (left, right)
        self._held = left.empty
        table = RightTable(step, right_key, pl.DataFrame())
        table.frame = table.select(right.empty)
        self.table = table
        self.empty = table.join(left.empty)
        self.closes = left.closes

    def apply(self, batch: Batch) -> Delta:
        """Rows whose left side goes, whose right side differs now, and whose left side comes."""
        left, right = (each.apply(batch) for each in self.inputs)
        gone = self.table.join(left.removed) if len(left.removed) else self.empty
        self._held = _without(self._held, left.removed)
        before, after = self.empty, self.empty
        if len(right.removed) or len(right.added):
            changed = pl.concat([right.removed, right.added])
            touched = self.table.touched_since(changed, self._held)
            before = self.table.join(touched) if len(touched) else self.empty
            self.table = self.table.changed(right.removed, right.added)
            after = self.table.join(touched) if len(touched) else self.empty
        added = self.table.join(left.added) if len(left.added) else self.empty
        self._held = _with(self._held, left.added)
        names = self.empty.columns
        return Delta(
            pl.concat([gone.select(names), before.select(names)]), pl.concat([after.select(names), added.select(names)])
        )


class _KeyedNode(Node):
    """Gives, of all the rows of each key, what :meth:`_of_keys` makes of them."""

    def __init__(self, child: Node, keys: Sequence[str]) -> None:
        self.inputs = (child,)
        self._keys = list(keys)
        self._held = child.empty
        self.empty = self._of_keys(child.empty)

    def apply(self, batch: Batch) -> Delta:
        """Everything of the touched keys, before and after, less what stayed."""
        removed, added = self.inputs[0].apply(batch)
        if not len(removed) and not len(added):
            return Delta(self.empty, self.empty)
        touched = pl.concat([removed.select(self._keys), added.select(self._keys)]).unique()
        before = self._held.join(touched, on=self._keys, how="semi", nulls_equal=True)
        rest = self._held.join(touched, on=self._keys, how="anti", nulls_equal=True)
        after = _with(_without(before, removed), added)
        self._held = pl.concat([rest, after])
        changed = pl.concat([removed.select(IDENTITY), added.select(IDENTITY)])
        old, new = self._of_keys(before), self._of_keys(after)
        return Delta(_unlike(old, new, changed), _unlike(new, old, changed))

    def _of_keys(self, rows: pl.DataFrame) -> pl.DataFrame:
        raise NotImplementedError


class LatestNode(_KeyedNode):
    """Each row until the next row of its key.

    Of rows at one instant a table of newest rows holds the newest alone, as it does over rows that end
    (:class:`EmitNode`): the others are in it at no instant, and no key is known by them.
    """

    closes = True

    def _of_keys(self, rows: pl.DataFrame) -> pl.DataFrame:
        return self._closed(rows).filter(pl.col(UNTIL).is_null() | (pl.col(UNTIL) > pl.col(TIME)))

    def _closed(self, rows: pl.DataFrame) -> pl.DataFrame:
        following = pl.col(TIME).shift(-1).over(self._keys)
        return rows.sort(IDENTITY).with_columns(following.alias(UNTIL))


class VersionsNode(LatestNode):
    """Each record until the next one of its key; a tombstone ends its key.

    A record that is replaced at its own instant counts at no instant, but was accepted: keys are known by it.
    """

    def _of_keys(self, rows: pl.DataFrame) -> pl.DataFrame:
        return self._closed(rows).filter(~pl.col(DELETED)).drop(DELETED)


class FirstNode(_KeyedNode):
    """Of each key only the first row."""

    def _of_keys(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.sort(IDENTITY).unique(self._keys, keep="first", maintain_order=True)


class EmitNode(Node):
    """An aggregate before other steps: per key one row for each instant at which events change its value.

    The row is dated at that instant and counts until the next one. An event always gives a row, a closing only when
    the value differs. A tumbling window gives one row per window that has events, dated at its end.

    With ``chosen`` the aggregates pick one row of the key, the first or the newest: only another pick gives a row.
    """

    closes = True

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
            key = f"{values[_CHOSEN_SUB]}\0{self.key}" if self.chosen else self.key
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


class Graph:
    """The nodes of one pipeline, and the raw datasets that feed them.

    Attributes:
        top: the node before the served aggregate.
        sources: every raw dataset read, the left one first.
        clocks: those of them whose newest record moves the pipeline's clock; right sides of joins do not.
        failures: rows that users' functions could not take; the caller empties it.
    """

    def __init__(self, pipeline: PipelineDef, definitions: Definitions) -> None:
        self._definitions = definitions
        self.sources: list[DatasetDef] = []
        self.clocks: list[DatasetDef] = []
        self.failures: list[UserFailure] = []
        self._depth_of_rights = 0
        self.top = self._steps(pipeline.input_datasets[0], pipeline.steps[:-1])

    def _dataset(self, name: str) -> Node:
        dataset = self._definitions.dataset(name)
        if dataset is None:
            raise KeyError(name)
        producer = self._definitions.producer(name)
        if producer is None:
            return self._source(dataset)
        return DatasetNode(self._steps(producer.input_datasets[0], producer.steps), producer, dataset)

    def _source(self, dataset: DatasetDef) -> Node:
        source = self._definitions.source(dataset.name)
        cdc: Cdc = source.cdc if source else "append"
        if dataset not in self.sources:
            self.sources.append(dataset)
        if not self._depth_of_rights and dataset not in self.clocks:
            self.clocks.append(dataset)
        node = SourceNode(dataset, cdc)
        return node if cdc == "append" else VersionsNode(node, [dataset.key.name])

    def _steps(self, dataset: str, steps: Sequence[Step]) -> Node:
        node = self._dataset(dataset)
        left = self._definitions.dataset(dataset)
        assert left is not None
        for step in steps:
            node = self._step(node, step, left.timestamp.name)
        return node

    def _step(self, node: Node, step: Step, timestamp: str) -> Node:  # noqa: PLR0911  # a table
        match step:
            case JoinStep():
                return self._join(node, step)
            case UnionStep():
                return UnionNode([node, self._steps(step.dataset, step.steps)])
            case DedupStep():
                by = step.by or tuple(name for name in node.empty.columns if name not in ENGINE_COLUMNS)
                return self._first(node, by, timestamp, null_keys=True)
            case FirstStep():
                return self._first(node, step.keys, timestamp, null_keys=False)
            case LatestStep():
                return self._latest(node, step.keys, timestamp)
            case AggregateStep():
                return EmitNode(node, step, timestamp)
            case FilterCodeStep() | TransformStep() if _takes_back(node):
                return CodeNode(node, [step], self.failures)
            case _ if is_stateless(step):
                return MapNode(node, [step], self.failures)
        message = f"no node runs {step.op}"
        raise TypeError(message)

    def _join(self, node: Node, step: JoinStep) -> Node:
        right = self._definitions.dataset(step.right)
        assert right is not None
        self._depth_of_rights += 1
        joined = JoinNode(node, self._dataset(step.right), right.key.name, step)
        self._depth_of_rights -= 1
        return joined

    def _first(self, node: Node, keys: tuple[str, ...], timestamp: str, *, null_keys: bool) -> Node:
        if not node.closes:
            return FirstNode(_non_null(node, () if null_keys else keys), keys)
        return self._emitted(node, keys, First, timestamp, null_keys=null_keys)

    def _latest(self, node: Node, keys: tuple[str, ...], timestamp: str) -> Node:
        if not node.closes:
            return LatestNode(_non_null(node, keys), keys)
        return self._emitted(node, keys, Last, timestamp, null_keys=False)

    def _emitted(self, node: Node, keys: tuple[str, ...], kind: Any, timestamp: str, *, null_keys: bool) -> Node:
        # Once a row ends, another row of its key counts again: the same as an aggregate whose value changes.
        others = [n for n in node.empty.columns if n not in (*keys, *ENGINE_COLUMNS, timestamp)]
        picked = {**{name: name for name in others}, **dict(zip(_CHOSEN, IDENTITY, strict=True))}
        aggregates = tuple(NamedAggregate(output=name, aggregate=kind(of=of)) for name, of in picked.items())
        step = AggregateStep(keys=keys, aggregates=aggregates)
        columns = [name for name in node.empty.columns if name not in ENGINE_COLUMNS]
        return _Ordered(EmitNode(node, step, timestamp, null_keys=null_keys, chosen=True), columns)


class _Ordered(Node):
    """A node with its columns in another order."""

    def __init__(self, child: Node, columns: Sequence[str]) -> None:
        self.inputs = (child,)
        self._columns = [*columns, *ENGINE_COLUMNS]
        self.empty = child.empty.select(self._columns)
        self.closes = child.closes

    def apply(self, batch: Batch) -> Delta:
        """The child's change."""
        removed, added = self.inputs[0].apply(batch)
        return Delta(removed.select(self._columns), added.select(self._columns))


class _NonNullNode(Node):
    """The rows whose key columns are not null: as everywhere, a null key has no rows."""

    def __init__(self, child: Node, keys: Sequence[str]) -> None:
        self.inputs = (child,)
        self._keys = tuple(keys)
        self.empty = child.empty
        self.closes = child.closes

    def apply(self, batch: Batch) -> Delta:
        """The child's change, filtered."""
        removed, added = self.inputs[0].apply(batch)
        return Delta(removed.drop_nulls(self._keys), added.drop_nulls(self._keys))


def _takes_back(node: Node) -> bool:
    """Whether rows of the node may go again: all but those that a record gives on its own."""
    return isinstance(node, JoinNode | _KeyedNode | EmitNode) or any(map(_takes_back, node.inputs))


def _key_part(frame: pl.DataFrame, name: str) -> pl.Expr:
    """The text of a column's values; of a list, that of its elements."""
    column = pl.col(name)
    if not isinstance(frame.schema[name], pl.List):
        return column.cast(pl.String)
    spelled = pl.struct(column.cast(pl.List(pl.String))).struct.json_encode()
    return pl.when(column.is_not_null()).then(spelled).alias(name)


def _non_null(node: Node, keys: Sequence[str]) -> Node:
    return _NonNullNode(node, keys) if keys else node


def _without(frame: pl.DataFrame, removed: pl.DataFrame) -> pl.DataFrame:
    return frame.join(removed.select(IDENTITY), on=IDENTITY, how="anti") if len(removed) else frame


def _with(frame: pl.DataFrame, added: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([_without(frame, added), added.select(frame.columns)]) if len(added) else frame


def _unlike(rows: pl.DataFrame, others: pl.DataFrame, changed: pl.DataFrame) -> pl.DataFrame:
    """The rows that are not among the others just as they are; those that changed are taken to differ."""
    marks = [*IDENTITY, UNTIL]
    same = rows.join(others.select(marks), on=marks, how="semi", nulls_equal=True)
    same = same.join(changed, on=IDENTITY, how="anti")
    return rows.join(same.select(IDENTITY), on=IDENTITY, how="anti")


def column_types(frame: pl.DataFrame) -> dict[str, str]:
    """Type names of a frame's columns."""
    return {name: _type_name(kind) for name, kind in frame.schema.items()}


def _type_name(kind: pl.DataType) -> str:
    if isinstance(kind, pl.List):
        return f"list[{_type_name(kind.inner)}]"  # type: ignore[arg-type]
    if isinstance(kind, pl.Decimal):
        return f"decimal({kind.scale})"
    if kind.is_integer():
        return "int"
    if kind.is_float():
        return "float"
    if kind == pl.Boolean:
        return "bool"
    return "datetime" if kind.is_temporal() else "str"


def polars_type(type_name: str) -> Any:
    """The Polars type of a column type."""
    inner, scale = element_type(type_name), decimal_scale(type_name)
    if inner is not None:
        return pl.List(polars_type(inner))
    if scale is not None:
        return pl.Decimal(38, scale)
    return {
        "int": pl.Int64,
        "float": pl.Float64,
        "str": pl.String,
        "bool": pl.Boolean,
        "datetime": INSTANT,
    }[type_name]
