"""PostgreSQL tables, views and foreign tables, polled by a cursor column (featurelib/connectors/tables.py).

A poll is one transaction, REPEATABLE READ and read only: everything in it is of one instant. Rows come through a
server-side cursor, a batch at a time, however many there are. Settings beside those of the connection:

    table, schema  what is read; names as they are stored, upper and lower case told apart
    overlap        how far behind the newest cursor value each poll looks again: ``5m`` for timestamps, else a number
    sslmode        as libpq has it: disable, allow, prefer, require, verify-ca, verify-full
    sslrootcert    file with the certificates of the authorities that verify-ca and verify-full trust

Values come as the dataset's types take them: numeric as Decimal, timestamptz as an aware datetime, timestamp as a naive
one (UTC), json and arrays as objects and lists, and what has no type here (uuid, interval, inet, ranges) as text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import psycopg
from psycopg import sql
from psycopg.types.datetime import DateLoader, TimestampLoader, TimestamptzLoader
from psycopg.types.string import TextLoader

from featurelib.clock import Clock
from featurelib.connectors.contract import Position, SourceBatch
from featurelib.connectors.credentials import Setting, resolve
from featurelib.connectors.tables import Bound, Kind, Shape, Start, TablePolls, require
from featurelib.definitions import SourceDef
from featurelib.errors import SourceError

# A server that does not answer at all must not hold the ingest: these bound each wait to about half a minute.
_CONNECTION = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
    "application_name": "thyme",
}
_CONNECTION_SETTINGS = ("host", "port", "user", "sslmode", "sslrootcert")
# What values look like must not depend on the server, the database or the user: digests are made of them.
_SESSION = """
SELECT set_config('TimeZone', 'UTC', true), set_config('DateStyle', 'ISO', true),
       set_config('IntervalStyle', 'postgres', true), set_config('extra_float_digits', '1', true)
"""
_COLUMNS = """
SELECT a.attname, b.typname, a.attnum = ANY (p.indkey)
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
JOIN pg_type b ON b.oid = CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END
LEFT JOIN pg_index p ON p.indrelid = c.oid AND p.indisprimary
WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
ORDER BY a.attnum
"""
_TABLES = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY 1 LIMIT 20
"""
_TEXTS = ("uuid", "interval", "time", "timetz", "inet", "cidr")
_RANGES = ("int4range", "int8range", "numrange", "daterange", "tsrange", "tstzrange")
_INT8_MIN = -(2**63)
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # of columns without a zone


class _Column(NamedTuple):
    name: str
    type: str
    primary: bool


class _CursorType(NamedTuple):
    """How a column type serves as a cursor: expressions with ``{}`` for the column."""

    kind: Kind
    cast: str
    """The type a bound value is given."""
    readable: str = "{} IS NOT NULL"
    order: str = "{}"


_FINITE = "{0} IS NOT NULL AND {0}::text NOT IN ('NaN', 'Infinity', '-Infinity')"
# Years that Python has; infinity is beyond them.
_YEARS = "{} BETWEEN '0001-01-01' AND '9999-12-31 23:59:59.999999'"
_DAYS = "{} BETWEEN '0001-01-01' AND '9999-12-31'"
_BYTES = '{}::text COLLATE "C"'
_CURSOR_TYPES = {
    "int2": _CursorType("number", "int8"),
    "int4": _CursorType("number", "int8"),
    "int8": _CursorType("number", "int8"),
    "numeric": _CursorType("number", "numeric", _FINITE),
    "float4": _CursorType("number", "float4", _FINITE),
    "float8": _CursorType("number", "float8", _FINITE),
    "timestamptz": _CursorType("instant", "timestamptz", _YEARS),
    "timestamp": _CursorType("instant", "timestamp", _YEARS),
    "date": _CursorType("instant", "timestamp", _DAYS),
    "text": _CursorType("text", "text", order=_BYTES),
    "varchar": _CursorType("text", "text", order=_BYTES),
    # Its values come padded with spaces, which its text has not, and of which a bound of its own type makes nothing.
    "bpchar": _CursorType("text", "bpchar", order=_BYTES),
    "uuid": _CursorType("text", "uuid"),
}


