"""The features of many rows, each of an entity at an instant of its own: offline reads, training sets and tests.

Such rows are a *spine*. Nothing is read here: whoever calls says how the rows of a view are had (:data:`Rows`), and is
asked once per view for all of them, so that a thousand rows cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from featurelib.clock import Instant
from featurelib.engine.asof import KNOWN, Knowledge, evaluate
from featurelib.engine.extractor import Row, Wanted
from featurelib.engine.program import Program
from featurelib.engine.read_plan import Entity, ReadPlan, View
from featurelib.types import Value

Asked = tuple[str, Instant]
"""A key's row as of an instant."""

Rows = Callable[[View, Sequence[Asked]], Sequence[Row]]
"""Gives a view's rows, in order; ``None`` for a key that had no record by its instant."""


class Reading(NamedTuple):
    """One row of a spine: the entity, its requested values by slot, and the instant."""

    entity: Entity
    requested: Sequence[tuple[int, Value]]
    at: Instant


def rows_at_once(
    program: Program, shaped: pl.DataFrame, asked: Sequence[Asked], knowledge: Knowledge = "latest"
) -> list[Row]:
    """The output rows of many keys, as :func:`~featurelib.engine.asof.evaluate` gives them, in the engine's form.

    Args:
        program: the pipeline.
        shaped: every row that may count.
        asked: keys and instants.
        knowledge: ``as_served`` counts only rows accepted at or before their pair's instant.
    """
    instants = np.array([at for _, at in asked], dtype=np.int64)
    return rows_of(evaluate(program, shaped, [key for key, _ in asked], instants, knowledge=knowledge))


def rows_of(frame: pl.DataFrame) -> list[Row]:
    """The rows that :func:`~featurelib.engine.asof.evaluate` gave, one by one and in the engine's form."""
    frame = in_micros(frame)
    known = frame[KNOWN].to_list()
    if frame.width == 1:  # a table that is nothing but its key
        return [{} if had else None for had in known]
    return [row if had else None for row, had in zip(frame.drop(KNOWN).to_dicts(), known, strict=True)]


def in_micros(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with instants as integers, as everywhere in the engine."""
    moments = [pl.col(name).dt.epoch("us") for name, kind in frame.schema.items() if kind == pl.Datetime]
    lists = [
        pl.col(name).cast(pl.List(pl.Int64))
        for name, kind in frame.schema.items()
        if isinstance(kind, pl.List) and kind.inner == pl.Datetime
    ]
    return frame.with_columns(*moments, *lists)


def filled(plan: ReadPlan, readings: Sequence[Reading], rows: Rows) -> list[list[Value]]:
    """One list per slot of the plan, an element per row, with everything in them that needs no extractor.

    Raises:
        InvalidRequest: an id is not of the type a featureset this one depends on gives it.
    """
    asked = [(reading.entity.key, reading.at) for reading in readings]
    found = [rows(view, asked) for view in plan.views]
    lines: list[list[Value]] = []
    for number, reading in enumerate(readings):
        values = plan.values(reading.entity, reading.requested)
        plan.fill(values, reading.entity, [column[number] for column in found])
        lines.append(values)
    return [list(column) for column in zip(*lines, strict=True)]


def looked_up(plan: ReadPlan, wanted: Sequence[Wanted], rows: Rows) -> dict[Wanted, Row]:
    """The rows that extractors look up themselves: one call of ``rows`` per dataset."""
    by_dataset: dict[str, list[Wanted]] = {}
    for each in wanted:
        by_dataset.setdefault(each.dataset, []).append(each)
    found: dict[Wanted, Row] = {}
    for dataset, these in by_dataset.items():
        view = plan.lookup_views[dataset]
        found.update(zip(these, rows(view, [(each.key, each.at) for each in these]), strict=True))
    return found


def feature_columns(
    plan: ReadPlan, readings: Sequence[Reading], rows: Rows, rows_looked_up: Rows | None = None
) -> list[list[Value]]:
    """The featureset's own features, a list each in declared order with an element per row, in the engine's form.

    Args:
        plan: the featureset.
        readings: the spine.
        rows: gives the rows of the plan's views.
        rows_looked_up: gives those that extractors look up themselves; left out, ``rows`` does.

    Raises:
        InvalidRequest: an id does not fit.
        UserCodeError: an extractor failed, for whichever row.
    """
    if not readings:
        return [[] for _ in plan.feature_names]
    columns = filled(plan, readings, rows)
    batch = plan.graph.batch(columns, [reading.at for reading in readings])
    fetched: Mapping[Wanted, Row] = {}
    while (wanted := batch.turn(fetched)) is not None:
        fetched = {**fetched, **looked_up(plan, wanted, rows_looked_up or rows)} if wanted else fetched
    return columns[: len(plan.feature_names)]
