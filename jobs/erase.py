"""Carries erasures out: from tombstones in the log to nothing left, one step after the other.

A tombstone is obeyed by whoever reads the log or history from the moment it is appended; what follows here removes
the bytes. The order is what makes it safe: nothing is removed from archive and log before every pipeline has passed
the tombstones, since some of them read what is erased once more to take it out of their state. A pipeline that began
meanwhile, or a build of state that is not served, may hold what it can no longer take out: it is cleared, and folded
anew from a history without it.

Every step can be done again; the receipt says where to go on. Runs beside the archive copy, in its thread: the archive
has one writer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from featurelib.clock import MINUTE, Clock, Instant
from featurelib.definitions import DatasetDef, Definitions, ref
from featurelib.engine.keys import KEY_GROUPS
from featurelib.engine.program import Program, compiled, pipelines_of
from featurelib.errors import StoreUnavailable
from featurelib.lineage import downstream
from featurelib.stores.append_file import AppendFile
from featurelib.stores.archive import Archive
from featurelib.stores.audit import PSEUDONYM, Audit
from featurelib.stores.erasures import ErasureRecord, Erasures
from featurelib.stores.log import Log, Tombstone, key_digest
from featurelib.stores.online import OnlineStore, StateName
from featurelib.stores.registry import NewEvent, Registry
from jobs.inputs import input_partitions, lowest_positions
from jobs.wanted import log_datasets

_log = structlog.get_logger(__name__)
# Tombstones whose request died before its receipt was written: looked for seldom, since all datasets are asked.
_ADOPT_EVERY = MINUTE


class _Share(NamedTuple):
    """What one log of the dataset, that of one version, has of an erasure."""

    dataset: DatasetDef
    tombstones: Sequence[Tombstone]

    @property
    def through(self) -> dict[int, int]:
        """Per log partition the offset of its last tombstone."""
        last: dict[int, int] = {}
        for each in self.tombstones:
            last[each.partition] = max(each.offset, last.get(each.partition, -1))
        return last

    @property
    def by_key(self) -> dict[str, int]:
        """Per key the offset of its tombstone."""
        return {each.key: each.offset for each in self.tombstones}


class Eraser:
    """Moves every open erasure as far as it can get now."""

    def __init__(
        self, registry: Registry, log: Log, store: OnlineStore, archive: Archive, file: AppendFile, *, clock: Clock
    ) -> None:
        self._registry = registry
        self._erasures = Erasures(registry.database, clock)
        self._audit = Audit(registry.database)
        self._log = log
        self._store = store
        self._archive = archive
        self._file = file
        self._clock = clock
        self._adopted: Instant | None = None
        self._open: Sequence[ErasureRecord] = ()

    @property
    def waits(self) -> bool:
        """Whether an erasure waits for the archive to hold its tombstones, as far as the last step knew."""
        return any(erasure.state == "applied" for erasure in self._open)

    def step(self) -> bool:
        """Move each open erasure by at most one state; whether one moved.

        Raises:
            StoreUnavailable: a store does not answer; a later step goes on where this one stopped.
        """
        definitions = self._registry.definitions()
        now = self._clock.now()
        if self._adopted is None or not self._adopted <= now < self._adopted + _ADOPT_EVERY:
            self._adopt(definitions)
            self._adopted = now
        self._open = self._erasures.open()
        moved = [self._advance(erasure, definitions) for erasure in self._open]
        return any(moved)

    def _advance(self, erasure: ErasureRecord, definitions: Definitions) -> bool:
        shares = self._shares(erasure, definitions)
        match erasure.state:
            case "accepted":
                return self._apply(erasure, shares, definitions)
            case "applied":
                return self._remove(erasure, shares, definitions)
            case _:
                return self._finish(erasure, shares)

    def _apply(self, erasure: ErasureRecord, shares: Sequence[_Share], definitions: Definitions) -> bool:
        """Wait until every pipeline has passed the tombstones."""
        behind = [program.ref for program in _programs(definitions) if not self._has_passed(program, shares)]
        if behind:
            self._note(erasure, {"waiting_for": behind})
            return False
        self._erasures.move(erasure.id, "applied", {})
        return True

    def _has_passed(self, program: Program, shares: Sequence[_Share], generation: int | None = None) -> bool:
        theirs = {(ref(share.dataset), part): offset for share in shares for part, offset in share.through.items()}
        inputs = input_partitions(program, self._log)
        wanted = {place: theirs[each.address] for place, each in enumerate(inputs) if each.address in theirs}
        if not wanted:
            return True
        state = StateName(program.ref, generation or self._store.generation(program.ref))
        lowest = lowest_positions(program, inputs, self._store.progress(state).standings)
        return all(lowest[place] > offset for place, offset in wanted.items())

    def _remove(self, erasure: ErasureRecord, shares: Sequence[_Share], definitions: Definitions) -> bool:
        """Take the entities out of archive, hot log, dead letters, query runs and events."""
        waiting = [ref(s.dataset) for s in shares if not self._is_archived(s)]
        if waiting:
            self._note(erasure, {"waiting_for": [f"the archive of {name}" for name in waiting]})
            return False
        rows = sum(self._archive.erase(share.dataset, share.by_key) for share in shares)
        if rows or not erasure.progress.get("purged"):
            for share in shares:
                self._archive.purge(share.dataset)
        trimmed = [self._trim(share) for share in shares]
        letters = sum(self._drop_letters(share) for share in shares)
        pseudonyms = {key: PSEUDONYM + key_digest(erasure.dataset, key) for share in shares for key in share.by_key}
        runs = self._audit.erase(_readers(erasure.dataset, definitions), pseudonyms) if pseudonyms else 0
        if pseudonyms:
            self._registry.erase_from_events(pseudonyms)
        done = _added(erasure.progress, archive_rows=rows, dead_letters=letters, query_runs=runs)
        if not all(trimmed):
            self._note(erasure, {**done, "purged": True, "waiting_for": ["the archive of what the hot log holds"]})
            return False
        # Only now: whoever begins after the log is trimmed reads a history without the entities.
        done["rebuilt"] = self._clear_what_may_hold(shares, definitions)
        self._erasures.move(erasure.id, "archived", done)
        return True

    def _is_archived(self, share: _Share) -> bool:
        snapshot = self._archive.snapshot(share.dataset)
        return all(snapshot.archived_offset(part) > offset for part, offset in share.through.items())

    def _trim(self, share: _Share) -> bool:
        """Trim the log to what is not archived; False when too much of that is left to leave no trace of the rest."""
        name, snapshot = ref(share.dataset), self._archive.snapshot(share.dataset)
        renewed = []
        for part in share.through:
            self._log.trim(name, part, snapshot.archived_offset(part))
            renewed.append(self._log.renew(name, part, "log"))
        return all(renewed)

    def _drop_letters(self, share: _Share) -> int:
        """Drop dead letters that name one of the keys, wherever in the record."""
        name, keys = ref(share.dataset), frozenset(share.by_key)
        partitions = self._log.partitions(name)
        found = [
            stored.letter_id
            for stored in self._log.dead.all(name, partitions)
            if keys and _names(stored.letter.record, keys)
        ]
        self._log.dead.delete(name, found)
        for part in sorted({each.partition for each in found}):
            self._log.renew(name, part, "dead")
        return len(found)

    def _clear_what_may_hold(self, shares: Sequence[_Share], definitions: Definitions) -> list[str]:
        """Fence and clear builds of state that have not passed the tombstones; they are folded anew."""
        cleared = []
        erased = {ref(share.dataset) for share in shares if share.tombstones}
        for program in _programs(definitions):
            if not erased & {ref(dataset) for dataset in program.sources}:
                continue
            served, kept = self._store.generation(program.ref), self._store.kept_generation(program.ref) or 0
            for generation in sorted({served - 1, served, kept, max(served, kept) + 1} - {0}):
                if not self._has_passed(program, shares, generation):
                    cleared += self._clear(StateName(program.ref, generation))
        return cleared

    def _clear(self, state: StateName) -> list[str]:
        claims = self._store.claim(state, range(KEY_GROUPS))
        if all(claim.epoch == 1 for claim in claims):
            return []  # nobody ever wrote it
        self._store.clear(state, range(KEY_GROUPS))
        return [f"{state.pipeline}#{state.generation}"]

    def _finish(self, erasure: ErasureRecord, shares: Sequence[_Share]) -> bool:
        """Forget the keys, then have the server's file and the registry's journal written without them."""
        for share in shares:
            self._log.forget_tombstones(ref(share.dataset), share.tombstones)
        if not self._is_rewritten(erasure) or not self._registry.database.settle():
            return False
        self._erasures.move(erasure.id, "complete", _without(erasure.progress, "rewrite", "waiting_for"))
        message = f"{erasure.entities} entities of {erasure.dataset} are erased"
        self._say(erasure, message, {"erasure_id": erasure.id, "entities": erasure.entities, "state": "complete"})
        return True

    def _is_rewritten(self, erasure: ErasureRecord) -> bool:
        now, asked = self._file.rewrites(), erasure.progress.get("rewrite")
        if not now.enabled:
            return True
        if now.busy:
            return False
        if asked is None or asked["run"] != now.run or now.done <= asked["before"] or not now.succeeded:
            self._file.ask()
            asked = {"run": now.run, "before": now.done}
            self._note(erasure, {**erasure.progress, "rewrite": asked, "waiting_for": ["the append-only file"]})
            return False
        return True

    def _shares(self, erasure: ErasureRecord, definitions: Definitions) -> list[_Share]:
        mine = [dataset for dataset in log_datasets(definitions) if dataset.name == erasure.dataset]
        shares = []
        for dataset in mine:
            found = self._log.tombstones(ref(dataset), self._log.partitions(ref(dataset)))
            shares.append(_Share(dataset, [each for each in found if each.erasure == erasure.id]))
        return shares

    def _adopt(self, definitions: Definitions) -> None:
        """Write receipts for tombstones that have none."""
        known = {erasure.id for erasure in self._erasures.open()}
        found: dict[str, list[tuple[DatasetDef, Tombstone]]] = {}
        for dataset in log_datasets(definitions):
            for each in self._log.tombstones(ref(dataset), self._log.partitions(ref(dataset))):
                if each.erasure not in known and self._is_old(dataset, each):
                    found.setdefault(each.erasure, []).append((dataset, each))
        for erasure_id, theirs in found.items():
            name = theirs[0][0].name
            keys = sorted({each.key for _, each in theirs})
            record = ErasureRecord(
                id=erasure_id,
                dataset=name,
                entities=len(keys),
                digests=tuple(key_digest(name, key) for key in keys),
                tombstones={f"{ref(dataset)}/{each.partition}": each.offset for dataset, each in theirs},
                created_at=self._clock.now(),
            )
            self._erasures.adopt(record)
            _log.info("erasure_adopted", erasure=erasure_id, dataset=name)

    def _is_old(self, dataset: DatasetDef, tombstone: Tombstone) -> bool:
        # A younger one may be of a request that is still being answered.
        (accepted,) = self._log.accepted_at([(ref(dataset), tombstone.partition, tombstone.offset)])
        return accepted is None or accepted <= self._clock.now() - _ADOPT_EVERY

    def _note(self, erasure: ErasureRecord, progress: Mapping[str, Any]) -> None:
        if dict(progress) != erasure.progress:
            self._erasures.move(erasure.id, erasure.state, progress)

    def _say(self, erasure: ErasureRecord, message: str, detail: dict[str, Any]) -> None:
        event = NewEvent(event_type="erase", source="erase", subject=erasure.dataset, message=message, detail=detail)
        try:
            self._registry.record_event(event)
        except StoreUnavailable as error:  # it is complete, and its receipt says so
            _log.warning("event_not_recorded", event_type=event.event_type, detail=str(error))


def _programs(definitions: Definitions) -> list[Program]:
    return [compiled(pipeline, definitions) for pipeline in pipelines_of(definitions)]


def _readers(dataset: str, definitions: Definitions) -> list[str]:
    """What query runs are of that may name an entity of a dataset: look-ups of what it feeds, and featuresets."""
    reached = {dataset, *(node.partition(":")[2] for node in downstream(definitions, f"dataset:{dataset}"))}
    return sorted(reached)


def _names(value: Any, keys: frozenset[str]) -> bool:
    """Whether a record, as it came, has one of the keys as a value anywhere."""
    if isinstance(value, Mapping):
        return any(_names(each, keys) for pair in value.items() for each in pair)
    if isinstance(value, list | tuple):
        return any(_names(each, keys) for each in value)
    text = str(value)
    # A piece of input that could not be read is kept as text: there the key is looked for within it.
    return text in keys or any(f'"{key}"' in text for key in keys)


def _added(progress: Mapping[str, Any], **counts: int) -> dict[str, Any]:
    """Counts of a step that may have been begun before."""
    return {name: count + int(progress.get(name, 0)) for name, count in counts.items()}


def _without(progress: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in progress.items() if name not in names}
