"""Kinesis: the shards of a stream, parents before their children.

A stream of ours is a shard, ``<stream>/<shard id>``. It is *named*: a record's name is its Kinesis sequence number, so
that it is the same record for ever, also when others before it have expired (a number counted here would shift). A
mark's token is

    012<number>     the name of the record read last: the number's length, then the number, so that names sort
    012<number>!    the shard is closed and read to its end; ``!`` alone: it held nothing
    #at:<µs>        nothing read yet: begins with what arrived then; ``#trim``: with the oldest record held

The last form belongs to ``<stream>/begin``: what ``init_position`` means is decided at the first poll and kept before
any record is read. Every shard never heard of begins there: the first ones, and the children of a resharding, all of
whose records are younger. Settings:

    stream_arn     the stream
    region         default us-east-1
    role_arn       a role to be assumed, and again before its credentials end
    endpoint_url   another address of Kinesis and STS
    init_position  ``latest`` (default), ``trim_horizon``, or an ISO 8601 instant
    format         json: one JSON object per Kinesis record
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import boto3
import botocore.session
import msgspec
from botocore.config import Config
from botocore.credentials import CredentialProvider, DeferredRefreshableCredentials
from botocore.exceptions import BotoCoreError, ClientError

from featurelib.clock import Clock, Instant, parse_instant, to_datetime
from featurelib.connectors.contract import NO_SEQUENCE, Malformed, Position, SourceBatch
from featurelib.connectors.credentials import Setting, resolve
from featurelib.definitions import SourceDef
from featurelib.engine.records import Mark
from featurelib.errors import InvalidTimestamp, SourceError

BEGIN = "begin"
"""The stream whose mark keeps what ``init_position`` meant; shard ids never look like it."""

# Every id the service gives a shard begins so.
_SHARD_IDS = "shardId-"
_TRIM_HORIZON, _AT = "#trim", "#at:"
# Sorts after the beginnings and before every name.
_BELOW_ALL = "/"
_END = "!"
# A shard answers five reads a second, for all who read it; four leave room for one look by a person.
_SPACING_S = 0.25
# The service's limit per answer; it also ends an answer at 10 MiB, which bounds what is held in memory.
_RECORDS_PER_ANSWER = 10_000
_LISTED_FOR_US = 10_000_000
_MOST_PASSES_OUT = 32
_SHOWN_CHARACTERS = 2_000
# The first bytes of a record into which the Kinesis Producer Library packed several.
_AGGREGATED = b"\xf3\x89\x9a\xc2"
_THROTTLED = frozenset(
    {
        "ProvisionedThroughputExceededException",
        "LimitExceededException",
        "ThrottlingException",
        "KMSThrottlingException",
    }
)
_DRIVER_ERRORS = (BotoCoreError, ClientError)


class _Shard(NamedTuple):
    id: str
    parents: tuple[str, ...]
    closed: bool


class _Iterator(NamedTuple):
    """Where the service goes on reading a shard.

    ``resumed``: the record read last must come once more at first. ``lost``: what is to be said with what comes next.
    """

    id: str
    token: str
    resumed: bool = False
    lost: str = ""


class _Answer(NamedTuple):
    """Records that are new, whether more are there now, whether there will never be more."""

    records: list[tuple[str, bytes]]
    behind: bool
    ended: bool
    notices: tuple[str, ...]


class KinesisStream:
    """Reads all shards of one stream. Iterators and the list of shards are hints that may be lost at any time."""

    def __init__(self, source: SourceDef, batch_rows: int, clock: Clock) -> None:
        """Checks the settings; connects at the first poll.

        Raises:
            SourceError: a setting is missing or cannot be.
        """
        config = source.connector.config
        self._what = f"kinesis source of {source.dataset}"
        self._arn = _text(config, "stream_arn")
        if not self._arn.startswith("arn:"):
            raise SourceError(f"{self._what}: stream_arn is {self._arn!r}; expected arn:aws:kinesis:<region>:…")
        self._name = self._arn.rpartition("/")[2]
        if _text(config, "format") not in {"", "json"}:
            raise SourceError(f"{self._what}: format is {_text(config, 'format')!r}; only json is read")
        self._begin = _beginning(_text(config, "init_position") or "latest", self._what)
        self._client = _client(config, self._what)
        self._batch_rows = batch_rows
        self._clock = clock
        self._closing = threading.Event()
        self._polled = False
        self._iterators: dict[str, _Iterator] = {}
        self._shards: list[_Shard] = []
        self._listed_at: Instant | None = None
        self._out: dict[str, tuple[int, int]] = {}

    def poll(self, position: Position) -> Iterator[SourceBatch]:
        """What is new in every shard; a shard whose parents are not read to their end waits for them.

        Raises:
            SourceError: after all other shards were read; names each shard that could not be, or the stream.
        """
        # Shards of all streams have the same ids: without its name, another stream would go on where this one was.
        prefix = f"{self._name}/"
        mine = {s.removeprefix(prefix): mark.token for s, mark in position.items() if s.startswith(prefix)}
        for batch in self._poll(mine):
            yield batch._replace(stream=prefix + batch.stream)

    def _poll(self, tokens: dict[str, str]) -> Iterator[SourceBatch]:
        """The same, with streams and tokens by shard."""
        if BEGIN not in tokens:
            tokens[BEGIN] = self._begin(self._clock)
            yield SourceBatch(BEGIN, NO_SEQUENCE, [], Mark(0, tokens[BEGIN]))
        failures: dict[str, str] = {}
        more = True
        while more and not self._closing.is_set():
            self._pause()
            yield from self._expired(tokens)
            more = False
            for shard in self._ready(tokens, failures):
                more |= yield from self._read(shard, tokens, failures)
        if failures:
            raise SourceError("; ".join(f"{self._what}: {shard}: {why}" for shard, why in failures.items()))

    def close(self) -> None:
        """Give the connections back; a poll under way ends."""
        self._closing.set()
        self._client.close()

    def _pause(self) -> None:
        """Keep the distance between two passes over the shards; this is also the wait for records to come."""
        if self._polled:
            self._closing.wait(_SPACING_S)
        self._polled = True

    def _ready(self, tokens: Mapping[str, str], failures: Mapping[str, str]) -> list[_Shard]:
        """Shards that are not finished, whose parents are (or are forgotten by the service), as they are listed."""
        listed = {shard.id for shard in self._shards}
        return [
            shard
            for shard in self._shards
            if not tokens.get(shard.id, "").endswith(_END)
            and shard.id not in failures
            and all(tokens.get(parent, "").endswith(_END) for parent in shard.parents if parent in listed)
        ]

    def _expired(self, tokens: dict[str, str]) -> Iterator[SourceBatch]:
        """Look what shards there are; those the service forgot before their end was seen are finished, and said."""
        if not self._list():
            return
        listed = {shard.id for shard in self._shards}
        for stream in sorted(set(tokens) - listed):
            # Others are what a source of another kind left in the dataset's log.
            if stream.startswith(_SHARD_IDS) and not tokens[stream].endswith(_END):
                notice = (
                    f"{self._what}: {stream} has expired before it was read to its end: what it held after "
                    f"{_shown(tokens[stream])} was lost"
                )
                yield self._end(stream, tokens, (notice,))

    def _list(self) -> bool:
        now = self._clock.now()
        if self._listed_at is not None and 0 <= now - self._listed_at < _LISTED_FOR_US:
            return False
        try:
            pages = list(self._client.get_paginator("list_shards").paginate(StreamARN=self._arn))
        except _DRIVER_ERRORS as error:
            if _throttled(error) and self._shards:
                return False
            raise SourceError(f"{self._what}: the shards of {self._arn} could not be listed: {error}") from error
        self._shards = [_shard(each) for page in pages for each in page["Shards"]]
        self._listed_at = now
        return True

    def _read(
        self, shard: _Shard, tokens: dict[str, str], failures: dict[str, str]
    ) -> Generator[SourceBatch, None, bool]:
        """One answer of a shard as batches; returns whether to ask again at once."""
        if self._sits_out(shard.id):
            return False
        try:
            answer = self._ask(shard, tokens)
        except _DRIVER_ERRORS as error:
            if _throttled(error):
                self._throttle(shard.id)
            else:
                failures[shard.id] = str(error)
                self._iterators.pop(shard.id, None)
            return False
        self._out.pop(shard.id, None)
        yield from self._batches(shard.id, answer, tokens)
        if answer.ended:
            yield self._end(shard.id, tokens, () if answer.records else answer.notices)
            self._listed_at = None
        return bool(answer.records) or answer.behind or answer.ended

    def _sits_out(self, shard: str) -> bool:
        left, length = self._out.get(shard, (0, 0))
        if left:
            self._out[shard] = (left - 1, length)
        return left > 0

    def _throttle(self, shard: str) -> None:
        """Ask a shard that was asked too often at every second pass, then at every fourth, and so on."""
        _, length = self._out.get(shard, (0, 0))
        length = min(max(1, 2 * length), _MOST_PASSES_OUT)
        self._out[shard] = (length, length)

    def _ask(self, shard: _Shard, tokens: Mapping[str, str]) -> _Answer:
        token = tokens.get(shard.id, "")
        place = self._iterators.get(shard.id)
        if place is None or place.token != token:
            place = self._open(shard.id, tokens)
        try:
            found = self._records(place)
        except ClientError as error:
            if _code(error) != "ExpiredIteratorException":  # it lives for five minutes
                raise
            place = self._open(shard.id, tokens)
            found = self._records(place)
        given = [(_name(record["SequenceNumber"]), record["Data"]) for record in found["Records"]]
        lost = place.lost
        if place.resumed and given and given[0][0] > token:
            lost = f"the record read last, {_shown(token)}, has expired"
        records = [(name, data) for name, data in given if name > token]
        following = found.get("NextShardIterator") or ""
        behind = found.get("MillisBehindLatest", 0) > 0
        ended = not following or (shard.closed and not given and not behind)
        reached = records[-1][0] if records else token
        self._iterators[shard.id] = _Iterator(following, reached, place.resumed and not given, "" if records else lost)
        notice = f"{self._what}: {shard.id}: {lost}: records after it may be lost; reading goes on with the oldest held"
        return _Answer(records, behind, ended, (notice,) if lost else ())

    def _records(self, place: _Iterator) -> Any:
        return self._client.get_records(StreamARN=self._arn, ShardIterator=place.id, Limit=_RECORDS_PER_ANSWER)

    def _open(self, shard: str, tokens: Mapping[str, str]) -> _Iterator:
        """An iterator at a shard's place; at its oldest record where the service does not know the place any more."""
        token = tokens.get(shard, "")
        try:
            return _Iterator(self._iterator(shard, _start(token or tokens[BEGIN])), token, resumed=bool(token))
        except ClientError as error:
            if not token or _code(error) != "InvalidArgumentException":
                raise
        lost = f"the service does not know {_shown(token)}, the record read last"
        return _Iterator(self._iterator(shard, _start(_TRIM_HORIZON)), token, lost=lost)

    def _iterator(self, shard: str, start: Mapping[str, Any]) -> str:
        answer = self._client.get_shard_iterator(StreamARN=self._arn, ShardId=shard, **start)
        return str(answer["ShardIterator"])

    def _batches(self, shard: str, answer: _Answer, tokens: dict[str, str]) -> Iterator[SourceBatch]:
        notices = answer.notices
        for first in range(0, len(answer.records), self._batch_rows):
            taken = answer.records[first : first + self._batch_rows]
            floor, tokens[shard] = tokens.get(shard, _BELOW_ALL), taken[-1][0]
            yield _batch(shard, taken, floor)._replace(notices=notices)
            notices = ()

    def _end(self, shard: str, tokens: dict[str, str], notices: tuple[str, ...]) -> SourceBatch:
        floor = tokens.get(shard, _BELOW_ALL)
        tokens[shard] = tokens.get(shard, "") + _END
        self._iterators.pop(shard, None)
        return SourceBatch(shard, NO_SEQUENCE, [], Mark(0, tokens[shard]), floor=floor, notices=notices)


