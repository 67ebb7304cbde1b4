"""The brokers of a Kafka cluster, as one topic's reader needs them: what is there, messages from an offset on, errors.

Partitions are assigned by hand and nothing is committed: the consumer group named to librdkafka is never joined.
"""

# ruff: noqa: SLF001  # librdkafka's own error codes begin with an underscore

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import confluent_kafka
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from featurelib.errors import SourceError

# How long a broker may take to answer a question about the topic.
_ANSWER_SECONDS = 5.0
# How long it may take at first, before it is looked whether the user is refused, and how many times as long after each
# look. So a poll that finds no broker takes 0.5, 2 and 5 seconds.
_FIRST_ANSWER_SECONDS, _MORE_PATIENT = 0.5, 4
# How long a broker may hold back the answer to a fetch when it has nothing. After a partition's end was reached, or an
# assignment was changed, so much passes before the next is fetched.
_FETCH_WAIT_MS = 100
# A broker that is back is connected to within this; librdkafka's own ten seconds would outlast the patience of a poll.
_RECONNECT_MS = 1_000
# Codes that say only that nothing came.
_UNSPECIFIC = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN, KafkaError._WAIT_CACHE)
_REFUSALS = (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED, KafkaError.UNSUPPORTED_SASL_MECHANISM)
_REACHABLE = "that they run and can be reached from here"
_ACCESS = "which rights the user has on the topic"
_HINTS = {
    KafkaError.UNKNOWN_TOPIC_OR_PART: "the topic's name; reading does not create it",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: _ACCESS,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: _ACCESS,
    KafkaError._SSL: "security_protocol and ssl_ca_location",
}

# What librdkafka says of its connections, several lines a second while a broker is away, ends here and not on stderr:
# what matters of it is in the SourceError. A handler added to this logger shows it all.
_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())
_log.propagate = False


class Span(NamedTuple):
    """What a partition holds: offsets from ``earliest`` up to, without, ``end``."""

    earliest: int
    end: int


class Message(NamedTuple):
    """A message, or that a partition has no more before ``offset``. The timestamp is in ms; ``None``: it has none."""

    partition: int
    offset: int
    is_end: bool
    value: bytes | None
    key: bytes | None
    timestamp_ms: int | None


class Fetched(NamedTuple):
    """Messages in the order of each partition, and the partitions that failed, with why."""

    messages: list[Message]
    failures: dict[int, str]


@dataclass(frozen=True)
class Access:
    """How to reach the brokers: ``settings`` are librdkafka's names for the rest. ``password`` is never shown."""

    brokers: str
    group_id: str
    settings: Mapping[str, str]
    user: str = ""
    password: str = field(default="", repr=False)


