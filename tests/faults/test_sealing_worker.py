"""A worker seals and builds panes on a real store while it folds, dies and comes back; reads stay exact."""

from __future__ import annotations

import asyncio
import random

import pyarrow as pa
import pytest

from featurelib.clock import DAY, HOUR, MINUTE, SECOND, format_instant
from featurelib.definitions import ref
from featurelib.engine.keys import KEY_GROUPS, key_group, owner_of_group
from featurelib.engine.sealing import SLOT
from featurelib.errors import Fenced, StoreUnavailable
from featurelib.stores import online
from featurelib.stores.archive import Archive
from featurelib.stores.history import History
from featurelib.stores.intake import Intake, Lateness
from featurelib.stores.log import Log
from featurelib.stores.online import OnlineStore, StateName
from featurelib.stores.online_reader import SEALED, Lookup, OnlineReader
from featurelib.stores.point_in_time import PointInTime
from jobs.sealing import Sealer
from jobs.worker import PartitionWorker
from tests.faults.test_worker import dying_after_one_write
from tests.laws.test_windows import EVENTS, T0, program
from tests.support.clocks import MovedClock

PARTITIONS = 2
WINDOWS = ("1h", "24h", "")
NOTHING_IS_LATE = Lateness(None, 300 * SECOND)
BUSY, QUIET = "busy", "quiet"


class Live:
    """One pipeline over real stores, kept up to date by one worker at a time."""

    def __init__(self, url: str, folder: str) -> None:
        self.clock = MovedClock(T0)
        self.program = program(*WINDOWS)
        self.state = StateName(self.program.ref, 1)
        self.log = Log(url, self.clock)
        self.log.create(ref(EVENTS), PARTITIONS)
        self.archive = Archive(folder)
        self.history = History(self.archive, self.log)
        self.store = OnlineStore(url)
        self.url = url
        self.door = Intake(self.log, EVENTS, PARTITIONS, NOTHING_IS_LATE)
        self.dropped = self.built = 0
        self.begin()

    def begin(self, batch_rows: int = 1_000) -> None:
        """A worker that knows nothing, as after a kill."""
        self.worker = PartitionWorker(
            self.program,
            self.state,
            range(KEY_GROUPS),
            log=self.log,
            store=self.store,
            history=self.history,
            batch_rows=batch_rows,
        )
        self.worker.start()
        self.sealer = Sealer(self.program, self.state, self.store)

    def post(self, key: str, times: list[int]) -> None:
        self.door.accept([{"key": key, "value": t % 97, "text": "abc"[t % 3], "at": format_instant(t)} for t in times])

    def fold(self) -> None:
        while self.worker.step().read:
            pass

    def seal(self) -> None:
        while (done := self.sealer.step(self.worker, self.clock.now())) is not None:
            self.dropped, self.built = self.dropped + done.dropped, self.built + done.built

    def archived(self) -> None:
        for part in range(PARTITIONS):
            start = self.archive.archived_offset(EVENTS, part)
            records = self.log.read(ref(EVENTS), part, start, 1_000_000)
            if records is not None:
                self.archive.append(EVENTS, records)

    def online(self, key: str, at: int):
        async def read():
            reader = OnlineReader(self.url)
            try:
                return (await reader.rows([Lookup(self.program, key, at)]))[0].row
            finally:
                await reader.close()

        return asyncio.run(read())

    def past(self, key: str, at: int):
        return PointInTime(self.history, self.log).rows([Lookup(self.program, key, at)])[0]


@pytest.fixture
def live(empty_redis_url, tmp_path):
    made = Live(empty_redis_url, str(tmp_path / "archive"))
    yield made
    made.log.close()
    made.store.close()


