"""A feature service compiled for reading: what a caller sends, and where each of its features comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from featurelib.definitions import (
    AggregateStep,
    Definitions,
    FeatureDef,
    FeatureServiceDef,
    FeaturesetDef,
    ParameterDef,
    ServedViewDef,
)
from featurelib.engine.read_plan import ReadPlan, View
from featurelib.engine.table import feature_types
from featurelib.errors import NotFound
from featurelib.lineage import made_of
from featurelib.validation.feature_services import needed_context
from serve_apps.current import Snapshot

_COUNTS = frozenset({"count", "approx_distinct"})
# The version of what is read as a service and is none.
_ALONE = 0


class ServedFeature(NamedTuple):
    """One feature of a service.

    Attributes:
        name: ``view.feature``.
        type: of its values.
        slot: its place among the features of the plan.
        views: places of the read plan's views that its value is made of.
        is_count: whether it is a count of records.
        about: the feature as it is declared.
        tags: of its featureset.
    """

    name: str
    type: str
    slot: int
    views: tuple[int, ...]
    is_count: bool
    about: FeatureDef
    tags: Mapping[str, str]


class ServedView(NamedTuple):
    """One part of a service: the plan it is read by, its features, and what of the request it takes.

    ``snapshot``: the definitions the plan is of. Places of features are those of its plan, and of no later one.
    ``chosen``: the features that it is a plan of; none: all of the featureset.
    """

    name: str
    snapshot: Snapshot
    plan: ReadPlan
    features: tuple[ServedFeature, ...]
    join_keys: tuple[str, ...]
    context: frozenset[str]
    chosen: tuple[str, ...]


class ContextKey(NamedTuple):
    """A value of the request context. ``required``: no default stands in."""

    name: str
    type: str
    required: bool


class ServicePlan(NamedTuple):
    """Everything a read of a feature service needs."""

    definition: FeatureServiceDef
    views: tuple[ServedView, ...]
    features: tuple[ServedFeature, ...]
    join_keys: Mapping[str, ParameterDef]
    context: Mapping[str, ContextKey]

    @property
    def free_key(self) -> str | None:
        """The join key that callers may leave out."""
        return self.definition.wildcard.join_key if self.definition.wildcard else None


class ServicePlans:
    """The plans of the feature services of one snapshot, made when first asked for."""

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._plans: dict[tuple[str, str, int | None], ServicePlan] = {}
        self._names: dict[str, tuple[str, str]] = {}

    def plan(self, snapshot: Snapshot, workspace: str, name: str, version: int | None = None) -> ServicePlan:
        """The plan of a service; of its newest version unless one is given.

        Raises:
            NotFound: there is none of that name in the workspace.
            BrokenFeatureset: a featureset of it cannot be read.
        """
        self._follow(snapshot)
        found = self._plans.get((workspace, name, version))
        if found is None:
            service = snapshot.definitions.feature_service(workspace, name, version)
            if service is None:
                raise NotFound(f"there is no feature service {name[:128]!r} in workspace {workspace[:128]!r}")
            found = self._plans[workspace, name, version] = compile_service(service, snapshot)
        return found

    def of_view(self, snapshot: Snapshot, workspace: str, name: str) -> ServicePlan:
        """The plan of one feature view: a part of a service of the workspace, with all features of its featureset.

        Raises:
            NotFound: no service of the workspace has a part of that name.
            BrokenFeatureset: its featureset cannot be read.
        """
        self._follow(snapshot)
        # No service has this version.
        found = self._plans.get((workspace, name, _ALONE))
        if found is None:
            found = compile_service(_alone(snapshot.definitions, workspace, name), snapshot)
            self._plans[workspace, name, _ALONE] = found
        return found

    def named(self, snapshot: Snapshot, service_id: str) -> tuple[str, str]:
        """Workspace and name of the service with an id.

        Raises:
            NotFound: there is none.
        """
        self._follow(snapshot)
        if service_id not in self._names:
            raise NotFound(f"there is no feature service with the id {service_id[:64]!r}")
        return self._names[service_id]

    def _follow(self, snapshot: Snapshot) -> None:
        if snapshot is not self._snapshot:
            self._snapshot = snapshot
            self._plans = {}
            self._names = {each.id: (each.workspace, each.name) for each in snapshot.definitions.feature_services}


def compile_service(service: FeatureServiceDef, snapshot: Snapshot) -> ServicePlan:
    """The plan of a service.

    Raises:
        NotFound: a featureset of it is not committed.
        BrokenFeatureset: one cannot be read.
    """
    views = tuple(_view(view, snapshot) for view in service.views)
    return ServicePlan(
        definition=service,
        views=views,
        features=tuple(feature for view in views for feature in view.features),
        join_keys={key.name: key for key in service.join_keys},
        context={key.name: key for key in _context(service, snapshot.definitions)},
    )


def _alone(definitions: Definitions, workspace: str, name: str) -> FeatureServiceDef:
    """A part of a service, as a service of its own."""
    parts = [
        (service, view)
        for service in definitions.feature_services
        for view in service.views
        if (service.workspace, view.name) == (workspace, name)
    ]
    if not parts:
        raise NotFound(f"no feature service of workspace {workspace[:128]!r} has a part called {name[:128]!r}")
    service, view = max(parts, key=lambda part: part[0].version)
    featureset = definitions.featureset(view.featureset)
    assert featureset is not None  # a service is committed with what it reads
    taken = {f.name: ParameterDef(name=f.name, type=f.type) for f in needed_context(featureset, definitions)}
    return service.model_copy(
        update={
            "name": name,
            "version": _ALONE,
            "views": (view.model_copy(update={"features": featureset.computed}),),
            "join_keys": tuple(key for key in service.join_keys if key.name in view.join_keys),
            "request_context": tuple(taken.values()),
            "wildcard": None,
        }
    )


def _view(view: ServedViewDef, snapshot: Snapshot) -> ServedView:
    featureset = snapshot.definitions.featureset(view.featureset)
    whole = snapshot.plan(view.featureset)
    assert featureset is not None  # it has a plan
    plan = snapshot.plan(view.featureset, view.features)
    chosen = view.features if plan is not whole else ()
    features = (_feature(view.name, name, featureset, plan, snapshot.definitions) for name in view.features)
    return ServedView(view.name, snapshot, plan, tuple(features), view.join_keys, frozenset(plan.request_names), chosen)


def _feature(
    view: str, name: str, featureset: FeaturesetDef, plan: ReadPlan, definitions: Definitions
) -> ServedFeature:
    about, slot = featureset.feature(name), plan.feature_names.index(name)
    assert about is not None  # a service is committed with what it names
    ingredients = made_of(featureset, [name], definitions)
    datasets = {each.feature.lookup.dataset for each in ingredients if each.feature.lookup is not None}
    return ServedFeature(
        name=f"{view}.{name}",
        type=feature_types(plan)[slot],
        slot=slot,
        views=tuple(place for place, each in enumerate(plan.views) if each.dataset.name in datasets),
        is_count=_is_count(about, plan.views),
        about=about,
        tags=featureset.metadata.tags,
    )


def _is_count(feature: FeatureDef, views: Sequence[View]) -> bool:
    lookup = feature.lookup
    view = next((view for view in views if lookup and view.dataset.name == lookup.dataset), None)
    step = view.program.pipeline.last_step if view else None
    if lookup is None or not isinstance(step, AggregateStep):
        return False
    return any(named.output == lookup.field and named.aggregate.type in _COUNTS for named in step.aggregates)


def _context(service: FeatureServiceDef, definitions: Definitions) -> Iterator[ContextKey]:
    declared = {parameter.name for parameter in service.request_context}
    taken: dict[str, list[FeatureDef]] = {name: [] for name in declared}
    for view in service.views:
        featureset = definitions.featureset(view.featureset)
        for feature in needed_context(featureset, definitions, view.features) if featureset else ():
            if feature.name in taken:
                taken[feature.name].append(feature)
    for parameter in service.request_context:
        takers = taken[parameter.name]
        required = any(feature.default is None for feature in takers)
        yield ContextKey(parameter.name, parameter.type, required)
