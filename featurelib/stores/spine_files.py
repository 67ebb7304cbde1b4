"""The folder of one large offline read: its order, the rows to read, what was read of them, and how it ended.

    order.json       what to read, and of which records
    spine-3.parquet  the rows of partition 3, in the order asked: __row, __id, __at, __inputs
    rows-3.parquet   the same rows as they were read: __row, __key, __at, and a column per feature
    outcome.json     how many rows were read, or what failed

Ids and inputs are JSON as they were sent. Whoever makes a folder removes it; one whose maker died is removed by the
next that is made beside it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from featurelib import errors
from featurelib.clock import DAY, Instant
from featurelib.definitions import Record
from featurelib.engine.asof import Knowledge
from featurelib.engine.feature_columns import Asking
from featurelib.engine.keys import key_group, owner_of_group
from featurelib.engine.read_plan import ReadPlan
from featurelib.errors import StoreUnavailable, ThymeError
from featurelib.types import Value

ROW, KEY, AT = "__row", "__key", "__at"
_ID, _INPUTS = "__id", "__inputs"
SPINE_SCHEMA = pa.schema([(ROW, pa.int64()), (_ID, pa.string()), (AT, pa.int64()), (_INPUTS, pa.string())])
_ORDER, _OUTCOME = "order.json", "outcome.json"
# Longer than any read takes, even one whose job waited for others.
_ABANDONED_US = DAY
# A window of an answer: some megabytes of a wide featureset.
_ROWS_AT_ONCE = 8_192
# Rows are read once and then deleted.
_QUICK = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}


class Order(Record):
    """What to read.

    ``registry_version`` is that of the definitions; ``cut`` is, per dataset, where its log stops; ``partitions`` is in
    how many parts the spine lies here.
    """

    featureset: str
    registry_version: int
    knowledge: Knowledge
    cut: dict[str, tuple[int, ...]]
    partitions: int


class Asked(NamedTuple):
    """One row of a spine, as it was sent."""

    row: int
    id: Any
    at: Instant
    inputs: dict[str, Any]


class Outcome(Record):
    """How a read ended: rows, and those with every feature non-null; or the error and what makes it again."""

    rows: int = 0
    hits: int = 0
    error: str | None = None
    arguments: tuple[Any, ...] = ()

    @classmethod
    def failed(cls, error: ThymeError) -> Outcome:
        """The outcome of a read that an error ended."""
        return cls(error=type(error).__name__, arguments=error.args)

    def check(self) -> None:
        """Raise the error that ended the read, if one did."""
        if self.error is not None:
            raise getattr(errors, self.error)(*self.arguments)


class SpineFolder:
    """One read's folder.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when the folder cannot be
    read or written.

    Args:
        root: a folder or an object-store URL, of all such folders.
        name: this one's.
    """

    def __init__(self, root: str, name: str) -> None:
        self.name = name
        self._files, self._path = _opened(root, name)

    @classmethod
    def create(cls, root: str, now: Instant) -> SpineFolder:
        """Make a folder, and remove those that were abandoned beside it."""
        folder = cls(root, f"{now}-{uuid.uuid4().hex}")
        with telling(folder.name):
            folder._files.create_dir(folder._path, recursive=True)
            folder._remove_made_before(now - _ABANDONED_US)
        return folder

    def put(self, order: Order, asked: Sequence[Asked], keys: Sequence[str]) -> None:
        """Write the spine, split by the key groups of ``keys`` (the rows' key texts), and then the order."""
        parts: list[list[Asked]] = [[] for _ in range(order.partitions)]
        for each, key in zip(asked, keys, strict=True):
            parts[owner_of_group(key_group(key), order.partitions)].append(each)
        with telling(self.name):
            for number, part in enumerate(parts):
                pq.write_table(_spine_table(part), self._file(f"spine-{number}.parquet"), filesystem=self._files)
        self._write(_ORDER, order.model_dump_json())

    def order(self) -> Order:
        """What to read."""
        return Order.model_validate_json(self._read(_ORDER))

    def spine(self, partition: int) -> pa.Table:
        """The rows of a partition, in order: ``__row``, ``__id``, ``__at`` and ``__inputs``."""
        name = self._file(f"spine-{partition}.parquet")
        with telling(self.name), pq.ParquetFile(name, filesystem=self._files) as file:
            return file.read()

    def write_rows(self, partition: int, rows: pa.Table) -> None:
        """Write what was read of a partition. The file is never half there."""
        whole, part = self._file(f"rows-{partition}.parquet"), self._file(f"rows-{partition}.part")
        with telling(self.name):
            with pq.ParquetWriter(part, rows.schema, filesystem=self._files, **_QUICK) as writer:
                writer.write_table(rows, _ROWS_AT_ONCE)
            self._files.move(part, whole)

    def rows(self, partitions: int) -> Iterator[pa.Table]:
        """What was read of all partitions, in the order asked, some rows at a time; at least one table."""
        parts = [PartRows(self._batches(f"rows-{number}.parquet", _ROWS_AT_ONCE)) for number in range(partitions)]
        stop = 0
        while True:
            stop += _ROWS_AT_ONCE
            window = pa.concat_tables([part.below(stop) for part in parts]).sort_by(ROW)
            done = all(part.is_done for part in parts)
            if len(window) or done:
                yield window
            if done:
                return

    def end(self, outcome: Outcome) -> None:
        """Say how the read ended."""
        self._write(_OUTCOME, outcome.model_dump_json())

    def outcome(self) -> Outcome | None:
        """How the read ended; ``None``: nobody said."""
        with telling(self.name):
            found = self._files.get_file_info(self._file(_OUTCOME))
        if found.type == fs.FileType.NotFound:
            return None
        return Outcome.model_validate_json(self._read(_OUTCOME))

    def remove(self) -> None:
        """Delete the folder and everything in it."""
        with telling(self.name):
            self._files.delete_dir(self._path)

    def _remove_made_before(self, instant: Instant) -> None:
        for info in self._files.get_file_info(fs.FileSelector(self._path.rpartition("/")[0])):
            made, _, name = info.base_name.partition("-")
            if name and made.isdigit() and int(made) < instant:
                self._files.delete_dir(info.path)

    def _file(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _batches(self, name: str, rows: int) -> Iterator[pa.RecordBatch]:
        with telling(self.name), pq.ParquetFile(self._file(name), filesystem=self._files) as file:
            if not file.metadata.num_rows:
                yield pa.RecordBatch.from_pylist([], schema=file.schema_arrow)
            yield from file.iter_batches(rows)

    def _write(self, name: str, text: str) -> None:
        with telling(self.name):
            with self._files.open_output_stream(self._file(f"{name}.part")) as file:
                file.write(text.encode())
            self._files.move(self._file(f"{name}.part"), self._file(name))

    def _read(self, name: str) -> bytes:
        with telling(self.name), self._files.open_input_stream(self._file(name)) as file:
            return bytes(file.read())


class PartRows:
    """The rows of one partition, taken in the order asked."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._held = pa.Table.from_batches([next(batches)])
        self._exhausted = False

    def below(self, row: int) -> pa.Table:
        """The rows not yet taken that were asked for before ``row``."""
        while not len(self._held) or self._held[ROW][-1].as_py() < row:
            batch = next(self._batches, None)
            if batch is None:
                self._exhausted = True
                break
            self._held = pa.concat_tables([self._held, pa.Table.from_batches([batch])])
        count = int(np.searchsorted(self._held[ROW].to_numpy(), row))
        taken, self._held = self._held.slice(0, count), self._held.slice(count)
        return taken

    @property
    def is_done(self) -> bool:
        """Whether every row was taken."""
        return self._exhausted and not len(self._held)


def _spine_table(part: Sequence[Asked]) -> pa.Table:
    columns = (
        [each.row for each in part],
        [json.dumps(each.id) for each in part],
        [each.at for each in part],
        [json.dumps(each.inputs) if each.inputs else None for each in part],
    )
    return pa.table(
        [pa.array(column, kind) for column, kind in zip(columns, SPINE_SCHEMA.types, strict=True)], schema=SPINE_SCHEMA
    )


def asking_of(plan: ReadPlan, spine: pa.Table) -> Asking:
    """What the rows of a partition ask for; each distinct id and each distinct set of inputs is read once.

    Raises:
        InvalidRequest: one does not fit.
    """
    ids = spine[_ID].combine_chunks().dictionary_encode()
    # Parsed as one list: ten times as fast as one by one.
    entities = plan.key_form.read_all(json.loads(f"[{','.join(ids.dictionary.to_pylist())}]"))
    code = ids.indices.to_numpy().astype(np.int64)
    return Asking(entities, code, spine[AT].to_numpy(), _requested(plan, spine[_INPUTS]))


def _requested(plan: ReadPlan, inputs: pa.ChunkedArray) -> dict[int, list[Value]]:
    if not plan.request_names:
        return {}
    given = inputs.combine_chunks().fill_null("{}").dictionary_encode()
    values = [dict(plan.requested(json.loads(text))) for text in given.dictionary.to_pylist()]
    codes = given.indices.to_pylist()
    return {slot: [values[code][slot] for code in codes] for slot in values[0]} if values else {}


def _opened(root: str, name: str) -> tuple[fs.FileSystem, str]:
    if "://" not in root:
        return fs.LocalFileSystem(), str(Path(root).expanduser().resolve() / name)
    try:
        files, path = fs.FileSystem.from_uri(root)
    except (OSError, pa.ArrowException):  # whose text repeats the URL, which may hold a key of the object store
        raise StoreUnavailable("serving.offline_url cannot be opened: it is no URL of a store known here") from None
    return files, f"{path.rstrip('/')}/{name}"


@contextmanager
def telling(name: str) -> Iterator[None]:
    """Say of what cannot be read or written that it is a read's folder, of this name."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        message = f"the folder {name} of an offline read cannot be read or written: {error}"
        raise StoreUnavailable(message) from error
