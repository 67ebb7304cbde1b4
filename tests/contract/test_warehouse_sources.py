"""Snowflake and BigQuery as sources: what we send, and how we read answers of the documented form.

Both are services that cannot run here. Their counterpart is a stand-in that replays answers written after their
documentation (tests/support/replay.py); what polling a table means is proved on PostgreSQL.
"""

import base64
import hashlib
import json
from contextlib import ExitStack, closing
from datetime import UTC, date, datetime
from decimal import Decimal

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from featurelib.clock import SystemClock, parse_instant
from featurelib.connectors import connect
from featurelib.definitions import ConnectorDef, SourceDef
from featurelib.errors import SourceError
from tests.support.clocks import MovedClock

KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
MOMENT = 1_775_037_600  # 2026-04-01T10:00:00Z


def pem(passphrase: str = "") -> str:
    how = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    return KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how).decode()


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock(SystemClock().now())


@pytest.fixture
def snowflake(replay, clock):
    with ExitStack() as stack:

        def made(cursor="updated_at", batch_rows=2, **config):
            given = {
                "table": "trips", "account": "org-acct", "user": "reader", "database": "OPS", "schema": "PUBLIC",
                "warehouse": "W", "role": "", "private_key": pem(), "endpoint_url": replay.url, **config,
            }  # fmt: skip
            source = SourceDef(dataset="Trip", connector=ConnectorDef(type="snowflake", config=given), cursor=cursor)
            return stack.enter_context(closing(connect(source, batch_rows, clock)))

        yield made


@pytest.fixture
def bigquery(replay, clock):
    with ExitStack() as stack:

        def made(cursor="updated_at", batch_rows=2, **config):
            given = {
                "dataset_id": "ops", "table": "trips", "project_id": "acme", "endpoint_url": replay.url,
                "credentials_json": credentials(replay), **config,
            }  # fmt: skip
            source = SourceDef(dataset="Trip", connector=ConnectorDef(type="bigquery", config=given), cursor=cursor)
            return stack.enter_context(closing(connect(source, batch_rows, clock)))

        yield made


def credentials(server, **more) -> str:
    key = {"client_email": "reader@acme.example", "private_key_id": "k1", "token_uri": f"{server.url}/token"}
    return json.dumps({**key, "private_key": pem(), **more})


def reached(batches) -> dict:
    return {batch.stream: batch.through for batch in batches}


def public_key():
    return KEY.public_key()


# Snowflake.

TYPES = [
    ("ID", "fixed", 0), ("UPDATED_AT", "timestamp_ntz", 9), ("FARE", "fixed", 2), ("SHARE", "real", None),
    ("PAID", "boolean", None), ("DAY", "date", None), ("AT", "time", 9), ("SEEN", "timestamp_tz", 9),
    ("LOCAL", "timestamp_ltz", 9), ("TAGS", "array", None), ("MORE", "variant", None), ("mixedCase", "text", None),
]  # fmt: skip
CELLS = [
    "7", f"{MOMENT}.123456789", "12.50", "0.1", "true", "20544", "37800.000000000", f"{MOMENT}.000000000 1500",
    f"{MOMENT}.000000000", '["a", null]', '{"k": 1}', "x",
]  # fmt: skip


def meta(types=TYPES, partitions=1):
    rows = [{"name": name, "type": kind, "scale": scale, "nullable": True} for name, kind, scale in types]
    parts = [{"rowCount": 1, "uncompressedSize": 9} for _ in range(partitions)]
    return {"format": "jsonv2", "rowType": rows, "partitionInfo": parts}


def result(*rows, types=TYPES, partitions=1):
    return {
        "resultSetMetaData": meta(types, partitions),
        "data": [list(row) for row in rows],
        "code": "090001",
        "statementHandle": "h-1",
        "message": "Statement executed successfully.",
    }


def trip(number: int, seconds: int) -> list:
    return [str(number), f"{MOMENT + seconds}.000000000", *CELLS[2:]]


def counted(number: int):
    return result([str(number)], types=[("N", "fixed", 0)])


