"""A real HTTP server that speaks Amazon's protocols (moto): Kinesis, S3, STS, IAM; empty for every test."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest

REGION = "eu-central-1"
ACCOUNT = "123456789012"


@cache
def _loader() -> Any:
    from botocore.loaders import create_loader

    return create_loader()


class Amazon(NamedTuple):
    """Where the server listens."""

    url: str

    def client(self, service: str, **options: Any) -> Any:
        """A plain client, for what a test does behind the platform's back."""
        import boto3

        return boto3.Session().client(service, region_name=REGION, endpoint_url=self.url, **options)


@pytest.fixture(scope="session")
def amazon_server() -> Iterator[Amazon]:
    """The run's server; it starts with the first test that asks for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the double says of its own dependencies is not ours
        from moto.server import ThreadedMotoServer
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield Amazon(f"http://{host}:{port}")
    finally:
        server.stop()


@pytest.fixture
def amazon(amazon_server: Amazon, monkeypatch) -> Amazon:
    """The server, empty. Credentials stand in the environment, where the drivers look for them."""
    from moto.moto_api._internal import moto_api_backend

    moto_api_backend.reset()
    # Every client reads the descriptions of its service anew, which takes a tenth of a second; here they share them.
    monkeypatch.setattr("botocore.session.create_loader", lambda *_: _loader())
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return amazon_server
