"""A featureset compiled for reading: a request walks it and decides nothing.

On every new registry version each featureset becomes a :class:`ReadPlan` (look-ups, key form, casts,
defaults, extractor order) and each readable dataset a :class:`View`; replicas swap the whole set in
at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter
from typing import Any, Literal, NamedTuple, TypeGuard

from featurelib.definitions import DatasetDef, Definitions, FeatureDef, FeaturesetDef, ref
from featurelib.engine.extract import ExtractorGraph, Slot
from featurelib.engine.extractor import INLINE, Row, Runner
from featurelib.engine.keys import LONGEST_KEY, instant_key, key_text
from featurelib.engine.program import Program, compiled, index_pipeline
from featurelib.engine.values import Cast, caster, shown, text_caster
from featurelib.errors import DefinitionError, InvalidRequest, Problem, ThymeError
from featurelib.types import Value

Show = Callable[[Value], Value]


class Entity(NamedTuple):
    """One entity of a request: its id as a value of the entity feature's type, and its key text."""

    value: Value
    key: str


class KeyForm:
    """How an entity id, as a request gives it, is read.

    Args:
        type_name: type of the entity feature or of the dataset's key.
        parts: number of group keys; with more than one an id may also be a JSON array (decision 16).
    """

    def __init__(self, type_name: str, parts: int = 1) -> None:
        self._cast = text_caster(type_name)
        self._is_time = type_name == "datetime"
        self._is_text = type_name == "str"
        self._composite = parts > 1

    def read(self, given: object, field: str = "entity_id") -> Entity:
        """The entity that ``given`` names.

        Raises:
            InvalidRequest: empty, too long, holding NUL or a lone surrogate, or not of the key's type; names ``field``.
        """
        if self._composite:
            given = _joined(given, field)
        elif isinstance(given, int | float) and self._is_text and not isinstance(given, bool):
            given = str(given)
        try:
            value = self._cast(given)
        except ValueError as error:
            raise InvalidRequest(f"{field}: {error}") from None
        text = instant_key(value) if self._is_time and value is not None else key_text([value])
        if value is None or not text or len(text) > LONGEST_KEY or not _is_storable(text):
            raise InvalidRequest(f"{field}: expected 1 to {LONGEST_KEY} characters without NUL, got {repr(given)[:60]}")
        return Entity(value, text)

    def read_all(self, given: Sequence[object], field: str = "entity_id") -> list[Entity]:
        """Like :meth:`read`, of many: a tenth of the time where all of them are plain text."""
        if self._reads_as_it_is(given):
            return [Entity(text, text) for text in given]
        return [self.read(each, field) for each in given]

    def keys(self, given: Sequence[object], field: str = "entity_id") -> Sequence[str]:
        """The key texts of many entities; errors are those of :meth:`read`."""
        return given if self._reads_as_it_is(given) else [self.read(each, field).key for each in given]

    def _reads_as_it_is(self, given: Sequence[object]) -> TypeGuard[Sequence[str]]:
        return self._is_text and not self._composite and _are_plain(given)


def _are_plain(given: Sequence[Any]) -> bool:
    """Whether all are ASCII text that is a key as it is."""
    if not all(type(each) is str for each in given):
        return False
    whole, lengths = "".join(given), set(map(len, given))
    return whole.isascii() and "\0" not in whole and 0 not in lengths and max(lengths, default=0) <= LONGEST_KEY


def _is_storable(text: str) -> bool:
    # A JSON array in a query string may spell a lone surrogate, which has no bytes.
    return "\0" not in text and (text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text))


def _joined(given: object, field: str) -> object:
    if isinstance(given, str):
        if not given.startswith("["):
            return given
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise InvalidRequest(f"{field}: starts as a JSON array but is none") from None
    if not isinstance(given, list):
        return given
    if not all(isinstance(part, str | int | float) for part in given):
        raise InvalidRequest(f"{field}: the parts of a composite id are text, numbers or booleans")
    return key_text(given)


@dataclass(frozen=True, slots=True)
class View:
    """A dataset that can be read by key, and the program behind it."""

    dataset: DatasetDef
    program: Program
    is_index: bool
    key_form: KeyForm
    shows: Mapping[str, Show]

    @property
    def pipeline(self) -> str:
        """``Name@version`` of the pipeline whose state is read."""
        return ref(self.program.pipeline)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what a row shows, key column first."""
        return tuple(dict.fromkeys((self.dataset.key.name, *self.program.outputs, *self.shows)))

    def row(self, entity: Entity, row: Row) -> dict[str, Any] | None:
        """The stored row as the wire shows it, key column first; ``None`` for an unknown key."""
        if row is None:
            return None
        whole = {self.dataset.key.name: entity.value, **row}
        for name, show in self.shows.items():
            whole[name] = show(whole.get(name))
        return whole


class _LookedUp(NamedTuple):
    slot: int
    column: str
    cast: Cast | None  # None: the column has the feature's type


class Filled(NamedTuple):
    """A slot that a row feeds: with a column of it, or with the row's key (``None``)."""

    slot: int
    column: str | None
    cast: Cast | None

    def value(self, held: Value) -> Value:
        """What the slot gets of what the row holds."""
        return held if self.cast is None else _as_declared(self.cast, held)


