"""``thyme training-set``: a training set of any size, made by a Ray job of this platform and followed here."""

from __future__ import annotations

import re
import shlex
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer
from rich.console import Console

from featurelib.cli.options import AsJson
from featurelib.cli.tables import print_json
from featurelib.errors import ClusterError

if TYPE_CHECKING:
    from cluster.launcher import Job, Launcher

# Asking the dashboard costs it some milliseconds, and a part takes seconds.
_ASK_EVERY_S = 0.5
_PROGRESS = re.compile(r"training_set_progress.*?parts=(\d+) parts_done=(\d+) rows=(\d+)")
_MADE = re.compile(r"(?P<output>.*): (?P<rows>\d+) rows, sha256 (?P<digest>[0-9a-f]+)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LAST_LINES = 5


class Following(NamedTuple):
    """How far a job is: parts done of how many, of how many rows; ``None`` before its spine is in parts."""

    job: Job
    done: tuple[int, int, int] | None
    output: str


def training_set(  # noqa: PLR0913, PLR0917  # one parameter per option
    featureset: Annotated[str | None, typer.Argument(help="Featureset; left out: that of --like.")] = None,
    spine: Annotated[str | None, typer.Option("--spine", "-i", help="Rows: a file, folder or Delta table.")] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="Folder of the training set, or a URL.")] = "",
    form: Annotated[Literal["parquet", "arrow", "delta"], typer.Option("--format", "-f", help="Of it.")] = "parquet",
    entity_column: Annotated[str | None, typer.Option(help="Column of ids.")] = None,
    timestamp_column: Annotated[str, typer.Option(help="Column of instants.")] = "timestamp",
    knowledge: Annotated[Literal["latest", "as_served"], typer.Option(help="Which records count.")] = "latest",
    like: Annotated[str | None, typer.Option(help="Manifest of the training set to make again.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the one that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a training set of any size as a Ray job; the same command goes on with one that was stopped."""
    if not output:
        raise typer.BadParameter("names the folder of the training set", param_hint="--output")
    options = {
        "--featureset": featureset,
        "--spine": spine and _whole(spine),
        "--output": _whole(output),
        "--format": form,
        "--entity-column": entity_column,
        "--timestamp-column": timestamp_column,
        "--knowledge": knowledge,
        "--like": like and _whole(like),
    }
    given = [part for name, value in options.items() if value for part in (name, value)]
    said = _run(shlex.join(["python", "-m", "jobs.training_set", *given, *(["--overwrite"] if overwrite else [])]))
    made = _MADE.fullmatch(said)
    if as_json and made is not None:
        print_json({"output": made["output"], "rows": int(made["rows"]), "rows_sha256": made["digest"]})
    else:
        typer.echo(said)


def _run(command: str) -> str:
    """The last line that the job printed."""
    from cluster.launcher import Launcher  # an HTTP client; `thyme --help` needs none
    from featurelib.settings import load_settings

    console = Console(stderr=True)
    try:
        with Launcher.of(load_settings()) as launcher:
            ended = _followed(launcher, command, console)
    except ClusterError as error:
        console.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    lines = [line for line in _COLOUR.sub("", ended.output).splitlines() if line.strip()]
    if ended.job.status != "SUCCEEDED":
        typer.echo("\n".join(lines[-_LAST_LINES:]), err=True)
        raise typer.Exit(1)
    return lines[-1]


def _followed(launcher: Launcher, command: str, console: Console) -> Following:
    job_id = f"training-set-{uuid.uuid4().hex[:12]}"
    launcher.submit(command, job_id)
    try:
        with console.status("waiting for the job") as status:
            for now in follow(launcher, job_id):
                if now.done:
                    status.update(f"{now.done[0]} of {now.done[1]} parts of {now.done[2]} rows")
                if not now.job.running:
                    return now
                time.sleep(_ASK_EVERY_S)
    except KeyboardInterrupt:
        launcher.stop(job_id)
        console.print("stopped; the same command goes on with the parts that are left")
        raise typer.Exit(130) from None
    raise ClusterError(f"Ray does not know the job {job_id} any more")


def follow(launcher: Launcher, job_id: str) -> Iterator[Following]:
    """How far the job is, whenever it is asked for, until Ray forgets it."""
    while (job := launcher.job(job_id)) is not None:
        output = launcher.logs(job_id)
        told = _PROGRESS.findall(_COLOUR.sub("", output))
        done = (int(told[-1][1]), int(told[-1][0]), int(told[-1][2])) if told else None
        yield Following(job, done, output)


def _whole(place: str) -> str:
    """A path as the job, which runs elsewhere, finds it; a URL as it is."""
    return place if "://" in place else str(Path(place).expanduser().absolute())
