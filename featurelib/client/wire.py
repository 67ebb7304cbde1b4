"""Requests and answers as values: what is sent, what an answer means, and which errors may be asked again.

Nothing here does I/O; both clients send what :mod:`featurelib.client.operations` yields and hand back what came.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from featurelib.errors import (
    BreakingChange,
    Conflict,
    DefinitionError,
    FailedPrecondition,
    Forbidden,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    Problem,
    RateLimited,
    ServiceUnavailable,
    StoreUnavailable,
    ThymeError,
    Unauthenticated,
)

T = TypeVar("T")
ARROW = "application/vnd.apache.arrow.stream"
JSON = "application/json"
LINES = "application/x-ndjson"
_CLIENT_ERRORS = range(400, 500)
_TOO_MANY = 429
_UNAVAILABLE = frozenset({502, 503, 504})
_FAILED_PRECONDITION = 9
_CODES_BY_STATUS = {
    400: InvalidRequest.code,
    401: Unauthenticated.code,
    403: Forbidden.code,
    404: NotFound.code,
    409: Conflict.code,
    413: PayloadTooLarge.code,
    429: RateLimited.code,
}
# A service that asks for more patience than this is not waited for: the caller learns it now.
_LONGEST_PAUSE_S = 30.0


class BodyFile:
    """A file that takes the body of an answer.

    Attributes:
        path: of the file; each attempt begins it anew.
        sha256: of what the last attempt wrote, in hexadecimal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sha256 = ""


@dataclass(frozen=True)
class Request:
    """One HTTP request.

    Attributes:
        method: of HTTP.
        url: whole, without parameters.
        parameters: those that are ``None`` are not sent.
        body: a JSON value, or bytes of ``content_type``, or ``None``.
        headers: beside the key's.
        content_type: of the body.
        repeatable: whether sending it twice is the same as sending it once.
        once: not even repeated when it could not be sent: the caller wants to know how things are.
        read_timeout_s: how long an answer may take at least, where the configuration says less.
        into: the file that takes the body of an answer that is no failure; left out, memory does.
    """

    method: str
    url: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = JSON
    repeatable: bool = True
    once: bool = False
    read_timeout_s: float = 0.0
    into: BodyFile | None = None

    def sent(self) -> dict[str, Any]:
        """The arguments of an HTTP client's ``request``."""
        parameters = {name: value for name, value in self.parameters.items() if value is not None}
        arguments: dict[str, Any] = {"params": parameters, "headers": dict(self.headers)}
        if self.body is not None:
            content = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
            arguments["content"] = content
            arguments["headers"]["Content-Type"] = self.content_type
        return arguments


@dataclass(frozen=True)
class Answer:
    """One HTTP answer, whole. ``headers`` are looked up in any case."""

    url: str
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def query_run_id(self) -> str:
        """The audit record of the read; empty when the service sent none."""
        return self.headers.get("X-Query-Run-Id", "")

    @property
    def is_arrow(self) -> bool:
        """Whether the body is an Arrow IPC stream."""
        return ARROW in self.headers.get("Content-Type", "")

    @cached_property
    def text(self) -> str:
        """The body as text, whatever it is."""
        return self.content.decode("utf-8", errors="replace")

    def read(self, reader: Callable[[Any], T]) -> T:
        """What ``reader`` makes of the JSON body.

        Raises:
            ServiceUnavailable: it is not JSON, or not of the form a service of the platform gives.
        """
        try:
            return reader(json.loads(self.content))
        except (ValueError, TypeError, KeyError, AttributeError):
            start = self.text[:60]
            message = f"{self.url} answered, but not as a service of the platform does; it begins {start!r}"
            raise ServiceUnavailable(message) from None


Steps: TypeAlias = Generator[Request, Answer, T]
"""An operation in progress: it yields requests, is sent their answers, and returns what they mean."""


