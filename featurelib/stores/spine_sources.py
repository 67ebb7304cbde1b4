"""The spine of a training set where its owner keeps it: Parquet, CSV, Arrow or Delta, in a folder or an object store.

Rows come in the order they have there, some at a time: of a folder of Parquet files by file name, of a Delta table by
the names of its files. A CSV file is read whole, since only all of it says what its columns are. What a spine *is* for
a training set is said by :attr:`SpineSource.identity`: the same bytes, or the same version of a Delta table.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

import polars as pl
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from pyarrow import compute, fs

from featurelib.definitions import Record
from featurelib.errors import InvalidRequest, PayloadTooLarge, StoreUnavailable
from featurelib.stores.archive import files_of
from featurelib.stores.arrow_heads import (
    DICTIONARY,
    FILE_MAGIC,
    MalformedHead,
    Message,
    Stream,
    messages_of_file,
    messages_of_stream,
)

Form = Literal["parquet", "csv", "arrow", "delta"]
_FORMS: dict[str, Form] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
_READ_BYTES = 1 << 20
_COUNTED_ROWS = 65_536
# Of the texts of some 65,536 rows, and of a row group from which on it is looked at how well it was compressed: text
# and numbers are to a tenth at best, and zeros to a ten thousandth.
_MOST_BYTES, _MOST_RATIO = 1 << 30, 100
_NUMBER_BYTES = 8


class SpineIdentity(Record):
    """Which rows a spine has.

    Attributes:
        url: where they are; without what a URL says of credentials.
        form: how they are stored.
        sha256: of the bytes of its file, or of the names and digests of its files; empty for a Delta table.
        version: of a Delta table.
    """

    url: str
    form: Form
    sha256: str = ""
    version: int | None = None

    def is_same(self, other: SpineIdentity) -> bool:
        """Whether both name the same rows, wherever they lie."""
        return (self.form, self.sha256, self.version) == (other.form, other.sha256, other.version) and (
            self.form != "delta" or self.url == other.url
        )


class SpineSource(ABC):
    """A spine that can be read. Make one with :func:`open_spine`.

    Attributes:
        identity: which rows it has.
        schema: its columns.
    """

    identity: SpineIdentity
    schema: pa.Schema

    @abstractmethod
    def count_rows(self) -> int:
        """How many rows there are.

        Raises:
            InvalidRequest: a file cannot be read to its end.
            StoreUnavailable: the object store does not answer.
        """

    @abstractmethod
    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """All rows, in order, at most so many at a time.

        Raises:
            InvalidRequest: a file cannot be read to its end.
            StoreUnavailable: the object store does not answer.
        """


def opened(url: str, what: str) -> tuple[fs.FileSystem, str]:
    """The file system of a folder or an object-store URL, and the path there.

    Raises:
        InvalidRequest: it is no URL of a store known here; ``what`` names it.
    """
    if "://" not in url:
        return fs.LocalFileSystem(), str(Path(url).expanduser().resolve())
    try:
        files, path = fs.FileSystem.from_uri(url)
    except (OSError, pa.ArrowException):  # whose text repeats the URL, which may hold a key of the object store
        raise InvalidRequest(f"{what}: it is no folder, and no URL of a store known here") from None
    return files, path.rstrip("/")


def shown_url(url: str) -> str:
    """A path or URL without user, password and parameters."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{(parts.netloc.rpartition('@')[2])}{parts.path}"


def open_spine(url: str, text: Sequence[str] = (), version: int | None = None) -> SpineSource:
    """Open a spine.

    Args:
        url: a file, a folder of Parquet files or a Delta table, as a path or an object-store URL.
        text: columns that stay text in a CSV file, whatever they look like: an id ``007`` is not 7.
        version: of a Delta table; left out: the newest.

    Raises:
        InvalidRequest: there is none, it has another form, two columns of one name, or cannot be read.
        StoreUnavailable: the object store does not answer.
    """
    files, path = opened(url, "spine")
    name = shown_url(url)
    with telling(name, files):
        source = _source(url, name, files, path, text, version)
    twice = sorted({each for each in source.schema.names if source.schema.names.count(each) > 1})
    if twice:
        raise InvalidRequest(f"spine: {name} has more than one column {twice[0]!r}; rename all but one")
    return source


