"""A pipeline as a task: one worker over live stores."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from featurelib.clock import SystemClock
from featurelib.definitions import Definitions, PipelineDef
from featurelib.engine.fold import Program
from featurelib.engine.keys import groups_of
from featurelib.settings import Settings
from featurelib.stores.archive import Archive
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.online import OnlineStore, StateName
from jobs.worker import PartitionWorker


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
        self._wait_ms = settings.pipeline.poll_interval_ms
        self._log = Log(url, SystemClock())
        self._store = OnlineStore(url)
        program = Program.compile(pipeline, definitions)
        self._worker = PartitionWorker(
            program,
            StateName(program.ref, generation),
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
        return self._worker.step().read > 0

    def wait(self, stopping: threading.Event) -> None:
        """Block on the log."""
        if not stopping.is_set():
            self._worker.wait(self._wait_ms)

    def facts(self) -> Mapping[str, Any]:
        """Rows folded, newest event time, records behind."""
        return {"rows": self._worker.rows, "newest_us": self._worker.newest_us, "lag": self._worker.lag()}

    def close(self) -> None:
        """Close connections."""
        self._log.close()
        self._store.close()
