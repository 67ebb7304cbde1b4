"""What people order of jobs, and the backfills they ask for. Knows no HTTP; methods block.

Nothing is done here: an order is a row that the supervisor obeys (jobs/supervisor.py, jobs/requested.py).
"""

from __future__ import annotations

from collections.abc import Callable

from featurelib.clock import Clock, Instant, format_instant
from featurelib.definitions import Definitions, PipelineDef, ref
from featurelib.engine.program import compiled, pipelines_of
from featurelib.errors import InvalidRequest, NotFound
from featurelib.settings import Settings
from featurelib.stores.archive import Archive
from featurelib.stores.backfill_price import BackfillAsked, Pricing
from featurelib.stores.backfill_requests import Asked, BackfillRequest, BackfillRequests
from featurelib.stores.history import History
from featurelib.stores.log import Log
from featurelib.stores.orders import JobOrder, Orders
from featurelib.stores.registry import Registry
from serve_apps import shapes


class JobControl:
    """Jobs as they are, and orders to them.

    Args:
        registry: what is committed, and what the supervisor wrote down of it.
        settings: how many workers a job has that was never scaled.
        clock: what ages are counted from.
    """

    def __init__(self, registry: Registry, settings: Settings, clock: Clock) -> None:
        self._registry = registry
        self._orders = Orders(registry.database, clock)
        self._settings = settings
        self._clock = clock

    def jobs(self) -> list[shapes.Json]:
        """Every job, how far it got and how fresh it is."""
        definitions = self._registry.definitions()
        count = self._settings.pipeline.partition_count
        return shapes.job_records(
            definitions, self._registry.jobs(), count, self._clock.now(), orders=self._orders.all()
        )

    def job(self, name: str) -> shapes.Json:
        """One job.

        Args:
            name: ``by_rider`` or ``by_rider_job``, with ``@2`` where there are several versions.

        Raises:
            NotFound: no such job.
            InvalidRequest: the name fits several versions.
        """
        return self._shown(self._pipeline(name))

    def scale(self, name: str, partition_count: int) -> shapes.Json:
        """Give a pipeline another number of workers, 1 to 64; they are replaced while records go on arriving.

        Raises:
            NotFound: no such job.
            InvalidRequest: the count is out of range, or the name fits several versions.
        """
        pipeline = self._pipeline(name)
        self._registry.scale(ref(pipeline), partition_count)
        return self._shown(pipeline)

    def pause(self, name: str, by: str | None) -> shapes.Json:
        """Have the workers of a pipeline end after their current step; its state and position stay.

        Raises:
            NotFound: no such job.
            InvalidRequest: the name fits several versions.
        """
        return self._order(name, by, self._orders.pause)

    def resume(self, name: str, by: str | None) -> shapes.Json:
        """Have a pipeline go on from where it stands.

        Raises:
            NotFound: no such job.
            InvalidRequest: the name fits several versions.
        """
        return self._order(name, by, self._orders.resume)

    def restart(self, name: str, by: str | None) -> shapes.Json:
        """Have every worker of a pipeline replaced, each after its current step.

        Raises:
            NotFound: no such job.
            InvalidRequest: the name fits several versions.
            Conflict: it is paused.
        """
        return self._order(name, by, self._orders.restart)

    def _order(self, name: str, by: str | None, order: Callable[[str, str | None], JobOrder]) -> shapes.Json:
        pipeline = self._pipeline(name)
        order(ref(pipeline), by)
        return self._shown(pipeline)

    def _pipeline(self, name: str) -> PipelineDef:
        return job_named(name, self._registry.definitions())

    def _shown(self, pipeline: PipelineDef) -> shapes.Json:
        same = shapes.identity("pipeline", ref(pipeline))
        return next(job for job in self.jobs() if job["id"] == same)


