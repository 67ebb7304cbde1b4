"""What of a featureset can still be read when an input is missing, or one of its extractors took too long.

The rest is a featureset like any other: the same features without those that cannot be had, and without the extractors
that make them. It is compiled and read as all are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import NamedTuple

from featurelib.definitions import Definitions, FeatureDef, FeaturesetDef
from featurelib.engine.extractor import Runner
from featurelib.engine.read_plan import compile_plan
from featurelib.lineage import made_of
from serve_apps.current import Snapshot
from serve_apps.snowflake_wire import ServingStatus


class Lost(NamedTuple):
    """What there is not: request features by name, and extractors by ``Featureset.extractor``."""

    missing: frozenset[str] = frozenset()
    late: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Whether anything is lost."""
        return bool(self.missing or self.late)


def status_of(featureset: FeaturesetDef, name: str, definitions: Definitions, lost: Lost) -> ServingStatus | None:
    """Why a feature cannot be had, ``None`` where it can; a missing input goes before a computation that was late."""
    found: set[ServingStatus] = set(_losses(featureset, name, definitions, lost))
    if "MISSING_INPUT" in found:
        return "MISSING_INPUT"
    return "TIME_OUT" if found else None


def without(snapshot: Snapshot, featuresets: Collection[str], lost: Lost, runner: Runner) -> Snapshot:
    """The snapshot with featuresets that hold only what can be had.

    Raises:
        DefinitionError: what is left does not compile.
    """
    definitions, rest = snapshot.definitions, dict[str, FeaturesetDef]()
    for name in featuresets:
        whole = definitions.featureset(name)
        if whole is not None:
            rest[name] = _rest(whole, definitions, lost)
    reduced = definitions.model_copy(
        update={"featuresets": tuple(rest.get(each.name, each) for each in definitions.featuresets)}
    )
    plans = {name: compile_plan(each, definitions, snapshot.views, runner) for name, each in rest.items()}
    return replace(snapshot, definitions=reduced, plans={**snapshot.plans, **plans})


def _rest(whole: FeaturesetDef, definitions: Definitions, lost: Lost) -> FeaturesetDef:
    def is_kept(feature: FeatureDef) -> bool:
        return status_of(whole, feature.name, definitions, lost) is None

    features = tuple(filter(is_kept, whole.features))
    names = {feature.name for feature in features}
    extractors = tuple(each for each in whole.extractors if names.issuperset(each.outputs))
    return whole.model_copy(update={"features": features, "extractors": extractors})


def _losses(featureset: FeaturesetDef, name: str, definitions: Definitions, lost: Lost) -> Iterator[ServingStatus]:
    """What is lost among everything a feature is made of, itself included."""
    for owner, feature, extractors in made_of(featureset, [name], definitions):
        if feature.request and feature.name in lost.missing:
            yield "MISSING_INPUT"
        if any(f"{owner.name}.{each.name}" in lost.late for each in extractors):
            yield "TIME_OUT"
