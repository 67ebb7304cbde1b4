"""``thyme plan``: what a commit would do, what it would break, and how much memory its state would take."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurelib.cli.commit import compile_target
from featurelib.cli.options import ApiUrl, AsJson, load_config, opened
from featurelib.cli.progress import waiting
from featurelib.cli.tables import print_json, print_table
from featurelib.errors import MissingDriver

if TYPE_CHECKING:
    from featurelib.definitions import Commit

Json = dict[str, Any]
_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(plan)


def plan(  # noqa: PLR0913, PLR0917  # one parameter per option
    path: Annotated[Path | None, typer.Argument(help="File of definitions.")] = None,
    module: Annotated[str | None, typer.Option("--module", "-m", help="Dotted module instead of a file.")] = None,
    local: Annotated[bool, typer.Option("--local", help="Plan here, for an empty platform; send nothing.")] = False,
    keys: Annotated[int, typer.Option(min=1, help="Keys of each pipeline.")] = 10_000,
    events_per_key: Annotated[int, typer.Option(min=1, help="Rows of each key that reach the aggregate.")] = 1_000,
    over: Annotated[str, typer.Option(help="Time over which a key's rows are spread, such as 30d.")] = "30d",
    distinct: Annotated[int, typer.Option(min=1, help="Distinct values of a key, where each is kept.")] = 100,
    budget: Annotated[str | None, typer.Option(help="Most memory for the state, such as 4GB; exit 1 above it.")] = None,
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Show what a commit would do to the platform, what it would break, and the memory its state would take.

    Nothing is stored. Exit 1: something breaks, so that the commit would be refused, or the state is over the budget.
    """
    if (path is None) == (module is None):
        raise typer.BadParameter("give either PATH or --module", param_hint="PATH")
    limit = None if budget is None else read_size(budget)
    assumed = {"keys": keys, "events_per_key": events_per_key, "over": _checked_span(over), "distinct": distinct}
    compiled = compile_target(str(path or module), "")
    found = {**(load_here(compiled, assumed) if local else load(compiled, assumed, api_url)), "budget_bytes": limit}
    if as_json:
        print_json(found)
    else:
        show(found)
    if limit is not None and found["total_bytes"] > limit:
        print(_over_budget(found, limit), file=sys.stderr)
        raise typer.Exit(1)
    if found["breaks"]:
        raise typer.Exit(1)


