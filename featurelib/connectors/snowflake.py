"""Snowflake tables and views, polled by a cursor column (featurelib/connectors/tables.py) over the SQL API v2.

A poll asks for the columns, counts the rows without a cursor value, and runs one SELECT, whose result Snowflake keeps
in partitions. Requests are signed with a key-pair JWT. Snowflake enforces no primary key, so names are of whole rows.
Settings: those of ``SnowflakeSource``; ``endpoint_url`` replaces ``https://<account>.snowflakecomputing.com``.

Names that Snowflake stores in upper case are lower case here: column ``RIDER`` is ``rider``. Timestamps are cut to
microseconds, what a VARIANT, OBJECT or ARRAY holds is read as JSON, BINARY is refused.

The forms of requests and results are those of Snowflake's documentation of its SQL API and of key-pair authentication.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from featurelib.clock import DAY, HOUR, SECOND, Clock, Instant
from featurelib.connectors.contract import Position, SourceBatch
from featurelib.connectors.credentials import resolve
from featurelib.connectors.rest import Busy, Rest, awaited, cut
from featurelib.connectors.tables import Bound, Kind, Row, Shape, Start, TablePolls, require
from featurelib.definitions import SourceDef
from featurelib.errors import SourceError

_STATEMENTS = "/api/v2/statements"
_STILL_RUNNING = 202
# Snowflake itself gives a statement up after this long, and so do we.
_STATEMENT_SECONDS = 900
_TOKEN_US = HOUR
_TOKEN_RENEWED_US = 50 * 60 * SECOND
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICRO = Decimal("0.000001")


class _Column(NamedTuple):
    stored: str
    name: str
    type: str
    scale: int


class _CursorType(NamedTuple):
    """How a column type serves as a cursor: expressions with ``{}`` for the quoted column."""

    kind: Kind
    bound: str = "?"
    readable: str = "{} IS NOT NULL"
    order: str = "{}"


_CURSOR_TYPES = {
    "fixed": _CursorType("number", "TO_NUMBER(?, 38, {scale})"),
    "real": _CursorType("number", "TO_DOUBLE(?)", "{0} NOT IN ('NaN'::FLOAT, 'inf'::FLOAT, '-inf'::FLOAT)"),
    "timestamp_ntz": _CursorType("instant", "TO_TIMESTAMP_NTZ(?)"),
    "timestamp_ltz": _CursorType("instant", "TO_TIMESTAMP_TZ(?)"),
    "timestamp_tz": _CursorType("instant", "TO_TIMESTAMP_TZ(?)"),
    "date": _CursorType("instant", "TO_DATE(?)"),
    "text": _CursorType("text", order="COLLATE({}, 'utf8')"),
}


class SnowflakeTable:
    """Reads what is new in one table."""

    def __init__(self, source: SourceDef, batch_rows: int, clock: Clock) -> None:
        config = source.connector.config
        what = require(source, "table", "account", "user")
        self._context = {
            name: str(config[name]) for name in ("database", "schema", "warehouse", "role") if config.get(name)
        }
        self._table = str(config["table"])
        path = ".".join(
            [*(self._context[name] for name in ("database", "schema") if name in self._context), self._table]
        )
        self._where = f"{what}: {path} in {config['account']}"
        self._cursor, self._batch_rows = source.cursor, batch_rows
        self._tokens = _Tokens(source, clock)
        host = f"https://{str(config['account']).replace('_', '-').lower()}.snowflakecomputing.com"
        self._rest = Rest(self._where, str(config.get("endpoint_url") or host))
        self._polls = TablePolls(self._where, path, source.cursor, config.get("overlap"))

    def poll(self, position: Position) -> Iterator[SourceBatch]:
        """What is new in the table at this instant, in the order of the cursor column.

        Raises:
            SourceError: Snowflake refused or did not answer, or there is no such table or column.
        """
        columns = self._columns()
        place = self._place(columns)
        column = columns[place]
        known = self._polls.cursor_type(_CURSOR_TYPES, column.name, column.type)
        start = self._polls.start(position, known.kind)
        shape = Shape([each.name for each in columns], place, known.kind, range(len(columns)))
        unread = self._unread(column, known)
        rows = self._run(*self._statement(columns, column, known, start))
        yield from self._polls.batches(start, shape, cut(_read(columns, rows), self._batch_rows), unread)

    def close(self) -> None:
        """Close the connections."""
        self._rest.close()

    def _columns(self) -> list[_Column]:
        statement = f"SELECT * FROM {_table_name(self._table)} LIMIT 0"  # noqa: S608  # quoted
        (answer,) = self._answers(statement, {})
        described = answer["resultSetMetaData"]["rowType"]
        columns = [_column(each) for each in described]
        refused = [column.stored for column in columns if column.type == "binary"]
        self._polls.refuse_bytes(refused, "BINARY")
        return columns

    def _place(self, columns: list[_Column]) -> int:
        for place, column in enumerate(columns):
            if self._cursor in {column.stored, column.name}:
                return place
        raise self._polls.no_cursor(each.name for each in columns)

    def _unread(self, column: _Column, known: _CursorType) -> int:
        readable = known.readable.format(_quoted(column.stored))
        statement = f"SELECT COUNT_IF(({readable}) IS NOT TRUE) FROM {_table_name(self._table)}"  # noqa: S608  # quoted
        ((counted,),) = self._run(statement, {})
        return int(counted or 0)

    def _statement(
        self, columns: list[_Column], column: _Column, known: _CursorType, start: Start
    ) -> tuple[str, dict[str, Any]]:
        order, bindings = known.order.format(_quoted(column.stored)), {}
        wanted = known.readable.format(_quoted(column.stored))
        if start.bound is not None:
            wanted += f" AND {order} >= {known.bound.format(scale=column.scale)}"
            bindings = {"1": {"type": "TEXT", "value": _bound(start.bound, column)}}
        listed = ", ".join(_quoted(each.stored) for each in columns)
        table = _table_name(self._table)
        return f"SELECT {listed} FROM {table} WHERE {wanted} ORDER BY {order}", bindings  # noqa: S608  # all quoted

    def _run(self, statement: str, bindings: Mapping[str, Any]) -> Iterator[list[str | None]]:
        for answer in self._answers(statement, bindings):
            yield from answer["data"]

    def _answers(self, statement: str, bindings: Mapping[str, Any]) -> Iterator[Any]:
        """The partitions of a statement's result, one by one."""
        body = {
            "statement": statement,
            "timeout": _STATEMENT_SECONDS,
            "parameters": {"TIMEZONE": "UTC"},
            **self._context,
            **({"bindings": bindings} if bindings else {}),
        }
        status, answer = self._ask("POST", _STATEMENTS, json=body)
        handle = answer.get("statementHandle", "")
        if status == _STILL_RUNNING:
            answer = awaited(self._where, _STATEMENT_SECONDS, lambda: self._finished(handle))
        yield answer
        for partition in range(1, len(answer["resultSetMetaData"].get("partitionInfo") or ())):
            yield self._ask("GET", f"{_STATEMENTS}/{handle}", params={"partition": partition})[1]

    def _finished(self, handle: str) -> Any:
        status, answer = self._ask("GET", f"{_STATEMENTS}/{handle}")
        if status == _STILL_RUNNING:
            raise Busy("the statement is still running")
        return answer

    def _ask(self, method: str, url: str, **options: Any) -> tuple[int, Any]:
        headers = {
            "Authorization": f"Bearer {self._tokens.token()}",
            "X-Snowflake-Authorization-Token-Type": "KEYPAIR_JWT",
            "Accept": "application/json",
            "User-Agent": "thyme",
        }
        return self._rest.ask(method, url, headers, **options)


