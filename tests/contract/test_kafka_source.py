"""Kafka as a source, on librdkafka's mock cluster and on tansu, a broker of its own.

Neither leaves out what an aborted transaction wrote, so that promise of the brokers is not shown here. The schema
registry is a stand-in: a local HTTP server that answers as Confluent's documentation of its REST interface says.
"""

import base64
import io
import json
import secrets
import struct
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import chain
from uuid import UUID

import fastavro
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2, wrappers_pb2

from featurelib.clock import SystemClock
from featurelib.connectors import Mark, Source, SourceBatch, connect
from featurelib.connectors.brokers import Brokers
from featurelib.definitions import ConnectorDef, DatasetDef, FieldDef, SourceDef, ref
from featurelib.engine.records import DELETED
from featurelib.errors import SourceError, StoreUnavailable
from featurelib.secrets import Secret
from featurelib.settings import IngestSettings
from featurelib.stores.log import Log
from jobs.ingest import SourceIngest
from tests.support.brokers import Broker, MockCluster, mock_cluster, tansu
from tests.support.http_service import HttpService, http_service

ROWS = 25
BATCH_ROWS = 4


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr("featurelib.connectors.kafka._WAIT_SECONDS", 0.05)


@pytest.fixture(scope="module")
def mock() -> Iterator[MockCluster]:
    with mock_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def process() -> Iterator[Broker]:
    with tansu() as broker:
        yield broker


@pytest.fixture(params=["mock", "process"])
def broker(request) -> Broker:
    return request.getfixturevalue(request.param)


class Topic:
    """A topic of a test's own."""

    def __init__(self, broker: Broker, partitions: int = 2) -> None:
        self.broker = broker
        self.name = f"trips-{secrets.token_hex(4)}"
        self.broker.create(self.name, partitions)

    def source(self, cdc: str = "append", **config) -> SourceDef:
        settings = {"topic": self.name, "brokers": self.broker.address, **config}
        return SourceDef(dataset="Trip", connector=ConnectorDef(type="kafka", config=settings), cdc=cdc)

    def add(self, partition: int, rows: list[dict]) -> None:
        self.put(partition, *(json.dumps(row).encode() for row in rows))

    def put(self, partition: int, *values: bytes | None, **options) -> None:
        self.broker.produce(self.name, values, partition, **options)

    def stream(self, partition: int) -> str:
        return f"{self.name}/{partition}"


@pytest.fixture
def topic(broker) -> Topic:
    return Topic(broker)


@pytest.fixture
def mock_topic(mock) -> Topic:
    return Topic(mock)


@pytest.fixture
def opened() -> Iterator[list[Source]]:
    """Sources to be closed when the test ends."""
    sources: list[Source] = []
    yield sources
    for source in sources:
        source.close()


@pytest.fixture
def open_source(opened):
    def made(source: SourceDef, batch_rows: int = BATCH_ROWS) -> Source:
        opened.append(connect(source, batch_rows, SystemClock()))
        return opened[-1]

    return made


def rows(count: int, start: int = 0) -> list[dict]:
    return [{"id": f"k{i % 3}", "n": i} for i in range(start, start + count)]


def records(batches: list[SourceBatch]) -> dict[tuple[str, int], dict]:
    found = {}
    for batch in batches:
        assert len(batch.records) == len(batch.sequence)
        for sequence, record in zip(batch.sequence.tolist(), batch.records, strict=True):
            assert (batch.stream, sequence) not in found
            found[(batch.stream, sequence)] = record
    return found


def numbers(batches: list[SourceBatch]) -> list[int]:
    return sorted(record["n"] for record in records(batches).values())


def whole(batches: Iterable[SourceBatch]) -> SourceBatch:
    """The batches of one partition as one: how they are cut depends on how fast messages come."""
    first, *others = batches
    for each in others:
        sequence = np.concatenate([first.sequence, each.sequence])
        first = each._replace(
            sequence=sequence,
            records=[*first.records, *each.records],
            malformed=first.malformed + each.malformed,
        )
    return first


