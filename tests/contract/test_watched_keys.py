"""A reader that watches its keys asks nothing while none was written, and shows nothing older than it was told of."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis
import structlog

from featurelib.clock import SECOND
from featurelib.errors import StoreUnavailable
from featurelib.stores import pipelined
from featurelib.stores.online import StateName
from featurelib.stores.online_reader import Found, Lookup, OnlineReader
from featurelib.stores.pipelined import PipelinedRedis, pack
from tests.contract.test_kept_rows import KEY, Written, commands
from tests.laws.test_windows import T0, program
from tests.support.redis_server import RedisServer

AT = T0 + SECOND


@pytest.fixture
async def reader(empty_redis_url: str) -> AsyncIterator[OnlineReader]:
    made = OnlineReader(empty_redis_url)
    await made.ping()
    yield made
    await made.close()


@pytest.fixture
def written(empty_redis_url: str) -> Iterator[Written]:
    made = Written(empty_redis_url, program("1h"))
    made.add((T0, 1, "a"))
    yield made
    made.close()


@pytest.fixture
def never_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for a moment makes no news doubtful, so that what is asked can be counted."""
    monkeypatch.setattr(pipelined, "_HEARD_SECONDS", 3_600.0)


async def row_of(reader: OnlineReader, written: Written, at: int = AT) -> Found:
    (found,) = await reader.rows([Lookup(written.program, KEY, at)])
    return found


@pytest.mark.usefixtures("never_silent")
async def test_a_row_whose_key_was_not_written_costs_no_trip(reader, written, shared_redis):
    first = await row_of(reader, written)
    before = commands(shared_redis)
    for _ in range(5):
        assert await row_of(reader, written) == first
    assert commands(shared_redis)["hmget"] == before["hmget"]


@pytest.mark.usefixtures("never_silent")
async def test_a_row_whose_key_was_written_is_asked_for_once_more(reader, written, shared_redis):
    await row_of(reader, written)
    written.add((T0 + 1, 2, "b"))
    await reader.ping()
    before = commands(shared_redis)
    for _ in range(3):
        assert (await row_of(reader, written)).row["count_1h"] == 2
    assert commands(shared_redis)["hmget"] == before["hmget"] + 1


async def test_an_edge_that_passes_a_row_is_seen_though_nobody_wrote(reader, written):
    assert (await row_of(reader, written)).row["count_1h"] == 1
    assert (await row_of(reader, written, T0 + 3_600 * SECOND + 1)).row["count_1h"] == 0


