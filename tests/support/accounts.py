"""Accounts that are created, changed and closed, and the branches that hold them: a chain over change data."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from featurelib.clock import MINUTE, format_instant, parse_instant
from featurelib.testing import MockContext

SIZES = range(12)
"""Numbers of accounts a branch may have: the keys of what is read."""

ACCOUNTS_MODULE = """
from datetime import datetime
from featurelib import Avg, Count, FileSource, Max, Sum, dataset, feature, featureset, field, inputs, pipeline, source

@source(FileSource(path="accounts", format="jsonl"), every="1s", cdc="upsert")
@dataset(version=1)
class Account:
    number: str = field(key=True)
    branch: str = field()
    cents: int = field()
    at: datetime = field(timestamp=True)

@dataset(version=1)
class BranchTotal:
    branch: str = field(key=True)
    accounts: int = field()
    cents: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Account)
    def by_branch(cls, accounts):
        return accounts.groupby("branch").aggregate(accounts=Count(), cents=Sum(of="cents"))

@dataset(index=True, version=1)
class SizeClass:
    accounts: int = field(key=True)
    branches: int = field()
    mean_cents: float = field()
    most_cents: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(BranchTotal)
    def by_size(cls, totals):
        return totals.groupby("accounts").aggregate(
            branches=Count(), mean_cents=Avg(of="cents"), most_cents=Max(of="cents"))

@featureset
class SizeFeatures:
    accounts: int = feature()
    branches: int = feature(ref=SizeClass.branches, default=0)
    mean_cents: float = feature(ref=SizeClass.mean_cents, default=0.0)
    most_cents: int = feature(ref=SizeClass.most_cents, default=0)
"""


def account_changes() -> list[dict[str, Any]]:
    """Changes out of order: accounts move between branches, and some are closed and opened again."""
    draw = random.Random(17)
    start = parse_instant("2026-01-01")
    found = []
    for number in range(400):
        account = f"a{draw.randrange(40)}"
        at = format_instant(start + (number + draw.randrange(60)) * MINUTE)
        change = {"number": account, "branch": draw.choice("vwxyz"), "cents": draw.randrange(10_000), "at": at}
        found.append({**change, "__deleted": draw.random() < 0.2})
    return [*found, {**found[0], "at": format_instant(start + 500 * MINUTE), "__deleted": False}]


def json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """One object per line."""
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def in_process(module: str, dataset: str, rows: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """What the engine in process says of every size after these records."""
    path = folder / "accounts_in_process.py"
    path.write_text(module)
    context = MockContext(path)
    context.add_events(dataset, rows)
    newest = max(row["at"] for row in rows)
    answers = [context.query("SizeFeatures", str(size), at=newest) for size in SIZES]
    return [{"entity_id": str(size), **answer} for size, answer in zip(SIZES, answers, strict=True)]
