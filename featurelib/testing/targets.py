"""What a context is made of: modules, paths, classes and commits become one set of definitions, or every mistake."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from featurelib.compile import compile_module, get_commit_payload, validate
from featurelib.declarations import declared_on, did_you_mean
from featurelib.definitions import Cdc, Commit, ConnectorDef, Definitions, FeaturesetDef, PipelineDef, SourceDef
from featurelib.errors import DefinitionError, InvalidRequest
from featurelib.validation import merged

Target = ModuleType | str | Path | type | Definitions
"""A module, its dotted name or its path, a declared class, or definitions that are made already."""

_MODES: tuple[Cdc, ...] = ("append", "upsert", "debezium")


class _Every(frozenset[str]):
    """Holds every connector type: records are given by hand, so it does not matter what can be read."""

    def __contains__(self, item: object) -> bool:
        return True


_CONNECTORS = _Every()


def definitions_of(targets: Sequence[Target], below: Definitions | None = None) -> Definitions:
    """The definitions of all targets, laid over those ``below``; without either, all declared in this process.

    Raises:
        DefinitionError: with every problem found.
        InvalidRequest: a target is none.
    """
    given = targets or ([] if below else [Commit.model_validate(get_commit_payload())])
    world, problems = below or Definitions(), []
    for target in _joined(given):
        try:
            world = merged(world, _compiled(target, world))
        except DefinitionError as error:
            problems += error.problems
    if problems:
        raise DefinitionError(problems)
    return world


def with_cdc(definitions: Definitions, modes: Mapping[Any, Cdc]) -> Definitions:
    """The definitions with other ways of following for some datasets.

    Raises:
        InvalidRequest: an unknown dataset, or no such way.
    """
    sources = {source.dataset: source for source in definitions.sources}
    for dataset, mode in modes.items():
        name = name_of(dataset)
        if definitions.dataset(name) is None:
            hint = did_you_mean(name, [each.name for each in definitions.datasets], "The context")
            raise InvalidRequest(f"cdc: there is no dataset {name!r}. {hint}")
        if mode not in _MODES:
            raise InvalidRequest(f"cdc of {name}: {mode!r} is not one of {', '.join(_MODES)}")
        by_hand = SourceDef(dataset=name, connector=ConnectorDef(type="files", config={"path": name}))
        sources[name] = sources.get(name, by_hand).model_copy(update={"cdc": mode})
    return merged(definitions, Definitions(sources=tuple(sources.values())))


def name_of(thing: Any) -> str:
    """The name of a definition, given as text or as the class that declares it."""
    return thing.__name__ if isinstance(thing, type) else str(thing)


def _joined(targets: Sequence[Target]) -> Iterator[Target]:
    """The targets, modules and classes as one: what one declares another may refer to, whatever their order."""
    declared = [cls for target in targets if isinstance(target, type | ModuleType) for cls in _classes(target)]
    yield from (target for target in targets if not isinstance(target, type | ModuleType))
    if declared:
        yield _module_of(_with_what_they_name(declared))


def _classes(target: type | ModuleType) -> list[type]:
    if isinstance(target, ModuleType):
        found = [value for value in vars(target).values() if declared_on(value)]
        if not found:
            raise InvalidRequest(f"the module {target.__name__} declares nothing; decorate a class in it")
        return found
    if declared_on(target) is None:
        raise InvalidRequest(f"{target.__name__} declares nothing; decorate it with @dataset(…) or @featureset")
    return [target]


def _with_what_they_name(classes: Sequence[type]) -> list[type]:
    """The classes, and those they name that stand in their modules: a featureset brings its datasets along."""
    found = dict.fromkeys(classes)
    names = {cls.__name__ for cls in classes}
    open_classes = list(classes)
    while open_classes:
        cls = open_classes.pop()
        known = vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}
        for name in sorted(_names_in(cls) - names):
            if declared_on(known.get(name)):
                names.add(name)
                found[known[name]] = None
                open_classes.append(known[name])
    return list(found)


def _names_in(cls: type) -> set[str]:
    declared = declared_on(cls)
    names: set[str] = set()
    for definition in declared.definitions if declared else ():
        if isinstance(definition, PipelineDef):
            names |= set(definition.input_datasets)
        elif isinstance(definition, FeaturesetDef):
            names |= {feature.lookup.dataset for feature in definition.features if feature.lookup}
            for extractor in definition.extractors:
                names |= {*extractor.deps, *(name.partition(".")[0] for name in extractor.inputs if "." in name)}
    return names


def _compiled(target: Target, context: Definitions) -> Definitions:
    if not isinstance(target, Definitions):
        return compile_module(_checked(target), context, _CONNECTORS)
    commit = target if isinstance(target, Commit) else Commit(**dict(target))
    problems = validate(commit, context, _CONNECTORS)
    if problems:
        raise DefinitionError(problems)
    return commit


def _checked(target: Any) -> ModuleType | str | Path:
    if isinstance(target, ModuleType | str | Path):
        return target
    text = "a module, its name or path, a declared class, or a Commit"
    raise InvalidRequest(f"MockContext takes {text}; found a {type(target).__name__}")


def _module_of(classes: Sequence[type]) -> ModuleType:
    module = ModuleType("the context")
    # Numbered: two classes of one name must meet, so that the compiler can refuse them.
    vars(module).update({f"_{number}": cls for number, cls in enumerate(dict.fromkeys(classes))})
    return module
