"""Every operator of a pipeline, through the context."""

import pytest

from tests.unit.testing import steps
from tests.unit.testing.steps import (
    Click,
    Deduped,
    Hours,
    Newest,
    Oldest,
    Page,
    PerPage,
    Renamed,
    Spenders,
    Tagged,
    Titled,
    Transformed,
    United,
    Visit,
)

DAY = "2026-04-01"


def click(time, page="home", cost=1, user="ann", tags=()):
    return {"user": user, "page": page, "cost": cost, "tags": list(tags), "at": f"{DAY}T{time}Z"}


@pytest.fixture
def clicked(thyme):
    ctx = thyme(steps)
    ctx.add_events(
        Click,
        [
            click("10:00:00", "home", 3, tags=["a", "b"]),
            click("10:30:00", "cart", 4, tags=["a"]),
            click("12:00:00", "home", 5),
            click("12:15:00", "home", 2, user="bob", tags=["b"]),
        ],
    )
    return ctx


@pytest.mark.parametrize(
    ("dataset", "key", "row"),
    [
        (Renamed, "ann", {"cost": 12}),
        (Deduped, "ann", {"pages": 2}),
        (Tagged, "a", {"clicks": 2}),
        (Newest, "ann", {"page": "home", "cost": 5}),
        (Oldest, "ann", {"page": "home", "cost": 3}),
        (Transformed, "ann", {"rate": 16}),
        (PerPage, "home", {"users": 2}),
        (PerPage, "cart", {"users": 0}),
        (Spenders, True, {"users": 1}),
        (Spenders, "false", {"users": 1}),
        (Hours, "ann", {"active": 1}),
    ],
)
def test_an_operator_gives_its_rows(clicked, dataset, key, row):
    assert clicked.get_aggregates(dataset, key) == row


def test_two_datasets_become_one(clicked):
    clicked.add_events(Visit, [{"user": "ann", "page": "home", "cost": 100, "at": f"{DAY}T09:00:00Z"}])
    assert clicked.get_aggregates(United, "ann")["cost"] == 112


def test_a_right_row_that_is_too_old_gives_null(clicked):
    clicked.add_events(Page, [{"page": "home", "title": "Welcome", "at": f"{DAY}T09:30:00Z"}])
    assert clicked.get_aggregates(Titled, "ann", at=f"{DAY}T10:00:00Z")["title"] == "Welcome"
    assert clicked.get_aggregates(Titled, "ann", at=f"{DAY}T12:00:00Z")["title"] is None


def test_a_changed_value_leaves_the_group_it_was_in(clicked):
    assert clicked.get_aggregates(Spenders, False, at=f"{DAY}T10:30:00Z") == {"users": 1}
    assert clicked.get_aggregates(Spenders, True, at=f"{DAY}T10:30:00Z") == {"users": 0}
    assert clicked.get_aggregates(Spenders, True, at=f"{DAY}T12:00:00Z") == {"users": 1}


def test_a_record_that_a_function_cannot_take_is_named_and_costs_itself_alone(clicked):
    bad = click("13:00:00", "home", -1)
    clicked.add_events(Click, [bad, click("13:10:00", "home", 7)])
    assert clicked.get_aggregates(Transformed, "ann")["rate"] == 30
    (letter,) = clicked.dead_letters(Transformed)
    assert letter.reason == "user_code_error"
    assert "with_rate" in letter.message
    assert "a cost below zero" in letter.message
    assert (letter.record["cost"], letter.record["page"]) == (-1, "home")
    assert clicked.dead_letters(Click) == []
