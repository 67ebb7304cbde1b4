"""Rebuild a pipeline's state from history: bounded work, as a Ray Data job of its own.

    ray job submit … -- python -m jobs.backfill --pipeline by_carrier

or asked for over HTTP (`--request`: jobs/requested.py), when it counts rows as it goes and can be cancelled.
``partition_count`` actors each build their key groups with the engine the live workers use, into the next
*generation* of the pipeline's state, aside of the one that is served. The hand-over is exact: every group
starts at one cut of its input partitions, folds everything below it from history, and then applies the
log from the cut on with the live worker's own code, up to where the log ended when that began. Only then
is the generation switched; the supervisor replaces the live workers, whose first act is to raise the epochs.
An actor that is tried again clears its key groups first. A job that dies leaves an unserved generation
behind; the next one clears it and starts over. Epochs are never given out twice, so a job that was
replaced writes nothing.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import polars as pl
import structlog

from featurelib.clock import Instant, SystemClock, parse_instant
from featurelib.definitions import DatasetDef, Definitions, PipelineDef
from featurelib.engine.fold import KEY
from featurelib.engine.keys import KEY_GROUPS, groups_of, key_groups
from featurelib.engine.operators import RightTable, UserFailure
from featurelib.engine.program import Program, pipelines_of
from featurelib.errors import Fenced, NotFound, StoreUnavailable, ThymeError
from featurelib.settings import Settings, load_settings
from featurelib.stores.archive import Archive
from featurelib.stores.backfill_requests import BackfillRequests
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.online import Claim, GroupCommit, OnlineStore, StateName
from featurelib.stores.registry import BackfillRecord, NewEvent, Registry
from jobs.inputs import InputPartition, input_partitions
from jobs.partitioned import map_partitions
from jobs.worker import PartitionWorker, newest_timely, tells_failures

_log = structlog.get_logger(__name__)
# Each report is a transaction of the registry's database, which others wait for.
_TELL_EVERY_S = 1.0
# A key's rows enter its state in slices of this size, so that the buffer never holds a whole history.
_SLICE_ROWS = 4_096

Cut = list[int]
"""Per input partition of the pipeline: history below, the log from here on."""


class Order(NamedTuple):
    """What to build: sent to every actor."""

    pipeline: PipelineDef
    definitions: Definitions
    state: StateName
    cut: Cut
    since: Instant | None
    until: Instant | None = None
    request: str | None = None
    """Id of the request it is built for."""
    rows_expected: int = 0
    """Records of the left input below the cut: what is known before history is read."""


class Span(NamedTuple):
    """Which of the records before the cut count, by their own time, both ends included; ``None``: no end."""

    since: Instant | None = None
    until: Instant | None = None


Report = Callable[[int, int], None]
"""Takes rows folded since the last report, and rows expected beyond those known of."""


class Built(NamedTuple):
    """What one partition gave."""

    partition: int
    rows: int
    keys: int
    failed: int
    """Rows that the pipeline's own functions could not take; one partition says it for all."""
    failure: str
    """What the first of them failed with."""


