"""A compiled pipeline: records in, rows per key out; and the finish of a key's state at an instant.

The streaming worker, the backfill, the point-in-time read and the mock context all run this one class.

Most pipelines only filter, compute and join the records of one append-only dataset: a record gives at most one
row, whatever came before. Such a *plain* pipeline keeps nothing but its right tables (:meth:`Program.prepare`).
Every other one runs a :class:`~featurelib.engine.flow.Graph`, which may take rows back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl
import pyarrow as pa

from featurelib.aggregates import First, Last
from featurelib.clock import Duration, Instant
from featurelib.definitions import (
    INDEX_SUFFIX,
    AggregateStep,
    AssignStep,
    Cdc,
    ConnectorDef,
    DatasetDef,
    Definitions,
    ExplodeStep,
    FilterCodeStep,
    FilterStep,
    JoinStep,
    LatestStep,
    NamedAggregate,
    PipelineDef,
    RenameStep,
    SourceDef,
    Step,
    TransformStep,
    UnionStep,
    canonical_bytes,
    ref,
)
from featurelib.engine.batch import condition
from featurelib.engine.column_types import column_types
from featurelib.engine.counting import counting
from featurelib.engine.flow import Graph
from featurelib.engine.fold import KEY, Fold, KeyRows
from featurelib.engine.nodes import Batch, Delta
from featurelib.engine.operators import (
    RightTable,
    UserFailure,
    is_stateless,
    left_rows,
    run_steps,
    source_rows,
)
from featurelib.engine.panes import Algebra, Header, KeyState, Pane
from featurelib.engine.records import DELETED, SYSTEM_COLUMNS, TIME, record_schema
from featurelib.expr import columns_of
from featurelib.types import Value


@dataclass(frozen=True)
class Program:
    """A pipeline, ready to run. Make one with :meth:`compile`."""

    pipeline: PipelineDef
    definitions: Definitions
    left: DatasetDef
    rights: tuple[DatasetDef, ...]
    """Right sides of a plain pipeline's joins."""
    fold: Fold
    plain: bool
    sources: tuple[DatasetDef, ...]
    """Every raw dataset read, the left one first."""
    clocks: tuple[DatasetDef, ...]
    """Those whose newest record moves the pipeline's clock."""
    _tombstones: bool

    @classmethod
    def compile(cls, pipeline: PipelineDef, definitions: Definitions) -> Program:
        """Resolve names and compile the served aggregate.

        Args:
            pipeline: a validated pipeline.
            definitions: must hold every dataset the pipeline names.
        """
        left = _dataset(definitions, pipeline.input_datasets[0])
        tombstones = _is_index(pipeline)
        graph = None if _is_plain(pipeline, definitions) else Graph(pipeline, definitions)
        rights = tuple(_dataset(definitions, step.right) for step in pipeline.joins) if graph is None else ()
        types = column_types(graph.top.empty if graph else _plain_columns(pipeline, left, rights, tombstones))
        return cls(
            pipeline=pipeline,
            definitions=definitions,
            left=left,
            rights=rights,
            fold=Fold.compile(served_step(pipeline, definitions, types), types),
            plain=graph is None,
            sources=tuple(graph.sources) if graph else (left, *rights),
            clocks=tuple(graph.clocks) if graph else (left,),
            _tombstones=tombstones,
        )

    @cached_property
    def ref(self) -> str:
        """``Name@version`` of the pipeline."""
        return ref(self.pipeline)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Output columns, in declared order."""
        return tuple(name for name in self.fold.outputs if name != DELETED)

    @property
    def horizon(self) -> Duration | None:
        """How far back the longest window reaches; ``None``: for ever."""
        return self.fold.horizon

    @property
    def algebra(self) -> Algebra:
        """The aggregators of the served aggregate."""
        return self.fold.algebra

    @property
    def root(self) -> int:
        """The level of the state's roots."""
        return self.fold.root

    @cached_property
    def has_functions(self) -> bool:
        """Whether a function of a user's runs over its rows, or over those of a pipeline whose output it reads."""
        upstream = needed_by(self.pipeline, self.definitions).pipelines
        return any(_is_function(step) for each in (self.pipeline, *upstream) for step in each.steps)

    def new_graph(self) -> Graph:
        """The graph of a pipeline that is not plain, before any record."""
        return Graph(self.pipeline, self.definitions)

    def right_tables(self) -> dict[str, RightTable]:
        """Empty right sides of a plain pipeline, by dataset name."""
        steps = self.pipeline.joins
        return {dataset.name: RightTable.empty(step, dataset) for step, dataset in zip(steps, self.rights, strict=True)}

    def keyed_like_its_dataset(self) -> bool:
        """Whether rows fold under the key of their log, so that a worker reads only its own partitions."""
        key = self.left.key.name
        rewritten = any(
            (isinstance(step, AssignStep) and step.column == key)
            or (isinstance(step, RenameStep) and key in {name for pair in step.columns for name in pair})
            or isinstance(step, ExplodeStep)
            for step in self.pipeline.steps
        )
        transformed = any(getattr(step, "code", None) is not None for step in self.pipeline.steps)
        return self.plain and self.pipeline.keys == (key,) and not rewritten and not transformed

    def left_columns(self) -> list[str]:
        """Columns of a left record the pipeline reads, system columns included."""
        return [*self._own_columns, *SYSTEM_COLUMNS]

    @cached_property
    def _own_columns(self) -> tuple[str, ...]:
        names = {field.name for field in self.left.fields}
        if not self.plain or any(not _names_its_columns(step) for step in self.pipeline.steps[:-1]):
            return tuple(field.name for field in self.left.fields)
        read = {column for step in self.pipeline.steps[:-1] for column in _columns_read(step)}
        read |= {*self.fold.keys, *self.fold.columns}
        return tuple(field.name for field in self.left.fields if field.name in read & names)

    def prepare(
        self, records: pa.Table, rights: Mapping[str, RightTable], failures: list[UserFailure] | None = None
    ) -> pl.DataFrame:
        """Run the steps of a plain pipeline before its aggregate.

        Args:
            records: left records.
            rights: the right sides, by dataset name.
            failures: gets the rows that a user's function could not take.

        Returns:
            One line per surviving record, as :meth:`Fold.shape` gives them.
        """
        return self.shape(run_steps(self.rows(records), self.pipeline.steps[:-1], rights, failures))

    def rows(self, records: pa.Table) -> pl.DataFrame:
        """Left records of a plain pipeline as rows."""
        return source_rows(records) if self._tombstones else left_rows(records)

    def shape(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The columns a row is made of, of the rows that count for the pipeline."""
        shaped = self.fold.shape(frame)
        limits = counting(self.pipeline.backfill)
        return shaped if limits is None else shaped.filter(condition(limits, shaped))

    def shape_delta(self, delta: Delta) -> Delta:
        """A change of the graph's top, as the rows that state is made of."""
        return Delta(self.shape(delta.removed), self.shape(delta.added))

    def shape_all(self, records: Batch, failures: list[UserFailure] | None = None) -> pl.DataFrame:
        """The rows that all of these records make, by dataset name: as if they came in one batch.

        Args:
            records: by dataset name.
            failures: gets the rows that a user's function could not take.
        """
        if not self.plain:
            graph = self.new_graph()
            shaped = self.shape(graph.top.apply(records).added)
            if failures is not None:
                failures += graph.failures
            return shaped
        rights = self.right_tables()
        for name, table in rights.items():
            if name in records:
                rights[name] = table.with_records(records[name])
        left = records.get(self.left.name, record_schema(self.left).empty_table())
        return self.prepare(left.select(self.left_columns()), rights, failures)

    def rows_by_key(self, shaped: pl.DataFrame) -> Iterator[KeyRows]:
        """Rows of each key, keys in text order, rows in the frame's order."""
        return self.fold.rows_by_key(shaped)

    def new_state(self, inputs: int) -> KeyState:
        """The state of a key never seen; ``inputs`` is the number of input partitions of the pipeline."""
        return self.fold.new_state(inputs)

    def read_fields(self, at: Instant, *, ahead: bool = False) -> list[bytes]:
        """Hash fields a read at ``at`` needs; see :meth:`Fold.read_fields`."""
        return self.fold.read_fields(at, ahead=ahead)

    def finish(
        self,
        values: Sequence[bytes | None],
        at: Instant,
        more: Mapping[Pane, bytes | None] | None = None,
        key: str | None = None,
    ) -> dict[str, Value] | None:
        """The output row of a key at an instant, from stored bytes; see :meth:`Fold.finish`."""
        return self._served(self.fold.finish(values, at, more, key))

    def finish_lasting(
        self,
        values: Sequence[bytes | None],
        at: Instant,
        more: Mapping[Pane, bytes | None] | None = None,
        key: str | None = None,
        *,
        ahead: bool = False,
    ) -> tuple[dict[str, Value] | None, Instant]:
        """The output row, and the last instant at which a read of the same state gives the same row."""
        row, until = self.fold.finish_lasting(values, at, more, key, ahead=ahead)
        return self._served(row), until

    def may_follow(self, at: Instant, key: str) -> bool:
        """Whether what is kept of a key is enough for a read at an instant, should its tree still be the same."""
        return self.fold.may_follow(at, key)

    def is_due(self, at: Instant, key: str) -> bool:
        """Whether what is kept of a key soon ends, so that it should be read ahead now."""
        return self.fold.is_due(at, key)

    def forget(self, key: str) -> None:
        """Keep nothing of a key: the store knows it no more."""
        self.fold.forget(key)

    def finish_again(
        self, header: Header, buffer: bytes | None, tail: bytes | None, at: Instant, key: str
    ) -> tuple[dict[str, Value] | None, Instant] | None:
        """Like :meth:`finish_lasting`, from what is kept of the key's tree; see :meth:`Fold.finish_again`."""
        found = self.fold.finish_again(header, buffer, tail, at, key)
        return None if found is None else (self._served(found[0]), found[1])

    def finish_state(self, state: KeyState, at: Instant) -> dict[str, Value] | None:
        """The output row of a state held in memory, every pane loaded; ``None`` for a key without a record by then."""
        return self._served(self.fold.finish_state(state, at)) if state.header.known_at(at) else None

    def _served(self, row: dict[str, Value] | None) -> dict[str, Value] | None:
        # An index keeps tombstones: a key whose newest record is one has no row.
        if row is not None and row.pop(DELETED, None):
            return None
        return row


_compiled: OrderedDict[bytes, Program] = OrderedDict()
_KEPT_PROGRAMS = 4_096


def compiled(pipeline: PipelineDef, definitions: Definitions) -> Program:
    """Like :meth:`Program.compile`, once per meaning: a replica compiles every pipeline anew on each commit."""
    mark = canonical_bytes(pipeline) + canonical_bytes(needed_by(pipeline, definitions))
    program = _compiled.get(mark)
    if program is None:
        program = _compiled[mark] = Program.compile(pipeline, definitions)
        if len(_compiled) > _KEPT_PROGRAMS:
            _compiled.popitem(last=False)
    return program


def states_of(program: Program, records: Batch, keys: Collection[str] | None = None) -> dict[str, KeyState]:
    """The state of every key that these records make, or of some keys."""
    shaped = program.shape_all(records)
    if keys is not None:
        shaped = shaped.filter(pl.col(KEY).is_in(list(keys)))
    states = {}
    for key, rows in program.rows_by_key(shaped):
        states[key] = program.new_state(1)
        states[key].add(rows)
    return states


def replay(
    program: Program, left: pa.Table, rights: Mapping[str, RightTable], key: str, at: Instant
) -> dict[str, Value] | None:
    """The output row of one key of a plain pipeline at an instant, folded from records: the point-in-time read.

    Args:
        program: the pipeline.
        left: accepted records of the left dataset; those of other keys are ignored.
        rights: the right sides as known.
        key: key text.
        at: the instant R; records dated after it do not count.

    Returns:
        Column → value; ``None`` when no record of the key is dated at or before ``at``.
    """
    shaped = program.prepare(left, rights).filter((pl.col(KEY) == key) & (pl.col(TIME) <= at))
    state = program.new_state(1)
    for _, rows in program.rows_by_key(shaped):
        state.add(rows)
    return program.finish_state(state, at)


def served_step(pipeline: PipelineDef, definitions: Definitions, types: Mapping[str, str]) -> AggregateStep:
    """The aggregate whose state is served; of a table of newest or first rows, one over every output column."""
    step = pipeline.last_step
    if isinstance(step, AggregateStep):
        return step
    output = _dataset(definitions, pipeline.output_dataset)
    kind: Any = Last if isinstance(step, LatestStep) else First
    taken = {*step.keys, output.key.name, output.timestamp.name}
    names = [field.name for field in output.fields if field.name not in taken and field.name in types]
    return AggregateStep(
        keys=step.keys, aggregates=tuple(NamedAggregate(output=name, aggregate=kind(of=name)) for name in names)
    )


def index_pipeline(dataset: DatasetDef, cdc: Cdc = "append") -> PipelineDef:
    """The pipeline behind an indexed dataset: the newest row per key, as a fold like any other."""
    columns = [field.name for field in dataset.fields if not field.key]
    kept = columns if cdc == "append" else [*columns, DELETED]
    aggregates = tuple(NamedAggregate(output=name, aggregate=Last(of=name)) for name in kept)
    return PipelineDef(
        name=f"{dataset.name}{INDEX_SUFFIX}",
        version=dataset.version,
        input_datasets=(dataset.name,),
        output_dataset=dataset.name,
        steps=(AggregateStep(keys=(dataset.key.name,), aggregates=aggregates),),
    )


def pipelines_of(definitions: Definitions) -> list[PipelineDef]:
    """Committed pipelines, and those behind indexed datasets that no pipeline fills."""
    produced = {pipeline.output_dataset for pipeline in definitions.pipelines}
    newest = (d for d in definitions.datasets if definitions.dataset(d.name) is d)
    indexed = [dataset for dataset in newest if dataset.index and dataset.name not in produced]
    return [*definitions.pipelines, *(index_pipeline(dataset, definitions.cdc(dataset.name)) for dataset in indexed)]


def needed_by(pipeline: PipelineDef, definitions: Definitions) -> Definitions:
    """What a pipeline's program is compiled from, and nothing else: a change of anything else leaves it alone.

    Of sources only the cdc mode is kept.
    """
    datasets: dict[str, DatasetDef] = {}
    pipelines: list[PipelineDef] = []

    def visit(each: PipelineDef) -> None:
        for name in sorted({*each.input_datasets, each.output_dataset, *datasets_named(each.steps)}):
            dataset = definitions.dataset(name)
            if dataset is None or name in datasets:
                continue
            datasets[name] = dataset
            producer = definitions.producer(name)
            if producer is not None and name != each.output_dataset:
                pipelines.append(producer)
                visit(producer)

    visit(pipeline)
    plain = ConnectorDef(type="none", config={})
    modes = [(name, definitions.cdc(dataset.name)) for name, dataset in datasets.items()]
    sources = [SourceDef(dataset=name, connector=plain, cdc=cdc) for name, cdc in modes if cdc != "append"]
    return Definitions(
        datasets=tuple(datasets[name] for name in sorted(datasets)),
        pipelines=tuple(sorted(pipelines, key=ref)),
        sources=tuple(sorted(sources, key=lambda source: source.dataset)),
    )


def datasets_named(steps: Sequence[Step]) -> set[str]:
    """Datasets that joins and unions bring in."""
    named: set[str] = set()
    for step in steps:
        if isinstance(step, JoinStep):
            named.add(step.right)
        elif isinstance(step, UnionStep):
            named |= {step.dataset, *datasets_named(step.steps)}
    return named


def _is_index(pipeline: PipelineDef) -> bool:
    # Declared names never end so (validation).
    return pipeline.name.endswith(INDEX_SUFFIX)


def _is_plain(pipeline: PipelineDef, definitions: Definitions) -> bool:
    if _is_index(pipeline):
        return True
    left = _dataset(definitions, pipeline.input_datasets[0])
    steps = all(is_stateless(step) or isinstance(step, JoinStep) for step in pipeline.steps[:-1])
    names = [pipeline.input_datasets[0], *(step.right for step in pipeline.joins)]
    raw = all(definitions.producer(name) is None for name in names)
    # A dataset joined with itself needs its records twice.
    apart = len(set(names)) == len(names)
    return steps and raw and apart and not left.upsert and definitions.cdc(left.name) == "append"


def _plain_columns(
    pipeline: PipelineDef, left: DatasetDef, rights: tuple[DatasetDef, ...], tombstones: bool
) -> pl.DataFrame:
    """The columns the aggregate of a plain pipeline sees, without rows."""
    records = record_schema(left).empty_table()
    frame = source_rows(records) if tombstones else left_rows(records)
    tables = {d.name: RightTable.empty(s, d) for s, d in zip(pipeline.joins, rights, strict=True)}
    return run_steps(frame, pipeline.steps[:-1], tables)


def _is_function(step: Step) -> bool:
    if isinstance(step, UnionStep):
        return any(map(_is_function, step.steps))
    return isinstance(step, FilterCodeStep | TransformStep)


def _names_its_columns(step: Step) -> bool:
    return isinstance(step, FilterStep | AssignStep | JoinStep)


def _columns_read(step: Step) -> set[str]:
    match step:
        case FilterStep():
            return columns_of(step.predicate)
        case AssignStep():
            return columns_of(step.value)
        case JoinStep():
            return {step.on}
    return set()


def _dataset(definitions: Definitions, name: str) -> DatasetDef:
    dataset = definitions.dataset(name)
    if dataset is None:
        raise KeyError(name)
    return dataset
