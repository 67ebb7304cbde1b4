"""The HTTP client of both services, and the configuration that says where they are.

Every failure is one of :mod:`featurelib.errors`, rebuilt from the service's error body; its correlation id is
a note of the exception.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx2

from featurelib.clock import Instant, format_instant, parse_instant
from featurelib.definitions import Commit
from featurelib.errors import (
    BreakingChange,
    ConfigError,
    DefinitionError,
    InvalidRequest,
    Problem,
    ServiceUnavailable,
    StoreUnavailable,
    ThymeError,
)
from featurelib.plan import CommitReceipt
from featurelib.result import ThymeResult

T = TypeVar("T")
_COMMIT = "/api/v1/commit"
_TIMEOUT_S = 30.0
# The service takes 10,000 ids at once; smaller chunks keep each answer well below a second.
_IDS_PER_CALL = 2_000
_LETTERS_PER_CALL = 1_000
_OK = range(200, 300)
# Before records are sent again: a store that is restarted by its watcher is back within a second.
_PAUSES_S = (0.2, 1.0)


@dataclass(frozen=True)
class Config:
    """Where the platform is and which key opens it.

    ``api_url`` is the whole commit URL, ``api_base`` the definition service, ``query_url`` the query server.
    """

    api_url: str = "http://localhost:8080/api/v1/commit"
    api_base: str = "http://localhost:8080"
    query_url: str = "http://localhost:8081"
    frontend_url: str = ""
    api_key: str = ""

    @classmethod
    def load(cls, path: str | Path | None = None) -> Config:
        """Environment, then file, then ``~/.thyme/credentials``, then the defaults.

        Args:
            path: a YAML file; left out, ``.thyme.yaml`` here, else ``~/.thyme.yaml``.

        Raises:
            ConfigError: a file is named and missing, or cannot be read.
        """
        layers = (_credentials(), _file(path), _environment())
        merged: dict[str, str] = {}
        for layer in layers:
            # A base without a commit URL means the one below that base.
            if "api_base" in layer and "api_url" not in layer:
                merged["api_url"] = layer["api_base"].rstrip("/") + _COMMIT
            merged.update(layer)
        return cls(**merged)

    def with_overrides(self, **given: str | None) -> Config:
        """The same with every given non-empty value in place."""
        return replace(self, **{name: value for name, value in given.items() if value})

    def auth_headers(self) -> dict[str, str]:
        """The header that carries the key, if there is one."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def query_run_url(self, run_id: str) -> str:
        """The page of a query run; empty without a front end."""
        return f"{self.frontend_url.rstrip('/')}/query-runs/{run_id}" if self.frontend_url else ""

    def __repr__(self) -> str:
        key = "***" if self.api_key else ""
        return f"Config(api_base={self.api_base!r}, query_url={self.query_url!r}, api_key={key!r})"


def credentials_path() -> Path:
    """The file in which the first start of a platform leaves its key."""
    return Path.home() / ".thyme" / "credentials"


def base_of(url: str) -> str:
    """A base URL; the whole commit URL is taken for its base, since one variable is used for both."""
    return url.rstrip("/").removesuffix(_COMMIT)


