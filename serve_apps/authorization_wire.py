"""What `/api/v1/authorization-service` takes and gives: roles, who holds them, and where from.

Names come in snake_case or camelCase and go out in snake_case; the definitions of roles alone go out in camelCase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, StrictStr
from pydantic.alias_generators import to_camel

from featurelib.stores.principals import Principal
from featurelib.stores.role_assignments import Assignment, Granted, Holder, by_principal
from featurelib.stores.standings import ORGANIZATION, ROLES_ON, SCOPE_ROLES, PrincipalKind, Resource, ResourceType

PrincipalTypeName = Literal[
    "PRINCIPAL_TYPE_USER", "PRINCIPAL_TYPE_SERVICE_ACCOUNT", "PRINCIPAL_TYPE_GROUP", "PRINCIPAL_TYPE_WORKSPACE"
]
ResourceTypeName = Literal["RESOURCE_TYPE_ORGANIZATION", "RESOURCE_TYPE_WORKSPACE", "RESOURCE_TYPE_SECRET_SCOPE"]

Kinds = Callable[[str], PrincipalKind | None]
"""The kind of the principal of an id, if there is one."""

_KINDS: dict[PrincipalTypeName, PrincipalKind] = {
    "PRINCIPAL_TYPE_USER": "user",
    "PRINCIPAL_TYPE_SERVICE_ACCOUNT": "service_account",
    "PRINCIPAL_TYPE_GROUP": "group",
    "PRINCIPAL_TYPE_WORKSPACE": "workspace",
}
_RESOURCES: dict[ResourceTypeName, ResourceType] = {
    "RESOURCE_TYPE_ORGANIZATION": "organization",
    "RESOURCE_TYPE_WORKSPACE": "workspace",
    "RESOURCE_TYPE_SECRET_SCOPE": "secret_scope",
}
_KIND_NAMES = {kind: name for name, kind in _KINDS.items()}
_RESOURCE_NAMES = {resource: name for name, resource in _RESOURCES.items()}
_MOST = 1_000
_LONGEST = 256


class _Wire(BaseModel):
    model_config = ConfigDict(
        extra="forbid", alias_generator=to_camel, validate_by_name=True, validate_by_alias=True,
        use_attribute_docstrings=True,
    )  # fmt: skip


class _OfPrincipal(_Wire):
    resource_type: ResourceTypeName
    resource_id: StrictStr = Field(default=ORGANIZATION, max_length=_LONGEST)
    """Name of the workspace or scope; left out for the organisation."""
    principal_type: PrincipalTypeName
    principal_id: StrictStr = Field(min_length=1, max_length=_LONGEST)
    """Id or name of the principal."""

    @property
    def holder(self) -> Holder:
        """Who is meant."""
        return Holder(_KINDS[self.principal_type], self.principal_id)

    @property
    def resource(self) -> Resource:
        """On what."""
        return Resource(_RESOURCES[self.resource_type], self.resource_id)


class WireAssignment(_OfPrincipal):
    """One role for one principal on one resource."""

    role: StrictStr = Field(max_length=_LONGEST)
    """`get-roles` lists them."""

    @property
    def assignment(self) -> Assignment:
        """It, as the store takes it."""
        return Assignment(self.holder, self.role, self.resource)


_EXAMPLE = {
    "resource_type": "RESOURCE_TYPE_SECRET_SCOPE",
    "resource_id": "payments",
    "principal_type": "PRINCIPAL_TYPE_SERVICE_ACCOUNT",
    "principal_id": "nightly-load",
}


class Assignments(_Wire):
    """Roles to give or to take away: all of them, or none."""

    model_config = ConfigDict(json_schema_extra={"example": {"assignments": [{**_EXAMPLE, "role": "read_scope_role"}]}})

    assignments: list[WireAssignment] = Field(max_length=_MOST)


class Replacement(_OfPrincipal):
    """Every role that a principal shall hold on a resource itself; roles of its groups are not touched."""

    model_config = ConfigDict(json_schema_extra={"example": {**_EXAMPLE, "roles": ["write_scope_role"]}})

    roles: list[StrictStr] = Field(default_factory=list, max_length=len(SCOPE_ROLES) + len(ROLES_ON["organization"]))


class PrincipalsAsked(_Wire):
    """On what; and, where they are given, only those roles and kinds of principals."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"resource_type": "RESOURCE_TYPE_SECRET_SCOPE", "resource_id": "payments"}}
    )

    resource_type: ResourceTypeName
    resource_id: StrictStr = Field(default=ORGANIZATION, max_length=_LONGEST)
    roles: list[StrictStr] = Field(default_factory=list, max_length=_MOST)
    principal_types: list[PrincipalTypeName] = Field(default_factory=list, max_length=_MOST)

    @property
    def resource(self) -> Resource:
        """On what."""
        return Resource(_RESOURCES[self.resource_type], self.resource_id)

    def wants(self, granted: Granted) -> bool:
        """Whether a role is asked for."""
        kinds = {_KINDS[each] for each in self.principal_types}
        return (
            granted.resource == self.resource
            and (not self.roles or granted.role in self.roles)
            and (not kinds or granted.principal.kind in kinds)
        )


