"""A PostgreSQL table as a source: every row once, whatever happens between polls. Real PostgreSQL, real Valkey."""

import threading
from collections import Counter
from contextlib import ExitStack, closing, suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count, pairwise

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from featurelib.clock import SystemClock, parse_instant
from featurelib.connectors import Mark, connect
from featurelib.connectors.tables import cursor_text, cursor_value
from featurelib.definitions import ConnectorDef, DatasetDef, FieldDef, SourceDef, ref
from featurelib.engine.coerce import coerce
from featurelib.errors import SourceError, StoreUnavailable
from featurelib.secrets import SecretRef
from featurelib.settings import IngestSettings
from featurelib.stores.log import Log
from jobs.ingest import SourceIngest
from tests.support.fed import FailsAfter
from tests.support.tls_postgres import PASSWORD

BATCH_ROWS = 4
START = datetime(2026, 4, 1, tzinfo=UTC)
TRIPS = "CREATE TABLE trips (id int PRIMARY KEY, rider text, at timestamptz, n int)"
LOOSE = "CREATE TABLE trips (rider text, at timestamptz, n int)"
versions = count(1)


class Trips:
    """A database with a table, and sources that read it."""

    def __init__(self, url: str) -> None:
        parts = conninfo_to_dict(url)
        self.config = {"host": parts["host"], "user": parts["user"], "database": parts["dbname"], "table": "trips"}
        self.url = url
        self.db = psycopg.connect(url, autocommit=True)
        self._ids = count(1)
        self._sources: list = []

    def close(self) -> None:
        for source in self._sources:
            source.close()
        self.db.close()

    def sql(self, statement: str, *values):
        return self.db.execute(statement, values or None)

    def add(self, *moments: int, rider: str = "") -> list[int]:
        """A row per moment, in seconds after the start; gives their numbers."""
        ids = [next(self._ids) for _ in moments]
        for row, moment in zip(ids, moments, strict=True):
            at = START + timedelta(seconds=moment)
            self.sql("INSERT INTO trips VALUES (%s, %s, %s, %s)", row, rider or f"rider{row % 7}", at, row)
        return ids

    def definition(self, cursor: str = "at", cdc: str = "append", **config) -> SourceDef:
        connector = ConnectorDef(type="postgres", config={**self.config, **config})
        return SourceDef(dataset="Trip", connector=connector, cursor=cursor, cdc=cdc)

    def connect(self, cursor: str = "at", batch_rows: int = BATCH_ROWS, cdc: str = "append", **config):
        self._sources.append(connect(self.definition(cursor, cdc, **config), batch_rows, SystemClock()))
        return self._sources[-1]


@pytest.fixture
def trips(postgres_url):
    trips = Trips(postgres_url)
    with closing(trips):
        trips.sql(TRIPS)
        yield trips


def names(batches) -> list[str]:
    return [name for batch in batches for name in batch.names]


def column(batches, name: str) -> list:
    return [record[name] for batch in batches for record in batch.records]


def reached(batches) -> dict[str, Mark]:
    return {batch.stream: batch.through for batch in batches}


# The contract.


