"""One request on its way through, and what has been sent of its answer."""

from __future__ import annotations

import random
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from featurelib.errors import InvalidRequest, PayloadTooLarge
from serve_apps.auth import Caller
from serve_apps.messages import Answer

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_CORRELATION_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS"})
_LONGEST_LENGTH = 18  # digits


class Disconnected(Exception):
    """The client went away while it sent its body: nothing failed, nobody waits for an answer."""


class Exchange(ABC):
    """A request and its answer, whatever carries them.

    Args:
        method: as it was sent.
        path: decoded.
        query: raw.
        headers: in the order sent; names are of lower case.
    """

    __slots__ = (
        "body", "body_limit", "caller", "correlation_id", "given_headers", "headers", "is_streamed", "method", "path",
        "query", "route", "started", "status",
    )  # fmt: skip

    def __init__(self, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = time.perf_counter()
        self.method = method
        self.path = path
        self.query = query
        self.given_headers = headers
        self.headers: dict[bytes, bytes] = dict(headers)
        self.body: bytes | None = b"" if method in _WITHOUT_BODY else None
        """``None`` until it was read."""
        self.body_limit = 0
        """Most bytes of it; set when the request is admitted."""
        self.is_streamed = False
        """Whether its body is taken while it comes; set when the request is admitted."""
        self.caller: Caller | None = None
        """``None`` until the request was admitted."""
        self.correlation_id = _correlation_id(self.headers)
        self.route = "other"
        """The label of metrics: a pattern, since raw paths would make a series per id."""
        self.status = 0
        """Of the answer; 0 until it has begun."""

    @property
    def context(self) -> dict[str, str]:
        """What a log entry says of the request: no query, no body, since those hold ids and values."""
        return {"correlation_id": self.correlation_id, "method": self.method, "path": self.path[:200]}

    def check_declared(self, limit: int) -> None:
        """Refuse by its headers a body that is too large.

        Raises:
            InvalidRequest: the declared size is no number.
            PayloadTooLarge: it is above ``limit`` bytes.
        """
        declared = self.headers.get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > _LONGEST_LENGTH:
            raise InvalidRequest("Content-Length: not a size in bytes")
        if int(declared) > limit:
            raise too_large(limit)

    @abstractmethod
    async def read_body(self, limit: int) -> bytes:
        """The whole body.

        Raises:
            PayloadTooLarge: it is above ``limit`` bytes.
            Disconnected: the client went away.
        """

    @abstractmethod
    def pieces(self) -> AsyncIterator[bytes]:
        """The body of a streamed request while it comes.

        Raises:
            PayloadTooLarge: it is above its limit.
            Disconnected: the client went away.
        """

    @abstractmethod
    async def answer(self, answer: Answer) -> None:
        """Send a whole answer, unless one was begun already."""

    @abstractmethod
    async def receive(self) -> Message:
        """What ASGI calls receive: the body, then that the client went."""

    @abstractmethod
    async def send(self, message: Message) -> None:
        """What ASGI calls send."""

    @abstractmethod
    def scope(self) -> Scope:
        """The request as ASGI describes it; a HEAD is served by the handler of GET."""


class ServedByAsgi(Exchange):
    """A request that an ASGI server handed over."""

    __slots__ = ("_given", "_receive", "_replayed", "_send")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope["method"], scope["path"], scope["query_string"], list(scope["headers"]))
        self._given = scope
        self._receive = receive
        self._send = send
        self._replayed = False

    async def read_body(self, limit: int) -> bytes:
        """The whole body."""
        return b"".join([piece async for piece in self._up_to(limit)])

    def pieces(self) -> AsyncIterator[bytes]:
        """The body while it comes."""
        return self._up_to(self.body_limit)

    async def _up_to(self, limit: int) -> AsyncIterator[bytes]:
        size, more = 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > limit:
                raise too_large(limit)
            more = message.get("more_body", False)
            yield piece

    async def answer(self, answer: Answer) -> None:
        """Send a whole answer, unless one was begun already."""
        if self.status:
            return
        headers = list(answer.headers)
        if answer.rest is None:
            headers.append((b"content-length", str(len(answer.body)).encode()))
        await self.send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": answer.body, "more_body": answer.rest is not None})
        if answer.rest is not None:
            # What fails from here on ends the response before its end, which the caller's client notices.
            async for part in answer.rest:
                await self.send({"type": "http.response.body", "body": part, "more_body": True})
            await self.send({"type": "http.response.body", "body": b""})

    async def receive(self) -> Message:
        """The body that was read already, then whatever the server reports next."""
        if self._replayed:
            return await self._receive()
        self._replayed = True
        return {"type": "http.request", "body": self.body or b"", "more_body": False}

    async def send(self, message: Message) -> None:
        """Pass a message on; the first one gets the correlation id, and HEAD no body."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            correlation = (b"x-correlation-id", self.correlation_id.encode())
            message = {**message, "headers": [*message.get("headers", ()), correlation]}
        elif self.method == "HEAD":
            message = {**message, "body": b""}
        await self._send(message)

    def scope(self) -> Scope:
        """The server's own, but for what was decided here."""
        method = "GET" if self.method == "HEAD" else self.method
        return {**self._given, "method": method, "path": self.path}


def too_large(limit: int) -> PayloadTooLarge:
    """The refusal of a body above ``limit`` bytes."""
    return PayloadTooLarge(f"the body is larger than {limit} bytes")


def new_id() -> str:
    """32 hex digits nobody else has; no secret. A `uuid4` asks the system for entropy each time: 1.5 µs more."""
    return f"{random.getrandbits(128):032x}"  # names a request, guards nothing


def new_run_id() -> str:
    """An id for a query run, in the form of a UUID that begins with the time (version 7 of RFC 9562).

    Ids that come in order are written to the same pages of an index: random ones cost a batch three times as much.
    """
    began, made = time.time_ns() // 1_000_000, random.getrandbits(74)
    last = f"{0x8000 | made & 0x3FFF:04x}-{made >> 14 & 0xFFFFFFFFFFFF:012x}"
    return f"{began >> 16:08x}-{began & 0xFFFF:04x}-7{made >> 62:03x}-{last}"


def _correlation_id(headers: dict[bytes, bytes]) -> str:
    given = headers.get(b"x-correlation-id") or headers.get(b"x-request-id")
    if given is not None and _CORRELATION_ID.fullmatch(given):
        return given.decode()
    return new_id()
