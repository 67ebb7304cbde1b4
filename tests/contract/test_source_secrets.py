"""Sources whose passwords the platform keeps: put in where they are read, followed while they change, never shown."""

from __future__ import annotations

import json

import psycopg
import pytest

from cluster.processes import wait_until
from featurelib.clock import SECOND, SystemClock
from featurelib.connectors.credentials import resolve
from featurelib.definitions import ConnectorDef, DatasetDef, FieldDef, SourceDef
from featurelib.errors import SourceError
from featurelib.secrets import SecretRef
from featurelib.settings import Settings
from featurelib.stores.encryption import key_source
from featurelib.stores.principals import Author
from featurelib.stores.registry import Registry
from featurelib.stores.secret_values import Place, SecretValues
from featurelib.stores.source_secrets import SourceSecrets, with_secrets
from jobs.ingest import SourceTask
from tests.support.clocks import MovedClock
from tests.support.patience import PATIENCE_S
from tests.support.tls_postgres import PASSWORD

PLACE = Place("warehouse", "password")
SEEN = DatasetDef(
    name="Seen", fields=(FieldDef(name="n", type="int", key=True), FieldDef(name="at", type="datetime", timestamp=True))
)
WRONG = "Told8Nobody"


@pytest.fixture
def settings(tmp_path, empty_redis_url):
    return Settings(data_dir=tmp_path, online={"redis_url": empty_redis_url}, secrets={"refresh_s": 1})


@pytest.fixture
def secrets(settings):
    """The platform's secrets, with a scope."""
    registry = Registry(settings.registry_url, SystemClock())
    registry.migrate()
    values = SecretValues(registry.database, SystemClock(), key_source(settings))
    values.create_scope("warehouse", Author())
    yield values
    registry.close()


def source(**config) -> SourceDef:
    password = SecretRef(kind="scope", value=str(PLACE))
    connector = ConnectorDef(type="postgres", config={"table": "visits", **config, "password": password})
    return SourceDef(dataset="Seen", connector=connector, cursor="at")


def test_a_running_source_goes_on_with_the_secret_of_now(settings, secrets, tls_postgres):
    with psycopg.connect(
        host="localhost", port=tls_postgres.port, user="owner", password=PASSWORD, dbname="postgres", autocommit=True
    ) as db:
        db.execute("CREATE TABLE IF NOT EXISTS visits AS SELECT 1 AS n, now() AS at")
    secrets.put(PLACE, WRONG, Author())
    task = SourceTask(source(**tls_postgres.config()), SEEN, settings)
    try:
        task.start()
        assert not task.step()
        assert "password authentication failed" in task.facts()["error"]
        assert WRONG not in task.facts()["error"]
        # A source that failed looks at its secrets before it tries again; one that works, after a while.
        secrets.put(PLACE, PASSWORD, Author())
        assert (task.step(), task.step()) == (True, False)
        assert (task.facts()["accepted"], task.facts()["error"]) == (1, "")
        secrets.put(PLACE, WRONG, Author())
        assert wait_until(lambda: not task.step() and bool(task.facts()["error"]), PATIENCE_S)
        secrets.put(PLACE, PASSWORD, Author())
        assert wait_until(lambda: not task.step() and not task.facts()["error"], PATIENCE_S)
        secrets.delete(PLACE, Author())
        assert wait_until(lambda: not task.step() and "thyme secrets put" in task.facts()["error"], PATIENCE_S)
    finally:
        task.close()


def test_secrets_are_looked_at_when_it_is_time_and_not_before(settings, secrets):
    secrets.put(PLACE, "one", Author())
    clock = MovedClock(1_000 * SECOND)
    followed = SourceSecrets(source(), secrets, 30, clock)

    def password(found: SourceDef) -> str:
        return resolve(found.connector.config["password"], "password")

    assert password(followed.look()) == "one"
    secrets.put(PLACE, "two", Author())
    clock.advance(30 * SECOND - 1)
    assert followed.look() is None
    clock.advance(1)
    assert password(followed.look()) == "two"
    assert followed.look() is None
    assert password(followed.look(at_once=True)) == "two"
    clock.advance(-500 * SECOND)
    assert password(followed.look()) == "two", "a clock that went back must not stop the looking"


def test_a_source_without_secrets_of_the_platform_is_left_as_it_is(secrets):
    plain = SourceDef(dataset="Seen", connector=ConnectorDef(type="files", config={"path": "x"}))
    assert with_secrets(plain, secrets) is plain
    assert SourceSecrets(plain, secrets, 30, SystemClock()).look() is plain


def test_a_secret_that_is_not_there_or_cannot_be_read_is_an_error_of_the_source(settings, secrets):
    with pytest.raises(SourceError, match=r"postgres source of Seen: password is the secret warehouse/password.*put"):
        with_secrets(source(), secrets)
    secrets.put(PLACE, WRONG, Author())
    (settings.data_dir / "secrets" / "secrets-key").unlink()
    with pytest.raises(SourceError, match="cannot be read") as caught:
        with_secrets(source(), secrets)
    assert WRONG not in str(caught.value)


def test_neither_the_definition_nor_what_prints_it_holds_the_value(secrets):
    secrets.put(PLACE, WRONG, Author())
    filled = with_secrets(source(), secrets)
    assert WRONG not in repr(filled)
    stored = json.loads(source().model_dump_json())
    assert stored["connector"]["config"]["password"] == {"kind": "scope", "value": "warehouse/password"}
    with pytest.raises(SourceError, match="only where it reads a source itself"):
        resolve(source().connector.config["password"], "password")
