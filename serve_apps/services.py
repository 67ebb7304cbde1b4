"""What both services stand on, opened once per replica and handed to whoever needs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from featurelib.clock import Clock
from featurelib.engine.confinement import homes
from featurelib.errors import ThymeError
from featurelib.settings import Settings
from featurelib.stores.archive import Archive
from featurelib.stores.audit import Audit
from featurelib.stores.budget import Budget
from featurelib.stores.digests import Digests, digest_key
from featurelib.stores.encryption import key_source
from featurelib.stores.feed import Feed
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.online_reader import OnlineReader
from featurelib.stores.owned_keys import OwnedKeys
from featurelib.stores.point_in_time import PointInTime
from featurelib.stores.principals import Principals
from featurelib.stores.registry import Registry
from featurelib.stores.role_assignments import RoleAssignments
from featurelib.stores.secret_values import SecretValues
from featurelib.stores.shapes import Shapes
from featurelib.stores.usage import Usage
from serve_apps.audit import AuditWriter, Carrier, InProcess, InThread
from serve_apps.audit_process import Hello
from serve_apps.current import Current, Generations
from serve_apps.isolation import Isolation
from serve_apps.live_feed import LiveFeed
from serve_apps.metrics import Metrics
from serve_apps.query_server import QueryServer, Threads
from serve_apps.rate_limits import RateLimits
from serve_apps.reading import Online, Past
from serve_apps.recorder import Recorder
from serve_apps.siblings import Siblings
from serve_apps.tracing import Traces, open_traces
from serve_apps.versions import Versions

# Point-in-time reads fold in Polars, which has threads of its own; more callers than this only queue inside it.
_HISTORY_THREADS = 4


class OnlineStore(Online, Generations, Protocol):
    """The online store as the services use it."""

    async def positions(self, pipeline: str) -> dict[int, list[int]]:
        """Per key group of a pipeline that has begun: up to where it has applied each input partition."""
        ...

    async def ping(self) -> None:
        """Raise StoreUnavailable unless the store answers."""
        ...

    async def close(self) -> None:
        """Give the connections back."""
        ...


class Stores(NamedTuple):
    """The stores a replica opens."""

    registry: Registry
    online: OnlineStore
    history: Past
    log: Log
    usage: Usage


class AccessStores(NamedTuple):
    """Who may do what, and the secrets they keep."""

    principals: Principals
    roles: RoleAssignments
    keys: OwnedKeys
    secrets: SecretValues

    @classmethod
    def over(cls, registry: Registry, settings: Settings, clock: Clock) -> AccessStores:
        """In the registry's database."""
        database = registry.database
        return cls(
            principals=Principals(database, clock),
            roles=RoleAssignments(database, clock),
            keys=OwnedKeys(database, clock),
            secrets=SecretValues(database, clock, key_source(settings)),
        )


@dataclass(frozen=True, slots=True)
class Services:
    """Everything a request may need."""

    settings: Settings
    clock: Clock
    stores: Stores
    access: AccessStores
    audit: Audit
    writer: AuditWriter
    digests: Digests
    limits: RateLimits
    metrics: Metrics
    isolation: Isolation
    current: Current
    query_server: QueryServer
    versions: Versions
    shapes: Shapes
    feed: LiveFeed
    threads: ThreadPoolExecutor
    siblings: Siblings
    traces: Traces | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    background: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    def over(cls, stores: Stores, settings: Settings, clock: Clock, siblings: Siblings | None = None) -> Services:
        """Build the services over opened stores; call on the event loop that will serve."""
        metrics = Metrics()
        audit = Audit(stores.registry.database)
        threads = ThreadPoolExecutor(_HISTORY_THREADS, thread_name_prefix="history")
        isolation = Isolation(settings.serving, stores.registry, [str(settings.data_dir), *homes()])
        current = Current(stores.registry, stores.online, isolation, auth=settings.serving.auth)
        return cls(
            settings=settings,
            clock=clock,
            stores=stores,
            access=AccessStores.over(stores.registry, settings, clock),
            audit=audit,
            writer=AuditWriter(_carrier(stores.registry, audit, settings), metrics),
            digests=Digests(digest_key(settings)),
            limits=RateLimits(stores.usage, settings.serving.key_rate_limit),
            metrics=metrics,
            isolation=isolation,
            current=current,
            query_server=QueryServer(
                current, stores.online, stores.history, clock, Threads(threads, isolation.threads)
            ),
            versions=Versions(stores.registry, current, isolation),
            shapes=Shapes(stores.log, clock),
            feed=LiveFeed(
                Feed(stores.registry.database),
                most=settings.serving.event_streams,
                poll_s=settings.serving.event_poll_ms / 1_000,
            ),
            threads=threads,
            siblings=siblings or Siblings(),
            traces=open_traces(settings.tracing),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Services]:
        """Load the first plans, then keep them current and write query runs until the block ends.

        Raises:
            StoreUnavailable: registry or online store did not answer at the start.
        """
        try:
            await self.current.refresh()
            await self.stores.online.ping()
        except ThymeError:
            await self._close()
            raise
        interval_s = self.settings.serving.plan_poll_ms / 1_000
        self.background.append(asyncio.create_task(self.current.watch(interval_s, self.stopping)))
        self.background.append(asyncio.create_task(self.writer.write(self.stopping)))
        self.background.append(asyncio.create_task(self.feed.run(self.stopping)))
        self.background.append(asyncio.create_task(self.limits.share(self.stopping)))
        try:
            async with self.siblings.joined(self.figures):
                yield self
        finally:
            await self._close()

    def figures(self) -> bytes:
        """What this replica counts, in Prometheus text."""
        self.metrics.plan_version.set(self.current.snapshot.version)
        return self.metrics.own()

    def check_background(self) -> None:
        """Raise what ended a background task: a replica whose plans no longer move must be replaced.

        The same goes for one with an extractor that could not be stopped.
        """
        self.isolation.check()
        for task in self.background:
            if task.done():
                task.result()

    async def _close(self) -> None:
        # Asked, not cancelled: a task cancelled while it connects leaves a socket nobody closes.
        self.stopping.set()
        self.feed.close()
        await asyncio.gather(*self.background, return_exceptions=True)
        await self.writer.close()
        await self.stores.online.close()
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close)
        self.threads.shutdown(wait=False)
        self.isolation.close()
        self.stores.log.close()
        self.stores.usage.close()
        self.stores.registry.close()


def _carrier(registry: Registry, audit: Audit, settings: Settings) -> Carrier:
    key = digest_key(settings)
    if settings.serving.query_run_writer == "thread":
        return InThread(Recorder(audit, registry, Digests(key)))
    return InProcess(Hello(settings.registry_url, key))


@asynccontextmanager
async def open_services(settings: Settings, clock: Clock, siblings: Siblings | None = None) -> AsyncIterator[Services]:
    """Open the stores the settings name, and run services over them.

    Args:
        settings: which stores, and how they are served.
        clock: read once per request.
        siblings: the other replicas of the service; left out, there are none.

    Raises:
        StoreUnavailable: registry or online store did not answer.
    """
    redis_url = settings.online.redis_url.get_secret_value()
    log = Log(redis_url, clock, Budget.of(settings.online))
    stores = Stores(
        registry=Registry(settings.registry_url, clock),
        online=OnlineReader(redis_url, watching=settings.serving.watch_keys),
        history=PointInTime(History(Archive(settings.archive_url), log), log),
        log=log,
        usage=Usage(redis_url),
    )
    async with Services.over(stores, settings, clock, siblings).running() as services:
        yield services
