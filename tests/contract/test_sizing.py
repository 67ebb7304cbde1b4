"""The predicted memory of a key's state against what a real server says, for keys of 10 to 100,000 events."""

import gc
import random
import statistics
import tracemalloc

import pyarrow as pa
import pytest

from featurelib.aggregates import ApproxPercentile, Avg, Count, Distinct, Last, LastK, Max, Min, Sum, TopK
from featurelib.clock import DAY, SECOND, parse_instant
from featurelib.definitions import (
    AggregateStep,
    ConnectorDef,
    DatasetDef,
    DedupStep,
    Definitions,
    FieldDef,
    LatestStep,
    NamedAggregate,
    PipelineDef,
    SourceDef,
)
from featurelib.engine import sizing
from featurelib.engine.program import Program
from featurelib.engine.records import record_schema
from featurelib.engine.sizing import Load, hash_bytes, held_rows, state_size
from featurelib.expr import col
from featurelib.stores.online import StateName

SALE = DatasetDef(
    name="Sale",
    fields=(
        FieldDef(name="user", type="str", key=True),
        FieldDef(name="amount", type="float"),
        FieldDef(name="pieces", type="int"),
        FieldDef(name="shop", type="str"),
        FieldDef(name="at", type="datetime", timestamp=True),
    ),
)
AGGREGATES = {
    "sums of two windows": {
        "events": Count(window="1d"),
        "spent_1d": Sum(of="amount", window="1d"),
        "spent_7d": Sum(of="amount", window="7d"),
    },
    "lifetime with text": {
        "shop": Last(of="shop"),
        "least": Min(of="amount"),
        "most": Max(of="amount"),
        "mean": Avg(of="pieces", where=col("amount") > 100.0),
    },
    "twenty accumulators": {
        "shops": LastK(of="shop", window="1d", k=10),
        **{f"count_{i}": Count(window="1d", where=col("pieces") > i) for i in range(6)},
        **{f"sum_{i}": Sum(of="amount", window="7d", where=col("pieces") > i) for i in range(6)},
        **{f"max_{i}": Max(of="pieces", window="30d", where=col("amount") > i) for i in range(7)},
    },
    "distinct values and a sketch": {
        "shops": Distinct(of="shop"),
        "favourites": TopK(of="shop", k=3),
        "rank": ApproxPercentile(of="amount", window="7d"),
    },
}
EVENTS = (10, 1_000, 100_000)
# Keys measured per size: small ones differ most from one another.
MEASURED = {10: 40, 1_000: 8, 100_000: 1}
OVER = 30 * DAY
# A block may be one of 16 bytes more that was freed before. A hash is a few blocks; as a table one more per field.
REUSED_BLOCK = 16
REUSED = 3 * REUSED_BLOCK
SHOPS = 1_000
NOW = parse_instant("2026-03-05T09:00:00Z")


def _aggregate(*keys, **aggregates):
    named = tuple(NamedAggregate(output=output, aggregate=each) for output, each in aggregates.items())
    return AggregateStep(keys=keys, aggregates=named)


def _compiled(*steps, cdc="append"):
    pipeline = PipelineDef(name="by_user", input_datasets=("Sale",), output_dataset="Stats", steps=steps)
    stats = SALE.model_copy(update={"name": "Stats"})
    source = SourceDef(dataset="Sale", connector=ConnectorDef(type="files", config={}), cdc=cdc)
    return Program.compile(pipeline, Definitions(datasets=(SALE, stats), pipelines=(pipeline,), sources=(source,)))


def _program(name):
    return _compiled(_aggregate("user", **AGGREGATES[name]))


def _records(key, events, draw):
    """Sales as a shop would make them: at instants without a pattern, arriving in order of time."""
    times = sorted(NOW - draw.randrange(OVER) for _ in range(events))
    rows = [
        {
            "user": key,
            "amount": round(draw.uniform(1, 500), 2),
            "pieces": draw.randint(1, 2_000),
            "shop": f"shop-{draw.randrange(SHOPS):07}",
            "at": time,
            "__time": time,
            "__accepted_at": time + draw.randrange(5 * SECOND),
            "__partition": draw.randrange(1, 4),
            "__offset": offset,
            "__late": False,
            "__deleted": False,
        }
        for offset, time in enumerate(times)
    ]
    return pa.Table.from_pylist(rows, schema=record_schema(SALE))


