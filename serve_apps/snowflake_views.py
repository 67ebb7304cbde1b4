"""Stream sources and feature views by the names and versions a Snowflake client knows them by.

A stream source is a dataset that no pipeline makes. A feature view is a featureset, or a dataset that is read by key:
the output of a pipeline, or an indexed one. Its version is ``v`` and a number: of a dataset its declared version, of a
featureset, which declares none, the number of its revision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from featurelib.definitions import DatasetDef, Definitions
from featurelib.engine.program import Program
from featurelib.engine.read_plan import View
from featurelib.stores.registry import Identity, Registry
from featurelib.stores.revisions import Revisions
from serve_apps.current import Snapshot

_VERSION = re.compile(r"[vV]([1-9][0-9]{0,8})")


class Consumer(NamedTuple):
    """A feature view that reads a stream source, and the pipelines it reads it through; or why it cannot be read."""

    name: str
    version: str
    programs: tuple[Program, ...]
    broken: str = ""


def number_of(version: str) -> int | None:
    """``"v3"`` → 3; ``None`` for anything else."""
    found = _VERSION.fullmatch(version)
    return int(found[1]) if found else None


def version_name(number: int) -> str:
    """3 → ``"v3"``."""
    return f"v{number}"


def stream_source(definitions: Definitions, name: str) -> DatasetDef | None:
    """The dataset behind a stream source; ``None`` where there is none, or a pipeline makes it."""
    return None if definitions.producer(name) is not None else definitions.dataset(name)


def consumers(snapshot: Snapshot, revisions: Mapping[str, int], source: str) -> tuple[Consumer, ...]:
    """The feature views that read a stream source, featuresets first, each kind by name.

    A featureset reads what its features look up. What it takes from other featuresets, or its extractors look up, is
    computed when it is asked for and is not a view of its own. A dataset that featuresets look up is theirs: it is a
    view of its own only where none does.

    Args:
        snapshot: what is committed.
        revisions: by featureset, the number of its revision.
        source: the stream source's name.
    """
    reading = {name: view for name, view in sorted(snapshot.views.items()) if _reads(view, source)}
    found, looked_up = [], set[str]()
    for featureset in sorted(snapshot.definitions.featuresets, key=lambda each: each.name):
        mine = {f.lookup.dataset: None for f in featureset.features if f.lookup and f.lookup.dataset in reading}
        looked_up |= mine.keys()
        if mine:
            programs = tuple(reading[name].program for name in mine)
            version, broken = version_name(revisions.get(featureset.name, 1)), snapshot.broken.get(featureset.name, "")
            found.append(Consumer(featureset.name, version, programs, broken))
    found += [
        Consumer(name, version_name(view.dataset.version), (view.program,))
        for name, view in reading.items()
        if name not in looked_up
    ]
    return tuple(found)


def _reads(view: View, source: str) -> bool:
    return any(dataset.name == source for dataset in view.program.sources)


class FeaturesetRevisions:
    """The numbers of the revisions of featuresets. Blocks, once after each commit; safe to share between threads."""

    def __init__(self, registry: Registry) -> None:
        self._revisions = Revisions(registry.database)
        self._known: tuple[Definitions, Mapping[str, int]] | None = None
        self._versions: dict[tuple[str, int], int] = {}

    def of(self, definitions: Definitions) -> Mapping[str, int]:
        """By featureset, the number of the revision that is committed.

        Raises:
            StoreUnavailable: the registry does not answer.
        """
        known = self._known
        if known is None or known[0] is not definitions:
            known = self._known = (definitions, self._revisions.newest("featureset"))
        return known[1]

    def registry_version(self, featureset: str, number: int) -> int:
        """The last registry version in which an earlier revision of a featureset was committed.

        Raises:
            StoreUnavailable: the registry does not answer.
        """
        known = self._versions.get((featureset, number))
        if known is None:
            history = self._revisions.of(Identity("featureset", featureset))
            following = next(each for each in history if each.revision == number + 1)
            commit = self._revisions.commit(following.commit_id)
            assert commit is not None  # revisions are joined with commits
            known = self._versions[featureset, number] = commit.version - 1
        return known
