"""What a decorator leaves behind, and where its mistakes go.

A class decorator attaches one :class:`Declared` to the user's class: the inert records it built, the
line each stands on, and the :class:`~featurelib.errors.Problem` of every mistake in it. Importing a
module therefore does not fail for a mistake; ``compile_module`` reports them all at once. A few
mistakes are refused where they stand (:func:`refuse`), unless a compile is collecting.

Function decorators may stand in any order: each adds to the function's :class:`Notes`, which the class
decorator reads.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from difflib import get_close_matches
from os.path import relpath
from pathlib import Path
from types import FunctionType
from typing import Any, NamedTuple

from pydantic import ValidationError

from featurelib.definitions import Definition, ExpectationDef, Location
from featurelib.errors import DefinitionError, Problem, without_folder
from featurelib.metadata import Metadata

_PACKAGE = str(Path(__file__).parent)
_ATTRIBUTE = "__thyme__"
# Records, and members of a commit, below which a setting may be a secret that the user wrote inline.
_GUARDED = frozenset({"SourceDef", "ConnectorDef", "SecretRef", "sources", "connector", "config"})


class Site(NamedTuple):
    """A line of the user's code, the file as they would name it from where they stand."""

    file: str
    line: int

    @property
    def location(self) -> Location:
        """The stored form."""
        return Location(file=self.file, line=self.line)


def shown_path(path: str) -> str:
    """The path relative to the working directory when it lies below it, else as it is."""
    try:
        relative = relpath(path)
    except ValueError:  # another drive
        return path
    return path if relative.startswith("..") else relative


def calling_site() -> Site:
    """The nearest line outside this package: the user's call of a decorator or constructor."""
    frame = sys._getframe(1)  # noqa: SLF001  # the line alone is read, to show it in messages
    while frame.f_back and frame.f_code.co_filename.startswith((_PACKAGE, "<string>")):
        frame = frame.f_back
    return Site(shown_path(frame.f_code.co_filename), frame.f_lineno)


def function_site(function: FunctionType) -> Site:
    """The first line of a function, its decorators included."""
    return Site(shown_path(function.__code__.co_filename), function.__code__.co_firstlineno)


@dataclass
class Declared:
    """Everything one decorated class declares.

    ``broken`` names what a mistake kept out, as ``Class`` or ``Class.member``; missing it is no mistake of its own.
    """

    name: str
    site: Site
    definitions: list[Definition] = field(default_factory=list)
    locations: dict[str, Location] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)

    def problem(self, code: str, subject: str, message: str, hint: str = "", *, site: Site | None = None) -> None:
        """Note a mistake; without ``site`` at the line of the class."""
        where = site or self.site
        self.problems.append(Problem(code, subject, message, hint, where.file, where.line))

    def invalid(self, error: ValidationError, subject: str, site: Site | None = None) -> None:
        """Note each mistake that a record's own validation found."""
        for message in describe_invalid(error):
            self.problem("invalid_value", subject, message, "Change it to what the message asks for.", site=site)


def describe_invalid(error: ValidationError) -> list[str]:
    """One sentence per mistake of a pydantic error, without its apparatus.

    What was found is quoted where it cannot hold a secret: never of a source, and never a whole list or mapping.
    """
    guarded = error.title in _GUARDED
    return [
        f"{'.'.join(str(part) for part in item['loc']) or 'value'}: {item['msg']}{_found(item, guarded=guarded)}"
        for item in error.errors(include_url=False)
    ]


def _found(item: Any, *, guarded: bool) -> str:
    given = item["input"]
    if guarded or not _GUARDED.isdisjoint(item["loc"]) or not isinstance(given, str | int | float | None):
        return ""
    return f"; found {given!r:.80}"


_registry: dict[str, Declared] = {}
"""What :func:`registered` gives, by class name: the stock SDK's commit payload is of a process, not of a module."""


def attach(cls: type, site: Site) -> Declared:
    """The class's own :class:`Declared`, made on first use and announced to a collecting compile."""
    declared = vars(cls).get(_ATTRIBUTE)
    if declared is None:
        declared = Declared(cls.__name__, site)
        setattr(cls, _ATTRIBUTE, declared)
        _announce(declared)
    return declared


def _announce(declared: Declared) -> None:
    _registry[declared.name] = declared
    collection = _collection.get()
    if collection is not None:
        collection.declared.append(declared)


class Declaring:
    """Base of a declaration that is an object, not a decorated class."""

    def __init__(self, declared: Declared) -> None:
        self._declared = declared
        _announce(declared)


def registered() -> list[Declared]:
    """Every declaration of this process, the newest of each name."""
    return list(_registry.values())


def clear_registry() -> None:
    """Forget every declaration of this process; the decorated classes stay as they are."""
    _registry.clear()


def declared_on(thing: object) -> Declared | None:
    """What the class or object declares itself; ``None`` for anything else."""
    if isinstance(thing, Declaring):
        return thing._declared  # noqa: SLF001  # of this module
    return vars(thing).get(_ATTRIBUTE) if isinstance(thing, type) else None


