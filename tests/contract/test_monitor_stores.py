"""What the monitor keeps: findings by feature and hour, statistics by day; on SQLite and on PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from featurelib.clock import DAY, HOUR, MINUTE, SECOND, Instant
from featurelib.engine.statistics import summary_of
from featurelib.stores import schema
from featurelib.stores.audit import Audit, QueryKind, QueryRun
from featurelib.stores.checks import MOST_WORST, Checks, Tally, Worst
from featurelib.stores.registry import Registry
from featurelib.stores.statistics import DAY_ITSELF, ColumnDay, Drifted, Statistics, Subject, by_name
from tests.support.clocks import MovedClock
from tests.support.databases import empty_database

START: Instant = 1_700_006_400 * SECOND  # midnight
RIDER, RIDE = Subject("featureset", "Rider"), Subject("dataset", "Ride@1")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def migrated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One database of each kind for the module: to migrate one takes longer than all else here."""
    url = f"sqlite:///{tmp_path_factory.mktemp('monitor')}/registry.db"
    if request.param == "postgresql":
        url = empty_database(request.getfixturevalue("postgres_server"))
    made = Registry(url, MovedClock(START))
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def registry(migrated: Registry) -> Registry:
    """With nothing in it."""
    tables = (schema.query_runs, schema.consistency_checks, schema.column_statistics, schema.monitor_marks)
    with migrated.database.write() as connection:
        for table in tables:
            connection.execute(table.delete())
    return migrated


def run(featureset: str, second: int, kind: QueryKind = "online", **more: object) -> QueryRun:
    given = {"entity_ids": ("7",), "entity_count": 1, "inputs": {"a": 1}, "digests": "d", **more}
    at = START + second * SECOND
    return QueryRun(id=str(uuid.uuid4()), kind=kind, featureset=featureset, created_at=at, **given)


def tally(feature: str, hour: int, different: int = 0, **more: object) -> Tally:
    given = {"kind": "featureset", "target": "Rider", "compared": 10, **more}
    causes = {"unknown": different} if different else {}
    return Tally(feature=feature, hour=START + hour * HOUR, different=different, causes=causes, **given)


def test_a_sample_is_of_every_target_alike_and_of_what_was_answered_from_the_online_store(registry: Registry) -> None:
    runs = [run("Often", second) for second in range(1, 50)]
    runs += [run("Seldom", 20), run("Seldom", 30, kind="batch"), run("Seldom", 30, kind="lookup")]
    runs += [
        run("Failed", 5, error="user_code: no"),
        run("Offline", 5, kind="offline"),
        run("Undigested", 5, digests=None),
        run("Erased", 5, inputs=None),
        run("Large", 5, kind="batch", entity_count=5_000),
        run("Before", 0),
        run("After", 61),
    ]
    Audit(registry.database).record(runs)
    checks = Checks(registry.database)
    found = checks.sample(START, START + MINUTE, most=8, largest=1_000)
    assert len(found) == 8
    assert {each.featureset for each in found} == {"Often", "Seldom"}
    assert {each.kind for each in found if each.featureset == "Seldom"} == {"online", "batch", "lookup"}
    assert found[0].inputs == {"a": 1}
    assert checks.sample(START, START + MINUTE, most=8, largest=1_000) == found
    assert len(checks.sample(START, START + MINUTE, most=100, largest=1_000)) == 52
    ids = checks.entities([found[0].id, str(uuid.uuid4())])
    assert ids == {found[0].id: ("7",)}


def test_findings_of_an_hour_add_up_and_those_of_hours_too(registry: Registry) -> None:
    checks = Checks(registry.database)
    checks.add([tally("trips", 0), tally("trips", 1, different=1), tally("fares", 0, different=2)])
    checks.add([tally("trips", 1, different=3), tally("trips", 0, target="Other")])
    fares, other, trips = sorted(checks.of(START), key=lambda each: (each.feature, each.target))
    assert (trips.compared, trips.different, trips.causes) == (30, 4, {"unknown": 4})
    assert (fares.different, other.compared) == (2, 10)
    assert [each.feature for each in checks.of(START + HOUR + MINUTE)] == ["trips"]
    assert [each.target for each in checks.of(START, target="Other")] == ["Other"]
    checks.forget_old(START + 14 * DAY + HOUR)
    assert [(each.feature, each.compared) for each in checks.of(START)] == [("trips", 20)]


