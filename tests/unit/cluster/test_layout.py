from __future__ import annotations

import stat
from pathlib import Path

import pytest
from pydantic import SecretStr

from cluster.layout import Layout, Ports, settings_digests, settings_environment
from featurelib import sources
from featurelib.errors import ClusterError
from featurelib.settings import load_settings


@pytest.fixture
def layout(tmp_path):
    made = Layout(load_settings(data_dir=tmp_path / "data"))
    yield made
    if made.short.exists():
        made.short.rmdir()


def test_settings_survive_the_way_through_the_environment(tmp_path, monkeypatch):
    settings = load_settings(
        data_dir=tmp_path,
        online={"redis_url": "redis://:p@127.0.0.1:7000/0"},
        serving={"query_port": 9001, "auth": False},
        cluster={"cpus": 3},
        training={"spine_roots": ("/spines", "s3://spines")},
    )
    for name, value in settings_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings


def test_a_secret_is_made_once_and_readable_by_its_owner_only(layout):
    layout.create()
    first = layout.secret("online")
    assert len(first) == 64
    assert layout.secret("online") == first
    assert layout.secret("gcs") != first
    assert stat.S_IMODE(layout.secret_path("online").stat().st_mode) == 0o600


def test_children_get_the_embedded_stores_url_and_nothing_of_the_callers_ray(layout, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://elsewhere:10001")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another clusters")
    layout.create()
    ports = Ports.choose()
    environment = layout.environment("node", ports)
    assert environment["THYME_ONLINE__REDIS_URL"] == f"redis://:{layout.secret('online')}@127.0.0.1:{ports.online}/0"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert Path(environment["RAY_AUTH_TOKEN_PATH"]).read_text() == layout.secret("ray-token")
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN"} & environment.keys()


def test_children_get_the_variables_of_every_connector_and_no_settings_or_keys_of_the_callers(layout, monkeypatch):
    classes = [each for each in vars(sources).values() if isinstance(each, type)]
    types = [vars(each).get("connector_type") for each in classes]
    connectors = {kind for kind in types if isinstance(kind, str)} - {"files"}
    assert {"postgres", "s3_json", "webhook"} <= connectors
    own = {f"THYME_{connector.split('_')[0].upper()}_PASSWORD" for connector in connectors}
    dropped = {"THYME_API_KEY", "THYME_API_URL", "THYME_SETTINGS", "THYME_ORDERS_PASSWORD"}
    for name in {"ORDERS_PASSWORD", *own, *dropped}:
        monkeypatch.setenv(name, "Kept9Quiet")
    layout.create()
    environment = layout.environment("node", Ports.choose())
    assert {"ORDERS_PASSWORD", *own} == {name for name, value in environment.items() if value == "Kept9Quiet"}


def test_a_configured_online_store_is_passed_on_as_it_is(tmp_path):
    settings = load_settings(data_dir=tmp_path, online={"redis_url": SecretStr("rediss://store.example:6380/1")})
    layout = Layout(settings)
    assert not layout.embedded_online
    assert layout.online_url(Ports.choose()) == "rediss://store.example:6380/1"


def test_rays_longest_socket_path_fits_a_unix_socket(layout):
    session = "session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.1"
    assert len(str(layout.ray_dir / session)) <= 107


def test_the_watcher_sees_the_settings_it_was_started_with(tmp_path, monkeypatch):
    settings = load_settings(data_dir=tmp_path / "up" / ".." / "data", online={"redis_url": "redis://store.example/0"})
    layout = Layout(settings)
    layout.create()
    layout.short.rmdir()
    for name, value in layout.environment("watcher").items():
        monkeypatch.setenv(name, value)
    assert settings_digests(load_settings()) == settings_digests(settings)
    assert "redis://store.example/0" not in settings_digests(settings).values()


def test_two_data_directories_share_nothing(tmp_path):
    first, second = (Layout(load_settings(data_dir=tmp_path / name)) for name in ("a", "b"))
    assert first.id != second.id
    assert first.short != second.short


def test_a_short_directory_others_can_enter_is_refused(layout):
    layout.short.mkdir()
    layout.short.chmod(0o755)
    with pytest.raises(ClusterError, match="not a directory of ours alone"):
        layout.create()


def test_a_link_in_place_of_the_short_directory_is_refused(layout, tmp_path):
    target = tmp_path / "elsewhere"
    target.mkdir(mode=0o700)
    layout.short.symlink_to(target)
    try:
        with pytest.raises(ClusterError, match="not a directory of ours alone"):
            layout.create()
    finally:
        layout.short.unlink()


def test_chosen_ports_differ_from_each_other():
    ports = Ports.choose()
    assert len(set(ports.model_dump().values())) == len(Ports.model_fields)
