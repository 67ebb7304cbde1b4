"""Read many rows, each at its own instant: the large offline reads of the query server, as a Ray Data job of its own.

    ray job submit … -- python -m jobs.training_set --folder <name>

The folder holds the rows to read, split by key group. ``partition_count`` actors each read their part with the engine
that the query server runs, of the records below one cut, and write it beside its spine; the query server sends the
parts in the order asked. What fails is left in the folder as the read's outcome.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import structlog

from featurelib.clock import SystemClock
from featurelib.engine.confinement import homes
from featurelib.engine.extractor import Inline, Runner
from featurelib.engine.processes import Processes
from featurelib.engine.read_plan import ReadPlan, compile_plan, compile_views
from featurelib.engine.spine import Reading, feature_columns
from featurelib.engine.table import Table
from featurelib.engine.user_code import Guard, Limits, UserFunction
from featurelib.errors import NotFound, ThymeError
from featurelib.settings import Settings, load_settings
from featurelib.stores.archive import Archive
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.registry import Registry
from featurelib.stores.spine_files import AT, KEY, ROW, Asked, Order, Outcome, SpineFolder
from featurelib.stores.spine_reader import SpineReader
from jobs.partitioned import map_partitions

_log = structlog.get_logger(__name__)
# Rows of 50 features that are held as Python values at once: some 300 MB.
_ROWS_AT_ONCE = 50_000
_STUCK_EXIT = 70


class Part(NamedTuple):
    """What one partition gave; ``failure`` is the outcome of one that failed, as JSON."""

    partition: int
    rows: int
    hits: int
    failure: str


Run = Callable[[str, int], list[Part]]
"""Reads so many parts of the folder of a name."""


class PartitionReader:
    """Reads the parts of one order. No Ray here."""

    def __init__(self, folder: SpineFolder, settings: Settings) -> None:
        clock = SystemClock()
        self._folder = folder
        self._order = folder.order()
        self._log = Log(settings.online.redis_url.get_secret_value(), clock)
        self._runner = _runner(settings)
        history = History(Archive(settings.archive_url), self._log)
        self._spine = SpineReader(history, self._order.cut, self._order.knowledge)
        registry = Registry(settings.registry_url, clock)
        self._plan = _plan(self._order, registry, self._runner)
        registry.close()
        self._rows = self._hits = 0

    def read(self, partition: int) -> Part:
        """Read one part of the spine and write its rows.

        Raises:
            StoreUnavailable: the log, the archive or the folder does not answer.
            UserCodeError: an extractor failed, for whichever row.
        """
        self._rows = self._hits = 0
        self._folder.write_rows(partition, self._tables(partition))
        return Part(partition, self._rows, self._hits, "")

    def close(self) -> None:
        """Close connections, and end child processes."""
        self._log.close()
        if isinstance(self._runner, Processes):
            self._runner.close()

    def _tables(self, partition: int) -> Iterator[pa.Table]:
        # A partition without rows has a file too, which says what its columns are.
        yield self._table([])
        for asked in self._folder.spine(partition, _ROWS_AT_ONCE):
            yield self._table(asked)

    def _table(self, asked: Sequence[Asked]) -> pa.Table:
        plan = self._plan
        readings = [Reading(plan.key_form.read(each.id), plan.requested(each.inputs), each.at) for each in asked]
        keys = [reading.entity.key for reading in readings]
        table = Table.of(plan, keys, feature_columns(plan, readings, self._spine.rows))
        self._rows += len(table)
        self._hits += table.hits
        named = {
            ROW: pa.array([each.row for each in asked], pa.int64()),
            KEY: pa.array(keys, pa.string()),
            AT: pa.array([each.at for each in asked], pa.int64()),
        }
        features = table.features()
        return pa.table({**named, **dict(zip(features.column_names, features.columns, strict=True))})


class _ReadActor:
    """What Ray Data calls: one partition per batch."""

    def __init__(self, folder: str) -> None:
        settings = load_settings()
        self._reader = PartitionReader(SpineFolder(settings.offline_url, folder), settings)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        parts = [part_of(self._reader, int(partition)) for partition in batch["partition"]]
        return {name: np.array([getattr(part, name) for part in parts]) for name in Part._fields}


def part_of(reader: PartitionReader, partition: int) -> Part:
    """Read one part; an error is what it gave."""
    # Ray would wrap the error in one of its own, and the caller is to get it as it is.
    try:
        return reader.read(partition)
    except ThymeError as error:
        return Part(partition, 0, 0, Outcome.failed(error).model_dump_json())


def _outcome_of(parts: Sequence[Part]) -> Outcome:
    failures = [part.failure for part in parts if part.failure]
    if failures:
        return Outcome.model_validate_json(failures[0])
    return Outcome(rows=sum(part.rows for part in parts), hits=sum(part.hits for part in parts))


def training_set(settings: Settings, name: str, run: Run | None = None) -> Outcome:
    """Read what a folder asks for, and leave the outcome there.

    Args:
        settings: where the folder lies.
        name: the folder's.
        run: reads every part; left out, as a Ray Data job, inside a Ray job of the cluster.
    """
    folder = SpineFolder(settings.offline_url, name)
    try:
        outcome = _outcome_of((run or _run)(name, folder.order().partitions))
    except ThymeError as error:
        outcome = Outcome.failed(error)
    folder.end(outcome)
    return outcome


def _run(name: str, partitions: int) -> list[Part]:
    read = map_partitions(_ReadActor, (name,), partitions)
    return [Part(int(r["partition"]), int(r["rows"]), int(r["hits"]), str(r["failure"])) for r in read]


def _plan(order: Order, registry: Registry, runner: Runner) -> ReadPlan:
    definitions = registry.definitions_at(order.registry_version)
    featureset = definitions.featureset(order.featureset)
    if featureset is None:
        raise NotFound(f"featureset {order.featureset!r} is not committed")
    views, _ = compile_views(definitions)
    return compile_plan(featureset, definitions, views, runner)


def _runner(settings: Settings) -> Runner:
    serving = settings.serving
    limits = Limits(serving.extractor_soft_limit_ms / 1_000, serving.extractor_hard_limit_ms / 1_000)
    if serving.extractor_isolation == "process":
        return Processes(limits, 1, [str(settings.data_dir), *homes()])
    return Inline(Guard(limits, _leave))


def _leave(function: UserFunction) -> None:
    # As in a replica: an extractor that cannot be stopped takes its process with it, and the read fails.
    _log.error("extractor_stuck", function=function.label, location=function.location)
    os._exit(_STUCK_EXIT)


def main() -> None:
    """Command line of the job."""
    parser = argparse.ArgumentParser(prog="jobs.training_set", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True, help="name of the folder below serving.offline_url")
    outcome = training_set(load_settings(), parser.parse_args().folder)
    _log.info("training_set_read", rows=outcome.rows, hits=outcome.hits, error=outcome.error)


if __name__ == "__main__":
    main()