def position(batches: list[SourceBatch]) -> dict[str, Mark]:
    return {batch.stream: batch.through for batch in batches}


def test_every_record_comes_once_in_bounded_batches_of_one_partition(topic, open_source):
    topic.add(0, rows(ROWS))
    topic.add(1, rows(3, 100))
    batches = list(open_source(topic.source()).poll({}))
    assert all(0 < len(batch.sequence) <= BATCH_ROWS for batch in batches)
    assert numbers(batches) == [*range(ROWS), *range(100, 103)]
    assert {batch.stream for batch in batches} == {topic.stream(0), topic.stream(1)}


def test_a_records_sequence_is_its_offset_and_marks_ascend(topic, open_source):
    topic.add(1, rows(ROWS))
    batches = list(open_source(topic.source()).poll({}))
    assert np.concatenate([batch.sequence for batch in batches]).tolist() == list(range(ROWS))
    assert [batch.through.sequence for batch in batches] == [batch.sequence[-1] for batch in batches]
    assert batches[-1].cursor == f"{topic.stream(1)}:{ROWS - 1}"


def test_a_second_poll_from_the_reached_position_gives_nothing(topic, open_source):
    topic.add(0, rows(ROWS))
    source = open_source(topic.source())
    reached = position(list(source.poll({})))
    assert list(source.poll(reached)) == []
    assert list(open_source(topic.source()).poll(reached)) == []


def test_polling_again_from_any_position_gives_the_same_offsets_to_the_same_records(topic, open_source):
    topic.add(0, rows(ROWS))
    topic.add(1, rows(3, 50))
    source, another = open_source(topic.source()), open_source(topic.source(), batch_rows=1000)
    batches = list(source.poll({}))
    everything = records(batches)
    for taken in range(len(batches)):
        reached = position(batches[:taken])
        left = {at: row for at, row in everything.items() if at[1] > reached.get(at[0], Mark(-1)).sequence}
        assert records(list(source.poll(reached))) == left
        assert records(list(another.poll(reached))) == left


def test_a_poll_given_up_half_way_leaves_no_gap_to_the_next(topic, open_source):
    topic.add(0, rows(ROWS))
    topic.add(1, rows(ROWS, 100))
    source = open_source(topic.source(), batch_rows=10)
    first = next(iter(source.poll({})))
    assert numbers([first, *source.poll(position([first]))]) == [*range(ROWS), *range(100, 100 + ROWS)]


def test_records_added_later_are_fetched_without_a_new_assignment(topic, open_source, monkeypatch):
    topic.add(0, rows(3))
    source = open_source(topic.source())
    reached = position(list(source.poll({})))
    topic.add(1, rows(3, 10))
    topic.add(0, rows(2, 3))
    assigned = []
    monkeypatch.setattr(Brokers, "assign", lambda self, offsets: assigned.extend(offsets))
    assert numbers(list(source.poll(reached))) == [3, 4, 10, 11, 12]
    assert assigned == []


def test_a_poll_that_finds_nothing_waits_for_a_first_record(topic, open_source, monkeypatch):
    source = open_source(topic.source())
    real, added = Brokers.fetch, []

    def fetch(brokers: Brokers, count: int, seconds: float):
        if not added:
            added.append(topic.add(0, rows(1)))
        # That a partition had no more may be heard first.
        return real(brokers, count, 10)

    assert list(source.poll({})) == []
    monkeypatch.setattr(Brokers, "fetch", fetch)
    assert numbers(list(source.poll({}))) == [0]


def test_a_small_partition_does_not_wait_for_a_large_one(mock_topic, open_source):
    mock_topic.broker.produce(mock_topic.name, [b"{}" * 1] * 2_000, 0, headers=[("pad", b"x" * 1_000)])
    mock_topic.add(1, rows(5))
    streams = [batch.stream for batch in open_source(mock_topic.source(), batch_rows=50).poll({})]
    assert streams.index(mock_topic.stream(1)) < len(streams) - 2


