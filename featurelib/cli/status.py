"""``thyme status``: what is committed, what runs, and whether both services answer."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import typer

from featurelib.cli import jobs
from featurelib.cli.tables import age, number, print_json, print_table
from featurelib.errors import ThymeError

_UP, _DOWN = "up", "down"
_DATASET_COLUMNS = ("dataset", "event lag", "behind", "to archive", "in", "late, dead", "idle", "watermark")


class Status(NamedTuple):
    """Which services answer, and the definition service's status, or why there is none."""

    status: dict[str, Any]
    services: dict[str, str]
    error: ThymeError | None = None


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status")(status)


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    api_url: Annotated[str | None, typer.Option(envvar="THYME_API_URL", help="Definition service.")] = None,
    query_url: Annotated[str | None, typer.Option(envvar="THYME_QUERY_URL", help="Query server.")] = None,
) -> None:
    """Show what is committed and how it runs; exit 1 when a service is down."""
    found = load(api_url, query_url)
    if as_json:
        print_json({"status": found.status, "services": found.services})
    else:
        show(found)
    if found.error is not None:
        raise found.error
    if _DOWN in found.services.values():
        raise typer.Exit(1)


def load(api_url: str | None, query_url: str | None) -> Status:
    """Ask both services whether they are well, then what runs; an outage is part of the answer."""
    from featurelib.client import Config, ThymeClient

    config = Config.load().with_overrides(api_base=api_url, query_url=query_url)
    with ThymeClient(config) as client:
        asked = {"definition_service": config.api_base, "query_server": config.query_url}
        services = {name: _UP if client.is_up(base) else _DOWN for name, base in asked.items()}
        try:
            return Status(client.status(), services)
        except ThymeError as error:
            return Status({}, services, error)


def show(found: Status) -> None:
    """Services, jobs, backfills, the newest commit and recent events."""
    for name, state in found.services.items():
        print(f"{name}: {state}")
    if found.error is not None:
        return
    newest = found.status.get("latest_commit")
    print(f"latest commit: {newest['id']} at {newest['created_at']}" if newest else "latest commit: none")
    names = [entry["name"] for entry in found.status.get("featuresets", [])]
    print(f"featuresets: {', '.join(names) or 'none'}")
    served = [f"{each['workspace']}/{each['name']}" for each in found.status.get("feature_services") or []]
    if served:
        print(f"feature services: {', '.join(dict.fromkeys(served))}")
    if found.status.get("jobs"):
        print("\njobs")
        jobs.show(found.status["jobs"])
    fresh = [entry for entry in found.status.get("datasets") or [] if entry.get("freshness")]
    _table("datasets", _DATASET_COLUMNS, [_dataset(entry) for entry in fresh], whole=_DATASET_COLUMNS[:1])
    _section("sources", found.status, ("dataset", "connector_type", "rows_in", "rows_dead", "last_error"))
    _section("backfills", found.status, ("job_name", "source_dataset", "status", "records_ingested"))
    _section("recent_events", found.status, ("created_at", "severity", "event_type", "message"))


def _dataset(entry: dict[str, Any]) -> list[str]:
    fresh = entry["freshness"]
    partitions = fresh["partitions"]
    idle = sum(partition["idle"] for partition in partitions)
    # The lowest: what is dated before it is late in every partition.
    watermarks = [partition["watermark"] for partition in partitions if partition["watermark"] is not None]
    return [
        f"{entry['name']}@{entry['version']}",
        age(fresh["event_time_lag_s"]),
        jobs.behind(fresh),
        number(fresh["archive_records_behind"]),
        number(fresh["rows_in"]),
        f"{number(fresh['rows_late'])}, {number(fresh['rows_dead'])}",
        f"{idle} of {len(partitions)}",
        min(watermarks, default=""),
    ]


def _section(name: str, body: dict[str, Any], columns: tuple[str, ...]) -> None:
    entries = body.get(name) or []
    _table(name.replace("_", " "), columns, [[_text(entry.get(column)) for column in columns] for entry in entries])


def _table(title: str, columns: tuple[str, ...], rows: list[list[str]], whole: tuple[str, ...] = ()) -> None:
    if rows:
        print(f"\n{title}")
        print_table(columns, rows, whole=whole)


def _text(value: Any) -> str:
    return "" if value is None else str(value)
