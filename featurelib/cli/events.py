"""``thyme logs``: the platform's feed of events."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated, Any

import typer

from featurelib.cli.options import ApiUrl, AsJson, load_config, opened
from featurelib.cli.tables import print_json, print_table

_COLUMNS = ("created_at", "severity", "event_type", "subject", "message")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("logs")(logs)


def logs(  # noqa: PLR0917  # one parameter per option
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most entries.")] = 50,
    severity: Annotated[str | None, typer.Option("--severity", "-s", help="info, warn or error.")] = None,
    event_type: Annotated[str | None, typer.Option("--type", "-t", "--event-type", help="Only this type.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only about this thing.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Then show new ones as they happen, oldest first, until Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Show recent events, newest first."""
    if follow:
        _follow({"severity": severity, "event_type": event_type, "subject": subject}, limit, api_url, as_json=as_json)
        return
    found = load(limit, severity, event_type, subject, api_url)
    if as_json:
        print_json(found)
    else:
        print_table(_COLUMNS, [[str(entry.get(column) or "") for column in _COLUMNS] for entry in found])


def load(
    limit: int, severity: str | None, event_type: str | None, subject: str | None, api_url: str | None
) -> list[dict[str, Any]]:
    """Ask the definition service."""
    with opened(load_config(api_url=api_url)) as client:
        return client.events(limit=limit, severity=severity, event_type=event_type, subject=subject)


def _follow(filters: dict[str, str | None], limit: int, api_url: str | None, *, as_json: bool) -> None:
    """One line per event: the recent ones, oldest first, then each new one, none of them twice."""
    with opened(load_config(api_url=api_url)) as client, suppress(KeyboardInterrupt):
        recent = client.events(limit=limit, **filters)
        for entry in reversed(recent):
            _print_line(entry, as_json=as_json)
        for entry in client.follow_events(after=recent[0]["id"] if recent else "", **filters):
            _print_line(entry, as_json=as_json)


def _print_line(entry: dict[str, Any], *, as_json: bool) -> None:
    text = json.dumps(entry, ensure_ascii=False) if as_json else "  ".join(str(entry[name]) for name in _COLUMNS)
    print(text, flush=True)
