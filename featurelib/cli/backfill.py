"""``thyme backfill``: have the state of a pipeline built anew, watch that, and end it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurelib.cli.following import followed
from featurelib.cli.options import ApiUrl, AsJson, load_config, opened
from featurelib.cli.tables import number, print_json, print_table

if TYPE_CHECKING:
    from featurelib.client import ThymeClient

_COLUMNS = ("id", "pipeline", "state", "rows", "of", "asked for", "detail")
_OVER = frozenset({"complete", "cancelled", "failed", "rolled_back"})
_MB = 1_000_000
_POLL_S = 0.5
_Follow = Annotated[bool, typer.Option("--follow", help="Wait until it is over; a bar shows how far it is.")]
_Id = Annotated[str, typer.Argument(help="Of the backfill; `thyme backfill list` shows it.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Build the state of a pipeline anew, from its records, while it is served.", no_args_is_help=True
    )
    group.command("start")(start)
    group.command("list")(listing)
    group.command("follow")(follow)
    group.command("cancel")(cancel)
    group.command("rollback")(rollback)
    group.command("drop")(drop)
    app.add_typer(group, name="backfill")


def start(
    pipeline: Annotated[str, typer.Argument(help="The pipeline or its job; NAME@2 names a version.")],
    *,
    since: Annotated[str | None, typer.Option(help="Only records dated at or after this instant.")] = None,
    until: Annotated[
        str | None, typer.Option("--until", "--to", help="Only records dated at or before this instant.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would read, write and take.")] = False,
    follow_it: _Follow = False,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Ask for a backfill; with --follow, exit 1 unless it completes."""
    with opened(load_config(api_url=api_url)) as client:
        if dry_run:
            _show_price(client.price_backfill(pipeline, since=since, until=until), as_json=as_json)
            return
        found = client.start_backfill(pipeline, since=since, until=until)
        if follow_it:
            found = _followed(client, found)
    _show(found, as_json=as_json)
    if follow_it:
        _end_as(found)


def listing(
    pipeline: Annotated[str | None, typer.Argument(help="Only of this pipeline.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most backfills.")] = 20,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Show the latest backfills, newest first."""
    with opened(load_config(api_url=api_url)) as client:
        found = client.backfills(pipeline=pipeline, limit=limit)
    if as_json:
        print_json(found)
    else:
        print_table(_COLUMNS, [_row(each) for each in found], whole=_COLUMNS[:3])


def follow(backfill_id: _Id, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Wait until a backfill is over; exit 1 unless it completes."""
    with opened(load_config(api_url=api_url)) as client:
        found = _followed(client, client.backfill(backfill_id))
    _show(found, as_json=as_json)
    _end_as(found)


def cancel(backfill_id: _Id, follow_it: _Follow = False, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """End a backfill; the state that is served stays."""
    with opened(load_config(api_url=api_url)) as client:
        found = client.cancel_backfill(backfill_id)
        if follow_it:
            found = _followed(client, found)
    _show(found, as_json=as_json)


def rollback(backfill_id: _Id, follow_it: _Follow = False, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Serve again what was served before a backfill; it was kept up to date, so nothing is built."""
    with opened(load_config(api_url=api_url)) as client:
        found = client.roll_back_backfill(backfill_id)
        if follow_it:
            found = _followed(client, found)
    _show(found, as_json=as_json)


def drop(backfill_id: _Id, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Free the state that a backfill keeps to go back to."""
    with opened(load_config(api_url=api_url)) as client:
        found = client.drop_backfill(backfill_id)
    _show(found, as_json=as_json)


def _followed(client: ThymeClient, found: dict[str, Any]) -> dict[str, Any]:
    """The backfill once it is over; on a terminal a bar shows how far it is."""

    def ask(now: dict[str, Any]) -> dict[str, Any]:
        time.sleep(_POLL_S)
        return client.backfill(now["id"])

    return followed(found, ask, _OVER, lambda now: (now["rows"], now["rows_expected"]))


def _show(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    said = f": {found['detail']}" if found["detail"] else ""
    print(f"backfill {found['id']} of {found['pipeline']} is {found['state']}{said}")


def _show_price(price: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(price)
        return
    about = "roughly " if price["rough"] else ""
    print(
        f"a backfill of {price['pipeline']} would read {price['records']:,} records"
        f" ({price['archive_bytes'] / _MB:,.1f} MB of the archive), fold {about}{price['rows']:,} rows into"
        f" {price['keys']:,} keys of {price['state_bytes'] / _MB:,.1f} MB, and take {about}{price['seconds']:,.0f} s"
    )


def _end_as(found: dict[str, Any]) -> None:
    if found["state"] != "complete":
        raise typer.Exit(1)


def _row(found: dict[str, Any]) -> list[str]:
    return [
        found["id"],
        found["pipeline"],
        found["state"],
        number(found["rows"]),
        number(found["rows_expected"]),
        found["created_at"],
        found["detail"],
    ]
