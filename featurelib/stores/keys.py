"""API keys: what one is, and what the registry does with them inside its transactions.

A key is 256 random bits, shown once. Stored is its SHA-256; the first eight hex digits of that, its fingerprint, name
it everywhere: in listings, in events and in query runs.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Literal, get_args

from pydantic import Field
from sqlalchemy import Connection, select, update

from featurelib.clock import Instant, format_instant
from featurelib.definitions import Record
from featurelib.errors import Conflict, InvalidRequest
from featurelib.stores import schema
from featurelib.stores.database import record_of

Role = Literal["reader", "writer", "admin"]

ROLES: tuple[Role, ...] = get_args(Role)
"""Each role may do what the ones before it may."""

MOST_PER_SECOND = 1_000_000
"""The highest rate limit a key can have, requests per second."""

_KEY_BYTES = 32


class NewKey(Record):
    """What a key shall be allowed, and until when. ``rate_limit``: requests per second; ``None``: the default.

    ``principal``: id of whom it belongs to; ``None``: it stands for itself. ``public_key``: PEM; such a key is not
    sent, tokens are signed with its private half.
    """

    role: Role
    label: str
    expires_at: Instant | None = None
    rate_limit: int | None = None
    principal: str | None = None
    public_key: str | None = None


class KeyRecord(NewKey):
    """An API key. Its secret is not stored; ``sha256`` is compared with the hash of what a caller sends."""

    fingerprint: str
    sha256: str = Field(repr=False)
    created_at: Instant
    revoked_at: Instant | None = None

    def valid_at(self, now: Instant) -> bool:
        """Whether the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def allows(self, needed: Role) -> bool:
        """Whether the key's role includes the needed one."""
        return ROLES.index(self.role) >= ROLES.index(needed)

    def state_at(self, now: Instant) -> Literal["active", "expired", "revoked"]:
        """What has become of the key."""
        if self.revoked_at is not None:
            return "revoked"
        return "active" if self.valid_at(now) else "expired"


def checked(asked: NewKey, now: Instant) -> NewKey:
    """The same, if a key like this can be made.

    Raises:
        InvalidRequest: it would be expired already, or its rate limit is out of range.
    """
    if asked.expires_at is not None and asked.expires_at <= now:
        raise InvalidRequest(f"expires_at: {format_instant(asked.expires_at)} is not in the future")
    if asked.rate_limit is not None and not 1 <= asked.rate_limit <= MOST_PER_SECOND:
        raise InvalidRequest(f"rate_limit: {asked.rate_limit} is not between 1 and {MOST_PER_SECOND} a second")
    return asked


def insert(connection: Connection, asked: NewKey, now: Instant) -> tuple[KeyRecord, str]:
    """Make a key; the second member is its secret, which cannot be had again."""
    secret, sha256 = _unused_secret(connection)
    key = KeyRecord(**asked.model_dump(), fingerprint=sha256[:8], sha256=sha256, created_at=now)
    connection.execute(schema.api_keys.insert(), key.model_dump())
    return key, secret


def every(connection: Connection) -> list[KeyRecord]:
    """Every key ever made, oldest first, expired and revoked ones included."""
    rows = connection.execute(select(schema.api_keys).order_by(schema.api_keys.c.sequence)).all()
    return [record_of(KeyRecord, row) for row in rows]


def valid_admins(connection: Connection, now: Instant) -> list[KeyRecord]:
    """The keys with which others can be made: sent ones, neither revoked nor expired, of nobody who is deactivated."""
    table = schema.principals
    gone = set(connection.scalars(select(table.c.id).where(table.c.is_active.is_(False))))
    return [
        key
        for key in every(connection)
        if key.role == "admin" and key.public_key is None and key.valid_at(now) and key.principal not in gone
    ]


def revoke(connection: Connection, fingerprint: str, now: Instant) -> bool:
    """Make a key invalid from now on; ``False`` when there is no such key, or it was revoked before.

    Raises:
        Conflict: it is the last valid admin key: without one, nobody could make another.
    """
    known = every(connection)
    key = next((each for each in known if each.fingerprint == fingerprint and each.revoked_at is None), None)
    if key is None:
        return False
    if valid_admins(connection, now) == [key]:
        raise Conflict(f"{fingerprint} is the last valid admin key; create another one first")
    found = update(schema.api_keys).where(schema.api_keys.c.fingerprint == fingerprint)
    connection.execute(found.values(revoked_at=now))
    return True


def _unused_secret(connection: Connection) -> tuple[str, str]:
    """A new secret and its SHA-256. Fingerprints name keys, so one that is taken is not given again."""
    while True:
        secret = f"tk_{secrets.token_urlsafe(_KEY_BYTES)}"
        sha256 = hashlib.sha256(secret.encode()).hexdigest()
        taken = select(schema.api_keys.c.sequence).where(schema.api_keys.c.fingerprint == sha256[:8])
        if connection.execute(taken).first() is None:
            return secret, sha256
