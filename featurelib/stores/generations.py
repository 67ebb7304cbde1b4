"""Which build of a pipeline's state is served, and which other one is kept up to date beside it, to go back to.

    {<pipeline>}:generation    the one that is served; 1 where nothing is said
    {<pipeline>}:kept          the one that is kept; nothing where there is none

Both are moved by one script: a rollback swaps them. Workers run for both (jobs/wanted.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import redis

from featurelib.engine.keys import KEY_GROUPS
from featurelib.stores.online import StateName, generation_key, kept_key
from featurelib.stores.server import answering

_NOBODY = ""
# Only from the stand that whoever asks has seen, so that of two that race one wins; done again, it changes nothing.
_MOVE = """
local served, kept = redis.call('GET', KEYS[1]) or '1', redis.call('GET', KEYS[2]) or ''
if served == ARGV[3] and kept == ARGV[4] then return 1 end
if served ~= ARGV[1] or (ARGV[2] ~= '*' and kept ~= ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[3])
if ARGV[4] == '' then redis.call('DEL', KEYS[2]) else redis.call('SET', KEYS[2], ARGV[4]) end
return 1
"""


class Stand(NamedTuple):
    """The generation of a pipeline that is served, and the one that is kept."""

    served: int = 1
    kept: int | None = None

    @property
    def all(self) -> tuple[int, ...]:
        """Both, the served one first."""
        return (self.served,) if self.kept is None else (self.served, self.kept)


class Generations:
    """Moves pipelines from one build of their state to another. Blocking; one per process."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(redis_url)
        self._move = self._redis.register_script(_MOVE)

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    def of(self, pipelines: Sequence[str]) -> dict[str, Stand]:
        """By pipeline ref, in one round trip."""
        if not pipelines:
            return {}
        names = [key for pipeline in pipelines for key in (generation_key(pipeline), kept_key(pipeline))]
        with answering():
            values = cast("list[bytes | None]", self._redis.mget(names))
        pairs = zip(values[::2], values[1::2], strict=True)
        stands = [Stand(int(served or 1), None if kept is None else int(kept)) for served, kept in pairs]
        return dict(zip(pipelines, stands, strict=True))

    def shadow(self, pipeline: str, served: int, generation: int) -> bool:
        """Have a generation that was built kept up to date, so that nothing is missing in it once it is served."""
        return self._moved(pipeline, str(served), "*", str(served), str(generation))

    def epochs(self, state: StateName) -> list[int]:
        """Per key group, how often somebody has taken it over."""
        with answering():
            pipe = self._redis.pipeline(transaction=False)
            for group in range(KEY_GROUPS):
                pipe.hget(state.position(group), "epoch")
            return [int(epoch or 0) for epoch in pipe.execute()]

    def switch(self, pipeline: str, before: int, to: int, *, keep: bool) -> bool:
        """Serve another generation from now on, and keep the one before up to date or not.

        Whether it is served: not where another one than ``before`` is served by now.
        """
        return self._moved(pipeline, str(before), "*", str(to), str(before) if keep else _NOBODY)

    def swap(self, pipeline: str, stand: Stand) -> bool:
        """Serve the kept generation and keep the served one; whether it is so, which needs that it stood as given."""
        assert stand.kept is not None
        return self._moved(pipeline, str(stand.served), str(stand.kept), str(stand.kept), str(stand.served))

    def forget(self, pipeline: str, kept: int) -> bool:
        """Keep a generation no longer; whether it was kept. Its bytes stay until they are cleared."""
        stand = self.of([pipeline])[pipeline]
        if stand.kept != kept:
            return False
        return self._moved(pipeline, str(stand.served), str(kept), str(stand.served), _NOBODY)

    def _moved(self, pipeline: str, *stands: str) -> bool:
        with answering():
            moved: Any = self._move(keys=[generation_key(pipeline), kept_key(pipeline)], args=list(stands))
        return bool(moved)
