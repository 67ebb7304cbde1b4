"""Who calls: keys, checked against hashes held in memory, and what their principals may do.

The key ring is rebuilt whenever the registry's version moves, so a revoked key or role stops working within
one poll; nothing here does I/O.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from featurelib.clock import Instant
from featurelib.errors import Forbidden, Unauthenticated
from featurelib.stores.keys import KeyRecord, Role
from featurelib.stores.principals import Author
from featurelib.stores.standings import Resource, Standing
from featurelib.stores.standings import Role as Held

# Compared without regard to case. Clients of other platforms name a scheme of their own and mean the same.
_SCHEMES = (b"bearer ", b"tecton-key ")
_QUOTED = re.compile(rb'snowflake +token="([^"]+)"', re.IGNORECASE)
_MOST_KNOWN = 10_000
# A header of ours has 53 bytes; blanks may stand before its key, and 10,000 such headers of 64 KiB shall not be kept.
_LONGEST_KNOWN = 128


class Caller(NamedTuple):
    """Who sent a request. ``fingerprint`` is ``None`` for a caller without a key.

    ``admitted``: whether what they sent in place of a key is enough; only a webhook's delivery comes so far without.
    ``standing``: what the principal of the key may do; ``None`` for a key that belongs to nobody.
    """

    fingerprint: str | None
    key: KeyRecord | None
    admitted: bool = True
    standing: Standing | None = None

    def require(self, role: Role) -> None:
        """Refuse a caller whose key does not include the role.

        Raises:
            Unauthenticated: the caller is not admitted.
            Forbidden: names the role needed.
        """
        if not self.admitted:
            raise Unauthenticated("the bearer key is missing, unknown, expired or revoked")
        if self.key is not None and not self.key.allows(role):
            raise Forbidden(f"this needs the role {role!r}; the key {self.fingerprint} has {self.key.role!r}")

    @property
    def is_admin(self) -> bool:
        """Whether nothing is closed to them: an admin's key, a principal that is one, or no keys are asked for."""
        if not self.admitted:
            return False
        if self.key is None or self.key.role == "admin":
            return True
        return self.standing is not None and self.standing.is_admin

    @property
    def author(self) -> Author:
        """Who they are, for what is kept of a change."""
        return Author(fingerprint=self.fingerprint, principal=self.key.principal if self.key is not None else None)

    def holds(self, role: Held, resource: Resource) -> bool:
        """Whether their principal holds a role on something, or one that includes it."""
        return self.is_admin or (self.standing is not None and self.standing.holds(role, resource))

    def may_read_workspace(self, workspace: str) -> bool:
        """Whether they may read the feature services of a workspace.

        All of them with a key of no principal; else those on which the principal holds a role.
        """
        return self._may_on(workspace, "consumer")

    def may_edit_workspace(self, workspace: str) -> bool:
        """Whether they may change what a workspace holds, as far as their key may commit."""
        return self._may_on(workspace, "editor")

    def require_workspace(self, workspace: str) -> None:
        """Refuse a caller that may not read a workspace.

        Raises:
            Unauthenticated: the caller is not admitted.
            Forbidden: names the workspace.
        """
        self.require("reader")
        if not self.may_read_workspace(workspace):
            raise Forbidden(f"this needs the role 'consumer' on workspace {workspace[:128]!r}; the key has none there")

    def _may_on(self, workspace: str, role: Held) -> bool:
        if self.admitted and self.standing is None:
            return True
        return self.holds(role, Resource("workspace", workspace))


class Signer(NamedTuple):
    """A registered public key, with which requests can be signed in place of sending a key."""

    fingerprint: str
    """``SHA256:`` and the digest of the key's DER form in Base64, as tokens name it."""
    public_key: str
    """PEM."""
    caller: Caller
    """Who a request is from that its private half has signed."""


STRANGER = Caller(None, None, admitted=False)
"""A caller that must show in another way who they are."""


class KeyRing:
    """The keys of one registry version.

    Args:
        keys: all keys; revoked ones are left out, and those of principals that are gone or not active.
        standings: by a principal's id, what it may do.
        required: whether a request without a valid key is refused.
    """

    def __init__(
        self, keys: Sequence[KeyRecord], standings: Mapping[str, Standing] | None = None, *, required: bool = True
    ) -> None:
        self._required = required
        self._standings = standings or {}
        held = [key for key in keys if key.revoked_at is None and self._is_represented(key)]
        # A public key is known to anybody: what it hashes to must open nothing.
        self._by_fingerprint = {key.fingerprint: key for key in held if key.public_key is None}
        self._signing = [key for key in held if key.public_key is not None]
        self.rates = {key.fingerprint: key.rate_limit for key in held}
        """By fingerprint, requests per second; ``None`` where the platform's default holds."""
        # Headers of valid keys, as they were sent, and whose they are: hashing one anew takes 2 µs a request. A ring
        # lives until the next change of any key.
        self._known: dict[bytes, Caller] = {}

    def caller(self, authorization: bytes | None, now: Instant) -> Caller:
        """Who sends this ``Authorization`` header.

        Raises:
            Unauthenticated: no key, or one that is unknown, expired or revoked.
        """
        known = self._known.get(authorization) if authorization is not None else None
        if known is not None and known.key is not None and known.key.valid_at(now):
            return known
        return self._checked(authorization, now)

    def public_keys_of(self, user: str, now: Instant) -> tuple[Signer, ...]:
        """The valid public keys that are registered for a user, whose name is compared without regard to case."""
        name = user.casefold()
        return tuple(
            Signer(_named(key), key.public_key, self._caller_of(key))
            for key in self._signing
            if key.public_key is not None and key.label.casefold() == name and key.valid_at(now)
        )

    def standing(self, principal: str) -> Standing | None:
        """What a principal may do, by its id; ``None`` where there is none."""
        return self._standings.get(principal)

    def _is_represented(self, key: KeyRecord) -> bool:
        if key.principal is None:
            return True
        standing = self._standings.get(key.principal)
        return standing is not None and standing.is_active

    def _caller_of(self, key: KeyRecord) -> Caller:
        standing = self._standings[key.principal] if key.principal is not None else None
        return Caller(key.fingerprint, key, standing=standing)

    def _checked(self, authorization: bytes | None, now: Instant) -> Caller:
        secret = _secret(authorization)
        if authorization is None or secret is None:
            if self._required:
                raise Unauthenticated("no bearer key was sent")
            return Caller(None, None)
        digest = hashlib.sha256(secret).hexdigest()
        key = self._by_fingerprint.get(digest[:8])
        # The fingerprint is public; the rest of the hash is compared in constant time.
        if key is not None and hmac.compare_digest(key.sha256, digest) and key.valid_at(now):
            caller = self._caller_of(key)
            if len(authorization) <= _LONGEST_KNOWN and len(self._known) < _MOST_KNOWN:
                self._known[authorization] = caller
            return caller
        if self._required:
            raise Unauthenticated("the bearer key is unknown, expired or revoked")
        return Caller(digest[:8], None)


def _secret(authorization: bytes | None) -> bytes | None:
    """What stands behind the scheme, if it is one of ours."""
    if authorization is None:
        return None
    scheme = next((each for each in _SCHEMES if authorization[: len(each)].lower() == each), None)
    if scheme is not None:
        return authorization[len(scheme) :].strip()
    quoted = _QUOTED.fullmatch(authorization)
    return None if quoted is None else quoted[1]


def _named(key: KeyRecord) -> str:
    return "SHA256:" + base64.b64encode(bytes.fromhex(key.sha256)).decode()
