"""Streaming: how soon an event is seen, how many fit through, what a crash costs, and what memory holds.

    make bench BENCH=streaming        (RUNS=3, BENCH_SECONDS=20 per rate; about two minutes a run)

Load and platform share the machine. Posts are an open loop: each leaves at its appointed time, whatever became of the
one before, and a probe's clock starts at that time. A probe is an event of an entity of its own, one in so many posts;
it is read over HTTP until it is counted.

Limit, in the same run and against the same server: the same posts as one round trip of XADD and HINCRBY per event and
no more, with the same probes.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import polars as pl
import psutil
import redis
import redis.asyncio

from cluster import local
from cluster.processes import wait_until
from featurelib.clock import SystemClock
from featurelib.errors import ThymeError
from featurelib.stores.log import Log
from featurelib.stores.online import OnlineStore, StateName
from tests.load.harness import Figure, median, report
from tests.support.platforms import Platform

MODULE = """
from datetime import datetime
from featurelib import Count, FileSource, Sum, dataset, feature, featureset, field, inputs, pipeline, source

@dataset(version=1)
class Hit:
    name: str = field(key=True)
    cents: int = field()
    at: datetime = field(timestamp=True)

@dataset(index=True, version=1)
class HitStats:
    name: str = field(key=True)
    hits: int = field()
    cents_1h: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Hit)
    def by_name(cls, hits):
        return hits.groupby("name").aggregate(hits=Count(), cents_1h=Sum(of="cents", window="1h"))

@featureset
class HitFeatures:
    name: str = feature()
    hits: int = feature(ref=HitStats.hits, default=0)
    cents_1h: int = feature(ref=HitStats.cents_1h, default=0)

@source(FileSource(path="rows", format="parquet"), every="1s")
@dataset(version=1)
class Row:
    name: str = field(key=True)
    cents: int = field()
    at: datetime = field(timestamp=True)

@dataset(index=True, version=1)
class RowStats:
    name: str = field(key=True)
    rows: int = field()
    cents_1h: int = field()
    at: datetime = field(timestamp=True)

    @pipeline(version=1)
    @inputs(Row)
    def by_row(cls, rows):
        return rows.groupby("name").aggregate(rows=Count(), cents_1h=Sum(of="cents", window="1h"))
"""
RATES = {2_000: 20, 10_000: 100}
"""Events per second: events per post."""
NAMES = 10_000
ROWS = 1_000_000
_PROBE_EVERY_S = 0.2
_LOOK_EVERY_S = 0.004
_GIVE_UP_S = 60.0
_IDLE_S = 2.0
_WARM_S = 8.0
_DEADLINE_S = 120.0


class Peer(NamedTuple):
    """One connection that speaks just enough HTTP."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        return int(head[9:12]), await self.reader.readexactly(length)


