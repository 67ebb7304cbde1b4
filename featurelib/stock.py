"""The JSON body the stock Thyme SDK posts, translated once into our own records (contract 7.1).

What that SDK can say and this platform does not offer becomes a problem with its name, as does anything
malformed; nothing is dropped in silence. Members this page does not know are ignored, as the contract asks.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from featurelib.aggregates import Aggregate
from featurelib.annotations import SUPPORTED, SUPPORTED_OF_FEATURES
from featurelib.clock import parse_duration, parse_instant
from featurelib.declarations import describe_invalid
from featurelib.definitions import (
    AggregateStep,
    AssignStep,
    BackfillDef,
    Commit,
    ConnectorDef,
    DatasetDef,
    Definitions,
    ExpectationDef,
    ExtractorDef,
    FeatureDef,
    FeaturesetDef,
    FieldDef,
    FilterCodeStep,
    FilterStep,
    JoinStep,
    LookupDef,
    NamedAggregate,
    PipelineDef,
    PyCode,
    SourceDef,
    Step,
    TransformStep,
)
from featurelib.errors import DefinitionError, InvalidRequest, InvalidTimestamp, Problem
from featurelib.expr import (
    ArithNode,
    ColumnNode,
    CompareNode,
    FillNullNode,
    IsNullNode,
    JsonExtractNode,
    LiteralNode,
    LogicNode,
)
from featurelib.metadata import Metadata
from featurelib.sources import stored_type
from featurelib.types import SCALARS, element_type, feature_type
from featurelib.validation import completed, merged
from featurelib.windows import parse_window

_R = TypeVar("_R", bound=BaseModel)
_TYPING = re.compile(r"^typing\.")
_DICT = re.compile(r"\b(?:Dict|Mapping)\[")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NOTHING = Definitions()
# An expression takes three levels an operator. Python's own limit, 1,000 calls, is not ours to rely on.
_DEEPEST = 800
_COMPARE = {1: "eq", 2: "ne", 3: "lt", 4: "le", 5: "gt", 6: "ge"}
_ARITH = {1: "add", 2: "sub", 3: "mul", 4: "div"}
_LOGIC = {1: "and", 2: "or", 3: "not"}
_OPTIONS: dict[str, tuple[str, ...]] = {
    "count": (),
    "sum": (),
    "avg": (),
    "min": (),
    "max": (),
    "approx_percentile": ("precision", "pct"),
    "last": ("dropnull",),
    "last_k": ("k", "dedup", "dropnull"),
}
"""The stock aggregates, and what each says beside its column, window and predicate."""
_KEPT_ROWS = """

def {name}(frame):
    return frame[{entry_point}(frame.drop("__thyme_row_id", strict=False))]
"""
"""The stock adapter of a filter numbers the rows itself and gives the numbers it keeps; ours gives the rows."""
_AGGREGATE: TypeAdapter[Aggregate] = TypeAdapter(Aggregate)


class _UnofferedError(ValueError):
    """Something the stock SDK can say and this platform cannot do."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(code, message, hint)
        self.code, self.message, self.hint = code, message, hint


def read_commit(body: bytes, context: Definitions = _NOTHING) -> Commit:
    """The commit in a JSON body: our own form (it says ``format``), or the stock SDK's.

    Args:
        body: the request's body.
        context: what is committed already; a stock join may name one of its datasets.

    Raises:
        InvalidRequest: the body is not a JSON object.
        DefinitionError: it is malformed or says something that is not offered; every problem is listed.
    """
    try:
        tree = json.loads(body)
    except ValueError as error:
        text = f"the body is not JSON: {error}"
        raise InvalidRequest(text) from None
    if not isinstance(tree, dict):
        text = "the body is not a JSON object with datasets, pipelines, featuresets and sources"
        raise InvalidRequest(text)
    check_values(tree)
    if "format" not in tree:
        return from_stock(tree, context)
    try:
        return Commit.model_validate_json(body)
    except ValidationError as error:
        raise DefinitionError(
            [Problem("malformed_commit", "commit", text) for text in describe_invalid(error)]
        ) from None
    except TypeError as error:  # aggregates and windows are written by people too, and say so in their own words
        raise DefinitionError([Problem("malformed_commit", "commit", str(error))]) from None


