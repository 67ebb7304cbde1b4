"""Replay: runs recorded while events come in, every one asked again as it was served.

    make bench BENCH=replay        (RUNS=10000; some ten minutes)

A platform of its own takes 1,000 events a second, many of them dated before what was read a moment ago, some late right
sides of a join. Reads of every kind go on meanwhile; then, with events still coming in, each run is replayed with
``knowledge=as_served``. The answer must be the first one, value by value, and every feature's verdict ``same``.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2

from featurelib.clock import SECOND, SystemClock, format_instant
from tests.load.harness import Figure, report
from tests.support.platforms import Platform

MODULE = """
from datetime import datetime
from featurelib import (
    Avg, Count, Last, Max, Min, Stddev, Sum, dataset, extractor, extractor_inputs, extractor_outputs,
    feature, featureset, field, inputs, pipeline,
)

@dataset(index=True, version=1)
class Shop:
    shop: str = field(key=True)
    level: int = field()
    at: datetime = field(timestamp=True)

@dataset(version=1)
class Sale:
    who: str = field(key=True)
    shop: str = field()
    amount: float = field()
    at: datetime = field(timestamp=True)

@dataset(index=True, version=1)
class Spending:
    who: str = field(key=True)
    sales: int = field()
    total: float = field()
    mean: float = field()
    spread: float = field()
    least: float = field()
    most: float = field()
    shop: str = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Sale)
    def by_who(cls, sales):
        return sales.groupby("who").aggregate(
            sales=Count(window="1h"), total=Sum(of="amount", window="30s"), mean=Avg(of="amount", window="1h"),
            spread=Stddev(of="amount", window="1h"), least=Min(of="amount", window="10s"),
            most=Max(of="amount", window="30s"), shop=Last(of="shop", window="1h"),
        )

@dataset(index=True, version=1)
class Visited:
    who: str = field(key=True)
    level: int = field()
    best: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Sale, Shop)
    def levels(cls, sales, shops):
        return sales.join(shops, on="shop").groupby("who").aggregate(
            level=Last(of="level", window="1h"), best=Max(of="level", window="1h", default=None)
        )

@featureset(entity_type="who")
class Wall:
    who: str = feature()
    sales: int = feature(ref=Spending.sales, default=0)
    total: float = feature(ref=Spending.total)
    mean: float = feature(ref=Spending.mean)
    spread: float = feature(ref=Spending.spread)
    least: float = feature(ref=Spending.least)
    most: float = feature(ref=Spending.most)
    level: int = feature(ref=Visited.level)
    best: int = feature(ref=Visited.best)

@featureset(entity_type="who", online_clock="event")
class Event:
    who: str = feature()
    sales: int = feature(ref=Spending.sales, default=0)
    total: float = feature(ref=Spending.total)
    mean: float = feature(ref=Spending.mean)

@featureset(entity_type="who")
class LooksUp:
    who: str = feature()
    shop: str = feature(ref=Spending.shop)
    level: int = feature()

    @extractor(deps=[Shop])
    @extractor_inputs("shop")
    @extractor_outputs("level")
    def level_of(cls, ts, shop):
        row = Shop.lookup(ts, shop=shop) if shop else None
        return row["level"] if row else None
