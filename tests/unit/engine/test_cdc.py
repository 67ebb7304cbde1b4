"""Change data at the door: rows with a mark, Debezium envelopes, and everything that is neither."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from featurelib.clock import parse_instant
from featurelib.definitions import DatasetDef, FieldDef
from featurelib.engine.cdc import admit, unwrap

ACCOUNT = DatasetDef(
    name="Account",
    fields=(
        FieldDef(name="id", type="str", key=True),
        FieldDef(name="balance", type="int", minimum=0),
        FieldDef(name="ts", type="datetime", timestamp=True),
    ),
)
TEN = parse_instant("2026-03-10T10:00:00Z")
MILLIS = TEN // 1_000
ROW = {"id": "a1", "balance": 5, "ts": "2026-03-10T10:00:00Z"}


def admitted(changes: object, cdc: str) -> tuple[list[tuple[object, ...]], list[tuple[int, str, str]]]:
    result = admit(changes, ACCOUNT, cdc)
    table = result.table
    columns = (table["id"].to_pylist(), table["balance"].to_pylist(), table["__time"].to_pylist())
    rows = list(zip(result.kept.tolist(), *columns, result.deleted.tolist(), strict=True))
    return rows, [(r.row, r.field, r.reason) for r in result.rejected]


def envelope(op: object, **members: object) -> dict[str, object]:
    return {"op": op, "before": None, "after": None, **members}


TAKEN = [
    ("a create", envelope("c", after=ROW), ("a1", 5, TEN, False)),
    ("a read of a snapshot", envelope("r", after=ROW), ("a1", 5, TEN, False)),
    ("an update", envelope("u", before={"id": "a1"}, after=ROW), ("a1", 5, TEN, False)),
    ("a create without before", {"op": "c", "after": ROW}, ("a1", 5, TEN, False)),
    ("one under payload", {"schema": {}, "payload": envelope("c", after=ROW)}, ("a1", 5, TEN, False)),
    (
        "the row's own time before every other",
        envelope("c", after=ROW, ts="2020-01-01", ts_ms=1, source={"ts_ms": 2}),
        ("a1", 5, TEN, False),
    ),
    (
        "a time beside the row",
        envelope("c", after={"id": "a1", "balance": 5}, ts="2026-03-10T10:00:00Z", ts_ms=1),
        ("a1", 5, TEN, False),
    ),
    (
        "the time of the source before that of the connector",
        envelope("u", after={"id": "a1", "balance": 5, "ts": None}, ts_ms=1, source={"ts_ms": MILLIS + 7}),
        ("a1", 5, TEN + 7_000, False),
    ),
    ("the time of the connector", envelope("c", after={"id": "a1", "balance": 5}, ts_ms=MILLIS), ("a1", 5, TEN, False)),
    ("a delete", envelope("d", before=ROW, ts_ms=MILLIS + 1), ("a1", 5, TEN + 1_000, True)),
    ("a delete with only its key", envelope("d", before={"id": "a1"}, ts_ms=MILLIS), ("a1", None, TEN, True)),
    (
        "a delete with a time beside it",
        envelope("d", before={"id": "a1", "balance": "junk"}, ts="2026-03-10T10:00:00Z"),
        ("a1", None, TEN, True),
    ),
    (
        "a delete whose old row is outside of its bounds",
        envelope("d", before={"id": "a1", "balance": -1}, source={"ts_ms": MILLIS}),
        ("a1", None, TEN, True),
    ),
]


@pytest.mark.parametrize(("change", "wanted"), [case[1:] for case in TAKEN], ids=[case[0] for case in TAKEN])
def test_an_envelope_becomes_a_record(change, wanted):
    assert admitted([change], "debezium") == ([(0, *wanted)], [])


REFUSED = [
    ("no object", 3, "op", "malformed_envelope"),
    ("nothing", None, "op", "malformed_envelope"),
    ("a payload that is none", {"payload": [1]}, "op", "malformed_envelope"),
    ("a plain row", ROW, "op", "unknown_op"),
    ("no op", {"before": None, "after": ROW}, "op", "unknown_op"),
    ("a truncation", envelope("t"), "op", "unknown_op"),
    ("an op that is a list", envelope(["c"], after=ROW), "op", "unknown_op"),
    ("a create without a row", envelope("c"), "after", "malformed_envelope"),
    ("an update to text", envelope("u", after="row"), "after", "malformed_envelope"),
    ("a delete without a row", envelope("d", after=ROW, ts_ms=MILLIS), "before", "malformed_envelope"),
    ("a delete without a time", envelope("d", before=ROW), "ts", "missing_field"),
    ("a delete without its key", envelope("d", before={"balance": 1}, ts_ms=MILLIS), "id", "missing_field"),
    ("no time at all", envelope("c", after={"id": "a1", "balance": 5}), "ts", "missing_field"),
    ("a time in microseconds", envelope("d", before=ROW, ts_ms=10**16), "ts_ms", "invalid_timestamp"),
    ("a time that is text", envelope("d", before=ROW, ts_ms="soon"), "ts_ms", "invalid_timestamp"),
    ("a time that is NaN", envelope("d", before=ROW, ts_ms=float("nan")), "ts_ms", "invalid_timestamp"),
    ("a source that is text", envelope("d", before=ROW, source="x", ts_ms=True), "ts_ms", "invalid_timestamp"),
    ("a bad value", envelope("c", after={**ROW, "balance": "much"}), "balance", "wrong_type"),
    ("a value outside of its bounds", envelope("c", after={**ROW, "balance": -1}), "balance", "below_minimum"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "field", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_an_envelope_that_is_none_is_refused_alone_and_shown_as_it_came(change, field, reason):
    good = envelope("c", after=ROW)
    rows, rejected = admitted([good, change, good], "debezium")
    assert [row[0] for row in rows] == [0, 2]
    assert rejected == [(1, field, reason)]
    assert admit([good, change], ACCOUNT, "debezium").rejected[0].record is change


def test_a_table_of_envelopes_is_taken_too():
    table = pa.Table.from_pylist([envelope("c", after=ROW), {"op": "d", "before": ROW, "after": None}])
    table = table.append_column("ts_ms", pa.array([None, MILLIS]))
    rows, rejected = admitted(table, "debezium")
    assert rows == [(0, "a1", 5, TEN, False), (1, "a1", 5, TEN, True)]
    assert rejected == []


def test_no_envelopes_give_an_empty_table():
    result = admit([], ACCOUNT, "debezium")
    assert result.table.column_names == ["id", "balance", "ts", "__time"]
    assert len(result.table) == len(result.kept) == len(result.deleted) == 0


@pytest.mark.parametrize("as_table", [False, True])
def test_an_upsert_with_the_mark_takes_its_key_away(as_table):
    records = [
        {**ROW, "__deleted": None},
        {"id": "a1", "balance": None, "ts": "2026-03-10T10:00:00Z", "__deleted": "true"},
        {**ROW, "__deleted": "false"},
    ]
    rows, rejected = admitted(pa.Table.from_pylist(records) if as_table else records, "upsert")
    assert rows == [(0, "a1", 5, TEN, False), (1, "a1", None, TEN, True), (2, "a1", 5, TEN, False)]
    assert rejected == []


@pytest.mark.parametrize("records", [[ROW, ROW], pa.Table.from_pylist([ROW, ROW])], ids=["records", "table"])
@pytest.mark.parametrize("cdc", ["append", "upsert"])
def test_rows_without_the_mark_pass_as_they_are(records, cdc):
    opened = unwrap(records, ACCOUNT, cdc)
    assert opened.records is records
    assert opened.kept.tolist() == [0, 1]
    assert opened.deleted.tolist() == [False, False]


@pytest.mark.parametrize("as_table", [False, True])
def test_a_mark_that_is_no_bool_is_refused_alone(as_table):
    records = [{**ROW, "__deleted": "yes"}, {**ROW, "__deleted": "TRUE"}, {**ROW, "balance": -1, "__deleted": "false"}]
    rows, rejected = admitted(pa.Table.from_pylist(records) if as_table else records, "upsert")
    assert rows == [(1, "a1", 5, TEN, True)]
    assert rejected == [(0, "__deleted", "wrong_type"), (2, "balance", "below_minimum")]


def test_an_append_ignores_the_mark():
    rows, _ = admitted([{**ROW, "__deleted": True}], "append")
    assert rows == [(0, "a1", 5, TEN, False)]


def test_times_of_a_row_may_have_any_form_a_record_may_have():
    for form in (datetime(2026, 3, 10, 10, tzinfo=UTC), TEN // 1_000_000, "2026-03-10 10:00"):
        assert admitted([envelope("c", after={**ROW, "ts": form})], "debezium")[0] == [(0, "a1", 5, TEN, False)]


@pytest.mark.parametrize("key", ["a1", {"id": "a1"}, {"id": "a1", "region": "eu"}])
def test_a_deletion_that_has_no_row_takes_the_key_it_names_away(key):
    moment = datetime(2026, 3, 10, 10, tzinfo=UTC)
    changes = [ROW, {"__key": key, "__time": moment, "__deleted": True}]
    assert admitted(changes, "upsert") == ([(0, "a1", 5, TEN, False), (1, "a1", None, TEN, True)], [])


def test_a_deletion_whose_key_is_missing_is_rejected_as_it_came():
    change = {"__key": {"other": 1}, "__time": datetime(2026, 3, 10, 10, tzinfo=UTC), "__deleted": True}
    (rejected,) = admit([change], ACCOUNT, "upsert").rejected
    assert (rejected.record, rejected.field, rejected.reason) == (change, "id", "missing_field")
