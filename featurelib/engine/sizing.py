"""How much memory a pipeline will need: the engine lays a sample out, a model of the store weighs it.

One key's synthetic rows are folded by the pipeline's own program, so that panes, partials and encodings are those
that will be written. The hash they make is weighed as Valkey's ``MEMORY USAGE … SAMPLES 0`` does:

    a hash    one block for object and key name, then
    listpack  one block: 7 bytes and, for each name and value, its length and 2 to 8 bytes. Only while no value was
              ever longer than 64 bytes and there are at most 512 fields
    table     a header, buckets of 64 bytes for seven entries (a power of two of them, and chained ones for those that
              overflow), and per field one block for name and value up to 128 bytes, else one for each
    a block   rounded up to 16 bytes, less 8: the allocator of the server that the platform starts

Assumed is the worst the definitions allow: every filter and every ``where`` lets every row pass.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from sys import getsizeof
from typing import Any, NamedTuple

import polars as pl

from featurelib.clock import DAY, SECOND, Duration, parse_instant, to_datetime
from featurelib.definitions import AggregateStep
from featurelib.engine.column_types import column_types
from featurelib.engine.emissions import EmitNode
from featurelib.engine.fold import Fold
from featurelib.engine.nodes import CodeNode, FirstNode, JoinNode, LatestNode, Node
from featurelib.engine.operators import SUB
from featurelib.engine.partials import Row
from featurelib.engine.program import Program
from featurelib.types import Value, decimal_scale, element_type

# Rows laid out for one key; a key with more is laid out in part, at the same density, and scaled: 5,000 of 100,000
# rows give the whole within 3 % and take 0.03 s in place of 1. Where each distinct value is kept, a part holds too
# large a share of them, so that more is laid out.
_MOST_ROWS, _MOST_ROWS_OF_SETS = 5_000, 20_000
# Of a commit with hundreds of pipelines 5,000 rows each were seconds; 1,000 give the whole within 3 % still.
_FEWEST_ROWS, _ROWS_OF_ALL = 1_000, 100_000
# Small keys differ most from one another: several are laid out and averaged.
_ROWS_OF_SMALL = 1_000
_MOST_SAMPLES = 16
# A worker takes a key's rows a few at a time: the first of them decide whether a hash ever was too long for a listpack.
_FIRST_ROWS, _ARRIVING_TOGETHER = 64, 16
_FRAME_ROWS = 1_000
# Of an aggregate before other steps: a row's slots in a dictionary and in three lists.
_SLOTS = 128
_SET_LIKE = frozenset({"distinct", "top_k"})
_END = parse_instant("2026-01-01T00:00:00Z")
_KEY_TEXT = "entity-00000001"
# In all partitions but the first a row's place is a number of 64 bits.
_PLACE = 1 << 48
_LIST_LENGTH = 3
_NUMBERS = 100_000

_LISTPACK_FIELDS, _LISTPACK_BYTES = 512, 64
_TABLE_HEADER, _BUCKET, _ENTRIES_PER_BUCKET, _EMBEDDED = 88, 64, 7, 128


@dataclass(frozen=True)
class Load:
    """What is assumed of the data.

    Attributes:
        keys: distinct group keys.
        events_per_key: rows of each key that reach the aggregate.
        over_us: the time they are spread over, microseconds.
        distinct: distinct values of a key, for aggregates that keep each of them.
        text_bytes: length of a text value.
    """

    keys: int = 10_000
    events_per_key: int = 1_000
    over_us: Duration = 30 * DAY
    distinct: int = 100
    text_bytes: int = 12


class StateSize(NamedTuple):
    """A pipeline's state in the online store, bytes as the store counts them."""

    pipeline: str
    fields_per_key: int
    bytes_per_key: int
    total_bytes: int
    bytes_per_distinct: int | None
    """What each distinct value of a key adds under this load; ``None``: no aggregate keeps every one of them."""


class Held(NamedTuple):
    """Rows that a step keeps in the memory of the pipeline's workers."""

    step: str
    bytes_per_row: int


class Laid(NamedTuple):
    """A key as it is stored. ``compact``: no value was ever too long for a listpack."""

    fields: dict[bytes, bytes]
    compact: bool

    def bytes(self, name: bytes) -> int:
        """The memory of the hash of that name."""
        return hash_bytes(name, self.fields, compact=self.compact)


