"""A pipeline as a task: one worker over live stores."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import structlog

from featurelib.clock import SECOND, SystemClock, format_instant
from featurelib.definitions import Definitions, PipelineDef, ref
from featurelib.engine.keys import groups_of
from featurelib.engine.program import Program
from featurelib.errors import StoreUnavailable
from featurelib.settings import Settings
from featurelib.stores.archive import Archive
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.online import OnlineStore, StateName
from featurelib.stores.registry import NewEvent, Registry
from jobs.sealing import Sealer
from jobs.worker import PartitionWorker

# From one step to the next, in times of what the last one took of the processor.
_STEPS_APART = 20
# The same while somebody waits.
_STEPS_APART_IN_HASTE = 1

_log = structlog.get_logger(__name__)


class PipelineTask:
    """Folds one partition of a pipeline for ever."""

    def __init__(
        self,
        pipeline: PipelineDef,
        definitions: Definitions,
        *,
        partition: int,
        partitions: int,
        generation: int,
        settings: Settings,
    ) -> None:
        url = settings.online.redis_url.get_secret_value()
        self._clock = SystemClock()
        self._wait_ms = settings.pipeline.poll_interval_ms
        self._gather_s = settings.pipeline.gather_ms / 1_000
        self._step_s = 0.0
        self._log = Log(url, SystemClock())
        self._store = OnlineStore(url)
        self._registry = Registry(settings.registry_url, SystemClock())
        self._failed = 0
        program = Program.compile(pipeline, definitions)
        self._haste = self._log.haste.signs([ref(dataset) for dataset in program.sources])
        state = StateName(program.ref, generation)
        self._pipeline = program.ref
        self._sealer = Sealer(program, state, self._store)
        self._sealed_us = self._clock.now()
        self._worker = PartitionWorker(
            program,
            state,
            groups_of(partition, partitions),
            log=self._log,
            store=self._store,
            history=History(Archive(settings.archive_url), self._log),
            batch_rows=settings.pipeline.batch_rows,
        )

    def start(self) -> None:
        """Claim the key groups."""
        self._worker.start()

    def step(self) -> bool:
        """Apply one batch."""
        began = time.thread_time()
        read = self._worker.step().read
        self._step_s = time.thread_time() - began
        if self._worker.failures:
            self._say_failures()
        return self._spared(busy=read > 0) or self._worker.is_behind

    def _spared(self, *, busy: bool) -> bool:
        """Seal a little: whenever there is nothing to fold, and once a second when there is."""
        now = self._clock.now()
        if busy and now - self._sealed_us < SECOND:
            return False
        self._sealed_us = now
        return self._sealer.step(self._worker, now) is not None

    def _say_failures(self) -> None:
        """Rows that a user's function could not take are left out, counted, and told of in one event per function."""
        failures, self._worker.failures = self._worker.failures, []
        self._failed += len(failures)
        for function in dict.fromkeys(failure.function for failure in failures):
            mine = [failure for failure in failures if failure.function == function]
            message = f"{function}() failed for {len(mine)} rows, which are left out; the first: {mine[0].message}"
            event = NewEvent(
                event_type="dead_letter",
                severity="error",
                source="pipeline",
                subject=self._pipeline,
                message=message,
                detail={"function": function, "rows": len(mine), "first_time": format_instant(mine[0].time)},
            )
            try:
                self._registry.record_event(event)
            except StoreUnavailable as error:
                _log.warning("event_not_recorded", event_type=event.event_type, detail=str(error))

    def wait(self, stopping: threading.Event) -> None:
        """Block on the log; once something came, gather a little more, unless somebody waits for it."""
        if stopping.is_set() or not self._worker.wait(self._wait_ms):
            return
        # A step costs some 2 ms before its first row: ten workers that took each of 40 appends a second by itself
        # kept 1.3 cores busy. So steps are as far apart as leaves them a twentieth of a core; few rows wait little.
        gather_s = min(self._gather_s, _STEPS_APART * self._step_s)
        if gather_s and self._haste.wait(round(gather_s * 1_000)):
            stopping.wait(min(gather_s, _STEPS_APART_IN_HASTE * self._step_s))

    def facts(self) -> Mapping[str, Any]:
        """Rows folded, newest event time, rows that users' functions could not take, and what is applied of which log.

        ``applied``: dataset ref → log partition → the offset below which all is applied.
        """
        worker = self._worker
        applied: dict[str, dict[int, int]] = {}
        for (dataset, partition), offset in worker.applied().items():
            applied.setdefault(dataset, {})[partition] = offset
        return {"rows": worker.rows, "newest_us": worker.newest_us, "failed": self._failed, "applied": applied}

    def close(self) -> None:
        """Close connections."""
        self._log.close()
        self._store.close()
        self._registry.close()
