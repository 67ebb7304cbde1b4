"""`/api/v1/principals`: users, service accounts, groups and workspaces, to whom roles are given. For admins."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from featurelib.clock import format_instant
from featurelib.stores.principals import Principal
from featurelib.stores.standings import RESOURCE_TYPES, PrincipalKind, ResourceType
from serve_apps.messages import ErrorBody
from serve_apps.routes.access import Admin, ServicesOf, followed
from serve_apps.services import Services

router = APIRouter(prefix="/api/v1/principals", tags=["principals"])

_LONGEST = 200
_MOST_MEMBERS = 1_000
_TAKEN: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorBody, "description": "There is one of that kind and name already."}
}
Name = Annotated[str, Path(description="Id or name of a principal.", examples=["nightly-load"])]
MemberName = Annotated[StrictStr, Field(max_length=_LONGEST)]


class NewPrincipal(BaseModel):
    """A principal to be made."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={
            "example": {"kind": "service_account", "name": "nightly-load", "description": "Loads the warehouse."}
        },
    )

    kind: PrincipalKind
    """`user` and `service_account` have keys; a `group` has members; a `workspace` holds feature services."""
    name: StrictStr = Field(min_length=1, max_length=128)
    """Of the characters `A-Z a-z 0-9 _ . @ + -`; there is one of each kind and name."""
    description: StrictStr = Field(default="", max_length=_LONGEST)
    first_name: StrictStr = Field(default="", max_length=_LONGEST)
    last_name: StrictStr = Field(default="", max_length=_LONGEST)
    login_email: StrictStr = Field(default="", max_length=_LONGEST)


class RoleHeld(BaseModel):
    """A role that a principal holds."""

    role: str
    resource_type: ResourceType
    resource_id: str
    """Name of the workspace or scope; empty: the organisation."""
    group: str | None
    """The group it comes from; null: it is its own."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class PrincipalShown(BaseModel):
    """A principal, and the roles it holds."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    id: str
    kind: PrincipalKind
    name: str
    is_active: bool
    """Whether its keys open anything."""
    about: dict[str, str]
    """`description`, `first_name`, `last_name`, `login_email`, as far as they were given."""
    members: list[str]
    """Of a group: the names of who is in it."""
    roles: list[RoleHeld]
    created_at: str


class Members(BaseModel):
    """Who joins a group and who leaves it: users and service accounts, by id or name."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"add": ["nightly-load"], "remove": []}})

    add: list[MemberName] = Field(default_factory=list, max_length=_MOST_MEMBERS)
    remove: list[MemberName] = Field(default_factory=list, max_length=_MOST_MEMBERS)


class Change(BaseModel):
    """What shall be otherwise."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"is_active": False}})

    is_active: StrictBool = Field(description="Whether its keys open anything.")


@router.post("", status_code=201, responses=_TAKEN)
async def create(body: NewPrincipal, services: ServicesOf, caller: Admin) -> PrincipalShown:
    """Make a principal. It holds no role yet: its keys open what their own role allows, and no workspace."""
    about = {name: text for name, text in body.model_dump(exclude={"kind", "name"}).items() if text}
    made = await asyncio.to_thread(services.access.principals.create, body.kind, body.name, about, caller.author)
    await followed(services)
    return _shown([made], services)[0]


@router.get("")
def principals(
    services: ServicesOf,
    caller: Admin,  # noqa: ARG001  # the role is the point
    kind: Annotated[PrincipalKind | None, Query(description="Only these.")] = None,
) -> list[PrincipalShown]:
    """Every principal with the roles it holds, in the order made."""
    return _shown(services.access.principals.all(kind), services)


@router.patch("/{name}")
async def change(name: Name, body: Change, services: ServicesOf, caller: Admin) -> PrincipalShown:
    """Let the keys of a user or service account open nothing, or what they did before. Elsewhere within a second."""
    changed = await asyncio.to_thread(
        services.access.principals.set_active, name, active=body.is_active, by=caller.author
    )
    await followed(services)
    return (await asyncio.to_thread(_shown, [changed], services))[0]


@router.post("/{name}/members")
async def change_members(name: Name, body: Members, services: ServicesOf, caller: Admin) -> PrincipalShown:
    """Let principals join a group and leave it, all or none. They hold from then on what the group holds."""
    store = services.access.principals
    await asyncio.to_thread(store.change_members, name, body.add, body.remove, caller.author)
    await followed(services)
    group = await asyncio.to_thread(store.get, name, "group")
    return (await asyncio.to_thread(_shown, [group], services))[0]


def _shown(principals: list[Principal], services: Services) -> list[PrincipalShown]:
    names = {each.id: each.name for each in services.access.principals.all()}
    members = services.access.principals.members()
    roles: dict[str, list[RoleHeld]] = {}
    for resource_type in RESOURCE_TYPES:
        for granted in services.access.roles.granted(resource_type):
            held = RoleHeld(
                role=granted.role,
                resource_type=resource_type,
                resource_id=granted.resource.id,
                group=granted.via.name if granted.via is not None else None,
            )
            roles.setdefault(granted.principal.id, []).append(held)
    return [
        PrincipalShown(
            **each.model_dump(exclude={"creator", "created_at"}),
            members=[names[member] for member in members.get(each.id, ())],
            roles=roles.get(each.id, []),
            created_at=format_instant(each.created_at),
        )
        for each in principals
    ]
