"""`/api/v1/log`, `/api/v1/webhooks/…`, `/api/v1/dead-letters`: what goes through the doors of datasets."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from featurelib.clock import format_instant
from featurelib.errors import InvalidRequest
from featurelib.stores.dead_letters import StoredDeadLetter
from serve_apps.auth import Caller
from serve_apps.intake_service import Chosen, IntakeService, Outcome, Sent
from serve_apps.log_body import DOCUMENT, read_log_body
from serve_apps.messages import writable
from serve_apps.routes.access import ServicesOf, Writer
from serve_apps.services import Services

router = APIRouter(tags=["intake"])

_MOST_PROBLEMS = 100
_MOST_IDS = 1_000
_KEY_HEADER = "Idempotency-Key"
_DELIVERY_HEADERS = (_KEY_HEADER, "X-GitHub-Delivery")
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


class RejectedRecord(BaseModel):
    """A record that went to the dead letters."""

    row: int
    """Its place in the request, from 0."""
    reason: str
    field: str
    message: str


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
_CONFLICT: dict[int | str, dict[str, Any]] = {409: {"description": "The key came before, with another body."}}
_LOG = {
    "parameters": [_KEY_PARAMETER],
    "requestBody": {"required": True, "content": {"application/json": {"schema": DOCUMENT}}},
}
_DELIVERY = {
    "parameters": [_KEY_PARAMETER],
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {}}, "application/x-ndjson": {"schema": {"type": "string"}}},
    },
}


@router.post("/api/v1/log", openapi_extra=_LOG, responses=_CONFLICT)
async def log(request: Request, services: ServicesOf, caller: Writer) -> LogAnswer:  # noqa: ARG001  # the role is the point
    """Append at most 10,000 records to a dataset; one that does not fit goes to its dead letters, others continue."""
    sent = Sent(await request.body(), _key_of(request, (_KEY_HEADER,)))
    # Also the reading of the body: it takes long enough to be felt by every other request of this replica. Not in
    # asyncio's own threads: an online store that hangs would hold those that keep this replica current.
    return await anyio.to_thread.run_sync(_logged, _service(services), sent)


@router.post("/api/v1/webhooks/{dataset}", openapi_extra=_DELIVERY, responses=_CONFLICT)
async def webhook(request: Request, services: ServicesOf, dataset: str) -> LogAnswer:
    """Take a delivery of a dataset's webhook: a record, a list of them, or one per line; signed, where it has a secret.

    A success says that every record is in the log or among the dead letters.
    """
    sent = Sent(await request.body(), _key_of(request, _DELIVERY_HEADERS))
    caller: Caller = request.scope["thyme.caller"]
    headers = request.headers
    outcome = await anyio.to_thread.run_sync(_service(services).deliver, dataset, sent, headers.get, caller)
    return _answer(outcome)


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


def _logged(service: IntakeService, sent: Sent) -> LogAnswer:
    read = read_log_body(sent.body)
    return _answer(service.log(read.dataset, read.events, sent))


def _answer(outcome: Outcome) -> LogAnswer:
    taken = outcome.taken
    problems = [RejectedRecord(**problem._asdict()) for problem in outcome.problems[:_MOST_PROBLEMS]]
    return LogAnswer(
        events_sent=taken.accepted,
        duplicates=taken.duplicates,
        late=taken.late,
        rejected=taken.dead,
        erased=taken.erased,
        problems=problems,
    )


def _key_of(request: Request, headers: tuple[str, ...]) -> str:
    """The key of a request: the first of the headers that is there."""
    for name in headers:
        given = request.headers.getlist(name)
        if not given:
            continue
        if len(given) > 1 or not _KEY.fullmatch(given[0]):
            raise InvalidRequest(f"{name}: not 1 to 255 visible ASCII characters")
        return given[0]
    return ""


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
