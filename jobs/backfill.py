"""Rebuild a pipeline's state from history: bounded work, as a Ray Data job of its own.

    ray job submit … -- python -m jobs.backfill --pipeline by_carrier

or asked for over HTTP (`--request`: jobs/requested.py), when it counts rows as it goes and can be cancelled.
``partition_count`` actors each build their key groups with the engine the live workers use, into the next
*generation* of the pipeline's state, aside of the one that is served. The hand-over is exact: every group
starts at one cut of its input partitions, folds everything below it from history, and then applies the
log from the cut on with the live worker's own code, up to where the log ended when that began. Only then
is the generation switched; the supervisor starts its live workers, whose first act is to raise the epochs, and keeps
those of the one before for a while, so that it can be rolled back to. A key group's position is written once the group
is built: a job that goes on for one that died folds only groups that have none, below the same cut. Epochs are never
given out twice, so a job that was replaced writes nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from operator import ge, gt
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import structlog

from cluster.processes import collect_seldom, wait_until
from featurelib.clock import SECOND, Instant, SystemClock, parse_instant
from featurelib.definitions import DatasetDef, Definitions, PipelineDef
from featurelib.engine.fold import KEY
from featurelib.engine.input_partitions import InputPartition
from featurelib.engine.keys import KEY_GROUPS, groups_of, key_groups
from featurelib.engine.operators import RightTable, UserFailure
from featurelib.engine.partials import Row
from featurelib.engine.program import Program, pipelines_of
from featurelib.errors import Fenced, NotFound, StoreUnavailable, ThymeError
from featurelib.settings import Settings, load_settings
from featurelib.stores.archive import Archive
from featurelib.stores.backfill_requests import BackfillRequests
from featurelib.stores.bulk import BulkWriter
from featurelib.stores.generations import Generations
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.online import Claim, GroupCommit, OnlineStore, StateName
from featurelib.stores.registry import BackfillRecord, NewEvent, Registry
from jobs.inputs import input_partitions, lowest_positions
from jobs.partitioned import map_partitions
from jobs.spill import Spill
from jobs.worker import PartitionWorker, newest_timely, tells_failures

_log = structlog.get_logger(__name__)
# Each report is a transaction of the registry's database, which others wait for.
_TELL_EVERY_S = 1.0
# A key's rows enter its state in slices of this size, so that the buffer never holds a whole history.
_SLICE_ROWS = 4_096
# An actor's process loads for some seconds, on a busy machine for longer.
_SHADOW_S = 60.0
_ROUND_S = 0.2

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
        self._bulk = BulkWriter(url)
        self._history = History(Archive(settings.archive_url), self._log)
        self._program = Program.compile(order.pipeline, order.definitions)
        self._span = Span(order.since, order.until)
        self._scratch = _scratch(settings, order.state)
        self._inputs = input_partitions(self._program, self._log)
        self._count = settings.pipeline.partition_count
        self._batch_rows = settings.pipeline.batch_rows

    def build(self, partition: int) -> Built:
        """Fold history below the cut into the groups of a partition, then catch up with the log.

        Groups that an attempt before has built stay as they are.
        """
        groups = groups_of(partition, self._count)
        claims = {claim.group: claim for claim in self._store.claim(self._order.state, groups)}
        undone = [group for group in groups if claims[group].positions is None]
        failures: list[UserFailure] = []
        rows = keys = 0
        if undone:
            # One that was being built may have keys, though no position yet.
            self._store.clear(self._order.state, undone)
            rows, keys = self._fold_history(undone, claims, failures)
        failures += self._catch_up(groups)
        told = failures if tells_failures(groups) else []
        return Built(partition, rows, keys, len(told), f"{told[0].function}(): {told[0].message}" if told else "")

    def close(self) -> None:
        """Close connections."""
        self._log.close()
        self._store.close()
        self._bulk.close()

    def _fold_history(
        self, groups: Sequence[int], claims: Mapping[int, Claim], failures: list[UserFailure]
    ) -> tuple[int, int]:
        expected = self._order.rows_expected * len(groups) // KEY_GROUPS
        # No epoch is given out twice: whoever was replaced and does not know it yet has files of its own.
        folder = self._scratch / f"{groups[0]}.{claims[groups[0]].epoch}"
        with closing(Spill(folder, groups, expected)) as spill:
            if self._program.plain:
                newest = self._put_apart(spill, groups, failures)
            else:
                newest = self._put_graph_apart(spill, failures)
            self._expect(sum(spill.rows.values()), groups)
            return self._write_groups(spill, claims, newest)

    def _put_apart(self, spill: Spill, groups: Sequence[int], failures: list[UserFailure]) -> Instant | None:
        """Prepare the history of a plain pipeline piece by piece; the newest event time in it."""
        program = self._program
        rights, columns = self._rights(), program.left_columns()
        newest: Instant | None = None
        for records in self._pieces(groups if program.keyed_like_its_dataset() else None, columns):
            shaped = program.prepare(records.select(columns), rights, failures)
            spill.add(shaped, key_groups(shaped[KEY]))
            newest = _later(newest, newest_timely(records))
        return newest

    def _put_graph_apart(self, spill: Spill, failures: list[UserFailure]) -> Instant | None:
        """Like :meth:`_put_apart`: what a graph gives of a record depends on all of them, so they come at once."""
        inputs = {dataset.name: self._read(dataset) for dataset in self._program.sources}
        shaped = self._program.shape_all(inputs, failures)
        spill.add(shaped, key_groups(shaped[KEY]))
        newest: Instant | None = None
        for dataset in self._program.clocks:
            newest = _later(newest, newest_timely(inputs[dataset.name]))
        return newest

    def _write_groups(self, spill: Spill, claims: Mapping[int, Claim], newest: Instant | None) -> tuple[int, int]:
        rows = keys = told = 0
        for group, count in spill.rows.items():
            keys += self._write_group(claims[group], spill, newest)
            rows += count
            if self._seconds() - self._told >= _TELL_EVERY_S:
                self._tell(rows - told, 0)
                told = rows
        self._tell(rows - told, 0)
        return rows, keys

    def _expect(self, rows: int, groups: Sequence[int]) -> None:
        """Put what is known now in the place of these groups' share of what was guessed."""
        self._tell(0, rows - share_of(self._order.rows_expected, groups))

    def _tell(self, rows: int, more_expected: int) -> None:
        self._report(rows, more_expected)
        self._told = self._seconds()

    def _write_group(self, claim: Claim, spill: Spill, newest: Instant | None) -> int:
        """Write every key of a group, and then its position, which says that it is built."""
        keys = 0
        for shaped in spill.of(claim.group):
            changes = {key: self._folded(rows) for key, rows in self._program.rows_by_key(shaped)}
            self._bulk.write(self._order.state, claim.group, claim.epoch, changes)
            keys += len(changes)
        commit = GroupCommit(claim.group, claim.epoch, self._order.cut, newest, spill.rows[claim.group], {})
        self._store.commit(self._order.state, [commit])
        return keys

    def _folded(self, rows: list[Row]) -> dict[bytes, bytes]:
        state = self._program.new_state(len(self._inputs))
        state.header.applied = list(self._order.cut)
        for start in range(0, len(rows), _SLICE_ROWS):
            state.add(rows[start : start + _SLICE_ROWS])
        return state.changes()

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
            tables[dataset.name] = tables[dataset.name].with_records(self._read(dataset))
        return tables

    def _pieces(self, groups: Sequence[int] | None, columns: Sequence[str]) -> Iterator[pa.Table]:
        left, span = self._program.left, self._span
        cut = self._cut_of(left)
        return self._history.batches(left, cut=cut, groups=groups, since=span.since, until=span.until, columns=columns)

    def _read(self, dataset: DatasetDef) -> Any:
        cut = self._cut_of(dataset)
        span = self._span if dataset == self._program.left else Span()
        return self._history.read(dataset, len(cut), since=span.since, until=span.until, cut=cut)

    def _cut_of(self, dataset: DatasetDef) -> dict[int, int]:
        mine = zip(self._inputs, self._order.cut, strict=True)
        return {source.partition: offset for source, offset in mine if source.dataset == dataset}


