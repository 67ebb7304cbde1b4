"""One extractor, ready to run: values in, values out, for one row or for many.

A :class:`Task` is all it takes to make one, here or in another process. Values are in the engine's form on both
sides; user code sees datetimes, copies of lists, and Polars Series where the extractor is vectorized. An extractor
that looks up a row nobody fetched yet is stopped by :class:`RowMissing` and run again when the row is there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import polars as pl

from featurelib.clock import Instant, parse_instant, to_datetime
from featurelib.definitions import DatasetDef, PyCode
from featurelib.engine.column_types import polars_type
from featurelib.engine.keys import instant_key, key_text
from featurelib.engine.nested import nested_series
from featurelib.engine.user_code import Guard, Passing, UserFunction, load
from featurelib.engine.values import Cast, caster, handed, listed
from featurelib.errors import UserCodeError
from featurelib.types import Value, element_type, is_nested

Row = dict[str, Value] | None


class Wanted(NamedTuple):
    """A dataset row that an extractor looks up: by key text, as of an instant."""

    dataset: str
    key: str
    at: Instant


class RowMissing(Passing):
    """An extractor looks up a row that is not among those it was given."""

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted)
        self.wanted = wanted


class Typed(NamedTuple):
    """A feature's name, as the extractor spells it, and its type."""

    name: str
    type: str


class Task(NamedTuple):
    """All that a process needs to run an extractor. Equal ``identity``: equal code and meaning."""

    label: str
    identity: str
    code: PyCode
    inputs: tuple[Typed, ...]
    outputs: tuple[Typed, ...]
    datasets: tuple[DatasetDef, ...]
    vectorized: bool


class Scope(NamedTuple):
    """Of which instant a run is, and the rows fetched for it. ``at`` is ``None`` where rows differ in it."""

    rows: Mapping[Wanted, Row]
    at: Instant | None
    moment: datetime | None


class Part(NamedTuple):
    """Outputs of some rows, a list per output, and which of these rows want a look-up first: their values are unset."""

    columns: list[list[Value]]
    wanted: list[tuple[int, Wanted]]


class Body(Protocol):
    """An extractor that can be run."""

    def one(self, given: Sequence[Value], scope: Scope) -> Iterable[Value]:
        """The outputs of one row, in order; raises RowMissing or UserCodeError."""
        ...

    def many(self, columns: Sequence[list[Value]], instants: Sequence[Instant], rows: Mapping[Wanted, Row]) -> Part:
        """The outputs of rows given as columns; raises UserCodeError for the first row that fails."""
        ...


class Runner(Protocol):
    """Where extractors run.

    Attributes:
        blocks: whether a call waits for another process, so that an event loop calls it in a thread.
    """

    blocks: bool

    def load(self, task: Task) -> Body:
        """Make an extractor; raises UserCodeError when its source does not load."""
        ...


class Inline:
    """Runs extractors in this process and thread.

    Args:
        guard: limits every call; left out, none is limited.
        given_up: why an extractor of that identity is never called.
    """

    blocks = False

    def __init__(self, guard: Guard | None = None, given_up: Mapping[str, str] | None = None) -> None:
        self._guard = guard
        self._given_up = given_up if given_up is not None else {}

    def load(self, task: Task) -> Body:
        """Make an extractor; one that was given up refuses every call."""
        why = self._given_up.get(task.identity)
        return Extractor(task, self._guard) if why is None else _GivenUp(task, why)


INLINE = Inline()
"""Without limits."""


