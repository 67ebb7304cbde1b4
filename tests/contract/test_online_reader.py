"""What the query server keeps of rows it read: never that of another build, of two moments, or of who is gone."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from cluster.processes import wait_until
from featurelib.aggregates import Aggregate, Count, LastK, Sum
from featurelib.clock import HOUR, MINUTE, SECOND
from featurelib.definitions import AggregateStep, DatasetDef, Definitions, FieldDef, NamedAggregate, PipelineDef
from featurelib.engine import fold
from featurelib.engine.kept_reads import KeptReads
from featurelib.engine.panes import KeyState
from featurelib.engine.program import Program
from featurelib.errors import StoreUnavailable
from featurelib.stores import online_reader
from featurelib.stores.online import StateName, generation_key
from featurelib.stores.online_reader import Lookup, OnlineReader
from featurelib.stores.server import answering
from tests.support.patience import PATIENCE_S
from tests.support.redis_server import RedisServer

T0 = 1_700_000_000 * SECOND
EVENTS = DatasetDef(
    name="Event",
    fields=(
        FieldDef(name="key", type="str", key=True),
        FieldDef(name="note", type="str", optional=True),
        FieldDef(name="price", type="float", optional=True),
        FieldDef(name="at", type="datetime", timestamp=True),
    ),
)


def program(**aggregates: Aggregate) -> Program:
    out = DatasetDef(name="Out", fields=(EVENTS.key, EVENTS.timestamp))
    named = tuple(NamedAggregate(output=name, aggregate=one) for name, one in aggregates.items())
    step = AggregateStep(keys=("key",), aggregates=named)
    pipeline = PipelineDef(name="p", input_datasets=("Event",), output_dataset="Out", steps=(step,))
    return Program.compile(pipeline, Definitions(datasets=(EVENTS, out)))


def event(number: int, at: int, value: Any, *, until: int | None = None) -> tuple[Any, ...]:
    return at, at + 1, number, "", until, value, 0


class Written:
    """The state of the key ``a`` in one build of a pipeline, and its writer."""

    def __init__(self, server: RedisServer, compiled: Program, generation: int = 1) -> None:
        self.state: KeyState = compiled.new_state(1)
        self._server = server
        self._name = StateName(compiled.ref, generation).key("a")

    def take(self, *rows: tuple[Any, ...]) -> None:
        self.state.add(rows)
        self._write()

    def replace(self, gone: Sequence[tuple[Any, ...]], come: Sequence[tuple[Any, ...]]) -> None:
        self.state.replace(gone, come)
        self._write()

    def _write(self) -> None:
        self.state.header.applied[0] += 1
        with self._server.client() as client:
            client.hset(self._name, mapping=self.state.changes())

    def vanish(self) -> None:
        with self._server.client() as client:
            client.delete(self._name)


@pytest.fixture
async def reader(empty_redis_url: str) -> AsyncIterator[OnlineReader]:
    made = OnlineReader(empty_redis_url)
    yield made
    await made.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[KeptReads]:
    own = KeptReads()
    monkeypatch.setattr(fold, "KEPT_READS", own)
    yield own


async def row_of(reader: OnlineReader, compiled: Program, at: int) -> Any:
    await reader.ping()
    (found,) = await reader.rows([Lookup(compiled, "a", at)])
    return found.row


async def test_a_row_read_while_another_build_came_to_be_served_is_not_taken_for_that_builds(
    reader: OnlineReader, shared_redis: RedisServer
) -> None:
    compiled = program(total=Sum("price"))
    served, following = (Written(shared_redis, compiled, generation) for generation in (1, 2))
    served.take(event(0, T0, 1.0))
    assert await row_of(reader, compiled, T0) == {"total": 1.0}
    served.take(event(1, T0 + 1, 1.0))
    for number in (0, 1):  # of as many records, up to the same position: equal headers
        following.take(event(number, T0 + number, 5.0))
    with shared_redis.client() as client:
        client.set(generation_key(compiled.ref), 2)
    # It asks for the header, learns that it changed, and asks for the row while the switch is noticed.
    under_way = asyncio.create_task(row_of(reader, compiled, T0 + SECOND))
    await asyncio.sleep(0)
    await reader.refresh([compiled.ref])
    assert await under_way == {"total": 2.0}
    assert await row_of(reader, compiled, T0 + SECOND) == {"total": 10.0}


async def test_a_row_read_in_two_trips_is_of_one_moment(
    reader: OnlineReader, shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = program(n=Count(window="1h"))
    stored = Written(shared_redis, compiled)
    events = [event(number, T0 + number * SECOND, 1.0, until=T0 + 2 * HOUR) for number in range(400)]
    stored.take(*events)
    trip, trips = reader._redis.trip, 0

    async def changing(request: bytes, count: int) -> list[Any]:
        nonlocal trips
        replies = await trip(request, count)
        trips += 1
        if trips == 1:
            stored.replace(events[::2], [])
        return replies

    monkeypatch.setattr(reader._redis, "trip", changing)
    (found,) = await reader.rows([Lookup(compiled, "a", T0 + 30 * MINUTE)])
    assert trips > 1
    assert (found.row, found.applied) == ({"n": 200}, (2,))


async def test_nothing_is_kept_of_a_key_that_the_store_has_no_more(
    reader: OnlineReader, reads: KeptReads, shared_redis: RedisServer
) -> None:
    compiled = program(total=Sum("price"))
    stored = Written(shared_redis, compiled)
    stored.take(*(event(number, T0 + number, 1.0) for number in range(40)))
    assert await row_of(reader, compiled, T0 + SECOND) == {"total": 40.0}
    assert (reader._kept_bytes > 0, reads.size > 0) == (True, True)
    stored.vanish()
    assert await row_of(reader, compiled, T0 + SECOND) is None
    assert (reader._kept, reader._kept_bytes, reads.size) == ({}, 0, 0)


async def test_long_texts_in_lists_count_towards_what_is_kept(
    reader: OnlineReader, shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = program(notes=LastK("note", k=10))
    stored = Written(shared_redis, compiled)
    stored.take(*(event(number, T0 + number, "x" * 1_000) for number in range(20)))
    monkeypatch.setattr(online_reader, "KEPT_BYTES", 9_000)
    assert len((await row_of(reader, compiled, T0 + SECOND))["notes"]) == 10
    assert not reader._kept


async def test_a_store_that_cannot_write_to_its_disk_takes_nothing_and_is_read_on(redis_server: RedisServer) -> None:
    compiled = program(total=Sum("price"))
    Written(redis_server, compiled).take(event(0, T0, 1.0))
    reader = OnlineReader(redis_server.url)
    with redis_server.client() as client:
        client.config_set("save", "3600 1")
        assert await row_of(reader, compiled, T0) == {"total": 1.0}
        # Who is connected stays so; what is open stays open; a new file finds no place.
        shutil.rmtree(redis_server.directory)
        client.bgsave()
        assert wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", PATIENCE_S)
        with pytest.raises(StoreUnavailable, match="MISCONF"), answering():
            client.set("a", "b")
        assert await row_of(reader, compiled, T0 + 1) == {"total": 1.0}
    redis_server.directory.mkdir()  # whoever made the server removes it
    await reader.close()
