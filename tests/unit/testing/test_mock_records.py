"""What becomes of records: taken, refused, judged, late, held already; and how they follow each other."""

import polars as pl
import pyarrow as pa
import pytest

from featurelib.clock import parse_instant
from featurelib.errors import InvalidRequest, InvalidTimestamp, NotFound
from featurelib.testing import DeadLetter, ExpectationViolation, MockContext
from tests.support.clocks import MovedClock
from tests.unit.testing import shop
from tests.unit.testing.shop import Account, Aggregates, Order, Orders, Owners, Purchase, Windows
from tests.unit.testing.test_mock_aggregates import DAY, purchase


def test_a_record_that_does_not_fit_is_a_dead_letter_and_the_others_are_taken(ctx):
    bad = purchase("10:00:00", "many")
    ctx.add_events(Purchase, [bad, purchase("10:00:00", -1.0), purchase("11:00:00")])
    text, below = ctx.dead_letters(Purchase)
    assert text == DeadLetter("wrong_type", "amount", text.message, bad)
    assert (below.reason, below.field) == ("below_minimum", "amount")
    assert ctx.get_aggregates(Aggregates, "ann")["count"] == 1


def test_every_record_that_fails_an_expectation_is_named_and_taken(ctx):
    first, second = purchase("10:00:00", 500.0), purchase("11:00:00", 5.0, "west")
    found = ctx.add_events(Purchase, [first, second, purchase("12:00:00")])
    assert found == [
        ExpectationViolation(
            "column_values_between",
            "amount",
            "amount: 500.0 fails column_values_between (min_value=0.0, max_value=100.0)",
            first,
        ),
        ExpectationViolation(
            "column_values_in_set",
            "shop",
            "shop: 'west' fails column_values_in_set (values=['north', 'south'])",
            second,
        ),
    ]
    assert ctx.get_aggregates(Aggregates, "ann")["count"] == 3


def test_a_late_record_is_kept_and_does_not_count(ctx):
    ctx.add_events(Purchase, [purchase("12:00:00")])
    ctx.add_events(Purchase, [purchase("11:30:00"), purchase("11:29:59", 7.0)])
    assert [record["amount"] for record in ctx.late(Purchase)] == [7.0]
    assert ctx.get_aggregates(Windows, "ann")["ever"] == 2


def test_each_log_partition_has_a_watermark_of_its_own(thyme):
    users = [f"u{n}" for n in range(20)]
    late = {}
    for partitions in (1, 4):
        ctx = thyme(shop, partitions=partitions)
        for n, user in enumerate(users):
            ctx.add_events(Purchase, [purchase(f"{23 - n:02}:00:00", user=user)])
        late[partitions] = len(ctx.late(Purchase))
    assert late[1] == 19
    assert late[4] == 16


def test_a_record_from_the_future_does_not_make_the_rest_late(thyme):
    clock = MovedClock(parse_instant(f"{DAY}T12:00:00Z"))
    ctx = thyme(shop, clock=clock)
    ctx.add_events(Purchase, [purchase("12:00:00", day="2099-01-01")])
    ctx.add_events(Purchase, [purchase("11:35:00"), purchase("11:34:59")])
    assert len(ctx.late(Purchase)) == 1  # behind now + 5 min by more than 30 min


def test_without_a_clock_nothing_is_the_future(ctx):
    ctx.add_events(Purchase, [purchase("12:00:00"), purchase("13:00:00"), purchase("12:15:00")])
    assert len(ctx.late(Purchase)) == 1


def test_an_event_sent_twice_counts_once(ctx):
    sent = [
        {"user": "ann", "number": "a", "amount": 1, "at": DAY},
        {"user": "ann", "number": "b", "amount": 2, "at": DAY},
        {"user": "ann", "number": "a", "amount": 4, "at": DAY},
    ]
    ctx.add_events(Order, sent)
    ctx.add_events(Order, sent[1:])
    assert ctx.get_aggregates(Orders, "ann")["total"] == 3


def account(owner, balance, time, deleted=None):
    row = {"account": "a1", "owner": owner, "balance": balance, "at": f"{DAY}T{time}Z"}
    return row if deleted is None else {**row, "__deleted": deleted}


