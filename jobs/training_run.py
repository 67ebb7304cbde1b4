"""One training set, from its spine to its manifest: pinned, split, read part by part, put together, published.

A run that stops anywhere is gone on with by the same request: what is pinned stays pinned, and parts that were read are
not read again. Nothing of it is seen in the output's folder before it is whole, and the manifest comes last.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import polars as pl
import pyarrow as pa

import featurelib
from featurelib.clock import Clock, Instant, format_instant, parse_instant
from featurelib.definitions import DatasetDef, Definitions, digest, ref
from featurelib.engine.asof import Knowledge
from featurelib.engine.program import needed_by
from featurelib.engine.read_plan import ReadPlan, compile_plan, compile_views
from featurelib.engine.spine_columns import SpineColumns, SpineRows, roles_of
from featurelib.engine.table import ENTITY_ID
from featurelib.errors import Conflict, Erased, InvalidRequest, NotFound, RequestError
from featurelib.settings import Settings
from featurelib.stores.archive import Archive
from featurelib.stores.erasures import Erasures
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.point_in_time import PointInTime
from featurelib.stores.registry import Registry
from featurelib.stores.spine_reader import programs_of
from featurelib.stores.spine_sources import SpineSource, open_spine
from featurelib.stores.training_files import (
    Assembled,
    DataFile,
    DatasetInput,
    Manifest,
    Output,
    TrainingFolder,
    TrainingOrder,
    TrainingRequest,
    check_storable,
    read_manifest,
)
from jobs.extractors import close_runner, runner_of

# What a part holds in memory at once, some 400 MB, so that its history is read once per pipeline; the end of a run
# redoes one.
_ROWS_OF_A_PART = 250_000
_RECORDS_OF_A_PART = 1_250_000
_MOST_PARTS = 64
_BATCH_ROWS = 65_536
_MOST_ERASURES = 1_000


class TrainingAsked(NamedTuple):
    """What a person asks for.

    Attributes:
        spine: a file, a folder of Parquet files or a Delta table; ``None``: that of ``like``.
        output: the folder of the result, or an object-store URL.
        featureset: its name; ``None``: that of ``like``.
        entity_column: the column of ids; ``None``: the one so named.
        timestamp_column: the column of instants.
        knowledge: ``as_served`` counts of each row only what had been accepted by its instant.
        form: of the result.
        like: a manifest, at a path or URL: of the records and definitions that it names.
        overwrite: whether a training set that is there is replaced.
    """

    output: str
    spine: str | None = None
    featureset: str | None = None
    entity_column: str | None = None
    timestamp_column: str = "timestamp"
    knowledge: Knowledge = "latest"
    form: Output = "parquet"
    like: str | None = None
    overwrite: bool = False


class Progress(NamedTuple):
    """How far a run is."""

    parts_done: int
    parts: int
    rows: int


class Work(NamedTuple):
    """The parts that are left to be read."""

    output: str
    folder: str
    parts: tuple[int, ...]
    rows: int


ReadParts = Callable[[Work], Iterator[int]]
"""Reads parts, in any order, and gives the number of each that is done."""


class TrainingRun:
    """Makes one training set.

    Args:
        settings: where records and definitions are.
        clock: says which instants have been.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock

    def make(
        self, asked: TrainingAsked, read: ReadParts, tell: Callable[[Progress], None] = lambda _: None
    ) -> Manifest:
        """Make it, or go on with one that was begun.

        Args:
            asked: what.
            read: reads the parts.
            tell: called when the spine is in its parts, and whenever one is done.

        Returns:
            What the training set was made of, as its manifest says it.

        Raises:
            NotFound: unknown featureset.
            RequestError: the spine or the request is wrong; the message names column and row.
            Conflict: there is a training set already, or it cannot be made again as its manifest says.
            Erased: records of the manifest were erased since.
            StoreUnavailable: a store does not answer, or a disk is full; the same request goes on.
            UserCodeError: an extractor failed, for whichever row.
        """
        with closing(_Stores(self._settings, self._clock)) as stores:
            like = read_manifest(asked.like) if asked.like else None
            folder, order = self._prepared(_Preparation(stores, asked, like))
            left = tuple(part for part in range(order.partitions) if not folder.done(part))
            done = order.partitions - len(left)
            tell(Progress(done, order.partitions, order.rows))
            for _ in read(Work(asked.output, folder.name, left, order.rows)) if left else ():
                done += 1
                tell(Progress(done, order.partitions, order.rows))
            assembled = folder.assemble(order)
            # Not before: what was erased while it was read may be missing from some parts and not from others.
            stores.refuse_lost(order.cut, order.read_at)
            if like is not None:
                _refuse_difference(like, assembled)
            manifest = _manifest(order, assembled, folder.publish(order.request.output))
            folder.finish(manifest)
            return manifest

    def _prepared(self, preparation: _Preparation) -> tuple[TrainingFolder, TrainingOrder]:
        folder = preparation.folder()
        if folder.is_prepared():
            order = folder.order()
            preparation.stores.refuse_lost(order.cut, order.read_at)
            return folder, order
        folder.begin()
        try:
            order = preparation.order(folder)
        except RequestError:  # nothing will go on with it
            folder.remove()
            raise
        folder.put_order(order)
        return folder, order


