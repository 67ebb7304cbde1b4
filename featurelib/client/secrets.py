"""Secrets: put, read and deleted by those who hold a role on their scope."""

from __future__ import annotations

from typing import Any

from featurelib.client.operations import Endpoints, Operation, named
from featurelib.client.wire import Request, Steps

_SCOPES = "/api/v1/secrets-service/scopes"


class Secrets(Endpoints):
    """Operations on secrets."""

    @Operation
    def secret_scopes(self) -> Steps[list[str]]:
        """The scopes whose secrets may be read with this key."""
        return (yield self.get(_SCOPES)).read(lambda tree: [each["name"] for each in tree["scopes"]])

    @Operation
    def create_scope(self, scope: str) -> Steps[None]:
        """Make a scope; the principal of the key manages it.

        Raises:
            Conflict: there is one of that name.
        """
        yield self.post(f"{_SCOPES}/{named(scope)}", repeatable=False)

    @Operation
    def delete_scope(self, scope: str) -> Steps[None]:
        """End an empty scope.

        Raises:
            NotFound: there is none of that name.
            InvalidRequest: it holds secrets.
        """
        yield Request("DELETE", self.api_url(f"{_SCOPES}/{named(scope)}"), repeatable=False)

    @Operation
    def secrets(self, scope: str) -> Steps[list[str]]:
        """The names of a scope's secrets; never a value."""
        asked = self.get(f"{_SCOPES}/{named(scope)}/keys")
        return (yield asked).read(lambda tree: [each["name"] for each in tree["keys"]])

    @Operation
    def secret(self, scope: str, key: str) -> Steps[str]:
        """The value of a secret.

        Raises:
            Forbidden: the key's principal does not hold ``read_scope_role``.
            NotFound: there is none of that name.
        """
        return (yield self.get(_path(scope, key))).read(lambda tree: str(tree["value"]))

    @Operation
    def put_secret(self, scope: str, key: str, value: str) -> Steps[None]:
        """Store a secret, in place of the one before; sources that use it follow within two minutes."""
        yield Request("PUT", self.api_url(_path(scope, key)), body={"value": value})

    @Operation
    def delete_secret(self, scope: str, key: str) -> Steps[None]:
        """Delete a secret.

        Raises:
            NotFound: there is none of that name.
        """
        yield Request("DELETE", self.api_url(_path(scope, key)), repeatable=False)

    @Operation
    def rotate_secrets(self) -> Steps[dict[str, Any]]:
        """Encrypt every secret anew; how many there were, and the id of the key they are under now."""
        return (yield self.post("/api/v1/secrets/rotate", repeatable=False)).read(dict)


def _path(scope: str, key: str) -> str:
    return f"{_SCOPES}/{named(scope)}/keys/{named(key)}"
