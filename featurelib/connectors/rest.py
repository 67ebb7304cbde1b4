"""Warehouses asked over HTTP: requests with retries, errors in the words of the service, rows cut into chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import httpx2
import msgspec
import stamina

from featurelib.connectors.tables import Row
from featurelib.errors import SourceError

_SHOWN_CHARACTERS = 300
# A warehouse that starts cold answers within a minute; whoever waits longer waits for an outage.
_TIMEOUT_SECONDS = 60.0
_ATTEMPTS = 5
_BUSY, _SERVER_FAULT = 429, 500


class Busy(Exception):
    """The service could not answer now, or has no answer yet; it may soon. Never leaves the connectors."""


class Rest:
    """A service that answers JSON. Raises :class:`SourceError`, which names ``what`` and never a header."""

    def __init__(self, what: str, base_url: str) -> None:
        self._what = what
        self._client = httpx2.Client(base_url=base_url, timeout=_TIMEOUT_SECONDS)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def ask(self, method: str, url: str, headers: Mapping[str, str], **options: Any) -> tuple[int, Any]:
        """The status, below 400, and the body of an answer; asked again while the service is busy or out of reach.

        Args:
            method: the HTTP method.
            url: absolute, or below the service's own.
            headers: with the credentials.
            **options: ``json``, ``params`` or ``data``.

        Raises:
            SourceError: the service refused, or did not answer in five attempts.
        """
        try:
            for attempt in stamina.retry_context(on=(Busy, httpx2.TransportError), attempts=_ATTEMPTS):
                with attempt:
                    return self._once(method, url, headers, options)
        except (Busy, httpx2.TransportError) as error:
            message = f"{self._what}: the service did not answer: {error or type(error).__name__}"
            raise SourceError(message) from error
        raise AssertionError  # the last attempt raises

    def _once(self, method: str, url: str, headers: Mapping[str, str], options: Mapping[str, Any]) -> tuple[int, Any]:
        answer = self._client.request(method, url, headers=dict(headers), **options)
        status = answer.status_code
        if status == _BUSY or status >= _SERVER_FAULT:
            message = f"HTTP {status}: {_words(answer)}"
            raise Busy(message)
        if answer.is_error:
            message = f"{self._what}: HTTP {status}: {_words(answer)}"
            raise SourceError(message)
        return status, self._json(answer)

    def _json(self, answer: httpx2.Response) -> Any:
        try:
            return msgspec.json.decode(answer.content)
        except msgspec.DecodeError as error:
            message = f"{self._what}: HTTP {answer.status_code} is not JSON: {answer.text[:_SHOWN_CHARACTERS]}"
            raise SourceError(message) from error


def awaited(what: str, seconds: float, ask: Callable[[], Any]) -> Any:
    """What ``ask`` gives as soon as it no longer raises :class:`Busy`.

    Raises:
        SourceError: it still does after so many seconds.
    """
    try:
        for attempt in stamina.retry_context(on=Busy, attempts=None, timeout=seconds, wait_initial=0.1, wait_max=5.0):
            with attempt:
                return ask()
    except Busy as error:
        message = f"{what}: {error}, after {seconds:.0f} s"
        raise SourceError(message) from error
    raise AssertionError  # the last attempt raises


def cut(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Rows in lists of that size, the last one shorter."""
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _words(answer: httpx2.Response) -> str:
    """What a service says of an error: the message of its JSON, else the body's beginning."""
    try:
        body = msgspec.json.decode(answer.content)
    except msgspec.DecodeError:
        body = None
    if isinstance(body, dict):
        error = body.get("error")
        if isinstance(error, dict):
            body = error
        told = body.get("message") or body.get("error_description") or error
        if isinstance(told, str):
            return told[:_SHOWN_CHARACTERS]
    return answer.text[:_SHOWN_CHARACTERS] or answer.reason_phrase