class Peers:
    """Connections to a service, as many as are in use at once."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._key = key
        self._free: list[tuple[Peer, float]] = []

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """One request; a connection that breaks is not used again.

        Raises:
            OSError: nobody answers.
        """
        request = (
            f"{method} {path} HTTP/1.1\r\nHost: thyme\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        peer = self._fresh() or Peer(*await asyncio.open_connection("127.0.0.1", self._port))
        try:
            answer = await peer.ask(request.encode() + body)
        except (OSError, asyncio.IncompleteReadError) as error:
            peer.writer.close()
            raise OSError(str(error)) from error
        self._free.append((peer, time.monotonic()))
        return answer

    def _fresh(self) -> Peer | None:
        """A connection that was used so lately that the service has not hung up: it does after five idle seconds."""
        while self._free:
            peer, used = self._free.pop()
            if time.monotonic() - used < _IDLE_S:
                return peer
            peer.writer.close()
        return None

    def close(self) -> None:
        """Hang up."""
        for peer, _ in self._free:
            peer.writer.close()


class Seen(NamedTuple):
    """How long probes took. ``refused``: posts that were not accepted; ``behind_ms``: how late the last post left."""

    probes_ms: list[float]
    refused: int
    behind_ms: float

    def percentile(self, share: float) -> float:
        """Of the probes, in ms."""
        return sorted(self.probes_ms)[min(len(self.probes_ms) - 1, int(share * len(self.probes_ms)))]


Post = Callable[[int, str], Awaitable[bool]]
"""Posts batch number n, of which one event is of the probe of this name if there is one; whether it was taken."""
Look = Callable[[str], Awaitable[bool]]
"""Whether the probe of this name is counted."""


async def open_loop(rate: int, batch: int, seconds: float, post: Post, look: Look) -> Seen:
    """Posts at a rate, and its probes."""
    pause = batch / rate
    probes_ms: list[float] = []
    refused = 0
    behind = 0.0

    async def one(number: int, at: float, probe: str) -> None:
        nonlocal refused
        if not await post(number, probe):
            refused += 1
        elif probe:
            while not await look(probe):
                if time.perf_counter() - at > _GIVE_UP_S:
                    raise TimeoutError(f"{probe} was posted and is not seen after {_GIVE_UP_S} s")
                await asyncio.sleep(_LOOK_EVERY_S)
            probes_ms.append((time.perf_counter() - at) * 1_000)

    began = time.perf_counter()
    next_probe = 0.0
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds / pause)):
            at = began + number * pause
            if (early := at - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            behind = max(0.0, time.perf_counter() - at)
            probe = ""
            if number * pause >= next_probe:
                probe, next_probe = f"probe-{rate}-{time.time_ns()}", next_probe + _PROBE_EVERY_S
            group.create_task(one(number, at, probe))
    return Seen(probes_ms, refused, behind * 1_000)


def events(number: int, batch: int, probe: str) -> list[dict[str, Any]]:
    """The events of a post."""
    now = time.time()
    names = [f"n{(number * batch + place) % NAMES}" for place in range(batch)]
    if probe:
        names[-1] = probe
    return [{"name": name, "cents": number % 97, "at": now} for name in names]


async def seen_by_platform(platform: Platform, rate: int, batch: int, seconds: float) -> Seen:
    """Posted over HTTP, read over HTTP."""
    key = (platform.data / "secrets" / "admin-key").read_text().strip()
    posts, reads = Peers(platform.ports[1], key), Peers(platform.ports[0], key)

    async def post(number: int, probe: str) -> bool:
        body = json.dumps({"dataset": "Hit", "events": events(number, batch, probe)}).encode()
        status, _ = await posts.ask("POST", "/api/v1/log", body)
        return status == 200

    async def look(probe: str) -> bool:
        status, body = await reads.ask("GET", f"/features?featureset=HitFeatures&entity_id={probe}")
        return status == 200 and json.loads(body)["features"]["hits"] == 1

    try:
        return await open_loop(rate, batch, seconds, post, look)
    finally:
        posts.close()
        reads.close()


async def seen_by_redis(url: str, rate: int, batch: int, seconds: float) -> Seen:
    """The limit: an entry and a counter per event, one round trip per post, and the counter read back."""
    client = redis.asyncio.Redis.from_url(url)

    async def post(number: int, probe: str) -> bool:
        pipe = client.pipeline(transaction=False)
        for event in events(number, batch, probe):
            pipe.xadd("bench:log", {"e": json.dumps(event)}, maxlen=100_000, approximate=True)
            pipe.hincrby(f"bench:{event['name']}", "hits", 1)
        await pipe.execute()
        return True

    async def look(probe: str) -> bool:
        return bool(await cast("Awaitable[Any]", client.hget(f"bench:{probe}", "hits")))

    try:
        return await open_loop(rate, batch, seconds, post, look)
    finally:
        await client.aclose()


def forget_bench_keys(url: str) -> None:
    """Leave the server as the platform knows it."""
    with redis.Redis.from_url(url) as client:
        names = list(client.scan_iter(match="bench:*", count=10_000))
        for start in range(0, len(names), 1_000):
            client.unlink(*names[start : start + 1_000])


def write_rows(folder: Path) -> None:
    """The files of the sustained load."""
    for number in range(10):
        places = pl.int_range(number * ROWS // 10, (number + 1) * ROWS // 10, eager=True)
        frame = pl.DataFrame(
            {
                "name": "n" + (places * 7 % NAMES).cast(pl.String),
                "cents": places % 97,
                "at": pl.from_epoch(1_760_000_000_000 + places * 5, time_unit="ms").dt.replace_time_zone("UTC"),
            }
        )
        path = folder / f"{number}.parquet"
        frame.write_parquet(path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)


def sustained(platform: Platform) -> float:
    """Rows per second from files to state, between 10 % and 90 % of them."""
    store, state = OnlineStore(platform.online_url()), StateName("by_row@1", 1)
    samples: list[tuple[float, int]] = []

    def folded() -> bool:
        samples.append((time.monotonic(), store.progress(state).rows))
        return samples[-1][1] >= ROWS

    write_rows(platform.home / "rows")
    if not wait_until(folded, 10 * _DEADLINE_S, every_s=0.2):
        raise TimeoutError(f"{samples[-1][1]} of {ROWS} rows folded")
    store.close()
    (first, low), *_, (last, high) = [each for each in samples if 0.1 * ROWS <= each[1] <= 0.9 * ROWS]
    return (high - low) / (last - first)


def redis_rate(url: str) -> float:
    """Events per second of XADD and HINCRBY in pipelines of 500 events."""
    with redis.Redis.from_url(url) as client:
        began, count = time.monotonic(), 100_000
        for number in range(count // 500):
            pipe = client.pipeline(transaction=False)
            for event in events(number, 500, ""):
                pipe.xadd("bench:log", {"e": json.dumps(event)}, maxlen=100_000, approximate=True)
                pipe.hincrby(f"bench:{event['name']}", "hits", 1)
            pipe.execute()
        return count / (time.monotonic() - began)


def bytes_per_key(platform: Platform) -> float:
    """Mean size in Redis of the rows' state of a key."""
    store, state = OnlineStore(platform.online_url()), StateName("by_row@1", 1)
    with redis.Redis.from_url(platform.online_url()) as client:
        keys = [key for _, key in zip(range(500), store.keys(state), strict=False)]
        sizes = [cast("int", client.memory_usage(state.key(key), samples=0)) for key in keys]
    store.close()
    return statistics.mean(sizes)


