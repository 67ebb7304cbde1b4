"""BigQuery tables and views, polled by a cursor column (featurelib/connectors/tables.py) over the REST API v2.

A poll asks for the columns (a dry run, which costs nothing), counts the rows without a cursor value, and runs one
query, whose result comes in pages. BigQuery enforces no primary key, so names are of whole rows. Settings are those of
``BigQuerySource``: ``credentials_json`` is the key file of a service account; without it the metadata server of the
machine is asked. ``endpoint_url`` replaces ``https://bigquery.googleapis.com``.

TIMESTAMP comes as an aware datetime, DATETIME as a naive one (UTC), NUMERIC as Decimal, RECORD and JSON as objects,
REPEATED as lists, and what has no type here (TIME, INTERVAL, GEOGRAPHY, RANGE) as text. BYTES is refused.

The forms of requests and results are those of Google's documentation of the BigQuery REST API and of OAuth 2.0 for
service accounts.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import jwt
import msgspec

from featurelib.clock import DAY, HOUR, MINUTE, SECOND, Clock, Instant
from featurelib.connectors.contract import Position, SourceBatch
from featurelib.connectors.credentials import resolve
from featurelib.connectors.rest import Busy, Rest, awaited, cut
from featurelib.connectors.tables import Bound, Kind, Row, Shape, Start, TablePolls, require
from featurelib.definitions import SourceDef
from featurelib.errors import SourceError

_ENDPOINT = "https://bigquery.googleapis.com"
_SCOPE = "https://www.googleapis.com/auth/bigquery"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_METADATA = "/computeMetadata/v1/instance/service-accounts/default/token"
_QUERY_SECONDS = 900
# How long a request waits for its query, ms; Google's own default.
_WAIT_MS = 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Column(NamedTuple):
    name: str
    type: str
    read: Callable[[Any], Any]


class _CursorType(NamedTuple):
    """How a column type serves as a cursor: expressions with ``{}`` for the quoted column."""

    kind: Kind
    readable: str = "{} IS NOT NULL"
    order: str = "{}"


_CURSOR_TYPES = {
    "INT64": _CursorType("number"),
    "NUMERIC": _CursorType("number"),
    "BIGNUMERIC": _CursorType("number"),
    "FLOAT64": _CursorType("number", "NOT IS_NAN({0}) AND NOT IS_INF({0})"),
    "TIMESTAMP": _CursorType("instant"),
    "DATETIME": _CursorType("instant"),
    "DATE": _CursorType("instant"),
    "STRING": _CursorType("text", order="COLLATE({}, '')"),
}
# Results name some types as they were named before.
_SPELT = {"INTEGER": "INT64", "FLOAT": "FLOAT64", "BOOLEAN": "BOOL", "STRUCT": "RECORD"}


class BigQueryTable:
    """Reads what is new in one table."""

    def __init__(self, source: SourceDef, batch_rows: int, clock: Clock) -> None:
        config = source.connector.config
        what = require(source, "dataset_id", "table")
        key = _key(resolve(config.get("credentials_json"), f"{what}: credentials_json"), what)
        project = str(config.get("project_id") or key.get("project_id") or "")
        if not project:
            raise SourceError(f"{what}: project_id is required where credentials_json does not name one")
        path = f"{project}.{config['dataset_id']}.{config['table']}"
        if "`" in path or "\\" in path:
            raise SourceError(f"{what}: {path} is not the name of a table")
        self._where, self._table = f"{what}: {path}", f"`{path}`"
        self._cursor, self._batch_rows = source.cursor, batch_rows
        self._queries = f"/bigquery/v2/projects/{project}/queries"
        self._rest = Rest(self._where, str(config.get("endpoint_url") or _ENDPOINT))
        self._tokens = _Tokens(self._rest, key, clock)
        self._polls = TablePolls(self._where, path, source.cursor, config.get("overlap"))

    def poll(self, position: Position) -> Iterator[SourceBatch]:
        """What is new in the table at this instant, in the order of the cursor column.

        Raises:
            SourceError: BigQuery refused or did not answer, or there is no such table or column.
        """
        columns = self._columns()
        place = self._place(columns)
        column = columns[place]
        known = self._polls.cursor_type(_CURSOR_TYPES, column.name, column.type)
        start = self._polls.start(position, known.kind)
        shape = Shape([each.name for each in columns], place, known.kind, range(len(columns)))
        unread = self._unread(column, known)
        rows = _read(columns, self._run(*self._statement(columns, column, known, start)))
        yield from self._polls.batches(start, shape, cut(rows, self._batch_rows), unread)

    def close(self) -> None:
        """Close the connections."""
        self._rest.close()

    def _columns(self) -> list[_Column]:
        statement = f"SELECT * FROM {self._table}"  # noqa: S608  # quoted
        answer = self._ask("POST", self._queries, json={"query": statement, "useLegacySql": False, "dryRun": True})
        fields = answer["schema"]["fields"]
        refused = [field["name"] for field in fields if field["type"] == "BYTES"]
        self._polls.refuse_bytes(refused, "BYTES")
        return [_Column(field["name"], _type_of(field), _reader(field)) for field in fields]

    def _place(self, columns: list[_Column]) -> int:
        for place, column in enumerate(columns):
            if self._cursor.lower() == column.name.lower():  # BigQuery does not tell them apart either
                return place
        raise self._polls.no_cursor(each.name for each in columns)

    def _unread(self, column: _Column, known: _CursorType) -> int:
        readable = known.readable.format(f"`{column.name}`")
        statement = f"SELECT COUNTIF(({readable}) IS NOT TRUE) FROM {self._table}"  # noqa: S608  # quoted
        (row,) = self._run(statement, [])
        return int(row["f"][0]["v"])

    def _statement(
        self, columns: list[_Column], column: _Column, known: _CursorType, start: Start
    ) -> tuple[str, list[dict[str, Any]]]:
        order, parameters = known.order.format(f"`{column.name}`"), []
        wanted = known.readable.format(f"`{column.name}`")
        if start.bound is not None:
            wanted += f" AND {order} >= @start"
            value = {"value": _bound(start.bound, column.type)}
            parameters = [{"name": "start", "parameterType": {"type": column.type}, "parameterValue": value}]
        listed = ", ".join(f"`{each.name}`" for each in columns)
        return f"SELECT {listed} FROM {self._table} WHERE {wanted} ORDER BY {order}", parameters  # noqa: S608  # quoted

    def _run(self, statement: str, parameters: list[dict[str, Any]]) -> Iterator[Any]:
        """The rows of a query, page by page, as the service writes them."""
        body = {
            "query": statement,
            "useLegacySql": False,
            "parameterMode": "NAMED",
            "queryParameters": parameters,
            "maxResults": self._batch_rows,
            "timeoutMs": _WAIT_MS,
            "formatOptions": {"useInt64Timestamp": True},
        }
        answer = self._ask("POST", self._queries, json=body)
        job = answer.get("jobReference", {})
        if not answer.get("jobComplete"):
            answer = self._page(job, "")
        yield from answer.get("rows", ())
        while answer.get("pageToken"):
            answer = self._page(job, answer["pageToken"])
            yield from answer.get("rows", ())

    def _page(self, job: Mapping[str, str], token: str) -> Any:
        return awaited(self._where, _QUERY_SECONDS, lambda: self._page_now(job, token))

    def _page_now(self, job: Mapping[str, str], token: str) -> Any:
        parameters = {
            "maxResults": str(self._batch_rows),
            "timeoutMs": str(_WAIT_MS),
            "formatOptions.useInt64Timestamp": "true",
            **({"location": job["location"]} if job.get("location") else {}),
            **({"pageToken": token} if token else {}),
        }
        answer = self._ask("GET", f"{self._queries}/{job['jobId']}", params=parameters)
        if not answer.get("jobComplete"):
            raise Busy("the query is still running")
        return answer

    def _ask(self, method: str, url: str, **options: Any) -> Any:
        return self._rest.ask(method, url, {"Authorization": f"Bearer {self._tokens.token()}"}, **options)[1]


class _Tokens:
    """Access tokens: exchanged for a signed assertion, or asked of the machine; renewed five minutes before the end."""

    def __init__(self, rest: Rest, key: Mapping[str, str], clock: Clock) -> None:
        self._rest, self._key, self._clock = rest, key, clock
        self._token, self._until = "", 0

    def token(self) -> str:
        now = self._clock.now()
        if now >= self._until:
            answer = self._exchanged(now) if self._key else self._of_the_machine()
            self._token = answer["access_token"]
            self._until = now + int(answer["expires_in"]) * SECOND - 5 * MINUTE
        return self._token

    def _exchanged(self, now: Instant) -> Any:
        claims = {
            "iss": self._key["client_email"],
            "scope": _SCOPE,
            "aud": self._key["token_uri"],
            "iat": now // SECOND,
            "exp": (now + HOUR) // SECOND,
        }
        headers = {"kid": self._key.get("private_key_id", "")}
        assertion = jwt.encode(claims, self._key["private_key"], algorithm="RS256", headers=headers)
        return self._rest.ask("POST", self._key["token_uri"], {}, data={"grant_type": _GRANT, "assertion": assertion})[
            1
        ]

    def _of_the_machine(self) -> Any:
        host = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal"
        try:
            return self._rest.ask("GET", f"http://{host}{_METADATA}", {"Metadata-Flavor": "Google"})[1]
        except SourceError as error:
            message = f"{error}; this machine has no credentials of its own: set credentials_json"
            raise SourceError(message) from error


def _key(credentials: str, what: str) -> Mapping[str, str]:
    """The members of a service account's key; none without one."""
    if not credentials:
        return {}
    try:
        key = msgspec.json.decode(credentials, type=dict[str, str])
        jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).prepare_key(key["private_key"])
    except (msgspec.DecodeError, KeyError, ValueError, jwt.InvalidKeyError):
        key = {}
    if not {"client_email", "private_key", "token_uri"} <= key.keys():
        # The words of whoever read it may hold pieces of the key.
        message = (
            f"{what}: credentials_json is not the key of a service account: "
            "a JSON object with client_email, private_key and token_uri"
        )
        raise SourceError(message)
    return key


