"""``thyme lineage``: what feeds what."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer

from featurelib.cli.options import ApiUrl, AsJson, load_config, name_of, opened
from featurelib.cli.tables import print_json, print_table

_COLUMNS = ("from", "to", "how", "by")
_IDS = frozenset({"source", "dataset", "pipeline", "featureset", "field", "feature"})


class Direction(StrEnum):
    """Which way from a node."""

    UPSTREAM = "upstream"
    DOWNSTREAM = "downstream"
    BOTH = "both"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("lineage")(lineage)


def lineage(
    node: Annotated[
        str | None,
        typer.Argument(help="Only around this: Name, Name.member, module:Name, or an id such as dataset:Name."),
    ] = None,
    direction: Annotated[Direction, typer.Option("--direction", "-d", help="Which way from it.")] = Direction.BOTH,
    features: Annotated[
        bool, typer.Option("--features", "-f", help="Columns and features too, not definitions alone.")
    ] = False,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Show what feeds what, from sources to featuresets: what would lack data without what."""
    level = "feature" if features or _is_member(node) else "definition"
    with opened(load_config(api_url=api_url)) as client:
        found = client.lineage(_id(node), direction=str(direction), level=level)
    if as_json:
        print_json(found)
    else:
        print_table(_COLUMNS, list(_rows(found)))


def _id(node: str | None) -> str | None:
    """The node as the service names it: the module of ``module:Name`` says nothing there."""
    if node is None or node.partition(":")[0] in _IDS:
        return node
    return name_of(node)


def _is_member(node: str | None) -> bool:
    return node is not None and "." in (_id(node) or "")


def _rows(found: dict[str, Any]) -> Iterator[list[str]]:
    for edge in found["edges"]:
        yield [edge["source"], edge["target"], edge["type"].replace("_", " "), edge.get("via") or ""]
