"""Earlier registry versions, compiled: what a replay of a recorded run reads by."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Protocol

from featurelib.definitions import Definitions
from serve_apps.current import Current, Extractors, Snapshot, compile_all

# A snapshot of 100 featuresets takes some 10 MB; replays of a day's runs rarely meet more commits than these.
_MOST_KEPT = 4


class Source(Protocol):
    """The part of the registry this needs."""

    def definitions_at(self, version: int) -> Definitions:
        """Every definition as it stood at a version."""
        ...


class Versions:
    """Compiles the definitions of a registry version once, and keeps the last few. Blocks; for any thread."""

    def __init__(self, source: Source, current: Current, extractors: Extractors) -> None:
        self._source = source
        self._current = current
        self._extractors = extractors
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Snapshot] = OrderedDict()

    def at(self, version: int) -> Snapshot:
        """The definitions of a version, compiled.

        Raises:
            StoreUnavailable: the registry does not answer.
            CorruptState: a definition cannot be read by this version of the code.
        """
        with self._lock:
            known = self._known(version)
            if known is None:
                known = self._compiled(version)
            self._kept[version] = known
            self._kept.move_to_end(version)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
            return known

    def _known(self, version: int) -> Snapshot | None:
        current = self._current.snapshot
        return current if current.version == version else self._kept.get(version)

    def _compiled(self, version: int) -> Snapshot:
        definitions = self._source.definitions_at(version)
        # Most versions are of keys and of rescaling, not of definitions.
        for like in (self._current.snapshot, *self._kept.values()):
            if like.definitions == definitions:
                return _moved(like, version)
        plans, views, broken = compile_all(definitions, self._extractors.runner)
        keys = self._current.snapshot.keys
        return Snapshot(version, None, definitions, keys, plans, views, broken)


def _moved(snapshot: Snapshot, version: int) -> Snapshot:
    return Snapshot(version, None, snapshot.definitions, snapshot.keys, snapshot.plans, snapshot.views, snapshot.broken)
