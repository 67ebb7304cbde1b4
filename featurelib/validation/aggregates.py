"""Rules for group keys and aggregates, served ones and those that feed other steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from featurelib.aggregates import INPUT_TYPES, Aggregate, Count, ExpDecaySum, LastK, accepts, result_type
from featurelib.declarations import did_you_mean
from featurelib.definitions import AggregateStep, DatasetDef, NamedAggregate, PipelineDef
from featurelib.inference import UNKNOWN, fits
from featurelib.types import Scalar, element_type
from featurelib.validation.scope import Scope
from featurelib.validation.types import KEY_TYPES, holds
from featurelib.windows import AnyWindow, Continuous, Hopping, Lifetime, Tumbling


def group_keys(scope: Scope, keys: tuple[str, ...], what: str) -> list[str]:
    """The types of group keys, after what is wrong with them."""
    if not keys:
        scope.add("no_group_key", f"{what} has no group key", "Write .groupby(…) before it.")
    for name, count in Counter(keys).items():
        if count > 1:
            scope.add("duplicate_column", f"{what}: `{name}` is named {count} times", "Name it once.")
    types = [scope.column(name, what) for name in keys]
    for name, found in zip(keys, types, strict=True):
        if found not in KEY_TYPES | {UNKNOWN}:
            hint = f"A key is one of {', '.join(sorted(KEY_TYPES))}."
            scope.add("key_type", f"{what}: `{name}` is {found}", hint)
    return types


def served_key(scope: Scope, keys: tuple[str, ...], types: list[str], output: DatasetDef) -> None:
    """Group keys against the key of the output dataset."""
    key = next((column for column in output.fields if column.key), None)
    if key is None or not keys:
        return
    if len(keys) > 1:
        if key.type != "str":
            text = f"several group keys make one text; the key `{output.name}.{key.name}` is {key.type}"
            scope.add("key_type_mismatch", text, "Declare it as str.")
    elif keys[0] != key.name:
        text = f"groups are by `{keys[0]}`, the key of {output.name} is `{key.name}`"
        scope.add("group_key_mismatch", text, f"Write .groupby({key.name!r}), or rename the key.")
    elif types[0] not in {key.type, UNKNOWN}:
        text = f"groups are by {types[0]}, the key `{output.name}.{key.name}` is {key.type}"
        scope.add("key_type_mismatch", text, "Give both one type.")


def check_served(scope: Scope, step: AggregateStep, output: DatasetDef) -> None:
    """The last aggregate against the columns of the output dataset."""
    _check_counts(scope, step)
    for named in step.aggregates:
        _served(scope, named, output)
    filled = {named.output for named in step.aggregates}
    for column in output.fields:
        if not (column.key or column.timestamp or column.name in filled):
            text = f"the output column `{column.name}` is filled by no aggregate"
            hint = "Aggregate it, or leave the column out."
            scope.add("unfilled_field", text, hint, f"{output.name}.{column.name}")


def check_intermediate(scope: Scope, step: AggregateStep) -> None:
    """An aggregate that other steps follow."""
    _check_counts(scope, step)
    for named in step.aggregates:
        name = named.output
        if name in {*step.keys, scope.clock}:
            text = f"`{name}` is a column already: what follows an aggregate has its keys and the event time"
            scope.add("duplicate_column", text, "Choose another name.", member=name)
        if name.startswith("__"):
            text = f"`{name}`: names with two leading underscores belong to the platform"
            scope.add("reserved_name", text, "Choose another name.", member=name)
        _check_default(scope, named, _input(scope, named))
    if scope.clock in step.keys:
        text = f"groupby: `{scope.clock}` is the event time, which what follows has anew"
        scope.add("duplicate_column", text, "Assign it to a column of another name first.")
    for named, reason in _unstable(step):
        text = f"`{named.output}` feeds another step, and its value changes without an event: {reason}"
        scope.add("unstable_input", text, _STABLE, member=named.output)
    for text in _mixed(step):
        scope.add("mixed_windows", text, _ONE_WINDOW)


def emitted_columns(scope: Scope, step: AggregateStep) -> dict[str, str]:
    """The columns that steps after an aggregate find."""
    keys = {name: scope.types.get(name, UNKNOWN) for name in step.keys}
    outputs = {named.output: _result(scope, named) for named in step.aggregates}
    return {**keys, **outputs, scope.clock: "datetime"}


def check_stable_input(scope: Scope, dataset: str) -> None:
    """A dataset that a pipeline reads, where another pipeline fills it."""
    producer = scope.world.producer(dataset)
    last = producer.steps[-1] if producer and producer.steps else None
    if producer is None or not isinstance(last, AggregateStep):
        return
    for named, reason in _unstable(last):
        text = f"`{dataset}.{named.output}` of {_shown(producer)} changes without an event: {reason}"
        scope.add("unstable_input", text, _STABLE)
    for text in _mixed(last):
        scope.add("mixed_windows", f"`{dataset}` of {_shown(producer)}: {text}", _ONE_WINDOW)


_STABLE = (
    "Use Lifetime(), Tumbling(…) or Session(…) there, or .aggregate(…, emit='on_event') to take its value at events."
)
_ONE_WINDOW = "Give them one tumbling window, or none."


def _shown(producer: PipelineDef) -> str:
    return f"the pipeline `{producer.name}`"


def _unstable(step: AggregateStep) -> Iterator[tuple[NamedAggregate, str]]:
    """The aggregates whose value changes as time passes, and why; none where it is taken at events."""
    for named in step.aggregates if step.emit == "on_change" else ():
        reason = _drift(named.aggregate)
        if reason:
            yield named, reason


def _drift(aggregate: Aggregate) -> str:
    window: AnyWindow = aggregate.window
    if isinstance(aggregate, ExpDecaySum):
        return "its weights fade"
    if isinstance(window, Continuous | Hopping):
        return f"events leave its window of {window}"
    if isinstance(window, Lifetime) and window.offset_us:
        return "events enter its window after the offset"
    return ""


def _mixed(step: AggregateStep) -> Iterator[str]:
    """A tumbling window gives one row as it closes; another window beside it would give others."""
    windows = {named.aggregate.window for named in step.aggregates}
    if len(windows) > 1 and any(isinstance(window, Tumbling) for window in windows):
        shown = ", ".join(sorted(str(window) or "lifetime" for window in windows))
        yield f"a tumbling window that feeds another step stands alone; found {shown}"


def _check_counts(scope: Scope, step: AggregateStep) -> None:
    for name, count in Counter(named.output for named in step.aggregates).items():
        if count > 1:
            scope.add("duplicate_name", f"`{name}` is aggregated {count} times", "Keep one.", member=name)


def _served(scope: Scope, named: NamedAggregate, output: DatasetDef) -> None:
    name, aggregate = named.output, named.aggregate
    found = _input(scope, named)
    column = output.field(name)
    if column is None or column.key or column.timestamp:
        open_to = [c.name for c in output.fields if not (c.key or c.timestamp)]
        hint = did_you_mean(name, open_to, output.name)
        text = f"`{name}` is not a column of {output.name} that an aggregate may fill"
        scope.add("unknown_output", text, hint, f"{output.name}.{name}", member=name)
        return
    if not _fills(aggregate, found, column.type):
        text = f"`{name}` is declared {column.type}; {aggregate.type} gives {found}"
        scope.add("output_type_mismatch", text, f"Declare it as {found}.", member=name)
    _check_default(scope, named, column.type)


def _check_default(scope: Scope, named: NamedAggregate, wanted: str) -> None:
    default = named.aggregate.default.value if named.aggregate.default else None
    if default is not None and wanted != UNKNOWN and not _is_default(wanted, default):
        text = f"the default of `{named.output}` is {default!r}, which is no {wanted}"
        scope.add("default_type", text, f"Give a default of type {wanted}.", member=named.output)


def _is_default(wanted: str, value: Scalar | tuple[Scalar | None, ...]) -> bool:
    element = element_type(wanted)
    if not isinstance(value, tuple):
        return holds(wanted, value)
    return element is not None and all(each is None or holds(element, each) for each in value)


def _input(scope: Scope, named: NamedAggregate) -> str:
    """The type an aggregate gives, after what is wrong with what it reads."""
    name, aggregate = named.output, named.aggregate
    if aggregate.where is not None:
        scope.condition(aggregate.where, f"`{name}`: where", name)
    if not aggregate.of:
        if not isinstance(aggregate, Count):
            text = f"`{name}`: {aggregate.type} names no column"
            scope.add("missing_column", text, 'Write of="…".', member=name)
        return _result(scope, named)
    found = scope.column(aggregate.of, f"`{name}`", name)
    if found != UNKNOWN and not accepts(aggregate, found):
        text = f"`{name}`: {aggregate.type} of `{aggregate.of}`, which is {found}"
        hint = f"{aggregate.type} takes {', '.join(sorted(INPUT_TYPES[type(aggregate)]))}."
        scope.add("aggregate_type", text, hint, member=name)
    return _result(scope, named)


def _result(scope: Scope, named: NamedAggregate) -> str:
    aggregate = named.aggregate
    found = scope.types.get(aggregate.of, UNKNOWN) if aggregate.of else None
    if found == UNKNOWN or (found is None and not isinstance(aggregate, Count)):
        made = result_type(aggregate, UNKNOWN)
        return UNKNOWN if UNKNOWN in made else made
    return result_type(aggregate, found) if found is None or accepts(aggregate, found) else UNKNOWN


def _fills(aggregate: Aggregate, found: str, wanted: str) -> bool:
    """Whether the result may stand in the column; the stock SDK has no lists and declares LastK as ``str``."""
    return fits(found, wanted) or (isinstance(aggregate, LastK) and wanted == "str")
