"""``thyme stats``: what features and columns are like, day by day, and how far they drifted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from featurelib.cli.options import ApiUrl, AsJson, load_config, name_of, opened
from featurelib.cli.tables import number, print_json, print_table

_COLUMNS = ("feature", "day", "rows", "nulls", "distinct", "mean", "min", "median", "99 %", "max", "drift", "most")
_MOST_TEXTS = 3


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("stats")(stats)


def stats(  # noqa: PLR0913  # an option each
    name: Annotated[str, typer.Argument(help="A featureset; with --dataset, a dataset.")],
    only: Annotated[str | None, typer.Argument(help="Only this feature or column.")] = None,
    *,
    dataset: Annotated[bool, typer.Option("--dataset", "-d", help="The name is a dataset's.")] = False,
    since: Annotated[str | None, typer.Option(help="The first day; left out, six days before the last.")] = None,
    until: Annotated[str | None, typer.Option(help="The last day; left out, today.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Days that drift is measured against, as FIRST..LAST; left out, the days before each day."),
    ] = None,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Show what values were like on each day: how many, how many null, how spread, and how far from before (PSI)."""
    days: dict[str, Any] = {"since": since, "until": until, **_reference(reference)}
    with opened(load_config(api_url=api_url)) as client:
        ask = client.dataset_statistics if dataset else client.statistics
        found = ask(name_of(name), only, **days)
    if as_json:
        print_json(found)
        return
    print_table(_COLUMNS, list(_rows(found)), whole=_COLUMNS[:2])
    if found["without"]:
        print(f"without statistics: {', '.join(found['without'])}")


def _reference(given: str | None) -> dict[str, str | None]:
    if given is None:
        return {}
    first, dots, last = given.partition("..")
    if not (first and dots and last):
        raise typer.BadParameter(f"expected two days as 2026-03-01..2026-03-07, found {given!r}")
    return {"reference_since": first, "reference_until": last}


def _rows(found: dict[str, Any]) -> Iterator[list[str]]:
    for column in found["columns"]:
        for day in column["days"]:
            quantiles = day["quantiles"]
            yield [
                column["name"],
                day["day"] if day["complete"] else f"{day['day']} *",
                number(day["rows"]),
                f"{100 * day['null_rate']:.1f} %",
                number(day["distinct"]),
                *(_short(day[name]) for name in ("mean", "min")),
                *(_short(quantiles.get(share)) for share in ("0.5", "0.99")),
                _short(day["max"]),
                "" if day["drift"] is None else f"{day['drift']['psi']:.3f}",
                ", ".join(f"{text['value']} {number(text['rows'])}" for text in day["texts"][:_MOST_TEXTS]),
            ]


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
