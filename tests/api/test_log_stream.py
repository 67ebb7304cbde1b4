"""Bodies that are taken while they come: lines of JSON and Arrow streams, block by block."""

from __future__ import annotations

import json

import polars as pl
import pyarrow as pa
import pytest

from featurelib.errors import LogFull, MaybeTaken, StoreUnavailable
from featurelib.stores.log import Log
from serve_apps import log_stream
from serve_apps.intake_service import IntakeService
from tests.api.test_bad_input import check
from tests.api.test_dead_letters import make_optional
from tests.api.test_idempotency import PARTITIONS, ride

LINES = "application/x-ndjson"
ARROW = "application/vnd.apache.arrow.stream"
# Two blocks of lines and a rest.
MANY = 17_000


@pytest.fixture
async def door(platform, client):
    await platform.commit_rides(client)
    return client


def held(log: Log) -> list[str]:
    tables = [log.read("Ride@1", part, 0, 100_000) for part in range(PARTITIONS)]
    return sorted(name for table in tables if table is not None for name in table["ride"].to_pylist())


def lines(*records) -> bytes:
    return b"".join((each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in records)


def arrow(table: pa.Table, batch_rows: int = 1_000, **options) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=batch_rows)
    return sink.getvalue().to_pybytes()


async def send(client, body, kind=LINES, key: str | None = None, query="dataset=Ride", **headers):
    named = {} if key is None else {"Idempotency-Key": key}
    given = {"Content-Type": kind, **named, **headers}
    return await client.post(f"/api/v1/log?{query}", content=body, headers=given)


def counts(answer) -> tuple[int, int, int]:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["events_sent"], body["duplicates"], body["rejected"]


def runs(answer) -> list[tuple[str, int]]:
    return [(run["outcome"], run["records"]) for run in answer.json()["outcomes"]]


def rides(count: int) -> list[dict]:
    return [ride(number, rider=number % 50) for number in range(count)]


async def test_what_lines_arrow_and_json_bring_is_the_same(platform, door):
    records = rides(30)
    assert counts(await send(door, lines(*records))) == (30, 0, 0)
    tables = [platform.log.read("Ride@1", part, 0, 100).sort_by("ride") for part in range(PARTITIONS)]
    ends = [head.next_offset for head in platform.log.heads("Ride@1", PARTITIONS)]
    assert counts(await send(door, arrow(pa.Table.from_pylist(records)), ARROW)) == (30, 0, 0)
    assert counts(await door.post("/api/v1/log", json={"dataset": "Ride", "events": records})) == (30, 0, 0)
    for part, (table, end) in enumerate(zip(tables, ends, strict=True)):
        for again in (1, 2):
            other = platform.log.read("Ride@1", part, again * end, end).sort_by("ride")
            assert other.drop(["__offset"]).equals(table.drop(["__offset"]))


async def test_each_record_has_its_outcome_and_the_bad_ones_their_reason(platform, door):
    body = lines(ride(0), b"nonsense", b"", ride(1, fare="x", tip=3), b"[1]\r", ride(2))
    answer = await send(door, body)
    assert counts(answer) == (2, 0, 3)
    assert runs(answer) == [("accepted", 1), ("dead_letter", 3), ("accepted", 1)]
    assert [(bad["row"], bad["reason"], bad["field"]) for bad in answer.json()["problems"]] == [
        (1, "malformed", ""),
        (2, "wrong_type", "fare"),
        (3, "malformed", ""),
    ]
    letters = {stored.letter.reason: stored.letter for stored in platform.log.dead.newest("Ride@1", PARTITIONS)}
    assert letters["wrong_type"].record == ride(1, fare="x", tip=3)
    assert letters["malformed"].origin == "POST /api/v1/log"
    assert held(platform.log) == ["r0", "r2"]


async def test_the_outcomes_of_a_json_body_are_told_too(door):
    answer = await door.post("/api/v1/log", json={"dataset": "Ride", "events": [ride(1), ride(2), ride(3, fare="x")]})
    assert runs(answer) == [("accepted", 2), ("dead_letter", 1)]
    assert runs(await door.post("/api/v1/log", json={"dataset": "Ride", "events": []})) == []


