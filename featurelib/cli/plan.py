"""``thyme plan``: what a commit would do, and how much memory its state would take."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from featurelib.cli.commit import compile_target
from featurelib.cli.tables import print_json, print_table
from featurelib.errors import MissingDriver

if TYPE_CHECKING:
    from featurelib.definitions import Commit
    from featurelib.engine.sizing import Held, Load, StateSize
    from featurelib.plan import Plan

_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})")


class Forecast(NamedTuple):
    """A pipeline's state in the online store, and the rows that it keeps in its workers' memory."""

    state: StateSize
    held: list[Held]


class Planned(NamedTuple):
    """A plan and what its state would take."""

    plan: Plan
    load: Load
    forecasts: list[Forecast]

    @property
    def total_bytes(self) -> int:
        """State of all pipelines."""
        return sum(forecast.state.total_bytes for forecast in self.forecasts)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(plan)


def plan(  # noqa: PLR0913, PLR0917  # one parameter per option
    path: Annotated[Path | None, typer.Argument(help="File of definitions.")] = None,
    module: Annotated[str | None, typer.Option("--module", "-m", help="Dotted module instead of a file.")] = None,
    keys: Annotated[int, typer.Option(min=1, help="Keys of each pipeline.")] = 10_000,
    events_per_key: Annotated[int, typer.Option(min=1, help="Rows of each key that reach the aggregate.")] = 1_000,
    over: Annotated[str, typer.Option(help="Time over which a key's rows are spread, such as 30d.")] = "30d",
    distinct: Annotated[int, typer.Option(min=1, help="Distinct values of a key, where each is kept.")] = 100,
    budget: Annotated[str | None, typer.Option(help="Most memory for the state, such as 4GB; exit 1 above it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a commit would do and predict the memory its state takes; nothing is sent."""
    if (path is None) == (module is None):
        raise typer.BadParameter("give either PATH or --module", param_hint="PATH")
    limit = None if budget is None else read_size(budget)
    found = load(compile_target(str(path or module), ""), _load(keys, events_per_key, over, distinct))
    if as_json:
        print_json(as_tree(found, limit))
    else:
        show(found)
    if limit is not None and found.total_bytes > limit:
        print(_over_budget(found, limit), file=sys.stderr)
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


def _load(keys: int, events_per_key: int, over: str, distinct: int) -> Load:
    from featurelib.clock import parse_duration

    try:
        from featurelib.engine.sizing import Load
    except ImportError as error:  # the SDK alone is installed
        raise MissingDriver(error.name or "the engine", "engine") from None
    try:
        span = parse_duration(over)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--over") from None
    return Load(keys=keys, events_per_key=events_per_key, over_us=span, distinct=distinct)


def load(commit: Commit, assumed: Load) -> Planned:
    """Plan the commit on an empty platform, and lay out a key of each of its pipelines."""
    from featurelib.definitions import Definitions
    from featurelib.engine.program import Program, pipelines_of
    from featurelib.engine.sizing import held_rows, state_size
    from featurelib.plan import plan as planned

    programs = [Program.compile(pipeline, commit) for pipeline in pipelines_of(commit)]
    forecasts = [Forecast(state_size(program, assumed), held_rows(program, assumed)) for program in programs]
    return Planned(planned(Definitions(), commit), assumed, forecasts)


def as_tree(found: Planned, limit: int | None) -> dict[str, Any]:
    """The plan and the prediction as JSON values; sizes in bytes."""
    return {
        "compared_with": None,
        **found.plan.model_dump(mode="json"),
        "assumed": {
            "keys": found.load.keys,
            "events_per_key": found.load.events_per_key,
            "over": _span(found.load),
            "distinct": found.load.distinct,
        },
        "pipelines": [
            {**forecast.state._asdict(), "held_rows": [held._asdict() for held in forecast.held]}
            for forecast in found.forecasts
        ],
        "total_bytes": found.total_bytes,
        "budget_bytes": limit,
    }


def show(found: Planned) -> None:
    """Changes, steps, and the prediction per pipeline."""
    print(f"commit {found.plan.commit_id}, compared with an empty platform: every definition counts as new")
    for key in found.plan.changes.added:
        print(f"  + {key}")
    print("\nsteps")
    for step in found.plan.steps:
        print(f"  {_described(step)}")
    if found.forecasts:
        _show_prediction(found)


def _show_prediction(found: Planned) -> None:
    each = f"{found.load.keys:,} keys with {found.load.events_per_key:,} rows each over {_span(found.load)}"
    print(f"\nonline store, predicted for {each}")
    columns = ("pipeline", "fields per key", "bytes per key", "bytes per row", "total")
    print_table(columns, [_line(forecast.state, found.load) for forecast in found.forecasts])
    print(f"total {shown_size(found.total_bytes)}")
    for forecast in found.forecasts:
        for note in _notes(forecast, found.load):
            print(note)


def _line(state: StateSize, load: Load) -> list[str]:
    per_row = state.bytes_per_key / load.events_per_key
    numbers = (f"{state.fields_per_key:,}", f"{state.bytes_per_key:,}", f"{per_row:,.1f}")
    return [state.pipeline, *numbers, shown_size(state.total_bytes)]


def _notes(forecast: Forecast, load: Load) -> list[str]:
    name, bound = forecast.state.pipeline, forecast.state.bytes_per_distinct
    held = [f"{name} keeps in its workers' memory: {h.step}, {h.bytes_per_row} B a row" for h in forecast.held]
    if bound is None:
        return held
    text = f"each of the {load.distinct:,} assumed adds {bound:,} B to its key, and nothing bounds their number"
    return [f"{name} keeps every distinct value of a key: {text}", *held]


def _described(step: Any) -> str:
    """A step as its name and what it is about."""
    tree = step.model_dump(mode="json", exclude={"digest"})
    name, subject = tree.pop("step"), next(tree[key] for key in ("definition", "dataset", "pipeline") if key in tree)
    text = f"{name.replace('_', ' ')} {subject}"
    return f"{text}, {_history(step.backfill)}" if "backfill" in tree else text


def _history(backfill: Any) -> str:
    from featurelib.clock import format_instant

    if not backfill.enabled:
        return "without history"
    return (
        "with all history" if backfill.since_us is None else f"with history since {format_instant(backfill.since_us)}"
    )


def _span(load: Load) -> str:
    from featurelib.clock import format_duration

    return format_duration(load.over_us)


def _over_budget(found: Planned, limit: int) -> str:
    largest = max(found.forecasts, key=lambda forecast: forecast.state.total_bytes).state
    return (
        f"the predicted state takes {shown_size(found.total_bytes)}, over the budget of {shown_size(limit)}; "
        f"most of it is {largest.pipeline} with {shown_size(largest.total_bytes)}"
    )


def shown_size(size: int) -> str:
    """Bytes in the largest decimal unit that leaves a number of at least one."""
    unit = next((name for name in ("TB", "GB", "MB", "kB") if size >= _UNITS[name]), "B")
    return f"{size / _UNITS[unit]:,.1f} {unit}" if unit != "B" else f"{size} B"