def _source(
    url: str, name: str, files: fs.FileSystem, path: str, text: Sequence[str], version: int | None
) -> SpineSource:
    kind = files.get_file_info(path).type
    if kind == fs.FileType.NotFound:
        raise InvalidRequest(f"spine: there is nothing at {name}")
    if kind == fs.FileType.Directory:
        if files.get_file_info(f"{path}/_delta_log").type == fs.FileType.Directory:
            return _DeltaSpine(path if isinstance(files, fs.LocalFileSystem) else url, name, files, version)
        return _ParquetSpine(name, files, _parquet_files(name, files, path))
    form = _FORMS.get(PurePosixPath(path).suffix.lower())
    if form is None:
        raise InvalidRequest(f"spine: {name} has none of the endings {', '.join(_FORMS)}, and is no Delta table")
    if form == "parquet":
        return _ParquetSpine(name, files, [path])
    return _ArrowSpine(name, files, path) if form == "arrow" else _CsvSpine(name, files, path, text)


def _parquet_files(name: str, files: fs.FileSystem, path: str) -> list[str]:
    found = sorted(
        each.path
        for each in files.get_file_info(fs.FileSelector(path))
        if each.type == fs.FileType.File and each.base_name.endswith(".parquet")
    )
    if not found:
        raise InvalidRequest(f"spine: the folder {name} holds no Parquet files, and is no Delta table")
    return found


class _ParquetSpine(SpineSource):
    def __init__(self, name: str, files: fs.FileSystem, paths: Sequence[str]) -> None:
        self._name, self._files, self._paths = name, files, paths
        self._footers = {path: pq.read_metadata(path, filesystem=files) for path in paths}
        schemas = [each.schema.to_arrow_schema().remove_metadata() for each in self._footers.values()]
        self.schema = schemas[0]
        for path, schema in zip(paths, schemas, strict=True):
            _check_row_groups(self._footers[path], PurePosixPath(path).name)
            if schema != self.schema:
                raise InvalidRequest(f"spine: {PurePosixPath(path).name} has other columns than the first file")
        self.identity = SpineIdentity(url=name, form="parquet", sha256=_digest(files, paths))

    def count_rows(self) -> int:
        """As the files say of themselves."""
        with telling(self._name, self._files):
            return sum(int(each.num_rows) for each in self._footers.values())

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """All rows, file by file."""
        for path in self._paths:
            with telling(self._name, self._files), self._opened(path) as file:
                for batch in file.iter_batches(rows):
                    _check_text(batch, PurePosixPath(path).name)
                    yield _written_out(batch, self.schema)

    def _opened(self, path: str) -> pq.ParquetFile:
        """A file whose texts come coded: one that it holds once may stand in every row."""
        leaves = self._footers[path].schema
        coded = [leaves.column(each).path for each in range(len(leaves)) if _is_text(leaves.column(each))]
        # Arrow writes out no texts of this form that lie inside a list or a struct.
        nested = {each.name for each in self.schema if pa.types.is_nested(each.type) and "view" in str(each.type)}
        coded = [each for each in coded if each.partition(".")[0] not in nested]
        return pq.ParquetFile(path, metadata=self._footers[path], filesystem=self._files, read_dictionary=coded)


class _ArrowSpine(SpineSource):
    def __init__(self, name: str, files: fs.FileSystem, path: str) -> None:
        self._name, self._files, self._path = name, files, path
        with files.open_input_file(path) as file:
            self._is_file = file.read(len(FILE_MAGIC)) == FILE_MAGIC
        with self._opened() as stored:
            self.schema = stored.schema.remove_metadata()
        for column in self.schema:
            _check_once_each(column.type, column.name)
        self.identity = SpineIdentity(url=name, form="arrow", sha256=_digest(files, [path]))

    def count_rows(self) -> int:
        """By reading it: neither form says."""
        return sum(map(len, self.batches(_COUNTED_ROWS)))

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """All rows, batch by batch."""
        with telling(self._name, self._files), self._opened() as stored:
            for batch in stored:
                batch.validate(full=True)  # offsets that point elsewhere would be read as they are
                for start in range(0, len(batch), rows):
                    some = batch.slice(start, rows)
                    _check_text(some, self._name)
                    yield some

    @contextmanager
    def _opened(self) -> Iterator[pa.RecordBatchReader]:
        """Its batches, which come from the very bytes that were measured."""
        with self._files.open_input_file(self._path) as file:
            messages = messages_of_file(file) if self._is_file else messages_of_stream(file)
            with pa.ipc.open_stream(pa.PythonFile(Stream(_measured(messages, self._name)), mode="r")) as stored:
                yield stored


