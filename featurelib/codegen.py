"""Definitions → typed stubs, for programs that read features without importing where they are defined.

One ``.pyi`` per dataset and featureset, a client whose reads are overloaded by their names, and an ``__init__.pyi``
that exports everything. Rows are typed as a read gives them: JSON has no instants, so a ``datetime`` is text there.
Equal definitions give equal bytes.
"""

from __future__ import annotations

import json
import keyword
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from featurelib.definitions import AggregateStep, Commit, DatasetDef, FeatureDef, FeaturesetDef, FieldDef, PipelineDef
from featurelib.errors import DefinitionError, Problem
from featurelib.types import decimal_scale, element_type, is_nested, value_type

HEADER = "# Written by `thyme codegen python`; the next run replaces it.\n"
# Class → how its methods begin.
_CLIENTS = {"ThymeClient": "def", "AsyncThymeClient": "async def"}
_ENTITY, _INSTANT = "entity_id", "timestamp"
_SCALARS = {
    "int": ("builtins", "int"),
    "float": ("builtins", "float"),
    "str": ("builtins", "str"),
    "bool": ("builtins", "bool"),
    "datetime": ("datetime", "datetime"),
    "decimal": ("decimal", "Decimal"),
}
# What an answer shows in place of a type that JSON lacks.
_SHOWN = {"datetime": "str", "decimal": "str"}
# A client sends the id as text: these types have a text form that the service reads back.
_SENT_AS_TEXT = frozenset({"int", "float", "datetime", "decimal"})
_LISTS = frozenset({"last_k", "first_k", "distinct", "top_k"})
_NULL_WHEN_EMPTY = frozenset({"last", "first"})
_EXTREMES = frozenset({"min", "max"})
_ANY = "any"

Named = DatasetDef | FeaturesetDef
"""What gets a stub of its own."""


class _Value(NamedTuple):
    """A column of an answer: its name, the declared type, and whether it may be null."""

    name: str
    type: str
    nullable: bool


class _Imports:
    """The names a stub borrows, each imported once, under an alias when the stub itself defines that name."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = frozenset(taken)
        self._used: dict[str, set[str]] = {}

    def name(self, module: str, name: str) -> str:
        """How the stub spells it."""
        if name not in self._taken:
            if module != "builtins":
                self._used.setdefault(module, set()).add(name)
            return name
        self._used.setdefault(module, set()).add(f"{name} as _{name}")
        return f"_{name}"

    def typing(self, name: str) -> str:
        """A name of ``typing``."""
        return self.name("typing", name)

    def of_type(self, type_name: str, *, nullable: bool = False) -> str:
        """The Python type of a column type."""
        element, value = element_type(type_name), value_type(type_name)
        if type_name == _ANY:
            text = self.typing("Any")
        elif value is not None or type_name.startswith("struct["):
            text = f"{self.name('builtins', 'dict')}[{self.name('builtins', 'str')}, {self.of_type(value or _ANY)}]"
        elif element is not None:
            text = f"{self.name('builtins', 'list')}[{self.of_type(element)}]"
        else:
            text = self.name(*_SCALARS[_scalar(type_name)])
        return f"{text} | None" if nullable and text != "Any" else text

    def lines(self) -> str:
        """The import statements."""
        found = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(self._used.items())]
        return "".join(f"{line}\n" for line in found)


def stubs(commit: Commit) -> dict[str, str]:
    """The stub files of a commit's datasets and featuresets: file name → text, in order of their names.

    Raises:
        DefinitionError: a name is a keyword of Python, a type has no Python type, or two stubs would collide; every
            such name is listed with its line.
    """
    made: list[Named] = [*sorted(commit.datasets, key=_by_name), *sorted(commit.featuresets, key=_by_name)]
    mistakes = [*_unspeakable(commit, made), *_collisions(commit, made)]
    if mistakes:
        raise DefinitionError(mistakes)
    files = {f"{_module(each.name)}.pyi": _stub(each, commit) for each in made}
    files["_client.pyi"] = _client(made, commit)
    files["__init__.pyi"] = _package(made, commit)
    return dict(sorted(files.items()))


def _by_name(definition: Named) -> str:
    return definition.name


def _scalar(type_name: str) -> str:
    return "decimal" if decimal_scale(type_name) is not None else type_name


def _module(name: str) -> str:
    """``UserStats`` → ``user_stats``; a keyword gets an underscore, so that it can be imported."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    return f"{words}_" if keyword.iskeyword(words) else words


