"""Read many rows, each at its own instant: a training set, or a large offline read of the query server.

    ray job submit … -- python -m jobs.training_set --featureset <name> --spine <file> --output <folder>
    ray job submit … -- python -m jobs.training_set --folder <name>

Either way a folder holds the rows to read, split by key group; actors of a Ray Data job each read parts of it with the
engine that the query server runs, of the records below one cut, and write them beside their spine. A training set is
put together from them by :mod:`jobs.training_run`; a small one is read in this process, since a Ray Data job costs
seconds before its first row. The parts of the query server's reads are sent by it in the order asked, and what fails is
left in the folder as the read's outcome.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import structlog

from featurelib.clock import SystemClock
from featurelib.engine.asof import Knowledge
from featurelib.engine.extractor import Runner
from featurelib.engine.feature_columns import complete_rows, feature_table
from featurelib.engine.read_plan import ReadPlan, compile_plan, compile_views
from featurelib.errors import ClusterError, NotFound, ThymeError
from featurelib.settings import Settings, load_settings
from featurelib.stores.archive import Archive
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.registry import Registry
from featurelib.stores.spine_files import AT, KEY, ROW, Order, Outcome, SpineFolder, asking_of
from featurelib.stores.spine_reader import SpineReader, programs_of
from featurelib.stores.training_files import Output, TrainingFolder
from jobs.extractors import close_runner, runner_of
from jobs.partitioned import each_partition, map_partitions
from jobs.training_run import Progress, TrainingAsked, TrainingRun, Work

_log = structlog.get_logger(__name__)
_ATTEMPTS = 3
# Parts that are read side by side in one process: each holds some 400 MB.
_MOST_AT_ONCE = 4


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
        self._runner = runner_of(settings)
        history = History(Archive(settings.archive_url), self._log)
        self._spine = SpineReader(history, self._order.cut, self._order.knowledge)
        registry = Registry(settings.registry_url, clock)
        self._plan = _plan(self._order, registry, self._runner)
        registry.close()

    def read(self, partition: int) -> Part:
        """Read one part of the spine and write its rows.

        Raises:
            StoreUnavailable: the log, the archive or the folder does not answer.
            UserCodeError: an extractor failed, for whichever row.
        """
        spine = self._folder.spine(partition)
        asking = asking_of(self._plan, spine)
        features = feature_table(self._plan, asking, self._spine.frame, self._spine.rows)
        named = {ROW: spine[ROW], KEY: asking.keys().to_arrow().cast(pa.string()), AT: spine[AT]}
        rows = pa.table({**named, **dict(zip(features.column_names, features.columns, strict=True))})
        self._folder.write_rows(partition, rows)
        return Part(partition, len(features), complete_rows(features), "")

    @property
    def runs_user_code(self) -> bool:
        """Whether rows need extractors or functions of pipelines, which nobody promised to be safe in threads."""
        steps = (step for program in programs_of(self._plan) for step in program.pipeline.steps)
        return bool(self._plan.graph.touched) or any(getattr(step, "code", None) is not None for step in steps)

    def close(self) -> None:
        """Close connections, and end child processes."""
        self._log.close()
        close_runner(self._runner)


class _ReadActor:
    """What Ray Data calls: one partition per batch."""

    def __init__(self, folder: str, output: str | None = None) -> None:
        settings = load_settings()
        self._reader = PartitionReader(_folder(settings, folder, output), settings)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        parts = [part_of(self._reader, int(partition)) for partition in batch["partition"]]
        return {name: np.array([getattr(part, name) for part in parts]) for name in Part._fields}


def _folder(settings: Settings, name: str, output: str | None) -> SpineFolder:
    return SpineFolder(settings.offline_url, name) if output is None else TrainingFolder(output, name)


def part_of(reader: PartitionReader, partition: int, attempts: int = _ATTEMPTS) -> Part:
    """Read one part; an error is what it gave."""
    # Ray would wrap the error in one of its own, and the caller is to get it as it is.
    try:
        return reader.read(partition)
    except ThymeError as error:
        # Files of the archive that a compaction has replaced may be gone: the next attempt sees those that stand there.
        if error.retryable and attempts > 1:
            return part_of(reader, partition, attempts - 1)
        return Part(partition, 0, 0, Outcome.failed(error).model_dump_json())


def read_here(settings: Settings, work: Work) -> Iterator[int]:
    """Read parts in this process, side by side where no user's code runs.

    Raises:
        ThymeError: what a part gave.
    """
    with closing(PartitionReader(_folder(settings, work.folder, work.output), settings)) as reader:
        at_once = 1 if reader.runs_user_code else min(_cores(), _MOST_AT_ONCE)
        for part in _parts(reader, work.parts, at_once):
            yield _checked(part)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _parts(reader: PartitionReader, numbers: Sequence[int], at_once: int) -> Iterator[Part]:
    if at_once == 1:
        yield from (part_of(reader, number) for number in numbers)
        return
    threads = ThreadPoolExecutor(at_once)
    try:
        for done in as_completed([threads.submit(part_of, reader, number) for number in numbers]):
            yield done.result()
    finally:
        threads.shutdown(cancel_futures=True)


def read_on_ray(settings: Settings, work: Work) -> Iterator[int]:
    """Read parts as a Ray Data job with ``pipeline.partition_count`` actors, inside a Ray job of the cluster.

    Raises:
        ThymeError: what a part gave; a :class:`~featurelib.errors.ClusterError` where a worker died.
    """
    from ray.exceptions import RayError  # over a second; a run in this process needs none of it

    actors = min(len(work.parts), settings.pipeline.partition_count)
    try:
        for row in each_partition(_ReadActor, (work.folder, work.output), work.parts, actors, "training set"):
            yield _checked(_part(row))
    except RayError as error:
        died = str(error).strip().rpartition("\n")[2][:300]
        raise ClusterError(f"a worker died; the same command goes on with the parts that are left: {died}") from error


def _checked(part: Part) -> int:
    if part.failure:
        Outcome.model_validate_json(part.failure).check()
    return part.partition


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
    return [_part(row) for row in map_partitions(_ReadActor, (name,), partitions)]


def _part(row: Mapping[str, Any]) -> Part:
    return Part(int(row["partition"]), int(row["rows"]), int(row["hits"]), str(row["failure"]))


def _plan(order: Order, registry: Registry, runner: Runner) -> ReadPlan:
    definitions = registry.definitions_at(order.registry_version)
    featureset = definitions.featureset(order.featureset)
    if featureset is None:
        raise NotFound(f"featureset {order.featureset!r} is not committed")
    views, _ = compile_views(definitions)
    return compile_plan(featureset, definitions, views, runner)


def main() -> None:
    """Command line of the job."""
    parser = _parser()
    arguments = parser.parse_args()
    settings = load_settings()
    if not arguments.folder and not arguments.output:
        parser.error("--output names the folder of the training set")
    if arguments.folder:
        outcome = training_set(settings, arguments.folder)
        _log.info("training_set_read", rows=outcome.rows, hits=outcome.hits, error=outcome.error)
        return
    here = _is_small if arguments.run is None else lambda *_: arguments.run == "here"

    def read(work: Work) -> Iterator[int]:
        return (read_here if here(settings, work) else read_on_ray)(settings, work)

    asked = TrainingAsked(**{name: getattr(arguments, name) for name in TrainingAsked._fields})
    try:
        manifest = TrainingRun(settings, SystemClock()).make(asked, read, _tell)
    except ThymeError as error:
        sys.exit(f"{error.code}: {error}\n{error.remedy}")
    print(f"{asked.output}: {manifest.rows} rows, sha256 {manifest.rows_sha256}")  # noqa: T201  # the job's own output


def _is_small(settings: Settings, work: Work) -> bool:
    return work.rows <= settings.serving.offline_rows


def _tell(progress: Progress) -> None:
    _log.info("training_set_progress", **progress._asdict())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jobs.training_set", description=__doc__.splitlines()[0])
    parser.add_argument("--featureset", help="name of a committed featureset")
    parser.add_argument(
        "--spine", help="rows: .parquet .csv .tsv .arrow, a folder of Parquet, a Delta table; path or URL"
    )
    parser.add_argument("--output", default="", help="folder of the training set, or an object-store URL")
    parser.add_argument("--format", dest="form", choices=get_args(Output), default="parquet", help="of the result")
    parser.add_argument("--entity-column", help="column of ids; default: entity_id, or the name of the entity feature")
    parser.add_argument("--timestamp-column", default="timestamp", help="column of instants")
    parser.add_argument("--knowledge", choices=get_args(Knowledge), default="latest", help="which records count")
    parser.add_argument("--like", help="manifest to make it like: of the same records, by the same definitions")
    parser.add_argument("--overwrite", action="store_true", help="replace a training set that is there")
    parser.add_argument(
        "--run", choices=("here", "ray"), help="where parts are read; default: on Ray if there are many"
    )
    parser.add_argument("--folder", help="name of a folder below serving.offline_url, of the query server's own reads")
    return parser


if __name__ == "__main__":
    main()
