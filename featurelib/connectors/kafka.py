"""Kafka: the partitions of a topic, each a numbered stream whose sequences are the topic's offsets.

How far a partition was read is kept with the records, in the dataset's log, and never at the brokers: no consumer
group is joined and nothing is committed, so a topic may feed any number of datasets. A poll looks up the topic's
partitions, goes where the log's position says, and reads up to where each ended when the poll began. Only what
committed transactions wrote is read; offsets that hold nothing (compaction, transaction markers) are passed over.
Settings:

    topic                the topic
    brokers              host:port of some brokers, separated by commas
    security_protocol    PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL
    sasl_mechanism       PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512, where the protocol is a SASL one
    sasl_username, sasl_password
    ssl_ca_location      file of the authority that signed the brokers' certificates; default: those of the machine
    group_id             name shown to the brokers and used in their access rules
    format               json, avro or protobuf
    schema_registry_url  of avro and protobuf; may hold user:password@

A message without a value (a tombstone) takes its key away in an ``upsert`` source; Debezium sends one after each
delete, which was said already, so it is passed over in a ``debezium`` source; elsewhere it is malformed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from featurelib.clock import Clock, to_datetime
from featurelib.connectors.brokers import Access, Brokers, Message, Span
from featurelib.connectors.contract import NO_SEQUENCE, Malformed, Position, SourceBatch
from featurelib.connectors.credentials import Setting, resolve
from featurelib.connectors.messages import Decode, NotARecordError, decode_json, decoder, is_framed
from featurelib.connectors.schema_registry import SchemaRegistry
from featurelib.definitions import Cdc, SourceDef
from featurelib.engine.cdc import KEY
from featurelib.engine.records import DELETED, TIME, Mark
from featurelib.errors import SourceError

_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_FORMATS = ("json", "avro", "protobuf")
# How long a poll that finds nothing waits for a first record (the contract's half a second).
_WAIT_SECONDS = 0.5
_TURN_SECONDS = 0.1
# Turns without any message, though offsets lie ahead, after which the brokers count as failing: ten seconds.
_IDLE_TURNS = 100
# The same where the connections said that something is wrong: three seconds, within which they are tried again.
_IDLE_TURNS_IN_TROUBLE = 30
# Turns after which a partition that said it has no more is believed, though it ends later (an open transaction).
_IDLE_TURNS_AT_END = 10
_SHOWN_BYTES = 2_000
_MILLI = 1_000


class _Reading:
    """How far one poll is, by partition: the next offset, and the end to be reached."""

    def __init__(self, following: dict[int, int], spans: Mapping[int, Span], failures: list[str]) -> None:
        self.following = following
        self.failures = failures
        self.empty_at: dict[int, int] = {}
        self.aim(spans)

    def aim(self, spans: Mapping[int, Span]) -> None:
        """Read up to where partitions end now."""
        self.ends = {p: spans[p].end if p in spans else offset for p, offset in self.following.items()}

    def behind(self) -> dict[int, int]:
        """How many offsets lie ahead, of each partition that is not at its end."""
        ahead = {partition: self.ends[partition] - offset for partition, offset in self.following.items()}
        return {partition: count for partition, count in ahead.items() if count > 0}

    def has_no_more(self) -> bool:
        """Whether every partition that is behind said that it has no more to give."""
        return all(self.empty_at.get(partition) == self.following[partition] for partition in self.behind())


class _Taken:
    """What consecutive messages of a partition say."""

    def __init__(self, following: int) -> None:
        self.following = following
        self.sequence: list[int] = []
        self.records: list[Mapping[str, Any]] = []
        self.malformed: list[Malformed] = []
        self.failure = ""

    def add(self, offset: int, record: Mapping[str, Any] | None) -> None:
        """A message's record; ``None`` for a message that says nothing."""
        self.following = offset + 1
        if record is not None:
            self.sequence.append(offset)
            self.records.append(record)

    def add_malformed(self, stream: str, message: Message, why: str) -> None:
        """A message that is no record."""
        self.following = message.offset + 1
        shown = (message.value or b"")[:_SHOWN_BYTES].decode(errors="backslashreplace")
        self.malformed.append(Malformed(message.offset, shown, f"offset {message.offset} of {stream}: {why}"))

    def batch(self, stream: str) -> SourceBatch:
        """All of it."""
        through = self.following - 1
        sequence = np.array(self.sequence, dtype=np.int64)
        cursor = f"{stream}:{through}"
        return SourceBatch(stream, sequence, self.records, Mark(through), tuple(self.malformed), cursor)