async def test_a_body_of_many_blocks_is_taken_whole_and_rows_count_through(platform, door):
    records = rides(MANY)
    records[15_000]["fare"] = "x"

    async def pieces():
        body = lines(*records)
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    answer = await send(door, pieces(), key="k")
    assert counts(answer) == (MANY - 1, 0, 1)
    assert runs(answer) == [("accepted", 15_000), ("dead_letter", 1), ("accepted", 1_999)]
    assert [bad["row"] for bad in answer.json()["problems"]] == [15_000]
    assert len(set(held(platform.log))) == MANY - 1
    # However the network cuts it, and whole in one piece: the body is known.
    again = await send(door, lines(*records), key="k")
    assert counts(again) == (0, MANY - 1, 1)
    assert runs(again) == [("duplicate", 15_000), ("dead_letter", 1), ("duplicate", 1_999)]
    assert len(platform.log.dead.newest("Ride@1", PARTITIONS)) == 1
    (told,) = (await door.get("/api/v1/events?event_type=dead_letter")).json()
    assert told["detail"]["dead"] == 1


async def test_arrow_batches_of_any_size_fall_into_the_same_blocks(platform, door):
    table = pa.Table.from_pylist(rides(MANY))
    assert counts(await send(door, arrow(table, 37), ARROW, "k")) == (MANY, 0, 0)
    assert counts(await send(door, arrow(table, 37), ARROW, "k")) == (0, MANY, 0)
    check(await send(door, arrow(table.slice(1), 37), ARROW, "k"), 409, "idempotency_conflict")
    assert len(held(platform.log)) == MANY


async def test_another_body_under_a_key_is_refused_whatever_its_form(platform, door):
    await send(door, lines(ride(1)), key="k")
    check(await send(door, lines(ride(2)), key="k"), 409, "idempotency_conflict")
    whole = await door.post(
        "/api/v1/log", json={"dataset": "Ride", "events": [ride(1)]}, headers={"Idempotency-Key": "k"}
    )
    check(whole, 409, "idempotency_conflict")
    assert held(platform.log) == ["r1"]


async def test_a_log_that_fails_on_the_way_says_what_was_taken(platform, door, monkeypatch):
    take = IntakeService.take

    def failing(self, dataset, block, key, first):
        if block.number == 1:
            message = "the online store does not answer"
            raise StoreUnavailable(message)
        return take(self, dataset, block, key, first)

    monkeypatch.setattr(IntakeService, "take", failing)
    body = lines(*rides(MANY))
    refused = await send(door, body)
    check(refused, 503, "maybe_taken", "the first 8192 records were taken", "send only the others")
    assert "retry-after" not in refused.headers
    check(
        await send(door, body, key="k"), 503, "store_unavailable", "the first 8192 records were taken", "under its key"
    )
    monkeypatch.undo()
    assert counts(await send(door, body, key="k")) == (MANY - 8_192, 8_192, 0)


async def test_of_a_block_that_may_have_been_taken_nobody_is_told_to_send_it_again(door, monkeypatch):
    append = Log.append_shares

    def lost(log, dataset, shares, *args, **kwargs):
        done = append(log, dataset, shares, *args, **kwargs)
        if sum(len(share.records) for share in shares) < 8_192:
            message = "the online store does not answer"
            raise MaybeTaken(message)
        return done

    monkeypatch.setattr(Log, "append_shares", lost)
    refused = await send(door, lines(*rides(MANY)))
    check(refused, 503, "maybe_taken", "the first 16384 records were taken", "see which of those behind them were")
    assert f"some of the {MANY - 16_384} records may have been taken" in refused.json()["detail"]


