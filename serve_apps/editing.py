"""Edits of what the catalogue says about definitions; the definitions themselves change by commits alone.

Knows no HTTP. Methods block (SQL): the routes call them in threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featurelib.clock import Clock
from featurelib.stores.metadata_edits import EditedKind, MetadataEdits
from featurelib.stores.registry import NewEvent, Registry
from serve_apps import shapes
from serve_apps.catalogue import Catalogued, named
from serve_apps.shapes import About, Json

_SOURCE = "definition-service"


class MetadataService:
    """What the routes that edit metadata answer with.

    Args:
        registry: where edits are kept, beside what they are about.
        clock: what they are dated by.
    """

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock

    def edit(self, kind: EditedKind, name: str, members: Mapping[str, Any], edited_by: str | None) -> Json:
        """Edit members of a definition's metadata; they hold until the code says something else. The whole block.

        Raises:
            NotFound: it is not committed.
        """
        event = NewEvent(
            event_type="metadata_edited",
            source=_SOURCE,
            subject=name,
            message=f"{', '.join(sorted(members))} of {kind} {name} edited",
            detail={"kind": kind, "members": sorted(members), "edited_by": edited_by},
        )
        return shapes.metadata_block(self._put((kind, name), members, event))

    def deprecate(self, name: str, reason: str | None, replacement: str | None, edited_by: str | None) -> Json:
        """Mark a featureset deprecated; it is served on.

        Raises:
            NotFound: it is not committed.
        """
        members = {"deprecated": True, "deprecation_reason": reason, "replacement": replacement}
        said = "; ".join(filter(None, (reason, replacement and f"use {replacement}")))
        event = NewEvent(
            event_type="featureset_deprecated",
            source=_SOURCE,
            subject=name,
            message=f"{name} is deprecated{': ' if said else ''}{said}",
            detail={"reason": reason, "replacement": replacement, "edited_by": edited_by},
        )
        return _deprecation(name, self._put(("featureset", name), members, event))

    def restore(self, name: str, edited_by: str | None) -> Json:
        """Take the mark of a deprecated featureset back.

        Raises:
            NotFound: it is not committed.
        """
        members = {"deprecated": False, "deprecation_reason": None, "replacement": None}
        event = NewEvent(
            event_type="featureset_restored",
            source=_SOURCE,
            subject=name,
            message=f"{name} is no longer deprecated",
            detail={"edited_by": edited_by},
        )
        return _deprecation(name, self._put(("featureset", name), members, event))

    def _put(self, edited: tuple[EditedKind, str], members: Mapping[str, Any], event: NewEvent) -> About:
        kind, name = edited
        named(self._registry.definitions(), kind, name)
        if members:
            MetadataEdits(self._registry.database).put(edited, members, event, self._clock.now())
        read = Catalogued.read(self._registry)
        return read.about(named(read.definitions, kind, name))


def _deprecation(name: str, about: About) -> Json:
    block = shapes.metadata_block(about)
    return {
        "name": name,
        **{member: block[member] for member in ("deprecated_at", "deprecation_reason", "replacement")},
    }
