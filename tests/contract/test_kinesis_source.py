"""Kinesis on a real HTTP server: shards, resharding, where reading begins, and what an outage leaves behind."""

import base64
import json
from collections import OrderedDict

import pytest

from featurelib.clock import SystemClock, to_datetime
from featurelib.connectors import Mark, connect, kinesis
from featurelib.definitions import ConnectorDef, SourceDef
from featurelib.errors import SourceError
from featurelib.secrets import SecretRef
from tests.support.amazon import ACCOUNT, REGION
from tests.support.fed import PARTITIONS, Fed, Polled, identities, trip

HALF = 2**127


class Stream:
    """A Kinesis stream, and a producer."""

    def __init__(self, amazon, shards: int = 1) -> None:
        self.url = amazon.url
        self.client = amazon.client("kinesis")
        self.client.create_stream(StreamName="trips", ShardCount=shards)
        self.arn = self.client.describe_stream_summary(StreamName="trips")["StreamDescriptionSummary"]["StreamARN"]

    def source(self, init_position: str = "trim_horizon", **config) -> SourceDef:
        settings = {"stream_arn": self.arn, "region": REGION, "endpoint_url": self.url, "init_position": init_position}
        return SourceDef(dataset="Trip", connector=ConnectorDef(type="kinesis", config=settings | config))

    def put(self, *numbers: int) -> None:
        self.put_raw(*(json.dumps(trip(n)).encode() for n in numbers))

    def put_raw(self, *data: bytes) -> None:
        records = [{"Data": each, "PartitionKey": f"{i}{each!r}"} for i, each in enumerate(data)]
        for first in range(0, len(records), 500):
            self.client.put_records(StreamARN=self.arn, Records=records[first : first + 500])

    def shards(self) -> list[str]:
        return [shard["ShardId"] for shard in self.client.list_shards(StreamARN=self.arn)["Shards"]]

    def split(self, shard: str, at: int = HALF) -> None:
        with self._records_stay(shard):
            self.client.split_shard(StreamARN=self.arn, ShardToSplit=shard, NewStartingHashKey=str(at))

    def merge(self, left: str, right: str) -> None:
        with self._records_stay(left, right):
            self.client.merge_shards(StreamARN=self.arn, ShardToMerge=left, AdjacentShardToMerge=right)

    def _records_stay(self, *parents: str) -> "_RecordsStay":
        return _RecordsStay(self.held(), parents)

    def held(self):
        """The server's own stream."""
        from moto.kinesis.models import kinesis_backends

        return kinesis_backends[ACCOUNT][REGION].streams["trips"]

    def expire(self, shard: str, records: int) -> None:
        """What the service does with the oldest records when their time is over."""
        kept = self.held().shards[shard].records
        for sequence in list(kept)[:records]:
            del kept[sequence]


class _RecordsStay:
    """The double moves a closed shard's records to its children, and gives it new ones; the service does neither."""

    def __init__(self, stream, parents) -> None:
        self._stream, self._parents = stream, parents

    def __enter__(self) -> None:
        self._before = set(self._stream.shards)
        self._records = {shard: self._stream.shards[shard].records for shard in self._parents}

    def __exit__(self, *_) -> None:
        for shard in set(self._stream.shards) - self._before:
            self._stream.shards[shard].records = OrderedDict()
        for shard, records in self._records.items():
            self._stream.shards[shard].records = records
            self._stream.shards[shard].starting_hash = self._stream.shards[shard].ending_hash


@pytest.fixture(autouse=True)
def unpaced(monkeypatch):
    """The double has no rate to be kept below."""
    monkeypatch.setattr(kinesis, "_SPACING_S", 0.0)


@pytest.fixture
def stream(amazon) -> Stream:
    return Stream(amazon)


def ns(rows: list[dict]) -> list[int]:
    return [row["n"] for row in rows]


