"""The query server's reads of a real store: what they fetch again, and that they never show anything older."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest

from featurelib.clock import HOUR, SECOND
from featurelib.engine import fold
from featurelib.engine.kept_reads import KeptReads
from featurelib.engine.keys import key_group
from featurelib.engine.panes import BESIDE_THE_TREE
from featurelib.engine.program import Program
from featurelib.stores.online import GroupCommit, OnlineStore, StateName, generation_key
from featurelib.stores.online_reader import Found, Lookup, OnlineReader
from featurelib.stores.pipelined import pack
from tests.laws.test_windows import T0, program

KEYS = ("a", "b", "c")


class Counted:
    """A reader's connection that counts round trips and the bytes they bring."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.trips = self.bytes = 0

    async def trip(self, request: bytes, count: int) -> list[Any]:
        replies: list[Any] = await self._connection.trip(request, count)
        self.trips += request != pack(("ECHO", ""))  # of OnlineReader.ping
        self.bytes += sum(len(v or b"") for reply in replies if isinstance(reply, list) for v in reply)
        return replies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class Served:
    """A pipeline's keys in a real store, written as a worker does and read as a query server does."""

    def __init__(self, url: str, compiled: Program) -> None:
        self.url = url
        self.program = compiled
        self.store = OnlineStore(url)
        self.generation = 1
        self.states = {key: compiled.new_state(1) for key in KEYS}
        self.offset = 0
        self._epochs: dict[tuple[int, int], int] = {}

    def add(self, key: str, *times: int) -> None:
        """Rows come to a key."""
        state = self.states[key]
        rows = []
        for time in times:
            rows.append((time, time, self.offset, "", None, "abc"[self.offset % 3], self.offset % 90, 0b1))
            self.offset += 1
        state.header.applied[0] = self.offset
        state.add(rows)
        self.write(key)

    def write(self, key: str) -> None:
        """What changed of a key."""
        self._commit(key, {key: self.states[key].changes()}, ())

    def erase(self, key: str) -> None:
        """Nothing stays of a key."""
        self.states[key] = self.program.new_state(1)
        self._commit(key, {}, (key,))

    def build_anew(self) -> None:
        """Another generation, whose states were written all at once, is served."""
        self.generation += 1
        for key, state in self.states.items():
            state.dirty |= {*BESIDE_THE_TREE} | {
                b"%d:%d" % pane for pane, node in state.nodes.items() if node is not None
            }
            self.write(key)
        self.store._redis.set(generation_key(self.program.ref), self.generation)

    def _commit(self, key: str, changes: Any, removed: tuple[str, ...]) -> None:
        group, state = key_group(key), StateName(self.program.ref, self.generation)
        if (self.generation, group) not in self._epochs:
            (claim,) = self.store.claim(state, [group])
            self._epochs[self.generation, group] = claim.epoch
        epoch = self._epochs[self.generation, group]
        self.store.commit(state, [GroupCommit(group, epoch, [self.offset], None, 0, changes, removed=removed)])


