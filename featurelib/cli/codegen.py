"""``thyme codegen``: typed stubs of a module's datasets and featuresets."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from featurelib.cli.commit import compile_target
from featurelib.cli.options import AsJson
from featurelib.cli.tables import print_json


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(
        help="Write code from definitions.", no_args_is_help=True, rich_markup_mode=None, add_completion=False
    )
    group.callback()(_only_commands)
    group.command("python")(python)
    app.add_typer(group, name="codegen")


def _only_commands() -> None:
    """Write code from definitions."""


def python(
    target: Annotated[Path | None, typer.Argument(metavar="[PATH]", help="File of definitions.")] = None,
    *,
    out: Annotated[Path, typer.Option("--out", help="Folder for the stubs; it is made when missing.")],
    path: Annotated[Path | None, typer.Option("--path", help="File of definitions, instead of PATH.")] = None,
    module: Annotated[
        str | None, typer.Option("--module", "-m", help="Dotted module instead of a file. Deprecated: use PATH.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that differ.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a typed stub (.pyi) for every dataset and featureset, and one for the client that reads them."""
    given = [str(each) for each in (target, path, module) if each is not None]
    if len(given) != 1:
        raise typer.BadParameter("give one file of definitions", param_hint="PATH")
    if module is not None:
        print("thyme: --module is deprecated; give the file", file=sys.stderr)
    files = load(given[0])
    write(files, out, force=force)
    if as_json:
        print_json({"folder": str(out), "files": sorted(files)})
    else:
        print(f"wrote {len(files)} stubs to {out}")


def load(target: str) -> dict[str, str]:
    """The stubs of a file or module: file name → text."""
    from featurelib.codegen import stubs

    return stubs(compile_target(target, ""))


def write(files: Mapping[str, str], folder: Path, *, force: bool) -> None:
    """All files, or none when one that differs stands in the way and ``force`` is not given."""
    try:
        differing = [name for name, text in files.items() if _differs(folder / name, text)]
        if differing and not force:
            text = f"{folder / differing[0]} holds something else; --force replaces it"
            raise typer.BadParameter(text, param_hint="--out")
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{folder}: {error.strerror}", param_hint="--out") from None


def _differs(path: Path, text: str) -> bool:
    return path.exists() and path.read_bytes() != text.encode()
