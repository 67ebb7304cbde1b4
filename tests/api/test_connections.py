"""What clients do to connections: slow ones, half-closed ones, requests sent ahead, and things that are no HTTP."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from cluster.sockets import bind_listener
from featurelib.stores.registry import Registry
from serve_apps import connection
from serve_apps.listener import Listener
from serve_apps.services import open_services
from serve_apps.web import Application

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
NEVER = 60.0  # seconds: waits for what does not come end, also on a machine that does much else
BODY = {"error", "detail", "message", "details", "correlation_id"}


class Client:
    """A socket, and answers read off it."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=NEVER)
        self.reader = self.socket.makefile("rb")

    def send(self, *parts: bytes) -> Client:
        for part in parts:
            self.socket.sendall(part)
        return self

    def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next answer."""
        status = int(self.reader.readline().split()[1])
        headers = {}
        while line := self.reader.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name] = value
        return status, headers

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer, whole."""
        status, headers = self.head()
        if headers.get("transfer-encoding") != "chunked":
            return status, headers, self.reader.read(int(headers["content-length"]))
        body = b""
        while size := int(self.reader.readline(), 16):
            body += self.reader.read(size)
            self.reader.readline()
        self.reader.readline()
        return status, headers, body

    def refused(self, status: int, error: str) -> None:
        """The next answer is this refusal, in the one error body."""
        found, headers, body = self.answer()
        assert found == status, body
        told = json.loads(body)
        assert set(told) == BODY
        assert (told["error"], told["correlation_id"]) == (error, headers["x-correlation-id"])

    def is_closed(self) -> bool:
        """Wait until the server hangs up."""
        try:
            return self.reader.read(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def secret(settings, clock) -> str:
    registry = Registry(settings.registry_url, clock)
    _, secret = registry.create_key("reader", "reader")
    registry.close()
    return secret


@pytest.fixture
def listener(settings, clock, secret) -> Iterator[Listener]:  # the key first, so that it is known at once
    listening = bind_listener("127.0.0.1", 0)
    # Few answers fill what the kernel keeps for one client: it would take megabytes of them otherwise.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
    made = Listener(Application(lambda: open_services(settings, clock)), listening)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def connect(listener: Listener) -> Iterator[Callable[[], Client]]:
    with contextlib.ExitStack() as opened:

        def one() -> Client:
            client = Client(listener.port)
            opened.callback(client.socket.close)
            opened.callback(client.reader.close)
            return client

        yield one


def post(secret: str, size: int, *more: str, path: str = "/features") -> bytes:
    """The head of a POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {size}", f"Authorization: Bearer {secret}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


def test_requests_sent_ahead_are_answered_in_their_order(connect, secret):
    client = connect().send(HEALTH + post(secret, 2) + b"{}" + HEALTH * 100)
    assert client.answer()[0] == 200
    client.refused(400, "invalid_request")
    for _ in range(100):
        assert client.answer()[0] == 200


def test_a_client_that_has_half_closed_is_answered(connect):
    client = connect().send(HEALTH, HEALTH)
    client.socket.shutdown(socket.SHUT_WR)
    assert [client.answer()[0], client.answer()[0]] == [200, 200]
    assert client.is_closed()


def test_half_a_request_is_no_request(connect):
    client = connect().send(b"GET /health HT")
    client.socket.shutdown(socket.SHUT_WR)
    assert client.is_closed()


@pytest.mark.parametrize("half", [b"GET /hea", b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nno"])
def test_whole_requests_before_half_a_one_are_answered(connect, half):
    client = connect().send(HEALTH + HEALTH + half)
    client.socket.shutdown(socket.SHUT_WR)
    assert [client.answer()[0] for _ in range(2)] == [200, 200]
    assert client.is_closed()


def test_a_slow_head_or_body_is_refused_and_others_are_served(connect, secret, monkeypatch):
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.1)
    slow = [connect().send(b"GET /health HTT"), connect().send(post(secret, 10), b"{")]
    assert connect().send(HEALTH).answer()[0] == 200
    for client in slow:
        client.refused(408, "request_timeout")
        assert client.is_closed()


def test_a_body_that_keeps_coming_may_take_its_time(connect, secret, monkeypatch):
    monkeypatch.setattr(connection, "_HEAD_SECONDS", 0.0)
    monkeypatch.setattr(connection, "_BODY_BYTES_A_SECOND", 1)
    client = connect().send(post(secret, 40), b'{"featureset": "Nothing", ')
    other = connect().send(b"GET /heal")  # given up when connections are looked at, the one above with it
    other.refused(408, "request_timeout")
    client.send(b'"entity_id":1}').refused(404, "not_found")


def test_a_silent_connection_is_closed(connect, monkeypatch):
    monkeypatch.setattr(connection, "_IDLE_SECONDS", 0.1)
    assert connect().is_closed()
    client = connect().send(HEALTH)
    assert client.answer()[0] == 200
    assert client.is_closed()


def test_a_client_that_does_not_read_is_given_up(connect, listener, monkeypatch):
    monkeypatch.setattr(connection, "_UNREAD_SECONDS", 0.1)
    deaf = connect()
    deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    page = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    # Its requests are taken until its answers pile up; then it is cut off.
    with pytest.raises(ConnectionError):
        deaf.send(*[page * 10] * 100_000)
    assert connect().send(HEALTH).answer()[0] == 200
    listener.check()


@pytest.mark.parametrize(
    "given",
    [b"\x16\x03\x01\x02\x00", b"GET /\xff HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", b"\0" * 99],
)
def test_what_is_not_http_is_refused_in_the_one_body(connect, given):
    client = connect().send(given)
    client.refused(400, "invalid_request")
    assert client.is_closed()


def test_what_is_not_http_behind_a_request_leaves_its_answer_alone(connect):
    client = connect().send(HEALTH + b"\0\0\0\0")
    assert client.answer()[0] == 200
    assert client.is_closed()


def test_an_endless_head_is_refused(connect):
    client = connect()
    with contextlib.suppress(ConnectionError):
        for _ in range(100):
            client.send(b"GET /health HTTP/1.1\r\nX: " if _ == 0 else b"x" * 10_000)
    client.refused(431, "request_header_fields_too_large")


def test_a_refused_body_is_dropped_and_the_connection_goes_on(connect, secret):
    client = connect().send(post("wrong", 3_000_000), b"x" * 3_000_000, HEALTH)
    client.refused(401, "unauthenticated")
    assert client.answer()[0] == 200
    client.send(post(secret, 3_000_000), b"x" * 3_000_000, HEALTH)
    client.refused(413, "payload_too_large")
    assert client.answer()[0] == 200


def test_a_hundred_megabytes_are_refused_by_their_declaration_or_by_their_size(connect, secret):
    declared = connect().send(post(secret, 100_000_000))
    declared.refused(413, "payload_too_large")
    chunked = post(secret, 0, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b"")
    client = connect().send(chunked)
    for _ in range(100):
        client.send(b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n")
    client.refused(413, "payload_too_large")
    client.send(b"0\r\n\r\n", HEALTH)
    assert client.answer()[0] == 200


def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(connect, secret):
    client = connect().send(post(secret, 2, "Expect: 100-continue"))
    assert client.head()[0] == 100
    client.send(b"{}").refused(400, "invalid_request")


def test_a_client_that_waits_to_be_asked_for_the_body_of_a_get_is_asked_too(connect):
    client = connect().send(b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert client.head()[0] == 100
    client.send(b"{}")
    assert client.answer()[0] == 200
    bare = connect().send(b"GET /health HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n")
    assert bare.head()[0] == 200


def test_a_client_that_would_be_refused_anyway_is_not_asked_for_its_body(connect):
    connect().send(post("wrong", 2, "Expect: 100-continue")).refused(401, "unauthenticated")


def test_a_client_of_http_1_0_is_not_asked_for_its_body(connect, secret):
    head = post(secret, 2, "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
    connect().send(head, b"{}").refused(400, "invalid_request")


def test_http_1_0_is_answered_and_closed(connect):
    client = connect().send(b"GET /metrics HTTP/1.0\r\n\r\n")
    status, headers = client.head()
    assert (status, headers["connection"]) == (200, "close")
    assert b"thyme_http_requests" in client.reader.read()


def test_a_target_in_absolute_form_and_an_unknown_upgrade_are_served_as_plain_requests(connect):
    client = connect().send(b"GET http://x/health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.answer()[0] == 200
    client.send(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert client.answer()[0] == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_behind_an_offer_of_another_protocol_is_the_requests(connect, secret, chunked):
    body = b'{"featureset": "Nothing", "entity_id": "1"}'
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    head = post(secret, len(body), *offer)
    if chunked:
        head = head.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    client = connect().send(head + body[:9], body[9:] + head + body + HEALTH)
    for _ in range(2):
        status, _, told = client.answer()
        assert (status, b"'Nothing'" in told) == (404, True)
    assert client.answer()[0] == 200


def test_head_answers_like_get_without_its_body(connect, secret):
    client, key = connect(), f"Authorization: Bearer {secret}\r\n"
    for path in ("/health", "/metrics", "/openapi.json", "/features", "/api/v1/commits", "/api/v1/nothing"):
        answers = {}
        for method in ("HEAD", "GET"):
            client.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{key}\r\n".encode())
            answers[method] = client.head() if method == "HEAD" else client.answer()[:2]
        (head_status, head), (get_status, get) = answers["HEAD"], answers["GET"]
        assert (head_status, head.get("content-type")) == (get_status, get.get("content-type")), path
        assert head_status in (200, 404)


def test_a_connection_that_was_just_accepted_is_answered_by_a_listener_that_stops(listener, connect):
    fresh, asked = connect(), connect().send(HEALTH)
    assert asked.answer()[0] == 200  # so `fresh` was accepted before
    stopping = threading.Thread(target=listener.stop)
    stopping.start()
    assert asked.is_closed()
    status, headers, _ = fresh.send(HEALTH).answer()
    assert (status, headers["connection"]) == (200, "close")
    stopping.join()