def three_days(live: Live, seed: int, *, kills: float = 0.0) -> None:
    """A busy key, a quiet one, some late events; the worker seals whenever it is idle."""
    chosen = random.Random(seed)
    for turn in range(3 * DAY // SLOT):
        live.clock.time += SLOT
        now = live.clock.now()
        late = [now - chosen.randrange(2 * DAY) for _ in range(chosen.choice([0, 3]))]
        live.post(BUSY, [now - chosen.randrange(SLOT) for _ in range(90)] + late)
        live.post(QUIET, [now - chosen.randrange(HOUR)])
        live.fold()
        if turn % 3 == 0:
            live.archived()
        if chosen.random() < kills:
            live.begin()
        live.seal()


@pytest.mark.parametrize("kills", [0.0, 0.3], ids=["one worker", "killed at times"])
def test_a_sealed_state_is_small_reads_like_history_around_now_and_sends_others_there(live, kills):
    three_days(live, 1, kills=kills)
    now = live.clock.now()
    for key in (BUSY, QUIET):
        for at in (now - SLOT, now - HOUR, now - 1, now, now + HOUR):
            row = live.online(key, at)
            assert row is not SEALED
            assert row == live.past(key, at)
    assert live.built > 0
    assert live.online(BUSY, now - 2 * DAY - HOUR) is SEALED
    if not kills:
        assert stored_bytes(live, live.state) < stored_bytes(live, folded_anew(live)) / 2


def folded_anew(live: Live) -> StateName:
    """The same records in a state that nobody seals."""
    state = StateName(live.program.ref, 2)
    worker = PartitionWorker(
        live.program,
        state,
        range(KEY_GROUPS),
        log=live.log,
        store=live.store,
        history=live.history,
        batch_rows=1_000,
    )
    worker.start()
    while worker.step().read:
        pass
    return state


def stored_bytes(live: Live, state: StateName) -> int:
    return sum(len(data) for data in live.store.fields(state, BUSY).values())


def test_folding_goes_on_while_slots_cannot_be_built(live, monkeypatch):
    three_days(live, 4)
    with monkeypatch.context() as patch:
        patch.setattr(live.history, "read", lambda *_, **__: (_ for _ in ()).throw(StoreUnavailable("away")))
        live.clock.time += SLOT
        live.post(BUSY, [live.clock.now()])
        live.fold()
        live.seal()
    live.clock.time += HOUR
    live.seal()
    assert live.online(BUSY, live.clock.now()) == live.past(BUSY, live.clock.now())


def test_a_slot_is_not_built_while_a_commit_that_was_cut_short_is_redone_in_smaller_steps(live, monkeypatch):
    three_days(live, 1)
    now = live.clock.now()
    slot = (now - DAY + SLOT) // SLOT + 1
    neighbour = next(key for key in map("z{}".format, range(10_000)) if key_group(key) == key_group(BUSY))
    live.post(BUSY, [slot * SLOT + place * SECOND for place in range(40)])
    live.post(neighbour, [now])
    with monkeypatch.context() as patch:
        patch.setattr(online, "_KEYS_OF_GROUP", 1)
        patch.setattr(live.store, "commit", dying_after_one_write(live.store))
        with pytest.raises(StoreUnavailable):
            live.fold()
    live.begin(batch_rows=10)
    live.worker.step()
    live.clock.time += SLOT - 10 * MINUTE
    live.seal()
    live.fold()
    live.seal()
    for at in (slot * SLOT + DAY + 10 * SECOND, live.clock.now()):
        assert live.online(BUSY, at) == live.past(BUSY, at)


def test_what_is_erased_from_a_sealed_state_never_comes_back(live):
    chosen = random.Random(3)
    for turn in range(24):
        live.clock.time += SLOT * 4 // 5
        now = live.clock.now()
        live.post(BUSY, [now - chosen.randrange(chosen.choice([SLOT, 2 * DAY])) for _ in range(90)])
        live.fold()
        if turn % 4 == 3:
            part = owner_of_group(key_group(BUSY), PARTITIONS)
            (tombstone,) = live.log.erase(ref(EVENTS), part, pa.table({"key": [BUSY]}), erasure=f"{turn}")
            live.post(BUSY, [now - chosen.randrange(2 * SLOT) for _ in range(70)])
            live.seal()  # the tombstone is in the log and not applied
            live.fold()
            live.archived()
            if chosen.random() < 0.5:
                live.archive.erase(EVENTS, {BUSY: tombstone})
        if chosen.random() < 0.2:
            live.begin()
        live.seal()
        for at in (now - HOUR, now, now + HOUR):
            assert live.online(BUSY, at) == live.past(BUSY, at)
    assert live.built > 0


def test_slots_are_built_also_while_nothing_comes(live):
    three_days(live, 6)
    dropped = live.dropped
    for turn in range(30):
        live.clock.time += SLOT // 4
        live.seal()
        if turn % 3:  # a comparison reads the whole history; three quarters of a slot lie between two of them
            continue
        for at in (live.clock.now(), live.clock.now() - HOUR):
            assert live.online(BUSY, at) == live.past(BUSY, at)
    assert live.dropped > dropped


def test_a_worker_that_was_replaced_seals_nothing(live):
    three_days(live, 5)
    old, sealer = live.worker, live.sealer
    live.begin()
    live.clock.time += SLOT // 2
    before = live.store.fields(live.state, BUSY)
    live.worker, live.sealer = old, sealer
    with pytest.raises(Fenced):
        live.seal()
    assert live.store.fields(live.state, BUSY) == before


def test_replayed_history_is_not_sealed(live):
    live.clock.time += 100 * DAY
    live.post(BUSY, [T0 + place * 10 * SECOND for place in range(5_000)])
    live.fold()
    live.seal()
    assert live.dropped == 0
