"""What every definition means, in lists and loops: the yardstick the engine is held against.

Nothing here is fast or clever, and nothing comes from the engine. A record is a plain dict: the dataset's columns,
instants in µs, and the system members ``__time``, ``__accepted_at``, ``__partition``, ``__offset``, ``__late`` and
``__deleted``. :meth:`Oracle.read` gives the output row of a key at an instant, or ``None`` for a key nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featurelib.definitions import AggregateStep, DatasetDef, Definitions, NamedAggregate, PipelineDef, Step
from tests.support.oracle_values import evaluate, fits, folded, result_of, type_of

Record = Mapping[str, Any]
Twin = Callable[[dict[str, Any]], "dict[str, Any] | None"]
"""What a user's Polars function does, said for one row in plain Python; ``None`` drops the row."""


@dataclass(frozen=True)
class Row:
    """A row of a stream: its place in the total order (decision 8), and from when on it no longer counts.

    The order is ``(event time, accepted-at, (partition, offset), sub)``; ``sub`` tells apart rows made of one record.
    """

    order: tuple[int, int, tuple[int, int], str]
    until: int | None
    values: dict[str, Any]

    @property
    def time(self) -> int:
        return self.order[0]

    def counts(self, low: int | None, high: int, as_of: int) -> bool:
        inside = self.time <= high and (low is None or self.time >= low)
        return inside and (self.until is None or self.until > as_of)


@dataclass(frozen=True)
class Stream:
    """Rows in total order, the types of their columns, and the column that holds the event time."""

    rows: list[Row]
    types: dict[str, str]
    clock: str

    def but(self, rows: Iterable[Row], types: dict[str, str] | None = None) -> Stream:
        return Stream(sorted(rows, key=lambda row: row.order), self.types if types is None else types, self.clock)

    def valued(self, change: Callable[[dict[str, Any]], dict[str, Any]], types: dict[str, str]) -> Stream:
        return self.but((replace(row, values=change(row.values)) for row in self.rows), types)


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
            return {named.output: _value(named, rows, stream.types, at) for named in last.aggregates}
        output = self._dataset(self.pipeline.output_dataset)
        alive = [row.values for row in rows if row.counts(None, at, at)]
        chosen = (alive[-1] if last.op == "latest" else alive[0]) if alive else {}
        taken = {*last.keys, output.key.name, output.timestamp.name}
        return {field.name: chosen.get(field.name) for field in output.fields if field.name not in taken}

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

    def _apply(self, step: Step, stream: Stream, known: Mapping[str, list[Record]]) -> Stream:
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
                return stream.but(_exploded(step.column, stream.rows), types | {step.column: types[step.column][5:-1]})
            case "join":
                return self._join(step, stream, self._stream(self._dataset(step.right), known))
            case "union":
                other = self._run(step.dataset, step.steps, known)
                return stream.but([*stream.rows, *(_sub(row, "1" + row.order[3]) for row in other.rows)])
            case "dedup":
                names = step.by or tuple(types)
                groups = _groups(stream.rows, lambda row: repr([row.values[name] for name in names]))
                return stream.but(row for group in groups.values() for row in _chosen(group, 0, stream.clock))
            case "latest" | "first":
                groups, place = by_key(stream.rows, step.keys), -1 if step.op == "latest" else 0
                return stream.but(row for group in groups.values() for row in _chosen(group, place, stream.clock))
            case "aggregate":
                return _emitted(step, stream)
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


def key_text(parts: Sequence[Any]) -> str | None:
    """The text of a group key; ``None`` when a part is null: such a row belongs to no key."""
    if any(part is None for part in parts):
        return None
    texts = [{True: "true", False: "false"}[p] if isinstance(p, bool) else str(p) for p in parts]
    return texts[0] if len(texts) == 1 else ":".join(t.replace("\\", "\\\\").replace(":", "\\:") for t in texts)


def by_key(rows: Iterable[Row], keys: Sequence[str]) -> dict[str, list[Row]]:
    """Rows by key text; those with a null in their key are left out."""
    groups = _groups(rows, lambda row: key_text([row.values[name] for name in keys]))
    return {key: group for key, group in groups.items() if key is not None}


