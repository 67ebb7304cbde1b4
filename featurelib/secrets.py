"""A reference to a secret. The value itself is never part of a definition."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, SecretStr, field_serializer, model_validator

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,127}"
"""What scopes and keys of the platform's secrets are called: fit for a path."""

_PLACE = re.compile(f"({NAME})/({NAME})")


class SecretRef(BaseModel):
    """Stored form: ``{"kind": "literal" | "env" | "arn" | "name" | "scope", "value": …}``.

    Of kind ``scope``, the value is ``<scope>/<key>``, where the platform keeps the secret.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["literal", "env", "arn", "name", "scope"]
    value: SecretStr

    @field_serializer("value", when_used="always")
    def _reveal(self, value: SecretStr) -> str:
        # The stored form needs the reference (or, for a literal, the value the user chose to inline);
        # repr() and tracebacks stay masked through SecretStr.
        return value.get_secret_value()

    @model_validator(mode="after")
    def _is_a_place(self) -> SecretRef:
        if self.kind == "scope" and _PLACE.fullmatch(self.value.get_secret_value()) is None:
            message = (
                "a secret of the platform is named by scope and key, each of 1 to 128 of the characters "
                "A-Z a-z 0-9 _ . @ + -, beginning with a letter, a digit or _"
            )
            raise ValueError(message)
        return self

    @property
    def place(self) -> tuple[str, str] | None:
        """Scope and key of a secret that the platform keeps; ``None`` for any other."""
        found = _PLACE.fullmatch(self.value.get_secret_value()) if self.kind == "scope" else None
        return None if found is None else (found[1], found[2])


class Secret(SecretRef):
    """What users write: ``Secret(scope=…, key=…)``, or one of ``Secret(env=…)``, ``Secret(arn=…)``, ``Secret(name=…)``.

    The first is kept by the platform (``thyme secrets put``), and changed there while everything runs.
    """

    def __init__(self, *, env: str = "", arn: str = "", name: str = "", scope: str = "", key: str = "") -> None:
        if bool(scope) != bool(key):
            raise ValueError("Secret takes scope= and key= together")
        kept = f"{scope}/{key}" if scope else ""
        given = {kind: value for kind, value in {"env": env, "arn": arn, "name": name, "scope": kept}.items() if value}
        if len(given) != 1:
            message = "Secret takes exactly one non-empty argument of env=, arn=, name=, or scope= with key="
            raise ValueError(message)
        ((kind, value),) = given.items()
        super().__init__(kind=kind, value=SecretStr(value))
