"""``thyme login`` and ``thyme logout``: the key that the other commands use."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from featurelib.cli.options import AsJson, opened
from featurelib.cli.tables import print_json

if TYPE_CHECKING:
    from pathlib import Path

_ABSENT = "there were no credentials"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("login")(login)
    app.command("logout")(logout)


def login(
    url: Annotated[str, typer.Option("--url", "--api-base", help="Definition service.")],
    api_key: Annotated[str, typer.Option("--api-key", help="The key; - reads it from standard input.")],
    query_url: Annotated[str | None, typer.Option(help="Query server; left out, the same as the other.")] = None,
    as_json: AsJson = False,
) -> None:
    """Keep a key and where it opens in ~/.thyme/credentials."""
    key = sys.stdin.readline().strip() if api_key == "-" else api_key.strip()
    if not key:
        raise typer.BadParameter("is empty", param_hint="--api-key")
    path, is_up = save(url, key, query_url or url)
    if as_json:
        print_json({"credentials": str(path), "healthy": is_up})
        return
    print(f"saved {path}")
    if not is_up:
        print(f"{url} does not answer now; `thyme status` asks again", file=sys.stderr)


def logout(as_json: AsJson = False) -> None:
    """Remove ~/.thyme/credentials."""
    from featurelib.client import credentials_path, forget_credentials

    there = forget_credentials()
    if as_json:
        print_json({"removed": there})
    else:
        print(f"removed {credentials_path()}" if there else _ABSENT)


def save(url: str, api_key: str, query_url: str) -> tuple[Path, bool]:
    """Keep them, whether the service answers or not; the file, and whether it does."""
    from featurelib.client import Config, save_credentials

    with opened(Config(api_base=url, query_url=query_url, api_key=api_key)) as client:
        is_up = client.is_up(url)
    return save_credentials(api_key, url, query_url), is_up