def test_every_record_of_every_shard_comes_once_in_order_and_in_bounded_batches(amazon):
    stream = Stream(amazon, shards=3)
    stream.put(*range(60))
    polled = Polled(stream.source())
    assert sorted(ns(polled.poll())) == list(range(60))
    assert {batch.stream for batch in polled.batches if batch.records} == {
        f"trips/{shard}" for shard in stream.shards()
    }
    assert polled.poll() == []


def test_polling_again_from_any_position_gives_the_same_names_to_the_same_records(stream):
    stream.put(*range(13))
    polled = Polled(stream.source(), batch_rows=4)
    polled.poll()
    for rows in (3, 1000):
        reader = Polled(stream.source(), rows).connect()
        for taken in range(1, len(polled.batches)):
            again = Polled(stream.source(), rows)
            again.position = {batch.stream: batch.through for batch in polled.batches[:taken]}
            again.poll(reader)
            assert identities(again.batches) == identities(polled.batches[taken:])
        reader.close()


def test_records_put_later_follow_in_the_same_reader_and_in_another(stream):
    polled = Polled(stream.source())
    reader = polled.connect()
    stream.put(1, 2)
    assert ns(polled.poll(reader)) == [1, 2]
    stream.put(3)
    assert ns(polled.poll(reader)) == [3]
    stream.put(4)
    assert ns(polled.poll()) == [4]
    assert ns(polled.poll(reader)) == []
    reader.close()


def test_latest_is_decided_once_and_kept_though_no_record_came(stream):
    stream.put(1)
    polled = Polled(stream.source("latest"))
    assert polled.poll() == []
    assert list(polled.position) == [f"trips/{kinesis.BEGIN}"]
    stream.put(2)
    assert ns(polled.poll()) == [2]


def test_reading_begins_at_an_instant(stream):
    stream.put(1)
    between = SystemClock().now()
    stream.put(2)
    assert ns(Polled(stream.source(to_datetime(between).isoformat())).poll()) == [2]


def test_a_split_and_a_merge_while_reading_lose_and_double_nothing_and_children_wait_for_their_parents(stream):
    polled = Polled(stream.source())
    reader = polled.connect()
    (root,) = stream.shards()
    stream.put(*range(10))
    assert ns(polled.poll(reader)) == list(range(10))
    stream.put(*range(10, 20))
    stream.split(root)
    left, right = stream.shards()[1:]
    stream.put(*range(20, 40))
    stream.merge(left, right)
    stream.put(*range(40, 50))
    found = ns(polled.poll())  # a new process, which never saw the shards change
    assert sorted(found) == list(range(10, 50))
    assert found[:10] == list(range(10, 20))
    assert found[-10:] == list(range(40, 50))
    ended = {s for s, mark in polled.position.items() if mark.token.endswith("!")}
    assert ended == {f"trips/{shard}" for shard in (root, left, right)}
    stream.put(50)
    assert ns(polled.poll()) == [50]
    reader.close()


def test_a_child_is_not_read_while_its_parent_cannot_be(stream, monkeypatch):
    (root,) = stream.shards()
    stream.put(1)
    stream.split(root)
    stream.put(2)
    polled = Polled(stream.source())
    reader = polled.connect()
    ask = reader._client.get_records
    refused = refusing(reader._client, "ResourceNotFoundException", ask, 1)
    monkeypatch.setattr(reader._client, "get_records", refused)
    with pytest.raises(SourceError, match=root):
        polled.poll(reader)
    assert ns([row for batch in polled.batches for row in batch.records]) == []
    monkeypatch.setattr(reader._client, "get_records", ask)
    assert ns(polled.poll(reader)) == [1, 2]
    reader.close()


def test_children_of_a_stream_begun_at_latest_are_read_from_their_first_record(stream):
    stream.put(1)
    polled = Polled(stream.source("latest"))
    polled.poll()
    (root,) = stream.shards()
    stream.put(2)
    stream.split(root)
    stream.put(3, 4, 5)
    assert sorted(ns(polled.poll())) == [2, 3, 4, 5]