class KafkaTopic:
    """Reads the partitions of a topic. What it keeps between polls (connections, fetched messages) is no state."""

    def __init__(self, source: SourceDef, batch_rows: int, clock: Clock) -> None:
        settings = _Settings(source)
        self._what = settings.what
        self._topic = settings.required("topic")
        self._batch_rows = batch_rows
        self._registry = settings.registry(clock)
        self._read = _RecordReader(
            decoder(settings.text("format"), self._registry), source.cdc, framed=self._registry is not None
        )
        self._brokers = Brokers(self._topic, settings.access(), self._what)
        self._following: dict[int, int] = {}  # of each partition assigned: no message below this offset comes any more

    def poll(self, position: Position) -> Iterator[SourceBatch]:
        """New records of every partition, as they come, up to where each ended when the poll began.

        Raises:
            SourceError: the brokers or the schema registry do not answer or refuse the user, the topic does not exist,
                or a partition ends before its position. What can be read is given first.
        """
        self._brokers.forget_trouble()
        spans, failures = self._brokers.spans()
        following: dict[int, int] = {}
        for partition, span in sorted(spans.items()):
            mark = position.get(self._stream(partition))
            start = span.earliest if mark is None else mark.sequence + 1
            if start > span.end:
                failures.append(self._ends_before(partition, span, start))
                continue
            if start < span.earliest:
                yield self._lost(partition, start, span.earliest)
            following[partition] = max(start, span.earliest)
        reading = _Reading(following, spans, failures)
        self._assign(following)
        yield from self._everything(reading)
        if reading.failures:
            raise SourceError("; ".join(reading.failures))

    def close(self) -> None:
        """Leave the brokers and the schema registry."""
        self._brokers.close()
        if self._registry is not None:
            self._registry.close()

    def _everything(self, reading: _Reading) -> Iterator[SourceBatch]:
        if not reading.behind():
            first = self._first(reading)
            if not first:
                return
            yield from first
            spans, failures = self._brokers.spans()
            reading.failures += failures
            reading.aim(spans)
        idle = 0
        while (ahead := reading.behind()) and idle < _IDLE_TURNS:
            heard, batches = self._some(reading, min(self._batch_rows, sum(ahead.values())), _TURN_SECONDS)
            yield from batches
            idle = 0 if heard else idle + 1
            if idle >= _IDLE_TURNS_AT_END and reading.has_no_more():
                return
            if idle >= _IDLE_TURNS_IN_TROUBLE and self._brokers.in_trouble():
                break
        if reading.behind():
            partitions = ", ".join(self._stream(partition) for partition in sorted(reading.behind()))
            reading.failures.append(self._brokers.failure(f"gave no more records of {partitions}"))

    def _first(self, reading: _Reading) -> list[SourceBatch]:
        """Wait for a first message; that a partition has no more is heard once of each, and is none."""
        for _ in range(len(reading.following) + 1):
            heard, batches = self._some(reading, 1, _WAIT_SECONDS)
            if batches or not heard:
                return batches
        return []

    def _some(self, reading: _Reading, count: int, seconds: float) -> tuple[int, list[SourceBatch]]:
        """How many messages came, and a batch of them per partition. All of it counts as read before it is given."""
        fetched = self._brokers.fetch(count, seconds)
        groups: dict[int, list[Message]] = {}
        for message in fetched.messages:
            if message.partition in reading.following:
                groups.setdefault(message.partition, []).append(message)
        made = [self._batch(partition, messages, reading) for partition, messages in groups.items()]
        for partition, failure in fetched.failures.items():
            self._drop(partition, reading, failure)
        return len(fetched.messages), [batch for batch in made if batch is not None]

    def _batch(self, partition: int, messages: Sequence[Message], reading: _Reading) -> SourceBatch | None:
        before = reading.following[partition]
        stream, taken = self._stream(partition), _Taken(before)
        for message in messages:
            if message.is_end:
                reading.empty_at[partition] = message.offset
                taken.following = max(taken.following, message.offset)
                continue
            try:
                taken.add(message.offset, self._read(message))
            except NotARecordError as error:
                taken.add_malformed(stream, message, str(error))
            except SourceError as error:
                taken.failure = str(error)
                break
        reading.following[partition] = self._following[partition] = taken.following
        if taken.failure:
            self._drop(partition, reading, taken.failure)
        return taken.batch(stream) if taken.following > before else None

    # Where to read.

    def _assign(self, wanted: dict[int, int]) -> None:
        """Fetch from these offsets; of partitions that are there already what was fetched is kept."""
        self._unassign([partition for partition, offset in self._following.items() if wanted.get(partition) != offset])
        self._brokers.assign({partition: at for partition, at in wanted.items() if partition not in self._following})
        self._following = dict(wanted)

    def _unassign(self, partitions: Sequence[int]) -> None:
        self._brokers.unassign(partitions)
        for partition in partitions:
            del self._following[partition]

    def _drop(self, partition: int, reading: _Reading, failure: str) -> None:
        """Read no more of a partition in this poll."""
        reading.failures.append(failure)
        reading.following.pop(partition, None)
        self._unassign([partition] if partition in self._following else [])

    def _stream(self, partition: int) -> str:
        return f"{self._topic}/{partition}"

    def _lost(self, partition: int, start: int, earliest: int) -> SourceBatch:
        """What retention took before it was read: the position moves beyond it, and people hear of it."""
        stream, through = self._stream(partition), earliest - 1
        notice = (
            f"{stream}: {earliest - start} offsets ({start} to {through}) were deleted by the topic's retention before "
            "they were read; reading goes on with the oldest there is"
        )
        return SourceBatch(stream, NO_SEQUENCE, [], Mark(through), cursor=f"{stream}:{through}", notices=(notice,))

    def _ends_before(self, partition: int, span: Span, start: int) -> str:
        return (
            f"{self._what}: {self._stream(partition)} ends at offset {span.end}, but was read up to {start}: the topic "
            "was deleted and created anew, or has lost records; feed a new version of the dataset from it"
        )