def test_a_snowflake_table_is_read_partition_by_partition_in_bounded_batches(replay, snowflake):
    parts = result(trip(1, 0), trip(2, 0), trip(3, 1), partitions=2)
    replay.will_answer(result(), counted(0), parts, {"data": [trip(4, 2), trip(5, 2)]})
    batches = list(snowflake().poll({}))
    assert [[row["id"] for row in batch.records] for batch in batches] in ([[1, 2], [3, 4], [5]], [[2, 1], [3, 4], [5]])
    assert {batch.stream for batch in batches} == {"OPS.PUBLIC.trips"}
    assert batches[-1].cursor == "2026-04-01T10:00:02Z"
    assert len({name for batch in batches for name in batch.names}) == 5
    statements = [asked.body["statement"] for asked in replay.asked if asked.method == "POST"]
    columns = ", ".join(f'"{name}"' for name, _, _ in TYPES)
    assert statements == [
        "SELECT * FROM trips LIMIT 0",
        'SELECT COUNT_IF(("UPDATED_AT" IS NOT NULL) IS NOT TRUE) FROM trips',
        f'SELECT {columns} FROM trips WHERE "UPDATED_AT" IS NOT NULL ORDER BY "UPDATED_AT"',
    ]
    assert (replay.asked[-1].path, replay.asked[-1].query) == ("/api/v2/statements/h-1", {"partition": "1"})
    context = {"database": "OPS", "schema": "PUBLIC", "warehouse": "W", "parameters": {"TIMEZONE": "UTC"}}
    assert replay.asked[0].body.items() >= context.items()
    assert "role" not in replay.asked[0].body
    assert "bindings" not in replay.asked[-2].body


def test_a_later_snowflake_poll_binds_the_newest_cursor_value_less_the_overlap(replay, snowflake):
    source = snowflake(overlap="5m")
    replay.will_answer(result(), counted(0), result(trip(1, 0)))
    batches = list(source.poll({}))
    replay.will_answer(result(), counted(0), result(trip(1, 0), trip(9, 0)))
    (batch,) = source.poll(reached(batches))
    assert [row["id"] for row in batch.records] == [9]
    assert replay.asked[-1].body["statement"].endswith('AND "UPDATED_AT" >= TO_TIMESTAMP_NTZ(?) ORDER BY "UPDATED_AT"')
    assert replay.asked[-1].body["bindings"] == {"1": {"type": "TEXT", "value": "2026-04-01 09:55:00.000000"}}


@pytest.mark.parametrize(
    ("kind", "cell", "clause", "value"),
    [
        ("fixed", "170141183460469231731687303715884105727", '"C" >= TO_NUMBER(?, 38, 0)', None),
        ("real", "0.1", '"C" >= TO_DOUBLE(?)', None),
        ("date", "20544", '"C" >= TO_DATE(?)', "2026-04-01"),
        ("timestamp_tz", f"{MOMENT}.000000000 1500", '"C" >= TO_TIMESTAMP_TZ(?)', "2026-04-01 10:00:00.000000 +00:00"),
        ("timestamp_ltz", f"{MOMENT}.5", '"C" >= TO_TIMESTAMP_TZ(?)', "2026-04-01 10:00:00.500000 +00:00"),
        ("text", "a b!é", "COLLATE(\"C\", 'utf8') >= ?", None),
    ],
)
def test_every_snowflake_cursor_type_is_bound_again_as_itself(replay, snowflake, kind, cell, clause, value):
    types = [("C", kind, 0)]
    source = snowflake("c")
    replay.will_answer(result(types=types), counted(0), result([cell], types=types))
    batches = list(source.poll({}))
    replay.will_answer(result(types=types), counted(0), result(types=types))
    assert list(source.poll(reached(batches))) == []
    assert f"AND {clause} ORDER BY" in replay.asked[-1].body["statement"]
    assert replay.asked[-1].body["bindings"]["1"]["value"] == (value or cell)


