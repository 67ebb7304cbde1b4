"""What a dataset's door tells people: the same events, whichever way the records came."""

from __future__ import annotations

from collections.abc import Sequence

from featurelib.engine.drift import Drift
from featurelib.stores.registry import NewEvent
from featurelib.stores.shapes import as_detail

_MOST_NAMED = 5


def drift_event(dataset: str, source: str, drift: Sequence[Drift]) -> NewEvent:
    """The columns that come differ from before; says which and of what kind, never a value."""
    shown = [_told(each) for each in drift[:_MOST_NAMED]]
    if len(drift) > _MOST_NAMED:
        shown.append(f"{len(drift) - _MOST_NAMED} more")
    return NewEvent(
        event_type="schema_drift",
        severity="warn",
        source=source,
        subject=dataset,
        message=f"the columns that come have changed: {', '.join(shown)}",
        detail=as_detail(drift),
    )


def dropped_event(dataset: str, source: str, dropped: int, kept: int) -> NewEvent:
    """Dead letters made room for newer ones and are lost."""
    return NewEvent(
        event_type="dead_letters_dropped",
        severity="warn",
        source=source,
        subject=dataset,
        message=f"{dropped} of the oldest dead letters were dropped: a partition keeps {kept}",
        detail={"dropped": dropped, "kept": kept},
    )


def _told(drift: Drift) -> str:
    if drift.change == "new":
        return f"{drift.column} is not declared ({drift.kind})"
    if drift.change == "missing":
        return f"{drift.column} is missing"
    return f"{drift.column} is {drift.kind}, was {' or '.join(drift.before)}"
