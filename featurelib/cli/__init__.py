"""``thyme``: one file per noun. A command loads typed values, then shows them; only the loading differs.

Exit codes: 0, 1 for an error of the platform or the user's definitions, 2 for wrong options. Errors go to
stderr. What costs time to import is imported inside a command, so that ``thyme --help`` stays quick. Other
packages add commands through the entry-point group ``thyme.cli``: a callable that takes the app.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import entry_points
from typing import Any

import typer
from typer.core import TyperGroup

from featurelib.cli import (
    backfill,
    codegen,
    commit,
    consistency,
    dead_letters,
    discover,
    erase,
    events,
    init,
    inspect,
    jobs,
    keys,
    lineage,
    log,
    login,
    lookup,
    plan,
    principals,
    query,
    query_offline,
    search,
    secrets,
    stats,
    status,
    training_sets,
    version,
)
from featurelib.errors import ThymeError

# In the order of `thyme --help`: start, define, read, run, look after.
_NOUNS = (
    init,
    discover,
    login,
    commit,
    plan,
    codegen,
    log,
    query,
    query_offline,
    training_sets,
    lookup,
    inspect,
    search,
    lineage,
    status,
    jobs,
    backfill,
    events,
    consistency,
    stats,
    dead_letters,
    erase,
    keys,
    principals,
    secrets,
    version,
)


class Commands(TyperGroup):
    """The command group; turns our errors into a message and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        _say_no_retries()
        try:
            return super().invoke(ctx)
        except ThymeError as error:
            show_error(error)
            raise typer.Exit(1) from error


def _say_no_retries() -> None:
    """Keep stdout for results: structlog, where it is installed, would print each further attempt there."""
    from stamina.instrumentation import set_on_retry_hooks

    set_on_retry_hooks([])


def show_error(error: ThymeError) -> None:
    """What happened, what to do about it, and the correlation id, on stderr."""
    print(error, file=sys.stderr)
    for note in getattr(error, "__notes__", []):
        print(note, file=sys.stderr)
    if error.remedy:
        print(f"[{error.code}] {error.remedy}", file=sys.stderr)


@cache
def build() -> typer.Typer:
    """The application with its own commands and those of installed packages."""
    made = typer.Typer(
        cls=Commands,
        name="thyme",
        help="Thyme on Ray: one definition, one engine, the same number everywhere.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for noun in _NOUNS:
        noun.register(made)
    for point in entry_points(group="thyme.cli"):
        try:
            point.load()(made)
        except ImportError as error:
            # The SDK alone is installed: defining, committing and querying need none of the platform.
            print(f"thyme: the commands of {point.name} are not available: {error}", file=sys.stderr)
    return made


def __getattr__(name: str) -> typer.Typer:
    """``app``, built when it is first asked for: a package that adds to it may have been imported before this one."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return build()
