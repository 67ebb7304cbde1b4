"""Reads over HTTP: online, point in time, by look-up, with request inputs, in batches."""

from __future__ import annotations

import pytest

from featurelib.clock import HOUR


async def test_online_features_are_those_of_now(rides):
    answer = await rides.get("/features", params={"featureset": "Rider", "entity_id": "7"})
    assert answer.status_code == 200
    assert answer.json() == {
        "entity_type": "rider",
        "entity_id": "7",
        "features": {
            "rider": 7,
            "trips": 2,
            "spent": 15.0,
            "cities": ["Bergen", "Oslo"],
            "last_at": "2026-03-01T11:00:00Z",
            "fee": 2.0,
            "each": 9.5,
            "hours_since": 1.0,
        },
        "mode": "online",
        "metadata": {"timestamp": "2026-03-01T12:00:00Z", "clock": "wall"},
    }
    assert answer.headers["x-query-run-id"]
