"""``thyme search``: finds definitions by words, tags, owners and projects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from featurelib.cli.options import ApiUrl, AsJson, load_config, opened
from featurelib.cli.tables import print_json, print_table

_COLUMNS = ("kind", "name", "owner", "project", "tags", "description")
_FACETS = ("tags", "owners", "projects")
_Labels = list[str] | None


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("search")(search)


def search(  # noqa: PLR0913, PLR0917  # one parameter per option
    words: Annotated[
        list[str] | None, typer.Argument(help="Each in a name, a feature, a column, a label or the description.")
    ] = None,
    kind: Annotated[
        _Labels, typer.Option("--kind", "-k", help="featureset, dataset, pipeline or source; repeat.")
    ] = None,
    tag: Annotated[_Labels, typer.Option("--tag", "-t", help="Tag, or tag:value; with several, all of them.")] = None,
    owner: Annotated[_Labels, typer.Option("--owner", "-o", help="Owner; with several, any of them.")] = None,
    project: Annotated[str | None, typer.Option("--project", "-p", help="Only of this project.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="Most of each kind.")] = 50,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Find what is committed, best first; without words or options, all of it."""
    with opened(load_config(api_url=api_url)) as client:
        found = client.search(
            " ".join(words or ()), kinds=kind or (), tags=tag or (), owners=owner or (), project=project, limit=limit
        )
    if as_json:
        print_json(found)
    else:
        show(found)


def show(found: dict[str, Any]) -> None:
    """One line per definition, and below what they have in common."""
    print_table(_COLUMNS, list(_rows(found)))
    for facet in _FACETS:
        counts = ", ".join(f"{each['name']} {each['count']}" for each in found.get(facet) or ())
        if counts:
            print(f"{facet}: {counts}")


def _rows(found: dict[str, Any]) -> Iterator[list[str]]:
    for kind in ("featureset", "dataset", "pipeline", "source"):
        for record in found.get(f"{kind}s") or ():
            about = record.get("metadata") or {}
            tags = ", ".join(f"{name}:{value}" if value else name for name, value in (about.get("tags") or {}).items())
            name = str(record.get("name") or record.get("dataset"))
            marked = f"{name} (deprecated)" if about.get("deprecated") else name
            said = (about.get("owner"), about.get("project"), tags, about.get("description"))
            yield [kind, marked, *(str(each or "") for each in said)]
