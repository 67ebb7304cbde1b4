"""How much the random tests draw: ``ci``, which every change must pass in minutes, or ``soak``, all they can.

``TEST_PROFILE=soak make unit`` runs the second. Single tests have finer knobs (``ORACLE_SCALE``, ``MODEL_SCALE``).
"""

from __future__ import annotations

import os
from typing import Literal, TypeVar, cast

from hypothesis import HealthCheck, settings

Profile = Literal["ci", "soak"]
Amount = TypeVar("Amount")

PROFILE = cast("Profile", os.environ.get("TEST_PROFILE", "ci"))
"""The profile of this run."""


def by_profile(*, ci: Amount, soak: Amount) -> Amount:
    """The amount of this run's profile."""
    return soak if PROFILE == "soak" else ci


def load() -> None:
    """Make Hypothesis follow the profile; raises ``KeyError`` for one that does not exist."""
    # How long a draw takes says nothing: on a busy machine one took 40 s.
    untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("ci", untimed, max_examples=50)
    settings.register_profile("soak", untimed, max_examples=1_000)
    settings.load_profile({"ci": "ci", "soak": "soak"}[PROFILE])
