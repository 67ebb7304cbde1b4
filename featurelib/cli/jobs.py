"""``thyme jobs``: the pipelines that run, how fresh they are, and orders to them."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer

from featurelib.cli.options import ApiUrl, AsJson, load_config, opened
from featurelib.cli.tables import age, number, print_json, print_table

_Name = Annotated[str, typer.Argument(help="The job or its pipeline; NAME@2 names a version.")]
_COLUMNS = ("job", "state", "workers", "event lag", "behind", "in", "out", "late, failed")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Show the jobs: what their workers do and how fresh they are.", invoke_without_command=True
    )
    group.callback()(jobs)
    group.command("list")(listing)
    group.command("scale")(scale)
    group.command("pause")(pause)
    group.command("resume")(resume)
    group.command("restart")(restart)
    app.add_typer(group, name="jobs")


def jobs(
    context: typer.Context,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Show the jobs: what their workers do and how fresh they are."""
    if context.invoked_subcommand is None:
        listing(as_json, api_url)


def listing(as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Show the jobs, as `thyme jobs` alone does."""
    found = load(api_url)
    if as_json:
        print_json(found)
    else:
        show(found)


def scale(
    name: _Name,
    workers: Annotated[int, typer.Argument(min=1, max=64, help="How many workers it shall have, 1 to 64.")],
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Give a pipeline another number of workers, while records go on arriving."""
    with opened(load_config(api_url=api_url)) as client:
        job = client.scale_job(name, workers)
    _say(job, f"shall have {workers} workers; `thyme jobs` shows when it has", as_json=as_json)


def pause(name: _Name, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Have a pipeline stand still; its state and position stay, and it is read as ever."""
    with opened(load_config(api_url=api_url)) as client:
        job = client.pause_job(name)
    _say(job, "shall stand still; `thyme jobs` shows when it does", as_json=as_json)


def resume(name: _Name, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Have a paused pipeline go on from where it stands."""
    with opened(load_config(api_url=api_url)) as client:
        job = client.resume_job(name)
    _say(job, "goes on from where it stands", as_json=as_json)


def restart(name: _Name, as_json: AsJson = False, api_url: ApiUrl = None) -> None:
    """Replace every worker of a pipeline, each after its current step."""
    with opened(load_config(api_url=api_url)) as client:
        job = client.restart_job(name)
    _say(job, "shall have new workers", as_json=as_json)


def _say(job: dict[str, Any], what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(job)
    else:
        print(f"{job['name']} {what}")


def load(api_url: str | None) -> list[dict[str, Any]]:
    """Ask the definition service."""
    with opened(load_config(api_url=api_url)) as client:
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
