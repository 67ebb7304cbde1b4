"""Keyed digests: what a query run keeps of an answer, so that a replay can be compared with values nobody stored.

A digest is of one feature of one run: equal values of two runs, or of two features, have different digests, and without
the key nobody finds a value by trying. The key is a secret of the platform, 32 bytes in the data directory.

All values of a run are digested at once: the text of each is a block of 16 bytes, and AES-256-XTS, a permutation of its
own for each run (the tweak) and place (the block's), takes them to blocks of which one half is kept. Half a block tells
a wrong guess from the right one but for 1 in 2^64. With the key, too, it gives a value away only to who tries values,
or 2^64 other halves. Fifty numbers take half the time of a digest function called for each (BLAKE2b with key and salt),
which was a third of what a query run costs.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from featurelib.errors import CorruptState
from featurelib.settings import Settings

KEY_BYTES = 32
_DIGEST_BYTES = 8
_MARK_BYTES = 12
_HEX = 2 * _DIGEST_BYTES
_ID_HEX = 8
Verdict = Literal["same", "different", "unknown"]
_BLOCK = 16
# Of 15 characters in Base64: with the mark before them, a block.
_LONG_BYTES = 11
# The longest float has 16 characters: -1.23456789e-308.
_FORMS = {float: f"%-{_BLOCK}.9g", int: f"%-{_BLOCK}d"}
_PLAIN = {None: "null", True: "true", False: "false"}


class Digests:
    """Digests under one key.

    Args:
        key: 32 bytes that nobody else knows.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._permutation = AES(hashlib.blake2b(b"values", key=key, digest_size=64).digest())
        self._long = hashlib.blake2b(digest_size=_LONG_BYTES, key=key, person=b"long")
        self.key_id = hashlib.blake2b(b"aes-xts", key=key, digest_size=_ID_HEX // 2).hexdigest()
        """Tells keys apart, and nothing about them."""

    def of(self, run_id: str, values: Sequence[Any]) -> str:
        """The digests of a run's features, as text: the key's id, then 16 hex digits each, in order."""
        if not values:
            return self.key_id
        blocks = (
            Cipher(self._permutation, XTS(bytes.fromhex(run_id.replace("-", ""))))
            .encryptor()
            .update(self._blocks(values))
        )
        return self.key_id + memoryview(blocks).cast("Q")[::2].tobytes().hex()

    def _blocks(self, values: Sequence[Any]) -> bytes:
        """The text of each value, in 16 bytes."""
        form, others = _form(tuple(map(type, values)))
        members = list(values)
        for place in others:
            members[place] = self._block(text_of(members[place]))
        blocks = form % tuple(members)
        if len(blocks) != _BLOCK * len(values):  # an integer of more digits
            blocks = "".join([self._block(text_of(each)) for each in values])
        return blocks.encode()

    def _block(self, text: str) -> str:
        """A text in 16 characters: itself, or where it is longer what stands for it."""
        if len(text) <= _BLOCK:
            return text.ljust(_BLOCK)
        digest = self._long.copy()  # 0.3 µs less than to begin anew, of 0.9
        digest.update(text.encode())
        # No text begins like this, and none ends with a blank.
        return f"#{base64.b64encode(digest.digest()).decode()}"[:_BLOCK]

    def mark(self, run_id: str, *parts: object) -> str:
        """What stands in a run's record for something that must not be read from it, such as a key."""
        text = json.dumps(parts)
        salt = uuid.UUID(run_id).bytes
        return hashlib.blake2b(
            text.encode(), digest_size=_MARK_BYTES, key=self._key, salt=salt, person=b"mark"
        ).hexdigest()

    def entity(self, target: str, key: str) -> str:
        """What stands for an entity over many runs, and tells nobody which one it is."""
        text = json.dumps([target, key])
        return hashlib.blake2b(text.encode(), digest_size=_MARK_BYTES, key=self._key, person=b"entity").hexdigest()

    def verdicts(
        self, run_id: str, digests: str | None, names: Sequence[str], today: Mapping[str, Any] | None
    ) -> dict[str, Verdict]:
        """Per feature of a run whether a value is the one that was given.

        Args:
            run_id: the run's.
            digests: of what it gave.
            names: of its features, in order.
            today: values by name; a feature that is not among them is ``unknown``; ``None``: there are none.
        """
        before = self.split(digests)
        if before is None or today is None or len(before) != len(names):
            return dict.fromkeys(names, "unknown")
        # Digests go by a feature's place: those of today's values are made for the places they had.
        now = self.split(self.of(run_id, [today.get(name) for name in names])) or []
        return {
            name: ("same" if was == is_ else "different") if name in today else "unknown"
            for name, was, is_ in zip(names, before, now, strict=True)
        }

    def split(self, digests: str | None) -> list[str] | None:
        """The digest of each feature; ``None`` where there are none, or they are under another key."""
        if digests is None or not digests.startswith(self.key_id):
            return None
        return [digests[start : start + _HEX] for start in range(_ID_HEX, len(digests), _HEX)]


@lru_cache(1_024)
def _form(kinds: tuple[type, ...]) -> tuple[str, tuple[int, ...]]:
    """How values of these types are formatted, and the places of those whose text is made one by one."""
    parts = [_FORMS.get(kind, "%s") for kind in kinds]
    return "".join(parts), tuple(place for place, kind in enumerate(kinds) if kind not in _FORMS)


def text_of(value: Any) -> str:
    """The text of a value that its digest is of. Floats count at 9 significant digits."""
    if isinstance(value, float):
        return f"{value:.9g}"
    if value is None or isinstance(value, bool):
        return _PLAIN[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join([text_of(each) for each in value]) + "]"
    if isinstance(value, dict):
        # A map has no order: it may be made of a set, whose order is another in each process.
        return "{" + ",".join(f"{json.dumps(str(name))}:{text_of(value[name])}" for name in sorted(value)) + "}"
    return encode_basestring_ascii(str(value))  # what `json.dumps` calls for text, an eighth of its time


def digest_key(settings: Settings) -> bytes:
    """The platform's key; made at the first start, where the settings give none.

    Raises:
        CorruptState: what is there is no key.
    """
    given = settings.registry.digest_key.get_secret_value()
    if given:
        return _read(given, "registry.digest_key")
    path = settings.data_dir / "secrets" / "digest-key"
    if not path.exists():
        _make(path)
    return _read(path.read_text().strip(), str(path))


def _read(text: str, where: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise CorruptState(f"{where}: expected {2 * KEY_BYTES} hexadecimal digits; without this key no run is compared")
    return key


def _make(path: Path) -> None:
    # Replicas start together: whoever links first wins, and nobody reads a file that is half written.
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    own = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(own, path)
    except FileExistsError:
        pass
    finally:
        own.unlink()