async def test_a_body_waits_for_room_in_the_log_once_it_has_begun(platform, door, monkeypatch):
    asked, require = [], Log.require_room

    def sometimes(self):
        asked.append(None)
        if len(asked) in {2, 3}:
            message = "the hot log is full"
            raise LogFull(message)
        require(self)

    monkeypatch.setattr(Log, "require_room", sometimes)
    monkeypatch.setattr(log_stream, "_ROOM_LOOK_S", 0)
    assert counts(await send(door, lines(*rides(MANY)))) == (MANY, 0, 0)
    assert len(asked) == 5
    monkeypatch.setattr(log_stream, "_ROOM_PATIENCE_S", 0)
    asked.clear()
    check(await send(door, lines(*rides(MANY))), 503, "maybe_taken", "the first 8192 records")


async def test_records_of_a_block_between_two_bad_forms_stay_taken(platform, door):
    # The second block has a line without an end.
    body = lines(*rides(8_192)) + b'{"ride": "' + b"x" * 1_100_000
    check(await send(door, body), 413, "payload_too_large", "the first 8192 records were taken")
    assert len(held(platform.log)) == 8_192


WRONG = [
    (lines(ride(1)), LINES, "", 400, "invalid_request", "dataset"),
    (lines(ride(1)), LINES, "dataset=Ride&dataset=City", 400, "invalid_request", "dataset"),
    (lines(ride(1)), LINES, "dataset=Ride&when=now", 400, "invalid_request", "dataset"),
    (lines(ride(1)), LINES, "dataset=RiderStats", 400, "invalid_request", "RiderStats"),
    (lines(ride(1)), LINES, "dataset=Nothing", 404, "not_found", "Nothing"),
    (b"", LINES, "dataset=Nothing", 404, "not_found", "Nothing"),
    (b"", ARROW, "dataset=Ride", 400, "invalid_request", "cut off"),
    (b"nonsense", ARROW, "dataset=Ride", 400, "invalid_request", "Arrow"),
    (b"\xff" * 4_000, ARROW, "dataset=Ride", 413, "payload_too_large", "metadata"),
    (b"x" * 1_100_000, LINES, "dataset=Ride", 413, "payload_too_large", "line"),
]


async def test_a_wrong_body_is_refused_by_name(platform, door):
    for body, kind, query, status, code, named in WRONG:
        check(await send(door, body, kind, query=query), status, code, named)
    assert platform.log.partitions("Ride@1") == 0 or held(platform.log) == []


async def test_an_empty_body_of_lines_holds_no_records(door):
    for body in (b"", b"\n \r\n"):
        answer = await send(door, body)
        assert (counts(answer), runs(answer)) == ((0, 0, 0), [])


async def test_an_encoded_body_is_refused(door):
    answer = await send(door, lines(ride(1)), **{"Content-Encoding": "gzip"})
    check(answer, 400, "invalid_request", "Content-Encoding")


async def test_an_arrow_stream_may_be_cut_anywhere_and_is_refused(platform, door):
    body = arrow(pa.Table.from_pylist(rides(5)))
    for end in range(8, len(body) - 9, 61):
        answer = await send(door, body[:end], ARROW)
        if answer.status_code != 200:
            check(answer, 400, "invalid_request", "cut off")
    assert counts(await send(door, body[:-8], ARROW))[0] == 5  # only the end is missing, which says nothing


async def test_arrow_types_are_taken_as_sources_give_them(platform, door):
    frame = pl.DataFrame(rides(3)).with_columns(
        pl.col("ride").cast(pl.Categorical),
        pl.col("at").str.to_datetime(time_zone="UTC"),
        pl.col("rider").cast(pl.Int8),
    )
    views = frame.to_arrow().set_column(2, "city", pa.array(["Oslo"] * 3, pa.string_view()))
    assert counts(await send(door, arrow(views), ARROW)) == (3, 0, 0)
    assert held(platform.log) == ["r0", "r1", "r2"]


@pytest.mark.parametrize(
    ("column", "named"),
    [
        (pa.array([{"a": 1}]), "struct"),
        (pa.array([b"x"]), "binary"),
        (pa.array([1], pa.duration("s")), "duration"),
        (pa.RunEndEncodedArray.from_arrays([1], ["x"]), "run_end_encoded"),
    ],
)
async def test_an_arrow_column_that_no_record_could_have_is_refused(door, column, named):
    table = pa.table({**{name: [value] for name, value in ride(1).items()}, "extra": column})
    check(await send(door, arrow(table), ARROW), 400, "invalid_request", "extra", named)


