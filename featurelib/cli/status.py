"""``thyme status``: what is committed, what runs, and whether both services answer."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import typer

from featurelib.cli.tables import print_json, print_table


class Status(NamedTuple):
    """The definition service's status, and which services answer."""

    status: dict[str, Any]
    services: dict[str, str]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    api_url: Annotated[str | None, typer.Option(envvar="THYME_API_URL", help="Definition service.")] = None,
    query_url: Annotated[str | None, typer.Option(envvar="THYME_QUERY_URL", help="Query server.")] = None,
) -> None:
    """Show what is committed and how it runs."""
    found = load(api_url, query_url)
    if as_json:
        print_json(found._asdict())
    else:
        show(found)


def load(api_url: str | None, query_url: str | None) -> Status:
    """Ask both services.

    Raises:
        ServiceUnavailable: the definition service does not answer.
    """
    from featurelib.client import Config, ThymeClient

    config = Config.load().with_overrides(api_base=api_url, query_url=query_url)
    with ThymeClient(config) as client:
        body = client.status()
        up = client.is_up(config.query_url)
    return Status(body, {"definition_service": "up", "query_server": "up" if up else "down"})


def show(found: Status) -> None:
    """Services, jobs, backfills, the newest commit and recent events."""
    for name, state in found.services.items():
        print(f"{name}: {state}")
    newest = found.status.get("latest_commit")
    print(f"latest commit: {newest['id']} at {newest['created_at']}" if newest else "latest commit: none")
    names = [entry["name"] for entry in found.status.get("featuresets", [])]
    print(f"featuresets: {', '.join(names) or 'none'}")
    _section("jobs", found.status, ("name", "state", "partition_count", "rows", "lag", "applied_until", "detail"))
    _section("sources", found.status, ("dataset", "connector_type", "rows_in", "rows_dead", "last_error"))
    _section("backfills", found.status, ("job_name", "source_dataset", "status", "records_ingested"))
    _section("recent_events", found.status, ("created_at", "severity", "event_type", "message"))


def _section(name: str, body: dict[str, Any], columns: tuple[str, ...]) -> None:
    entries = body.get(name) or []
    if entries:
        print(f"\n{name.replace('_', ' ')}")
        print_table(columns, [[_text(entry.get(column)) for column in columns] for entry in entries])


def _text(value: Any) -> str:
    return "" if value is None else str(value)