def bytes_per_event(platform: Platform) -> float:
    """Mean size in Redis of a posted event in the log, of those it holds."""
    log = Log(platform.online_url(), SystemClock())
    held = size = 0
    with redis.Redis.from_url(platform.online_url()) as client:
        for part in range(log.partitions("Hit@1")):
            held += log.head("Hit@1", part).next_offset - log.first_offset("Hit@1", part)
            size += int(cast("int | None", client.memory_usage(f"{{Hit@1:{part}}}:log", samples=0)) or 0)
    log.close()
    return size / held if held else 0.0


@contextmanager
def read_all_the_time(platform: Platform) -> Iterator[list[str]]:
    """Reads features while the block runs, on connections that are kept; collects what failed."""
    failures: list[str] = []
    over = threading.Event()

    def read() -> None:
        with platform.client() as client:
            while not over.wait(0.02):
                try:
                    client.query("HitFeatures", "n1")
                except ThymeError as error:
                    failures.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield failures
    finally:
        over.set()
        thread.join()


def recovery_of_worker(platform: Platform) -> float:
    """Seconds from SIGKILL of a pipeline's worker until an event of every partition that was sent after it is seen."""
    with platform.client() as client:
        job = next(each for each in client.jobs() if each["name"] == "by_name_job")
    running = {process.pid for process in platform.processes("ray::PipelineWorker")}
    # One of those whose counts are looked at, as the job told lately; probes of many names are of all of them.
    psutil.Process(next(each["pid"] for each in job["workers"] if each["pid"] in running)).kill()
    return _seconds_until_seen(platform)


def _seconds_until_seen(platform: Platform) -> float:
    began = time.monotonic()
    names = [f"after-{time.time_ns()}-{number}" for number in range(32)]
    with platform.client() as client:
        client.log("Hit", [{"name": name, "cents": 1, "at": time.time()} for name in names])

        def seen() -> bool:
            return all(row["hits"] == 1 for row in client.query_batch("HitFeatures", names).to_dict())

        if not wait_until(seen, _DEADLINE_S, every_s=0.02):
            raise TimeoutError("events sent after the worker was killed are not seen")
    return time.monotonic() - began


class HeadLoss(NamedTuple):
    """What the loss of the Ray head cost."""

    seconds: float
    failures: int


def recovery_of_head(platform: Platform) -> HeadLoss:
    """SIGKILL of GCS and the head's raylet, until the whole cluster is ready again; reads that failed meanwhile."""
    with read_all_the_time(platform) as failures:
        began = time.monotonic()
        lost = platform.processes("gcs_server", "head") + platform.processes("raylet/raylet", "head")
        for process in lost:
            process.kill()
        wait_until(lambda: not local.status(platform.settings).ready, 30.0, every_s=0.05)
        if not wait_until(lambda: local.status(platform.settings).ready, _DEADLINE_S, every_s=0.1):
            raise TimeoutError("the cluster is not ready again")
        seconds = time.monotonic() - began
        _seconds_until_seen(platform)
    return HeadLoss(seconds, len(failures))


