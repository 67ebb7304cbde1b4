"""`/api/v1/keys`: who may call, with which role, until when and how often. For admins alone."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import structlog
from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, StrictInt

from featurelib.clock import Instant, format_instant, parse_instant
from featurelib.errors import NotFound, ThymeError
from featurelib.stores.keys import MOST_PER_SECOND, KeyRecord, Role
from serve_apps.messages import ErrorBody
from serve_apps.routes.access import Admin, ServicesOf
from serve_apps.services import Services

router = APIRouter(prefix="/api/v1/keys", tags=["keys"])

_LONGEST_LABEL = 200
_log = structlog.get_logger("thyme.serve")
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


@router.post("", status_code=201)
async def create(body: KeyRequest, services: ServicesOf, caller: Admin) -> NewKeyShown:
    """Make a key. Its secret is in this answer and nowhere else; it works here at once, elsewhere within a second."""
    ends = None if body.expires_at is None else parse_instant(body.expires_at, "expires_at")
    registry = services.stores.registry
    key, secret = await asyncio.to_thread(
        registry.create_key,
        body.role,
        body.label,
        expires_at=ends,
        rate_limit=body.rate_limit,
        created_by=caller.fingerprint,
    )
    await _followed(services)
    return NewKeyShown(**_shown(key, services.clock.now()).model_dump(), key=secret)


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
    await _followed(services)
    return _shown(known[fingerprint], services.clock.now())


async def _followed(services: Services) -> None:
    """Let this replica know of a change of keys before it is acknowledged; the others poll."""
    try:
        await services.current.refresh()
    except ThymeError as error:
        _log.warning("keys_not_current_yet", error=str(error))


def _shown(key: KeyRecord, now: Instant) -> KeyShown:
    return KeyShown(
        fingerprint=key.fingerprint,
        role=key.role,
        label=key.label,
        state=key.state_at(now),
        rate_limit=key.rate_limit,
        created_at=format_instant(key.created_at),
        expires_at=None if key.expires_at is None else format_instant(key.expires_at),
        revoked_at=None if key.revoked_at is None else format_instant(key.revoked_at),
    )
