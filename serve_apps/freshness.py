"""How fresh jobs and datasets are, as JSON and as metrics, from what the supervisor wrote down.

Ages are worked out when somebody asks: while nothing is written down, because the supervisor is away, they grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from featurelib.clock import SECOND, Duration, Instant, format_instant
from featurelib.definitions import DatasetDef, Definitions
from featurelib.stores.registry import DatasetStatus, JobRecord, PartitionStatus, WorkerStatus

Json = dict[str, Any]


def job_freshness(job: JobRecord, now: Instant) -> Json:
    """The ``freshness`` member of a job."""
    return {
        "event_time_lag_s": age_s(job.applied_us, now),
        "records_behind": job.lag,
        "waiting_s": age_s(job.waiting_since_us, now),
        "rows_in": job.rows_in,
        "rows_out": job.rows,
        "rows_late": job.rows_late,
        "rows_failed": job.rows_failed,
    }


def workers(job: JobRecord) -> list[Json]:
    """The ``workers`` member of a job: what each of them does, as it last answered."""
    return [worker.model_dump() for worker in job.workers or ()]


class Rules(NamedTuple):
    """What the partitions of a dataset are judged by: its source's lateness, and when one counts as idle."""

    max_lateness_us: Duration | None
    idle_after_us: Duration


def rules_of(dataset: DatasetDef, definitions: Definitions, idle_after_us: Duration) -> Rules:
    """The rules of a dataset; without a source, or one that sets no ``max_lateness``, nothing is late."""
    source = definitions.source(dataset.name)
    return Rules(source.max_lateness_us if source else None, idle_after_us)


def dataset_freshness(status: DatasetStatus, rules: Rules, now: Instant) -> Json:
    """The ``freshness`` member of a dataset."""
    return {
        "event_time_lag_s": age_s(status.newest_us, now),
        "accepted_until": _instant(status.newest_us),
        "last_accepted_at": _instant(status.accepted_us),
        "records_behind": status.lag,
        "waiting_s": age_s(status.waiting_since_us, now),
        "archive_records_behind": status.archive_lag,
        "rows_in": status.rows_out + status.rows_dead,
        "rows_out": status.rows_out,
        "rows_late": status.rows_late,
        "rows_dead": status.rows_dead,
        "partitions": [_partition(partition, rules, now) for partition in status.partitions],
        "updated_at": _instant(status.updated_at or None),
    }


def is_idle(partition: PartitionStatus, rules: Rules, now: Instant) -> bool:
    """Whether a log partition accepted nothing for so long that its watermark says little."""
    return partition.accepted_us is None or now - partition.accepted_us > rules.idle_after_us


def age_s(since: Instant | None, now: Instant) -> float | None:
    """Seconds since an instant; 0 for one that lies ahead."""
    return None if since is None else max(0, now - since) / SECOND


def _partition(partition: PartitionStatus, rules: Rules, now: Instant) -> Json:
    newest, lateness = partition.newest_us, rules.max_lateness_us
    return {
        "partition": partition.partition,
        "rows_out": partition.rows_out,
        "accepted_until": _instant(newest),
        "last_accepted_at": _instant(partition.accepted_us),
        "watermark": None if newest is None or lateness is None else format_instant(newest - lateness),
        "idle": is_idle(partition, rules, now),
    }


class Shown(NamedTuple):
    """What the registry holds of jobs and datasets, and the instant it was read at."""

    jobs: Sequence[JobRecord]
    datasets: Sequence[DatasetStatus]
    idle_after_us: Duration
    now: Instant


class Freshness(Collector):
    """Metrics of jobs and datasets. ``shown=None``: the registry does not answer."""

    def __init__(self) -> None:
        self.shown: Shown | None = None

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        shown = self.shown
        known = GaugeMetricFamily(
            "thyme_freshness_known", "Whether the registry answered, so that the figures of jobs and datasets are here."
        )
        known.add_metric((), shown is not None)
        yield known
        if shown is None:
            return
        at = [job.updated_at for job in shown.jobs] + [status.updated_at for status in shown.datasets]
        newest = max(at, default=None)
        written = GaugeMetricFamily(
            "thyme_freshness_age_seconds", "Since when the supervisor wrote nothing down; the others are as old."
        )
        if newest is not None:
            written.add_metric((), age_s(newest, shown.now) or 0.0)
        yield written
        yield from _job_metrics([job for job in shown.jobs if job.job_type == "pipeline"], shown.now)
        yield from _dataset_metrics(shown)


def _job_metrics(jobs: Sequence[JobRecord], now: Instant) -> Iterator[Metric]:
    each = {job.pipeline: job_freshness(job, now) for job in jobs}
    yield from _lags("pipeline", each, "applied")
    yield _rows(
        "thyme_pipeline_rows",
        "Rows of a pipeline: records applied (in), folded (out), late among its inputs, refused by its own functions.",
        "pipeline",
        each,
    )
    workers = GaugeMetricFamily(
        "thyme_pipeline_workers", "Workers of a pipeline, by what they do.", labels=("pipeline", "state")
    )
    for job in jobs:
        for state, count in _counts(job.workers or ()).items():
            workers.add_metric((job.pipeline, state), count)
    yield workers


def _dataset_metrics(shown: Shown) -> Iterator[Metric]:
    rules = Rules(None, shown.idle_after_us)
    each = {status.dataset: dataset_freshness(status, rules, shown.now) for status in shown.datasets}
    yield from _lags("dataset", each, "accepted")
    archive = GaugeMetricFamily(
        "thyme_dataset_archive_records_behind", "Records that are not in the archive yet.", labels=("dataset",)
    )
    idle = GaugeMetricFamily(
        "thyme_dataset_idle_partitions", "Log partitions that accepted nothing for a while.", labels=("dataset",)
    )
    for dataset, fresh in each.items():
        if fresh["archive_records_behind"] is not None:
            archive.add_metric((dataset,), fresh["archive_records_behind"])
        idle.add_metric((dataset,), sum(partition["idle"] for partition in fresh["partitions"]))
    yield archive
    yield idle
    text = "Records of a dataset: that came (in), accepted (out), too late among them, dead letters."
    yield _rows("thyme_dataset_rows", text, "dataset", each)


def _lags(kind: str, each: Mapping[str, Json], verb: str) -> Iterator[Metric]:
    texts = {
        "event_time_lag_seconds": ("event_time_lag_s", f"Age of the newest event time {verb}."),
        "records_behind": ("records_behind", "Records that wait to be applied; of a dataset by its slowest pipeline."),
        "waiting_seconds": ("waiting_s", "Age of the oldest record that waits to be applied, since it was accepted."),
    }
    for name, (member, text) in texts.items():
        family = GaugeMetricFamily(f"thyme_{kind}_{name}", text, labels=(kind,))
        for label, fresh in each.items():
            # Nothing waits: no age. Nothing applied yet: no lag that could be told.
            value = 0.0 if member == "waiting_s" and fresh[member] is None else fresh[member]
            if value is not None:
                family.add_metric((label,), value)
        yield family


def _rows(name: str, text: str, kind: str, each: Mapping[str, Json]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(kind, "outcome"))
    for label, fresh in each.items():
        for member, rows in fresh.items():
            if member.startswith("rows_"):
                family.add_metric((label, member.removeprefix("rows_")), rows)
    return family


def _counts(each: Iterable[WorkerStatus]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for worker in each:
        counts[worker.state] = counts.get(worker.state, 0) + 1
    return counts


def _instant(instant: Instant | None) -> str | None:
    return None if instant is None else format_instant(instant)
