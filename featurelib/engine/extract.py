"""Extractors: user code that computes features from features, for one entity at one instant.

A featureset and those it takes inputs from become one :class:`ExtractorGraph`: every value has a slot
in a list, every extractor reads slots and fills slots, and runs once. No I/O happens here. An
extractor that calls ``Dataset.lookup`` for a row nobody fetched yet stops the run with a
:class:`Pause`; the caller fetches what it names and resumes, so a look-up level costs one round trip.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import linecache
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from types import CodeType, ModuleType, TracebackType
from typing import Any, NamedTuple

from featurelib.clock import Instant, parse_instant, to_datetime
from featurelib.definitions import DatasetDef, Definitions, ExtractorDef, FeatureDef, FeaturesetDef, PyCode
from featurelib.engine.keys import instant_key, key_text
from featurelib.engine.values import Cast, caster, handed
from featurelib.errors import DefinitionError, Problem, UserCodeError
from featurelib.types import Value

Row = dict[str, Value] | None


class Wanted(NamedTuple):
    """A dataset row that an extractor looks up: by key text, as of an instant."""

    dataset: str
    key: str
    at: Instant


class Pause(NamedTuple):
    """A run stopped before ``step`` because these rows are needed."""

    step: int
    wanted: Wanted


class Slot(NamedTuple):
    """One value of a run: a feature of the featureset or of one it depends on."""

    position: int
    featureset: str
    feature: FeatureDef


class _Step(NamedTuple):
    call: _UserFunction
    inputs: tuple[tuple[int, Callable[[Value], Any] | None], ...]
    names: tuple[str, ...] | None  # set: inputs are handed over as one dict under these names
    outputs: tuple[tuple[int, str, Cast], ...]


class _Scope(NamedTuple):
    rows: Mapping[Wanted, Row]
    at: Instant


class _RowMissing(BaseException):
    # A BaseException, so that a user's `except Exception` cannot swallow it.
    def __init__(self, wanted: Wanted) -> None:
        super().__init__(wanted)
        self.wanted = wanted


_scope: ContextVar[_Scope] = ContextVar("extractor_scope")


class ExtractorGraph:
    """The extractors one featureset needs, compiled and in order.

    Attributes:
        slots: every value a run touches; those of the featureset's own features come first, in order.
        datasets: datasets that extractors may look up themselves.
    """

    def __init__(self, slots: tuple[Slot, ...], steps: tuple[_Step, ...], datasets: tuple[str, ...]) -> None:
        self.slots = slots
        self.datasets = datasets
        self._steps = steps

    @classmethod
    def compile(cls, featureset: FeaturesetDef, definitions: Definitions) -> ExtractorGraph:
        """Order and compile the extractors behind every feature of ``featureset``.

        Raises:
            DefinitionError: inputs form a cycle or name something unknown.
            UserCodeError: a source does not compile, or a function does not take its inputs.
        """
        wanted = _Closure(featureset, definitions)
        slots = tuple(
            Slot(position, owner.name, feature) for position, (owner, feature) in enumerate(wanted.features.values())
        )
        index = {f"{slot.featureset}.{slot.feature.name}": slot for slot in slots}
        steps = tuple(_compile_step(owner, extractor, index, definitions) for owner, extractor in wanted.extractors)
        used = {dep for _, extractor in wanted.extractors for dep in extractor.deps if definitions.dataset(dep)}
        return cls(slots, steps, tuple(sorted(used)))

    def run(self, values: list[Value], at: Instant, rows: Mapping[Wanted, Row], step: int = 0) -> Pause | None:
        """Run the extractors from ``step`` on, filling ``values`` (one per slot) in place.

        Args:
            values: entity ids, looked-up and requested values are in their slots already.
            at: the read instant; extractors see it as an aware UTC ``datetime``.
            rows: rows fetched for ``Dataset.lookup`` so far.
            step: where to resume; from a :class:`Pause`.

        Returns:
            What stopped the run, or ``None`` when every slot is filled.

        Raises:
            UserCodeError: an extractor raised, or returned something of the wrong shape or type.
        """
        token = _scope.set(_Scope(rows, at))
        try:
            moment = to_datetime(at)
            for number in range(step, len(self._steps)):
                _run_step(self._steps[number], values, moment)
        except _RowMissing as missing:
            return Pause(number, missing.wanted)
        finally:
            _scope.reset(token)
        return None


def _run_step(step: _Step, values: list[Value], moment: Any) -> None:
    given = [values[slot] if form is None else form(values[slot]) for slot, form in step.inputs]
    arguments = given if step.names is None else [_by_name(step.names, given)]
    result = step.call(moment, arguments)
    for (slot, name, cast), value in zip(step.outputs, _parts(step, result), strict=True):
        try:
            values[slot] = cast(value)
        except ValueError as error:
            raise step.call.wrong(f"output {name!r}: {error}") from None


def _by_name(names: Sequence[str], given: Sequence[Any]) -> dict[str, Any]:
    # `Other.feature` answers under its bare name too, unless a local input has that name.
    bare = {name.rpartition(".")[2]: value for name, value in zip(names, given, strict=True)}
    return {**bare, **dict(zip(names, given, strict=True))}


def _parts(step: _Step, result: Any) -> Iterable[Any]:
    outputs = step.outputs
    if isinstance(result, dict):
        return _parts_of_dict(step, result)
    if len(outputs) == 1:
        return (result,)
    if isinstance(result, tuple | list) and len(result) == len(outputs):
        return result
    wanted = ", ".join(name for _, name, _ in outputs)
    raise step.call.wrong(f"returned {repr(result)[:80]}; expected a dict or a tuple of {len(outputs)}: {wanted}")


def _parts_of_dict(step: _Step, result: dict[Any, Any]) -> Iterable[Any]:
    names = [name for _, name, _ in step.outputs]
    if set(result) != set(names):
        missing = ", ".join(sorted(set(names) - set(result))) or "none"
        unknown = ", ".join(sorted(str(name) for name in set(result) - set(names))) or "none"
        raise step.call.wrong(f"returned a dict with wrong names; missing: {missing}; not declared: {unknown}")
    return (result[name] for name in names)


class _Closure:
    """Features and extractors a featureset needs, extractors in an order that fills inputs first."""

    def __init__(self, featureset: FeaturesetDef, definitions: Definitions) -> None:
        self.features: dict[str, tuple[FeaturesetDef, FeatureDef]] = {}
        self.extractors: list[tuple[FeaturesetDef, ExtractorDef]] = []
        self._definitions = definitions
        self._root = featureset.name
        self._open: list[str] = []
        for feature in featureset.features:
            self.features[f"{featureset.name}.{feature.name}"] = (featureset, feature)
        for feature in featureset.features:
            self._need(featureset, feature.name)

    def _need(self, owner: FeaturesetDef, name: str) -> None:
        self._keep(owner, name)
        producer = next((e for e in owner.extractors if name in e.outputs), None)
        if producer is not None and (owner, producer) not in self.extractors:
            self._visit(owner, producer)

    def _keep(self, owner: FeaturesetDef, name: str) -> None:
        feature = owner.feature(name)
        if feature is None:
            raise self._problem(f"{owner.name}.{name}", "no such feature", "unknown_feature")
        self.features.setdefault(f"{owner.name}.{name}", (owner, feature))

    def _visit(self, owner: FeaturesetDef, extractor: ExtractorDef) -> None:
        label = f"{owner.name}.{extractor.name}"
        if label in self._open:
            path = " → ".join([*self._open[self._open.index(label) :], label])
            raise self._problem(label, f"extractors take each other's outputs: {path}", "extractor_cycle")
        self._open.append(label)
        for name in extractor.inputs:
            other, _, local = name.rpartition(".")
            self._need(self._featureset(other, label) if other else owner, local)
        self._open.pop()
        self.extractors.append((owner, extractor))
        for name in extractor.outputs:
            self._keep(owner, name)

    def _featureset(self, name: str, label: str) -> FeaturesetDef:
        found = self._definitions.featureset(name)
        if found is None:
            raise self._problem(label, f"takes an input of the unknown featureset {name!r}", "unknown_featureset")
        return found

    def _problem(self, subject: str, message: str, code: str) -> DefinitionError:
        return DefinitionError([Problem(code, subject, f"{message} (needed by featureset {self._root!r})")])


def _compile_step(
    owner: FeaturesetDef, extractor: ExtractorDef, index: Mapping[str, Slot], definitions: Definitions
) -> _Step:
    known = {dep: found for dep in extractor.deps if (found := definitions.dataset(dep))}
    call = _UserFunction(f"{owner.name}.{extractor.name}", extractor.code, known)
    slots = [index[name if "." in name else f"{owner.name}.{name}"] for name in extractor.inputs]
    outputs = [index[f"{owner.name}.{name}"] for name in extractor.outputs]
    return _Step(
        call,
        tuple((slot.position, handed(slot.feature.type)) for slot in slots),
        call.check_signature(extractor.inputs),
        tuple((slot.position, slot.feature.name, caster(slot.feature.type)) for slot in outputs),
    )


class _UserFunction:
    """One compiled user function and its place in the user's file."""

    def __init__(self, label: str, code: PyCode, datasets: Mapping[str, DatasetDef]) -> None:
        self.label = label
        self._file = code.file or f"<{label}>"
        self._first = code.line or 1
        digest = hashlib.sha256(code.source.encode()).hexdigest()[:16]
        self._source_name = f"<thyme {label} {digest}>"
        self._span = range(1, 2)
        self._function = self._load(code, f"_thyme_{digest}", datasets)

    def __call__(self, moment: Any, arguments: Sequence[Any]) -> Any:
        """Run it for one entity: ``cls`` is ``None``, then the read instant, then the inputs."""
        return self._user_code(self._function, None, moment, *arguments)

    def wrong(self, message: str) -> UserCodeError:
        """The error of a function that ran but did not do what it declares."""
        return UserCodeError(self.label, f"{self._file}:{self._first}", message)

    def check_signature(self, inputs: Sequence[str]) -> tuple[str, ...] | None:
        """Check that the function takes its inputs; the names when it takes them as one dict called ``inputs``."""
        if inspect.iscoroutinefunction(self._function):
            raise self.wrong("is declared async; an extractor is a plain function")
        signature = inspect.signature(self._function)
        rest = list(signature.parameters)[2:]
        if rest == ["inputs"]:
            return tuple(inputs)
        try:
            signature.bind(None, None, *inputs)
        except TypeError as error:
            raise self.wrong(f"takes (cls, ts, {', '.join(rest)}) but declares {len(inputs)} inputs: {error}") from None
        return None

    def _load(self, code: PyCode, module_name: str, datasets: Mapping[str, DatasetDef]) -> Callable[..., Any]:
        lines = code.source.splitlines(keepends=True)
        # With no modification time the entry is never checked against a file, so tracebacks show the user's lines.
        linecache.cache[self._source_name] = (len(code.source), None, lines, self._source_name)
        module = ModuleType(module_name)
        # Dataclasses and pickled values look their module up by name.
        sys.modules[module_name] = module
        handles = {name: _DatasetHandle(dataset) for name, dataset in datasets.items()}
        vars(module).update(handles)
        self._user_code(exec, self._parse(code), vars(module))
        vars(module).update(handles)
        function = vars(module).get(code.entry_point)
        if not callable(function):
            raise self.wrong(f"its source defines no function {code.entry_point!r}")
        return function  # type: ignore[no-any-return]

    def _parse(self, code: PyCode) -> CodeType:
        try:
            tree = ast.parse(code.source, self._source_name)
            for node in tree.body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == code.entry_point:
                    self._span = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            return compile(tree, self._source_name, "exec")
        except SyntaxError as error:
            where = f"{self._file}:{error.lineno or self._first}"
            raise UserCodeError(self.label, where, f"SyntaxError: {error.msg}") from None

    def _user_code(self, call: Callable[..., Any], *arguments: Any) -> Any:
        # The one boundary to user code: whatever it raises becomes a UserCodeError at the user's line.
        try:
            return call(*arguments)
        except (Exception, SystemExit) as error:
            raise self._raised(error) from error

    def _raised(self, error: BaseException) -> UserCodeError:
        line = self._user_line(error.__traceback__)
        return UserCodeError(self.label, f"{self._file}:{line}", f"{type(error).__name__}: {error}")

    def _user_line(self, trace: TracebackType | None) -> int:
        found = self._first
        while trace is not None:
            ours = trace.tb_frame.f_code.co_filename == self._source_name
            if ours and trace.tb_lineno in self._span:
                found = self._first + trace.tb_lineno - self._span.start
            trace = trace.tb_next
        return found


