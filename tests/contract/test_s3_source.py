"""JSON objects in a bucket, on a real HTTP server: keys in order, lines, compression, what is damaged or gone."""

import gzip
import json

import pytest

from featurelib.clock import SystemClock
from featurelib.connectors import connect, s3
from featurelib.definitions import ConnectorDef, SourceDef
from featurelib.errors import SourceError
from featurelib.secrets import SecretRef
from featurelib.sources import S3JsonSource
from tests.support.amazon import REGION
from tests.support.fed import Fed, Polled, identities, trip


class Bucket:
    """A bucket, and whoever writes to it."""

    def __init__(self, amazon) -> None:
        self.url = amazon.url
        self.client = amazon.client("s3")
        self.client.create_bucket(Bucket="trips", CreateBucketConfiguration={"LocationConstraint": REGION})

    def source(self, prefix: str = "", **config) -> SourceDef:
        settings = {"bucket": "trips", "prefix": prefix, "region": REGION, "endpoint_url": self.url}
        return SourceDef(dataset="Trip", connector=ConnectorDef(type="s3_json", config=settings | config))

    def put(self, key: str, *numbers: int) -> None:
        """Trips as one object, or as lines, as the key's ending says."""
        text = "\n".join(json.dumps(trip(n)) for n in numbers)
        self.put_raw(key, gzip.compress(text.encode()) if key.endswith(".gz") else text.encode())

    def put_raw(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket="trips", Key=key, Body=data)

    def remove(self, key: str) -> None:
        self.client.delete_object(Bucket="trips", Key=key)


@pytest.fixture
def bucket(amazon) -> Bucket:
    return Bucket(amazon)


def ns(rows: list[dict]) -> list[int]:
    return [row["n"] for row in rows]


def malformed(polled: Polled) -> list[tuple[str, str]]:
    return [(bad.name, bad.message) for batch in polled.batches for bad in batch.malformed]


def test_objects_come_in_the_order_of_their_keys_and_each_ending_is_read_as_it_says(bucket):
    bucket.put("b.json", 3)
    bucket.put("a.jsonl", 0, 1, 2)
    bucket.put("c.ndjson", 4, 5)
    bucket.put("d.jsonl.gz", 6, 7)
    bucket.put("e.JSON.gz", 8)
    bucket.put_raw("f.txt", b"not ours")
    polled = Polled(bucket.source())
    assert ns(polled.poll()) == list(range(9))
    assert polled.poll() == []


def test_an_object_may_be_written_over_several_lines_and_a_list_is_not_an_object(bucket):
    bucket.put_raw("a.json", json.dumps(trip(1), indent=2).encode())
    bucket.put_raw("b.json", json.dumps([trip(2)]).encode())
    bucket.put_raw("c.json", b"")
    polled = Polled(bucket.source())
    assert ns(polled.poll()) == [1]
    (listed, why), (empty, _) = malformed(polled)
    assert listed.startswith("b.json\t")
    assert "not a JSON object" in why
    assert empty.startswith("c.json\t")
    assert polled.poll() == []


def test_a_prefix_is_text_and_may_end_within_a_name(bucket):
    for n, key in enumerate(["2025/x.json", "2026-01.json", "2026-02.json", "2026/a.json", "2026/b/c.json", "3.json"]):
        bucket.put(key, n)
    assert ns(Polled(bucket.source("2026")).poll()) == [1, 2, 3, 4]
    assert ns(Polled(bucket.source("2026/")).poll()) == [3, 4]
    assert ns(Polled(bucket.source("2026-0")).poll()) == [1, 2]
    assert ns(Polled(bucket.source("2026-02.json")).poll()) == [2]
    assert ns(Polled(bucket.source("nothing/")).poll()) == []


def test_later_keys_are_new_and_earlier_ones_and_rewritten_ones_are_not_looked_at(bucket):
    bucket.put("b.jsonl", 1, 2)
    polled = Polled(bucket.source())
    reader = polled.connect()
    assert ns(polled.poll(reader)) == [1, 2]
    bucket.put("a.jsonl", 9)
    bucket.put("b.jsonl", 7, 8, 9)
    bucket.put("b.jsonl2.json", 3)
    bucket.put("c.jsonl", 4)
    assert ns(polled.poll(reader)) == [3, 4]
    bucket.put("d/e.jsonl.gz", 5)
    assert ns(polled.poll()) == [5]


