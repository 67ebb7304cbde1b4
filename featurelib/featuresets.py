"""``@featureset``, ``feature`` and the extractor decorators.

A featureset names the features of one entity. A feature is the entity id, a dataset's column
(``ref=``), a value the caller sends (``request=True``), or the output of an extractor.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from types import FunctionType
from typing import Any, Literal, TypeVar, overload

from pydantic import ValidationError

from featurelib.annotations import (
    MAX_SCALE,
    SUPPORTED_OF_FEATURES,
    annotations_of,
    describe_annotation,
    is_decimal,
    type_of_feature,
)
from featurelib.capture import capture
from featurelib.datasets import Field
from featurelib.declarations import (
    Declared,
    Notes,
    Reference,
    Site,
    assign_role,
    attach,
    calling_site,
    catalog_metadata,
    declared_on,
    did_you_mean,
    function_site,
    members,
    notes,
    refuse,
    refuse_here,
)
from featurelib.definitions import ExtractorDef, FeatureDef, FeaturesetDef, LookupDef
from featurelib.errors import DeclarationTypeError, DeclarationValueError, Problem
from featurelib.feature_services import Slice
from featurelib.types import Scalar

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])


class Feature(Reference):
    """A feature; ``Featureset.feature`` names it as an input of another featureset's extractor."""

    def __init__(
        self,
        site: Site,
        *,
        ref: Reference | None,
        default: Scalar | Decimal | None,
        request: bool,
        id: int | None,  # noqa: A002  # the stock keyword
        description: str | None,
        scale: int | None,
    ) -> None:
        super().__init__(site)
        self.ref = ref
        # A decimal is held as its text.
        self.default = str(default) if isinstance(default, Decimal) else default
        self.scale = scale
        self.request = request
        self.id = id
        self.description = description

    def __repr__(self) -> str:
        return f"<Feature {self.fqn()}>"


def feature(
    *,
    ref: Any = None,
    default: Scalar | Decimal | None = None,
    request: bool = False,
    id: int | None = None,  # noqa: A002  # the stock keyword
    description: str | None = None,
    scale: int | None = None,
) -> Any:
    """Declare a feature; bare, it is the entity id or the output of an extractor.

    Args:
        ref: the column it is looked up from, such as ``UserStats.spend_7d``.
        default: the value when the look-up misses or the caller leaves a requested one out.
        request: the caller sends it with each query.
        id: a number of the user's own, unique in the featureset.
        description: shown in the catalog.
        scale: digits after the point of a ``Decimal`` feature, 0 to 18; left out, those of the column of ``ref``.

    Raises:
        DeclarationValueError: both ``ref`` and ``request``.
        DeclarationTypeError: ``ref`` is not a dataset's column.
    """
    if ref is not None and not (isinstance(ref, Reference) and not isinstance(ref, Feature)):
        text = f"ref= takes a dataset's column; found {ref!r:.60}"
        refuse_here("invalid_ref", "feature", text, "Write ref=SomeDataset.column.", DeclarationTypeError)
        ref, request = None, True  # a compile is collecting: keep it from being taken for the entity id
    if not isinstance(default, Scalar | Decimal | None):
        text = f"default= is a value of the feature's type; found a {type(default).__name__}"
        hint = "Write a number, text or bool, or leave it out."
        refuse_here("default_type", "feature", text, hint, DeclarationTypeError)
        default = None
    if ref is not None and request:
        text = "a feature is looked up (ref=) or sent by the caller (request=True), not both"
        refuse_here("ref_and_request", "feature", text, "Leave one of them out.", DeclarationValueError)
        request = False
    site = calling_site()
    return Feature(site, ref=ref, default=default, request=request, id=id, description=description, scale=scale)


def extractor_inputs(*inputs: Any) -> Callable[[F], F]:
    """Name the features an extractor takes, in the order of its parameters; ``Other.feature`` crosses featuresets."""

    def note(method: F) -> F:
        notes(method).inputs = inputs
        return method

    return note


def extractor_outputs(*outputs: Any) -> Callable[[F], F]:
    """Name the features an extractor computes."""

    def note(method: F) -> F:
        notes(method).outputs = outputs
        return method

    return note


@overload
def extractor(method: F) -> F: ...
@overload
def extractor(*, deps: list[Any] | None = None, version: int = 1, vectorized: bool = False) -> Callable[[F], F]: ...
def extractor(
    method: F | None = None, *, deps: list[Any] | None = None, version: int = 1, vectorized: bool = False
) -> F | Callable[[F], F]:
    """Mark a method ``def f(cls, ts, *inputs)`` as the code that computes features.

    With a single parameter ``inputs`` after ``ts`` it takes one dict. It returns a dict by output, a tuple in order,
    or the bare value of its only output.

    Args:
        method: the decorated method, when written bare.
        deps: datasets or featuresets it depends on; the body may call ``Dataset.lookup(ts, key=…)`` of these datasets.
        version: raise it to mark a new meaning.
        vectorized: it takes Polars Series, ``ts`` as one of UTC datetimes included, and gives a Series or a list of
            the same length per output. A batch is one call; a single read is a batch of one.
    """

    def mark(function: F) -> F:
        noted = assign_role(function, "extractor")
        noted.version = version
        noted.vectorized = vectorized
        noted.deps = _listed(deps, function)
        return function

    return mark if method is None else mark(method)


