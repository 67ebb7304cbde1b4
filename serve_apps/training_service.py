"""Training sets that are asked for over HTTP: checked, kept, shown, handed out. Knows no HTTP; methods block.

None is made here: a request is a row that the supervisor has a job carry out (jobs/requested_training.py).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from featurelib.clock import Clock, format_instant
from featurelib.engine.read_plan import ReadPlan
from featurelib.engine.spine_columns import SpineColumns, roles_of
from featurelib.engine.table import ENTITY_ID
from featurelib.errors import Conflict, InvalidRequest
from featurelib.settings import Settings
from featurelib.stores.registry import Registry
from featurelib.stores.spine_sources import SpineSource, open_spine
from featurelib.stores.training_places import (
    Room,
    TrainingPlace,
    Upload,
    UploadForm,
    allowed_spine,
    is_csv_above,
    room_below,
)
from featurelib.stores.training_requests import (
    AskedBy,
    TrainingQuestion,
    TrainingRequests,
    TrainingSet,
    new_training_id,
)
from serve_apps.auth import Caller
from serve_apps.current import Snapshot

Json = dict[str, Any]
_CHECKED_ROWS = 65_536


class Receiving(NamedTuple):
    """An uploaded spine on its way: the training set it is for, and where its bytes go."""

    training_id: str
    upload: Upload


class TrainingService:
    """Training sets of a platform.

    Args:
        registry: where requests are kept.
        settings: where files lie, and which spines may be named.
        clock: no row may be of a later instant.
    """

    def __init__(self, registry: Registry, settings: Settings, clock: Clock) -> None:
        self._requests = TrainingRequests(registry.database, clock)
        self._settings = settings
        self._clock = clock

    def request(self, question: TrainingQuestion, snapshot: Snapshot, asked: AskedBy) -> Json:
        """Ask for a training set of a spine that lies somewhere, or like another one.

        Raises:
            NotFound: no such featureset, or no training set to make it like.
            Conflict: the one to make it like is not complete.
            InvalidRequest: the spine may not be named, cannot be read, or has not the columns or values it should.
            QuotaExceeded: as many are kept as may be.
            StoreUnavailable: a store does not answer.
        """
        self._free_room()
        if question.like_id is not None:
            like = self._whole(question.like_id)
            columns = (like.entity_column, like.timestamp_column)
            question = TrainingQuestion(like.featureset, like.spine, *columns, like.knowledge, like.id)
            return self._asked(new_training_id(), question, like.rows, asked)
        if question.spine is None:
            raise InvalidRequest(
                "spine: missing; name a file, a folder of Parquet files or a Delta table, or upload one"
            )
        where = allowed_spine(question.spine, self._settings.training.spine_roots)
        rows = self._checked(where, question, snapshot.plan(question.featureset))
        return self._asked(new_training_id(), question, rows, asked)

    def receive(self, question: TrainingQuestion, snapshot: Snapshot, form: UploadForm) -> Receiving:
        """Begin to take the spine of a training set.

        Raises:
            NotFound: no such featureset.
            QuotaExceeded: as many are kept as may be.
            StoreUnavailable: it cannot be written.
        """
        snapshot.plan(question.featureset)
        room, training_id = self._free_room(), new_training_id()
        return Receiving(training_id, self._place(training_id).receiving(form, room))

    def received(self, receiving: Receiving, question: TrainingQuestion, snapshot: Snapshot, asked: AskedBy) -> Json:
        """Ask for the training set of a spine that was taken whole.

        Raises:
            InvalidRequest: it cannot be read, or has not the columns or values it should.
            QuotaExceeded: as many are kept as may be, with those that came meanwhile.
            StoreUnavailable: a store does not answer.
        """
        receiving.upload.close()
        self._room().take(0)  # this one is among those that are there
        spine = self._place(receiving.training_id).spine()
        rows = self._checked(spine, question, snapshot.plan(question.featureset))
        return self._asked(receiving.training_id, question, rows, asked)

    def abandon(self, receiving: Receiving) -> None:
        """Remove what was taken of a spine that nothing becomes of."""
        self._place(receiving.training_id).remove()

    def latest(self, limit: int, featureset: str | None) -> list[Json]:
        """The latest training sets, newest first; of one featureset when it is named."""
        return [shown(each) for each in self._requests.latest(limit, featureset)]

    def get(self, training_id: str) -> Json:
        """One training set, with its manifest once it is complete.

        Raises:
            NotFound: there is none of that id.
            StoreUnavailable: a store does not answer.
        """
        return self._shown(self._requests.get(training_id))

    def cancel(self, training_id: str, caller: Caller) -> Json:
        """Have one end; nothing of it is kept.

        Raises:
            NotFound: there is none of that id.
            Forbidden: it was asked for with another key, and this one may only read.
            Conflict: it is over.
        """
        _check_right(self._requests.get(training_id), caller)
        return shown(self._requests.cancel(training_id, caller.fingerprint))

    def forget(self, training_id: str, caller: Caller) -> Json:
        """Delete one that is over, and its files; gives it as it was.

        Raises:
            NotFound: there is none of that id.
            Forbidden: it was asked for with another key, and this one may only read.
            Conflict: it is not over.
            StoreUnavailable: its files cannot be deleted.
        """
        found = self._requests.get(training_id)
        _check_right(found, caller)
        if found.is_open:
            raise Conflict(f"training set {training_id} is {found.state}: cancel it, or wait until it is over")
        self._place(training_id).remove()
        self._requests.forget(training_id)
        return shown(found)

    def arrow(self, training_id: str) -> Iterator[bytes]:
        """The rows of a complete one as an Arrow IPC stream, part by part.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is not complete, or its files are gone.
            StoreUnavailable: its files cannot be read.
        """
        schema, batches = self._made(training_id).batches()
        return _stream(schema, batches)

    def parquet(self, training_id: str) -> Iterator[bytes]:
        """The rows of a complete one as a Parquet file, part by part; raises what :meth:`arrow` does."""
        parts = self._made(training_id).parquet()
        first = next(parts, b"")
        return _after(first, parts)

    def _whole(self, training_id: str) -> TrainingSet:
        found = self._requests.get(training_id)
        if found.state != "complete":
            said = f": {found.detail}" if found.detail else ""
            raise Conflict(f"training set {training_id} is {found.state}, not complete{said}")
        return found

    def _made(self, training_id: str) -> TrainingPlace:
        self._whole(training_id)
        place = self._place(training_id)
        if place.manifest() is None:
            raise Conflict(f"the files of training set {training_id} are gone: delete it, and ask for it anew")
        return place

    def _room(self) -> Room:
        return room_below(self._settings.training_url, self._settings.training.kept_bytes)

    def _free_room(self) -> Room:
        """The room there is; refuses where there is none, and where there are as many training sets as may be."""
        self._requests.check_count(self._settings.training.most_kept)
        room = self._room()
        room.check()
        return room

    def _asked(self, training_id: str, question: TrainingQuestion, rows: int | None, asked: AskedBy) -> Json:
        return self._shown(
            self._requests.request(training_id, question, rows, asked, self._settings.training.most_kept)
        )

    def _place(self, training_id: str) -> TrainingPlace:
        return TrainingPlace(self._settings.training_url, training_id)

    def _checked(self, spine: str, question: TrainingQuestion, plan: ReadPlan) -> int | None:
        """How many rows a spine has; of one that a replica may read by itself every value is looked at.

        A large CSV file is left to the job: it is read whole, and only all of it says what its columns are.
        """
        if is_csv_above(spine, self._settings.serving.max_body_bytes):
            return None
        source = open_spine(spine, (question.entity_column or ENTITY_ID, plan.entity_name, question.timestamp_column))
        roles = roles_of(plan, source.schema, question.entity_column, question.timestamp_column)
        rows = source.count_rows()
        # What a CSV file holds of request features is text here; the job reads it as their types.
        if rows <= self._settings.serving.offline_rows and source.identity.form != "csv":
            _read(source, SpineColumns(plan, roles, self._clock.now()))
        return rows

    def _shown(self, found: TrainingSet) -> Json:
        manifest = self._place(found.id).manifest() if found.state == "complete" else None
        return {**shown(found), "manifest": None if manifest is None else manifest.model_dump(mode="json")}


def shown(found: TrainingSet) -> Json:
    """A training set on the wire, without its manifest."""
    instants = {name: format_instant(getattr(found, name)) for name in ("created_at", "updated_at")}
    tree = found.model_dump(exclude={"like_id"})
    return {**tree, "like": found.like_id, **instants}


def _check_right(found: TrainingSet, caller: Caller) -> None:
    if found.requested_by is None or found.requested_by != caller.fingerprint:
        caller.require("writer")


def _read(source: SpineSource, columns: SpineColumns) -> None:
    for batch in source.batches(_CHECKED_ROWS):
        columns.read(batch)


def _stream(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            yield _taken(sink)
    yield _taken(sink)


def _taken(sink: io.BytesIO) -> bytes:
    part = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return part


def _after(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
