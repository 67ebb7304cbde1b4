"""``thyme lookup``: the row of a dataset."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from featurelib.cli.completion import dataset_names
from featurelib.cli.options import ApiKey, AsJson, Module, QueryUrl, load_config, name_of, opened
from featurelib.cli.results import Form, Output, show
from featurelib.cli.tables import Format


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("lookup")(lookup)


def lookup(  # noqa: PLR0913, PLR0917  # one parameter per option
    ref: Annotated[str, typer.Argument(help="Dataset: Name or module:Name.", autocompletion=dataset_names)],
    entity: Annotated[str, typer.Option("--entity", "-e", help="Key.")],
    at: Annotated[str | None, typer.Option(help="Read as of this instant.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Where each value came from.")] = False,
    form: Form = Format.TABLE,
    output: Output = None,
    as_json: AsJson = False,
    module: Module = None,  # noqa: ARG001  # names are unique on the platform
    query_url: QueryUrl = None,
    api_key: ApiKey = None,
) -> None:
    """The row of a dataset."""
    with opened(load_config(query_url=query_url, api_key=api_key)) as client:
        result = client.lookup(name_of(ref), entity, timestamp=at, explain=explain)
    if not len(result):
        print(f"{name_of(ref)} has no row for {entity}", file=sys.stderr)
    show(result, Format.JSON if as_json else form, output, 1)
