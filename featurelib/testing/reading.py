"""Reads of what a test has added: programs folded over its records, and read plans walked as the query server does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import polars as pl
import pyarrow as pa

from featurelib.clock import Instant
from featurelib.declarations import did_you_mean
from featurelib.definitions import Definitions, FeaturesetDef
from featurelib.engine.column_types import polars_type
from featurelib.engine.extractor import Inline, Row
from featurelib.engine.operators import UserFailure
from featurelib.engine.panes import KeyState
from featurelib.engine.partials import Row as StateRow
from featurelib.engine.program import Program
from featurelib.engine.read_plan import ReadPlan, View, compile_plan, compile_views
from featurelib.engine.spine import Asked, Reading, feature_columns, rows_at_once
from featurelib.engine.user_code import Guard, Limits
from featurelib.errors import DefinitionError, NotFound, Problem, ThymeError, UserCodeError
from featurelib.testing.events import DeadLetter, EventLog
from featurelib.types import Value

Knowledge = Literal["latest", "as_served"]
# From here on one sorted table answers faster than a state per key.
_MANY = 256
# Of each pipeline: what was known at so many instants is kept folded.
_KEPT = 16

# Looser than a replica's, since tests run on machines that are busy with others.
_LIMITS = Limits(soft_s=2, hard_s=20)

# Places of a row of state: when it counts from, and until when.
_TIME, _UNTIL = 0, 4


class _Folded:
    """The rows a program makes of some records, and the state of each key, made when it is first read.

    Attributes:
        failures: rows that users' functions could not take.
    """

    def __init__(self, program: Program, records: Mapping[str, pa.Table]) -> None:
        self.failures: list[UserFailure] = []
        self._program = program
        self._shaped = program.shape_all(records, self.failures)
        self._rows: dict[str, list[StateRow]] = dict(program.rows_by_key(self._shaped))
        self._states: dict[str, KeyState] = {}

    @property
    def keys(self) -> list[str]:
        """Every key with a row, in text order."""
        return list(self._rows)

    def newest_us(self, key: str) -> Instant | None:
        """The newest instant at which an event changed the key: a row began to count, or ceased to."""
        if key not in self._rows:
            return None
        return max(max(int(row[_TIME]), int(row[_UNTIL] or row[_TIME])) for row in self._rows[key])

    def rows(self, asked: Sequence[Asked]) -> list[Row]:
        """The output rows, in order; ``None`` for a key that had no record by its instant."""
        if len(asked) >= _MANY:
            return rows_at_once(self._program, self._shaped, asked)
        return [self._row(key, at) for key, at in asked]

    def _row(self, key: str, at: Instant) -> Row:
        if key not in self._rows:
            return None
        if key not in self._states:
            state = self._states[key] = self._program.new_state(1)
            state.add(self._rows[key])
        return self._program.finish_state(self._states[key], at)


class Table:
    """A dataset that can be read by key: its view over the records added so far.

    Nothing is folded anew until its sources get records.
    """

    def __init__(self, view: View, logs: Mapping[str, EventLog]) -> None:
        self.view = view
        self._program = view.program
        self._sources = {dataset.name: logs[dataset.name] for dataset in view.program.sources}
        self._fold = lru_cache(maxsize=_KEPT)(self._folded)

    def known(self, known_at: Instant | None = None) -> _Folded:
        """The rows of what was accepted by an instant; ``None``: of everything."""
        return self._fold(tuple(log.accepted_by(known_at) for log in self._sources.values()))

    def _folded(self, counts: tuple[int, ...]) -> _Folded:
        records = {name: log.first(count) for (name, log), count in zip(self._sources.items(), counts, strict=True)}
        return _Folded(self._program, records)

    def failures(self) -> list[DeadLetter]:
        """Records that a function of the pipeline could not take: they are left out of it, and nothing else is."""
        return [self._letter(failure) for failure in self.known().failures]

    def _letter(self, failure: UserFailure) -> DeadLetter:
        places = (log.record_at(failure.time, failure.place) for log in self._sources.values())
        record = next((found for found in places if found is not None), {})
        return DeadLetter(UserCodeError.code, "", f"{failure.function}: {failure.message}", record)

    def of_nothing(self, at: Instant) -> dict[str, Value]:
        """The row of a key whose windows are empty."""
        return self._program.fold.finish_state(self._program.new_state(1), at)

    def rows(self, asked: Sequence[Asked], knowledge: Knowledge) -> list[Row]:
        """The rows of keys, in order; ``None`` for a key that had no record by its instant."""
        found: dict[int, Row] = {}
        for known_at, lines in _by_knowledge([at for _, at in asked], knowledge).items():
            found.update(zip(lines, self.known(known_at).rows([asked[line] for line in lines]), strict=True))
        return [found[line] for line in range(len(asked))]

    def frame(self, asked: Sequence[Asked], knowledge: Knowledge) -> pl.DataFrame:
        """The outputs of the keys that had a record by their instants, by ``entity_id``."""
        rows = self.rows(asked, knowledge)
        known = [(key, row) for (key, _), row in zip(asked, rows, strict=True) if row is not None]
        types = self._program.fold.output_types
        columns = [pl.Series("entity_id", [key for key, _ in known], dtype=pl.String)]
        for name in self._program.outputs:
            values = [row[name] for _, row in known]
            columns.append(pl.Series(name, values, dtype=polars_type(types[name]), strict=False))
        return pl.DataFrame(columns)


class Reader:
    """Everything of some definitions that can be read, compiled once.

    Args:
        definitions: valid ones.
        logs: the records of each raw dataset, by name.

    Raises:
        DefinitionError: with every problem found.
    """

    def __init__(self, definitions: Definitions, logs: Mapping[str, EventLog]) -> None:
        self._definitions = definitions
        self._logs = logs
        views, broken = compile_views(definitions)
        problems = [problem for name, error in broken.items() for problem in _problems(name, error)]
        self._tables = {name: Table(view, logs) for name, view in views.items()}
        self._plans: dict[str, ReadPlan] = {}
        for featureset in definitions.featuresets:
            problems += self._compile(featureset, views)
        if problems:
            raise DefinitionError(problems)

    def _compile(self, featureset: FeaturesetDef, views: Mapping[str, View]) -> list[Problem]:
        try:
            self._plans[featureset.name] = compile_plan(featureset, self._definitions, views, Inline(_guard()))
        except ThymeError as error:
            return _problems(featureset.name, error)
        return []

    def plan(self, name: str) -> ReadPlan:
        """The plan of a featureset.

        Raises:
            NotFound: there is none of that name.
        """
        if name not in self._plans:
            raise NotFound(f"there is no featureset {name!r}. {did_you_mean(name, list(self._plans), 'The context')}")
        return self._plans[name]

    def failures(self, name: str) -> list[DeadLetter]:
        """Records that the pipeline behind a dataset could not take."""
        return self._tables[name].failures() if name in self._tables else []

    def table(self, name: str) -> Table:
        """A dataset that can be read by key.

        Raises:
            NotFound: there is no dataset of that name, or it cannot be read.
        """
        if name not in self._tables:
            if self._definitions.dataset(name) is not None:
                hint = "Declare it with index=True, or give it a pipeline."
                raise NotFound(f"the dataset {name!r} cannot be read by key. {hint}")
            raise NotFound(f"there is no dataset {name!r}. {did_you_mean(name, list(self._tables), 'The context')}")
        return self._tables[name]

    def newest_us(self, tables: Iterable[Table], key: str) -> Instant | None:
        """The newest event time of a key in some tables, else of anything at all (decision 5)."""
        seen = [found for table in tables if (found := table.known().newest_us(key)) is not None]
        seen = seen or [log.newest_us for log in self._logs.values() if log.newest_us is not None]
        return max(seen, default=None)

    def tables_of(self, plan: ReadPlan) -> list[Table]:
        """The tables a featureset reads."""
        return [self._tables[view.dataset.name] for view in plan.views]

    def read(self, plan: ReadPlan, readings: Sequence[Reading], knowledge: Knowledge) -> list[list[Any]]:
        """The features of many rows, in order.

        Raises:
            UserCodeError: an extractor failed.
        """
        answers: dict[int, list[Any]] = {}
        for known_at, lines in _by_knowledge([reading.at for reading in readings], knowledge).items():
            part = self._read(plan, [readings[line] for line in lines], known_at)
            answers.update(zip(lines, part, strict=True))
        return [answers[line] for line in range(len(readings))]

    def _read(self, plan: ReadPlan, readings: Sequence[Reading], known_at: Instant | None) -> list[list[Any]]:
        columns = feature_columns(
            plan, readings, lambda view, asked: self._tables[view.dataset.name].known(known_at).rows(asked)
        )
        own = zip(*columns, strict=True) if columns else iter([()] * len(readings))
        return [plan.answer(values) for values in own]


@lru_cache(maxsize=1)
def _guard() -> Guard:
    """One watch for every context of the process; an extractor that hangs is told as one, instead of hanging a test."""
    return Guard(_LIMITS)


def _by_knowledge(instants: Sequence[Instant], knowledge: Knowledge) -> dict[Instant | None, list[int]]:
    """The lines that know the same records: those accepted by the group's instant, or for ``None`` all of them."""
    groups: dict[Instant | None, list[int]] = {}
    for line, at in enumerate(instants):
        groups.setdefault(at if knowledge == "as_served" else None, []).append(line)
    return groups


def _problems(name: str, error: ThymeError) -> list[Problem]:
    if isinstance(error, DefinitionError):
        return error.problems
    if isinstance(error, UserCodeError):
        file, _, line = error.location.rpartition(":")
        return [Problem(error.code, error.function, error.message, "", file, int(line))]
    return [Problem(error.code, name, str(error))]
