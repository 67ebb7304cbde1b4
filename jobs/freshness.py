"""How fresh pipelines and datasets are: from what workers report and where the logs end, to what people are shown.

Two lags are told apart. *Event time*: how old the newest record is by its own timestamp, which the display works
out from ``applied_us`` and ``newest_us``. *Processing*: how many records wait to be applied, and since when.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from featurelib.clock import Instant
from featurelib.stores.log import Head, Log
from featurelib.stores.registry import DatasetStatus, JobRecord, PartitionStatus, WorkerStatus

Applied = Mapping[tuple[str, int], int]
"""Per ``(dataset ref, log partition)`` the offset below which all is applied."""
Heads = Mapping[str, Sequence[Head]]
"""Per dataset ref where each of its log partitions ends."""


class Backlog(NamedTuple):
    """Records that wait to be applied, and when the oldest of them was accepted."""

    rows: int
    since_us: Instant | None


class Progress(NamedTuple):
    """How far a pipeline is, over all its workers."""

    applied: Applied
    rows: int
    newest_us: Instant | None


def progress_of(facts: Iterable[Mapping[str, Any]]) -> Progress:
    """The whole pipeline's progress from its workers' facts (jobs/pipeline.py); the slowest worker counts."""
    told = list(facts)
    stands: list[Applied] = [
        {
            (dataset, partition): offset
            for dataset, parts in each["applied"].items()
            for partition, offset in parts.items()
        }
        for each in told
    ]
    newest = [each["newest_us"] for each in told if each["newest_us"] is not None]
    return Progress(slowest(stands), sum(each["rows"] for each in told), max(newest, default=None))


def slowest(stands: Iterable[Applied]) -> Applied:
    """The lowest offset of each log partition, over readers that each read some of them."""
    lowest: dict[tuple[str, int], int] = {}
    for stand in stands:
        for address, offset in stand.items():
            lowest[address] = min(offset, lowest.get(address, offset))
    return lowest


def heads_of(log: Log, datasets: Iterable[str]) -> Heads:
    """Where the logs of some datasets end.

    Raises:
        StoreUnavailable: the log does not answer.
    """
    return {dataset: log.heads(dataset, log.partitions(dataset)) for dataset in datasets}


def backlogs(log: Log, heads: Heads, stands: Mapping[str, Applied]) -> dict[str, Backlog]:
    """What each reader still has to apply, by its name.

    Raises:
        StoreUnavailable: the log does not answer.
    """
    waiting = {
        name: [(*address, offset) for address, offset in stand.items() if _end(heads, *address) > offset]
        for name, stand in stands.items()
    }
    asked = sorted({place for places in waiting.values() for place in places})
    accepted = dict(zip(asked, log.accepted_at(asked), strict=True))
    found = {}
    for name, places in waiting.items():
        since = [at for place in places if (at := accepted[place]) is not None]
        rows = sum(_end(heads, dataset, partition) - offset for dataset, partition, offset in places)
        found[name] = Backlog(rows, min(since, default=None))
    return found


def job_record(
    pipeline: str, workers: Sequence[WorkerStatus], progress: Progress, backlog: Backlog, heads: Heads, failed: int
) -> JobRecord:
    """What is shown of a pipeline. ``failed``: rows that a function of it could not take."""
    inputs = {dataset for dataset, _ in progress.applied}
    return JobRecord(
        pipeline=pipeline,
        partition_count=len(workers),
        state=state_of(workers),
        detail=detail_of(workers),
        applied_us=progress.newest_us,
        rows=progress.rows,
        lag=backlog.rows,
        rows_in=sum(progress.applied.values()),
        rows_late=sum(head.records_late for dataset in inputs for head in heads.get(dataset, ())),
        rows_failed=failed,
        waiting_since_us=backlog.since_us,
        workers=tuple(workers),
    )


def unknown_job(pipeline: str, workers: Sequence[WorkerStatus], before: JobRecord | None) -> JobRecord:
    """A pipeline whose workers have not all said yet how far they are: the numbers told last stay."""
    known = before or JobRecord(pipeline=pipeline, partition_count=0, state="")
    return known.model_copy(
        update={
            "partition_count": len(workers),
            "state": state_of(workers),
            "detail": detail_of(workers),
            "workers": tuple(workers),
        }
    )


def state_of(workers: Sequence[WorkerStatus]) -> str:
    """One word for all workers: theirs where they agree, and otherwise the one that a person must hear of."""
    states = {worker.state for worker in workers}
    for word in ("starting", "stalled"):
        if word in states:
            return word
    return next(iter(states)) if len(states) == 1 else "degraded"


def detail_of(workers: Sequence[WorkerStatus]) -> str:
    """What the workers that do not run have said, each thing once."""
    said = (worker.detail for worker in workers if worker.state != "running" and worker.detail)
    return "; ".join(dict.fromkeys(said))


def dataset_status(dataset: str, heads: Sequence[Head], backlog: Backlog, archive_lag: int | None) -> DatasetStatus:
    """What is shown of a dataset with a log; ``backlog`` is that of its slowest readers."""
    newest = [head.newest_us for head in heads if head.newest_us is not None]
    accepted = [head.accepted_at_us for head in heads if head.next_offset]
    return DatasetStatus(
        dataset=dataset,
        rows_out=sum(head.next_offset for head in heads),
        rows_late=sum(head.records_late for head in heads),
        rows_dead=sum(head.records_dead for head in heads),
        newest_us=max(newest, default=None),
        accepted_us=max(accepted, default=None),
        waiting_since_us=backlog.since_us,
        lag=backlog.rows,
        archive_lag=archive_lag,
        partitions=tuple(
            PartitionStatus(
                partition=partition,
                rows_out=head.next_offset,
                newest_us=head.newest_us,
                accepted_us=head.accepted_at_us if head.next_offset else None,
            )
            for partition, head in enumerate(heads)
        ),
    )


def _end(heads: Heads, dataset: str, partition: int) -> int:
    found = heads.get(dataset, ())
    return found[partition].next_offset if partition < len(found) else 0