def _unspeakable(commit: Commit, made: Sequence[Named]) -> Iterator[Problem]:
    for definition in made:
        for member in _members(definition):
            known = is_nested(member.type) or _scalar(element_type(member.type) or member.type) in _SCALARS
            if keyword.iskeyword(member.name):
                text = f"`{member.name}` is a keyword of Python; no program can name it"
                yield _problem(commit, definition, f".{member.name}", "keyword_name", text, "Give it another name.")
            if not known:
                text = f"`{member.name}` is of type {member.type}, which has no Python type"
                hint = f"Types with a stub: {', '.join(_SCALARS)} and list[...] of these."
                yield _problem(commit, definition, f".{member.name}", "untyped", text, hint)


def _collisions(commit: Commit, made: Sequence[Named]) -> Iterator[Problem]:
    files = Counter(_module(each.name) for each in made)
    names = Counter([*_CLIENTS, *(name for each in made for name in _exports(each, commit))])
    for definition in made:
        twice = [name for name in _exports(definition, commit) if names[name] > 1]
        if twice:
            text = f"its stub defines `{twice[0]}`, and so does another"
        elif files[_module(definition.name)] > 1:
            text = f"its stub is {_module(definition.name)}.pyi, and so is another's"
        else:
            continue
        yield _problem(commit, definition, "", "stub_collision", text, "Give one of them another name.")


def _problem(commit: Commit, definition: Named, member: str, code: str, text: str, hint: str) -> Problem:
    where = commit.locate(f"{definition.kind}:{definition.name}{member}")
    subject = f"{definition.name}{member}"
    return Problem(code, subject, text, hint, where.file if where else None, where.line if where else None)


def _members(definition: Named) -> tuple[FieldDef, ...] | tuple[FeatureDef, ...]:
    return definition.fields if isinstance(definition, DatasetDef) else definition.features


def _exports(definition: Named, commit: Commit) -> list[str]:
    """What a stub defines: the class, and what a read of it gives and takes."""
    name = definition.name
    if isinstance(definition, DatasetDef):
        return [name, f"{name}Row", f"{name}Result"] if _is_readable(definition, commit) else [name]
    results = [f"{name}{kind}" for kind in ("Row", "Result", "OfflineRow", "OfflineResult")]
    return [name, *([f"{name}Inputs"] if _requested(definition, commit) else []), *results]


def _is_readable(dataset: DatasetDef, commit: Commit) -> bool:
    return dataset.index or commit.producer(dataset.name) is not None


def _stub(definition: Named, commit: Commit) -> str:
    members = _members(definition)
    imports = _Imports([*(member.name for member in members), *_exports(definition, commit)])
    parts = [_class(definition, imports)]
    if isinstance(definition, FeaturesetDef):
        answer = _answer(definition, commit)
        parts += [_inputs(definition, commit, imports), *_result(definition.name, answer, imports)]
        parts += _result(f"{definition.name}Offline", _dated(answer), imports)
    elif _is_readable(definition, commit):
        parts += _result(definition.name, _looked_up(definition, commit), imports)
    return _file(imports, parts)


def _file(imports: _Imports, parts: Iterable[str]) -> str:
    body = "\n".join(part for part in parts if part)
    return f"{HEADER}{imports.lines()}\n{body}"


def _class(definition: Named, imports: _Imports) -> str:
    """The declared class as a program that imports it would see it."""
    lines = [f"class {definition.name}:"]
    if definition.metadata.description:
        lines.append(f"    {json.dumps(definition.metadata.description, ensure_ascii=False)}")
    if isinstance(definition, FeaturesetDef):
        features = definition.features
        lines += [f"    {each.name}: {imports.of_type(each.type, nullable=each.optional)}" for each in features]
        return "\n".join(lines) + "\n"
    field = imports.name("featurelib", "Field")
    types = {each.name: imports.of_type(each.type, nullable=each.optional) for each in definition.fields}
    lines += [f"    {name}: {field}[{of}]" for name, of in types.items()]
    parameters = ", ".join(["self", *(f"{name}: {of}" for name, of in types.items())])
    return "\n".join([*lines, f"    def __init__({parameters}) -> None: ..."]) + "\n"


