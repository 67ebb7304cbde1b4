"""``thyme logs``: the platform's feed of events."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from featurelib.cli.tables import print_json, print_table

_COLUMNS = ("created_at", "severity", "event_type", "subject", "message")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("logs")(logs)


def logs(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most entries.")] = 50,
    severity: Annotated[str | None, typer.Option("--severity", "-s", help="info, warn or error.")] = None,
    event_type: Annotated[str | None, typer.Option("--type", "-t", "--event-type", help="Only this type.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only about this thing.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    api_url: Annotated[str | None, typer.Option(envvar="THYME_API_URL", help="Definition service.")] = None,
) -> None:
    """Show recent events, newest first."""
    found = load(limit, severity, event_type, subject, api_url)
    if as_json:
        print_json(found)
    else:
        print_table(_COLUMNS, [[str(entry.get(column) or "") for column in _COLUMNS] for entry in found])


def load(
    limit: int, severity: str | None, event_type: str | None, subject: str | None, api_url: str | None
) -> list[dict[str, Any]]:
    """Ask the definition service."""
    from featurelib.client import Config, ThymeClient

    with ThymeClient(Config.load().with_overrides(api_base=api_url)) as client:
        return client.events(limit=limit, severity=severity, event_type=event_type, subject=subject)
