"""Catalog metadata that every named definition may carry."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Metadata(BaseModel):
    """Description, ownership and lifecycle marks of a definition; it never changes its meaning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str | None = None
    owner: str | None = None
    tags: dict[str, str] = {}
    project: str | None = None
    deprecated: bool = False
    deprecation_reason: str | None = None
    replacement: str | None = None
