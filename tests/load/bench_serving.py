"""Reads of features beside Feast's feature server and the limits, in one run on the same cores.

    make bench BENCH=serving        (RUNS=3, BENCH_SECONDS=5 a row, WORKERS=1, PARTITIONS=1, EVENTS=2000 a second)
    SOAK_MINUTES=15 …               then reads at a steady rate for so long, over SOAK_CONNECTIONS (8): the p99 of every
                                    minute, and the limit's
    COMMITS=1 …                     then commits while reads go on: errors, and the p99 around a commit

Ours: a platform of its own, audit, auth and a rate limit on. A key has 50 windowed features, 5 views of 10 over
1 hour, 1 day and 7 days, at least 200 events in each. Read are KEYS (300) keys; meanwhile 2,000 events a second are
ingested into the same pipelines, of POPULATION (10,000) keys with those among them, and, where a figure says *busy*, of
the keys that are read alone: each then changes several times a second, between most of its reads. A full load holds
ingestion up: each row begins when the pipelines have caught up. A view has one partition (PARTITIONS), since a worker
takes fifteen times as many events, and five share two cores. Beside it, with the same number of serving processes, the
same ingestion going on: Feast with 5 views of 10 features in the same server (its recycling of workers off); a bare
ASGI handler that reads 50 finished values in one GET and encodes the same answer (the *limit*); the same handler with a
fixed answer (*echo*, also the ceiling of the load generator); the online store alone, asked for the same bytes.

Throughput is a closed loop over 8 connections, latency an open loop over one (:mod:`tests.load.http_load`; the soak's
over eight), each row as often as RUNS says, in turn; medians. The latency of keys that were not read lately is a figure
of its own, and the p99 stands beside those of the limit and of the echo: below theirs none comes on the same machine.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx2
import msgspec
import numpy as np
import psutil

from cluster.processes import free_port, wait_until
from featurelib.clock import SystemClock
from featurelib.compile import compile_module
from featurelib.engine.program import Program
from featurelib.engine.read_plan import compile_views
from featurelib.errors import ThymeError
from featurelib.stores.online import OnlineStore, StateName
from featurelib.stores.pipelined import PipelinedRedis, pack
from featurelib.stores.registry import Registry
from tests.load import bare, feast_peer
from tests.load.harness import Figure, median, report
from tests.load.http_load import Job, Load, get, measure, post
from tests.support.platforms import Platform

RUNS = int(os.environ.get("RUNS", "3"))
SECONDS = float(os.environ.get("BENCH_SECONDS", "5"))
WORKERS = int(os.environ.get("WORKERS", "1"))
PARTITIONS = int(os.environ.get("PARTITIONS", "1"))
KEYS = int(os.environ.get("KEYS", "300"))
POPULATION = int(os.environ.get("POPULATION", "10000"))
SOAK_MINUTES = float(os.environ.get("SOAK_MINUTES", "0"))
SOAK_CONNECTIONS = int(os.environ.get("SOAK_CONNECTIONS", "8"))
COMMITS = os.environ.get("COMMITS", "") not in ("", "0")
VIEWS, FEATURES, BATCH_KEYS = 5, 10, 100
EVENTS_PER_SECOND, EVENTS_PER_POST = float(os.environ.get("EVENTS") or 2_000), 50
CONNECTIONS, BATCH_CONNECTIONS = 8, 4
RATE, BATCH_RATE = 200.0, 10.0
_DEADLINE_S = 600.0
_WARM_S = 2.0
# Not reached by any load here: what a limit costs is what is wanted.
_RATE_LIMIT = 1_000_000
_KINDS = (
    ("Count()", "int"),
    ('Sum(of="cents")', "int"),
    ('Avg(of="price")', "float"),
    ('Min(of="price")', "float"),
    ('Max(of="price")', "float"),
    ('Stddev(of="price")', "float"),
    ('Last(of="shop")', "Optional[str]"),
)
_WINDOWS = ("1h", "1d", "7d")


class Named(NamedTuple):
    """One feature: its name, how it is made, its type."""

    name: str
    aggregate: str
    type: str


def named(view: int) -> list[Named]:
    """The features of a view: every kind in turn, every window in turn."""
    made = []
    for number in range(FEATURES):
        call, kind = _KINDS[(view * 3 + number) % len(_KINDS)]
        opening, _, rest = call.partition("(")
        inside = ", ".join(part for part in (rest[:-1], f'window="{_WINDOWS[number % 3]}"') if part)
        made.append(Named(f"feature_{view * FEATURES + number:02d}", f"{opening}({inside})", kind))
    return made


def module(release: int = 0) -> str:
    """The definitions; another ``release`` differs in a description only, so that its commit is no empty one."""
    lines = [
        "from datetime import datetime",
        "from typing import Optional",
        "from featurelib import (Avg, Count, Last, Max, Min, Stddev, Sum, dataset, feature, featureset, field,",
        "                        inputs, pipeline)",
        "",
        "@dataset(version=1)",
        "class Sale:",
        "    user: str = field(key=True)",
        "    cents: int = field()",
        "    price: float = field()",
        "    shop: str = field()",
        "    at: datetime = field(timestamp=True)",
    ]
    for view in range(VIEWS):
        made = named(view)
        lines += ["", "@dataset(index=True, version=1)", f"class View{view}:", "    user: str = field(key=True)"]
        lines += [f"    {each.name}: {each.type} = field()" for each in made]
        lines += ["    at: datetime = field(timestamp=True)", "", "    @pipeline(version=1)", "    @inputs(Sale)"]
        lines += [f"    def view{view}(cls, sales):", '        return sales.groupby("user").aggregate(']
        lines += [f"            {each.name}={each.aggregate}," for each in made]
        lines += ["        )"]
    lines += ["", "@featureset", "class Users:", f'    """Release {release}."""', "    user: str = feature()"]
    for view in range(VIEWS):
        lines += [
            f"    {each.name}: Optional[{each.type}] = feature(ref=View{view}.{each.name})" for each in named(view)
        ]
    return "\n".join(lines).replace("Optional[Optional[str]]", "Optional[str]") + "\n"


def user(number: int) -> str:
    """A key."""
    return f"u{number % KEYS}"


def event(chosen: np.random.Generator, key: str, at: float) -> dict[str, Any]:
    """One sale."""
    cents = int(chosen.integers(1, 100_000))
    return {"user": key, "cents": cents, "price": cents / 100, "shop": f"shop{cents % 50}", "at": at}


class Door:
    """Posts events on one connection."""

    def __init__(self, port: int, key: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def send(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Append events; raises unless all were accepted."""
        body = msgspec.json.encode({"dataset": "Sale", "events": events})
        self._connection.request("POST", "/api/v1/log", body, self._headers)
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != httpx2.codes.OK:
            raise RuntimeError(f"events were not accepted: {answer.status} {text[:300]!r}")

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