async def test_while_a_key_is_written_all_the_time_nothing_older_than_was_told_is_shown(reader, written):
    committed, stopping = [1], threading.Event()

    def write() -> None:
        while not stopping.is_set():
            number = len(written.events)
            written.add((T0 + number, number % 90, "abc"[number % 3]))
            committed.append(number + 1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        shown = 0
        for _ in range(400):
            told = committed[-1]
            await reader.ping()
            (one,), (two,) = await asyncio.gather(*(reader.rows([Lookup(written.program, KEY, AT)]) for _ in range(2)))
            assert one.applied is not None
            assert two.applied is not None
            assert min(one.applied[0], two.applied[0]) >= max(told, shown)
            shown = max(one.applied[0], two.applied[0])
    finally:
        stopping.set()
        writer.join()
    await reader.ping()
    assert (await row_of(reader, written)).applied == (len(written.events),)


async def test_a_change_between_a_question_and_its_answer_is_not_missed(reader, written, monkeypatch):
    """The news of it may be heard in one breath with the answer, behind it."""
    await row_of(reader, written)
    written.add((T0 + 1, 2, "b"))
    await reader.ping()
    trip = reader._redis._trip

    async def late(request: bytes, count: int) -> list[Any]:
        replies = await trip(request, count)
        written.add((T0 + 2, 3, "c"))
        await trip(pack(("PING",)), 1)
        return replies

    with monkeypatch.context() as patch:
        patch.setattr(reader._redis, "_trip", late)
        assert (await row_of(reader, written)).row["count_1h"] == 2
    assert (await row_of(reader, written)).row["count_1h"] == 3


async def test_what_changed_while_the_connection_was_lost_is_seen(reader, written, shared_redis):
    for _ in range(3):
        await row_of(reader, written)
        with shared_redis.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        written.add((T0 + len(written.events), 2, "b"))
        await reader._redis._line._ended
        assert (await row_of(reader, written)).row["count_1h"] == len(written.events)
        await row_of(reader, written)  # now on a connection that watches


async def test_nothing_is_taken_for_unchanged_once_the_server_was_emptied(reader, written, shared_redis):
    await row_of(reader, written)
    with shared_redis.client() as client:
        client.flushall()
    await reader.ping()
    assert await row_of(reader, written) == Found(None, None)


async def test_a_server_that_gives_no_sign_of_life_is_not_believed_for_long(redis_server):
    reader = OnlineReader(f"{redis_server.tcp_url}?socket_timeout=1")
    await reader.ping()
    written = Written(redis_server.url, program("1h"))
    written.add((T0, 1, "a"))
    await row_of(reader, written)
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        assert (await row_of(reader, written)).row["count_1h"] == 1  # what it said last still counts
        reader._redis._line._heard_at -= pipelined._HEARD_SECONDS
        assert not reader._redis._line.is_lost
        with pytest.raises(StoreUnavailable):
            await row_of(reader, written)
    finally:
        redis_server.kill()
    await reader.close()
    written.close()


async def test_a_quiet_connection_is_asked_for_a_sign_of_life_and_believed_again(empty_redis_url, written, monkeypatch):
    monkeypatch.setattr(pipelined, "_BEAT_SECONDS", 0.02)
    heard, take_in = asyncio.Event(), pipelined._Line.data_received

    def taking_in(line: Any, data: bytes) -> None:
        take_in(line, data)
        heard.set()

    monkeypatch.setattr(pipelined._Line, "data_received", taking_in)
    reader = OnlineReader(empty_redis_url)
    await reader.ping()
    await row_of(reader, written)
    reader._redis._line._heard_at -= pipelined._HEARD_SECONDS
    assert not reader._redis.unchanged
    heard.clear()
    async with asyncio.timeout(30):
        await heard.wait()
    assert reader._redis.unchanged
    await reader.close()


@pytest.mark.usefixtures("never_silent")
async def test_a_row_is_asked_for_again_after_a_minute(reader, written, shared_redis):
    await row_of(reader, written)
    before = commands(shared_redis)["hmget"]
    for seconds, asked in ((59, 0), (61, 1), (62, 1), (120, 1), (122, 2)):
        assert (await row_of(reader, written, AT + seconds * SECOND)).row["count_1h"] == 1
        assert commands(shared_redis)["hmget"] == before + asked, seconds


async def test_a_server_that_is_busy_when_it_is_greeted_is_watched_later(shared_redis, written, empty_redis_url):
    reader = OnlineReader(empty_redis_url)
    with shared_redis.client() as client:
        client.config_set("busy-reply-threshold", 10)
        running = threading.Thread(target=_run_for_ever, args=(shared_redis,))
        running.start()
        try:
            async with asyncio.timeout(30):
                while not await asyncio.to_thread(_is_busy, shared_redis):
                    pass
            with pytest.raises(StoreUnavailable):
                await row_of(reader, written)
        finally:
            with shared_redis.client() as killer:
                killer.script_kill()
            running.join()
            client.config_set("busy-reply-threshold", 5_000)
    for _ in range(2):
        await row_of(reader, written)
    assert reader._redis.unchanged
    await reader.close()


def _run_for_ever(server: RedisServer) -> None:
    with server.client() as client, suppress(redis.ResponseError):
        client.eval("while true do end", 0)


def _is_busy(server: RedisServer) -> bool:
    try:
        with server.client() as client:
            client.ping()
    except redis.exceptions.BusyLoadingError:
        return False
    except redis.ResponseError as error:
        return str(error).startswith("BUSY")
    return False


async def test_a_server_that_may_not_be_watched_is_asked_each_time(shared_redis: RedisServer, written):
    with shared_redis.client() as client:
        client.execute_command("ACL", "SETUSER", "asker", "on", ">guess", "~*", "+@all", "-client|tracking")
    try:
        reader = OnlineReader(f"redis://asker:guess@127.0.0.1:{shared_redis.port}")
        with structlog.testing.capture_logs() as logs:
            await reader.ping()
        assert [each["event"] for each in logs] == ["store_cannot_be_watched"]
        for _ in range(3):
            written.add((T0 + len(written.events), 2, "b"))
            assert (await row_of(reader, written)).row["count_1h"] == len(written.events)
        assert not reader._redis.unchanged
        await reader.close()
    finally:
        with shared_redis.client() as client:
            client.execute_command("ACL", "DELUSER", "asker")


async def test_a_reader_that_is_not_to_watch_asks_each_time(empty_redis_url, written, shared_redis):
    reader = OnlineReader(empty_redis_url, watching=False)
    await row_of(reader, written)
    before = commands(shared_redis)
    for _ in range(3):
        await row_of(reader, written)
    assert commands(shared_redis)["hmget"] == before["hmget"] + 3
    await reader.close()


async def test_keys_of_which_nothing_is_kept_are_not_watched(reader, written):
    for number in range(200):
        await reader.rows([Lookup(written.program, f"nobody{number}", AT)])
    assert not reader._redis.unchanged
    await row_of(reader, written)
    assert list(reader._redis.unchanged) == [StateName(written.program.ref, 1).key(KEY).encode()]


async def test_marks_are_bounded_and_a_row_without_one_is_asked_for(reader, written, monkeypatch):
    monkeypatch.setattr(pipelined, "_MOST_WATCHED", 3)
    await row_of(reader, written)
    for number in range(3):
        reader._redis.watch(b"left%d" % number)
    assert len(reader._redis.unchanged) == 1
    written.add((T0 + 1, 2, "b"))
    assert (await row_of(reader, written)).row["count_1h"] == 2


async def test_a_connection_that_watches_nothing_has_no_marks(empty_redis_url):
    plain = PipelinedRedis(empty_redis_url)
    await plain.trip(pack(("PING",)), 1)
    assert plain.watch(b"key") is None
    assert not plain.unchanged
    await plain.close()
