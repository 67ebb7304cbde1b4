"""The process that stores query runs: what it is given it stores, whoever ends, and nothing is left of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurelib.clock import SystemClock
from featurelib.errors import CorruptState
from featurelib.settings import Settings
from featurelib.stores.audit import Audit
from featurelib.stores.digests import KEY_BYTES, Digests, digest_key, text_of
from featurelib.stores.questions import Entry, Question, Seen
from featurelib.stores.registry import Registry
from serve_apps.audit import AuditWriter, InProcess, InThread
from serve_apps.audit_process import COMMAND, Batch, Hello, entry_of, frame, spelt, store
from serve_apps.metrics import Metrics
from serve_apps.recorder import Recorder

KEY = bytes(range(KEY_BYTES))
PATIENCE_S = 30


@pytest.fixture
def database(tmp_path, migrated):
    shutil.copy(migrated, tmp_path / "registry.db")
    return tmp_path / "registry.db"


@pytest.fixture
def audit(database):
    registry = Registry(f"sqlite:///{database}", SystemClock())
    yield Audit(registry.database)
    registry.close()


@pytest.fixture
async def carrier(database):
    carrier = InProcess(Hello(f"sqlite:///{database}", KEY))
    yield carrier
    await carrier.close()


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def writer(carrier, metrics):
    return AuditWriter(carrier, metrics)


def entry(number: int = 0, **members) -> Entry:
    seen = Seen(3, 1_000, "wall", ("a.b@1",), [(4, 5)], [("City", "Oslo", 1_000, None)], {"Ride@1": (7, 8)})
    entry = Entry(
        id=str(uuid.UUID(int=number + 1)),
        kind="online",
        target="Rider",
        question=Question("features", "Rider", (7,)),
        entity_ids=("7",),
        entity_count=1,
        hit_count=1,
        requested_timestamp=None,
        latency_ms=1,
        api_key_fingerprint=None,
        correlation_id=None,
        error=None,
        created_at=1_000_000 + number,
        definition="c" * 64,
        seen=seen,
        values=[1, 2.5, "x", None, [1.0, None], Decimal("1.50")],
    )
    return entry._replace(**members)


class NoFeed:
    """Nothing here is worth telling people."""

    def record_event(self, event) -> None:
        raise AssertionError(event)


def counted(metrics, name: str) -> float:
    return float(next(line for line in metrics.text().decode().splitlines() if line.startswith(name)).split()[-1])


async def test_runs_are_digested_and_stored_by_a_process_of_their_own(writer, carrier, audit, metrics):
    for number in range(250):
        writer.put(entry(number))
    await writer.flush()
    line = " ".join(psutil.Process(carrier.pid).cmdline())
    assert not {secret for secret in (KEY.hex(), "registry.db") if secret in line}
    assert counted(metrics, "thyme_query_runs_recorded_total") == 250
    run = audit.get(entry(249).id)
    assert run.digests == Digests(KEY).of(run.id, entry().values)
    assert (run.read_at, run.registry_version) == (1_000, 3)
    assert run.positions["applied"] == [[4, 5]]
    assert run.positions["ends"] == {"Ride@1": [7, 8]}
    assert Question.from_recorded(run.inputs, run.entity_ids) == Question("features", "Rider", ("7",))


async def test_a_process_that_is_killed_is_replaced_and_every_run_is_stored_once(writer, carrier, audit, database):
    writer.put(entry(0))
    await writer.flush()
    held = sqlite3.connect(database, isolation_level=None)
    held.execute("BEGIN IMMEDIATE")  # batches wait for the lock in the process
    for number in range(1, 300):
        writer.put(entry(number))
    await writer._hand_over()
    os.kill(carrier.pid, signal.SIGKILL)
    held.execute("ROLLBACK")
    held.close()
    await asyncio.wait_for(writer.flush(), PATIENCE_S)
    assert len(audit.list(limit=1_000)) == 300


def stored(audit, entries) -> set[str]:
    """Store runs as the process does with what it is sent; the ids of those that were lost."""
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(spelt(entries)))
    return store(Recorder(audit, NoFeed(), Digests(KEY)), [entry_of(spelling) for spelling in sent])


def test_a_run_no_database_takes_is_lost_alone_and_counted(audit):
    entries = [entry(number, hit_count=None if number == 1 else 1) for number in range(3)]
    assert stored(audit, entries) == {entries[1].id}
    assert [run.id for run in audit.list()] == [entry(2).id, entry(0).id]


def test_numbers_of_any_size_and_half_characters_are_recorded(audit):
    huge, half = 2**70, "\ud800"
    odd = entry(0, question=Question("features", "Rider", (huge, 1.5), inputs={"x": huge, "y": half}))
    assert stored(audit, [odd, entry(1, target="F" + half, entity_ids=("e" + half,))]) == set()
    found = audit.get(entry(0).id)
    assert (found.inputs["entity_ids"], found.inputs["inputs"]) == ([huge, 1.5], {"x": huge, "y": half})
    assert (found.positions["applied"], found.digests) == ([[4, 5]], None)
    assert audit.get(entry(1).id).featureset == "F\\ud800"


async def test_closing_waits_until_everything_is_stored_and_the_process_has_ended(writer, carrier, audit):
    for number in range(150):
        writer.put(entry(number))
    await writer.close()
    assert len(audit.list(limit=1_000)) == 150
    assert not psutil.pid_exists(carrier.pid)


async def test_what_was_handed_over_is_stored_when_the_replica_is_killed(database, audit):
    """Its end of the channel closes; what lies in it is still read, stored, and then the process ends."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(  # noqa: ASYNC220  # it only forks
            [sys.executable, "-c", COMMAND, json.dumps(sys.path), str(theirs.fileno())], pass_fds=(theirs.fileno(),)
        )
    with ours:
        ours.sendall(frame(Hello(f"sqlite:///{database}", KEY)))
        for number in range(20):
            ours.sendall(frame(Batch(number, spelt([entry(number)]))))
        ours.sendall(frame(Batch(99, spelt([entry(99)])))[:50])  # killed in the middle of a message
        await asyncio.to_thread(ours.recv, 1)
        process.send_signal(signal.SIGTERM)  # as `thyme down` asks all of its processes
    assert await asyncio.to_thread(process.wait, PATIENCE_S) == 0
    assert len(audit.list()) == 20


