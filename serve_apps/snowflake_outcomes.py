"""What became of ingested records in one feature view: whether its pipelines have applied them, and if not, why not."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from featurelib.clock import Instant
from featurelib.engine.program import Program
from featurelib.errors import StoreUnavailable
from featurelib.settings import SnowflakeSettings
from featurelib.stores.orders import Orders
from featurelib.stores.refused_rows import RefusedRow, RefusedRows
from featurelib.stores.registry import JobRecord, Registry
from serve_apps.applying import Applying, Target
from serve_apps.snowflake_wire import ViewError


class Awaited(NamedTuple):
    """A pipeline, ``Name@version``, how far it is to come, and whether functions of its own may refuse records."""

    pipeline: str
    targets: Sequence[Target]
    has_functions: bool

    @classmethod
    def of(cls, program: Program, targets: Sequence[Target]) -> Awaited:
        """What is waited for of a program."""
        return cls(program.ref, targets, program.has_functions)


class Stored(NamedTuple):
    """Which records of the log are those of a request.

    ``dataset``: whose log, ``Name@version``. ``spans``: per log partition the offsets, from and below, where those lie
    that were new. ``times``: their event times. ``again``: some were stored before, nobody knows at which offsets.
    """

    dataset: str = ""
    spans: Mapping[int, tuple[int, int]] = {}
    times: frozenset[Instant] = frozenset()
    again: bool = False

    def holds(self, row: RefusedRow) -> bool:
        """Whether a refused row is one of them."""
        first, end = self.spans.get(row.partition, (0, 0))
        is_of_times = row.dataset == self.dataset and row.time in self.times
        return is_of_times and (0 if self.again else first) <= row.offset < end


class Outcomes:
    """Finds out what became of records.

    Args:
        applying: waits for pipelines.
        orders: which pipelines are paused.
        registry: how their jobs do.
        refused: rows their functions could not take.
        settings: how long to wait.
    """

    def __init__(
        self,
        applying: Applying,
        orders: Orders,
        registry: Registry,
        refused: RefusedRows,
        settings: SnowflakeSettings,
    ) -> None:
        self._applying = applying
        self._orders = orders
        self._registry = registry
        self._refused = refused
        self._within_s = settings.apply_wait_ms / 1_000

    async def failure(self, awaited: Sequence[Awaited], stored: Stored) -> ViewError | None:
        """Why a view does not hold the records; ``None``: it does."""
        waits = (self._applying.wait(each.pipeline, each.targets, self._within_s) for each in awaited)
        came = await asyncio.gather(*waits)
        late = [each.pipeline for each, reached in zip(awaited, came, strict=True) if not reached]
        if late:
            return await asyncio.to_thread(self._why_late, late)
        judging = [each.pipeline for each in awaited if each.has_functions]
        return await asyncio.to_thread(self._why_refused, judging, stored) if judging else None

    def _why_late(self, late: Sequence[str]) -> ViewError:
        paused, jobs = self._paused(), self._jobs()
        stopped = next((pipeline for pipeline in late if pipeline in paused), None)
        if stopped is not None:
            text = f"the records are stored; pipeline {stopped} is paused and applies them when it is resumed"
            return ViewError("FAILED_PRECONDITION", text, "online", retryable=False)
        failing = next((jobs[pipeline] for pipeline in late if pipeline in jobs and _fails(jobs[pipeline])), None)
        if failing is not None:
            text = f"the records are stored; pipeline {failing.pipeline} fails and is retried: {failing.detail}"[:500]
            return ViewError("INTERNAL", text, "online", retryable=True)
        missing = next((pipeline for pipeline in late if jobs and pipeline not in jobs), None)
        if missing is not None:
            text = f"the records are stored; nothing runs pipeline {missing} yet, which applies them once it is started"
            return ViewError("NOT_FOUND", text, "online", retryable=True)
        text = f"the records are stored; pipeline {late[0]} has not applied them within {self._within_s:g} s"
        return ViewError("UNAVAILABLE", text, "online", retryable=True)

    def _why_refused(self, pipelines: Sequence[str], stored: Stored) -> ViewError | None:
        for pipeline in pipelines:
            try:
                mine = [row for row in self._refused.newest(pipeline) if stored.holds(row)]
            except StoreUnavailable as error:
                text = f"the records are stored and applied; whether {pipeline} took all of them is unknown: {error}"
                return ViewError("UNAVAILABLE", text, "online", retryable=True)
            if mine:
                count = len({(row.partition, row.offset) for row in mine})
                text = f"stored and left out of the view: {count} of the records; {mine[0].message}"
                return ViewError("UDF_EXECUTION_FAILED", text, retryable=False)
        return None

    def _paused(self) -> set[str]:
        try:
            return {name for name, order in self._orders.all().items() if order.paused}
        except StoreUnavailable:
            return set()  # what is known is that time is up

    def _jobs(self) -> dict[str, JobRecord]:
        try:
            return {job.pipeline: job for job in self._registry.jobs() if job.job_type == "pipeline"}
        except StoreUnavailable:
            return {}


def _fails(job: JobRecord) -> bool:
    return any(worker.state == "retrying" for worker in job.workers or ())
