"""``thyme jobs``: the pipelines that run, how fresh they are, and how many workers each has."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer

from featurelib.cli.tables import age, number, print_json, print_table

ApiUrl = Annotated[str | None, typer.Option(envvar="THYME_API_URL", help="Definition service.")]
_COLUMNS = ("job", "state", "workers", "event lag", "behind", "in", "out", "late, failed")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Show the jobs: what their workers do and how fresh they are.", invoke_without_command=True
    )
    group.callback()(jobs)
    group.command("scale")(scale)
    app.add_typer(group, name="jobs")


def jobs(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    api_url: ApiUrl = None,
) -> None:
    """Show the jobs: what their workers do and how fresh they are."""
    if context.invoked_subcommand is not None:
        return
    found = load(api_url)
    if as_json:
        print_json(found)
    else:
        show(found)


def scale(
    name: Annotated[str, typer.Argument(help="The job or its pipeline; NAME@2 names a version.")],
    workers: Annotated[int, typer.Argument(min=1, max=64, help="How many workers it shall have, 1 to 64.")],
    api_url: ApiUrl = None,
) -> None:
    """Give a pipeline another number of workers, while records go on arriving."""
    from featurelib.client import Config, ThymeClient

    with ThymeClient(Config.load().with_overrides(api_base=api_url)) as client:
        job = client.scale_job(name, workers)
    print(f"{job['name']} shall have {workers} workers; `thyme jobs` shows when it has")


def load(api_url: str | None) -> list[dict[str, Any]]:
    """Ask the definition service."""
    from featurelib.client import Config, ThymeClient

    with ThymeClient(Config.load().with_overrides(api_base=api_url)) as client:
        return client.jobs()


def show(found: list[dict[str, Any]]) -> None:
    """The jobs as people read them, and below what those that do not run have said."""
    print_table(_COLUMNS, [_row(job) for job in found], whole=_COLUMNS[:2])
    for job in found:
        said = "; ".join(filter(None, (_workers(job), str(job.get("detail") or ""))))
        if said:
            print(f"{_title(job)}: {said}")


def behind(fresh: dict[str, Any]) -> str:
    """How many records wait, and how long the oldest of them has waited: ``12,345, 4.2 s``."""
    return ", ".join(filter(None, (number(fresh.get("records_behind")), age(fresh.get("waiting_s")))))


def _row(job: dict[str, Any]) -> list[str]:
    # A service that tells less leaves cells empty.
    fresh = job.get("freshness") or {}
    return [
        _title(job),
        str(job.get("state", "")),
        str(job.get("partition_count", "")),
        age(fresh.get("event_time_lag_s")),
        behind(fresh),
        number(fresh.get("rows_in")),
        number(fresh.get("rows_out")),
        ", ".join(number(fresh[member]) for member in ("rows_late", "rows_failed") if member in fresh),
    ]


def _title(job: dict[str, Any]) -> str:
    version = job.get("version", 1)
    return str(job["name"]) if version == 1 else f"{job['name']}@{version}"


def _workers(job: dict[str, Any]) -> str:
    """What they do, where they do not do the same: ``3 running, 1 stalled``."""
    states = Counter(worker["state"] for worker in job.get("workers") or ())
    if len(states) <= 1:
        return ""
    return ", ".join(f"{count} {state}" for state, count in states.most_common())
