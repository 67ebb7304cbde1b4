"""Windows: which events an aggregate sees at an instant R (decision 3)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from featurelib.clock import SECOND, format_duration, parse_duration


class Continuous(BaseModel):
    """Events with ``R - size <= t <= R``, both ends included, exact to the microsecond."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["continuous"] = "continuous"
    size_us: Annotated[PositiveInt, Field(multiple_of=SECOND)]

    def __str__(self) -> str:
        return format_duration(self.size_us)


class Lifetime(BaseModel):
    """Every event with ``t <= R``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["lifetime"] = "lifetime"

    def __str__(self) -> str:
        return ""


Window = Annotated[Continuous | Lifetime, Field(discriminator="kind")]


def parse_window(text: str | Continuous | Lifetime) -> Continuous | Lifetime:
    """Read a window string; empty means lifetime.

    Raises:
        ValueError: the text is not a strict duration.
    """
    if isinstance(text, Continuous | Lifetime):
        return text
    return Continuous(size_us=parse_duration(text)) if text else Lifetime()