def test_a_partition_that_was_added_is_read_from_its_start(mock_topic, open_source):
    source = open_source(mock_topic.source())
    mock_topic.add(0, rows(3))
    mock_topic.add(1, rows(3, 10))
    reached = position(list(source.poll({})))
    # The cluster cannot add a partition: the topic comes back with the same records and one partition more.
    mock_topic.broker.delete(mock_topic.name)
    mock_topic.broker.create(mock_topic.name, 3)
    mock_topic.add(0, rows(3))
    mock_topic.add(1, rows(3, 10))
    mock_topic.add(2, rows(2, 20))
    assert numbers(list(source.poll(reached))) == [20, 21]


def test_what_retention_took_is_told_with_its_count_and_the_rest_is_read(mock_topic, open_source):
    mock_topic.add(0, rows(10))
    mock_topic.broker.delete_records(mock_topic.name, 0, 6)
    source = open_source(mock_topic.source())
    told, *others = source.poll({mock_topic.stream(0): Mark(1)})
    assert told.through == Mark(5)
    assert told.notices[0].startswith(f"{mock_topic.stream(0)}: 4 offsets (2 to 5) were deleted")
    assert numbers(others) == [6, 7, 8, 9]
    assert not any(batch.notices for batch in source.poll({}))  # a first read misses nothing


def test_a_topic_that_ends_before_the_position_is_an_error_and_other_partitions_still_come(topic, open_source):
    topic.add(0, rows(3))
    topic.add(1, rows(3, 10))
    polled = []
    with pytest.raises(SourceError, match=rf"{topic.stream(0)} ends at offset 3, but was read up to 8"):  # noqa: PT012
        for batch in open_source(topic.source()).poll({topic.stream(0): Mark(7)}):
            polled.append(batch)  # noqa: PERF402  # what came before the error counts
    assert numbers(polled) == [10, 11, 12]


def test_the_marker_of_a_transaction_takes_an_offset_and_is_passed_over(process, open_source):
    topic = Topic(process)
    process.transact(topic.name, [b'{"n":0}', b'{"n":1}'])
    source = open_source(topic.source())
    batches = list(source.poll({}))
    assert numbers(batches) == [0, 1]
    assert position(batches) == {topic.stream(0): Mark(2)}
    assert list(source.poll(position(batches))) == []


def test_a_message_that_is_no_json_object_costs_one_record(topic, open_source):
    topic.put(0, b'{"n":0}', b"{", b"[4]", b"\xff\xfe", None, b"\0\0\0\0\7" + b'{"n":5}')
    batch = whole(open_source(topic.source(), batch_rows=100).poll({}))
    assert records([batch]) == {(topic.stream(0), 0): {"n": 0}, (topic.stream(0), 5): {"n": 5}}
    assert [bad.sequence for bad in batch.malformed] == [1, 2, 3, 4]
    assert batch.malformed[1].text == "[4]"
    assert batch.malformed[1].message == f"offset 2 of {topic.stream(0)}: expected an object, found list"
    assert batch.malformed[2].text == "\\xff\\xfe"
    assert "cdc='upsert'" in batch.malformed[3].message
    assert batch.through == Mark(5)


def test_a_debezium_envelope_comes_as_it_is_and_its_tombstone_says_nothing(topic, open_source):
    envelope = {"schema": {}, "payload": {"op": "d", "before": {"id": "a"}, "after": None, "ts_ms": 1}}
    topic.put(0, json.dumps(envelope).encode(), None, key=b'{"id":"a"}')
    batches = list(open_source(topic.source(cdc="debezium")).poll({}))
    assert list(records(batches).values()) == [envelope]
    assert not any(batch.malformed for batch in batches)
    assert position(batches) == {topic.stream(0): Mark(1)}


# Brokers that fail.


