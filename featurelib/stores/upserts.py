"""Which content of a record came last, by what the record is told apart by: its key and its event time.

A door whose records upsert needs one fact of each: whether it says again what was said last, or something else. The
n-th content of a record is its *revision* n; together with what tells it apart that names the record, so that the log
skips it where it holds it and takes it where it does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import redis

from featurelib.clock import Duration, Instant
from featurelib.stores.server import answering

_REVISE = """
local revisions = {}
for i = 1, #KEYS do
  local content, revision = ARGV[1 + i], 0
  local held = redis.call('GET', KEYS[i])
  if held then
    local before, number = string.match(held, '^(%x+) (%d+)$')
    revision = tonumber(number)
    if before ~= content then revision = revision + 1 end
  end
  redis.call('SET', KEYS[i], content .. ' ' .. string.format('%.0f', revision), 'PX', ARGV[1])
  revisions[i] = revision
end
return revisions
"""


class Version(NamedTuple):
    """One content of a record: the key and the event time it is told apart by, and everything it says."""

    key: str
    at: Instant
    content: bytes


class Upserts:
    """Names records that upsert, beside the logs of their datasets. Blocks; safe to share between threads."""

    def __init__(self, client: redis.Redis) -> None:
        self._revise = client.register_script(_REVISE)

    def names(self, dataset: str, versions: Sequence[Version], keep_us: Duration) -> list[str]:
        """A name for each version of a record: the same as long as its content comes again without another between.

        Versions of one record are taken in the order given. What was said last is remembered for ``keep_us``, which
        must be longer than the names themselves are held.

        Raises:
            StoreUnavailable: no version is known to be named; ask again, the names stay the same.
        """
        if not versions:
            return []
        records = [_digest(f"{each.key}\0{each.at}".encode()) for each in versions]
        keys = [f"{{{dataset}}}:upsert:{record}" for record in records]
        contents = [_digest(each.content) for each in versions]
        with answering():
            revisions = cast("list[int]", self._revise(keys=keys, args=cast("Any", [str(keep_us // 1_000), *contents])))
        # The content as well: what counts the revisions may be forgotten before a name is.
        named = zip(records, revisions, contents, strict=True)
        return [f"{record}:{revision}:{content[:8]}" for record, revision, content in named]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
