"""A local HTTP server that replays answers in order and keeps what it was asked: a stand-in for a cloud service.

The answers are written after the service's documentation, not taken from the service itself: a test with it says what
we send and how we read such answers, and nothing of the service.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
import stamina


class Asked(NamedTuple):
    """A request: ``body`` is its JSON, or the fields of its form."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


class Replay:
    """The server. ``will_answer`` before, ``asked`` after."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self._answers: deque[tuple[int, Any]] = deque()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}"

    def will_answer(self, *bodies: Any, status: int = 200) -> None:
        """The bodies of the next answers; of those without one the status is 500."""
        self._answers.extend((status, body) for body in bodies)

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, asked: Asked) -> tuple[int, Any]:
        self.asked.append(asked)
        return self._answers.popleft() if self._answers else (500, {"message": "no answer was prepared"})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        replay = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _reply(self) -> None:
                text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
                form = "form" in self.headers.get("Content-Type", "")
                body = (
                    {name: values[0] for name, values in parse_qs(text).items()} if form else text and json.loads(text)
                )
                url = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(url.query).items()}
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, answer = replay._answer(Asked(self.command, url.path, query, headers, body))
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = _reply  # noqa: N815  # the server's own names

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler


@pytest.fixture
def replay() -> Iterator[Replay]:
    """A server of the test's own; retries do not wait."""
    server = Replay()
    with stamina.set_testing(True, attempts=5):
        yield server
    server.stop()
