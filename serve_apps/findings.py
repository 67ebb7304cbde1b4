"""What the monitor found, as metrics: of this hour and the one before, and of the newest day that is over."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from featurelib.clock import DAY, HOUR, Instant
from featurelib.settings import MonitorSettings
from featurelib.stores.checks import Checks, Tally
from featurelib.stores.registry import Registry
from featurelib.stores.statistics import Figures, Statistics
from serve_apps.freshness import age_s

_MARK = "consistency"
_FEATURE = ("kind", "target", "feature")


class Found(NamedTuple):
    """What is shown, and the instant it was read at.

    ``checked``: reads up to then have had their turn. ``drift_rows``: with fewer values no drift is shown.
    """

    tallies: Sequence[Tally]
    figures: Sequence[Figures]
    checked: Instant | None
    now: Instant
    drift_rows: int


def found_in(registry: Registry, settings: MonitorSettings, now: Instant) -> Found:
    """What the registry holds of it; nothing of what is turned off.

    Raises:
        StoreUnavailable: the registry does not answer.
    """
    checks, is_checked = Checks(registry.database), bool(settings.consistency_every_s)
    return Found(
        checks.of(now - HOUR) if is_checked else (),
        Statistics(registry.database).newest(before=now // DAY * DAY) if settings.statistics_every_s else (),
        checks.mark(_MARK) if is_checked else None,
        now,
        settings.drift_rows,
    )


class Findings(Collector):
    """Metrics of what the monitor found. ``found=None``: the registry does not answer."""

    def __init__(self) -> None:
        self.found: Found | None = None

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        if self.found is not None:
            yield from _consistency(self.found)
            yield from _statistics(self.found.figures, self.found.drift_rows)


def _consistency(found: Found) -> Iterator[Metric]:
    age = GaugeMetricFamily("thyme_consistency_age_seconds", "Age of the newest reads that were compared with history.")
    if found.checked is not None:
        age.add_metric((), age_s(found.checked, found.now) or 0.0)
    yield age
    compared = GaugeMetricFamily(
        "thyme_consistency_compared",
        "Served values compared with history, of this hour and the one before.",
        labels=_FEATURE,
    )
    rate = GaugeMetricFamily(
        "thyme_consistency_mismatch_rate", "Share of them that were not what history says.", labels=_FEATURE
    )
    mismatches = GaugeMetricFamily(
        "thyme_consistency_mismatches",
        "How many of them were not, by cause; an unknown one is a fault.",
        labels=(*_FEATURE, "cause"),
    )
    for tally in found.tallies:
        compared.add_metric(tally.of, tally.compared)
        rate.add_metric(tally.of, tally.different / max(tally.compared, 1))
        for cause, count in tally.causes.items():
            mismatches.add_metric((*tally.of, cause), count)
    yield compared
    yield rate
    yield mismatches


def _statistics(figures: Sequence[Figures], drift_rows: int) -> Iterator[Metric]:
    nulls = GaugeMetricFamily(
        "thyme_feature_null_rate", "Share of nulls among the values of the newest day that is over.", labels=_FEATURE
    )
    drift = GaugeMetricFamily(
        "thyme_feature_drift_psi",
        "Population stability index of that day against the days before it.",
        labels=_FEATURE,
    )
    for each in figures:
        labels = (each.kind, each.subject, each.name)
        nulls.add_metric(labels, each.nulls / each.rows if each.rows else 0.0)
        if each.psi is not None and min(each.rows, each.reference_rows or 0) >= drift_rows:
            drift.add_metric(labels, each.psi)
    yield nulls
    yield drift
