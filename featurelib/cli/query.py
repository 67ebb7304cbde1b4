"""``thyme query`` and ``thyme lookup``: features of entities, the row of a dataset."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurelib.cli.tables import Format, print_rows

if TYPE_CHECKING:
    from featurelib.client import Config
    from featurelib.result import ThymeResult

_TEXT = frozenset({"str", "datetime"})
_QueryUrl = Annotated[str | None, typer.Option(envvar="THYME_QUERY_URL", help="Query server.")]
_Module = Annotated[
    str | None, typer.Option("--module", "-m", help="Module of the definition; not needed, the name alone counts.")
]
_ApiKey = Annotated[str | None, typer.Option(envvar="THYME_API_KEY", help="Key.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("query")(query)
    app.command("lookup")(lookup)


def query(  # noqa: PLR0913, PLR0917  # one parameter per option
    ref: Annotated[str, typer.Argument(help="Featureset: Name or module:Name.")],
    entity: Annotated[list[str], typer.Option("--entity", "-e", help="Id; repeat, a,b, or @file of lines.")],
    form: Annotated[Format, typer.Option("--format", "-f", help="How to print.")] = Format.TABLE,
    inputs: Annotated[list[str] | None, typer.Option("--input", help="Requested feature: name=value.")] = None,
    at: Annotated[str | None, typer.Option(help="Read as of this instant (one entity).")] = None,
    limit: Annotated[int, typer.Option(help="Most rows of a table.")] = 50,
    module: _Module = None,  # noqa: ARG001  # names are unique on the platform
    query_url: _QueryUrl = None,
    api_key: _ApiKey = None,
) -> None:
    """Features of one or more entities."""
    ids = read_ids(entity)
    if at is not None and len(ids) != 1:
        raise typer.BadParameter("takes exactly one entity", param_hint="--at")
    result = ask(name_of(ref), ids, read_inputs(inputs or []), at, _config(query_url, api_key))
    show(result, form, limit)


def lookup(  # noqa: PLR0917  # one parameter per option
    ref: Annotated[str, typer.Argument(help="Dataset: Name or module:Name.")],
    entity: Annotated[str, typer.Option("--entity", "-e", help="Key.")],
    at: Annotated[str | None, typer.Option(help="Read as of this instant.")] = None,
    form: Annotated[Format, typer.Option("--format", "-f", help="How to print.")] = Format.TABLE,
    module: _Module = None,  # noqa: ARG001  # names are unique on the platform
    query_url: _QueryUrl = None,
    api_key: _ApiKey = None,
) -> None:
    """The row of a dataset."""
    from featurelib.client import ThymeClient

    with ThymeClient(_config(query_url, api_key)) as client:
        result = client.lookup(name_of(ref), entity, timestamp=at)
    if not len(result):
        print(f"{name_of(ref)} has no row for {entity}", file=sys.stderr)
    show(result, form, 1)


def ask(name: str, ids: list[str], given: dict[str, str], at: str | None, config: Config) -> ThymeResult:
    """One read: of one entity, or of all in a batch."""
    from featurelib.client import ThymeClient

    with ThymeClient(config) as client:
        inputs = typed_inputs(given, client.input_types(name) if given else {})
        if len(ids) == 1:
            return client.query(name, ids[0], inputs, timestamp=at)
        return client.query_batch(name, ids, inputs)


def show(result: ThymeResult, form: Format, limit: int) -> None:
    """The rows on stdout, the audit record of the read on stderr."""
    from featurelib.client import Config

    rows = result.to_dict()
    shown = rows[:limit] if form is Format.TABLE else rows
    print_rows(result.columns, shown, form)
    if len(shown) < len(rows):
        print(f"{len(rows) - len(shown)} more rows; --limit shows more", file=sys.stderr)
    if result.query_run_id:
        print(f"Query run: {result.query_run_id}", file=sys.stderr)
        page = Config.load().query_run_url(result.query_run_id)
        if page:
            print(f"Results: {page}", file=sys.stderr)


def name_of(ref: str) -> str:
    """The class half of ``module:Class``."""
    return ref.rpartition(":")[2]


def read_ids(given: list[str]) -> list[str]:
    """Ids from repeated options, comma lists and ``@file``."""
    found: list[str] = []
    for each in given:
        if each.startswith("@"):
            found += _lines(Path(each[1:]))
        else:
            found += [part for part in each.split(",") if part]
    if not found:
        raise typer.BadParameter("names no entity", param_hint="--entity")
    return found


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}", param_hint="--entity") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_inputs(given: list[str]) -> dict[str, str]:
    """``name=value`` pairs, the values as they were typed."""
    found = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{each!r} is not name=value", param_hint="--input")
        found[name] = text
    return found


def typed_inputs(given: dict[str, str], types: dict[str, str]) -> dict[str, Any]:
    """The values to send: of a ``str`` feature the text as typed, of any other what it is as JSON, else the text."""
    return {name: text if types.get(name) in _TEXT else _json_or_text(text) for name, text in given.items()}


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _config(query_url: str | None, api_key: str | None) -> Config:
    from featurelib.client import Config

    return Config.load().with_overrides(query_url=query_url, api_key=api_key)
