"""Rows of a stream and what becomes of them per key; see :mod:`tests.support.oracle`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from featurelib.definitions import AggregateStep, NamedAggregate
from tests.support.oracle_values import evaluate, folded, result_of


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


def key_text(parts: Sequence[Any]) -> str | None:
    """The text of a group key; ``None`` when a part is null: such a row belongs to no key."""
    if any(part is None for part in parts):
        return None
    texts = [{True: "true", False: "false"}[p] if isinstance(p, bool) else str(p) for p in parts]
    return texts[0] if len(texts) == 1 else ":".join(t.replace("\\", "\\\\").replace(":", "\\:") for t in texts)


def by_key(rows: Iterable[Row], keys: Sequence[str]) -> dict[str, list[Row]]:
    """Rows by key text; those with a null in their key are left out."""
    groups = grouped(rows, lambda row: key_text([row.values[name] for name in keys]))
    return {key: group for key, group in groups.items() if key is not None}


def grouped(rows: Iterable[Row], mark: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(mark(row), []).append(row)
    return groups


def with_sub(row: Row, sub: str) -> Row:
    return replace(row, order=(*row.order[:3], sub))


def exploded(column: str, rows: list[Row]) -> list[Row]:
    return [
        replace(with_sub(row, f"{row.order[3]}.{place:06}"), values=row.values | {column: element})
        for row in rows
        for place, element in enumerate(row.values[column] or [])
    ]


def _instants(rows: list[Row]) -> list[int]:
    """When events come and when they end."""
    return sorted({row.time for row in rows} | {row.until for row in rows if row.until is not None})


def chosen(rows: list[Row], place: int, clock: str) -> list[Row]:
    """The newest (-1) or first (0) row that counts, as it changes: each from its instant until the next change."""
    made: list[tuple[int, Row | None]] = []
    for at in _instants(rows):
        alive = [row for row in rows if row.counts(None, at, at)]
        found = alive[place] if alive else None
        if not made or found is not made[-1][1]:
            made.append((at, found))
    ends = [at for at, _ in made[1:]]
    moved = [(at, row and _dated(row, rows, at, clock)) for at, row in made]
    return [replace(row, until=end) for (_, row), end in zip(moved, [*ends, None], strict=True) if row]


def _dated(row: Row, rows: list[Row], at: int, clock: str) -> Row:
    """A chosen row from an instant on: as it is, or, when it is chosen again later, as of then."""
    order = row.order if row.time == at else (at, *_cause(rows, at), row.order[3])
    return Row(order, None, row.values | {clock: at})


def _cause(rows: list[Row], at: int) -> tuple[int, tuple[int, int]]:
    """What happened at an instant: the newest event, else the newest row that ended."""
    found = [row for row in rows if row.time == at] or [row for row in rows if row.until == at]
    return max(row.order[1:3] for row in found)


def emitted(step: AggregateStep, stream: Stream) -> Stream:
    """An aggregate's values as a stream: per key a row at each event and each change, until the next.

    A tumbling window's events begin to count when it closes; each of its windows is a stream of its own.
    """
    made: list[Row] = []
    for key, group in by_key(stream.rows, step.keys).items():
        for rows in grouped(group, lambda row: _end(step, row.time)).values():
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
        return value_at(named, rows, types, at)
    return _fold(named, [row for row in rows if row.counts(None, at, at)], types, at)


def value_at(named: NamedAggregate, rows: list[Row], types: Mapping[str, str], at: int) -> Any:
    """An aggregate over one key's rows at an instant: window, row cap or session, predicate, fold."""
    window = named.aggregate.window
    low, high, as_of = _bounds(window, at)
    inside = [row for row in rows if row.counts(low, high, as_of)]
    if window.kind == "session":
        inside = _newest_session(inside, window.gap_us)
    most = getattr(window, "max_rows", None)
    return _fold(named, inside[-most:] if most else inside, types, high)


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


def _fold(named: NamedAggregate, inside: list[Row], types: Mapping[str, str], end: int) -> Any:
    aggregate = named.aggregate
    if aggregate.where is not None:
        inside = [row for row in inside if evaluate(aggregate.where, row.values) is True]
    found = [(row.values[aggregate.of] if aggregate.of else True, row.time) for row in inside]
    return folded(aggregate, found, types.get(aggregate.of, ""), end)


def _newest_session(rows: list[Row], gap: int) -> list[Row]:
    start = len(rows) - 1
    while start > 0 and rows[start].time - rows[start - 1].time <= gap:
        start -= 1
    return rows[max(start, 0) :]