class Run(NamedTuple):
    """What one run measured."""

    seen: dict[int, Seen]
    bare: dict[int, Seen]
    sustained_per_s: float
    redis_per_s: float
    key_bytes: float
    event_bytes: float
    worker_s: list[float]
    head: HeadLoss


def run(seconds: float) -> Run:
    """One run, on a platform of its own."""
    with tempfile.TemporaryDirectory(prefix="thyme-bench-") as folder:
        platform = Platform(Path(folder))
        (platform.home / "rows").mkdir()
        (platform.home / "features.py").write_text(MODULE)
        try:
            platform.thyme("up")
            platform.thyme("commit", str(platform.home / "features.py"))
            wait_until(lambda: _is_served(platform), _DEADLINE_S, every_s=0.2)
            url = platform.online_url()
            seen, bare = {}, {}
            # Not counted: processes that were started seconds ago still import and compile.
            asyncio.run(seen_by_platform(platform, 2_000, RATES[2_000], _WARM_S))
            for rate, batch in RATES.items():
                seen[rate] = asyncio.run(seen_by_platform(platform, rate, batch, seconds))
                bare[rate] = asyncio.run(seen_by_redis(url, rate, batch, seconds / 2))
            event_bytes = bytes_per_event(platform)
            redis_per_s = redis_rate(url)
            forget_bench_keys(url)
            rate_s = sustained(platform)
            key_bytes = bytes_per_key(platform)
            workers = [recovery_of_worker(platform) for _ in range(3)]
            return Run(seen, bare, rate_s, redis_per_s, key_bytes, event_bytes, workers, recovery_of_head(platform))
        finally:
            platform.thyme("down")


def _is_served(platform: Platform) -> bool:
    try:
        _seconds_until_seen(platform)
    except ThymeError:
        return False
    return True


def figures(runs: Sequence[Run]) -> list[Figure]:
    """Medians over runs."""
    note = f"median of {len(runs)}"
    made = []
    for rate in RATES:
        for share in (0.5, 0.99):
            value = median([one.seen[rate].percentile(share) for one in runs])
            limit = median([one.bare[rate].percentile(share) for one in runs])
            made.append(
                Figure(f"visible_p{round(share * 100)}_at_{rate}", value, "ms", limit, f"{note}; peer: bare Redis")
            )
        refused = sum(one.seen[rate].refused for one in runs)
        behind = max(one.seen[rate].behind_ms for one in runs)
        made.append(Figure(f"refused_at_{rate}", refused, "posts", None, f"last post left up to {behind:.0f} ms late"))
    return [
        *made,
        Figure(
            "sustained",
            median([one.sustained_per_s for one in runs]),
            "events/s",
            median([one.redis_per_s for one in runs]),
            f"{note}; 10 % to 90 % of {ROWS:,}; peer: XADD and HINCRBY, 500 events a trip",
        ),
        Figure("worker_killed", median([s for one in runs for s in one.worker_s]), "s", None, "median of all"),
        Figure("worker_killed_worst", max(s for one in runs for s in one.worker_s), "s"),
        Figure("head_lost", median([one.head.seconds for one in runs]), "s", None, note),
        Figure("reads_failed_while_head_lost", sum(one.head.failures for one in runs), "reads", None, "all runs"),
        Figure(
            "bytes_per_key",
            median([one.key_bytes for one in runs]),
            "bytes",
            None,
            f"{ROWS // NAMES} events a key, two aggregates",
        ),
        Figure("bytes_per_event_in_log", median([one.event_bytes for one in runs]), "bytes", None, "at 100 a post"),
    ]


def main() -> None:
    """Measure and report."""
    seconds = float(os.environ.get("BENCH_SECONDS", "20"))
    runs = []
    for number in range(int(os.environ.get("RUNS", "3"))):
        runs.append(run(seconds))
        print(number + 1, runs[-1]._replace(seen={}, bare={}), file=sys.stderr, flush=True)
    report("streaming", figures(runs))


if __name__ == "__main__":
    main()
