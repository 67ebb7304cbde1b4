from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from cluster.sockets import bind_listener, receive_listener, serve_listeners
from featurelib.errors import ClusterError


@pytest.fixture
def listener():
    with bind_listener("127.0.0.1", 0) as bound:
        yield bound


@pytest.fixture
def door(tmp_path: Path, listener: socket.socket) -> Path:
    path = tmp_path / "listen.sock"
    threading.Thread(target=serve_listeners, args=(path, {"query": listener}), daemon=True).start()
    return path


def _call(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname(), timeout=60)


def test_a_received_listener_accepts_connections_made_to_the_port(door, listener):
    with receive_listener(door, "query") as received, _call(listener) as client:
        accepted, _ = received.accept()
        with accepted:
            client.sendall(b"hello")
            assert accepted.recv(5) == b"hello"


def test_closing_one_replicas_listener_keeps_queued_connections_for_the_other(door, listener):
    first, second = receive_listener(door, "query"), receive_listener(door, "query")
    with second, _call(listener) as client:
        first.close()
        accepted, _ = second.accept()
        with accepted:
            accepted.sendall(b"served")
        assert client.recv(6) == b"served"


def test_an_unknown_name_is_refused_with_the_name(door):
    with pytest.raises(ClusterError, match="no listening socket 'audit'"):
        receive_listener(door, "audit")


def test_a_missing_holder_is_an_error_that_names_its_path(tmp_path):
    with pytest.raises(ClusterError, match=r"nobody\.sock"):
        receive_listener(tmp_path / "nobody.sock", "query", timeout_s=0.0)


def test_a_replica_waits_for_a_holder_that_starts_later(tmp_path, listener):
    path = tmp_path / "listen.sock"
    received: list[socket.socket] = []
    waiting = threading.Thread(target=lambda: received.append(receive_listener(path, "query")))
    waiting.start()
    threading.Thread(target=serve_listeners, args=(path, {"query": listener}), daemon=True).start()
    waiting.join(10)
    assert received[0].getsockname() == listener.getsockname()
    received[0].close()


def test_binding_a_taken_port_fails(listener):
    with pytest.raises(OSError, match="in use"):
        bind_listener(*listener.getsockname())
