"""One listening socket per service, shared by every replica that accepts on it.

The holder keeps the sockets open and hands duplicates to whoever asks on its unix socket; replicas come
and go (rolling update, crash, scale) and no queued connection is ever reset, which closing one of several
``SO_REUSEPORT`` sockets would do (97 of 200 in our measurement). The watcher keeps a duplicate too: it gives them
to a new holder when the holder dies, and takes them back from the holder when it is itself restarted.

Protocol on the unix stream: the client sends the listener's name and a newline; the holder answers one
byte, ``+`` with the descriptor attached, or ``-`` for an unknown name.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from featurelib.errors import ClusterError

# Connections wait here while a replica restarts; the kernel caps it at net.core.somaxconn.
_BACKLOG = 2048
_MAX_NAME = 64
_ANSWER_S = 5.0
_RETRY_S = 0.05


def bind_listener(host: str, port: int) -> socket.socket:
    """Bind and listen; raises ``OSError`` when the port is taken."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def receive_listener(path: str | Path, name: str, timeout_s: float = 30.0) -> socket.socket:
    """A duplicate of the listening socket ``name`` from the holder at ``path``; closing it closes no one else's.

    Waits up to ``timeout_s`` for a holder that is being restarted.

    Raises:
        ClusterError: no holder answered in time, or it holds no listener of that name.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return _ask(str(path), name)
        except OSError as error:
            if time.monotonic() >= deadline:
                message = f"no listening socket {name!r} from {path}: {error}"
                raise ClusterError(message) from error
        time.sleep(_RETRY_S)


def serve_listeners(path: str | Path, listeners: Mapping[str, socket.socket]) -> None:
    """Hand out ``listeners`` on the unix socket ``path`` until the process ends."""
    place = Path(path)
    place.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(place))
        place.chmod(0o600)
        door.listen(64)
        while True:
            client, _ = door.accept()
            with client, contextlib.suppress(OSError):  # a client that went away harms only itself
                _answer(client, listeners)


def main(arguments: list[str]) -> None:
    """``python -m cluster.sockets <path> <name>=<inherited descriptor> …``."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    pairs = (argument.partition("=") for argument in arguments[1:])
    serve_listeners(arguments[0], {name: socket.socket(fileno=int(number)) for name, _, number in pairs})


def _ask(path: str, name: str) -> socket.socket:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_ANSWER_S)
        client.connect(path)
        client.sendall(name.encode() + b"\n")
        answer, descriptors, _, _ = socket.recv_fds(client, 1, 1)
    if answer == b"-":
        message = f"the holder at {path} has no listening socket {name!r}"
        raise ClusterError(message)
    if not descriptors:
        message = "the holder closed the connection"
        raise ConnectionError(message)
    return socket.socket(fileno=descriptors[0])


def _answer(client: socket.socket, listeners: Mapping[str, socket.socket]) -> None:
    client.settimeout(_ANSWER_S)
    with client.makefile("rb") as lines:
        name = lines.readline(_MAX_NAME).decode(errors="replace").strip()
    listener = listeners.get(name)
    if listener is None:
        client.sendall(b"-")
    else:
        socket.send_fds(client, [b"+"], [listener.fileno()])


if __name__ == "__main__":
    main(sys.argv[1:])