def _batch(shard: str, taken: Sequence[tuple[str, bytes]], floor: str) -> SourceBatch:
    records: list[dict[str, Any]] = []
    names: list[str] = []
    malformed: list[Malformed] = []
    for name, data in taken:
        value = _json(data)
        if isinstance(value, dict):
            records.append(value)
            names.append(name)
        else:
            text = data[:_SHOWN_CHARACTERS].decode(errors="replace")
            malformed.append(Malformed(0, text, f"{shard} record {_shown(name)}: {value}", name))
    through = taken[-1][0]
    return SourceBatch(
        shard,
        NO_SEQUENCE,
        records,
        Mark(0, through),
        tuple(malformed),
        cursor=f"{shard}:{_shown(through)}",
        names=names,
        floor=floor,
    )


def _json(data: bytes) -> dict[str, Any] | str:
    """The JSON object, or why it is none."""
    if data.startswith(_AGGREGATED):
        return "an aggregate of the Kinesis Producer Library; switch aggregation off in the producer"
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return str(error)
    return value if isinstance(value, dict) else "not a JSON object"


def _shard(listed: Mapping[str, Any]) -> _Shard:
    parents = (listed.get("ParentShardId"), listed.get("AdjacentParentShardId"))
    closed = "EndingSequenceNumber" in listed["SequenceNumberRange"]
    return _Shard(listed["ShardId"], tuple(parent for parent in parents if parent), closed)