class _Source(NamedTuple):
    """What one view's row fills."""

    dataset: str
    slots: tuple[int, ...]
    take: Callable[[Mapping[str, Value]], tuple[Value, ...]]
    """The values of ``slots``, which need no cast."""
    run: slice | None
    """The slots, where they follow each other."""
    others: tuple[_LookedUp, ...]
    key_name: str
    fills: tuple[Filled, ...]
    """Of all slots."""

    @classmethod
    def of(cls, view: View, features: Sequence[_LookedUp]) -> _Source:
        """Sort features into those that are taken as they stand, all with one call, and the others."""
        key_name = view.dataset.key.name
        plain = [each for each in features if each.cast is None and each.column != key_name]
        # One column alone would come without its tuple.
        plain = plain if len(plain) > 1 else []
        take = itemgetter(*[each.column for each in plain]) if plain else _nothing
        others = tuple(each for each in features if each not in plain)
        slots = tuple(each.slot for each in plain)
        fills = tuple(
            Filled(each.slot, None if each.column == key_name else each.column, each.cast) for each in features
        )
        return cls(view.dataset.name, slots, take, _run(slots), others, key_name, fills)

    def moved(self, place: Mapping[int, int]) -> list[_LookedUp]:
        """What it fills of the slots that have a new place."""
        return [
            _LookedUp(place[slot], self.key_name if column is None else column, cast)
            for slot, column, cast in self.fills
            if slot in place
        ]


def _run(slots: Sequence[int]) -> slice | None:
    follow = all(after == before + 1 for before, after in pairwise(slots))
    return slice(slots[0], slots[-1] + 1) if slots and follow else None


def _nothing(row: Mapping[str, Value]) -> tuple[Value, ...]:  # noqa: ARG001  # as an itemgetter is called
    return ()


