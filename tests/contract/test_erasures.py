"""Receipts of erasures and what an erasure does to the registry's database, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from featurelib.clock import SystemClock
from featurelib.errors import NotFound
from featurelib.stores.audit import Audit, QueryRun
from featurelib.stores.erasures import ErasureRecord, Erasures
from featurelib.stores.registry import NewEvent, Registry

ID = "00000000-0000-4000-8000-000000000001"
NAMES = {"ann": "erased:1", "7": "erased:2", "a:b": "erased:3"}


@pytest.fixture
def registry(database_url: str) -> Iterator[Registry]:
    made = Registry(database_url, SystemClock())
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def erasures(registry: Registry) -> Erasures:
    return Erasures(registry.database, SystemClock())


def receipt(**members: object) -> ErasureRecord:
    defaults = {"id": ID, "dataset": "Ride", "entities": 1, "digests": ("aa",), "tombstones": {"Ride@1/0": 4}}
    return ErasureRecord.model_validate({**defaults, "created_at": 5, **members})


def test_a_receipt_comes_back_with_how_far_it_got(erasures: Erasures) -> None:
    erasures.accept(receipt(block=True, requested_by="12345678"))
    erasures.move(ID, "applied", {"waiting_for": ["by_city@1"]})
    expected = {"block": True, "requested_by": "12345678", "state": "applied"}
    assert erasures.get(ID) == receipt(**expected, progress={"waiting_for": ["by_city@1"]})
    assert [each.id for each in erasures.open()] == [ID]
    erasures.move(ID, "complete", {})
    assert erasures.open() == []
    assert erasures.get(ID).completed_at is not None
    assert [each.id for each in erasures.list()] == [ID]
    for unknown in ("none such", "\0"):
        with pytest.raises(NotFound):
            erasures.get(unknown)


def test_a_request_that_ends_after_its_tombstones_were_adopted_completes_the_receipt(erasures: Erasures) -> None:
    erasures.adopt(receipt(entities=1))
    erasures.move(ID, "applied", {})
    erasures.accept(receipt(entities=3, digests=("aa", "bb", "cc")))
    erasures.adopt(receipt(entities=9))
    found = erasures.get(ID)
    assert (found.entities, found.digests, found.state) == (3, ("aa", "bb", "cc"), "applied")


def run(number: int, *entity_ids: str, featureset: str = "Rider", **members: object) -> QueryRun:
    defaults = {"id": f"run-{number}", "kind": "batch", "featureset": featureset, "created_at": number}
    return QueryRun.model_validate({**defaults, "entity_ids": entity_ids, **members})


def test_runs_name_a_pseudonym_where_they_named_the_entity(registry: Registry) -> None:
    audit = Audit(registry.database)
    others = [run(5, "anna", "77"), run(6, "ann", featureset="Elsewhere")]
    audit.record(
        [
            run(1, "ann", "bob", inputs={"entity_ids": ["ann"]}, positions={"x": 1}, correlation_id="for-ann"),
            run(2, "paris:7", error="overflow: of '7'", correlation_id="mine"),
            run(3, "a\\:b:paris"),
            *others,
        ]
    )
    assert audit.erase(["Rider"], NAMES) == 3
    assert audit.erase(["Rider"], NAMES) == 0
    first, second, third = (audit.get(f"run-{number}") for number in (1, 2, 3))
    assert first == run(1, "erased:1", "bob")
    assert second == run(2, "erased:2", error="overflow", correlation_id="mine")
    assert third is not None
    assert third.entity_ids == ("erased:3",)
    assert third.is_erased
    assert [audit.get(each.id) for each in others] == others


def test_more_runs_than_one_look_takes_are_gone_through(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurelib.stores.audit._RUNS_PER_LOOK", 2)
    audit = Audit(registry.database)
    audit.record([run(number, "ann" if number % 2 else "bob") for number in range(7)])
    assert audit.erase(["Rider"], NAMES) == 3


def test_events_quote_a_pseudonym_where_they_quoted_the_entity(registry: Registry) -> None:
    for message in ("a read of 'ann' failed", "7 records were late, 'anna' said"):
        event = NewEvent(event_type="t", source="s", subject="x", message=message, detail={"entity_id": "7", "n": 7})
        registry.record_event(event)
    assert registry.erase_from_events(NAMES) == 2
    assert registry.erase_from_events(NAMES) == 0
    told = {event.message: event.detail for event in registry.events()}
    detail = {"entity_id": "erased:2", "n": 7}
    assert told == {"a read of 'erased:1' failed": detail, "7 records were late, 'anna' said": detail}


def test_nothing_of_a_changed_row_is_left_in_a_sqlite_file(tmp_path) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/registry.db", SystemClock())
    registry.migrate()
    audit = Audit(registry.database)
    audit.record([run(1, "somebody-in-particular")])
    audit.erase(["Rider"], {"somebody-in-particular": "erased:9"})
    assert registry.database.settle()
    assert [p for p in tmp_path.iterdir() if b"somebody-in-particular" in p.read_bytes()] == []
    registry.close()