def test_brokers_that_are_down_are_an_error_until_they_are_back(open_source, monkeypatch):
    monkeypatch.setattr("featurelib.connectors.brokers._ANSWER_SECONDS", 1.0)
    with mock_cluster() as cluster:
        topic = Topic(cluster)
        topic.add(0, rows(3))
        source = open_source(topic.source())
        reached = position(list(source.poll({})))
        cluster.down()
        with pytest.raises(SourceError, match=f"the brokers {cluster.address} do not answer: .*; check that they run"):
            list(source.poll(reached))
        cluster.up()
        topic.add(0, rows(2, 3))
        monkeypatch.setattr("featurelib.connectors.brokers._ANSWER_SECONDS", 10.0)
        assert numbers(list(source.poll(reached))) == [3, 4]


def test_no_right_on_the_group_is_needed(open_source):
    with mock_cluster() as cluster:
        cluster.refuse_groups()
        topic = Topic(cluster)
        source = open_source(topic.source())
        reached: dict[str, Mark] = {}
        for number in range(3):
            topic.add(0, rows(1, number))
            batches = list(source.poll(reached))
            assert numbers(batches) == [number]
            reached |= position(batches)


def test_a_topic_that_does_not_exist_is_named_and_not_created(topic, open_source):
    other = topic.source(topic=f"{topic.name}-other")
    for _ in range(2):
        with pytest.raises(SourceError, match=f"'{topic.name}-other'.*Unknown topic.*reading does not create it"):
            list(open_source(other).poll({}))


