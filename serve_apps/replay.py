"""Asks recorded questions again, and says per feature whether the answer is the one that was given.

``latest`` asks of today's state by today's definitions; ``as_served`` reads the very records the run's answer was made
of, by the definitions it was made by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from featurelib.engine.asof import Knowledge
from featurelib.engine.extractor import Wanted
from featurelib.errors import Erased, InvalidRequest
from featurelib.stores.audit import QueryRun
from featurelib.stores.digests import Verdict
from featurelib.stores.positions import SeenBefore, seen_before
from featurelib.stores.questions import Question
from serve_apps.current import Snapshot
from serve_apps.query_server import Reply
from serve_apps.reading import Moment, Served
from serve_apps.services import Services


class Replay(NamedTuple):
    """The answer that a question gets again, and a verdict per feature of the first answer."""

    reply: Reply
    verdicts: dict[str, Verdict]


async def replay(services: Services, run: QueryRun, knowledge: Knowledge) -> Replay:
    """Ask the question of a run again.

    Raises:
        Erased: the run names an entity that was erased since.
        InvalidRequest: the run was recorded without what this needs.
        NotFound: its featureset is not committed.
        UserCodeError: an extractor failed.
        StoreUnavailable: a store does not answer.
    """
    question = _question(run)
    if knowledge == "latest":
        reply = await services.query_server.answer(question)
        served_by = await _served_by(services, run)
        now = services.current.snapshot
    else:
        before = _seen(run)
        now = served_by = await asyncio.to_thread(services.versions.at, before.seen.version)
        reply = await services.query_server.replay(question, now, _served(services, run, question, before))
    names, names_now = _names(question, served_by), _names(question, now)
    return Replay(reply, await asyncio.to_thread(_verdicts, services, run, reply, names, names_now))


def _question(run: QueryRun) -> Question:
    if run.is_erased:
        raise Erased(f"query run {run.id} names an entity that has been erased since")
    if run.inputs is None:
        raise InvalidRequest(f"query run {run.id} was recorded without its question and cannot be replayed")
    return Question.from_recorded(run.inputs, run.entity_ids)


def _seen(run: QueryRun) -> SeenBefore:
    found = seen_before(run)
    if found is None:
        why = "gave no answer" if run.error is not None else "was recorded without what it was read from"
        raise InvalidRequest(f"query run {run.id} {why}: it can be replayed with knowledge=latest only")
    return found


def _served(services: Services, run: QueryRun, question: Question, before: SeenBefore) -> Served:
    seen, digests = before.seen, services.digests
    is_past = question.at is not None

    def mark_of(wanted: Wanted) -> str:
        return digests.mark(run.id, *wanted)

    return Served(
        services.query_server.sources,
        Moment(seen.read_at if seen.read_at is not None else run.created_at, seen.clock, is_past),
        seen,
        marks=before.marks,
        mark_of=mark_of,
        recorded_at=run.created_at,
        knowledge=question.knowledge,
    )


async def _served_by(services: Services, run: QueryRun) -> Snapshot | None:
    if run.registry_version is None:
        return None
    return await asyncio.to_thread(services.versions.at, run.registry_version)


def _names(question: Question, snapshot: Snapshot | None) -> Sequence[str]:
    """What an answer's values are of, in order."""
    if snapshot is None:
        return ()
    if question.shape == "lookup":
        view = snapshot.views.get(question.target)
        return () if view is None else view.columns
    if question.target not in snapshot.plans:
        return ()
    return snapshot.plan(question.target, question.features).feature_names


def _verdicts(
    services: Services, run: QueryRun, reply: Reply, names: Sequence[str], names_now: Sequence[str]
) -> dict[str, Verdict]:
    today = None if reply.values is None else dict(zip(names_now, reply.values, strict=True))
    return services.digests.verdicts(run.id, run.digests, names, today)