@pytest.mark.parametrize("batch_rows", [1, 3, 4, 100])
def test_every_row_comes_once_in_bounded_batches_whose_marks_and_names_ascend(trips, batch_rows):
    trips.add(*(moment // 2 for moment in range(25)))
    batches = list(trips.connect(batch_rows=batch_rows).poll({}))
    assert sorted(column(batches, "n")) == list(range(1, 26))
    assert all(0 < len(batch.names) == len(batch.records) <= batch_rows for batch in batches)
    assert {batch.stream for batch in batches} == {"public.trips"}
    assert len(set(names(batches))) == 25
    assert all(list(batch.names) == sorted(batch.names) for batch in batches)
    marks = [batch.through for batch in batches]
    assert marks == sorted(set(marks))


@pytest.mark.parametrize("batch_rows", [1, 3, 100])
def test_polling_again_from_any_position_gives_the_same_rows_under_the_same_names_and_at_most_the_ties_before(
    trips, batch_rows
):
    trips.add(*(moment // 3 for moment in range(25)))
    source = trips.connect()
    batches = list(source.poll({}))
    named = dict(zip(names(batches), column(batches, "n"), strict=True))
    for taken in range(1, len(batches)):
        position = reached(batches[:taken])
        ties = {name for name in names(batches[:taken]) if name >= batches[taken].floor}
        for reader in (source, trips.connect(batch_rows=batch_rows)):
            again = list(reader.poll(position))
            found = dict(zip(names(again), column(again, "n"), strict=True))
            assert found.items() <= named.items()
            assert set(names(batches[taken:])) <= found.keys() <= set(names(batches[taken:])) | ties


def test_no_name_below_a_floor_is_given_from_the_mark_before_it(trips):
    trips.add(*(moment // 3 for moment in range(25)))
    batches = list(trips.connect(overlap="2s").poll({}))
    for before, batch in pairwise(batches):
        again = list(trips.connect(overlap="2s").poll({batch.stream: before.through}))
        assert min(names(again)) >= batch.floor > ""


def test_a_source_with_nothing_new_gives_nothing_and_one_that_starts_anew_only_the_newest_ties(trips):
    trips.add(1, 1, 2, 3, 3)
    source = trips.connect()
    position = reached(source.poll({}))
    assert list(source.poll(position)) == []
    assert sorted(column(trips.connect().poll(position), "n")) == [4, 5]


def test_a_source_polled_to_its_end_gives_everything_again_to_whoever_asks_from_the_start(trips):
    trips.add(1, 1, 2, 3, 3)
    source = trips.connect()
    first = list(source.poll({}))
    again = list(source.poll({}))
    assert sorted(column(again, "n")) == sorted(column(first, "n")) == [1, 2, 3, 4, 5]
    assert names(again) == names(first)
    earlier = Mark(0, f"t{cursor_text(START + timedelta(seconds=3), 'instant')} {1:012}")
    assert sorted(column(source.poll({"public.trips": earlier}), "n")) == [4, 5]  # another process holds less


def test_rows_inserted_later_with_the_newest_cursor_value_are_found(trips):
    trips.add(1, 2, 2)
    source = trips.connect()
    position = reached(source.poll({}))
    trips.add(2, 3)
    (batch,) = source.poll(position)
    assert sorted(column([batch], "n")) == [4, 5]
    trips.add(3)
    (batch,) = source.poll(reached([batch]))
    assert column([batch], "n") == [6]


def test_a_row_in_the_place_of_a_deleted_one_is_found_though_the_mark_stays_where_it_is(trips):
    trips.add(1, 3, 3)
    source = trips.connect()
    position = reached(source.poll({}))
    trips.sql("DELETE FROM trips WHERE n = 3")
    trips.add(3)
    found = list(source.poll(position))
    assert column(found, "n") == [4]
    assert reached(found) == position
    assert list(source.poll(position)) == []


def test_more_ties_than_a_batch_holds_are_read_in_one_poll_and_marks_still_ascend(trips):
    trips.add(*([5] * 21))
    batches = list(trips.connect().poll({}))
    assert [len(batch.names) for batch in batches] == [4, 4, 4, 4, 4, 1]
    marks = [batch.through for batch in batches]
    assert marks == sorted(set(marks))
    assert sorted(column(batches, "n")) == list(range(1, 22))


def test_a_poll_sees_one_instant_of_the_table(trips):
    trips.add(*range(10))
    poll = trips.connect().poll({})
    first = next(poll)
    trips.add(5, 50)
    trips.sql("DELETE FROM trips WHERE n = 9")
    assert column([first, *poll], "n") == list(range(1, 11))


def test_a_row_committed_late_is_found_within_the_overlap_and_not_beyond_it(trips):
    trips.add(100)
    with psycopg.connect(trips.url) as late:  # one transaction, not yet committed
        insert = "INSERT INTO trips VALUES (%s, 'late', %s, %s)"
        for number, moment in ((901, 95), (902, 60)):
            late.execute(insert, (number, START + timedelta(seconds=moment), number))
        trips.add(101)
        plain, overlapping = trips.connect(), trips.connect(overlap="10s")
        before, overlapped = reached(plain.poll({})), reached(overlapping.poll({}))
        late.commit()
    assert list(plain.poll(before)) == []
    (batch,) = overlapping.poll(overlapped)
    assert column([batch], "n") == [901]
    assert batch.through == overlapped[batch.stream]._replace(token=batch.through.token) >= overlapped[batch.stream]
    assert list(overlapping.poll(reached([batch]))) == []


def test_the_overlap_of_a_number_is_a_number(trips):
    trips.add(1, 1, 1)
    trips.sql("UPDATE trips SET n = n * 10")
    source = trips.connect("n", overlap=15)
    position = reached(source.poll({}))
    trips.sql("INSERT INTO trips VALUES (4, 'x', now(), 16), (5, 'x', now(), 14)")
    assert column(source.poll(position), "n") == [16]


@pytest.mark.parametrize(
    ("cursor", "overlap", "message"),
    [
        ("at", "soon", "neither a duration such as '5m'"),
        ("at", 5, "must be a duration such as '5m'"),
        ("n", "5m", "must be a number such as 100"),
        ("rider", 5, "must be none"),
    ],
)
def test_an_overlap_that_does_not_fit_the_cursor_is_refused(trips, cursor, overlap, message):
    with pytest.raises(SourceError, match=message):
        list(trips.connect(cursor, overlap=overlap).poll({}))


def test_rows_without_a_cursor_value_are_never_read_and_told_of_once(trips):
    trips.add(*range(9))
    trips.sql("INSERT INTO trips VALUES (90, 'x', NULL, 90), (91, 'x', 'infinity', 91)")
    source = trips.connect()
    batches = list(source.poll({}))
    assert max(column(batches, "n")) == 9
    assert [len(batch.notices) for batch in batches] == [1, 0, 0]
    assert "2 rows have no value in cursor at (null or infinite)" in batches[0].notices[0]
    assert list(source.poll(reached(batches))) == []
    trips.sql("UPDATE trips SET at = NULL WHERE n = 1")
    (told,) = source.poll(reached(batches))
    assert (told.names, told.records, told.through) == ((), [], batches[-1].through)
    assert "3 rows" in told.notices[0]


def test_a_table_of_nulls_alone_is_told_of_and_read_once_it_has_values(trips):
    trips.sql("INSERT INTO trips VALUES (90, 'x', NULL, 90)")
    source = trips.connect()
    (told,) = source.poll({})
    assert "1 row has no value" in told.notices[0]
    trips.add(5)
    assert column(source.poll(reached([told])), "n") == [1]


# Cursor types.


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("int8", [-(2**63), -1000, -7, 0, 3, 20, 2**63 - 1]),
        ("numeric", [Decimal("-1e40"), Decimal("-1.5"), Decimal(-1), Decimal("1e-9"), Decimal("1.05"), Decimal("1.5")]),
        ("float8", [-1e300, -0.1, 0.0, 5e-324, 0.1, 0.30000000000000004, 1e300]),
        ("timestamptz", [START - timedelta(days=60 * 365), START, START + timedelta(microseconds=1)]),
        ("timestamp", [datetime(1, 1, 1), datetime(2026, 4, 1), datetime(9999, 12, 31, 23, 59)]),  # noqa: DTZ001
        ("date", [date(1969, 12, 31), date(1970, 1, 1), date(2026, 4, 1)]),
        ("text", ["", " ", "!", '"', "A", "Z", "a", "a b", "a!b", "ab", "é", "日本", "😀"]),
        ("char(3)", ["", "a", "a b", "ab", "é"]),
        ("float4", [-2.5e30, -0.1, 0.0, 0.1, 16777216.0]),
        ("uuid", ["00000000-0000-0000-0000-0000000000ff", "a0000000-0000-0000-0000-000000000000"]),
    ],
)
def test_every_cursor_type_is_read_in_order_and_from_any_mark_on(trips, kind, values):
    trips.sql(f"CREATE TABLE c (at {kind}, n int)")
    for place, value in enumerate([*values, *values]):
        trips.sql("INSERT INTO c VALUES (%s, %s)", value, place)
    batches = list(trips.connect(table="c", batch_rows=1).poll({}))
    order = sorted(range(len(batches)), key=lambda n: n % len(values))
    assert [n % len(values) for n in column(batches, "n")] == [n % len(values) for n in order]
    ordered = [name.rsplit(" ", 1)[0] for name in names(batches)]
    assert ordered == sorted(ordered)
    for batch in batches:
        (value,) = {record["at"] for record in batch.records}
        left = column(trips.connect(table="c").poll(reached([batch])), "at")
        assert left == sorted(left, key=lambda one: str(one).encode() if isinstance(one, str) else one)
        assert set(left) == {one for one in column(batches, "at") if one >= value}


@given(st.lists(st.decimals(allow_nan=False, allow_infinity=False) | st.integers() | st.floats(-1e300, 1e300)))
def test_numbers_as_text_sort_as_numbers_and_are_found_again(numbers):
    exact = sorted(Decimal(repr(each)) if isinstance(each, float) else Decimal(each) for each in numbers)
    texts = [cursor_text(each, "number") for each in exact]
    assert [f"{text} x" for text in texts] == sorted(f"{text} x" for text in texts)
    assert [cursor_value(text, "number") for text in texts] == exact


@given(st.lists(st.text()))
def test_text_as_text_sorts_by_its_bytes_and_is_found_again(values):
    values = sorted(values, key=str.encode) if all(_spellable(value) for value in values) else []
    texts = [cursor_text(value, "text") for value in values]
    assert [f"{text} x" for text in texts] == sorted(f"{text} x" for text in texts)
    assert [cursor_value(text, "text") for text in texts] == values


def _spellable(value: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


def test_a_cursor_of_another_kind_than_before_is_an_error_that_says_what_to_do(trips):
    trips.add(1, 2)
    position = reached(trips.connect().poll({}))
    with pytest.raises(
        SourceError, match="holds a number now, but was read as a instant before; give the dataset a new"
    ):
        list(trips.connect("n").poll(position))


def test_a_column_that_cannot_be_a_cursor_is_refused_by_its_type(trips):
    trips.sql("ALTER TABLE trips ADD seen jsonb")
    with pytest.raises(SourceError, match="seen is of type jsonb, which cannot be a cursor; these can: int2"):
        list(trips.connect("seen").poll({}))


# Names.


def test_equal_rows_of_a_table_without_a_key_all_count(trips):
    trips.sql("DROP TABLE trips")
    trips.sql(LOOSE)
    trips.sql("INSERT INTO trips SELECT 'x', %s, 1 FROM generate_series(1, 6)", START)
    source = trips.connect()
    batches = list(source.poll({}))
    assert len(set(names(batches))) == 6
    trips.sql("INSERT INTO trips VALUES ('x', %s, 1)", START)
    (again,) = source.poll(reached(batches))
    assert len(again.names) == 1
    assert not set(again.names) & set(names(batches))


def test_the_names_of_rows_do_not_depend_on_settings_of_the_database_or_on_new_columns(trips):
    trips.sql("DROP TABLE trips")
    trips.sql("CREATE TABLE trips (at timestamptz, day date, f float8, every interval, j jsonb, a float8[])")
    trips.sql(
        """INSERT INTO trips VALUES (%s, '2026-04-01', 0.1, '1 day', '{"b": 1, "a": [null, 1.5]}', '{NaN,1}')""", START
    )
    before = names(trips.connect().poll({}))
    for setting in ("TimeZone = 'Asia/Tokyo'", "DateStyle = 'German'", "extra_float_digits = -15"):
        trips.sql(f"ALTER DATABASE {trips.config['database']} SET {setting}")
    trips.sql("ALTER TABLE trips ADD more text")
    assert names(trips.connect().poll({})) == before


def test_a_row_that_is_updated_comes_again_where_its_cursor_moved_and_for_upsert_also_where_it_did_not(trips):
    trips.add(1, 2)
    append, upsert = trips.connect(), trips.connect(cdc="upsert")
    appended, upserted = reached(append.poll({})), reached(upsert.poll({}))
    trips.sql("UPDATE trips SET rider = 'changed' WHERE n = 2")
    assert list(append.poll(appended)) == []
    assert column(upsert.poll(upserted), "rider") == ["changed"]
    trips.sql("UPDATE trips SET at = %s WHERE n = 1", START + timedelta(seconds=9))
    assert column(append.poll(appended), "n") == [1]


# Values.


def test_values_come_in_the_form_the_datasets_types_take(trips):
    trips.sql("CREATE TYPE mood AS ENUM ('good')")
    trips.sql(
        """CREATE TABLE v AS SELECT now() AS at, 1::int2 a, 2::int8 b, 1.50::numeric c, 0.1::float4 d, 0.1::float8 e,
        true f, 'x'::text g, 'y'::varchar h, 'z '::char(3) i, '2026-04-01 10:00+02'::timestamptz j,
        '2026-04-01 10:00'::timestamp k,
        '2026-04-01'::date l, '{"a": {"b": [1, 2.5]}}'::jsonb m, '{1,2}'::int[] n, '{a,NULL}'::text[] o,
        'a0000000-0000-0000-0000-000000000000'::uuid p, '1 day 02:00'::interval q, '10:00'::time r, '::1'::inet s,
        'good'::mood t, '[1,3)'::int4range u, NULL::int w, 'infinity'::timestamptz x, '{"k": "v"}'::json y"""
    )
    ((row,),) = [batch.records for batch in trips.connect(table="v").poll({})]
    del row["at"]
    expected = {
        "a": 1, "b": 2, "c": Decimal("1.50"), "d": 0.1, "e": 0.1, "f": True, "g": "x", "h": "y", "i": "z  ",
        "j": datetime(2026, 4, 1, 8, tzinfo=UTC), "k": datetime(2026, 4, 1, 10),  # noqa: DTZ001
        "l": date(2026, 4, 1), "m": {"a": {"b": [1, 2.5]}}, "n": [1, 2], "o": ["a", None],
        "p": "a0000000-0000-0000-0000-000000000000", "q": "1 day 02:00:00", "r": "10:00:00", "s": "::1",
        "t": "good", "u": "[1,3)", "w": None, "x": "infinity", "y": {"k": "v"},
    }  # fmt: skip
    assert row == expected
    assert {name: type(value) for name, value in row.items()} == {name: type(value) for name, value in expected.items()}


def test_a_timestamp_that_no_column_can_hold_costs_its_own_record_alone(trips):
    trips.sql("CREATE TABLE v AS SELECT g AS n, now() AS at FROM generate_series(1, 3) g")
    trips.sql("UPDATE v SET at = '20000-01-01' WHERE n = 2")
    (batch,) = trips.connect("n", table="v").poll({})
    fields = (FieldDef(name="n", type="int", key=True), FieldDef(name="at", type="datetime", timestamp=True))
    typed = coerce(batch.records, DatasetDef(name="V", fields=fields))
    assert typed.kept.tolist() == [0, 2]
    assert [(bad.reason, bad.field) for bad in typed.rejected] == [("invalid_timestamp", "at")]


def test_a_column_of_bytes_is_refused_with_what_to_do(trips):
    trips.sql("ALTER TABLE trips ADD photo bytea")
    with pytest.raises(SourceError, match="photo is of type bytea, which no column of a dataset can hold; read a view"):
        list(trips.connect().poll({}))


def test_views_and_names_in_any_spelling_are_read(trips):
    trips.add(1, 2)
    trips.sql('CREATE SCHEMA "My ""Schema"')
    trips.sql('CREATE VIEW "My ""Schema"."Trips; DROP" AS SELECT at AS "At %s", n AS "select" FROM trips')
    batches = list(trips.connect("At %s", schema='My "Schema', table="Trips; DROP").poll({}))
    assert column(batches, "select") == [1, 2]
    assert column(
        trips.connect("At %s", schema='My "Schema', table="Trips; DROP").poll(reached(batches)), "select"
    ) == [2]


# Errors and connections.


def test_a_table_that_is_not_there_is_an_error_that_lists_those_that_are(trips):
    source = trips.connect()
    list(source.poll({}))
    trips.sql("ALTER TABLE trips RENAME TO journeys")
    with pytest.raises(SourceError, match=r"Trip: public\.trips on .* does not exist; that schema has journeys"):
        list(source.poll({}))
    trips.sql("ALTER TABLE journeys RENAME TO trips")
    assert list(source.poll({})) == []


def test_a_cursor_that_is_not_there_is_an_error_that_lists_the_columns(trips):
    with pytest.raises(SourceError, match="has no column 'att'; it has id, rider, at, n"):
        list(trips.connect("att").poll({}))


def test_a_source_without_a_cursor_or_a_table_is_refused(trips):
    with pytest.raises(SourceError, match="a cursor column is required"):
        trips.connect("")
    with pytest.raises(SourceError, match="table is required"):
        trips.connect(table="")


def test_a_server_that_is_not_there_is_an_error_that_names_the_place(trips):
    with pytest.raises(SourceError, match=r"public\.trips on 127\.0\.0\.1:1/db: .*refused"):
        list(trips.connect(host="127.0.0.1", port=1, database="db").poll({}))


def test_a_connection_lost_between_polls_is_replaced_and_one_lost_in_a_poll_is_an_error(trips):
    trips.add(*range(9))
    source = trips.connect()
    position = reached(source.poll({}))
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'thyme' AND datname = %s"
    trips.sql(end, trips.config["database"])
    trips.add(20)
    assert column(source.poll(position), "n") == [10]
    poll = source.poll({})
    next(poll)
    trips.sql(end, trips.config["database"])
    with pytest.raises(SourceError, match="terminat"):
        list(poll)
    assert len(names(source.poll({}))) == 10
    source.close()


def test_an_abandoned_poll_leaves_no_transaction_open(trips):
    trips.add(*range(9))
    source = trips.connect()
    poll = source.poll({})
    next(poll)
    poll.close()
    list(source.poll({}))
    states = "SELECT state FROM pg_stat_activity WHERE application_name = 'thyme' AND datname = %s AND state LIKE %s"
    assert trips.sql(states, trips.config["database"], "%transaction%").fetchall() == []


# Through the ingest, into the log.


class Feeding:
    """A dataset of its own, fed from a table by any number of readers over one log."""

    def __init__(self, url: str, source: SourceDef, partitions: int = 3, batch_rows: int = BATCH_ROWS) -> None:
        fields = (
            FieldDef(name="rider", type="str", key=True),
            FieldDef(name="at", type="datetime", timestamp=True),
            FieldDef(name="n", type="int"),
        )
        self.dataset = DatasetDef(name="Trip", version=next(versions), fields=fields)
        self._url, self._source, self._partitions, self._batch_rows = url, source, partitions, batch_rows
        self._stack = ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def reader(self, appends: int = 1_000_000) -> SourceIngest:
        log = self._stack.enter_context(closing(FailsAfter(self._url, appends)))
        reading = SourceIngest(
            self._source,
            self.dataset,
            self._partitions,
            log,
            report=lambda _: None,
            settings=IngestSettings(batch_rows=self._batch_rows),
            clock=SystemClock(),
        )
        return self._stack.enter_context(closing(reading))

    def crash(self, appends: int) -> None:
        """A reader that dies before some append."""
        with suppress(StoreUnavailable):
            drain(self.reader(appends))

    def held(self) -> list[dict]:
        with closing(Log(self._url, SystemClock())) as log:
            tables = [log.read(ref(self.dataset), part, 0, 1_000_000) for part in range(self._partitions)]
        return [row for table in tables if table is not None for row in table.to_pylist()]

    def numbers(self) -> list[int]:
        return sorted(row["n"] for row in self.held())


def drain(reader: SourceIngest) -> list:
    steps = [reader.step()]
    while not steps[-1].caught_up:
        steps.append(reader.step())
    return steps


@pytest.mark.parametrize("appends", range(10))
def test_a_crash_between_appends_and_rows_inserted_among_those_read_leave_every_row_once(
    trips, empty_redis_url, appends
):
    there = trips.add(*(moment // 3 for moment in range(14)))
    with Feeding(empty_redis_url, trips.definition(overlap="2s")) as feeding:
        feeding.crash(appends)
        there += trips.add(3, 4, 4, 4, 5)
        drain(feeding.reader())
        there += trips.add(5, 3)
        drain(feeding.reader())
        assert feeding.numbers() == there


def test_a_reader_woken_up_late_with_old_batches_changes_nothing(trips, empty_redis_url):
    there = trips.add(*(moment // 4 for moment in range(30)))
    with Feeding(empty_redis_url, trips.definition()) as feeding:
        zombie = feeding.reader()
        zombie.step()
        drain(feeding.reader())
        there += trips.add(7, 7, 8)
        drain(feeding.reader())
        assert sum(step.accepted for step in drain(zombie)) == 0
        there += trips.add(8)
        drain(zombie)
        assert feeding.numbers() == there


def test_a_reader_with_an_old_view_may_overtake_one_with_a_newer_view(trips, empty_redis_url):
    there = trips.add(*(moment // 4 for moment in range(30)))
    with Feeding(empty_redis_url, trips.definition()) as feeding:
        old, new = feeding.reader(), feeding.reader()
        old.step()
        there += trips.add(7, 7, 8)  # the newest tie, which the old reader's view has without these
        new.step()
        drain(old)
        drain(new)
        assert feeding.numbers() == there


def test_two_readers_at_once_leave_every_row_once(trips, empty_redis_url):
    there = trips.add(*(moment // 5 for moment in range(60)))
    with Feeding(empty_redis_url, trips.definition()) as feeding:
        readers = [feeding.reader(), feeding.reader()]
        threads = [threading.Thread(target=drain, args=(reader,)) for reader in readers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert feeding.numbers() == there


def test_a_bad_newest_row_is_one_dead_letter_and_is_not_told_of_at_every_poll(trips, empty_redis_url):
    trips.add(1, 2)
    trips.sql("INSERT INTO trips VALUES (90, NULL, %s, 90)", START + timedelta(seconds=2))
    with Feeding(empty_redis_url, trips.definition()) as feeding:
        reader = feeding.reader()
        assert sum(step.dead for step in drain(reader)) == 1
        assert [step.rows for step in drain(reader)] == [0]
        drain(feeding.reader())
        with closing(Log(empty_redis_url, SystemClock())) as log:
            assert len(log.dead.newest(ref(feeding.dataset), 3)) == 1


def test_upserts_follow_the_rows_as_they_change(trips, empty_redis_url):
    trips.sql("ALTER TABLE trips ADD __deleted bool")
    trips.sql("INSERT INTO trips VALUES (1, 'a', %s, 1)", START)
    with Feeding(empty_redis_url, trips.definition(cdc="upsert")) as feeding:
        reader = feeding.reader()
        drain(reader)
        trips.sql("UPDATE trips SET n = 2, at = %s", START + timedelta(seconds=1))
        drain(reader)
        trips.sql("UPDATE trips SET __deleted = true")
        drain(reader)
        drain(feeding.reader())
        rows = sorted(feeding.held(), key=lambda row: row["__offset"])
        assert [(row["n"], bool(row["__deleted"])) for row in rows] == [(1, False), (2, False), (2, True)]


# Chance.

MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.lists(st.integers(-3, 2), min_size=1, max_size=6)),
        st.tuples(st.just("crash"), st.integers(0, 9)),
        st.tuples(st.just("step"), st.integers(0, 1)),
        st.tuples(st.just("drain"), st.integers(0, 1)),
        st.tuples(st.just("restart"), st.integers(0, 1)),
    ),
    max_size=14,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(moves=MOVES, partitions=st.integers(1, 4), batch_rows=st.integers(1, 5), keyed=st.booleans())
def test_whatever_happens_between_polls_every_row_is_in_the_log_once(
    trips, empty_redis_url, moves, partitions, batch_rows, keyed
):
    trips.sql("DROP TABLE IF EXISTS trips")
    trips.sql(
        "CREATE TABLE trips (rider text, at int, n int, id serial)" if keyed else LOOSE.replace("timestamptz", "int")
    )
    if keyed:
        trips.sql("ALTER TABLE trips ADD PRIMARY KEY (id)")
    newest = parse_instant("2026-04-01T00:00:00Z") // 1_000_000
    inserted: Counter = Counter()
    with Feeding(empty_redis_url, trips.definition(overlap=3), partitions, batch_rows) as feeding:
        readers = [feeding.reader(), feeding.reader()]
        for move, what in moves:
            if move == "insert":
                for ahead in what:  # at most 3 behind the newest, which is how far polls look again
                    row = (f"rider{ahead % 3}", newest + ahead, ahead % 2)
                    trips.sql("INSERT INTO trips VALUES (%s, %s, %s)", *row)
                    inserted[row] += 1
                    newest = max(newest, row[1])
            elif move == "crash":
                feeding.crash(what)
            elif move == "step":
                readers[what].step()
            elif move == "drain":
                drain(readers[what])
            else:
                readers[what] = feeding.reader()
        drain(feeding.reader())
        drain(readers[0])
        drain(readers[1])
        found = Counter((row["rider"], int(row["at"].timestamp()), row["n"]) for row in feeding.held())
        assert found == inserted


# TLS and credentials, on the system's own server.


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_tls_works_in_every_mode_with_the_right_authority(tls_postgres, tls_source, mode):
    reading = tls_source(sslmode=mode, sslrootcert=str(tls_postgres.certificate))
    ((row,),) = [batch.records for batch in reading.poll({})]
    assert row["ssl"] is True


def test_require_asks_for_no_authority(tls_source):
    reading = tls_source(sslmode="require")
    ((row,),) = [batch.records for batch in reading.poll({})]
    assert row["ssl"] is True


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_an_authority_that_did_not_sign_the_server_is_an_error(tls_postgres, tls_source, mode):
    reading = tls_source(sslmode=mode, sslrootcert=str(tls_postgres.stranger))
    with pytest.raises(SourceError, match=r"localhost.*certificate verify failed"):
        list(reading.poll({}))


def test_a_host_the_certificate_does_not_name_is_an_error_of_verify_full(tls_postgres, tls_source):
    reading = tls_source(host="127.0.0.1", sslmode="verify-full", sslrootcert=str(tls_postgres.certificate))
    with pytest.raises(SourceError, match="does not match host name"):
        list(reading.poll({}))


def test_an_authority_file_that_is_not_there_is_an_error_that_names_it(tls_source):
    with pytest.raises(SourceError, match=r'root certificate file "/nowhere\.pem" does not exist'):
        list(tls_source(sslmode="verify-full", sslrootcert="/nowhere.pem").poll({}))


def test_a_wrong_password_is_an_error_without_it(tls_source):
    reading = tls_source(password="Told8Nobody")
    with pytest.raises(SourceError, match='password authentication failed for user "owner"') as caught:
        list(reading.poll({}))
    told = f"{caught.value!r} {caught.value.__cause__!r} {reading!r}"
    assert "Told8Nobody" not in told


def test_a_password_may_come_from_the_environment_and_nowhere_else(tls_source, monkeypatch):
    monkeypatch.setenv("TRIPS_PASSWORD", PASSWORD)
    reading = tls_source(password=SecretRef(kind="env", value="TRIPS_PASSWORD"))
    assert len(list(reading.poll({}))) == 1
    monkeypatch.delenv("TRIPS_PASSWORD")
    with pytest.raises(SourceError, match=r"TRIPS_PASSWORD.*has not set"):
        tls_source(password=SecretRef(kind="env", value="TRIPS_PASSWORD"))
    with pytest.raises(SourceError, match=r"password is Secret\(arn=…\), which needs a secret store"):
        tls_source(password=SecretRef(kind="arn", value="arn:aws:x"))


@pytest.fixture
def tls_source(tls_postgres):
    with psycopg.connect(
        host="localhost", port=tls_postgres.port, user="owner", password=PASSWORD, dbname="postgres", autocommit=True
    ) as db:
        view = "SELECT now() AS at, ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        db.execute(f"CREATE OR REPLACE VIEW seen AS {view}")
    with ExitStack() as stack:

        def made(**config):
            connector = ConnectorDef(type="postgres", config=tls_postgres.config(table="seen", **config))
            source = connect(SourceDef(dataset="Seen", connector=connector, cursor="at"), 10, SystemClock())
            return stack.enter_context(closing(source))

        yield made