def check_values(tree: Any, place: str = "body", depth: int = 0) -> None:
    """Raise at what has no form to store it in: a number that is infinite or none at all, half a surrogate pair.

    Nor may it be nested more deeply than whatever reads it later can follow.

    Raises:
        InvalidRequest: names its place.
    """
    if depth > _DEEPEST:
        raise InvalidRequest(f"{place[:60]}…: nested more than {_DEEPEST} levels deep")
    if isinstance(tree, float) and not math.isfinite(tree):
        raise InvalidRequest(f"{place}: {tree} is not a finite number")
    if isinstance(tree, str) and _SURROGATE.search(tree):
        raise InvalidRequest(f"{place}: holds half a surrogate pair, which is no character")
    if isinstance(tree, dict):
        for name, value in tree.items():
            check_values(name, place)
            check_values(value, f"{place}.{name}", depth + 1)
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            check_values(value, f"{place}[{number}]", depth + 1)


def from_stock(tree: dict[str, Any], context: Definitions = _NOTHING) -> Commit:
    """The stock SDK's JSON body as a commit.

    Raises:
        DefinitionError: with every problem found.
    """
    reader = _Reader(context)
    datasets = reader.each(tree, "datasets", "name", _dataset)
    known = Definitions(datasets=(*context.datasets, *datasets))
    pipelines = reader.each(tree, "pipelines", "name", lambda entry: reader.pipeline(entry, known))
    world = merged(context, Definitions(datasets=datasets, pipelines=pipelines))
    commit = Commit(
        datasets=datasets,
        pipelines=tuple(completed(pipeline, world) for pipeline in pipelines),
        featuresets=reader.each(tree, "featuresets", "name", _featureset),
        sources=reader.each(tree, "sources", "dataset", _source),
        message=_message(tree),
        allow_retention_narrowing=tree.get("allow_retention_narrowing") is True,
        backfill=tree.get("backfill") is not False,
    )
    if reader.problems:
        raise DefinitionError(reader.problems)
    return commit


def _message(tree: dict[str, Any]) -> str:
    given = tree.get("message")
    return given if isinstance(given, str) else ""


class _Reader:
    """Translates entry by entry; a mistake in one does not hide those of the next."""

    def __init__(self, context: Definitions) -> None:
        self.context = context
        self.problems: list[Problem] = []

    def each(self, tree: dict[str, Any], kind: str, named_by: str, read: Callable[[Any], _R]) -> tuple[_R, ...]:
        """Every entry of a list that can be read."""
        entries = tree.get(kind)
        if entries is None:
            return ()
        if not isinstance(entries, list):
            self.problems.append(Problem("malformed_commit", kind, f"`{kind}` is not a list"))
            return ()
        made = (self.one(_subject(entry, named_by, kind), partial(read, entry)) for entry in entries)
        return tuple(each for each in made if each is not None)

    def one(self, subject: str, read: Callable[[], _R]) -> _R | None:
        """What ``read`` gives, or ``None`` and a problem."""
        try:
            return read()
        except _UnofferedError as error:
            self.problems.append(Problem(error.code, subject, error.message, error.hint))
        except ValidationError as error:
            self.problems += [Problem("invalid_value", subject, text) for text in describe_invalid(error)]
        except InvalidTimestamp as error:
            self.problems.append(Problem("invalid_value", subject, str(error)))
        except (KeyError, TypeError, AttributeError, IndexError, StopIteration, SyntaxError) as error:
            text = f"the entry is malformed: {type(error).__name__} {error}"
            self.problems.append(Problem("malformed_commit", subject, text))
        except ValueError as error:
            self.problems.append(Problem("invalid_value", subject, str(error)))
        return None

    def pipeline(self, entry: dict[str, Any], known: Definitions) -> PipelineDef:
        """A pipeline; every operator that is not offered is named, not only the first."""
        name = f"{entry['output_dataset']}.{entry['name']}"
        steps: list[Step] = []
        for operator in entry["operators"]:
            ((kind, body),) = operator.items()
            if kind == "aggregate":
                steps.append(self._aggregate(body, name))
            else:
                step = self.one(name, partial(_step, kind, body, known))
                steps += [step] if step is not None else []
        joined = (step.right for step in steps if isinstance(step, JoinStep))
        return PipelineDef(
            name=entry["name"],
            version=entry.get("version", 1),
            input_datasets=tuple(dict.fromkeys((*entry["input_datasets"], *joined))),
            output_dataset=entry["output_dataset"],
            steps=tuple(steps),
            backfill=_backfill(entry.get("backfill")),
        )

    def _aggregate(self, body: dict[str, Any], name: str) -> AggregateStep:
        named = (self.one(name, partial(_named, spec)) for spec in body["specs"])
        return AggregateStep(keys=tuple(body["keys"]), aggregates=tuple(each for each in named if each is not None))


