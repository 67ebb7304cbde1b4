"""Answers that are given again for as long as a read would find the same rows.

A key is read far more often than it changes. What is kept is an answer but for its instant, by the words it was asked
in: under one registry version they mean one question. It is kept of reads of one entity as it is now, by the wall
clock, of a featureset that runs no extractors, since user code may look at the clock or give another value each time.
Whether the rows are the same is the store's to tell (:class:`featurelib.stores.online_reader.Standing`): an answer
that was kept is as new as one that is made. It is recorded like any other.
"""

from __future__ import annotations

from typing import NamedTuple

from featurelib.clock import Instant, format_instant
from featurelib.stores.online_reader import Standing
from featurelib.stores.questions import Question
from serve_apps.audit_process import spelt_values
from serve_apps.current import Snapshot
from serve_apps.query_server import Reply
from serve_apps.run_log import Outcome

KEPT_BYTES = 32 << 20
"""Most memory of answers kept, by the estimate of ``KeptAnswer.size``: some 8,000 of 50 features."""
_ANSWER_BYTES = 1_500
_LONGEST_WORDS = 16_384  # a body of megabytes takes milliseconds to be looked up by


class Words(NamedTuple):
    """What a request asks, as it was sent."""

    method: str
    query: bytes
    body: bytes

    @property
    def are_many(self) -> bool:
        """Whether nothing is kept by them: what is as long is looked up slowly, and rarely comes again."""
        return len(self.body) > _LONGEST_WORDS


class KeptAnswer(NamedTuple):
    """An answer, good while its rows stand: what was asked, what is recorded of it, and its body around the instant."""

    standing: Standing
    question: Question
    outcome: Outcome
    before: bytes
    after: bytes
    size: int

    def body(self, now: Instant) -> bytes:
        """The body of the answer of this instant."""
        return b"".join((self.before, format_instant(now).encode(), self.after))

    def outcome_at(self, now: Instant) -> Outcome:
        """What is recorded of the answer of this instant."""
        ids, entities, hits, commit_id, error, seen, values = self.outcome
        assert seen is not None
        return Outcome(ids, entities, hits, commit_id, error, seen.at(now), values)


class KeptAnswers:
    """The answers a replica keeps. Lives on one event loop."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._kept: dict[Words, KeptAnswer] = {}
        self._bytes = 0

    def again(self, words: Words, snapshot: Snapshot, now: Instant) -> KeptAnswer | None:
        """The answer that was given to these words, if a read at this instant would give it again."""
        if words.are_many:
            return None
        if snapshot is not self._snapshot:
            self._snapshot, self._bytes = snapshot, 0
            self._kept.clear()
        kept = self._kept.get(words)
        if kept is None or kept.standing.holds(now):
            return kept
        self._drop(words)
        return None

    def keep(self, words: Words, question: Question, reply: Reply, body: bytes) -> None:
        """Keep an answer that was just given, if something tells how long it holds."""
        seen, standing, walked, values = reply.seen, reply.standing, reply.walked, reply.values
        if words.are_many or standing is None or walked is None or walked.snapshot is not self._snapshot:
            return
        assert seen is not None and seen.read_at is not None and values is not None  # noqa: PT018  # read as of now
        spelt = spelt_values(values)
        if spelt is None:
            return
        # Of all texts of the body the instant is the last that can look like it: behind it is the clock's name.
        before, _, after = body.rpartition(format_instant(seen.read_at).encode())
        outcome = Outcome(reply.entity_ids, 1, reply.hits, reply.commit_id, seen=seen, values=spelt)
        size = _ANSWER_BYTES + sum(map(len, (words.query, words.body, body, bytes(spelt))))
        self._drop(words)
        self._kept[words] = KeptAnswer(standing, question, outcome, before, after, size)
        self._bytes += size
        while self._bytes > KEPT_BYTES:
            self._drop(next(iter(self._kept)))

    def _drop(self, words: Words) -> None:
        kept = self._kept.pop(words, None)
        if kept is not None:
            self._bytes -= kept.size
