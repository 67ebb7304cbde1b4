"""Tells workers that somebody waits for what was just appended, so that they let nothing more gather.

A sign is an entry of a stream of one: whoever looks for it after it was given finds it, and whoever waits for it wakes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import redis

from featurelib.stores.server import answering

_FIRST = b"0-0"


class Haste:
    """Gives signs. Blocks; safe to share between threads."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def ask(self, dataset: str) -> None:
        """Say of a dataset, ``Name@version``, that somebody waits for what is in its log now.

        Of what comes after the sign nothing is said: one given before an append may be used up by the step before it.

        Raises:
            StoreUnavailable: nobody was told.
        """
        with answering():
            self._redis.xadd(_key(dataset), {"": ""}, maxlen=1, approximate=False)

    def signs(self, datasets: Sequence[str]) -> Signs:
        """The signs of some datasets, for one who looks for them."""
        return Signs(self._redis, datasets)


class Signs:
    """The signs given for some datasets since they were last looked for. Not to be shared between threads."""

    def __init__(self, client: redis.Redis, datasets: Sequence[str]) -> None:
        self._redis = client
        self._seen = {_key(dataset).encode(): _FIRST for dataset in datasets}

    def wait(self, timeout_ms: int) -> bool:
        """Whether there is a new one by then; returns once there is.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        with answering():
            found = cast("Any", self._redis.xread(cast("Any", self._seen), block=max(1, timeout_ms)))
        for key, entries in found:
            self._seen[key] = entries[-1][0]
        return bool(found)


def _key(dataset: str) -> str:
    return f"{{{dataset}}}:haste"