class Brokers:
    """A connection to the cluster that reads one topic. ``what`` names the source in messages."""

    def __init__(self, topic: str, access: Access, what: str) -> None:
        self._topic = topic
        self._access = access
        self._what = what
        self._trouble: KafkaError | None = None
        settings = {
            "bootstrap.servers": access.brokers,
            "client.id": access.group_id,
            "group.id": access.group_id,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "allow.auto.create.topics": False,
            "fetch.wait.max.ms": _FETCH_WAIT_MS,
            "reconnect.backoff.max.ms": _RECONNECT_MS,
            "error_cb": self._hear,
            **access.settings,
            **({"sasl.username": access.user, "sasl.password": access.password} if access.user else {}),
        }
        try:
            self._consumer = confluent_kafka.Consumer(settings, logger=_log)
            # A broker answers a connection's requests in order: a question would wait behind a fetch that waits.
            self._asking = confluent_kafka.Consumer(settings, logger=_log)
        except KafkaException as error:
            cause = self._without_secrets(_cause(error).str())
            raise SourceError(f"{what}: librdkafka refuses its settings: {cause}") from None

    def forget_trouble(self) -> None:
        """Begin anew: what the connections said before is no longer a reason to give up."""
        self._trouble = None

    def in_trouble(self) -> bool:
        """Whether the connections said that something is wrong since it was forgotten."""
        return self._trouble is not None

    def spans(self) -> tuple[dict[int, Span], list[str]]:
        """What each partition of the topic holds now, and of which it could not be found out, with why.

        Raises:
            SourceError: the brokers do not answer or refuse the user, or there is no such topic.
        """
        partitions = self._partitions(self._asking)
        try:
            earliest = self._offsets(partitions, confluent_kafka.OFFSET_BEGINNING)
            ends = self._offsets(partitions, confluent_kafka.OFFSET_END)
        except KafkaException as error:
            raise SourceError(self.failure(f"did not say what {self._topic} holds", _cause(error))) from error
        failures = {
            each.partition: self.failure(f"did not say what {self._topic}/{each.partition} holds", each.error)
            for each in (*earliest.values(), *ends.values())
            if each.error is not None
        }
        known = [partition for partition in partitions if partition not in failures]
        return {each: Span(earliest[each].offset, ends[each].offset) for each in known}, list(failures.values())

    def assign(self, offsets: Mapping[int, int]) -> None:
        """Fetch these partitions too, from these offsets on.

        Raises:
            SourceError: the brokers do not answer; nothing was assigned.
        """
        if offsets:
            # A connection that does not know a partition's leader yet looks for it once a second only.
            self._partitions(self._consumer)
            self._consumer.incremental_assign([TopicPartition(self._topic, p, at) for p, at in offsets.items()])

    def unassign(self, partitions: Sequence[int]) -> None:
        """Fetch these partitions no more; what was fetched of them is forgotten."""
        if partitions:
            self._consumer.incremental_unassign([TopicPartition(self._topic, each) for each in partitions])

    def fetch(self, count: int, seconds: float) -> Fetched:
        """The next messages; fewer than ``count`` after ``seconds``.

        Raises:
            SourceError: the connection cannot be used any more.
        """
        try:
            found = self._consumer.consume(count, seconds)
        except KafkaException as error:
            raise SourceError(self.failure("gave no records", _cause(error))) from error
        fetched = Fetched([], {})
        for each in found:
            fault, partition = each.error(), each.partition()
            if partition is None or each.topic() is None:
                self._hear_of_all(fault)
            elif fault is None or fault.code() == KafkaError._PARTITION_EOF:
                fetched.messages.append(_message(each, partition))
            else:
                fetched.failures[partition] = self.failure(f"gave no record of {self._topic}/{partition}", fault)
        return fetched

    def close(self) -> None:
        """Leave the brokers."""
        self._asking.close()
        self._consumer.close()

    def failure(self, what: str, cause: KafkaError | None = None) -> str:
        """What went wrong, for people: with what the connections said, where that says more than ``cause``."""
        heard = self._trouble
        if heard is not None and (cause is None or _is_refusal(heard) or cause.code() in _UNSPECIFIC):
            cause = heard
        text = self._without_secrets(cause.str()) if cause is not None else "no answer"
        brokers, user = self._access.brokers, self._access.user
        if cause is not None and _is_refusal(cause):
            hint = "check sasl_username, sasl_password, sasl_mechanism and security_protocol"
            return f"{self._what}: the brokers {brokers} refuse to let user {user!r} in: {text}; {hint}"
        hint = _HINTS.get(cause.code(), _REACHABLE) if cause is not None else _REACHABLE
        return f"{self._what}: the brokers {brokers} {what}: {text}; check {hint}"

    def _partitions(self, connection: confluent_kafka.Consumer) -> list[int]:
        """The partitions of the topic, as a connection hears of them.

        A question goes unanswered where the user is refused, and librdkafka waits for all of its time: so short ones
        are asked before, and a refusal is told when it is heard of.
        """
        patience = _FIRST_ANSWER_SECONDS
        while True:
            try:
                found = connection.list_topics(self._topic, timeout=min(patience, _ANSWER_SECONDS)).topics[self._topic]
                break
            except KafkaException as error:
                self._asking.poll(0)  # has the connections say why; the other would hand out messages
                refused = self._trouble is not None and _is_refusal(self._trouble)
                if refused or patience >= _ANSWER_SECONDS or _cause(error).code() not in _UNSPECIFIC:
                    raise SourceError(self.failure("do not answer", _cause(error))) from error
                patience *= _MORE_PATIENT
        if found.error is not None:
            raise SourceError(self.failure(f"give nothing of topic {self._topic!r}", found.error))
        return sorted(found.partitions)

    def _offsets(self, partitions: Sequence[int], which: int) -> dict[int, TopicPartition]:
        """The first or the next offset of every partition, in one request per broker.

        The request is that for offsets by time; these two take the place of a time in Kafka's protocol (ListOffsets).
        """
        asked = [TopicPartition(self._topic, partition, which) for partition in partitions]
        return {each.partition: each for each in self._asking.offsets_for_times(asked, timeout=_ANSWER_SECONDS)}

    def _hear(self, error: KafkaError) -> None:
        """What the connections say beside the answers; a refusal says more than what follows from it."""
        if self._trouble is None or not _is_refusal(self._trouble):
            self._trouble = error

    def _hear_of_all(self, error: KafkaError | None) -> None:
        """What is said of no partition in particular. That the group is refused means nothing: it is not used."""
        if error is not None and error.code() != KafkaError.GROUP_AUTHORIZATION_FAILED:
            self._hear(error)

    def _without_secrets(self, text: str) -> str:
        return text.replace(self._access.password, "***") if self._access.password else text


def _message(message: confluent_kafka.Message, partition: int) -> Message:
    offset, (kind, at) = message.offset(), message.timestamp()
    assert offset is not None
    timed = kind != confluent_kafka.TIMESTAMP_NOT_AVAILABLE
    return Message(
        partition,
        offset,
        message.error() is not None,
        _bytes(message.value()),
        _bytes(message.key()),
        at if timed else None,
    )


def _bytes(given: bytes | str | None) -> bytes | None:
    return given.encode() if isinstance(given, str) else given


def _is_refusal(error: KafkaError) -> bool:
    return error.code() in _REFUSALS


def _cause(error: KafkaException) -> KafkaError:
    cause = error.args[0]
    assert isinstance(cause, KafkaError)
    return cause