def test_records_that_expired_unread_are_said_and_reading_goes_on_with_the_oldest(stream):
    stream.put(*range(10))
    polled = Polled(stream.source())
    polled.poll()
    stream.put(*range(10, 20))
    stream.expire(stream.shards()[0], 15)
    assert ns(polled.poll()) == list(range(15, 20))
    (notice,) = polled.notices
    assert stream.shards()[0] in notice
    assert "has expired" in notice
    stream.put(20)
    assert ns(polled.poll()) == [20]
    assert len(polled.notices) == 1


def test_a_shard_that_is_gone_before_its_end_was_seen_is_said_and_its_children_are_read(stream):
    (root,) = stream.shards()
    stream.put(1)
    polled = Polled(stream.source())
    polled.poll()
    stream.split(root)
    stream.put(2)
    del stream.held().shards[root]
    assert ns(polled.poll()) == [2]
    (notice,) = polled.notices
    assert root in notice
    assert polled.poll() == []
    assert len(polled.notices) == 1


def test_what_another_source_of_the_dataset_read_before_is_no_shard_that_is_gone(stream):
    stream.put(1)
    polled = Polled(stream.source())
    polled.position = {"clicks/0": Mark(57)}
    assert ns(polled.poll()) == [1]
    assert polled.notices == []
    assert polled.position["clicks/0"] == Mark(57)


def test_what_is_no_json_object_is_malformed_and_an_aggregate_is_named(stream):
    stream.put_raw(b"{}{", b"[1]", b"\xff", b"\xf3\x89\x9a\xc2rest", json.dumps(trip(1)).encode())
    polled = Polled(stream.source())
    assert ns(polled.poll()) == [1]
    malformed = [bad for batch in polled.batches for bad in batch.malformed]
    assert len(malformed) == 4
    assert all(bad.name for bad in malformed)
    assert "aggregate" in malformed[3].message


def test_throttling_is_no_error_and_the_records_come_later(stream, monkeypatch):
    polled = Polled(stream.source())
    reader = polled.connect()
    polled.poll(reader)
    stream.put(1)
    throttled = refusing(reader._client, "ProvisionedThroughputExceededException", reader._client.get_records, 3)
    monkeypatch.setattr(reader._client, "get_records", throttled)
    polls = [ns(polled.poll(reader)) for _ in range(12)]
    assert [numbers for numbers in polls if numbers] == [[1]]
    reader.close()


def refusing(client, code: str, call, times: int):
    """A call of the driver that fails so often, as the service would."""
    left = iter(range(times))

    def asked(**given):
        if next(left, None) is None:
            return call(**given)
        raise getattr(client.exceptions, code)({"Error": {"Code": code, "Message": "no"}}, "Call")

    return asked


def test_an_iterator_that_lived_too_long_is_replaced(stream, monkeypatch):
    polled = Polled(stream.source())
    reader = polled.connect()
    stream.put(1)
    assert ns(polled.poll(reader)) == [1]
    stream.put(2)
    ask = refusing(reader._client, "ExpiredIteratorException", reader._client.get_records, 1)
    monkeypatch.setattr(reader._client, "get_records", ask)
    assert ns(polled.poll(reader)) == [2]
    assert polled.notices == []
    reader.close()


def test_a_place_the_service_does_not_know_is_said_once_something_comes(stream, monkeypatch):
    polled = Polled(stream.source())
    stream.put(1)
    polled.poll()
    stream.expire(stream.shards()[0], 1)
    reader = polled.connect()
    ask = refusing(reader._client, "InvalidArgumentException", reader._client.get_shard_iterator, 1)
    monkeypatch.setattr(reader._client, "get_shard_iterator", ask)
    assert polled.poll(reader) == []
    stream.held().shards[stream.shards()[0]].records.update(later(5))
    assert ns(polled.poll(reader)) == [5]
    (notice,) = polled.notices
    assert "does not know" in notice
    reader.close()


def later(n: int) -> dict:
    """A record with a number greater than all before: the double counts anew in a shard that is empty."""
    from moto.kinesis.models import Record

    data = base64.b64encode(json.dumps(trip(n)).encode()).decode()
    return {1_000: Record("key", data, 1_000, "")}