def _subject(entry: Any, named_by: str, kind: str) -> str:
    return str(entry.get(named_by, kind)) if isinstance(entry, dict) else kind


def _dataset(entry: dict[str, Any]) -> DatasetDef:
    retention = entry.get("retention")
    return DatasetDef(
        name=entry["name"],
        version=entry.get("version", 1),
        index=entry.get("index", False),
        fields=tuple(
            FieldDef(
                name=column["name"],
                type=_type(column["type"], column["name"]),
                key=column.get("key", False),
                timestamp=column.get("timestamp", False),
                optional=column.get("optional", False),
            )
            for column in entry["fields"]
        ),
        retention_us=parse_duration(retention) if retention else None,
        expectations=tuple(ExpectationDef.model_validate(rule) for rule in entry.get("expectations") or ()),
        metadata=_metadata(entry),
    )


def _type(name: str, column: str) -> str:
    plain = _TYPING.sub("", name).replace("List[", "list[")
    element = element_type(plain)
    if (plain if element is None else element) not in SCALARS:
        text = f"`{column}` is {name}, which is not a column type"
        raise _UnofferedError("unknown_type", text, SUPPORTED)
    return plain


def _feature_type(name: str, feature: str) -> str:
    plain = _DICT.sub("dict[", name.replace("typing.", "").replace("List[", "list["))
    try:
        return feature_type(plain)
    except ValueError as error:
        raise _UnofferedError("unknown_type", f"`{feature}` is {name}: {error}", SUPPORTED_OF_FEATURES) from None


def _metadata(entry: dict[str, Any]) -> Metadata:
    given = entry.get("metadata") or {}
    return Metadata(**{name: given[name] for name in Metadata.model_fields if given.get(name) is not None})


def _step(kind: str, body: dict[str, Any], known: Definitions) -> Step:
    match kind:
        case "filter" if "predicate" in body:
            return FilterStep(predicate=_node(body["predicate"]))
        case "assign":
            return AssignStep(column=body["column"], value=_node(body["value"]))
        case "temporal_join":
            return _join(body, known)
        case "filter":
            return FilterCodeStep(code=_kept_rows(_code(body["pycode"])))
        case "transform":
            columns = body.get("output_columns") or {}
            return TransformStep(
                code=_code(body["pycode"]), columns=tuple((name, _type(kind, name)) for name, kind in columns.items())
            )
    # Its first words make the stock command line send a protobuf commit again as JSON, which may say more of it.
    text = f"Unsupported operator: `{kind}` is not offered"
    raise _UnofferedError("unsupported_operator", text)


def _code(code: dict[str, Any]) -> PyCode:
    """A user function and the stock SDK's adapter around it, which is what is called."""
    return PyCode(entry_point=code["entry_point"], source=_without_decorators(code))


def _kept_rows(code: PyCode) -> PyCode:
    name = f"{code.entry_point}_kept"
    adapter = _KEPT_ROWS.format(name=name, entry_point=code.entry_point)
    return PyCode(entry_point=name, source=code.source + adapter)


def _join(body: dict[str, Any], known: Definitions) -> JoinStep:
    chosen = tuple(body.get("select_fields") or ())
    if not chosen:
        right = known.dataset(body["right_dataset"])
        columns = right.fields if right else ()
        chosen = tuple(column.name for column in columns if not column.key and not column.timestamp)
    return JoinStep(right=body["right_dataset"], on=body["left_key_field"], fields=chosen)


def _named(spec: dict[str, Any]) -> NamedAggregate:
    kind, output = spec["type"], spec["output_field"]
    if kind not in _OPTIONS:
        text = f"`{output}` uses {kind}, which this platform does not offer"
        raise _UnofferedError("unsupported_aggregate", text, f"Offered are {', '.join(_OPTIONS)}.")
    predicate = spec.get("predicate")
    aggregate = _AGGREGATE.validate_python(
        {
            "type": kind,
            "of": spec.get("field") or "",
            "window": parse_window(spec.get("window") or "").model_dump(),
            "where": _node(predicate).model_dump() if predicate else None,
            **{name: spec[name] for name in _OPTIONS[kind] if spec.get(name) is not None},
        }
    )
    return NamedAggregate(output=output, aggregate=aggregate)


def _node(value: dict[str, Any]) -> Any:
    """An expression or predicate: one variant name over its content, under ``kind``."""
    ((variant, content),) = value["kind"].items()
    if variant not in _NODES:
        text = f"the expression `{variant}` is not offered"
        raise _UnofferedError("unsupported_expression", text)
    return _NODES[variant](content)


