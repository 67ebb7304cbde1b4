from __future__ import annotations

import json

import pytest

from cluster.first_start import credentials_path, fingerprint, first_start
from cluster.layout import Layout
from featurelib.clock import SystemClock
from featurelib.settings import load_settings
from featurelib.stores.registry import Registry


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return _prepared(tmp_path / "one")


def _prepared(data_dir, **serving):
    settings = load_settings(data_dir=data_dir, serving=serving)
    for folder in ("", "secrets"):
        (data_dir / folder).mkdir()
    return settings


def _credentials():
    return json.loads(credentials_path().read_text())


def test_the_first_start_makes_one_admin_key_and_leaves_it_where_the_client_looks(settings):
    first_start(settings)
    registry = Registry(settings.registry_url, SystemClock())
    (key,) = registry.keys()
    registry.close()
    written = _credentials()
    assert key.role == "admin"
    assert fingerprint(written["api_key"]) == key.fingerprint
    assert written["query_url"] == "http://127.0.0.1:8081"
    assert written["api_base"] == "http://127.0.0.1:8080"
    assert credentials_path().stat().st_mode & 0o077 == 0


def test_a_second_start_keeps_the_key(settings):
    first_start(settings)
    before = _credentials()
    first_start(settings)
    assert _credentials() == before


def test_the_credentials_are_those_of_the_cluster_started_last(settings, tmp_path):
    first_start(settings)
    mine = _credentials()
    first_start(_prepared(tmp_path / "two", query_port=9001))
    assert _credentials()["query_url"] == "http://127.0.0.1:9001"
    assert _credentials()["api_key"] != mine["api_key"]
    first_start(settings)
    assert _credentials() == mine


def test_a_revoked_first_key_is_not_handed_out_again(settings):
    first_start(settings)
    key = _credentials()["api_key"]
    registry = Registry(settings.registry_url, SystemClock())
    registry.create_key("admin", "the next one")
    registry.revoke_key(fingerprint(key))
    registry.close()
    credentials_path().unlink()
    first_start(settings)
    assert not credentials_path().exists()
    assert Layout(settings).secret_path("admin-key").exists()