def _bound(bound: Bound, kind: str) -> str:
    """A query parameter's value for a column of that type."""
    if not isinstance(bound, int):
        return _number(bound, kind)
    if kind == "DATE":
        return (_EPOCH + timedelta(days=-(-bound // DAY))).date().isoformat()
    moment = (_EPOCH + timedelta(microseconds=bound)).strftime("%Y-%m-%d %H:%M:%S.%f")
    return f"{moment}+00:00" if kind == "TIMESTAMP" else moment


def _number(bound: Decimal | str, kind: str) -> str:
    if isinstance(bound, str):
        return bound
    if kind == "INT64":
        return str(math.ceil(bound))
    return repr(float(bound)) if kind == "FLOAT64" else f"{bound:f}"


def _type_of(field: Mapping[str, Any]) -> str:
    return "REPEATED" if field.get("mode") == "REPEATED" else _SPELT.get(field["type"], field["type"])


def _reader(field: Mapping[str, Any]) -> Callable[[Any], Any]:
    """What makes a value of a cell; null stays null."""
    if field.get("mode") == "REPEATED":
        one = _reader({**field, "mode": "NULLABLE"})
        return lambda cells: [one(cell["v"]) for cell in cells or ()]
    kind = _SPELT.get(field["type"], field["type"])
    read = _record(field["fields"]) if kind == "RECORD" else _READERS.get(kind, str)
    return lambda cell: None if cell is None else read(cell)


def _record(fields: list[Mapping[str, Any]]) -> Callable[[Any], Any]:
    parts = [(field["name"], _reader(field)) for field in fields]
    return lambda cell: {name: read(part["v"]) for (name, read), part in zip(parts, cell["f"], strict=True)}


def _read(columns: list[_Column], rows: Iterator[Any]) -> Iterator[Row]:
    for row in rows:
        yield [column.read(cell["v"]) for column, cell in zip(columns, row["f"], strict=True)]


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "INT64": int,
    "FLOAT64": float,
    "NUMERIC": Decimal,
    "BIGNUMERIC": Decimal,
    "BOOL": lambda cell: cell == "true",
    "TIMESTAMP": lambda cell: _EPOCH + timedelta(microseconds=int(cell)),
    "DATETIME": datetime.fromisoformat,
    "DATE": date.fromisoformat,
    "JSON": json.loads,
}