def _binary(node: Callable[..., BaseModel], operators: dict[int, str]) -> Callable[[Any], BaseModel]:
    return lambda body: node(op=operators[body["op"]], left=_node(body["lhs"]), right=_node(body["rhs"]))


def _logic(body: dict[str, Any]) -> LogicNode:
    operands = tuple(_node(operand) for operand in body["operands"])
    kind: Any = _LOGIC[body["kind"]]
    # NOT takes its first operand, as the stock engine does.
    return LogicNode(op=kind, operands=operands[:1] if kind == "not" else operands)


_NODES: dict[str, Callable[[Any], BaseModel]] = {
    "ColumnRef": lambda name: ColumnNode(name=name),
    "Literal": lambda body: LiteralNode(value=_literal(body)),
    "Arith": _binary(ArithNode, _ARITH),
    "Compare": _binary(CompareNode, _COMPARE),
    "Logic": _logic,
    "IsNull": lambda body: IsNullNode(operand=ColumnNode(name=body["column"])),
    "FillNull": lambda body: FillNullNode(operand=_node(body["value"]), default=_literal(body["default"])),
    "JsonExtract": lambda body: JsonExtractNode(operand=_node(body["value"]), path=body["path"]),
}


def _literal(value: dict[str, Any]) -> Any:
    ((variant, content),) = value["kind"].items()
    return float(content) if variant == "FloatValue" else content


def _backfill(entry: dict[str, Any] | None) -> BackfillDef:
    if not entry:
        return BackfillDef()
    since = entry.get("since")
    return BackfillDef(enabled=entry.get("enabled", True), since_us=parse_instant(since, "since") if since else None)


def _featureset(entry: dict[str, Any]) -> FeaturesetDef:
    lookups = {made["outputs"][0]: made["lookup_info"] for made in entry["extractors"] if made.get("kind") == "LOOKUP"}
    extractors = (_extractor(made) for made in entry["extractors"] if made.get("kind") != "LOOKUP")
    return FeaturesetDef(
        name=entry["name"],
        features=tuple(_feature(feature, lookups.get(feature["name"])) for feature in entry["features"]),
        extractors=tuple(sorted(extractors, key=lambda made: made.name)),
        metadata=_metadata(entry),
    )


def _feature(entry: dict[str, Any], lookup: dict[str, Any] | None) -> FeatureDef:
    return FeatureDef(
        name=entry["name"],
        type=_feature_type(entry["dtype"], entry["name"]),
        request=entry.get("request") or False,
        lookup=LookupDef(dataset=lookup["dataset_name"], field=lookup["field_name"]) if lookup else None,
        default=lookup.get("default") if lookup else entry.get("default"),
    )


def _extractor(entry: dict[str, Any]) -> ExtractorDef:
    code = entry["pycode"]
    if code is None:
        text = f"the extractor `{entry['name']}` has no code"
        raise _UnofferedError("malformed_commit", text)
    return ExtractorDef(
        name=entry["name"],
        version=entry.get("version", 1),
        inputs=tuple(entry["inputs"]),
        outputs=tuple(entry["outputs"]),
        deps=tuple(entry.get("deps") or ()),
        code=_code(code),
    )


def _without_decorators(code: dict[str, Any]) -> str:
    """The function's text as our own SDK captures it: imports, then everything but its decorators."""
    text: str = code["source_code"]
    tree = ast.parse(text)
    dropped = set(_decorator_lines(tree.body, code["entry_point"]))
    kept = [line for number, line in enumerate(text.splitlines(keepends=True), 1) if number not in dropped]
    imports: str = code.get("imports") or ""
    own = "".join(kept).rstrip() + "\n"
    return f"{imports.rstrip()}\n\n{own}" if imports.strip() else own


def _decorator_lines(body: Iterable[ast.stmt], entry_point: str) -> Iterable[int]:
    for node in body:
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name == entry_point
            and node.decorator_list
        ):
            yield from range(node.decorator_list[0].lineno, node.lineno)


def _source(entry: dict[str, Any]) -> SourceDef:
    every, lateness = entry.get("every"), entry.get("max_lateness")
    return SourceDef(
        dataset=entry["dataset"],
        connector=ConnectorDef(type=stored_type(entry["connector_type"]), config=entry["config"]),
        cursor=entry.get("cursor") or "",
        every_us=parse_duration(every) if every else None,
        max_lateness_us=parse_duration(lateness) if lateness else None,
        cdc=entry.get("cdc") or "append",
        metadata=_metadata(entry),
    )