class PartitionBuilder:
    """Builds the key groups of one partition. No Ray here.

    Args:
        order: what to build.
        settings: where the stores are.
        report: told of progress, about once a second.
        seconds: a clock that only ever moves forward.
    """

    def __init__(
        self,
        order: Order,
        settings: Settings,
        report: Report = lambda rows, expected: None,  # noqa: ARG005  # nobody asked
        *,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        url = settings.online.redis_url.get_secret_value()
        self._order = order
        self._report = report
        self._seconds = seconds
        self._told = seconds()
        self._log = Log(url, SystemClock())
        self._store = OnlineStore(url)
        self._history = History(Archive(settings.archive_url), self._log)
        self._program = Program.compile(order.pipeline, order.definitions)
        self._inputs = input_partitions(self._program, self._log)
        self._count = settings.pipeline.partition_count
        self._batch_rows = settings.pipeline.batch_rows

    def build(self, partition: int) -> Built:
        """Fold history below the cut into the groups of a partition, then catch up with the log."""
        groups = groups_of(partition, self._count)
        claims = {claim.group: claim for claim in self._store.claim(self._order.state, groups)}
        # An earlier try of this partition may have left panes of records after the cut.
        self._store.clear(self._order.state, groups)
        failures: list[UserFailure] = []
        rows, keys = self._fold_history(groups, claims, failures)
        failures += self._catch_up(groups)
        told = failures if tells_failures(groups) else []
        return Built(partition, rows, keys, len(told), f"{told[0].function}(): {told[0].message}" if told else "")

    def close(self) -> None:
        """Close connections."""
        self._log.close()
        self._store.close()

    def _fold_history(self, groups: range, claims: Mapping[int, Claim], failures: list[UserFailure]) -> tuple[int, int]:
        program = self._program
        if program.plain:
            records = self._read(program.left, groups if program.keyed_like_its_dataset() else None)
            shaped = program.prepare(records.select(program.left_columns()), self._rights(), failures)
            newest = newest_timely(records)
        else:
            inputs = {dataset.name: self._read(dataset, None) for dataset in program.sources}
            shaped = program.shape_all(inputs, failures)
            known = [newest_timely(inputs[dataset.name]) for dataset in program.clocks]
            newest = max((instant for instant in known if instant is not None), default=None)
        grouped = shaped.with_columns(pl.Series("__group", key_groups(shaped[KEY]), dtype=pl.Int64))
        self._expect(int(grouped["__group"].is_between(groups.start, groups.stop, closed="left").sum()), groups)
        rows = keys = told = 0
        for group in groups:
            part = grouped.filter(pl.col("__group") == group).drop("__group")
            keys += self._write_group(claims[group], part, newest)
            rows += len(part)
            if self._seconds() - self._told >= _TELL_EVERY_S:
                self._tell(rows - told, 0)
                told = rows
        self._tell(rows - told, 0)
        return rows, keys

    def _expect(self, rows: int, groups: range) -> None:
        """Put what is known now in the place of this partition's share of what was guessed."""
        guess, first, last = self._order.rows_expected, groups.start, groups.stop
        self._tell(0, rows - (guess * last // KEY_GROUPS - guess * first // KEY_GROUPS))

    def _tell(self, rows: int, more_expected: int) -> None:
        self._report(rows, more_expected)
        self._told = self._seconds()

    def _write_group(self, claim: Claim, shaped: pl.DataFrame, newest: Instant | None) -> int:
        changes: dict[str, dict[bytes, bytes]] = {}
        for key, rows in self._program.rows_by_key(shaped):
            state = self._program.new_state(len(self._inputs))
            state.header.applied = list(self._order.cut)
            for start in range(0, len(rows), _SLICE_ROWS):
                state.add(rows[start : start + _SLICE_ROWS])
            changes[key] = state.changes()
        commit = GroupCommit(claim.group, claim.epoch, self._order.cut, newest, len(shaped), changes)
        self._store.commit(self._order.state, [commit])
        return len(changes)

    def _catch_up(self, groups: range) -> list[UserFailure]:
        worker = PartitionWorker(
            self._program,
            self._order.state,
            groups,
            log=self._log,
            store=self._store,
            history=self._history,
            batch_rows=self._batch_rows,
        )
        worker.start()
        # Under steady input there is always one more: what comes after this moment is the live worker's.
        behind = worker.lag()
        while behind > 0 and (read := worker.step().read):
            behind -= read
        return worker.failures

    def _rights(self) -> dict[str, RightTable]:
        tables = self._program.right_tables()
        for dataset in self._program.rights:
            tables[dataset.name] = tables[dataset.name].with_records(self._read(dataset, None))
        return tables

    def _read(self, dataset: DatasetDef, groups: range | None) -> Any:
        mine = [(index, source) for index, source in enumerate(self._inputs) if source.dataset == dataset]
        cut = {source.partition: self._order.cut[index] for index, source in mine}
        span = Span(self._order.since, self._order.until) if dataset == self._program.left else Span()
        return self._history.read(dataset, len(mine), groups=groups, since=span.since, until=span.until, cut=cut)


class _BuildActor:
    """What Ray Data calls: one partition per batch."""

    def __init__(self, order: Order) -> None:
        settings = load_settings()
        clock = SystemClock()
        requests = BackfillRequests(Registry(settings.registry_url, clock).database, clock)
        self._builder = PartitionBuilder(order, settings, Tally(requests, order.request))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        built = [self._builder.build(int(partition)) for partition in batch["partition"]]
        return {name: [getattr(one, name) for one in built] for name in Built._fields}


class Tally:
    """Counts rows of a request as they are folded. What the registry does not take now is told with the next ones."""

    def __init__(self, requests: BackfillRequests, request: str | None) -> None:
        self._requests = requests
        self._request = request
        self._rows = self._more_expected = 0

    def __call__(self, rows: int, more_expected: int) -> None:
        """Count."""
        self._rows += rows
        self._more_expected += more_expected
        if self._request is None:
            return
        try:
            self._requests.advance(self._request, self._rows, self._more_expected)
        except StoreUnavailable as error:
            _log.warning("progress_not_told", request=self._request, detail=str(error))
            return
        self._rows = self._more_expected = 0


class Backfill:
    """One build of a pipeline's state, inside a Ray job of the cluster.

    Args:
        settings: where the stores are.
        request: id of the request it is made for; ``None``: somebody submitted the job by hand.
    """

    def __init__(self, settings: Settings, request: str | None = None) -> None:
        clock = SystemClock()
        url = settings.online.redis_url.get_secret_value()
        self._settings = settings
        self._registry = Registry(settings.registry_url, clock)
        self._requests = BackfillRequests(self._registry.database, clock)
        self._log = Log(url, clock)
        self._store = OnlineStore(url)
        self._request = request

    def run(self, name: str, version: int | None = None, span: Span = Span()) -> list[Built]:  # noqa: B008  # a value
        """Build the next generation of a pipeline's state and switch to it.

        Raises:
            NotFound: no such pipeline is committed.
            Fenced: it was cancelled, or cleared by an erasure; the former generation stays.
        """
        definitions = self._registry.definitions()
        pipeline = _pipeline(definitions, name, version)
        program = Program.compile(pipeline, definitions)
        served = StateName(program.ref, self._store.generation(program.ref))
        fresh = _next_generation(self._store, served)
        inputs = input_partitions(program, self._log)
        cut = _cut(inputs, self._log)
        expected = sum(end for source, end in zip(inputs, cut, strict=True) if source.dataset == program.left)
        order = Order(pipeline, definitions, fresh, cut, *span, request=self._request, rows_expected=expected)
        self._begin(order)
        self._show(order, "running")
        built: list[Built] = []
        status = "failed"
        try:
            built = _run(order, self._settings.pipeline.partition_count)
            self._switch(order, built)
            status = "complete"
        finally:
            self._show(order, status, sum(one.rows for one in built))
        self._tell_failures(order, built)
        return built

    def _begin(self, order: Order) -> None:
        if self._request is None:
            return
        if not self._requests.began(self._request, order.state.generation, order.rows_expected):
            raise Fenced(f"backfill {self._request} was cancelled before it began")

    def _switch(self, order: Order, built: list[Built]) -> None:
        """Serve what was built; from the moment the request says so, the supervisor does it should this process die."""
        fresh = order.state
        if self._store.progress(fresh).positions is None:
            # An erasure cleared what was built: some of it came from records that are erased now.
            raise Fenced(f"the new state of {fresh.pipeline} was cleared while it was built; start the backfill again")
        if self._request is not None and not self._requests.built(self._request):
            raise Fenced(f"backfill {self._request} was cancelled while it was built")
        self._store.switch_generation(fresh.pipeline, fresh.generation)
        rows, keys = sum(one.rows for one in built), sum(one.keys for one in built)
        message = f"{rows} rows of {keys} keys rebuilt; {generation_served(fresh.generation)}"
        if self._request is not None:
            self._requests.completed(self._requests.get(self._request), message)
            return
        self._registry.record_event(
            NewEvent(event_type="backfill_completed", source="backfill", subject=fresh.pipeline, message=message)
        )

    def _show(self, order: Order, status: str, rows: int = 0) -> None:
        self._registry.put_backfill(shown(order.pipeline, order.state, status, rows))

    def _tell_failures(self, order: Order, built: list[Built]) -> None:
        """Rows that the pipeline's own functions could not take."""
        failed = sum(one.failed for one in built)
        if not failed:
            return
        first = next(one.failure for one in built if one.failed)
        event = NewEvent(
            event_type="dead_letter",
            severity="error",
            source="backfill",
            subject=order.state.pipeline,
            message=f"a function failed for {failed} rows, which are left out; the first: {first}",
            detail={"rows": failed},
        )
        self._registry.record_event(event)

    def give_up(self, why: str) -> None:
        """Say why a request failed, unless it is over or is being cancelled."""
        if self._request is not None:
            request = self._requests.find(self._request)
            if request is not None:
                self._requests.failed(request, why)


def shown(pipeline: PipelineDef, state: StateName, status: str, rows: int) -> BackfillRecord:
    """What the status shows of a backfill."""
    title = f"backfill:{state.pipeline}#{state.generation}"
    source = pipeline.input_datasets[0]
    return BackfillRecord(job_name=title, source_dataset=source, status=status, records_ingested=rows)


def generation_served(generation: int) -> str:
    """How the end of a backfill is told."""
    return f"generation {generation} is served"


def _run(order: Order, partition_count: int) -> list[Built]:
    return [Built(**row) for row in map_partitions(_BuildActor, (order,), partition_count)]


def _next_generation(store: OnlineStore, served: StateName) -> StateName:
    fresh = served._replace(generation=served.generation + 1)
    # The build before the served one is read by nobody any more; one that was never finished never was.
    for unserved in (served._replace(generation=served.generation - 1), fresh):
        removed = store.clear(unserved, range(KEY_GROUPS))
        if removed:
            _log.info("unserved_generation_dropped", state=str(unserved), keys=removed)
    return fresh


def _cut(inputs: list[InputPartition], log: Log) -> Cut:
    return [log.head(*source.address).next_offset for source in inputs]


def _pipeline(definitions: Definitions, name: str, version: int | None) -> PipelineDef:
    found = [p for p in pipelines_of(definitions) if p.name == name and version in (None, p.version)]
    if not found:
        known = ", ".join(sorted({p.name for p in pipelines_of(definitions)})) or "none"
        raise NotFound(f"no pipeline {name!r} is committed; there are: {known}")
    return max(found, key=lambda pipeline: pipeline.version)


def main() -> None:
    """Command line of the job."""
    from ray.exceptions import RayError  # over a second; `--help` needs none of it

    parser = argparse.ArgumentParser(prog="jobs.backfill", description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", required=True, help="name of a committed pipeline")
    parser.add_argument("--version", type=int, help="its version; default: the newest")
    parser.add_argument("--since", help="of what is known when it begins, fold records dated at or after this instant")
    parser.add_argument("--until", help="likewise, records dated at or before this instant")
    parser.add_argument("--request", help="id of the request it is made for")
    arguments = parser.parse_args()
    span = Span(_instant(arguments.since, "--since"), _instant(arguments.until, "--until"))
    started = time.monotonic()
    work = Backfill(load_settings(), arguments.request)
    try:
        built = work.run(arguments.pipeline, arguments.version, span)
    except (ThymeError, RayError) as error:
        work.give_up(_last_line(error))
        raise
    seconds = time.monotonic() - started
    rows = sum(one.rows for one in built)
    print(  # noqa: T201  # the job's own output
        f"{arguments.pipeline}: {rows} rows in {seconds:.1f} s, {len(built)} partitions, process {os.getpid()}"
    )


def _instant(text: str | None, field: str) -> Instant | None:
    return parse_instant(text, field) if text else None


def _last_line(error: Exception) -> str:
    """What happened: an error that came from another process has its traceback before it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return (lines[-1].strip() if lines else type(error).__name__)[:500]


if __name__ == "__main__":
    main()
