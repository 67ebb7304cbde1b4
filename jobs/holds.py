"""Which pipelines must not run now though they are wanted: those that people paused, and those a bounded job builds.

A pipeline that is held keeps its state and its positions; the log is trimmed as ever, by the archive alone, and what it
misses meanwhile it finds there.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from featurelib.clock import SystemClock
from featurelib.definitions import PipelineDef, ref
from featurelib.engine.program import compiled
from featurelib.errors import Conflict
from featurelib.stores.backfill_requests import BackfillRequests
from featurelib.stores.log import Log
from featurelib.stores.online import OnlineStore, StateName
from featurelib.stores.orders import JobOrder
from featurelib.stores.registry import Registry
from jobs.freshness import Progress
from jobs.inputs import input_partitions, lowest_positions
from jobs.reconcile import family
from jobs.wanted import TaskSpec, log_datasets

_IDS = uuid.UUID("5b0b7c3e-5d0f-4f4b-9a53-0f6d5e0d2a11")
Why = Literal["paused", "catching_up"]


class Hold(NamedTuple):
    """Why a pipeline does not run, and the tasks that would."""

    why: Why
    specs: tuple[TaskSpec, ...]

    @property
    def names(self) -> frozenset[str]:
        """Names of the tasks."""
        return frozenset(spec.name for spec in self.specs)


class Held(NamedTuple):
    """What is shown of a pipeline that is held."""

    state: str
    workers: int
    progress: Progress | None
    """How far its state is; ``None``: it has none yet."""


class Holds:
    """Knows what is held.

    Args:
        registry: where backfills are asked for.
        log: how much waits.
        store: where states stand.
        catch_up_rows: from how many records on a pipeline without a state is built by a bounded job first.
    """

    def __init__(self, registry: Registry, log: Log, store: OnlineStore, catch_up_rows: int) -> None:
        self._requests = BackfillRequests(registry.database, SystemClock())
        self._log = log
        self._store = store
        self._catch_up_rows = catch_up_rows

    def of(
        self, wanted: Mapping[str, TaskSpec], orders: Mapping[str, JobOrder], there: Collection[str]
    ) -> dict[str, Hold]:
        """By pipeline ref, those of the wanted ones that are held. ``there``: names of the actors there are."""
        by_pipeline: dict[str, list[TaskSpec]] = {}
        for spec in wanted.values():
            if spec.pipeline is not None:
                by_pipeline.setdefault(ref(spec.pipeline), []).append(spec)
        held = {}
        for pipeline, specs in by_pipeline.items():
            if pipeline in orders and orders[pipeline].paused:
                held[pipeline] = Hold("paused", tuple(specs))
            elif not any(spec.name in there for spec in specs) and self._is_catching_up(pipeline, specs[0]):
                held[pipeline] = Hold("catching_up", tuple(specs))
        return held

    def shown(self, held: Mapping[str, Hold], there: Collection[str]) -> dict[str, Held]:
        """What is shown of them, by pipeline ref.

        Raises:
            StoreUnavailable: the online store or the log does not answer.
        """
        families = {family(name) for name in there}
        return {pipeline: self._shown(hold, families) for pipeline, hold in held.items()}

    def _shown(self, hold: Hold, families: Collection[str]) -> Held:
        spec = hold.specs[0]
        assert spec.pipeline is not None
        state = "pausing" if hold.why == "paused" and family(spec.name) in families else hold.why
        return Held(state, len(hold.specs), self._progress(spec.pipeline, spec))

    def _progress(self, pipeline: PipelineDef, spec: TaskSpec) -> Progress | None:
        """How far the state is that its workers will take up."""
        told = self._store.progress(StateName(ref(pipeline), spec.generation))
        if not told.standings:
            return None
        program = compiled(pipeline, spec.definitions)
        inputs = input_partitions(program, self._log)
        lowest = lowest_positions(program, inputs, told.standings)
        applied = {source.address: offset for source, offset in zip(inputs, lowest, strict=True)}
        return Progress(applied, told.rows, told.newest_us)

    def _is_catching_up(self, pipeline: str, spec: TaskSpec) -> bool:
        """Whether a pipeline that has no state yet is being built by a bounded job; asks for one when it is far behind.

        A job that failed or was cancelled has said so; the live workers then fold what it did not.
        """
        if self._store.progress(StateName(pipeline, spec.generation)).positions is not None:
            return False
        # One id per build, so that a supervisor that starts anew finds the request and does not make a second one.
        request_id = str(uuid.uuid5(_IDS, f"{pipeline}#{spec.generation}"))
        known = self._requests.find(request_id)
        if known is not None:
            return known.is_open
        waiting = sum(self._rows_in_log(ref(dataset)) for dataset in log_datasets(spec.definitions))
        if waiting < self._catch_up_rows:
            return False
        detail = f"{waiting} records behind: catching up as a bounded job"
        try:
            self._requests.request(pipeline, detail=detail, request_id=request_id)
        except Conflict:
            return True  # somebody asked for the same; the live workers take over from it
        return True

    def _rows_in_log(self, dataset: str) -> int:
        return sum(head.next_offset for head in self._log.heads(dataset, self._log.partitions(dataset)))
