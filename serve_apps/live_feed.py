"""The platform's feed as it grows, to everybody who follows it on this replica.

One task asks the database for what is new, however many follow, and only while somebody does. What it finds is kept,
encoded once, in a window that is bounded in entries and bytes and shared by all; a follower is a place in it and holds
nothing of its own. One that falls out of the window, or takes nothing of what it is sent for a while, is ended: it
comes back with the id of the last entry it has seen, and reads what it missed from the database.
"""

from __future__ import annotations

import asyncio
import json
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

import structlog

from featurelib.errors import NotFound, ServiceUnavailable, ThymeError
from featurelib.stores.feed import FeedEntry, Place
from featurelib.stores.registry import EventRecord
from serve_apps import shapes
from serve_apps.current import passed

_log = structlog.get_logger("thyme.serve")
_KEPT_ENTRIES = 1_000
_KEPT_BYTES = 4 * 1024 * 1024
_PAGE = 200
# What waits to be taken by one follower.
_CHUNK_BYTES = 64 * 1024
# Proxies give up connections that are silent for a minute.
_HEARTBEAT_S = 15.0
# How long a key that was revoked, or a replica that ends, is not noticed by a follower that waits.
_LOOK_ROUND_S = 1.0
_HEARTBEAT = b": still here\n\n"
# How soon a browser comes back after its stream ended.
_GREETING = b"retry: 1000\n\n"


class Source(Protocol):
    """The part of the feed's store this needs; blocks."""

    def head(self) -> Place:
        """The place of the newest entry."""
        ...

    def place_of(self, event_id: str) -> int | None:
        """The place of an entry."""
        ...

    def after(self, sequence: int, limit: int) -> list[FeedEntry]:
        """The first entries after a place, oldest first."""
        ...


class Filters(NamedTuple):
    """Which entries a follower wants; exact, and they combine."""

    severity: str | None = None
    event_type: str | None = None
    subject: str | None = None

    def take(self, event: EventRecord) -> bool:
        """Whether the entry is wanted."""
        wanted = ((self.severity, event.severity), (self.event_type, event.event_type), (self.subject, event.subject))
        return all(asked in {None, found} for asked, found in wanted)


class Kept(NamedTuple):
    """An entry, its place, and how it is sent."""

    sequence: int
    event: EventRecord
    data: bytes