@pytest.fixture
def served(empty_redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(fold, "KEPT_READS", KeptReads())
    made = Served(empty_redis_url, program("1h", "24h"))
    yield made
    made.store.close()


@pytest.fixture
async def reader(served: Served) -> AsyncIterator[OnlineReader]:
    made = OnlineReader(served.url)
    yield made
    await made.close()


@pytest.fixture
async def connection(reader: OnlineReader) -> Counted:
    """The reader's connection, from now on counted."""
    counted = Counted(reader._redis)
    reader._redis = counted  # type: ignore[assignment]
    return counted


async def rows(reader: OnlineReader, lookups: Sequence[Lookup]) -> list[Found]:
    """What a reader gives that has heard of all changes."""
    await reader.ping()
    return await reader.rows(lookups)


async def test_a_key_that_got_one_event_is_read_in_one_trip_of_header_and_buffer(
    served: Served, reader: OnlineReader, connection: Counted
) -> None:
    served.add("a", *range(T0 - 2 * HOUR, T0, 20 * SECOND))
    await rows(reader, [Lookup(served.program, "a", T0)])
    whole, connection.bytes, connection.trips = connection.bytes, 0, 0
    for number in range(1, 11):
        served.add("a", T0 + number)
        (found,) = await rows(reader, [Lookup(served.program, "a", T0 + number)])
        assert isinstance(found.row, dict)
        assert found.row["count_1h"] == served.program.finish_state(served.states["a"], T0 + number)["count_1h"]
        assert found.applied == (served.offset,)
    assert connection.trips == 10
    assert connection.bytes < whole


async def test_a_key_whose_panes_changed_is_read_whole_on_a_second_trip(
    served: Served, reader: OnlineReader, connection: Counted
) -> None:
    served.add("a", *range(T0 - 2 * HOUR, T0, 20 * SECOND))
    await rows(reader, [Lookup(served.program, "a", T0)])
    connection.trips = 0
    served.add("a", T0 - SECOND)
    served.states["a"].flush()
    served.write("a")
    (found,) = await rows(reader, [Lookup(served.program, "a", T0)])
    assert connection.trips == 2
    assert found.row == served.program.finish_state(served.states["a"], T0)


async def test_a_key_whose_panes_always_change_is_not_asked_for_its_header_first(
    served: Served, reader: OnlineReader, connection: Counted
) -> None:
    served.add("a", *range(T0 - 2 * HOUR, T0, 20 * SECOND))
    for number in range(10):
        served.add("a", *range(T0 + number * 50, T0 + number * 50 + 40))
        await rows(reader, [Lookup(served.program, "a", T0 + SECOND)])
    assert connection.trips <= 12


async def test_nothing_of_an_erased_key_stays_with_the_reader(served: Served, reader: OnlineReader) -> None:
    served.add("a", T0 - SECOND)
    await rows(reader, [Lookup(served.program, "a", T0)])
    served.erase("a")
    assert await rows(reader, [Lookup(served.program, "a", T0)]) == [Found(None, None)]
    assert (reader._kept, reader._kept_bytes, fold.KEPT_READS.size) == ({}, 0, 0)


@pytest.mark.parametrize("seed", range(3))
async def test_a_reader_that_keeps_gives_what_one_that_keeps_nothing_gives(
    served: Served, reader: OnlineReader, connection: Counted, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = random.Random(seed)
    now = T0
    for number in range(250):
        now += chosen.choice((0, 1, SECOND, 20 * SECOND))
        key = chosen.choice(KEYS)
        happens = chosen.random()
        if happens < 0.75:
            ages = [chosen.choice((0, 0, 1, HOUR, 25 * HOUR)) for _ in range(chosen.choice((1, 1, 2, 40)))]
            served.add(key, *(now - age for age in ages))
        elif happens < 0.8:
            served.states[key].flush()
            served.write(key)
        elif happens < 0.84:
            served.erase(key)
        elif happens < 0.86:
            served.build_anew()
            await reader.refresh([served.program.ref])
        at = now - chosen.choice((0, 0, 0, SECOND, 2 * HOUR))
        lookups = [Lookup(served.program, each, at) for each in KEYS]
        found = await rows(reader, lookups)
        with monkeypatch.context() as patch:
            patch.setattr(fold, "KEPT_READS", KeptReads())
            alone = OnlineReader(served.url)
            await alone.refresh([served.program.ref])
            expected = await alone.rows(lookups)
            await alone.close()
        assert str(found) == str(expected), (number, at)
        assert reader._kept_bytes == sum(kept.size for kept in reader._kept.values())
    assert connection.trips < 400


async def test_callers_at_once_do_not_mix_instants(served: Served, reader: OnlineReader) -> None:
    served.add("a", *range(T0 - 2 * HOUR, T0, 20 * SECOND))
    instants = [T0 + (number * 7919) % HOUR for number in range(60)]
    served_rows = await asyncio.gather(*(reader.rows([Lookup(served.program, "a", at)]) for at in instants))
    again = await asyncio.gather(*(reader.rows([Lookup(served.program, "a", at)]) for at in instants))
    for at, (first,), (second,) in zip(instants, served_rows, again, strict=True):
        expected = served.program.finish_state(served.states["a"], at)
        assert first.row == second.row == expected


async def test_what_is_kept_is_read_ahead_before_its_edges_leave_it_one_view_at_a_time(
    served: Served, reader: OnlineReader, connection: Counted
) -> None:
    served.add("a", *range(T0 - 2 * HOUR, T0, 5 * SECOND))
    served.states["a"].flush()
    served.write("a")
    compiled, ahead = served.program, 0
    await rows(reader, [Lookup(compiled, "a", T0)])
    whole = connection.bytes
    for second in range(1, 600):
        at = T0 + second * SECOND
        due, connection.bytes, connection.trips = compiled.is_due(at, "a"), 0, 0
        assert compiled.may_follow(at, "a"), second
        first, again = await rows(reader, [Lookup(compiled, "a", at)] * 2)
        assert first.row == again.row == compiled.finish_state(served.states["a"], at)
        assert not compiled.is_due(at, "a")
        if due:
            ahead += 1
            assert (connection.trips, connection.bytes > whole / 2) == (1, True)
            assert connection.bytes < 1.7 * whole
        else:
            assert connection.bytes < whole / 2
    assert ahead
