"""Windows and aggregates, read through the context."""

import pytest

from tests.unit.testing.shop import Aggregates, CityTotals, Purchase, Shop, Windows

DAY = "2026-04-01"


def purchase(time, amount=10.0, shop="north", user="ann", items=None, day=DAY):
    return {"user": user, "shop": shop, "amount": amount, "items": items, "at": f"{day}T{time}Z"}


@pytest.fixture
def bought(ctx):
    ctx.add_events(
        Purchase,
        [
            purchase("10:00:00", 10.0, "north", items=1),
            purchase("11:00:00", 30.0, "south"),
            purchase("12:00:00", 20.0, "north", items=3),
        ],
    )
    return ctx


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ("count", 3),
        ("with_items", 2),
        ("large", 2),
        ("total", 60.0),
        ("mean", 20.0),
        ("least", 10.0),
        ("most", 30.0),
        ("spread", pytest.approx(200 / 3)),
        ("deviation", pytest.approx((200 / 3) ** 0.5)),
        ("rank", pytest.approx(1 / 3)),
        ("median", 20.0),
        ("quantile", 15.0),
        ("first", "north"),
        ("last", "north"),
        ("newest", ["north", "south"]),
        ("oldest", ["north", "south"]),
        ("shops", ["north", "south"]),
        ("about", 2),
        ("favourite", ["north"]),
        ("decayed", pytest.approx(10 / 4 + 30 / 2 + 20)),
        ("none", None),
    ],
)
def test_every_aggregate_is_read_as_of_the_newest_event(bought, output, value):
    assert bought.get_aggregates(Aggregates, "ann")[output] == value


@pytest.mark.parametrize(
    ("output", "at", "value"),
    [
        ("hour", f"{DAY}T12:00:00Z", 2),
        ("hour", f"{DAY}T12:00:00.000001Z", 1),
        ("ever", f"{DAY}T23:00:00Z", 3),
        ("yesterday", "2026-04-02T12:00:00Z", 2),
        ("closed", f"{DAY}T12:59:00Z", 1),
        ("closed", f"{DAY}T14:00:00Z", 0),
        ("hops", f"{DAY}T13:00:00Z", 2),
        ("session", f"{DAY}T12:05:00Z", 1),
        ("newest_two", f"{DAY}T13:00:00Z", 50.0),
    ],
)
def test_every_window_is_read_at_an_instant(bought, output, at, value):
    assert bought.get_aggregates(Windows, "ann", at=at)[output] == value


def test_values_are_those_of_the_instant_asked_for(bought):
    assert bought.get_aggregates(Aggregates, "ann", at=f"{DAY}T11:30:00Z")["total"] == 40.0
    assert bought.get_aggregates(Aggregates, "ann", at=f"{DAY}T09:00:00Z")["total"] == 0.0


def test_an_entity_never_seen_has_the_values_of_empty_windows(bought):
    row = bought.get_aggregates(Aggregates, "bob")
    assert (row["count"], row["total"], row["mean"], row["newest"], row["last"]) == (0, 0.0, 0.0, [], None)
    assert bought.lookup(Aggregates, "bob") is None


def test_the_newest_event_is_that_of_the_entity_and_not_of_another(bought):
    bought.add_events(Purchase, [purchase("23:00:00", user="bob", day="2026-04-03")])
    assert bought.get_aggregates(Aggregates, "ann")["count"] == 3


def test_all_entities_come_as_one_frame(bought):
    bought.add_events(Purchase, [purchase("12:10:00", 7.0, user="bob")])
    frame = bought.get_aggregates_df(Aggregates)
    assert frame.select("entity_id", "count", "total", "newest").rows() == [
        ("ann", 3, 60.0, ["north", "south"]),
        ("bob", 1, 7.0, ["north"]),
    ]
    assert bought.get_aggregates_df("Aggregates", at=f"{DAY}T11:30:00Z")["entity_id"].to_list() == ["ann"]


def test_a_right_row_that_comes_late_reaches_the_left_rows_it_concerns(bought):
    assert bought.lookup(CityTotals, "Oslo") is None
    bought.add_events(Shop, [{"shop": "north", "city": "Oslo", "at": f"{DAY}T00:00:00Z"}])
    assert bought.lookup(CityTotals, "Oslo") == {"city": "Oslo", "total": 3000.0}
    bought.add_events(Shop, [{"shop": "north", "city": "Bergen", "at": f"{DAY}T11:30:00Z"}])
    at = f"{DAY}T12:00:00Z"
    assert bought.get_aggregates(CityTotals, "Oslo", at)["total"] == 1000.0
    assert bought.get_aggregates(CityTotals, "Bergen", at)["total"] == 2000.0


def test_an_event_from_the_future_counts_once_the_read_reaches_it(bought):
    bought.add_events(Purchase, [purchase("12:00:00", 5.0, day="2099-01-01")])
    assert bought.get_aggregates(Windows, "ann", at=f"{DAY}T12:30:00Z")["ever"] == 3
    assert bought.get_aggregates(Windows, "ann")["ever"] == 4


def test_many_rows_at_once_give_what_single_reads_give(ctx):
    times = [f"{n // 60:02}:{n % 60:02}:00" for n in range(0, 900, 3)]
    ctx.add_events(Purchase, [purchase(time, 1.0 + n % 7, user=f"u{n % 3}") for n, time in enumerate(times)])
    for dataset in (Aggregates, Windows):
        frame = ctx.get_aggregates_df(dataset, at=f"{DAY}T08:00:00Z")
        singles = [ctx.get_aggregates(dataset, f"u{n}", at=f"{DAY}T08:00:00Z") for n in range(3)]
        assert frame.drop("entity_id").to_dicts() == singles