class Extractor:
    """An extractor in this process."""

    def __init__(self, task: Task, guard: Guard | None = None) -> None:
        handles = {dataset.name: _DatasetHandle(dataset) for dataset in task.datasets}
        self.task = task
        self._function = _Tasked(task, load(task.code, task.label, handles, guard, task.identity)).checked()
        self._call, self._names = self._function.call, self._function.names
        self._forms = [_copied(each.type) for each in task.inputs]
        self._casts = [caster(each.type) for each in task.outputs]
        self._simple = not any(self._forms)
        self._looks_up = bool(handles)

    def one(self, given: Sequence[Value], scope: Scope) -> Iterable[Value]:
        """The outputs of one row."""
        if self.task.vectorized:
            part = self._whole([[value] for value in given], [scope.at], scope)
            return [column[0] for column in part]
        if not self._looks_up:
            return self._row(given, scope.moment)
        token = _scope.set(scope)
        try:
            return self._row(given, scope.moment)
        finally:
            _scope.reset(token)

    def many(self, columns: Sequence[list[Value]], instants: Sequence[Instant], rows: Mapping[Wanted, Row]) -> Part:
        """The outputs of rows given as columns: one call for all when vectorized, else one each."""
        if self.task.vectorized:
            return self._all(columns, instants, rows)
        wanted: list[tuple[int, Wanted]] = []
        done: list[Sequence[Value]] = []
        unset = [None] * len(self._casts)
        for row, at in enumerate(instants):
            try:
                done.append(list(self.one([column[row] for column in columns], Scope(rows, at, to_datetime(at)))))
            except RowMissing as missing:
                wanted.append((row, missing.wanted))
                done.append(unset)
        return Part([list(column) for column in zip(*done, strict=True)], wanted)

    def _row(self, given: Sequence[Value], moment: datetime | None) -> Iterable[Value]:
        if not self._simple:
            given = [value if form is None else form(value) for form, value in zip(self._forms, given, strict=True)]
        values: list[Value] = []
        parts = self._function.parts(self._called(moment, given))
        try:
            for cast, part in zip(self._casts, parts):  # noqa: B905  # one each; strict= takes 60 ns a call
                values.append(cast(part))
        except Exception as error:  # noqa: BLE001  # what is cast is the user's, `__repr__` and all
            raise self._function.wrong(f"output {self.task.outputs[len(values)].name!r}: {_why(error)}") from None
        return values

    def _called(self, moment: Any, given: Sequence[Any]) -> Any:
        names = self._names  # `cls` is None, then come the read instant and the inputs
        return self._call(None, moment, *given) if names is None else self._call(None, moment, _by_name(names, given))

    def _all(self, columns: Sequence[list[Value]], instants: Sequence[Instant], rows: Mapping[Wanted, Row]) -> Part:
        same = len(set(instants)) == 1
        scope = Scope(rows, instants[0] if same else None, None)
        try:
            return Part(self._whole(columns, instants, scope), [])
        except RowMissing as missing:
            unset: list[list[Value]] = [[None] * len(instants) for _ in self._casts]
            return Part(unset, [(row, missing.wanted) for row in range(len(instants))])

    def _whole(
        self, columns: Sequence[list[Value]], instants: Sequence[Instant | None], scope: Scope
    ) -> list[list[Value]]:
        given = [series(each, column) for each, column in zip(self.task.inputs, columns, strict=True)]
        moments = series(Typed("ts", "datetime"), list(instants))
        token = _scope.set(scope)
        try:
            result = self._called(moments, given)
        finally:
            _scope.reset(token)
        parts = zip(self.task.outputs, self._casts, self._function.parts(result), strict=True)
        return [self._column(output, cast, part, len(instants)) for output, cast, part in parts]

    def _column(self, output: Typed, cast: Cast, part: Any, rows: int) -> list[Value]:
        part = listed(part)
        if not isinstance(part, list | tuple):
            raise self._function.wrong(f"output {output.name!r}: expected a Series or a list, got {_shown(part)}")
        if len(part) != rows:
            raise self._function.wrong(f"output {output.name!r}: {len(part)} values for {rows} rows")
        values: list[Value] = []
        try:
            for value in part:
                values.append(cast(value))  # noqa: PERF401  # its length is the row an error names
        except Exception as error:  # noqa: BLE001  # as above
            raise self._function.wrong(f"output {output.name!r}, row {len(values)}: {_why(error)}") from None
        return values


class _Tasked:
    """A user function, how its task hands inputs over, and its result taken apart."""

    def __init__(self, task: Task, function: UserFunction) -> None:
        self._function = function
        self._task = task
        self._outputs = [each.name for each in task.outputs]
        self._gives_dict = len(task.outputs) == 1 and task.outputs[0].type.startswith(("dict[", "struct["))
        self.wrong = function.wrong
        self.call = function.call
        self.names: tuple[str, ...] | None = None  # set: inputs are handed over as one dict under these names

    def checked(self) -> _Tasked:
        """Itself, once its parameters fit: inputs by position, or one dict called ``inputs``.

        Raises:
            UserCodeError: they do not.
        """
        signature = self._function.signature()
        names = tuple(each.name for each in self._task.inputs)
        rest = list(signature.parameters)[2:]
        if rest == ["inputs"]:
            self.names = names
            return self
        try:
            signature.bind(None, None, *names)
        except TypeError as error:
            raise self.wrong(f"takes (cls, ts, {', '.join(rest)}) but declares {len(names)} inputs: {error}") from None
        return self

    def parts(self, result: Any) -> Iterable[Any]:
        """What each output is in a dict by name, a tuple or list in order, or a bare value of the only output."""
        if isinstance(result, dict) and not (self._gives_dict and self._is_value(result)):
            return self._parts_of_dict(result)
        if len(self._outputs) == 1:
            return (result,)
        if isinstance(result, tuple | list) and len(result) == len(self._outputs):
            return result
        wanted = f"expected a dict or a tuple of {len(self._outputs)}: {', '.join(self._outputs)}"
        raise self.wrong(f"returned {_shown(result)}; {wanted}")

    def _is_value(self, result: dict[Any, Any]) -> bool:
        """Whether a dict is the map or struct itself, not what holds it under its name.

        A map's keys are data: the only one may be the output's name too, above a value that is no map.
        """
        if [*result] != self._outputs:
            return True
        (part,) = result.values()
        held = part is None or isinstance(part, Mapping) or dataclasses.is_dataclass(part)
        return not (held or self._task.vectorized)

    def _parts_of_dict(self, result: dict[Any, Any]) -> Iterable[Any]:
        if result.keys() != set(self._outputs):
            missing = ", ".join(sorted(self._outputs - result.keys())) or "none"
            unknown = ", ".join(sorted(map(_name, result.keys() - set(self._outputs)))) or "none"
            raise self.wrong(f"returned a dict with wrong names; missing: {missing}; not declared: {unknown}")
        return (result[name] for name in self._outputs)


