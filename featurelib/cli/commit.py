"""``thyme commit``: compile a module and send it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from featurelib.definitions import Commit
    from featurelib.plan import CommitReceipt


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("commit")(commit)


def commit(
    path: Annotated[Path | None, typer.Argument(help="File of definitions.")] = None,
    module: Annotated[str | None, typer.Option("--module", "-m", help="Dotted module instead of a file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the body and send nothing.")] = False,
    output: Annotated[Path | None, typer.Option(help="With --dry-run: write the body to this file.")] = None,
    message: Annotated[str, typer.Option(help="What the commit is for.")] = "",
    api_url: Annotated[str | None, typer.Option(envvar="THYME_API_URL", help="Commit URL.")] = None,
) -> None:
    """Commit the definitions of a file or a module."""
    if (path is None) == (module is None):
        raise typer.BadParameter("give either PATH or --module", param_hint="PATH")
    if output is not None and not dry_run:
        raise typer.BadParameter("goes with --dry-run", param_hint="--output")
    compiled = compile_target(str(path or module), message)
    if dry_run:
        write_body(compiled, output)
    else:
        show(send(compiled, api_url))


def compile_target(target: str, message: str) -> Commit:
    """The commit of a file or module."""
    from featurelib.compile import compile_module

    return compile_module(target).model_copy(update={"message": message})


def send(compiled: Commit, api_url: str | None) -> CommitReceipt:
    """Post the commit."""
    from featurelib.client import Config, ThymeClient

    with ThymeClient(Config.load().with_overrides(api_url=api_url)) as client:
        return client.commit(compiled)


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