class _BuildActor:
    """What Ray Data calls: one partition per batch."""

    def __init__(self, order: Order) -> None:
        collect_seldom()
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
        self._clock = clock
        self._log = Log(url, clock)
        self._store = OnlineStore(url)
        self._generations = Generations(url)
        self._request = request

    def run(self, name: str, version: int | None = None, span: Span = Span()) -> list[Built]:  # noqa: B008  # a value
        """Build the next generation of a pipeline's state and switch to it.

        Raises:
            NotFound: no such pipeline is committed.
            Fenced: it was cancelled; the former generation stays.
            StoreUnavailable: a store does not answer, or an erasure has cleared what was built; it can be gone on with.
        """
        definitions = self._registry.definitions()
        pipeline = _pipeline(definitions, name, version)
        program = Program.compile(pipeline, definitions)
        fresh, cut = self._begun(program) or self._beginning(program)
        inputs = input_partitions(program, self._log)
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
            # What actors that were killed have left.
            shutil.rmtree(_scratch(self._settings, fresh), ignore_errors=True)
            self._show(order, status, sum(one.rows for one in built))
        self._tell_failures(order, built)
        return built

    def _begun(self, program: Program) -> tuple[StateName, Cut] | None:
        """What an attempt before has begun to build."""
        request = self._requests.get(self._request) if self._request is not None else None
        if request is None or request.cut is None or request.generation is None:
            return None
        stand = self._generations.of([program.ref])[program.ref]
        inputs = input_partitions(program, self._log)
        if request.generation in stand.all or len(request.cut) != len(inputs):
            return None
        return StateName(program.ref, request.generation), list(request.cut)

    def _beginning(self, program: Program) -> tuple[StateName, Cut]:
        """A new generation, and where history ends and the log begins. Nothing is kept any more to go back to.

        Raises:
            StoreUnavailable: it was rolled back this very moment: what was kept is served now, and must not be cleared.
        """
        stand = self._generations.of([program.ref])[program.ref]
        fresh = StateName(program.ref, max(stand.all) + 1)
        if stand.kept is not None and not self._generations.forget(program.ref, stand.kept):
            raise StoreUnavailable(f"another state of {program.ref} is served since a moment ago; begin again")
        for request in self._requests.keeping(program.ref):
            self._requests.keep_until(request, None)
        # What is not served is read by nobody any more; a build that was never finished never was.
        for generation in {stand.served - 1, stand.kept or 0, fresh.generation} - {0, stand.served}:
            clear_unserved(self._store, fresh._replace(generation=generation))
        return fresh, _cut(input_partitions(program, self._log), self._log)

    def _begin(self, order: Order) -> None:
        if self._request is None:
            return
        done = self._store.progress(order.state)
        undone = [group for group in range(KEY_GROUPS) if group not in done.standings]
        expected = done.rows + share_of(order.rows_expected, undone)
        state = order.state.generation
        if not self._requests.began(self._request, state, expected, rows=done.rows, cut=order.cut):
            raise Fenced(f"backfill {self._request} was cancelled before it began")

    def _switch(self, order: Order, built: list[Built]) -> None:
        """Serve what was built; from the moment the request says so, the supervisor does it should this process die."""
        fresh = order.state
        if self._store.progress(fresh).positions is None:
            # An erasure cleared what was built: some of it came from records that are erased now.
            raise StoreUnavailable(f"the new state of {fresh.pipeline} was cleared while it was built; build it again")
        if self._request is not None and not self._requests.built(self._request):
            raise Fenced(f"backfill {self._request} was cancelled while it was built")
        self._shadow(order)
        # What no request tells of, nobody would drop.
        keep_s = self._settings.pipeline.keep_generation_s if self._request is not None else 0
        before = switch(self._generations, self._store, fresh, keep_s)
        if self._request is not None:
            request = self._requests.get(self._request)
            message = f"{request.rows} rows rebuilt; {generation_served(fresh.generation)}"
            self._requests.completed(request, message, before, kept_until(before, self._clock.now(), keep_s))
            return
        rows, keys = sum(one.rows for one in built), sum(one.keys for one in built)
        message = f"{rows} rows of {keys} keys rebuilt; {generation_served(fresh.generation)}"
        self._registry.record_event(
            NewEvent(event_type="backfill_completed", source="backfill", subject=fresh.pipeline, message=message)
        )

    def _shadow(self, order: Order) -> None:
        """Have live workers take the new state over before it is served: nothing it is asked for then is seconds old.

        They are waited for a minute, since without a supervisor they do not come; it is served then all the same.
        """
        fresh = order.state
        before = self._generations.epochs(fresh)
        self._generations.shadow(fresh.pipeline, self._store.generation(fresh.pipeline), fresh.generation)
        program = Program.compile(order.pipeline, order.definitions)
        inputs = input_partitions(program, self._log)
        ends = _cut(inputs, self._log)

        def followed() -> bool:
            epochs = self._generations.epochs(fresh)
            standings = self._store.progress(fresh).standings
            applied = lowest_positions(program, inputs, standings)
            return all(map(gt, epochs, before)) and all(map(ge, applied, ends))

        if not wait_until(followed, _SHADOW_S, every_s=_ROUND_S):
            _log.warning("served_without_live_workers", state=str(fresh))

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

    def give_up(self, why: str, *, for_good: bool) -> None:
        """Say why a request failed, unless it is over or is being cancelled.

        Not ``for_good``: another job may go on with what this one has built (jobs/requested.py).
        """
        if self._request is None:
            return
        request = self._requests.find(self._request)
        if request is not None and for_good:
            self._requests.failed(request, why)
        elif request is not None:
            self._requests.stumbled(request.id, why)


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


