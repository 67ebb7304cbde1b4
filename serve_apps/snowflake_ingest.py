"""Ingest as Snowflake's online feature store has it: records judged one by one, appended, and waited for.

A record must hold what its stream source declares and nothing else, in the JSON types declared; what it must be beyond
that is said by the door of every dataset (:mod:`featurelib.stores.intake`). Records upsert by key and event time. Knows
no HTTP; :meth:`StreamIngest.take` blocks, :meth:`StreamIngest.applied` waits on the event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from featurelib.definitions import Cdc, DatasetDef, FieldDef, ref
from featurelib.engine.cdc import admit
from featurelib.engine.coerce import Rejected
from featurelib.errors import StoreUnavailable
from featurelib.settings import SnowflakeSettings
from featurelib.stores.dead_letters import DeadLetter
from featurelib.stores.intake import Upserted
from featurelib.types import decimal_scale, element_type
from serve_apps.applying import Ends, Inputs, targets_of
from serve_apps.current import Snapshot
from serve_apps.intake_service import IntakeService
from serve_apps.snowflake_outcomes import Awaited, Outcomes, Stored
from serve_apps.snowflake_views import Consumer, consumers, stream_source
from serve_apps.snowflake_wire import (
    RecordCounts,
    Refusal,
    RefusedRecord,
    SourceResult,
    StreamRecords,
    ViewError,
    ViewResult,
    ViewResults,
)

ORIGIN = "POST /api/v1/ingest"
MISSING, TYPE, TIMESTAMP, TOO_LARGE, ARGUMENT = (
    "MISSING_REQUIRED_FIELD",
    "INVALID_FIELD_TYPE",
    "INVALID_TIMESTAMP",
    "RECORD_TOO_LARGE",
    "INVALID_ARGUMENT",
)
"""Codes of refused records."""

# The same as the door of every dataset says, where it says it too.
_REASONS = {MISSING: "missing_field", TYPE: "wrong_type", TIMESTAMP: "invalid_timestamp", TOO_LARGE: "too_large"}

_ERASED = Refusal(ARGUMENT, "The record is of an entity that was erased for good; nothing of it was kept")

Record = Mapping[str, Any]
# What a column takes of JSON. Clients send decimals and what has no JSON form of its own as text.
_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "int": ("integer", (int, float)),
    "float": ("number", (int, float)),
    "str": ("string", (str,)),
    "bool": ("boolean", (bool,)),
    "datetime": ("ISO 8601 timestamp", (str,)),
}
_LIST = ("array", (list,))
_DECIMAL = ("number", (int, float, str))
_JSON_NAMES = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}


class Judged(NamedTuple):
    """The records of a source that may pass on, the place each had, and those that may not."""

    source: DatasetDef | None
    cdc: Cdc
    fit: list[Record]
    places: list[int]
    refused: dict[int, Refusal]

    @property
    def total(self) -> int:
        """How many came."""
        return len(self.fit) + len(self.refused)


class Part(NamedTuple):
    """What became of one source's records so far, and what is still to be waited for."""

    total: int
    refused: dict[int, Refusal]
    awaited: Sequence[tuple[Consumer, Sequence[Awaited]]]
    failure: ViewError | None = None
    stored: Stored | None = None


class Taken(NamedTuple):
    """Every source's part, and how long the steps took, in milliseconds."""

    parts: dict[str, Part]
    steps_ms: dict[str, float]


