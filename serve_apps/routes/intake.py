"""`/api/v1/log`, `/api/v1/webhooks/…`, `/api/v1/dead-letters`: what goes through the doors of datasets."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

import anyio.to_thread
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from featurelib.clock import format_instant
from featurelib.errors import InvalidRequest
from featurelib.stores.dead_letters import StoredDeadLetter
from featurelib.stores.intake import ACCEPTED, DEAD_LETTER, DUPLICATE, ERASED, Taken
from serve_apps.auth import Caller
from serve_apps.exchange import Exchange
from serve_apps.intake_service import Chosen, IntakeService, Outcome, Problem, Sent
from serve_apps.log_blocks import ArrowReader, BlockReader, LineReader
from serve_apps.log_body import DOCUMENT, read_log_body
from serve_apps.log_stream import MIXED, MOST_PROBLEMS, LogStream, Run, limiter, runs_of
from serve_apps.messages import Answer, Call, Handler, json_answer, writable
from serve_apps.routes.access import ServicesOf, Writer
from serve_apps.services import Services
from serve_apps.tabular import ARROW

router = APIRouter(tags=["intake"])

LOG_PATH = "/api/v1/log"
"""Where records are sent."""
_MOST_IDS = 1_000
_KEY_HEADER = "Idempotency-Key"
_RAW_KEY_HEADER = _KEY_HEADER.lower().encode()
_READERS: Mapping[bytes, type[BlockReader]] = {
    b"application/x-ndjson": LineReader,
    b"application/ndjson": LineReader,
    b"application/jsonl": LineReader,
    ARROW: ArrowReader,
}
_OUTCOMES = {
    ACCEPTED: "accepted",
    DUPLICATE: "duplicate",
    DEAD_LETTER: "dead_letter",
    ERASED: "erased",
    MIXED: "mixed",
}
_DELIVERY_HEADERS = (_KEY_HEADER, "X-GitHub-Delivery")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class RejectedRecord(BaseModel):
    """A record that went to the dead letters."""

    row: int
    """Its place in the request, from 0."""
    reason: str
    field: str
    message: str


class OutcomeRun(BaseModel):
    """Records in a row of which the same became."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    outcome: Literal["accepted", "duplicate", "dead_letter", "erased", "mixed"]
    """As counted above; `mixed` stands for all that comes after the first 10,000 runs."""
    records: int


class LogAnswer(BaseModel):
    """What became of the records."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    events_sent: int
    """Accepted into the log."""
    duplicates: int
    """Held already: sent before under the same key, or with the same event id."""
    late: int
    """Of those accepted: stored and counted, but too late to be aggregated."""
    rejected: int
    """Gone to the dataset's dead letters; sent again under the same key they are not kept twice."""
    erased: int
    """Refused, and kept nowhere: their entities were erased for good."""
    problems: list[RejectedRecord]
    """Why, for the first hundred."""
    outcomes: list[OutcomeRun]
    """What became of each record, in the order sent, those in a row with the same outcome together."""


class DeadLetterRecord(BaseModel):
    """A record that could not be accepted."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    """What names it, for replay and drop."""
    record: dict[str, Any]
    """As it came; under `text` where it could not be read at all."""
    reason: str
    """Stable code: why it is a dead letter, as of its last replay."""
    field: str
    """The column at fault, where there is one."""
    message: str
    origin: str
    """The stream of the source it came from, or the route it was sent to."""
    place: str
    """Where in that stream: its number or name."""
    at: str
    """When it came."""


class DeadLetterPage(BaseModel):
    """Dead letters, newest first."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    dead_letters: list[DeadLetterRecord]
    cursor: str | None
    """What to ask for the next page with; null: this is the last."""


class ChosenLetters(BaseModel):
    """Which dead letters: those of `ids`, or `all` of them; of these those with the `reason`, where one is given."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    dataset: str
    ids: list[str] | None = Field(default=None, max_length=_MOST_IDS)
    """At most 1,000."""
    all: bool = False
    reason: str = ""


class ReplayAnswer(BaseModel):
    """What became of the dead letters."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    accepted: int
    """Accepted into the log; dead letters no more."""
    duplicates: int
    """Found in the log already; dead letters no more."""
    late: int
    """Of those accepted: too late to be aggregated."""
    failed: int
    """Still dead letters, under the reason of today."""
    missing: int
    """Named, but no dead letters: replayed or dropped before."""


class DropAnswer(BaseModel):
    """How many dead letters were removed."""

    dropped: int