def _measured(program, events, client):
    """Mean of what the server says of several keys, each written as a worker writes it: batch after batch."""
    draw = random.Random(events)
    sizes = []
    for number in range(MEASURED[events]):
        key = f"customer-{number:07}"
        name = StateName(program.ref, 1).key(key)
        shaped = program.shape_all({"Sale": _records(key, events, draw)})
        ((_, rows),) = program.rows_by_key(shaped)
        state = program.new_state(1)
        while rows:
            taken = draw.randint(1, max(4, events // 25))
            state.add(rows[:taken])
            rows = rows[taken:]
            client.hset(name, mapping=state.changes())
        sizes.append(client.memory_usage(name, samples=0))
    return statistics.mean(sizes)


@pytest.mark.parametrize("events", EVENTS)
@pytest.mark.parametrize("name", AGGREGATES)
def test_the_prediction_is_within_a_fifth_of_what_the_server_uses(name, events, empty_redis_url, shared_redis):
    program = _program(name)
    load = Load(keys=1, events_per_key=events, over_us=OVER, distinct=SHOPS)
    predicted = state_size(program, load).bytes_per_key
    with shared_redis.client() as client:
        measured = _measured(program, events, client)
    assert 0.8 <= predicted / measured <= 1.2, f"predicted {predicted}, measured {measured:.0f}"


@pytest.mark.parametrize("length", [1, 31, 32, 63, 64, 65, 119, 120, 300, 5_000, 70_000])
@pytest.mark.parametrize("fields", [1, 7, 40, 512, 513])
def test_the_model_of_a_hash_is_that_of_the_server(fields, length, empty_redis_url, shared_redis):
    stored = {b"9:%d" % number: b"v" * length for number in range(fields)}
    with shared_redis.client() as client:
        client.hset("{by_user@1#1:7}:s:someone", mapping=stored)
        measured = client.memory_usage("{by_user@1#1:7}:s:someone", samples=0)
        compact = client.object("encoding", "{by_user@1#1:7}:s:someone") == b"listpack"
    assert compact == (length <= 64 and fields <= 512)
    reused = REUSED if compact else REUSED + fields * REUSED_BLOCK
    assert hash_bytes(b"{by_user@1#1:7}:s:someone", stored, compact=length <= 64) == pytest.approx(
        measured, rel=0.1, abs=reused
    )


def test_a_hash_that_held_a_long_value_once_is_weighed_as_a_table(empty_redis_url, shared_redis):
    with shared_redis.client() as client:
        client.hset("h", mapping={"b": "v" * 100})
        client.hset("h", mapping={"b": "v"})
        measured = client.memory_usage("h", samples=0)
    assert hash_bytes(b"h", {b"b": b"v"}, compact=False) == pytest.approx(measured, rel=0.1, abs=REUSED)
    assert hash_bytes(b"h", {b"b": b"v"}, compact=True) < measured


def test_a_key_of_more_rows_than_are_laid_out_is_scaled_from_one_of_the_same_density():
    program = _program("sums of two windows")
    whole = state_size(program, Load(events_per_key=200_000, over_us=OVER))
    half = state_size(program, Load(events_per_key=100_000, over_us=OVER // 2))
    assert whole.bytes_per_key == pytest.approx(2 * half.bytes_per_key, rel=0.01)


def test_of_each_of_many_pipelines_fewer_rows_are_laid_out_which_say_the_same(monkeypatch):
    laid = []
    whole = sizing.lay_out
    monkeypatch.setattr(sizing, "lay_out", lambda *given: laid.append(given[1].events_per_key) or whole(*given))
    program, load = _program("sums of two windows"), Load(events_per_key=100_000, over_us=OVER)
    alone, beside = state_size(program, load), state_size(program, load, beside=299)
    assert laid == [5_000, 1_000]
    assert beside.bytes_per_key == pytest.approx(alone.bytes_per_key, rel=0.05)


def test_the_total_is_that_of_all_keys():
    program = _program("sums of two windows")
    size = state_size(program, Load(keys=1_000, events_per_key=50))
    assert size.total_bytes == pytest.approx(1_000 * size.bytes_per_key, rel=0.001)


def test_the_prediction_is_the_same_each_time():
    program = _program("lifetime with text")
    assert state_size(program, Load(events_per_key=300)) == state_size(program, Load(events_per_key=300))


@pytest.mark.parametrize("events", [10_000, 60_000], ids=["all rows laid out", "a part of the rows laid out"])
def test_a_set_states_what_each_distinct_value_adds(events):
    program = _program("distinct values and a sketch")
    one, many = (state_size(program, Load(events_per_key=events, distinct=distinct)) for distinct in (1, 200))
    assert many.bytes_per_key - one.bytes_per_key == pytest.approx(200 * many.bytes_per_distinct, rel=0.05)
    assert state_size(_program("lifetime with text"), Load()).bytes_per_distinct is None


SPENT = _aggregate("shop", spent=Sum(of="amount"))
REMEMBERING = {
    "table of newest rows": ((LatestStep(keys=("user",)), SPENT), "append", "versions of rows"),
    "upsert": ((SPENT,), "upsert", "versions of rows"),
    "dedup": ((DedupStep(by=("amount",)), SPENT), "append", "rows of a dedup or first"),
}


@pytest.mark.parametrize("name", REMEMBERING)
def test_rows_that_a_step_keeps_are_weighed_as_its_frame_is(name):
    steps, cdc, told = REMEMBERING[name]
    program = _compiled(*steps, cdc=cdc)
    graph = program.new_graph()
    graph.top.apply({"Sale": _records("customer-0000001", 5_000, random.Random(1))})
    kept = graph.top._held
    (held,) = held_rows(program, Load())
    assert (held.step, len(kept)) == (told, 5_000)
    assert held.bytes_per_row == pytest.approx(kept.estimated_size() / len(kept), rel=0.2)


def test_rows_of_an_aggregate_before_other_steps_are_weighed_as_python_holds_them():
    program = _compiled(_aggregate("user", "shop", amount=Sum(of="amount"), pieces=Max(of="pieces")), SPENT)
    records = _records("customer-0000001", 4_000, random.Random(1))
    shops = pa.array([f"shop-{number % 20:07}" for number in range(len(records))])
    records = records.set_column(records.schema.get_field_index("shop"), "shop", shops)
    graph = program.new_graph()
    gc.collect()
    tracemalloc.start()
    graph.top.apply({"Sale": records})
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    (held,) = held_rows(program, Load())
    assert held.bytes_per_row == pytest.approx(used / len(records), rel=0.3)


def test_a_pipeline_without_memory_holds_nothing():
    assert held_rows(_program("sums of two windows"), Load()) == []