def preload(door: Door) -> int:
    """Give every key its history: 230 events in the last hour, 230 in the day before, 230 in the week; returns all.

    Each at instants of its own: events of one instant would leave the windows of all keys at once, ever again.
    """
    chosen, now = np.random.default_rng(5), time.time()
    spans = [(0, 3_500), (3_700, 86_000), (87_000, 600_000)]
    waiting: list[dict[str, Any]] = []
    for low, high in reversed(spans):
        for ages in np.sort(chosen.uniform(low, high, (230, KEYS)), axis=0)[::-1].tolist():
            waiting += [event(chosen, user(number), now - age) for number, age in enumerate(ages)]
            if len(waiting) >= 6_000:
                door.send(waiting)
                waiting = []
    if waiting:
        door.send(waiting)
    return 3 * 230 * KEYS


class Ingestion:
    """Events at a rate, from a thread of its own."""

    def __init__(self, port: int, key: str) -> None:
        self._door = Door(port, key)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.keys = POPULATION
        self.sent = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._door.close()

    def _run(self) -> None:
        chosen, began, pause = np.random.default_rng(7), time.perf_counter(), EVENTS_PER_POST / EVENTS_PER_SECOND
        while not self._stop.is_set():
            at = time.time()
            keys = chosen.integers(0, self.keys, EVENTS_PER_POST).tolist()
            self._door.send([event(chosen, f"u{key}", at) for key in keys])
            self.sent += EVENTS_PER_POST
            early = began + self.sent / EVENTS_PER_POST * pause - time.perf_counter()
            self._stop.wait(max(0.0, early))


