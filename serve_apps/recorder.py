"""Makes query runs of what the request path handed over, and stores them: digests, positions, one insert per batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
import structlog

from featurelib.errors import StoreUnavailable, ValueOverflow
from featurelib.stores.digests import Digests
from featurelib.stores.positions import MOST_ROWS, positions_of
from featurelib.stores.questions import Entry, Seen
from featurelib.stores.registry import NewEvent

# How the error of a run begins whose result fits no column (decision 11).
_OVERFLOW = f"{ValueOverflow.code}:"

_log = structlog.get_logger("thyme.serve")


class RunStore(Protocol):
    """Where runs are kept."""

    def record_members(self, runs: Sequence[Mapping[str, Any]]) -> None:
        """Store the runs, all or none; a batch sent again adds nothing twice."""
        ...


class Feed(Protocol):
    """The part of the registry that people's attention goes through."""

    def record_event(self, event: NewEvent) -> None:
        """Add an entry to the platform's feed."""
        ...


class Recorder:
    """Stores runs. Blocks.

    Args:
        store: where they are kept.
        feed: is told of results that fit no column.
        digests: of what was answered.
    """

    def __init__(self, store: RunStore, feed: Feed, digests: Digests) -> None:
        self._store = store
        self._feed = feed
        self._digests = digests
        self._overflowed: set[str] = set()

    def record(self, entries: Sequence[Entry]) -> None:
        """Store a batch, all or none.

        Raises:
            StoreUnavailable: nothing is known to be stored; record it again.
        """
        self._store.record_members([members_of(entry, self._digests) for entry in entries])
        for entry in entries:
            if entry.error is not None and entry.error.startswith(_OVERFLOW) and entry.target not in self._overflowed:
                self._overflowed.add(entry.target)
                self._tell_overflow(entry)

    def _tell_overflow(self, entry: Entry) -> None:
        # Once per featureset and replica: every read of the entity fails alike until its window moves on.
        entity = next(iter(entry.entity_ids), "")
        event = NewEvent(
            event_type="value_overflow",
            severity="error",
            source="query-server",
            subject=entry.target,
            message=f"a read of {entity!r} failed with {entry.error}",
            detail={"entity_id": entity, "query_run": entry.id},
        )
        try:
            self._feed.record_event(event)
        except StoreUnavailable as error:
            _log.warning("event_lost", event_type=event.event_type, subject=event.subject, error=str(error))


def members_of(entry: Entry, digests: Digests) -> dict[str, Any]:
    """The columns of a query run."""
    seen, question = entry.seen, entry.question
    return {
        "id": entry.id,
        "kind": entry.kind,
        "featureset": entry.target,
        "entity_ids": entry.entity_ids,
        "entity_count": entry.entity_count,
        "hit_count": entry.hit_count,
        "requested_timestamp": entry.requested_timestamp,
        "latency_ms": entry.latency_ms,
        "api_key_fingerprint": entry.api_key_fingerprint,
        "correlation_id": entry.correlation_id,
        "error": entry.error,
        "inputs": None if question is None else question.recorded(),
        "definition": entry.definition,
        "positions": positions_of(entry.id, seen, digests) if seen is not None and _is_kept(seen) else None,
        "created_at": entry.created_at,
        "digests": None if entry.values is None else digests.of(entry.id, _listed(entry.values)),
        "read_at": None if seen is None else seen.read_at,
        "registry_version": None if seen is None else seen.version,
    }


def _listed(values: Sequence[Any] | msgspec.Raw) -> Sequence[Any]:
    return msgspec.msgpack.decode(values, type=list) if isinstance(values, msgspec.Raw) else values


def _is_kept(seen: Seen) -> bool:
    return len(seen.applied) + len(seen.looked_up) <= MOST_ROWS