class _Table(NamedTuple):
    """What the catalog says of the table."""

    columns: list[_Column]
    cursor: _CursorType
    shape: Shape


class PostgresTable:
    """Reads what is new in one table. Holds at most one connection between polls."""

    def __init__(self, source: SourceDef, batch_rows: int, clock: Clock) -> None:  # noqa: ARG002  # the contract's
        config = source.connector.config
        require(source, "table")
        self._table, self._schema = str(config["table"]), str(config.get("schema") or "public")
        self._where = _where(source, self._schema, self._table)
        self._cursor = source.cursor
        self._by_key = source.cdc == "append"
        self._batch_rows = batch_rows
        self._parameters = _parameters(source)
        self._polls = TablePolls(self._where, f"{self._schema}.{self._table}", source.cursor, config.get("overlap"))
        self._idle: psycopg.Connection[Any] | None = None

    def poll(self, position: Position) -> Iterator[SourceBatch]:
        """What is new in the table at this instant, in the order of the cursor column.

        Raises:
            SourceError: the server refused or was lost, or there is no such table or column.
        """
        with _told(self._where):
            connection = self._begun()
            try:
                yield from self._batches(connection, position)
                connection.rollback()  # nothing was written: the transaction only ends
                self._idle, connection = connection, self._idle
            finally:
                if connection is not None:
                    connection.close()

    def close(self) -> None:
        """Close the connection."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    def _batches(self, connection: psycopg.Connection[Any], position: Position) -> Iterator[SourceBatch]:
        table = self._described(connection)
        start = self._polls.start(position, table.cursor.kind)
        unread = self._unread(connection, table)
        with connection.cursor("thyme") as rows:
            rows.execute(self._statement(table, start))
            chunks = iter(lambda: rows.fetchmany(self._batch_rows), [])
            yield from self._polls.batches(start, table.shape, chunks, unread)

    def _begun(self) -> psycopg.Connection[Any]:
        """A connection with a transaction begun; one that was lost while idle is replaced."""
        connection, self._idle = self._idle, None
        if connection is not None:
            try:
                connection.execute(_SESSION)
            except psycopg.OperationalError:
                connection.close()
            else:
                return connection
        connection = psycopg.connect(**self._parameters)
        try:
            _prepare(connection)
        except psycopg.Error:
            connection.close()
            raise
        return connection

    def _described(self, connection: psycopg.Connection[Any]) -> _Table:
        found = connection.execute(_COLUMNS, (self._schema, self._table)).fetchall()
        columns = [_Column(name, kind, bool(primary)) for name, kind, primary in found]
        if not columns:
            raise SourceError(self._no_table(connection))
        self._polls.refuse_bytes([c.name for c in columns if c.type in {"bytea", "_bytea"}], "bytea")
        names = [column.name for column in columns]
        if self._cursor not in names:
            raise self._polls.no_cursor(names)
        place = names.index(self._cursor)
        cursor = self._polls.cursor_type(_CURSOR_TYPES, self._cursor, columns[place].type)
        keys = [index for index, column in enumerate(columns) if column.primary] if self._by_key else []
        return _Table(columns, cursor, Shape(names, place, cursor.kind, keys or range(len(names))))

    def _no_table(self, connection: psycopg.Connection[Any]) -> str:
        there = [name for (name,) in connection.execute(_TABLES, (self._schema,)).fetchall()]
        listed = f"that schema has {', '.join(there)}" if there else "that schema has no tables, or does not exist"
        return f"{self._where} does not exist; {listed}"

    def _unread(self, connection: psycopg.Connection[Any], table: _Table) -> int:
        statement = sql.SQL("SELECT count(*) FROM {} WHERE ({}) IS NOT TRUE").format(
            self._name(), self._expression(table.cursor.readable)
        )
        row = connection.execute(statement).fetchone()
        return int(row[0]) if row else 0

    def _statement(self, table: _Table, start: Start) -> sql.Composed:
        order = self._expression(table.cursor.order)
        wanted = [self._expression(table.cursor.readable)]
        if start.bound is not None:
            # A literal: where a statement has parameters, a % in a column's name is taken for one.
            bound = sql.Literal(_bound(start.bound, table.cursor.cast))
            wanted.append(sql.SQL("{} >= {}::{}").format(order, bound, sql.Identifier("pg_catalog", table.cursor.cast)))
        return sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {}").format(
            sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns),
            self._name(),
            sql.SQL(" AND ").join(wanted),
            order,
        )

    def _name(self) -> sql.Identifier:
        return sql.Identifier(self._schema, self._table)

    def _expression(self, form: str) -> sql.Composed:
        # The forms are the literals of _CURSOR_TYPES; only the column's name is the user's.
        return sql.SQL(form).format(sql.Identifier(self._cursor))


def cursor_columns(source: SourceDef) -> list[str]:
    """The columns of a table that could be its cursor, those of instants first, else in the table's order.

    Raises:
        SourceError: the server refused or was lost.
    """
    table, schema = str(source.connector.config["table"]), str(source.connector.config.get("schema") or "public")
    with _told(_where(source, schema, table)), psycopg.connect(**_parameters(source)) as connection:
        found = connection.execute(_COLUMNS, (schema, table)).fetchall()
    able = [(name, _CURSOR_TYPES[kind].kind) for name, kind, _ in found if kind in _CURSOR_TYPES]
    return [name for name, _ in sorted(able, key=lambda each: each[1] != "instant")]


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Errors of the driver as the source's own. None of libpq's messages holds the password."""
    try:
        yield
    except psycopg.Error as error:
        message = f"{where}: {' '.join(str(error).split()) or type(error).__name__}"
        raise SourceError(message) from error