"""
EVENTS_PER_SECOND = 1_000
WHO, SHOPS = 2_000, 50
_POST_EVERY_S = 0.1
_READERS, _REPLAYERS = 8, 4
_BATCH_ENTITIES = 20
_SETTLE_S, _LOOK_EVERY_S = 120.0, 0.2
_RECORDED = "thyme_query_runs_recorded_total"
_DROPPED = "thyme_query_runs_dropped_total"

Rest = Callable[..., Awaitable[httpx2.Response]]


class Answered(NamedTuple):
    """A read that was answered."""

    kind: str
    run: str
    body: dict[str, Any]


def questions(chosen: random.Random) -> Iterator[tuple[str, str, str, dict[str, Any] | None]]:
    """Reads for ever: kind, method, path, body."""
    while True:
        who = f"w{chosen.randrange(WHO)}"
        then = format_instant(SystemClock().now() - chosen.randrange(30) * SECOND)
        some = [f"w{chosen.randrange(WHO)}" for _ in range(_BATCH_ENTITIES)]
        yield "online", "GET", f"/features?featureset=Wall&entity_id={who}", None
        yield "event clock", "GET", f"/features?featureset=Event&entity_id={who}", None
        yield "extractor look-up", "GET", f"/features?featureset=LooksUp&entity_id={who}", None
        yield "lookup", "GET", f"/features?entity_type=Visited&entity_id={who}", None
        yield "batch", "POST", "/features/batch", {"featureset": "Wall", "entity_ids": some}
        yield "online", "GET", f"/features?featureset=Wall&entity_id={who}", None
        yield "point in time", "GET", f"/features?featureset=Wall&entity_id={who}&timestamp={then}", None
        known = f"/features?featureset=Wall&entity_id={who}&timestamp={then}&knowledge=as_served"
        yield "as served", "GET", known, None


class Feed:
    """1,000 events a second: sales, a third of them up to 20 s old, and shops that change after their sales."""

    def __init__(self, ask: Rest) -> None:
        self._ask = ask
        self._chosen = random.Random(7)  # a workload
        self.sent = 0

    async def run(self) -> None:
        """Post until cancelled, each batch at its appointed time."""
        started = time.monotonic()
        while True:
            rows = int(EVENTS_PER_SECOND * _POST_EVERY_S)
            await self._post("Sale", [self._sale() for _ in range(rows - 2)])
            await self._post("Shop", [self._shop() for _ in range(2)])
            self.sent += rows
            await asyncio.sleep(max(0.0, started + self.sent / EVENTS_PER_SECOND - time.monotonic()))

    async def _post(self, dataset: str, events: list[dict[str, Any]]) -> None:
        done = await self._ask("POST", "/api/v1/log", {"dataset": dataset, "events": events})
        assert done.status_code == 200, done.text

    def _sale(self) -> dict[str, Any]:
        chosen = self._chosen
        who, shop = f"w{chosen.randrange(WHO)}", f"s{chosen.randrange(SHOPS)}"
        return {"who": who, "shop": shop, "amount": round(chosen.uniform(0, 100), 2), "at": self._dated(20)}

    def _shop(self) -> dict[str, Any]:
        chosen = self._chosen
        return {"shop": f"s{chosen.randrange(SHOPS)}", "level": chosen.randrange(100), "at": self._dated(40)}

    def _dated(self, seconds: int) -> str:
        back = self._chosen.randrange(seconds) if self._chosen.random() < 1 / 3 else 0
        return format_instant(SystemClock().now() - back * SECOND)


async def read(ask: Rest, count: int, number: int) -> list[Answered]:
    """One reader's share of the runs."""
    asked = questions(random.Random(number))  # a workload
    found = []
    for _ in range(count):
        kind, method, path, body = next(asked)
        answer = await ask(method, path, body)
        assert answer.status_code == 200, answer.text
        found.append(Answered(kind, answer.headers["x-query-run-id"], answer.json()))
    return found


async def replayed(ask: Rest, answers: AsyncIterator[Answered], verdicts: Counter[tuple[str, str]]) -> None:
    """Replay runs until none is left, and count what became of them."""
    async for answered in answers:
        done = await ask("POST", f"/query-runs/{answered.run}/replay?knowledge=as_served")
        if done.status_code != 200:
            verdicts[answered.kind, f"status {done.status_code}"] += 1
            print(done.text, file=sys.stderr)  # what a benchmark says
            continue
        found = done.json()
        same = found["result"] == answered.body and set(found["features"].values()) == {"same"}
        verdicts[answered.kind, "same" if same else "different"] += 1
        if not same:
            told = json.dumps({"kind": answered.kind, "was": answered.body, "is": found})
            print(told[:2_000], file=sys.stderr)