def switch(generations: Generations, store: OnlineStore, fresh: StateName, keep_s: int) -> int | None:
    """Serve what was built; the generation that was served before and is kept, ``None`` where there is nothing to keep.

    Done again, it changes nothing.
    """
    stand = generations.of([fresh.pipeline])[fresh.pipeline]
    if stand.served >= fresh.generation:
        return stand.kept
    # A pipeline's first build has nothing before it: its workers would begin to fold all over.
    keep = keep_s > 0 and store.progress(fresh._replace(generation=stand.served)).positions is not None
    generations.switch(fresh.pipeline, stand.served, fresh.generation, keep=keep)
    return stand.served if keep else None


def kept_until(kept: int | None, now: Instant, keep_s: int) -> Instant | None:
    """Until when the generation before is kept."""
    return None if kept is None else now + keep_s * SECOND


def clear_unserved(store: OnlineStore, state: StateName) -> None:
    """Remove a build that is not served; whoever still writes it is fenced first."""
    store.claim(state, range(KEY_GROUPS))
    removed = store.clear(state, range(KEY_GROUPS))
    if removed:
        _log.info("unserved_generation_dropped", state=str(state), keys=removed)


def share_of(rows: int, groups: Sequence[int]) -> int:
    """The share of some key groups in rows that are guessed to be spread evenly."""
    return sum(rows * (group + 1) // KEY_GROUPS - rows * group // KEY_GROUPS for group in groups)


def _scratch(settings: Settings, state: StateName) -> Path:
    """Where actors put rows apart."""
    return settings.data_dir / "backfills" / f"{state.pipeline}#{state.generation}"


def _later(known: Instant | None, other: Instant | None) -> Instant | None:
    return max((each for each in (known, other) if each is not None), default=None)


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
        work.give_up(_last_line(error), for_good=isinstance(error, ThymeError) and not error.retryable)
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
