"""A home directory and environment of the test's own, and a service that answers as told."""

import pytest

from tests.support.http_service import http_service


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home and working directory; no THYME variable is set."""
    import os

    for name in [name for name in os.environ if name.startswith("THYME_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def service():
    with http_service() as running:
        yield running
