"""``thyme up`` and ``thyme down``: the cluster's commands, added to the CLI through its entry-point group."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from featurelib.errors import ClusterError

if TYPE_CHECKING:
    from cluster.local import ClusterStatus
    from cluster.state import PartStatus

# What a person calls the parts, in the order they are shown.
_TITLES = {
    "online": "online store",
    "gcs-store": "Ray's own store",
    "registry": "registry and key",
    "listeners": "listening sockets",
    "head": "Ray head",
    "node": "Ray worker node",
    "serve": "Serve applications",
    "supervisor": "jobs supervisor",
    "services": "services answer",
}
_MARKS = {"ready": "[green]✓[/]", "failed": "[red]✗[/]", "starting": "[yellow]…[/]", "waiting": "[dim]·[/]"}


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("up")(up)
    app.command("down")(down)


def up() -> None:
    """Start the platform on this machine, or complete a start; fine when it runs already."""
    from cluster import local  # noqa: PLC0415  # process and HTTP libraries; `thyme --help` needs none
    from featurelib.settings import load_settings  # noqa: PLC0415

    console = Console()
    settings = load_settings()
    begun = time.monotonic()
    already = local.status(settings).ready
    with _failing_plainly(console), Live(console=console, refresh_per_second=8, transient=already) as live:
        status = local.up(settings, on_change=lambda now: live.update(_progress(now)))
    seconds = time.monotonic() - begun
    console.print("[green]already running[/]" if already else f"[green]up in {seconds:.1f} s[/]")
    _print_where(console, status)


def down() -> None:
    """Stop the platform: every process, by id. The data stays."""
    from cluster import local  # noqa: PLC0415
    from featurelib.settings import load_settings  # noqa: PLC0415

    console = Console()
    with _failing_plainly(console):
        stopped = local.down(load_settings())
    if stopped.processes:
        console.print(f"stopped {stopped.processes} processes in {stopped.seconds:.1f} s; the data stays")
    else:
        console.print("nothing was running")


@contextmanager
def _failing_plainly(console: Console) -> Iterator[None]:
    try:
        yield
    except ClusterError as error:
        console.print(f"[red]error:[/] {error}", highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


def _progress(status: ClusterStatus) -> Table:
    table = Table.grid(padding=(0, 2))
    lines = {part.name: part for part in status.parts}
    for name, title in _TITLES.items():
        if name in lines:
            table.add_row(_MARKS[lines[name].state], title, _seconds(lines[name]), _remark(lines[name]))
    return table


def _seconds(part: PartStatus) -> str:
    if part.state == "starting":
        return f"{time.time() - part.since:5.1f} s"
    return f"{part.seconds:5.1f} s" if part.seconds else ""


def _remark(part: PartStatus) -> str:
    first_line = part.detail.partition("\n")[0]
    return f"[red]{first_line}[/]" if part.state == "failed" else f"[dim]{first_line}[/]"


def _print_where(console: Console, status: ClusterStatus) -> None:
    from cluster.first_start import credentials_path  # noqa: PLC0415

    table = Table.grid(padding=(0, 2))
    table.add_row("query server", f"{status.query_url}/docs")
    table.add_row("definition service", f"{status.definition_url}/docs")
    table.add_row("Ray dashboard", f"{status.dashboard_url}  (token: {status.data_dir / 'secrets' / 'ray-token'})")
    table.add_row("credentials", str(credentials_path()))
    table.add_row("data, logs", f"{status.data_dir}, {status.data_dir / 'logs'}")
    table.add_row("next", "thyme commit <features.py>   thyme status   thyme query   thyme down")
    console.print(table, highlight=False, soft_wrap=True)