def state_size(program: Program, load: Load, beside: int = 0) -> StateSize:
    """Predict what a pipeline's state takes.

    Args:
        program: the pipeline.
        load: what is assumed of the data.
        beside: how many others are predicted with it; of many, fewer rows are laid out of each.
    """
    most = _MOST_ROWS_OF_SETS if _set_like_slots(program) else _MOST_ROWS
    sampled = _sampled(load, min(most, max(_FEWEST_ROWS, _ROWS_OF_ALL // (beside + 1))))
    count = max(1, min(_MOST_SAMPLES, _ROWS_OF_SMALL // sampled.events_per_key))
    laid = [lay_out(program, sampled, seed) for seed in range(count)]
    name = _stored_name(program)
    share = load.events_per_key / sampled.events_per_key
    scale = share / count
    per_key = scale * sum(each.bytes(name) for each in laid)
    return StateSize(
        pipeline=program.ref,
        fields_per_key=round(scale * sum(len(each.fields) for each in laid)),
        bytes_per_key=round(per_key),
        total_bytes=round(per_key * load.keys),
        bytes_per_distinct=_per_distinct(program, sampled, laid[0].bytes(name), share),
    )


def _sampled(load: Load, most: int) -> Load:
    if load.events_per_key <= most:
        return load
    span = load.over_us * most // load.events_per_key
    return replace(load, events_per_key=most, over_us=max(SECOND, span))


def lay_out(program: Program, load: Load, seed: int = 0) -> Laid:
    """One key of synthetic rows at instants drawn evenly from the span, as the engine stores it."""
    state = program.new_state(len(program.sources))
    fields: dict[bytes, bytes] = {}
    compact = True
    for arriving in _arrivals(list(_rows(program, load, random.Random(seed)))):  # noqa: S311  # not a secret
        state.add(arriving)
        changed = state.changes()
        compact = compact and all(len(value) <= _LISTPACK_BYTES for value in changed.values())
        fields |= changed
    return Laid(fields, compact)


def _arrivals(rows: list[Row]) -> Iterator[list[Row]]:
    """The first rows a few at a time, then most at once, and a few last ones, which wait in the buffer."""
    early, late = rows[:_FIRST_ROWS], rows[_FIRST_ROWS:]
    for start in range(0, len(early), _ARRIVING_TOGETHER):
        yield early[start : start + _ARRIVING_TOGETHER]
    cut = max(0, len(late) - _ARRIVING_TOGETHER)
    yield from (part for part in (late[:cut], late[cut:]) if part)


def _rows(program: Program, load: Load, draw: random.Random) -> Iterator[Row]:
    """Rows in order of time: identity, the instant they count until, values and a mask of predicates that all hold."""
    # Not `randrange`, which takes ten times as long: these numbers need not be even to the last bit.
    times = sorted(_END - int(draw.random() * load.over_us) for _ in range(load.events_per_key))
    columns = _columns(program.fold, _set_like_slots(program))
    mask = _every_predicate(program)
    closes = _closes(program)
    for place, time in enumerate(times):
        # Of versions of a key the older one ends: every second row, with the next.
        until = times[place + 1] if closes and place % 2 == 0 and place + 1 < len(times) else None
        values = (_value(column, load, draw) for column in columns)
        yield (time, time + SECOND + int(draw.random() * SECOND), _PLACE + place, "", until, *values, mask)


class _Column(NamedTuple):
    type: str
    counted: bool
    """Whether each of its distinct values is kept."""


def _columns(fold: Fold, counted: Collection[int] = ()) -> list[_Column]:
    """The value columns of a row, in their places."""
    inputs = [(slot, aggregator.source) for slot, aggregator in enumerate(fold.algebra.aggregators)]
    types = {each.column: each.type or "int" for _, each in inputs if each.column is not None}
    kept = {each.column for slot, each in inputs if slot in counted}
    return [_Column(types[column], column in kept) for column in sorted(types)]


def _set_like_slots(program: Program) -> list[int]:
    step = program.pipeline.last_step
    aggregates = step.aggregates if isinstance(step, AggregateStep) else ()
    kept = {named.output for named in aggregates if named.aggregate.type in _SET_LIKE}
    return sorted({output.slot for output in program.fold.layout if output.name in kept})


def _every_predicate(program: Program) -> int:
    bits = {aggregator.source.bit for aggregator in program.algebra.aggregators}
    return sum(1 << bit for bit in bits if bit is not None)


def _closes(program: Program) -> bool:
    return not program.plain and program.new_graph().top.closes


def _value(column: _Column, load: Load, draw: random.Random) -> Value:
    element = element_type(column.type)
    if element is not None:
        return [_value(_Column(element, column.counted), load, draw) for _ in range(_LIST_LENGTH)]
    return _scalar(column, load, draw)


def _scalar(column: _Column, load: Load, draw: random.Random) -> Value:
    number = int(draw.random() * (load.distinct if column.counted else _NUMBERS))
    scale = decimal_scale(column.type)
    if scale is not None:
        return Decimal(number).scaleb(-scale)
    match column.type:
        case "int":
            return number
        case "float":
            return number + 0.1
        case "bool":
            return number % 2 == 0
        case "datetime":
            return _END - number * SECOND
    return str(number).rjust(load.text_bytes, "x")


def _per_distinct(program: Program, load: Load, laid: int, share: float) -> int | None:
    """What a distinct value of a key adds to its rows, on average: without them the key would take less.

    ``share``: how many times the rows that were laid out a key has.
    """
    if not _set_like_slots(program):
        return None
    without = lay_out(program, replace(load, distinct=1)).bytes(_stored_name(program))
    return max(0, math.ceil(share * (laid - without) / min(load.distinct, load.events_per_key)))


def _stored_name(program: Program) -> bytes:
    # As long as the name that the online store gives a key's state: pipeline, generation, key group, key.
    return f"{{{program.ref}#1:000}}:s:{_KEY_TEXT}".encode()


def hash_bytes(name: bytes, fields: Mapping[bytes, bytes], *, compact: bool) -> int:
    """What the store takes for a hash; ``compact`` says whether no value was ever too long for a listpack."""
    whole = _block(16 + 1 + _text(len(name)))
    if compact and len(fields) <= _LISTPACK_FIELDS and all(len(field) <= _LISTPACK_BYTES for field in fields):
        parts = (part for pair in fields.items() for part in pair)
        return whole + _block(7 + sum(_listpack_entry(len(part)) for part in parts))
    return whole + _table(len(fields)) + sum(_table_entry(len(field), len(value)) for field, value in fields.items())


def _block(size: int) -> int:
    return max(24, (size + 8 + 15) // 16 * 16 - 8)


def _text(length: int) -> int:
    """A string with its header, whose size is that of the length, and a final zero."""
    headers = ((32, 1), (1 << 8, 3), (1 << 16, 5))
    return length + 1 + next((header for limit, header in headers if length < limit), 9)


def _listpack_entry(length: int) -> int:
    entry = length + next((header for limit, header in ((64, 1), (4_096, 2)) if length < limit), 5)
    return entry + (1 if entry < 128 else 2)  # noqa: PLR2004  # its length again, in seven bits a byte


def _table(entries: int) -> int:
    buckets = 1
    while buckets * _ENTRIES_PER_BUCKET < entries:
        buckets *= 2
    return round(_TABLE_HEADER + _BUCKET * buckets * (1 + _chained(entries / buckets)))


def _chained(load: float) -> float:
    """Buckets expected to be chained to one bucket, its number of entries being a Poisson variable."""
    expected, probability = 0.0, math.exp(-load)
    for entries in range(4 * _ENTRIES_PER_BUCKET):
        if entries > _ENTRIES_PER_BUCKET:
            expected += probability * math.ceil((entries - _ENTRIES_PER_BUCKET) / (_ENTRIES_PER_BUCKET - 1))
        probability *= load / (entries + 1)
    return expected


def _table_entry(name: int, value: int) -> int:
    together = _text(name) + value + 4
    if together <= _EMBEDDED:
        return _block(together)
    return _block(8 + max(name + 4, _text(name))) + _block(_text(value))


def held_rows(program: Program, load: Load) -> list[Held]:
    """The steps of a pipeline that keep rows in its workers' memory, and what a row takes there."""
    if program.plain:
        tables = program.right_tables()
        return [Held(f"rows of {name}, joined", _frame_bytes(table.frame, load)) for name, table in tables.items()]
    return list(_held_by(program.new_graph().top, load))


def _held_by(node: Node, load: Load) -> Iterator[Held]:
    inputs = node.inputs
    match node:
        case JoinNode():
            yield Held("left rows of a join", _frame_bytes(inputs[0].empty, load))
            yield Held(f"rows of {node.table.step.right}, joined", _frame_bytes(node.table.frame, load))
        case LatestNode():
            yield Held("versions of rows", _frame_bytes(inputs[0].empty, load))
        case CodeNode():
            yield Held("rows a function gave", _frame_bytes(node.empty, load))
        case FirstNode():
            yield Held("rows of a dedup or first", _frame_bytes(inputs[0].empty, load))
        case EmitNode():
            yield Held("rows of an aggregate before other steps", _emitted_bytes(node.fold, load))
    for each in inputs:
        yield from _held_by(each, load)


def _frame_bytes(empty: pl.DataFrame, load: Load) -> int:
    """A row of a frame with these columns."""
    draw = random.Random(0)  # noqa: S311  # not a secret
    columns = {
        name: [_value(_Column(of, counted=False), load, draw) if name != SUB else "" for _ in range(_FRAME_ROWS)]
        for name, of in column_types(empty).items()
    }
    series = [pl.Series(name, _as(empty.schema[name], values)) for name, values in columns.items()]
    return math.ceil(pl.DataFrame(series).cast(empty.schema).estimated_size() / _FRAME_ROWS)


def _as(kind: pl.DataType, values: list[Value]) -> list[Any]:
    return [to_datetime(value) for value in values] if kind.is_temporal() else values


def _emitted_bytes(fold: Fold, load: Load) -> int:
    """A row and what follows from it in Python objects: itself, its place in the order, and the value it changes."""
    draw = random.Random(0)  # noqa: S311  # not a secret
    row = (_END, _END + 1, _PLACE, "", None, *(_value(column, load, draw) for column in _columns(fold)), 0)
    values = dict.fromkeys(fold.outputs, _END)
    made: tuple[Any, ...] = (row, row[:4], row[:4], (*row[:4], "", (), values), values)
    owned = [value for value in row if value is not None and value != ""]
    return sum(map(getsizeof, (*made, *owned, *values.values()))) + _SLOTS
