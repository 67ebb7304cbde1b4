"""How the rows of a read are shown, or written to a file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurelib.cli.tables import Format, age, print_json, print_rows, print_table, write_csv

if TYPE_CHECKING:
    from featurelib.result import ThymeResult

Form = Annotated[Format, typer.Option("--format", "-f", help="How to print or write.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file; parquet and arrow need one.")]
_EXPLAINED = ("feature", "value", "status", "from", "event time", "age", "pipeline", "why")


def show(result: ThymeResult, form: Format, output: Path | None, limit: int) -> None:
    """The rows on stdout or in a file, the audit record of the read on stderr."""
    if output is not None:
        write(result, form, output)
    elif form.is_binary:
        raise typer.BadParameter(f"{form} is written to a file", param_hint="--output")
    elif result.explained:
        show_explained(result, form)
    else:
        show_rows(result, form, limit)
    for line in run_lines(result):
        print(line, file=sys.stderr)


def show_rows(result: ThymeResult, form: Format, limit: int) -> None:
    """The rows; of a table as many as people read."""
    rows = result.to_dict()
    shown = rows[:limit] if form is Format.TABLE else rows
    print_rows(result.columns, shown, form)
    if len(shown) < len(rows):
        print(f"{len(rows) - len(shown)} more rows; --limit shows more", file=sys.stderr)


def show_explained(result: ThymeResult, form: Format) -> None:
    """One line per feature: its value and where that came from."""
    explained = result.explained
    if form is not Format.TABLE:
        print_json(explained)
        return
    print_table(_EXPLAINED, [_explained(name, about) for name, about in explained.items()], whole=_EXPLAINED[:1])


def _explained(name: str, about: Mapping[str, Any]) -> list[str]:
    cells = (about.get("event_time"), age(about.get("age_seconds")), about.get("pipeline"), about.get("why"))
    return [name, _shown(about.get("value")), str(about.get("status", "")), _origin(about), *map(_text, cells)]


def _origin(about: Mapping[str, Any]) -> str:
    """The column of which row, or the extractor with what it was given, or what else fills the feature."""
    row, extractor = about.get("row"), about.get("extractor")
    if row:
        return f"{row['dataset']}.{row['column']} of {row['key']}"
    if extractor:
        given = ", ".join(f"{name}={_shown(value)}" for name, value in extractor["inputs"].items())
        return f"{extractor['name']}({given})"
    return str(about.get("source", ""))


def write(result: ThymeResult, form: Format, path: Path) -> None:
    """The rows in a file; a table is written as CSV."""
    try:
        if form is Format.PARQUET:
            result.sink_parquet(path)
        elif form is Format.ARROW:
            result.sink_arrow(path)
        elif form is Format.JSON:
            path.write_text(json.dumps(result.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        else:
            with path.open("w", encoding="utf-8", newline="") as file:
                write_csv(result.columns, result.to_dict(), file)
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror or error}", param_hint="--output") from None
    print(f"wrote {len(result)} rows to {path}", file=sys.stderr)


def check_writable(path: Path, option: str, *, replaced: bool = False) -> None:
    """Refuse a file that could not be written later, before anything is done for it.

    Args:
        path: the file.
        option: named it.
        replaced: whether another file takes its place, for which its folder is written.

    Raises:
        BadParameter: it is a folder, lies in none, or may not be written.
    """
    found = path if path.exists() and not replaced else path.parent
    if path.is_dir():
        why = "it is a folder"
    elif not found.exists():
        why = f"there is no folder {found}"
    elif found != path and not found.is_dir():
        why = f"{found} is no folder"
    elif not os.access(found, os.W_OK):
        why = f"{found} may not be written"
    else:
        return
    raise typer.BadParameter(f"{path}: {why}", param_hint=option)


def run_lines(result: ThymeResult) -> Iterator[str]:
    """Which query run the read was, and its page where there is a front end."""
    from featurelib.client import Config

    if not result.query_run_id:
        return
    yield f"Query run: {result.query_run_id}"
    page = Config.load().query_run_url(result.query_run_id)
    if page:
        yield f"Results: {page}"


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
