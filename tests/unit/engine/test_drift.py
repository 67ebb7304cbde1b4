"""How the columns that come differ from those declared and from those before."""

import pyarrow as pa
import pytest

from featurelib.clock import HOUR
from featurelib.definitions import DatasetDef, FieldDef
from featurelib.engine.drift import VANISHED_AFTER, Drift, look
from featurelib.stores.log import Log
from featurelib.stores.shapes import Shapes, as_detail
from tests.support.clocks import MovedClock

TRIP = DatasetDef(
    name="Trip",
    fields=(
        FieldDef(name="rider", type="str", key=True),
        FieldDef(name="at", type="datetime", timestamp=True),
        FieldDef(name="fare", type="float", optional=True),
        FieldDef(name="n", type="int"),
    ),
)


@pytest.fixture
def clock():
    return MovedClock(1_000 * HOUR)


@pytest.fixture
def log(empty_redis_url, clock):
    log = Log(empty_redis_url, clock)
    yield log
    log.close()


@pytest.fixture
def shapes(log, clock):
    return Shapes(log, clock)


def trips(count: int = 3, **changed) -> list[dict]:
    row = {"rider": "x", "at": "2026-01-01", "fare": 1.5, "n": 1} | changed
    return [{name: value for name, value in row.items() if value is not ...} for _ in range(count)]


def test_what_fits_is_no_drift(shapes):
    for rows in (trips(), trips(fare=2), trips(fare=None), pa.Table.from_pylist(trips()), []):
        assert shapes.observe(look(rows), TRIP) == []


def test_each_change_is_told_of_once(shapes):
    shapes.observe(look(trips()), TRIP)
    changed = trips(tip=1, n="1", at=...)
    assert shapes.observe(look(changed), TRIP) == [
        Drift("new", "tip", "int"),
        Drift("missing", "at", "", ("text",)),
        Drift("retyped", "n", "text", ("int",)),
    ]
    assert shapes.observe(look(changed), TRIP) == []
    assert shapes.observe(look(trips(tip="x")), TRIP) == []  # a new column is new once, whatever it holds


def test_a_process_that_begins_knows_what_was_told_of(shapes, log, clock):
    shapes.observe(look(trips()), TRIP)
    assert shapes.observe(look(trips(n="1")), TRIP)
    other = Shapes(log, clock)
    assert other.observe(look(trips(n="1")), TRIP) == []
    assert [each.column for each in other.observe(look(trips(n=True)), TRIP)] == ["n"]


def test_the_same_change_after_an_hour_without_it_is_told_of_again(shapes, clock):
    changed, plain = look(trips(tip=1)), look(trips())
    assert shapes.observe(changed, TRIP)
    assert as_detail(shapes.drift(TRIP))["new"] == {"tip": "int"}
    clock.time += 50 * HOUR
    assert shapes.observe(changed, TRIP) == []  # it went on all the time
    clock.time += HOUR // 2
    shapes.observe(plain, TRIP)
    assert shapes.observe(changed, TRIP) == []  # two producers that take turns
    clock.time += 2 * HOUR
    shapes.observe(plain, TRIP)
    assert shapes.drift(TRIP) == []
    assert shapes.observe(changed, TRIP)


def test_an_optional_column_that_vanishes_from_a_table_is_told_of_at_once(shapes):
    table = pa.Table.from_pylist(trips())
    assert shapes.observe(look(table.drop_columns(["fare"])), TRIP) == []  # it never was
    shapes.observe(look(table), TRIP)
    assert shapes.observe(look(table.drop_columns(["fare"])), TRIP) == [Drift("missing", "fare", "", ("number",))]


def test_an_optional_column_that_stays_empty_for_long_is_told_of(shapes):
    shapes.observe(look(trips()), TRIP)
    told = [bool(shapes.observe(look(trips(10, fare=...)), TRIP)) for _ in range(VANISHED_AFTER // 10 + 3)]
    assert told.index(True) == VANISHED_AFTER // 10 - 1
    assert told.count(True) == 1


def test_a_column_that_is_often_empty_is_not_told_of(shapes):
    for _ in range(20):
        shapes.observe(look(trips(1)), TRIP)
        assert all(shapes.observe(look(trips(10, fare=None)), TRIP) == [] for _ in range(9))


def test_records_whose_names_are_data_do_not_fill_the_store(shapes, log):
    told = [shapes.observe(look([{**trips(1)[0], f"c{n}": 1}]), TRIP) for n in range(300)]
    assert sum(bool(drift) for drift in told) == 101
    assert len(log.note("Trip@1", "shape")) < 10_000


def test_nothing_but_names_and_kinds_is_kept(shapes, log):
    shapes.observe(look(trips(rider="secret-rider", tip="secret-tip")), TRIP)
    assert "secret" not in log.note("Trip@1", "shape")


def test_a_sample_of_a_large_batch_reaches_from_its_first_to_its_last_record():
    rows = [{"n": 1}] * 5_000 + [{"n": "x", "last": 1}]
    assert look(rows).kinds == {"n": frozenset({"int", "text"}), "last": frozenset({"int"})}
