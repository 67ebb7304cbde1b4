"""Golden cases of feature-platform semantics against this platform.

    python -m tests.support.semantics FILE            in process
    python -m tests.support.semantics FILE --live     over HTTP, against the platform that Config.load() names

Prints each value that failed or is not offered, with the reason, then ``N passed, N failed, N not offered`` over all
expected values of the file. The exit status is 1 if any failed.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Literal, NamedTuple

from featurelib import ThymeClient
from featurelib.clock import parse_instant
from featurelib.errors import InvalidTimestamp, ThymeError
from tests.support.semantics_cases import planned, played
from tests.support.semantics_modules import NotOffered, first_line
from tests.support.semantics_platforms import InProcess, Live, Platform, folder

CONVENTION = "closed"
"""Ours of the conventions a file may list: ``[q-W, q]`` (decision 3)."""
DECISIONS = {
    "avg": 9, "count": 9, "sum": 9, "min": 9, "max": 9, "percentile_rank_of_last": 12, "aggregate": 3, "cdc": 13,
    "mutations": 13, "lookup": 8, "pit_join": 14, "watermark": 6, "handoff": 17, "two_stage": 15,
    "latest_then_count": 15, "expectations": 23, "extractor": 19, "batch_query": 25, "sessions": 3,
    "row_aggregate": 3, "window_bounds": 3, "window_ends": 3, "merge": 12, "sketch": 12, "feature_defaults": 9,
}  # fmt: skip
"""The decision that a kind of case falls under, named beside a failure."""

Status = Literal["passed", "failed", "not offered"]


class Outcome(NamedTuple):
    """One expected value: where it stands in the file, and what became of it."""

    case: str
    query: int
    name: str
    status: Status
    detail: str = ""

    def line(self) -> str:
        """One line for people."""
        return f"{self.status:11} {self.case} query {self.query} {self.name}: {self.detail}"


def outcomes(cases: Sequence[Mapping[str, Any]], platform: Platform) -> Iterator[Outcome]:
    """Every expected value of some cases, in order."""
    for case in cases:
        yield from _of_case(case, platform)


def _of_case(case: Mapping[str, Any], platform: Platform) -> Iterator[Outcome]:
    try:
        plan = planned(case, platform)
    except NotOffered as reason:
        yield from _all(case, "not offered", str(reason))
        return
    except (*_MISREAD, ThymeError) as error:
        # A spec of a form nobody has seen yet: it is told, and the other cases go on.
        yield from _all(case, "not offered", f"the runner cannot read the spec: {_named(error)}")
        return
    try:
        rows = played(plan, case["queries"], platform)
    except NotOffered as reason:
        yield from _all(case, "not offered", str(reason))
    except (*_MISREAD, ThymeError, TimeoutError) as error:
        yield from _all(case, "failed", _named(error))
    else:
        for place, (query, row) in enumerate(zip(case["queries"], rows, strict=True)):
            for name, expected in query["expect"].items():
                yield _judged(case, place, name, expected, row)


_MISREAD = (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration, SyntaxError)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _all(case: Mapping[str, Any], status: Status, detail: str) -> Iterator[Outcome]:
    for place, query in enumerate(case["queries"]):
        for name in query["expect"]:
            yield Outcome(str(case["id"]), place, name, status, detail)


def _judged(case: Mapping[str, Any], place: int, name: str, expected: Any, row: Mapping[str, Any]) -> Outcome:
    found = row.get(name)
    if isinstance(found, NotOffered):
        return Outcome(case["id"], place, name, "not offered", str(found))
    if fits(expected, found, float(case.get("tolerance") or 0), present=name in row):
        return Outcome(case["id"], place, name, "passed")
    decision = DECISIONS.get(str(case["kind"]))
    ours = f" (ours: decision {decision})" if decision else ""
    return Outcome(case["id"], place, name, "failed", f"expected {expected!r}, found {found!r}{ours}")


def fits(expected: Any, found: Any, tolerance: float, *, present: bool = True) -> bool:  # noqa: PLR0911  # a table
    """Whether a value is what a case expects, in any of the forms a file may use."""
    if isinstance(expected, Mapping):
        if "any_of" in expected:
            return any(fits(each, found, tolerance, present=present) for each in expected["any_of"])
        if "by_convention" in expected:
            return fits(expected["by_convention"][CONVENTION], found, tolerance, present=present)
        if "set" in expected:
            return isinstance(found, list) and _same_set(expected["set"], found, tolerance)
        if "absent" in expected:
            return (found is None) == bool(expected["absent"])
        if "between" in expected:
            low, high = expected["between"]
            return isinstance(found, int | float | Decimal) and low <= found <= high
        if "decimal" in expected:
            return _decimal(expected["decimal"]) == _decimal(found) is not None
        return (
            isinstance(found, Mapping)
            and set(expected) == set(found)
            and all(fits(value, found[name], tolerance) for name, value in expected.items())
        )
    if expected == "absent":
        return found is None
    return _plain(expected, found, tolerance)


def _plain(expected: Any, found: Any, tolerance: float) -> bool:
    if isinstance(expected, list):
        return (
            isinstance(found, list)
            and len(found) == len(expected)
            and all(fits(one, two, tolerance) for one, two in zip(expected, found, strict=True))
        )
    if expected is None or found is None or isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    if isinstance(expected, int | float) and isinstance(found, int | float | Decimal):
        if isinstance(expected, int) and isinstance(found, int):
            return abs(expected - found) <= tolerance
        return math.isclose(float(found), float(expected), rel_tol=tolerance, abs_tol=tolerance)
    return bool(expected == found) or _same_instant(expected, found)


def _same_set(expected: Sequence[Any], found: Sequence[Any], tolerance: float) -> bool:
    left = list(found)
    for value in expected:
        match = next((each for each in left if fits(value, each, tolerance)), _MISSING)
        if match is _MISSING:
            return False
        left.remove(match)
    return not left


_MISSING = object()


def _decimal(value: Any) -> Decimal | None:
    try:
        return Decimal(str(value))
    except InvalidOperation:
        return None


def _same_instant(expected: Any, found: Any) -> bool:
    if not isinstance(expected, str) or not re.match(r"\d{4}-\d\d-\d\d[T ]", expected):
        return False
    try:
        return parse_instant(expected) == parse_instant(found)
    except InvalidTimestamp:
        return False


def summary(found: Sequence[Outcome]) -> str:
    """``N passed, N failed, N not offered``."""
    counts = Counter(outcome.status for outcome in found)
    return ", ".join(f"{counts[status]} {status}" for status in ("passed", "failed", "not offered"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.semantics", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="golden cases")
    parser.add_argument("--live", action="store_true", help="over HTTP, against a running platform")
    parser.add_argument("--case", action="append", help="only the case of this id; may be repeated")
    given = parser.parse_args(arguments)
    cases = [c for c in json.loads(given.file.read_text())["cases"] if not given.case or c["id"] in given.case]
    with folder() as path:
        platform: Platform = Live(Path(path), ThymeClient()) if given.live else InProcess(Path(path))
        found = list(outcomes(cases, platform))
    for outcome in found:
        if outcome.status != "passed":
            print(outcome.line())
    print(summary(found))
    return 1 if any(outcome.status == "failed" for outcome in found) else 0


if __name__ == "__main__":
    sys.exit(main())