def _groups(rows: Iterable[Row], mark: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(mark(row), []).append(row)
    return groups


def _order(record: Record) -> tuple[int, int, tuple[int, int], str]:
    return (record["__time"], record["__accepted_at"], (record["__partition"], record["__offset"]), "")


def _sub(row: Row, sub: str) -> Row:
    return replace(row, order=(*row.order[:3], sub))


def _kept(step: Any, types: dict[str, str]) -> dict[str, str]:
    """Old name → new name of the columns that a rename, select or drop keeps."""
    if step.op == "rename":
        return {name: dict(step.columns).get(name, name) for name in types}
    return {name: name for name in types if (name in step.columns) == (step.op == "select")}


def _exploded(column: str, rows: list[Row]) -> list[Row]:
    return [
        replace(_sub(row, f"{row.order[3]}.{place:06}"), values=row.values | {column: element})
        for row in rows
        for place, element in enumerate(row.values[column] or [])
    ]


def _instants(rows: list[Row]) -> list[int]:
    """When events come and when they end."""
    return sorted({row.time for row in rows} | {row.until for row in rows if row.until is not None})


def _chosen(rows: list[Row], place: int, clock: str) -> list[Row]:
    """The newest (-1) or first (0) row that counts, as it changes: each from its instant until the next change."""
    made: list[tuple[int, Row | None]] = []
    for at in _instants(rows):
        alive = [row for row in rows if row.counts(None, at, at)]
        chosen = alive[place] if alive else None
        if not made or chosen is not made[-1][1]:
            made.append((at, chosen))
    ends = [at for at, _ in made[1:]]
    moved = [
        (at, Row((at, *_cause(rows, at), row.order[3]), None, row.values | {clock: at}) if row else None)
        for at, row in made
    ]
    return [replace(row, until=end) for (_, row), end in zip(moved, [*ends, None], strict=True) if row]


def _cause(rows: list[Row], at: int) -> tuple[int, tuple[int, int]]:
    """What happened at an instant: the newest event, else the newest row that ended."""
    found = [row for row in rows if row.time == at] or [row for row in rows if row.until == at]
    return max(row.order[1:3] for row in found)


def _emitted(step: AggregateStep, stream: Stream) -> Stream:
    """An aggregate's values as a stream: per key a row at each event and each change, until the next.

    A tumbling window's events begin to count when it closes; each of its windows is a stream of its own.
    """
    made: list[Row] = []
    for key, group in by_key(stream.rows, step.keys).items():
        for rows in _groups(group, lambda row: _end(step, row.time)).values():
            begins = _end(step, rows[0].time)
            made += _changes(step, key, [r if begins is None else _begun(r, begins) for r in rows], stream)
    outputs = {n.output: result_of(n.aggregate, stream.types.get(n.aggregate.of, "")) for n in step.aggregates}
    return stream.but(made, {**{k: stream.types[k] for k in step.keys}, **outputs, stream.clock: "datetime"})


def _end(step: AggregateStep, time: int) -> int | None:
    """When the tumbling window of an event closes; ``None`` where windows do not tumble."""
    window = step.aggregates[0].aggregate.window
    if window.kind != "tumbling":
        return None
    return (time - window.offset_us) // window.size_us * window.size_us + window.offset_us + window.size_us


def _begun(row: Row, at: int) -> Row:
    return replace(row, order=(at, *row.order[1:]))


def _changes(step: AggregateStep, key: str, rows: list[Row], stream: Stream) -> list[Row]:
    keys = {name: rows[0].values[name] for name in step.keys}
    times = {row.time for row in rows}
    made: list[tuple[int, dict[str, Any] | None]] = []
    for at in _instants(rows):
        alive = any(row.counts(None, at, at) for row in rows)
        values = {n.output: _lasting(n, rows, stream.types, at) for n in step.aggregates} if alive else None
        if at in times or not made or values != made[-1][1]:
            made.append((at, values))
    ends = [at for at, _ in made[1:]]
    return [
        Row((at, *_cause(rows, at), key), end, keys | values | {stream.clock: at})
        for (at, values), end in zip(made, [*ends, None], strict=True)
        if values is not None
    ]


def _lasting(named: NamedAggregate, rows: list[Row], types: Mapping[str, str], at: int) -> Any:
    """A value of a stream; within one tumbling window every event counts."""
    if named.aggregate.window.kind != "tumbling":
        return _value(named, rows, types, at)
    return _fold(named, [row for row in rows if row.counts(None, at, at)], types, at)


def _value(named: NamedAggregate, rows: list[Row], types: Mapping[str, str], at: int) -> Any:
    """An aggregate over one key's rows at an instant: window, row cap or session, predicate, fold."""
    window = named.aggregate.window
    low, high, as_of = _bounds(window, at)
    inside = [row for row in rows if row.counts(low, high, as_of)]
    if window.kind == "session":
        inside = _newest_session(inside, window.gap_us)
    most = getattr(window, "max_rows", None)
    return _fold(named, inside[-most:] if most else inside, types, as_of)


def _bounds(window: Any, at: int) -> tuple[int | None, int, int]:
    """First and last instant of a window (decision 3), and as of when versions count."""
    match window.kind:
        case "continuous":
            end = at - window.offset_us
            return end - window.size_us, end, end
        case "tumbling":
            end = at - (at - window.offset_us) % window.size_us
            return end - window.size_us, end - 1, at
        case "hopping":
            as_of = at - window.lookback_us
            start = as_of - window.size_us
            start -= (start - window.offset_us) % window.stride_us
            return start, start + window.size_us - 1, as_of
    end = at - getattr(window, "offset_us", 0)
    return None, end, end


def _fold(named: NamedAggregate, inside: list[Row], types: Mapping[str, str], as_of: int) -> Any:
    aggregate = named.aggregate
    if aggregate.where is not None:
        inside = [row for row in inside if evaluate(aggregate.where, row.values) is True]
    found = [(row.values[aggregate.of] if aggregate.of else True, row.time) for row in inside]
    return folded(aggregate, found, types.get(aggregate.of, ""), as_of)


def _newest_session(rows: list[Row], gap: int) -> list[Row]:
    start = len(rows) - 1
    while start > 0 and rows[start].time - rows[start - 1].time <= gap:
        start -= 1
    return rows[max(start, 0) :]
