"""Takes requests to erase entities, and shows how far they got. Knows no HTTP; methods block."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import structlog

from featurelib.clock import Clock, format_instant
from featurelib.definitions import DatasetDef, ref
from featurelib.engine.coerce import coerce_value
from featurelib.engine.keys import key_group, owner_of_group
from featurelib.engine.records import arrow_type
from featurelib.errors import InvalidRequest, NotFound, RecordError, StoreUnavailable
from featurelib.settings import Settings
from featurelib.stores.erasures import ErasureRecord, Erasures
from featurelib.stores.log import Log, key_digest, texts_of
from featurelib.stores.registry import NewEvent, Registry

MOST_ENTITIES = 10_000
"""Most ids of one request."""
# One script of tombstones touches a few fields per key.
_KEYS_PER_SCRIPT = 500
_log = structlog.get_logger("thyme.serve")


class ErasureService:
    """What the erase routes answer with.

    Args:
        registry: what is committed, and where receipts are kept.
        log: where tombstones go.
        settings: how many partitions a new log gets.
        clock: when the request was made.
    """

    def __init__(self, registry: Registry, log: Log, settings: Settings, clock: Clock) -> None:
        self._registry = registry
        self._erasures = Erasures(registry.database, clock)
        self._log = log
        self._settings = settings
        self._clock = clock

    def erase(self, dataset: str, entity_ids: Sequence[Any], *, block: bool, requested_by: str | None) -> ErasureRecord:
        """Append a tombstone for each entity to the log of every version of a dataset.

        Raises:
            NotFound: no such dataset.
            InvalidRequest: the dataset is made by a pipeline, or an id does not fit its key.
            StoreUnavailable: some entities may be on their way out; ask again.
        """
        versions = self._versions(dataset)
        keys = {ref(version): _keys(version, entity_ids) for version in versions}
        erasure_id = str(uuid.uuid4())
        tombstones: dict[str, int] = {}
        for version in versions:
            partitions = self._log.create(ref(version), self._settings.pipeline.partition_count)
            for part, column in _by_partition(keys[ref(version)], partitions).items():
                for start in range(0, len(column), _KEYS_PER_SCRIPT):
                    table = pa.table({version.key.name: column.slice(start, _KEYS_PER_SCRIPT)})
                    offsets = self._log.erase(ref(version), part, table, erasure=erasure_id, block=block)
                    tombstones[f"{ref(version)}/{part}"] = offsets[-1]
        texts = sorted({text for column in keys.values() for text in texts_of(pa.chunked_array([column]))})
        receipt = ErasureRecord(
            id=erasure_id,
            dataset=dataset,
            entities=len(texts),
            digests=tuple(key_digest(dataset, text) for text in texts),
            tombstones=tombstones,
            block=block,
            requested_by=requested_by,
            created_at=self._clock.now(),
        )
        self._erasures.accept(receipt)
        self._say(receipt)
        return receipt

    def get(self, erasure_id: str) -> dict[str, Any]:
        """One receipt.

        Raises:
            NotFound: there is none of that id.
        """
        return _shown(self._erasures.get(erasure_id))

    def latest(self, limit: int) -> list[dict[str, Any]]:
        """The latest receipts, newest first."""
        return [_shown(erasure) for erasure in self._erasures.list(limit)]

    def _versions(self, dataset: str) -> list[DatasetDef]:
        definitions = self._registry.definitions()
        found = [version for version in definitions.datasets if version.name == dataset]
        if not found:
            raise NotFound(f"dataset {dataset[:128]!r} is not committed")
        producer = definitions.producer(dataset)
        if producer is not None:
            inputs = " or ".join(repr(name) for name in producer.input_datasets)
            raise InvalidRequest(f"dataset: {dataset!r} is made by a pipeline; erase from {inputs}")
        return found

    def _say(self, receipt: ErasureRecord) -> None:
        event = NewEvent(
            event_type="erase",
            source="definition-service",
            subject=receipt.dataset,
            message=f"{receipt.entities} entities of {receipt.dataset} are being erased",
            detail={"erasure_id": receipt.id, "entities": receipt.entities, "block": receipt.block},
        )
        try:
            self._registry.record_event(event)
        except StoreUnavailable as error:  # the tombstones are in the log
            _log.warning("event_lost", event_type=event.event_type, subject=event.subject, error=str(error))


def _keys(dataset: DatasetDef, entity_ids: Sequence[Any]) -> pa.Array:
    """The ids as values of a dataset's key, each once."""
    values = dict.fromkeys(_key(dataset, given, place) for place, given in enumerate(entity_ids))
    kind = arrow_type(dataset.key.type)
    storage = pa.int64() if pa.types.is_timestamp(kind) else kind
    return pa.array(list(values), storage).cast(kind)


def _key(dataset: DatasetDef, given: Any, place: int) -> Any:
    if given is None or isinstance(given, bool | list | dict):
        raise InvalidRequest(f"entity_ids[{place}]: expected a text or a number; found {given!r:.80}")
    try:
        return coerce_value(given if dataset.key.type != "str" else str(given), dataset.key)
    except RecordError as error:
        raise InvalidRequest(f"entity_ids[{place}]: {error}") from None


def _by_partition(keys: pa.Array, partitions: int) -> dict[int, pa.Array]:
    places: dict[int, list[int]] = {}
    for place, text in enumerate(texts_of(pa.chunked_array([keys]))):
        places.setdefault(owner_of_group(key_group(text), partitions), []).append(place)
    return {part: keys.take(pa.array(mine)) for part, mine in sorted(places.items())}


def _shown(erasure: ErasureRecord) -> dict[str, Any]:
    return {
        "id": erasure.id,
        "dataset": erasure.dataset,
        "state": erasure.state,
        "entities": erasure.entities,
        "digests": list(erasure.digests),
        "tombstones": erasure.tombstones,
        "block": erasure.block,
        "progress": {name: value for name, value in erasure.progress.items() if name != "rewrite"},
        "requested_by": erasure.requested_by,
        "created_at": format_instant(erasure.created_at),
        "completed_at": format_instant(erasure.completed_at) if erasure.completed_at is not None else None,
    }