async def test_arrow_that_would_grow_is_refused(door):
    table = pa.Table.from_pylist(rides(200))
    check(await send(door, arrow(table, compression="lz4"), ARROW), 400, "invalid_request", "compress")
    nulls = pa.record_batch({"ride": pa.nulls(2_000_000)})
    check(await send(door, arrow(pa.Table.from_batches([nulls]), 2_000_000), ARROW), 413, "payload_too_large", "rows")
    nothing = pa.ListArray.from_arrays(pa.array([0, 9_000_000], pa.int32()), pa.nulls(9_000_000))
    check(await send(door, arrow(pa.table({"ride": nothing})), ARROW), 413, "payload_too_large", "lists")
    long = pa.table({"ride": pa.DictionaryArray.from_arrays(pa.array([0] * 1_000, pa.int8()), ["x" * 300_000])})
    check(await send(door, arrow(long), ARROW), 413, "payload_too_large", "ride")


async def test_bytes_that_are_changed_on_the_way_never_break_the_service(platform, door):
    body = arrow(pa.Table.from_pylist(rides(20)), 10)
    for place in range(0, len(body), 23):
        changed = body[:place] + bytes([body[place] ^ 0xFF]) + body[place + 1 :]
        answer = await send(door, changed, ARROW)
        assert answer.status_code in {200, 400, 413}, answer.text


async def test_a_reader_may_not_send(platform, door):
    async with platform.client("reader") as reader:
        check(await send(reader, lines(ride(1))), 403, "forbidden", "writer")
        check(await reader.post("/api/v1/log", json={"dataset": "Ride", "events": []}), 403, "forbidden", "writer")


async def test_other_methods_are_405(door):
    answer = await door.get("/api/v1/log")
    check(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


async def test_a_key_that_is_sent_twice_is_refused(door):
    body = json.dumps({"dataset": "Ride", "events": [ride(1)]}).encode()
    answer = await door.post("/api/v1/log", content=body, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")])
    check(answer, 400, "invalid_request", "Idempotency-Key")


async def test_a_mended_definition_makes_no_second_record_of_a_request_sent_again(platform, door):
    events = [ride(number, fare=None if number % 2 else 1.0) for number in range(6)]
    sent = {"json": {"dataset": "Ride", "events": events}, "headers": {"Idempotency-Key": "k"}}
    assert counts(await door.post("/api/v1/log", **sent)) == (3, 0, 3)
    await make_optional(platform, door)
    assert (await door.post("/api/v1/log", **sent)).status_code == 409
    replayed = await door.post("/api/v1/dead-letters/replay", json={"dataset": "Ride", "all": True})
    assert replayed.json()["accepted"] == 3
    assert (await door.post("/api/v1/log", **sent)).status_code == 409
    assert held(platform.log) == [f"r{number}" for number in range(6)]


async def test_beyond_the_most_runs_outcomes_are_not_told_apart_but_counted(door, monkeypatch):
    monkeypatch.setattr(log_stream, "MOST_RUNS", 3)
    events = [ride(number, fare="x" if number % 2 else 1.0) for number in range(10)]
    answer = await send(door, lines(*events))
    assert counts(answer) == (5, 0, 5)
    assert runs(answer) == [("accepted", 1), ("dead_letter", 1), ("accepted", 1), ("mixed", 7)]


async def test_a_number_that_no_double_holds_costs_its_own_record(door):
    huge = json.dumps({**ride("r2"), "fare": "?"}).replace('"?"', "1e400").encode()
    answer = await send(door, lines(ride("r1"), huge, ride("r3")))
    assert counts(answer) == (2, 0, 1)
    assert runs(answer) == [("accepted", 1), ("dead_letter", 1), ("accepted", 1)]
