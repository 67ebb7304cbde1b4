"""Records: sent to datasets, refused by them, erased from them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from featurelib.client.frames import plain, record, rows_of
from featurelib.client.operations import Endpoints, Operation, name_of, named
from featurelib.client.parts import arrow_parts, line_parts
from featurelib.client.wire import ARROW, LINES, Steps, listed

_LETTERS_PER_CALL = 1_000
_COUNTS = ("events_sent", "duplicates", "late", "rejected", "erased")
_MOST_PROBLEMS = 100
# A log without room makes the service wait for the archive before it gives up.
_PART_TIMEOUT_S = 60.0


class Records(Endpoints):
    """Operations on the records of datasets."""

    @Operation
    def log(self, dataset: Any, data: Any, *, idempotency_key: str = "") -> Steps[int]:
        """Append records to a dataset; how many were taken.

        They are taken once, however often this call sends them when a service does not answer, or says that it cannot.

        Args:
            dataset: its class or name.
            data: a mapping, a row object, a list of either, or a Polars, pandas or Arrow table.
            idempotency_key: what identifies these records, 1 to 255 visible ASCII characters, for calls that you
                repeat yourself; left out, each call makes one.

        Raises:
            IdempotencyConflict: the key was used before, for other records.
        """
        single = isinstance(data, Mapping) or is_dataclass(data)
        rows = [record(data)] if single else rows_of(data)
        body = {"dataset": name_of(dataset), "events": [plain(row) for row in rows]}
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        answer = yield self.post("/api/v1/log", body, headers=headers, repeatable=True)
        return answer.read(lambda tree: int(tree["events_sent"]) + int(tree.get("duplicates", 0)))

    @Operation
    def log_arrow(self, dataset: Any, data: Any, *, idempotency_key: str = "") -> Steps[dict[str, Any]]:
        """Append a table of any size to a dataset, in Arrow's form: for many records the quickest.

        It is sent in parts, each of which is taken once, however often it is sent. The same table sent again under the
        same key adds nothing, or what is missing.

        Args:
            dataset: its class or name.
            data: an Arrow table, batch or reader of batches, or a Polars or pandas table.
            idempotency_key: as for :meth:`log`, up to 240 characters.

        Returns:
            What became of them: ``records``, of which ``events_sent`` were accepted, ``duplicates`` held already,
            ``rejected``, ``erased``; ``late`` ones among those accepted; the first hundred ``problems``, with the
            ``row``, ``reason``, ``field`` and ``message`` of each.
        """
        return (yield from _in_parts(self, name_of(dataset), arrow_parts(data), ARROW, idempotency_key))

    @Operation
    def log_lines(self, dataset: Any, lines: Iterable[Any], *, idempotency_key: str = "") -> Steps[dict[str, Any]]:
        """Append lines of JSON, one record on each, of any number; like :meth:`log_arrow` otherwise.

        Args:
            dataset: its class or name.
            lines: text or bytes of lines, as an open file gives them; mappings are written as lines.
            idempotency_key: as for :meth:`log_arrow`.
        """
        texts = (json.dumps(plain(each)) if isinstance(each, Mapping) else each for each in lines)
        return (yield from _in_parts(self, name_of(dataset), line_parts(texts), LINES, idempotency_key))

    @Operation
    def dead_letters(self, dataset: Any, *, reason: str = "", limit: int = 100) -> Steps[list[dict[str, Any]]]:
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
            filters = {"dataset": name_of(dataset), "reason": reason, "limit": some, "cursor": cursor}
            answer = yield self.get("/api/v1/dead-letters", **filters)
            page, cursor = answer.read(lambda tree: (listed(tree["dead_letters"]), tree["cursor"]))
            found += page
        return found

    @Operation
    def replay_dead_letters(
        self, dataset: Any, ids: Sequence[str] | None = None, *, reason: str = ""
    ) -> Steps[dict[str, int]]:
        """Pass dead letters through their dataset's door again, under the definition of today.

        Args:
            dataset: its class or name.
            ids: which; left out, all of them.
            reason: only those with this reason.

        Returns:
            How many were ``accepted``, were ``duplicates``, came ``late``, ``failed`` again, or were ``missing``.
        """
        answer = yield self.post("/api/v1/dead-letters/replay", _chosen(dataset, ids, reason))
        return answer.read(lambda tree: {str(name): int(count) for name, count in tree.items()})

    @Operation
    def drop_dead_letters(self, dataset: Any, ids: Sequence[str] | None = None, *, reason: str = "") -> Steps[int]:
        """Remove dead letters for good: those of ``ids``, or all, with the reason where one is given. How many."""
        answer = yield self.post("/api/v1/dead-letters/drop", _chosen(dataset, ids, reason))
        return answer.read(lambda tree: int(tree["dropped"]))

    @Operation
    def erase(self, dataset: Any, entity_ids: Sequence[Any], *, block: bool = False) -> Steps[int]:
        """Erase everything accepted of some entities of a dataset; how many different ones were named.

        Args:
            dataset: its class or name.
            entity_ids: values of its key, at most 10,000.
            block: refuse records of these entities from now on.

        Raises:
            NotFound: there is no such dataset.
            InvalidRequest: a pipeline makes the dataset, or an id does not fit its key.
        """
        answer = yield from _erasing(self, dataset, entity_ids, block=block)
        return int(answer["entities_erased"])

    @Operation
    def begin_erasure(self, dataset: Any, entity_ids: Sequence[Any], *, block: bool = False) -> Steps[dict[str, Any]]:
        """Like ``erase``; the answer whole, whose ``erasure_id`` :meth:`erasure` takes."""
        return (yield from _erasing(self, dataset, entity_ids, block=block))

    @Operation
    def erasure(self, erasure_id: str) -> Steps[dict[str, Any]]:
        """How far an erasure got.

        Raises:
            NotFound: there is none of that id.
        """
        return (yield self.get(f"/api/v1/erasures/{named(erasure_id)}")).read(dict)

    @Operation
    def erasures(self, *, limit: int = 100) -> Steps[list[dict[str, Any]]]:
        """The latest erasures, newest first."""
        return (yield self.get("/api/v1/erasures", limit=limit)).read(listed)


def _in_parts(
    service: Endpoints, dataset: str, parts: Iterable[bytes], content_type: str, idempotency_key: str
) -> Steps[dict[str, Any]]:
    key = idempotency_key or uuid.uuid4().hex
    total: dict[str, Any] = {**dict.fromkeys(("records", *_COUNTS), 0), "problems": []}
    for number, part in enumerate(parts):
        answer = yield service.post(
            "/api/v1/log",
            part,
            parameters={"dataset": dataset},
            headers={"Idempotency-Key": f"{key}.{number}"},
            content_type=content_type,
            repeatable=True,
            read_timeout_s=_PART_TIMEOUT_S,
        )
        _add(total, answer.read(dict))
    return total


def _add(total: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Count what became of a part; its rows are counted from the first part's first."""
    before = total["records"]
    total["records"] += sum(int(run["records"]) for run in part["outcomes"])
    for name in _COUNTS:
        total[name] += int(part[name])
    problems = ({**each, "row": before + int(each["row"])} for each in part["problems"])
    total["problems"] += list(problems)[: _MOST_PROBLEMS - len(total["problems"])]


def _erasing(service: Endpoints, dataset: Any, entity_ids: Sequence[Any], *, block: bool) -> Steps[dict[str, Any]]:
    ids = [each if type(each) is int else str(each) for each in entity_ids]
    body = {"dataset": name_of(dataset), "entity_ids": ids, "block": block}
    answer = yield service.post("/api/v1/erase", body)
    return answer.read(lambda tree: {**tree, "entities_erased": int(tree["entities_erased"])})


def _chosen(dataset: Any, ids: Sequence[str] | None, reason: str) -> dict[str, Any]:
    """The body that says which dead letters."""
    which: dict[str, Any] = {"all": True} if ids is None else {"ids": list(ids)}
    return {"dataset": name_of(dataset), "reason": reason, **which}
