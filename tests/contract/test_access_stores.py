"""Principals, roles and secrets in the registry's database: on SQLite and on PostgreSQL, and by several at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from featurelib.clock import SECOND, Instant
from featurelib.errors import Conflict, CorruptState, InvalidRequest, NotFound
from featurelib.settings import Settings
from featurelib.stores.encryption import KeyFile, key_id, key_source
from featurelib.stores.feed import Feed
from featurelib.stores.principals import Author, Principals
from featurelib.stores.registry import Registry
from featurelib.stores.role_assignments import Assignment, Holder, RoleAssignments
from featurelib.stores.secret_values import Place, SecretValues
from featurelib.stores.standings import Resource
from tests.support.clocks import MovedClock

START: Instant = 1_700_000_000 * SECOND
NOBODY = Author()
PROD = Resource("workspace", "prod")


@pytest.fixture
def registry(database_url: str) -> Iterator[Registry]:
    made = Registry(database_url, MovedClock(START))
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def principals(registry: Registry) -> Principals:
    return Principals(registry.database, MovedClock(START))


@pytest.fixture
def roles(registry: Registry) -> RoleAssignments:
    return RoleAssignments(registry.database, MovedClock(START))


@pytest.fixture
def key_file(tmp_path) -> KeyFile:
    return KeyFile(tmp_path / "kept" / "secrets-key")


@pytest.fixture
def secrets(registry: Registry, key_file: KeyFile) -> SecretValues:
    return SecretValues(registry.database, MovedClock(START), key_file)


def test_what_a_principal_may_do_is_its_own_and_its_groups(registry, principals, roles):
    load = principals.create("service_account", "load", {}, NOBODY)
    crew = principals.create("group", "crew", {}, NOBODY)
    assert registry.standings()[load.id].roles == {}
    roles.assign([Assignment(Holder("group", "crew"), "editor", PROD)], NOBODY)
    principals.change_members("crew", ["load"], [], NOBODY)
    standing = registry.standings()[load.id]
    assert [standing.holds(role, PROD) for role in ("consumer", "editor", "owner")] == [True, True, False]
    assert not standing.holds("consumer", Resource("workspace", "dev"))
    assert not standing.holds("read_scope_role", Resource("secret_scope", "prod"))
    roles.assign([Assignment(Holder("service_account", load.id), "owner", Resource("organization"))], NOBODY)
    standing = registry.standings()[load.id]
    assert standing.holds("owner", Resource("workspace", "dev"))
    assert not standing.holds("read_scope_role", Resource("secret_scope", "prod"))
    roles.assign([Assignment(Holder("group", crew.id), "admin", Resource("organization"))], NOBODY)
    assert registry.standings()[load.id].holds("manage_scope_role", Resource("secret_scope", "any"))


def test_every_change_moves_the_version_that_replicas_poll_and_nothing_else_does(registry, principals, roles):
    seen = [registry.version()]

    def moves() -> bool:
        seen.append(registry.version())
        return seen[-1] != seen[-2]

    principals.create("user", "ann", {}, NOBODY)
    assert moves()
    principals.create("group", "crew", {}, NOBODY)
    assert moves()
    for expected in (True, False):
        principals.change_members("crew", ["ann"], [], NOBODY)
        assert moves() is expected
        roles.assign([Assignment(Holder("user", "ann"), "owner", PROD)], NOBODY)
        assert moves() is expected
    for expected in (True, False):
        roles.unassign([Assignment(Holder("user", "ann"), "owner", PROD)], NOBODY)
        assert moves() is expected


def test_all_assignments_are_made_or_none(registry, principals, roles):
    principals.create("user", "ann", {}, NOBODY)
    good = Assignment(Holder("user", "ann"), "owner", PROD)
    for bad, error in (
        (Assignment(Holder("user", "bob"), "owner", PROD), NotFound),
        (Assignment(Holder("user", "ann"), "read_scope_role", Resource("secret_scope", "absent")), NotFound),
        (Assignment(Holder("user", "ann"), "read_scope_role", PROD), InvalidRequest),
    ):
        with pytest.raises(error):
            roles.assign([good, bad], NOBODY)
    assert roles.granted("workspace") == []


def test_a_workspace_is_there_as_soon_as_something_is_given_to_it_whatever_its_name(principals, roles, secrets):
    ann = principals.create("user", "ann", {}, NOBODY)
    secrets.create_scope("payments", NOBODY)
    scope = Resource("secret_scope", "payments")
    for name in ("prod", ann.id, "w" * 128):
        with pytest.raises(NotFound):
            roles.unassign([Assignment(Holder("workspace", name), "read_scope_role", scope)], NOBODY)
        roles.assign([Assignment(Holder("workspace", name), "read_scope_role", scope)], NOBODY)
    assert [each.name for each in principals.all("workspace")] == ["prod", ann.id, "w" * 128]
    assert principals.get(ann.id) == ann


def test_a_workspace_that_is_there_is_meant_by_its_id_too(principals, roles, secrets):
    secrets.create_scope("payments", NOBODY)
    prod = principals.create("workspace", "prod", {}, NOBODY)
    given = Assignment(Holder("workspace", prod.id), "read_scope_role", Resource("secret_scope", "payments"))
    roles.assign([given], NOBODY)
    assert [each.name for each in principals.all("workspace")] == ["prod"]
    assert [each.principal.id for each in roles.granted("secret_scope")] == [prod.id]


def test_holders_are_listed_in_the_order_made_also_when_they_were_made_at_once(principals, roles):
    names = [f"load{number}" for number in range(8)]
    for name in names:
        principals.create("service_account", name, {}, NOBODY)
    roles.assign([Assignment(Holder("service_account", name), "consumer", PROD) for name in reversed(names)], NOBODY)
    assert [each.principal.name for each in roles.granted("workspace")] == names


def test_names_that_no_path_spells_are_refused_and_looked_for_without_harm(principals, secrets):
    for name in ("", " ", "a b", "a/b", "-a", "\x00", "\ud800", "é", "x" * 129):
        with pytest.raises(InvalidRequest):
            principals.create("user", name, {}, NOBODY)
        with pytest.raises(InvalidRequest):
            secrets.create_scope(name, NOBODY)
        with pytest.raises(NotFound):
            principals.get(name)
        with pytest.raises(NotFound):
            secrets.get(Place(name, name))


def test_a_scope_ends_with_the_roles_that_were_held_on_it(registry, principals, roles, secrets):
    boss = principals.create("user", "boss", {}, NOBODY)
    secrets.create_scope("payments", Author(principal=boss.id))
    scope = Resource("secret_scope", "payments")
    assert registry.standings()[boss.id].holds("manage_scope_role", scope)
    secrets.delete_scope("payments", NOBODY)
    secrets.create_scope("payments", NOBODY)
    assert not registry.standings()[boss.id].holds("read_scope_role", scope)
    with pytest.raises(Conflict):
        secrets.create_scope("payments", NOBODY)


def test_text_of_any_kind_comes_back_as_it_was_and_equal_texts_look_different(registry, secrets):
    secrets.create_scope("s", NOBODY)
    texts = ["x", "\x00", "line\nline\r\n", "\u2603 \U0001f512", "é" * 32_768, "-----BEGIN KEY-----\n"]
    for number, text in enumerate(texts):
        secrets.put(Place("s", f"k{number}"), text, NOBODY)
    assert [secrets.get(Place("s", f"k{number}")) for number in range(len(texts))] == texts
    for refused in ("", "é" * 32_769, "\ud800"):
        with pytest.raises(InvalidRequest):
            secrets.put(Place("s", "bad"), refused, NOBODY)
    sealed = set()
    for _ in range(2):
        secrets.put(Place("s", "same"), "text", NOBODY)
        with registry.database.read() as connection:
            query = "SELECT sealed FROM secret_values WHERE key = 'same'"
            sealed.add(connection.exec_driver_sql(query).scalar_one())
    assert len(sealed) == 2


def test_nothing_is_lost_while_secrets_are_put_and_read_during_rotations(secrets, key_file):
    secrets.create_scope("s", NOBODY)
    for writer in range(3):
        secrets.put(Place("s", f"w{writer}"), "0", NOBODY)
    over = threading.Event()

    def put(writer: int) -> int:
        count = 0
        while not over.is_set():
            count += 1
            secrets.put(Place("s", f"w{writer}"), str(count), NOBODY)
            assert secrets.get(Place("s", f"w{writer}")) == str(count)
        return count

    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(put, writer) for writer in range(3)]
        try:
            for _ in range(4):
                secrets.rotate(NOBODY)
        finally:
            over.set()
        last = [each.result() for each in running]
    assert [secrets.get(Place("s", f"w{writer}")) for writer in range(3)] == [str(count) for count in last]
    rotated = secrets.rotate(NOBODY)
    assert (rotated.values, rotated.key_id) == (3, key_file.keys().current)


def test_a_secret_is_told_of_by_its_name_alone(registry, secrets):
    secrets.create_scope("s", NOBODY)
    secrets.put(Place("s", "k"), "quiet one", NOBODY)
    secrets.rotate(NOBODY)
    told = [entry.event for entry in Feed(registry.database).after(0)]
    assert [event.event_type for event in told] == ["secret_scope_created", "secret_created", "secrets_rotated"]
    assert "quiet" not in str(told)


def test_processes_that_start_together_make_one_key(tmp_path):
    file = tmp_path / "new" / "secrets-key"
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: KeyFile(file).keys().current, range(8)))
    assert len(set(found)) == 1
    assert [each.name for each in file.parent.iterdir()] == ["secrets-key"]


@pytest.mark.parametrize("text", ["", "zz" * 32, "ab" * 31, "ab" * 33, "ab" * 32 + "\nshort"])
def test_what_is_no_key_is_refused_before_anything_is_encrypted_under_it(tmp_path, text):
    file = tmp_path / "secrets-key"
    file.write_text(text)
    with pytest.raises(CorruptState, match="64 hexadecimal digits") as caught:
        KeyFile(file).keys()
    assert text not in str(caught.value) or not text


def test_the_setting_takes_several_keys_and_none_of_them_shows(tmp_path):
    first, second = "ab" * 32, "cd" * 32
    settings = Settings(data_dir=tmp_path, secrets={"key": f"{first}, {second}"})
    assert key_source(settings).keys().current == key_id(bytes.fromhex(first))
    assert first not in repr(settings)
    with pytest.raises(CorruptState, match=r"secrets\.key"):
        key_source(Settings(data_dir=tmp_path, secrets={"key": "short"}))
    assert list(tmp_path.iterdir()) == []