class BackfillControl:
    """Backfills that were asked for.

    Args:
        registry: what is committed, and where requests are kept.
        clock: what lies in the future.
    """

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._requests = BackfillRequests(registry.database, clock)
        self._clock = clock

    def request(self, name: str, since: Instant | None, until: Instant | None, asked: Asked) -> shapes.Json:
        """Ask for the state of a pipeline to be built anew, from records dated within both instants.

        Args:
            name: of the pipeline or its job, with ``@2`` where there are several versions.
            since: the earliest; ``None``: no end.
            until: the latest; ``None``: no end.
            asked: who asks.

        Raises:
            NotFound: no such pipeline.
            InvalidRequest: the name fits several versions, an instant lies ahead, or they are in the wrong order.
            Conflict: a backfill of the pipeline is not over.
        """
        pipeline = job_named(name, self._registry.definitions())
        self._check_span(since, until)
        return shown(self._requests.request(ref(pipeline), since=since, until=until, asked=asked))

    def price(
        self, name: str, since: Instant | None, until: Instant | None, log: Log, settings: Settings
    ) -> shapes.Json:
        """What a backfill would read, write and take; nothing is asked for.

        Args:
            name: of the pipeline or its job, with ``@2`` where there are several versions.
            since: the earliest; ``None``: no end.
            until: the latest; ``None``: no end.
            log: where its records are, those that are not archived yet.
            settings: where the others are, and how many actors it would have.

        Raises:
            NotFound: no such pipeline.
            InvalidRequest: as for :meth:`request`.
            StoreUnavailable: log or archive does not answer.
            UserCodeError: a function of the pipeline cannot be run.
        """
        definitions = self._registry.definitions()
        pipeline = job_named(name, definitions)
        self._check_span(since, until)
        program = compiled(pipeline, definitions)
        asked = BackfillAsked.now(program, log, settings.pipeline.partition_count, since, until)
        price = Pricing(program, History(Archive(settings.archive_url), log)).price(asked)
        return {"pipeline": ref(pipeline), **price._asdict()}

    def roll_back(self, backfill_id: str, by: str | None) -> shapes.Json:
        """Have what was served before a backfill served again. ``by``: fingerprint of the key that asks.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is not complete, or what was served before is not kept any more.
        """
        return shown(self._requests.roll_back(backfill_id, by))

    def drop(self, backfill_id: str) -> shapes.Json:
        """Have the state dropped that a backfill keeps to go back to.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is not over, or is being rolled back.
        """
        return shown(self._requests.drop_kept(backfill_id))

    def _check_span(self, since: Instant | None, until: Instant | None) -> None:
        _check_past({"since": since, "until": until}, self._clock.now())
        if since is not None and until is not None and since > until:
            raise InvalidRequest("since: lies after until; no record is dated within both")

    def latest(self, limit: int, pipeline: str | None) -> list[shapes.Json]:
        """The latest backfills, newest first; of one pipeline when it is named.

        Raises:
            NotFound: no such pipeline.
        """
        name = ref(job_named(pipeline, self._registry.definitions())) if pipeline is not None else None
        return [shown(each) for each in self._requests.latest(limit, name)]

    def get(self, backfill_id: str) -> shapes.Json:
        """One backfill.

        Raises:
            NotFound: there is none of that id.
        """
        return shown(self._requests.get(backfill_id))

    def cancel(self, backfill_id: str, by: str | None) -> shapes.Json:
        """Have a backfill end; the state that is served stays. ``by``: fingerprint of the key that asks.

        Raises:
            NotFound: there is none of that id.
            Conflict: it is over, or its state is being switched to.
        """
        self._requests.get(backfill_id)
        return shown(self._requests.cancel(backfill_id, by))


def shown(request: BackfillRequest) -> shapes.Json:
    """A backfill on the wire."""
    instants = ("since", "until", "created_at", "updated_at", "kept_until")
    tree = request.model_dump(exclude={"cut"})
    return {
        **tree,
        **{name: None if tree[name] is None else format_instant(tree[name]) for name in instants},
    }


def _check_past(instants: dict[str, Instant | None], now: Instant) -> None:
    for name, instant in instants.items():
        if instant is not None and instant > now:
            raise InvalidRequest(f"{name}: {format_instant(instant)} lies ahead; it is {format_instant(now)}")


def job_named(name: str, definitions: Definitions) -> PipelineDef:
    """The pipeline whose job, or which itself, has the name; ``@2`` behind it names a version.

    Raises:
        NotFound: there is none.
        InvalidRequest: several versions have the name.
    """
    title, _, version = name.partition("@")
    pipelines = [p for p in pipelines_of(definitions) if version in {"", str(p.version)}]
    # A pipeline's own name may end like a job's: what is a job's name is taken for that first.
    found = [p for p in pipelines if f"{p.name}_job" == title] or [p for p in pipelines if p.name == title]
    if not found:
        raise NotFound(f"there is no job {name[:128]!r}")
    if len(found) > 1:
        versions = ", ".join(f"{pipeline.name}@{pipeline.version}" for pipeline in found)
        raise InvalidRequest(f"name: {name!r} has several versions: {versions}; name one of them")
    return found[0]