class _Stores:
    """What a run reads: definitions, the ends of logs, what was erased."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self.clock = clock
        self._runner = runner_of(settings)
        self._log = Log(settings.online.redis_url.get_secret_value(), clock)
        self._archive = Archive(settings.archive_url)
        self._registry = Registry(settings.registry_url, clock)
        self._history = PointInTime(History(self._archive, self._log), self._log)

    def close(self) -> None:
        """Close connections, and end child processes."""
        self._log.close()
        self._registry.close()
        close_runner(self._runner)

    def plan(self, featureset: str, version: int | None) -> tuple[ReadPlan, int, str]:
        """How a featureset is read, the registry version that says so, and the digest of all that bears on it."""
        version = self._registry.version() if version is None else version
        definitions = self._registry.definitions_at(version)
        found = definitions.featureset(featureset)
        if found is None:
            names = ", ".join(sorted(each.name for each in definitions.featuresets)) or "none"
            raise NotFound(f"featureset {featureset!r} is not committed; committed are {names}")
        views, _ = compile_views(definitions)
        plan = compile_plan(found, definitions, views, self._runner)
        return plan, version, digest(_read_by(plan, definitions))

    def cut(self, plan: ReadPlan) -> dict[str, tuple[int, ...]]:
        """Per dataset where its log ends now."""
        return {name: tuple(offsets) for name, offsets in self._history.spine(programs_of(plan)).cut.items()}

    def table_versions(self, plan: ReadPlan) -> dict[str, int]:
        """Per dataset the version of its Delta table."""
        return {ref(each): self._archive.snapshot(each).version for each in _sources(plan)}

    def refuse_lost(self, cut: dict[str, tuple[int, ...]], read_at: Instant) -> None:
        """Refuse to read of records of which some are gone.

        Raises:
            Erased: some were erased after they were noted.
            Conflict: neither log nor archive holds them.
        """
        erasures = Erasures(self._registry.database, self.clock).list(_MOST_ERASURES)
        names = {name.partition("@")[0] for name in cut}
        since = [each for each in erasures if each.dataset in names and each.created_at >= read_at]
        if since:
            raise Erased(
                f"records of {since[-1].dataset} were erased after {format_instant(read_at)}, when this training set "
                "noted what there is: it cannot be made of the same records. Make a new one"
            )
        definitions = {ref(each): each for each in self._registry.definitions().datasets}
        for name, offsets in cut.items():
            self._refuse_missing(name, definitions.get(name), offsets)

    def _refuse_missing(self, name: str, dataset: DatasetDef | None, offsets: Sequence[int]) -> None:
        snapshot = self._archive.snapshot(dataset) if dataset else None
        for part, end in enumerate(offsets):
            archived = snapshot.archived_offset(part) if snapshot else 0
            kept = archived if archived >= end else self._log.head(name, part).next_offset
            if kept < end or (archived < end and self._log.first_offset(name, part) > archived):
                raise Conflict(
                    f"records of {name}, partition {part}, below offset {end} are neither in the archive nor in the "
                    "log: the training set cannot be made of the same records. Make a new one"
                )


class _Preparation:
    """Turns what is asked for into an order and a spine in parts."""

    def __init__(self, stores: _Stores, asked: TrainingAsked, like: Manifest | None) -> None:
        self.stores = stores
        self._asked = asked
        self._like = like
        self._read_at = stores.clock.now() if like is None else parse_instant(like.read_at)
        featureset = _featureset(asked, like)
        version = None if like is None else like.registry_version
        self._plan, self._version, self._definition = stores.plan(featureset, version)
        self._spine = self._open()
        self._request = self._requested(featureset)
        self._roles = roles_of(
            self._plan, self._spine.schema, self._request.entity_column, self._request.timestamp_column
        )

    def folder(self) -> TrainingFolder:
        """Where it is made.

        Raises:
            Conflict: a training set is there.
        """
        folder = TrainingFolder.of(self._asked.output, self._request)
        if not self._asked.overwrite and folder.manifest() is not None:
            raise Conflict("output: a training set is there already; give another folder, or --overwrite")
        return folder

    def order(self, folder: TrainingFolder) -> TrainingOrder:
        """Put the spine into its parts, and say what is to be read of which records."""
        check_storable(self._spine.schema, self._request.output)
        cut, tables = self._inputs()
        parts = _parts(self._spine.count_rows(), max(map(sum, cut.values()), default=0))
        rows = folder.put_spine(self._spine.schema, self._batches(), parts)
        return TrainingOrder(
            featureset=self._request.featureset,
            registry_version=self._version,
            knowledge=self._request.knowledge,
            cut=cut,
            partitions=parts,
            request=self._request,
            read_at=self._read_at,
            definition=self._definition,
            tables=tables,
            rows=rows,
        )

    def _inputs(self) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
        if self._like is None:
            return self.stores.cut(self._plan), self.stores.table_versions(self._plan)
        cut = {name: each.offsets for name, each in self._like.inputs.items()}
        if self._definition != self._like.definition:
            raise Conflict("the definitions of the manifest's registry version are not those it was made by")
        self.stores.refuse_lost(cut, self._read_at)
        return cut, {name: each.table_version for name, each in self._like.inputs.items()}

    def _batches(self) -> Iterator[tuple[pa.RecordBatch, SpineRows]]:
        columns = SpineColumns(self._plan, self._roles, self._read_at)
        for batch in self._spine.batches(_BATCH_ROWS):
            yield batch, columns.read(batch)

    def _open(self) -> SpineSource:
        asked, like = self._asked, self._like
        url = asked.spine or (like.request.spine.url if like else None)
        if url is None:
            raise InvalidRequest("spine: missing; name a file, a folder of Parquet files or a Delta table")
        version = like.request.spine.version if like else None
        found = open_spine(url, _text_columns(asked, self._plan, like), version)
        if like is not None and not found.identity.is_same(like.request.spine):
            raise InvalidRequest(f"spine: {found.identity.url} is not the spine that the manifest names")
        return found

    def _requested(self, featureset: str) -> TrainingRequest:
        asked, like = self._asked, self._like
        if like is not None:
            return like.request.model_copy(
                update={"output": asked.form, "like": like.digest, "spine": self._spine.identity}
            )
        roles = roles_of(self._plan, self._spine.schema, asked.entity_column, asked.timestamp_column)
        return TrainingRequest(
            featureset=featureset,
            spine=self._spine.identity,
            entity_column=roles.entity,
            timestamp_column=roles.timestamp,
            knowledge=asked.knowledge,
            output=asked.form,
        )


def _parts(rows: int, records: int) -> int:
    wanted = max(-(-rows // _ROWS_OF_A_PART), -(-records // _RECORDS_OF_A_PART))
    return min(_MOST_PARTS, max(1, wanted))


def _featureset(asked: TrainingAsked, like: Manifest | None) -> str:
    named = {name for name in (asked.featureset, like.request.featureset if like else None) if name}
    if len(named) != 1:
        raise InvalidRequest(
            f"featureset: the manifest is of {like.request.featureset!r}, not of {asked.featureset!r}"
            if like
            else "featureset: missing; name one, or a manifest to make a training set like"
        )
    return named.pop()


def _text_columns(asked: TrainingAsked, plan: ReadPlan, like: Manifest | None) -> Sequence[str]:
    """Columns whose cells a featureset reads itself, whatever CSV takes them for."""
    requested = [slot.feature.name for slot in plan.graph.slots if slot.feature.request and slot.feature.type == "str"]
    if like is not None:
        return (like.request.entity_column, like.request.timestamp_column, *requested)
    return (asked.entity_column or ENTITY_ID, plan.entity_name, asked.timestamp_column, *requested)


def _sources(plan: ReadPlan) -> list[DatasetDef]:
    found = {ref(dataset): dataset for program in programs_of(plan) for dataset in program.sources}
    return [found[name] for name in sorted(found)]


def _read_by(plan: ReadPlan, definitions: Definitions) -> Definitions:
    """Every definition that bears on what a featureset gives."""
    featuresets = {slot.featureset for slot in plan.graph.slots}
    pipelines = {program.ref: program.pipeline for program in programs_of(plan)}
    datasets: dict[str, DatasetDef] = {}
    for pipeline in list(pipelines.values()):
        needed = needed_by(pipeline, definitions)
        datasets |= {ref(each): each for each in needed.datasets}
        pipelines |= {ref(each): each for each in needed.pipelines}
    return Definitions(
        datasets=tuple(datasets[name] for name in sorted(datasets)),
        pipelines=tuple(pipelines[name] for name in sorted(pipelines)),
        featuresets=tuple(each for each in definitions.featuresets if each.name in featuresets),
    )


def _manifest(order: TrainingOrder, assembled: Assembled, files: tuple[DataFile, ...]) -> Manifest:
    return Manifest(
        # Made like another it is the other: nothing in it says that it was made twice.
        request=order.request.model_copy(update={"like": None}),
        registry_version=order.registry_version,
        definition=order.definition,
        code=_code(),
        read_at=format_instant(order.read_at),
        inputs={
            name: DatasetInput(offsets=offsets, table_version=order.tables[name]) for name, offsets in order.cut.items()
        },
        columns={field.name: str(field.type) for field in assembled.schema},
        rows=assembled.rows,
        complete_rows=assembled.complete,
        rows_sha256=assembled.sha256,
        files=files,
    )


def _code() -> dict[str, str]:
    """Versions of what computes the rows and writes the bytes."""
    return {
        "thyme": featurelib.__version__,
        "python": platform.python_version(),
        "polars": pl.__version__,
        "pyarrow": pa.__version__,
    }


def _refuse_difference(like: Manifest, assembled: Assembled) -> None:
    if assembled.sha256 == like.rows_sha256:
        return
    code = {name: (was, _code().get(name)) for name, was in like.code.items() if was != _code().get(name)}
    why = (
        "; ".join(f"{name} was {was} and is {now}" for name, (was, now) in code.items())
        or "no difference of the code says why"
    )
    raise Conflict(f"the rows differ from those of the manifest ({why}); nothing was published")
