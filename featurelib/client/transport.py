"""How requests travel: the same loop twice, once blocking and once awaiting, over what :mod:`.wire` says.

What may be sent again, and when, is :func:`~featurelib.client.wire.next_pause`'s to say; stamina waits.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypedDict, TypeVar

import httpx2
import stamina

from featurelib.client.config import Config
from featurelib.client.wire import Answer, BodyFile, Refused, Request, Steps, next_pause, refusal, unanswered
from featurelib.errors import ConfigError, InvalidRequest, ThymeError

T = TypeVar("T")
_OK = range(200, 300)
# A store that is restarted by its watcher is back within a second, and so is a replica; three attempts wait for
# 0.2 s and 0.6 s at least. All of them together never take longer than a reader's patience.
_FIRST_PAUSE_S, _GROWTH, _JITTER_S = 0.2, 3.0, 0.2
_PATIENCE_S = 60.0


class _Policy(TypedDict):
    attempts: int
    timeout: float
    wait_initial: float
    wait_jitter: float
    wait_exp_base: float


def _policy(config: Config) -> _Policy:
    return _Policy(
        attempts=config.attempts,
        timeout=_PATIENCE_S,
        wait_initial=_FIRST_PAUSE_S,
        wait_jitter=_JITTER_S,
        wait_exp_base=_GROWTH,
    )


def _timeout(config: Config, at_least_s: float = 0.0) -> httpx2.Timeout:
    return httpx2.Timeout(max(config.read_timeout_s, at_least_s), connect=config.connect_timeout_s)


def _options(config: Config, transport: Any) -> dict[str, Any]:
    return {"timeout": _timeout(config), "headers": config.auth_headers(), "transport": transport}


def _arguments(request: Request, config: Config) -> dict[str, Any]:
    return {**request.sent(), "timeout": _timeout(config, request.read_timeout_s)}


@contextmanager
def _failures_named(request: Request) -> Iterator[None]:
    """What a failure of the HTTP client means.

    Raises:
        ConfigError: the URL is none.
        Refused: nothing answered.
    """
    try:
        yield
    except httpx2.InvalidURL as error:
        message = f"{request.url!r} is not a URL: {error}"
        raise ConfigError(message) from None
    except httpx2.UnsupportedProtocol as error:
        message = f"{request.url!r} is not a URL of a service: {error}"
        raise ConfigError(message) from None
    except httpx2.RequestError as error:
        sent = not isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
        raise unanswered(request, error, sent=sent) from None


@contextmanager
def _errors_shown() -> Iterator[None]:
    """The error itself, once nothing is tried again."""
    try:
        yield
    except Refused as refused:
        raise refused.error from refused.error.__cause__


def _checked(request: Request, answer: Answer) -> Answer:
    if answer.status not in _OK:
        raise refusal(request, answer)
    return answer


def _whole(response: httpx2.Response) -> Answer:
    return Answer(str(response.url), response.status_code, response.headers, response.content)


def _emptied(response: httpx2.Response) -> Answer:
    """An answer whose body went elsewhere."""
    return Answer(str(response.url), response.status_code, response.headers, b"")


@contextmanager
def _writing(file: BodyFile) -> Iterator[Callable[[bytes], None]]:
    """A call that writes a piece of the body, for one attempt.

    Raises:
        InvalidRequest: it cannot be written; a full disk is one of the reasons.
    """
    digest = hashlib.sha256()
    try:
        with file.path.open("wb") as opened:

            def write(piece: bytes) -> None:
                opened.write(piece)
                digest.update(piece)

            yield write
    except OSError as error:
        raise InvalidRequest(f"{file.path} cannot be written: {error.strerror or error}") from None
    file.sha256 = digest.hexdigest()


class Blocking:
    """Runs operations while the caller waits; a context manager that closes its connections.

    Args:
        config: where and with which key; left out, :meth:`Config.load`.
        transport: another way to send, for tests.
    """

    def __init__(self, config: Config | None = None, *, transport: httpx2.BaseTransport | None = None) -> None:
        self.config = config or Config.load()
        self._http = httpx2.Client(**_options(self.config, transport))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def run(self, steps: Steps[T]) -> T:
        """Send what an operation yields, until it returns."""
        try:
            request = next(steps)
            while True:
                try:
                    answer = self._send(request)
                except ThymeError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result

    def _send(self, request: Request) -> Answer:
        with _errors_shown():
            for attempt in stamina.retry_context(next_pause, **_policy(self.config)):
                with attempt, _failures_named(request):
                    return _checked(request, self._answer(request))
        raise AssertionError  # the last attempt returns or raises

    def _answer(self, request: Request) -> Answer:
        """One attempt; the body in memory, or in the file that the request names."""
        arguments = _arguments(request, self.config)
        if request.into is None:
            return _whole(self._http.request(request.method, request.url, **arguments))
        with self._http.stream(request.method, request.url, **arguments) as response:
            if response.status_code not in _OK:
                response.read()
                return _whole(response)
            with _writing(request.into) as write:
                for piece in response.iter_bytes():
                    write(piece)
        return _emptied(response)

    def _lines(self, request: Request) -> Iterator[str]:
        """The lines of an answer that does not end, as they come; it ends when the connection does."""
        with (
            _errors_shown(),
            _failures_named(request),
            self._http.stream(request.method, request.url, **request.sent()) as response,
        ):
            if response.status_code not in _OK:
                response.read()
                raise refusal(request, _whole(response))
            yield from response.iter_lines()


class Awaiting:
    """Runs operations between awaits; an asynchronous context manager that closes its connections.

    Args:
        config: where and with which key; left out, :meth:`Config.load`.
        transport: another way to send, for tests.
    """

    def __init__(self, config: Config | None = None, *, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self.config = config or Config.load()
        self._http = httpx2.AsyncClient(**_options(self.config, transport))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def run(self, steps: Steps[T]) -> T:
        """Send what an operation yields, until it returns."""
        try:
            request = next(steps)
            while True:
                try:
                    answer = await self._send(request)
                except ThymeError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result

    async def _send(self, request: Request) -> Answer:
        with _errors_shown():
            async for attempt in stamina.retry_context(next_pause, **_policy(self.config)):
                with attempt, _failures_named(request):
                    return _checked(request, await self._answer(request))
        raise AssertionError  # the last attempt returns or raises

    async def _answer(self, request: Request) -> Answer:
        """One attempt; the body in memory, or in the file that the request names."""
        arguments = _arguments(request, self.config)
        if request.into is None:
            return _whole(await self._http.request(request.method, request.url, **arguments))
        async with self._http.stream(request.method, request.url, **arguments) as response:
            if response.status_code not in _OK:
                await response.aread()
                return _whole(response)
            with _writing(request.into) as write:
                async for piece in response.aiter_bytes():
                    await asyncio.to_thread(write, piece)
        return _emptied(response)

    async def _lines(self, request: Request) -> AsyncIterator[str]:
        """The lines of an answer that does not end, as they come; it ends when the connection does."""
        with _errors_shown(), _failures_named(request):
            async with self._http.stream(request.method, request.url, **request.sent()) as response:
                if response.status_code not in _OK:
                    await response.aread()
                    raise refusal(request, _whole(response))
                async for line in response.aiter_lines():
                    yield line