def _measured(messages: Iterator[Message], name: str) -> Iterator[Message]:
    """The same messages, up to one with which they are much larger in memory than any that are written in earnest.

    Dictionaries are kept as long as the batches behind them are read: they count with each.

    Raises:
        PayloadTooLarge: says how much larger.
        MalformedHead: a message says of itself what cannot be.
    """
    kept = kept_stored = 0
    for message in messages:
        records, stored = message.head.records, len(message.body)
        if records is not None:
            # An entry may take a bit or, of nulls, nothing; as a value of its own it takes more.
            plain = max(records.plain_bytes(memoryview(message.body)), _NUMBER_BYTES * records.longest())
            if kept + plain > max(_MOST_BYTES, _MOST_RATIO * (kept_stored + stored)):
                raise PayloadTooLarge(
                    f"spine: a batch of {name}, with its dictionaries, has {kept_stored + stored:,} bytes, and "
                    f"{kept + plain:,} in memory, which is above {_MOST_BYTES:,} and {_MOST_RATIO} times as many; "
                    "write smaller batches"
                )
            if message.head.kind == DICTIONARY:
                kept, kept_stored = kept + plain, kept_stored + stored
        yield message


class _CsvSpine(SpineSource):
    def __init__(self, name: str, files: fs.FileSystem, path: str, text: Sequence[str]) -> None:
        self._name, self._files = name, files
        # An empty cell is no value, CSV has no other form of one; "NA" is a country.
        convert = pc.ConvertOptions(
            column_types=dict.fromkeys(text, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        delimiter = "\t" if path.lower().endswith(".tsv") else ","
        parse = pc.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        with files.open_input_stream(path) as stream:
            self._table = pc.read_csv(stream, parse_options=parse, convert_options=convert)
        self.schema = self._table.schema
        self.identity = SpineIdentity(url=name, form="csv", sha256=_digest(files, [path]))

    def count_rows(self) -> int:
        """As they were read."""
        return len(self._table)

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """All rows."""
        yield from self._table.to_batches(rows)


class _DeltaSpine(SpineSource):
    def __init__(self, url: str, name: str, files: fs.FileSystem, version: int | None) -> None:
        self._name, self._files = name, files
        table = DeltaTable(url, version=version)
        self._stored = files_of(table)
        self.schema = self._stored.schema.remove_metadata()
        self.identity = SpineIdentity(url=name, form="delta", version=table.version())

    def count_rows(self) -> int:
        """As the table's files say."""
        with telling(self._name, self._files):
            return int(self._stored.count_rows())

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """All rows, in the order of the names of the table's files."""
        with telling(self._name, self._files):
            for part in sorted(self._stored.get_fragments(), key=lambda part: str(part.path)):
                yield from part.to_batches(schema=self._stored.schema, batch_size=rows)


def _check_row_groups(metadata: pq.FileMetaData, name: str) -> None:
    """Refuse a file that is much larger in memory than any that is written in earnest.

    Raises:
        PayloadTooLarge: names the row group.
    """
    leaves = metadata.schema
    for each in range(len(leaves)):
        if leaves.column(each).logical_type.type == "JSON":
            # Arrow reads it as a type of its own, however it is stored, and a text that is there once for every row.
            raise InvalidRequest(f"spine: the column {leaves.column(each).path!r} is JSON; store it as text")
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [(group.column(each), leaves.column(each)) for each in range(group.num_columns)]
        stored = sum(chunk.total_compressed_size for chunk, _ in columns)
        size = sum(_size_of(chunk, leaf) for chunk, leaf in columns)
        if size > max(_MOST_BYTES, _MOST_RATIO * stored):
            raise PayloadTooLarge(
                f"spine: row group {number} of {name} has {stored:,} bytes, and {size:,} in memory, which is above "
                f"{_MOST_BYTES:,} and {_MOST_RATIO} times as many; write smaller row groups"
            )


def _size_of(chunk: pq.ColumnChunkMetaData, leaf: pq.ColumnSchema) -> int:
    """Bytes of a column of a row group in memory, as its file says; of texts that stand in many rows, of each once."""
    # A list of a million equal numbers is a few bytes of a page.
    listed = _NUMBER_BYTES * chunk.num_values if leaf.max_repetition_level else 0
    # Bytes of a fixed length may be there once, too, and come written out.
    fixed = leaf.length * chunk.num_values if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else 0
    return max(int(chunk.total_uncompressed_size), listed, fixed)


def _check_text(batch: pa.RecordBatch, name: str) -> None:
    """Refuse rows whose texts take too much memory.

    Raises:
        PayloadTooLarge: says how much.
    """
    size = sum(map(_text_bytes, batch.columns))
    if size > _MOST_BYTES:
        raise PayloadTooLarge(
            f"spine: {len(batch):,} rows of {name} hold {size:,} bytes of text, at most {_MOST_BYTES:,} may be; "
            "shorten the texts, or leave their column out"
        )


def _text_bytes(column: pa.Array) -> int:
    """What the texts take that the rows of a column are codes, or views, of."""
    if isinstance(column.type, pa.BaseExtensionType):
        return _text_bytes(column.storage)
    kind = column.type
    if pa.types.is_struct(kind):
        return sum(map(_text_bytes, column.flatten()))
    if pa.types.is_map(kind):
        column = column.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))
    if pa.types.is_nested(kind):
        return _text_bytes(column.flatten())
    if pa.types.is_dictionary(kind):
        lengths = _lengths(column.dictionary)
        return 0 if lengths is None else compute.sum(lengths.take(column.indices)).as_py() or 0
    return compute.sum(_lengths(column)).as_py() or 0 if _is_view(kind) else 0


