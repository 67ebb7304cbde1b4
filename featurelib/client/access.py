"""Keys: who may call the platform."""

from __future__ import annotations

from typing import Any

from featurelib.client.frames import instant_text
from featurelib.client.operations import Endpoints, Operation, named
from featurelib.client.wire import Request, Steps, listed


class Access(Endpoints):
    """Operations on keys; they need an admin's."""

    @Operation
    def keys(self) -> Steps[list[dict[str, Any]]]:
        """The keys by their fingerprints, with role, expiry and limit; never a key itself."""
        return (yield self.get("/api/v1/keys")).read(listed)

    @Operation
    def create_key(
        self, role: str = "reader", *, name: str = "", expires_at: Any = None, rate_limit: int | None = None
    ) -> Steps[dict[str, Any]]:
        """Make a key; the answer alone holds it, as ``key``.

        Args:
            role: ``reader``, ``writer`` or ``admin``.
            name: whose it is.
            expires_at: the instant from which it opens nothing.
            rate_limit: most requests a second.
        """
        given = {
            "role": role,
            "label": name or None,
            "expires_at": None if expires_at is None else instant_text(expires_at, "expires_at"),
            "rate_limit": rate_limit,
        }
        body = {member: value for member, value in given.items() if value is not None}
        return (yield self.post("/api/v1/keys", body)).read(dict)

    @Operation
    def revoke_key(self, fingerprint: str) -> Steps[dict[str, Any]]:
        """Let a key open nothing from now on.

        Raises:
            NotFound: there is none of that fingerprint.
        """
        return (yield Request("DELETE", self.api_url(f"/api/v1/keys/{named(fingerprint)}"))).read(dict)