class StreamIngest:
    """Takes records for stream sources.

    Args:
        doors: the doors of the datasets.
        inputs: the input partitions of pipelines.
        outcomes: waits for pipelines.
        settings: the limits.
    """

    def __init__(self, doors: IntakeService, inputs: Inputs, outcomes: Outcomes, settings: SnowflakeSettings) -> None:
        self._doors = doors
        self._inputs = inputs
        self._outcomes = outcomes
        self._settings = settings

    def take(self, request: StreamRecords, snapshot: Snapshot, revisions: Mapping[str, int]) -> Taken:
        """Judge the records of every source and append those that fit; with ``dry_run``, judge them only.

        Raises:
            StoreUnavailable: not everything was appended; sent again, nothing is taken twice.
        """
        begun = time.perf_counter()
        judged = {name: self._judged(name, records, snapshot) for name, records in request.records.items()}
        if request.dry_run:
            parts = {name: Part(each.total, _all_refused(each), []) for name, each in judged.items()}
            return Taken(parts, {"validate": _ms(time.perf_counter() - begun)})
        validated = time.perf_counter()
        parts = {}
        for name, each in judged.items():
            views = consumers(snapshot, revisions, name)
            try:
                parts[name] = self._appended(request.records[name], each, views)
            except StoreUnavailable as error:
                # Sources are independent: what an earlier one appended stays, and is answered for. Only an entry of a
                # view can say that records were not stored; without one the request is to be sent again as a whole.
                if not views or not any(part.stored for part in parts.values()):
                    raise
                parts[name] = _unwritten(each, views, error)
        appended = time.perf_counter()
        return Taken(parts, {"validate": _ms(validated - begun), "append": _ms(appended - validated)})

    async def applied(self, part: Part) -> SourceResult:
        """The answer for a source, once every feature view has applied its records or time is up."""
        results = await asyncio.gather(*(self._result(view, awaited, part) for view, awaited in part.awaited))
        errors = [RefusedRecord(index, told) for index, told in sorted(part.refused.items())]
        records = RecordCounts(part.total, len(errors), errors or msgspec.UNSET)
        return SourceResult(records, ViewResults(sum(each.status == "failed" for each in results), results))

    async def _result(self, view: Consumer, awaited: Sequence[Awaited], part: Part) -> ViewResult:
        error = part.failure or _broken(view) or await self._outcomes.failure(awaited, part.stored or Stored())
        if error is None:
            return ViewResult(view.name, view.version, "success")
        return ViewResult(view.name, view.version, "failed", error)

    def _judged(self, name: str, records: Sequence[Record], snapshot: Snapshot) -> Judged:
        source = stream_source(snapshot.definitions, name)
        if source is None:
            told = Refusal(ARGUMENT, f"Unknown stream source: {name[:128]}")
            return Judged(None, "append", [], [], dict.fromkeys(range(len(records)), told))
        judged = Judged(source, snapshot.definitions.cdc(name), [], [], {})
        for place, record in enumerate(records):
            refusal = judge(record, source, self._settings.max_record_bytes)
            if refusal is None:
                judged.fit.append(record)
                judged.places.append(place)
            else:
                judged.refused[place] = refusal
        return judged

    def _appended(self, records: Sequence[Record], judged: Judged, views: Sequence[Consumer]) -> Part:
        if judged.source is None:
            return Part(judged.total, judged.refused, [])
        letters = [_letter(records[place], told) for place, told in judged.refused.items()]
        done = self._doors.upsert(judged.source.name, judged.fit, ORIGIN, letters)
        refused = {**judged.refused, **_told_of_all(judged, done.dataset, done.taken.rejected)}
        refused |= dict.fromkeys((judged.places[row] for row in done.erased), _ERASED)
        ends = {(ref(done.dataset), partition): end for partition, end in done.ends.items()}
        awaited = [(view, self._awaited(view, ends)) for view in views]
        return Part(judged.total, refused, awaited, stored=_stored(done))

    def _awaited(self, view: Consumer, ends: Ends) -> list[Awaited]:
        return [
            Awaited.of(program, targets)
            for program in view.programs
            if (targets := targets_of(program, self._inputs.of(program), ends))
        ]


