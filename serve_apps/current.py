"""What this replica serves now: read plans, views and keys of one registry version, swapped in whole.

Nothing announces a commit: every replica polls the registry's version number, so a message that is lost
delays nobody. The poll and the compilation run in a thread, away from the event loop that answers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from featurelib.definitions import Definitions
from featurelib.engine.extractor import INLINE, Runner
from featurelib.engine.read_plan import ReadPlan, View, compile_plan, compile_views
from featurelib.errors import BrokenFeatureset, NotFound, ThymeError
from featurelib.stores.keys import KeyRecord
from featurelib.stores.registry import CommitRecord
from featurelib.stores.standings import Standing
from serve_apps.auth import KeyRing

# Callers may name any features of a featureset, so there is no end of their sets.
_MOST_NARROWED = 1_000
_log = structlog.get_logger("thyme.serve")


class Source(Protocol):
    """The part of the registry this needs."""

    def version(self) -> int:
        """A number that moves with every commit and key change."""
        ...

    def definitions(self) -> Definitions:
        """Everything committed."""
        ...

    def keys(self) -> list[KeyRecord]:
        """Every API key."""
        ...

    def standings(self) -> dict[str, Standing]:
        """By a principal's id, what it may do."""
        ...

    def latest_commit(self) -> CommitRecord | None:
        """The newest commit."""
        ...


class Generations(Protocol):
    """The part of the online reader this needs."""

    async def refresh(self, pipelines: Sequence[str]) -> None:
        """Look which generation of each pipeline is served."""
        ...


class Extractors(Protocol):
    """How extractors are run; :class:`serve_apps.isolation.Isolation`."""

    runner: Runner

    def refresh(self) -> None:
        """Look which extractors are quarantined."""
        ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One registry version, compiled."""

    version: int
    commit_id: str | None
    definitions: Definitions
    keys: KeyRing
    plans: Mapping[str, ReadPlan]
    views: Mapping[str, View]
    broken: Mapping[str, str]
    _narrowed: dict[tuple[str, tuple[str, ...]], ReadPlan] = field(default_factory=dict, init=False, compare=False)

    def plan(self, featureset: str, features: tuple[str, ...] = ()) -> ReadPlan:
        """The read plan of a featureset; of these features and what they are made of, where any are named.

        Raises:
            NotFound: it is not committed.
            BrokenFeatureset: it is, but cannot be compiled.
        """
        plan = self.plans.get(featureset)
        if plan is None:
            if featureset in self.broken:
                raise BrokenFeatureset(f"featureset {featureset!r} cannot be read: {self.broken[featureset]}")
            raise NotFound(f"featureset {featureset[:128]!r} is not committed")
        return self._of_features(plan, features) if features else plan

    def _of_features(self, plan: ReadPlan, features: tuple[str, ...]) -> ReadPlan:
        key = (plan.featureset, features)
        found = self._narrowed.get(key)
        if found is None:
            found = plan.narrowed(features)
            if len(self._narrowed) < _MOST_NARROWED:
                self._narrowed[key] = found
        return found

    @property
    def pipelines(self) -> tuple[str, ...]:
        """Every pipeline whose state is read."""
        return tuple(view.pipeline for view in self.views.values())


class Current:
    """Holds the snapshot and keeps it current.

    Args:
        source: the registry.
        generations: the online reader.
        extractors: how extractors are run.
        auth: whether a key is required.
    """

    def __init__(self, source: Source, generations: Generations, extractors: Extractors, *, auth: bool) -> None:
        self._source = source
        self._extractors = extractors
        self._generations = generations
        self._auth = auth
        self._lock = threading.Lock()
        self.snapshot = Snapshot(-1, None, Definitions(), KeyRing((), required=auth), {}, {}, {})

    async def refresh(self) -> None:
        """Swap in the registry's version if it moved, and see which generations are served.

        Raises:
            StoreUnavailable: registry or online store does not answer; what was served stays.
        """
        await self._look_at_registry()
        await self._look_at_generations()

    async def watch(self, interval_s: float, stopping: asyncio.Event) -> None:
        """Refresh until ``stopping``; an outage is logged when it begins and when it ends.

        The registry and the online store are each looked at in their own time: one that hangs does not
        hold up the news of the other, a revoked key above all.
        """
        looks = {"registry": self._look_at_registry, "online_store": self._look_at_generations}
        await asyncio.gather(*(self._repeat(name, look, interval_s, stopping) for name, look in looks.items()))

    async def _repeat(
        self, name: str, look: Callable[[], Awaitable[None]], interval_s: float, stopping: asyncio.Event
    ) -> None:
        failing = False
        while not await passed(stopping, interval_s):
            try:
                await look()
            except ThymeError as error:
                if not failing:
                    _log.warning("read_plans_stale", of=name, error=str(error), version=self.snapshot.version)
                failing = True
            else:
                if failing:
                    _log.info("read_plans_current", of=name, version=self.snapshot.version)
                failing = False

    async def _look_at_registry(self) -> None:
        await asyncio.to_thread(self._load)

    async def _look_at_generations(self) -> None:
        await self._generations.refresh(self.snapshot.pipelines)

    def _load(self) -> None:
        with self._lock:
            version = self._source.version()
            while version != self.snapshot.version:
                # A query run names the version its definitions are of: what lands in between is loaded once more.
                found = self._compiled(version)
                version = self._source.version()
                if version == found.version:
                    self.snapshot = found

    def _compiled(self, version: int) -> Snapshot:
        before = self.snapshot
        definitions = self._source.definitions()
        commit = self._source.latest_commit()
        keys = KeyRing(self._source.keys(), self._source.standings(), required=self._auth)
        if definitions == before.definitions:
            plans, views, broken = before.plans, before.views, before.broken
        else:
            self._extractors.refresh()
            plans, views, broken = compile_all(definitions, self._extractors.runner)
            for name, why in broken.items():
                _log.error("broken_definition", name=name, error=why)
        return Snapshot(version, commit.commit_id if commit else None, definitions, keys, plans, views, broken)


async def passed(event: asyncio.Event, within_s: float) -> bool:
    """Wait for an event, but not longer than ``within_s``; whether it happened."""
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


def compile_all(
    definitions: Definitions, runner: Runner = INLINE
) -> tuple[dict[str, ReadPlan], dict[str, View], dict[str, str]]:
    """Every featureset's plan, every readable dataset's view, and what does not compile with its reason."""
    views, failed = compile_views(definitions)
    broken = {name: str(error) for name, error in failed.items()}
    plans: dict[str, ReadPlan] = {}
    for featureset in definitions.featuresets:
        try:
            plans[featureset.name] = compile_plan(featureset, definitions, views, runner)
        except ThymeError as error:
            broken[featureset.name] = str(error)
    return plans, views, broken