def describe(document: dict[str, Any]) -> None:
    """Add the hot route to an OpenAPI document: FastAPI does not know it."""
    parameters = [{**_DATASET_PARAMETER}, _KEY_PARAMETER]
    delivery = document["paths"]["/api/v1/webhooks/{dataset}"]["post"]
    document["paths"][LOG_PATH] = {
        "post": {
            "tags": ["intake"],
            "summary": "Log",
            "description": _DESCRIPTION,
            "operationId": "log_api_v1_log_post",
            "parameters": parameters,
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": DOCUMENT, "example": _EXAMPLE},
                    "application/x-ndjson": {"schema": {"type": "string"}, "example": _EXAMPLE_LINES},
                    ARROW.decode(): {"schema": {"type": "string", "format": "binary"}},
                },
            },
            "responses": {status: dict(answer) for status, answer in delivery["responses"].items()},
        }
    }


def _service(services: Services) -> IntakeService:
    stores = services.stores
    return IntakeService(stores.registry, stores.log, services.shapes, services.settings)


_KEY_PARAMETER = {
    "name": _KEY_HEADER,
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "Visible ASCII. The same request sent again under it adds nothing, for 30 days.",
}
_DATASET_PARAMETER = {
    "name": "dataset",
    "in": "query",
    "required": False,
    "schema": {"type": "string"},
    "description": "Whose records these are, where the body does not say it: with lines of JSON and Arrow.",
}
_DESCRIPTION = """Append records to a dataset; one that does not fit goes to its dead letters, the others go on.

As JSON, the body names the dataset and holds at most 10,000 records. Lines of JSON and an Arrow IPC stream (without
compression) may be of any size up to `ingest.stream_bytes`: they are taken block by block while they come, and the
dataset is named in the query. Should such a body fail on its way, the error says how many records were taken before;
sent again under its key, it goes on from there."""
_EXAMPLE_EVENT = {"order": "o1", "total": 12.5, "at": "2026-04-01T10:00:00Z"}
_EXAMPLE = {"dataset": "Order", "events": [_EXAMPLE_EVENT]}
_EXAMPLE_LINES = json.dumps(_EXAMPLE_EVENT) + "\n"
_CONFLICT: dict[int | str, dict[str, Any]] = {409: {"description": "The key came before, with another body."}}
_DELIVERY = {
    "parameters": [_KEY_PARAMETER],
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {}}, "application/x-ndjson": {"schema": {"type": "string"}}},
    },
}


class LogRoutes:
    """`POST /api/v1/log`, over the services of a replica: a hot route, since its requests are many and small.

    What one body may hold depends on its form: JSON comes whole, the other forms are taken while they come.
    """

    def __init__(self, services: Services) -> None:
        self._service = _service(services)
        self._threads = limiter()
        self.body_limit = services.settings.ingest.stream_bytes
        """Most bytes of a body that is taken while it comes."""
        self.table: Mapping[str, Mapping[str, Handler]] = {LOG_PATH: {"POST": self.log}}

    def streams(self, exchange: Exchange) -> bool:
        """Whether a request's body is taken while it comes."""
        return exchange.path == LOG_PATH and exchange.method == "POST" and _reader(exchange) is not None

    async def log(self, call: Call) -> Answer:
        """Append at most 10,000 records to a dataset; one that does not fit goes to its dead letters, others go on."""
        call.caller.require("writer")
        sent = Sent(call.body, _key_among(call.given))
        # Also the reading of the body: it takes long enough to be felt by every other request of this replica. Not in
        # asyncio's own threads: an online store that hangs would hold those that keep this replica current.
        outcome = await anyio.to_thread.run_sync(_logged, self._service, sent)
        return json_answer(_told(outcome.taken, outcome.problems, runs_of(outcome.outcomes)))

    async def stream(self, exchange: Exchange) -> Answer:
        """Append the records of a body of any size, block by block."""
        assert exchange.caller is not None  # admitted
        exchange.caller.require("writer")
        reader = _reader(exchange)
        assert reader is not None  # streams() said so
        if exchange.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise InvalidRequest("Content-Encoding: send the body without one")
        stream = LogStream(self._service, _dataset_of(exchange.query), _key_among(exchange.given_headers), reader())
        total = await stream.take(exchange.pieces(), self._threads)
        return json_answer(_told(total.taken, total.problems, total.runs))


