"""Answers that are given again for as long as a read would find the same rows.

A key is read far more often than it changes. What is kept is an answer but for its instant, by the words it was asked
in: under one registry version they mean one question. It is kept of reads of one entity as it is now, by the wall
clock, of a featureset that runs no extractors, since user code may look at the clock or give another value each time,
and without inputs, which hardly come again.
Whether the rows are the same is the store's to tell (:class:`featurelib.stores.online_reader.Standing`): an answer
that was kept is as new as one that is made. It is recorded like any other.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from featurelib.clock import Instant, format_instant
from featurelib.stores.online_reader import Standing
from featurelib.stores.questions import Question
from serve_apps.audit_process import spelt_values
from serve_apps.current import Snapshot
from serve_apps.query_server import Reply
from serve_apps.run_log import Outcome, answered

KEPT_BYTES = 32 << 20
"""Most memory of answers kept, by the estimate of ``KeptAnswer.size``: some 8,000 of 50 features."""
# Of the objects beside the texts, as measured at 5 views of one partition and 20 of twelve.
_ANSWER_BYTES, _VIEW_BYTES, _POSITION_BYTES = 1_500, 180, 40
_LONGEST_WORDS = 1_024  # what is longer is looked up slowly: 3 µs at 16 KB
_LOOKED_AT = 3


class Words(NamedTuple):
    """What a request asks, as it was sent."""

    method: str
    query: bytes
    body: bytes

    @property
    def are_many(self) -> bool:
        """Whether nothing is kept by them: what is as long is looked up slowly, and rarely comes again."""
        return len(self.query) + len(self.body) > _LONGEST_WORDS


class KeptAnswer(NamedTuple):
    """An answer, good while its rows stand: what was asked, what is recorded of it, and its body around the instant.

    ``definitions``: the number of the snapshot it was made under; one of many commits ago would take its own memory.
    """

    definitions: int
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
        # Made anew by its members, as Seen.at is: _replace takes 1 µs, of some 50 that the whole answer does.
        ids, entities, hits, commit_id, error, seen, values = self.outcome
        assert seen is not None
        return Outcome(ids, entities, hits, commit_id, error, seen.at(now), values)


class KeptAnswers:
    """The answers a replica keeps. Lives on one event loop.

    An answer that cannot be given any more is dropped when its words come again, or when its turn comes to be looked
    at: with each answer kept, some of those not looked at for longest are. To drop all that a commit ends at once
    would hold up every read for 21 ms at 8,700 answers.
    """

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._definitions = 0
        self._kept: dict[Words, KeptAnswer] = {}
        self._bytes = 0

    def again(self, words: Words, snapshot: Snapshot, now: Instant) -> KeptAnswer | None:
        """The answer that was given to these words, if a read at this instant would give it again."""
        if words.are_many:
            return None
        if snapshot is not self._snapshot:
            self._snapshot = snapshot
            self._definitions += 1
        kept = self._kept.get(words)
        if kept is None or self._holds(kept, now):
            return kept
        self._drop(words)
        return None

    def keep(self, words: Words, question: Question, reply: Reply, body: bytes) -> None:
        """Keep an answer that was just given, if something tells how long it holds, and it is likely to come again."""
        seen, standing, walked, values = reply.seen, reply.standing, reply.walked, reply.values
        if standing is None or question.inputs or words.are_many:
            return
        if walked is None or walked.snapshot is not self._snapshot:
            return
        assert seen is not None and seen.read_at is not None and values is not None  # noqa: PT018  # read as of now
        spelt = spelt_values(values)
        if spelt is None:
            return
        # Of all texts of the body the instant is the last that can look like it: behind it is the clock's name.
        before, _, after = body.rpartition(format_instant(seen.read_at).encode())
        outcome = answered(reply)._replace(values=spelt)
        size = _ANSWER_BYTES + sum(map(len, (words.query, words.body, body, bytes(spelt))))
        size += sum(_VIEW_BYTES + _POSITION_BYTES * len(applied or ()) for applied in seen.applied)
        self._look_through(seen.read_at)
        self._drop(words)
        self._kept[words] = KeptAnswer(self._definitions, standing, question, outcome, before, after, size)
        self._bytes += size
        while self._bytes > KEPT_BYTES:
            self._drop(next(iter(self._kept)))

    def _holds(self, kept: KeptAnswer, now: Instant) -> bool:
        return kept.definitions == self._definitions and kept.standing.holds(now)

    def _look_through(self, now: Instant) -> None:
        """Drop what cannot be given any more, of those that were not looked at for longest."""
        for words in list(islice(self._kept, _LOOKED_AT)):
            kept = self._kept[words]
            if self._holds(kept, now):
                self._kept[words] = self._kept.pop(words)  # behind all others
            else:
                self._drop(words)

    def _drop(self, words: Words) -> None:
        kept = self._kept.pop(words, None)
        if kept is not None:
            self._bytes -= kept.size
