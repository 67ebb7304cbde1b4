"""Which rows count for a pipeline that was told where its history begins, told as a predicate on the system columns.

A row that does not count is left out right before the pipeline's last step, wherever the pipeline runs: a live worker,
a backfill and a read of a past instant give one answer. Right sides of joins are looked up among all records.
"""

from __future__ import annotations

from functools import reduce
from operator import and_

from featurelib.definitions import BackfillDef
from featurelib.engine.records import ACCEPTED_AT, TIME
from featurelib.expr import Node, Predicate, col


def counting(limits: BackfillDef) -> Node | None:
    """The predicate; ``None`` where every row counts."""
    conditions: list[Predicate] = []
    if limits.since_us is not None:
        conditions.append(col(TIME) >= limits.since_us)
    if limits.from_us is not None:
        conditions.append(col(ACCEPTED_AT) >= limits.from_us)
    if not conditions:
        return None
    every: Node = reduce(and_, conditions).node
    return every