class _GivenUp:
    """An extractor that passed its hard limit once, here or in a replica before this one."""

    def __init__(self, task: Task, why: str) -> None:
        self._label = task.label
        self._where = f"{task.code.file or f'<{task.label}>'}:{task.code.line or 1}"
        self._why = why

    def one(self, given: Sequence[Value], scope: Scope) -> Iterable[Value]:  # noqa: ARG002  # a body's signature
        """Refuse."""
        raise UserCodeError(self._label, self._where, self._why)

    def many(self, columns: Sequence[list[Value]], instants: Sequence[Instant], rows: Mapping[Wanted, Row]) -> Part:  # noqa: ARG002
        """Refuse."""
        raise UserCodeError(self._label, self._where, self._why)


class _DatasetHandle:
    """What a dataset's name stands for inside an extractor: ``Dataset.lookup(ts, key=value)`` and nothing else."""

    def __init__(self, dataset: DatasetDef) -> None:
        self._name = dataset.name
        self._key = dataset.key.name
        self._cast = caster(dataset.key.type)
        self._key_is_time = dataset.key.type == "datetime"
        self._forms = {field.name: form for field in dataset.fields if (form := _copied(field.type))}

    def lookup(self, ts: Any = None, *unnamed: Any, **key: Any) -> dict[str, Any] | None:
        """The dataset's row of a key as of ``ts`` (default: the read instant); ``None`` for an unknown key.

        The key goes by its column's name, or as ``key=``.
        """
        if unnamed or len(key) != 1 or not key.keys() <= {self._key, "key"}:
            found = ", ".join([*map(_shown, unnamed), *key]) or "nothing"
            message = f"{self._name}.lookup takes its key {self._key}= after ts, got {found}"
            raise TypeError(message)
        scope = _scope.get()
        (given,) = key.values()
        value = self._cast(given)
        if value is None:
            return None
        text = instant_key(value) if self._key_is_time else key_text([value])
        wanted = Wanted(self._name, text, self._instant(ts, scope))
        if wanted not in scope.rows:
            raise RowMissing(wanted)
        row = scope.rows[wanted]
        if row is None:
            return None
        return {name: self._forms[name](value) if name in self._forms else value for name, value in row.items()}

    def _instant(self, ts: Any, scope: Scope) -> Instant:
        if ts is not None:
            return parse_instant(ts, "ts")
        if scope.at is None:
            message = f"{self._name}.lookup: the rows of this batch have different instants; give one, such as ts[row]"
            raise TypeError(message)
        return scope.at


_scope: ContextVar[Scope] = ContextVar("extractor_scope")


def series(column: Typed, values: list[Value]) -> pl.Series:
    """Values in the engine's form as a Series of the column's type.

    Stored values may stand behind a feature of a type they cannot be cast to; then the Series is of their own type.
    """
    kind = polars_type(column.type)
    if is_nested(column.type):
        return nested_series(column.name, column.type, values)
    # Instants are integers here; a list of them is cast as a list.
    stored = {"datetime": pl.Int64(), "list[datetime]": pl.List(pl.Int64)}.get(column.type, kind)
    try:
        return pl.Series(column.name, values, stored, strict=True).cast(kind)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        return pl.Series(column.name, values, strict=False)


def _copied(type_name: str) -> Callable[[Value], Any] | None:
    """How user code is handed a value of the type; lists are copies, so that changing one changes nothing else."""
    form = handed(type_name)
    # A list may stand behind a `str` too: the stock SDK declares LastK so.
    if form is not None or (element_type(type_name) is None and type_name != "str"):
        return form
    return _own


def _own(value: Value) -> Any:
    return list(value) if isinstance(value, list) else value


def _by_name(names: Sequence[str], given: Sequence[Any]) -> dict[str, Any]:
    # `Other.feature` answers under its bare name too, unless a local input has that name.
    bare = {name.rpartition(".")[2]: value for name, value in zip(names, given, strict=True)}
    return {**bare, **dict(zip(names, given, strict=True))}


def _name(key: object) -> str:
    return key if isinstance(key, str) else _shown(key)


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}"


def _shown(value: object) -> str:
    try:
        return repr(value)[:80]
    except Exception:  # noqa: BLE001  # `__repr__` of a user's own class is user code too
        return f"a {type(value).__name__}"
