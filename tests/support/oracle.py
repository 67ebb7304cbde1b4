"""What every definition means, in lists and loops: the yardstick the engine is held against.

Nothing here is fast or clever, and nothing comes from the engine. A record is a plain dict: the dataset's columns,
instants in µs, and the system members ``__time``, ``__accepted_at``, ``__partition``, ``__offset``, ``__late`` and
``__deleted``. :meth:`Oracle.read` gives the output row of a key at an instant, or ``None`` for a key nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featurelib.definitions import AggregateStep, DatasetDef, Definitions, PipelineDef, Step
from tests.support.oracle_rows import (
    Row,
    Stream,
    by_key,
    chosen,
    emitted,
    exploded,
    grouped,
    key_text,
    value_at,
    with_sub,
)
from tests.support.oracle_values import evaluate, fits, type_of

Record = Mapping[str, Any]
Twin = Callable[[dict[str, Any]], "dict[str, Any] | None"]
"""What a user's Polars function does, said for one row in plain Python; ``None`` drops the row."""


@dataclass(frozen=True)
class Oracle:
    """A pipeline over accepted records. ``twins``: the plain form of each user function, by its entry point."""

    pipeline: PipelineDef
    definitions: Definitions
    records: Mapping[str, Sequence[Record]]
    twins: Mapping[str, Twin]

    def read(self, key: str, at: int, *, accepted_by: int | None = None) -> dict[str, Any] | None:
        """The output row of a key at an instant, of the records accepted by ``accepted_by`` (``None``: all)."""
        return self.finish(self.served(accepted_by), key, at)

    def served(self, accepted_by: int | None = None) -> Stream:
        """The rows the last step sees."""
        known = {
            name: [r for r in records if not r["__late"] and (accepted_by is None or r["__accepted_at"] <= accepted_by)]
            for name, records in self.records.items()
        }
        return self._run(self.pipeline.input_datasets[0], self.pipeline.steps[:-1], known)

    def finish(self, stream: Stream, key: str, at: int) -> dict[str, Any] | None:
        """The output row of a key, of the rows the last step sees."""
        rows, last = by_key(stream.rows, self.pipeline.keys).get(key, []), self.pipeline.last_step
        if not any(row.time <= at for row in rows):
            return None
        if isinstance(last, AggregateStep):
            return {named.output: value_at(named, rows, stream.types, at) for named in last.aggregates}
        output = self._dataset(self.pipeline.output_dataset)
        alive = [row.values for row in rows if row.counts(None, at, at)]
        row = (alive[-1] if last.op == "latest" else alive[0]) if alive else {}
        taken = {*last.keys, output.key.name, output.timestamp.name}
        return {field.name: row.get(field.name) for field in output.fields if field.name not in taken}

    def _dataset(self, name: str) -> DatasetDef:
        dataset = self.definitions.dataset(name)
        assert dataset is not None
        return dataset

    def _run(self, dataset: str, steps: Iterable[Step], known: Mapping[str, list[Record]]) -> Stream:
        stream = self._stream(self._dataset(dataset), known)
        for step in steps:
            stream = self._apply(step, stream, known)
        return stream

    def _stream(self, dataset: DatasetDef, known: Mapping[str, list[Record]]) -> Stream:
        """A dataset's rows: its records, or what the pipeline that fills it gives."""
        types, clock = {field.name: field.type for field in dataset.fields}, dataset.timestamp.name
        producer = self.definitions.producer(dataset.name)
        if producer is None:
            return Stream(self._versions(dataset, known[dataset.name]), types, clock)
        made = self._run(producer.input_datasets[0], producer.steps, known)

        def renamed(values: dict[str, Any]) -> dict[str, Any]:
            key = values[producer.keys[0]] if len(producer.keys) == 1 else key_text([values[k] for k in producer.keys])
            named = values | {dataset.key.name: key, clock: values[made.clock]}
            return {field.name: named[field.name] for field in dataset.fields}

        return replace(made.valued(renamed, types), clock=clock)

    def _versions(self, dataset: DatasetDef, records: list[Record]) -> list[Row]:
        """Rows of records; where the dataset has key versions (cdc), each counts until the next one of its key."""
        source, key = self.definitions.source(dataset.name), dataset.key.name
        versioned = source is not None and source.cdc != "append"
        ordered, rows = sorted(records, key=_order), []
        for place, record in enumerate(ordered):
            newer = (later["__time"] for later in ordered[place + 1 :] if later[key] == record[key])
            values = {field.name: record.get(field.name) for field in dataset.fields}
            if not record.get("__deleted"):
                rows.append(Row(_order(record), next(newer, None) if versioned else None, values))
        return rows

    def _apply(  # noqa: PLR0911  # a table
        self, step: Step, stream: Stream, known: Mapping[str, list[Record]]
    ) -> Stream:
        types = stream.types
        match step.op:
            case "filter":
                return stream.but(row for row in stream.rows if evaluate(step.predicate, row.values) is True)
            case "assign":
                made = types | {step.column: type_of(step.value, types)}
                return stream.valued(lambda row: row | {step.column: fits(evaluate(step.value, row))}, made)
            case "filter_code":
                return stream.but(r for r in stream.rows if self.twins[step.code.entry_point](r.values) is not None)
            case "transform":
                twin = self.twins[step.code.entry_point]
                return stream.valued(lambda row: twin(row) or row, types | dict(step.columns))
            case "rename" | "select" | "drop":
                names = _kept(step, types)
                columns = {new: types[old] for old, new in names.items()}
                return stream.valued(lambda row: {new: row[old] for old, new in names.items()}, columns)
            case "explode":
                return stream.but(exploded(step.column, stream.rows), types | {step.column: types[step.column][5:-1]})
            case "join":
                return self._join(step, stream, self._stream(self._dataset(step.right), known))
            case "union":
                other = self._run(step.dataset, step.steps, known)
                return stream.but([*stream.rows, *(with_sub(row, "1" + row.order[3]) for row in other.rows)])
            case "dedup":
                by = step.by or tuple(types)
                groups = grouped(stream.rows, lambda row: repr([row.values[name] for name in by]))
                return stream.but(row for group in groups.values() for row in chosen(group, 0, stream.clock))
            case "latest" | "first":
                groups, place = by_key(stream.rows, step.keys), -1 if step.op == "latest" else 0
                return stream.but(row for group in groups.values() for row in chosen(group, place, stream.clock))
            case "aggregate":
                return emitted(step, stream)
        raise NotImplementedError(step.op)

    def _join(self, step: Any, left: Stream, right: Stream) -> Stream:
        """Each row with the newest right row not after it, unless that one has ended or is too old."""
        key = self._dataset(step.right).key.name
        joined = []
        for row in left.rows:
            own = [r for r in right.rows if r.values[key] == row.values[step.on] and r.time <= row.time]
            newest = own[-1] if own else None
            if newest and newest.until is not None and newest.until <= row.time:
                newest = None
            if newest and step.within_us is not None and row.time - newest.time > step.within_us:
                newest = None
            found = {name: newest.values[name] if newest else None for name in step.fields}
            joined.append(replace(row, values=row.values | found))
        return left.but(joined, left.types | {name: right.types[name] for name in step.fields})


def _order(record: Record) -> tuple[int, int, tuple[int, int], str]:
    return (record["__time"], record["__accepted_at"], (record["__partition"], record["__offset"]), "")


def _kept(step: Any, types: dict[str, str]) -> dict[str, str]:
    """Old name → new name of the columns that a rename, select or drop keeps."""
    if step.op == "rename":
        return {name: dict(step.columns).get(name, name) for name in types}
    return {name: name for name in types if (name in step.columns) == (step.op == "select")}