class ThymeClient:
    """A client of the definition service and the query server; use it as a context manager, or close it.

    Args:
        config: where and with which key; left out, :meth:`Config.load`.
        transport: another way to send, for tests.
    """

    def __init__(self, config: Config | None = None, *, transport: httpx2.BaseTransport | None = None) -> None:
        self.config = config or Config.load()
        self._http = httpx2.Client(timeout=_TIMEOUT_S, headers=self.config.auth_headers(), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def commit(self, commit: Commit) -> CommitReceipt:
        """Send definitions.

        Raises:
            DefinitionError: they are wrong; every problem is listed and nothing was committed.
            BreakingChange: an existing ``(name, version)`` would change its meaning.
        """
        headers = {"Content-Type": "application/json"}
        answer = self._send("POST", self.config.api_url, content=commit.model_dump_json(), headers=headers)
        return _understood(answer, CommitReceipt.model_validate)

    def query(
        self,
        featureset: Any,
        entity_id: Any,
        inputs: Mapping[str, Any] | None = None,
        *,
        timestamp: str | float | datetime | None = None,
    ) -> ThymeResult:
        """Features of one entity: one row.

        Args:
            featureset: its class or name.
            entity_id: the entity's id.
            inputs: values of its requested features.
            timestamp: read as of this instant; left out, now.

        Raises:
            NotFound: there is no such featureset.
        """
        name = _name(featureset)
        if inputs:
            body = {"featureset": name, "entity_id": str(entity_id), "inputs": dict(inputs)}
            if timestamp is not None:
                body["timestamp"] = _instant_text(timestamp)
            answer = self._send("POST", self._query_url("/features"), json=_plain(body))
        else:
            parameters = {"featureset": name, "entity_id": str(entity_id)}
            answer = self._send("GET", self._query_url("/features"), params=_with_instant(parameters, timestamp))
        return _one_row(answer)

    def query_batch(
        self, featureset: Any, entity_ids: Sequence[Any], inputs: Mapping[str, Any] | None = None
    ) -> ThymeResult:
        """Features of many entities: one row each, in the order asked.

        Raises:
            NotFound: there is no such featureset.
        """
        columns: list[str] = ["entity_id"]
        rows: list[list[Any]] = []
        run_id = ""
        for chunk in _chunks([str(each) for each in entity_ids]):
            body: dict[str, Any] = {"featureset": _name(featureset), "entity_ids": chunk}
            if inputs:
                body["inputs"] = dict(inputs)
            answer = self._send("POST", self._query_url("/features/batch"), json=_plain(body))
            answered, values = _understood(answer, lambda tree: (list(tree["features"]), list(tree["values"])))
            columns = answered or columns
            rows += values
            run_id = answer.headers.get("X-Query-Run-Id", "")
        return ThymeResult(columns, rows, {"featureset": _name(featureset)}, run_id)

    def lookup(self, dataset: Any, entity_id: Any, *, timestamp: str | float | datetime | None = None) -> ThymeResult:
        """The row of a dataset for one key: one row, or none when the key is unknown."""
        parameters = _with_instant({"entity_type": _name(dataset), "entity_id": str(entity_id)}, timestamp)
        return _one_row(self._send("GET", self._query_url("/features"), params=parameters))

    def log(self, dataset: Any, data: Any, *, idempotency_key: str = "") -> int:
        """Append records to a dataset: a mapping, a row object, or a list of either. How many were taken.

        A service that does not answer, or says that it cannot now, is asked again, twice: the records are taken once
        however often they are sent.

        Args:
            dataset: its class or name.
            data: the records.
            idempotency_key: what identifies these records, 1 to 255 visible ASCII characters, for calls that you
                repeat yourself; left out, each call makes one.

        Raises:
            IdempotencyConflict: the key was used before, for other records.
        """
        rows = data if isinstance(data, list | tuple) else [data]
        body = {"dataset": _name(dataset), "events": [_plain(_record(row)) for row in rows]}
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        for pause_s in (*_PAUSES_S, None):
            try:
                answer = self._send("POST", self._api_url("/api/v1/log"), json=body, headers=headers)
            except (ServiceUnavailable, StoreUnavailable) as error:
                if pause_s is None or not error.retryable:
                    raise
                time.sleep(pause_s)
            else:
                return _understood(answer, lambda tree: int(tree["events_sent"]) + int(tree.get("duplicates", 0)))
        raise AssertionError  # the last round returns or raises

    def dead_letters(self, dataset: Any, *, reason: str = "", limit: int = 100) -> list[dict[str, Any]]:
        """Records a dataset could not take, as they came, and why; newest first.

        Args:
            dataset: its class or name.
            reason: only those with this reason.
            limit: most letters.
        """
        found: list[dict[str, Any]] = []
        cursor: str | None = ""
        while cursor is not None and len(found) < limit:
            some = min(limit - len(found), _LETTERS_PER_CALL)
            filters = {"dataset": _name(dataset), "reason": reason, "limit": some, "cursor": cursor}
            page, cursor = self._get(
                self._api_url("/api/v1/dead-letters"),
                filters,
                read=lambda tree: (_listed(tree["dead_letters"]), tree["cursor"]),
            )
            found += page
        return found

    def replay_dead_letters(
        self, dataset: Any, ids: Sequence[str] | None = None, *, reason: str = ""
    ) -> dict[str, int]:
        """Pass dead letters through their dataset's door again, under the definition of today.

        Args:
            dataset: its class or name.
            ids: which; left out, all of them.
            reason: only those with this reason.

        Returns:
            How many were ``accepted``, were ``duplicates``, came ``late``, ``failed`` again, or were ``missing``.
        """
        answer = self._send("POST", self._api_url("/api/v1/dead-letters/replay"), json=_chosen(dataset, ids, reason))
        return _understood(answer, lambda tree: {str(name): int(count) for name, count in tree.items()})

    def drop_dead_letters(self, dataset: Any, ids: Sequence[str] | None = None, *, reason: str = "") -> int:
        """Remove dead letters for good: those of ``ids``, or all, with the reason where one is given. How many."""
        answer = self._send("POST", self._api_url("/api/v1/dead-letters/drop"), json=_chosen(dataset, ids, reason))
        return _understood(answer, lambda tree: int(tree["dropped"]))

    def erase(self, dataset: Any, entity_ids: Sequence[Any], *, block: bool = False) -> int:
        """Erase everything accepted of some entities of a dataset; how many different ones were named.

        Args:
            dataset: its class or name.
            entity_ids: values of its key, at most 10,000.
            block: refuse records of these entities from now on.

        Raises:
            NotFound: there is no such dataset.
            InvalidRequest: a pipeline makes the dataset, or an id does not fit its key.
        """
        return int(self.begin_erasure(dataset, entity_ids, block=block)["entities_erased"])

    def begin_erasure(self, dataset: Any, entity_ids: Sequence[Any], *, block: bool = False) -> dict[str, Any]:
        """Like :meth:`erase`; the answer whole, whose ``erasure_id`` :meth:`erasure` takes."""
        ids = [each if type(each) is int else str(each) for each in entity_ids]
        body = {"dataset": _name(dataset), "entity_ids": ids, "block": block}
        return _understood(self._send("POST", self._api_url("/api/v1/erase"), json=body), dict)

    def erasure(self, erasure_id: str) -> dict[str, Any]:
        """How far an erasure got.

        Raises:
            NotFound: there is none of that id.
        """
        return self._get(self._api_url("/api/v1/erasures/" + quote(erasure_id, safe="")), read=dict)

    def erasures(self, *, limit: int = 100) -> list[dict[str, Any]]:
        """The latest erasures, newest first."""
        return self._get(self._api_url("/api/v1/erasures"), {"limit": limit}, read=_listed)

    def status(self) -> dict[str, Any]:
        """What is committed and how it runs."""
        return self._get(self._api_url("/api/v1/status"), read=dict)

    def inspect(self, featureset: Any = None) -> dict[str, Any]:
        """One featureset of the status, or the whole status.

        Raises:
            ValueError: there is no such featureset.
        """
        status = self.status()
        if featureset is None:
            return status
        name = _name(featureset)
        for entry in status.get("featuresets", []):
            if entry.get("name") == name:
                return dict(entry)
        message = f"there is no featureset {name!r}"
        raise ValueError(message)

    def events(
        self,
        *,
        limit: int = 50,
        severity: str | None = None,
        event_type: str | None = None,
        subject: str | None = None,
    ) -> list[dict[str, Any]]:
        """Entries of the platform's feed, newest first."""
        filters = {"limit": limit, "severity": severity, "event_type": event_type, "subject": subject}
        return self._get(self._api_url("/api/v1/events"), filters, read=_listed)

    def sources(self) -> list[dict[str, Any]]:
        """What feeds the datasets, and how far each has got."""
        return self._get(self._api_url("/api/v1/sources"), read=_listed)

    def jobs(self) -> list[dict[str, Any]]:
        """The pipelines that run, and how far behind their inputs they are."""
        return self._get(self._api_url("/api/v1/jobs"), read=_listed)

    def scale_job(self, job: str, partition_count: int) -> dict[str, Any]:
        """Give a pipeline another number of workers, 1 to 64; the job as it is known now.

        Raises:
            NotFound: there is no such job.
            InvalidRequest: the number is out of range, or several versions have the name: ``by_rider@2`` names one.
        """
        url = self._api_url("/api/v1/jobs/" + quote(job, safe="@"))
        return _understood(self._send("PATCH", url, json={"partition_count": partition_count}), dict)

    def input_types(self, featureset: Any) -> dict[str, str]:
        """The declared type of each request-time feature of a featureset; empty when there is no such featureset."""
        name = _name(featureset)
        found = self._get(self._query_url("/api/v1/featuresets"), read=_listed)
        features = [f for each in found if each.get("name") == name for f in each.get("spec", {}).get("features", [])]
        return {each["name"]: each["dtype"] for each in features if each.get("request")}

    def query_runs(self, *, limit: int = 100, featureset: Any = None) -> list[dict[str, Any]]:
        """The audit of reads, newest first."""
        filters = {"limit": limit, "featureset": _name(featureset) if featureset is not None else None}
        return self._get(self._query_url("/query-runs"), filters, read=lambda tree: _listed(tree["runs"]))

    def query_run(self, run_id: str) -> dict[str, Any]:
        """The audit of one read.

        Raises:
            NotFound: it is unknown, or not written down yet: the audit follows the answer.
        """
        return self._get(self._query_url(f"/query-runs/{run_id}"), read=dict)

    def replay(self, run_id: str) -> dict[str, Any]:
        """Ask a recorded read again."""
        return _understood(self._send("POST", self._query_url(f"/query-runs/{run_id}/replay")), dict)

    def is_up(self, base: str) -> bool:
        """Whether a service answers on its health path."""
        try:
            # Something else on that port may answer the path too, with a page of its own.
            self._get(f"{base_of(base)}/health", read=lambda tree: tree["status"])
        except ThymeError:
            return False
        return True

    def _query_url(self, path: str) -> str:
        return self.config.query_url.rstrip("/") + path

    def _api_url(self, path: str) -> str:
        return base_of(self.config.api_base) + path

    def _get(self, url: str, parameters: Mapping[str, Any] | None = None, *, read: Callable[[Any], T]) -> T:
        given = {name: value for name, value in (parameters or {}).items() if value is not None}
        return _understood(self._send("GET", url, params=given), read)

    def _send(self, method: str, url: str, **content: Any) -> httpx2.Response:
        try:
            answer = self._http.request(method, url, **content)
        except httpx2.InvalidURL as error:
            message = f"{url!r} is not a URL: {error}"
            raise ConfigError(message) from None
        except httpx2.RequestError as error:
            message = f"{url} does not answer: {error}"
            raise ServiceUnavailable(message) from error
        if answer.status_code not in _OK:
            raise error_of(answer)
        return answer


def _understood(answer: httpx2.Response, read: Callable[[Any], T]) -> T:
    """What ``read`` makes of an answer's JSON.

    Raises:
        ServiceUnavailable: it is not JSON, or not of the form a service of the platform gives.
    """
    try:
        return read(answer.json())
    except (ValueError, TypeError, KeyError, AttributeError):
        start = answer.text[:60]
        message = f"{answer.url} answered, but not as a service of the platform does; it begins {start!r}"
        raise ServiceUnavailable(message) from None


def _listed(tree: Any) -> list[dict[str, Any]]:
    if not isinstance(tree, list):
        raise TypeError("not a list")
    return [dict(each) for each in tree]


def error_of(answer: httpx2.Response) -> ThymeError:
    """The error an answer stands for: by its code, else by its status."""
    try:
        body = answer.json()
    except ValueError:
        body = {}
    body = body if isinstance(body, dict) else {}
    text = str(body.get("message") or body.get("detail") or answer.text[:500] or answer.reason_phrase)
    error = _rebuilt(str(body.get("error", "")), answer.status_code, text, body.get("details"))
    if body.get("correlation_id"):
        error.add_note(f"correlation id: {body['correlation_id']}")
    return error


def _rebuilt(code: str, status: int, text: str, details: Any) -> ThymeError:
    listed: tuple[type[DefinitionError], ...] = (BreakingChange, DefinitionError)
    for kind in listed:
        if code == kind.code and isinstance(details, list):
            return kind([_problem(each) for each in details])
    known = _BY_CODE.get(code)
    if known is not None:
        return known(text)
    named = f"{code}: {text}" if code else f"HTTP {status}: {text}"
    if status in _CLIENT_ERRORS:
        return InvalidRequest(named)
    return StoreUnavailable(named) if status in _UNAVAILABLE else ThymeError(named)


def _simple_errors(kind: type[ThymeError]) -> Iterator[type[ThymeError]]:
    """Classes that are made from one text."""
    for each in kind.__subclasses__():
        if each.__init__ is Exception.__init__:
            yield each
        yield from _simple_errors(each)


_CLIENT_ERRORS = range(400, 500)
_UNAVAILABLE = frozenset({502, 503, 504})
# A class that shares its parent's code comes after it here, and is the more exact of the two.
_BY_CODE: dict[str, type[ThymeError]] = {kind.code: kind for kind in _simple_errors(ThymeError)}


def _problem(tree: Mapping[str, Any]) -> Problem:
    return Problem(**{name: tree[name] for name in Problem._fields if name in tree})


def _one_row(answer: httpx2.Response) -> ThymeResult:
    run_id = answer.headers.get("X-Query-Run-Id", "")
    return _understood(answer, lambda tree: _row_of(tree, run_id))


def _row_of(tree: dict[str, Any], run_id: str) -> ThymeResult:
    features = tree.pop("features")
    metadata = {**tree.pop("metadata", {}), **tree}
    if features is None:
        return ThymeResult(["entity_id"], [], metadata, run_id)
    rest = {name: value for name, value in features.items() if name != "entity_id"}
    return ThymeResult(["entity_id", *rest], [[tree["entity_id"], *rest.values()]], metadata, run_id)


def _name(thing: Any) -> str:
    return thing.__name__ if isinstance(thing, type) else str(thing)


def _chosen(dataset: Any, ids: Sequence[str] | None, reason: str) -> dict[str, Any]:
    """The body that says which dead letters."""
    which: dict[str, Any] = {"all": True} if ids is None else {"ids": list(ids)}
    return {"dataset": _name(dataset), "reason": reason, **which}


def _chunks(ids: list[str]) -> Iterator[list[str]]:
    yield from (ids[start : start + _IDS_PER_CALL] for start in range(0, len(ids), _IDS_PER_CALL))


def _record(row: Any) -> Mapping[str, Any]:
    """A record as a mapping; a row object of a declared dataset is a dataclass."""
    return asdict(row) if is_dataclass(row) and not isinstance(row, type) else dict(row)


def _plain(value: Any) -> Any:
    """The value with instants as text, as JSON takes it."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return format_instant(parse_instant(value)) if isinstance(value, datetime) else value


def _with_instant(parameters: dict[str, str], timestamp: Any) -> dict[str, str]:
    return parameters if timestamp is None else {**parameters, "timestamp": _instant_text(timestamp)}


def _instant_text(timestamp: Any) -> str:
    # Read here too, so that a wrong one fails before the call; the service reads it again.
    instant: Instant = parse_instant(timestamp)
    return format_instant(instant)


_KEYS = ("api_url", "api_base", "query_url", "frontend_url", "api_key")


def _environment() -> dict[str, str]:
    found = {name: os.environ.get(f"THYME_{name.upper()}", "") for name in _KEYS}
    return {name: value for name, value in found.items() if value}


def _credentials() -> dict[str, str]:
    path = credentials_path()
    if not path.exists():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{path}: {error}"
        raise ConfigError(message) from None
    known = ("api_key", "api_base", "query_url")
    return {name: str(tree[name]) for name in known if isinstance(tree, dict) and tree.get(name)}


def _file(path: str | Path | None) -> dict[str, str]:
    candidates = [Path(path)] if path else [Path(".thyme.yaml"), Path.home() / ".thyme.yaml"]
    chosen = next((each for each in candidates if each.exists()), None)
    if chosen is None:
        if path is None:
            return {}
        message = f"{path} does not exist"
        raise ConfigError(message)
    try:
        tree = dict(_settings(chosen.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        message = f"{chosen}: {error}"
        raise ConfigError(message) from None
    nested = {"definition_service.url": "api_base", "query_server.url": "query_url"}
    named = {nested.get(name, name): value for name, value in tree.items() if value}
    unknown = sorted(named.keys() - set(_KEYS))
    if unknown:
        message = f"{chosen}: unknown key {unknown[0]!r}"
        raise ConfigError(message)
    return named


def _settings(text: str) -> Iterator[tuple[str, str]]:
    """The scalars of a YAML mapping at most one level deep, which is all this file holds; ``outer.inner`` for nested.

    Raises:
        ValueError: naming the first line that is anything else.
    """
    outer = ""
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split(" #")[0].rstrip()
        if not line or line.lstrip().startswith("#") or line == "---":
            continue
        name, colon, value = line.partition(":")
        nested = line[0] in " \t"
        if not colon or (value and not value.startswith(" ")) or (nested and not outer):
            message = f"line {number} is not `name: value`"
            raise ValueError(message)
        if not value.strip() and not nested:
            outer = name.strip()
            continue
        outer = outer if nested else ""
        yield (f"{outer}.{name.strip()}" if nested else name.strip()), value.strip().strip("\"'")
