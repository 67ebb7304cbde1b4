"""`/api/v1/secrets-service`: secrets in scopes, for those who hold a role on the scope. And their rotation, for admins.

Paths, bodies and failures are those of Tecton's API, so that a client of it finds its secrets here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path
from pydantic import BaseModel, ConfigDict, Field, StrictStr

from featurelib.errors import Forbidden
from featurelib.stores.secret_values import MOST_BYTES, Place
from featurelib.stores.standings import Resource, Role
from serve_apps.auth import Caller
from serve_apps.messages import ErrorBody
from serve_apps.routes.access import Admin, Anybody, ServicesOf, followed
from serve_apps.tecton_errors import TECTON_RESPONSES, TectonErrorBody

router = APIRouter(prefix="/api/v1/secrets-service", tags=["secrets"], responses=TECTON_RESPONSES)
rotation = APIRouter(prefix="/api/v1/secrets", tags=["secrets"])

_NO_KEYS: dict[int | str, dict[str, Any]] = {
    500: {"model": ErrorBody, "description": "The key of a secret is not there, or the service failed."}
}
_HELD: dict[int | str, dict[str, Any]] = {
    400: {"model": TectonErrorBody, "description": "The scope holds secrets (code 9)."}
}
Scope = Annotated[str, Path(description="Of the scope.", examples=["payments"])]
Key = Annotated[str, Path(description="Of the secret in its scope.", examples=["warehouse-password"])]


class Named(BaseModel):
    """A scope or a secret, by its name."""

    name: str


class Scopes(BaseModel):
    """Scopes, in order."""

    scopes: list[Named]


class KeysOfScope(BaseModel):
    """Secrets of a scope, in order; never their values."""

    keys: list[Named]


class Value(BaseModel):
    """The value of a secret."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"value": "correct horse battery staple"}})

    value: StrictStr = Field(description="Text; bytes go as Base64.", max_length=MOST_BYTES)


class Nothing(BaseModel):
    """Nothing to say."""

    model_config = ConfigDict(extra="forbid")


class Rotated(BaseModel):
    """What a rotation did."""

    values: int = Field(description="So many values were encrypted anew.")
    key_id: str = Field(description="Of the key that all values are encrypted under now; tells nothing about it.")


def _scope(name: str) -> Resource:
    return Resource("secret_scope", name)


def _holding(role: Role) -> Callable[[Scope, Anybody], Caller]:
    def held(scope: Scope, caller: Anybody) -> Caller:
        # Before anything is said of the scope: who may not see it does not learn whether there is one.
        if not caller.holds(role, _scope(scope)):
            raise Forbidden(f"this needs the role {role!r} on secret scope {scope[:128]!r}")
        return caller

    return held


Reading = Annotated[Caller, Depends(_holding("read_scope_role"))]
Writing = Annotated[Caller, Depends(_holding("write_scope_role"))]
Managing = Annotated[Caller, Depends(_holding("manage_scope_role"))]


@router.get("/scopes")
def scopes(services: ServicesOf, caller: Anybody) -> Scopes:
    """The scopes whose secrets the caller may read."""
    found = services.access.secrets.scopes()
    return Scopes(scopes=[Named(name=name) for name in found if caller.holds("read_scope_role", _scope(name))])


@router.post("/scopes/{scope}")
async def create_scope(scope: Scope, services: ServicesOf, caller: Anybody) -> Nothing:
    """Make a scope. It takes an admin's key or a principal that is admin of the organisation, who manages it then."""
    if not caller.is_admin:
        raise Forbidden("making a scope needs an admin's key, or the role 'admin' on the organisation")
    await asyncio.to_thread(services.access.secrets.create_scope, scope, caller.author)
    await followed(services)
    return Nothing()


@router.delete("/scopes/{scope}", responses=_HELD)
async def delete_scope(scope: Scope, services: ServicesOf, caller: Managing) -> Nothing:
    """End an empty scope and all roles on it; needs `manage_scope_role`."""
    await asyncio.to_thread(services.access.secrets.delete_scope, scope, caller.author)
    await followed(services)
    return Nothing()


@router.get("/scopes/{scope}/keys")
def keys(scope: Scope, services: ServicesOf, caller: Reading) -> KeysOfScope:  # noqa: ARG001  # the role is the point
    """The names of a scope's secrets; needs `read_scope_role`."""
    return KeysOfScope(keys=[Named(name=name) for name in services.access.secrets.keys(scope)])


@router.get("/scopes/{scope}/keys/{key}")
def secret(scope: Scope, key: Key, services: ServicesOf, caller: Reading) -> Value:  # noqa: ARG001  # likewise
    """A secret; needs `read_scope_role`."""
    return Value(value=services.access.secrets.get(Place(scope, key)))


@router.put("/scopes/{scope}/keys/{key}")
def put_secret(scope: Scope, key: Key, body: Value, services: ServicesOf, caller: Writing) -> Nothing:
    """Store a secret, in place of the one before; needs `write_scope_role`. Sources that use it follow within 120 s."""
    services.access.secrets.put(Place(scope, key), body.value, caller.author)
    return Nothing()


@router.delete("/scopes/{scope}/keys/{key}")
def delete_secret(scope: Scope, key: Key, services: ServicesOf, caller: Writing) -> Nothing:
    """Delete a secret; needs `write_scope_role`. Sources that use it fail from their next look on."""
    services.access.secrets.delete(Place(scope, key), caller.author)
    return Nothing()


@rotation.post("/rotate", responses=_NO_KEYS)
def rotate(services: ServicesOf, caller: Admin) -> Rotated:
    """Encrypt every secret anew: under a new key where the platform makes its own, else under the first of the setting.

    Keys that nothing needs any more are forgotten. Readers and writers go on meanwhile.
    """
    return Rotated(**services.access.secrets.rotate(caller.author)._asdict())