class Row(NamedTuple):
    """Something that is asked: where, and with which requests."""

    port: int
    requests: list[bytes]
    connections: int = CONNECTIONS

    def throughput(self, seconds: float = SECONDS) -> Load:
        """A closed loop, after it was warmed up."""
        measure(Job(self.port, self.requests, self.connections, _WARM_S))
        return measure(Job(self.port, self.requests, self.connections, seconds))

    def first(self, rate: float) -> Load:
        """An open loop over one connection, long enough to ask for every key once."""
        return measure(Job(self.port, self.requests, 1, len(set(self.requests)) / rate, rate))

    def latency(self, rate: float, seconds: float = 2 * SECONDS) -> Load:
        """An open loop over one connection, after every key was asked for: what was not read lately costs more."""
        self.first(rate)
        return self.steady(rate, seconds)

    def steady(self, rate: float, seconds: float, connections: int = 1) -> Load:
        """An open loop."""
        return measure(Job(self.port, self.requests, connections, seconds, rate))


def rows_of(port: int, key: str, feast: int, plain: int) -> dict[str, Row]:
    """Every row, for one key and for a hundred."""
    keys = [user(number * 7) for number in range(1_000)]
    batches = [[user(first + place) for place in range(BATCH_KEYS)] for first in range(0, KEYS, 10)]
    features = "/features?featureset=Users&entity_id="
    ours = [post("/features/batch", _batch(batch), key) for batch in batches]
    peers = [post(feast_peer.PATH, feast_peer.body(batch)) for batch in batches]
    limit = [post("/mget", _batch(batch)) for batch in batches]
    return {
        "ours": Row(port, [get(features + each, key) for each in keys]),
        "feast": Row(feast, [post(feast_peer.PATH, feast_peer.body([each])) for each in keys]),
        "limit": Row(plain, [get(f"/get?entity_id={each}") for each in keys]),
        "echo": Row(plain, [get(f"/echo?entity_id={each}") for each in keys]),
        "ours_batch": Row(port, ours, BATCH_CONNECTIONS),
        "feast_batch": Row(feast, peers, BATCH_CONNECTIONS),
        "limit_batch": Row(plain, limit, BATCH_CONNECTIONS),
    }


def _batch(keys: Sequence[str]) -> bytes:
    return json.dumps({"featureset": "Users", "entity_ids": keys}).encode()