class RolesAsked(_Wire):
    """Whose roles on what kind of resource; and, where they are given, only on those resources and those roles."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {name: value for name, value in _EXAMPLE.items() if name != "resource_id"}
            | {"resource_ids": ["payments"]}
        }
    )

    principal_type: PrincipalTypeName
    principal_id: StrictStr = Field(min_length=1, max_length=_LONGEST)
    resource_type: ResourceTypeName
    resource_ids: list[StrictStr] = Field(default_factory=list, max_length=_MOST)
    roles: list[StrictStr] = Field(default_factory=list, max_length=_MOST)

    @property
    def holder(self) -> Holder:
        """Who is meant."""
        return Holder(_KINDS[self.principal_type], self.principal_id)

    @property
    def type(self) -> ResourceType:
        """On what kind of resource."""
        return _RESOURCES[self.resource_type]

    def wants(self, granted: Granted) -> bool:
        """Whether a role is asked for."""
        return (not self.resource_ids or granted.resource.id in self.resource_ids) and (
            not self.roles or granted.role in self.roles
        )


class NoQuestion(_Wire):
    """Nothing needs to be said."""


class Done(BaseModel):
    """Nothing to say."""

    model_config = ConfigDict(extra="forbid")


class RoleSource(BaseModel):
    """Where a role comes from."""

    assignment_type: Literal["ROLE_ASSIGNMENT_TYPE_DIRECT", "ROLE_ASSIGNMENT_TYPE_FROM_PRINCIPAL_GROUP"]
    principal_group_name: str | None = None
    principal_group_id: str | None = None


class RoleGranted(BaseModel):
    """A role, and every place it comes from."""

    role: str
    role_assignment_sources: list[RoleSource]


class OnResource(BaseModel):
    """The roles held on one resource."""

    resource_type: ResourceTypeName
    resource_id: str
    roles_granted: list[RoleGranted]


class OfPrincipal(BaseModel):
    """A principal, `user`, `service_account`, `group` or `workspace`, and the roles it holds."""

    principal: dict[str, dict[str, Any]]
    role_assignments: list[OnResource]


class PrincipalsGiven(BaseModel):
    """Who holds roles on the resource."""

    assignments: list[OfPrincipal]


class RolesGiven(BaseModel):
    """On which resources the principal holds roles."""

    assignments: list[OnResource]


class PermissionShown(BaseModel):
    """Something a role allows."""

    id: str
    description: str


class RoleShown(_Wire):
    """A role, on what it can be held, and by whom."""

    id: str
    name: str
    description: str
    assignable_on_resource_types: list[ResourceTypeName]
    assignable_to_principal_types: list[PrincipalTypeName]
    permissions: list[PermissionShown]
    legacy_id: str


class RolesShown(BaseModel):
    """Every role there is."""

    roles: list[RoleShown]


class _Meaning(NamedTuple):
    name: str
    description: str
    permissions: tuple[str, ...]


_PERMISSIONS = {
    "create_secret_scope": "Make secret scopes.",
    "delete_secret_scope": "Delete the scope, and give roles on it.",
    "list_secret_key": "See the names of the scope's secrets.",
    "read_secret_value": "Read the scope's secrets.",
    "manage_secret_value": "Put and delete the scope's secrets.",
    "read_features": "Read the workspace's feature services.",
    "manage_objects": "Change what the workspace holds.",
    "manage_access": "Give roles on the workspace.",
}
_READING = ("list_secret_key", "read_secret_value")
_WRITING = (*_READING, "manage_secret_value")
_MEANINGS = {
    "consumer": _Meaning("Consumer", "Reads feature services of a workspace.", ("read_features",)),
    "editor": _Meaning("Editor", "Also changes what a workspace holds.", ("read_features", "manage_objects")),
    "owner": _Meaning("Owner", "Also gives roles.", ("read_features", "manage_objects", "manage_access")),
    "admin": _Meaning("Admin", "Does everything, on every workspace and scope.", tuple(_PERMISSIONS)),
    "read_scope_role": _Meaning("Read Scope", "Reads the secrets of a scope.", _READING),
    "write_scope_role": _Meaning("Write Scope", "Also puts and deletes them.", _WRITING),
    "manage_scope_role": _Meaning("Manage Scope", "Also gives roles.", (*_WRITING, "delete_secret_scope")),
}


def role_definitions() -> RolesShown:
    """Every role, from the least on."""
    return RolesShown(roles=[_role_shown(role, meaning) for role, meaning in _MEANINGS.items()])


def principals_given(granted: Iterable[Granted], kinds: Kinds) -> PrincipalsGiven:
    """Roles by who holds them."""
    return PrincipalsGiven(
        assignments=[
            OfPrincipal(
                principal=_principal_shown(held[0].principal, kinds), role_assignments=roles_given(held).assignments
            )
            for held in by_principal(granted).values()
        ]
    )


def roles_given(granted: Iterable[Granted]) -> RolesGiven:
    """Roles of one principal by what they are held on."""
    places: dict[Resource, dict[str, list[RoleSource]]] = {}
    for each in granted:
        places.setdefault(each.resource, {}).setdefault(each.role, []).append(_source(each))
    return RolesGiven(assignments=[_on_resource(resource, roles) for resource, roles in places.items()])


def _on_resource(resource: Resource, roles: dict[str, list[RoleSource]]) -> OnResource:
    return OnResource(
        resource_type=_RESOURCE_NAMES[resource.type],
        resource_id=resource.id,
        roles_granted=[RoleGranted(role=role, role_assignment_sources=found) for role, found in roles.items()],
    )


def _source(granted: Granted) -> RoleSource:
    if granted.via is None:
        return RoleSource(assignment_type="ROLE_ASSIGNMENT_TYPE_DIRECT")
    return RoleSource(
        assignment_type="ROLE_ASSIGNMENT_TYPE_FROM_PRINCIPAL_GROUP",
        principal_group_name=granted.via.name,
        principal_group_id=granted.via.id,
    )


def _principal_shown(principal: Principal, kinds: Kinds) -> dict[str, dict[str, Any]]:
    about = principal.about
    match principal.kind:
        case "user":
            names = {name: about.get(name, "") for name in ("first_name", "last_name")}
            email = about.get("login_email") or principal.name
            return {"user": {"okta_id": principal.id, **names, "login_email": email}}
        case "service_account":
            shown: dict[str, Any] = {"id": principal.id, "name": principal.name}
            shown |= {"description": about.get("description", ""), "is_active": principal.is_active}
            kind = kinds(principal.creator) if principal.creator is not None else None
            if kind is not None:
                shown["creator"] = {"principal_type": _KIND_NAMES[kind], "id": principal.creator}
            return {"service_account": shown}
        case "group":
            return {"group": {"id": principal.id, "name": principal.name}}
        case "workspace":
            return {"workspace": {"name": principal.name}}


def _role_shown(role: str, meaning: _Meaning) -> RoleShown:
    held_on = [name for name, resource in _RESOURCES.items() if role in ROLES_ON[resource]]
    holders: Sequence[PrincipalTypeName] = [
        name for name, kind in _KINDS.items() if kind != "workspace" or role in SCOPE_ROLES
    ]
    return RoleShown(
        id=role,
        name=meaning.name,
        description=meaning.description,
        assignable_on_resource_types=held_on,
        assignable_to_principal_types=list(holders),
        permissions=[PermissionShown(id=each, description=_PERMISSIONS[each]) for each in meaning.permissions],
        legacy_id=role,
    )