def _inputs(featureset: FeaturesetDef, commit: Commit, imports: _Imports) -> str:
    """The values a caller sends: required ones, and those with a default."""
    requested = _requested(featureset, commit)
    if not requested:
        return ""
    optional = imports.typing("NotRequired")
    types = {}
    for name, feature in requested.items():
        of = imports.of_type(feature.type, nullable=feature.optional)
        types[name] = of if feature.default is None else f"{optional}[{of}]"
    return _typed_dict(f"{featureset.name}Inputs", types, imports)


def _result(name: str, values: Sequence[_Value], imports: _Imports) -> list[str]:
    """The row of an answer, and the answer itself."""
    types = {value.name: imports.of_type(_shown(value.type), nullable=value.nullable) for value in values}
    literal, listed = imports.typing("Literal"), imports.name("builtins", "list")
    columns = [
        f"def __getitem__(self, column: {literal}[{_quoted(column)}]) -> {listed}[{of}]: ..."
        for column, of in types.items()
    ]
    rows = imports.name("collections.abc", "Iterator")
    lines = [
        f"class {name}Result({imports.name('featurelib', 'ThymeResult')}):",
        f"    def to_dict(self) -> {listed}[{name}Row]: ...  # type: ignore[override]",
        f"    def __iter__(self) -> {rows}[{name}Row]: ...  # type: ignore[override]",
        *_overloaded(columns, imports),
    ]
    return [_typed_dict(f"{name}Row", types, imports), "\n".join(lines) + "\n"]


def _typed_dict(name: str, types: Mapping[str, str], imports: _Imports) -> str:
    # The functional form: a member may be named like a type, or hold a dot.
    members = "".join(f"    {_quoted(member)}: {of},\n" for member, of in types.items())
    return f"{name} = {imports.typing('TypedDict')}({_quoted(name)}, {{\n{members}}})\n"


def _overloaded(methods: Sequence[str], imports: _Imports) -> list[str]:
    """Methods of one name; a single one stands alone. All narrow what the base class takes."""
    ignored = "  # type: ignore[override, unused-ignore]"
    if len(methods) < 2:  # noqa: PLR2004  # an overload has variants
        return [f"    {method}{ignored}" for method in methods]
    mark = f"    @{imports.typing('overload')}"
    lines = [line for method in methods for line in (mark, f"    {method}")]
    return [f"{mark}{ignored}", *lines[1:]]


def _client(made: Sequence[Named], commit: Commit) -> str:
    """Clients that know what each read takes and gives, and refuse every other name."""
    exported = [name for each in made for name in _exports(each, commit)]
    imports = _Imports([*_CLIENTS, *exported])
    featuresets = [each for each in made if isinstance(each, FeaturesetDef)]
    datasets = [each for each in made if isinstance(each, DatasetDef) and _is_readable(each, commit)]
    reads = [
        [_query(each, commit, imports) for each in featuresets],
        [_query_batch(each, commit, imports) for each in featuresets],
        [_query_offline(each, imports) for each in featuresets],
        [_lookup(each, imports) for each in datasets],
    ]
    classes = "\n".join(_client_class(name, begin, reads, imports) for name, begin in _CLIENTS.items())
    return f"{HEADER}{imports.lines()}\n{''.join(_own_imports([*datasets, *featuresets], commit))}\n{classes}"


def _client_class(name: str, begin: str, reads: Sequence[Sequence[str]], imports: _Imports) -> str:
    methods = [line for read in reads for line in _overloaded([f"{begin} {method}" for method in read], imports)]
    base = imports.name("featurelib", name)
    return f"class {name}({base}):" + ("\n" + "\n".join(methods) if methods else " ...") + "\n"


