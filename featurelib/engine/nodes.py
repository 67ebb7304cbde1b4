"""A pipeline's steps as a graph that remembers: records in, changes of rows out.

Steps such as a join with a late right side, a table of newest rows or an aggregate of aggregates may take
back what they gave before. Each node keeps the rows it needs and turns a change of its input (rows removed,
rows added) into a change of its output. What a node gives after a series of changes is a function of all the
records in them, not of their order or cut: the backfill applies one change, the stream many.

A row is named by its identity (:mod:`featurelib.engine.operators`); adding a row that is there replaces it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl
import pyarrow as pa

from featurelib.definitions import (
    Cdc,
    DatasetDef,
    JoinStep,
    PipelineDef,
    Step,
)
from featurelib.engine.batch import INSTANT
from featurelib.engine.keys import key_texts
from featurelib.engine.operators import (
    ENGINE_COLUMNS,
    IDENTITY,
    SUB,
    UNTIL,
    RightTable,
    UserFailure,
    run_step,
    source_rows,
)
from featurelib.engine.records import DELETED, TIME, record_schema

Batch = Mapping[str, pa.Table]
"""Records by dataset name."""


class Delta(NamedTuple):
    """A change of rows; both frames have the node's columns."""

    removed: pl.DataFrame
    added: pl.DataFrame


class Node:
    """One step of the graph.

    Attributes:
        empty: a frame of the node's columns without rows.
        closes: whether its rows may end (``__until``), so that another row may count again after them.
        retracts: whether it may take a row back of its own accord.
        inputs: the nodes it takes rows from, in order.
    """

    empty: pl.DataFrame
    closes: bool = False
    retracts: bool = False
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

    retracts = True

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

    retracts = True

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


class OrderedNode(Node):
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


class NonNullNode(Node):
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


def takes_back(node: Node) -> bool:
    """Whether rows of the node may go again: all but those that a record gives on its own."""
    return node.retracts or any(map(takes_back, node.inputs))


def non_null(node: Node, keys: Sequence[str]) -> Node:
    """The node without the rows that have a null among these columns."""
    return NonNullNode(node, keys) if keys else node


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