def test_snowflake_values_come_in_the_form_the_datasets_types_take(replay, snowflake):
    nulls = [None if place > 1 else cell for place, cell in enumerate(CELLS)]
    replay.will_answer(result(), counted(0), result(CELLS, nulls))
    ((first, second),) = [batch.records for batch in snowflake().poll({})]
    row, empty = (first, second) if first["fare"] is not None else (second, first)
    assert row == {
        "id": 7, "updated_at": datetime(2026, 4, 1, 10, 0, 0, 123456),  # noqa: DTZ001
        "fare": Decimal("12.50"), "share": 0.1, "paid": True, "day": date(2026, 4, 1), "at": "10:30:00",
        "seen": datetime(2026, 4, 1, 10, tzinfo=UTC), "local": datetime(2026, 4, 1, 10, tzinfo=UTC),
        "tags": ["a", None], "more": {"k": 1}, "mixedCase": "x",
    }  # fmt: skip
    assert list(empty.values())[2:] == [None] * 10


def test_snowflake_requests_are_signed_with_the_key_and_signed_anew_before_the_hour_is_over(replay, snowflake, clock):
    source = snowflake(private_key=pem("open"), private_key_passphrase="open", account="xy1.eu-west-1")
    for _ in range(2):
        replay.will_answer(result(), counted(0), result())
        list(source.poll({}))
        clock.time += 55 * 60 * 1_000_000
    first, last = (asked.headers["authorization"].removeprefix("Bearer ") for asked in replay.asked[::5])
    assert first != last
    assert {asked.headers["x-snowflake-authorization-token-type"] for asked in replay.asked} == {"KEYPAIR_JWT"}
    claims = jwt.decode(first, public_key(), algorithms=["RS256"])
    der = public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    fingerprint = base64.b64encode(hashlib.sha256(der).digest()).decode()
    assert (claims["iss"], claims["sub"]) == (f"XY1.READER.SHA256:{fingerprint}", "XY1.READER")
    assert claims["exp"] - claims["iat"] == 3_600


def test_a_snowflake_statement_that_still_runs_is_asked_for_until_it_ends(replay, snowflake):
    running = {"code": "333334", "message": "Asynchronous execution in progress.", "statementHandle": "h-9"}
    replay.will_answer(result(), counted(0))
    replay.will_answer(running, running, status=202)
    replay.will_answer(result(trip(1, 0)))
    (batch,) = snowflake().poll({})
    assert [asked.path for asked in replay.asked[-2:]] == ["/api/v2/statements/h-9"] * 2
    assert len(batch.names) == 1


def test_a_busy_snowflake_is_asked_again_and_one_that_stays_busy_is_an_error(replay, snowflake):
    replay.will_answer({"message": "too many"}, status=429)
    replay.will_answer(b"gateway", status=503)
    replay.will_answer(result(), counted(0), result(trip(1, 0)))
    assert len(list(snowflake().poll({}))) == 1
    with pytest.raises(
        SourceError, match=r"OPS\.PUBLIC\.trips in org-acct: the service did not answer: HTTP 500: no an"
    ):
        list(snowflake().poll({}))


def test_what_snowflake_refuses_is_told_in_its_words_without_the_token(replay, snowflake):
    replay.will_answer({"code": "390144", "message": "JWT token is invalid."}, status=401)
    with pytest.raises(SourceError, match=r"HTTP 401: JWT token is invalid\.") as caught:
        list(snowflake().poll({}))
    assert replay.asked[0].headers["authorization"].split()[1] not in repr(caught.value)
    replay.will_answer({"code": "002003", "sqlState": "02000", "message": "Object 'TRIPS' does not exist"}, status=422)
    with pytest.raises(SourceError, match="HTTP 422: Object 'TRIPS' does not exist"):
        list(snowflake().poll({}))
    replay.will_answer(b"<html>")
    with pytest.raises(SourceError, match="HTTP 200 is not JSON: <html>"):
        list(snowflake().poll({}))


def test_snowflake_columns_that_cannot_serve_are_refused_with_what_can(replay, snowflake):
    replay.will_answer(result(), result(), result(types=[*TYPES, ("PHOTO", "binary", None)]))
    with pytest.raises(SourceError, match="has no column 'nothing'; it has id, updated_at, fare"):
        list(snowflake("nothing").poll({}))
    with pytest.raises(SourceError, match="paid is of type boolean, which cannot be a cursor; these can: fixed"):
        list(snowflake("paid").poll({}))
    with pytest.raises(SourceError, match="PHOTO is of type BINARY"):
        list(snowflake().poll({}))


