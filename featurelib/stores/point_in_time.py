"""Point-in-time rows: the archive and the log's tail, folded by the same engine as the stream."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from featurelib.clock import Instant
from featurelib.definitions import DatasetDef, ref
from featurelib.engine.keys import key_group
from featurelib.engine.operators import RightTable
from featurelib.engine.program import Program, replay, states_of
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.online_reader import Lookup
from featurelib.types import Value


class PointInTime:
    """Evaluates pipelines at past instants. Blocking: an event loop runs it in a thread."""

    def __init__(self, history: History, log: Log) -> None:
        self._history = history
        self._log = log

    def rows(self, lookups: Sequence[Lookup]) -> list[dict[str, Value] | None]:
        """Output rows, in order; ``None`` where the key had no record at or before the instant.

        Raises:
            StoreUnavailable: the log or the archive does not answer.
            ValueOverflow: an integer sum left the 64-bit range.
        """
        found: dict[int, dict[str, Value] | None] = {}
        graphs: dict[str, list[tuple[int, Lookup]]] = {}
        for index, lookup in enumerate(lookups):
            if lookup.program.plain:
                found[index] = self._row(*lookup)
            else:
                graphs.setdefault(lookup.program.ref, []).append((index, lookup))
        for asked in graphs.values():
            found.update(self._graph_rows(asked))
        return [found[index] for index in range(len(lookups))]

    def _graph_rows(self, asked: Sequence[tuple[int, Lookup]]) -> dict[int, dict[str, Value] | None]:
        """Rows of one pipeline that is not plain: any record may bear on any key, so all are read, once."""
        program = asked[0][1].program
        until = max(lookup.at for _, lookup in asked)
        states = states_of(
            program, {d.name: self._records(d, until) for d in program.sources}, {lookup.key for _, lookup in asked}
        )
        return {
            index: program.finish_state(states[lookup.key], lookup.at) if lookup.key in states else None
            for index, lookup in asked
        }

    def _row(self, program: Program, key: str, at: Instant) -> dict[str, Value] | None:
        rights = self._rights(program, at)
        horizon = program.horizon
        if horizon is not None:
            row = replay(program, self._left(program, key, at - horizon, at), rights, key, at)
            if row is not None:
                return row
        # Nothing in the longest window: a key that was ever seen is known, and its windows are empty (decision 9).
        return replay(program, self._left(program, key, None, at), rights, key, at)

    def _left(self, program: Program, key: str, since: Instant | None, until: Instant) -> pa.Table:
        dataset = program.left
        keyed = program.keyed_like_its_dataset()
        records = self._history.read(
            dataset,
            self._log.partitions(ref(dataset)),
            keys=[key] if keyed else None,
            groups=[key_group(key)] if keyed else None,
            since=since,
            until=until,
        )
        return records.select(program.left_columns())

    def _rights(self, program: Program, until: Instant) -> dict[str, RightTable]:
        tables = program.right_tables()
        for dataset in program.rights:
            tables[dataset.name] = tables[dataset.name].with_records(self._records(dataset, until))
        return tables

    def _records(self, dataset: DatasetDef, until: Instant) -> pa.Table:
        return self._history.read(dataset, self._log.partitions(ref(dataset)), until=until)
