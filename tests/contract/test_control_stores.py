"""Orders to jobs, requested backfills, and the feed in the order it grew: on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator

import pytest

from featurelib.clock import SECOND, Instant
from featurelib.errors import Conflict, InvalidRequest, NotFound
from featurelib.stores.backfill_requests import Asked, BackfillRequest, BackfillRequests
from featurelib.stores.event_log import insert_event
from featurelib.stores.feed import Feed
from featurelib.stores.orders import Orders
from featurelib.stores.registry import NewEvent, Registry
from tests.support.clocks import MovedClock

START: Instant = 1_700_000_000 * SECOND


@pytest.fixture
def registry(database_url: str) -> Iterator[Registry]:
    made = Registry(database_url, MovedClock(START))
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def orders(registry: Registry) -> Orders:
    return Orders(registry.database, MovedClock(START))


@pytest.fixture
def requests(registry: Registry) -> BackfillRequests:
    return BackfillRequests(registry.database, MovedClock(START))


def told(registry: Registry) -> list[tuple[str, str]]:
    """Type and subject of every event, oldest first."""
    return [(entry.event.event_type, entry.event.subject) for entry in Feed(registry.database).after(0)]


def event(message: str) -> NewEvent:
    return NewEvent(event_type="noted", source="test", subject="it", message=message)


def test_an_order_holds_until_the_next_one_and_is_told_once(registry: Registry, orders: Orders) -> None:
    assert orders.all() == {}
    orders.pause("by_rider@1", "1f0c9a2b")
    orders.pause("by_rider@1", "1f0c9a2b")
    orders.pause("by_city@1", None)
    orders.resume("by_rider@1", None)
    assert {name: order.paused for name, order in orders.all().items()} == {"by_rider@1": False, "by_city@1": True}
    assert told(registry) == [
        ("job_paused", "by_rider@1"),
        ("job_paused", "by_city@1"),
        ("job_resumed", "by_rider@1"),
    ]
    assert Feed(registry.database).after(0)[0].event.detail == {"requested_by": "1f0c9a2b"}


def test_resuming_what_runs_changes_and_tells_nothing(registry: Registry, orders: Orders) -> None:
    orders.resume("by_rider@1", None)
    assert (orders.all(), told(registry)) == ({}, [])


def test_each_restart_counts_and_none_is_taken_while_the_job_is_paused(registry: Registry, orders: Orders) -> None:
    assert [orders.restart("by_rider@1", None).restarts for _ in range(2)] == [1, 2]
    orders.pause("by_rider@1", None)
    with pytest.raises(Conflict, match="paused"):
        orders.restart("by_rider@1", None)
    assert orders.all()["by_rider@1"].restarts == 2
    assert [kind for kind, _ in told(registry)] == ["job_restart_requested", "job_restart_requested", "job_paused"]


def test_one_backfill_of_a_pipeline_is_open_at_a_time(requests: BackfillRequests) -> None:
    first = requests.request("by_rider@1", asked=Asked("1f0c9a2b", "c-1"))
    assert (first.state, first.requested_by, first.correlation_id) == ("requested", "1f0c9a2b", "c-1")
    with pytest.raises(Conflict, match=first.id):
        requests.request("by_rider@1")
    requests.request("by_city@1")
    assert requests.failed(first, "no room")
    again = requests.request("by_rider@1", since=START - SECOND, until=START)
    assert requests.get(again.id) == again
    assert [each.pipeline for each in requests.open()] == ["by_city@1", "by_rider@1"]
    assert [each.id for each in requests.latest(pipeline="by_rider@1")] == [again.id, first.id]


def test_of_many_who_ask_at_once_one_has_it(registry: Registry, requests: BackfillRequests) -> None:
    outcomes: list[str] = []
    begin = threading.Barrier(6)

    def ask() -> None:
        begin.wait()
        try:
            outcomes.append(requests.request("by_rider@1").state)
        except Conflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict"] * 5 + ["requested"]
    assert told(registry) == [("backfill_requested", "by_rider@1")]


def test_a_backfill_goes_from_asked_for_to_served_and_each_step_is_told_once(
    registry: Registry, requests: BackfillRequests
) -> None:
    request = requests.request("by_rider@1", since=0)
    assert requests.submitted(request, "job-1")
    assert not requests.submitted(request, "job-1")
    assert requests.began(request.id, generation=2, rows_expected=100)
    requests.advance(request.id, 30)
    requests.advance(request.id, 50, -20)
    assert requests.built(request.id)
    assert not requests.began(request.id, generation=3, rows_expected=1)
    assert requests.completed(request, "80 rows")
    assert not requests.completed(request, "80 rows")
    found = requests.get(request.id)
    assert (found.state, found.rows, found.rows_expected, found.generation) == ("complete", 80, 80, 2)
    assert (found.detail, found.is_open, found.submission_id) == ("80 rows", False, "job-1")
    kinds = ["backfill_requested", "backfill_started", "backfill_completed"]
    assert told(registry) == [(kind, "by_rider@1") for kind in kinds]
    started = Feed(registry.database).after(0)[1].event
    assert "since 1970-01-01T00:00:00Z" in started.message


@pytest.mark.parametrize(
    ("reach", "state"),
    [
        (lambda requests, request: None, "cancelling"),
        (lambda requests, request: requests.submitted(request, "job"), "cancelling"),
        (lambda requests, request: requests.cancel(request.id), "cancelling"),
        (lambda requests, request: requests.cancelled(request, "so"), "cancelled"),
        (lambda requests, request: requests.built(request.id), None),
        (lambda requests, request: requests.failed(request, "no room"), None),
    ],
    ids=["asked for", "running", "ending", "cancelled", "past the point of no return", "over"],
)
def test_what_can_still_be_cancelled_is(
    requests: BackfillRequests, reach: Callable[[BackfillRequests, BackfillRequest], object], state: str | None
) -> None:
    request = requests.request("by_rider@1")
    reach(requests, request)
    if state is None:
        with pytest.raises(Conflict, match="no longer"):
            requests.cancel(request.id)
    else:
        assert requests.cancel(request.id).state == state


def test_what_is_being_cancelled_is_neither_begun_nor_switched_to(
    registry: Registry, requests: BackfillRequests
) -> None:
    request = requests.request("by_rider@1")
    requests.cancel(request.id)
    assert not requests.waits(request, "Ray is away")
    assert not requests.submitted(request, "job")
    assert not requests.began(request.id, 2, 10)
    assert not requests.built(request.id)
    assert not requests.failed(request, "it was killed")
    assert requests.cancelled(request, "cancelled")
    assert not requests.cancelled(request, "cancelled")
    assert told(registry) == [("backfill_requested", "by_rider@1"), ("backfill_cancelled", "by_rider@1")]


def test_a_job_that_begins_again_counts_from_nothing(requests: BackfillRequests) -> None:
    request = requests.request("by_rider@1")
    requests.began(request.id, 2, 100)
    requests.advance(request.id, 60)
    requests.began(request.id, 2, 110)
    found = requests.get(request.id)
    assert (found.rows, found.rows_expected) == (0, 110)


@pytest.mark.parametrize("request_id", ["", "nothing", "\0" * 36, str(uuid.UUID(int=7)), "x" * 36, "\ud800" * 36])
def test_a_backfill_that_is_not_there_is_not_found(requests: BackfillRequests, request_id: str) -> None:
    with pytest.raises(NotFound):
        requests.get(request_id)


def test_the_feed_is_read_forward_from_any_place(registry: Registry) -> None:
    feed = Feed(registry.database)
    assert (feed.head(), feed.after(0)) == ((0, None), [])
    for number in range(5):
        registry.record_event(event(str(number)))
    entries = feed.after(0)
    assert [entry.event.message for entry in entries] == ["0", "1", "2", "3", "4"]
    assert feed.head() == (entries[-1].sequence, entries[-1].event.id)
    assert feed.place_of(entries[2].event.id) == entries[2].sequence
    assert feed.after(entries[2].sequence) == entries[3:]
    assert feed.after(0, 2) == entries[:2]
    assert feed.place_of(str(uuid.uuid4())) is None


def test_an_entry_never_appears_before_one_that_has_been_read(registry: Registry) -> None:
    """A transaction that has taken its place in the feed holds others back until it is over."""
    feed, clock = Feed(registry.database), MovedClock(START)
    seen: list[list[str]] = []
    done = threading.Event()

    def later() -> None:
        registry.record_event(event("later"))
        done.set()

    with registry.database.write() as connection:
        insert_event(connection, event("slow"), clock.now())
        thread = threading.Thread(target=later)
        thread.start()
        # The other one has had all the time it needs when a whole round trip of a reader is over, and waits.
        seen += [[entry.event.message for entry in feed.after(0)] for _ in range(20)]
        assert not done.is_set()
    thread.join()
    assert seen == [[]] * 20
    assert [entry.event.message for entry in feed.after(0)] == ["slow", "later"]


def test_a_severity_is_known_by_the_names_people_use(registry: Registry) -> None:
    registry.record_event(event("x").model_copy(update={"severity": "warn"}))
    assert len(registry.events(severity="warning")) == len(registry.events(severity="warn")) == 1
    with pytest.raises(InvalidRequest):
        registry.events(severity="loud")