class _RecordReader:
    """Messages to records."""

    def __init__(self, decode: Decode, cdc: Cdc, *, framed: bool) -> None:
        self._decode = decode
        self._cdc = cdc
        self._framed = framed

    def __call__(self, message: Message) -> Mapping[str, Any] | None:
        """The record of a message; ``None`` for one that says nothing.

        Raises:
            NotARecordError: the message is no record.
            SourceError: the schema registry does not answer.
        """
        if message.value is None:
            return self._deletion(message)
        record = self._decode(message.value)
        if not isinstance(record, dict):
            raise NotARecordError(f"expected an object, found {type(record).__name__}")
        return record

    def _deletion(self, message: Message) -> Mapping[str, Any] | None:
        if self._cdc == "debezium":
            return None
        if self._cdc == "append":
            raise NotARecordError("a message without a value deletes its key; declare cdc='upsert' to follow deletions")
        if not message.key:
            raise NotARecordError("a message without a value and without a key deletes nothing that has a name")
        if message.timestamp_ms is None:
            raise NotARecordError("a message without a value and without a timestamp does not say when its key ended")
        return {KEY: self._key(message.key), DELETED: True, TIME: to_datetime(message.timestamp_ms * _MILLI)}

    def _key(self, key: bytes) -> Any:
        """What a key's schema says it is, the fields of a JSON object, a JSON text; else its own text."""
        if self._framed and is_framed(key):
            return self._decode(key)
        if key[:1] in {b"{", b'"'}:
            return decode_json(key)
        try:
            return key.decode()
        except UnicodeDecodeError as error:
            raise NotARecordError(f"the key to delete is not text: {error}") from error


class _Settings:
    """The settings of a source, checked."""

    def __init__(self, source: SourceDef) -> None:
        self.what = f"kafka source of {source.dataset}"
        self._dataset = source.dataset
        self._config: Mapping[str, Setting] = source.connector.config

    def text(self, name: str) -> str:
        """A setting; empty when it is not there."""
        value = self._config.get(name)
        return value if isinstance(value, str) else ""

    def required(self, name: str) -> str:
        """A setting that must be there."""
        found = self.text(name)
        if not found:
            raise SourceError(f"{self.what}: {name} is required")
        return found

    def registry(self, clock: Clock) -> SchemaRegistry | None:
        """The schema registry of the formats that need one."""
        value_format = self._chosen("format", _FORMATS)
        if value_format == "json":
            return None
        url = self.required("schema_registry_url")
        return SchemaRegistry(url, self.what, clock, serialized=value_format == "protobuf")

    def access(self) -> Access:
        """How to reach the brokers."""
        protocol = self._chosen("security_protocol", _PROTOCOLS)
        group_id, authority = self.text("group_id") or f"thyme-{self._dataset}", self.text("ssl_ca_location")
        settings = {"security.protocol": protocol, **({"ssl.ca.location": authority} if authority else {})}
        if not protocol.startswith("SASL"):
            return Access(self.required("brokers"), group_id, settings)
        user = self.required("sasl_username")
        password = resolve(self._config.get("sasl_password"), f"{self.what}: sasl_password")
        if not password:
            raise SourceError(f"{self.what}: sasl_password is required where security_protocol is {protocol}")
        settings["sasl.mechanism"] = self._chosen("sasl_mechanism", _MECHANISMS)
        return Access(self.required("brokers"), group_id, settings, user, password)

    def _chosen(self, name: str, allowed: Sequence[str]) -> str:
        found = self.text(name) or allowed[0]
        if found not in allowed:
            raise SourceError(f"{self.what}: {name} is {found!r}; it must be one of {', '.join(allowed)}")
        return found