def _own_imports(named: Sequence[Named], commit: Commit) -> Iterator[str]:
    for each in sorted(named, key=_by_name):
        names = [name for name in _exports(each, commit) if name not in _rows(each)]
        yield f"from .{_module(each.name)} import {', '.join(names)}\n"


def _rows(definition: Named) -> tuple[str, str]:
    return f"{definition.name}Row", f"{definition.name}OfflineRow"


def _query(featureset: FeaturesetDef, commit: Commit, imports: _Imports) -> str:
    entity = _id_type(featureset.entity.type if featureset.entity else "str", imports)
    inputs = _inputs_parameter(featureset, commit)
    return _method("query", featureset, f"entity_id: {entity}, {inputs}, *, {_how(imports)}", imports)


def _query_batch(featureset: FeaturesetDef, commit: Commit, imports: _Imports) -> str:
    entity = _id_type(featureset.entity.type if featureset.entity else "str", imports)
    ids = f"entity_ids: {imports.name('collections.abc', 'Sequence')}[{entity}]"
    return _method("query_batch", featureset, f"{ids}, {_inputs_parameter(featureset, commit)}", imports)


def _query_offline(featureset: FeaturesetDef, imports: _Imports) -> str:
    text, number, flag = (imports.name("builtins", name) for name in ("str", "int", "bool"))
    columns = f'*, entity_column: {text} = "entity_id", timestamp_column: {text} = "timestamp"'
    how = f"batch_size: {number} = 5000, knowledge: {text} | None = None, labels: {flag} = False"
    parameters = f"entities: {imports.typing('Any')}, {columns}, {how}"
    return _method("query_offline", featureset, parameters, imports, "Offline")


def _lookup(dataset: DatasetDef, imports: _Imports) -> str:
    entity = _id_type(dataset.key.type, imports)
    return _method("lookup", dataset, f"entity_id: {entity}, *, {_how(imports)}", imports)


def _how(imports: _Imports) -> str:
    """As of when a read of one entity is, and how."""
    text, flag = imports.name("builtins", "str"), imports.name("builtins", "bool")
    at = f"timestamp: {_instant(imports)} | None = None"
    return f"{at}, knowledge: {text} | None = None, explain: {flag} = False"


def _method(method: str, definition: Named, parameters: str, imports: _Imports, kind: str = "") -> str:
    name = definition.name
    target = f"{imports.name('builtins', 'type')}[{name}] | {imports.typing('Literal')}[{_quoted(name)}]"
    return f"{method}(self, {definition.kind}: {target}, {parameters}) -> {name}{kind}Result: ..."


def _inputs_parameter(featureset: FeaturesetDef, commit: Commit) -> str:
    requested = _requested(featureset, commit)
    if not requested:
        return "inputs: None = None"
    if any(feature.default is None for feature in requested.values()):
        return f"inputs: {featureset.name}Inputs"
    return f"inputs: {featureset.name}Inputs | None = None"


def _id_type(type_name: str, imports: _Imports) -> str:
    text = imports.name("builtins", "str")
    return f"{imports.of_type(type_name)} | {text}" if _scalar(type_name) in _SENT_AS_TEXT else text


def _instant(imports: _Imports) -> str:
    return " | ".join(imports.of_type(name) for name in ("str", "float", "datetime"))


def _package(made: Sequence[Named], commit: Commit) -> str:
    exports = {_module(each.name): _exports(each, commit) for each in made} | {"_client": list(_CLIENTS)}
    lines = [
        f"from .{module} import {', '.join(f'{name} as {name}' for name in names)}\n"
        for module, names in sorted(exports.items())
    ]
    listed = sorted(name for names in exports.values() for name in names)
    return f"{HEADER}{''.join(lines)}\n__all__ = [{', '.join(_quoted(name) for name in listed)}]\n"


def _answer(featureset: FeaturesetDef, commit: Commit) -> list[_Value]:
    """Columns of a featureset's answer: the id as text, then its features."""
    own = [_Value(f.name, f.type, _feature_may_be_null(f, commit)) for f in featureset.features]
    return [_Value(_ENTITY, "str", nullable=False), *(value for value in own if value.name != _ENTITY)]


