"""The files of a training set: where it is made, and what it leaves.

    <output>/_manifest.json      what it is made of; the last thing written, so a folder without it is no training set
    <output>/data.parquet        the rows (data.arrow; a Delta table has files of its own)
    <output>/_work-<request>/    while it is made: a read's folder (spine_files.py), and beside its files
        given.parquet              the spine as it was given, in order
        data.parquet               the rows of the training set, while they are put together

The work folder is named for the request: the same command goes on where another one stopped. Everything in it is whole
or not there. What is asked of which records is fixed by its order, which is written when the spine is in its parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake
from deltalake.exceptions import DeltaError
from pyarrow import fs
from pydantic import ValidationError

from featurelib.clock import Instant
from featurelib.definitions import Record, canonical_bytes
from featurelib.engine.asof import Knowledge
from featurelib.engine.feature_columns import complete_rows
from featurelib.engine.keys import KEY_GROUPS, owner_of_group
from featurelib.engine.spine_columns import SpineRows
from featurelib.errors import Conflict, InvalidRequest, StoreUnavailable
from featurelib.stores.spine_files import (
    AT,
    KEY,
    ROW,
    SPINE_SCHEMA,
    Order,
    PartRows,
    SpineFolder,
    telling,
)
from featurelib.stores.spine_sources import SpineIdentity, file_digest, opened

Output = Literal["parquet", "arrow", "delta"]
MANIFEST = "_manifest.json"
_ORDER, _GIVEN, _DATA, _ARROW_DATA = "order.json", "given.parquet", "data.parquet", "data.arrow"
# Rows put together at once, which are a row group of the result: some 50 MB of a wide featureset; and those read at
# once of each of its parts.
_GROUP_ROWS, _PART_ROWS = 131_072, 32_768
_NOT_IN_DELTA = (pa.types.is_time, pa.types.is_float16, pa.types.is_duration, pa.types.is_interval, pa.types.is_union)
_CODEC = {"compression": "zstd", "compression_level": 1}
# Of what is read once and then deleted.
_QUICK = {"compression": "lz4", "use_dictionary": False, "write_statistics": False}


class TrainingRequest(Record):
    """What makes two requests the same: then they share a work folder.

    ``like`` is the digest of the manifest that a training set is to be made like; ``None``: of what there is now.
    """

    featureset: str
    spine: SpineIdentity
    entity_column: str
    timestamp_column: str
    knowledge: Knowledge
    output: Output
    like: str | None = None

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits."""
        return hashlib.sha256(canonical_bytes(self)).hexdigest()[:16]


class TrainingOrder(Order):
    """What to read, of which records, and what the result shall be like.

    Attributes:
        request: what was asked for.
        read_at: when the logs' ends were noted.
        definition: digest of every definition the rows depend on.
        tables: per dataset, the version its Delta table had then; -1 where it had none.
        rows: of the spine.
    """

    request: TrainingRequest
    read_at: Instant
    definition: str
    tables: dict[str, int]
    rows: int


class DatasetInput(Record):
    """Which records of a dataset were read.

    ``offsets``: per log partition, those below this one. ``table_version``: its Delta table's when they were noted;
    the records may have come into the table later.
    """

    offsets: tuple[int, ...]
    table_version: int


class DataFile(Record):
    """A file of a training set."""

    name: str
    bytes: int
    sha256: str


