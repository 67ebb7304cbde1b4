"""One connection to the online store for everybody on an event loop: concurrent callers share its round trips.

Nobody waits for a connection of their own and nothing is awaited to send: a caller's commands are written at once (an
event loop over libuv gathers the writes of one turn into one system call) and replies are handed out in order. Against
``redis.asyncio``, whose pool gives each caller a connection and reads it with awaits, this carries 1.7 to 2.6 times the
requests. It only ever reads, so whatever a lost connection swallowed is asked again once.

It can *watch* keys: the server tells on the same connection when one of them was written (``CLIENT TRACKING``, RESP 3),
so that what was read needs not be asked for again until then. News and replies come in the order the server made them,
so a reply is never older than news before it. Over two connections it could be.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, cast

import hiredis
import redis
import redis.asyncio
import structlog
from redis.asyncio.connection import SSLConnection, UnixDomainSocketConnection

from featurelib.errors import StoreUnavailable
from featurelib.stores.server import is_passing

# A server that is stopped or swaps gives no sign; after this long its callers are told. A URL's own setting goes first.
_ANSWER_SECONDS = 5.0
# The head of the line is looked at this often within the time it has: no timer per request.
_LOOKS = 2
# A connection that watches is asked for a sign of life when nothing came for the first; after the second, what it said
# before counts no more: a machine that is cut off hears of no change.
_BEAT_SECONDS, _HEARD_SECONDS = 1.0, 2.5
# Some 200 bytes each; several times the rows that a reader keeps.
_MOST_WATCHED = 200_000

_NOTHING: Mapping[bytes, object] = {}
_log = structlog.get_logger(__name__)

pack: Callable[[Any], bytes] = hiredis.pack_command
"""The bytes of one command, given as a tuple of str, bytes or int."""


class Meter:
    """What trips to the store took.

    Attributes:
        seconds: all trips together.
        longest_s: the longest of them.
        size: bytes of the replies.
    """

    __slots__ = ("longest_s", "seconds", "size")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.longest_s = 0.0
        self.size = 0

    def tripped(self, seconds: float, replies: Sequence[Any]) -> None:
        """Count a trip."""
        self.seconds += seconds
        self.longest_s = max(self.longest_s, seconds)
        self.size += _size(replies)

    def add(self, other: Meter) -> None:
        """Count what another meter counted."""
        self.seconds += other.seconds
        self.longest_s = max(self.longest_s, other.longest_s)
        self.size += other.size


METER: ContextVar[Meter | None] = ContextVar("meter", default=None)
"""Counts the trips made in this context; ``None``: nobody does."""


def _size(replies: Sequence[Any]) -> int:
    size = 0
    for each in replies:
        if isinstance(each, bytes):
            size += len(each)
        elif isinstance(each, list):
            size += _size(each)
    return size


class _Lost(Exception):
    """The connection ended before a reply came."""


class _Trip:
    """Commands of one caller on their way."""

    __slots__ = ("future", "missing", "replies")

    def __init__(self, future: asyncio.Future[list[Any]], missing: int) -> None:
        self.future = future
        self.missing = missing
        self.replies: list[Any] = []


class PipelinedRedis:
    """Reads from a Redis server. Lives on one event loop; connects when first asked, and again when it must.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        watching: whether keys will be watched. A server that does not know how is asked each time.
    """

    def __init__(self, url: str, *, watching: bool = False) -> None:
        self._watching = watching
        pool = redis.asyncio.ConnectionPool.from_url(url)
        self._options = pool.connection_kwargs
        self._is_unix = issubclass(pool.connection_class, UnixDomainSocketConnection)
        self._tls = _tls(self._options) if issubclass(pool.connection_class, SSLConnection) else None
        self._answer_s = float(self._options.get("socket_timeout") or _ANSWER_SECONDS)
        self._connect_s = float(self._options.get("socket_connect_timeout") or _ANSWER_SECONDS)
        self._line: _Line | None = None
        self._connecting: asyncio.Lock | None = None
        self._closed = False

    async def trip(self, request: bytes, count: int) -> list[Any]:
        """The replies to ``count`` packed commands, in one round trip.

        Raises:
            StoreUnavailable: the server does not answer.
            redis.ResponseError: it refused a command.
        """
        meter = METER.get()
        if meter is None:
            return await self._trip(request, count)
        started = time.perf_counter()
        replies = await self._trip(request, count)
        meter.tripped(time.perf_counter() - started, replies)
        return replies

    def watch(self, key: bytes) -> object | None:
        """Watch a key, from before it is asked for; returns a mark, ``None`` where nothing can be watched now.

        As long as :attr:`unchanged` has the mark, the key is what a read sent after this call found.
        """
        line = self._line
        return line.mark(key) if line is not None and line.is_watching else None

    def unwatch(self, key: bytes) -> None:
        """Watch a key no more; all who do hear of it as of a change."""
        if self._line is not None:
            self._line.unchanged.pop(key, None)

    @property
    def unchanged(self) -> Mapping[bytes, object]:
        """The keys that are watched and were not written since, with their marks.

        It is as new as the last news this event loop has taken in. News that had come to this machine before a request
        is taken in before what the request starts in a turn of its own, as a task or a callback.
        """
        line = self._line
        return line.unchanged if line is not None and not line.is_lost and line.is_heard() else _NOTHING

    async def _trip(self, request: bytes, count: int) -> list[Any]:
        line = self._line
        for last in (False, True):
            if line is None or line.is_lost:
                line = await self._connected()
            try:
                replies = await line.send(request, count)
            except _Lost as error:
                if last:
                    raise StoreUnavailable(f"the online store does not answer: {error}") from None
            else:
                if line.refused:
                    _raise_refused(replies)
                return replies
        raise AssertionError("unreachable")  # the last turn returns or raises

    async def close(self) -> None:
        """Hang up; callers that wait get StoreUnavailable."""
        self._closed = True
        line, self._line = self._line, None
        if line is not None:
            await line.close()

    async def _connected(self) -> _Line:
        if self._connecting is None:
            self._connecting = asyncio.Lock()
        async with self._connecting:
            if self._line is None or self._line.is_lost:
                self._line = await self._connect()
            return self._line

    async def _connect(self) -> _Line:
        if self._closed:
            raise StoreUnavailable("the online store's connection was closed")
        try:
            async with asyncio.timeout(self._connect_s):
                line = await self._open()
                try:
                    await self._greet(line)
                except BaseException:
                    await line.close()
                    raise
                return line
        except (OSError, _Lost, redis.ResponseError) as error:  # TimeoutError is an OSError; a password may be wrong
            why = str(error) or f"no connection within {self._connect_s:g} s"
            raise StoreUnavailable(f"the online store does not answer: {why}") from error

    async def _open(self) -> _Line:
        loop, options = asyncio.get_running_loop(), self._options
        make = lambda: _Line(loop, self._answer_s)  # noqa: E731  # what both calls want
        if self._is_unix:
            return (await loop.create_unix_connection(make, options["path"]))[1]
        host, port = options.get("host", "localhost"), int(options.get("port", 6379))
        return (await loop.create_connection(make, host, port, ssl=self._tls))[1]

    async def _greet(self, line: _Line) -> None:
        greetings: list[tuple[Any, ...]] = []
        user, password = self._options.get("username"), self._options.get("password")
        if password or user:
            greetings.append(("AUTH", user, password or "") if user else ("AUTH", password))
        if database := int(self._options.get("db") or 0):
            greetings.append(("SELECT", database))
        if greetings:
            _raise_refused(await line.send(b"".join(map(pack, greetings)), len(greetings)))
        if self._watching:
            asked = (("HELLO", "3"), ("CLIENT", "TRACKING", "ON"))
            refused = [
                reply
                for reply in await line.send(b"".join(map(pack, asked)), len(asked))
                if isinstance(reply, redis.ResponseError)
            ]
            line.refused = False
            if refused:
                _raise_passing(str(refused[0]))
                _log.warning("store_cannot_be_watched", detail=str(refused[0]))
            else:
                line.watch()


class _Line(asyncio.Protocol):
    """An open connection, and who waits for a reply on it, oldest first."""

    def __init__(self, loop: asyncio.AbstractEventLoop, answer_s: float) -> None:
        self.is_lost = False
        self.refused = False
        """Whether any reply on this connection was an error: looked for only then."""
        self.is_watching = False
        self.unchanged: dict[bytes, object] = {}
        """Per key that is watched a mark, until it is written."""
        self._heard_at = 0.0
        self._beat_timer: asyncio.TimerHandle | None = None
        self._loop = loop
        self._look_s = answer_s / _LOOKS
        self._reader = hiredis.Reader(replyError=self._refusal)
        self._waiting: deque[_Trip] = deque()
        self._transport: asyncio.Transport
        self._ended: asyncio.Future[None] = loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._seen: _Trip | None = None
        self._looks = 0
        self._why = "the connection was lost"

    def send(self, request: bytes, count: int) -> asyncio.Future[list[Any]]:
        """Write commands now; the future has their replies."""
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        if self.is_lost:
            future.set_exception(_Lost(self._why))
            return future
        self._waiting.append(_Trip(future, count))
        self._transport.write(request)
        if self._timer is None:
            self._timer = self._loop.call_later(self._look_s, self._look)
        return future

    def watch(self) -> None:
        """The server tells of changes from now on."""
        if self.is_lost:
            return
        self.is_watching = True
        self._beat_timer = self._loop.call_later(_BEAT_SECONDS, self._beat)

    def mark(self, key: bytes) -> object:
        """The mark of a key, a new one where it has none."""
        if len(self.unchanged) >= _MOST_WATCHED:
            # Of callers that went away before they had an answer: the others are asked for once more.
            self.unchanged.clear()
        return self.unchanged.setdefault(key, object())

    def is_heard(self) -> bool:
        """Whether the server gave a sign of life lately."""
        return self._loop.time() - self._heard_at < _HEARD_SECONDS

    async def close(self) -> None:
        """Hang up and wait until that is done."""
        self._transport.abort()
        await self._ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Hand replies out."""
        reader, waiting = self._reader, self._waiting
        self._heard_at = self._loop.time()
        reader.feed(data)
        while (reply := reader.gets()) is not False:
            if type(reply) is hiredis.PushNotification:
                self._hear(reply)
                continue
            trip = waiting[0]
            trip.replies.append(reply)
            trip.missing -= 1
            if not trip.missing:
                waiting.popleft()
                if not trip.future.done():  # its caller may have gone
                    trip.future.set_result(trip.replies)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell everyone who waits."""
        self.is_lost = True
        if error is not None:
            self._why = str(error)
        self.is_watching = False
        self.unchanged.clear()
        for timer in (self._timer, self._beat_timer):
            if timer is not None:
                timer.cancel()
        self._fail(lambda: _Lost(self._why))
        if not self._ended.done():
            self._ended.set_result(None)

    def _refusal(self, text: str) -> redis.ResponseError:
        self.refused = True
        return redis.ResponseError(text)

    def _hear(self, news: Sequence[Any]) -> None:
        kind, keys = news[0], news[1]
        if kind != b"invalidate":
            return
        if keys is None:  # all of them: the server was flushed
            self.unchanged.clear()
            return
        for key in keys:
            self.unchanged.pop(key, None)

    def _beat(self) -> None:
        if self._loop.time() - self._heard_at >= _BEAT_SECONDS and not self._waiting:
            self.send(pack(("PING",)), 1).add_done_callback(_let_go)
        self._beat_timer = self._loop.call_later(_BEAT_SECONDS, self._beat)

    def _look(self) -> None:
        # A head of the line that was there at every look waits for a server that is stuck. Asked again it would wait
        # as long once more, so its callers hear of it.
        self._timer = None
        if not self._waiting:
            self._seen = None
            return
        self._looks = self._looks + 1 if self._waiting[0] is self._seen else 0
        self._seen = self._waiting[0]
        if self._looks < _LOOKS:
            self._timer = self._loop.call_later(self._look_s, self._look)
            return
        why = f"the online store does not answer within {self._look_s * _LOOKS:g} s"
        self._fail(lambda: StoreUnavailable(why))
        self.is_lost = True
        self._transport.abort()

    def _fail(self, error: Callable[[], Exception]) -> None:
        for trip in self._waiting:
            if not trip.future.done():
                trip.future.set_exception(error())
        self._waiting.clear()


def _let_go(answered: asyncio.Future[list[Any]]) -> None:
    if not answered.cancelled():
        answered.exception()  # whoever asks next hears of it too


def _tls(options: dict[str, Any]) -> ssl.SSLContext:
    """The TLS context of a URL's options, as the library that parses them makes it."""
    return SSLConnection(**options).ssl_context.get()


def _raise_refused(replies: Sequence[Any]) -> None:
    for reply in replies:
        if isinstance(reply, redis.ResponseError):
            _raise_passing(str(reply))
            raise reply


def _raise_passing(text: str) -> None:
    if is_passing(text):
        raise StoreUnavailable(f"the online store does not answer: {text}")
