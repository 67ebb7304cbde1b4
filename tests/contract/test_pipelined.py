"""The query server's own connection to the online store: replies in order, a lost server, a silent one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import redis
import uvloop

from featurelib.errors import StoreUnavailable
from featurelib.stores.pipelined import PipelinedRedis, pack
from tests.support.redis_server import RedisServer

GET = pack(("GET", "a"))


@pytest.fixture
async def reads(empty_redis_url: str) -> AsyncIterator[PipelinedRedis]:
    made = PipelinedRedis(empty_redis_url)
    yield made
    await made.close()


@pytest.mark.parametrize("url_of", ["url", "tcp_url"])
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_replies_of_many_callers_come_back_to_each_in_its_order(
    shared_redis: RedisServer, run: Callable[[Coroutine[Any, Any, None]], None], url_of: str
) -> None:
    with shared_redis.client() as client:
        client.mset({f"n{number}": str(number) * (number % 90 * 200 + 1) for number in range(200)})

    async def one(reads: PipelinedRedis, number: int) -> None:
        names = [f"n{(number + step) % 200}" for step in range(number % 5 + 1)]
        replies = await reads.trip(b"".join(pack(("GET", name)) for name in names), len(names))
        assert replies == [(name[1:] * (int(name[1:]) % 90 * 200 + 1)).encode() for name in names]

    async def everyone() -> None:
        reads = PipelinedRedis(getattr(shared_redis, url_of))
        await asyncio.gather(*(one(reads, number) for number in range(200)))
        await reads.close()

    run(everyone())


async def test_callers_share_one_connection(reads: PipelinedRedis, shared_redis: RedisServer) -> None:
    with shared_redis.client() as client:
        before = client.info("clients")["connected_clients"]
        await asyncio.gather(*(reads.trip(GET, 1) for _ in range(50)))
        assert client.info("clients")["connected_clients"] == before + 1


async def test_a_caller_that_goes_away_leaves_the_replies_of_the_others_alone(reads: PipelinedRedis) -> None:
    await reads.trip(pack(("SET", "a", "1")), 1)
    leaving = asyncio.create_task(reads.trip(GET, 1))
    staying = asyncio.create_task(reads.trip(pack(("ECHO", "me")), 1))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying == [b"me"]


async def test_a_restarted_server_is_read_from_again_without_an_error(redis_server: RedisServer) -> None:
    reads = PipelinedRedis(redis_server.url)
    assert await reads.trip(GET, 1) == [None]
    redis_server.kill()
    redis_server.start()
    assert await asyncio.gather(*(reads.trip(GET, 1) for _ in range(20))) == [[None]] * 20
    await reads.close()


async def test_a_server_that_is_away_is_unavailable_and_found_when_it_is_back(redis_server: RedisServer) -> None:
    reads = PipelinedRedis(redis_server.tcp_url)
    assert await reads.trip(GET, 1) == [None]
    redis_server.kill()
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="does not answer"):
            await reads.trip(GET, 1)
    redis_server.start()
    assert await reads.trip(GET, 1) == [None]
    await reads.close()


async def test_a_silent_server_is_unavailable_to_everyone_who_waits(redis_server: RedisServer) -> None:
    reads = PipelinedRedis(f"{redis_server.tcp_url}?socket_timeout=0.2")
    assert await reads.trip(GET, 1) == [None]
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        outcomes = await asyncio.gather(*(reads.trip(GET, 1) for _ in range(3)), return_exceptions=True)
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
    assert await reads.trip(GET, 1) == [None]
    await reads.close()


async def test_a_refused_command_is_an_error_of_its_caller_alone(reads: PipelinedRedis) -> None:
    wrong, right = await asyncio.gather(
        reads.trip(pack(("HGET", "a")), 1), reads.trip(pack(("ECHO", "x")), 1), return_exceptions=True
    )
    assert isinstance(wrong, redis.ResponseError)
    assert right == [b"x"]


async def test_a_wrong_password_is_told_without_repeating_it(shared_redis: RedisServer) -> None:
    reads = PipelinedRedis(f"redis://:guess-1234@127.0.0.1:{shared_redis.port}")
    with pytest.raises(StoreUnavailable, match="WRONGPASS") as caught:
        await reads.trip(GET, 1)
    assert "guess-1234" not in str(caught.value)


async def test_a_database_named_in_the_url_is_the_one_that_is_read(shared_redis: RedisServer) -> None:
    with redis.Redis.from_url(shared_redis.tcp_url.removesuffix("/0") + "/3") as third:
        third.set("a", "three", ex=60)
    reads = PipelinedRedis(shared_redis.tcp_url.removesuffix("/0") + "/3")
    assert await reads.trip(GET, 1) == [b"three"]
    await reads.close()


async def test_a_closed_connection_refuses(reads: PipelinedRedis) -> None:
    await reads.trip(GET, 1)
    await reads.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await reads.trip(GET, 1)