def read_size(text: str) -> int:
    """Bytes of ``4GB`` or ``512MiB``.

    Raises:
        BadParameter: it is neither; names the units.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a size; write 4GB, with {', '.join(_UNITS)}", param_hint="--budget")
    return int(float(match[1]) * _UNITS[match[2]])


def _checked_span(over: str) -> str:
    from featurelib.clock import parse_duration

    try:
        parse_duration(over)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--over") from None
    return over


def load(commit: Commit, assumed: Json, api_url: str | None) -> Json:
    """Ask the definition service, which compares with what is committed."""
    with waiting("planning"), opened(load_config(api_url=api_url)) as client:
        return client.plan(commit, assumed=assumed)


def load_here(commit: Commit, assumed: Json) -> Json:
    """Plan the commit on an empty platform, and lay out a key of each of its pipelines."""
    from featurelib.clock import parse_duration
    from featurelib.definitions import Definitions
    from featurelib.plan import plan as planned

    try:
        from featurelib.engine.forecast import forecasts
        from featurelib.engine.sizing import Load
    except ImportError as error:  # the SDK alone is installed
        raise MissingDriver(error.name or "the engine", "engine") from None
    sizes = {name: assumed[name] for name in ("keys", "events_per_key", "distinct")}
    predicted = forecasts(commit, commit, Load(**sizes, over_us=parse_duration(assumed["over"])))
    return {
        "compared_with": None,
        "accepted": True,
        **planned(Definitions(), commit).model_dump(mode="json"),
        "breaks": [],
        "warnings": [],
        "assumed": assumed,
        "pipelines": [{**each.state._asdict(), "held_rows": [h._asdict() for h in each.held]} for each in predicted],
        "total_bytes": sum(each.state.total_bytes for each in predicted),
    }


def show(found: Json) -> None:
    """Changes, steps, what breaks, and the prediction per pipeline."""
    before = found["compared_with"]
    said = f"with commit {before}" if before else "with an empty platform: every definition counts as new"
    print(f"commit {found['commit_id']}, compared {said}")
    for mark, kind in (("+", "added"), ("~", "updated")):
        for key in found["changes"][kind]:
            print(f"  {mark} {key}")
    if found["no_op"]:
        print("nothing to do: all of it is committed")
    _show_steps(found["steps"])
    _show_breaks(found["breaks"])
    for warning in found["warnings"]:
        print(f"warning: {warning}")
    if found["pipelines"]:
        _show_prediction(found)


def _show_steps(steps: list[Json]) -> None:
    if steps:
        print("\nsteps")
    for step in steps:
        print(f"  {_described(step)}")


def _show_breaks(breaks: list[Json]) -> None:
    if breaks:
        print(f"\nwould be refused: {len(breaks)} {'thing breaks' if len(breaks) == 1 else 'things break'}")
    for each in breaks:
        place = f"{each['file']}:{each['line']}  " if each.get("file") else ""
        print(f"  {place}{each['subject']}: {each['message']}  [{each['code']}]")
        if each.get("hint"):
            print(f"    {each['hint']}")


def _show_prediction(found: Json) -> None:
    load = found["assumed"]
    each = f"{load['keys']:,} keys with {load['events_per_key']:,} rows each over {load['over']}"
    print(f"\nonline store, predicted for {each}")
    columns = ("pipeline", "fields per key", "bytes per key", "bytes per row", "total")
    print_table(columns, [_line(state, load) for state in found["pipelines"]])
    print(f"total {shown_size(found['total_bytes'])}")
    for state in found["pipelines"]:
        for note in _notes(state, load):
            print(note)


def _line(state: Json, load: Json) -> list[str]:
    per_row = state["bytes_per_key"] / load["events_per_key"]
    numbers = (f"{state['fields_per_key']:,}", f"{state['bytes_per_key']:,}", f"{per_row:,.1f}")
    return [state["pipeline"], *numbers, shown_size(state["total_bytes"])]


def _notes(state: Json, load: Json) -> list[str]:
    name, bound = state["pipeline"], state["bytes_per_distinct"]
    held = [
        f"{name} keeps in its workers' memory: {row['step']}, {row['bytes_per_row']} B a row"
        for row in state["held_rows"]
    ]
    if bound is None:
        return held
    text = f"each of the {load['distinct']:,} assumed adds {bound:,} B to its key, and nothing bounds their number"
    return [f"{name} keeps every distinct value of a key: {text}", *held]


def _described(step: Json) -> str:
    """A step as its name and what it is about."""
    subject = next(step[key] for key in ("definition", "dataset", "pipeline") if key in step)
    text = f"{step['step'].replace('_', ' ')} {subject}"
    return f"{text}, {_history(step['backfill'])}" if "backfill" in step else text


def _history(backfill: Json) -> str:
    from featurelib.clock import format_instant

    if not backfill["enabled"]:
        return "without history"
    since = backfill["since_us"]
    return "with all history" if since is None else f"with history since {format_instant(since)}"


def _over_budget(found: Json, limit: int) -> str:
    largest = max(found["pipelines"], key=lambda state: int(state["total_bytes"]))
    return (
        f"the predicted state takes {shown_size(found['total_bytes'])}, over the budget of {shown_size(limit)}; "
        f"most of it is {largest['pipeline']} with {shown_size(largest['total_bytes'])}"
    )


def shown_size(size: int) -> str:
    """Bytes in the largest decimal unit that leaves a number of at least one."""
    unit = next((name for name in ("TB", "GB", "MB", "kB") if size >= _UNITS[name]), "B")
    return f"{size / _UNITS[unit]:,.1f} {unit}" if unit != "B" else f"{size} B"