def test_polling_again_from_any_position_gives_the_same_names_to_the_same_records(bucket):
    bucket.put("a.jsonl", *range(11))
    bucket.put_raw("b.jsonl", b"{\n[]\n" + json.dumps(trip(11)).encode())
    bucket.put_raw("c.jsonl", b"")
    bucket.put("c.jsonl.gz", *range(12, 21))
    polled = Polled(bucket.source(), batch_rows=4)
    polled.poll()
    for taken in range(len(polled.batches)):
        for rows in (1, 3, 1000):
            again = Polled(bucket.source(), rows)
            again.position = {batch.stream: batch.through for batch in polled.batches[:taken]}
            again.poll()
            assert identities(again.batches) == identities(polled.batches[taken:])


def test_lines_that_are_no_objects_are_malformed_with_key_and_line_and_the_rest_comes(bucket):
    bucket.put_raw("a.jsonl", b'{"n": 1}\n{\n\n[2]\n{"n": "\xff"}\n{"n": 6}')
    polled = Polled(bucket.source())
    assert ns(polled.poll()) == [1, 6]
    assert [name for name, _ in malformed(polled)] == [f"a.jsonl\t{line:012d}" for line in (2, 4, 5)]
    assert all(message.startswith("trips/a.jsonl line ") for _, message in malformed(polled))


