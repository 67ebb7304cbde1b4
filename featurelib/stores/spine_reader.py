"""The rows of a spine from archive and log: many keys, each at its own instant, read once per pipeline.

What a row holds is what a point-in-time read of that one key at that one instant gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from featurelib.clock import Instant
from featurelib.definitions import DatasetDef, ref
from featurelib.engine.asof import KNOWN, Knowledge, evaluate
from featurelib.engine.extractor import Row
from featurelib.engine.fold import KEY
from featurelib.engine.keys import key_groups
from featurelib.engine.operators import UNTIL
from featurelib.engine.program import Program
from featurelib.engine.read_plan import ReadPlan, View
from featurelib.engine.records import ACCEPTED_AT, TIME, record_schema
from featurelib.engine.slices import Ints
from featurelib.engine.spine import Asked, rows_at_once, rows_of
from featurelib.stores.history import History
from featurelib.stores.online_reader import Lookup

# A condition that names every key is cheap for the reader up to here; beyond it the key groups narrow enough.
_MOST_KEYS = 1_000

Cut = Mapping[str, Sequence[int]]
"""Per dataset, as ``Name@version``, and log partition the offset at which a read stops."""


class Evidence(NamedTuple):
    """What a row is made of: the row, and the newest event time at which a record changed it; ``None``: none did."""

    row: Row
    event_time: Instant | None


class _Range(NamedTuple):
    keys: pl.Series
    since: Instant | None
    until: Instant


def programs_of(plan: ReadPlan) -> list[Program]:
    """Every pipeline a featureset may read, those its extractors look up included."""
    return [view.program for view in (*plan.views, *plan.lookup_views.values())]


class SpineReader:
    """Reads the rows of one spine, all of them of the same records. Blocking: an event loop runs it in a thread.

    Args:
        history: archive and log.
        cut: where to stop, for every dataset that is read.
        knowledge: ``as_served`` counts, for each row, only records accepted at or before its instant.
    """

    def __init__(self, history: History, cut: Cut, knowledge: Knowledge = "latest") -> None:
        self.cut = cut
        self._history = history
        self._knowledge = knowledge

    def rows(self, view: View, asked: Sequence[Asked]) -> list[Row]:
        """The rows of a view, in order; ``None`` for a key that had no record by its instant.

        Raises:
            StoreUnavailable: the log or the archive does not answer.
            ValueOverflow: a sum left the range of its type, for whichever row.
        """
        if not asked:
            return []
        instants = np.array([at for _, at in asked], dtype=np.int64)
        return rows_of(self.frame(view, pl.Series([key for key, _ in asked], dtype=pl.String), instants))

    def frame(self, view: View, keys: pl.Series, instants: Ints) -> pl.DataFrame:
        """The rows of a view as :func:`~featurelib.engine.asof.evaluate` gives them: one per key text and instant.

        Raises:
            StoreUnavailable: the log or the archive does not answer.
            ValueOverflow: a sum left the range of its type, for whichever row.
        """
        program, horizon = view.program, view.program.horizon
        if not len(keys):
            nothing = {dataset.name: record_schema(dataset).empty_table() for dataset in program.sources}
            return evaluate(program, program.shape_all(nothing), keys, instants)
        since = None if horizon is None or not program.plain else int(instants.min()) - horizon
        found = self._frame(program, keys, instants, since)
        if since is None or found[KNOWN].all() or not self._has_before(program, since):
            return found
        # Nothing in the longest window: a key that was ever seen is known, and its windows are empty (decision 9).
        known = found[KNOWN].to_numpy()
        older = self._frame(program, keys.filter(pl.Series(~known)), instants[~known], None)
        line = np.argsort(np.concatenate([np.flatnonzero(known), np.flatnonzero(~known)]))
        return pl.concat([found.filter(pl.Series(known)), older])[pl.Series(line)]

    def evidence(self, lookup: Lookup) -> Evidence:
        """The row of one key at an instant, and when it changed last, by event time.

        Raises:
            StoreUnavailable: the log or the archive does not answer.
            ValueOverflow: a sum left the range of its type.
        """
        program, key, at = lookup
        wanted = _Range(pl.Series([key]), None, at)
        records = {dataset.name: self._records(program, dataset, wanted) for dataset in program.sources}
        if self._knowledge == "as_served":
            records = _accepted_by(at, records)
        shaped = program.shape_all(records).filter(pl.col(KEY) == key)
        (row,) = rows_at_once(program, shaped, [(key, at)])
        instants = pl.concat([shaped[TIME], shaped[UNTIL].drop_nulls()])
        newest = instants.filter(instants <= at).max()
        return Evidence(row, None if newest is None else int(cast("int", newest)))

    def _frame(self, program: Program, keys: pl.Series, instants: Ints, since: Instant | None) -> pl.DataFrame:
        wanted = _Range(keys.unique(), since, int(instants.max()))
        records = {dataset.name: self._records(program, dataset, wanted) for dataset in program.sources}
        if self._knowledge == "latest":
            return evaluate(program, program.shape_all(records), keys, instants)
        if program.plain and not program.rights:
            return evaluate(program, program.shape_all(records), keys, instants, knowledge="as_served")
        return _as_served(program, records, keys, instants)

    def _has_before(self, program: Program, since: Instant) -> bool:
        cut = dict(enumerate(self.cut[ref(program.left)]))
        return self._history.has_before(program.left, cut, since)

    def _records(self, program: Program, dataset: DatasetDef, wanted: _Range) -> pa.Table:
        # Of a plain pipeline only the left records of the keys that are asked for, and within reach of a window, can
        # count. Right sides, and records of any other pipeline, may bear on any key at any time.
        left = program.plain and dataset == program.left
        keyed = left and program.keyed_like_its_dataset()
        offsets = self.cut[ref(dataset)]
        return self._history.read(
            dataset,
            len(offsets),
            keys=wanted.keys.sort().to_list() if keyed and len(wanted.keys) <= _MOST_KEYS else None,
            groups=np.unique(key_groups(wanted.keys)).tolist() if keyed else None,
            since=wanted.since if left else None,
            until=wanted.until,
            cut=dict(enumerate(offsets)),
            columns=program.left_columns() if keyed and dataset not in program.rights else None,
            # The engine orders what it makes of them; a user's function gets them as they are.
            ordered=not keyed,
        )


def _as_served(program: Program, records: Mapping[str, pa.Table], keys: pl.Series, instants: Ints) -> pl.DataFrame:
    """Rows of a pipeline whose rows depend on other records than their own: instant by instant."""
    lines = [np.flatnonzero(instants == at) for at in np.unique(instants)]
    frames = [
        evaluate(
            program,
            program.shape_all(_accepted_by(int(instants[these[0]]), records)),
            keys.gather(pl.Series(these)),
            instants[these],
        )
        for these in lines
    ]
    return pl.concat(frames)[pl.Series(np.argsort(np.concatenate(lines)))]


def _accepted_by(at: Instant, records: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    return {name: table.filter(pc.field(ACCEPTED_AT) <= at) for name, table in records.items()}
