"""The audit's contract, on SQLite and on PostgreSQL."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from featurelib.clock import SECOND, SystemClock
from featurelib.errors import InvalidRequest
from featurelib.stores.audit import Audit, QueryRun, RunFilter
from featurelib.stores.registry import Registry

START = 1_700_000_000 * SECOND


@pytest.fixture
def audit(database_url: str) -> Iterator[Audit]:
    """An empty audit in a migrated registry."""
    registry = Registry(database_url, SystemClock())
    registry.migrate()
    yield Audit(registry.database)
    registry.close()


def run(number: int = 0, **members: Any) -> QueryRun:
    defaults = {"id": str(uuid.uuid4()), "kind": "online", "featureset": "Shopper", "created_at": START + number}
    return QueryRun(**{**defaults, **members})


def test_a_run_comes_back_whole(audit: Audit) -> None:
    full = run(
        kind="offline",
        entity_ids=("ann", "b:ob", "ünï"),
        entity_count=3,
        requested_timestamp=START - 5,
        hit_count=2,
        latency_ms=17,
        api_key_fingerprint="0123abcd",
        correlation_id="req-1",
        error="boom",
        inputs={"queries": [{"entity_id": "ann", "timestamp": "2026-04-01T00:00:00Z"}], "inputs": {"amount": 2.5}},
        definition="a" * 64,
        positions={"by_key@1": {"0": [12, 13]}},
    )
    audit.record([full])
    assert audit.get(full.id) == full


def test_a_run_with_only_what_is_needed_comes_back_with_nulls(audit: Audit) -> None:
    small = run()
    audit.record([small])
    found = audit.get(small.id)
    assert found == small
    assert found is not None
    assert (found.inputs, found.positions, found.error, found.requested_timestamp) == (None, None, None, None)


def test_an_unknown_run_is_none(audit: Audit) -> None:
    assert audit.get(str(uuid.uuid4())) is None
    assert audit.list() == []


def test_runs_are_listed_newest_first_whatever_order_they_came_in(audit: Audit) -> None:
    audit.record([run(2), run(0)])
    audit.record([run(1)])
    assert [found.created_at - START for found in audit.list()] == [2, 1, 0]
    assert [found.created_at - START for found in audit.list(limit=2)] == [2, 1]


def test_runs_are_filtered_by_exact_featureset(audit: Audit) -> None:
    audit.record([run(0), run(1, featureset="ShopperTwo"), run(2, featureset="shopper")])
    assert [found.created_at - START for found in audit.list(featureset="Shopper")] == [0]
    assert audit.list(featureset="Shop") == []


def test_lists_default_to_a_hundred_and_stop_at_a_thousand(audit: Audit) -> None:
    audit.record([run(number) for number in range(1_001)])
    assert len(audit.list()) == 100
    assert len(audit.list(limit=10_000)) == 1_000


def test_a_limit_that_is_not_positive_is_refused(audit: Audit) -> None:
    with pytest.raises(InvalidRequest, match="limit"):
        audit.list(limit=0)


def test_a_batch_is_one_insert(audit: Audit) -> None:
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        seen.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        audit.record([run(number) for number in range(500)])
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    assert [statement.split()[0] for statement in seen if not statement.startswith("BEGIN")] == ["INSERT"]


def test_an_empty_batch_is_taken(audit: Audit) -> None:
    audit.record([])
    assert audit.list() == []


def test_a_batch_sent_again_adds_nothing_twice(audit: Audit) -> None:
    first, second = run(0), run(1)
    audit.record([first])
    audit.record([first, second])
    assert audit.list() == [second, first]


def test_a_batch_is_stored_whole_or_not_at_all(audit: Audit) -> None:
    broken = run(1).model_copy(update={"hit_count": None})
    with pytest.raises(sa.exc.IntegrityError):
        audit.record([run(0), broken])
    assert audit.list() == []


def test_batches_of_many_threads_are_all_stored(audit: Audit) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda batch: audit.record([run(batch * 10 + number) for number in range(10)]), range(20)))
    assert sorted(found.created_at - START for found in audit.list(limit=1_000)) == list(range(200))


def test_whatever_a_request_holds_can_be_recorded(audit: Audit) -> None:
    odd = run(featureset="no\x00such", entity_ids=("nul\x00", "half\ud800"), inputs={"x": "\x00", "y": math.inf})
    audit.record([odd])
    found = audit.get(odd.id)
    assert found is not None
    assert found.featureset == "no\ufffdsuch"
    assert found.entity_ids == ("nul\x00", "half\ud800")
    assert found.inputs == {"x": "\x00", "y": math.inf}


def test_every_filter_leaves_what_it_names(audit: Audit) -> None:
    audit.record(
        [
            run(0),
            run(1, featureset="Other"),
            run(2, kind="batch"),
            run(3, api_key_fingerprint="0123abcd"),
            run(4, error="not_found: no"),
        ]
    )
    numbers = {
        name: [found.created_at - START for found in audit.page(wanted).runs]
        for name, wanted in {
            "all": RunFilter(),
            "featureset": RunFilter(featureset="Other"),
            "kind": RunFilter(kind="batch"),
            "key": RunFilter(key="0123abcd"),
            "failed": RunFilter(failed=True),
            "not failed": RunFilter(failed=False),
            "since": RunFilter(since=START + 3),
            "until": RunFilter(until=START + 1),
            "both": RunFilter(since=START + 1, until=START + 2),
            "two": RunFilter(kind="online", until=START + 3, failed=False),
        }.items()
    }
    assert numbers == {
        "all": [4, 3, 2, 1, 0],
        "featureset": [1],
        "kind": [2],
        "key": [3],
        "failed": [4],
        "not failed": [3, 2, 1, 0],
        "since": [4, 3],
        "until": [1, 0],
        "both": [2, 1],
        "two": [3, 1, 0],
    }


def test_pages_follow_each_other_without_gap_or_repeat_while_runs_are_added(audit: Audit) -> None:
    audit.record([run(number // 3) for number in range(10)])  # several of one instant
    seen, cursor = [], None
    while True:
        page = audit.page(RunFilter(), 3, cursor)
        seen += [found.id for found in page.runs]
        audit.record([run(100)])  # newer than any page: no later one shows it
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 10


@pytest.mark.parametrize("cursor", ["", "7", "a-b", "1-2-3", "1-" + "9" * 30])
def test_a_cursor_of_no_page_is_refused(audit: Audit, cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="cursor"):
        audit.page(RunFilter(), cursor=cursor)


def test_a_listing_loads_the_first_ids_and_nothing_a_replay_needs(audit: Audit) -> None:
    ids = tuple(f"{number}-ünï\\:" for number in range(5_000))
    whole = run(entity_ids=ids, entity_count=5_000, inputs={"a": 1}, positions={"b": 2}, digests="c")
    audit.record([whole, run(1, entity_ids=("x" * 20_000,)), run(2)])
    small, long, many = audit.list()
    assert (many.entity_ids, many.entity_count) == (ids[:10], 5_000)
    assert (many.inputs, many.positions, many.digests) == (None, None, None)
    assert (long.entity_ids, small.entity_ids) == ((), ())
    assert audit.get(whole.id) == whole


def test_old_runs_are_forgotten_in_parts(audit: Audit) -> None:
    audit.record([run(number) for number in range(4_500)])
    assert audit.forget_before(START + 4_400) == 4_400
    assert audit.forget_before(START + 4_400) == 0
    assert len(audit.list(limit=1_000)) == 100


def test_an_erased_entity_takes_what_was_answered_of_it_along(audit: Audit) -> None:
    audit.record(
        [run(0, entity_ids=("ann",), digests="d", positions={"a": 1}), run(1, entity_ids=("bob",), digests="d")]
    )
    assert audit.erase(["Shopper"], {"ann": "erased:1"}) == 1
    bob, ann = (audit.get(found.id) for found in audit.list())
    assert ann is not None
    assert bob is not None
    assert (ann.is_erased, ann.digests, ann.positions) == (True, None, None)
    assert bob.digests == "d"
