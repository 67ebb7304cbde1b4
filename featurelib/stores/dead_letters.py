"""Dead letters: records a dataset could not accept, kept as they came with the reason, beside the log's partitions.

They are written by the script that appends (:mod:`featurelib.stores.log`); here they are read, removed, and given
another reason when a replay found one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from heapq import merge
from itertools import islice
from typing import Any, NamedTuple, cast

import redis

from featurelib.clock import Instant
from featurelib.stores.server import answering, partition_key

# A letter that was dropped for room or removed meanwhile gets no verdict; verdicts of dropped ones are forgotten.
_RESTATE = """
local dead, verdicts = KEYS[1], KEYS[2]
for i = 1, #ARGV, 2 do
  if #redis.call('XRANGE', dead, ARGV[i], ARGV[i], 'COUNT', 1) > 0 then
    redis.call('HSET', verdicts, ARGV[i], ARGV[i + 1])
  end
end
if redis.call('HLEN', verdicts) <= redis.call('XLEN', dead) then return end
for _, id in ipairs(redis.call('HKEYS', verdicts)) do
  if #redis.call('XRANGE', dead, id, id, 'COUNT', 1) == 0 then redis.call('HDEL', verdicts, id) end
end
"""
_LETTERS_PER_TRIP = 500
_LETTER_ID = re.compile(r"([0-9]{1,4}):([0-9]{1,16}-[0-9]{1,10})")
MALFORMED = "malformed"
"""The reason of a dead letter whose record is text that is no record."""


class DeadLetter(NamedTuple):
    """A record that could not be accepted, as it came, and why.

    ``sequence`` or ``name`` is its place in the source stream, ``event`` what identifies it where it came over HTTP: a
    letter the partition already holds is not kept twice. ``origin`` says where it came from, ``at`` when (set by the
    log).
    """

    record: Mapping[str, Any]
    reason: str
    field: str
    message: str
    sequence: int | None = None
    name: str = ""
    event: str = ""
    origin: str = ""
    at: Instant = 0


class Verdict(NamedTuple):
    """Why a dead letter is still one, found when it was last replayed."""

    reason: str
    field: str
    message: str


class LetterId(NamedTuple):
    """What names a dead letter of a dataset; text of the form ``<partition>:<id>``."""

    partition: int
    id: str

    def __str__(self) -> str:
        return f"{self.partition}:{self.id}"

    @classmethod
    def read(cls, text: str) -> LetterId | None:
        """The id a text spells; ``None`` if it spells none."""
        found = _LETTER_ID.fullmatch(text)
        return cls(int(found[1]), found[2]) if found else None

    @property
    def order(self) -> tuple[int, int, int]:
        """Letters order by when they were written, then by partition."""
        written, _, nth = self.id.partition("-")
        return int(written), int(nth), self.partition


class StoredDeadLetter(NamedTuple):
    """A dead letter read back, with the reason it is one today; ``id`` names it within its partition.

    ``is_text``: its record is a piece of input that could not be read, under ``text``.
    """

    id: str
    partition: int
    letter: DeadLetter
    is_text: bool = False

    @property
    def letter_id(self) -> LetterId:
        """What names it in the dataset."""
        return LetterId(self.partition, self.id)


class DeadLetters:
    """The dead letters of every dataset, over the log's connection."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._restate_script = client.register_script(_RESTATE)

    def newest(self, dataset: str, partitions: int, limit: int = 100) -> list[StoredDeadLetter]:
        """The newest dead letters of a dataset, newest first within each partition."""
        return [letter for part in range(partitions) for letter in islice(self._before(dataset, part, ""), limit)]

    def all(self, dataset: str, partitions: int, before: LetterId | None = None) -> Iterator[StoredDeadLetter]:
        """The dead letters of a dataset, newest first over all partitions; fetched as they are asked for.

        Args:
            dataset: ``Name@version``.
            partitions: how many log partitions it has.
            before: only what comes after this one.
        """
        each = [self._before(dataset, part, _below(before, part)) for part in range(partitions)]
        return merge(*each, key=lambda stored: stored.letter_id.order, reverse=True)

    def find(self, dataset: str, ids: Sequence[LetterId]) -> list[StoredDeadLetter]:
        """The dead letters of these ids that are there."""
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for partition, entry_id in ids:
                pipe.xrange(partition_key(dataset, partition, "dead"), min=entry_id, max=entry_id)
                pipe.hget(partition_key(dataset, partition, "verdicts"), entry_id)
            replies = pipe.execute()
        return [
            _stored(each.partition, entry_id, fields, verdict)
            for each, entries, verdict in zip(ids, replies[::2], replies[1::2], strict=True)
            for entry_id, fields in entries
        ]

    def delete(self, dataset: str, ids: Sequence[LetterId]) -> int:
        """Remove dead letters; how many of them were there."""
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for partition, entry_id in ids:
                pipe.xdel(partition_key(dataset, partition, "dead"), entry_id)
                pipe.hdel(partition_key(dataset, partition, "verdicts"), entry_id)
            return sum(pipe.execute()[::2])

    def restate(self, dataset: str, verdicts: Mapping[LetterId, Verdict]) -> None:
        """Keep dead letters under another reason; one that is gone stays gone."""
        for partition in sorted({each.partition for each in verdicts}):
            mine = [(each.id, verdict) for each, verdict in verdicts.items() if each.partition == partition]
            keys = [partition_key(dataset, partition, part) for part in ("dead", "verdicts")]
            arguments = [text for entry_id, verdict in mine for text in (entry_id, json.dumps(verdict))]
            with answering():
                self._restate_script(keys=keys, args=cast("Any", arguments))

    def _before(self, dataset: str, partition: int, below: str) -> Iterator[StoredDeadLetter]:
        """The dead letters of a partition, newest first, up to an id as ``XREVRANGE`` takes it; empty: all."""
        newest = below or "+"
        while True:
            with answering():
                pipe = self._redis.pipeline(transaction=False)
                pipe.xrevrange(partition_key(dataset, partition, "dead"), max=newest, count=_LETTERS_PER_TRIP)
                pipe.hlen(partition_key(dataset, partition, "verdicts"))
                entries, restated = pipe.execute()
                ids = [entry_id for entry_id, _ in entries]
                key = partition_key(dataset, partition, "verdicts")
                verdicts = cast("list[Any]", self._redis.hmget(key, ids)) if ids and restated else [None] * len(ids)
            for (entry_id, fields), verdict in zip(entries, verdicts, strict=True):
                yield _stored(partition, entry_id, fields, verdict)
            if len(entries) < _LETTERS_PER_TRIP:
                return
            newest = f"({ids[-1].decode()}"


def _below(before: LetterId | None, partition: int) -> str:
    """What of a partition comes after a letter, newest first: letters of one instant order by their partition."""
    if before is None:
        return ""
    return before.id if partition < before.partition else f"({before.id}"


def _stored(partition: int, entry_id: bytes, fields: Mapping[bytes, bytes], verdict: bytes | None) -> StoredDeadLetter:
    letter = DeadLetter(**json.loads(fields[b"letter"]))
    is_text = letter.reason == MALFORMED
    if not letter.at:
        letter = letter._replace(at=int(entry_id.partition(b"-")[0]) * 1_000)
    if verdict is not None:
        reason, field, message = json.loads(verdict)
        letter = letter._replace(reason=reason, field=field, message=message)
    return StoredDeadLetter(entry_id.decode(), partition, letter, is_text)
