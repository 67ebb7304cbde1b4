"""A home directory and environment of the test's own, and a service that answers as told."""

import pytest
import stamina
from typer.testing import CliRunner

from featurelib.cli import app
from tests.support.http_service import http_service


@pytest.fixture(autouse=True)
def no_pauses():
    """What is tried again is tried at once."""
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


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


@pytest.fixture
def run(home, service, monkeypatch):
    """Run a command against the service; the wide terminal keeps table lines whole."""
    monkeypatch.setenv("THYME_API_BASE", service.url)
    monkeypatch.setenv("THYME_QUERY_URL", service.url)
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*arguments, typed=None):
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=typed)

    return invoke
