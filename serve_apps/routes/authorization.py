"""`/api/v1/authorization-service`: who holds which role on workspaces, secret scopes and the organisation.

Paths, bodies and failures are those of Tecton's API. Roles are given by those who hold the highest one on the resource.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from fastapi import APIRouter

from featurelib.errors import Forbidden
from featurelib.stores.principals import Principal
from featurelib.stores.standings import PrincipalKind, Resource, ResourceType, Role
from serve_apps.auth import Caller
from serve_apps.authorization_wire import (
    Assignments,
    Done,
    NoQuestion,
    PrincipalsAsked,
    PrincipalsGiven,
    Replacement,
    RolesAsked,
    RolesGiven,
    RolesShown,
    principals_given,
    role_definitions,
    roles_given,
)
from serve_apps.routes.access import Anybody, ServicesOf, followed
from serve_apps.services import Services
from serve_apps.tecton_errors import TECTON_RESPONSES

router = APIRouter(prefix="/api/v1/authorization-service", tags=["roles"], responses=TECTON_RESPONSES)

_HIGHEST: dict[ResourceType, Role] = {
    "organization": "admin",
    "workspace": "owner",
    "secret_scope": "manage_scope_role",
}
_LOWEST: dict[ResourceType, Role] = {
    "organization": "admin",
    "workspace": "consumer",
    "secret_scope": "read_scope_role",
}


@router.post("/assign-roles")
async def assign_roles(body: Assignments, services: ServicesOf, caller: Anybody) -> Done:
    """Give roles, all or none; what is held already stays. Works here at once, elsewhere within a second."""
    _require_management(caller, (each.resource for each in body.assignments))
    assignments = [each.assignment for each in body.assignments]
    await asyncio.to_thread(services.access.roles.assign, assignments, caller.author)
    await followed(services)
    return Done()


@router.put("/assign-roles")
async def replace_roles(body: Replacement, services: ServicesOf, caller: Anybody) -> Done:
    """Let a principal hold exactly these roles on a resource itself; without any, none."""
    _require_management(caller, [body.resource])
    await asyncio.to_thread(services.access.roles.replace, body.holder, body.resource, body.roles, caller.author)
    await followed(services)
    return Done()


@router.post("/unassign-roles")
async def unassign_roles(body: Assignments, services: ServicesOf, caller: Anybody) -> Done:
    """Take roles away, all or none; what is not held stays so."""
    _require_management(caller, (each.resource for each in body.assignments))
    await asyncio.to_thread(
        services.access.roles.unassign, [each.assignment for each in body.assignments], caller.author
    )
    await followed(services)
    return Done()


@router.post("/list-assigned-principals", response_model_exclude_none=True)
def list_assigned_principals(body: PrincipalsAsked, services: ServicesOf, caller: Anybody) -> PrincipalsGiven:
    """Who holds roles on a resource, itself or through a group; for those who hold one there."""
    _require(caller, _LOWEST[body.resource.type], body.resource)
    granted = [each for each in services.access.roles.granted(body.resource.type) if body.wants(each)]
    return principals_given(granted, lambda principal: _kind_of(services, principal))


@router.post("/list-assigned-roles", response_model_exclude_none=True)
def list_assigned_roles(body: RolesAsked, services: ServicesOf, caller: Anybody) -> RolesGiven:
    """On which resources of a kind a principal holds roles: its own, and for others those the caller manages."""
    whose = services.access.roles.principal(body.holder)
    granted = [
        each
        for each in services.access.roles.granted(body.type)
        if each.principal.id == whose.id and body.wants(each) and _may_see(caller, whose, each.resource)
    ]
    return roles_given(granted)


@router.post("/get-roles")
def get_roles(caller: Anybody, body: NoQuestion | None = None) -> RolesShown:  # noqa: ARG001  # an empty object
    """Every role: what it allows, on what it can be held, and by whom."""
    return role_definitions()


def _kind_of(services: Services, principal: str) -> PrincipalKind | None:
    standing = services.current.snapshot.keys.standing(principal)
    return standing.kind if standing is not None else None


def _may_see(caller: Caller, whose: Principal, resource: Resource) -> bool:
    return whose.id == caller.author.principal or caller.holds(_HIGHEST[resource.type], resource)


def _require_management(caller: Caller, resources: Iterable[Resource]) -> None:
    for resource in resources:
        _require(caller, _HIGHEST[resource.type], resource)


def _require(caller: Caller, role: Role, resource: Resource) -> None:
    if not caller.holds(role, resource):
        place = f"{resource.type} {resource.id[:128]!r}" if resource.id else resource.type
        raise Forbidden(f"this needs the role {role!r} on {place}")