@asynccontextmanager
async def asking(platform: Platform) -> AsyncIterator[Rest]:
    """A client of the query server."""
    key = (platform.data / "secrets" / "admin-key").read_text()
    base = f"http://127.0.0.1:{platform.ports[0]}"
    async with httpx2.AsyncClient(base_url=base, headers={"Authorization": f"Bearer {key}"}, timeout=120) as client:

        async def ask(method: str, path: str, body: dict[str, Any] | None = None) -> httpx2.Response:
            return await client.request(method, path, json=body)

        yield ask


async def counted(ask: Rest, name: str) -> int:
    """A counter of the query server, summed over its replicas."""
    lines = (await ask("GET", "/metrics")).text.splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{"))))


async def settled(ask: Rest, wanted: int) -> int:
    """How many runs are recorded, once that is as many as were answered."""
    for _ in range(round(_SETTLE_S / _LOOK_EVERY_S)):
        if await counted(ask, _RECORDED) >= wanted:
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    return await counted(ask, _RECORDED)


async def _each(answers: list[Answered]) -> AsyncIterator[Answered]:
    while answers:
        yield answers.pop()


async def measure(platform: Platform, runs: int) -> list[Figure]:
    """Read, then replay, events coming in throughout."""
    verdicts: Counter[tuple[str, str]] = Counter()
    async with asking(platform) as ask:
        feed = Feed(ask)
        feeding = asyncio.create_task(feed.run())
        await asyncio.sleep(5)
        before, started = feed.sent, time.monotonic()
        shares = await asyncio.gather(*(read(ask, runs // _READERS, number) for number in range(_READERS)))
        seconds = time.monotonic() - started
        rate = (feed.sent - before) / seconds
        answers = [answered for share in shares for answered in share]
        count = len(answers)
        recorded, dropped = await settled(ask, count), await counted(ask, _DROPPED)
        started = time.monotonic()
        await asyncio.gather(*(replayed(ask, _each(answers), verdicts) for _ in range(_REPLAYERS)))
        replaying = time.monotonic() - started
        feeding.cancel()
    same = sum(number for (_, verdict), number in verdicts.items() if verdict == "same")
    kinds = sorted({kind for kind, _ in verdicts})
    return [
        Figure("events_per_second", rate, "1/s", EVENTS_PER_SECOND, "while runs were recorded"),
        Figure("runs_recorded", recorded, "runs", count, "of answers given"),
        Figure("runs_dropped", dropped, "runs", 0),
        Figure("runs_same_as_served", same, "runs", count, "value by value, and by every feature's verdict"),
        *(
            Figure(
                f"same: {kind}", verdicts[kind, "same"], "runs", sum(n for (k, _), n in verdicts.items() if k == kind)
            )
            for kind in kinds
        ),
        Figure("reads_per_second", count / seconds, "1/s", note=f"{_READERS} readers in turn with the events"),
        Figure("replays_per_second", count / replaying, "1/s", note=f"{_REPLAYERS} at once, events still coming in"),
    ]


def main() -> int:
    """Run it; 1 when a run is not the same."""
    runs = int(os.environ.get("RUNS", "10000"))
    with tempfile.TemporaryDirectory(prefix="bench-replay-") as folder:
        platform = Platform(Path(folder))
        module = Path(folder) / "replayed_features.py"
        module.write_text(MODULE)
        try:
            platform.thyme("up")
            platform.thyme("commit", str(module))
            figures = asyncio.run(measure(platform, runs))
        finally:
            platform.thyme("down")
    report("replay", figures)
    named = {figure.figure: figure for figure in figures}
    whole = ("runs_recorded", "runs_same_as_served")
    return 0 if all(named[name].value == named[name].peer for name in whole) else 1


if __name__ == "__main__":
    sys.exit(main())
