"""Bodies of the feature routes, as they are decoded and documented."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from featurelib.engine.asof import Knowledge
from serve_apps.explain import Explained

EntityId = str | int | float | list[str | int | float | bool]


class FeaturesRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A read with request-time inputs."""

    featureset: str
    entity_id: EntityId
    entity_type: str | None = None
    timestamp: str | int | float | None = None
    inputs: dict[str, Any] | None = None
    knowledge: Knowledge = "latest"


class BatchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A read of many entities, at most 10,000."""

    featureset: str
    entity_ids: list[EntityId]
    entity_type: str | None = None
    inputs: dict[str, Any] | None = None


class OfflineQuery(msgspec.Struct, forbid_unknown_fields=True):
    """One row of an offline read; its inputs go before those of the whole request."""

    entity_id: EntityId
    timestamp: str | int | float
    inputs: dict[str, Any] | None = None


class OfflineRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A read of many entities, each as of an instant of its own."""

    featureset: str
    queries: list[OfflineQuery]
    entity_type: str | None = None
    inputs: dict[str, Any] | None = None
    knowledge: Knowledge = "latest"


class ReadAt(msgspec.Struct):
    """The instant R the values are of, and whose clock it is: the server's, the events', or the request's timestamp."""

    timestamp: str
    clock: Literal["wall", "event", "request"]


class FeaturesAnswer(msgspec.Struct):
    """Value by feature; `features` is null for a look-up of an unknown row.

    `explain` is there when it was asked for.
    """

    entity_type: str
    entity_id: str
    features: dict[str, Any] | None
    mode: Literal["online", "point_in_time"]
    metadata: ReadAt
    explain: dict[str, Explained] | None = None


class BatchAnswer(msgspec.Struct):
    """Positional rows, in the order asked; the first column is `entity_id`."""

    features: list[str]
    values: list[list[Any]]


class OfflineRow(msgspec.Struct):
    """The features of one entity as of one instant."""

    entity_id: str
    timestamp: str
    features: dict[str, Any]


class OfflineAnswer(msgspec.Struct):
    """A row per query, in the order asked."""

    results: list[OfflineRow]
