"""Who calls: bearer keys, checked against hashes held in memory.

The key ring is rebuilt whenever the registry's version moves, so a revoked key stops working within
one poll; nothing here does I/O.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import NamedTuple

from featurelib.clock import Instant
from featurelib.errors import Forbidden, Unauthenticated
from featurelib.stores.keys import KeyRecord, Role

_SCHEME = b"bearer "
_MOST_KNOWN = 10_000
# A header of ours has 53 bytes; blanks may stand before its key, and 10,000 such headers of 64 KiB shall not be kept.
_LONGEST_KNOWN = 128


class Caller(NamedTuple):
    """Who sent a request. ``fingerprint`` is ``None`` for a caller without a key.

    ``admitted``: whether what they sent in place of a key is enough; only a webhook's delivery comes so far without.
    """

    fingerprint: str | None
    key: KeyRecord | None
    admitted: bool = True

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


STRANGER = Caller(None, None, admitted=False)
"""A caller that must show in another way who they are."""


class KeyRing:
    """The keys of one registry version.

    Args:
        keys: all keys; revoked ones are left out.
        required: whether a request without a valid key is refused.
    """

    def __init__(self, keys: Sequence[KeyRecord], *, required: bool = True) -> None:
        self._required = required
        self._by_fingerprint = {key.fingerprint: key for key in keys if key.revoked_at is None}
        self.rates = {name: key.rate_limit for name, key in self._by_fingerprint.items()}
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

    def _checked(self, authorization: bytes | None, now: Instant) -> Caller:
        if authorization is None or authorization[:7].lower() != _SCHEME:
            if self._required:
                raise Unauthenticated("no bearer key was sent")
            return Caller(None, None)
        digest = hashlib.sha256(authorization[7:].strip()).hexdigest()
        key = self._by_fingerprint.get(digest[:8])
        # The fingerprint is public; the rest of the hash is compared in constant time.
        if key is not None and hmac.compare_digest(key.sha256, digest) and key.valid_at(now):
            caller = Caller(key.fingerprint, key)
            if len(authorization) <= _LONGEST_KNOWN and len(self._known) < _MOST_KNOWN:
                self._known[authorization] = caller
            return caller
        if self._required:
            raise Unauthenticated("the bearer key is unknown, expired or revoked")
        return Caller(digest[:8], None)
