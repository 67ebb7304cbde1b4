"""``thyme search`` and ``thyme lineage``: what they ask, and how they show the answer."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from featurelib.cli import app

FOUND = {
    "featuresets": [
        {
            "name": "Rider",
            "metadata": {
                "owner": "rides",
                "project": "pricing",
                "tags": {"pii": "", "tier": "gold"},
                "deprecated": True,
            },
        }
    ],
    "datasets": [{"name": "Ride", "metadata": {"owner": None, "tags": {}, "description": "Trips"}}],
    "pipelines": [{"name": "by_rider"}],
    "sources": [],
    "tags": [{"name": "pii", "count": 1}],
    "owners": [],
    "projects": [],
}
EDGES = {
    "nodes": [],
    "edges": [
        {"source": "field:RiderStats.trips", "target": "feature:Rider.trips", "type": "feature_lookup", "via": None},
        {"source": "feature:Rider.trips", "target": "feature:Rider.each", "type": "feature_input", "via": "each_trip"},
    ],
}


@pytest.fixture
def run(home, service, monkeypatch):
    monkeypatch.setenv("THYME_API_BASE", service.url)
    monkeypatch.setenv("COLUMNS", "200")
    service.answers["GET /api/v1/search"] = FOUND
    service.answers["GET /api/v1/lineage"] = EDGES
    return lambda *arguments: CliRunner().invoke(app, arguments)


def asked(service) -> dict[str, str]:
    """The parameters of the last request."""
    return service.asked[-1].parameters


def test_search_sends_words_and_labels(run, service):
    result = run(
        "search", "trips", "rider", "-k", "dataset", "-k", "source", "-t", "tier:gold", "-o", "rides", "-n", "5"
    )
    assert result.exit_code == 0, result.output
    assert asked(service) == {
        "q": "trips rider",
        "kinds": "dataset,source",
        "tags": "tier:gold",
        "owners": "rides",
        "limit": "5",
    }


def test_search_shows_a_line_per_definition_and_the_labels_below(run):
    lines = run("search").stdout.splitlines()
    (rider,) = [line for line in lines if "Rider" in line]
    assert all(text in rider for text in ("featureset", "(deprecated)", "rides", "pricing", "pii, tier:gold"))
    assert any("by_rider" in line for line in lines)
    assert lines[-1] == "tags: pii 1"


def test_lineage_shows_definitions_unless_features_are_asked_for(run, service):
    assert run("lineage").exit_code == 0
    assert asked(service) == {"direction": "both", "level": "definition"}
    run("lineage", "shop.features:Rider", "--features", "-d", "upstream")
    assert asked(service) == {"node": "Rider", "direction": "upstream", "level": "feature"}


@pytest.mark.parametrize("node", ["Rider.trips", "feature:Rider.trips"])
def test_lineage_of_a_feature_needs_no_option(run, service, node):
    result = run("lineage", node)
    assert asked(service)["level"] == "feature"
    assert asked(service)["node"] == node
    assert "each_trip" in result.stdout


def test_both_print_the_answer_as_json(run):
    assert json.loads(run("search", "--json").stdout) == FOUND
    assert json.loads(run("lineage", "--json").stdout) == EDGES