class _Tokens:
    """Signs tokens of an hour, and a new one ten minutes before the last one ends."""

    def __init__(self, source: SourceDef, clock: Clock) -> None:
        config = source.connector.config
        what = f"snowflake source of {source.dataset}"
        pem = resolve(config.get("private_key"), f"{what}: private_key")
        if not pem:
            raise SourceError(f"{what}: private_key is required: a key in PEM (PKCS#8) whose public half the user has")
        passphrase = resolve(config.get("private_key_passphrase"), f"{what}: private_key_passphrase")
        self._key = _private_key(pem, passphrase, what)
        self._subject = f"{_account(str(config['account']))}.{str(config['user']).upper()}"
        self._clock = clock
        self._token, self._made = "", 0

    def token(self) -> str:
        now = self._clock.now()
        if not self._token or now - self._made > _TOKEN_RENEWED_US:
            self._token, self._made = self._signed(now), now
        return self._token

    def _signed(self, now: Instant) -> str:
        der = self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        fingerprint = base64.b64encode(hashlib.sha256(der).digest()).decode()
        claims = {
            "iss": f"{self._subject}.SHA256:{fingerprint}",
            "sub": self._subject,
            "iat": now // SECOND,
            "exp": (now + _TOKEN_US) // SECOND,
        }
        return jwt.encode(claims, self._key, algorithm="RS256")


