"""The limits that reads are measured against, each a process of its own.

python -m tests.load.bare <port> <online store's URL>     a bare ASGI handler under uvicorn
    GET /echo?entity_id=…         a fixed answer
    GET /get?entity_id=…          50 finished values in one GET, encoded into the same answer as ours
    POST /mget                    the same of many keys in one MGET, into the same answer as a batch of ours
python -m tests.load.bare redis < job.json                the online store asked for the same bytes, nothing more
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import hiredis
import msgspec
import redis
import uvicorn

from featurelib.stores.pipelined import PipelinedRedis, pack

FEATURES = 50
PREFIX = "bench:row:"
_HEAD = (b"content-type", b"application/json")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_read_body = msgspec.json.Decoder().decode


def names(count: int = FEATURES) -> list[str]:
    """Names as long as those of ours."""
    return [f"feature_{number:02d}" for number in range(count)]


def finished(key: str) -> bytes:
    """A row of finished values, as it would lie in the store."""
    return msgspec.msgpack.encode([hash((key, number)) % 1_000_000 / 100 for number in range(FEATURES)])


def store_rows(url: str, keys: Sequence[str]) -> None:
    """Write the finished rows."""
    with redis.Redis.from_url(url) as client:
        client.mset({PREFIX + key: finished(key) for key in keys})


class BareApplication:
    """The handler."""

    def __init__(self, url: str) -> None:
        self._redis = PipelinedRedis(url)
        self._names = names()
        self._echo = _encode(self._one("u1", _decode(finished("u1"))))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/echo":
            body = self._echo
        elif scope["path"] == "/get":
            body = await self._get(scope["query_string"].rpartition(b"=")[2].decode())
        else:
            body = await self._mget(await receive())
        headers = [_HEAD, (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _get(self, key: str) -> bytes:
        (stored,) = await self._redis.trip(pack(("GET", PREFIX + key)), 1)
        return _encode(self._one(key, _decode(stored)))

    async def _mget(self, message: Any) -> bytes:
        keys = _read_body(message["body"])["entity_ids"]
        (stored,) = await self._redis.trip(pack(("MGET", *(PREFIX + key for key in keys))), 1)
        rows = [[key, *_decode(row)] for key, row in zip(keys, stored, strict=True)]
        return _encode({"features": ["entity_id", *self._names], "values": rows})

    def _one(self, key: str, values: list[float]) -> dict[str, Any]:
        metadata = {"timestamp": "2026-01-01T00:00:00.000000Z", "clock": "wall"}
        features = dict(zip(self._names, values, strict=True))
        return {"entity_type": "u", "entity_id": key, "features": features, "mode": "online", "metadata": metadata}


class RedisJob(NamedTuple):
    """Requests, each of ``replies`` commands, to walk through on some connections."""

    url: str
    requests: Sequence[bytes]
    replies: int
    connections: int
    seconds: float


def ask_redis(job: RedisJob) -> float:
    """Requests per second, every connection asking again as soon as it was answered."""
    poll = select.epoll()
    lines = {line.socket.fileno(): line for line in (_Line(job) for _ in range(job.connections))}
    for number, line in lines.items():
        poll.register(number, select.EPOLLIN)
        line.ask(job.requests[0])
    began, done = time.perf_counter(), 0
    while (now := time.perf_counter()) - began < job.seconds:
        for number, _ in poll.poll(1):
            if lines[number].is_answered():
                done += 1
                lines[number].ask(job.requests[done % len(job.requests)])
    return done / (now - began)


class _Line:
    """A connection to the store."""

    def __init__(self, job: RedisJob) -> None:
        place = urlsplit(job.url)
        self.socket = socket.create_connection((place.hostname or "", place.port or 0))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(pack(("AUTH", unquote(place.password or ""))))
        self.socket.recv(100)
        self._reader = hiredis.Reader()
        self._replies = job.replies
        self._missing = 0

    def ask(self, request: bytes) -> None:
        """Send one request."""
        self._missing = self._replies
        self.socket.sendall(request)

    def is_answered(self) -> bool:
        """After bytes came: whether every reply did."""
        self._reader.feed(self.socket.recv(1 << 20))
        while self._reader.gets() is not False:
            self._missing -= 1
        return not self._missing


def main(arguments: list[str]) -> None:
    """Serve, or ask."""
    if arguments[0] == "redis":
        given = json.loads(sys.stdin.read())
        requests = [request.encode("latin-1") for request in given.pop("requests")]
        print(ask_redis(RedisJob(requests=requests, **given)))
        return
    port, url, workers = int(arguments[0]), arguments[1], int(arguments[2])
    shared = socket.create_server(("127.0.0.1", port), backlog=2_048)
    for _ in range(workers - 1):
        if not os.fork():
            break
    config = uvicorn.Config(
        BareApplication(url),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        proxy_headers=False,
    )
    uvicorn.Server(config).run(sockets=[shared])


if __name__ == "__main__":
    main(sys.argv[1:])
