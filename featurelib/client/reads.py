"""Reads: features of entities, now and then; rows of datasets; the audit of all of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from featurelib.client.frames import chunks, has_arrow, instant_text, plain, spine_rows
from featurelib.client.operations import Endpoints, Operation, name_of, named
from featurelib.client.training import offline_training_set
from featurelib.client.wire import ARROW, JSON, Answer, Request, Steps, listed
from featurelib.clock import check_zones
from featurelib.declarations import declared_on
from featurelib.definitions import DatasetDef, FeaturesetDef
from featurelib.errors import InvalidRequest, ServiceUnavailable
from featurelib.result import ThymeResult, joined

Timestamp = str | float | datetime
TRAINING_ROWS = 100_000
"""Rows above which an offline read is made as a training set: in parts, history would be read once for each."""

# The service takes 10,000 ids at once; smaller chunks keep each answer well below a second.
_IDS_PER_CALL = 2_000
_ROWS_PER_CALL = 5_000
_RUNS_PER_CALL = 1_000
# A large training set becomes a job of its own on the platform, which takes tens of seconds to its first row.
_OFFLINE_TIMEOUT_S = 600.0


class Reads(Endpoints):
    """Operations of the query server."""

    @Operation
    def query(
        self,
        featureset: Any,
        entity_id: Any,
        inputs: Mapping[str, Any] | None = None,
        *,
        timestamp: Timestamp | None = None,
        knowledge: str | None = None,
        explain: bool = False,
    ) -> Steps[ThymeResult]:
        """Features of one entity: one row.

        Args:
            featureset: its class or name.
            entity_id: the entity's id.
            inputs: values of its requested features.
            timestamp: read as of this instant; left out, now.
            knowledge: with a timestamp, ``as_served`` counts only what had been accepted by then.
            explain: say of each value where it came from, in the result's ``explained``.

        Raises:
            NotFound: there is no such featureset.
        """
        question = {"featureset": name_of(featureset), "entity_id": str(entity_id)}
        moment = None if timestamp is None else instant_text(timestamp)
        how = {name: value for name, value in (("timestamp", moment), ("knowledge", knowledge)) if value is not None}
        explained = {"explain": "true"} if explain else {}
        url = self.query_url("/features")
        if not inputs:
            return _one_row((yield Request("GET", url, {**question, **how, **explained})), types_of(featureset))
        request = Request("POST", url, explained, body={**question, "inputs": plain(inputs), **how})
        return _one_row((yield request), types_of(featureset))

    @Operation
    def query_batch(
        self, featureset: Any, entity_ids: Sequence[Any], inputs: Mapping[str, Any] | None = None
    ) -> Steps[ThymeResult]:
        """Features of many entities: one row each, in the order asked.

        Args:
            featureset: its class or name.
            entity_ids: their ids.
            inputs: values of its requested features, the same for all of them.

        Raises:
            NotFound: there is no such featureset.
        """
        name, parts = name_of(featureset), []
        for some in chunks([str(each) for each in entity_ids], _IDS_PER_CALL):
            body = {"featureset": name, "entity_ids": some, **({"inputs": plain(inputs)} if inputs else {})}
            answer = yield _tabular(self.query_url("/features/batch"), body)
            parts.append(_table_of(answer, _positional))
        return joined(parts, {"featureset": name})

    @Operation
    def query_offline(  # noqa: PLR0913  # one keyword per option of a read
        self,
        featureset: Any,
        entities: Any,
        *,
        entity_column: str = "entity_id",
        timestamp_column: str = "timestamp",
        batch_size: int = _ROWS_PER_CALL,
        knowledge: str | None = None,
        labels: bool = False,
        training_set: bool | None = None,
    ) -> Steps[ThymeResult]:
        """Features of many entities, each at its own instant, in the order asked: what a model is trained on.

        Args:
            featureset: its class or name.
            entities: a Polars, pandas or Arrow table, a list of mappings, or the path or URL of a Parquet, CSV or
                Arrow file, a folder of Parquet files or a Delta table. Columns named like requested features are
                their values; others are labels.
            entity_column: the column of ids.
            timestamp_column: the column of instants.
            batch_size: rows of one call.
            knowledge: ``as_served`` counts of each row only what had been accepted by its instant.
            labels: whether the result has the labels, between the instants and the features.
            training_set: whether the platform makes a training set of all rows together, of the records there are
                when it begins, with a ``manifest`` in the result's metadata; left out, above 100,000 rows. It takes
                seconds to begin, and pyarrow.

        Returns:
            ``entity_id``, ``timestamp``, the labels if they are asked for, and the features.

        Raises:
            NotFound: there is no such featureset.
            InvalidRequest: a row has no id or no instant, some instants name a zone and some do not, a file cannot be
                read, or a label is named like a feature.
        """
        name = name_of(featureset)
        rows = spine_rows(entities, (entity_column, timestamp_column))
        check_zones((row.get(timestamp_column) for row in rows), f"spine, {timestamp_column!r}")
        extra = [column for column in _columns(rows) if column not in (entity_column, timestamp_column)]
        requested = sorted(set(extra) & set((yield from _input_types(self, name)))) if extra else []
        queries = [_asked(row, number, (entity_column, timestamp_column), requested) for number, row in enumerate(rows)]
        if training_set is None:
            training_set = len(rows) > TRAINING_ROWS and has_arrow()
        if training_set:
            result = yield from offline_training_set(self, name, queries, knowledge)
        else:
            result = yield from _in_parts(self, name, queries, batch_size, knowledge)
        kept = [name for name in extra if name not in requested] if labels else []
        return result.with_columns({name: [row.get(name) for row in rows] for name in kept}, after=2)

    @Operation
    def lookup(
        self,
        dataset: Any,
        entity_id: Any,
        *,
        timestamp: Timestamp | None = None,
        knowledge: str | None = None,
        explain: bool = False,
    ) -> Steps[ThymeResult]:
        """The row of a dataset for one key: one row, or none when the key is unknown.

        Args:
            dataset: its class or name.
            entity_id: the key.
            timestamp: read as of this instant; left out, now.
            knowledge: with a timestamp, ``as_served`` counts only what had been accepted by then.
            explain: say of each value where it came from, in the result's ``explained``.
        """
        parameters = {
            "entity_type": name_of(dataset),
            "entity_id": str(entity_id),
            "timestamp": None if timestamp is None else instant_text(timestamp),
            "knowledge": knowledge,
            "explain": "true" if explain else None,
        }
        return _one_row((yield Request("GET", self.query_url("/features"), parameters)), types_of(dataset))

    @Operation
    def input_types(self, featureset: Any) -> Steps[dict[str, str]]:
        """The declared type of each request-time feature of a featureset; empty when there is no such featureset."""
        return (yield from _input_types(self, name_of(featureset)))

    @Operation
    def query_runs(
        self,
        *,
        limit: int = 100,
        featureset: Any = None,
        kind: str | None = None,
        key_fingerprint: str | None = None,
        error: bool | None = None,
        since: Timestamp | None = None,
        until: Timestamp | None = None,
    ) -> Steps[list[dict[str, Any]]]:
        """The audit of reads, newest first.

        Args:
            limit: most runs.
            featureset: only of this class or name; of a look-up, the dataset.
            kind: ``online``, ``batch``, ``offline`` or ``lookup``.
            key_fingerprint: only of the key with this fingerprint.
            error: whether they failed.
            since: only of this instant and later.
            until: only of before this instant.
        """
        filters = {
            "featureset": None if featureset is None else name_of(featureset),
            "kind": kind,
            "key": key_fingerprint,
            "error": None if error is None else str(error).lower(),
            "since": None if since is None else instant_text(since, "since"),
            "until": None if until is None else instant_text(until, "until"),
        }
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while len(found) < limit:
            paging = {"limit": min(limit - len(found), _RUNS_PER_CALL), "cursor": cursor}
            answer = yield Request("GET", self.query_url("/query-runs"), {**filters, **paging})
            page, cursor = answer.read(lambda tree: (listed(tree["runs"]), tree.get("next_cursor")))
            found += page
            if not cursor:
                break
        return found

    @Operation
    def query_run(self, run_id: str) -> Steps[dict[str, Any]]:
        """The audit of one read.

        Raises:
            NotFound: it is unknown, or not written down yet: the audit follows the answer.
        """
        return (yield Request("GET", self.query_url(f"/query-runs/{named(run_id)}"))).read(dict)

    @Operation
    def replay(self, run_id: str, *, knowledge: str | None = None) -> Steps[dict[str, Any]]:
        """Ask a recorded read again.

        Args:
            run_id: of the read.
            knowledge: ``latest``, or ``as_served``: what that read saw, exactly.

        Returns:
            ``kind``, ``result``, and of each feature whether it is ``same``, ``different`` or ``unknown``.
        """
        url = self.query_url(f"/query-runs/{named(run_id)}/replay")
        return (yield Request("POST", url, {"knowledge": knowledge})).read(dict)


def _in_parts(
    service: Endpoints, name: str, queries: Sequence[dict[str, Any]], size: int, knowledge: str | None
) -> Steps[ThymeResult]:
    parts = []
    for some in chunks(queries, size):
        body = {"featureset": name, "queries": some, **({"knowledge": knowledge} if knowledge else {})}
        answer = yield _tabular(service.query_url("/features/offline"), body, _OFFLINE_TIMEOUT_S)
        parts.append(_table_of(answer, _dated))
    return joined(parts, {"featureset": name})


def _input_types(service: Endpoints, name: str) -> Steps[dict[str, str]]:
    answer = yield Request("GET", service.query_url("/api/v1/featuresets"))
    found = [each for each in answer.read(listed) if each.get("name") == name]
    features = [feature for each in found for feature in each.get("spec", {}).get("features", [])]
    return {each["name"]: each["dtype"] for each in features if each.get("request")}


def _tabular(url: str, body: dict[str, Any], read_timeout_s: float = 0.0) -> Request:
    """A read of many rows: in Arrow where it can be read here."""
    accept = f"{ARROW}, {JSON};q=0.9" if has_arrow() else JSON
    return Request("POST", url, body=body, headers={"Accept": accept}, read_timeout_s=read_timeout_s)


def _table_of(answer: Answer, of_json: Any) -> ThymeResult:
    if not answer.is_arrow:
        columns, rows = answer.read(of_json)
        return ThymeResult(columns, rows, {}, answer.query_run_id)
    import pyarrow as pa

    try:
        table = pa.ipc.open_stream(answer.content).read_all()
    except pa.ArrowInvalid as error:
        message = f"{answer.url} answered, but not with a whole Arrow stream: {error}"
        raise ServiceUnavailable(message) from None
    return ThymeResult.of_table(table, {}, answer.query_run_id)


def _positional(tree: Any) -> tuple[list[str], list[list[Any]]]:
    return list(tree["features"]), list(tree["values"])


def _dated(tree: Any) -> tuple[list[str], list[list[Any]]]:
    """Rows of an offline answer: the id, the instant, and the features."""
    results = listed(tree["results"])
    if not results:
        return [], []
    names = [name for name in results[0]["features"] if name not in ("entity_id", "timestamp")]
    rows = [[each["entity_id"], each["timestamp"], *(each["features"][name] for name in names)] for each in results]
    return ["entity_id", "timestamp", *names], rows


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those of any row, in order: a list of mappings need not be even."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _asked(row: Mapping[str, Any], number: int, columns: tuple[str, str], requested: Sequence[str]) -> dict[str, Any]:
    """One question of an offline read.

    Raises:
        InvalidRequest: a column is missing; names it and the row.
    """
    missing = [name for name in columns if row.get(name) is None]
    if missing:
        message = f"row {number} has no {missing[0]!r}; it has {', '.join(map(repr, row))}"
        raise InvalidRequest(message)
    entity, moment = (row[name] for name in columns)
    asked = {"entity_id": str(entity), "timestamp": instant_text(moment, f"row {number}, {columns[1]}")}
    inputs = {name: plain(row[name]) for name in requested if row.get(name) is not None}
    return {**asked, "inputs": inputs} if inputs else asked


def types_of(thing: Any) -> dict[str, str]:
    """The declared types of a featureset's features or a dataset's columns; empty of one that is only named."""
    declared = declared_on(thing)
    found = {"entity_id": "str"}
    for each in declared.definitions if declared else ():
        if isinstance(each, FeaturesetDef | DatasetDef):
            members = each.features if isinstance(each, FeaturesetDef) else each.fields
            found |= {member.name: member.type for member in members}
    return found if len(found) > 1 else {}


def _one_row(answer: Answer, types: Mapping[str, str]) -> ThymeResult:
    return answer.read(lambda tree: _row_of(tree, answer.query_run_id, types))


def _row_of(tree: dict[str, Any], run_id: str, types: Mapping[str, str]) -> ThymeResult:
    features = tree.pop("features")
    metadata = {**tree.pop("metadata", {}), **tree}
    if features is None:
        return ThymeResult(["entity_id"], [], metadata, run_id, types)
    rest = {name: value for name, value in features.items() if name != "entity_id"}
    return ThymeResult(["entity_id", *rest], [[tree["entity_id"], *rest.values()]], metadata, run_id, types)
