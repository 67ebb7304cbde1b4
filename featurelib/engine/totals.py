"""Exact sums of floats, so that a total does not depend on how its values were cut, ordered or taken back.

A *total* is a list of floats, largest first, whose exact sum is the total; the first is the total rounded. Most
totals have one or two members. Sums beyond the range of floats on the way are one integer in a list of its own,
``[[units]]``, in units of 2^-2148: the smallest square of a float.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

Total = list[Any]
_UNIT_BITS = 2148
# Squares between these have an error term that is a float too (Dekker's product).
_LEAST_SQUARE, _LARGEST_SQUARE = 1e-270, 1e290
_SPLITTER = 134_217_729.0  # 2^27 + 1


def total_of(values: Sequence[float]) -> Total:
    """The exact sum of finite floats."""
    try:
        return _parts(values)
    except OverflowError:
        return [[sum(map(_units, values))]]


def merged(totals: Iterable[Total]) -> Total:
    """The exact sum of totals."""
    members: list[Any] = []
    for total in totals:
        members += total
    try:
        return _parts(members)
    except (TypeError, OverflowError):  # one is an integer in a list, or they leave the range of floats on the way
        return [[sum(member[0] if type(member) is list else _units(member) for member in members)]]


def plus(one: Total, other: Total) -> Total:
    """The exact sum of two totals."""
    try:
        return _parts([*one, *other])
    except (TypeError, OverflowError):
        return merged((one, other))


def negated(total: Total) -> Total:
    """The total with the opposite sign."""
    return [[-member[0]] if type(member) is list else -member for member in total]


def halved(total: Total, times: int) -> Total:
    """The total divided by ``2^times``; exact unless it leaves the range of floats at the small end."""
    if type(total[0]) is list:
        return [[total[0][0] >> times]]
    return [math.ldexp(member, -times) for member in total] if times else total


def total_of_squares(values: Sequence[float]) -> Total:
    """The exact sum of the squares of finite floats."""
    squares = [value * value for value in values]
    if min(squares, default=1.0) < _LEAST_SQUARE or max(squares, default=1.0) > _LARGEST_SQUARE:
        values = [value for value in values if value != 0.0]
        squares = [value * value for value in values]
        if min(squares, default=1.0) < _LEAST_SQUARE or max(squares, default=1.0) > _LARGEST_SQUARE:
            return [[sum(map(_square_units, values))]]
    # Dekker: the square and its rounding error, both exact.
    highs = [(scaled := value * _SPLITTER) - (scaled - value) for value in values]
    squares += [
        ((high * high - square) + 2.0 * high * (low := value - high)) + low * low
        for value, high, square in zip(values, highs, squares, strict=True)
    ]
    return total_of(squares)


def rounded(total: Total) -> float:
    """The nearest float; infinite when the total is beyond what a float holds."""
    if type(total[0]) is not list:
        return float(total[0])
    units = total[0][0]
    try:
        return float(units / (1 << _UNIT_BITS))
    except OverflowError:
        return math.inf if units > 0 else -math.inf


def exact(total: Total) -> tuple[int, int]:
    """The total as an integer and the power of two that divides it."""
    if type(total[0]) is list:
        return total[0][0], _UNIT_BITS
    if len(total) == 1:
        numerator, denominator = total[0].as_integer_ratio()
        return numerator, denominator.bit_length() - 1
    ratios = [member.as_integer_ratio() for member in total]
    bits = max([denominator.bit_length() for _, denominator in ratios]) - 1
    return sum([number << (bits + 1 - denominator.bit_length()) for number, denominator in ratios]), bits


def _parts(values: Sequence[float]) -> list[float]:
    # fsum rounds once; what it rounded away is summed again until nothing is left.
    parts = [math.fsum(values)]
    rest = [*values, -parts[0]]
    while (part := math.fsum(rest)) != 0.0:
        parts.append(part)
        rest.append(-part)
    return parts


def _units(value: float) -> int:
    numerator, denominator = value.as_integer_ratio()
    return numerator << (_UNIT_BITS + 1 - denominator.bit_length())


def _square_units(value: float) -> int:
    numerator, denominator = value.as_integer_ratio()
    return numerator * numerator << (_UNIT_BITS + 2 - 2 * denominator.bit_length())