def _name(number: str) -> str:
    return f"{len(number):03d}{number}"


def _shown(token: str) -> str:
    """What people know the place by: the sequence number, or where nothing was read the beginning."""
    return token[3:].removesuffix(_END) if token[:1].isdigit() else "the beginning"


def _start(token: str) -> dict[str, Any]:
    """Where an iterator begins. At the record read last, not after it: only then is it seen that it has expired."""
    if token == _TRIM_HORIZON:
        return {"ShardIteratorType": "TRIM_HORIZON"}
    if token.startswith(_AT):
        return {"ShardIteratorType": "AT_TIMESTAMP", "Timestamp": to_datetime(int(token.removeprefix(_AT)))}
    return {"ShardIteratorType": "AT_SEQUENCE_NUMBER", "StartingSequenceNumber": token[3:]}


def _beginning(text: str, what: str) -> Callable[[Clock], str]:
    """What ``init_position`` means at a given time, as a token."""
    if text == "latest":
        return lambda clock: f"{_AT}{clock.now():020d}"
    if text == "trim_horizon":
        return lambda _: _TRIM_HORIZON
    try:
        instant = parse_instant(text, "init_position")
    except InvalidTimestamp as error:
        message = f"{what}: init_position is {text!r}; expected latest, trim_horizon or an ISO 8601 instant"
        raise SourceError(message) from error
    return lambda _: f"{_AT}{instant:020d}"


