"""``thyme commit``: compile a module and send it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from featurelib.cli.options import AsJson
from featurelib.cli.progress import waiting
from featurelib.cli.tables import print_json

if TYPE_CHECKING:
    from featurelib.definitions import Commit
    from featurelib.plan import CommitReceipt

_HERE = frozenset({"localhost", "127.0.0.1", "::1"})


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("commit")(commit)


def commit(  # noqa: PLR0913, PLR0917  # one parameter per option
    path: Annotated[Path | None, typer.Argument(help="File of definitions.")] = None,
    module: Annotated[str | None, typer.Option("--module", "-m", help="Dotted module instead of a file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the body and send nothing.")] = False,
    output: Annotated[Path | None, typer.Option(help="With --dry-run: write the body to this file.")] = None,
    message: Annotated[str, typer.Option(help="What the commit is for.")] = "",
    narrowing: Annotated[
        bool, typer.Option("--allow-retention-narrowing", help="Let datasets keep records for a shorter time.")
    ] = False,
    no_backfill: Annotated[bool, typer.Option("--no-backfill", help="Start pipelines without history.")] = False,
    as_json: AsJson = False,
    api_url: Annotated[str | None, typer.Option(envvar="THYME_API_URL", help="Commit URL.")] = None,
) -> None:
    """Commit the definitions of a file or a module."""
    if (path is None) == (module is None):
        raise typer.BadParameter("give either PATH or --module", param_hint="PATH")
    if output is not None and not dry_run:
        raise typer.BadParameter("goes with --dry-run", param_hint="--output")
    options = {"allow_retention_narrowing": narrowing, "backfill": not no_backfill}
    compiled = compile_target(str(path or module), message).model_copy(update=options)
    if dry_run:
        write_body(compiled, output)
        return
    for dataset in unreachable(compiled, api_url):
        print(f"thyme: the source of {dataset} is on localhost, which is another machine there", file=sys.stderr)
    with waiting("committing"):
        receipt = send(compiled, api_url)
    if as_json:
        print_json(receipt.model_dump(mode="json"))
    else:
        show(receipt)


def compile_target(target: str, message: str) -> Commit:
    """The commit of a file or module."""
    from featurelib.compile import compile_module

    return compile_module(target).model_copy(update={"message": message})


def send(compiled: Commit, api_url: str | None) -> CommitReceipt:
    """Post the commit."""
    from featurelib.client import Config, ThymeClient

    with ThymeClient(Config.load().with_overrides(api_url=api_url)) as client:
        return client.commit(compiled)


def unreachable(compiled: Commit, api_url: str | None) -> list[str]:
    """Datasets whose PostgreSQL source is on this machine while the service that will read it is not."""
    from featurelib.client import Config

    if urlsplit(Config.load().with_overrides(api_url=api_url).api_url).hostname in _HERE:
        return []
    tables = [source for source in compiled.sources if source.connector.type == "postgres"]
    return [source.dataset for source in tables if source.connector.config.get("host") in _HERE]


def write_body(compiled: Commit, output: Path | None) -> None:
    """The body as it would be sent, indented."""
    text = compiled.model_dump_json(indent=2)
    if output is None:
        print(text)
    else:
        try:
            output.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise typer.BadParameter(f"{output}: {error.strerror}", param_hint="--output") from None
        print(f"wrote {output}", file=sys.stderr)


def show(receipt: CommitReceipt) -> None:
    """What the commit changed."""
    if receipt.no_op:
        print(f"nothing to do: this is commit {receipt.commit_id} already")
        return
    for key in receipt.changes.added:
        print(f"  + {key}")
    for key in receipt.changes.updated:
        print(f"  ~ {key}")
    print(f"committed {receipt.commit_id}: {_counts(receipt)}")


def _counts(receipt: CommitReceipt) -> str:
    counts = {
        "added": len(receipt.changes.added),
        "updated": len(receipt.changes.updated),
        "unchanged": len(receipt.changes.unchanged),
        "jobs started": receipt.jobs_created,
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items())