class Bench:
    """A platform with its data, and the peers beside it."""

    def __init__(self, folder: Path, platform: Platform) -> None:
        self.folder = folder
        self.platform = platform
        self.key = (platform.data / "secrets" / "admin-key").read_text().strip()
        self.ingested_per_s = 0.0
        self.ingestion: Ingestion | None = None
        self._loaded = 0

    def commit(self, release: int) -> None:
        """Commit the definitions."""
        path = self.platform.home / "users.py"
        path.write_text(module(release))
        self.platform.thyme("commit", str(path))

    def compiled(self, release: int) -> str:
        """The definitions as `thyme commit` sends them."""
        path = self.platform.home / f"users_{release}.py"
        path.write_text(module(release))
        return compile_module(path).model_dump_json()

    def send(self, definitions: str) -> None:
        """Commit what was compiled before: compiling, on these cores, would be measured too."""
        url = f"http://127.0.0.1:{self.platform.ports[1]}/api/v1/commit"
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        httpx2.post(url, content=definitions, headers=headers, timeout=60, trust_env=False).raise_for_status()

    def load(self) -> None:
        """Every key's history, folded by every pipeline and served."""
        door = Door(self.platform.ports[1], self.key)
        self._await(self._has_logs)
        self._loaded = preload(door)
        door.close()
        self.catch_up()

    def catch_up(self) -> None:
        """Wait until every pipeline has folded what was sent by now: a row is not to pay for the one before it."""
        events = self._loaded + (self.ingestion.sent if self.ingestion is not None else 0)
        store = OnlineStore(self.platform.online_url())

        def folded() -> bool:
            return all(store.progress(StateName(f"view{view}@1", 1)).rows >= events for view in range(VIEWS))

        self._await(folded)
        store.close()

    def asked(self) -> tuple[list[bytes], int]:
        """What the query server asks the store for one key, packed, of every key; and how many replies that has."""
        registry = Registry(self.platform.settings.registry_url, SystemClock())
        views, _ = compile_views(registry.definitions())
        registry.close()
        programs = [views[f"View{view}"].program for view in range(VIEWS)]
        return [b"".join(_hmget(program, user(n)) for program in programs) for n in range(KEYS)], VIEWS

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Ingest events of the keys that are read alone."""
        assert self.ingestion is not None
        self.ingestion.keys = KEYS
        yield
        self.ingestion.keys = POPULATION

    def metric(self, name: str, having: str = "") -> float:
        """A counter of the query server, summed over those labels that have this in them."""
        text = httpx2.get(f"http://127.0.0.1:{self.platform.ports[0]}/metrics", trust_env=False).text
        lines = [line for line in text.splitlines() if line.startswith((name + " ", name + "{")) and having in line]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def _has_logs(self) -> bool:
        with self.platform.client() as client:
            try:
                client.query("Users", "u0")
                client.log("Sale", [event(np.random.default_rng(1), "warm", time.time())])
            except ThymeError:
                return False
        return True

    def _await(self, what: Callable[[], bool]) -> None:
        if not wait_until(what, _DEADLINE_S, every_s=0.5):
            raise TimeoutError(f"{what.__name__}: not within {_DEADLINE_S} s")


def _hmget(program: Program, key: str) -> bytes:
    fields = program.read_fields(SystemClock().now())
    return pack(("HMGET", StateName(program.ref, 1).key(key), *fields))


def redis_rps(bench: Bench) -> float:
    """The store asked for the same bytes over as many connections."""
    requests, replies = bench.asked()
    job = bare.RedisJob(bench.platform.online_url(), requests, replies, CONNECTIONS, SECONDS)
    text = json.dumps({**job._asdict(), "requests": [request.decode("latin-1") for request in requests]})
    command = [sys.executable, "-m", "tests.load.bare", "redis"]
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def bytes_read(bench: Bench) -> list[int]:
    """Bytes of the values that a read of one key fetches, for every key."""
    requests, replies = bench.asked()

    async def ask() -> list[int]:
        reads = PipelinedRedis(bench.platform.online_url())
        found = [await reads.trip(request, replies) for request in requests]
        await reads.close()
        return [sum(len(value) for values in each for value in values if value is not None) for each in found]

    return asyncio.run(ask())


class Seen(NamedTuple):
    """What one run of every row saw; throughput in requests a second."""

    rps: dict[str, float]
    failed: int
    busy: float
    redis_rps: float

    def against(self, name: str, peer: str) -> float:
        """One row's throughput in parts of another's."""
        return self.rps[name] / self.rps[peer]


def once(bench: Bench, rows: Mapping[str, Row]) -> Seen:
    """Every row once, in turn, each when ingestion has caught up with what the one before held up."""
    loads: dict[str, Load] = {}
    for name, row in rows.items():
        bench.catch_up()
        loads[name] = row.throughput()
    with bench.busy():
        for name in ("ours", "ours_batch"):
            bench.catch_up()
            loads[f"{name}_busy"] = rows[name].throughput()
    bench.catch_up()
    failed = sum(load.failed for load in loads.values())
    return Seen({name: load.rps for name, load in loads.items()}, failed, loads["echo"].busy, redis_rps(bench))


def throughput_figures(runs: Sequence[Seen]) -> list[Figure]:
    """Medians over runs."""

    def rps(name: str) -> float:
        return median([run.rps[name] for run in runs])

    def ratio(name: str, peer: str) -> float:
        return median([run.against(name, peer) for run in runs])

    note = f"median of {len(runs)}; {WORKERS} worker process{'es' * (WORKERS > 1)} each"
    closed, batch = f"{CONNECTIONS} connections", f"{BATCH_CONNECTIONS} connections, {BATCH_KEYS} keys"
    return [
        Figure("features_1x50_rps", rps("ours"), "requests/s", None, f"{note}; {closed}"),
        Figure("features_1x50_rps_vs_feast", ratio("ours", "feast"), "times", rps("feast"), "peer: Feast, requests/s"),
        Figure("features_1x50_rps_vs_limit", ratio("ours", "limit"), "times", rps("limit"), "peer: GET, requests/s"),
        Figure("features_1x50_rps_vs_echo", ratio("ours", "echo"), "times", rps("echo"), _echo_note(runs)),
        Figure(
            "features_1x50_rps_vs_redis",
            median([run.rps["ours"] / run.redis_rps for run in runs]),
            "times",
            median([run.redis_rps for run in runs]),
            "peer: the store asked for the same bytes, requests/s",
        ),
        Figure("features_100x50_rps", rps("ours_batch"), "requests/s", None, batch),
        Figure("features_100x50_vs_feast", ratio("ours_batch", "feast_batch"), "times", rps("feast_batch"), "as above"),
        Figure("features_100x50_vs_limit", ratio("ours_batch", "limit_batch"), "times", rps("limit_batch"), "as above"),
        Figure("busy_1x50_rps_vs_limit", ratio("ours_busy", "limit"), "times", rps("ours_busy"), "peer: requests/s"),
        Figure("busy_1x50_rps_vs_feast", ratio("ours_busy", "feast"), "times", rps("feast"), "peer: Feast"),
        Figure("busy_100x50_vs_feast", ratio("ours_batch_busy", "feast_batch"), "times", rps("ours_batch_busy")),
        Figure("failed", sum(run.failed for run in runs), "answers", None, "of all rows and runs"),
    ]


def _echo_note(runs: Sequence[Seen]) -> str:
    return f"peer: echo, requests/s, the generator's core {median([run.busy for run in runs]):.0%} busy"


def latency_figures(bench: Bench, rows: Mapping[str, Row]) -> list[Figure]:
    """Open loop over one connection: ours beside Feast's and what no server here gets below."""
    return [
        *_latency(bench, rows, "1x50", RATE, {"feast": "feast", "limit": "limit", "echo": "echo"}),
        *_latency(bench, rows, "100x50", BATCH_RATE, {"feast": "feast_batch", "limit": "limit_batch"}, "ours_batch"),
    ]