def _dated(answer: Sequence[_Value]) -> list[_Value]:
    """An answer whose rows each name their instant."""
    entity, *features = answer
    return [entity, _Value(_INSTANT, "str", nullable=False), *(value for value in features if value.name != _INSTANT)]


def _feature_may_be_null(feature: FeatureDef, commit: Commit) -> bool:
    if feature.optional or feature.lookup is None:
        return feature.optional
    if feature.default is None:
        return True  # an unknown entity has nothing to look up
    dataset = commit.dataset(feature.lookup.dataset)
    column = dataset.field(feature.lookup.field) if dataset else None
    return column is None or _column(column, commit.producer(feature.lookup.dataset)).nullable


def _looked_up(dataset: DatasetDef, commit: Commit) -> list[_Value]:
    """Columns of a dataset's row: the id as text, the key, then what its pipeline, or its index, keeps."""
    producer = commit.producer(dataset.name)
    kept = {dataset.key.name, *_outputs(producer)} if _outputs(producer) else {each.name for each in dataset.fields}
    columns = [_column(each, producer) for each in dataset.fields if each.name in kept]
    return [_Value(_ENTITY, "str", nullable=False), *(value for value in columns if value.name != _ENTITY)]


def _outputs(producer: PipelineDef | None) -> dict[str, Any]:
    """Aggregate by output column; empty for a table of newest or first rows."""
    if producer is None or not isinstance(producer.last_step, AggregateStep):
        return {}
    return {named.output: named.aggregate for named in producer.last_step.aggregates}


def _column(column: FieldDef, producer: PipelineDef | None) -> _Value:
    """A column as it is served: what an empty window gives may be null whatever the column declares."""
    aggregate = _outputs(producer).get(column.name)
    if aggregate is None:
        return _Value(column.name, column.type, column.optional)
    # A list may stand behind a column that declares its element's type.
    of = _ANY if aggregate.type in _LISTS and element_type(column.type) is None else column.type
    return _Value(column.name, of, column.optional or _empty_is_null(aggregate, column.type))


def _empty_is_null(aggregate: Any, type_name: str) -> bool:
    if aggregate.default is not None:
        return aggregate.default.value is None
    has_zero = type_name in {"int", "float"}
    return aggregate.type in _NULL_WHEN_EMPTY or (aggregate.type in _EXTREMES and not has_zero)


def _requested(featureset: FeaturesetDef, commit: Commit) -> dict[str, FeatureDef]:
    """What a caller sends, by the name it is sent under: of two of one name, the second under its featureset's."""
    reached: dict[tuple[str, str], FeatureDef] = {}
    for feature in featureset.features:
        reached[featureset.name, feature.name] = feature
    for feature in featureset.features:
        _reach(featureset, feature.name, commit, reached, set())
    found: dict[str, FeatureDef] = {}
    for (owner, name), feature in reached.items():
        if feature.request:
            found[f"{owner}.{name}" if name in found else name] = feature
    return found


def _reach(
    owner: FeaturesetDef,
    name: str,
    commit: Commit,
    reached: dict[tuple[str, str], FeatureDef],
    visited: set[tuple[str, str]],
) -> None:
    """Add a feature and, through its extractor's inputs, those it is computed from."""
    feature = owner.feature(name)
    if feature is None or (owner.name, name) in visited:
        return
    visited.add((owner.name, name))
    reached.setdefault((owner.name, name), feature)
    producer = next((each for each in owner.extractors if name in each.outputs), None)
    for given in producer.inputs if producer else ():
        other, _, bare = given.rpartition(".")
        source = commit.featureset(other) if other else owner
        if source is not None:
            _reach(source, bare, commit, reached, visited)


def _shown(type_name: str) -> str:
    element = element_type(type_name)
    if element is not None:
        return f"list[{_shown(element)}]"
    value = value_type(type_name)
    if value is not None:
        return f"dict[str, {_shown(value)}]"
    return _SHOWN.get(_scalar(type_name), type_name)


def _quoted(text: str) -> str:
    return json.dumps(text)
