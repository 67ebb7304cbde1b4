"""Rows that a reader keeps from one read to the next: always what a reader that keeps nothing would give."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from featurelib.aggregates import Count, ExpDecaySum
from featurelib.clock import DAY, HOUR, SECOND
from featurelib.definitions import AggregateStep, Definitions, NamedAggregate, PipelineDef
from featurelib.engine.keys import key_group
from featurelib.engine.program import Program
from featurelib.stores import online_reader
from featurelib.stores.online import GroupCommit, OnlineStore, StateName
from featurelib.stores.online_reader import Found, Lookup, OnlineReader, Standing
from featurelib.windows import Tumbling
from tests.laws.test_windows import EVENTS, OUT, T0, Event, naive, program, table
from tests.support.redis_server import RedisServer

KEY = "k"


class Written:
    """The state of one key in a real store, written as a worker does."""

    def __init__(self, url: str, compiled: Program, generation: int = 1) -> None:
        self.program = compiled
        self.events: list[Event] = []
        self._name = StateName(compiled.ref, generation)
        self._store = OnlineStore(url)
        (claim,) = self._store.claim(self._name, [key_group(KEY)])
        self._epoch = claim.epoch
        self._state = compiled.new_state(1)

    def add(self, *events: Event) -> None:
        """Fold events, and commit."""
        records = table([*self.events, *events]).slice(len(self.events))
        self.events += events
        for _, rows in self.program.rows_by_key(self.program.prepare(records, {})):
            self._state.add(rows)
        positions = self._state.header.applied = [len(self.events)]
        changes = {KEY: self._state.changes()}
        newest = max(time for time, *_ in self.events)
        group = GroupCommit(key_group(KEY), self._epoch, positions, newest, len(events), changes)
        self._store.commit(self._name, [group])

    def switch_to(self, generation: int) -> None:
        self._store.switch_generation(self.program.ref, generation)

    def close(self) -> None:
        self._store.close()


@pytest.fixture
async def reader(empty_redis_url: str) -> AsyncIterator[OnlineReader]:
    made = OnlineReader(empty_redis_url)
    yield made
    await made.close()


@pytest.fixture
def written(empty_redis_url: str) -> Iterator[Written]:
    made = Written(empty_redis_url, program())
    yield made
    made.close()


async def row_of(reader: OnlineReader, compiled: Program, at: int) -> Found:
    await reader.ping()  # what the server had to tell of is heard with its answer
    (found,) = await reader.rows([Lookup(compiled, KEY, at)])
    return found


def kept_of(reader: OnlineReader) -> Any:
    (kept,) = reader._kept.values()
    return kept


def commands(server: RedisServer) -> dict[str, int]:
    """How often each command was called."""
    with server.client() as client:
        stats: dict[str, Any] = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}


@pytest.mark.parametrize("seed", range(3))
async def test_a_kept_row_is_that_of_a_first_read_at_every_instant_and_after_every_change(reader, written, seed):
    chosen = random.Random(seed)
    at = T0
    written.add((T0 - chosen.randrange(DAY), 5, "a"))
    standing, stood = list[tuple[Standing, Found]](), 0
    for _ in range(60):
        if chosen.random() < 0.3:
            times = [at - chosen.randrange(2 * DAY), at + chosen.randrange(3 * HOUR)]  # some only count later
            written.add(*((time, chosen.randrange(100), chosen.choice("abc")) for time in times))
        edges = [time + size + past for time, *_ in written.events for size in (0, HOUR, DAY) for past in (-1, 0, 1)]
        at = min((edge for edge in edges if edge > at), default=at + SECOND)
        for instant in (at, at, at + chosen.randrange(HOUR)):
            found = await row_of(reader, written.program, instant)
            assert found.row == naive(written.events, instant)
            assert found.applied == (len(written.events),)
            for rows, then in standing:
                if rows.holds(instant):
                    stood += 1
                    assert then == found
            now = reader.standing([Lookup(written.program, KEY, instant)], [found])
            if now is not None:
                standing.append((now, found))
    assert stood > 60


async def test_an_unchanged_row_costs_its_header_and_buffer_alone(reader, written, shared_redis):
    written.add(*((T0 - number * SECOND, number, "a") for number in range(200)))
    first = await row_of(reader, written.program, T0)
    reader._redis.unwatch(kept_of(reader).name)
    before = commands(shared_redis)
    assert await row_of(reader, written.program, T0 + 1) == first
    after = commands(shared_redis)
    assert (after.get("hget", 0) - before.get("hget", 0), after["hmget"] - before["hmget"]) == (0, 1)


async def test_events_that_leave_their_windows_cost_no_question_of_a_key_not_written(reader, written, shared_redis):
    written.add(*((T0 - number * SECOND, number, "a") for number in range(200)))
    for _ in range(3):
        await row_of(reader, written.program, T0)
    before = commands(shared_redis)
    rows = []
    for later in range(HOUR - 100 * SECOND, HOUR - 60 * SECOND, SECOND):
        rows.append((await row_of(reader, written.program, T0 + later)).row)
        assert rows[-1] == naive(written.events, T0 + later)
    assert len({repr(row) for row in rows}) == len(rows)  # each instant had other events in its windows
    after = commands(shared_redis)
    # What is asked is of leaves that end within, and once for the minute that has passed: not one question per instant.
    assert after["hmget"] - before["hmget"] < len(rows) / 4


async def test_a_key_that_changes_between_any_two_reads_is_read_whole_in_one_trip(reader, written, shared_redis):
    for number in range(3):
        written.add((T0 + number, number, "a"))
        await row_of(reader, written.program, T0 + SECOND)
    before = commands(shared_redis)
    for number in range(3, 6):
        written.add((T0 + number, number, "a"))
        found = await row_of(reader, written.program, T0 + SECOND)
        assert found.row == naive(written.events, T0 + SECOND)
    after = commands(shared_redis)
    commits = 3  # each looks at its group's epoch
    assert (after["hget"] - before["hget"] - commits, after["hmget"] - before["hmget"]) == (0, 3)


@pytest.mark.parametrize("aggregate", [Count(window=Tumbling("1h")), ExpDecaySum("value", half_life="1h", window="1d")])
async def test_what_time_alone_changes_is_read_anew_at_every_instant(reader, empty_redis_url, aggregate):
    pipeline = PipelineDef(
        name="p",
        input_datasets=("Event",),
        output_dataset="Out",
        steps=(AggregateStep(keys=("key",), aggregates=(NamedAggregate(output="x", aggregate=aggregate),)),),
    )
    written = Written(empty_redis_url, Program.compile(pipeline, Definitions(datasets=(EVENTS, OUT))))
    written.add(*((T0 + number * HOUR // 4, 10, "a") for number in range(8)))
    for hours in range(6):
        fresh = OnlineReader(empty_redis_url)
        at = T0 + hours * HOUR + 7
        assert await row_of(reader, written.program, at) == await row_of(fresh, written.program, at)
        await fresh.close()
    written.close()


async def test_a_switch_to_another_build_is_seen_at_the_next_refresh(reader, written, empty_redis_url):
    written.add((T0, 1, "a"))
    other = Written(empty_redis_url, written.program, generation=2)
    other.add((T0, 1, "a"), (T0, 2, "b"))
    assert (await row_of(reader, written.program, T0)).row == naive(written.events, T0)
    written.switch_to(2)
    await reader.refresh([written.program.ref])
    assert (await row_of(reader, written.program, T0)).row == naive(other.events, T0)
    other.close()


async def test_what_is_kept_is_bounded(reader, written, monkeypatch):
    written.add((T0, 1, "a"))
    monkeypatch.setattr(online_reader, "KEPT_BYTES", 0)
    for _ in range(3):
        assert (await row_of(reader, written.program, T0)).row == naive(written.events, T0)
    assert not reader._kept
    assert reader._kept_bytes == 0