def _listed(deps: Any, function: Any) -> tuple[Any, ...]:
    if isinstance(deps, list | tuple | None):
        return tuple(deps or ())
    text = f"deps= takes a list of datasets and featuresets; found {getattr(deps, '__name__', deps)!s:.60}"
    refuse_here("invalid_dep", function.__qualname__, text, "Write deps=[SomeDataset].", DeclarationTypeError)
    return (deps,) if declared_on(deps) is not None else ()


@overload
def featureset(cls: C) -> C: ...
@overload
def featureset(
    *, entity_type: str | None = None, online_clock: Literal["wall", "event"] = "wall", **catalog: Any
) -> Callable[[C], C]: ...
def featureset(
    cls: C | None = None,
    *,
    entity_type: str | None = None,
    online_clock: Literal["wall", "event"] = "wall",
    **catalog: Any,
) -> C | Callable[[C], C]:
    """Declare a featureset.

    Args:
        cls: the decorated class, when written bare.
        entity_type: the name queries may give its entity; left out, the featureset's own name.
        online_clock: ``wall`` reads as of now; ``event`` as of the newest applied event, for replayed history.
        **catalog: ``description, owner, tags, project, deprecated, deprecation_reason, replacement``.

    Raises:
        DeclarationValueError: an extractor names an unknown local feature, or computes a requested one.
    """
    site = calling_site()

    def decorate(decorated: C) -> C:
        declared = attach(decorated, site)
        declared.locations[f"featureset:{decorated.__name__}"] = site.location
        features = _features(decorated, declared)
        extractors = _extractors(decorated, declared, features)
        try:
            definition = FeaturesetDef(
                name=decorated.__name__,
                features=features,
                extractors=tuple(sorted(extractors, key=lambda made: made.name)),
                entity_type=entity_type,
                online_clock=online_clock,
                metadata=catalog_metadata(catalog),
            )
        except ValidationError as error:
            declared.invalid(error, decorated.__name__, site)
            declared.broken.add(decorated.__name__)
        else:
            declared.definitions.append(definition)
        _make_sliceable(decorated)
        return decorated

    return decorate if cls is None else decorate(cls)


def _make_sliceable(cls: type) -> None:
    """Let ``Featureset.slice("a", "b")`` stand for ``Slice(Featureset, "a", "b")``, unless it has a `slice` itself."""
    if "slice" not in vars(cls) and "slice" not in annotations_of(cls):
        setattr(cls, "slice", partial(Slice, cls))  # noqa: B010  # the attribute is of the user's class


def _features(cls: type, declared: Declared) -> tuple[FeatureDef, ...]:
    annotations = annotations_of(cls)
    marked = {name: value for name, value in vars(cls).items() if isinstance(value, Feature)}
    for name in marked.keys() - annotations.keys():
        hint = f"Write `{name}: <type> = feature()`."
        subject = f"{cls.__name__}.{name}"
        declared.problem("missing_annotation", subject, "the feature has no type", hint, site=marked[name].site)
        declared.broken.add(subject)
    ordered = (name for name in annotations if name in marked)
    made = (_feature(cls, declared, name, marked[name], annotations[name]) for name in ordered)
    return tuple(each for each in made if each is not None)


def _feature(cls: type, declared: Declared, name: str, marked: Feature, annotation: Any) -> FeatureDef | None:
    scale = marked.scale
    if scale is None and isinstance(marked.ref, Field):
        scale = marked.ref.accepts.scale
    subject, known = f"{cls.__name__}.{name}", type_of_feature(annotation, scale)
    declared.locations[f"featureset:{cls.__name__}.{name}"] = marked.site.location
    if known is None or (marked.scale is not None and not is_decimal(annotation)):
        code, text, hint = _type_problem(annotation, scale)
        declared.problem(code, subject, text, hint, site=marked.site)
        declared.broken.add(subject)
        return None
    try:
        return FeatureDef(
            name=name,
            type=known.name,
            optional=known.optional,
            request=marked.request,
            lookup=_lookup(marked, declared, subject),
            default=marked.default,
            id=marked.id,
            description=marked.description,
        )
    except ValidationError as error:
        declared.invalid(error, subject, marked.site)
        declared.broken.add(subject)
        return None


def _type_problem(annotation: Any, scale: Any) -> tuple[str, str, str]:
    """What keeps an annotation from naming a feature's type: code, text and hint."""
    shown = describe_annotation(annotation)
    if is_decimal(annotation):
        text = f"a Decimal feature has 0 to {MAX_SCALE} digits after the point; found scale={scale!r:.40}"
        return "invalid_scale", text, "Write feature(scale=2)."
    if scale is not None:
        text = f"scale= is for Decimal features; found {shown}"
        return "invalid_scale", text, "Leave it out, or declare the feature as Decimal."
    return "unknown_type", f"{shown} is not a feature type", SUPPORTED_OF_FEATURES


