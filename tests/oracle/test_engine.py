"""The engine against lists and loops: random pipelines over random records, read at and around every edge.

Each world goes one of the engine's three ways, in turn by its seed; in the profile ``soak`` it goes all of them.
``ORACLE_SCALE=10`` runs ten times as many worlds; ``ORACLE_SEED=123`` begins at another seed.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.support.paths import Path, as_of_now, at_once, differences, from_states, is_valid, report, streamed
from tests.support.profiles import by_profile
from tests.support.random_pipelines import World, shrunk, world

SCALE = float(os.environ.get("ORACLE_SCALE", "1"))
FIRST = int(os.environ.get("ORACLE_SEED", "0"))
WORLDS = round(600 * SCALE)
CHUNKS = 12
TURNS = 3
LEAST = 20
"""How often each operator, window and aggregate occurs in a run; a quarter of it in what goes each way."""
FEATURES = {
    *(f"step:{op}" for op in ("filter", "filter_code", "transform", "assign", "rename", "select", "drop", "explode")),
    *(f"step:{op}" for op in ("join", "within", "union", "dedup", "latest", "first", "intermediate", "chained")),
    *(f"step:{op}" for op in ("final_latest", "final_first", "aggregate")),
    *(f"window:{kind}" for kind in ("continuous", "lifetime", "tumbling", "hopping", "session")),
    *(f"window:{kind}:max_rows" for kind in ("continuous", "lifetime")),
    *(f"window:{kind}:offset_us" for kind in ("continuous", "lifetime", "tumbling", "hopping")),
    "window:hopping:lookback_us",
    *(f"aggregate:{kind}" for kind in ("count", "sum", "avg", "min", "max", "stddev", "variance", "approx_percentile")),
    *(f"aggregate:{kind}" for kind in ("quantile", "exp_decay_sum", "distinct", "approx_distinct", "top_k")),
    *(f"aggregate:{kind}" for kind in ("last", "first", "last_k", "first_k")),
    *("option:where", "option:default"),
    *(f"cdc:{mode}" for mode in ("append", "upsert", "debezium")),
}


def seeds(chunk: int) -> range:
    return range(FIRST + chunk * WORLDS // CHUNKS, FIRST + (chunk + 1) * WORLDS // CHUNKS)


def test_a_run_is_large_enough_and_holds_everything() -> None:
    worlds = [world(seed) for chunk in range(CHUNKS) for seed in seeds(chunk)]
    assert _rarer_than(LEAST, worlds) == {}
    for turn in range(TURNS):
        assert _rarer_than(LEAST // 4, [each for each in worlds if each.seed % TURNS == turn]) == {}
    assert len({each.definitions.pipelines for each in worlds}) >= min(500, len(worlds))
    compared = [as_of_now(each) if each.seed % TURNS == TURNS - 1 else each for each in worlds]
    assert sum(each.pairs for each in compared) >= 100_000 * min(1.0, SCALE)


def _rarer_than(least: int, worlds: list[World]) -> dict[str, int]:
    counts = Counter(name for each in worlds for name in each.features())
    return {name: counts[name] for name in sorted(FEATURES) if counts[name] < least}


def compare(path: Path, drawn: World) -> None:
    if differences(drawn, path):
        pytest.fail(report(drawn, path))


def seeds_of(chunk: int, turn: int) -> list[int]:
    """Those of a chunk that go the way whose turn it is."""
    return [seed for seed in seeds(chunk) if seed % TURNS == turn or by_profile(ci=False, soak=True)]


@pytest.mark.parametrize("path", [from_states, at_once])
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_the_engine_reads_what_lists_and_loops_read(path: Path, chunk: int) -> None:
    for seed in seeds_of(chunk, [from_states, at_once].index(path)):
        compare(path, world(seed))


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_it_reads_the_same_however_the_records_came(chunk: int) -> None:
    for seed in seeds_of(chunk, TURNS - 1):
        compare(streamed, as_of_now(world(seed)))


def test_every_world_could_be_committed() -> None:
    assert [seed for seed in seeds(0) if not is_valid(world(seed))] == []


def test_a_world_is_a_function_of_its_seed() -> None:
    assert world(5) == world(5)
    assert world(5) != world(6)


def test_a_failing_world_shrinks_to_what_fails() -> None:
    drawn = next(found for seed in range(100) if (found := world(seed)).pipeline.last_step.op == "aggregate")

    def fails(smaller: World) -> bool:
        return any(record["amount"] == wanted for record in smaller.records["Event"])

    wanted = drawn.records["Event"][7]["amount"]
    small = shrunk(drawn, fails)
    assert [record["amount"] for record in small.records["Event"]] == [wanted]
    assert (small.records["Rate"], len(small.reads), len(small.pipeline.steps)) == ([], 1, 1)