def test_snowflake_rows_without_a_cursor_value_are_told_of(replay, snowflake):
    replay.will_answer(result(), counted(3), result())
    (told,) = snowflake().poll({})
    assert "3 rows have no value in cursor updated_at" in told.notices[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"table": ""}, "table is required"),
        ({"account": ""}, "account is required"),
        ({"user": ""}, "user is required"),
        ({"cursor": ""}, "a cursor column is required"),
        ({"private_key": ""}, "private_key is required"),
        ({"private_key": "no key"}, r"private_key is not a key in PEM \(PKCS#8\)"),
        ({"private_key": pem("open")}, "its passphrase is missing"),
        ({"overlap": "soon"}, "overlap 'soon' is neither"),
    ],
)
def test_a_snowflake_setting_that_cannot_be_is_refused_at_once(snowflake, config, message):
    with pytest.raises(SourceError, match=message) as caught:
        snowflake(**config)
    assert "no key" not in str(caught.value)


def test_a_snowflake_name_that_is_no_plain_name_is_quoted(replay, snowflake):
    replay.will_answer(result(), counted(0), result())
    list(snowflake(table='my "trips"; DROP').poll({}))
    assert replay.asked[0].body["statement"] == 'SELECT * FROM "my ""trips""; DROP" LIMIT 0'


# BigQuery.

FIELDS = [
    {"name": "id", "type": "INTEGER"}, {"name": "updated_at", "type": "TIMESTAMP"},
    {"name": "fare", "type": "NUMERIC"}, {"name": "share", "type": "FLOAT"}, {"name": "paid", "type": "BOOLEAN"},
    {"name": "day", "type": "DATE"}, {"name": "local", "type": "DATETIME"}, {"name": "at", "type": "TIME"},
    {"name": "tags", "type": "STRING", "mode": "REPEATED"}, {"name": "more", "type": "JSON"},
    {"name": "place", "type": "RECORD", "fields": [{"name": "x", "type": "FLOAT"}, {"name": "n", "type": "STRING"}]},
]  # fmt: skip
VALUES = [
    "7", f"{MOMENT}123456", "12.50", "0.1", "true", "2026-04-01", "2026-04-01T10:00:00.5", "10:30:00",
    [{"v": "a"}, {"v": "b"}], '{"k": 1}', {"f": [{"v": "1.5"}, {"v": None}]},
]  # fmt: skip
TOKEN = {"access_token": "at-1", "expires_in": 3_600, "token_type": "Bearer"}
JOB = {"projectId": "acme", "jobId": "j-1", "location": "EU"}


def page(*rows, fields=FIELDS, **more):
    written = [{"f": [{"v": value} for value in row]} for row in rows]
    whole = {"schema": {"fields": fields}, "jobReference": JOB, "jobComplete": True, "totalRows": "9"}
    return {**whole, **({"rows": written} if written else {}), **more}


def ride(number: int, seconds: int) -> list:
    return [str(number), f"{MOMENT + seconds}000000", *VALUES[2:]]


def count_of(number: int):
    return page([str(number)], fields=[{"name": "f0_", "type": "INTEGER"}])


