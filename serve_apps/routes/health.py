"""`/health` and `/metrics`; both need no key."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from featurelib.errors import StoreUnavailable
from serve_apps.findings import Found, found_in
from serve_apps.freshness import Shown
from serve_apps.metrics import CONTENT_TYPE
from serve_apps.routes.access import ServicesOf
from serve_apps.services import Services
from serve_apps.siblings import labelled

router = APIRouter(tags=["operations"])

# A monitor that waits longer has given up on us.
_ANSWER_SECONDS = 3.0


class Health(BaseModel):
    """What this replica stands on."""

    status: str = "ok"
    registry: str = "ok"
    online_store: str = "ok"
    version: int
    """Registry version of the read plans being served."""


@router.head("/health")
@router.get("/health")
async def health(services: ServicesOf) -> Health:
    """200 when registry and online store answer; 503 otherwise."""
    registry, online = services.stores.registry, services.stores.online
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await asyncio.gather(asyncio.to_thread(registry.version), online.ping())
    except TimeoutError:
        raise StoreUnavailable(f"registry or online store did not answer within {_ANSWER_SECONDS} s") from None
    services.check_background()
    return Health(version=services.current.snapshot.version)


def _shown(services: Services) -> Shown | None:
    registry = services.stores.registry
    idle_after_us = services.settings.ingest.idle_after_ms * 1_000
    try:
        return Shown(registry.jobs(), registry.dataset_statuses(), idle_after_us, services.clock.now())
    except StoreUnavailable:
        return None  # the replica's own figures are wanted all the more


def _found(services: Services) -> Found | None:
    try:
        return found_in(services.stores.registry, services.settings.monitor, services.clock.now())
    except StoreUnavailable:
        return None


@router.head("/metrics", response_class=PlainTextResponse)
@router.get("/metrics", response_class=PlainTextResponse)
def metrics(services: ServicesOf) -> Response:
    """Prometheus text: of every replica on this port, how fresh jobs and datasets are, and what the monitor found."""
    siblings, shown = services.siblings, services.metrics
    told = siblings.told()
    own = services.figures()
    shown.replicas.labels("told").set(1 + len(told.figures))
    shown.replicas.labels("silent").set(len(told.silent))
    shown.freshness.shown = _shown(services)
    shown.findings.found = _found(services)
    replicas = own if siblings.is_alone else labelled({siblings.name: own, **told.figures})
    return Response(replicas + shown.common(), media_type=CONTENT_TYPE)
