"""``thyme consistency``: whether what was served is what the records say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from featurelib.cli.options import ApiUrl, AsJson, load_config, name_of, opened
from featurelib.cli.tables import number, print_json, print_table

_COLUMNS = ("of", "feature", "compared", "different", "rate", "causes", "worst")
_MOST_WORST = 3


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("consistency")(consistency)


def consistency(
    target: Annotated[str | None, typer.Argument(help="Only this featureset or dataset.")] = None,
    hours: Annotated[int, typer.Option(min=1, max=336, help="How far back.")] = 24,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Show how often values that were served differed from history; exit 1 where nothing explains a difference."""
    with opened(load_config(api_url=api_url)) as client:
        found = client.consistency(None if target is None else name_of(target), hours=hours)
    if as_json:
        print_json(found)
    elif found["checked_until"] is None:
        print("nothing has been compared yet: the monitor has not begun")
    else:
        print_table(_COLUMNS, list(_rows(found)), whole=_COLUMNS[:2])
        print(f"reads up to {found['checked_until']}; `POST /query-runs/<id>/replay` asks one of them again")
    if any(each["causes"].get("unknown") for each in found["features"]):
        raise typer.Exit(1)


def _rows(found: dict[str, Any]) -> Iterator[list[str]]:
    for each in found["features"]:
        yield [
            each["target"],
            each["feature"],
            number(each["compared"]),
            number(each["different"]),
            f"{100 * each['rate']:.2f} %",
            ", ".join(f"{cause} {number(count)}" for cause, count in each["causes"].items()),
            ", ".join(f"{who['entity_id'] or who['query_run']} {who['times']}" for who in each["worst"][:_MOST_WORST]),
        ]
