"""``thyme keys``: who may call the platform, with which role, until when and how often."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from featurelib.cli.options import ApiUrl, AsJson, load_config, opened
from featurelib.cli.tables import print_json, print_table, say
from featurelib.errors import InvalidRequest

_COLUMNS = ("fingerprint", "role", "label", "state", "a second", "created", "expires")


class _Role(StrEnum):
    READER = "reader"
    WRITER = "writer"
    ADMIN = "admin"


RateLimit = Annotated[int | None, typer.Option(min=1, help="Requests per second.")]
Owner = Annotated[str | None, typer.Option(help="User or service account it belongs to, by id or name.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Make, show and revoke API keys; needs an admin's key.", no_args_is_help=True)
    group.command("create")(create)
    group.command("add")(add)
    group.command("list")(keys)
    group.command("revoke")(revoke)
    app.add_typer(group, name="keys")


def create(
    role: Annotated[_Role, typer.Argument(help="What it may do; each role may do what the ones before it may.")],
    *,
    label: Annotated[str, typer.Option(help="Whose it is, or what for.")] = "",
    expires_at: Annotated[str | None, typer.Option(help="When it ends, ISO 8601; left out, never.")] = None,
    rate_limit: RateLimit = None,
    principal: Owner = None,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Make a key and print it: it is shown this once."""
    with opened(load_config(api_url=api_url)) as client:
        made = client.create_key(
            role.value, name=label, expires_at=expires_at, rate_limit=rate_limit, principal=principal
        )
    if as_json:
        print_json(made)
        return
    # Alone on stdout, so that `KEY=$(thyme keys create reader)` works.
    print(made["key"])
    print(f"{made['role']} key {made['fingerprint']}; it is not shown again", file=sys.stderr)


def add(
    *,
    public_key: Annotated[Path, typer.Option(help="File of an RSA public key, PEM.")],
    name: Annotated[str, typer.Option(help="Of the user, as the tokens give it.")],
    role: Annotated[_Role, typer.Option(help="What the user may do.")] = _Role.READER,
    rate_limit: RateLimit = None,
    principal: Owner = None,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Register a user's public key: tokens signed by its private half are taken in place of a key."""
    with opened(load_config(api_url=api_url)) as client:
        made = client.register_public_key(
            _read(public_key), name, role.value, rate_limit=rate_limit, principal=principal
        )
    say(made, f"{made['role']} key {made['fingerprint']} of {made['label']}", as_json=as_json)


def keys(as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Show every key ever made, oldest first; never a secret."""
    with opened(load_config(api_url=api_url)) as client:
        found = client.keys()
    if as_json:
        print_json(found)
    else:
        print_table(_COLUMNS, [_row(key) for key in found], whole=_COLUMNS[:1])


def revoke(
    fingerprint: Annotated[str, typer.Argument(help="Of the key, as `thyme keys list` shows it.")],
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Make a key invalid from now on."""
    with opened(load_config(api_url=api_url)) as client:
        key = client.revoke_key(fingerprint)
    say(key, f"{key['role']} key {key['fingerprint']} is {key['state']}", as_json=as_json)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file}: cannot be read as a key in PEM: {error}") from None


def _row(key: dict[str, Any]) -> list[str]:
    limit = key.get("rate_limit")
    return [
        str(key["fingerprint"]),
        str(key["role"]),
        str(key.get("label") or ""),
        str(key["state"]),
        "" if limit is None else f"{limit:,}",
        str(key["created_at"]),
        str(key.get("expires_at") or ""),
    ]
