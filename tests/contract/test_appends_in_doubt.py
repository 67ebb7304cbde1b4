"""Appends that fail: whether anything of them may be in the log. Real Valkey; answers that are made up say so."""

import os
import signal

import pytest
import redis
from redis.connection import AbstractConnection

from cluster.processes import wait_until
from featurelib.clock import SECOND, parse_instant
from featurelib.definitions import DatasetDef, FieldDef, ref
from featurelib.errors import MaybeTaken, StoreUnavailable
from featurelib.stores.intake import Intake, Request
from featurelib.stores.log import Lateness, Log
from tests.support.clocks import MovedClock
from tests.support.patience import PATIENCE_S

TRIP = DatasetDef(
    name="Trip",
    fields=(
        FieldDef(name="rider", type="str", key=True),
        FieldDef(name="at", type="datetime", timestamp=True),
    ),
)
NOW, PARTITIONS, MANY = parse_instant("2026-12-01"), 2, 20
TRIPS = [{"rider": f"rider{number}", "at": "2026-11-30T12:00:00Z"} for number in range(MANY)]
WITHOUT_A_KEY, WITH_A_KEY = Request("POST /api/v1/log"), Request("POST /api/v1/log", key="a")


@pytest.fixture
def log(empty_redis_url):
    log = Log(empty_redis_url, MovedClock(NOW))
    log.create(ref(TRIP), PARTITIONS)
    yield log
    log.close()


@pytest.fixture
def client(empty_redis_url):
    with redis.Redis.from_url(empty_redis_url) as client:
        yield client


def intake(log: Log) -> Intake:
    return Intake(log, TRIP, PARTITIONS, Lateness(max_lateness_us=None, max_clock_skew_us=300 * SECOND))


def held(log: Log) -> list[int]:
    return [head.next_offset for head in log.heads(ref(TRIP), PARTITIONS)]


def refused_whole(log: Log, client: redis.Redis, request: Request) -> StoreUnavailable:
    client.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(StoreUnavailable, match="does not answer: NOREPLICAS") as caught:
            intake(log).accept(TRIPS, request)
    finally:
        client.config_set("min-replicas-to-write", 0)
    return caught.value


@pytest.mark.parametrize("request_", [WITHOUT_A_KEY, WITH_A_KEY], ids=["without a key", "with a key"])
@pytest.mark.parametrize("is_known", [True, False], ids=["known script", "forgotten script"])
def test_of_an_append_that_was_refused_whole_nothing_was_taken(log, client, request_, is_known):
    intake(log).accept(TRIPS)
    before = held(log)
    assert min(before) > 0
    if not is_known:
        client.script_flush()
    error = refused_whole(log, client, request_)
    assert type(error) is StoreUnavailable
    assert held(log) == before
    assert intake(log).accept(TRIPS, request_).accepted == MANY


def test_a_server_that_forgot_the_script_takes_all_shares_at_once(log, client):
    client.script_flush()
    assert intake(log).accept(TRIPS).accepted == MANY
    assert sum(held(log)) == MANY


def test_an_append_of_which_a_share_was_refused_may_have_been_taken(log, monkeypatch):
    # No server refuses one of two scripts that come together: the first is sent, the answer to the second is made up.
    intake(log).accept(TRIPS)
    before, sent = held(log), Log._sent_together

    def half(log, attempts):
        return [*sent(log, attempts[:1]), redis.OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")]

    monkeypatch.setattr(Log, "_sent_together", half)
    with pytest.raises(MaybeTaken, match="sent again would count twice"):
        intake(log).accept(TRIPS)
    assert sorted(now > then for now, then in zip(held(log), before, strict=True)) == [False, True]
    with pytest.raises(StoreUnavailable) as caught:
        intake(log).accept(TRIPS, WITH_A_KEY)
    assert type(caught.value) is StoreUnavailable
    monkeypatch.undo()
    done = intake(log).accept(TRIPS, WITH_A_KEY)
    assert done.accepted + done.duplicates == MANY
    assert done.accepted > 0 < done.duplicates


@pytest.mark.parametrize("asked", ["socket_timeout=0.2", "socket_timeout=0.2&retry_on_timeout=true"])
def test_an_append_whose_answer_was_lost_may_have_been_taken_and_is_not_sent_twice(redis_server, monkeypatch, asked):
    hasty = Log(f"{redis_server.tcp_url}?{asked}", MovedClock(NOW))
    hasty.create(ref(TRIP), PARTITIONS)
    intake(hasty).accept(TRIPS)
    before = held(hasty)
    heads = hasty.heads(ref(TRIP), PARTITIONS)
    hangs_up = AbstractConnection.disconnect

    def as_it_goes_on(connection: AbstractConnection, *args: object) -> None:
        os.kill(redis_server.pid, signal.SIGCONT)
        hangs_up(connection, *args)

    # It stands still until the client gives up, and then finds what was sent: what was sent again would be answered.
    monkeypatch.setattr(AbstractConnection, "disconnect", as_it_goes_on)
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(MaybeTaken, match="sent again would count twice"):
            intake(hasty).accept(TRIPS, heads=heads)
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)
    assert wait_until(lambda: sum(held(hasty)) >= sum(before) + MANY, PATIENCE_S, every_s=0.01)
    assert sum(held(hasty)) == sum(before) + MANY
    hasty.close()


def test_a_share_that_fails_when_it_is_tried_again_may_have_been_taken(log, monkeypatch):
    heads = log.heads(ref(TRIP), PARTITIONS)
    intake(log).accept([TRIPS[0]])
    (moved,) = [partition for partition, offset in enumerate(held(log)) if offset]

    def away(*_: object) -> None:
        message = "the online store does not answer"
        raise StoreUnavailable(message)

    monkeypatch.setattr(Log, "head", away)
    with pytest.raises(MaybeTaken):
        intake(log).accept(TRIPS, heads=heads)
    assert held(log)[moved] == 1
    assert held(log)[1 - moved] > 1


@pytest.mark.parametrize("place", [0, 1])
def test_an_error_that_is_no_refusal_is_none_of_ours_whatever_else_was_refused(log, monkeypatch, place):
    # Made up: a script that failed after its first write, beside a refusal.
    replies = [redis.OutOfMemoryError("OOM"), redis.OutOfMemoryError("OOM")]
    replies[place] = redis.ResponseError("The ID specified in XADD is equal or smaller than the target stream top item")
    monkeypatch.setattr(Log, "_sent_together", lambda *_: list(replies))
    with pytest.raises(redis.ResponseError, match="XADD"):
        intake(log).accept(TRIPS)
