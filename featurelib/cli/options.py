"""Options that several commands have, and the client that they open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from featurelib.client import Config, ThymeClient

ApiUrl = Annotated[str | None, typer.Option(envvar="THYME_API_URL", help="Definition service.")]
QueryUrl = Annotated[str | None, typer.Option(envvar="THYME_QUERY_URL", help="Query server.")]
ApiKey = Annotated[str | None, typer.Option(envvar="THYME_API_KEY", help="Key.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Module = Annotated[
    str | None, typer.Option("--module", "-m", help="Module of the definition; not needed, the name alone counts.")
]


def load_config(*, api_url: str | None = None, query_url: str | None = None, api_key: str | None = None) -> Config:
    """The configuration with what the options say; ``api_url`` is a base."""
    from featurelib.client import Config

    return Config.load().with_overrides(api_base=api_url, query_url=query_url, api_key=api_key)


def opened(config: Config) -> ThymeClient:
    """A client; use it as a context manager."""
    from featurelib.client import ThymeClient

    return ThymeClient(config)


def name_of(ref: str) -> str:
    """The class half of ``module:Class``."""
    return ref.rpartition(":")[2]