async def test_no_process_is_started_where_nothing_is_read(writer, carrier):
    await writer.flush()
    assert carrier.pid is None


async def test_a_queue_that_is_full_drops_and_counts(audit, metrics, monkeypatch):
    monkeypatch.setattr("serve_apps.audit._MOST_WAITING", 2)
    writer = AuditWriter(InThread(Recorder(audit, NoFeed(), Digests(KEY))), metrics)
    for number in range(5):
        writer.put(entry(number))
    assert counted(metrics, "thyme_query_runs_dropped_total") == 3
    await writer.flush()
    writer.put(entry(7))
    await writer.flush()
    assert counted(metrics, "thyme_query_runs_recorded_total") == 3


def test_the_key_is_made_once_and_only_its_owner_may_read_it(tmp_path):
    settings = Settings(data_dir=tmp_path)
    made = digest_key(settings)
    assert len(made) == KEY_BYTES
    assert digest_key(settings) == made
    (path,) = (tmp_path / "secrets").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_replicas_that_start_together_agree_on_one_key(tmp_path):
    settings = Settings(data_dir=tmp_path)
    with ThreadPoolExecutor(16) as pool:
        assert len(set(pool.map(lambda _: digest_key(settings), range(64)))) == 1
    assert len(list((tmp_path / "secrets").iterdir())) == 1


def test_a_key_from_the_settings_is_taken_and_a_wrong_one_refused(tmp_path):
    assert digest_key(Settings(data_dir=tmp_path, registry={"digest_key": KEY.hex()})) == KEY
    with pytest.raises(CorruptState, match="64 hexadecimal digits"):
        digest_key(Settings(data_dir=tmp_path, registry={"digest_key": "secret"}))


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (0.1 + 0.2, 0.3, True),
        (1.0000000001, 1.0, True),
        (1.00000001, 1.0, False),
        (1e300, 1e300 * (1 + 1e-12), True),
        (True, 1, False),
        ("1", 1, False),
        (None, "null", False),
        ([1, 2], [12], False),
        (["a", "b"], ["a,b"], False),
        (Decimal("1.50"), "1.50", True),
        (-0.0, 0.0, False),
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}, True),
        ({"a": 1, "b": 2}, {"a": 2, "b": 1}, False),
    ],
)
def test_values_are_the_same_to_nine_digits(left, right, same):
    assert (text_of(left) == text_of(right)) == same


def test_a_digest_depends_on_the_key_the_run_and_the_place():
    digests = Digests(KEY)
    run, other = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
    first, second = digests.split(digests.of(run, [5, 5]))
    assert first != second
    assert first != digests.split(digests.of(other, [5]))[0]
    assert Digests(bytes(32)).split(digests.of(run, [5])) is None
    assert digests.split(None) is None


OTHER_VALUES = [
    (-1.23456789e-308, -1.23456788e-308),
    (10**15, 10**15 + 1),
    (10**16, 10**16 + 1),
    (-(10**40), -(10**40) - 1),
    ("", " "),
    ("a" * 14, "a" * 13 + " "),
    ("a" * 100, "a" * 99 + "b"),
    (True, 1),
    (None, "null"),
    (5, "5"),
    ([1.5, "a"], [1.5, "b"]),
]


@pytest.mark.parametrize("place", range(len(OTHER_VALUES)))
def test_a_value_of_any_kind_and_length_changes_its_own_digest_and_no_other(place):
    digests, run = Digests(KEY), str(uuid.UUID(int=1))
    values = [value for value, _ in OTHER_VALUES]
    changed = [*values[:place], OTHER_VALUES[place][1], *values[place + 1 :]]
    before, after = digests.split(digests.of(run, values)), digests.split(digests.of(run, changed))
    assert [at for at, (was, is_) in enumerate(zip(before, after, strict=True)) if was != is_] == [place]
    assert len(set(before)) == len(values)
    names = [str(at) for at in range(len(values))]
    said = digests.verdicts(run, digests.of(run, values), names, dict(zip(names, changed, strict=True)))
    assert said == {name: "different" if name == str(place) else "same" for name in names}


@given(st.floats(allow_nan=False), st.integers())
def test_a_number_has_one_digest_beside_whatever_others(number, other):
    digests, run = Digests(KEY), str(uuid.UUID(int=1))
    beside = [[number], [number, other], [number, "x" * 40]]
    assert len({digests.split(digests.of(run, values))[0] for values in beside}) == 1
