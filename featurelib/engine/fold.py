"""A compiled pipeline: records in, rows per key out; and the finish of a key's state at an instant.

The streaming worker, the backfill, the point-in-time read and the mock context all run this one class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
from pydantic import BaseModel

from featurelib.aggregates import Last
from featurelib.clock import Duration, Instant
from featurelib.definitions import (
    AggregateStep,
    AssignStep,
    DatasetDef,
    Definitions,
    FilterStep,
    JoinStep,
    NamedAggregate,
    PipelineDef,
    Step,
    ref,
)
from featurelib.engine.aggregators import Aggregator, Input, Row, aggregator_for
from featurelib.engine.batch import expression
from featurelib.engine.codec import decode_rows
from featurelib.engine.keys import key_texts
from featurelib.engine.operators import RightTable, records_frame, run_steps
from featurelib.engine.panes import (
    BUFFER,
    HEADER,
    Algebra,
    Header,
    KeyState,
    PaneReader,
    Partials,
    decode_node,
    pane_field,
    read_panes,
    root_level,
)
from featurelib.engine.records import ACCEPTED_AT, OFFSET, PARTITION, SYSTEM_COLUMNS, TIME
from featurelib.expr import columns_of
from featurelib.types import Value
from featurelib.windows import Continuous

KEY, PLACE = "__key", "__place"
_MASK = "__mask"
_FIRST_VALUE = 3
# A row's place is its log partition and offset in one integer: partitions stay below 2^15, offsets below 2^48.
PLACE_BITS = 48


class _Output(NamedTuple):
    name: str
    slot: int
    window: int  # index into the windows, longest last
    default: Any
    has_default: bool


class KeyRows(NamedTuple):
    """Rows of one key, in arrival order."""

    key: str
    rows: list[Row]


@dataclass(frozen=True)
class Program:
    """A pipeline, ready to run. Make one with :meth:`compile`."""

    pipeline: PipelineDef
    left: DatasetDef
    rights: tuple[DatasetDef, ...]
    algebra: Algebra
    root: int
    windows: tuple[Duration | None, ...]
    _outputs: tuple[_Output, ...]
    _value_columns: tuple[str, ...]
    _predicates: tuple[BaseModel, ...]

    @classmethod
    def compile(cls, pipeline: PipelineDef, definitions: Definitions) -> Program:
        """Resolve names, share accumulators between windows, and lay rows out.

        Args:
            pipeline: a validated pipeline.
            definitions: must hold every dataset the pipeline names.
        """
        left = _dataset(definitions, pipeline.input_datasets[0])
        rights = tuple(_dataset(definitions, step.right) for step in pipeline.joins)
        types = _column_types(pipeline, left, definitions)
        layout = _Layout(pipeline.fold.aggregates, types)
        return cls(
            pipeline=pipeline,
            left=left,
            rights=rights,
            algebra=Algebra(layout.slots),
            root=root_level(None if None in layout.windows else max(w for w in layout.windows if w is not None)),
            windows=tuple(layout.windows),
            _outputs=tuple(layout.outputs),
            _value_columns=tuple(layout.values),
            _predicates=tuple(layout.predicates),
        )

    @property
    def ref(self) -> str:
        """``Name@version`` of the pipeline."""
        return ref(self.pipeline)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Output columns, in declared order."""
        return tuple(output.name for output in self._outputs)

    @property
    def horizon(self) -> Duration | None:
        """How far back the longest window reaches; ``None``: for ever."""
        return None if None in self.windows else max(w for w in self.windows if w is not None)

    def right_tables(self) -> dict[str, RightTable]:
        """Empty right sides, by dataset name."""
        return {
            dataset.name: RightTable(step, dataset)
            for step, dataset in zip(self.pipeline.joins, self.rights, strict=True)
        }

    def keyed_like_its_dataset(self) -> bool:
        """Whether rows fold under the key of their log, so that a worker reads only its own partitions."""
        rewritten = any(isinstance(s, AssignStep) and s.column == self.left.key.name for s in self.pipeline.steps)
        return self.pipeline.fold.keys == (self.left.key.name,) and not rewritten

    def left_columns(self) -> list[str]:
        """Columns of a left record the pipeline reads, system columns included."""
        named = {column for step in self.pipeline.steps for column in _columns_read(step)}
        own = [field.name for field in self.left.fields if field.name in named]
        return [*own, *SYSTEM_COLUMNS]

    def prepare(self, records: pa.Table, rights: Mapping[str, RightTable]) -> pl.DataFrame:
        """Run the steps before the fold.

        Returns:
            One line per surviving record: ``__key``, order columns, value columns and ``__mask``.
        """
        return self.shape(run_steps(records_frame(records), self.pipeline.steps[:-1], rights))

    def shape(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The columns a row is made of."""
        keyed = frame.with_columns(key_texts([frame[name] for name in self.pipeline.fold.keys]).alias(KEY))
        bits = [expression(predicate).cast(pl.Int64) * (1 << bit) for bit, predicate in enumerate(self._predicates)]
        mask = pl.sum_horizontal(bits).alias(_MASK) if bits else pl.lit(0, dtype=pl.Int64).alias(_MASK)
        place = (pl.col(PARTITION).cast(pl.Int64) * (1 << PLACE_BITS) + pl.col(OFFSET)).alias(PLACE)
        values = [_stored(keyed.schema[name], name) for name in self._value_columns]
        shaped = keyed.select(KEY, pl.col(TIME), pl.col(ACCEPTED_AT), place, *values, mask)
        return shaped.filter(pl.col(KEY).is_not_null())

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
        return [HEADER, BUFFER, *(pane_field(pane) for pane in read_panes(self.windows, at, self.root))]

    def finish(self, values: Sequence[bytes | None], at: Instant) -> dict[str, Value] | None:
        """The output row of a key at an instant.

        Args:
            values: stored bytes, in the order of ``read_fields(at)``.
            at: the instant R.

        Returns:
            Column → value; ``None`` for a key that had no record by then.

        Raises:
            ValueOverflow: a sum left the 64-bit range, or the finite floats.
            CorruptState: the bytes do not decode.
        """
        if values[0] is None or not Header.decode(values[0]).known_at(at):
            return None
        panes = read_panes(self.windows, at, self.root)
        nodes = {pane: decode_node(data) for pane, data in zip(panes, values[2:], strict=True) if data is not None}
        buffer = decode_rows(values[1]) if values[1] is not None else []
        return self._finish(PaneReader(self.algebra, self.root, nodes, buffer), at)

    def finish_state(self, state: KeyState, at: Instant) -> dict[str, Value]:
        """The output row of a state held in memory, every pane loaded."""
        nodes = {pane: node for pane, node in state.nodes.items() if node is not None}
        return self._finish(PaneReader(self.algebra, self.root, nodes, state.buffer), at)

    def _finish(self, reader: PaneReader, at: Instant) -> dict[str, Value]:
        merged = self._by_window(reader, at)
        row: dict[str, Value] = {}
        for output in self._outputs:
            partial = merged[output.window][output.slot]
            if partial is None and output.has_default:
                row[output.name] = output.default
            else:
                row[output.name] = self.algebra.aggregators[output.slot].finish(partial)
        return row

    def _by_window(self, reader: PaneReader, at: Instant) -> list[Partials]:
        # Windows end together and are sorted by length: each is the one before it plus an older slice,
        # so every pane is merged once however many windows hold it.
        merged: list[Partials] = []
        high = at
        for window in self.windows:
            low = None if window is None else at - window
            older = reader.partials(low, high)
            merged.append(self.algebra.merge([*older, *merged[-1:]]))
            if low is not None:
                high = low - 1
        return merged


def replay(
    program: Program, left: pa.Table, rights: Mapping[str, RightTable], key: str, at: Instant
) -> dict[str, Value] | None:
    """The output row of one key at an instant, folded from records: the point-in-time read.

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
    return program.finish_state(state, at) if state.header.known_at(at) else None


def index_pipeline(dataset: DatasetDef) -> PipelineDef:
    """The pipeline behind an indexed dataset: the newest row per key, as a fold like any other."""
    columns = [field for field in dataset.fields if not field.key]
    return PipelineDef(
        name=f"{dataset.name}_index",
        version=dataset.version,
        input_datasets=(dataset.name,),
        output_dataset=dataset.name,
        steps=(
            AggregateStep(
                keys=(dataset.key.name,),
                aggregates=tuple(NamedAggregate(output=c.name, aggregate=Last(of=c.name)) for c in columns),
            ),
        ),
    )


class _Layout:
    """Distinct value columns, predicates, accumulators and windows of a pipeline's aggregates."""

    def __init__(self, aggregates: Sequence[NamedAggregate], types: Mapping[str, str]) -> None:
        self._types = types
        self.values = sorted({a.aggregate.of for a in aggregates if a.aggregate.of})
        self.predicates: list[BaseModel] = []
        self.slots: list[Aggregator] = []
        self._known: dict[Any, int] = {}
        sizes = {_size(a) for a in aggregates}
        self.windows: list[Duration | None] = [
            *sorted(size for size in sizes if size is not None),
            *([None] if None in sizes else []),
        ]
        # Slots follow the outputs' names: declaring them in another order lays state out the same.
        made = {named.output: self._output(named) for named in sorted(aggregates, key=lambda named: named.output)}
        self.outputs = [made[named.output] for named in aggregates]

    def _output(self, named: NamedAggregate) -> _Output:
        default = named.aggregate.default
        return _Output(
            name=named.output,
            slot=self._slot(named),
            window=self.windows.index(_size(named)),
            default=default.value if default else None,
            has_default=default is not None,
        )

    def _slot(self, named: NamedAggregate) -> int:
        # Equal but for window and default: the same accumulator.
        mark = named.aggregate.model_dump_json(exclude={"window", "default"})
        if mark not in self._known:
            self._known[mark] = len(self.slots)
            self.slots.append(aggregator_for(named.aggregate, self._input(named)))
        return self._known[mark]

    def _input(self, named: NamedAggregate) -> Input:
        column, where = named.aggregate.of, named.aggregate.where
        if where is not None and where not in self.predicates:
            self.predicates.append(where)
        return Input(
            column=_FIRST_VALUE + self.values.index(column) if column else None,
            type=self._types.get(column),
            bit=self.predicates.index(where) if where is not None else None,
        )


def _columns_read(step: Step) -> set[str]:
    match step:
        case FilterStep():
            return columns_of(step.predicate)
        case AssignStep():
            return columns_of(step.value)
        case JoinStep():
            return {step.on}
        case AggregateStep():
            found = set(step.keys)
            for named in step.aggregates:
                found.add(named.aggregate.of)
                if named.aggregate.where is not None:
                    found |= columns_of(named.aggregate.where)
            return found


def pipelines_of(definitions: Definitions) -> list[PipelineDef]:
    """Committed pipelines, and those behind indexed datasets that no pipeline fills."""
    produced = {pipeline.output_dataset for pipeline in definitions.pipelines}
    newest = (d for d in definitions.datasets if definitions.dataset(d.name) is d)
    indexes = [index_pipeline(dataset) for dataset in newest if dataset.index and dataset.name not in produced]
    return [*definitions.pipelines, *indexes]


def _size(named: NamedAggregate) -> Duration | None:
    window = named.aggregate.window
    return window.size_us if isinstance(window, Continuous) else None


def _dataset(definitions: Definitions, name: str) -> DatasetDef:
    dataset = definitions.dataset(name)
    if dataset is None:
        raise KeyError(name)
    return dataset


def _column_types(pipeline: PipelineDef, left: DatasetDef, definitions: Definitions) -> dict[str, str]:
    """Types of the columns the fold sees; assigned ones by what Polars makes of the expression."""
    from featurelib.engine.records import record_schema

    frame: Any = pl.from_arrow(record_schema(left).empty_table())
    rights = {s.right: RightTable(s, _dataset(definitions, s.right)) for s in pipeline.joins}
    after = run_steps(frame, pipeline.steps[:-1], rights)
    return {name: _type_name(kind) for name, kind in after.schema.items()}


def _type_name(kind: pl.DataType) -> str:
    if kind.is_integer():
        return "int"
    if kind.is_float():
        return "float"
    if kind == pl.Boolean:
        return "bool"
    return "datetime" if kind.is_temporal() else "str"


def _stored(kind: pl.DataType, name: str) -> pl.Expr:
    # Instants are stored as integers, microseconds, like every other instant.
    column = pl.col(name)
    return (column.dt.epoch("us") if kind.is_temporal() else column).alias(f"__value_{name}")
