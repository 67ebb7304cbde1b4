"""``FeatureService``: features of several featuresets, read together by join keys, under names of the service.

What other platforms' clients call a feature service or a feature group. A service computes nothing: each of its parts
is a featureset, whole or sliced, read as every featureset is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from featurelib.annotations import SUPPORTED_OF_FEATURES, describe_annotation, type_of_feature
from featurelib.declarations import (
    Declared,
    Declaring,
    Reference,
    calling_site,
    catalog_metadata,
    declared_on,
)
from featurelib.definitions import (
    FeatureServiceDef,
    FeaturesetDef,
    Location,
    ParameterDef,
    ServedViewDef,
    WildcardDef,
)


class Slice:
    """Some features of a featureset, or all of them under another name or by other join keys.

    Args:
        featureset: a class decorated with ``@featureset``.
        *features: which features, in the order of the answer, as ``UserStats.spend`` or its name; none means every one
            but the entity id and those the caller sends.
        name: what stands before the dot in the names of the features; left out, the featureset's name.
        join_keys: the service's join keys that make the entity id; left out, the name of the entity feature.
    """

    def __init__(
        self,
        featureset: type,
        *features: Any,
        name: str | None = None,
        join_keys: Sequence[str] = (),
    ) -> None:
        self.featureset = featureset
        self.features = tuple(_name(each) for each in features)
        self.name = name
        self.join_keys = tuple(join_keys)


class Wildcard:
    """A join key that callers may leave out; they get a row for every value of it.

    Args:
        join_key: its name.
        values: a list feature, such as ``UserAds.ads``: its elements are the values.
        join_keys: the service's join keys that make the entity id of that featureset; left out, the name of its
            entity feature.
    """

    def __init__(self, join_key: str, values: Any, *, join_keys: Sequence[str] = ()) -> None:
        self.join_key = join_key
        self.values = values
        self.join_keys = tuple(join_keys)


class FeatureService(Declaring):
    """Declare a feature service; assign it to a name of the module.

    Args:
        name: what callers ask for.
        features: featuresets, and slices of them, in the order of the answer.
        workspace: the namespace the name belongs to.
        join_keys: by name, the type of each key callers send (``{"user_id": str}``), which also orders them; left out,
            the entity ids of the featuresets.
        request_context: by name, the type of each value callers send with a request; left out, the request features of
            the featuresets.
        version: tells a new form of the service from the one before.
        wildcard: a join key that callers may leave out.
        **catalog: ``description, owner, tags, project, deprecated, deprecation_reason, replacement``.
    """

    def __init__(
        self,
        name: str,
        features: Sequence[Any],
        *,
        workspace: str = "prod",
        join_keys: Mapping[str, Any] | None = None,
        request_context: Mapping[str, Any] | None = None,
        version: int = 1,
        wildcard: Wildcard | None = None,
        **catalog: Any,
    ) -> None:
        self.name = name
        self.workspace = workspace
        site = calling_site()
        declared = Declared(f"{workspace}/{name}", site)
        declared.locations[f"feature_service:{workspace}/{name}"] = site.location
        service = _Service(declared, join_keys, request_context)
        try:
            members = service.members(features, wildcard)
            if members is not None and not declared.problems:
                about = {"name": name, "workspace": workspace, "version": version}
                definition = FeatureServiceDef(**about, **members, metadata=catalog_metadata(catalog))
                declared.definitions.append(definition)
        except ValidationError as error:
            declared.invalid(error, declared.name)
        super().__init__(declared)

    def __repr__(self) -> str:
        return f"<FeatureService {self.workspace}/{self.name}>"


class _Service:
    """Makes the parts of one service's record; what is wrong becomes a problem of its declaration."""

    def __init__(
        self, declared: Declared, join_keys: Mapping[str, Any] | None, request_context: Mapping[str, Any] | None
    ) -> None:
        self._declared = declared
        self._join_keys = join_keys
        self._request_context = request_context

    def members(self, features: Sequence[Any], wildcard: Wildcard | None) -> dict[str, Any] | None:
        """The members of the record that follow from the featuresets; ``None`` when one of these is broken."""
        slices = [each if isinstance(each, Slice) else Slice(each) for each in features]
        known = [(each, self._featureset(each.featureset)) for each in slices]
        parts = [(each, definition) for each, definition in known if definition is not None]
        if len(parts) < len(slices) or self._declared.problems:
            return None
        free = None if wildcard is None else self._wildcard(wildcard)
        if wildcard is not None and free is None:
            return None
        return {
            "views": tuple(self._view(each, definition) for each, definition in parts),
            "join_keys": self._parameters("join_keys", self._join_keys, _entities(parts)),
            "request_context": self._parameters("request_context", self._request_context, _requested(parts)),
            "wildcard": free,
        }

    def _featureset(self, given: Any) -> FeaturesetDef | None:
        declared = declared_on(given)
        found = next((d for d in declared.definitions if isinstance(d, FeaturesetDef)), None) if declared else None
        if found is None and (declared is None or not declared.problems):
            shown = getattr(given, "__name__", repr(given))
            text = f"features= takes featuresets and slices of them; found {shown:.60}"
            self._declared.problem("invalid_feature", self._declared.name, text, "Decorate the class with @featureset.")
        return found

    def _view(self, each: Slice, featureset: FeaturesetDef) -> ServedViewDef:
        name = each.name or featureset.name
        self._declared.locations[f"feature_service:{self._declared.name}.{name}"] = self._site
        return ServedViewDef(
            name=name,
            featureset=featureset.name,
            features=each.features or featureset.computed,
            join_keys=each.join_keys or _entity_name(featureset),
        )

    @property
    def _site(self) -> Location:
        return self._declared.site.location

    def _wildcard(self, wildcard: Wildcard) -> WildcardDef | None:
        owner = wildcard.values.owner if isinstance(wildcard.values, Reference) else None
        featureset = self._featureset(owner)
        if featureset is None:
            return None
        return WildcardDef(
            join_key=wildcard.join_key,
            featureset=featureset.name,
            feature=wildcard.values.name,
            join_keys=wildcard.join_keys or _entity_name(featureset),
        )

    def _parameters(
        self, what: str, given: Mapping[str, Any] | None, derived: Iterable[ParameterDef]
    ) -> tuple[ParameterDef, ...]:
        if given is None:
            return tuple({each.name: each for each in derived}.values())
        return tuple(each for name, kind in given.items() if (each := self._parameter(what, name, kind)) is not None)

    def _parameter(self, what: str, name: str, kind: Any) -> ParameterDef | None:
        known = type_of_feature(kind)
        if known is None:
            text = f"{what}: {describe_annotation(kind)} is no type of `{name}`"
            self._declared.problem("unknown_type", self._declared.name, text, SUPPORTED_OF_FEATURES)
            return None
        return ParameterDef(name=name, type=known.name)


def _name(given: Any) -> str:
    return given.name if isinstance(given, Reference) else str(given)


def _entity_name(featureset: FeaturesetDef) -> tuple[str, ...]:
    entity = featureset.entity
    return (entity.name,) if entity else ()


def _entities(parts: Sequence[tuple[Slice, FeaturesetDef]]) -> Iterator[ParameterDef]:
    for each, featureset in parts:
        entity = featureset.entity
        names = each.join_keys or _entity_name(featureset)
        # The parts of a composite id have no types of their own: they are text unless join_keys= says otherwise.
        kind = entity.type if entity is not None and len(names) == 1 else "str"
        yield from (ParameterDef(name=name, type=kind) for name in names)


def _requested(parts: Sequence[tuple[Slice, FeaturesetDef]]) -> Iterator[ParameterDef]:
    for _, featureset in parts:
        yield from (ParameterDef(name=f.name, type=f.type) for f in featureset.features if f.request)
