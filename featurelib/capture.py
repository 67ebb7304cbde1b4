"""User code as text: a function without its decorators, and all it needs of its module.

The text runs on another machine without the user's module, so every name the function reads must be one
of its own, a builtin, an import of an installed package, or a module-level constant, function or class,
which is then carried along with what *it* needs. Anything else is a problem at definition time.
"""

from __future__ import annotations

import ast
import builtins
import linecache
import symtable
import sys
import sysconfig
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any

from featurelib.declarations import Declared, declared_on, function_site, shown_path
from featurelib.definitions import DatasetDef, PyCode

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_BUILTINS = frozenset(dir(builtins)) | {"__name__"}
_FUTURE = "from __future__ import annotations"


@dataclass(frozen=True)
class ModuleText:
    """A module's text, its syntax tree, and the top-level statements that bind each name."""

    lines: tuple[str, ...]
    tree: ast.Module
    bindings: dict[str, tuple[ast.stmt, ...]]

    @property
    def lazy_annotations(self) -> bool:
        """Whether annotations are never evaluated in this module."""
        return any(
            isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
            and any(alias.name == "annotations" for alias in statement.names)
            for statement in self.tree.body
        )  # fmt: skip

    def function(self, first_line: int) -> _Function | None:
        """The function whose first line, decorators included, is that line."""
        return self._functions.get(first_line)

    @cached_property
    def _functions(self) -> dict[int, _Function]:
        # Once per module: a walk for each function made 600 definitions take 9 s of CPU, of which this was 8.
        found: dict[int, _Function] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, _Function):
                found.setdefault(_first_line(node), node)
        return found

    def text(self, node: ast.stmt, first: int, last: int | None = None) -> str:
        """Lines ``first`` to ``last`` of the node without its indentation; the inside of string literals stays."""
        inside = {line for literal in ast.walk(node) if _is_text(literal) for line in _lines_after_first(literal)}
        numbered = ((number, self.lines[number - 1]) for number in range(first, (last or node.end_lineno or first) + 1))
        kept = [line if number in inside else _dedented(line, node.col_offset) for number, line in numbered]
        return "".join(kept).rstrip() + "\n"


def module_text(filename: str) -> ModuleText | None:
    """The module of that file as it was when first read; ``None`` when there is no text, as at a bare prompt."""
    linecache.checkcache(filename)
    lines = tuple(linecache.getlines(filename))
    return _parsed(lines) if lines else None


def function_node(function: FunctionType) -> tuple[ModuleText, _Function] | None:
    """The module text and syntax node of a function, where its text can be read."""
    module = module_text(function.__code__.co_filename)
    node = module.function(function.__code__.co_firstlineno) if module else None
    return (module, node) if module and node else None


def capture(
    function: FunctionType, subject: str, declared: Declared, readable: Collection[str] | None = None
) -> PyCode | None:
    """The function's portable text; ``None`` when a problem was noted instead.

    Args:
        function: the user's.
        subject: names it in problems.
        declared: takes the problems.
        readable: datasets that an extractor may look up; ``None`` for a function that has no look-ups.
    """
    found = function_node(function)
    site = function_site(function)
    if found is None:
        hint = "Put it into a file and commit that."
        declared.problem("no_source", subject, "the text of the function cannot be read", hint, site=site)
        return None
    module, node = found
    before = len(declared.problems)
    for name in function.__code__.co_freevars:
        message = f"`{name}` belongs to an enclosing function, whose value does not travel with the text"
        hint = "Make it a constant of the module."
        declared.problem("closure", subject, message, hint, site=site)
    own = module.text(node, node.lineno)
    needed = _Needs(function, module, subject, declared, readable)
    needed.collect(own, skip=set(function.__code__.co_freevars))
    if len(declared.problems) > before:
        return None
    parts = [_FUTURE + "\n"] if module.lazy_annotations else []
    return PyCode(
        entry_point=function.__name__,
        source="\n".join([*parts, *needed.texts(), own]) if parts or needed.found else own,
        file=_stored_path(function.__code__.co_filename),
        line=node.lineno,
    )


def _stored_path(path: str) -> str:
    """The file as errors of the platform name it, which others read too: never with folders of the user's machine."""
    shown = shown_path(path)
    return Path(shown).name if Path(shown).is_absolute() else shown


