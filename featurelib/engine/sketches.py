"""Summaries of many values in little space: how many are distinct, and how they are spread.

Small sets are kept exactly. What is kept of large ones is a function of what was summarized, never of chance or
of the order of arrival:

    distinct   bytes: sorted hashes up to 400, then an HLL sketch of 4,096 registers (standard error 1.6 %).
               Equal sets give equal bytes however they were cut.
    digest     a list: sorted values up to 4,096 (or up to 190 distinct ones, with their counts), then 190 quantiles.
               Equal panes give equal digests. Each compression moves a rank by at most 0.0027 of the pane, so
               digests are merged many at once, and pairs in long chains are avoided.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from itertools import accumulate
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from datasketches import hll_sketch, hll_union, tgt_hll_type

Floats = npt.NDArray[np.float64]

# 48 bits: two of ten million values meet with a chance of one in six.
_HASH_BYTES = 6
# A sketch of 4,096 registers keeps up to 384 values as a list in order of arrival; above that its bytes
# depend on the set alone.
_MOST_HASHES = 400
_LG_REGISTERS = 12
_HASHES, _SKETCH = b"h", b"s"

MOST_EXACT = 4_096
"""Values a digest keeps exactly (decision 12)."""
# 190 quantiles, the smallest and the largest value: 1,536 bytes. Half a step between two is 0.0026 of the rank.
_QUANTILES = 190

Digest = list[Any]
"""``[n, distinct values, counts or None]`` when exact, else ``[n, bytes]``: doubles, little endian."""


def distinct_of(values: Iterable[Any]) -> bytes:
    """The distinct summary of values of one type; at least one."""
    return _distinct({_hash(value) for value in set(values)})


def merge_distinct(parts: Sequence[bytes]) -> bytes:
    """The summary of the union."""
    hashes = {each for part in parts if part[:1] == _HASHES for each in _hashes(part)}
    sketches = [part for part in parts if part[:1] == _SKETCH]
    if not sketches:
        return _distinct(hashes)
    union = hll_union(_LG_REGISTERS)
    for part in sketches:
        union.update(hll_sketch.deserialize(part[1:]))
    return _SKETCH + _bytes_of_set(union, hashes)


def count_distinct(part: bytes) -> int:
    """How many distinct values were summarized."""
    if part[:1] == _HASHES:
        return len(part) // _HASH_BYTES
    estimate: float = hll_sketch.deserialize(part[1:]).get_estimate()
    return round(estimate)


def _distinct(hashes: set[bytes]) -> bytes:
    if len(hashes) <= _MOST_HASHES:
        return _HASHES + b"".join(sorted(hashes))
    return _SKETCH + _bytes_of_set(hll_union(_LG_REGISTERS), hashes)


def _bytes_of_set(union: hll_union, more: set[bytes]) -> bytes:
    for each in sorted(more):
        union.update(int.from_bytes(each))
    # A sketch remembers an estimate that depends on the order of arrival. United with itself it goes by its
    # registers alone.
    itself = hll_union(_LG_REGISTERS)
    for _ in range(2):
        itself.update(union.get_result(tgt_hll_type.HLL_8))
    return cast("bytes", itself.get_result(tgt_hll_type.HLL_4).serialize_compact())


def _hashes(part: bytes) -> list[bytes]:
    return [part[start : start + _HASH_BYTES] for start in range(1, len(part), _HASH_BYTES)]


def _hash(value: Any) -> bytes:
    # ascii() tells 1, 1.0, True and "1" apart; adding 0.0 makes -0.0 the 0.0 it equals.
    text = ascii(value + 0.0 if isinstance(value, float) else value)
    return blake2b(text.encode(), digest_size=_HASH_BYTES).digest()


def digest_of(values: Sequence[Any]) -> Digest:
    """The digest of some numbers; at least one."""
    return _digest(len(values), Counter(values))


def merge_digests(parts: Sequence[Digest]) -> Digest:
    """The digest of all; compressed once, however many they are."""
    if len(parts) == 1:
        return parts[0]
    size = sum(part[0] for part in parts)
    if all(map(_is_exact, parts)):
        counts: Counter[Any] = Counter()
        for part in parts:
            counts.update(dict(zip(part[1], part[2] or [1] * len(part[1]), strict=True)))
        return _digest(size, counts)
    values, weights, ends = zip(*map(_points, parts), strict=True)
    return _compressed(size, np.concatenate(values), np.concatenate(weights), [end for pair in ends for end in pair])


def value_at(digest: Digest, share: float) -> float:
    """The value at a share (0 to 1) of the sorted values, between two of them by their distance."""
    size = digest[0]
    if not _is_exact(digest):
        curve, ranks = _curve(digest)
        return float(np.interp(share * size, ranks, curve))
    whole = min(math.floor(share * (size - 1)), size - 1)
    values, below = digest[1], list(accumulate(digest[2] or [1] * len(digest[1])))
    low = values[bisect_right(below, whole)]
    high = values[min(bisect_right(below, whole + 1), len(values) - 1)]
    return _between(low, high, share * (size - 1) - whole)


def share_below(digest: Digest, value: float) -> float:
    """The share of the values that are strictly below."""
    size: int = digest[0]
    if _is_exact(digest):
        place = bisect_left(digest[1], value)
        below: int = sum(digest[2][:place]) if digest[2] else place
        return below / size
    curve, ranks = _curve(digest)
    low, high = (int(np.searchsorted(curve[1:-1], value, side)) for side in ("left", "right"))
    # A value that is itself a quantile, perhaps several times: what lies below begins where they begin.
    rank = low * size / _QUANTILES if high > low else float(np.interp(value, curve, ranks))
    return rank / size


def _digest(size: int, counts: Counter[Any]) -> Digest:
    values = sorted(counts)
    if size > MOST_EXACT and len(values) > _QUANTILES:
        weights = np.array([counts[value] for value in values], dtype=np.float64)
        return _compressed(size, np.array(values, dtype=np.float64), weights, [values[0], values[-1]])
    return [size, values, None if len(values) == size else [counts[value] for value in values]]


def _is_exact(digest: Digest) -> bool:
    return len(digest) == 3  # noqa: PLR2004  # values and counts apart


def _points(digest: Digest) -> tuple[Floats, Floats, tuple[float, float]]:
    """Values, their weights, and the smallest and largest value."""
    if _is_exact(digest):
        values = np.array(digest[1], dtype=np.float64)
        weights = np.ones(len(values)) if digest[2] is None else np.array(digest[2], dtype=np.float64)
        return values, weights, (values[0], values[-1])
    curve = np.frombuffer(digest[1], dtype="<f8")
    return curve[1:-1], np.full(_QUANTILES, digest[0] / _QUANTILES), (curve[0], curve[-1])


def _compressed(size: int, values: Floats, weights: Floats, ends: Sequence[float]) -> Digest:
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    # A point stands in the middle of its own weight, a value of more than a step from half a step after its begin
    # to half a step before its end. New points are read off the line through all: taking the nearest old ones
    # instead would let them stick while the values drift.
    step, reached = size / _QUANTILES, np.cumsum(weights)
    half = np.minimum(weights, step) / 2
    between = np.column_stack((reached - weights + half, reached - half)).ravel()
    ranks = np.concatenate([[0.0], between, [size]])
    curve = np.concatenate([[min(ends)], np.repeat(values, 2), [max(ends)]])
    wanted = (np.arange(_QUANTILES) + 0.5) * step
    points = np.concatenate([[min(ends)], _interpolated(wanted, ranks, curve), [max(ends)]])
    return [size, points.astype("<f8").tobytes()]


def _curve(digest: Digest) -> tuple[Floats, Floats]:
    """Values and the ranks at which they stand."""
    size = digest[0]
    middles = (np.arange(_QUANTILES) + 0.5) * (size / _QUANTILES)
    return np.frombuffer(digest[1], dtype="<f8"), np.concatenate([[0.0], middles, [size]])


def _interpolated(wanted: npt.NDArray[Any], ranks: Floats, curve: Floats) -> Floats:
    # At half scale, since the difference of two finite floats may be infinite.
    found: Floats = np.interp(wanted, ranks, curve / 2) * 2
    return found


def _between(low: Any, high: Any, share: float) -> float:
    if low == high:
        return float(low)
    # Weighted, since the difference of two finite floats may be infinite.
    return float(low * (1 - share) + high * share)