def test_the_entities_that_differ_most_are_kept_with_their_newest_run(registry: Registry) -> None:
    checks = Checks(registry.database)
    seldom = [Worst(mark=f"m{number}", run="r1", place=0) for number in range(MOST_WORST)]
    checks.add([tally("trips", 0, different=1, worst=tuple(seldom))])
    checks.add([tally("trips", 0, different=2, worst=(Worst(mark="often", run="r2", place=3, times=2), seldom[0]))])
    checks.add([tally("trips", 1, different=1, worst=(Worst(mark="often", run="r3", place=1),))])
    (found,) = checks.of(START)
    assert len(found.worst) == MOST_WORST
    assert found.worst[0] == Worst(mark="often", run="r3", place=1, times=3)
    assert found.worst[1].times == 2


def test_a_mark_is_where_the_monitor_goes_on(registry: Registry) -> None:
    checks = Checks(registry.database)
    assert checks.mark("consistency") is None
    checks.move("consistency", START, START)
    checks.move("consistency", START + 5, START)
    assert checks.mark("consistency") == START + 5


def day(subject: Subject, name: str, number: int, values: list[float | None]) -> ColumnDay:
    summary = summary_of("float", values)
    of = {"kind": subject.kind, "subject": subject.name, "name": name, "definition": "d"}
    at = START + number * DAY
    return ColumnDay(day=at, rows=summary.rows, nulls=summary.nulls, summary=summary, made_at=at + DAY, **of)


def test_a_day_that_is_made_again_takes_the_place_of_what_was_there(registry: Registry) -> None:
    kept = Statistics(registry.database)
    kept.put(
        RIDER, START, [day(RIDER, DAY_ITSELF, 0, [1.0]), day(RIDER, "trips", 0, [1.0]), day(RIDER, "old", 0, [1.0])]
    )
    again = [day(RIDER, DAY_ITSELF, 0, [1.0, 2.0]), day(RIDER, "trips", 0, [1.0, None])]
    kept.put(RIDER, START, again)
    kept.put(RIDE, START, [day(RIDE, DAY_ITSELF, 0, [])])
    assert kept.of(RIDER, START, START) == again
    assert set(by_name(again)) == {"trips"}
    assert {subject: found.rows for (subject, _), found in kept.days().items()} == {RIDER: 2, RIDE: 0}


def test_the_newest_day_of_each_column_is_found_with_its_drift(registry: Registry) -> None:
    kept = Statistics(registry.database)
    for number in range(3):
        columns = [day(RIDER, DAY_ITSELF, number, [1.0]), day(RIDER, "trips", number, [1.0, None])]
        kept.put(RIDER, START + number * DAY, [*columns, *([day(RIDER, "gone", 0, [3.0])] if number == 0 else [])])
    kept.set_drift(RIDER, [Drifted("trips", START + DAY, 0.125, 0.5, 40), Drifted("gone", START, None, None, None)])
    found = kept.newest(before=START + 2 * DAY)
    assert [(each.name, each.day, each.psi, each.nulls) for each in found] == [
        ("gone", START, None, 0),
        ("trips", START + DAY, 0.125, 1),
    ]
    assert [each.psi for each in kept.of(RIDER, START, START + 2 * DAY, "trips")] == [None, 0.125, None]


def test_old_days_and_what_is_not_committed_any_more_are_forgotten(registry: Registry) -> None:
    kept = Statistics(registry.database)
    for number in range(3):
        for subject in (RIDER, RIDE):
            kept.put(subject, START + number * DAY, [day(subject, DAY_ITSELF, number, [1.0])])
    kept.forget(START + DAY, [RIDER])
    assert sorted(kept.days()) == [(RIDER, START + DAY), (RIDER, START + 2 * DAY)]
