"""The soak in short: some faults against a running load, then everything is looked at (tests/load/soak.py)."""

from __future__ import annotations

import random

import pytest

from tests.load.soak import run

# Waits end as soon as what they wait for is there: their bounds are for what never comes, however full the machine.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

FAULTS = [
    "worker frozen beyond its lease",
    "connections to the online store cut",
    "archive's disk full",
    "online store killed",
    "delivered again",
    "worker killed",
]


def test_after_faults_under_load_every_event_is_there_once_and_nothing_else_is(tmp_path_factory) -> None:
    home = tmp_path_factory.mktemp("home")
    tally, soak, verdict = run(home, FAULTS, seconds=6.0, events=20_000, chosen=random.Random(1))
    assert verdict.problems == []
    assert (verdict.lost, verdict.doubled) == (0, 0)
    assert sum(tally.faults.values()) == len(FAULTS)
    assert soak.events >= 20_000
