"""The documentation is true: its examples run, its lists are complete, its links lead somewhere.

A page's fences run in order over one platform; between two of them everything in the log is folded, as the workers
of a running platform do. What a fence is, its first line says:

    ```python                    runs; the fences of a page share their names
    ```python title="name.py"    becomes a file in the reader's folder; it must compile as a module of definitions
    ```shell run                 its `thyme` and `python -m jobs.…` commands run
    ```text output               what the fence before it printed, exactly
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

from docs.generate import PARTS, page, with_part
from featurelib import errors
from featurelib.cli import app
from featurelib.compile import compile_module
from featurelib.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + sorted(ROOT.glob("docs/**/*.md"))
PACKAGES = ("featurelib", "jobs", "serve_apps", "cluster")
HOSTS = {"127.0.0.1", "localhost", "keepachangelog.com", "semver.org", "delta.io"}

_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\[[^\]\n]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


class Fence(NamedTuple):
    """A block of code of a page."""

    info: str
    body: str
    line: int

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    @property
    def title(self) -> str:
        found = re.search(r'title="([^"]+)"', self.info)
        return found[1] if found else ""


def fences(text: str) -> list[Fence]:
    return [Fence(f["info"].strip(), f["body"], text[: f.start()].count("\n") + 1) for f in _FENCE.finditer(text)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def runs(path: Path) -> bool:
    return any(fence.language == "python" or fence.info == "shell run" for fence in fences(path.read_text()))


every_page = pytest.mark.parametrize("path", PAGES, ids=name_of)


@pytest.mark.parametrize("path", [path for path in PAGES if runs(path)], ids=name_of)
def test_the_examples_of_a_page_run_and_print_what_it_says(path: Path, platform, tmp_path: Path, monkeypatch):
    names = ModuleType("thyme_page")
    monkeypatch.setitem(sys.modules, names.__name__, names)
    printed = ""
    for fence in fences(path.read_text()):
        if fence.info == "text output":
            assert printed.strip() == fence.body.strip(), f"{name_of(path)}:{fence.line}"
        elif fence.title:
            Path(fence.title).write_text(fence.body)
            compile_module(fence.title)
        elif fence.language == "python":
            printed = run_python(fence, tmp_path / f"line_{fence.line}.py", names)
            platform.fold()
        elif fence.info == "shell run":
            printed = "".join(map(run_line, fence.body.replace("\\\n", "").splitlines()))
            platform.fold()


def run_python(fence: Fence, file: Path, names: ModuleType) -> str:
    # A file, since an extractor's source is read back from it.
    file.write_text(fence.body)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(fence.body, str(file), "exec", dont_inherit=True), vars(names))  # running it is the test
    return output.getvalue()


def run_line(line: str) -> str:
    if line.startswith("python -m jobs."):
        return run_job(shlex.split(line)[2:])
    return run_command(line) if line.startswith("thyme ") else ""


def run_job(arguments: list[str]) -> str:
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(output):
        patched.setattr(sys, "argv", arguments)
        importlib.import_module(arguments[0]).main()
    return output.getvalue()


def run_command(line: str) -> str:
    result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:], catch_exceptions=False)
    assert result.exit_code == 0, f"{line}: {result.output}"
    return result.stdout


@every_page
def test_every_fence_names_its_language(path: Path):
    unnamed = [fence.line for fence in fences(path.read_text()) if not fence.language]
    assert unnamed == []


@every_page
def test_every_relative_link_leads_to_a_file_and_a_heading(path: Path):
    assert list(broken_links(path)) == []


def broken_links(path: Path) -> Iterator[str]:
    for target in _LINK.findall(without_code(path.read_text())):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        found = (path.parent / file).resolve() if file else path
        if not found.exists() or (anchor and anchor not in anchors(found)):
            yield target


def anchors(path: Path) -> set[str]:
    headings = _HEADING.findall(_FENCE.sub("", path.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_code(text: str) -> str:
    return _INLINE.sub("", _FENCE.sub("", text))


@every_page
def test_no_page_names_a_machine_or_a_foreign_host(path: Path):
    text = path.read_text()
    assert re.findall(r"(?<![\w.~])/(?:home|root|work|Users|tmp)/\S*", text) == []
    assert set(re.findall(r"https?://([\w.\-]+)", text)) <= HOSTS


def code_of(path: Path) -> Iterator[str]:
    text = path.read_text()
    yield from (fence.body for fence in fences(text))
    yield from _INLINE.findall(_FENCE.sub("", text))


@cache
def _commands() -> frozenset[str]:
    import typer

    group: Any = typer.main.get_command(app)
    return frozenset(group.commands)


@every_page
def test_every_command_a_page_names_exists(path: Path):
    named = {word for code in code_of(path) for word in re.findall(r"(?:^|\s|/)thyme ([a-z][a-z-]*)", code)}
    assert named <= _commands()


@every_page
def test_every_make_target_a_page_names_exists(path: Path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for code in code_of(path) for word in re.findall(r"^(?:\$ )?make ([a-z]+)", code, re.MULTILINE)}
    assert named <= targets


@every_page
def test_every_module_a_page_runs_exists(path: Path):
    named = {word for code in code_of(path) for word in re.findall(r"python -m ([a-z_.]+)", code)}
    missing = [name for name in named if name.split(".")[0] in PACKAGES and importlib.util.find_spec(name) is None]
    assert missing == []


@every_page
def test_every_function_a_page_names_exists(path: Path):
    known = definitions_of_the_code() | {"x"}  # on the page of expressions, `x` stands for any of them
    named = {name for code in _INLINE.findall(path.read_text()) for name in re.findall(r"^([A-Za-z_.]+)\(\)$", code)}
    assert {name for name in named if not set(name.split(".")) <= known} == set()


@cache
def definitions_of_the_code() -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for tree in trees() for node in ast.walk(tree) if isinstance(node, kinds)}


@cache
def trees() -> tuple[ast.Module, ...]:
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return tuple(ast.parse(file.read_text()) for file in files)


@pytest.mark.parametrize("name", PARTS)
def test_a_generated_part_says_what_the_code_says(name: str):
    text = page(name).read_text()
    assert text == with_part(text, PARTS[name]()), "stale: run .venv/bin/python docs/generate.py"


def reference(name: str) -> str:
    return page(name).read_text()


def test_every_setting_is_in_the_reference():
    variables = []
    for name, field in Settings.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        variables += [f"{name}__{each}" for each in inner] if inner else [name]
    text = reference("settings")
    assert [name for name in variables if f"`THYME_{name.upper()}`" not in text] == []


def test_every_error_is_in_the_reference():
    text = reference("errors")
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.ThymeError)]
    assert [kind for kind in kinds if f"`{kind.__name__}`" not in text or f"`{kind.code}`" not in text] == []


def test_every_problem_of_a_definition_is_in_the_reference():
    text = reference("errors")
    assert [code for code in sorted(problem_codes()) if f"`{code}`" not in text] == []


def test_every_reason_of_a_dead_letter_is_in_the_reference():
    text = reference("errors")
    assert [reason for reason in sorted(dead_letter_reasons()) if f"`{reason}`" not in text] == []


def test_every_event_type_is_in_the_reference_and_no_other():
    listed = re.findall(r"^\| `(\w+)`", reference("events"), re.MULTILINE)
    assert sorted(listed) == sorted(event_types())


def problem_codes() -> set[str]:
    """Codes that are written out in full where a problem is made."""
    makers = {"Finding", "Problem", "Break", "Mistake", "problem", "refuse_here", "_add", "_UnofferedError"}
    return {code for call, name in calls() if name in makers for code in texts(call, "code", 0) if is_code(code)}


def dead_letter_reasons() -> set[str]:
    reasons = {"malformed"}  # a piece of input that is not a record
    coerce = ast.parse((ROOT / "featurelib/engine/coerce.py").read_text())
    for call, name in calls([coerce]):
        place = {"RecordError": 0, "_refuse": 1}.get(name)
        if place is not None:
            reasons |= {text for text in texts(call, "reason", place) if is_code(text)}
    return reasons


def event_types() -> set[str]:
    makers = {"_event", "_send", "_key_event"}
    named = {text for call, _ in calls() for text in texts(call, "event_type", None)}
    named |= {text for call, name in calls() if name in makers for text in texts(call, "event_type", 0)}
    # Beside a connection: who tells of it inside the transaction that does it.
    named |= {text for call, name in calls() if name == "_told_within" for text in texts(call, "event_type", 1)}
    return {text for text in named if is_code(text)}


def is_code(text: str) -> bool:
    return re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", text) is not None


def calls(of: Sequence[ast.Module] | None = None) -> Iterator[tuple[ast.Call, str]]:
    for tree in of or trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield node, node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def texts(call: ast.Call, keyword: str, place: int | None) -> Iterator[str]:
    """Constant texts an argument can be: both branches of a conditional count."""
    given = [each.value for each in call.keywords if each.arg == keyword]
    if place is not None:
        given += call.args[place : place + 1]
    for argument in given:
        choices = [argument.body, argument.orelse] if isinstance(argument, ast.IfExp) else [argument]
        yield from (c.value for c in choices if isinstance(c, ast.Constant) and isinstance(c.value, str))
