"""Workers, log and archive under every order of faults that Hypothesis thinks of: counts stay those of plain lists.

``MODEL_SCALE=10`` draws ten times as many histories, and other ones on each run; ``MODEL_STEPS`` sets their length.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from featurelib.engine.records import Mark
from featurelib.stores import archive, fenced, log, online
from jobs import worker
from tests.support.redis_server import RedisServer
from tests.support.worker_model import SHAPES, Shape, model_of

SCALE = float(os.environ.get("MODEL_SCALE", "1"))
STEPS = int(os.environ.get("MODEL_STEPS", "30"))
BOUNDED = settings(
    max_examples=round(6 * SCALE),
    stateful_step_count=STEPS,
    deadline=None,
    database=None,
    derandomize=SCALE == 1,
    suppress_health_check=list(HealthCheck),
)
# What is drawn follows from the number of examples: what one draw misses, another one meets.
DRAWS = [settings(BOUNDED, max_examples=most, derandomize=True, phases=[Phase.generate]) for most in (30, 45, 60, 75)]
Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
def test_every_count_is_that_of_the_accepted_records_whatever_happens(shape: Shape, shared_redis: RedisServer) -> None:
    run_state_machine_as_test(model_of(shape, shared_redis), settings=BOUNDED)


class Mutant(NamedTuple):
    """A platform broken on purpose, and the pipeline on which that must show."""

    name: str
    shape: str
    break_it: Callable[[Patch], None]
    without: tuple[str, ...] = ()
    """Rules left out, so that those that show it soonest come often enough: with all of them it took minutes."""


# What happens to workers, and reads: some of these show a broken archive too, but seldom.
_OF_WORKERS = (
    "worker_steps",
    "worker_is_killed_in_a_commit",
    "worker_is_killed_as_it_starts",
    "worker_is_frozen_and_replaced",
    "frozen_worker_wakes_up",
    "workers_are_rescaled",
    "state_is_rebuilt",
    "online_reads_are_of_a_prefix",
    "point_in_time_reads_are_of_everything",
    "a_row_says_of_which_records_it_is",
)


def _no_epoch(patch: Patch) -> None:
    patch.setattr(fenced, "_NOT_OWNED", "return 0")


def _positions_first(patch: Patch) -> None:
    parts = online._parts

    def first(*arguments: Any) -> list[Any]:
        *chunks, last = parts(*arguments)
        return [last, *chunks]

    patch.setattr(online, "_parts", first)


def _nothing_skipped(patch: Patch) -> None:
    patch.setattr(worker.PartitionWorker, "_unapplied", lambda _, shaped: shaped)
    patch.setattr(worker, "_held", lambda *_: [])


MUTANTS = [
    Mutant("nobody_compares_epochs", "keyed_like_its_dataset", _no_epoch),
    Mutant(
        "keys_do_not_say_what_they_have",
        "keyed_like_its_dataset",
        lambda patch: patch.setattr(worker, "_held", lambda *_: []),
    ),
    Mutant("positions_move_before_the_state", "keyed_like_its_dataset", _positions_first),
    Mutant("neither_groups_nor_keys_skip_what_they_have", "keyed_otherwise", _nothing_skipped),
    Mutant(
        "a_row_sent_again_counts_again",
        "keyed_otherwise",
        lambda patch: patch.setattr(log, "_mark", lambda *_: Mark(-1)),
    ),
    Mutant(
        "the_archive_takes_what_it_has",
        "keyed_otherwise",
        lambda patch: patch.setattr(archive, "_unarchived", lambda table, dataset, records: records),
        without=_OF_WORKERS,
    ),
    Mutant(
        "rows_joined_before_their_right_side_stay",
        "joined",
        lambda patch: patch.setattr(worker.RightTable, "with_records", _only_first(worker.RightTable.with_records)),
    ),
    Mutant(
        "groups_of_a_graph_are_not_taken_back",
        "first_of_each",
        lambda patch: patch.setattr(worker.PartitionWorker, "_take_back", lambda *_: None),
    ),
]


def _only_first(with_records: Callable[..., Any]) -> Callable[..., Any]:
    return lambda table, records: table if len(table.frame) else with_records(table, records)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_a_platform_is_caught_in_which(mutant: Mutant, shared_redis: RedisServer, monkeypatch: Patch) -> None:
    mutant.break_it(monkeypatch)
    (shape,) = [shape for shape in SHAPES if shape.name == mutant.shape]
    for drawn in DRAWS:
        try:
            run_state_machine_as_test(model_of(shape, shared_redis, mutant.without), settings=drawn)
        except AssertionError:
            return
    pytest.fail(f"nothing showed that {mutant.name}")
