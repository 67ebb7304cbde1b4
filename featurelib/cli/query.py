"""``thyme query``: features of entities, now or as of an instant."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurelib.cli.completion import featureset_names
from featurelib.cli.options import ApiKey, AsJson, Module, QueryUrl, load_config, name_of, opened
from featurelib.cli.progress import tracked
from featurelib.cli.results import Form, Output, show
from featurelib.cli.tables import Format

if TYPE_CHECKING:
    from featurelib.client import Config, ThymeClient
    from featurelib.result import ThymeResult

_TEXT = frozenset({"str", "datetime"})
_IDS_PER_CALL = 2_000


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("query")(query)


def query(  # noqa: PLR0913, PLR0917  # one parameter per option
    ref: Annotated[str, typer.Argument(help="Featureset: Name or module:Name.", autocompletion=featureset_names)],
    entity: Annotated[list[str], typer.Option("--entity", "-e", help="Id; repeat, a,b, or @file of lines.")],
    form: Form = Format.TABLE,
    output: Output = None,
    inputs: Annotated[list[str] | None, typer.Option("--input", help="Requested feature: name=value.")] = None,
    at: Annotated[str | None, typer.Option(help="Read as of this instant (one entity).")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Where each value came from (one entity).")] = False,
    limit: Annotated[int, typer.Option(help="Most rows of a table.")] = 50,
    as_json: AsJson = False,
    module: Module = None,  # noqa: ARG001  # names are unique on the platform
    query_url: QueryUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Features of one or more entities."""
    ids = read_ids(entity)
    for option, given in (("--at", at is not None), ("--explain", explain)):
        if given and len(ids) != 1:
            raise typer.BadParameter("takes exactly one entity", param_hint=option)
    config = load_config(query_url=query_url, api_key=api_key)
    result = ask(name_of(ref), ids, read_inputs(inputs or []), (at, explain), config)
    show(result, Format.JSON if as_json else form, output, limit)


def ask(name: str, ids: list[str], given: dict[str, str], how: tuple[str | None, bool], config: Config) -> ThymeResult:
    """One read: of one entity, as of an instant and explained where ``how`` says so, or of all in batches."""
    with opened(config) as client:
        inputs = typed_inputs(given, client.input_types(name) if given else {})
        if len(ids) == 1:
            at, explain = how
            return client.query(name, ids[0], inputs, timestamp=at, explain=explain)
        return _batches(client, name, ids, inputs)


def _batches(client: ThymeClient, name: str, ids: Sequence[str], inputs: dict[str, Any]) -> ThymeResult:
    from featurelib.result import joined

    parts = [ids[start : start + _IDS_PER_CALL] for start in range(0, len(ids), _IDS_PER_CALL)]
    shown = tracked(parts, map(len, parts), len(ids), "entities")
    return joined([client.query_batch(name, some, inputs) for some in shown], {"featureset": name})


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
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="--entity") from None
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


def typed_inputs(given: Mapping[str, str], types: Mapping[str, str]) -> dict[str, Any]:
    """The values to send: of a ``str`` feature the text as typed, of any other what it is as JSON, else the text."""
    return {name: text if types.get(name) in _TEXT else _json_or_text(text) for name, text in given.items()}


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
