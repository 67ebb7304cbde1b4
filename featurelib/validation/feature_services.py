"""Rules for feature services: what they give, and what a caller sends for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from featurelib.declarations import did_you_mean
from featurelib.definitions import (
    Definitions,
    FeatureDef,
    FeatureServiceDef,
    FeaturesetDef,
    ServedViewDef,
    WildcardDef,
)
from featurelib.lineage import made_of
from featurelib.types import element_type, is_nested
from featurelib.validation.findings import Finding


def check_feature_service(service: FeatureServiceDef, world: Definitions) -> list[Finding]:
    """Every mistake of a feature service."""
    return _Rules(service, world).check()


def needed_context(
    featureset: FeaturesetDef, world: Definitions, names: Iterable[str] | None = None
) -> Iterator[FeatureDef]:
    """The request features that a read of a featureset takes: its own, and those its extractors reach in others.

    Args:
        featureset: what is read.
        world: every definition.
        names: the features of it that are read; ``None``: all.
    """
    names = [feature.name for feature in featureset.features] if names is None else names
    return (each.feature for each in made_of(featureset, names, world) if each.feature.request)


@dataclass
class _Rules:
    """Checks one feature service."""

    service: FeatureServiceDef
    world: Definitions
    found: list[Finding] = field(default_factory=list)

    def check(self) -> list[Finding]:
        """Every mistake of the service."""
        self._names()
        for view in self.service.views:
            self._view(view)
        if self.service.wildcard is not None:
            self._wildcard(self.service.wildcard)
        self._unused_keys()
        self._context()
        return self.found

    def _add(self, code: str, member: str, message: str, hint: str = "", about: str = "") -> None:
        name = self.service.qualified_name
        key, subject = f"feature_service:{name}", name
        if member:
            key, subject = f"{key}.{member}", f"{subject}.{member}"
        self.found.append(Finding(code, key, subject, message, hint, about))

    def _names(self) -> None:
        parameters = [*self.service.join_keys, *self.service.request_context]
        for name in _twice(parameter.name for parameter in parameters):
            self._add("duplicate_name", name, f"`{name}` is declared twice", "A caller sends each name once.")
        for name in _twice(view.name for view in self.service.views):
            text = f"two parts of the service are called `{name}`"
            self._add("duplicate_name", name, text, "Give one of them a name=.")
        for key in self.service.join_keys:
            if is_nested(key.type):
                text = f"the join key `{key.name}` is {key.type}, whose values have no text that names one entity"
                self._add("invalid_key_type", key.name, text, "Declare it as str or int.")
        for view in self.service.views:
            for name in _twice(view.features):
                self._add("duplicate_name", view.name, f"`{view.name}.{name}` is named twice", "Name it once.")

    def _view(self, view: ServedViewDef) -> None:
        featureset = self._featureset(view.featureset, view.name)
        if featureset is None:
            return
        for name in view.features:
            if featureset.feature(name) is None:
                hint = did_you_mean(name, [f.name for f in featureset.features], featureset.name)
                text = f"`{name}` is not a feature of {featureset.name}"
                self._add("unknown_feature", view.name, text, hint, f"{featureset.name}.{name}")
        self._keys(view.name, featureset, view.join_keys)

    def _featureset(self, name: str, member: str) -> FeaturesetDef | None:
        found = self.world.featureset(name)
        if found is None:
            hint = did_you_mean(name, [f.name for f in self.world.featuresets], "The commit")
            self._add("unknown_featureset", member, f"there is no featureset `{name}`", hint, name)
        return found

    def _keys(self, member: str, featureset: FeaturesetDef, names: Sequence[str]) -> None:
        types = {key.name: key.type for key in self.service.join_keys}
        for name in names:
            if name not in types:
                hint = did_you_mean(name, list(types), "The service")
                self._add("unknown_join_key", member, f"`{name}` is not a join key of the service", hint)
        parts, entity = self._parts(featureset), featureset.entity
        if len(names) != parts:
            text = f"{featureset.name} is read by {parts} group keys; {len(names)} join keys are given"
            self._add("join_key_count", member, text, "Name a join key for each, in their order.")
        elif parts == 1 and entity is not None and types.get(names[0], entity.type) != entity.type:
            kind = types[names[0]]
            text = f"the join key `{names[0]}` is {kind}, the entity id of {featureset.name} is {entity.type}"
            self._add("key_type_mismatch", member, text, f"Declare it as {entity.type}.")

    def _parts(self, featureset: FeaturesetDef) -> int:
        """How many group keys make the entity id."""
        looked_up = (f.lookup.dataset for f in featureset.features if f.lookup)
        producers = (self.world.producer(name) for name in looked_up)
        return max((len(p.keys) for p in producers if p is not None and p.steps), default=1)

    def _wildcard(self, wildcard: WildcardDef) -> None:
        types = {key.name: key.type for key in self.service.join_keys}
        if wildcard.join_key not in types:
            text = f"the wildcard `{wildcard.join_key}` is not a join key of the service"
            self._add("unknown_join_key", wildcard.join_key, text, did_you_mean(wildcard.join_key, list(types), "It"))
            return
        if wildcard.join_key in wildcard.join_keys:
            text = f"the values of `{wildcard.join_key}` cannot be looked up by itself"
            self._add("wildcard_by_itself", wildcard.join_key, text, "Look them up by the other join keys.")
        featureset = self._featureset(wildcard.featureset, wildcard.join_key)
        feature = featureset.feature(wildcard.feature) if featureset else None
        if featureset is None:
            return
        wanted = types[wildcard.join_key]
        if feature is None or element_type(feature.type) != wanted:
            kind = "there is none" if feature is None else f"it is {feature.type}"
            text = f"the wildcard takes its values from `{featureset.name}.{wildcard.feature}`, and {kind}"
            self._add("wildcard_type", wildcard.join_key, text, f"Name a feature of type list[{wanted}].")
        self._keys(wildcard.join_key, featureset, wildcard.join_keys)

    def _unused_keys(self) -> None:
        used = {name for view in self.service.views for name in view.join_keys}
        for key in self.service.join_keys:
            if key.name not in used:
                text = f"nothing of the service is read by the join key `{key.name}`"
                self._add("unused_join_key", key.name, text, "Leave it out, or name it in join_keys= of a slice.")

    def _context(self) -> None:
        given = {parameter.name: parameter.type for parameter in self.service.request_context}
        taken: set[str] = set()
        for view in self.service.views:
            featureset = self.world.featureset(view.featureset)
            if featureset is None:
                continue
            needed = {feature.name for feature in needed_context(featureset, self.world, view.features)}
            # What only other features of the featureset take may be declared too: a slice that grows will take it.
            for feature in needed_context(featureset, self.world):
                taken.add(feature.name)
                if feature.name in needed or feature.name in given:
                    self._taken(view, feature, given.get(feature.name))
        for name in given:
            if name not in taken:
                text = f"nothing of the service takes `{name}` from the request context"
                self._add("unused_context", name, text, "Leave it out, or declare it with feature(request=True).")

    def _taken(self, view: ServedViewDef, feature: FeatureDef, given: str | None) -> None:
        if given is None and feature.default is None:
            text = f"{view.featureset} takes `{feature.name}` from the request, and the service does not"
            self._add("missing_context", view.name, text, f"Write request_context={{'{feature.name}': …}}.")
        elif given is not None and given != feature.type:
            text = f"`{feature.name}` is {given} in the request context and {feature.type} in {view.featureset}"
            self._add("context_type_mismatch", view.name, text, f"Declare it as {feature.type}.")


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