class _DatasetHandle:
    """What a dataset's name stands for inside an extractor: ``Dataset.lookup(ts, key=value)`` and nothing else."""

    def __init__(self, dataset: DatasetDef) -> None:
        self._name = dataset.name
        self._key = dataset.key.name
        self._cast = caster(dataset.key.type)
        self._key_is_time = dataset.key.type == "datetime"
        self._forms = {field.name: form for field in dataset.fields if (form := handed(field.type))}

    def lookup(self, ts: Any = None, **key: Any) -> dict[str, Any] | None:
        """The dataset's row of a key as of ``ts`` (default: the read instant); ``None`` for an unknown key."""
        if set(key) != {self._key}:
            message = f"{self._name}.lookup takes its key {self._key}=, got {', '.join(key) or 'nothing'}"
            raise TypeError(message)
        scope = _scope.get()
        value = self._cast(key[self._key])
        if value is None:
            return None
        text = instant_key(value) if self._key_is_time else key_text([value])
        wanted = Wanted(self._name, text, scope.at if ts is None else parse_instant(ts, "ts"))
        if wanted not in scope.rows:
            raise _RowMissing(wanted)
        return self._handed(scope.rows[wanted])

    def _handed(self, row: Row) -> dict[str, Any] | None:
        if row is None:
            return None
        return {name: self._forms[name](value) if name in self._forms else value for name, value in row.items()}
