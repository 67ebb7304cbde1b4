"""Golden cases of feature-platform semantics, through the real engine in process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import semantics
from tests.support.semantics import Outcome, fits, outcomes, summary
from tests.support.semantics_platforms import InProcess

SAMPLE = Path(__file__).parent.parent / "fixtures" / "semantics_sample.json"
CASES: list[dict[str, Any]] = json.loads(SAMPLE.read_text())["cases"]


def run(case: dict[str, Any], folder: Path) -> list[Outcome]:
    return list(outcomes([case], InProcess(folder)))


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_no_value_that_is_offered_differs(case: dict[str, Any], tmp_path: Path) -> None:
    found = run(case, tmp_path)
    assert len(found) == sum(len(query["expect"]) for query in case["queries"])
    assert [outcome.line() for outcome in found if outcome.status == "failed"] == []
    if case["level"] == "core":
        assert [outcome.line() for outcome in found if outcome.status != "passed"] == []


def test_sawtooth_windows_are_not_offered_and_the_reason_says_so(tmp_path: Path) -> None:
    (case,) = [case for case in CASES if case["id"] == "W07"]
    assert {outcome.detail for outcome in run(case, tmp_path)} == {"the platform has no sawtooth windows"}


def test_the_command_prints_one_line_of_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert semantics.main([str(SAMPLE), "--case", "W04", "--case", "W07"]) == 0
    *others, last = capsys.readouterr().out.splitlines()
    assert last == "14 passed, 0 failed, 12 not offered"
    assert len(others) == 12


def made_up(**changed: Any) -> dict[str, Any]:
    """A case of a form the sample does not hold."""
    case = {
        "id": "X1",
        "kind": "aggregate",
        "level": "extended",
        "spec": {"group_by": ["k"], "aggs": [{"name": "n", "fn": "count", "window": {"type": "lifetime"}}]},
        "events": {
            "e": [{"k": "a", "v": 1, "ts": "2025-03-10T10:00:00Z"}, {"k": "a", "v": 3, "ts": "2025-03-10T11:00:00Z"}]
        },
        "queries": [{"at": "2025-03-10T12:00:00Z", "key": {"k": "a"}, "expect": {"n": 2}}],
        "tolerance": 1e-9,
    }
    return {**case, **changed}


def aggregated(fn: str, **options: Any) -> dict[str, Any]:
    window = options.pop("window", {"type": "lifetime"})
    return {"group_by": ["k"], "aggs": [{"name": "n", "fn": fn, "of": "v", "window": window, **options}]}


LUNAR = {"type": "lunar"}
MONTH = {"type": "continuous", "size": "1mo"}
NOON = "2025-03-10T12:00:00Z"
UNSEEN = [
    ("a kind nobody has seen", made_up(kind="teleport"), "not offered", "teleport"),
    ("an aggregate the platform has not", made_up(spec=aggregated("geometric_mean")), "not offered", "geometric_mean"),
    ("a sample deviation", made_up(spec=aggregated("stddev_samp")), "not offered", "population"),
    ("a window the platform has not", made_up(spec=aggregated("sum", window=LUNAR)), "not offered", "lunar"),
    ("a lenient duration", made_up(spec=aggregated("sum", window=MONTH)), "not offered", "1mo"),
    ("an option nobody knows", made_up(spec=aggregated("sum", glitter=True)), "not offered", "glitter"),
    ("a spec with a member nobody knows", made_up(spec={**aggregated("sum"), "magic": 1}), "not offered", "magic"),
    ("a spec without what it needs", made_up(spec={}), "not offered", "the runner cannot read the spec"),
    ("a value that differs", made_up(spec=aggregated("sum")), "failed", "expected 2, found 4"),
    ("a median", made_up(spec=aggregated("median")), "passed", ""),
    ("an exact count of distinct values", made_up(spec=aggregated("count_distinct")), "passed", ""),
    ("a predicate with or and not", made_up(spec=aggregated("count", where={"or": [
        {"field": "v", "op": "in", "value": [1, 2]}, {"not": {"field": "v", "op": "<", "value": 3}}]})), "passed", ""),
    ("a read of what was known", made_up(
        events={"e": [
            {"k": "a", "v": 1, "ts": "2025-03-10T10:00:00Z", "arrived": "2025-03-10T10:00:00Z"},
            {"k": "a", "v": 2, "ts": "2025-03-10T10:30:00Z", "arrived": "2025-03-10T10:31:00Z"},
            {"k": "a", "v": 3, "ts": "2025-03-10T11:00:00Z", "arrived": "2025-03-11T11:00:00Z"},
        ]},
        queries=[{"at": NOON, "known_at": NOON, "key": {"k": "a"}, "expect": {"n": 2}}],
    ), "passed", ""),
    ("a composite key", made_up(
        spec={"group_by": ["k", "v"], "aggs": [{"name": "n", "fn": "count", "window": {"type": "lifetime"}}]},
        queries=[{"at": "2025-03-10T12:00:00Z", "key": {"k": "a", "v": 3}, "expect": {"n": 1}}],
    ), "passed", ""),
]  # fmt: skip


@pytest.mark.parametrize(("case", "status", "detail"), [row[1:] for row in UNSEEN], ids=[row[0] for row in UNSEEN])
def test_the_runner_reads_a_case_it_has_never_seen(
    case: dict[str, Any], status: str, detail: str, tmp_path: Path
) -> None:
    (found,) = run(case, tmp_path)
    assert (found.status, detail in found.detail) == (status, True), found


FORMS = [
    ("equal", 2, 2, True),
    ("within the tolerance", 0.1 + 0.2, 0.3, True),
    ("outside it", 0.3, 0.31, False),
    ("null is not zero", None, 0, False),
    ("true is not one", True, 1, False),
    ("one of several", {"any_of": [0, None]}, None, True),
    ("none of several", {"any_of": [0, None]}, 1, False),
    ("our convention", {"by_convention": {"closed": 2, "open": 1}}, 2, True),
    ("another convention", {"by_convention": {"closed": 2, "open": 1}}, 1, False),
    ("a set in another order", {"set": ["a", "b"]}, ["b", "a"], True),
    ("a set with one more", {"set": ["a", "b"]}, ["b", "a", "a"], False),
    ("absent", {"absent": True}, None, True),
    ("within a range", {"between": [1, 3]}, 3, True),
    ("outside a range", {"between": [1, 3]}, 4, False),
    ("a decimal", {"decimal": "0.60"}, "0.60", True),
    ("a decimal that is none", {"decimal": "0.60"}, 0.6000001, False),
    ("an instant in another form", "2025-03-10T12:00:00+00:00", "2025-03-10T12:00:00Z", True),
    ("a list", [1, None, "x"], [1, None, "x"], True),
    ("a list in another order", [1, 2], [2, 1], False),
]


@pytest.mark.parametrize(("expected", "found", "same"), [row[1:] for row in FORMS], ids=[row[0] for row in FORMS])
def test_an_expected_form(expected: Any, found: Any, same: bool) -> None:
    assert fits(expected, found, 1e-9) is same


def test_the_counts_of_a_file_are_those_of_its_values() -> None:
    found = [Outcome("A", 0, "n", status) for status in ("passed", "passed", "failed", "not offered")]
    assert summary(found) == "2 passed, 1 failed, 1 not offered"
