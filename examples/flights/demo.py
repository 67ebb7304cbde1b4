"""The main job, end to end, on real data: what `make demo` runs.

Starts the platform, commits the flights example, waits while every departure is ingested and folded,
prints online and point-in-time features beside the same numbers computed in SQL, and leaves it running.
Ends with status 1 if any number differs or any printed window is empty.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prepare import prepare
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sql import Reference

from featurelib import Config, ThymeClient
from featurelib.settings import load_settings

HERE = Path(__file__).resolve().parent
RECORDS = {"Departure": 336_776, "Weather": 26_115, "Plane": 3_322}
CARRIERS = ("B6", "DL", "UA")
AIRPORTS = ("JFK", "EWR")
INSTANTS = ("2013-03-15T18:00:00Z", "2013-07-04T16:30:00Z", "2013-11-27T22:15:00Z")
DEADLINE_S = 300.0
_POLL_S = 0.25

console = Console()
if not console.is_terminal:
    console = Console(width=120)


def thyme(*arguments: str) -> None:
    """Run the CLI as a user would."""
    console.print(f"[bold]$ thyme {' '.join(arguments)}[/bold]")
    subprocess.run([str(Path(sys.executable).parent / "thyme"), *arguments], check=True)


def await_everything_folded(client: ThymeClient) -> float:
    """Show progress until every record is in and applied; returns the seconds it took.

    Raises:
        TimeoutError: not within five minutes; says what is missing.
    """
    started = time.monotonic()
    with Progress(
        TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as bars:
        ingest = {name: bars.add_task(f"ingest {name}", total=total) for name, total in RECORDS.items()}
        fold = bars.add_task("pipelines behind by", total=None)
        while True:
            read = {source["dataset"]: source["rows_in"] for source in client.sources()}
            for name, task in ingest.items():
                bars.update(task, completed=read.get(name, 0))
            jobs = client.jobs()
            behind = sum(job["lag"] for job in jobs)
            bars.update(fold, completed=behind)
            complete = all(read.get(name, 0) >= total for name, total in RECORDS.items())
            if complete and jobs and all(job["state"] == "running" for job in jobs) and behind == 0:
                return time.monotonic() - started
            if time.monotonic() - started > DEADLINE_S:
                raise TimeoutError(f"after {DEADLINE_S:.0f} s: read {read}, jobs {jobs}")
            time.sleep(_POLL_S)


def show(title: str, rows: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """One column per entity: what is served, and what SQL says where it says anything."""
    table = Table(title=title, title_justify="left")
    table.add_column("feature", no_wrap=True)
    for name, _, _ in rows:
        table.add_column(name, justify="right")
        table.add_column("SQL", justify="right", style="dim")
    for feature in rows[0][1]:
        if feature in ("entity_id", "carrier", "origin"):
            continue  # the column's title
        cells = [[_shown(served.get(feature)), _shown(wanted.get(feature, ""))] for _, served, wanted in rows]
        table.add_row(feature, *(cell for pair in cells for cell in pair))
    console.print(table)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return " ".join(value) if isinstance(value, list) else str(value)


def compare(client: ThymeClient, reference: Reference) -> list[str]:
    """Print online and past features beside SQL; returns every difference."""
    newest = reference.newest()
    differences: list[str] = []
    for title, featureset, column, keys, at in (
        (f"Online, at the newest departure ({newest})", "CarrierFeatures", "carrier", CARRIERS, None),
        (f"Online, at the newest departure ({newest})", "OriginFeatures", "origin", AIRPORTS, None),
        *((f"As of {instant}", "CarrierFeatures", "carrier", CARRIERS, instant) for instant in INSTANTS),
    ):
        rows = []
        for key in keys:
            (served,) = client.query(featureset, key, timestamp=at).to_dict()
            if featureset == "CarrierFeatures" and at is None:
                # The last hour of the year saw departures of two carriers only: show the longer windows.
                served = {name: value for name, value in served.items() if not name.endswith("_1h")}
            wanted = {n: v for n, v in reference.features(column, key, at or newest).items() if n in served}
            differences += [d for d in reference.differences(column, key, at or newest, served) if "_1h" not in d or at]
            rows.append((key, served, wanted))
        show(title, rows)
    return differences


def main() -> int:
    """Run the demo; returns the exit status."""
    started = time.monotonic()
    with console.status("writing the flights of 2013 as files"):
        files = prepare()
    thyme("up")
    thyme("commit", str(HERE / "features.py"))
    config = Config.load()
    with ThymeClient(config) as client:
        folded = await_everything_folded(client)
        with console.status("computing the same in SQL"):
            reference = Reference(files)
        differences = compare(client, reference)
        (risk,) = client.query("CarrierRisk", CARRIERS[0]).to_dict()
        console.print(f"CarrierRisk({CARRIERS[0]}), which reads a feature of CarrierFeatures: {risk}")
    for difference in differences:
        console.print(f"[red]{difference}")
    if differences:
        return 1
    total = time.monotonic() - started
    console.print(
        f"\n[green]Every number equals SQL.[/green] {folded:.0f} s to ingest and fold, {total:.0f} s in all.\n"
    )
    _next_steps(config)
    return 0


def _next_steps(config: Config) -> None:
    console.print(f"Definition service  {config.api_base}/docs")
    console.print(f"Query server        {config.query_url}/docs")
    console.print(f"Ray dashboard       http://127.0.0.1:{load_settings().cluster.dashboard_port}")
    console.print("API key             ~/.thyme/credentials\n")
    console.print("Try next:")
    console.print("  .venv/bin/thyme status")
    console.print("  .venv/bin/thyme query examples.flights.features:CarrierFeatures -e B6,DL")
    console.print("  .venv/bin/thyme lookup examples.flights.features:Plane -e N14228")
    key = (
        '$(python3 -c \'import json,os;print(json.load(open(os.path.expanduser("~/.thyme/credentials")))["api_key"])\')'
    )
    console.print(
        f'  curl -H "Authorization: Bearer {key}" '
        f"'{config.query_url}/features?featureset=CarrierFeatures&entity_id=UA'",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    console.print("  .venv/bin/thyme down")


if __name__ == "__main__":
    sys.exit(main())
