"""Rules for pipelines: what they read, and every step with the columns it finds and leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pydantic import BaseModel

from featurelib.declarations import did_you_mean
from featurelib.definitions import (
    INDEX_SUFFIX,
    AggregateStep,
    AssignStep,
    DatasetDef,
    DedupStep,
    Definitions,
    DropStep,
    ExplodeStep,
    FilterCodeStep,
    FilterStep,
    FirstStep,
    JoinStep,
    LatestStep,
    PipelineDef,
    PyCode,
    RenameStep,
    SelectStep,
    Step,
    TransformStep,
    UnionStep,
)
from featurelib.inference import UNKNOWN, Columns, fits, unknown_column
from featurelib.types import element_type
from featurelib.validation.aggregates import (
    check_intermediate,
    check_served,
    check_stable_input,
    emitted_columns,
    group_keys,
    served_key,
)
from featurelib.validation.code import code_mistakes
from featurelib.validation.findings import Finding
from featurelib.validation.scope import Scope, dataset_columns

_Seen = Callable[[str, dict[str, str]], None]


def check_pipeline(pipeline: PipelineDef, world: Definitions, seen: _Seen | None = None) -> list[Finding]:
    """Every mistake of a pipeline.

    Args:
        pipeline: the pipeline.
        world: everything it may refer to.
        seen: told of each step's place and the columns before it.
    """
    found = list(_inputs(pipeline, world))
    left = world.dataset(pipeline.input_datasets[0]) if pipeline.input_datasets else None
    names = (*pipeline.input_datasets, pipeline.output_dataset)
    if left is None or any(world.dataset(name) is None for name in names) or not _ends(pipeline):
        return [*found, *_shape(pipeline)]
    scope = _scope(pipeline, world, left)
    scope.found = found
    check_stable_input(scope, left.name)
    _walk(scope, pipeline.steps, seen)
    _served(scope, pipeline.steps[-1])
    return found


def _scope(pipeline: PipelineDef, world: Definitions, left: DatasetDef) -> Scope:
    clock = next((column.name for column in left.fields if column.timestamp), "")
    return Scope(pipeline, world, left.name, dataset_columns(left, world), clock)


def _inputs(pipeline: PipelineDef, world: Definitions) -> Iterator[Finding]:
    key, subject = f"pipeline:{pipeline.name}", f"{pipeline.output_dataset}.{pipeline.name}"
    if not pipeline.input_datasets:
        text = "the pipeline names no input"
        yield Finding("missing_inputs", key, subject, text, "Write @inputs(SomeDataset).")
    for name in (*pipeline.input_datasets, pipeline.output_dataset):
        if world.dataset(name) is None:
            hint = did_you_mean(name, [d.name for d in world.datasets], "The commit")
            yield Finding("unknown_dataset", key, subject, f"there is no dataset `{name}`", hint, name)
    read = set(_read(pipeline.steps))
    for name in pipeline.input_datasets[1:]:
        if name not in read:
            text = f"the input `{name}` is never used"
            yield Finding("unused_input", key, subject, text, "Join or unite it, or leave it out.", name)
    if pipeline.name.endswith(INDEX_SUFFIX):
        text = f"`{pipeline.name}`: names that end in _index belong to the indexes of datasets"
        yield Finding("reserved_name", key, subject, text, "Rename the pipeline.")


def _read(steps: Iterable[Step]) -> Iterator[str]:
    """The datasets that steps read beside the left one."""
    for step in steps:
        if isinstance(step, JoinStep):
            yield step.right
        elif isinstance(step, UnionStep):
            yield step.dataset
            yield from _read(step.steps)


def _ends(pipeline: PipelineDef) -> bool:
    return bool(pipeline.steps) and isinstance(pipeline.steps[-1], AggregateStep | LatestStep | FirstStep)


def _shape(pipeline: PipelineDef) -> Iterator[Finding]:
    if not _ends(pipeline):
        key, subject = f"pipeline:{pipeline.name}", f"{pipeline.output_dataset}.{pipeline.name}"
        text = "the pipeline neither aggregates nor keeps a row per key"
        hint = "End it with .groupby(…).aggregate(…), .latest() or .first()."
        yield Finding("no_aggregate", key, subject, text, hint)


def _walk(scope: Scope, steps: Iterable[Step], seen: _Seen | None, prefix: str = "", *, whole: bool = True) -> None:
    """Check steps in order; of a whole pipeline the last one is served, and checked apart."""
    listed = tuple(steps)
    for index, step in enumerate(listed):
        scope.place = f"{prefix}{index}"
        if seen is not None:
            seen(scope.place, scope.types)
        if isinstance(step, UnionStep):
            _union(scope, step, seen)
        elif not whole or index < len(listed) - 1:
            _RULES[type(step)](scope, step)


def _filter(scope: Scope, step: FilterStep) -> None:
    scope.condition(step.predicate, "filter")


def _filter_code(scope: Scope, step: FilterCodeStep) -> None:
    _code(scope, step.code, "filter")


def _transform(scope: Scope, step: TransformStep) -> None:
    _code(scope, step.code, "transform")
    for name, count in Counter(name for name, _ in step.columns).items():
        if count > 1:
            scope.add("duplicate_column", f"transform: `{name}` is given {count} times", "Name it once.")
    _add_columns(scope, dict(step.columns), "transform")


def _assign(scope: Scope, step: AssignStep) -> None:
    found = scope.expression(step.value, f"assign({step.column})")
    _add_columns(scope, {step.column: found}, "assign")


def _rename(scope: Scope, step: RenameStep) -> None:
    names = dict(step.columns)
    for old in names:
        scope.column(old, "rename")
    kept = [name for name in scope.types if name not in names]
    for name, count in Counter([*kept, *names.values()]).items():
        if count > 1:
            text = f"rename: {count} columns would be called `{name}`"
            scope.add("duplicate_column", text, "Choose another name, or drop the other column first.")
    renamed = {names.get(name, name): found for name, found in scope.types.items()}
    missing = {new: UNKNOWN for old, new in names.items() if old not in scope.types}
    scope.types = {**renamed, **missing}
    _check_names(scope, names.values(), "rename")


def _select(scope: Scope, step: SelectStep) -> None:
    for name, count in Counter(step.columns).items():
        if count > 1:
            scope.add("duplicate_column", f"select: `{name}` is named {count} times", "Name it once.")
    scope.types = {name: scope.column(name, "select") for name in step.columns}


def _drop(scope: Scope, step: DropStep) -> None:
    for name in step.columns:
        scope.column(name, "drop")
    scope.types = {name: found for name, found in scope.types.items() if name not in step.columns}


def _explode(scope: Scope, step: ExplodeStep) -> None:
    found = scope.column(step.column, "explode")
    element = element_type(found)
    if element is None and found != UNKNOWN:
        text = f"explode takes a list column; `{step.column}` is {found}"
        scope.add("type_mismatch", text, f"Declare it as list[{found}], or leave explode out.")
    scope.types = {**scope.types, step.column: element or UNKNOWN}


def _dedup(scope: Scope, step: DedupStep) -> None:
    for name in step.by:
        scope.column(name, "dedup")


def _join(scope: Scope, step: JoinStep) -> None:
    right, what = scope.dataset(step.right), f"join({step.right})"
    if right is None:
        return
    check_stable_input(scope, right.name)
    if [join.right for join in scope.pipeline.joins].count(step.right) > 1:
        text = f"`{step.right}` is joined twice"
        scope.add("duplicate_join", text, "Bring all its columns over at once.")
    _join_key(scope, step, right, what)
    theirs = Columns(right.name, dataset_columns(right, scope.world))
    brought = {}
    for name in step.fields:
        if name not in theirs.types:
            scope.add_mistake(unknown_column(name, theirs), what)
        elif name in scope.types:
            text = f"{what}: the left side has a column `{name}` already"
            scope.add("duplicate_column", text, "Name the columns to bring over with fields=[…], or rename it first.")
        brought[name] = theirs.types.get(name, UNKNOWN)
    scope.types = {**scope.types, **brought}


def _join_key(scope: Scope, step: JoinStep, right: DatasetDef, what: str) -> None:
    key = next((column for column in right.fields if column.key), None)
    mine = scope.column(step.on, f"{what} on")
    if key is not None and mine not in {key.type, UNKNOWN}:
        text = f"{what}: `{step.on}` is {mine}, the key `{right.name}.{key.name}` is {key.type}"
        scope.add("key_type_mismatch", text, "Join columns of one type.")


def _union(scope: Scope, step: UnionStep, seen: _Seen | None) -> None:
    other = scope.dataset(step.dataset)
    if other is None:
        return
    place = scope.place
    check_stable_input(scope, other.name)
    theirs = _scope(scope.pipeline, scope.world, other)
    theirs.place, theirs.found = place, scope.found
    _walk(theirs, step.steps, seen, f"{place}.", whole=False)
    scope.place = place
    for text, hint in _differences(scope, theirs):
        scope.add("union_mismatch", f"union({step.dataset}): {text}", hint)
    scope.types = {**{name: UNKNOWN for name in theirs.types if name not in scope.types}, **scope.types}


def _differences(mine: Scope, theirs: Scope) -> Iterator[tuple[str, str]]:
    for here, there, side in ((mine, theirs, "left"), (theirs, mine, "right")):
        alone = [name for name in here.types if name not in there.types]
        if alone:
            near = did_you_mean(alone[0], [name for name in there.types if name not in here.types], there.of)
            shown = ", ".join(f"`{name}`" for name in alone)
            yield f"only the {side} side has {shown}", f"{near} Rename, assign or drop what differs."
    for name, found in theirs.types.items():
        wanted = mine.types.get(name, found)
        if found != wanted and UNKNOWN not in {found, wanted}:
            yield f"`{name}` is {wanted} on the left and {found} on the right", "Give both one type."


def _latest(scope: Scope, step: LatestStep | FirstStep) -> None:
    group_keys(scope, step.keys, f"groupby(…).{step.op}")


def _aggregate(scope: Scope, step: AggregateStep) -> None:
    group_keys(scope, step.keys, "groupby")
    check_intermediate(scope, step)
    columns = emitted_columns(scope, step)
    scope.of = f"the aggregate by {', '.join(step.keys)}" if step.keys else "the aggregate"
    scope.types = columns


def _served(scope: Scope, step: Step) -> None:
    """The last step against the output dataset."""
    output = scope.world.dataset(scope.pipeline.output_dataset)
    assert output is not None  # check_pipeline asked
    assert isinstance(step, AggregateStep | LatestStep | FirstStep)  # _ends() was true
    types = group_keys(scope, step.keys, "groupby")
    served_key(scope, step.keys, types, output)
    if isinstance(step, AggregateStep):
        check_served(scope, step, output)
        return
    for column in output.fields:
        if column.key or column.timestamp:
            continue
        if column.name not in scope.types:
            hint = did_you_mean(column.name, list(scope.types), scope.of)
            text = f"the output column `{column.name}` is not a column of the rows that {step.op}() keeps"
            scope.add("unfilled_field", text, hint, f"{output.name}.{column.name}")
        elif not fits(scope.types[column.name], column.type):
            text = f"`{column.name}` is declared {column.type}; the rows hold {scope.types[column.name]}"
            scope.add("output_type_mismatch", text, f"Declare it as {scope.types[column.name]}.")


def _add_columns(scope: Scope, columns: dict[str, str], what: str) -> None:
    _check_names(scope, columns, what)
    scope.types = {**scope.types, **columns}


def _check_names(scope: Scope, names: Iterable[str], what: str) -> None:
    for name in names:
        if name.startswith("__"):
            text = f"{what}: `{name}`: names with two leading underscores belong to the platform"
            scope.add("reserved_name", text, "Choose another name.")


def _code(scope: Scope, code: PyCode, what: str) -> None:
    about = f"{scope.pipeline.output_dataset}.{scope.pipeline.name}.{code.entry_point}"
    for text in code_mistakes(code):
        scope.add("invalid_code", f"{what}: {text}", "Commit it from the module that defines it.", about)


_RULES: dict[type[BaseModel], Callable[[Scope, Any], None]] = {
    FilterStep: _filter,
    FilterCodeStep: _filter_code,
    TransformStep: _transform,
    AssignStep: _assign,
    RenameStep: _rename,
    SelectStep: _select,
    DropStep: _drop,
    ExplodeStep: _explode,
    DedupStep: _dedup,
    JoinStep: _join,
    LatestStep: _latest,
    FirstStep: _latest,
    AggregateStep: _aggregate,
}
