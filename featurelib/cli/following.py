"""Waiting for something that the platform works on, with a bar on a terminal that shows how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from featurelib.errors import ThymeError

if TYPE_CHECKING:
    from rich.progress import Progress

Found = dict[str, Any]
_AGAIN_S = 0.5


def followed(
    found: Found, ask: Callable[[Found], Found], over: Collection[str], done: Callable[[Found], tuple[int, int | None]]
) -> Found:
    """What is found once its ``state`` is one of those that are final.

    Args:
        found: what is there now.
        ask: finds it again, after a pause.
        over: the final states.
        done: how much of how much is done.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        return _until_over(found, ask, over, lambda _: None)
    with _bar(console) as bar:
        return _until_over(found, ask, over, lambda now: _advance(bar, now["state"], *done(now)))


def _until_over(
    found: Found, ask: Callable[[Found], Found], over: Collection[str], look: Callable[[Found], None]
) -> Found:
    while found["state"] not in over:
        look(found)
        try:
            found = ask(found)
        except ThymeError as error:
            if not error.retryable:
                raise
            # The service is being replaced; what it was asked for goes on.
            time.sleep(_AGAIN_S)
    return found


def _advance(bar: Progress, state: str, completed: int, total: int | None) -> None:
    bar.update(bar.task_ids[0], description=state, completed=completed, total=total)


def _bar(console: Any) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True)
    bar.add_task("requested", total=None)
    return bar
