"""The live feed of events: lines of ``text/event-stream`` into events, and from where to go on after a break."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from featurelib.client.wire import Request
from featurelib.errors import ServiceUnavailable, ThymeError

_PAUSE_S = 1.0
_SECONDS_PER_MS = 0.001


class Feed:
    """What was read of the feed so far.

    Args:
        url: of the stream.
        filters: those that are ``None`` are not sent.
        after: the id of the last event that is known; empty, the feed begins now.
        patience: how often in a row nothing may come before it is given up.
    """

    def __init__(self, url: str, filters: Mapping[str, Any], after: str, patience: int) -> None:
        self._url = url
        self._filters = filters
        self._patience = patience
        self._failed = 0
        self._data: list[str] = []
        self._id = self.last_id = after
        self.pause_s = _PAUSE_S

    def request(self) -> Request:
        """The request that goes on after the last event that came whole."""
        self._data.clear()
        resumed = {"Last-Event-ID": self.last_id} if self.last_id else {}
        return Request("GET", self._url, self._filters, headers={"Accept": "text/event-stream", **resumed})

    def take(self, line: str) -> dict[str, Any] | None:
        """The event that this line completes, if it does.

        Raises:
            ServiceUnavailable: what came is no event of the platform.
        """
        self._failed = 0
        if not line:
            return self._complete()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "id":
            self._id = value
        elif name == "retry" and value.isdigit():
            self.pause_s = int(value) * _SECONDS_PER_MS
        return None

    def broken(self, error: ThymeError) -> None:
        """Take a failure; raises it when going on makes no sense, or nothing came for too often."""
        self._failed += 1
        if not error.retryable or self._failed >= self._patience:
            raise error

    def _complete(self) -> dict[str, Any] | None:
        text, self._data = "\n".join(self._data), []
        self.last_id = self._id
        if not text:
            return None
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError):
            message = f"{self._url} sent what is no event: {text[:60]!r}"
            raise ServiceUnavailable(message) from None
