"""Training sets: made by the platform of a spine of any size, with a manifest of what they were made of."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from featurelib.client.frames import rows_of
from featurelib.client.operations import Endpoints, Operation, name_of, named
from featurelib.client.wire import ARROW, Answer, BodyFile, Request, Steps, error_of, listed
from featurelib.clock import parse_instant, to_datetime
from featurelib.errors import InvalidRequest, MissingDriver, ServiceUnavailable
from featurelib.result import ThymeResult

PARQUET = "application/vnd.apache.parquet"
"""Media type of a Parquet file."""
TRAINING_SET_OVER = frozenset({"cancelled", "complete", "failed"})
"""States of a training set that nothing more becomes of."""

_PATH = "/api/v1/training-sets"
_STORED_AS = {".parquet": PARQUET, ".arrows": ARROW}
# How long the service is asked to wait for news, and how long it is given to say that there are none.
_WAIT_S, _WAIT_TIMEOUT_S = 20.0, 60.0
# A gigabyte of spine is checked and kept before it is answered; rows of any number are sent at the pace of the reader.
_UPLOAD_TIMEOUT_S = 600.0
_ROWS_READ = 65_536
_ENTITY, _INSTANT = "__entity_id", "__timestamp"


class Training(Endpoints):
    """Operations on training sets."""

    @Operation
    def request_training_set(
        self,
        featureset: Any = None,
        spine: Any = None,
        *,
        where: str | None = None,
        like: str | None = None,
        entity_column: str | None = None,
        timestamp_column: str | None = None,
        knowledge: str | None = None,
    ) -> Steps[dict[str, Any]]:
        """Have a training set made; its ``id`` is for :meth:`training_set` and :meth:`training_set_rows`.

        Args:
            featureset: its class or name.
            spine: rows to send: a Polars, pandas or Arrow table, a list of mappings, or the path of a Parquet, CSV or
                Arrow file, a folder of Parquet files or a Delta table.
            where: in place of ``spine``, a path or URL that the platform reads itself.
            like: in place of all others, the id of a training set that is made again, byte for byte.
            entity_column: the column of ids; left out, ``entity_id`` or the one named like the featureset's entity.
            timestamp_column: the column of instants; left out, ``timestamp``.
            knowledge: ``as_served`` counts of each row only what had been accepted by its instant.

        Raises:
            NotFound: there is no such featureset, or no such training set.
            Conflict: the one to make it like is not complete.
            InvalidRequest: a column is missing, or a row has no id or instant that fits; names it.
            MissingDriver: a package that reads or writes tables is not installed.
        """
        options = {"entity_column": entity_column, "timestamp_column": timestamp_column, "knowledge": knowledge}
        given = {name: value for name, value in options.items() if value is not None}
        if like is not None or where is not None:
            order = {"like": like} if like is not None else {"featureset": name_of(featureset), "spine": where, **given}
            return (yield self.post(_PATH, order, read_timeout_s=_UPLOAD_TIMEOUT_S)).read(dict)
        text = yield from _text_columns(self, name_of(featureset), spine, (entity_column, timestamp_column))
        content_type, body = spine_bytes(spine, text)
        query = {"featureset": name_of(featureset), **given}
        sent = {"parameters": query, "content_type": content_type, "read_timeout_s": _UPLOAD_TIMEOUT_S}
        return (yield self.post(_PATH, body, **sent)).read(dict)

    @Operation
    def training_sets(self, *, featureset: Any = None, limit: int = 100) -> Steps[list[dict[str, Any]]]:
        """The training sets that were asked for, newest first; of one featureset where it is named."""
        name = None if featureset is None else name_of(featureset)
        return (yield self.get(_PATH, featureset=name, limit=limit)).read(listed)

    @Operation
    def training_set(self, training_id: str, *, wait_s: float | None = None) -> Steps[dict[str, Any]]:
        """How far a training set is, and its ``manifest`` once it is complete.

        Args:
            training_id: its id.
            wait_s: while it is not over, how long to wait for it to get further, 20 s at most.

        Raises:
            NotFound: there is none of that id.
        """
        return (yield _asked(self, training_id, wait_s)).read(dict)

    @Operation
    def training_set_rows(self, training_id: str) -> Steps[ThymeResult]:
        """The rows of a training set, in the order of its spine, its ``manifest`` in their metadata.

        It waits until the training set is complete.

        Raises:
            NotFound: there is none of that id.
            ThymeError: what it failed with.
            MissingDriver: pyarrow is not installed.
        """
        return (yield from made_rows(self, training_id))

    @Operation
    def download_training_set(self, training_id: str, path: str | PathLike[str]) -> Steps[dict[str, Any]]:
        """Write the rows of a training set to a file, without ever holding them in memory; what it is.

        It waits until the training set is complete. The file is there whole or not at all, and one that is there
        already stays until then.

        Args:
            training_id: its id.
            path: ends in ``.parquet`` for the file that the manifest names, byte for byte, or in ``.arrows`` for an
                Arrow IPC stream.

        Raises:
            NotFound: there is none of that id.
            InvalidRequest: the file has another ending, or cannot be written.
            ThymeError: what it failed with.
        """
        file = Path(path)
        if file.suffix not in _STORED_AS:
            raise InvalidRequest(f"path: {file} has none of the endings {', '.join(_STORED_AS)}")
        found = yield from _complete(self, training_id)
        url, accept = self.api_url(f"{_PATH}/{named(training_id)}/rows"), {"Accept": _STORED_AS[file.suffix]}
        part = BodyFile(file.with_name(f".{file.name}.{uuid.uuid4().hex[:8]}"))
        try:
            yield Request("GET", url, headers=accept, read_timeout_s=_UPLOAD_TIMEOUT_S, into=part)
            # Without a manifest nothing was answered: what it names was deleted between the two requests.
            stored = {each["sha256"] for each in (found["manifest"] or {"files": ()})["files"]}
            if file.suffix == ".parquet" and part.sha256 not in stored:
                raise ServiceUnavailable(f"{url} answered, but not with the file that the manifest names")
            _move(part.path, file)
        finally:
            part.path.unlink(missing_ok=True)
        return found

    @Operation
    def cancel_training_set(self, training_id: str) -> Steps[dict[str, Any]]:
        """End a training set; nothing of it is kept.

        Raises:
            Forbidden: it was asked for with another key, and this one may only read.
            Conflict: it is over.
        """
        return (yield self.post(f"{_PATH}/{named(training_id)}/cancel", repeatable=True)).read(dict)

    @Operation
    def delete_training_set(self, training_id: str) -> Steps[dict[str, Any]]:
        """Delete a training set that is over, and its files; what it was.

        Raises:
            Forbidden: it was asked for with another key, and this one may only read.
            Conflict: it is not over.
        """
        return (yield Request("DELETE", self.api_url(f"{_PATH}/{named(training_id)}"), repeatable=False)).read(dict)


def _complete(service: Endpoints, training_id: str) -> Steps[dict[str, Any]]:
    """A training set, once it is complete; raises what it failed with."""
    while (found := (yield _asked(service, training_id, _WAIT_S)).read(dict))["state"] not in TRAINING_SET_OVER:
        pass
    if found["state"] != "complete":
        why = found["detail"] or f"it is {found['state']}"
        told = {"error": found["error"] or "conflict", "message": f"training set {training_id}: {why}"}
        raise error_of(Answer(service.api_url(_PATH), 500, {}, json.dumps(told).encode()))
    return found


def _move(part: Path, path: Path) -> None:
    try:
        part.replace(path)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror or error}") from None


def made_rows(service: Endpoints, training_id: str) -> Steps[ThymeResult]:
    """The rows of a training set, once it is complete."""
    found = yield from _complete(service, training_id)
    url = service.api_url(f"{_PATH}/{named(training_id)}/rows")
    answer = yield Request("GET", url, headers={"Accept": ARROW}, read_timeout_s=_UPLOAD_TIMEOUT_S)
    about = {"featureset": found["featureset"], "training_set": training_id, "manifest": found["manifest"]}
    return ThymeResult.of_table(_table(answer), about)


def offline_training_set(
    service: Endpoints, featureset: str, queries: Sequence[Mapping[str, Any]], knowledge: str | None
) -> Steps[ThymeResult]:
    """What the queries of an offline read are answered, as a training set."""
    pa = _pyarrow()
    requested = list(dict.fromkeys(name for query in queries for name in query.get("inputs", ())))
    ids, instants = [query["entity_id"] for query in queries], [query["timestamp"] for query in queries]
    # Names that no feature has: a featureset may have one that is called `timestamp`.
    columns: dict[str, Any] = {_ENTITY: pa.array(ids, pa.string()), _INSTANT: pa.array(instants, pa.string())}
    try:
        columns |= {name: pa.array([query.get("inputs", {}).get(name) for query in queries]) for name in requested}
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        message = f"rows: a requested feature has values of several types, or beyond 64 bits: {error}"
        raise InvalidRequest(message) from None
    how = {"featureset": featureset, "entity_column": _ENTITY, "timestamp_column": _INSTANT, "knowledge": knowledge}
    sent = {"parameters": how, "content_type": ARROW, "read_timeout_s": _UPLOAD_TIMEOUT_S}
    asked = (yield service.post(_PATH, _stream([pa.table(columns)]), **sent)).read(dict)
    made = yield from made_rows(service, asked["id"])
    table = made.to_arrow()
    moments = pa.array([to_datetime(parse_instant(moment)) for moment in instants], pa.timestamp("us", "UTC"))
    features = [name for name in table.column_names if name not in (_ENTITY, _INSTANT)]
    whole = {"entity_id": columns[_ENTITY], "timestamp": moments, **{name: table[name] for name in features}}
    return ThymeResult.of_table(pa.table(whole), made.metadata)


def _text_columns(
    service: Endpoints, featureset: str, given: Any, columns: Sequence[str | None]
) -> Steps[tuple[str, ...]]:
    """The columns of a CSV file that are text whatever they look like: an id ``007`` is not 7."""
    if not isinstance(given, str | PathLike) or not fspath(given).lower().endswith((".csv", ".tsv")):
        return ()
    found = (yield service.get("/api/v1/featuresets")).read(listed)
    features = [each for held in found if held["name"] == featureset for each in held["spec"]["features"]]
    named = (name for name in columns if name is not None)
    return (*named, "entity_id", "timestamp", *(each["name"] for each in features if each["dtype"] == "str"))


def spine_bytes(given: Any, text: Sequence[str] = ()) -> tuple[str, bytes]:
    """Rows as they are sent, and their media type; the columns in ``text`` stay text in a CSV file.

    Raises:
        InvalidRequest: it is no table, list of mappings or file, or cannot be read.
        MissingDriver: a package that is needed for it is not installed.
    """
    if not isinstance(given, str | PathLike):
        return ARROW, _stream([_arrow(given)])
    path = Path(given)
    if path.suffix.lower() == ".parquet" and path.is_file():
        return PARQUET, path.read_bytes()
    try:
        from featurelib.stores.spine_sources import open_spine
    except ImportError:
        raise MissingDriver("deltalake", "platform") from None
    source = open_spine(fspath(given), text)
    return ARROW, _stream([source.schema.empty_table(), *source.batches(_ROWS_READ)])


def _asked(service: Endpoints, training_id: str, wait_s: float | None) -> Request:
    url = service.api_url(f"{_PATH}/{named(training_id)}")
    timeout_s = 0.0 if wait_s is None else _WAIT_TIMEOUT_S
    return Request("GET", url, {"wait_s": wait_s}, read_timeout_s=timeout_s)


def _arrow(given: Any) -> Any:
    """An Arrow table of rows in any form."""
    pa = _pyarrow()
    if isinstance(given, pa.Table):
        return given
    if hasattr(given, "to_arrow"):
        return given.to_arrow()
    try:
        if type(given).__module__.partition(".")[0] == "pandas":
            return pa.Table.from_pandas(given, preserve_index=False)
        return _table_of_rows(rows_of(given))
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise InvalidRequest(f"spine: a column holds values of several types, or beyond 64 bits: {error}") from None


def _table_of_rows(rows: Sequence[Mapping[str, Any]]) -> Any:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _pyarrow().table({name: [row.get(name) for row in rows] for name in names})


def _stream(parts: Sequence[Any]) -> bytes:
    pa = _pyarrow()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, parts[0].schema) as writer:
        for part in parts:
            writer.write(part)
    return bytes(sink.getvalue())


def _table(answer: Answer) -> Any:
    pa = _pyarrow()
    try:
        return pa.ipc.open_stream(answer.content).read_all()
    except pa.ArrowInvalid as error:
        message = f"{answer.url} answered, but not with a whole Arrow stream: {error}"
        raise ServiceUnavailable(message) from None


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingDriver("pyarrow", "engine") from None
    return pa
