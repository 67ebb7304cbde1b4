"""What `/metrics` shows, in Prometheus text: of one replica, and what the registry holds of jobs and datasets.

Each application has a collector registry of its own.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from serve_apps.findings import Findings
from serve_apps.freshness import Freshness

CONTENT_TYPE = CONTENT_TYPE_LATEST

# A warm look-up is well under a millisecond, a point-in-time read over the archive up to seconds.
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """Counters and histograms of the HTTP surface and of the audit behind it; figures of jobs and datasets."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        # The same from whichever replica they are asked: not of one, and told once.
        self._common = CollectorRegistry()
        self._requests = Counter(
            "thyme_http_requests",
            "Requests answered, by route, method and status.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "thyme_http_request_seconds",
            "Time from the first byte of a request to the last of its answer, by route.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._reads = Histogram(
            "thyme_read_seconds",
            "Time to answer a read of features, by featureset (of a look-up: the dataset) and kind.",
            ("featureset", "kind"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._read_errors = Counter(
            "thyme_read_errors",
            "Reads of features that failed, by featureset and error code.",
            ("featureset", "code"),
            registry=self._registry,
        )
        self.runs_recorded = Counter(
            "thyme_query_runs_recorded", "Query runs written to the registry's database.", registry=self._registry
        )
        self.runs_dropped = Counter(
            "thyme_query_runs_dropped", "Query runs lost because their queue was full.", registry=self._registry
        )
        self.plan_version = Gauge(
            "thyme_plan_version", "Registry version of the read plans being served.", registry=self._registry
        )
        self.freshness = Freshness()
        self._common.register(self.freshness)
        self.findings = Findings()
        self._common.register(self.findings)
        self.replicas = Gauge(
            "thyme_replicas",
            "Replicas of the service on this machine, by whether their figures are here (told) or not (silent).",
            ("state",),
            registry=self._common,
        )
        self._children: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._read_children: dict[tuple[str, str], Histogram] = {}

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answer."""
        child = self._children.get((route, method, status))
        if child is None:
            child = (self._requests.labels(route, method, str(status)), self._seconds.labels(route))
            self._children[(route, method, status)] = child
        child[0].inc()
        child[1].observe(seconds)

    def read(self, featureset: str, kind: str, seconds: float) -> None:
        """Count one answered read. A name that is not committed is ``other``: any name would make a series."""
        child = self._read_children.get((featureset, kind))
        if child is None:
            child = self._read_children[(featureset, kind)] = self._reads.labels(featureset, kind)
        child.observe(seconds)

    def read_failed(self, featureset: str, code: str) -> None:
        """Count one read that failed; of a name that is not committed, under ``other``."""
        self._read_errors.labels(featureset, code).inc()

    def own(self) -> bytes:
        """The exposition text of what this replica counts."""
        return generate_latest(self._registry)

    def common(self) -> bytes:
        """The exposition text of what is the same from every replica."""
        return generate_latest(self._common)

    def text(self) -> bytes:
        """All of it, as a replica tells it that has its port to itself."""
        return self.own() + self.common()