class Manifest(Record):
    """What a training set is, and what it was made of; the same for the same request of the same records.

    Attributes:
        format: of the manifest: 1.
        request: what was asked for.
        registry_version: of the definitions.
        definition: digest of those the rows depend on.
        code: versions of what computed and wrote the rows.
        read_at: when it was noted which records there are.
        inputs: those records, per dataset.
        columns: of the result, in order, with their Arrow types.
        rows: as many as the spine has.
        complete_rows: rows with every feature non-null.
        rows_sha256: of the rows as canonical Parquet, whatever the form of the result.
        files: those of the result; none of a Delta table, whose log names them.
    """

    format: Literal[1] = 1
    request: TrainingRequest
    registry_version: int
    definition: str
    code: dict[str, str]
    read_at: str
    inputs: dict[str, DatasetInput]
    columns: dict[str, str]
    rows: int
    complete_rows: int
    rows_sha256: str
    files: tuple[DataFile, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of it."""
        return hashlib.sha256(canonical_bytes(self)).hexdigest()


class Assembled(NamedTuple):
    """The rows of a training set, put together."""

    schema: pa.Schema
    rows: int
    complete: int
    sha256: str


class TrainingFolder(SpineFolder):
    """The work folder of a request, and the training set it becomes.

    Every method raises :class:`~featurelib.errors.StoreUnavailable`, which is retryable, when a folder cannot be read
    or written; a full disk is one of the reasons.

    Args:
        output: the folder of the training set, or an object-store URL.
        name: of the work folder in it.
    """

    def __init__(self, output: str, name: str) -> None:
        self.name = name
        self._files, self._output = opened(output, "output")
        self._url = self._output if isinstance(self._files, fs.LocalFileSystem) else output
        self._path = f"{self._output}/{name}"
        self._digest = ""

    @classmethod
    def of(cls, output: str, request: TrainingRequest) -> TrainingFolder:
        """The work folder of a request."""
        return cls(output, f"_work-{request.id}")

    def is_prepared(self) -> bool:
        """Whether the spine is in its parts, so that only they are left to be read."""
        return self._has(_ORDER)

    def begin(self) -> None:
        """Make the folder anew."""
        with telling(self.name):
            if self._files.get_file_info(self._path).type != fs.FileType.NotFound:
                self._files.delete_dir(self._path)
            self._files.create_dir(self._path, recursive=True)

    def put_spine(self, schema: pa.Schema, batches: Iterable[tuple[pa.RecordBatch, SpineRows]], partitions: int) -> int:
        """Keep a spine, and what its rows ask for, split by key group; returns how many rows it has."""
        count = 0
        with telling(self.name), ExitStack() as stack:
            given = stack.enter_context(self._writer(_GIVEN, schema, _QUICK))
            parts = [
                stack.enter_context(self._writer(f"spine-{number}.parquet", SPINE_SCHEMA, _QUICK))
                for number in range(partitions)
            ]
            for batch, rows in batches:
                given.write_batch(batch)
                count += len(batch)
                for number, table in _split(rows, partitions):
                    parts[number].write_table(table)
        return count

    def put_order(self, order: TrainingOrder) -> None:
        """Say what is read of which records: from here on it can be gone on with."""
        self._write(_ORDER, order.model_dump_json())

    def order(self) -> TrainingOrder:
        """What is read of which records."""
        try:
            return TrainingOrder.model_validate_json(self._read(_ORDER))
        except ValidationError:
            raise Conflict(f"{self.name} was begun by another version of the code; delete it and begin anew") from None

    def done(self, partition: int) -> bool:
        """Whether a part was read."""
        return self._has(f"rows-{partition}.parquet")

    def assemble(self, order: TrainingOrder) -> Assembled:
        """Put the spine and what was read of its parts together, in the order of the spine."""
        complete = 0
        parts = [PartRows(self._batches(f"rows-{number}.parquet", _PART_ROWS)) for number in range(order.partitions)]
        with telling(self.name), ExitStack() as stack:
            writer: _Behind | None = None
            for given, features in self._windows(parts):
                complete += complete_rows(features)
                rows = _joined(given, features)
                writer = writer or _Behind(
                    stack, stack.enter_context(self._writer(_DATA, rows.schema, _kept(rows.schema)))
                )
                writer.write(rows)
            assert writer is not None
            schema = writer.finish()
        with telling(self.name):
            self._digest = file_digest(self._files, self._file(_DATA))
        return Assembled(schema, order.rows, complete, self._digest)

    def manifest(self) -> Manifest | None:
        """The manifest of the training set that is there; ``None``: there is none."""
        if self._files.get_file_info(f"{self._output}/{MANIFEST}").type == fs.FileType.NotFound:
            return None
        return read_manifest(f"{self._url}/{MANIFEST}")

    def publish(self, output: Output) -> tuple[DataFile, ...]:
        """Put the rows where they belong; whatever was there before goes."""
        name = _ARROW_DATA if output == "arrow" else _DATA
        with telling(self.name):
            self._withdraw()
            if output == "delta":
                self._publish_delta()
                return ()
            if output == "arrow":
                self._write_arrow(name)
            found = self._files.get_file_info(self._file(name))
            digest = self._digest if name == _DATA else file_digest(self._files, self._file(name))
            self._files.move(self._file(name), f"{self._output}/{name}")
        return (DataFile(name=name, bytes=found.size, sha256=digest),)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest: the training set is there. The work folder goes."""
        self._write(MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        with telling(self.name):
            self._files.move(self._file(MANIFEST), f"{self._output}/{MANIFEST}")
        self.remove()

    def _withdraw(self) -> None:
        """Take away the manifest of a training set that is there, and then its files."""
        before = self.manifest()
        if before is not None:
            for name in (MANIFEST, *(each.name for each in before.files)):
                self._files.delete_file(f"{self._output}/{name}")

    def _windows(self, parts: Sequence[PartRows]) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Some rows of the spine at a time, and their features; at least once."""
        stop = 0
        for given in self._given():
            start, stop = stop, stop + len(given)
            # In one piece: rows are taken from many pieces at three times the cost.
            read = pa.concat_tables([part.below(stop) for part in parts]).combine_chunks()
            place = np.full(len(given), -1, dtype=np.int64)
            place[read[ROW].to_numpy() - start] = np.arange(len(read))
            # A row that asked for nothing has no place: null.
            index = pa.array(place, mask=place < 0)
            yield given, read.drop_columns([ROW, KEY, AT]).take(index)

    def _given(self) -> Iterator[pa.Table]:
        with pq.ParquetFile(self._file(_GIVEN), filesystem=self._files) as file:
            if not file.metadata.num_rows:
                yield file.schema_arrow.empty_table()
            for batch in file.iter_batches(_GROUP_ROWS):
                yield pa.Table.from_batches([batch])

    def _publish_delta(self) -> None:
        with pq.ParquetFile(self._file(_DATA), filesystem=self._files) as file:
            reader = pa.RecordBatchReader.from_batches(file.schema_arrow, file.iter_batches(_GROUP_ROWS))
            try:
                write_deltalake(self._url, reader, mode="overwrite", schema_mode="overwrite")
            except (DeltaError, OSError) as error:
                raise StoreUnavailable(f"the Delta table of the training set cannot be written: {error}") from error

    def _write_arrow(self, name: str) -> None:
        with (
            pq.ParquetFile(self._file(_DATA), filesystem=self._files) as file,
            self._files.open_output_stream(self._file(name)) as sink,
            pa.ipc.new_stream(sink, file.schema_arrow) as writer,
        ):
            for batch in file.iter_batches(_GROUP_ROWS):
                writer.write_batch(batch)

    def _writer(self, name: str, schema: pa.Schema, codec: Mapping[str, Any]) -> pq.ParquetWriter:
        return pq.ParquetWriter(self._file(name), schema, filesystem=self._files, **codec)

    def _has(self, name: str) -> bool:
        with telling(self.name):
            return bool(self._files.get_file_info(self._file(name)).type == fs.FileType.File)


class _Behind:
    """Writes row groups in a thread, one behind the one that is put together: half of the time goes into either."""

    def __init__(self, stack: ExitStack, writer: pq.ParquetWriter) -> None:
        self._writer = writer
        self._thread = stack.enter_context(ThreadPoolExecutor(1))
        self._writing: Future[None] | None = None

    def write(self, rows: pa.Table) -> None:
        """Write rows as the next row group, once the one before is written; raises what that one's writing did."""
        self._wait()
        self._writing = self._thread.submit(self._writer.write_table, rows)

    def finish(self) -> pa.Schema:
        """Wait for the last row group; returns the schema of the file."""
        self._wait()
        return self._writer.schema

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()


def check_storable(schema: pa.Schema, output: Output) -> None:
    """Refuse a column that the form of output has no type for.

    Raises:
        InvalidRequest: naming the column.
    """
    for field in schema:
        if output == "delta" and any(kind(field.type) for kind in _NOT_IN_DELTA):
            raise InvalidRequest(f"spine: the column {field.name!r} is {field.type}, which a Delta table cannot hold")


def read_manifest(url: str) -> Manifest:
    """The manifest at a path or URL.

    Raises:
        InvalidRequest: there is none, or it is none this version reads.
    """
    files, path = opened(url, "manifest")
    try:
        with files.open_input_stream(path) as stream:
            return Manifest.model_validate_json(bytes(stream.read()))
    except (OSError, ValidationError) as error:
        raise InvalidRequest(f"manifest: {path} cannot be read: {str(error)[:200]}") from None


def _split(rows: SpineRows, partitions: int) -> Iterator[tuple[int, pa.Table]]:
    columns = [pa.array(rows.row), rows.ids, pa.array(rows.at), pa.array(rows.inputs, pa.string())]
    table = pa.table(columns, schema=SPINE_SCHEMA)
    owner = np.array([owner_of_group(group, partitions) for group in range(KEY_GROUPS)])
    owners = owner[rows.groups]
    for number in np.unique(owners).tolist():
        yield number, table.filter(pa.array(owners == number))


def _kept(schema: pa.Schema) -> dict[str, Any]:
    """How rows are written to stay. Numbers that hardly repeat take twice as long with a dictionary, and more room."""
    return {**_CODEC, "use_dictionary": [field.name for field in schema if not pa.types.is_primitive(field.type)]}


def _joined(given: pa.Table, features: pa.Table) -> pa.Table:
    """The columns of the spine, and the features, which stand for columns of their name."""
    kept = [name for name in given.column_names if name not in features.column_names]
    names = [*kept, *features.column_names]
    return pa.table([*given.select(kept).columns, *features.columns], names=names)
