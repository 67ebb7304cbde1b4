"""A replica's listener: a real socket, a real event loop, a real stop."""

from __future__ import annotations

import socket
import threading

import httpx2
import pytest

from cluster.sockets import bind_listener
from featurelib.errors import ClusterError
from featurelib.settings import OnlineSettings
from featurelib.stores.registry import Registry
from serve_apps.listener import Listener
from serve_apps.services import open_services
from serve_apps.web import Application
from tests.support.patience import PATIENCE_S


def listener(settings, clock) -> Listener:
    return Listener(Application(lambda: open_services(settings, clock)), bind_listener("127.0.0.1", 0))


def test_a_listener_answers_is_healthy_and_stops(settings, clock):
    running = listener(settings, clock)
    running.start()
    url = f"http://127.0.0.1:{running.port}"
    try:
        running.check()
        assert httpx2.get(f"{url}/health", timeout=PATIENCE_S).json()["status"] == "ok"
    finally:
        running.stop()
    with pytest.raises(ClusterError, match="has ended"):
        running.check()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{url}/health", timeout=PATIENCE_S)


def test_two_listeners_share_a_socket_and_one_may_go(settings, clock):
    shared = bind_listener("127.0.0.1", 0)
    running = []
    for _ in range(2):
        running.append(Listener(Application(lambda: open_services(settings, clock)), shared.dup()))
        running[-1].start()
    url = f"http://127.0.0.1:{shared.getsockname()[1]}/health"
    running[0].stop()
    assert httpx2.get(url, timeout=PATIENCE_S).status_code == 200
    running[1].stop()
    shared.close()


def test_a_listener_whose_store_is_away_says_that_it_did_not_start(settings, clock, tmp_path):
    away = settings.model_copy(update={"online": OnlineSettings(redis_url=f"unix://{tmp_path}/none.sock")})
    with pytest.raises(ClusterError, match="did not start"):
        listener(away, clock).start()


def test_a_read_in_flight_is_answered_before_the_listener_stops(settings, clock):
    registry = Registry(settings.registry_url, clock)
    _, secret = registry.create_key("reader", "reader")
    registry.close()
    running = listener(settings, clock)
    running.start()
    body = b'{"featureset": "Nothing", "entity_id": "7"}'
    head = (
        f"POST /features HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", running.port)) as connection:
        connection.sendall(head.encode() + body[:5])
        # The server has begun this request once it answers another one that was sent later.
        httpx2.get(f"http://127.0.0.1:{running.port}/metrics", timeout=PATIENCE_S)
        stopping = threading.Thread(target=running.stop)
        stopping.start()
        connection.sendall(body[5:])
        answer = connection.makefile("rb").readline()
        stopping.join()
    assert answer == b"HTTP/1.1 404 Not Found\r\n"
