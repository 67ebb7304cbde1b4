"""What is known of the columns that come to a dataset, so that each change of them is told once.

A dataset's shape is a note beside its log: the kinds its columns had when they first came, and the drift told of. A
drift stays part of the shape until an hour after it was last seen, so that producers of two forms that take turns do
not tell of each other at every batch.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from featurelib.clock import HOUR, MINUTE, Clock, Instant
from featurelib.definitions import DatasetDef, ref
from featurelib.engine.drift import Drift, Runs, Sight, compare, kinds_of_declared
from featurelib.stores.log import Log

_NOTE = "shape"
_FORGOTTEN_AFTER_US = HOUR
# The last sight of a drift that goes on is written down no more often than this.
_REFRESHED_EVERY_US = 10 * MINUTE
# Records whose column names are data would otherwise fill the store with them.
_MOST_NEW_COLUMNS = 100
_MORE = Drift("new", "…", "more")


class Shape(NamedTuple):
    """The kinds of values of each declared column when they first came, and when each drift was last seen."""

    kinds: Mapping[str, tuple[str, ...]]
    seen: Mapping[Drift, Instant]

    def text(self) -> str:
        """The stored form."""
        return json.dumps({"kinds": self.kinds, "seen": [[*drift, at] for drift, at in self.seen.items()]})

    @classmethod
    def read(cls, text: str) -> Shape:
        """From the stored form; empty text is a shape of which nothing is known."""
        tree = json.loads(text) if text else {"kinds": {}, "seen": []}
        kinds = {name: tuple(each) for name, each in tree["kinds"].items()}
        return cls(kinds, {Drift(change, col, kind, tuple(was)): at for change, col, kind, was, at in tree["seen"]})


def as_detail(drift: Sequence[Drift]) -> dict[str, Any]:
    """How drift is shown: per change the columns, with the kind their values are of and the kinds they were of."""
    return {
        "new": {each.column: each.kind for each in drift if each.change == "new"},
        "missing": [each.column for each in drift if each.change == "missing"],
        "retyped": {
            each.column: {"before": " or ".join(each.before), "now": each.kind}
            for each in drift
            if each.change == "retyped"
        },
    }


class Shapes:
    """The shapes of datasets. Safe to share between threads; processes agree through the log's notes."""

    def __init__(self, log: Log, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._known: dict[str, str] = {}
        self._runs: dict[str, Runs] = {}
        self._lock = threading.Lock()

    def observe(self, sight: Sight, dataset: DatasetDef) -> list[Drift]:
        """Compare a batch with what came before. The whole drift if any of it is not told of yet, else nothing.

        Raises:
            StoreUnavailable: nothing was compared.
        """
        if not sight.rows:
            return []
        name, now = ref(dataset), self._clock.now()
        with self._lock:
            gone = self._runs.setdefault(name, Runs()).add(sight, dataset)
            before = self._known.get(name, "")
            while True:
                shape, drift, untold = _next(Shape.read(before), sight, dataset, gone, now)
                after = before if shape is None else shape.text()
                if after == before or self._log.replace_note(name, _NOTE, before, after):
                    self._known[name] = after
                    return drift if untold else []
                before = self._log.note(name, _NOTE)

    def drift(self, dataset: DatasetDef) -> list[Drift]:
        """The drift that was seen lately.

        Raises:
            StoreUnavailable: the log does not answer.
        """
        return list(Shape.read(self._log.note(ref(dataset), _NOTE)).seen)


def _next(
    known: Shape, sight: Sight, dataset: DatasetDef, gone: Sequence[str], now: Instant
) -> tuple[Shape | None, list[Drift], bool]:
    """The shape after a batch, ``None`` if it needs no writing; the batch's drift; whether some of it is untold."""
    kinds = {**kinds_of_declared(sight, dataset), **known.kinds}
    drift = _bounded(compare(sight, dataset, known.kinds, gone), known)
    untold = any(each not in known.seen for each in drift)
    forgotten = [each for each, at in known.seen.items() if each not in drift and now - at > _FORGOTTEN_AFTER_US]
    stale = any(now - known.seen.get(each, now) > _REFRESHED_EVERY_US for each in drift)
    if not (untold or forgotten or stale or kinds != known.kinds):
        return None, drift, False
    seen = {each: at for each, at in known.seen.items() if each not in forgotten} | dict.fromkeys(drift, now)
    return Shape(kinds, seen), drift, untold


def _bounded(drift: Sequence[Drift], known: Shape) -> list[Drift]:
    """The drift with a new column as it was first told of, and no more new columns than are kept."""
    told = {each.column: each for each in known.seen if each.change == "new"}
    kept = []
    for each in drift:
        if each.change != "new":
            kept.append(each)
        elif each.column in told or len(told) < _MOST_NEW_COLUMNS:
            kept.append(told.setdefault(each.column, each))
        else:
            kept.append(_MORE)
    return list(dict.fromkeys(kept))
