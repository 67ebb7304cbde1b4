"""Encryption at rest: AES-256-GCM under the first of a few keys; the others only decrypt what is older.

A text is bound to its place, so that nobody who can write the database can put one secret where another is expected.
The keys are in the settings, or in a file in the data directory that its owner alone reads: never in the database.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from featurelib.errors import CorruptState
from featurelib.settings import Settings

_KEY_BYTES = 32
_NONCE_BYTES = 12
_ID_HEX = 16


class Encrypted(NamedTuple):
    """A text at rest: which key it takes to read it, and nonce and ciphertext in Base64."""

    key_id: str
    sealed: str


class Keys:
    """The keys of one moment, the one that encrypts first.

    Args:
        keys: of 32 bytes each; at least one.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._by_id = {key_id(key): key for key in keys}
        self.current = key_id(keys[0])
        """Names the key that encrypts, and tells nothing about it."""

    def has(self, key_id: str) -> bool:
        """Whether what is encrypted under that key can be read."""
        return key_id in self._by_id

    def encrypt(self, text: str, place: str) -> Encrypted:
        """The text as it may be stored; it can be read at the same place only."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = AESGCM(self._by_id[self.current]).encrypt(nonce, text.encode(), place.encode())
        return Encrypted(self.current, base64.b64encode(nonce + sealed).decode())

    def decrypt(self, encrypted: Encrypted, place: str) -> str:
        """The text.

        Raises:
            CorruptState: none of the keys is the one it was encrypted under, or it was changed or moved.
        """
        key = self._by_id.get(encrypted.key_id)
        if key is None:
            raise CorruptState(
                f"{place} is encrypted under the key {encrypted.key_id}, and the platform has "
                f"{', '.join(self._by_id)}; give the missing one in secrets.key, behind the others"
            )
        try:
            raw = base64.b64decode(encrypted.sealed, validate=True)
            return AESGCM(key).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], place.encode()).decode()
        except (InvalidTag, ValueError):
            raise CorruptState(f"{place} was changed outside the platform; put the secret again") from None


class KeySource(Protocol):
    """Where keys come from."""

    def keys(self) -> Keys:
        """The keys that hold now."""
        ...

    def begin_rotation(self) -> Keys:
        """Put a new key before the others, where the platform makes its keys itself; the keys from now on."""
        ...

    def retire(self, used: frozenset[str]) -> None:
        """Forget every key but the first and those still used."""
        ...


class GivenKeys:
    """Keys of the settings; who runs the platform changes them there.

    Args:
        keys: of 32 bytes each.
    """

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = Keys(keys)

    def keys(self) -> Keys:
        """The keys of the settings."""
        return self._keys

    def begin_rotation(self) -> Keys:
        """The same: the first of them is the new one."""
        return self._keys

    def retire(self, used: frozenset[str]) -> None:
        """Nothing: they are not ours to forget."""


class KeyFile:
    """Keys in a file, one a line, made at first use. It is read anew each time: another process may have rotated.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def keys(self) -> Keys:
        """The keys of the file.

        Raises:
            CorruptState: what is there are no keys.
        """
        return Keys(self._read())

    def begin_rotation(self) -> Keys:
        """Put a new key before the others, on disk before this returns. Call it under the database's lock."""
        keys = [secrets.token_bytes(_KEY_BYTES), *self._read()]
        self._replace(keys)
        return Keys(keys)

    def retire(self, used: frozenset[str]) -> None:
        """Keep the first key and those still used. Call it under the database's lock."""
        first, *others = self._read()
        kept = [first, *(key for key in others if key_id(key) in used)]
        if len(kept) <= len(others):
            self._replace(kept)

    def _read(self) -> list[bytes]:
        if not self._path.exists():
            self._make()
        return _parsed(self._path.read_text().split(), str(self._path))

    def _make(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._written([secrets.token_bytes(_KEY_BYTES)])
        try:
            # Replicas start together: whoever links first wins, and nobody reads a file that is half written.
            os.link(fresh, self._path)
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
        self._sync_folder()

    def _replace(self, keys: Sequence[bytes]) -> None:
        self._written(keys).replace(self._path)
        self._sync_folder()

    def _written(self, keys: Sequence[bytes]) -> Path:
        fresh = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.writelines(f"{key.hex()}\n" for key in keys)
            file.flush()
            # What is encrypted under a key reaches the disk of the database on its own: the key must be there first.
            os.fsync(file.fileno())
        return fresh

    def _sync_folder(self) -> None:
        descriptor = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def key_id(key: bytes) -> str:
    """Tells keys apart, and nothing about them."""
    return hashlib.blake2b(b"secrets", key=key, digest_size=_ID_HEX // 2).hexdigest()


def key_source(settings: Settings) -> KeySource:
    """Where the platform's keys are: the settings, or a file in the data directory.

    Raises:
        CorruptState: the setting holds no keys.
    """
    given = settings.secrets.key.get_secret_value()
    if not given:
        return KeyFile(settings.data_dir / "secrets" / "secrets-key")
    return GivenKeys(_parsed(given.replace(",", " ").split(), "secrets.key"))


def _parsed(texts: Sequence[str], where: str) -> list[bytes]:
    try:
        keys = [bytes.fromhex(text) for text in texts]
    except ValueError:
        keys = []
    if not keys or any(len(key) != _KEY_BYTES for key in keys):
        raise CorruptState(f"{where}: expected keys of {2 * _KEY_BYTES} hexadecimal digits; no secret is read without")
    return keys