class _Requested(NamedTuple):
    slot: int
    names: tuple[str, ...]
    cast: Cast
    default: Value
    nullable: bool


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Everything a read of one featureset needs. Make one with :func:`compile_plan`."""

    featureset: str
    entity_type: str
    entity_name: str
    clock: Literal["wall", "event"]
    key_form: KeyForm
    graph: ExtractorGraph
    views: tuple[View, ...]
    pipelines: tuple[str, ...]
    """``Name@version`` of the pipeline behind each view."""
    clock_pipelines: tuple[str, ...]
    lookup_views: Mapping[str, View]
    _names: tuple[str, ...]
    _sources: tuple[_Source, ...]
    _requested: tuple[_Requested, ...]
    _entity_slots: tuple[tuple[int, Cast], ...]
    _start: tuple[Value, ...]
    _shows: tuple[tuple[int, Show], ...]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The featureset's features, in declared order."""
        return self._names

    @property
    def request_names(self) -> tuple[str, ...]:
        """Every name a request feature answers to."""
        return tuple(name for request in self._requested for name in request.names)

    def check_entity_type(self, entity_type: str | None) -> None:
        """Refuse an entity type that is not this featureset's (decision 24)."""
        if entity_type is not None and entity_type != self.entity_type:
            raise InvalidRequest(
                f"entity_type: featureset {self.featureset!r} is of {self.entity_type!r}, not {entity_type[:60]!r}"
            )

    def requested(self, inputs: Mapping[str, object], *, nulls: bool = False) -> list[tuple[int, Value]]:
        """The request-time values by slot, defaults filled in; ``nulls``: also for null where it is no value.

        Raises:
            InvalidRequest: one is missing, unknown, or of the wrong type; names it.
        """
        known = {name for request in self._requested for name in request.names}
        unknown = [name for name in inputs if name not in known]
        if unknown:
            accepted = ", ".join(sorted(known)) or "none"
            raise InvalidRequest(f"inputs.{unknown[0][:60]}: no such request feature; accepted: {accepted}")
        return [(request.slot, _request_value(request, inputs, nulls=nulls)) for request in self._requested]

    def values(self, entity: Entity, requested: Iterable[tuple[int, Value]]) -> list[Value]:
        """The slots of one entity before anything was read.

        Raises:
            InvalidRequest: the id is not of the type a featureset this one depends on gives it.
        """
        values = list(self._start)
        for slot, value in requested:
            values[slot] = value
        for slot, cast in self._entity_slots:
            try:
                values[slot] = cast(entity.value)
            except ValueError as error:
                raise InvalidRequest(f"entity_id: {error}") from None
        return values

    @property
    def entity_slots(self) -> tuple[int, ...]:
        """The slots that hold the entity's id."""
        return tuple(slot for slot, _ in self._entity_slots)

    def default(self, slot: int) -> Value:
        """What a slot holds before anything was read."""
        return self._start[slot]

    def fills(self) -> Iterator[tuple[View, tuple[Filled, ...]]]:
        """Per view the slots that its row feeds."""
        yield from zip(self.views, (source.fills for source in self._sources), strict=True)

    def narrowed(self, names: Collection[str]) -> ReadPlan:
        """The plan of some of its features and of what they are made of; names it does not know are passed over.

        Key, entity type and clock are those of the whole featureset.
        """
        entity = {slot for slot, _ in self._entity_slots if slot < len(self._names)}
        graph, kept = self.graph.narrowed({place for place, name in enumerate(self._names) if name in names} | entity)
        if len(kept) == len(self.graph.slots):
            return self
        place = {old: new for new, old in enumerate(kept)}
        read = [(view, each.moved(place)) for view, each in zip(self.views, self._sources, strict=True)]
        views = [(view, features) for view, features in read if features]
        return replace(
            self,
            graph=graph,
            views=tuple(view for view, _ in views),
            pipelines=tuple(view.pipeline for view, _ in views),
            _names=tuple(self._names[old] for old in kept if old < len(self._names)),
            _sources=tuple(_Source.of(view, features) for view, features in views),
            _requested=tuple(each._replace(slot=place[each.slot]) for each in self._requested if each.slot in place),
            _entity_slots=tuple((place[slot], cast) for slot, cast in self._entity_slots if slot in place),
            _start=tuple(self._start[old] for old in kept),
            _shows=tuple((place[slot], show) for slot, show in self._shows if slot in place),
        )

    def fill(self, values: list[Value], entity: Entity, rows: Sequence[Row]) -> None:
        """Put the rows read, one per view, into the slots they feed; a miss leaves the default."""
        for source, row in zip(self._sources, rows, strict=True):
            if row is None:
                continue
            if source.run is not None:
                values[source.run] = source.take(row)
            else:
                for slot, value in zip(source.slots, source.take(row)):  # noqa: B905  # one each; strict= takes 60 ns
                    values[slot] = value
            for slot, column, cast in source.others:
                value = entity.value if column == source.key_name else row[column]
                values[slot] = value if cast is None else _as_declared(cast, value)

    def answer(self, values: Sequence[Value]) -> list[Any]:
        """The featureset's own values in declared order, as the wire shows them."""
        own = list(values[: len(self._names)])
        for slot, show in self._shows:
            own[slot] = show(own[slot])
        return own


def _request_value(request: _Requested, inputs: Mapping[str, object], *, nulls: bool) -> Value:
    name = next((name for name in request.names if name in inputs), None)
    if name is None:
        if request.default is None:
            raise InvalidRequest(f"inputs.{request.names[0]}: missing; it is a request feature without a default")
        return request.default
    given = inputs[name]
    try:
        value = request.cast(given)
    except ValueError as error:
        raise InvalidRequest(f"inputs.{name}: {error}") from None
    if value is None and not request.nullable and nulls:
        return request.default
    if value is None and not request.nullable:
        found = "null" if given is None else f"{given!r:.40} is no number"
        raise InvalidRequest(f"inputs.{name}: {found}; the feature is not Optional")
    return value


def _as_declared(cast: Cast, value: Value) -> Value:
    # A stored 3.5 behind an int feature cannot be cast without loss; the stored number is then the truer answer.
    try:
        return cast(value)
    except ValueError:
        return value


def compile_view(dataset: DatasetDef, definitions: Definitions) -> View | None:
    """The view of a dataset: of the pipeline that makes it, else of its index; ``None`` when it has neither."""
    producer = definitions.producer(dataset.name)
    if producer is None and not dataset.index:
        return None
    program = compiled(producer or index_pipeline(dataset, definitions.cdc(dataset.name)), definitions)
    shows = {field.name: form for field in dataset.fields if (form := shown(field.type))}
    readable = {dataset.key.name, *program.outputs}
    return View(
        dataset=dataset,
        program=program,
        is_index=producer is None,
        key_form=KeyForm(dataset.key.type, len(program.pipeline.keys)),
        shows={name: show for name, show in shows.items() if name in readable},
    )


