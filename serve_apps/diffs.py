"""How two forms of a definition differ, as JSON.

What is compared is what the catalogue shows of each, so no secret can come out: one that changed shows as ``***``
on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from featurelib.definitions import (
    DatasetDef,
    Definition,
    ExtractorDef,
    FeatureDef,
    FeatureServiceDef,
    FeaturesetDef,
    PipelineDef,
    SourceDef,
    digest,
)
from featurelib.metadata import Metadata
from serve_apps import shapes
from serve_apps.shapes import About, Json

_PLATFORMS = frozenset({"id", "created_at", "updated_at", "deprecated_at"})
_PROGRESS = frozenset({"cursor_value", "rows_in", "rows_dead", "rows_late", "last_error"})


class Difference(NamedTuple):
    """A member that differs; ``path`` leads to it, ``before`` or ``after`` is ``None`` where it is not there."""

    path: str
    change: Literal["added", "removed", "changed"]
    before: Any
    after: Any


def featureset_diff(before: FeaturesetDef, after: FeaturesetDef) -> Json:
    """Which features and extractors differ between two forms of a featureset."""
    old, new = _by_name(before.features), _by_name(after.features)
    was, now = _extractors(before), _extractors(after)
    return {
        "added": [_typed(new[name]) for name in new if name not in old],
        "removed": [_typed(old[name]) for name in old if name not in new],
        "changed": [_change(old[name], new[name]) for name in new if name in old and new[name] != old[name]],
        "extractors_added": [name for name in now if name not in was],
        "extractors_removed": [name for name in was if name not in now],
        "extractors_changed": [name for name in now if name in was and now[name] != was[name]],
    }


def differences(before: Definition, after: Definition) -> list[Difference]:
    """Every member in which two forms of a definition differ."""
    found = list(_differing("", _tree(before), _tree(after)))
    if isinstance(before, SourceDef) and isinstance(after, SourceDef):
        shown = {difference.path for difference in found}
        found += [each for each in _hidden(before, after) if each.path not in shown]
    return found


def _by_name(features: Sequence[FeatureDef]) -> dict[str, FeatureDef]:
    return {feature.name: feature for feature in features}


def _extractors(featureset: FeaturesetDef) -> dict[str, str]:
    """By the names that the catalogue shows, look-ups among them, what each means."""
    shown = {each["name"]: repr(each) for each in shapes.featureset_spec(featureset)["extractors"]}
    return {**shown, **{each.name: _meaning(each) for each in featureset.extractors}}


def _meaning(extractor: ExtractorDef) -> str:
    return digest(extractor)  # where it stands in the user's file means nothing


def _typed(feature: FeatureDef) -> Json:
    return {"name": feature.name, "dtype": feature.type}


def _change(before: FeatureDef, after: FeatureDef) -> Json:
    members = [name for name in FeatureDef.model_fields if getattr(before, name) != getattr(after, name)]
    return {"name": after.name, "from_dtype": before.type, "to_dtype": after.type, "members": members}


def _tree(definition: Definition) -> Json:
    about = About(Metadata() if isinstance(definition, PipelineDef) else definition.metadata)
    match definition:
        case DatasetDef():
            tree = shapes.dataset_record(definition, about)
        case PipelineDef():
            tree = shapes.pipeline_record(definition, about)
        case FeaturesetDef():
            tree = {**shapes.featureset_spec(definition), "metadata": shapes.metadata_block(about)}
        case FeatureServiceDef():
            tree = shapes.feature_service_record(definition, about)
        case SourceDef():
            record = shapes.source_record(definition, None, about)
            tree = {name: value for name, value in record.items() if name not in _PROGRESS}
    return _without(tree, _PLATFORMS)


def _without(tree: Json, names: frozenset[str]) -> Json:
    kept = {name: value for name, value in tree.items() if name not in names}
    return {name: _without(value, names) if name == "metadata" else value for name, value in kept.items()}


def _hidden(before: SourceDef, after: SourceDef) -> Iterator[Difference]:
    """Settings that differ though both show as the mask."""
    old, new = before.connector.config, after.connector.config
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
            yield Difference(f"config.{name}", "changed", shapes.MASK, shapes.MASK)


def _differing(path: str, before: Any, after: Any) -> Iterator[Difference]:
    if before == after:
        return
    old, new = _members(before), _members(after)
    if old is None or new is None:
        yield Difference(path, "changed", before, after)
        return
    for name in [*old, *(name for name in new if name not in old)]:
        below = f"{path}.{name}" if path else name
        if name not in new:
            yield Difference(below, "removed", old[name], None)
        elif name not in old:
            yield Difference(below, "added", None, new[name])
        else:
            yield from _differing(below, old[name], new[name])


def _members(value: Any) -> Mapping[str, Any] | None:
    """What a path can lead into: a mapping, or a list of things that have names or at least places."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        return None
    names = [each.get("name") for each in value]
    if all(names) and len(set(names)) == len(names):
        return dict(zip(names, value, strict=True))
    return {str(place): each for place, each in enumerate(value)}
