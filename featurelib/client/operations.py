"""How one definition of a call serves both clients.

An operation is a generator over :class:`~featurelib.client.wire.Request` values: what it yields is sent, what comes
back is sent into it, what it returns is the result. :class:`ThymeClient` runs it while the caller waits,
:class:`AsyncThymeClient` between awaits; neither knows what it means.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import update_wrapper
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload
from urllib.parse import quote

from featurelib.client.config import Config, base_of
from featurelib.client.transport import Awaiting, Blocking
from featurelib.client.wire import Request, Steps

P = ParamSpec("P")
T = TypeVar("T")


class Operation(Generic[P, T]):
    """A method written once: on a blocking client it gives its result, on an awaiting one a coroutine of it."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        def method(client: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
            return client.run(steps(client, *args, **kwargs))

        self._method = update_wrapper(method, steps)

    @overload
    def __get__(self, client: None, owner: type) -> Callable[Concatenate[Any, P], Any]: ...
    @overload
    def __get__(self, client: Blocking, owner: type | None = None) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: Awaiting, owner: type | None = None) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, client: Any, owner: type | None = None) -> Any:
        return self._method if client is None else MethodType(self._method, client)


class Endpoints:
    """What every group of operations has: where the services are."""

    config: Config

    def query_url(self, path: str) -> str:
        """A URL of the query server."""
        return self.config.query_url.rstrip("/") + path

    def api_url(self, path: str) -> str:
        """A URL of the definition service."""
        return base_of(self.config.api_base) + path

    def get(self, path: str, **parameters: Any) -> Request:
        """A read of the definition service."""
        return Request("GET", self.api_url(path), parameters)

    def post(self, path: str, body: Any = None, **given: Any) -> Request:
        """A request to the definition service that counts each time it is sent, unless ``given`` says otherwise."""
        return Request("POST", self.api_url(path), **{"body": body, "repeatable": False, **given})


def name_of(thing: Any) -> str:
    """The name of a definition that is given as its class or by its name."""
    return thing.__name__ if isinstance(thing, type) else str(thing)


def named(thing: Any) -> str:
    """The same, as a segment of a path; ``@`` stands before a version."""
    return quote(name_of(thing), safe="@")
