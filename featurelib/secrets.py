"""A reference to a secret. The value itself is never part of a definition."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, SecretStr, field_serializer


class SecretRef(BaseModel):
    """Stored form: ``{"kind": "literal" | "env" | "arn" | "name", "value": …}``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["literal", "env", "arn", "name"]
    value: SecretStr

    @field_serializer("value", when_used="always")
    def _reveal(self, value: SecretStr) -> str:
        # The stored form needs the reference (or, for a literal, the value the user chose to inline);
        # repr() and tracebacks stay masked through SecretStr.
        return value.get_secret_value()


class Secret(SecretRef):
    """What users write: exactly one of ``Secret(env=…)``, ``Secret(arn=…)``, ``Secret(name=…)``."""

    def __init__(self, *, env: str = "", arn: str = "", name: str = "") -> None:
        given = {kind: value for kind, value in {"env": env, "arn": arn, "name": name}.items() if value}
        if len(given) != 1:
            message = "Secret takes exactly one non-empty argument of env=, arn=, name="
            raise ValueError(message)
        ((kind, value),) = given.items()
        super().__init__(kind=kind, value=SecretStr(value))
