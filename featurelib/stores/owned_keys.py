"""Keys of principals: such as are sent, and public keys, with whose private half tokens are signed.

What a key may do is what its own role allows; the roles of its principal open workspaces and secrets to it.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from sqlalchemy import Connection, select

from featurelib.clock import Clock, Instant
from featurelib.errors import Conflict, InvalidRequest
from featurelib.stores import keys, principals, schema
from featurelib.stores.database import Database
from featurelib.stores.event_log import insert_event
from featurelib.stores.keys import KeyRecord, NewKey
from featurelib.stores.principals import Author
from featurelib.stores.registry import NewEvent, moved

_FEWEST_BITS = 2_048


class OwnedKeys:
    """Keys in the registry's database, with whom they belong to. Changes move the registry's version.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the database
    does not answer.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        """Use the database of a registry: ``OwnedKeys(registry.database, clock)``."""
        self._database = database
        self._clock = clock

    def create(self, asked: NewKey, by: Author) -> tuple[KeyRecord, str]:
        """Make a key; the second member is its secret, which is shown this once and cannot be had again.

        Args:
            asked: the key; its ``principal`` is an id or a name.
            by: who asks.

        Raises:
            InvalidRequest: it would be expired, its limit is out of range, or its principal cannot have keys.
            NotFound: there is no such principal.
        """
        with self._database.exclusive() as connection:
            now = self._clock.now()
            key, secret = keys.insert(connection, keys.checked(_owned(connection, asked), now), now)
            self._told(connection, key, f"{key.role} key {key.label!r} created", by, now)
        return key, secret

    def register(self, asked: NewKey, by: Author) -> KeyRecord:
        """Register a public key for a user.

        Args:
            asked: the key; ``label`` is the user's name, ``public_key`` an RSA key in PEM.
            by: who asks.

        Raises:
            InvalidRequest: the key is no public RSA key of 2048 bits or more, the user has no name, or as in
                :meth:`create`.
            Conflict: it is registered already.
            NotFound: there is no such principal.
        """
        pem, sha256 = public_rsa_key(asked.public_key or "")
        principals.checked_name(asked.label, "label")
        with self._database.exclusive() as connection:
            now = self._clock.now()
            checked = keys.checked(_owned(connection, asked), now).model_copy(update={"public_key": pem})
            _refuse_twice(connection, sha256)
            key = KeyRecord(**checked.model_dump(), fingerprint=sha256[:8], sha256=sha256, created_at=now)
            connection.execute(schema.api_keys.insert(), key.model_dump())
            self._told(connection, key, f"public key of {key.label!r} registered, {key.role}", by, now)
        return key

    def _told(self, connection: Connection, key: KeyRecord, message: str, by: Author, now: Instant) -> None:
        moved(connection)
        event = NewEvent(
            event_type="api_key_created",
            source="definition-service",
            subject=key.fingerprint,
            message=message,
            detail={"by": by.fingerprint, "principal": key.principal},
        )
        insert_event(connection, event, now)


def public_rsa_key(pem: str) -> tuple[str, str]:
    """The key as it is kept, PEM, and the SHA-256 of its DER form in hexadecimal digits.

    Raises:
        InvalidRequest: it is no public RSA key of 2048 bits or more.
    """
    if "PRIVATE KEY" in pem:
        raise InvalidRequest("public_key: this is a private key; it stays with its owner. Send the public half")
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidRequest("public_key: not a public key in PEM, '-----BEGIN PUBLIC KEY-----'") from None
    if not isinstance(key, RSAPublicKey) or key.key_size < _FEWEST_BITS:
        raise InvalidRequest(f"public_key: not an RSA key of {_FEWEST_BITS} bits or more")
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(), hashlib.sha256(der).hexdigest()


def _owned(connection: Connection, asked: NewKey) -> NewKey:
    if asked.principal is None:
        return asked
    owner = principals.found(connection, asked.principal)
    if owner.kind not in principals.OWNERS:
        raise InvalidRequest(f"principal: {owner.name!r} is a {owner.kind}; keys belong to users and service accounts")
    return asked.model_copy(update={"principal": owner.id})


def _refuse_twice(connection: Connection, sha256: str) -> None:
    """Refuse a public key whose fingerprint is taken; one that was revoked stays so."""
    taken = select(schema.api_keys.c.sequence).where(schema.api_keys.c.fingerprint == sha256[:8])
    if connection.execute(taken).first() is not None:
        raise Conflict(f"the public key {sha256[:8]} is registered already; one that was revoked cannot come back")
