"""`/api/v1/keys`: who may call, with which role, until when and how often. For admins alone."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from featurelib.clock import Instant, format_instant, parse_instant
from featurelib.errors import NotFound
from featurelib.stores.keys import MOST_PER_SECOND, KeyRecord, NewKey, Role
from serve_apps.messages import ErrorBody
from serve_apps.routes.access import Admin, ServicesOf, followed

router = APIRouter(prefix="/api/v1/keys", tags=["keys"])

_LONGEST_LABEL = 200
_LONGEST_PUBLIC_KEY = 16_384
Fingerprint = Annotated[
    str, Path(pattern="^[0-9a-f]{8}$", description="The first eight hex digits of the key's SHA-256.")
]


class KeyRequest(BaseModel):
    """What a new key shall be allowed."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {"role": "reader", "label": "dashboard", "expires_at": "2031-01-01T00:00:00Z", "rate_limit": 50}
            ]
        },
    )

    role: Role
    """`reader` reads features and the catalogue; `writer` also commits and sends records; `admin` also makes keys."""
    label: str = Field(default="", max_length=_LONGEST_LABEL)
    """Whose it is, or what for."""
    expires_at: str | None = Field(default=None, max_length=64)
    """When it ends, ISO 8601, UTC without a zone; left out, never."""
    rate_limit: StrictInt | None = Field(default=None, ge=1, le=MOST_PER_SECOND)
    """Requests per second; left out, the platform's default."""
    principal: StrictStr | None = Field(default=None, max_length=_LONGEST_LABEL)
    """Id or name of the user or service account it belongs to; left out: it stands for itself."""


class PublicKeyRequest(KeyRequest):
    """A public key to be registered, and what those may do who sign with its private half."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"role": "writer", "label": "INGEST_USER", "public_key": "-----BEGIN PUBLIC KEY-----\n…"}]
        }
    )

    label: str = Field(max_length=128)
    """Name of the user, as tokens give it; compared without regard to case."""
    public_key: StrictStr = Field(max_length=_LONGEST_PUBLIC_KEY)
    """RSA, 2048 bits or more, in PEM."""


class KeyShown(BaseModel):
    """An API key; its secret is shown once, when it is made."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    fingerprint: str
    """The first eight hex digits of its SHA-256; query runs and events name it by this."""
    role: Role
    label: str
    state: Literal["active", "expired", "revoked"]
    rate_limit: int | None
    """Requests per second; null: the platform's default."""
    principal: str | None
    """Id of whom it belongs to; null: it stands for itself."""
    public_key: str | None
    """Of a key that tokens are signed with: its public half, PEM."""
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class NewKeyShown(KeyShown):
    """A key that was just made, with its secret."""

    key: str
    """The secret, `tk_…`: keep it; it cannot be had again."""


_CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorBody, "description": "It is the last valid admin key."}
}
_REGISTERED: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorBody, "description": "The public key is registered already."}
}


@router.post("", status_code=201)
async def create(body: KeyRequest, services: ServicesOf, caller: Admin) -> NewKeyShown:
    """Make a key. Its secret is in this answer and nowhere else; it works here at once, elsewhere within a second."""
    key, secret = await asyncio.to_thread(services.access.keys.create, _asked(body), caller.author)
    await followed(services)
    return NewKeyShown(**_shown(key, services.clock.now()).model_dump(), key=secret)


@router.post("/public", status_code=201, responses=_REGISTERED)
async def register(body: PublicKeyRequest, services: ServicesOf, caller: Admin) -> KeyShown:
    """Register a user's public key: whoever holds the private half calls with tokens signed by it, and sends no key."""
    asked = _asked(body).model_copy(update={"public_key": body.public_key})
    key = await asyncio.to_thread(services.access.keys.register, asked, caller.author)
    await followed(services)
    return _shown(key, services.clock.now())


@router.get("")
def keys(services: ServicesOf, caller: Admin) -> list[KeyShown]:  # noqa: ARG001  # the role is the point
    """Every key ever made, oldest first, expired and revoked ones included; never a secret."""
    now = services.clock.now()
    return [_shown(key, now) for key in services.stores.registry.keys()]  # noqa: SIM118  # not a dict


@router.delete("/{fingerprint}", responses=_CONFLICT)
async def revoke(fingerprint: Fingerprint, services: ServicesOf, caller: Admin) -> KeyShown:
    """Make a key invalid: here at once, in every replica within a second. Done again it changes nothing."""
    registry = services.stores.registry
    await asyncio.to_thread(registry.revoke_key, fingerprint, caller.fingerprint)
    known = {key.fingerprint: key for key in await asyncio.to_thread(registry.keys)}
    if fingerprint not in known:
        raise NotFound(f"there is no key {fingerprint!r}")
    await followed(services)
    return _shown(known[fingerprint], services.clock.now())


def _asked(body: KeyRequest) -> NewKey:
    ends = None if body.expires_at is None else parse_instant(body.expires_at, "expires_at")
    return NewKey(
        role=body.role,
        label=body.label,
        expires_at=ends,
        rate_limit=body.rate_limit,
        principal=body.principal,
    )


def _shown(key: KeyRecord, now: Instant) -> KeyShown:
    return KeyShown(
        fingerprint=key.fingerprint,
        role=key.role,
        label=key.label,
        state=key.state_at(now),
        rate_limit=key.rate_limit,
        principal=key.principal,
        public_key=key.public_key,
        created_at=format_instant(key.created_at),
        expires_at=None if key.expires_at is None else format_instant(key.expires_at),
        revoked_at=None if key.revoked_at is None else format_instant(key.revoked_at),
    )
