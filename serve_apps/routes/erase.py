"""`/api/v1/erase` and `/api/v1/erasures`: take entities out of the platform, and see how far that got."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from serve_apps.erasing import MOST_ENTITIES, ErasureService
from serve_apps.routes.access import ServicesOf, Writer
from serve_apps.services import Services

router = APIRouter(prefix="/api/v1", tags=["erase"])


class EraseRequest(BaseModel):
    """Which entities of which dataset."""

    model_config = ConfigDict(extra="forbid")

    dataset: str = Field(min_length=1, max_length=128)
    # Strict: `true` and `1.0` would erase the entity 1.
    entity_ids: list[StrictStr | StrictInt] = Field(min_length=1, max_length=MOST_ENTITIES)
    block: bool = False
    """Refuse records of these entities from now on, for ever."""


class EraseAnswer(BaseModel):
    """What was taken on."""

    entities_erased: int
    """Different entities named; they need not have any record."""
    erasure_id: str
    state: str


def _service(services: Services) -> ErasureService:
    stores = services.stores
    return ErasureService(stores.registry, stores.log, services.settings, services.clock)


@router.post("/erase")
def erase(body: EraseRequest, services: ServicesOf, caller: Writer) -> EraseAnswer:
    """Erase everything accepted of some entities of a dataset; point-in-time reads leave it out when this answers."""
    receipt = _service(services).erase(body.dataset, body.entity_ids, block=body.block, requested_by=caller.fingerprint)
    return EraseAnswer(entities_erased=receipt.entities, erasure_id=receipt.id, state=receipt.state)


@router.get("/erasures")
def erasures(services: ServicesOf, limit: Annotated[int, Query(ge=1, le=1_000)] = 100) -> list[dict[str, Any]]:
    """The latest erasures, newest first; entities by digest alone."""
    return _service(services).latest(limit)


@router.get("/erasures/{erasure_id}")
def erasure(erasure_id: str, services: ServicesOf) -> dict[str, Any]:
    """One erasure: its state, what was removed, and what it waits for."""
    return _service(services).get(erasure_id)
