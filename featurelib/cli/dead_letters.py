"""``thyme dead-letters``: records that datasets could not take; shown, replayed, dropped."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from featurelib.cli.completion import dataset_names
from featurelib.cli.options import ApiUrl, AsJson, load_config, name_of, opened
from featurelib.cli.tables import print_json, print_table

_COLUMNS = ("id", "at", "reason", "field", "message", "origin", "place", "record")
_Dataset = Annotated[str, typer.Argument(help="Dataset: Name or module:Name.", autocompletion=dataset_names)]
_Ids = Annotated[list[str] | None, typer.Argument(help="Ids, as the list shows them.")]
_All = Annotated[bool, typer.Option("--all", help="All of them.")]
_Reason = Annotated[str, typer.Option("--reason", "-r", help="Only those with this reason.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    made = typer.Typer(
        help="Records that datasets could not take: list, replay, drop.", no_args_is_help=True, rich_markup_mode=None
    )
    made.command("list")(show)
    made.command("replay")(replay)
    made.command("drop")(drop)
    app.add_typer(made, name="dead-letters")


def show(
    dataset: _Dataset,
    reason: _Reason = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Most letters.")] = 50,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Show dead letters, newest first."""
    with opened(load_config(api_url=api_url)) as client:
        found = client.dead_letters(name_of(dataset), reason=reason, limit=limit)
    if as_json:
        print_json(found)
    else:
        print_table(_COLUMNS, [[_text(letter.get(column)) for column in _COLUMNS] for letter in found])


def replay(
    dataset: _Dataset,
    ids: _Ids = None,
    every: _All = False,
    reason: _Reason = "",
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Pass dead letters through the dataset's door again, under the definition of today."""
    chosen = _chosen(ids, every=every)
    with opened(load_config(api_url=api_url)) as client:
        done = client.replay_dead_letters(name_of(dataset), chosen, reason=reason)
    if as_json:
        print_json(done)
    else:
        print(", ".join(f"{count} {name}" for name, count in done.items()))


def drop(
    dataset: _Dataset,
    ids: _Ids = None,
    every: _All = False,
    reason: _Reason = "",
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Remove dead letters for good."""
    chosen = _chosen(ids, every=every)
    with opened(load_config(api_url=api_url)) as client:
        dropped = client.drop_dead_letters(name_of(dataset), chosen, reason=reason)
    if as_json:
        print_json({"dropped": dropped})
    else:
        print(f"{dropped} dropped")


def _chosen(ids: list[str] | None, *, every: bool) -> list[str] | None:
    if every is bool(ids):
        raise typer.BadParameter("name ids, or --all", param_hint="ids")
    return ids or None


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value or "")
