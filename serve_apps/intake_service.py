"""The doors of datasets over HTTP: records sent, webhooks delivered, dead letters shown, replayed and dropped.

Methods block (SQL, log appends): the routes call them in threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import structlog

from featurelib.clock import SECOND
from featurelib.connectors.credentials import resolve
from featurelib.definitions import Cdc, DatasetDef, Definitions, SourceDef, canonical_bytes, ref
from featurelib.errors import IdempotencyConflict, InvalidRequest, NotFound, SourceError, StoreUnavailable
from featurelib.settings import Settings
from featurelib.stores.dead_letters import MALFORMED, DeadLetter, LetterId, StoredDeadLetter
from featurelib.stores.encryption import key_source
from featurelib.stores.intake import DEAD_LETTER, Intake, Request, Taken, Upserted, lateness_of, request_key
from featurelib.stores.intake_events import drift_event, dropped_event
from featurelib.stores.log import KEEP_SENT_US, Claim, Head, Log
from featurelib.stores.registry import NewEvent, Registry
from featurelib.stores.secret_values import SecretReader
from featurelib.stores.shapes import Shapes
from featurelib.stores.source_secrets import with_secrets
from serve_apps.auth import Caller
from serve_apps.log_blocks import Block
from serve_apps.webhook_body import check_signature, read_delivery

_SOURCE = "definition-service"
_WEBHOOK = "webhook"
_LOG_ORIGIN = "POST /api/v1/log"
# Letters that are replayed or dropped in one go: so many are in memory at once.
_LETTERS_AT_ONCE = 1_000
_log = structlog.get_logger("thyme.serve")


class Sent(NamedTuple):
    """What came with records beside themselves: the whole body, byte for byte, and the key the sender gave it."""

    body: bytes
    key: str = ""


class Problem(NamedTuple):
    """A record that went to the dead letters; ``row`` is its place in what was sent."""

    row: int
    reason: str
    field: str
    message: str


class Outcome(NamedTuple):
    """What became of records, together and each by itself, and why some were refused.

    ``outcomes`` has a code of :mod:`featurelib.stores.intake` for each piece that was sent.
    """

    taken: Taken
    problems: list[Problem]
    outcomes: npt.NDArray[np.uint8]


class Chosen(NamedTuple):
    """Which dead letters: those of the ids, or all; of these those with the reason, unless it is empty."""

    ids: Sequence[str] | None
    reason: str = ""


class Replay(NamedTuple):
    """What became of replayed dead letters. ``missing`` were named and are none any more."""

    accepted: int
    duplicates: int
    late: int
    failed: int
    missing: int


class Page(NamedTuple):
    """Some dead letters, newest first, and what to ask for the next ones with; empty: there are none."""

    letters: list[StoredDeadLetter]
    cursor: str


class _Door(NamedTuple):
    dataset: DatasetDef
    cdc: Cdc
    heads: list[Head]
    intake: Intake

    @property
    def partitions(self) -> int:
        return len(self.heads)


class IntakeService:
    """What the routes answer with that take records in.

    Args:
        registry: what is committed, and where events go.
        log: where records go.
        shapes: what is known of the columns that came so far.
        settings: partition counts and the rules of the door.
    """

    def __init__(self, registry: Registry, log: Log, shapes: Shapes, settings: Settings) -> None:
        self._registry = registry
        self._log = log
        self._shapes = shapes
        self._settings = settings

    def log(self, dataset: str, events: Sequence[Mapping[str, Any]], sent: Sent) -> Outcome:
        """Append records to a dataset; one that does not fit goes to its dead letters, the others continue.

        Raises:
            NotFound: no such dataset.
            InvalidRequest: the dataset is made by a pipeline.
            IdempotencyConflict: the key came before with another body.
            StoreUnavailable: nothing was taken, or there is a key: send it again.
            MaybeTaken: some of the records may have been accepted.
        """
        door = self._door(self._registry.definitions(), dataset, _claim(dataset, sent))
        taken = door.intake.accept(events, Request(_LOG_ORIGIN, request_key(sent.key)), heads=door.heads)
        self.report(dataset, taken)
        problems = [Problem(bad.row, bad.reason, bad.field, bad.message) for bad in taken.rejected]
        return Outcome(taken, problems, taken.outcomes)

    def check(self, dataset: str) -> None:
        """Return when records may be sent to a dataset.

        Raises:
            NotFound: there is none.
            InvalidRequest: it is made by a pipeline.
        """
        self._door(self._registry.definitions(), dataset)

    def take(self, dataset: str, block: Block, key: str, first: int) -> Outcome:
        """Append a block of a body that is taken while it comes; rows count from the body's first record.

        Nobody is told of it yet: see :meth:`report`.

        Args:
            dataset: its name.
            block: some of the records.
            key: the idempotency key of the whole body; a block is known by it and its number.
            first: how many records came before these.

        Raises:
            NotFound: no such dataset.
            InvalidRequest: the dataset is made by a pipeline.
            IdempotencyConflict: the key came before with another body.
            LogFull: nothing of the block was taken.
            StoreUnavailable: nothing of the block was taken, or there is a key: send the body again.
            MaybeTaken: some of the block's records may have been accepted.
        """
        # The first block claims what a body that comes whole would.
        name = f"{request_key(key)}/{block.number}" if block.number else request_key(key)
        batch = Request(_LOG_ORIGIN, request_key(key), block.number).batch
        claim = Claim(dataset, name, block.digest, KEEP_SENT_US, batch) if key else None
        door = self._door(self._registry.definitions(), dataset, claim)
        lines = block.read(door.dataset, door.cdc)
        malformed = [DeadLetter({"text": bad.text}, MALFORMED, "", bad.message) for bad in lines.malformed]
        request = Request(_LOG_ORIGIN, request_key(key), block.number, first)
        taken = door.intake.accept(lines.records, request, malformed, heads=door.heads, came=lines.came)
        problems = [Problem(int(lines.rows[bad.row]), bad.reason, bad.field, bad.message) for bad in taken.rejected]
        problems += [Problem(bad.row, MALFORMED, "", bad.message) for bad in lines.malformed]
        outcomes = np.full(lines.total, DEAD_LETTER, dtype=np.uint8)
        outcomes[lines.rows] = taken.outcomes
        return Outcome(taken, [bad._replace(row=first + bad.row) for bad in sorted(problems)], outcomes)

    def upsert(
        self, dataset: str, records: Sequence[Mapping[str, Any]], origin: str, refused: Sequence[DeadLetter]
    ) -> Upserted:
        """Append records told apart by key and event time; those that do not fit, and ``refused``, are dead letters.

        Workers are told that somebody waits for them.

        Raises:
            NotFound: no such dataset.
            InvalidRequest: the dataset is made by a pipeline.
            StoreUnavailable: send the records again, none is taken twice.
        """
        remember_us = self._settings.snowflake.remember_s * SECOND
        door = self._door(self._registry.definitions(), dataset)
        done = door.intake.upsert(records, origin, refused, remember_us)
        if done.ends:
            # Workers come without being told, only later.
            with suppress(StoreUnavailable):
                self._log.haste.ask(ref(door.dataset))
        self.report(dataset, done.taken, first=refused[0].message if refused else "")
        return done

    def deliver(self, dataset: str, sent: Sent, header: Callable[[str], str | None], caller: Caller) -> Outcome:
        """Append the records of a webhook's delivery.

        Args:
            dataset: whose webhook it is.
            sent: the delivery.
            header: the value of one of its headers.
            caller: who sent it; counts where the webhook has no secret.

        Raises:
            Unauthenticated: the signature or the key is wrong.
            Forbidden: the key may not write.
            NotFound: the dataset has no webhook.
            InvalidRequest: the body holds no records.
            IdempotencyConflict: the delivery's id came before with another body.
            StoreUnavailable: nothing was taken, or the delivery has an id: send it again.
            MaybeTaken: some of the records may have been accepted.
        """
        definitions = self._registry.definitions()
        source = definitions.source(dataset)
        hook = source if source is not None and source.connector.type == _WEBHOOK else None
        self._authorise(hook, sent.body, header, caller)
        if hook is None:
            raise NotFound(f"dataset {dataset[:128]!r} has no webhook; declare one with @source(WebhookSource())")
        path = str(hook.connector.config.get("path") or "")
        delivery = read_delivery(sent.body, header("content-type") or "", path)
        door = self._door(definitions, dataset, _claim(dataset, sent))
        malformed = [DeadLetter({"text": bad.text}, MALFORMED, "", bad.message) for bad in delivery.malformed]
        origin = Request(f"POST /api/v1/webhooks/{dataset}", request_key(sent.key))
        taken = door.intake.accept(delivery.records, origin, malformed, heads=door.heads)
        problems = [Problem(delivery.rows[bad.row], bad.reason, bad.field, bad.message) for bad in taken.rejected]
        problems += [Problem(bad.row, MALFORMED, "", bad.message) for bad in delivery.malformed]
        self.report(dataset, taken, first=next((problem.message for problem in problems), ""))
        outcomes = np.full(len(delivery.rows) + len(delivery.malformed), DEAD_LETTER, dtype=np.uint8)
        outcomes[delivery.rows] = taken.outcomes
        return Outcome(taken, sorted(problems), outcomes)

    def dead_letters(self, dataset: str, reason: str, limit: int, cursor: str) -> Page:
        """Dead letters of a dataset, newest first.

        Args:
            dataset: its name.
            reason: only those; empty: all.
            limit: most letters.
            cursor: of the page before; empty: from the newest on.

        Raises:
            NotFound: no such dataset.
            InvalidRequest: the cursor is not one of ours.
        """
        door = self._door(self._registry.definitions(), dataset)
        before = _letter_id(cursor, "cursor") if cursor else None
        found = self._letters(door, reason, before)
        page = list(islice(found, limit))
        more = next(found, None) is not None
        return Page(page, str(page[-1].letter_id) if more else "")

    def replay(self, dataset: str, chosen: Chosen) -> Replay:
        """Pass dead letters through the door again, under the definition that is committed now.

        Raises:
            NotFound: no such dataset.
            InvalidRequest: an id is none.
            StoreUnavailable: some may be done; replay them again, none is taken twice.
        """
        door = self._door(self._registry.definitions(), dataset)
        total = Replay(0, 0, 0, 0, 0)
        for letters, missing in self._chosen(door, chosen):
            done = door.intake.replay(letters)
            counts = (done.accepted, done.duplicates, done.late, len(done.failed), missing)
            total = Replay(*(before + more for before, more in zip(total, counts, strict=True)))
        if total.accepted or total.duplicates or total.failed:
            message = f"{total.accepted + total.duplicates} dead letters were replayed, {total.failed} failed again"
            self._record([_event("dead_letters_replayed", "info", dataset, message, total._asdict())])
        return total

    def drop(self, dataset: str, chosen: Chosen) -> int:
        """Remove dead letters for good; how many.

        Raises:
            NotFound: no such dataset.
            InvalidRequest: an id is none.
        """
        door = self._door(self._registry.definitions(), dataset)
        name = ref(door.dataset)
        dropped = sum(
            self._log.dead.delete(name, [letter.letter_id for letter in letters])
            for letters, _ in self._chosen(door, chosen)
        )
        if dropped:
            message = f"{dropped} dead letters were dropped on request"
            self._record([_event("dead_letters_dropped", "info", dataset, message, {"dropped": dropped})])
        return dropped

    def _door(self, definitions: Definitions, name: str, claim: Claim | None = None) -> _Door:
        found = definitions.dataset(name)
        if found is None:
            raise NotFound(f"dataset {name[:128]!r} is not committed")
        if definitions.producer(name) is not None:
            raise InvalidRequest(f"dataset: {name!r} is made by a pipeline; send records to its input")
        # A log that no worker has made yet is made here: its number of partitions is fixed by whoever comes first.
        if claim is not None:
            claim = claim._replace(columns=_columns(found))
        entrance = self._log.enter(ref(found), self._settings.pipeline.partition_count, claim)
        if not entrance.claimed:
            raise IdempotencyConflict(f"the idempotency key was used before for another body sent to {name}")
        if claim is not None and entrance.judged_anew:
            # Letters of then may be records now, of a partition that took its share: they would be in neither.
            self._require_untaken(ref(found), len(entrance.heads), claim)
        rules, cdc = self._settings.ingest, definitions.cdc(name)
        intake = Intake(
            self._log,
            found,
            len(entrance.heads),
            lateness_of(definitions.source(name), rules),
            cdc,
            shapes=self._shapes,
            dead_kept=rules.dead_letters_kept,
        )
        return _Door(found, cdc, entrance.heads, intake)

    def _require_untaken(self, dataset: str, partitions: int, claim: Claim) -> None:
        if not self._log.claim_anew(dataset, partitions, claim):
            text = f"the columns of {claim.dataset} have changed since the idempotency key came with this body"
            raise IdempotencyConflict(f"{text}, and some of it was taken; nothing was added now")

    def _authorise(
        self, hook: SourceDef | None, body: bytes, header: Callable[[str], str | None], caller: Caller
    ) -> None:
        # A stranger learns nothing of which webhooks there are: without one they are asked for a key.
        secret = self._secret(hook) if hook is not None else ""
        if hook is None or not secret:
            caller.require("writer")
            return
        name = str(hook.connector.config.get("signature_header") or "")
        check_signature(body, secret, name, header(name))

    def _secret(self, hook: SourceDef) -> str:
        reader = SecretReader(self._registry.database, key_source(self._settings))
        try:
            config = with_secrets(hook, reader).connector.config
            return resolve(config.get("secret"), f"webhook of {hook.dataset}: secret")
        except SourceError as error:
            _log.error("webhook_secret_unreadable", dataset=hook.dataset, error=str(error))
            raise StoreUnavailable("the webhook's secret cannot be read; the service's log says why") from None

    def _letters(self, door: _Door, reason: str, before: LetterId | None = None) -> Iterator[StoredDeadLetter]:
        letters = self._log.dead.all(ref(door.dataset), door.partitions, before)
        return (stored for stored in letters if not reason or stored.letter.reason == reason)

    def _chosen(self, door: _Door, chosen: Chosen) -> Iterator[tuple[list[StoredDeadLetter], int]]:
        """The chosen letters in portions, and how many of the ids named none."""
        if chosen.ids is not None:
            ids = list(dict.fromkeys(_letter_id(text, "ids") for text in chosen.ids))
            found = self._log.dead.find(ref(door.dataset), ids)
            wanted = [stored for stored in found if chosen.reason in {"", stored.letter.reason}]
            yield wanted, len(ids) - len(found)
            return
        # The ids first: what fails again stays, and must not be met twice; oldest first, as they came.
        every = [stored.letter_id for stored in self._letters(door, chosen.reason)][::-1]
        for start in range(0, len(every), _LETTERS_AT_ONCE):
            yield self._log.dead.find(ref(door.dataset), every[start : start + _LETTERS_AT_ONCE]), 0

    def report(self, dataset: str, taken: Taken, first: str = "") -> None:
        """Tell of what was taken; ``first``: why the first record was refused, where ``taken`` does not say."""
        self._record(list(_events_of(dataset, taken, first, self._settings.ingest.dead_letters_kept)))

    def _record(self, events: Sequence[NewEvent]) -> None:
        for event in events:
            try:
                self._registry.record_event(event)
            except StoreUnavailable as error:
                # The records are in the log: an error now would have them sent twice.
                _log.warning("event_lost", event_type=event.event_type, subject=event.subject, error=str(error))
                return


def _columns(dataset: DatasetDef) -> str:
    return hashlib.sha256(b"".join(canonical_bytes(column) for column in dataset.fields)).hexdigest()[:16]


def _claim(dataset: str, sent: Sent) -> Claim | None:
    """What ties a key to the body it came with first."""
    if not sent.key:
        return None
    name = request_key(sent.key)
    return Claim(dataset, name, hashlib.sha256(sent.body).hexdigest(), KEEP_SENT_US, Request("", name).batch)


def _letter_id(text: str, member: str) -> LetterId:
    found = LetterId.read(text)
    if found is None:
        raise InvalidRequest(f"{member}: {text[:80]!r} is not the id of a dead letter, as the list of them gives it")
    return found


def _events_of(dataset: str, taken: Taken, first: str, kept: int) -> Iterator[NewEvent]:
    # Letters that are new: a request sent again under its key tells nothing anew.
    if taken.lettered:
        bad = taken.rejected[0] if taken.rejected else None
        text = bad.message if bad else first
        message = f"{taken.lettered} records sent to {dataset} were rejected; the first: {text}"
        detail = {"dead": taken.lettered, "reason": bad.reason if bad else MALFORMED, "field": bad.field if bad else ""}
        yield _event("dead_letter", "warn", dataset, message, detail)
    if taken.dropped:
        yield dropped_event(dataset, _SOURCE, taken.dropped, kept)
    if taken.drift:
        yield drift_event(dataset, _SOURCE, taken.drift)
    if taken.late:
        message = f"{taken.late} records sent to {dataset} are late"
        yield _event("late_records", "warn", dataset, message, {"late": taken.late})
    for violation in taken.violations:
        message = f"{violation.failed} of {violation.total} records sent to {dataset} break an expectation"
        rule = violation.expectation.model_dump(mode="json", exclude_defaults=True)
        detail = {"expectation": rule, "failed": violation.failed, "total": violation.total}
        yield _event("expectation_violation", "warn", dataset, message, detail)


def _event(event_type: str, severity: Any, dataset: str, message: str, detail: dict[str, Any]) -> NewEvent:
    return NewEvent(
        event_type=event_type, severity=severity, source=_SOURCE, subject=dataset, message=message, detail=detail
    )
