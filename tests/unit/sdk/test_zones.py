"""Instants of one column name a zone, all or none of them; epoch seconds are neither."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from featurelib.clock import check_zones, parse_instant
from featurelib.errors import InvalidRequest

NAMED = ["2026-03-01T09:30Z", "2026-03-01 09:30:00+01:00", datetime(2026, 3, 1, tzinfo=UTC)]
PLAIN = ["2026-03-01T09:30", "2026-03-01", datetime(2026, 3, 1)]  # noqa: DTZ001  # one without a zone is what is meant
SECONDS = ["1772359200", "1.7e9", "1772359200.", "-.5", 1_772_359_200, 1_772_359_200.5]


@pytest.mark.parametrize("kind", [NAMED, PLAIN], ids=["named", "plain"])
@pytest.mark.parametrize("seconds", SECONDS)
def test_epoch_seconds_go_with_instants_of_either_kind(kind, seconds):
    parse_instant(seconds)
    check_zones([seconds, *kind, seconds, None], "at")


@pytest.mark.parametrize("named", NAMED, ids=str)
@pytest.mark.parametrize("plain", PLAIN, ids=str)
def test_one_that_names_a_zone_does_not_go_with_one_that_names_none(named, plain):
    with pytest.raises(InvalidRequest, match="at: row 2 names a zone and row 1 does not"):
        check_zones(["1.7e9", plain, named], "at")