def _private_key(pem: str, passphrase: str, what: str) -> RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(pem.encode(), passphrase.encode() or None)
    except (TypeError, ValueError):
        # The library's own words may hold pieces of the key.
        message = f"{what}: private_key is not a key in PEM (PKCS#8), or its passphrase is missing, needless or wrong"
        raise SourceError(message) from None
    if not isinstance(key, RSAPrivateKey):
        message = f"{what}: private_key is not an RSA key"
        raise SourceError(message)
    return key


def _account(account: str) -> str:
    """The account as tokens name it: upper case, and of a locator the part before its region."""
    if ".global" in account:
        return account.partition("-")[0].upper()
    return account.partition(".")[0].upper()


def _column(described: Mapping[str, Any]) -> _Column:
    stored = described["name"]
    name = stored.lower() if stored == stored.upper() else stored
    return _Column(stored, name, described["type"].lower(), int(described.get("scale") or 0))


def _quoted(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))


def _table_name(table: str) -> str:
    """A plain name is left to Snowflake, which stores it in upper case; any other is quoted."""
    return table if _PLAIN_NAME.fullmatch(table) else _quoted(table)


def _bound(bound: Bound, column: _Column) -> str:
    """The text a statement's parameter is made of."""
    if not isinstance(bound, int):
        if isinstance(bound, str):
            return bound
        return repr(float(bound)) if column.type == "real" else f"{bound:f}"
    if column.type == "date":
        return (_EPOCH + timedelta(days=-(-bound // DAY))).date().isoformat()
    moment = (_EPOCH + timedelta(microseconds=bound)).strftime("%Y-%m-%d %H:%M:%S.%f")
    return moment if column.type == "timestamp_ntz" else f"{moment} +00:00"


def _read(columns: list[_Column], rows: Iterator[list[str | None]]) -> Iterator[Row]:
    readers = [_READERS.get(column.type, str) if column.type != "fixed" else _fixed(column) for column in columns]
    for row in rows:
        yield [None if text is None else read(text) for read, text in zip(readers, row, strict=True)]


def _fixed(column: _Column) -> Callable[[str], Any]:
    return Decimal if column.scale else int


def _micros(text: str) -> int:
    return int(Decimal(text).quantize(_MICRO, rounding="ROUND_FLOOR") * SECOND)


def _naive(text: str) -> datetime:
    return _aware(text).replace(tzinfo=None)


def _aware(text: str) -> datetime:
    return _EPOCH + timedelta(microseconds=_micros(text))


def _zoned(text: str) -> datetime:
    return _aware(text.partition(" ")[0])  # the offset after it only says how it was written


def _time(text: str) -> str:
    return (_EPOCH + timedelta(microseconds=_micros(text))).time().isoformat()


_READERS: Mapping[str, Callable[[str], Any]] = {
    "real": float,
    "boolean": lambda text: text.lower() in {"true", "1"},
    "date": lambda text: (_EPOCH + timedelta(days=int(text))).date(),
    "time": _time,
    "timestamp_ntz": _naive,
    "timestamp_ltz": _aware,
    "timestamp_tz": _zoned,
    "variant": json.loads,
    "object": json.loads,
    "array": json.loads,
}