class _Needs:
    """Walks from a function's text to every module-level statement it depends on."""

    def __init__(
        self,
        function: FunctionType,
        module: ModuleText,
        subject: str,
        declared: Declared,
        readable: Collection[str] | None,
    ) -> None:
        self.function = function
        self.readable = readable
        self.module = module
        self.subject = subject
        self.declared = declared
        self.found: dict[tuple[int, str], str] = {}
        self._seen: set[str] = set()

    def texts(self) -> list[str]:
        """What was found, in the order of the module."""
        return [text for _, text in sorted(self.found.items())]

    def collect(self, text: str, skip: set[str]) -> None:
        """Add whatever ``text`` reads and does not define itself."""
        source = f"{_FUTURE}\n{text}" if self.module.lazy_annotations else text
        for name in sorted(_names_read(source) - _BUILTINS - skip - self._seen):
            self._seen.add(name)
            self._add(name)

    def _add(self, name: str) -> None:
        declaration = declared_on(self.function.__globals__.get(name))
        if declaration is not None:
            self._check_readable(name, declaration)
            return
        statements = self.module.bindings.get(name)
        if not statements:
            message = f"`{name}` is not defined at the top of the module"
            hint = "Define it there, or import it from an installed package."
            self._problem("unresolved_name", message, hint)
            return
        for statement in statements:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self._add_import(name, statement)
            else:
                text = self.module.text(statement, _first_line(statement))
                self.found[(statement.lineno, "")] = text
                self.collect(text, skip={name})

    def _check_readable(self, name: str, declaration: Declared) -> None:
        """Note a declared class that will not be there: in an extractor it stands for look-ups of a dataset in deps."""
        if declaration.name in declaration.broken:
            return
        is_dataset = any(isinstance(definition, DatasetDef) for definition in declaration.definitions)
        if self.readable is None:
            message = f"`{name}` is a declared class; a function over a frame cannot read it"
            self._problem("lookup_unsupported", message, "Join the dataset before this step.")
        elif not is_dataset:
            message = f"`{name}` is a declared class, and no dataset; the body of an extractor cannot read it"
            hint = "Take the value as an input: name the feature in extractor_inputs(...)."
            self._problem("lookup_unsupported", message, hint)
        elif declaration.name not in self.readable:
            message = f"`{name}` is a dataset that the extractor does not declare to depend on"
            hint = f"Write @extractor(deps=[{name}]), or take the value as an input: a feature with ref=."
            self._problem("missing_dep", message, hint)
        elif declaration.name != name:
            message = f"`{name}` is another name of the dataset {declaration.name}, which does not travel with the text"
            self._problem("lookup_unsupported", message, f"Write {declaration.name}.lookup(ts, …).")

    def _add_import(self, name: str, statement: ast.Import | ast.ImportFrom) -> None:
        alias = next(a for a in statement.names if _bound_name(a, statement) == name)
        source = statement.module or "" if isinstance(statement, ast.ImportFrom) else alias.name
        relative = isinstance(statement, ast.ImportFrom) and statement.level > 0
        if relative or self._is_local(source):
            message = f"`{name}` comes from `{source or '.'}`, a module beside this one, which is not sent along"
            hint = "Define it in this module, or install it as a package where the platform runs."
            self._problem("local_import", message, hint)
            return
        kept: ast.Import | ast.ImportFrom
        if isinstance(statement, ast.ImportFrom):
            kept = ast.ImportFrom(module=statement.module, names=[alias], level=0)
        else:
            kept = ast.Import(names=[alias])
        self.found[(statement.lineno, name)] = ast.unparse(kept) + "\n"

    def _is_local(self, module: str) -> bool:
        """Whether the module lies beside the user's file rather than in an installed package."""
        top = module.partition(".")[0]
        loaded = sys.modules.get(top)
        origin = getattr(loaded, "__file__", None) if loaded else _origin(top)
        folder = Path(self.function.__code__.co_filename).resolve().parent
        if origin is None:
            return False
        place = Path(origin).resolve()
        installed = any(place.is_relative_to(path) for path in _installed_folders())
        return not installed and place.is_relative_to(folder)

    def _problem(self, code: str, message: str, hint: str) -> None:
        self.declared.problem(code, self.subject, message, hint, site=function_site(self.function))


@lru_cache(maxsize=64)
def _parsed(lines: tuple[str, ...]) -> ModuleText | None:
    try:
        tree = ast.parse("".join(lines))
    except SyntaxError:  # a fragment, such as a notebook cell with magics
        return None
    bindings: dict[str, tuple[ast.stmt, ...]] = {}
    for statement in tree.body:
        for name in _bound_names(statement):
            bindings[name] = (*bindings.get(name, ()), statement)
    return ModuleText(lines, tree, bindings)


def _bound_names(statement: ast.stmt) -> Iterator[str]:
    """Names a top-level statement binds, whatever it is: a definition, an import, an assignment, an ``if`` of these."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        yield from (_bound_name(alias, statement) for alias in statement.names)
        return
    table = symtable.symtable(ast.unparse(statement), "<statement>", "exec")
    yield from (symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported())


def _bound_name(alias: ast.alias, statement: ast.Import | ast.ImportFrom) -> str:
    whole = alias.name if isinstance(statement, ast.ImportFrom) else alias.name.split(".")[0]
    return alias.asname or whole


def _names_read(text: str) -> set[str]:
    """Global names the text reads and does not bind at its own top."""
    table = symtable.symtable(text, "<captured>", "exec")
    bound = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    return {name for name in _referenced(table) if name not in bound}


def _referenced(table: symtable.SymbolTable) -> Iterator[str]:
    top = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (top or symbol.is_global()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _referenced(child)


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return decorators[0].lineno if decorators else node.lineno


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def _lines_after_first(node: Any) -> range:
    return range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)


def _dedented(line: str, indent: int) -> str:
    return line[indent:] if not line[:indent].strip() else line.lstrip()


def _origin(module: str) -> str | None:
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    return spec.origin if spec else None


@lru_cache(maxsize=1)
def _installed_folders() -> tuple[Path, ...]:
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return tuple(Path(sysconfig.get_path(kind)).resolve() for kind in kinds)
