"""Sketches: exact while small, within their bound beyond, and never a matter of chance or of arrival."""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurelib.aggregates import ApproxDistinct, ApproxPercentile, Quantile
from featurelib.engine.aggregators import aggregator_for
from featurelib.engine.codec import decode, encode
from featurelib.engine.partials import FIRST_VALUE, Input
from featurelib.engine.sketches import (
    MOST_EXACT,
    Digest,
    count_distinct,
    digest_of,
    distinct_of,
    merge_digests,
    merge_distinct,
    share_below,
    value_at,
)

PANES, PANE = 300, 4_500
SHAPES: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "uniform": lambda rng, n: rng.uniform(size=n),
    "heavy_tailed": lambda rng, n: rng.pareto(0.5, size=n),
    "all_equal": lambda _, n: np.full(n, 3.5),
    "sorted": lambda rng, n: np.sort(rng.normal(size=n)),
    "falling": lambda rng, n: np.sort(rng.normal(size=n))[::-1],
    "drifting": lambda rng, n: rng.normal(size=n) + np.arange(n) / PANE,
    "few_values": lambda rng, n: rng.integers(0, 50, size=n).astype(float),
    "spikes_and_spread": lambda rng, n: np.where(
        rng.uniform(size=n) < 0.6, np.round(rng.exponential(3, size=n)), 2 + rng.normal(size=n) / 1000
    ),
}


def by_eights(parts: list[Digest]) -> Digest:
    """Merged as the panes of a tree are."""
    while len(parts) > 1:
        parts = [merge_digests(parts[i : i + 8]) for i in range(0, len(parts), 8)]
    return parts[0]


def at_once(parts: list[Digest]) -> Digest:
    """Merged as a read merges the panes of its window."""
    return merge_digests(parts)


