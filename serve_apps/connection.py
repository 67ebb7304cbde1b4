"""A client's connection: HTTP/1.1 from the socket to the application, and a limit on whatever a client can delay.

uvicorn runs the server; this takes the place of its own protocol, which builds an ASGI scope, a cycle of events and two
messages for each request, drops the answer to a client that has half-closed, and waits for ever for one that is slow.
Here a request is handed over whole, a hot answer is one write, and:

    a head       within 10 s of its first byte, in 64 KiB
    a body       64 KiB a second after the first ten seconds
    an answer    read by its client: half a minute without progress ends the connection
    silence      75 s between two requests

A server that stops answers what was asked and what its clients had no time to ask: a connection that was just accepted
is waited for, since closing it would be an error to a client that did nothing wrong.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import httptools

from featurelib.errors import ThymeError
from serve_apps.exchange import Disconnected, Exchange, Message, Scope, too_large
from serve_apps.messages import Answer, refuse_status
from serve_apps.web import Application

_HEAD_BYTES = 65_536
_HEAD_SECONDS = 10.0
_BODY_BYTES_A_SECOND = 65_536
_IDLE_SECONDS = 75.0
_UNREAD_SECONDS = 30.0
# A streamed body is read ahead of whoever takes it this far; more stays in the network.
_READ_AHEAD_BYTES = 2 * 2**20
# A refused body is read and dropped, so that its sender gets to the answer; not for ever.
_DROPPED_BYTES = 256 * 2**20
# Requests sent ahead of their turn wait in order; beyond these the client's next bytes stay in the network.
_PIPELINED = 32
# A server that stops waits this long for the first request of a new connection, and for the next one of an old one.
_FIRST_REQUEST_SECONDS = 5.0
_NEXT_REQUEST_SECONDS = 1.0

_STATUS_LINES: dict[int, bytes] = {status: f"HTTP/1.1 {status} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CLOSE = b"connection: close\r\n"
_CONNECT = b"CONNECT"
_NO_BODY = frozenset({204, 304})


class Shared:
    """What the connections of one listener share.

    Args:
        application: answers.
        state: uvicorn's: all open connections, the tasks it waits for when it stops, headers of every answer.
    """

    def __init__(self, application: Application, state: Any) -> None:
        self.application = application
        self.connections: set[Connection] = state.connections
        self.tasks: set[asyncio.Task[None]] = state.tasks
        self._state = state
        self._seen: object = None
        self._lines = b""

    @property
    def default_lines(self) -> bytes:
        """The headers of every answer; the server sets new ones each second."""
        current: list[tuple[bytes, bytes]] = self._state.default_headers
        if current is not self._seen:
            self._seen, self._lines = current, b"".join(b"%b: %b\r\n" % pair for pair in current)
        return self._lines

    def sweep(self, now: float) -> None:
        """End connections that have waited too long; called every second."""
        for connection in tuple(self.connections):
            connection.sweep(now)


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._application = shared.application
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_size = 0
        self._in_head = False
        self._receiving: Served | None = None
        """The request whose body is coming."""
        self._answering: Served | None = None
        self._queue: deque[Served] = deque()
        self._since = self._loop.time()
        """When the connection fell silent, or its request began."""
        self._body_size = 0
        self._served = 0
        self._half_closed = False
        self._is_ending = False
        """Whether the server stops: each answer says that it is the last."""
        self._is_over = False
        """Whether what still comes is not looked at."""
        self._unread_since: float | None = None
        self._writable: asyncio.Future[None] | None = None
        self.is_lost = False

    # What the server and the transport call.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._shared.connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002  # the transport's signature
        """Tell whoever answers; nothing is sent any more."""
        self._shared.connections.discard(self)
        self.is_lost = True
        self._queue.clear()
        self.resume_writing()
        for exchange in (self._answering, self._receiving):
            if exchange is not None:
                exchange.client_left()
        self._parser = None

    def eof_received(self) -> bool:
        """A client that has said all it will may still read: what it asked for is answered first."""
        self._half_closed = True
        # Half a request will never be a whole one; those before it are.
        self._in_head = False
        if self._receiving is not None and not self._receiving.is_refused:
            self._receiving.client_left()
            self._receiving = None
        busy = self._answering is not None and not self._answering.is_done
        return busy or bool(self._queue)  # True keeps the transport open

    def pause_writing(self) -> None:
        """The client does not read."""
        if self._unread_since is None:
            self._unread_since = self._loop.time()
        if self._writable is None:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """It does again."""
        self._unread_since = None
        if self._writable is not None:
            if not self._writable.done():
                self._writable.set_result(None)
            self._writable = None
        if self._answering is None and self._queue:
            self._start_next()

    def shutdown(self) -> None:
        """End with the answer that is on its way, or with that to the request that may be; the server stops."""
        self._is_ending = True
        for exchange in (self._answering, self._receiving, *self._queue):
            if exchange is not None:
                exchange.keep_alive = False
        self._loop.call_later(_NEXT_REQUEST_SECONDS if self._served else _FIRST_REQUEST_SECONDS, self._end_if_silent)

    def sweep(self, now: float) -> None:
        """End what has waited too long; called every second."""
        if self._unread_since is not None:
            if now - self._unread_since > _UNREAD_SECONDS:
                self._transport.abort()
        elif self._receiving is not None and self._receiving.is_held_back:
            self._since = now - self._body_size / _BODY_BYTES_A_SECOND  # it waits for us
        elif self._in_head or self._receiving is not None:
            if now - self._since > _HEAD_SECONDS + self._body_size / _BODY_BYTES_A_SECOND:
                self._give_up(408, "the request did not come to its end in time")
        elif self._answering is None and now - self._since > _IDLE_SECONDS:
            self._transport.close()
        elif self._transport.is_closing():
            # What was written last is being read, or never will be.
            self._unread_since = now

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._is_over:
            return
        self._head_size += len(data)
        while data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade(data[upgrade.args[0] :])
            except httptools.HttpParserError as error:
                if not self._transport.is_closing():
                    self._give_up(400, f"not HTTP/1.1: {error}")
                return
            else:
                break
        if self._in_head and self._head_size > _HEAD_BYTES:
            self._give_up(431, f"the head of a request is larger than {_HEAD_BYTES} bytes")

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url, self._headers, self._in_head = b"", [], True
        self._since = self._loop.time()
        self._body_size = 0

    def on_url(self, url: bytes) -> None:
        """A part of its target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; those after a body are nobody's."""
        if self._in_head:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is whole: whether its body may come is decided now."""
        if self._parser.should_upgrade() and self._parser.get_method() != _CONNECT:
            return  # it comes again, without the offer
        self._in_head = False
        self._head_size = 0
        self._receiving = exchange = self._exchange()
        if exchange.body is None:
            self._await_body(exchange)
        elif exchange.headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in exchange.headers:
            # What comes with a GET is dropped, but whoever sends it waits to be asked for it.
            self._ask_for_body(exchange)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body_size += len(body)
        exchange = self._receiving
        if exchange is None:
            return
        if exchange.is_refused:
            exchange.dropped += len(body)
            if exchange.dropped > _DROPPED_BYTES:
                self._transport.abort()
        elif self._body_size > exchange.body_limit:
            self._refuse(exchange, too_large(exchange.body_limit))
        elif exchange.body is None:
            exchange.parts.append(body)
            if exchange.is_streamed:
                self._hold_back(exchange, len(body))

    def on_message_complete(self) -> None:
        """The request is whole."""
        exchange, self._receiving = self._receiving, None
        self._head_size = 0
        if exchange is None:
            return
        exchange.is_whole = True
        if exchange.is_refused or exchange.is_streamed:
            exchange.tell()
            if exchange.is_done:
                self._next(exchange)
            return
        if exchange.body is None:
            exchange.body = b"".join(exchange.parts)
        self._take(exchange)

    def _without_upgrade(self, rest: bytes) -> bytes:
        """A request that offers another protocol, as if it had not: the parser would take its body for that one.

        Java's own client offers HTTP/2 with its first request, whatever its method. Behind CONNECT nothing is HTTP.
        """
        if self._parser.get_method() == _CONNECT:
            self._end_after_answer()
            return b""
        first = b"%b %b HTTP/%b" % (self._parser.get_method(), self._url, self._parser.get_http_version().encode())
        lines = [b"%b: %b" % pair for pair in self._headers if pair[0] != b"upgrade"]
        self._parser = httptools.HttpRequestParser(self)
        return b"\r\n".join([first, *lines, b"", rest])

    def _exchange(self) -> Served:
        parser, url = self._parser, self._url
        if not url.startswith(b"/"):
            url = _of_absolute(url)
        raw, _, query = url.partition(b"?")
        path = raw.decode("ascii", "replace") if b"%" not in raw else _unquoted(raw)
        method = parser.get_method().decode("ascii")
        exchange = Served(self, method, path, query.partition(b"#")[0], self._headers)
        exchange.version = parser.get_http_version()
        exchange.body_limit = self._application.body_limit
        exchange.keep_alive = exchange.version == "1.1" and parser.should_keep_alive() and not self._is_ending
        return exchange

    def _await_body(self, exchange: Served) -> None:
        try:
            self._application.admit(exchange)
        except ThymeError as refusal:
            self._refuse(exchange, refusal)
        else:
            self._ask_for_body(exchange)
            if exchange.is_streamed:
                exchange.news = asyncio.Event()
                self._take(exchange)

    def _ask_for_body(self, exchange: Served) -> None:
        waits = exchange.headers.get(b"expect", b"").lower() == b"100-continue" and exchange.version == "1.1"
        if waits and self._answering is None:
            self._transport.write(_CONTINUE)

    def _hold_back(self, exchange: Served, more: int) -> None:
        exchange.ahead += more
        exchange.tell()
        if exchange.ahead > _READ_AHEAD_BYTES:
            exchange.is_held_back = True
            self._transport.pause_reading()

    def read_on(self, exchange: Served) -> None:
        """What was read ahead of a streamed body is taken, or never will be."""
        exchange.ahead = 0
        if exchange.is_held_back and not self.is_lost:
            exchange.is_held_back = False
            self._since = self._loop.time() - self._body_size / _BODY_BYTES_A_SECOND
            self._transport.resume_reading()

    def _refuse(self, exchange: Served, refusal: ThymeError) -> None:
        exchange.is_refused = True
        exchange.refusal = refusal
        exchange.parts.clear()
        if exchange.news is not None:
            exchange.tell()  # who takes it is at it, or will be
        else:
            self._take(exchange)

    def _take(self, exchange: Served) -> None:
        if self._answering is None and self._writable is None:
            self._start(exchange)
            return
        self._queue.append(exchange)
        if len(self._queue) >= _PIPELINED:
            self._transport.pause_reading()

    def _start(self, exchange: Served) -> None:
        self._answering = exchange
        self._served += 1
        # Not now: what the store has told of is taken in before, if it came to this machine before the request.
        self._loop.call_soon(self._answer, exchange)

    def _answer(self, exchange: Served) -> None:
        """Answer at once what needs to wait for nothing; a task, for anything else, takes longer than that."""
        application, answer = self._application, None
        if exchange.refusal is None and not exchange.is_streamed:
            try:
                answer = application.at_hand(exchange)
            except Exception as error:  # noqa: BLE001  # the request boundary, which tells it, is in the task
                exchange.refusal = error
        if answer is None:
            task = exchange.task = self._loop.create_task(exchange.serve(application))
            self._shared.tasks.add(task)
            return
        try:
            exchange.write_whole(answer)
            application.answered(exchange)
        finally:
            self.finished(exchange)

    # What an exchange calls.

    def write(self, data: bytes) -> None:
        """Send; what a client that left would have got goes nowhere."""
        if not self.is_lost:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the client reads."""
        while self._writable is not None:
            await asyncio.shield(self._writable)

    @property
    def default_lines(self) -> bytes:
        """The headers of every answer."""
        return self._shared.default_lines

    def is_half_closed(self) -> bool:
        """Whether the client will say no more; of one that follows the feed this means that it has left."""
        return self._half_closed

    def finished(self, exchange: Served) -> None:
        """An exchange has come to its end."""
        if exchange.task is not None:
            self._shared.tasks.discard(exchange.task)
        if not exchange.is_done:
            self._transport.abort()  # its client must not take a part for the whole
        elif self._receiving is not exchange or self._half_closed:
            self._next(exchange)
        else:
            # Answered before the end of its body: the rest is dropped.
            exchange.is_refused = True
            exchange.parts.clear()
            self.read_on(exchange)

    def _next(self, exchange: Served) -> None:
        if self._answering is exchange:
            self._answering = None
        if self.is_lost:
            return
        if not exchange.keep_alive or (self._half_closed and not self._queue):
            self._transport.close()
        elif self._queue:
            if self._writable is None:  # else when the client reads on
                self._start_next()
        else:
            self._since = self._loop.time()

    def _start_next(self) -> None:
        self._start(self._queue.popleft())
        if len(self._queue) == _PIPELINED - 1:
            self._transport.resume_reading()

    def _end_after_answer(self) -> None:
        last = self._queue[-1] if self._queue else self._answering
        if last is not None:
            last.keep_alive = False
        else:
            self._transport.close()

    def _end_if_silent(self) -> None:
        if self._answering is None and self._receiving is None and not (self._in_head or self.is_lost):
            self._transport.close()

    def _give_up(self, status: int, why: str) -> None:
        """Refuse what is no request, or never becomes one; behind what is being answered."""
        receiving, self._receiving = self._receiving, None
        self._in_head, self._is_over = False, True
        if receiving is not None and receiving.is_streamed:
            receiving.client_left()
        if receiving is not None and receiving.is_done:
            self._transport.close()  # refused and told so: the rest of its body need not come
        elif self._answering is not None:
            self._end_after_answer()
        else:
            refused = Served(self, "GET", "", b"", [])
            refused.keep_alive = False
            refused.write_whole(refuse_status(status, why, refused.correlation_id))
            self._transport.close()