def _lookup(marked: Feature, declared: Declared, subject: str) -> LookupDef | None:
    if marked.ref is None:
        return None
    owner = marked.ref.owner
    if owner is None or declared_on(owner) is None:
        text = f"ref= names {marked.ref.fqn()}, which is not a column of a dataset"
        declared.problem("invalid_ref", subject, text, "Decorate the class with @dataset(…).", site=marked.site)
        declared.broken.add(subject)
        return None
    return LookupDef(dataset=owner.__name__, field=marked.ref.name)


def _extractors(cls: type, declared: Declared, features: tuple[FeatureDef, ...]) -> list[ExtractorDef]:
    _report_unmarked(cls, declared)
    made = (_extractor(cls, declared, function, noted, features) for _, function, noted in members(cls, "extractor"))
    return [each for each in made if each is not None]


def _report_unmarked(cls: type, declared: Declared) -> None:
    for name, _, noted in members(cls, ""):
        if noted.inputs is not None or noted.outputs:
            outputs = (each.name if isinstance(each, Reference) else str(each) for each in noted.outputs)
            declared.broken |= {f"{cls.__name__}.{output}" for output in outputs}
            text = "the method has extractor inputs or outputs but is no extractor"
            function = vars(cls)[name]
            subject = f"{cls.__name__}.{name}"
            hint = "Write @extractor above them."
            declared.problem("missing_extractor", subject, text, hint, site=function_site(function))


def _extractor(
    cls: type, declared: Declared, function: FunctionType, noted: Notes, features: tuple[FeatureDef, ...]
) -> ExtractorDef | None:
    name, site = function.__name__, function_site(function)
    subject = f"{cls.__name__}.{name}"
    declared.locations[f"featureset:{cls.__name__}.{name}"] = site.location
    inputs = tuple(_input_name(cls, given) for given in noted.inputs or ())
    outputs = tuple(given.name if isinstance(given, Reference) else str(given) for given in noted.outputs)
    _check_names(cls, inputs, outputs, features, Problem("", subject, "", "", site.file, site.line))
    fits = _check_signature(function, inputs, declared, subject, site)
    deps = tuple(_dep(dep, declared, subject, site) for dep in noted.deps)
    code = capture(function, subject, declared, deps)
    if code is None or not fits:
        declared.broken |= {f"{cls.__name__}.{output}" for output in outputs}
        return None
    try:
        return ExtractorDef(
            name=name,
            version=noted.version,
            vectorized=noted.vectorized,
            inputs=inputs,
            outputs=outputs,
            deps=deps,
            code=code,
        )
    except ValidationError as error:
        declared.invalid(error, subject, site)
        return None


def _input_name(cls: type, given: Any) -> str:
    if isinstance(given, Reference):
        return given.name if given.owner in (cls, None) else given.fqn()
    return str(given)


def _check_names(
    cls: type, inputs: tuple[str, ...], outputs: tuple[str, ...], features: tuple[FeatureDef, ...], blank: Problem
) -> None:
    """Local names only; dotted ones are checked against the other featureset when all are known."""
    declared_names = [name for name, value in vars(cls).items() if isinstance(value, Feature)]
    requested = {each.name for each in features if each.request}
    for role, names in (("input", inputs), ("output", outputs)):
        for name in names:
            if "." not in name and name not in declared_names:
                text = f"the {role} `{name}` is not a feature of {cls.__name__}"
                hint = did_you_mean(name, declared_names, cls.__name__)
                refuse(blank._replace(code=f"unknown_extractor_{role}", message=text, hint=hint), DeclarationValueError)
    for name in outputs:
        if name in requested:
            text = f"`{name}` is sent by the caller; an extractor cannot compute it"
            hint = "Leave out request=True, or the output."
            refuse(blank._replace(code="request_output", message=text, hint=hint), DeclarationValueError)


def _check_signature(
    function: FunctionType, inputs: tuple[str, ...], declared: Declared, subject: str, site: Site
) -> bool:
    """Whether it takes ``(cls, ts, *inputs)`` by position, or ``(cls, ts, inputs)`` as one dictionary (decision 19)."""
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        text, hint = "an extractor is a plain function", "Return the value; neither async nor yield."
        declared.problem("extractor_signature", subject, text, hint, site=site)
        return False
    if list(inspect.signature(function).parameters)[2:] == ["inputs"]:
        return True
    try:
        inspect.signature(function).bind(None, None, *inputs)
    except TypeError:
        text = f"the function does not take {len(inputs)} inputs after cls and ts"
        hint = f"Write def {function.__name__}({', '.join(['cls', 'ts', *(i.split('.')[-1] for i in inputs)])})."
        declared.problem("extractor_signature", subject, text, hint, site=site)
        return False
    return True


def _dep(dep: Any, declared: Declared, subject: str, site: Site) -> str:
    if isinstance(dep, str):
        return dep
    known = declared_on(dep)
    if known is None:
        text = f"deps= takes datasets and featuresets; found {dep!r:.60}"
        declared.problem("invalid_dep", subject, text, "", site=site)
        return "unknown"
    return known.name
