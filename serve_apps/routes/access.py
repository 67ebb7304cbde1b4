"""What FastAPI's routes take from the request: the services, and the caller with the role they need."""

from __future__ import annotations

from typing import Annotated

import structlog
from fastapi import Depends, Request

from featurelib.errors import ThymeError
from serve_apps.auth import Caller
from serve_apps.control import JobControl
from serve_apps.definition_service import DefinitionService
from serve_apps.services import Services

_log = structlog.get_logger("thyme.serve")


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _anybody(request: Request) -> Caller:
    caller: Caller = request.scope["thyme.caller"]
    caller.require("reader")
    return caller


def _writer(request: Request) -> Caller:
    caller: Caller = request.scope["thyme.caller"]
    caller.require("writer")
    return caller


def _admin(request: Request) -> Caller:
    caller: Caller = request.scope["thyme.caller"]
    caller.require("admin")
    return caller


ServicesOf = Annotated[Services, Depends(_services)]
Anybody = Annotated[Caller, Depends(_anybody)]
Writer = Annotated[Caller, Depends(_writer)]
Admin = Annotated[Caller, Depends(_admin)]


async def followed(services: Services) -> None:
    """Let this replica know of a change of keys or roles before it is acknowledged; the others poll."""
    try:
        await services.current.refresh()
    except ThymeError as error:
        _log.warning("keys_not_current_yet", error=str(error))


def job_control(services: Services) -> JobControl:
    """Jobs as they are, and orders to them."""
    return JobControl(services.stores.registry, services.settings, services.clock)


def definition_service(services: ServicesOf) -> DefinitionService:
    """What is committed and what became of it."""
    stores = services.stores
    return DefinitionService(stores.registry, stores.log, services.settings, job_control(services), services.shapes)
