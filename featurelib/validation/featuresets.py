"""Rules for featuresets: features, where their values come from, and extractors."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from featurelib.declarations import did_you_mean
from featurelib.definitions import DatasetDef, Definitions, ExtractorDef, FeatureDef, FeaturesetDef, FieldDef
from featurelib.inference import UNKNOWN, Columns, fits, unknown_column
from featurelib.types import SCALARS, is_nested
from featurelib.validation.code import code_mistakes, looked_up
from featurelib.validation.findings import Finding
from featurelib.validation.scope import dataset_columns
from featurelib.validation.types import holds


def check_featureset(featureset: FeaturesetDef, world: Definitions) -> list[Finding]:
    """Every mistake of a featureset."""
    return _Rules(featureset, world).check()


@dataclass
class _Rules:
    """Checks one featureset."""

    featureset: FeaturesetDef
    world: Definitions
    found: list[Finding] = field(default_factory=list)

    def check(self) -> list[Finding]:
        """Every mistake of the featureset."""
        self._names()
        for feature in self.featureset.features:
            self._feature(feature)
        for extractor in self.featureset.extractors:
            self._extractor(extractor)
        self._producers()
        return self.found

    def _add(self, code: str, member: str, message: str, hint: str = "", about: str = "") -> None:
        name = self.featureset.name
        key, subject = (f"featureset:{name}.{member}", f"{name}.{member}") if member else (f"featureset:{name}", name)
        self.found.append(Finding(code, key, subject, message, hint, about))

    def _names(self) -> None:
        for name, count in Counter(feature.name for feature in self.featureset.features).items():
            if count > 1:
                self._add("duplicate_name", name, f"the feature `{name}` is declared {count} times")
        ids = Counter(feature.id for feature in self.featureset.features if feature.id is not None)
        for number in (number for number, count in ids.items() if count > 1):
            owners = [feature.name for feature in self.featureset.features if feature.id == number]
            self._add("duplicate_id", owners[-1], f"id={number} is used by {', '.join(owners)}", "Ids are unique.")

    def _feature(self, feature: FeatureDef) -> None:
        if feature.default is not None and not holds(feature.type, feature.default):
            text = f"the default {feature.default!r} is no {feature.type}"
            self._add("default_type", feature.name, text, f"Give a default of type {feature.type}.")
        if feature.lookup is None:
            return
        if feature.request:
            text = "a feature is looked up or sent by the caller, not both"
            self._add("ref_and_request", feature.name, text, "Leave one of them out.")
        dataset = self.world.dataset(feature.lookup.dataset)
        if dataset is None:
            hint = did_you_mean(feature.lookup.dataset, [d.name for d in self.world.datasets], "The commit")
            text = f"there is no dataset `{feature.lookup.dataset}`"
            self._add("unknown_dataset", feature.name, text, hint, feature.lookup.dataset)
            return
        self._looked_up(feature, feature.lookup.field, dataset)

    def _looked_up(self, feature: FeatureDef, name: str, dataset: DatasetDef) -> None:
        column = dataset.field(name)
        if column is None:
            mistake = unknown_column(name, Columns(dataset.name, {c.name: c.type for c in dataset.fields}))
            self._add(mistake.code, feature.name, mistake.message, mistake.hint, mistake.about)
            return
        if not dataset.index:
            text, hint = f"{dataset.name} keeps no index to look up in", "Write @dataset(index=True, …)."
            self._add("not_indexed", feature.name, text, hint)
        if not any(fits(found, feature.type) for found in self._column_types(column, dataset)):
            text = f"the feature is {feature.type}, `{dataset.name}.{name}` is {column.type}"
            self._add("type_mismatch", feature.name, text, f"Declare it as {column.type}.")
        entity, key = self.featureset.entity, next((c for c in dataset.fields if c.key), None)
        if entity is not None and key is not None and entity.type != key.type:
            text = f"the entity id `{entity.name}` is {entity.type}, the key of {dataset.name} is {key.type}"
            self._add("key_type_mismatch", feature.name, text, f"Declare `{entity.name}` as {key.type}.")

    def _column_types(self, column: FieldDef, dataset: DatasetDef) -> list[str]:
        """The column's declared type, and what LastK really gives where a list is declared as ``str``."""
        found = dataset_columns(dataset, self.world)[column.name]
        return [column.type] if found != UNKNOWN else [column.type, *(f"list[{kind}]" for kind in SCALARS)]

    def _extractor(self, extractor: ExtractorDef) -> None:
        self._code(extractor)
        self._lookups(extractor)
        for name in extractor.inputs:
            if "." in name:
                self._foreign_input(extractor, name)
            elif self.featureset.feature(name) is None:
                self._unknown_feature(extractor, name, "input")
        for name in extractor.outputs:
            feature = self.featureset.feature(name)
            if feature is None:
                self._unknown_feature(extractor, name, "output")
            elif feature.request:
                text = f"`{name}` is sent by the caller; an extractor cannot compute it"
                self._add("request_output", extractor.name, text, "Leave out request=True, or the output.")
        for dep in extractor.deps:
            if self.world.dataset(dep) is None and self.world.featureset(dep) is None:
                known = [*(d.name for d in self.world.datasets), *(f.name for f in self.world.featuresets)]
                hint = did_you_mean(dep, known, "The commit")
                text = f"deps: there is no dataset or featureset `{dep}`"
                self._add("unknown_dep", extractor.name, text, hint, dep)

    def _lookups(self, extractor: ExtractorDef) -> None:
        for name in sorted(looked_up(extractor.code) & set(extractor.deps)):
            dataset = self.world.dataset(name)
            if dataset is not None and not dataset.index:
                text, hint = f"{name}.lookup: {name} keeps no index to look up in", "Write @dataset(index=True, …)."
                self._add("not_indexed", extractor.name, text, hint)

    def _code(self, extractor: ExtractorDef) -> None:
        for text in code_mistakes(extractor.code):
            self._add("invalid_code", extractor.name, text, "Commit it from the module that defines it.")

    def _unknown_feature(self, extractor: ExtractorDef, name: str, role: str) -> None:
        known = [feature.name for feature in self.featureset.features]
        text = f"the {role} `{name}` is not a feature of {self.featureset.name}"
        hint = did_you_mean(name, known, self.featureset.name)
        about = f"{self.featureset.name}.{name}"
        self._add(f"unknown_extractor_{role}", extractor.name, text, hint, about)

    def _foreign_input(self, extractor: ExtractorDef, name: str) -> None:
        owner, _, feature = name.partition(".")
        other = self.world.featureset(owner)
        if other is None:
            hint = did_you_mean(owner, [f.name for f in self.world.featuresets], "The commit")
            text = f"the input `{name}` is of the unknown featureset `{owner}`"
            self._add("unknown_extractor_input", extractor.name, text, hint, owner)
            return
        if other.feature(feature) is None:
            hint = did_you_mean(feature, [f.name for f in other.features], owner)
            text = f"the input `{feature}` is not a feature of {owner}"
            self._add("unknown_extractor_input", extractor.name, text, hint, name)
        mine, theirs = self.featureset.entity, other.entity
        if mine is not None and theirs is not None and mine.type != theirs.type:
            text = f"{owner} has an entity id of type {theirs.type}, {self.featureset.name} of type {mine.type}"
            self._add("key_type_mismatch", extractor.name, text, "Both are read for the same entity id.")

    def _producers(self) -> None:
        """Every feature comes from exactly one place, and one of them is the entity id."""
        outputs = Counter(output for extractor in self.featureset.extractors for output in extractor.outputs)
        for name, count in outputs.items():
            feature = self.featureset.feature(name)
            looked_up = feature is not None and feature.lookup is not None
            if count > 1 or looked_up:
                text = (
                    f"`{name}` is computed by several extractors"
                    if count > 1
                    else f"`{name}` is looked up and computed"
                )
                self._add("two_producers", name, text, "Leave one of them out.")
        entity = self.featureset.entity
        if entity is None:
            text, hint = "no feature is the entity id", "Begin with a bare one: `user: str = feature()`."
            self._add("no_entity", "", text, hint)
            return
        if is_nested(entity.type):
            text = f"the entity id `{entity.name}` is {entity.type}, whose values have no text that names one entity"
            self._add("invalid_key_type", entity.name, text, "Declare it as str or int.")
        for feature in self.featureset.features:
            made = feature.request or feature.lookup is not None or feature.name in outputs
            if not made and feature.name != entity.name:
                text = "nothing gives the feature a value"
                hint = "Look it up (ref=), request it (request=True), or make it an extractor's output."
                self._add("unproduced_feature", feature.name, text, hint, f"{self.featureset.name}.{feature.name}")
