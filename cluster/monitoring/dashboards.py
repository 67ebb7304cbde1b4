"""The Grafana dashboards, as values; ``python -m cluster.monitoring.dashboards`` writes them as JSON beside this file.

Their uids and the numbers of the panels are the contract's (section 12): the console embeds single panels by them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

Json = dict[str, Any]
Unit = Literal["short", "s", "reqps", "rowsps", "percentunit"]

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
_DATASOURCE = {"type": "prometheus", "uid": "thyme"}
_COLUMNS, _WIDTH, _HEIGHT = 2, 12, 8
_RATE = "[$__rate_interval]"


class Panel(NamedTuple):
    """A graph: ``queries`` are legend → PromQL; ``id`` is what the console embeds it by."""

    id: int
    title: str
    unit: Unit
    queries: Mapping[str, str]


class Dashboard(NamedTuple):
    """One page of graphs."""

    uid: str
    title: str
    panels: tuple[Panel, ...]


def _quantile(share: float, histogram: str, by: str = "", where: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({histogram}_bucket{where}{_RATE})))"


def _percentiles(histogram: str, where: str = "") -> dict[str, str]:
    return {f"p{share * 100:g}": _quantile(share, histogram, where=where) for share in (0.5, 0.95, 0.99)}


def _rate(counter: str, by: str = "", where: str = "") -> str:
    return f"sum{f' by ({by})' if by else ''} (rate({counter}{where}{_RATE}))"


_READ = "thyme_read_seconds"
_HTTP = "thyme_http_request_seconds"
_COMMITS = '{route="/api/v1/commit"}'
_ACCEPTED = _rate("thyme_dataset_rows_total", "dataset", '{outcome="out"}')
_FOLDED = _rate("thyme_pipeline_rows_total", "pipeline", '{outcome="out"}')
_FAILED = '{status=~"5.."}'

DASHBOARDS = (
    Dashboard(
        "thyme-system-health",
        "Thyme: system health",
        (
            Panel(1, "Registry reachable", "short", {"known": "min(thyme_freshness_known)"}),
            Panel(2, "Events per second", "rowsps", {"{{dataset}}": _ACCEPTED}),
            Panel(3, "Queries per second", "reqps", {"{{kind}}": _rate(f"{_READ}_count", "kind")}),
            Panel(
                4,
                "Commits per minute",
                "short",
                {"commits": f"60 * {_rate('thyme_http_requests_total', where=_COMMITS)}"},
            ),
            Panel(
                5,
                "Server errors per second",
                "reqps",
                {"{{route}}": _rate("thyme_http_requests_total", "route", _FAILED)},
            ),
            Panel(6, "Oldest record waiting to be aggregated", "s", {"{{pipeline}}": "thyme_pipeline_waiting_seconds"}),
            Panel(7, "Query latency, 95th percentile", "s", {"p95": _quantile(0.95, _READ)}),
            Panel(8, "Commit latency, 95th percentile", "s", {"p95": _quantile(0.95, _HTTP, where=_COMMITS)}),
            Panel(9, "Records behind", "short", {"{{pipeline}}": "thyme_pipeline_records_behind"}),
            Panel(10, "Rows folded per second", "rowsps", {"{{pipeline}}": _FOLDED}),
            Panel(11, "Query latency", "s", _percentiles(_READ)),
            Panel(12, "Supervisor's figures are this old", "s", {"age": "max(thyme_freshness_age_seconds)"}),
        ),
    ),
    Dashboard(
        "thyme-engine-performance",
        "Thyme: pipelines",
        (
            Panel(
                1,
                "Rows in per second",
                "rowsps",
                {"{{pipeline}}": _rate("thyme_pipeline_rows_total", "pipeline", '{outcome="in"}')},
            ),
            Panel(2, "Rows folded per second", "rowsps", {"{{pipeline}}": _FOLDED}),
            Panel(
                3,
                "Late and refused rows per second",
                "rowsps",
                {
                    "{{pipeline}} {{outcome}}": _rate(
                        "thyme_pipeline_rows_total", "pipeline, outcome", '{outcome=~"late|failed"}'
                    ),
                },
            ),
            Panel(4, "Records behind", "short", {"{{pipeline}}": "thyme_pipeline_records_behind"}),
            Panel(5, "Oldest record waiting", "s", {"{{pipeline}}": "thyme_pipeline_waiting_seconds"}),
            Panel(6, "Event-time lag", "s", {"{{pipeline}}": "thyme_pipeline_event_time_lag_seconds"}),
            Panel(7, "Workers", "short", {"{{pipeline}} {{state}}": "thyme_pipeline_workers"}),
            Panel(
                8,
                "Dead letters per second",
                "rowsps",
                {"{{dataset}}": _rate("thyme_dataset_rows_total", "dataset", '{outcome="dead"}')},
            ),
            Panel(9, "Not archived yet", "short", {"{{dataset}}": "thyme_dataset_archive_records_behind"}),
            Panel(10, "Idle log partitions", "short", {"{{dataset}}": "thyme_dataset_idle_partitions"}),
        ),
    ),
    Dashboard(
        "thyme-query-server",
        "Thyme: query server",
        (
            Panel(1, "Reads per second", "reqps", {"{{featureset}}": _rate(f"{_READ}_count", "featureset")}),
            Panel(
                2,
                "Latency by featureset, 99th percentile",
                "s",
                {"{{featureset}}": _quantile(0.99, _READ, "featureset")},
            ),
            Panel(3, "Latency by kind, 95th percentile", "s", {"{{kind}}": _quantile(0.95, _READ, "kind")}),
            Panel(
                4,
                "Failed reads per second",
                "reqps",
                {"{{featureset}} {{code}}": _rate("thyme_read_errors_total", "featureset, code")},
            ),
            Panel(
                5,
                "Answers by status",
                "reqps",
                {"{{route}} {{status}}": _rate("thyme_http_requests_total", "route, status")},
            ),
            Panel(
                6,
                "Query runs recorded and dropped per second",
                "reqps",
                {
                    "recorded": _rate("thyme_query_runs_recorded_total"),
                    "dropped": _rate("thyme_query_runs_dropped_total"),
                },
            ),
            Panel(7, "Registry version served", "short", {"{{instance}} {{replica}}": "thyme_plan_version"}),
        ),
    ),
    Dashboard(
        "thyme-consistency",
        "Thyme: consistency and drift",
        (
            Panel(
                1,
                "Served values that nothing explains",
                "short",
                {"{{target}} {{feature}}": 'thyme_consistency_mismatches{cause="unknown"}'},
            ),
            Panel(
                2,
                "Share of served values that differ from history",
                "percentunit",
                {"{{target}} {{feature}}": "thyme_consistency_mismatch_rate"},
            ),
            Panel(
                3, "Differing values by cause", "short", {"{{cause}}": "sum by (cause) (thyme_consistency_mismatches)"}
            ),
            Panel(4, "Values compared", "short", {"{{target}}": "sum by (target) (thyme_consistency_compared)"}),
            Panel(5, "Drift from the days before", "short", {"{{target}} {{feature}}": "thyme_feature_drift_psi"}),
            Panel(6, "Nulls", "percentunit", {"{{target}} {{feature}}": "thyme_feature_null_rate"}),
        ),
    ),
    Dashboard(
        "thyme-load-test",
        "Thyme: load test",
        (
            Panel(1, "Requests per second", "reqps", {"{{route}}": _rate("thyme_http_requests_total", "route")}),
            Panel(2, "Events accepted per second", "rowsps", {"{{dataset}}": _ACCEPTED}),
            Panel(3, "Request latency", "s", _percentiles(_HTTP)),
            Panel(4, "Query runs dropped", "short", {"dropped": "sum(thyme_query_runs_dropped_total)"}),
        ),
    ),
    Dashboard(
        "thyme-definition-service",
        "Thyme: definition service",
        (
            Panel(
                1,
                "Commits per minute",
                "short",
                {
                    "{{status}}": f"60 * {_rate('thyme_http_requests_total', 'status', _COMMITS)}",
                },
            ),
            Panel(2, "Commit latency", "s", _percentiles(_HTTP, _COMMITS)),
            Panel(
                3,
                "Requests per second",
                "reqps",
                {"{{route}}": _rate("thyme_http_requests_total", "route", '{route=~"/api/v1/.*"}')},
            ),
        ),
    ),
)


def queries() -> Iterator[str]:
    """Every PromQL expression of every panel."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            yield from panel.queries.values()


def as_grafana(dashboard: Dashboard) -> Json:
    """The dashboard in Grafana's own model, schema version 39."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["thyme"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "panels": list(_placed(dashboard.panels)),
    }


def _placed(panels: Iterable[Panel]) -> Iterator[Json]:
    for index, panel in enumerate(panels):
        row, column = divmod(index, _COLUMNS)
        yield {
            "id": panel.id,
            "title": panel.title,
            "type": "timeseries",
            "datasource": _DATASOURCE,
            "gridPos": {"x": column * _WIDTH, "y": row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT},
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + place), "expr": query, "legendFormat": legend, "datasource": _DATASOURCE}
                for place, (legend, query) in enumerate(panel.queries.items())
            ],
        }


def files() -> dict[Path, str]:
    """Every dashboard's file and what stands in it."""
    return {FOLDER / f"{each.uid}.json": json.dumps(as_grafana(each), indent=1) + "\n" for each in DASHBOARDS}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
