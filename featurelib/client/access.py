"""Keys, principals and roles: who may call the platform, and what is open to them there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featurelib.client.frames import instant_text
from featurelib.client.operations import Endpoints, Operation, named
from featurelib.client.wire import Request, Steps, listed
from featurelib.errors import InvalidRequest

_ROLES = "/api/v1/authorization-service"
_RESOURCES = {
    "scope": "RESOURCE_TYPE_SECRET_SCOPE",
    "workspace": "RESOURCE_TYPE_WORKSPACE",
    "organization": "RESOURCE_TYPE_ORGANIZATION",
}


class Access(Endpoints):
    """Operations on keys, principals and roles; but for those on roles they need an admin's key."""

    @Operation
    def keys(self) -> Steps[list[dict[str, Any]]]:
        """The keys by their fingerprints, with role, expiry and limit; never a key itself."""
        return (yield self.get("/api/v1/keys")).read(listed)

    @Operation
    def create_key(
        self,
        role: str = "reader",
        *,
        name: str = "",
        expires_at: Any = None,
        rate_limit: int | None = None,
        principal: str | None = None,
    ) -> Steps[dict[str, Any]]:
        """Make a key; the answer alone holds it, as ``key``.

        Args:
            role: ``reader``, ``writer`` or ``admin``.
            name: whose it is.
            expires_at: the instant from which it opens nothing.
            rate_limit: most requests a second.
            principal: id or name of the user or service account it belongs to.
        """
        body = _key(role, name, expires_at, rate_limit, principal)
        return (yield self.post("/api/v1/keys", body)).read(dict)

    @Operation
    def register_public_key(
        self,
        public_key: str,
        name: str,
        role: str = "reader",
        *,
        expires_at: Any = None,
        rate_limit: int | None = None,
        principal: str | None = None,
    ) -> Steps[dict[str, Any]]:
        """Let a user call with tokens that are signed by the private half of a key.

        Args:
            public_key: RSA, PEM.
            name: of the user, as the tokens give it.
            role: ``reader``, ``writer`` or ``admin``.
            expires_at: the instant from which it opens nothing.
            rate_limit: most requests a second.
            principal: id or name of the user or service account it belongs to.
        """
        body = {**_key(role, name, expires_at, rate_limit, principal), "public_key": public_key}
        return (yield self.post("/api/v1/keys/public", body)).read(dict)

    @Operation
    def revoke_key(self, fingerprint: str) -> Steps[dict[str, Any]]:
        """Let a key open nothing from now on.

        Raises:
            NotFound: there is none of that fingerprint.
        """
        return (yield Request("DELETE", self.api_url(f"/api/v1/keys/{named(fingerprint)}"))).read(dict)

    @Operation
    def principals(self, kind: str | None = None) -> Steps[list[dict[str, Any]]]:
        """Every user, service account, group and workspace with the roles it holds; of one kind if it is named."""
        return (yield self.get("/api/v1/principals", kind=kind)).read(listed)

    @Operation
    def create_principal(self, kind: str, name: str, /, **about: str) -> Steps[dict[str, Any]]:
        """Make a principal.

        Args:
            kind: ``user``, ``service_account``, ``group`` or ``workspace``.
            name: there is one of each kind and name.
            about: any of ``description``, ``first_name``, ``last_name``, ``login_email``.
        """
        return (yield self.post("/api/v1/principals", {"kind": kind, "name": name, **about})).read(dict)

    @Operation
    def change_members(self, group: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> Steps[dict[str, Any]]:
        """Let users and service accounts join a group and leave it; the group as it is then."""
        path = f"/api/v1/principals/{named(group)}/members"
        return (yield self.post(path, {"add": list(add), "remove": list(remove)})).read(dict)

    @Operation
    def set_active(self, principal: str, active: bool) -> Steps[dict[str, Any]]:
        """Let the keys of a user or service account open something, or nothing."""
        url = self.api_url(f"/api/v1/principals/{named(principal)}")
        return (yield Request("PATCH", url, body={"is_active": active})).read(dict)

    @Operation
    def assign_role(self, role: str, principal: str, on: str, *, kind: str = "service_account") -> Steps[None]:
        """Give a role; one that is held already stays.

        Args:
            role: such as ``consumer`` or ``read_scope_role``.
            principal: id or name.
            on: ``scope:NAME``, ``workspace:NAME`` or ``organization``.
            kind: of the principal.

        Raises:
            InvalidRequest: the role cannot be held there.
        """
        yield self.post(f"{_ROLES}/assign-roles", {"assignments": [_assignment(role, principal, on, kind)]})

    @Operation
    def unassign_role(self, role: str, principal: str, on: str, *, kind: str = "service_account") -> Steps[None]:
        """Take a role away; the arguments are those of :meth:`assign_role`."""
        yield self.post(f"{_ROLES}/unassign-roles", {"assignments": [_assignment(role, principal, on, kind)]})


def _key(role: str, name: str, expires_at: Any, rate_limit: int | None, principal: str | None) -> dict[str, Any]:
    given = {
        "role": role,
        "label": name or None,
        "expires_at": None if expires_at is None else instant_text(expires_at, "expires_at"),
        "rate_limit": rate_limit,
        "principal": principal,
    }
    return {member: value for member, value in given.items() if value is not None}


def _assignment(role: str, principal: str, on: str, kind: str) -> dict[str, str]:
    resource, _, name = on.partition(":")
    if resource not in _RESOURCES or bool(name) is (resource == "organization"):
        raise InvalidRequest(f"on: {on!r} is neither scope:NAME, workspace:NAME nor organization")
    return {
        "resource_type": _RESOURCES[resource],
        "resource_id": name,
        "principal_type": f"PRINCIPAL_TYPE_{kind.upper()}",
        "principal_id": principal,
        "role": role,
    }
