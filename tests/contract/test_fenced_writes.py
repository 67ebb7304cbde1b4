"""What only an owner may write, on a real server: claims before, between check and transaction, and after."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from featurelib.errors import Fenced
from featurelib.stores.fenced import EPOCH, FencedWriter, Write


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


def test_a_command_that_the_server_refuses_is_told(client):
    client.set("text", "x")
    refused = Write([("first", 7)], [("HSET", "text", "field", "value")])
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        FencedWriter(client).write([refused], "it")
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


def test_nothing_to_write_asks_nothing(client):
    FencedWriter(client).write([], "it")
