"""Dashboards and alerts ask only for what `/metrics` gives, and stand in the files Grafana and Prometheus read."""

import re
from pathlib import Path

import pytest
import yaml

from cluster.monitoring.dashboards import DASHBOARDS, FOLDER, files, queries
from serve_apps.metrics import Metrics

MONITORING = FOLDER.parents[1]
RULES = yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"][0]["rules"]
_NAME = re.compile(r"\bthyme_[a-z_]+")
# The panels that the console embeds one by one.
EMBEDDED = {
    "thyme-system-health": {2, 3, 4, 6, 7, 8, 10, 11},
    "thyme-engine-performance": {2, 5},
    "thyme-load-test": {1, 3},
    "thyme-query-server": set(),
}


def shown() -> set[str]:
    """The names of the metrics as documented, with the suffixes that histograms and counters have."""
    page = (Path(__file__).parents[3] / "docs/reference/metrics.md").read_text()
    rows = re.findall(r"^\| `(thyme_\w+)` \| (\w+) \|", page, re.MULTILINE)
    parts = {"histogram": ("_bucket", "_count", "_sum")}
    return {name + suffix for name, kind in rows for suffix in parts.get(kind, ("",))}


@pytest.mark.parametrize("query", [*queries(), *(rule["expr"] for rule in RULES)])
def test_a_query_asks_for_metrics_that_there_are(query):
    asked = set(_NAME.findall(query))
    assert asked
    assert asked <= shown()


def test_the_files_are_what_the_dashboards_say():
    assert {path: path.read_text() for path in FOLDER.iterdir()} == files()


def test_the_console_finds_the_panels_it_embeds():
    panels = {each.uid: {panel.id for panel in each.panels} for each in DASHBOARDS}
    assert {uid: wanted - panels[uid] for uid, wanted in EMBEDDED.items()} == {uid: set() for uid in EMBEDDED}


def test_a_panel_has_one_number_on_its_page():
    for each in DASHBOARDS:
        assert len({panel.id for panel in each.panels}) == len(each.panels)


def test_an_alert_says_what_to_do():
    for rule in RULES:
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["remedy"]
        assert rule["labels"]["severity"] in {"page", "warn"}


def test_a_read_is_counted_by_featureset_and_kind():
    metrics = Metrics()
    metrics.read("Riders", "online", 0.0015)
    metrics.read_failed("Riders", "user_code")
    text = metrics.text().decode()
    assert 'thyme_read_seconds_bucket{featureset="Riders",kind="online",le="0.001"} 0.0' in text
    assert 'thyme_read_seconds_bucket{featureset="Riders",kind="online",le="0.002"} 1.0' in text
    assert 'thyme_read_errors_total{code="user_code",featureset="Riders"} 1.0' in text
