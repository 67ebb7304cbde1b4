"""Write the generated parts of the reference pages; ``python docs/generate.py`` after a change they describe.

A page holds its hand-written text and, between two comment lines, a part that is made from the code: settings,
errors, commands, routes, metrics. ``tests/docs`` fails when a part no longer equals what the code says.
"""

# ruff: noqa: INP001, T201  # a script beside the pages it writes

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

DOCS = Path(__file__).resolve().parent
# Run as a script, Python puts docs/ on the path instead of the packages beside it.
sys.path.insert(0, str(DOCS.parent))

Json = dict[str, Any]


def settings() -> str:
    """A table per group, from the docstrings of ``featurelib/settings.py``."""
    from featurelib.settings import Settings

    top = [(name, field) for name, field in Settings.model_fields.items() if not _group(field)]
    groups = [(name, field) for name, field in Settings.model_fields.items() if _group(field)]
    parts = ["## The tree itself", "", *_settings_table("", top)]
    for name, field in groups:
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        parts += ["", f"## {name}", "", _sentence(model), "", *_settings_table(name, model.model_fields.items())]
    return "\n".join(parts)


def _group(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _settings_table(group: str, fields: Any) -> Iterator[str]:
    rows = []
    for name, field in fields:
        variable = "THYME_" + "__".join(filter(None, (group, name))).upper()
        rows.append((f"`{name}`", f"`{variable}`", _type(field), _default(field), field.description or ""))
    return _table(("setting", "environment variable", "type", "default", "meaning"), rows)


def _type(field: FieldInfo) -> str:
    names = {"PositiveInt": "positive int", "SecretStr": "secret text", "str": "text", "Path": "path"}
    if field.annotation is int and field.metadata:
        return "positive int" if any(getattr(bound, "gt", None) == 0 for bound in field.metadata) else "int, 0 or more"
    name = getattr(field.annotation, "__name__", str(field.annotation))
    return names.get(name, name)


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "`~/.thyme/platform`"  # the one factory: the data directory
    value = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{shown}`" if shown else "empty"


def errors() -> str:
    """One row per class of ``featurelib/errors.py``, the tree in depth-first order."""
    from featurelib.errors import ThymeError

    rows = [
        (
            "&nbsp;" * 2 * depth + f"`{kind.__name__}`",
            f"`{kind.code}`",
            str(kind.status),
            "yes" if kind.retryable else "no",
            _sentence(kind),
            kind.remedy,
        )
        for depth, kind in _tree(ThymeError)
    ]
    return "\n".join(_table(("class", "code", "status", "retryable", "when", "what to do"), rows))


def _tree(kind: type, depth: int = 0) -> Iterator[tuple[int, Any]]:
    yield depth, kind
    for child in kind.__subclasses__():
        if child.__module__ == kind.__module__:
            yield from _tree(child, depth + 1)


def commands() -> str:
    """A section per command of the CLI."""
    import typer

    from featurelib.cli import app

    group: Any = typer.main.get_command(app)
    return "\n\n".join(_command(name, command) for name, command in _named(group))


def _named(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its whole name; those of a noun follow it."""
    for name in sorted(group.commands):
        command = group.commands[name]
        if getattr(command, "invoke_without_command", True):
            yield f"{before}{name}", command
        yield from _named(command, f"{before}{name} ") if hasattr(command, "commands") else ()


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if type(p).__name__.endswith("Argument")]
    options = [p for p in command.params if p not in arguments]
    usage = " ".join(["thyme", name, *(_usage(a) for a in arguments), *(["[options]"] if options else [])])
    lines = [f"## thyme {name}", "", command.help or "", "", "```shell", usage, "```"]
    rows = [(_names(p), p.help or "", _value(p), f"`{p.envvar}`" if p.envvar else "") for p in command.params]
    if rows:
        lines += ["", *_table(("argument or option", "meaning", "default", "environment variable"), rows)]
    return "\n".join(lines)


def _usage(argument: Any) -> str:
    return f"<{argument.name}>" if argument.required else f"[{argument.name}]"


def _names(parameter: Any) -> str:
    return ", ".join(f"`{name}`" for name in parameter.opts)


def _value(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = getattr(parameter.default, "value", parameter.default)
    if value is None or value in (False, "", []):
        return ""
    return f"`{value}`"


def routes() -> str:
    """A section per route, from the OpenAPI document of the services."""
    from serve_apps.api import build_api

    document = build_api().openapi()
    sections = [
        _route(method, path, operation, document["components"]["schemas"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    ]
    return "\n\n".join(sections)


def _route(method: str, path: str, operation: Json, schemas: Json) -> str:
    lines = [f"## {method.upper()} {path}", "", operation.get("description") or f"{operation['summary']}."]
    if parameters := operation.get("parameters"):
        rows = [(f"`{p['name']}`", _schema_text(p["schema"]), p.get("description", "")) for p in parameters]
        lines += ["", *_table(("parameter", "type", "meaning"), rows)]
    lines += _members("Body", operation.get("requestBody", {}), schemas)
    lines += _members("Answer", operation["responses"].get("200", {}), schemas)
    statuses = ", ".join(sorted(operation["responses"]))
    key = "none" if operation.get("security") == [] else "bearer"
    return "\n".join([*lines, "", f"Key: {key}. Statuses: {statuses}."])


def _members(title: str, part: Json, schemas: Json) -> list[str]:
    name = _model(part)
    if name is None:
        return []
    members = schemas[name].get("properties", {})
    required = set(schemas[name].get("required", ()))
    rows = [
        (f"`{member}`", _schema_text(schema), "yes" if member in required else "no", schema.get("description", ""))
        for member, schema in members.items()
    ]
    return ["", f"{title}: `{name}`", "", *_table(("member", "type", "required", "meaning"), rows)]


def _model(part: Json) -> str | None:
    for content in part.get("content", {}).values():
        reference = content.get("schema", {}).get("$ref")
        if reference:
            return str(reference).rpartition("/")[2]
    return None


def _schema_text(schema: Json) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_schema_text(each) for each in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_schema_text(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def metrics() -> str:
    """One row per metric of a replica."""
    from prometheus_client.parser import text_string_to_metric_families

    from featurelib.stores.checks import Tally
    from featurelib.stores.registry import DatasetStatus, JobRecord, WorkerStatus
    from featurelib.stores.statistics import Figures
    from serve_apps.findings import Found
    from serve_apps.freshness import Shown
    from serve_apps.metrics import Metrics

    shown = Metrics()
    shown.answered("/features", "GET", 200, 0.001)
    workers = (WorkerStatus(partition=0, state="running"),)
    job = JobRecord(pipeline="p@1", partition_count=1, state="running", applied_us=0, workers=workers)
    shown.freshness.shown = Shown([job], [DatasetStatus(dataset="D@1", newest_us=0, archive_lag=0)], 0, 0)
    tally = Tally(kind="featureset", target="F", feature="f", hour=0, compared=1, different=1, causes={"unknown": 1})
    day = Figures(kind="featureset", subject="F", name="f", day=0, definition="", rows=1, psi=0.0, made_at=0)
    shown.findings.found = Found([tally], [day], 0, 0, 0)
    rows = []
    for family in text_string_to_metric_families(shown.text().decode()):
        labels = sorted({name for sample in family.samples for name in sample.labels} - {"le"})
        if not family.name.endswith("_created"):
            rows.append((f"`{_sample_name(family)}`", family.type, ", ".join(labels), family.documentation))
    return "\n".join(_table(("metric", "type", "labels", "meaning"), rows))


def _sample_name(family: Any) -> str:
    return f"{family.name}_total" if family.type == "counter" else str(family.name)


_OPERATORS = (
    ("`x + y`, `x - y`, `x * y`", "numbers", "the common type", "null", "exact, but for floats"),
    ("`x / y`", "numbers", "float", "null", "the quotient; by zero: null"),
    ("`x == y`, `!=`, `<`, `<=`, `>`, `>=`", "values of one type", "bool", "false", "bools are only equal or not"),
    ("`p & q`, `p | q`, `~p`", "conditions", "bool", "not hold", "and, or, not; the negation of a null holds"),
    ("`x.is_null()`", "a column", "bool", "true", "whether there is no value"),
    ("`x.is_not_null()`", "anything", "bool", "false", "whether there is a value"),
    ("`x.fill_null(y)`", "values of one type", "the common type", "is what it fills", "x, or y where x is null"),
    ("`x.json_extract(path)`", "text", "str", "null", "as with a type, but every value as text"),
)  # fmt: skip
_GIVES = {
    "same": "as x",
    "common": "the common type",
    "rounded": "as x",
    "scaled": "decimal of that scale",
    "typed": "that type",
}


def expressions() -> str:
    """One row per operator and function, from :data:`featurelib.expr.FUNCTIONS`."""
    from featurelib.expr import FUNCTIONS
    from featurelib.inference import kind_of_argument

    rows = [list(row) for row in _OPERATORS]
    for function in FUNCTIONS.values():
        takes = "; ".join(dict.fromkeys(kind_of_argument(kind) for kind in function.takes))
        gives = _GIVES.get(function.gives, function.gives)
        rows.append([f"`{function.written}`", takes, gives, function.nulls, function.about])
    return "\n".join(_table(("expression", "takes", "gives", "a null makes it", "what it is"), rows))


def coercion() -> str:
    """The tables of ``featurelib/engine/coerce.py``, which its cells are read by."""
    from featurelib.engine import coerce

    rulers = re.compile(r"^( {4}-+(?:  -+)+)$", re.MULTILINE)
    text = coerce.__doc__ or ""
    parts = []
    for found in rulers.finditer(text):
        starts = [piece.start() for piece in re.finditer("-+", found[1])]
        titles = text[: found.start()].rstrip("\n").rpartition("\n")[2]
        rows: list[list[str]] = []
        for line in text[found.end() + 1 :].partition("\n\n")[0].split("\n"):
            cells = _cells(line, starts)
            if cells[0]:
                rows.append(cells)
            else:  # a cell that goes on
                rows[-1] = [f"{before} {more}".strip() for before, more in zip(rows[-1], cells, strict=True)]
        parts.append("\n".join(_table(_cells(titles, starts), rows)))
    last = text.rpartition("\n\n")[2]
    return "\n\n".join([*parts, _cell(last.strip())])


def _cells(line: str, starts: Sequence[int]) -> list[str]:
    ends = [*starts[1:], len(line)]
    return [line[start : max(start, end)].strip() for start, end in zip(starts, ends, strict=True)]


PARTS: Mapping[str, Callable[[], str]] = {
    "settings": settings,
    "errors": errors,
    "cli": commands,
    "http": routes,
    "metrics": metrics,
    "expressions": expressions,
    "coercion": coercion,
}
"""Page of ``docs/reference`` or ``docs`` → the function that makes its generated part."""

_PART = re.compile(
    r"(?<=<!-- generated: run docs/generate.py -->\n).*(?=\n<!-- end of the generated part -->)", re.DOTALL
)


def page(name: str) -> Path:
    """The file of a page, of ``docs/reference`` or else of ``docs``."""
    reference = DOCS / "reference" / f"{name}.md"
    return reference if reference.exists() else DOCS / f"{name}.md"


def with_part(text: str, part: str) -> str:
    """The page with its generated part replaced.

    Raises:
        ValueError: the page has no place for one.
    """
    if not _PART.search(text):
        raise ValueError("the page has no pair of comment lines that mark the generated part")
    return _PART.sub(lambda _: part, text)


def _sentence(thing: type) -> str:
    return " ".join((thing.__doc__ or "").partition("\n\n")[0].split())


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(titles) + " |"
    yield "|" + " --- |" * len(titles)
    for row in rows:
        yield "| " + " | ".join(_cell(text) for text in row) + " |"


def _cell(text: str) -> str:
    """A docstring is reStructuredText; a bar would end the cell; a numbered rule is explained elsewhere."""
    plain = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text.replace("``", "`")).replace("|", "\\|").replace("\n", " ")
    return re.sub(r"(?:contract )?decision (\d+)", r"[decision \1](../concepts.md#numbered-rules)", plain)


if __name__ == "__main__":
    for name, make in PARTS.items():
        file = page(name)
        file.write_text(with_part(file.read_text(encoding="utf-8"), make()), encoding="utf-8")
        print(f"wrote {file.relative_to(DOCS.parent)}")