def _latency(
    bench: Bench, rows: Mapping[str, Row], name: str, rate: float, peers: Mapping[str, str], ours: str = "ours"
) -> list[Figure]:
    """Medians over as many runs as throughput has, everyone's in turn: all meet the same machine."""
    bench.catch_up()
    first = rows[ours].first(rate)
    loads: dict[str, list[Load]] = {each: [] for each in ("ours", *peers)}
    for _ in range(RUNS):
        for each, row in {"ours": ours, **peers}.items():
            bench.catch_up()
            loads[each].append(rows[row].latency(rate))

    def ms(who: str, share: float) -> float:
        return median([load.percentile(share) for load in loads[who]])

    def against(peer: str) -> float:
        pairs = zip(loads["ours"], loads[peer], strict=True)
        return median([mine.percentile(0.99) / its.percentile(0.99) for mine, its in pairs])

    asked = f"{rate:g} requests/s"
    unread = f"{asked}; of keys that nobody read while the other rows ran; peer: p99"
    return [
        Figure(f"features_{name}_first_ms_c1", first.percentile(0.5), "ms", first.percentile(0.99), unread),
        *(
            Figure(
                f"features_{name}_{label}_ms_c1", ms("ours", share), "ms", ms("feast", share), f"{asked}; peer: Feast"
            )
            for label, share in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999))
        ),
        *(
            Figure(f"features_{name}_p99_vs_{peer}_c1", against(peer), "times", ms(peer, 0.99), "peer: its p99, ms")
            for peer in peers
            if peer != "feast"
        ),
    ]


def audit_figures(bench: Bench) -> list[Figure]:
    """Whether every answer is in the audit; counters are of one replica, so with several these are its own."""

    def answers() -> float:
        return bench.metric("thyme_http_requests_total", 'route="/features')

    def recorded() -> float:
        return bench.metric("thyme_query_runs_recorded_total")

    wait_until(lambda: recorded() >= answers(), 60.0, every_s=0.5)
    return [
        Figure("runs_recorded", recorded(), "runs", answers(), "peer: answers given"),
        Figure("runs_dropped", bench.metric("thyme_query_runs_dropped_total"), "runs"),
    ]


def soak_figures(bench: Bench, row: Row, limit: Row) -> list[Figure]:
    """The p99 of every minute of a steady rate, and of the limit asked a tenth as often at the same time.

    Both over several connections: over one, one that takes longer than the 5 ms to the next holds up all that follow.
    """
    bench.catch_up()
    minutes, limits = [], []
    with ThreadPoolExecutor() as threads:
        for _ in range(round(SOAK_MINUTES)):
            row.first(RATE)
            beside = threads.submit(limit.steady, RATE / 10, 60.0, SOAK_CONNECTIONS)
            minutes.append(row.steady(RATE, 60.0, SOAK_CONNECTIONS))
            limits.append(beside.result())
    p99 = [minute.percentile(0.99) for minute in minutes]
    peers = [minute.percentile(0.99) for minute in limits]
    for name, found in (("", p99), ("of the limit ", peers)):
        print(f"p99 {name}of each minute, ms:", ", ".join(f"{each:.2f}" for each in found))
    asked = f"{len(p99)} minutes at {RATE:g} requests/s over {SOAK_CONNECTIONS} connections"
    note = f"{asked}; last third of the minutes against the first, medians; peer: the limit's"
    failed = sum(minute.failed for minute in (*minutes, *limits))
    ratios = [ours / theirs for ours, theirs in zip(p99, peers, strict=True)]
    return [
        Figure("soak_p99_last_vs_first", _last_vs_first(p99), "times", _last_vs_first(peers), note),
        Figure("soak_p99_ms", median(p99), "ms", median(peers), "median of the minutes; peer: GET, a tenth as often"),
        Figure("soak_p99_worst_ms", max(p99), "ms", max(peers), "the same, of the worst minute each"),
        Figure("soak_p99_vs_limit", median(ratios), "times", max(ratios), "median of the minutes; peer: the worst"),
        Figure("soak_failed", failed, "answers"),
    ]


