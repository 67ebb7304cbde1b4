"""The HTTP client of both services, blocking and asynchronous, and the configuration that says where they are.

Each operation is written once (:mod:`.operations`), in the module of its noun; the two clients differ in how they
wait. Every failure is one of :mod:`featurelib.errors`, rebuilt from the service's error body; its correlation id is a
note of the exception.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from featurelib.client.access import Access
from featurelib.client.catalogue import Catalogue
from featurelib.client.config import Config, base_of, credentials_path, forget_credentials, save_credentials
from featurelib.client.control import Control
from featurelib.client.definitions import Definitions
from featurelib.client.feed import Feed
from featurelib.client.monitoring import Monitoring
from featurelib.client.operations import Endpoints
from featurelib.client.reads import Reads
from featurelib.client.records import Records
from featurelib.client.secrets import Secrets
from featurelib.client.training import Training
from featurelib.client.transport import Awaiting, Blocking
from featurelib.errors import ThymeError

__all__ = [
    "AsyncThymeClient",
    "Config",
    "ThymeClient",
    "base_of",
    "credentials_path",
    "forget_credentials",
    "save_credentials",
]


class ThymeClient(Reads, Training, Records, Definitions, Catalogue, Control, Access, Secrets, Monitoring, Blocking):
    """A client of the definition service and the query server; use it as a context manager, or close it.

    Calls that may be repeated are, up to ``config.attempts`` times, where no answer comes or the service says that it
    cannot now; a ``Retry-After`` is honoured.

    Args:
        config: where and with which key; left out, :meth:`Config.load`.
        transport: another way to send, for tests.
    """

    def follow_events(
        self,
        *,
        severity: str | None = None,
        event_type: str | None = None,
        subject: str | None = None,
        after: str = "",
    ) -> Iterator[dict[str, Any]]:
        """Entries of the platform's feed as they are made, each once, also over a restart of the service.

        It does not end by itself; it fails when the service stays away.

        Args:
            severity: only this one.
            event_type: only of this type.
            subject: only about this thing.
            after: the ``id`` of the last event that is known; left out, those of from now on.
        """
        feed = _feed(self, after, severity=severity, event_type=event_type, subject=subject)
        while True:
            try:
                for line in self._lines(feed.request()):
                    event = feed.take(line)
                    if event is not None:
                        yield event
            except ThymeError as error:
                feed.broken(error)
            time.sleep(feed.pause_s)


class AsyncThymeClient(
    Reads, Training, Records, Definitions, Catalogue, Control, Access, Secrets, Monitoring, Awaiting
):
    """:class:`ThymeClient` for programs that await: the same operations, each a coroutine.

    Args:
        config: where and with which key; left out, :meth:`Config.load`.
        transport: another way to send, for tests.
    """

    async def follow_events(
        self,
        *,
        severity: str | None = None,
        event_type: str | None = None,
        subject: str | None = None,
        after: str = "",
    ) -> AsyncIterator[dict[str, Any]]:
        """:meth:`ThymeClient.follow_events`, between awaits."""
        feed = _feed(self, after, severity=severity, event_type=event_type, subject=subject)
        while True:
            try:
                async for line in self._lines(feed.request()):
                    event = feed.take(line)
                    if event is not None:
                        yield event
            except ThymeError as error:
                feed.broken(error)
            await asyncio.sleep(feed.pause_s)


def _feed(client: Endpoints, after: str, **filters: str | None) -> Feed:
    return Feed(client.api_url("/api/v1/events/stream"), filters, after, client.config.attempts)