@pytest.mark.parametrize("appends", [1, 4, 5, 8])
def test_a_crash_between_two_partitions_appends_costs_no_record_and_doubles_none(stream, empty_redis_url, appends):
    fed = Fed(empty_redis_url, stream.source())
    stream.put(*range(20))
    stream.put_raw(b"{")
    fed.run_into_crash(appends)
    stream.split(stream.shards()[0])
    stream.put(*range(20, 40))
    fed.run()
    fed.run()
    assert fed.numbers() == list(range(40))
    assert len(fed.letters()) == 1


def test_a_crash_and_records_that_expire_meanwhile_double_none_and_lose_only_those(stream, empty_redis_url):
    stream.put(*range(30))
    fed = Fed(empty_redis_url, stream.source())
    fed.run_into_crash(PARTITIONS + 1)  # the first partition holds its share of the first ten, the others nothing
    before = fed.numbers()
    stream.expire(stream.shards()[0], 5)
    fed.run()
    assert fed.numbers() == sorted({*before, *range(5, 30)})


def test_a_crash_after_latest_was_decided_in_one_partition_loses_no_record_put_after_a_whole_poll(
    stream, empty_redis_url
):
    fed = Fed(empty_redis_url, stream.source("latest"))
    stream.put(0)
    fed.run_into_crash(1)
    fed.run()
    stream.put(*range(1, 15))
    fed.run()
    assert fed.numbers() == list(range(1, 15))


def test_the_stream_is_read_as_the_role_that_alone_may(stream, amazon):
    stream.put(1)
    iam = amazon.client("iam")
    user = iam.create_user(UserName="reader")["User"]["UserName"]
    keys = iam.create_access_key(UserName=user)["AccessKey"]
    allow_role = {"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"}
    iam.put_user_policy(UserName=user, PolicyName="p", PolicyDocument=policy(allow_role))
    trust = {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
    role = iam.create_role(RoleName="source", AssumeRolePolicyDocument=policy(trust))["Role"]
    may_read = {"Effect": "Allow", "Action": "kinesis:*", "Resource": "*"}
    iam.put_role_policy(RoleName="source", PolicyName="p", PolicyDocument=policy(may_read))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
        patched.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
        patched.setenv("SOURCE_ROLE", role["Arn"])
        patched.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
        patched.setattr("moto.core.responses.ActionAuthenticatorMixin.request_count", 0)
        with pytest.raises(SourceError, match="AccessDenied"):
            Polled(stream.source()).poll()
        as_role = stream.source(role_arn=SecretRef(kind="env", value="SOURCE_ROLE"))
        assert ns(Polled(as_role).poll()) == [1]


def policy(statement: dict) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]})


def test_a_role_that_cannot_be_taken_is_a_source_error(stream):
    polled = Polled(stream.source(role_arn="not an arn"))
    with pytest.raises(SourceError, match="kinesis source of Trip"):
        polled.poll()


def test_a_stream_that_is_not_there_is_named(stream):
    with pytest.raises(SourceError, match="elsewhere"):
        Polled(stream.source(stream_arn=stream.arn.replace("trips", "elsewhere"))).poll()


@pytest.mark.parametrize(
    "setting", [{"stream_arn": "trips"}, {"init_position": "tomorrow"}, {"format": "avro"}, {"endpoint_url": "nowhere"}]
)
def test_a_setting_that_cannot_be_is_refused_when_the_source_is_made(stream, setting):
    with pytest.raises(SourceError, match="kinesis source of Trip"):
        connect(stream.source(**setting), 10, SystemClock())


def test_a_poll_that_finds_nothing_ends(stream):
    polled = Polled(stream.source())
    assert polled.poll() == []
    assert polled.poll() == []


def test_a_stream_that_is_read_instead_of_another_is_read_from_its_own_beginning(stream):
    polled = Polled(stream.source())
    stream.put(*range(5))
    assert ns(polled.poll()) == list(range(5))
    polled.position = {f"other/{name.partition('/')[2]}": mark for name, mark in polled.position.items()}
    assert ns(polled.poll()) == list(range(5))
