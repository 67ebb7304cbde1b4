"""The rows of a spine from archive and log: many keys, each at its own instant, read once per pipeline.

What a row holds is what a point-in-time read of that one key at that one instant gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from featurelib.clock import Instant
from featurelib.definitions import DatasetDef, ref
from featurelib.engine.asof import Knowledge
from featurelib.engine.extractor import Row
from featurelib.engine.fold import KEY
from featurelib.engine.keys import key_group
from featurelib.engine.operators import UNTIL
from featurelib.engine.program import Program
from featurelib.engine.read_plan import ReadPlan, View
from featurelib.engine.records import ACCEPTED_AT, TIME
from featurelib.engine.spine import Asked, rows_at_once
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
    keys: list[str]
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
        program, horizon = view.program, view.program.horizon
        if not asked:
            return []
        since = None if horizon is None or not program.plain else min(at for _, at in asked) - horizon
        found = self._rows(program, asked, since)
        # Nothing in the longest window: a key that was ever seen is known, and its windows are empty (decision 9).
        unseen = [line for line, row in enumerate(found) if row is None] if since is not None else []
        if unseen:
            older = self._rows(program, [asked[line] for line in unseen], None)
            for line, row in zip(unseen, older, strict=True):
                found[line] = row
        return found

    def evidence(self, lookup: Lookup) -> Evidence:
        """The row of one key at an instant, and when it changed last, by event time.

        Raises:
            StoreUnavailable: the log or the archive does not answer.
            ValueOverflow: a sum left the range of its type.
        """
        program, key, at = lookup
        wanted = _Range([key], None, at)
        records = {dataset.name: self._records(program, dataset, wanted) for dataset in program.sources}
        if self._knowledge == "as_served":
            records = _accepted_by(at, records)
        shaped = program.shape_all(records).filter(pl.col(KEY) == key)
        (row,) = rows_at_once(program, shaped, [(key, at)])
        instants = pl.concat([shaped[TIME], shaped[UNTIL].drop_nulls()])
        newest = instants.filter(instants <= at).max()
        return Evidence(row, None if newest is None else int(cast("int", newest)))

    def _rows(self, program: Program, asked: Sequence[Asked], since: Instant | None) -> list[Row]:
        keys = sorted({key for key, _ in asked})
        wanted = _Range(keys, since, max(at for _, at in asked))
        records = {dataset.name: self._records(program, dataset, wanted) for dataset in program.sources}
        if self._knowledge == "latest":
            return rows_at_once(program, program.shape_all(records), asked)
        if program.plain and not program.rights:
            return rows_at_once(program, program.shape_all(records), asked, "as_served")
        return _as_served(program, records, asked)

    def _records(self, program: Program, dataset: DatasetDef, wanted: _Range) -> pa.Table:
        # Of a plain pipeline only the left records of the keys that are asked for, and within reach of a window, can
        # count. Right sides, and records of any other pipeline, may bear on any key at any time.
        left = program.plain and dataset == program.left
        keyed = left and program.keyed_like_its_dataset()
        offsets = self.cut[ref(dataset)]
        return self._history.read(
            dataset,
            len(offsets),
            keys=wanted.keys if keyed and len(wanted.keys) <= _MOST_KEYS else None,
            groups=sorted({key_group(key) for key in wanted.keys}) if keyed else None,
            since=wanted.since if left else None,
            until=wanted.until,
            cut=dict(enumerate(offsets)),
        )


def _as_served(program: Program, records: Mapping[str, pa.Table], asked: Sequence[Asked]) -> list[Row]:
    """Rows of a pipeline whose rows depend on other records than their own: instant by instant."""
    by_instant: dict[Instant, list[int]] = {}
    for line, (_, at) in enumerate(asked):
        by_instant.setdefault(at, []).append(line)
    found: dict[int, Row] = {}
    for at, lines in by_instant.items():
        rows = rows_at_once(program, program.shape_all(_accepted_by(at, records)), [asked[line] for line in lines])
        found.update(zip(lines, rows, strict=True))
    return [found[line] for line in range(len(asked))]


def _accepted_by(at: Instant, records: Mapping[str, pa.Table]) -> dict[str, pa.Table]:
    return {name: table.filter(pc.field(ACCEPTED_AT) <= at) for name, table in records.items()}