class Served(Exchange):
    """A request of a connection."""

    __slots__ = (
        "_chunked", "_connection", "_left", "ahead", "dropped", "has_left", "is_done", "is_held_back", "is_refused",
        "is_whole", "keep_alive", "news", "parts", "refusal", "task", "version",
    )  # fmt: skip

    def __init__(
        self, connection: Connection, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]]
    ) -> None:
        super().__init__(method, path, query, headers)
        self._connection = connection
        self._chunked = False
        self._left: asyncio.Event | None = None
        self.version = "1.1"
        self.keep_alive = True
        self.parts: list[bytes] = []
        self.refusal: Exception | None = None
        self.is_refused = False
        """Whether it is answered before its body is there."""
        self.is_done = False
        """Whether all of the answer was written."""
        self.is_whole = False
        """Whether all of the body has come."""
        self.is_held_back = False
        """Whether its client is not read until what is there is taken."""
        self.has_left = False
        self.ahead = self.dropped = 0
        self.news: asyncio.Event | None = None
        """Of a streamed body: set when more of it is there, or nothing will be any more."""
        self.task: asyncio.Task[None] | None = None

    async def serve(self, application: Application) -> None:
        """Answer, and tell the connection."""
        try:
            await application.serve(self, self.refusal)
        finally:
            self._connection.finished(self)

    def client_left(self) -> None:
        """Wake who waits for that."""
        self.has_left = True
        self.tell()
        if self._left is not None:
            self._left.set()

    async def read_body(self, limit: int) -> bytes:  # noqa: ARG002  # the connection has held it to the limit
        """The body; it is always there."""
        if self.body is None:
            raise Disconnected
        return self.body

    def tell(self) -> None:
        """Wake who takes the body while it comes."""
        if self.news is not None:
            self.news.set()

    async def pieces(self) -> AsyncIterator[bytes]:
        """A streamed body while it comes."""
        assert self.news is not None  # made when it began
        while True:
            self.news.clear()
            if self.refusal is not None:
                raise self.refusal
            if self.parts:
                piece = b"".join(self.parts)
                self.parts.clear()
                self._connection.read_on(self)
                yield piece
            elif self.is_whole:
                return
            elif self.has_left or self._connection.is_lost:
                raise Disconnected
            else:
                await self.news.wait()

    async def answer(self, answer: Answer) -> None:
        """Send a whole answer, unless one was begun already."""
        if self.status:
            return
        if answer.rest is None:
            self.write_whole(answer)
            return
        self._begin(answer.status, list(answer.headers))
        await self._part(answer.body)
        async for part in answer.rest:
            await self._part(part)
        self._end()

    def write_whole(self, answer: Answer) -> None:
        """Head and body in one write."""
        self.status = answer.status
        lines = self._head(answer.status, answer.headers)
        lines.append(b"content-length: %d\r\n\r\n" % len(answer.body))
        if self.method != "HEAD":
            lines.append(answer.body)
        self._connection.write(b"".join(lines))
        self.is_done = True

    async def receive(self) -> Message:
        """The body, then that the client went."""
        if self._left is None:
            self._left = asyncio.Event()
            return {"type": "http.request", "body": self.body or b"", "more_body": False}
        if not (self._connection.is_lost or self.is_done):
            await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """What FastAPI sends."""
        if message["type"] == "http.response.start":
            self._begin(message["status"], list(message.get("headers", ())))
            return
        await self._part(message.get("body", b""))
        if not message.get("more_body", False):
            self._end()

    def scope(self) -> Scope:
        """The request as ASGI describes it; a HEAD is served by the handler of GET."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": self.version,
            "method": "GET" if self.method == "HEAD" else self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": self.query,
            "root_path": "",
            "headers": self.given_headers,
            "client": None,
            "server": None,
            "state": {},
            "thyme.half_closed": self._connection.is_half_closed,
        }

    def _head(self, status: int, headers: Any) -> list[bytes]:
        lines = [_STATUS_LINES[status], self._connection.default_lines]
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        if not self.keep_alive:
            lines.append(_CLOSE)
        lines += (b"x-correlation-id: ", self.correlation_id.encode(), b"\r\n")
        return lines

    def _begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if any(b"\r" in value or b"\n" in value for _, value in headers):
            raise InvalidHeader
        self.status = status
        sized = any(name.lower() == b"content-length" for name, _ in headers)
        if not (sized or self.method == "HEAD" or status in _NO_BODY):
            self._chunked = self.version == "1.1"
            self.keep_alive &= self._chunked  # HTTP/1.0 knows the end by the connection's
        lines = self._head(status, headers)
        lines.append(b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n")
        self._connection.write(b"".join(lines))

    async def _part(self, body: bytes) -> None:
        if body and self.method != "HEAD":
            self._connection.write(b"%x\r\n%b\r\n" % (len(body), body) if self._chunked else body)
            await self._connection.drain()

    def _end(self) -> None:
        if self._chunked:
            self._connection.write(b"0\r\n\r\n")
        self.is_done = True
        self.client_left()


class InvalidHeader(Exception):
    """A header's value would end its line."""


def _of_absolute(url: bytes) -> bytes:
    """The path and query of a target in absolute form, as proxies send it."""
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        return b"/" + url
    return (parsed.path or b"/") + (b"?" + parsed.query if parsed.query else b"")


def _unquoted(path: bytes) -> str:
    return unquote_to_bytes(path).decode("utf-8", "replace")