def test_a_bigquery_table_is_read_page_by_page_in_bounded_batches(replay, bigquery):
    first = page(ride(1, 0), ride(2, 0), ride(3, 1), pageToken="p-2")
    replay.will_answer(TOKEN, page(), count_of(0), first, page(ride(4, 2), ride(5, 2)))
    batches = list(bigquery().poll({}))
    assert [sorted(row["id"] for row in batch.records) for batch in batches] == [[1, 2], [3, 4], [5]]
    assert {batch.stream for batch in batches} == {"acme.ops.trips"}
    assert batches[-1].cursor == "2026-04-01T10:00:02Z"
    dry, count, query, more = replay.asked[1:]
    assert dry.body == {"query": "SELECT * FROM `acme.ops.trips`", "useLegacySql": False, "dryRun": True}
    assert count.body["query"] == "SELECT COUNTIF((`updated_at` IS NOT NULL) IS NOT TRUE) FROM `acme.ops.trips`"
    columns = ", ".join(f"`{field['name']}`" for field in FIELDS)
    clauses = "WHERE `updated_at` IS NOT NULL ORDER BY `updated_at`"
    assert query.body["query"] == f"SELECT {columns} FROM `acme.ops.trips` {clauses}"
    assert (query.method, query.path) == ("POST", "/bigquery/v2/projects/acme/queries")
    assert (query.body["maxResults"], query.body["formatOptions"]) == (2, {"useInt64Timestamp": True})
    assert (more.method, more.path) == ("GET", "/bigquery/v2/projects/acme/queries/j-1")
    assert more.query.items() >= {
        ("pageToken", "p-2"), ("location", "EU"), ("formatOptions.useInt64Timestamp", "true")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "cell", "value"),
    [
        ("TIMESTAMP", f"{MOMENT}000000", "2026-04-01 10:00:00.000000+00:00"),
        ("DATETIME", "2026-04-01T10:00:00", "2026-04-01 10:00:00.000000"),
        ("DATE", "2026-04-01", "2026-04-01"),
        ("INTEGER", "-9223372036854775808", None),
        ("BIGNUMERIC", "-1.50", "-1.5"),
        ("FLOAT", "0.1", None),
        ("STRING", "a b!é", None),
    ],
)
def test_every_bigquery_cursor_type_is_bound_again_as_itself(replay, bigquery, kind, cell, value):
    fields = [{"name": "c", "type": kind}]
    source = bigquery("c")
    replay.will_answer(TOKEN, page(fields=fields), count_of(0), page([cell], fields=fields))
    batches = list(source.poll({}))
    replay.will_answer(page(fields=fields), count_of(0), page(fields=fields))
    assert list(source.poll(reached(batches))) == []
    bound = {"INTEGER": "INT64", "FLOAT": "FLOAT64"}.get(kind, kind)
    order = "COLLATE(`c`, '')" if kind == "STRING" else "`c`"
    assert replay.asked[-1].body["query"].endswith(f" AND {order} >= @start ORDER BY {order}")
    assert replay.asked[-1].body["queryParameters"] == [
        {"name": "start", "parameterType": {"type": bound}, "parameterValue": {"value": value or cell}}
    ]


def test_bigquery_values_come_in_the_form_the_datasets_types_take(replay, bigquery):
    nulls = [[] if place == 8 else value if place < 2 else None for place, value in enumerate(VALUES)]
    replay.will_answer(TOKEN, page(), count_of(0), page(VALUES, nulls))
    ((first, second),) = [batch.records for batch in bigquery().poll({})]
    row, empty = (first, second) if first["fare"] is not None else (second, first)
    assert row == {
        "id": 7, "updated_at": datetime(2026, 4, 1, 10, 0, 0, 123456, tzinfo=UTC), "fare": Decimal("12.50"),
        "share": 0.1, "paid": True, "day": date(2026, 4, 1), "local": datetime(2026, 4, 1, 10, 0, 0, 500000),  # noqa: DTZ001
        "at": "10:30:00", "tags": ["a", "b"], "more": {"k": 1}, "place": {"x": 1.5, "n": None},
    }  # fmt: skip
    assert (empty["tags"], empty["place"]) == ([], None)


