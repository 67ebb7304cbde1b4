"""What a person sees who waits: nothing for a second, then a bar or a spinner; never anything in a pipe or a file."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
# Below this, something that flashes by is worse than nothing.
_SHOWN_AFTER_S = 1.0
# Moving the bar takes 20 µs, and a file has millions of lines.
_MOVED_EVERY_S = 0.1


def tracked(parts: Iterable[T], sizes: Iterable[int], total: int, label: str) -> Iterator[T]:
    """The parts, with a bar on standard error while they are worked on; ``sizes`` are of each, ``total`` of all."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from parts
        return
    due, bar, done = time.monotonic() + _SHOWN_AFTER_S, _bar(console, label, total), 0
    try:
        for part, size in zip(parts, sizes, strict=True):
            yield part
            done += size
            if (now := time.monotonic()) >= due:
                due = now + _MOVED_EVERY_S
                bar.start()
                bar.update(bar.task_ids[0], completed=done)
    finally:
        bar.update(bar.task_ids[0], completed=done)
        bar.stop()


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """A spinner on standard error while the block runs."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    status = console.status(label)
    timer = Timer(_SHOWN_AFTER_S, status.start)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()


def _bar(console: object, label: str, total: int) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)  # type: ignore[arg-type]  # rich is imported late
    bar.add_task(label, total=total)
    return bar
