"""``thyme secrets``: texts that the platform keeps encrypted, in scopes, for sources and for who may read them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from featurelib.cli.options import ApiUrl, AsJson, load_config, opened
from featurelib.cli.tables import print_json, say
from featurelib.errors import InvalidRequest

Scope = Annotated[str, typer.Argument(help="Name of the scope.")]
Key = Annotated[str, typer.Argument(help="Name of the secret in its scope.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Keep secrets, in scopes; needs a role on the scope.", no_args_is_help=True)
    group.command("scopes")(scopes)
    group.command("create-scope")(create_scope)
    group.command("delete-scope")(delete_scope)
    group.command("list")(secrets)
    group.command("get")(get)
    group.command("put")(put)
    group.command("delete")(delete)
    group.command("rotate")(rotate)
    app.add_typer(group, name="secrets")


def scopes(as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Show the scopes whose secrets this key may read, one a line."""
    with opened(load_config(api_url=api_url)) as client:
        _show(client.secret_scopes(), as_json=as_json)


def create_scope(scope: Scope, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Make a scope; whose key this is manages it."""
    with opened(load_config(api_url=api_url)) as client:
        client.create_scope(scope)
    say({"scope": scope}, f"scope {scope} made", as_json=as_json)


def delete_scope(scope: Scope, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """End an empty scope, and the roles held on it."""
    with opened(load_config(api_url=api_url)) as client:
        client.delete_scope(scope)
    say({"scope": scope}, f"scope {scope} deleted", as_json=as_json)


def secrets(scope: Scope, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Show the names of a scope's secrets, one a line; never a value."""
    with opened(load_config(api_url=api_url)) as client:
        _show(client.secrets(scope), as_json=as_json)


def get(scope: Scope, key: Key, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Print a secret, and nothing else."""
    with opened(load_config(api_url=api_url)) as client:
        value = client.secret(scope, key)
    say({"scope": scope, "key": key, "value": value}, value, as_json=as_json)


def put(
    scope: Scope,
    key: Key,
    file: Annotated[Path | None, typer.Option(help="Holds the value; left out, standard input does.")] = None,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Store a secret, in place of the one before. Its value is not an argument: those of a process can be listed.

    One line end at the end of the value is left out.
    """
    value = _read(file).removesuffix("\n").removesuffix("\r")
    with opened(load_config(api_url=api_url)) as client:
        client.put_secret(scope, key, value)
    say({"scope": scope, "key": key}, f"secret {scope}/{key} stored", as_json=as_json)


def delete(scope: Scope, key: Key, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Delete a secret; sources that use it fail from their next look on."""
    with opened(load_config(api_url=api_url)) as client:
        client.delete_secret(scope, key)
    say({"scope": scope, "key": key}, f"secret {scope}/{key} deleted", as_json=as_json)


def rotate(as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Encrypt every secret anew, under a new key; needs an admin's."""
    with opened(load_config(api_url=api_url)) as client:
        done = client.rotate_secrets()
    said = f"{done['values']} secrets encrypted anew; all are under the key {done['key_id']}"
    say(done, said, as_json=as_json)


def _show(names: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json(names)
    else:
        print("\n".join(names), end="\n" if names else "")


def _read(file: Path | None) -> str:
    if file is None:
        return sys.stdin.read()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file}: cannot be read as text: {error}") from None