def _code(error: BotoCoreError | ClientError) -> str:
    return str(error.response["Error"]["Code"]) if isinstance(error, ClientError) else ""


def _throttled(error: BotoCoreError | ClientError) -> bool:
    return _code(error) in _THROTTLED


class _Role(CredentialProvider):  # type: ignore[misc]  # the driver has no types
    """Credentials of a role, taken anew shortly before they end."""

    METHOD = "role-of-source"
    CANONICAL_NAME = METHOD

    def __init__(self, sts: Any, role: str, name: str) -> None:
        super().__init__()
        self._sts, self._role, self._name = sts, role, name

    def load(self) -> DeferredRefreshableCredentials:
        """What the driver asks first; the role itself is taken at the first request."""
        return DeferredRefreshableCredentials(self._taken, self.METHOD)

    def _taken(self) -> dict[str, str]:
        given = self._sts.assume_role(RoleArn=self._role, RoleSessionName=self._name)["Credentials"]
        return {
            "access_key": given["AccessKeyId"],
            "secret_key": given["SecretAccessKey"],
            "token": given["SessionToken"],
            "expiry_time": given["Expiration"].isoformat(),
        }


def _client(config: Mapping[str, Setting], what: str) -> Any:
    """A client of Kinesis in the source's region, as the source's role where it names one."""
    role = resolve(config.get("role_arn"), f"{what}: role_arn")
    # An answer is asked for again by the next pass or poll, not by the driver: its waits would stop all shards.
    options = {
        "region_name": _text(config, "region") or "us-east-1",
        "endpoint_url": _text(config, "endpoint_url") or None,
        "config": Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 1}),
    }
    try:
        session = botocore.session.get_session()
        if role:
            sts = boto3.Session().client("sts", **options)
            session.get_component("credential_provider").providers.insert(0, _Role(sts, role, "thyme"))
        return boto3.Session(botocore_session=session).client("kinesis", **options)
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        raise SourceError(f"{what}: {error}") from error


def _text(config: Mapping[str, Setting], name: str) -> str:
    value = config.get(name)
    return value if isinstance(value, str) else ""
