"""The SQL database behind registry and audit: opening it, transactions, and what failures mean.

SQLite (WAL) or PostgreSQL through psycopg 3. Writers of a SQLite file take its write lock at BEGIN,
so no transaction ever fails half way for having read first; on PostgreSQL an exclusive transaction
holds one advisory lock. All methods may be called from any thread; none is for an event loop.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Engine, Row, Select, Table, create_engine, event, exc, select, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url

from featurelib.definitions import Record
from featurelib.errors import CorruptState, InvalidRequest, MissingDriver, StoreUnavailable

MOST_ROWS = 1_000
"""Most rows one listing gives (decision 26)."""

# How long a writer waits for another one before it gives up with a retryable error. A commit holds the lock
# while it plans, which is milliseconds; half a minute is reached only by a stuck holder.
_LOCK_SECONDS = 30
_CONNECT_SECONDS = 5
# Any constant will do, as long as every process of every version uses the same one ("thyme" in ASCII).
_ADVISORY_LOCK = 0x7468796D65
_WRITING = "thyme_writing"
_POSTGRES_NAMES = frozenset({"postgres", "postgresql", "postgresql+psycopg"})
_UNDEFINED_TABLE = "42P01"
_Record = TypeVar("_Record", bound=Record)


class Database:
    """One SQL database, by URL."""

    def __init__(self, url: str) -> None:
        """Open nothing yet; the first call connects.

        Raises:
            ValueError: the URL is neither a SQLite file nor PostgreSQL.
            MissingDriver: PostgreSQL without psycopg.
        """
        self._url = _supported(url)
        self._engine = _sqlite_engine(self._url) if self.is_sqlite else _postgres_engine(self._url)
        # A lone SELECT needs no transaction: on PostgreSQL that saves two of three round trips.
        self._reads = self._engine if self.is_sqlite else self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writes = self._engine.execution_options(**{_WRITING: True})

    def __repr__(self) -> str:
        return f"Database({self.name})"

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a SQLite file."""
        return self._url.get_backend_name() == "sqlite"

    @property
    def name(self) -> str:
        """The URL without password and options: fit for messages."""
        return self._url.set(query={}).render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for one SELECT.

        Raises:
            StoreUnavailable: the database does not answer, or has no tables yet.
        """
        with self._explained(), self._reads.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction, committed at the end of the block and rolled back when it raises.

        Raises:
            StoreUnavailable: the database does not answer, or another writer holds it for too long.
        """
        with self._explained(), self._writes.begin() as connection:
            yield connection

    @contextmanager
    def exclusive(self) -> Iterator[Connection]:
        """A transaction that no other exclusive one, of any process, overlaps."""
        with self.write() as connection:
            if not self.is_sqlite:
                connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_SECONDS}s'"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _ADVISORY_LOCK})
            yield connection

    def migrate(self) -> None:
        """Bring the tables to this version of the code, creating a SQLite file when there is none.

        Doing it again changes nothing, and processes that start together do it once.

        Raises:
            CorruptState: a newer version of the platform wrote this database.
        """
        from featurelib.stores import migrations  # Alembic costs 0.2 s and only a start needs it

        if self.is_sqlite:
            self._create_file()
        with self.exclusive() as connection:
            migrations.upgrade(connection)

    def settle(self) -> bool:
        """Leave nothing of what was changed or deleted in SQLite's journal; False while readers are in the way.

        PostgreSQL keeps old rows until its own VACUUM.
        """
        if not self.is_sqlite:
            return True
        with self._explained(), self._engine.connect() as connection:
            # Past SQLAlchemy, which would begin a transaction: within one there is no checkpoint.
            driver: Any = connection.connection.driver_connection
            busy, _, _ = driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return not busy

    def close(self) -> None:
        """Close the idle connections."""
        self._engine.dispose()

    def _create_file(self) -> None:
        path = _path(self._url)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Only the owner may read it: sources may hold secrets that users chose to write inline.
            path.touch(mode=0o600, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(f"{self.name}: {error.strerror}") from error

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (exc.OperationalError, exc.InterfaceError) as error:
            raise StoreUnavailable(f"{self.name}: {self._reason(error.orig)}") from error
        except exc.TimeoutError as error:
            raise StoreUnavailable(f"{self.name}: every connection is in use") from error
        except exc.ProgrammingError as error:
            if getattr(error.orig, "sqlstate", None) != _UNDEFINED_TABLE:
                raise
            raise StoreUnavailable(f"{self.name}: its tables are not there yet") from error
        except exc.DatabaseError as error:
            if not isinstance(error.orig, sqlite3.DatabaseError) or type(error) is not exc.DatabaseError:
                raise
            raise CorruptState(f"{self.name}: {error.orig}") from error

    def _reason(self, error: BaseException | None) -> str:
        """The driver's first line, which names no password; taken out all the same should a driver change."""
        reason = str(error).partition("\n")[0] or type(error).__name__
        password = self._url.password
        return reason.replace(password, "***") if password else reason


def upsert(connection: Connection, table: Table, values: Mapping[str, Any]) -> None:
    """Insert the row, or replace the row of the same primary key."""
    upsert_all(connection, table, [values])


def upsert_all(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows, which have the same members, or replace those of the same primary key; there is one at least."""
    insert, keys = _insert(connection, table), table.primary_key.columns.keys()
    changed = {name: insert.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=changed), rows)


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows, which have the same members, in one call, less those that are there already.

    The statement goes to the driver as text made once: having SQLAlchemy bind 19 members took 25 of the 70 µs that a
    query run costs here.
    """
    if rows:
        insert = _insert_of(connection, table, tuple(rows[0]))
        connection.exec_driver_sql(insert.text, [insert.bound(row) for row in rows])


class _Insert(NamedTuple):
    """An insert in the driver's words. ``names``: of members, in the text's order; ``by_name``: it takes them so."""

    text: str
    names: tuple[str, ...]
    processors: tuple[Callable[[Any], Any] | None, ...]
    by_name: bool

    def bound(self, row: Mapping[str, Any]) -> Any:
        """A row's members as the driver takes them."""
        members = [
            row[name] if process is None else process(row[name])
            for name, process in zip(self.names, self.processors, strict=True)
        ]
        return dict(zip(self.names, members, strict=True)) if self.by_name else tuple(members)


_inserts: dict[tuple[str, str, tuple[str, ...]], _Insert] = {}


def _insert_of(connection: Connection, table: Table, members: tuple[str, ...]) -> _Insert:
    dialect = connection.dialect
    found = _inserts.get(mark := (dialect.name, table.name, members))
    if found is None:
        statement = _insert(connection, table).on_conflict_do_nothing()
        compiled = statement.compile(dialect=dialect, column_keys=list(members))
        names = tuple(compiled.positiontup or members)
        processors = tuple(table.c[name].type.dialect_impl(dialect).bind_processor(dialect) for name in names)
        found = _inserts[mark] = _Insert(str(compiled), names, processors, not compiled.positional)
    return found


def newest(table: Table, limit: int) -> Select[Any]:
    """The latest rows of a table with ``created_at`` and ``sequence``, newest first.

    Raises:
        InvalidRequest: ``limit`` is not positive. One above ``MOST_ROWS`` gives ``MOST_ROWS``.
    """
    if limit < 1:
        raise InvalidRequest(f"limit: {limit} is not a positive number")
    return select(table).order_by(table.c.created_at.desc(), table.c.sequence.desc()).limit(min(limit, MOST_ROWS))


def record_of(model: type[_Record], row: Row[Any]) -> _Record:
    """The row as a record; a member without a column keeps its default."""
    columns = row._asdict()
    return model.model_validate({name: columns[name] for name in model.model_fields if name in columns})


def _insert(connection: Connection, table: Table) -> Any:
    return (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)


def _supported(text_url: str) -> URL:
    try:
        url = make_url(text_url)
    except exc.ArgumentError:
        raise ValueError("the registry's URL is not of the form sqlite:///path or postgresql://…") from None
    if url.drivername in _POSTGRES_NAMES:
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() != "sqlite":
        message = f"the registry needs SQLite or PostgreSQL; {url.drivername!r} is neither"
        raise ValueError(message)
    if url.database in (None, "", ":memory:"):
        raise ValueError(
            "the registry is shared between processes: name a SQLite file, as in sqlite:////data/registry.db"
        )
    return url


def _path(url: URL) -> Path:
    return Path(url.database or "").absolute()


def _postgres_engine(url: URL) -> Engine:
    # tcp_user_timeout: a machine that vanished is noticed in seconds, not in the kernel's quarter of an hour.
    limits = {"connect_timeout": _CONNECT_SECONDS, "tcp_user_timeout": _CONNECT_SECONDS * 1_000}
    try:
        return create_engine(
            url, connect_args=limits, pool_pre_ping=True, pool_timeout=_LOCK_SECONDS, hide_parameters=True
        )
    except ImportError:
        raise MissingDriver("psycopg", "postgres") from None


def _sqlite_engine(url: URL) -> Engine:
    # mode=rw: a reader that comes before the first migration must not leave an empty file with open permissions.
    location = f"{_path(url).as_uri()}?mode=rw"

    def connect() -> sqlite3.Connection:
        # isolation_level=None: the driver starts no transactions of its own, so DDL takes part in ours.
        return sqlite3.connect(location, uri=True, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False)

    engine = create_engine(url, creator=connect, pool_timeout=_LOCK_SECONDS, hide_parameters=True)
    event.listen(engine, "connect", lambda connection, _record: _configure_sqlite(connection, _path(url).parent))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: sqlite3.Connection, folder: Path) -> None:
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        # Two connections that switch a new file at once deadlock, and SQLite fails one without waiting: 11 of 240
        # processes that started together did. A flock on the folder needs no file of its own, and does not touch
        # the locks that SQLite keeps on the database.
        with _alone(folder):
            connection.execute("PRAGMA journal_mode = WAL").close()
    connection.execute("PRAGMA synchronous = NORMAL").close()
    connection.execute("PRAGMA foreign_keys = ON").close()
    # What is changed or deleted is overwritten on disk: an erased id shall not stay in a page's free space.
    connection.execute("PRAGMA secure_delete = ON").close()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _begin_sqlite(connection: Connection) -> None:
    writing = connection.get_execution_options().get(_WRITING, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
