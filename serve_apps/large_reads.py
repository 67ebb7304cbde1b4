"""Offline reads too large for a replica: handed to a Ray Data job, and sent from its files in the order asked.

The rows are checked before, so that what is wrong with a request is told at once; the job reads of the records there
were when it was asked for.
"""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple, TypeVar

import msgspec
import pyarrow as pa

from cluster.launcher import Job, Launcher
from featurelib.clock import Clock
from featurelib.engine.read_plan import ReadPlan
from featurelib.engine.table import Table, feature_types, in_engine_form, with_rows_named
from featurelib.errors import ClusterError
from featurelib.settings import Settings
from featurelib.stores.questions import Question
from featurelib.stores.spine_files import AT, KEY, ROW, Asked, Order, Outcome, SpineFolder
from featurelib.stores.spine_reader import programs_of
from serve_apps.current import Snapshot
from serve_apps.offline import Spines, readings_of
from serve_apps.tabular import result_rows

_T = TypeVar("_T")
# A job takes tens of seconds; asking the dashboard costs it a few milliseconds.
_ASK_EVERY_S = 0.25
_JOB_PREFIX = "training-set"
_RESULTS = b'{"results":['
_encode = msgspec.json.Encoder().encode


class LargeRows(NamedTuple):
    """What a job has read: how it ended, the rows' keys in the order asked, and their folder, still to be sent."""

    plan: ReadPlan
    outcome: Outcome
    keys: tuple[str, ...]
    folder: SpineFolder
    partitions: int


class LargeReads:
    """Has large offline reads done.

    Args:
        settings: where folders lie and how many partitions there are.
        clock: names the folders.
        history: says where the logs end.
        threads: where files and the cluster are waited for.
    """

    def __init__(self, settings: Settings, clock: Clock, history: Spines, threads: Executor) -> None:
        self._settings = settings
        self._clock = clock
        self._history = history
        self._threads = threads

    async def read(self, question: Question, snapshot: Snapshot, correlation_id: str) -> LargeRows:
        """Read the rows of an offline question.

        Raises:
            NotFound: unknown featureset.
            InvalidRequest: an id, an input or the entity type does not fit.
            UserCodeError: an extractor failed.
            StoreUnavailable: a store does not answer.
            ClusterError: the job could not be run.
        """
        plan = snapshot.plan(question.target)
        plan.check_entity_type(question.entity_type)
        folder, keys = await self._apart(self._prepared, question, plan, snapshot.version)
        try:
            outcome = await self._job(folder, correlation_id)
            outcome.check()
        except BaseException:
            await asyncio.shield(self._apart(folder.remove))
            raise
        return LargeRows(plan, outcome, keys, folder, self._settings.pipeline.partition_count)

    async def send(self, rows: LargeRows, *, arrow: bool) -> AsyncGenerator[bytes, None]:
        """The answer's body, part by part; the folder is gone after the last one."""
        parts = _arrow_parts(rows) if arrow else _json_parts(rows)
        try:
            while (part := await self._apart(next, parts, None)) is not None:
                yield part
        finally:
            await asyncio.shield(self._apart(rows.folder.remove))

    def _prepared(self, question: Question, plan: ReadPlan, version: int) -> tuple[SpineFolder, tuple[str, ...]]:
        readings = readings_of(plan, question)
        keys = tuple(reading.entity.key for reading in readings)
        cut = self._history.spine(programs_of(plan), question.knowledge).cut
        order = Order(
            featureset=question.target,
            registry_version=version,
            knowledge=question.knowledge,
            cut={name: tuple(offsets) for name, offsets in cut.items()},
            partitions=self._settings.pipeline.partition_count,
        )
        folder = SpineFolder.create(self._settings.offline_url, self._clock.now())
        try:
            folder.put(order, _asked(question), keys)
        except BaseException:
            folder.remove()  # a disk that is full stays full of what was written of it
            raise
        return folder, keys

    async def _job(self, folder: SpineFolder, correlation_id: str) -> Outcome:
        job_id = f"{_JOB_PREFIX}-{uuid.uuid4().hex[:12]}"
        command = f"python -m jobs.training_set --folder {folder.name}"
        with Launcher.of(self._settings) as launcher:
            await self._apart(lambda: launcher.submit(command, job_id, metadata={"correlation_id": correlation_id}))
            try:
                job = await self._ended(launcher, job_id)
            except asyncio.CancelledError:
                await asyncio.shield(self._apart(launcher.stop, job_id))
                raise
        outcome = await self._apart(folder.outcome)
        if outcome is None:
            raise ClusterError(
                f"the job that reads the rows is {job.status}: {job.message.partition(chr(10))[0][:300]}"
            )
        return outcome

    async def _ended(self, launcher: Launcher, job_id: str) -> Job:
        while True:
            job = await self._apart(launcher.job, job_id)
            if job is None:
                raise ClusterError(f"Ray does not know the job {job_id} any more")
            if not job.running:
                return job
            await asyncio.sleep(_ASK_EVERY_S)

    async def _apart(self, call: Callable[..., _T], *arguments: Any) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)


def _asked(question: Question) -> list[Asked]:
    own: Sequence[Mapping[str, Any] | None] = question.row_inputs or (None,) * len(question.entity_ids)
    return [
        Asked(row, given, at, {**question.inputs, **(inputs or {})})
        for row, (given, at, inputs) in enumerate(zip(question.entity_ids, question.instants, own, strict=True))
    ]


class _Gathered(io.RawIOBase):
    """What an Arrow writer writes, until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: Any) -> int:
        """Keep some bytes."""
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def taken(self) -> bytes:
        """Everything written since the last call."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _arrow_parts(rows: LargeRows) -> Iterator[bytes]:
    sink, writer = _Gathered(), None
    for window in rows.folder.rows(rows.partitions):
        table = with_rows_named(_features(window), window[KEY], window[AT])
        writer = writer or pa.ipc.new_stream(sink, table.schema)
        writer.write_table(table)
        yield sink.taken()
    assert writer is not None
    writer.close()
    yield sink.taken()


def _json_parts(rows: LargeRows) -> Iterator[bytes]:
    types = feature_types(rows.plan)
    before = _RESULTS
    for window in rows.folder.rows(rows.partitions):
        columns = [in_engine_form(column) for column in _features(window).columns]
        keys, instants = window[KEY].to_pylist(), window[AT].to_pylist()
        table = Table(rows.plan.feature_names, types, keys, instants, columns)
        if len(table):
            yield before + _encode(result_rows(table, 0, len(table)))[1:-1]
            before = b","
    yield _RESULTS + b"]}" if before == _RESULTS else b"]}"


def _features(window: pa.Table) -> pa.Table:
    return window.drop_columns([ROW, KEY, AT])