def test_a_newer_version_takes_the_older_ones_place(ctx):
    ctx.add_events(Account, [account("ann", 10.0, "10:00:00"), account("bob", 20.0, "11:00:00")])
    assert ctx.get_aggregates(Owners, "ann", at=f"{DAY}T10:30:00Z") == {"accounts": 1, "balance": 10.0}
    assert ctx.get_aggregates(Owners, "ann") == {"accounts": 0, "balance": 0.0}
    assert ctx.get_aggregates(Owners, "bob") == {"accounts": 1, "balance": 20.0}
    assert ctx.lookup(Account, "a1")["owner"] == "bob"


def test_a_deleted_key_counts_no_more_and_is_not_found(ctx):
    ctx.add_events(Account, [account("ann", 10.0, "10:00:00")])
    ctx.add_events(Account, [account("ann", 10.0, "11:00:00", deleted=True)])
    assert ctx.get_aggregates(Owners, "ann")["accounts"] == 0
    assert ctx.lookup(Account, "a1") is None
    assert ctx.lookup(Account, "a1", at=f"{DAY}T10:59:00Z")["balance"] == 10.0


def test_debezium_envelopes_are_opened_where_the_test_says_so(thyme):
    ctx = thyme(shop, cdc={Account: "debezium"})
    row = account("ann", 10.0, "10:00:00")
    ctx.add_events(Account, [{"op": "c", "before": None, "after": row}])
    stamp = parse_instant(f"{DAY}T11:00:00Z") // 1_000
    ctx.add_events(Account, [{"op": "d", "before": row, "after": None, "ts_ms": stamp}, {"op": "?"}])
    assert ctx.lookup(Account, "a1") is None
    assert ctx.get_aggregates(Owners, "ann", at=f"{DAY}T10:30:00Z")["accounts"] == 1
    assert [letter.reason for letter in ctx.dead_letters(Account)] == ["unknown_op"]


def test_appended_records_have_no_versions(thyme):
    ctx = thyme(shop, cdc={"Account": "append"})
    ctx.add_events(Account, [account("ann", 10.0, "10:00:00"), account("ann", 20.0, "11:00:00")])
    assert ctx.get_aggregates(Owners, "ann") == {"accounts": 2, "balance": 30.0}


def test_what_was_accepted_later_was_not_known(ctx):
    ctx.add_events(Purchase, [purchase("10:00:00")], accepted_at=f"{DAY}T10:00:01Z")
    ctx.add_events(Purchase, [purchase("09:45:00")], accepted_at=f"{DAY}T15:00:00Z")
    noon = f"{DAY}T12:00:00Z"
    assert ctx.get_aggregates(Windows, "ann", at=noon)["ever"] == 2
    assert ctx.get_aggregates(Windows, "ann", at=noon, knowledge="as_served")["ever"] == 1
    assert ctx.lookup(Windows, "ann", at=f"{DAY}T10:00:00Z", knowledge="as_served") is None
    evening = f"{DAY}T16:00:00Z"
    assert ctx.get_aggregates_df(Windows, at=evening, knowledge="as_served")["ever"].to_list() == [2]


def test_a_correction_accepted_later_was_not_known_either(ctx):
    ctx.add_events(Account, [account("ann", 10.0, "10:00:00")], accepted_at=f"{DAY}T10:00:00Z")
    ctx.add_events(Account, [account("ann", 15.0, "10:30:00")], accepted_at=f"{DAY}T18:00:00Z")
    noon = f"{DAY}T12:00:00Z"
    assert ctx.get_aggregates(Owners, "ann", at=noon)["balance"] == 15.0
    assert ctx.get_aggregates(Owners, "ann", at=noon, knowledge="as_served")["balance"] == 10.0


def test_a_clock_says_when_records_are_accepted(thyme):
    clock = MovedClock(parse_instant(f"{DAY}T12:00:00Z"))
    ctx = thyme(shop, clock=clock)
    ctx.add_events(Purchase, [purchase("10:00:00")])
    assert ctx.lookup(Windows, "ann", at=f"{DAY}T11:59:00Z", knowledge="as_served") is None
    assert ctx.lookup(Windows, "ann", at=f"{DAY}T12:00:00Z", knowledge="as_served")["ever"] == 1


