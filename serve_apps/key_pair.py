"""Callers who sign with a key pair of their own: JSON Web Tokens against the public keys registered for users.

A token says ``sub: <account>.<user>`` and ``iss: <account>.<user>.SHA256:<fingerprint>``, is signed with RS256, and is
good for an hour after ``iat`` at most, less where ``exp`` says so. The account is the client's own matter: there is one
platform here, and what decides is the user and the key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jwt

from featurelib.clock import HOUR, MINUTE, SECOND, Instant
from featurelib.errors import Unauthenticated
from serve_apps.auth import Caller, KeyRing, Signer

_TOKEN = re.compile(rb"bearer +([A-Za-z0-9_-]{1,4096}\.[A-Za-z0-9_-]{1,4096}\.[A-Za-z0-9_-]{1,4096})", re.IGNORECASE)
_ISSUER = re.compile(r"(?P<subject>(?P<account>.+)\.(?P<user>[^.]+))\.(?P<fingerprint>SHA256:[A-Za-z0-9+/]{43}=)")
_LONGEST = HOUR
# The clocks of two machines differ.
_SKEW = MINUTE
_UNCHECKED: Any = {"verify_signature": True, "verify_exp": False, "verify_iat": False, "verify_aud": False}


def is_token(authorization: bytes) -> bool:
    """Whether an ``Authorization`` header holds what looks like a signed token; an API key never does."""
    return _TOKEN.fullmatch(authorization) is not None


def caller_of(authorization: bytes, keys: KeyRing, now: Instant) -> Caller:
    """Who signed the token of an ``Authorization`` header.

    Raises:
        Unauthenticated: no valid public key of that user verifies it, or it is not good now; says which.
    """
    found = _TOKEN.fullmatch(authorization)
    if found is None:
        raise Unauthenticated("no signed token was sent")
    token = found[1].decode()
    issuer = _issuer(token)
    for signer in keys.public_keys_of(issuer["user"], now):
        if signer.fingerprint == issuer["fingerprint"]:
            _check(_claims(token, signer), issuer["subject"], now)
            return signer.caller
    raise Unauthenticated("the token names a user and a public key that are not registered together")


def _issuer(token: str) -> Mapping[str, str]:
    """Whom the token says it is from; nothing of it is believed yet."""
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError as error:
        raise Unauthenticated(f"the token cannot be read: {error}") from None
    found = _ISSUER.fullmatch(str(claims.get("iss", "")))
    if found is None:
        raise Unauthenticated("the token's iss is not <account>.<user>.SHA256:<fingerprint of the public key>")
    return found.groupdict()


def _claims(token: str, signer: Signer) -> Mapping[str, Any]:
    try:
        claims: dict[str, Any] = jwt.decode(token, signer.public_key, algorithms=["RS256"], options=_UNCHECKED)
    except jwt.PyJWTError as error:
        raise Unauthenticated(f"the token does not hold: {error}") from None
    return claims


def _check(claims: Mapping[str, Any], subject: str, now: Instant) -> None:
    """Refuse a token that says something else of its sender than its issuer does, or that is not good now."""
    if claims.get("sub") != subject:
        raise Unauthenticated("the token's sub is not the account and user of its iss")
    issued, expires = _instant(claims, "iat"), _instant(claims, "exp")
    if issued > now + _SKEW:
        raise Unauthenticated("the token was issued in the future; compare the clocks")
    if now >= min(expires, issued + _LONGEST):
        raise Unauthenticated("the token has expired: it is good until exp, and for an hour after iat at most")


def _instant(claims: Mapping[str, Any], name: str) -> Instant:
    given = claims.get(name)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < 2**33:
        raise Unauthenticated(f"the token's {name} is missing, or not seconds since 1970")
    return round(given * SECOND)