def listed(tree: Any) -> list[dict[str, Any]]:
    """A JSON list of objects.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(tree, list):
        raise TypeError("not a list")
    return [dict(each) for each in tree]


def error_of(answer: Answer) -> ThymeError:
    """The error an answer stands for: by its code, else by its status. Its correlation id is a note of it."""
    try:
        body = json.loads(answer.content)
    except ValueError:
        body = {}
    body = body if isinstance(body, dict) else {}
    text = str(body.get("message") or body.get("detail") or answer.text[:500] or _phrase(answer.status))
    error = _rebuilt(_code_of(body, answer.status), answer.status, text, body.get("details"))
    if isinstance(error, RateLimited):
        error = RateLimited(text, _pause(answer.headers.get("Retry-After", "")) or 1.0)
    if body.get("correlation_id"):
        error.add_note(f"correlation id: {body['correlation_id']}")
    return error


def _code_of(body: Mapping[str, Any], status: int) -> str:
    """The code of an error body. Where secrets and roles are, it has another platform's form, with a gRPC code."""
    if not isinstance(body.get("code"), int):
        return str(body.get("error", ""))
    return FailedPrecondition.code if body["code"] == _FAILED_PRECONDITION else _CODES_BY_STATUS.get(status, "")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no text"


def _rebuilt(code: str, status: int, text: str, details: Any) -> ThymeError:
    listing: tuple[type[DefinitionError], ...] = (BreakingChange, DefinitionError)
    for kind in listing:
        if code == kind.code and (problems := _problems(details)) is not None:
            return kind(problems)
    known = _BY_CODE.get(code)
    if known is not None:
        return known(text)
    named = f"{code}: {text}" if code else f"HTTP {status}: {text}"
    if status in _CLIENT_ERRORS:
        return InvalidRequest(named)
    return StoreUnavailable(named) if status in _UNAVAILABLE else ThymeError(named)


def _simple_errors(kind: type[ThymeError]) -> Iterator[type[ThymeError]]:
    """Classes that are made from one text."""
    for each in kind.__subclasses__():
        if each.__init__ is Exception.__init__:
            yield each
        yield from _simple_errors(each)


# A class that shares its parent's code comes after it here, and is the more exact of the two.
_BY_CODE: dict[str, type[ThymeError]] = {kind.code: kind for kind in _simple_errors(ThymeError)}


def _problems(details: Any) -> list[Problem] | None:
    """What an error body lists; ``None`` where that are no problems."""
    try:
        return [Problem(**{name: each[name] for name in Problem._fields if name in each}) for each in listed(details)]
    except (TypeError, ValueError):
        return None


class Refused(Exception):
    """An answer that is an error, or none at all, on its way through the retries.

    Attributes:
        error: what the caller sees in the end.
        pause_s: how long the service asks to wait; ``None`` when it says nothing.
        again: whether the request may be sent again.
    """

    def __init__(self, error: ThymeError, *, again: bool, pause_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.again = again
        self.pause_s = pause_s


def refusal(request: Request, answer: Answer) -> Refused:
    """What an answer that is no success means for the next attempt.

    A request that counts each time it is sent is repeated only where the service says that it did not take it.
    """
    error = error_of(answer)
    untaken = answer.status == _TOO_MANY
    again = not request.once and (untaken or (error.retryable and request.repeatable))
    return Refused(error, again=again, pause_s=_pause(answer.headers.get("Retry-After", "")))


def unanswered(request: Request, problem: Exception, *, sent: bool) -> Refused:
    """What it means that no answer came; ``sent``: the service may have got the request."""
    error = ServiceUnavailable(f"{request.url} does not answer: {problem or type(problem).__name__}")
    error.__cause__ = problem
    return Refused(error, again=not request.once and (request.repeatable or not sent))


def next_pause(error: Exception) -> bool | float:
    """Whether to try again, and after how many seconds where the service said it: a backoff hook of stamina."""
    if not isinstance(error, Refused) or not error.again:
        return False
    if error.pause_s is None:
        return True
    return error.pause_s if error.pause_s <= _LONGEST_PAUSE_S else False


def _pause(text: str) -> float | None:
    """Seconds of a ``Retry-After``; its form as a date is taken for none."""
    try:
        return max(float(text), 0.0)
    except ValueError:
        return None
