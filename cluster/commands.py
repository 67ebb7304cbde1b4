"""``thyme up`` and ``thyme down``: the cluster's commands, added to the CLI through its entry-point group."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from cluster.training_set import training_set
from featurelib.cli.options import AsJson
from featurelib.cli.tables import print_json
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
    app.command("ray-env")(ray_env)
    app.command("training-set")(training_set)


def up(as_json: AsJson = False) -> None:
    """Start the platform on this machine, or complete a start; fine when it runs already."""
    from cluster import local  # process and HTTP libraries; `thyme --help` needs none
    from featurelib.settings import load_settings

    # Standard output is for the JSON; who waits looks at the other.
    console = Console(stderr=as_json)
    settings = load_settings()
    begun = time.monotonic()
    already = local.status(settings).ready
    with _failing_plainly(console), Live(console=console, refresh_per_second=8, transient=already) as live:
        status = local.up(settings, on_change=lambda now: live.update(_progress(now)))
    seconds = time.monotonic() - begun
    if not console.is_terminal:
        console.print()  # what Live leaves out when it cannot move the cursor
    console.print("[green]already running[/]" if already else f"[green]up in {seconds:.1f} s[/]")
    for warning in local.warnings(settings):
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False, soft_wrap=True)
    if as_json:
        print_json({"already_running": already, "seconds": round(seconds, 1), **_where(status)})
    else:
        _print_where(console, status)


def down(as_json: AsJson = False) -> None:
    """Stop the platform: every process, by id. The data stays."""
    from cluster import local
    from featurelib.settings import load_settings

    console = Console(stderr=as_json)
    with _failing_plainly(console):
        stopped = local.down(load_settings())
    if as_json:
        print_json({"processes": stopped.processes, "seconds": round(stopped.seconds, 1)})
    elif stopped.processes:
        console.print(f"stopped {stopped.processes} processes in {stopped.seconds:.1f} s; the data stays")
    else:
        console.print("nothing was running")


def ray_env(as_json: AsJson = False) -> None:
    """Print the variables Ray's own commands need: eval "$(thyme ray-env)", then `ray job submit …`."""
    from cluster.layout import Layout
    from featurelib.settings import load_settings

    variables = Layout(load_settings()).ray_client_environment()
    if as_json:
        print_json(variables)
        return
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")


@contextmanager
def _failing_plainly(console: Console) -> Iterator[None]:
    try:
        yield
    except ClusterError as error:
        console.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
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
    first_line = (part.error or part.detail).partition("\n")[0]
    return f"[red]{escape(first_line)}[/]" if part.error else f"[dim]{escape(first_line)}[/]"


def _where(status: ClusterStatus) -> dict[str, str]:
    """What a script needs; the Ray dashboard's token is in a file of the data directory."""
    return {
        "query_url": status.query_url,
        "definition_url": status.definition_url,
        "dashboard_url": status.dashboard_url,
        "data_dir": str(status.data_dir),
    }


def _print_where(console: Console, status: ClusterStatus) -> None:
    from cluster.first_start import credentials_path

    lines = {
        "query server": f"{status.query_url}/docs",
        "definition service": f"{status.definition_url}/docs",
        "Ray dashboard": f"{status.dashboard_url} (token: {status.data_dir / 'secrets' / 'ray-token'})",
        "credentials": str(credentials_path()),
        "data and logs": str(status.data_dir),
        "try next": "thyme commit <features.py> · thyme status · thyme query · thyme down",
    }
    for name, value in lines.items():
        console.print(f"  {name:<20}{escape(value)}", highlight=False, soft_wrap=True)