class LiveFeed:
    """The followers of one replica, and the window they read from.

    Args:
        source: the feed's store.
        most: followers taken at once.
        poll_s: how often the store is asked.
    """

    def __init__(self, source: Source, *, most: int, poll_s: float) -> None:
        self._source = source
        self._most = most
        self._poll_s = poll_s
        self._window: deque[Kept] = deque()
        self._bytes = 0
        # All entries above the floor, up to the head, are in the window.
        self._floor = self._head = 0
        self._followers = 0
        self._opening = asyncio.Lock()
        self._reading = asyncio.Semaphore(2)
        self._followed = asyncio.Event()
        self._moved = asyncio.Event()
        self.closed = asyncio.Event()

    @property
    def followers(self) -> int:
        """How many follow now."""
        return self._followers

    @property
    def kept_bytes(self) -> int:
        """How much is kept for all of them."""
        return self._bytes

    async def run(self, stopping: asyncio.Event) -> None:
        """Ask for what is new, while somebody follows, until ``stopping``; an outage is logged once."""
        failing = False
        while not stopping.is_set() and not self.closed.is_set():
            await self._followed.wait()
            try:
                more = await self._poll()
            except ThymeError as error:
                if not failing:
                    _log.warning("feed_stale", error=str(error))
                failing, more = True, False
            else:
                failing = False
            if not more:
                await passed(stopping, self._poll_s)

    def close(self) -> None:
        """End every stream: followers come back to another replica and go on where they were."""
        self.closed.set()
        self._followed.set()
        self._moved.set()

    async def place(self, last_event_id: str | None) -> Place | None:
        """Where a follower goes on that has seen an entry; ``None``: it begins with what is new.

        Raises:
            NotFound: there is no such entry.
        """
        if last_event_id is None:
            return None
        place = await asyncio.to_thread(self._source.place_of, last_event_id)
        if place is None:
            raise NotFound(f"no event {last_event_id!r}; leave Last-Event-ID out to begin with what is new")
        return Place(place, last_event_id)

    @asynccontextmanager
    async def following(self, after: Place | None) -> AsyncIterator[Place]:
        """Take a follower until the block ends; gives the place it begins after.

        Raises:
            ServiceUnavailable: there are too many, or the replica ends.
        """
        if self.closed.is_set():
            raise ServiceUnavailable("this replica ends; ask again")
        if self._followers >= self._most:
            raise ServiceUnavailable(f"{self._most} clients follow the feed on this replica already; ask again later")
        self._followers += 1
        try:
            head = await self._begin()
            yield head if after is None else after
        finally:
            self._followers -= 1
            if not self._followers and not self.closed.is_set():
                self._followed.clear()

    async def _begin(self) -> Place:
        """Begin to ask for what is new, unless that is being done; the place of the newest entry."""
        async with self._opening:
            head = await asyncio.to_thread(self._source.head)
            if not self._followed.is_set():
                # While nobody followed nothing was asked for: who wants what came then reads it from the database.
                self._floor = self._head = head.sequence
                self._window.clear()
                self._bytes = 0
                self._followed.set()
        return head

    async def chunks(self, after: Place, filters: Filters, admitted: Callable[[], bool]) -> AsyncGenerator[bytes]:
        """What is sent to a follower: entries after a place in order, each once, and a sign of life when none come.

        Ends when the feed is closed, when the follower is not ``admitted`` any more, or when it falls behind.

        Raises:
            StoreUnavailable: what it missed cannot be read now.
        """
        seconds = asyncio.get_running_loop().time
        place, follows, sent = after.sequence, False, seconds()
        # With the place it begins at: who is cut off before the first entry comes back to that.
        yield _GREETING if after.event_id is None else b"id: %b\n%b" % (after.event_id.encode(), _GREETING)
        while not self.closed.is_set() and admitted():
            moved = self._moved
            if place >= self._floor:
                follows, found = True, self._since(place)
            elif follows:
                return
            else:
                found = await self._stored(place)
                # Less than a page: there is nothing more below the window.
                place = place if len(found) == _PAGE else max(place, self._floor)
            place = max(place, found[-1].sequence) if found else place
            for data in _pieces(kept.data for kept in found if filters.take(kept.event)):
                yield data
                sent = seconds()
            if seconds() - sent >= _HEARTBEAT_S:
                yield _HEARTBEAT
                sent = seconds()
            if not found:
                await passed(moved, _LOOK_ROUND_S)

    async def _poll(self) -> bool:
        """Take in what is new; whether there may be more at once."""
        before = self._head
        found = await asyncio.to_thread(self._source.after, before, _PAGE)
        # Everybody left and somebody came meanwhile: the window begins anew, beyond what was read.
        if not found or self._head != before:
            return False
        for entry in found:
            self._keep(_kept(entry))
        self._head = found[-1].sequence
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        return len(found) == _PAGE

    def _keep(self, kept: Kept) -> None:
        self._window.append(kept)
        self._bytes += len(kept.data)
        while len(self._window) > _KEPT_ENTRIES or (self._bytes > _KEPT_BYTES and len(self._window) > 1):
            oldest = self._window.popleft()
            self._bytes -= len(oldest.data)
            self._floor = oldest.sequence

    def _since(self, place: int) -> list[Kept]:
        """The first entries of the window after a place, not many bytes of them."""
        at, size = bisect_right(self._window, place, key=lambda kept: kept.sequence), 0
        found: list[Kept] = []
        while at < len(self._window) and size < _CHUNK_BYTES:
            found.append(self._window[at])
            size += len(found[-1].data)
            at += 1
        return found

    async def _stored(self, place: int) -> list[Kept]:
        """Entries that left the window before this follower came, page by page."""
        async with self._reading:
            return [_kept(entry) for entry in await asyncio.to_thread(self._source.after, place, _PAGE)]


def encoded(event: EventRecord) -> str:
    """An entry as JSON, in ASCII: what people and sources write need not be Unicode that UTF-8 can spell."""
    return json.dumps(shapes.event_record(event))


def _pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The parts joined to pieces that are sent at once."""
    piece = b""
    for part in parts:
        if piece and len(piece) + len(part) > _CHUNK_BYTES:
            yield piece
            piece = b""
        piece += part
    if piece:
        yield piece


def _kept(entry: FeedEntry) -> Kept:
    text = f"id: {entry.event.id}\ndata: {encoded(entry.event)}\n\n"
    return Kept(entry.sequence, entry.event, text.encode())
