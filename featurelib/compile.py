"""A module of declarations → one :class:`~featurelib.definitions.Commit`, or every mistake in it at once.

Also the stock SDK's view of what the running process has declared (:func:`get_commit_payload` and the like).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from featurelib.declarations import Collection as Gathered
from featurelib.declarations import Declared, clear_registry, collecting, declared_on, notes, registered, shown_path
from featurelib.definitions import (
    Commit,
    DatasetDef,
    Definitions,
    FeatureServiceDef,
    FeaturesetDef,
    Location,
    PipelineDef,
    SourceDef,
)
from featurelib.errors import DefinitionError, Problem, without_folder
from featurelib.validation import SUPPORTED_CONNECTORS, completed, findings, in_order, merged, problems, validate

__all__ = [
    "clear_registry",
    "compile_module",
    "get_commit_payload",
    "get_registered_datasets",
    "get_registered_pipelines",
    "serialize_definitions",
    "validate",
]

_NOTHING = Definitions()
_STOCK_PACKAGE = "thyme"
_CLASS_DECORATOR = {"pipeline": "@dataset(…)", "expectations": "@dataset(…)", "extractor": "@featureset"}


def compile_module(
    target: str | Path | ModuleType,
    context: Definitions = _NOTHING,
    connectors: Collection[str] = SUPPORTED_CONNECTORS,
) -> Commit:
    """Gather what a module declares, with what it imports from other modules of declarations.

    Args:
        target: a file, a dotted name looked for from the working directory on, or a module that is imported already.
        context: definitions the module may refer to beside its own.
        connectors: connector types the platform can read.

    Raises:
        DefinitionError: with every problem found, each at the user's file and line.
    """
    with collecting() as gathered:
        module, failures = _load(target)
    declared = _all_declared(gathered, module)
    commit = _completed(_commit(declared), context)
    found = [*gathered.problems, *(p for each in declared for p in each.problems), *_orphans(gathered), *failures]
    if not failures:
        found = [*found, *_validated(commit, context, connectors, declared, found)]
        if not found and not commit.all:
            text = "the module declares nothing"
            found = [Problem("nothing_declared", str(target), text, "Decorate a class with @dataset or @featureset.")]
    if found:
        raise DefinitionError(in_order(found))
    return commit


def _validated(
    commit: Commit, context: Definitions, connectors: Collection[str], declared: list[Declared], found: list[Problem]
) -> list[Problem]:
    """What validation adds: neither told already, nor the mere consequence of a declaration that fell out."""
    broken = {name for each in declared for name in each.broken}
    told = {(problem.code, problem.subject) for problem in found}
    fresh = (
        finding
        for finding in findings(commit, context, connectors)
        if finding.about not in broken and (finding.code, finding.subject) not in told
    )
    return problems(fresh, commit)


def get_registered_datasets() -> dict[str, dict[str, Any]]:
    """The records of every dataset declared in this process, by name; a copy."""
    return {each.name: each.model_dump(mode="json") for each in _commit(registered()).datasets}


def get_registered_pipelines() -> list[dict[str, Any]]:
    """The records of every pipeline declared in this process; a copy."""
    commit = _commit(registered())
    return [each.model_dump(mode="json") for each in _completed(commit, _NOTHING).pipelines]


def serialize_definitions() -> str:
    """The datasets declared in this process as JSON, by name."""
    return json.dumps(get_registered_datasets(), indent=2)


def get_commit_payload() -> dict[str, Any]:
    """The body of a commit of everything declared in this process, as ``POST /api/v1/commit`` takes it.

    Raises:
        DefinitionError: a declaration has mistakes of its own; what concerns several is the service's to find.
    """
    declared = registered()
    found = [problem for each in declared for problem in each.problems]
    if found:
        raise DefinitionError(in_order(found))
    return _completed(_commit(declared), _NOTHING).model_dump(mode="json")


def _completed(commit: Commit, context: Definitions) -> Commit:
    """The commit with the columns that transforms give without saying so."""
    world = merged(context, commit)
    pipelines = tuple(completed(pipeline, world) for pipeline in commit.pipelines)
    return commit.model_copy(update={"pipelines": pipelines})


def _commit(declared: Iterable[Declared]) -> Commit:
    definitions = [definition for each in declared for definition in each.definitions]
    locations: dict[str, Location] = {}
    for each in declared:
        locations.update(each.locations)
    return Commit(
        datasets=tuple(each for each in definitions if isinstance(each, DatasetDef)),
        pipelines=tuple(each for each in definitions if isinstance(each, PipelineDef)),
        featuresets=tuple(each for each in definitions if isinstance(each, FeaturesetDef)),
        sources=tuple(each for each in definitions if isinstance(each, SourceDef)),
        feature_services=tuple(each for each in definitions if isinstance(each, FeatureServiceDef)),
        locations=locations,
    )


def _all_declared(gathered: Gathered, module: ModuleType | None) -> list[Declared]:
    """Classes declared while loading, then those the module took from modules that were loaded before."""
    found = {id(each): each for each in gathered.declared}
    for value in vars(module).values() if module else ():
        each = declared_on(value)
        if each is not None:
            found.setdefault(id(each), each)
    return list(found.values())


def _orphans(gathered: Gathered) -> Iterator[Problem]:
    for function in gathered.waiting.values():
        noted = notes(function)
        owner = _CLASS_DECORATOR[noted.role]
        text = f"the {noted.role} belongs to no declared class"
        file, line = noted.site or (None, None)
        yield Problem(
            f"orphan_{noted.role}", function.__qualname__, text, f"Decorate its class with {owner}.", file, line
        )


def _load(target: str | Path | ModuleType) -> tuple[ModuleType | None, list[Problem]]:
    if isinstance(target, ModuleType):
        return target, []
    path = Path(target)
    if path.suffix == ".py" or path.exists():
        return _load_file(path)
    with _beside(Path.cwd()):
        return _run(lambda: import_module(str(target)), str(target))


def _load_file(path: Path) -> tuple[ModuleType | None, list[Problem]]:
    shown = shown_path(str(path.resolve()))
    try:
        # Without the futures of this file: the user's annotations mean what they mean to Python.
        code = compile(path.read_bytes(), str(path.resolve()), "exec", dont_inherit=True)
    except OSError as error:
        text = f"the file cannot be read: {error.strerror}"
        return None, [Problem("module_not_found", shown, text, "Give the path of a Python file.")]
    except (SyntaxError, ValueError) as error:
        line = error.lineno if isinstance(error, SyntaxError) else None
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        return None, [Problem("syntax_error", path.name, text, "Mend it: nothing of the module was read.", shown, line)]
    return _run(lambda: _execute(code, path), shown)


def _execute(code: CodeType, path: Path) -> ModuleType:
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"_thyme_{path.stem}"
    module = ModuleType(name)
    module.__file__ = str(path.resolve())
    with _beside(path.resolve().parent):
        sys.modules[name] = module
        exec(code, vars(module))  # noqa: S102  # importing the user's file is the purpose
    return module


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Let the file import its neighbours, and forget them after, so that compiling again reads them again."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).resolve().parent == folder:
                del sys.modules[name]


def _run(load: object, shown: str) -> tuple[ModuleType | None, list[Problem]]:
    """Import user code: what it raises becomes a problem at the user's line."""
    assert callable(load)
    try:
        return load(), []
    except (Exception, SystemExit) as error:  # noqa: BLE001  # a call into user code
        file, line = _where(error, shown)
        text = f"the module raised {type(error).__name__}: {without_folder(error)}"
        hint = "Mend it: a module has to import before it can be read."
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == _STOCK_PACKAGE:
            hint = "Write `from featurelib import …`: the names are the same."
        return None, [Problem("module_error", Path(shown).name, text, hint, file, line)]


def _where(error: BaseException, shown: str) -> tuple[str | None, int | None]:
    """The innermost line that lies in the user's code, not in this package or an installed one."""
    trace, place = error.__traceback__, (shown, None)
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if shown_path(file) == shown:
            place = (shown, trace.tb_lineno)  # type: ignore[assignment]
        trace = trace.tb_next
    return place