def test_a_refused_password_is_told_when_it_is_heard_of_and_never_shown(open_source, monkeypatch, capfd):
    # The test's time limit is below it: a reader that waited for an answer would not come to its end.
    monkeypatch.setattr("featurelib.connectors.brokers._ANSWER_SECONDS", 3_000.0)
    monkeypatch.setenv("TRIP_PASSWORD", "hunter2")
    with tansu("--authentication") as broker:
        settings = {"topic": "trips", "brokers": broker.address, "sasl_username": "reader"}
        settings |= {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "SCRAM-SHA-256"}
        connector = ConnectorDef(type="kafka", config=settings | {"sasl_password": Secret(env="TRIP_PASSWORD")})
        with pytest.raises(
            SourceError, match=r"refuse to let user 'reader' in: .*unknown-user.*check sasl_us"
        ) as failed:
            list(open_source(SourceDef(dataset="Trip", connector=connector)).poll({}))
    assert "hunter2" not in str(failed.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"topic": ""}, "topic is required"),
        ({"brokers": ""}, "brokers is required"),
        ({"format": "xml"}, "format is 'xml'; it must be one of json, avro, protobuf"),
        ({"format": "avro"}, "schema_registry_url is required"),
        ({"format": "avro", "schema_registry_url": "me:secret@host"}, "not of the form https://"),
        ({"security_protocol": "TLS"}, "security_protocol is 'TLS'"),
        ({"security_protocol": "SASL_SSL"}, "sasl_username is required"),
        ({"security_protocol": "SASL_SSL", "sasl_username": "u"}, "sasl_password is required"),
        (
            {"security_protocol": "SSL", "ssl_ca_location": "/nowhere.pem"},
            "librdkafka refuses its settings: .*ssl.ca.location failed",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_refused_when_the_source_is_made(config, message):
    settings = {"topic": "t", "brokers": "127.0.0.1:1", **config}
    with pytest.raises(SourceError, match=f"kafka source of Trip: .*{message}") as failed:
        connect(SourceDef(dataset="Trip", connector=ConnectorDef(type="kafka", config=settings)), 10, SystemClock())
    assert "secret" not in str(failed.value)


# Through the door, into the log.

TRIP = DatasetDef(
    name="Trip",
    fields=(
        FieldDef(name="rider", type="str", key=True),
        FieldDef(name="at", type="datetime", timestamp=True),
        FieldDef(name="n", type="int"),
    ),
)
PARTITIONS = 3
AT = 1_775_000_000


@pytest.fixture
def log(empty_redis_url) -> Iterator[Log]:
    log = Log(empty_redis_url, SystemClock())
    yield log
    log.close()


@pytest.fixture
def ingest(log):
    jobs = []

    def made(source: SourceDef, report=lambda _: None) -> SourceIngest:
        settings = IngestSettings(batch_rows=10)
        jobs.append(SourceIngest(source, TRIP, PARTITIONS, log, report=report, settings=settings, clock=SystemClock()))
        return jobs[-1]

    yield made
    for job in jobs:
        job.close()


def trips(count: int, first: int = 0) -> list[dict]:
    return [{"rider": f"rider{i % 7}", "at": AT + i, "n": i} for i in range(first, first + count)]


def finish(job: SourceIngest) -> None:
    while not job.step().caught_up:
        pass


def held(log: Log) -> list[dict]:
    tables = [log.read(ref(TRIP), part, 0, 1_000_000) for part in range(PARTITIONS)]
    return list(chain.from_iterable(table.to_pylist() for table in tables if table is not None))


def test_a_crash_between_two_partitions_appends_leaves_every_message_once(mock_topic, log, ingest, monkeypatch):
    mock_topic.add(0, trips(30))
    mock_topic.add(1, trips(30, 30))
    real, appends = Log.append, []

    def append(log: Log, dataset: str, partition: int, *arguments, **named):
        appends.append(partition)
        if len(appends) == PARTITIONS + 2:
            raise StoreUnavailable("killed")
        return real(log, dataset, partition, *arguments, **named)

    monkeypatch.setattr(Log, "append", append)
    with pytest.raises(StoreUnavailable):
        finish(ingest(mock_topic.source()))
    restarted = ingest(mock_topic.source())
    duplicates = 0
    while not (step := restarted.step()).caught_up:
        duplicates += step.duplicates
    assert sorted(record["n"] for record in held(log)) == list(range(60))
    assert duplicates > 0
    finish(restarted)
    finish(ingest(mock_topic.source()))
    assert len(held(log)) == 60


def test_malformed_messages_are_kept_once_beside_the_records(mock_topic, log, ingest):
    mock_topic.put(0, b"{", *(json.dumps(trip).encode() for trip in trips(3)), b"nothing")
    finish(ingest(mock_topic.source()))
    finish(ingest(mock_topic.source()))
    letters = [stored.letter for stored in log.dead.newest(ref(TRIP), PARTITIONS)]
    assert sorted((letter.sequence, letter.record["text"]) for letter in letters) == [(0, "{"), (4, "nothing")]
    assert len(held(log)) == 3


def test_what_retention_took_is_told_once(mock_topic, log, ingest):
    told = []
    mock_topic.add(0, trips(5))
    finish(ingest(mock_topic.source()))
    mock_topic.add(0, trips(5, 5))
    mock_topic.broker.delete_records(mock_topic.name, 0, 10)
    for _ in range(2):
        finish(ingest(mock_topic.source(), report=told.append))
    assert [event.message.split(" were")[0] for event in told] == [f"{mock_topic.stream(0)}: 5 offsets (5 to 9)"]


@pytest.mark.parametrize("key", [b"rider1", b'"rider1"', b'{"rider":"rider1"}'])
def test_a_message_without_a_value_takes_its_key_away_at_its_time(mock_topic, log, ingest, key):
    mock_topic.add(0, trips(2))
    mock_topic.put(0, None, key=key, timestamp=(AT + 60) * 1_000)
    finish(ingest(mock_topic.source(cdc="upsert")))
    (deletion,) = [record for record in held(log) if record[DELETED]]
    assert (deletion["rider"], deletion["at"]) == ("rider1", datetime.fromtimestamp(AT + 60, UTC))
    assert log.dead.newest(ref(TRIP), PARTITIONS) == []


def test_a_message_without_a_value_and_without_a_key_deletes_nothing(mock_topic, log, ingest):
    mock_topic.put(0, None)
    finish(ingest(mock_topic.source(cdc="upsert")))
    (stored,) = log.dead.newest(ref(TRIP), PARTITIONS)
    assert "without a key" in stored.letter.message


# Schemas.


@pytest.fixture
def registry() -> Iterator[HttpService]:
    with http_service() as service:
        yield service


def register(registry: HttpService, schema_id: int, schema: str, kind: str = "AVRO", references=()) -> None:
    """A schema by its id, and as the only version of the subject ``subject-<id>``."""
    body = {"schema": schema, "references": list(references)}
    # The type is left out where it is Avro.
    body |= {} if kind == "AVRO" else {"schemaType": kind}
    registry.answers[f"GET /schemas/ids/{schema_id}"] = body
    registry.answers[f"GET /subjects/subject-{schema_id}/versions/1"] = body | {"id": schema_id, "version": 1}


def reference(name: str, schema_id: int) -> dict:
    return {"name": name, "subject": f"subject-{schema_id}", "version": 1}


def framed(schema_id: int, body: bytes) -> bytes:
    return struct.pack(">bI", 0, schema_id) + body


def avro(schema_id: int, schema: dict, record: dict) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return framed(schema_id, out.getvalue())


def avro_record(name: str, **fields) -> dict:
    return {"type": "record", "name": name, "fields": [{"name": each, "type": kind} for each, kind in fields.items()]}


TRIP_AVRO = avro_record(
    "Trip",
    rider="string",
    at={"type": "long", "logicalType": "timestamp-micros"},
    day={"type": "int", "logicalType": "date"},
    fare={"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
    ticket={"type": "string", "logicalType": "uuid"},
    tags={"type": "array", "items": "string"},
    note=["null", "string"],
)
AVRO_TRIP = {
    "rider": "ann",
    "at": datetime(2026, 4, 1, 10, 30, 0, 123456, UTC),
    "day": date(2026, 4, 1),
    "fare": Decimal("12.50"),
    "ticket": UUID("12345678-1234-5678-1234-567812345678"),
    "tags": ["a", "b"],
    "note": None,
}


def test_avro_is_read_with_the_schema_it_was_written_with(mock_topic, registry, open_source):
    register(registry, 7, json.dumps(TRIP_AVRO))
    register(registry, 8, json.dumps(avro_record("Trip", rider="string")))
    written = [avro(7, TRIP_AVRO, AVRO_TRIP), avro(8, avro_record("Trip", rider="string"), {"rider": "bob"})]
    mock_topic.put(0, *written, *written)
    source = open_source(mock_topic.source(format="avro", schema_registry_url=registry.url))
    batch = whole(source.poll({}))
    assert batch.records == [AVRO_TRIP | {"ticket": str(AVRO_TRIP["ticket"])}, {"rider": "bob"}] * 2
    assert len(registry.asked) == 2  # a schema is fetched once


def test_avro_schemas_may_refer_to_others(mock_topic, registry, open_source):
    place = avro_record("Place", city="string")
    register(registry, 1, json.dumps(place))
    ride = avro_record("Ride", start="Place", end="Place")
    register(registry, 2, json.dumps(ride), references=[reference("Place", 1)])
    record = {"start": {"city": "Oslo"}, "end": {"city": "Bern"}}
    mock_topic.put(0, avro(2, avro_record("Ride", start=place, end="Place"), record))
    batch = whole(open_source(mock_topic.source(format="avro", schema_registry_url=registry.url)).poll({}))
    assert (batch.records, batch.malformed) == ([record], ())


def test_avro_that_cannot_be_read_costs_one_record(mock_topic, registry, open_source):
    register(registry, 7, json.dumps(TRIP_AVRO))
    register(registry, 8, '"string"')
    register(registry, 9, "message", kind="PROTOBUF")
    registry.answers["GET /schemas/ids/10"] = (404, {"error_code": 40403, "message": "Schema not found"})
    good = avro(7, TRIP_AVRO, AVRO_TRIP)
    bad = [b'{"n":1}', b"\0\0", good[:9], good + b"x", framed(8, b"\4hi"), framed(9, b""), framed(10, b"")]
    mock_topic.put(0, *bad, good)
    batch = whole(
        open_source(mock_topic.source(format="avro", schema_registry_url=registry.url), batch_rows=100).poll({})
    )
    assert batch.sequence.tolist() == [len(bad)]
    found = [bad.message.partition(": ")[2] for bad in batch.malformed]
    expected = [
        "begins with byte 123",
        "is shorter",
        "not Avro of schema 7",
        "1 bytes follow",
        "found str",
        "is PROTOBUF",
    ]
    assert all(part in message for part, message in zip([*expected, "does not know schema 10"], found, strict=True))


def trip_file() -> descriptor_pb2.FileDescriptorProto:
    """A file of two messages; the second has another inside, a map, an optional field and Google's own types."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="trip.proto", package="rides", syntax="proto3")
    file.dependency.extend(["google/protobuf/timestamp.proto", "google/protobuf/wrappers.proto", "place.proto"])
    file.message_type.add(name="Other")
    trip = file.message_type.add(name="Trip")
    trip.field.add(name="rider", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    trip.field.add(name="n", number=2, type=kinds.TYPE_INT64, label=kinds.LABEL_OPTIONAL)
    message = {"type": kinds.TYPE_MESSAGE, "label": kinds.LABEL_OPTIONAL}
    trip.field.add(name="at", number=3, type_name=".google.protobuf.Timestamp", **message)
    trip.field.add(name="fare", number=4, type_name=".google.protobuf.DoubleValue", **message)
    trip.field.add(name="start", number=5, type_name=".rides.Place", **message)
    trip.field.add(name="tags", number=6, type=kinds.TYPE_STRING, label=kinds.LABEL_REPEATED)
    trip.field.add(name="kind", number=7, type=kinds.TYPE_ENUM, type_name=".rides.Kind", label=kinds.LABEL_OPTIONAL)
    trip.nested_type.add(name="Inner").field.add(name="x", number=1, type=kinds.TYPE_INT32, label=kinds.LABEL_OPTIONAL)
    kind = file.enum_type.add(name="Kind")
    kind.value.add(name="CAR", number=0)
    kind.value.add(name="BIKE", number=1)
    return file


def place_file() -> descriptor_pb2.FileDescriptorProto:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="place.proto", package="rides", syntax="proto3")
    place = file.message_type.add(name="Place")
    place.field.add(name="city", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    return file


def serialized(file: descriptor_pb2.FileDescriptorProto) -> str:
    # A registry does not keep the file's name.
    unnamed = descriptor_pb2.FileDescriptorProto()
    unnamed.CopyFrom(file)
    unnamed.ClearField("name")
    return base64.b64encode(unnamed.SerializeToString()).decode()


@pytest.fixture
def trip_messages(registry):
    """The classes of the messages, registered as schema 2, which refers to schema 1."""
    register(registry, 1, serialized(place_file()), "PROTOBUF")
    register(registry, 2, serialized(trip_file()), "PROTOBUF", [reference("place.proto", 1)])
    pool = descriptor_pool.DescriptorPool()
    for needed in (timestamp_pb2, wrappers_pb2):
        pool.AddSerializedFile(needed.DESCRIPTOR.serialized_pb)
    pool.Add(place_file())
    pool.Add(trip_file())
    return message_factory.GetMessageClassesForFiles(["trip.proto", "place.proto"], pool)


def test_protobuf_is_read_by_the_place_of_its_message_in_the_registered_file(
    mock_topic, registry, trip_messages, open_source
):
    trip = trip_messages["rides.Trip"](rider="ann", n=2**53 + 1, tags=["a"], kind=1, start={"city": "Oslo"})
    trip.at.FromJsonString("2026-04-01T10:30:00.123456Z")
    trip.fare.value = 12.5
    inner = message_factory.GetMessageClass(trip.DESCRIPTOR.nested_types_by_name["Inner"])(x=-3)
    # One index, 1; none, which is the first message; two, 1 and 0.
    values = [b"\2\2" + trip.SerializeToString(), b"\2\2", b"\0", b"\4\2\0" + inner.SerializeToString()]
    mock_topic.put(0, *(framed(2, value) for value in values))
    source = open_source(mock_topic.source(format="protobuf", schema_registry_url=registry.url))
    batch = whole(source.poll({}))
    assert batch.malformed == ()
    filled, empty, other, nested = batch.records
    assert filled == {
        "rider": "ann",
        "n": 2**53 + 1,
        "at": "2026-04-01T10:30:00.123456Z",
        "fare": 12.5,
        "start": {"city": "Oslo"},
        "tags": ["a"],
        "kind": "BIKE",
    }
    assert empty == {"rider": "", "n": 0, "at": None, "fare": None, "start": None, "tags": [], "kind": "CAR"}
    assert (other, nested) == ({}, {"x": -3})
    assert all(request.parameters["format"] == "serialized" for request in registry.asked)


def test_protobuf_that_cannot_be_read_costs_one_record(mock_topic, registry, trip_messages, open_source):
    register(registry, 3, 'syntax = "proto3";', "PROTOBUF")
    register(registry, 4, serialized(trip_file()), "PROTOBUF")  # without its reference
    values = [(2, b"\2\2\x0a\x7f"), (2, b"\2\x0a"), (2, b""), (2, b"\x80"), (3, b"\0"), (4, b"\0")]
    mock_topic.put(0, *(framed(schema_id, value) for schema_id, value in values), framed(2, b"\0"))
    source = open_source(mock_topic.source(format="protobuf", schema_registry_url=registry.url), batch_rows=100)
    batch = whole(source.poll({}))
    assert batch.sequence.tolist() == [len(values)]
    found = [bad.message.partition(": ")[2] for bad in batch.malformed]
    expected = ["not Protobuf of rides.Trip", "no message at [5]", "ends within", "ends within"]
    expected += ["schema 3 is not one this reader takes", "neither a registered reference"]
    assert all(part in message for part, message in zip(expected, found, strict=True))


def test_a_registry_that_fails_costs_no_record_and_those_before_it_come(mock_topic, registry, open_source):
    small = avro_record("Trip", n="int")
    register(registry, 1, json.dumps(small))
    registry.answers["GET /schemas/ids/2"] = (503, {"error_code": 50301})
    mock_topic.put(0, avro(1, small, {"n": 0}), avro(2, small, {"n": 1}), avro(1, small, {"n": 2}))
    mock_topic.put(1, avro(1, small, {"n": 3}))
    address = registry.url.replace("http://", "http://me:hunter2@")
    source = open_source(mock_topic.source(format="avro", schema_registry_url=address), batch_rows=100)
    polled = []
    with pytest.raises(SourceError, match=rf"{registry.url}\S* answers 503 when asked for schema 2; ") as failed:  # noqa: PT012
        for batch in source.poll({}):
            polled.append(batch)  # noqa: PERF402  # what came before the error counts
    assert "hunter2" not in str(failed.value)
    assert {request.headers["Authorization"] for request in registry.asked} == {"Basic bWU6aHVudGVyMg=="}
    assert numbers(polled) == [0, 3]
    register(registry, 2, json.dumps(small))
    assert numbers(list(source.poll(position(polled)))) == [1, 2]


def test_a_server_that_is_no_registry_makes_no_dead_letters(mock_topic, registry, open_source):
    mock_topic.put(0, framed(1, b"\0"))  # the stand-in answers a 404 that is not the registry's own
    source = open_source(mock_topic.source(format="avro", schema_registry_url=registry.url))
    with pytest.raises(SourceError, match="answers 404 and no schema"):
        list(source.poll({}))


def test_a_deletions_key_may_have_a_schema(mock_topic, registry, log, ingest):
    key = avro_record("Key", rider="string")
    register(registry, 1, json.dumps(key))
    mock_topic.put(0, None, key=avro(1, key, {"rider": "rider1"}), timestamp=AT * 1_000)
    finish(ingest(mock_topic.source(cdc="upsert", format="avro", schema_registry_url=registry.url)))
    (deletion,) = held(log)
    assert (deletion["rider"], deletion[DELETED]) == ("rider1", True)
