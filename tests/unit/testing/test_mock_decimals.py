"""Decimal features: looked up, requested and computed; and look-ups by ``key=``."""

import numpy as np
import pytest

from featurelib.errors import InvalidRequest, UserCodeError
from tests.unit.testing.decimals import Bill, Mistaken, Prices


@pytest.fixture
def priced(thyme):
    context = thyme(Bill, Prices)
    context.add_events(Bill, [{"user": "ann", "price": "2.25", "at": 5}])
    return context


def test_decimal_features_have_the_digits_they_declare(priced):
    assert priced.query(Prices, "ann") == {
        "user": "ann",
        "price": "2.25",
        "finer": "2.250",
        "share": "1.50",
        "product": "3.3750",
        "halves": ["0.5", "1.0"],
        "again": "2.25",
    }


def test_a_missed_decimal_look_up_gives_null_or_the_default(priced):
    row = priced.query(Prices, "bob")
    assert (row["price"], row["finer"], row["product"], row["again"]) == (None, "0.125", None, None)


@pytest.mark.parametrize("given", ["1.234", True, "x", 10**40, None, float("nan")])
def test_a_requested_decimal_is_exact_or_refused(priced, given):
    with pytest.raises(InvalidRequest, match=r"inputs\.share"):
        priced.query(Prices, "ann", {"share": given})
    assert priced.query(Prices, "ann", {"share": "2.00"})["product"] == "4.5000"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("unnamed", "Bill.lookup takes its key user= after ts, got 'ann'"),
        ("twice", "Bill.lookup takes its key user= after ts, got user, key"),
        ("surrogate", "is text that no UTF-8 spells"),
        ("import", "ImportError: cannot import name 'nothing_of_this_name' from 'polars'"),
    ],
)
def test_what_an_extractor_does_wrongly_is_told_in_the_words_of_the_user(thyme, how, message):
    context = thyme(Bill, Mistaken)
    context.add_events(Bill, [{"user": "ann", "price": 1, "at": 5}])
    with pytest.raises(UserCodeError) as caught:
        context.query(Mistaken, "ann", {"how": how})
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize("given", ["ann", None, 5, {"ann": 1}])
def test_a_batch_of_ids_that_is_no_list_is_refused(priced, given):
    with pytest.raises(InvalidRequest, match="entity_ids: expected a list of ids"):
        priced.query_batch(Prices, given)


def test_ids_may_come_as_an_array(priced):
    assert priced.query_batch(Prices, np.array(["ann", "bob"]))["price"] == ["2.25", None]