class Reference:
    """A named attribute of a declared class, such as ``Transaction.amount``."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.owner: type | None = None
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner = owner
        self.name = name

    def fqn(self) -> str:
        """``Class.attribute``."""
        return f"{self.owner.__name__}.{self.name}" if self.owner else self.name


@dataclass
class Notes:
    """What the decorators on one function said."""

    role: str = ""
    site: Site | None = None
    version: int = 1
    inputs: tuple[Any, ...] | None = None
    outputs: tuple[Any, ...] = ()
    deps: tuple[Any, ...] = ()
    vectorized: bool = False
    pipeline: Callable[[Declared], None] | None = None
    expectations: Callable[[Declared], tuple[ExpectationDef, ...]] | None = None


def notes(function: Any) -> Notes:
    """The notes of a function, made on first use."""
    found = vars(function).get(_ATTRIBUTE)
    if found is None:
        found = Notes()
        setattr(function, _ATTRIBUTE, found)
    return found  # type: ignore[no-any-return]


def assign_role(function: Any, role: str) -> Notes:
    """Mark what a function is; a collecting compile reports one that no class decorator takes up."""
    found = notes(function)
    found.role = role
    found.site = calling_site()
    collection = _collection.get()
    if collection is not None:
        collection.waiting[id(function)] = function
    return found


def members(cls: type, role: str) -> list[tuple[str, FunctionType, Notes]]:
    """The class's functions of that role, in order of declaration; they count as taken up."""
    found = []
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", value)  # through @classmethod and @staticmethod
        if not isinstance(function, FunctionType):
            continue
        noted = vars(function).get(_ATTRIBUTE)
        if isinstance(noted, Notes) and noted.role == role:
            found.append((name, function, noted))
            collection = _collection.get()
            if collection is not None:
                collection.waiting.pop(id(function), None)
    return found


@dataclass
class Collection:
    """What a running compile has met so far. ``waiting``: decorated functions no class decorator took up yet."""

    declared: list[Declared] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    waiting: dict[int, Any] = field(default_factory=dict)


_collection: ContextVar[Collection | None] = ContextVar("collection", default=None)


@contextmanager
def collecting() -> Iterator[Collection]:
    """Gather declarations and problems instead of raising them."""
    collection = Collection()
    token = _collection.set(collection)
    try:
        yield collection
    finally:
        _collection.reset(token)


def refuse(problem: Problem, error: type[DefinitionError]) -> None:
    """Raise ``error``, or note the problem when a compile is collecting; then the caller goes on as best it can."""
    collection = _collection.get()
    if collection is None:
        raise error([problem])
    collection.problems.append(problem)


def refuse_here(code: str, subject: str, message: str, hint: str, error: type[DefinitionError]) -> None:
    """:func:`refuse` at the user's line that is being executed."""
    where = calling_site()
    refuse(Problem(code, subject, message, hint, where.file, where.line), error)


FAILED: Any = object()
"""What :func:`run_body` gives when the body raised."""


def run_body(body: Callable[[], Any], function: FunctionType, subject: str, declared: Declared, code: str) -> Any:
    """Call user code at definition time; what it raises becomes a problem at the user's line and gives ``FAILED``.

    This is a call into user code, one of the three places that catch everything.
    """
    try:
        return body()
    except DefinitionError:
        raise
    except Exception as error:  # noqa: BLE001
        text = "; ".join(describe_invalid(error)) if isinstance(error, ValidationError) else without_folder(error)
        message = f"the body raised {type(error).__name__}: {text}"
        hint = "The body runs once, as the class is declared: mend the line that is named."
        declared.problem(code, subject, message, hint, site=_raising_line(error, function))
        return FAILED


def _raising_line(error: BaseException, function: FunctionType) -> Site:
    site, trace = function_site(function), error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == function.__code__.co_filename:
            site = Site(site.file, trace.tb_lineno)
        trace = trace.tb_next
    return site


def catalog_metadata(catalog: dict[str, Any]) -> Metadata:
    """Metadata from decorator keywords; tags may be a list or a mapping, unknown keywords only warn.

    Raises:
        ValidationError: a value has the wrong type.
    """
    known = {name: value for name, value in catalog.items() if name in Metadata.model_fields}
    for name in catalog.keys() - known.keys():
        warnings.warn(f"unknown catalog keyword {name!r} is ignored", FutureWarning, stacklevel=5)
    if isinstance(known.get("tags"), list | tuple | set):
        known["tags"] = dict.fromkeys(known["tags"], "")
    return Metadata(**{name: value for name, value in known.items() if value is not None})


def did_you_mean(name: str, known: list[str] | tuple[str, ...], of: str) -> str:
    """A hint: the nearest known name, or what there is."""
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"Did you mean `{near[0]}`?"
    return f"{of} has {', '.join(known)}." if known else f"{of} has none."
