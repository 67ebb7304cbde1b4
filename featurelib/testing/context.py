"""``MockContext``: definitions tested in process, by the engine that serves them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, get_args

import polars as pl

from featurelib.clock import Clock, Instant, check_zones, format_instant, parse_instant
from featurelib.declarations import did_you_mean
from featurelib.definitions import Cdc, Definitions
from featurelib.engine.read_plan import Entity, KeyForm, ReadPlan
from featurelib.engine.spine import Reading
from featurelib.errors import InvalidRequest, NotFound
from featurelib.result import ThymeResult
from featurelib.testing.events import Acceptance, DeadLetter, EventLog, ExpectationViolation
from featurelib.testing.reading import Knowledge, Reader, Table
from featurelib.testing.tables import records_of, rows_of
from featurelib.testing.targets import Target, definitions_of, name_of, with_cdc

When = str | float | datetime | None
"""An instant in any accepted form; ``None``: the newest event time seen for the entity."""


class MockContext:
    """The real engine in process: add events, then read aggregates and features.

    A read without ``at=`` is as of the newest event time seen for its entity. With ``knowledge="as_served"`` it counts
    only what was accepted at or before its instant. Values have the forms a client gets: instants are ISO text.

    Args:
        *targets: modules, their names or paths, declared classes, or a commit; left out, everything declared in this
            process.
        definitions: what the targets may refer to beside each other.
        clock: says when events are accepted. Left out, the first call of ``add_events`` is accepted at its earliest
            event time, every later one a microsecond after the one before, and no event time counts as future.
        partitions: log partitions of each dataset, each with a watermark and event ids of its own.
        cdc: how records of a dataset follow each other, where its source does not say or says otherwise.

    Raises:
        DefinitionError: with every problem of the definitions.
        InvalidRequest: an argument is of the wrong kind.
    """

    def __init__(
        self,
        *targets: Target,
        definitions: Definitions | None = None,
        clock: Clock | None = None,
        partitions: int = 1,
        cdc: Mapping[Any, Cdc] | None = None,
    ) -> None:
        self.definitions = with_cdc(definitions_of(targets, definitions), cdc or {})
        self._acceptance = Acceptance(clock)
        names = sorted({dataset.name for dataset in self.definitions.datasets})
        self._logs = {name: _log(name, self.definitions, partitions) for name in names}
        self._reader = Reader(self.definitions, self._logs)

    def add_events(self, dataset: Any, events: Any, *, accepted_at: When = None) -> list[ExpectationViolation]:
        """Add records to a dataset; one that does not fit goes to the dead letters, the others are taken.

        Args:
            dataset: its class or name.
            events: a list of mappings or of row objects, or a Polars, pandas or Arrow table.
            accepted_at: when they are accepted; left out, the context's clock says.

        Returns:
            Every expectation that a record fails, record by record; ``mostly`` has no meaning here.

        Raises:
            NotFound: there is no such dataset.
            InvalidRequest: the dataset is made by a pipeline, or ``events`` are no records.
        """
        name = name_of(dataset)
        log = self._log(name)
        producer = self.definitions.producer(name)
        if producer is not None:
            made_of = " or ".join(repr(each) for each in producer.input_datasets)
            raise InvalidRequest(
                f"dataset: {name!r} is made by the pipeline {producer.name!r}; add events to {made_of}"
            )
        return log.take(records_of(events), self._acceptance, accepted_at)

    def add_events_df(self, dataset: Any, frame: Any, *, accepted_at: When = None) -> list[ExpectationViolation]:
        """As :meth:`add_events`, which takes frames too."""
        return self.add_events(dataset, frame, accepted_at=accepted_at)

    def dead_letters(self, dataset: Any) -> list[DeadLetter]:
        """Records that were not accepted, oldest first; of a pipeline's output, those its functions could not take.

        Raises:
            NotFound: there is no such dataset.
        """
        name = name_of(dataset)
        return [*self._log(name).dead, *self._reader.failures(name)]

    def late(self, dataset: Any) -> list[dict[str, Any]]:
        """Records that came too late to count, oldest first.

        Raises:
            NotFound: there is no such dataset.
        """
        return self._log(name_of(dataset)).late()

    def get_aggregates(
        self, dataset: Any, entity_id: Any, at: When = None, *, knowledge: Knowledge = "latest"
    ) -> dict[str, Any]:
        """The outputs of a pipeline for an entity; of one never seen, those of empty windows.

        Raises:
            NotFound: there is no such dataset, or it cannot be read by key.
            InvalidRequest: the id is not of the key's type.
        """
        table, entity, instant = self._asked(dataset, entity_id, at)
        row = self._row(table, entity, instant, knowledge)
        shown = table.view.row(entity, table.of_nothing(instant) if row is None else row) or {}
        return {name: shown[name] for name in table.view.program.outputs}

    def get_aggregates_df(self, dataset: Any, at: When = None, *, knowledge: Knowledge = "latest") -> pl.DataFrame:
        """The outputs of a pipeline for every entity it knows, by ``entity_id`` in text order."""
        table, instant = self._reader.table(name_of(dataset)), _instant(at)
        asked = [(key, self._newest([table], key) if instant is None else instant) for key in table.known().keys]
        return table.frame(asked, _checked(knowledge))

    def lookup(
        self, dataset: Any, entity_id: Any, at: When = None, *, knowledge: Knowledge = "latest"
    ) -> dict[str, Any] | None:
        """A dataset's row, key column first; ``None`` for an unknown entity.

        Raises:
            NotFound: there is no such dataset, or it cannot be read by key.
            InvalidRequest: the id is not of the key's type.
        """
        table, entity, instant = self._asked(dataset, entity_id, at)
        return table.view.row(entity, self._row(table, entity, instant, knowledge))

    def query(
        self,
        featureset: Any,
        entity_id: Any,
        inputs: Mapping[str, Any] | None = None,
        at: When = None,
        *,
        knowledge: Knowledge = "latest",
    ) -> dict[str, Any]:
        """The features of an entity.

        Args:
            featureset: its class or name.
            entity_id: a value of the entity feature's type or its text; a list for a composite key.
            inputs: values of request features.
            at: the instant of the read.
            knowledge: which records count: all, or those accepted at or before the instant.

        Raises:
            NotFound: there is no such featureset.
            InvalidRequest: the id or an input does not fit.
            UserCodeError: an extractor failed.
        """
        (row,) = self.query_batch(featureset, [entity_id], inputs, at, knowledge=knowledge).to_dict()
        plan = self._reader.plan(name_of(featureset))
        return {name: row[name] for name in plan.feature_names}

    def query_batch(
        self,
        featureset: Any,
        entity_ids: Sequence[Any],
        inputs: Mapping[str, Any] | None = None,
        at: When = None,
        *,
        knowledge: Knowledge = "latest",
    ) -> ThymeResult:
        """The features of many entities, in the order asked; without ``at=`` each as of its own newest event.

        Raises:
            NotFound: there is no such featureset.
            InvalidRequest: an id or an input does not fit.
            UserCodeError: an extractor failed.
        """
        plan, instant = self._reader.plan(name_of(featureset)), _instant(at)
        if isinstance(entity_ids, str | bytes | Mapping) or not isinstance(entity_ids, Iterable):
            raise InvalidRequest(f"entity_ids: expected a list of ids; found a {type(entity_ids).__name__}")
        if not isinstance(inputs, Mapping | None):
            raise InvalidRequest(f"inputs: expected a mapping by feature; found a {type(inputs).__name__}")
        requested, tables = plan.requested(inputs or {}), self._reader.tables_of(plan)
        readings = []
        for number, given in enumerate(entity_ids):
            entity = _entity(plan.key_form, given, f"entity_ids[{number}]")
            moment = self._newest(tables, entity.key) if instant is None else instant
            readings.append(Reading(entity, requested, moment))
        return self._result(plan, readings, ["entity_id"], knowledge)

    def query_offline(
        self,
        featureset: Any,
        rows: Any,
        entity_column: str = "entity_id",
        timestamp_column: str = "timestamp",
        *,
        knowledge: Knowledge = "latest",
    ) -> ThymeResult:
        """The features of many entities, each at its own instant, in the order asked.

        Args:
            featureset: its class or name.
            rows: a list of mappings, or a Polars, pandas or Arrow table. Columns named like request features are
                their values; others are ignored.
            entity_column: the column of entity ids.
            timestamp_column: the column of instants.
            knowledge: which records count: all, or those accepted at or before the row's instant.

        Returns:
            ``entity_id``, ``timestamp`` and the features.
        """
        plan, given = self._reader.plan(name_of(featureset)), rows_of(rows)
        check_zones((row.get(timestamp_column) for row in given), f"spine, {timestamp_column!r}")
        readings = [
            _offline_reading(plan, row, number, (entity_column, timestamp_column)) for number, row in enumerate(given)
        ]
        return self._result(plan, readings, ["entity_id", "timestamp"], knowledge)

    def _log(self, name: str) -> EventLog:
        if name not in self._logs:
            raise NotFound(f"there is no dataset {name!r}. {did_you_mean(name, list(self._logs), 'The context')}")
        return self._logs[name]

    def _asked(self, dataset: Any, entity_id: Any, at: When) -> tuple[Table, Entity, Instant]:
        table, instant = self._reader.table(name_of(dataset)), _instant(at)
        entity = _entity(table.view.key_form, entity_id)
        return table, entity, self._newest([table], entity.key) if instant is None else instant

    def _row(self, table: Table, entity: Entity, at: Instant, knowledge: Knowledge) -> dict[str, Any] | None:
        return table.rows([(entity.key, at)], _checked(knowledge))[0]

    def _newest(self, tables: Sequence[Table], key: str) -> Instant:
        found = self._reader.newest_us(tables, key)
        return self._acceptance.now() if found is None else found

    def _result(
        self, plan: ReadPlan, readings: Sequence[Reading], leading: Sequence[str], knowledge: Knowledge
    ) -> ThymeResult:
        answers = self._reader.read(plan, readings, _checked(knowledge))
        # A feature of the same name stands for itself.
        before = [name for name in leading if name not in plan.feature_names]
        rows = [[*_named(reading, before), *answer] for reading, answer in zip(readings, answers, strict=True)]
        metadata = {"featureset": plan.featureset, "entity_type": plan.entity_type, "knowledge": knowledge}
        return ThymeResult([*before, *plan.feature_names], rows, metadata)


def _log(name: str, definitions: Definitions, partitions: int) -> EventLog:
    dataset, source = definitions.dataset(name), definitions.source(name)
    assert dataset is not None
    if partitions < 1:
        raise InvalidRequest(f"partitions: expected a positive number, got {partitions}")
    return EventLog(dataset, definitions.cdc(dataset.name), source.max_lateness_us if source else None, partitions)


def _named(reading: Reading, names: Sequence[str]) -> list[str]:
    values = {"entity_id": reading.entity.key, "timestamp": format_instant(reading.at)}
    return [values[name] for name in names]


def _instant(at: When) -> Instant | None:
    return None if at is None else parse_instant(at, "at")


def _checked(knowledge: Knowledge) -> Knowledge:
    if knowledge not in get_args(Knowledge):
        raise InvalidRequest(f"knowledge: {knowledge!r:.40} is neither 'latest' nor 'as_served'")
    return knowledge


def _entity(form: KeyForm, given: Any, field: str = "entity_id") -> Entity:
    return form.read(list(given) if isinstance(given, tuple) else given, field)


def _offline_reading(plan: ReadPlan, row: Mapping[str, Any], number: int, columns: tuple[str, str]) -> Reading:
    for column in columns:
        if column not in row:
            hint = did_you_mean(column, [str(name) for name in row], "The row")
            raise InvalidRequest(f"rows[{number}]: there is no column {column!r}. {hint}")
    entity = _entity(plan.key_form, row[columns[0]], f"rows[{number}].{columns[0]}")
    at = parse_instant(row[columns[1]], f"rows[{number}].{columns[1]}")
    try:
        requested = plan.requested({name: row[name] for name in plan.request_names if name in row})
    except InvalidRequest as error:
        raise InvalidRequest(f"rows[{number}]: {error}") from None
    return Reading(entity, requested, at)
