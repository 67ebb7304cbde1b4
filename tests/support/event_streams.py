"""Clients of the live feed, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx2

from tests.support.patience import PATIENCE_S

PATH = "/api/v1/events/stream"


class Entry(NamedTuple):
    """One entry as it was sent."""

    id: str
    event: dict[str, Any]


class Following:
    """A stream that is open."""

    def __init__(self, answer: httpx2.Response) -> None:
        self.answer = answer
        self._lines = answer.iter_lines()
        self._id = ""

    @property
    def last(self) -> str:
        """The id to go on from."""
        return self._id

    def entries(self) -> Iterator[Entry]:
        """Entries as they come, until the stream ends."""
        for name, value in self._fields():
            if name == "data":
                yield Entry(self._id, json.loads(value))

    def take(self, count: int) -> list[Entry]:
        """The next entries."""
        found = self.entries()
        return [next(found) for _ in range(count)]

    def greeted(self) -> None:
        """Wait until the stream has begun: what happens from now on is in it."""
        next(name for name, _ in self._fields() if name == "retry")

    def _fields(self) -> Iterator[tuple[str, str]]:
        for line in self._lines:
            name, _, value = line.partition(": ")
            if name == "id":
                self._id = value
            yield name, value


@contextmanager
def following(port: int, secret: str, *, last: str | None = None, **filters: str) -> Iterator[Following]:
    """Follow the feed of the replica at a port, after the last entry that was seen."""
    headers: Mapping[str, str] = {
        "Authorization": f"Bearer {secret}",
        **({"Last-Event-ID": last} if last is not None else {}),
    }
    with (
        httpx2.Client(timeout=PATIENCE_S) as client,
        client.stream("GET", f"http://127.0.0.1:{port}{PATH}", headers=headers, params=filters) as answer,
    ):
        made = Following(answer)
        if answer.status_code == httpx2.codes.OK:
            made.greeted()
        else:
            answer.read()
        yield made
