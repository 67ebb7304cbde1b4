"""Single values: what a declared type takes, and what the wire and user code see."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest

from featurelib.clock import parse_instant, to_datetime
from featurelib.engine.values import caster, handed, shown, text_caster

NOON = parse_instant("2026-04-01T12:00:00Z")


@pytest.mark.parametrize(
    ("type_name", "value", "wanted"),
    [
        ("decimal(2)", "0.6", Decimal("0.60")),
        ("decimal(2)", 0.6, Decimal("0.60")),
        ("decimal(2)", 3, Decimal("3.00")),
        ("decimal(2)", Decimal("1.5"), Decimal("1.50")),
        ("decimal(2)", None, None),
        ("list[decimal(1)]", ["0.5", None], [Decimal("0.5"), None]),
        ("list[int]", [1, 2.0], [1, 2]),
        ("datetime", "2026-04-01T12:00", NOON),
    ],
)
def test_a_value_that_fits_is_given_the_type(type_name, value, wanted):
    found = caster(type_name)(value)
    assert found == wanted
    assert str(found) == str(wanted)


@pytest.mark.parametrize(
    ("type_name", "value"),
    [
        ("decimal(2)", "0.605"),
        ("decimal(2)", 0.605),
        ("decimal(2)", True),
        ("decimal(2)", 10**20),
        ("decimal(2)", "x"),
        ("decimal(2)", [1]),
        ("list[decimal(2)]", ["0.605"]),
        ("list[decimal(2)]", "0.60"),
    ],
)
def test_a_value_that_would_lose_a_digit_is_refused(type_name, value):
    with pytest.raises(ValueError, match="is not a"):
        caster(type_name)(value)


def test_an_id_in_a_url_is_read_as_its_type():
    assert text_caster("decimal(1)")("2.5") == Decimal("2.5")
    assert text_caster("int")("7") == 7


@pytest.mark.parametrize(
    ("type_name", "value", "wanted"),
    [
        ("decimal(2)", Decimal("0.6"), "0.60"),
        ("decimal(0)", Decimal(12), "12"),
        ("decimal(2)", Decimal("-99999999999999999999.99"), "-99999999999999999999.99"),
        ("decimal(2)", None, None),
        ("list[decimal(1)]", [Decimal("0.5"), None], ["0.5", None]),
        ("list[decimal(1)]", None, None),
        ("datetime", NOON, "2026-04-01T12:00:00Z"),
        ("list[datetime]", [NOON, None], ["2026-04-01T12:00:00Z", None]),
    ],
)
def test_the_wire_shows_decimals_with_their_digits_and_instants_as_text(type_name, value, wanted):
    form = shown(type_name)
    assert form is not None
    assert form(value) == wanted


def test_user_code_sees_decimals_as_they_are_and_instants_as_datetimes():
    assert handed("decimal(2)") is None
    assert handed("list[decimal(2)]") is None
    form = handed("datetime")
    assert form is not None
    assert form(NOON) == to_datetime(NOON)


@pytest.mark.parametrize("type_name", ["int", "float", "str", "bool", "list[str]"])
def test_other_types_are_shown_as_they_are(type_name):
    assert shown(type_name) is None


@pytest.mark.parametrize("made", [np.array([1, 2]), pl.Series([1, 2]), pd.Series([1, 2]), (1, 2)])
def test_an_array_or_a_series_is_a_list_of_its_values(made):
    assert caster("list[int]")(made) == [1, 2]


@pytest.mark.parametrize("key", [[1], {"a": 1}, 1, None])
def test_an_entry_of_a_map_whose_key_is_no_text_is_refused(key):
    assert caster("dict[str, int]")([{"key": "a", "value": 2}]) == {"a": 2}
    with pytest.raises(ValueError, match="is not text, which the keys of a map are"):
        caster("dict[str, int]")([{"key": key, "value": 2}])


def test_half_of_a_surrogate_pair_is_no_text():
    with pytest.raises(ValueError, match="text that no UTF-8 spells"):
        caster("str")("a\ud800")
    assert caster("str")("größe \U0001f600") == "größe \U0001f600"