def test_a_service_account_exchanges_a_signed_assertion_for_a_token_until_it_ends(replay, bigquery, clock):
    source = bigquery(project_id="", credentials_json=credentials(replay, project_id="acme"))
    for token in ("at-1", "at-2"):
        replay.will_answer({**TOKEN, "access_token": token}, page(), count_of(0), page())
        list(source.poll({}))
        replay.will_answer(page(), count_of(0), page())
        list(source.poll({}))
        clock.time += 56 * 60 * 1_000_000
    exchange = replay.asked[0]
    assert (exchange.method, exchange.path) == ("POST", "/token")
    assert exchange.body["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    claims = jwt.decode(exchange.body["assertion"], public_key(), algorithms=["RS256"], audience=f"{replay.url}/token")
    assert (claims["iss"], claims["scope"]) == ("reader@acme.example", "https://www.googleapis.com/auth/bigquery")
    assert jwt.get_unverified_header(exchange.body["assertion"])["kid"] == "k1"
    used = [asked.headers["authorization"] for asked in replay.asked if asked.path != "/token"]
    assert used == ["Bearer at-1"] * 6 + ["Bearer at-2"] * 6


def test_without_credentials_the_machine_is_asked_for_its_own(replay, bigquery, monkeypatch):
    monkeypatch.setenv("GCE_METADATA_HOST", replay.host)
    replay.will_answer(TOKEN, page(), count_of(0), page(ride(1, 0)))
    assert len(list(bigquery(credentials_json="").poll({}))) == 1
    assert replay.asked[0].path == "/computeMetadata/v1/instance/service-accounts/default/token"
    assert replay.asked[0].headers["metadata-flavor"] == "Google"
    replay.will_answer({"error": "unknown"}, status=404)
    with pytest.raises(SourceError, match="no credentials of its own: set credentials_json"):
        list(bigquery(credentials_json="").poll({}))


def test_a_bigquery_query_that_still_runs_is_asked_for_until_it_ends(replay, bigquery):
    running = {"jobReference": JOB, "jobComplete": False}
    replay.will_answer(TOKEN, page(), count_of(0), running, running, page(ride(1, 0)))
    (batch,) = bigquery().poll({})
    assert len(batch.names) == 1
    assert [asked.path for asked in replay.asked[-2:]] == ["/bigquery/v2/projects/acme/queries/j-1"] * 2


def test_what_bigquery_refuses_is_told_in_its_words_and_a_busy_one_is_asked_again(replay, bigquery):
    replay.will_answer(TOKEN)
    replay.will_answer({"error": {"code": 503, "message": "backendError"}}, status=503)
    replay.will_answer({"error": {"code": 404, "message": "Not found: Table acme:ops.trips"}}, status=404)
    with pytest.raises(SourceError, match=r"acme\.ops\.trips: HTTP 404: Not found: Table acme:ops\.trips") as caught:
        list(bigquery().poll({}))
    assert "at-1" not in repr(caught.value)
    replay.will_answer({"error": "invalid_grant", "error_description": "Invalid JWT Signature."}, status=400)
    with pytest.raises(SourceError, match=r"HTTP 400: Invalid JWT Signature\."):
        list(bigquery().poll({}))


def test_bigquery_columns_that_cannot_serve_are_refused_with_what_can(replay, bigquery):
    replay.will_answer(TOKEN, page())
    with pytest.raises(SourceError, match="has no column 'nothing'; it has id, updated_at, fare"):
        list(bigquery("nothing").poll({}))
    replay.will_answer(TOKEN, page())
    with pytest.raises(SourceError, match="tags is of type REPEATED, which cannot be a cursor; these can: INT64"):
        list(bigquery("tags").poll({}))
    replay.will_answer(TOKEN, page(fields=[*FIELDS, {"name": "photo", "type": "BYTES"}]))
    with pytest.raises(SourceError, match="photo is of type BYTES"):
        list(bigquery().poll({}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"table": ""}, "table is required"),
        ({"dataset_id": ""}, "dataset_id is required"),
        ({"cursor": ""}, "a cursor column is required"),
        ({"project_id": ""}, "project_id is required"),
        ({"table": "a` WHERE"}, "is not the name of a table"),
        ({"credentials_json": "{}"}, "is not the key of a service account"),
        ({"credentials_json": '{"private_key": "no key", "client_email": "a", "token_uri": "b"}'}, "is not the key of"),
    ],
)
def test_a_bigquery_setting_that_cannot_be_is_refused_at_once(bigquery, config, message):
    with pytest.raises(SourceError, match=message) as caught:
        bigquery(**config)
    assert "no key" not in str(caught.value)


def test_the_moment_of_these_tests_is_what_it_says():
    assert parse_instant("2026-04-01T10:00:00Z") == MOMENT * 1_000_000
