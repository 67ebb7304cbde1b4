"""What only an owner may write, on a real server: claims before, between check and transaction, and after."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from cluster.processes import wait_until
from featurelib.engine.keys import key_group
from featurelib.errors import CorruptState, Fenced, StoreUnavailable
from featurelib.stores.fenced import EPOCH, FencedWriter, Write
from featurelib.stores.online import GroupCommit, OnlineStore, StateName
from featurelib.stores.server import answering
from tests.support.patience import PATIENCE_S


@pytest.fixture
def client(empty_redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(empty_redis_url) as made:
        made.hset("first", EPOCH, 7)
        made.hset("second", EPOCH, 8)
        yield made


def writing(name: str, epoch: int, value: str) -> Write:
    return Write([(name, epoch)], [("HSET", f"of {name}", "value", value), ("HSET", name, "position", value)])


def test_all_of_it_is_written_in_order(client):
    FencedWriter(client).write([writing("first", 7, "a"), writing("second", 8, "b"), writing("first", 7, "c")], "it")
    assert client.hgetall("of first") == {b"value": b"c"}
    assert client.hgetall("first") == {b"epoch": b"7", b"position": b"c"}
    assert client.hgetall("of second") == {b"value": b"b"}


def test_nothing_of_a_write_whose_epoch_is_another(client):
    with pytest.raises(Fenced, match="it: another worker has taken over"):
        FencedWriter(client).write([writing("first", 6, "a")], "it")
    assert not client.exists("of first")
    assert client.hgetall("first") == {b"epoch": b"7"}


def test_nothing_of_a_write_on_a_hash_that_nobody_ever_claimed(client):
    with pytest.raises(Fenced):
        FencedWriter(client).write([writing("third", 0, "a")], "it")
    assert not client.exists("of third", "third")


def test_one_lost_hash_of_several_holds_the_whole_write_back(client):
    both = Write(
        [("first", 7), ("second", 9)], [*writing("first", 7, "a").commands, *writing("second", 9, "b").commands]
    )
    with pytest.raises(Fenced):
        FencedWriter(client).write([both], "it")
    assert not client.exists("of first", "of second")


def test_a_claim_between_the_check_and_the_transaction_undoes_it(client):
    def writes() -> Iterator[Write]:
        yield writing("first", 7, "a")
        # The first has been checked, and is sent together with the questions of the second.
        client.hincrby("first", EPOCH, 1)
        yield writing("second", 8, "b")

    with pytest.raises(Fenced):
        FencedWriter(client).write(writes(), "it")
    assert not client.exists("of first", "of second")


def test_what_was_written_before_a_claim_stays(client):
    def writes() -> Iterator[Write]:
        yield writing("first", 7, "a")
        yield writing("second", 8, "b")
        client.hincrby("second", EPOCH, 1)

    with pytest.raises(Fenced):
        FencedWriter(client).write(writes(), "it")
    assert client.hgetall("of first") == {b"value": b"a"}
    assert not client.exists("of second")


def test_a_writer_that_was_fenced_writes_on_where_it_owns(client):
    writer = FencedWriter(client)
    with pytest.raises(Fenced):
        writer.write([writing("first", 6, "a")], "it")
    client.hset("first", "touched", 1)  # would undo a transaction of a connection that still watched it
    writer.write([writing("second", 8, "b")], "it")
    assert client.hgetall("of second") == {b"value": b"b"}


def test_a_key_that_another_program_wrote_over_is_told(client):
    client.set("of second", "x")
    both = Write([("first", 7)], [("HSET", "of second", "field", "value"), *writing("first", 7, "a").commands])
    with pytest.raises(CorruptState, match=r"it: another program has written over a key of its state: .*WRONGTYPE"):
        FencedWriter(client).write([both], "it")
    assert client.get("of second") == b"x"
    assert client.hgetall("of first") == {b"value": b"a"}  # a server takes no transaction back


def test_nothing_of_a_write_with_a_command_that_the_server_does_not_take(client):
    malformed = Write([("first", 7)], [("HSET", "of first", "field"), ("HSET", "of second", "a", "b")])
    with pytest.raises(redis.ResponseError, match="wrong number of arguments"):
        FencedWriter(client).write([malformed], "it")
    assert not client.exists("of first", "of second")


def test_a_full_server_takes_none_of_it(client):
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(redis.OutOfMemoryError):
            FencedWriter(client).write([writing("first", 7, "a")], "it")
    finally:
        client.config_set("maxmemory", 0)
    assert not client.exists("of first")


def test_what_is_to_go_goes_from_a_full_server_too(empty_redis_url, client):
    store, state = OnlineStore(empty_redis_url), StateName("by_shop@1", 1)
    group = key_group("large")
    (claim,) = store.claim(state, [group])
    store.commit(state, [GroupCommit(group, claim.epoch, [1], None, 1, {"large": {b"t": bytes(1_000_000)}})])
    gone = GroupCommit(group, claim.epoch, [2], None, 2, {}, removed=["large"])
    try:
        client.config_set("maxmemory", client.info("memory")["used_memory"] - 500_000)
        with pytest.raises(StoreUnavailable):
            store.commit(state, [gone])
        assert wait_until(lambda: _commits(store, state, gone), PATIENCE_S, every_s=0.01)
    finally:
        client.config_set("maxmemory", 0)
    assert not client.exists(state.key("large"))
    assert store.progress(state).standings == {group: [2]}
    (claim,) = store.claim(state, [group])
    store.commit(state, [GroupCommit(group, claim.epoch, [3], None, 3, {"large": {b"t": b"x"}})])
    with pytest.raises(Fenced):
        store._fenced.remove((state.position(group), gone.epoch), [state.key("large")], "it")
    assert client.exists(state.key("large"))
    store.close()


def _commits(store: OnlineStore, state: StateName, commit: GroupCommit) -> bool:
    """Whether there was room: the server frees what is large in a thread of its own."""
    try:
        store.commit(state, [commit])
    except StoreUnavailable:
        return False
    return True


@pytest.mark.parametrize("closed_by", ["server", "client"])
def test_a_connection_that_is_lost_after_the_check_writes_nothing(empty_redis_url, client, closed_by):
    def writes() -> Iterator[Write]:
        yield writing("first", 7, "a")
        if closed_by == "server":
            with redis.Redis.from_url(empty_redis_url) as another:
                another.client_kill_filter(_type="normal", skipme=True)
        else:
            client.connection_pool.disconnect(inuse_connections=True)
        yield writing("second", 8, "b")

    with pytest.raises(redis.ConnectionError):
        FencedWriter(client).write(writes(), "it")
    assert not client.exists("of first", "of second")


@pytest.mark.parametrize(
    "reason",
    [
        "OOM command not allowed when used memory > 'maxmemory'.",
        "READONLY You can't write",
        "MISCONF Errors writing to the AOF file: No space left on device",
    ],
)
def test_a_transaction_dropped_for_what_passes_is_tried_again(reason):
    with pytest.raises(StoreUnavailable), answering():
        raise redis.exceptions.ExecAbortError(f"Transaction discarded because of: {reason}")


def test_a_transaction_dropped_for_what_stays_is_told():
    with pytest.raises(redis.exceptions.ExecAbortError), answering():
        raise redis.exceptions.ExecAbortError("Transaction discarded because of: NOPERM User has no permissions")


def test_a_server_that_reaches_too_few_replicas_takes_writes_again_later(empty_redis_url, client):
    store, state = OnlineStore(empty_redis_url), StateName("by_shop@1", 1)
    group = key_group("shop")
    (claim,) = store.claim(state, [group])
    commit = GroupCommit(group, claim.epoch, [1], None, 1, {"shop": {b"t": b"x"}})
    client.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(StoreUnavailable, match="NOREPLICAS"):
            store.commit(state, [commit])  # a transaction
        with pytest.raises(StoreUnavailable, match="NOREPLICAS"):
            store.claim(state, [group])  # many commands
        with pytest.raises(StoreUnavailable, match="NOREPLICAS"):
            store.switch_generation(state.pipeline, 2)  # one
    finally:
        client.config_set("min-replicas-to-write", 0)
    store.commit(state, [commit])
    assert store.progress(state).standings == {group: [1]}
    store.close()


@pytest.mark.parametrize(
    "refusal",
    [
        redis.ResponseError(
            "Error running script (call to f_0): @user_script: 9: -NOREPLICAS Not enough good replicas"
        ),
        redis.ResponseError("UNBLOCKED force unblock from blocking operation, instance state changed"),
        redis.exceptions.ClusterDownError("The cluster is down"),
        redis.exceptions.MasterDownError("Link with MASTER is down"),
        redis.exceptions.TryAgainError("Multiple keys request during rehashing of slot"),
    ],
)
def test_a_server_that_refuses_for_now_is_tried_again(refusal):
    with pytest.raises(StoreUnavailable), answering():
        raise refusal


def test_what_a_server_refuses_is_told_without_the_command():
    with pytest.raises(StoreUnavailable) as told, answering():
        raise redis.ResponseError(
            "Command # 1 (SET card caused error: 4711) of pipeline caused error: MISCONF No space"
        )
    assert str(told.value) == "the online store does not answer: MISCONF No space"


def test_a_key_that_is_taken_is_not_a_busy_server():
    with pytest.raises(redis.ResponseError, match="BUSYGROUP"), answering():
        raise redis.ResponseError("BUSYGROUP Consumer Group name already exists")


def test_nothing_to_write_asks_nothing(client):
    FencedWriter(client).write([], "it")