def _lengths(values: pa.Array) -> pa.Array | None:
    """Bytes of each text; ``None``: they are no texts."""
    kind = values.type
    if _is_view(kind):  # Arrow itself has no length of a view
        texts: Any = pl.from_arrow(values)
        lengths = texts.bin.size() if pa.types.is_binary_view(kind) else texts.str.len_bytes()
        return lengths.cast(pl.Int64).to_arrow()
    if any(matches(kind) for matches in _TEXTS):
        return compute.binary_length(values).cast(pa.int64())
    return None


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


_TEXTS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_fixed_size_binary,
)


def _check_once_each(kind: pa.DataType, name: str) -> None:
    """Refuse a column in which what is no text may stand in many rows: written out it is as large as it likes.

    Raises:
        InvalidRequest: names the column.
    """
    if isinstance(kind, pa.BaseExtensionType):
        _check_once_each(kind.storage_type, name)
        return
    shared = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind) or pa.types.is_run_end_encoded(kind)
    coded = pa.types.is_dictionary(kind) and pa.types.is_nested(kind.value_type)
    if shared or coded or pa.types.is_union(kind):
        raise InvalidRequest(f"spine: the column {name!r} is Arrow's {kind}; cast it, or leave it out")
    for number in range(kind.num_fields):
        _check_once_each(kind.field(number).type, name)


def _written_out(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch with its codes as what they stand for."""
    columns = [_as_type(column, kind) for column, kind in zip(batch.columns, schema.types, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _as_type(column: pa.Array, kind: pa.DataType) -> pa.Array:
    if column.type == kind:
        return column
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        column = column.cast(column.type.value_type)
    return column.cast(kind)


def _is_text(leaf: pq.ColumnSchema) -> bool:
    # Decimals may be byte arrays as well, and have no codes.
    return bool(leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type != "DECIMAL")


def _digest(files: fs.FileSystem, paths: Sequence[str]) -> str:
    found = [file_digest(files, path) for path in paths]
    if len(found) == 1:
        return found[0]
    named = zip((PurePosixPath(path).name for path in paths), found, strict=True)
    return hashlib.sha256(repr(list(named)).encode()).hexdigest()


def file_digest(files: fs.FileSystem, path: str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with files.open_input_stream(path) as stream:
        while part := stream.read(_READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def telling(name: str, files: fs.FileSystem) -> Iterator[None]:
    """Say of whatever goes wrong with a spine's files what it is about: a broken file, or a store that is away."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError, MalformedHead, UnicodeError) as error:
        raise InvalidRequest(f"spine: {name} cannot be read: {error}") from None
    except (OSError, pa.ArrowException, DeltaError) as error:
        if isinstance(files, fs.LocalFileSystem):
            raise InvalidRequest(f"spine: {name} cannot be read: {error}") from None
        raise StoreUnavailable(f"the spine {name} cannot be read: {error}") from error
