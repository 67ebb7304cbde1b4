"""Hands query runs of reads over: what was asked, by whom, and what became of it; and counts them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from featurelib.errors import ThymeError, TimedOut
from featurelib.stores.questions import Entry, Question, Seen
from serve_apps.current import Snapshot
from serve_apps.exchange import new_run_id
from serve_apps.messages import Call, writable
from serve_apps.query_server import Reply
from serve_apps.services import Services
from serve_apps.watching import Watch

# What a query run keeps: ids and inputs of requests up to this size, and of larger or refused ones the first ids.
_MOST_KEPT_BYTES = 256 * 1024
_IDS_OF_REFUSED = 100
_LONGEST_ERROR = 2_000


class Outcome(NamedTuple):
    """What a query run says became of a question; ``ids`` may be the first of ``entities``."""

    ids: tuple[str, ...]
    entities: int
    hits: int = 0
    commit_id: str | None = None
    error: str | None = None
    seen: Seen | None = None
    values: Sequence[Any] | msgspec.Raw | None = None


class RunLog:
    """Records what a replica answers.

    Args:
        services: of the replica.
        repeatable: whether a replay gives the same answers; if not, what was asked is not kept.
    """

    def __init__(self, services: Services, *, repeatable: bool = True) -> None:
        self._services = services
        self._repeatable = repeatable

    async def read(
        self,
        call: Call,
        question: Question,
        *,
        as_table: bool = False,
        watch: Watch | None = None,
        by: Snapshot | None = None,
    ) -> tuple[Reply, str]:
        """Answer a question and record it; the second member is the id of its run.

        Arguments and errors: as of :meth:`serve_apps.query_server.QueryServer.answer`.
        """
        run_id = new_run_id()
        try:
            reply = await self._services.query_server.answer(question, as_table=as_table, watch=watch, by=by)
        except ThymeError as error:
            self.record(call, question, run_id, refused(question, error))
            raise
        except asyncio.CancelledError:
            # A limit or a budget of the request ended it.
            self.record(call, question, run_id, refused(question, TimedOut("ended before it was answered")))
            raise
        self.record(call, question, run_id, answered(reply))
        return reply, run_id

    def record(self, call: Call, question: Question, run_id: str, outcome: Outcome) -> None:
        """Hand over the run of an answered or refused question."""
        # A request bounds what its run weighs: one too large to keep is recorded without its question.
        size = len(call.body) + len(call.query)
        ids = outcome.ids if size <= _MOST_KEPT_BYTES else tuple(each[:64] for each in outcome.ids[:_IDS_OF_REFUSED])
        kept = self._repeatable and size <= _MOST_KEPT_BYTES and len(ids) == outcome.entities
        self._measure(call, question, outcome)
        values = outcome.values
        # Digests are of the values: their process gets them, whatever their number.
        weight = 0 if values is None else _weight(values) * outcome.entities
        self._services.writer.put(
            Entry(
                id=run_id,
                kind=question.kind,
                target=question.target,
                question=question if kept else None,
                entity_ids=ids,
                entity_count=outcome.entities,
                hit_count=outcome.hits,
                requested_timestamp=question.requested_timestamp,
                latency_ms=round((time.perf_counter() - call.started) * 1_000),
                api_key_fingerprint=call.caller.fingerprint,
                correlation_id=call.correlation_id,
                error=outcome.error,
                created_at=self._services.clock.now(),
                definition=outcome.commit_id,
                seen=outcome.seen,
                values=values,
            ),
            min(size, _MOST_KEPT_BYTES) + weight,
        )

    def _measure(self, call: Call, question: Question, outcome: Outcome) -> None:
        snapshot, metrics = self._services.current.snapshot, self._services.metrics
        known = snapshot.views if question.shape == "lookup" else snapshot.plans
        # A label per name that anybody asks for would have no end.
        name = question.target if question.target in known else "other"
        if outcome.error is None:
            metrics.read(name, question.kind, time.perf_counter() - call.started)
        else:
            metrics.read_failed(name, outcome.error.partition(":")[0])


def _weight(values: Sequence[Any] | msgspec.Raw) -> int:
    return memoryview(values).nbytes if isinstance(values, msgspec.Raw) else 10 * len(values)


def refused(question: Question, error: ThymeError) -> Outcome:
    """What became of a question that was not answered; only the first of its ids are kept."""
    ids = tuple(str(given) for given in question.entity_ids[:_IDS_OF_REFUSED])
    text = writable(f"{error.code}: {error}"[:_LONGEST_ERROR])
    return Outcome(ids, len(question.entity_ids), error=text)


def answered(reply: Reply) -> Outcome:
    """What became of a question that was answered."""
    ids = reply.entity_ids
    return Outcome(ids, len(ids), reply.hits, reply.commit_id, seen=reply.seen, values=reply.values)