def compile_views(definitions: Definitions) -> tuple[dict[str, View], dict[str, ThymeError]]:
    """The newest version of every dataset that can be read by key, and those whose pipeline does not compile."""
    views: dict[str, View] = {}
    broken: dict[str, ThymeError] = {}
    for name in {dataset.name for dataset in definitions.datasets}:
        dataset = definitions.dataset(name)
        assert dataset is not None
        try:
            view = compile_view(dataset, definitions)
        except ThymeError as error:
            broken[name] = error
        else:
            views |= {name: view} if view else {}
    return views, broken


def compile_plan(
    featureset: FeaturesetDef, definitions: Definitions, views: Mapping[str, View], runner: Runner = INLINE
) -> ReadPlan:
    """Compile one featureset; ``runner`` says where its extractors run.

    Raises:
        DefinitionError: it looks up a column nobody produces, or its extractors do not fit together.
        UserCodeError: an extractor's source does not load.
    """
    graph = ExtractorGraph.compile(featureset, definitions, runner)
    sources = _sources(graph.slots, views)
    used = tuple(views[source.dataset] for source in sources)
    lookup_views = {name: _view(name, featureset.name, views) for name in graph.datasets}
    entities = {fs.name: fs.entity for fs in definitions.featuresets}
    entity = featureset.entity
    parts = max((len(view.program.pipeline.keys) for view in used), default=1)
    own = graph.slots[: len(featureset.features)]
    return ReadPlan(
        featureset=featureset.name,
        entity_type=featureset.entity_type or featureset.name,
        entity_name=entity.name if entity else "entity_id",
        clock=featureset.online_clock,
        key_form=KeyForm(entity.type if entity else "str", parts),
        graph=graph,
        views=used,
        pipelines=tuple(view.pipeline for view in used),
        clock_pipelines=_clock_pipelines(used),
        lookup_views=lookup_views,
        _names=tuple(feature.name for feature in featureset.features),
        _sources=sources,
        _requested=tuple(_requested(slot, graph.slots) for slot in graph.slots if slot.feature.request),
        _entity_slots=tuple(
            (slot.position, text_caster(slot.feature.type))
            for slot in graph.slots
            if entities[slot.featureset] == slot.feature
        ),
        _start=tuple(_default(slot.feature) for slot in graph.slots),
        _shows=tuple((slot.position, show) for slot in own if (show := shown(slot.feature.type))),
    )


def _clock_pipelines(views: Sequence[View]) -> tuple[str, ...]:
    # An index of slowly changing rows (planes, say) must not hold the event clock back at its last change:
    # declared pipelines decide R, and an index only where there is nothing else.
    declared = [view.pipeline for view in views if not view.is_index]
    return tuple(declared or [view.pipeline for view in views])


def _sources(slots: Sequence[Slot], views: Mapping[str, View]) -> tuple[_Source, ...]:
    by_dataset: dict[str, list[_LookedUp]] = {}
    for slot in slots:
        lookup = slot.feature.lookup
        if lookup is not None:
            view = _view(lookup.dataset, f"{slot.featureset}.{slot.feature.name}", views)
            by_dataset.setdefault(lookup.dataset, []).append(_looked_up(slot, view))
    return tuple(_Source.of(views[dataset], features) for dataset, features in by_dataset.items())


def _view(dataset: str, subject: str, views: Mapping[str, View]) -> View:
    view = views.get(dataset)
    if view is None:
        message = f"looks up {dataset!r}, which cannot be read by key; declare it with index=True or give it a pipeline"
        raise DefinitionError([Problem("not_indexed", subject, message)])
    return view


def _looked_up(slot: Slot, view: View) -> _LookedUp:
    assert slot.feature.lookup is not None
    column = view.dataset.field(slot.feature.lookup.field)
    if column is None or not (column.key or column.name in view.program.outputs):
        message = f"looks up {view.dataset.name}.{slot.feature.lookup.field}, which {view.pipeline} does not produce"
        raise DefinitionError([Problem("unknown_column", f"{slot.featureset}.{slot.feature.name}", message)])
    # The column may declare `str` where a last_k makes a list: then the value stands as it is.
    cast = None if column.type == slot.feature.type else caster(slot.feature.type)
    return _LookedUp(slot.position, column.name, cast)


def _requested(slot: Slot, slots: Sequence[Slot]) -> _Requested:
    name, qualified = slot.feature.name, f"{slot.featureset}.{slot.feature.name}"
    first = next(other for other in slots if other.feature.request and other.feature.name == name)
    # Two featuresets may each have a request feature of one name: the bare name is the first one's.
    names = (name, qualified) if first == slot else (qualified,)
    cast = caster(slot.feature.type)
    return _Requested(slot.position, names, cast, _default(slot.feature), slot.feature.optional)


def _default(feature: FeatureDef) -> Value:
    if feature.default is None:
        return None
    try:
        return caster(feature.type)(feature.default)
    except ValueError:
        return feature.default