def test_of_two_records_at_one_instant_the_later_accepted_is_newer(ctx):
    ctx.add_events(Purchase, [purchase("10:00:00", shop="north")])
    ctx.add_events(Purchase, [purchase("10:00:00", shop="south")])
    assert ctx.get_aggregates(Aggregates, "ann")["last"] == "south"


def test_time_of_acceptance_does_not_go_back(ctx):
    ctx.add_events(Purchase, [purchase("10:00:00")], accepted_at=f"{DAY}T12:00:00Z")
    with pytest.raises(InvalidRequest, match=r"Purchase accepted records at 2026-04-01T12:00:00Z already"):
        ctx.add_events(Purchase, [purchase("10:00:00")], accepted_at=f"{DAY}T11:00:00Z")
    ctx.add_events(Purchase, [purchase("10:00:00")])
    assert ctx.get_aggregates(Windows, "ann", at=f"{DAY}T12:00:00.000001Z", knowledge="as_served")["ever"] == 2


ROWS = [purchase("10:00:00"), purchase("11:00:00")]


def pandas_frame():
    import pandas as pd

    return pd.DataFrame(ROWS)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ROWS,
        lambda: pl.DataFrame(ROWS),
        lambda: pa.Table.from_pylist(ROWS),
        lambda: pa.RecordBatch.from_pylist(ROWS),
        pandas_frame,
        lambda: [Purchase(**row) for row in ROWS],
    ],
    ids=["mappings", "polars", "arrow table", "arrow batch", "pandas", "row objects"],
)
def test_records_come_in_every_form_of_table(ctx, make):
    ctx.add_events_df(Purchase, make())
    assert ctx.dead_letters(Purchase) == []
    assert ctx.get_aggregates(Aggregates, "ann")["total"] == 20.0


def test_no_records_are_no_mistake(ctx):
    assert ctx.add_events(Purchase, []) == []
    assert ctx.add_events(Account, pl.DataFrame()) == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda ctx: ctx.add_events("Purchases", []), NotFound, r"no dataset 'Purchases'. Did you mean `Purchase`"),
        (
            lambda ctx: ctx.add_events(Owners, []),
            InvalidRequest,
            r"made by the pipeline 'by_owner'; add events to 'Acc",
        ),
        (lambda ctx: ctx.add_events(Purchase, 3), InvalidRequest, r"events: expected a list of mappings.*found a int"),
        (lambda ctx: ctx.add_events(Purchase, [3]), InvalidRequest, r"events\[0\]: expected a mapping; found a int"),
        (lambda ctx: ctx.add_events(Purchase, [], accepted_at="soon"), InvalidTimestamp, r"accepted_at: 'soon' is not"),
        (lambda ctx: ctx.get_aggregates(Windows, "ann", at="1 May"), InvalidTimestamp, r"^at: '1 May' is not"),
        (lambda ctx: ctx.get_aggregates(Purchase, "ann"), NotFound, r"'Purchase' cannot be read by key. .*index=True"),
        (lambda ctx: ctx.lookup("Ownesr", "ann"), NotFound, r"no dataset 'Ownesr'. Did you mean `Owners`"),
        (lambda ctx: ctx.lookup(Owners, ""), InvalidRequest, r"entity_id: expected 1 to"),
        (lambda ctx: ctx.late("nothing"), NotFound, r"no dataset 'nothing'. The context has Account"),
        (lambda ctx: ctx.dead_letters("Orderz"), NotFound, r"Did you mean `Order"),
        (lambda ctx: ctx.lookup(Owners, "a", knowledge="now"), InvalidRequest, r"'now' is neither 'latest' nor 'as_se"),
        (lambda ctx: MockContext(shop, cdc={Account: "upserts"}), InvalidRequest, r"'upserts' is not one of append, u"),
        (lambda ctx: MockContext(shop, cdc={"Acount": "upsert"}), InvalidRequest, r"cdc: .*Did you mean `Account`"),
        (lambda ctx: MockContext(shop, partitions=0), InvalidRequest, r"partitions: expected a positive number, got 0"),
    ],
)
def test_a_mistaken_call_says_what_is_wrong(ctx, call, error, message):
    with pytest.raises(error, match=message):
        call(ctx)