def judge(record: Record, source: DatasetDef, largest: int) -> Refusal | None:
    """Why a record cannot be one of a stream source, by its fields and their JSON types; ``None``: nothing is known.

    Args:
        record: as it came.
        source: what it must hold.
        largest: most bytes of its JSON form.
    """
    size = len(msgspec.json.encode(record))
    if size > largest:
        return Refusal(TOO_LARGE, f"Record has {size} bytes; at most {largest} are taken")
    for field in source.fields:
        if record.get(field.name) is None and (field.key or field.timestamp or not field.optional):
            return Refusal(MISSING, f"Record is missing required field: {field.name}")
    unknown = next((name for name in record if source.field(name) is None), None)
    if unknown is not None:
        return Refusal(TYPE, f"Field '{unknown[:128]}': not in the schema of stream source '{source.name}'")
    return next((refusal for f in source.fields if (refusal := _wrong_kind(record.get(f.name), f))), None)


def told_of(source: DatasetDef, reason: str, field: str, message: str) -> Refusal:
    """What the door of a dataset says of a record, in this surface's words."""
    if reason == "missing_field":
        return Refusal(MISSING, f"Record is missing required field: {field}")
    column = source.field(field)
    code = TIMESTAMP if column is not None and column.type == "datetime" else TYPE
    return Refusal(code, f"Field '{field}': {message.removeprefix(f'{field}: ')}")


def _wrong_kind(value: Any, field: FieldDef) -> Refusal | None:
    if value is None:
        return None
    expected, kinds = _taken_by(field.type)
    if isinstance(value, float | Decimal) and not _is_double(value):
        return Refusal(TYPE, f"Field '{field.name}': expected {expected}, got a number that no double holds")
    if isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds):
        return None
    if field.type == "datetime":
        return Refusal(TIMESTAMP, f"Field '{field.name}': expected {expected}, got {_named(value)}")
    return Refusal(TYPE, f"Field '{field.name}': expected {expected}, got {_named(value)}")


def _is_double(value: float | Decimal) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _taken_by(type_name: str) -> tuple[str, tuple[type, ...]]:
    if element_type(type_name):
        return _LIST
    return _DECIMAL if decimal_scale(type_name) is not None else _KINDS[type_name]


def _named(value: Any) -> str:
    """The JSON type of a value; of an infinity, which clients send as text, what it is."""
    if isinstance(value, str) and value.lower() in {"inf", "-inf", "nan"}:
        return value
    return _JSON_NAMES.get(type(value), "number")


def _letter(record: Record, told: Refusal) -> DeadLetter:
    kept: Record = record if told.code != TOO_LARGE else {"text": "left out: too large"}
    return DeadLetter(kept, _REASONS[told.code], "", told.message)


def _told_of_all(judged: Judged, source: DatasetDef, rejected: Sequence[Rejected]) -> dict[int, Refusal]:
    """By the place a record came at, what the door says of it."""
    return {judged.places[bad.row]: told_of(source, bad.reason, bad.field, bad.message) for bad in rejected}


def _all_refused(judged: Judged) -> dict[int, Refusal]:
    """What a source would refuse, found without storing anything."""
    if judged.source is None:
        return judged.refused
    rejected = admit(judged.fit, judged.source, judged.cdc).rejected
    return {**judged.refused, **_told_of_all(judged, judged.source, rejected)}


def _stored(done: Upserted) -> Stored:
    spans = {partition: (done.firsts[partition], end) for partition, end in done.ends.items()}
    return Stored(ref(done.dataset), spans, done.times, again=done.taken.duplicates > 0)


def _broken(view: Consumer) -> ViewError | None:
    if not view.broken:
        return None
    text = f"the records are stored; the feature view does not compile: {view.broken}"
    return ViewError("FAILED_PRECONDITION", text, retryable=False)


def _unwritten(judged: Judged, views: Sequence[Consumer], error: StoreUnavailable) -> Part:
    failure = ViewError("WRITE_ERROR", str(error), "offline", retryable=True)
    return Part(judged.total, judged.refused, [(view, ()) for view in views], failure)


def _ms(seconds: float) -> float:
    return round(seconds * 1_000, 3)