def rank_error(digest: Digest, values: Any) -> float:
    """The farthest that any quantile, or the share below any value, lies from the truth."""
    ordered = np.sort(values)
    wanted = np.linspace(0, 1, 201)
    found = np.array([value_at(digest, float(share)) for share in wanted])
    # Interpolated values lie a rounding beside the equal ones they stand for.
    slack = 1e-12 * np.maximum(1, np.abs(found))
    lowest = np.searchsorted(ordered, found - slack, "left") / len(ordered)
    highest = np.searchsorted(ordered, found + slack, "right") / len(ordered)
    quantiles = np.maximum(lowest - wanted, wanted - highest).max()
    present = ordered[:: len(ordered) // 200]
    below = np.searchsorted(ordered, present, "left") / len(ordered)
    shares = np.array([share_below(digest, float(value)) for value in present])
    return float(max(quantiles, np.abs(shares - below).max()))


@pytest.mark.parametrize("merge", [by_eights, at_once])
@pytest.mark.parametrize("shape", SHAPES)
def test_hundreds_of_merged_panes_keep_every_rank_within_a_hundredth(shape: str, merge: Any) -> None:
    values = SHAPES[shape](np.random.default_rng(7), PANES * PANE)
    panes = [digest_of(values[i : i + PANE].tolist()) for i in range(0, len(values), PANE)]
    assert rank_error(merge(panes), values) <= 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_panes_of_a_few_dozen_values_merge_as_well_as_large_ones(shape: str) -> None:
    values = SHAPES[shape](np.random.default_rng(8), 64 * 600)
    panes = [digest_of(values[i : i + 64].tolist()) for i in range(0, len(values), 64)]
    assert rank_error(by_eights(panes), values) <= 0.01


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.one_of(st.integers(-5, 5), st.integers(-(2**62), 2**62)), min_size=1, max_size=60),
    share=st.floats(0, 1),
)
def test_a_small_digest_is_exact(values: list[int], share: float) -> None:
    digest = merge_digests([digest_of(values[: len(values) // 2] or values[:1]), digest_of(values)])
    held = [*(values[: len(values) // 2] or values[:1]), *values]
    assert value_at(digest, share) == pytest.approx(float(np.quantile(np.array(held, dtype=np.float64), share)))
    for value in held:
        assert share_below(digest, value) == sum(other < value for other in held) / len(held)


def test_a_digest_is_exact_up_to_4096_values_and_an_estimate_from_there() -> None:
    values = np.random.default_rng(3).normal(size=MOST_EXACT + 1).tolist()
    halves = [digest_of(values[:2_000]), digest_of(values[2_000:MOST_EXACT])]
    assert value_at(merge_digests(halves), 0.37) == pytest.approx(
        float(np.quantile(values[:MOST_EXACT], 0.37)), rel=1e-12
    )
    beyond = merge_digests([*halves, digest_of(values[MOST_EXACT:])])
    assert len(encode(beyond)) < 1_600 < len(encode(merge_digests(halves)))
    assert rank_error(beyond, np.array(values)) <= 0.01


def test_few_distinct_values_stay_exact_however_many_there_are() -> None:
    values = [1, 2, 2, 5] * 50_000
    digest = merge_digests([digest_of(values), digest_of([9] * 100_000)])
    assert share_below(digest, 5) == 0.5
    assert share_below(digest, 9) == 200_000 / 300_000
    assert len(encode(digest)) < 60


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.sampled_from((10, 500, MOST_EXACT, 6_000)))
def test_a_pane_gives_equal_bytes_in_any_order_of_arrival(seed: int, size: int) -> None:
    values = np.random.default_rng(seed).normal(size=size).tolist()
    shuffled = random.Random(seed).sample(values, size)
    assert encode(digest_of(values)) == encode(digest_of(shuffled))
    edges = sorted({0, size // 3, size})
    parts = [digest_of(values[low:high]) for low, high in pairwise(edges)]
    assert encode(merge_digests(parts)) == encode(merge_digests([digest_of(p) for p in map(_values, parts)]))


def _values(digest: Digest) -> list[float]:
    return [v for v, n in zip(digest[1], digest[2] or [1] * len(digest[1]), strict=True) for _ in range(n)]


def test_extremes_of_the_float_range_stay_finite() -> None:
    digest = digest_of([place * 3.4e304 for place in range(-5_000, 5_001)])
    assert all(np.isfinite(value_at(digest, share / 100)) for share in range(101))


@pytest.mark.parametrize("size", [0, 1, 7, 399, 400, 401, 3_000, 40_000])
def test_a_set_gives_equal_bytes_however_it_is_cut_ordered_or_repeated(size: int) -> None:
    rng = random.Random(size)
    values = rng.sample(range(10**9), size)
    if not values:
        return
    wanted = distinct_of(values)
    for cuts in range(4):
        again = [*values, *rng.choices(values, k=size // 2)]
        rng.shuffle(again)
        edges = [0, *sorted(rng.sample(range(1, len(again)), min(cuts, len(again) - 1))), len(again)]
        parts = [distinct_of(again[low:high]) for low, high in pairwise(edges)]
        rng.shuffle(parts)
        chained = parts[0]
        for part in parts[1:]:
            chained = merge_distinct([chained, part])
        assert merge_distinct(parts) == chained == wanted


@pytest.mark.parametrize("size", [100, 400, 1_000, 10_000, 100_000])
def test_distinct_counts_are_exact_when_small_and_close_when_large(size: int) -> None:
    found = count_distinct(distinct_of(f"user-{i}" for i in range(size)))
    assert found == size if size <= 400 else abs(found - size) <= 0.05 * size


def test_overlapping_sets_are_counted_once() -> None:
    union = merge_distinct([distinct_of(range(6_000)), distinct_of(range(4_000, 10_000))])
    assert count_distinct(union) == pytest.approx(10_000, rel=0.05)


def test_values_of_different_types_are_different_values() -> None:
    assert count_distinct(distinct_of(["1", "1.0", "True"])) == 3
    parts = [distinct_of([value]) for value in (1, 1.0, True, "1")]
    assert len(set(parts)) == 4
    assert distinct_of([0.0]) == distinct_of([-0.0])


SIZES = [
    (Quantile("v"), {1: 20, 64: 700, 4_096: 37_000, 100_000: 1_600}),
    (ApproxPercentile("v"), {1: 50, 64: 750, 4_096: 37_100, 100_000: 1_650}),
    (ApproxDistinct("v"), {1: 12, 64: 400, 4_096: 2_150, 100_000: 2_150}),
]


@pytest.mark.parametrize(("aggregate", "most"), SIZES, ids=["quantile", "rank", "approx_distinct"])
def test_partials_stay_within_their_size(aggregate: Any, most: dict[int, int]) -> None:
    algebra = aggregator_for(aggregate, Input(FIRST_VALUE, "float", None))
    values = np.random.default_rng(1).normal(size=100_000).tolist()
    rows = [(10**15 + place, 10**15, place, "", None, value, 0) for place, value in enumerate(values)]
    for size, limit in most.items():
        partial = algebra.fold(rows[:size])
        assert len(encode(partial)) <= limit
        assert algebra.finish(decode(encode(partial)), 2 * 10**15) == algebra.finish(partial, 2 * 10**15)


def test_a_quantile_of_decimals_is_read_in_their_unit() -> None:
    algebra = aggregator_for(Quantile("v"), Input(FIRST_VALUE, "decimal(2)", None))
    rows = [(place, 0, place, "", None, Decimal(place) / 4, 0) for place in range(4)]
    assert algebra.finish(algebra.fold(rows), 10) == 0.375
