"""A request that is lost half way: of what goes to several log partitions, the first gets its share."""

from __future__ import annotations

from typing import Any

import pytest

from featurelib.errors import MaybeTaken
from featurelib.stores.log import Log


def lose_the_second_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every append to several partitions ends after the first."""
    whole = Log.append_shares

    def half(log: Log, dataset: str, shares: Any, *args: Any, **kwargs: Any) -> Any:
        whole(log, dataset, shares[:1], *args, **kwargs)
        raise MaybeTaken("lost")

    monkeypatch.setattr(Log, "append_shares", half)