@router.post("/api/v1/webhooks/{dataset}", openapi_extra=_DELIVERY, responses=_CONFLICT)
async def webhook(request: Request, services: ServicesOf, dataset: str) -> LogAnswer:
    """Take a delivery of a dataset's webhook: a record, a list of them, or one per line; signed, where it has a secret.

    A success says that every record is in the log or among the dead letters.
    """
    sent = Sent(await request.body(), _key_of(request, _DELIVERY_HEADERS))
    caller: Caller = request.scope["thyme.caller"]
    headers = request.headers
    outcome = await anyio.to_thread.run_sync(_service(services).deliver, dataset, sent, headers.get, caller)
    return LogAnswer(**_told(outcome.taken, outcome.problems, runs_of(outcome.outcomes)))


@router.get("/api/v1/dead-letters")
def dead_letters(
    services: ServicesOf,
    dataset: str,
    reason: str = "",
    limit: Annotated[int, Query(ge=1, le=1_000, description="Most letters, newest first.")] = 100,
    cursor: Annotated[str, Query(description="Of the page before.")] = "",
) -> DeadLetterPage:
    """Records a dataset could not take, as they came, and why."""
    page = _service(services).dead_letters(dataset, reason, limit, cursor)
    return DeadLetterPage(dead_letters=[_shown(stored) for stored in page.letters], cursor=page.cursor or None)


@router.post("/api/v1/dead-letters/replay")
def replay(body: ChosenLetters, services: ServicesOf, caller: Writer) -> ReplayAnswer:  # noqa: ARG001
    """Pass dead letters through the door again, under the definition of today; each is accepted at most once."""
    return ReplayAnswer(**_service(services).replay(body.dataset, _chosen(body))._asdict())


@router.post("/api/v1/dead-letters/drop")
def drop(body: ChosenLetters, services: ServicesOf, caller: Writer) -> DropAnswer:  # noqa: ARG001
    """Remove dead letters for good."""
    return DropAnswer(dropped=_service(services).drop(body.dataset, _chosen(body)))


def _logged(service: IntakeService, sent: Sent) -> Outcome:
    read = read_log_body(sent.body)
    return service.log(read.dataset, read.events, sent)


def _told(taken: Taken, problems: Sequence[Problem], runs: Iterable[Run]) -> dict[str, Any]:
    """A :class:`LogAnswer`."""
    return {
        "events_sent": taken.accepted,
        "duplicates": taken.duplicates,
        "late": taken.late,
        "rejected": taken.dead,
        "erased": taken.erased,
        "problems": [
            {"row": bad.row, "reason": bad.reason, "field": writable(bad.field), "message": writable(bad.message)}
            for bad in problems[:MOST_PROBLEMS]
        ],
        "outcomes": [{"outcome": _OUTCOMES[run.outcome], "records": run.records} for run in runs],
    }


def _reader(exchange: Exchange) -> type[BlockReader] | None:
    """What cuts the body of a request into blocks; ``None``: it is JSON, and comes whole."""
    kind = exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    return _READERS.get(kind)


def _dataset_of(query: bytes) -> str:
    given = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    names = [value for name, value in given if name == "dataset"]
    if len(names) != 1 or len(given) != 1 or not names[0]:
        raise InvalidRequest(f"dataset: name it, and nothing else, in the query: {LOG_PATH}?dataset=Name")
    return names[0]


def _key_among(headers: Sequence[tuple[bytes, bytes]]) -> str:
    return _checked_key(_KEY_HEADER, [value.decode("latin-1") for name, value in headers if name == _RAW_KEY_HEADER])


def _key_of(request: Request, headers: tuple[str, ...]) -> str:
    """The key of a request: the first of the headers that is there."""
    return next((key for name in headers if (key := _checked_key(name, request.headers.getlist(name)))), "")


def _checked_key(name: str, given: Sequence[str]) -> str:
    if given and (len(given) > 1 or not _KEY.fullmatch(given[0])):
        raise InvalidRequest(f"{name}: not 1 to 255 visible ASCII characters")
    return given[0] if given else ""


def _chosen(body: ChosenLetters) -> Chosen:
    if body.all is (body.ids is not None):
        raise InvalidRequest("body: give either ids, or all: true")
    return Chosen(body.ids, body.reason)


def _shown(stored: StoredDeadLetter) -> DeadLetterRecord:
    letter = stored.letter
    return DeadLetterRecord(
        id=str(stored.letter_id),
        record={writable(str(name)): _json(value) for name, value in letter.record.items()},
        reason=letter.reason,
        field=writable(letter.field),
        message=writable(letter.message),
        origin=letter.origin,
        place=letter.name or ("" if letter.sequence is None else str(letter.sequence)),
        at=format_instant(letter.at),
    )


def _json(value: Any) -> Any:
    """The value as JSON spells it: what it has no number for is text."""
    if isinstance(value, dict):
        return {writable(str(name)): _json(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return writable(value) if isinstance(value, str) else value
