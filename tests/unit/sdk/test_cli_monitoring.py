"""``thyme stats`` and ``thyme consistency`` against a stand-in service."""

from __future__ import annotations

import json

import pytest

DAY = {
    "day": "2026-03-01",
    "complete": False,
    "rows": 12_345,
    "null_rate": 0.125,
    "distinct": 40,
    "mean": 2.5,
    "min": 0.0,
    "max": 9.0,
    "quantiles": {"0.5": 2.0, "0.99": 8.75},
    "texts": [],
    "drift": {"psi": 0.31234, "js": 0.1, "reference_rows": 80_000},
}
CITY = {**DAY, "complete": True, "mean": None, "min": None, "max": None, "quantiles": {}, "drift": None}
CITY["texts"] = [{"value": "Oslo", "rows": 9_000}, {"value": "Bergen", "rows": 40}]
STATISTICS = {
    "columns": [{"name": "trips", "days": [DAY]}, {"name": "city", "days": [CITY]}],
    "without": ["fee"],
}
FOUND = {
    "kind": "featureset",
    "target": "Rider",
    "feature": "trips",
    "compared": 200,
    "different": 3,
    "rate": 0.015,
    "causes": {"late_record": 3},
    "worst": [{"entity_id": "7", "query_run": "q1", "times": 2}, {"entity_id": None, "query_run": "q2", "times": 1}],
}


def test_statistics_of_a_featureset_are_a_row_per_feature_and_day(run, service):
    service.answers["GET /api/v1/featuresets/Rider/statistics"] = STATISTICS
    out = run("stats", "features:Rider").stdout
    trips, city = (next(line for line in out.splitlines() if name in line) for name in ("trips", "city"))
    for shown in ("2026-03-01 *", "12,345", "12.5 %", "40", "2.5", "8.75", "0.312"):
        assert shown in trips
    assert "Oslo 9,000, Bergen 40" in city
    assert "without statistics: fee" in out


def test_days_reference_and_column_of_a_dataset_are_asked_for(run, service):
    service.answers["GET /api/v1/datasets/Ride/statistics"] = STATISTICS
    given = ("--since", "2026-03-01", "--reference", "2026-02-01..2026-02-07", "--json")
    out = run("stats", "Ride", "fare", "--dataset", *given)
    assert json.loads(out.stdout) == STATISTICS
    assert service.asked[0].parameters == {
        "column": "fare",
        "since": "2026-03-01T00:00:00Z",
        "reference_since": "2026-02-01T00:00:00Z",
        "reference_until": "2026-02-07T00:00:00Z",
    }


def test_a_reference_of_another_form_is_a_wrong_option(run):
    result = run("stats", "Rider", "--reference", "last week")
    assert (result.exit_code, "expected two days as 2026-03-01..2026-03-07" in result.stderr) == (2, True)


@pytest.mark.parametrize(("causes", "exit_code"), [({"late_record": 3}, 0), ({"late_record": 2, "unknown": 1}, 1)])
def test_consistency_is_a_row_per_feature_and_exits_1_where_nothing_explains_a_difference(
    run, service, causes, exit_code
):
    body = {"checked_until": "2026-03-01T12:00:00Z", "features": [{**FOUND, "causes": causes}]}
    service.answers["GET /api/v1/consistency"] = body
    result = run("consistency", "Rider", "--hours", "3")
    assert service.asked[0].parameters == {"target": "Rider", "hours": "3"}
    for shown in ("Rider", "trips", "200", "1.50 %", "late_record", "7 2, q2 1"):
        assert shown in result.stdout
    assert result.exit_code == exit_code


def test_a_monitor_that_has_not_begun_is_said(run, service):
    service.answers["GET /api/v1/consistency"] = {"checked_until": None, "features": []}
    assert "has not begun" in run("consistency").stdout