def test_damaged_compression_costs_the_rest_of_its_object_and_no_other(bucket):
    whole = gzip.compress("".join(json.dumps(trip(n)) + "\n" for n in range(500)).encode())
    bucket.put_raw("a.jsonl.gz", whole[: len(whole) // 2])
    bucket.put_raw("b.jsonl.gz", b"no gzip at all")
    bucket.put_raw("c.jsonl.gz", whole[:-4])
    bucket.put("d.jsonl.gz", 1000)
    polled = Polled(bucket.source(), batch_rows=1000)
    found = ns(polled.poll())
    assert found[-501:] == [*range(500), 1000]
    assert 0 < len(found) - 501 < 500
    assert [name[:10] for name, _ in malformed(polled)] == ["a.jsonl.gz", "b.jsonl.gz", "c.jsonl.gz"]
    assert polled.poll() == []


def test_joined_gzip_files_are_one(bucket):
    parts = [gzip.compress(json.dumps(trip(n)).encode() + b"\n") for n in range(3)]
    bucket.put_raw("a.jsonl.gz", b"".join(parts))
    assert ns(Polled(bucket.source()).poll()) == [0, 1, 2]


@pytest.mark.parametrize("key", ["a.jsonl", "a.jsonl.gz"])
def test_an_object_longer_than_a_block_is_read_without_loss_at_the_cuts(bucket, monkeypatch, key):
    monkeypatch.setattr(s3, "_BLOCK_BYTES", 64)
    bucket.put(key, *range(200))
    assert ns(Polled(bucket.source()).poll()) == list(range(200))


def test_a_line_without_end_is_malformed_and_never_held_in_memory(bucket, monkeypatch):
    monkeypatch.setattr(s3, "_BLOCK_BYTES", 64)
    monkeypatch.setattr(s3, "_RECORD_BYTES", 1_000)
    bucket.put_raw("a.jsonl.gz", gzip.compress(json.dumps(trip(1)).encode() + b"\n" + b"x" * 100_000))
    bucket.put("b.jsonl", 2)
    polled = Polled(bucket.source())
    assert ns(polled.poll()) == [1, 2]
    ((name, message),) = malformed(polled)
    assert name == "a.jsonl.gz\t000000000002"
    assert "longer than 1000 bytes" in message


def test_an_object_removed_before_its_end_was_read_is_said_and_the_next_ones_come(bucket):
    bucket.put("a.jsonl", *range(8))
    bucket.put("b.jsonl", 8)
    polled = Polled(bucket.source(), batch_rows=4)
    first = next(polled.connect().poll({}))
    polled.position = {first.stream: first.through}
    bucket.remove("a.jsonl")
    assert ns(polled.poll()) == [8]
    (notice,) = polled.notices
    assert "trips/a.jsonl was removed" in notice
    assert "first 4 lines" in notice
    assert polled.poll() == []


def test_an_object_that_cannot_be_read_is_an_error_and_later_ones_wait(bucket, monkeypatch):
    bucket.put("a.jsonl", 1)
    bucket.put("b.jsonl", 2)
    bucket.put("c.jsonl", 3)
    get = s3.obstore.get
    refused = {"b.jsonl"}

    def denied(store, key):
        if key in refused:
            raise PermissionError("403")
        return get(store, key)

    monkeypatch.setattr(s3.obstore, "get", denied)
    polled = Polled(bucket.source())
    with pytest.raises(SourceError, match=r"trips/b\.jsonl could not be read"):
        polled.poll()
    assert ns([row for batch in polled.batches for row in batch.records]) == [1]
    refused.clear()
    assert ns(polled.poll()) == [2, 3]


def test_keys_with_unusual_characters_are_read(bucket):
    keys = sorted(["a b.json", "a%20b.json", "a+b=c.json", "é/ö.json", "z!/(1).json"])
    for n, key in enumerate(keys):
        bucket.put(key, n)
    polled = Polled(bucket.source())
    assert ns(polled.poll()) == list(range(len(keys)))
    assert polled.poll() == []


def test_more_keys_than_one_answer_holds_are_listed_on(bucket, monkeypatch):
    monkeypatch.setattr(s3, "_KEYS_PER_ANSWER", 3)
    for n in range(10):
        bucket.put(f"{n}.json", n)
    assert ns(Polled(bucket.source()).poll()) == list(range(10))


@pytest.mark.parametrize("appends", [1, 2, 4, 5, 7, 8])
def test_a_crash_between_two_partitions_appends_costs_no_record_and_doubles_none(bucket, empty_redis_url, appends):
    fed = Fed(empty_redis_url, bucket.source())
    bucket.put("a.jsonl", *range(25))
    bucket.put_raw("b.jsonl", b"{\n" + json.dumps(trip(25)).encode())
    fed.run_into_crash(appends)
    bucket.put("c.jsonl.gz", *range(26, 40))
    fed.run()
    fed.run()
    assert fed.numbers() == list(range(40))
    assert len(fed.letters()) == 1


def test_a_bucket_that_is_not_there_is_named_without_the_drivers_inner_life(bucket):
    with pytest.raises(SourceError, match="elsewhere/ could not be listed") as caught:
        Polled(bucket.source(bucket="elsewhere")).poll()
    assert "Debug source" not in str(caught.value)


def test_credentials_are_resolved_and_never_shown(bucket, monkeypatch):
    monkeypatch.setenv("SOURCE_SECRET", "hidden-value")
    keys = {"access_key_id": "AKID", "secret_access_key": SecretRef(kind="env", value="SOURCE_SECRET")}
    bucket.put("a.json", 1)
    assert ns(Polled(bucket.source(**keys)).poll()) == [1]
    with pytest.raises(SourceError) as caught:
        Polled(bucket.source(**{**keys, "bucket": "elsewhere"})).poll()
    assert "hidden-value" not in str(caught.value)
    described = S3JsonSource(bucket="trips", access_key_id="AKID", secret_access_key="hidden-value")
    assert "hidden-value" not in repr(described)
    assert described.to_dict()["secret_access_key"] == {"kind": "literal", "value": "hidden-value"}


def test_settings_of_ours_are_stored_only_where_they_are_set():
    assert set(S3JsonSource(bucket="trips").to_dict()) == {"bucket", "prefix", "region"}


def test_a_public_bucket_is_read_without_credentials(bucket, monkeypatch):
    bucket.put("a.json", 1)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    bucket.client.put_bucket_acl(Bucket="trips", ACL="public-read")
    bucket.client.put_object_acl(Bucket="trips", Key="a.json", ACL="public-read")
    assert ns(Polled(bucket.source(anonymous=True)).poll()) == [1]


@pytest.mark.parametrize("setting", [{"prefix": "/a"}, {"prefix": "a//b"}, {"access_key_id": "alone"}])
def test_a_setting_that_cannot_be_is_refused_when_the_source_is_made(bucket, setting):
    with pytest.raises(SourceError, match="s3 source of Trip"):
        connect(bucket.source(**setting), 10, SystemClock())