def _last_vs_first(minutes: Sequence[float]) -> float:
    """The median of the last third against that of the first."""
    third = max(1, len(minutes) // 3)
    return median(minutes[-third:]) / median(minutes[:third])


def commit_figures(bench: Bench, row: Row) -> list[Figure]:
    """Reads at a steady rate, without commits and then with one every two seconds."""
    seconds, commits = 20.0, [bench.compiled(release + 1) for release in range(8)]
    bench.catch_up()
    still = row.latency(RATE, seconds)
    bench.catch_up()
    committing = threading.Thread(target=_commit_often, args=(bench, commits))
    committing.start()
    moving = row.latency(RATE, seconds)
    committing.join()
    before, after = still.percentile(0.99), moving.percentile(0.99)
    note = f"{len(commits)} commits in {seconds:g} s; peer: ms before"
    return [
        Figure("commit_p99_spike", after / before, "times", before, note),
        Figure("commit_failed", still.failed + moving.failed, "answers"),
    ]


def _commit_often(bench: Bench, commits: Sequence[str]) -> None:
    began = time.monotonic()
    for number, definitions in enumerate(commits):
        bench.send(definitions)
        time.sleep(max(0.0, began + 2.0 * (number + 1) - time.monotonic()))


@contextmanager
def running(folder: Path) -> Iterator[tuple[Bench, dict[str, Row]]]:
    """Platform and peers, loaded, with events coming in."""
    platform = Platform(folder)
    platform.environment["THYME_SERVING__QUERY_REPLICAS"] = str(WORKERS)
    platform.environment["THYME_PIPELINE__PARTITION_COUNT"] = str(PARTITIONS)
    platform.environment["THYME_SERVING__KEY_RATE_LIMIT"] = str(_RATE_LIMIT)
    with ExitStack() as opened:
        opened.callback(platform.thyme, "down")
        platform.thyme("up")
        bench = Bench(folder, platform)
        bench.commit(0)
        bench.load()
        url = platform.online_url()
        bare.store_rows(url, [user(number) for number in range(KEYS)])
        feast = opened.enter_context(feast_peer.feast_server(folder / "feast", url, KEYS, WORKERS))
        plain = opened.enter_context(bare_server(url))
        ingestion = bench.ingestion = opened.enter_context(Ingestion(platform.ports[1], bench.key))
        began, sent = time.monotonic(), ingestion.sent
        yield bench, rows_of(platform.ports[0], bench.key, feast, plain)
        bench.ingested_per_s = (ingestion.sent - sent) / (time.monotonic() - began)


@contextmanager
def bare_server(url: str) -> Iterator[int]:
    """The bare handler, in as many processes as the others have; yields their port."""
    port = free_port([])
    command = [sys.executable, "-m", "tests.load.bare", str(port), url, str(WORKERS)]
    server = subprocess.Popen(command, start_new_session=True)  # as a replica is
    try:
        wait_until(lambda: _listens(port), 30.0)
        yield port
    finally:
        for process in [*psutil.Process(server.pid).children(), server]:
            process.terminate()
        server.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def main() -> None:
    """Measure and report."""
    feast_peer.install()
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="thyme-bench-") as folder, running(Path(folder)) as (bench, rows):
        runs = []
        for number in range(RUNS):
            runs.append(once(bench, rows))
            print(number + 1, runs[-1], file=sys.stderr, flush=True)
        figures += throughput_figures(runs)
        figures += latency_figures(bench, rows)
        sizes = bytes_read(bench)
        figures.append(Figure("bytes_read_1x50", median(sizes), "bytes", max(sizes), "peer: the largest of all keys"))
        if COMMITS:
            figures += commit_figures(bench, rows["ours"])
        if SOAK_MINUTES:
            figures += soak_figures(bench, rows["ours"], rows["limit"])
        figures += audit_figures(bench)
    figures.append(Figure("ingested_meanwhile", bench.ingested_per_s, "events/s"))
    report("serving", figures)


if __name__ == "__main__":
    main()