def _prepare(connection: psycopg.Connection[Any]) -> None:
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    for name in (*_TEXTS, *_RANGES):
        connection.adapters.register_loader(name, TextLoader)
    for name, loader in (("date", _Date), ("timestamp", _Timestamp), ("timestamptz", _Timestamptz)):
        connection.adapters.register_loader(name, loader)
    connection.execute(_SESSION)


# A date that Python has no number for (infinity, the year 20000) stays text: the record is refused for it, not all.


class _Date(DateLoader):
    def load(self, data: Any) -> Any:
        return _or_text(super().load, data)


class _Timestamp(TimestampLoader):
    def load(self, data: Any) -> Any:
        return _or_text(super().load, data)


class _Timestamptz(TimestamptzLoader):
    def load(self, data: Any) -> Any:
        return _or_text(super().load, data)


def _or_text(load: Any, data: Any) -> Any:
    try:
        return load(data)
    except psycopg.DataError:
        return bytes(data).decode()


def _bound(bound: Bound, cast: str) -> datetime | str:
    """The value a statement begins at, for a column compared as that type; a number as text, which is cast whole."""
    if cast == "int8":
        return str(max(math.ceil(Decimal(bound)), _INT8_MIN))
    if cast in {"float4", "float8"}:
        return repr(float(bound))
    if isinstance(bound, int):
        moment = _EPOCH + timedelta(microseconds=bound)
        return moment.replace(tzinfo=UTC) if cast == "timestamptz" else moment
    return str(bound)


def _where(source: SourceDef, schema: str, table: str) -> str:
    """The table as messages name it."""
    config = source.connector.config
    place = f"{config.get('host') or 'localhost'}:{config.get('port') or 5432}/{config.get('database') or ''}"
    return f"postgres source of {source.dataset}: {schema}.{table} on {place}"


def _parameters(source: SourceDef) -> dict[str, Any]:
    config = source.connector.config
    given: dict[str, Setting] = {name: config.get(name) for name in _CONNECTION_SETTINGS}
    given["dbname"] = config.get("database")
    given["password"] = resolve(config.get("password"), f"postgres source of {source.dataset}: password")
    return {**_CONNECTION, **{name: str(value) for name, value in given.items() if value}}
