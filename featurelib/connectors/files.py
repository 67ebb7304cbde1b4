"""Files on a disk: Parquet, CSV and JSON lines, in a folder, a glob or one file.

A stream is a file (its path below the root); a sequence is a line or row number, from 1, so it also names
the line in messages. Text files may grow: complete lines are read as they come. Rewriting what was read is
not noticed, except that a file that became shorter is an error. Settings:

    path     file, folder (with what is below it) or glob
    format   csv, jsonl or parquet; default: by the file's ending
    null     CSV text that means null, beside the empty cell (for example ``NA``)

A CSV record is one line unless a quoted cell spans several; then it is named by its first. CSV cells are
text here and get their types later, so that one bad cell costs one record.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from featurelib.clock import Clock
from featurelib.connectors.contract import Position, SourceBatch
from featurelib.connectors.lines import Block, Parsed, Parser, csv_parser, cut, parse_json
from featurelib.definitions import SourceDef
from featurelib.engine.coerce import RawRecords, raw_column
from featurelib.engine.records import Mark
from featurelib.errors import SourceError
from featurelib.secrets import SecretRef

Setting = SecretRef | str | int | float | bool | None

_FORMATS = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet"}
# Names that writers give a file until it is whole. A source with `format=` takes files of any other ending.
_UNFINISHED = frozenset({".part", ".partial", ".tmp", ".temp", ".inprogress"})
# 4 MiB hold some 45,000 records of 90 bytes: parsing cost per block is lost in them, and memory stays flat.
_BLOCK_BYTES = 4 * 1024 * 1024
# A line longer than this is not a record; without the bound a file without line ends would be read whole.
_LINE_BYTES = 64 * 1024 * 1024
# A last line without an end is complete once the file was left alone this long.
_SETTLED_US = 5_000_000


class _File(NamedTuple):
    stream: str
    path: Path
    format: str


class _Place(NamedTuple):
    """Lines read so far, and the byte after them."""

    lines: int
    byte: int


class FilesSource:
    """Reads what is new in a set of files. What it keeps between polls (offsets, sizes) are hints, not state."""

    def __init__(self, source: SourceDef, batch_rows: int, clock: Clock) -> None:
        config = source.connector.config
        self._path = _text(config, "path")
        if not self._path:
            raise SourceError("files source: path is required")
        self._format = _text(config, "format")
        if self._format and self._format not in _FORMATS.values():
            raise SourceError(f"files source: format {self._format!r} is not one of csv, jsonl, parquet")
        null = _text(config, "null")
        self._nulls = ["", null] if null else [""]
        self._cursor = source.cursor
        self._batch_rows = batch_rows
        self._clock = clock
        self._places: dict[str, _Place] = {}
        self._exhausted: dict[str, tuple[int, int, int]] = {}

    def poll(self, position: Position) -> Iterator[SourceBatch]:
        """New records of every file, file by file in the order of their names.

        Raises:
            SourceError: after all other files were read; names each file that is unreadable or became shorter.
        """
        failures = []
        for file in self._files():
            try:
                yield from self._read_new(file, position.get(file.stream, Mark(0)).sequence)
            except (OSError, pa.ArrowException, SourceError) as error:
                failures.append(f"{file.stream}: {error}")
        if failures:
            raise SourceError("; ".join(failures))

    def close(self) -> None:
        """Nothing is held open between polls."""

    def _files(self) -> list[_File]:
        path = Path(self._path).expanduser()
        if path.is_file():
            return [_File(path.name, path, self._format_of(path) or _unknown(path))]
        if path.is_dir():
            root, found = path, list(path.rglob("*"))
        elif glob.has_magic(self._path):
            root = _fixed_part(path)
            found = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207  # an absolute pattern
        else:
            raise SourceError(f"files source: {path} does not exist")
        files = [
            _File(entry.relative_to(root).as_posix(), entry, self._format_of(entry))
            for entry in found
            if not _left_out(entry.relative_to(root)) and entry.is_file()
        ]
        return sorted(file for file in files if file.format)

    def _format_of(self, path: Path) -> str:
        return self._format or _FORMATS.get(path.suffix.lower(), "")

    def _read_new(self, file: _File, done: int) -> Iterator[SourceBatch]:
        """The file after ``done``; one that was read to its end and did not change since is not even opened."""
        stat = file.path.stat()
        if self._exhausted.get(file.stream) == (stat.st_size, stat.st_mtime_ns, done):
            return
        for batch in self._read(file, done):
            done = batch.through.sequence
            yield batch._replace(cursor=self._cursor_of(batch))
        # An unfinished last line may count later though nothing changes: then the known place is before the end.
        if file.format == "parquet" or self._places.get(file.stream, _Place(0, 0)).byte == stat.st_size:
            self._exhausted[file.stream] = (stat.st_size, stat.st_mtime_ns, done)

    def _read(self, file: _File, done: int) -> Iterator[SourceBatch]:
        return self._read_parquet(file, done) if file.format == "parquet" else self._read_text(file, done)

    def _read_parquet(self, file: _File, done: int) -> Iterator[SourceBatch]:
        with pyarrow.parquet.ParquetFile(file.path) as parquet:
            rows = parquet.metadata.num_rows
            _refuse_shorter("rows", rows, done)
            groups, before = _groups_after(parquet.metadata, done)
            for batch in parquet.iter_batches(batch_size=self._batch_rows, row_groups=groups) if groups else ():
                table = pa.Table.from_batches([batch]).slice(max(0, done - before))
                before += batch.num_rows
                if len(table):
                    sequence = np.arange(before - len(table) + 1, before + 1, dtype=np.int64)
                    yield SourceBatch(file.stream, sequence, table, Mark(before))

    def _read_text(self, file: _File, done: int) -> Iterator[SourceBatch]:
        with file.path.open("rb") as opened:
            parse = self._parser(file, opened)
            place = self._places.get(file.stream, _Place(0, 0))
            if place.lines > done:
                place = _Place(0, 0)
            for block, after in self._blocks(file, opened, place):
                fresh = _after(block, max(done, _header_lines(file)))
                yield from self._batches(file.stream, parse(fresh))
                place = after
            _refuse_shorter("lines", place.lines, done)

    def _parser(self, file: _File, opened: BinaryIO) -> Parser:
        return csv_parser(opened.readline(_LINE_BYTES), self._nulls) if file.format == "csv" else parse_json

    def _blocks(self, file: _File, opened: BinaryIO, place: _Place) -> Iterator[tuple[Block, _Place]]:
        """Complete records from a place on, with the place after them."""
        _refuse_shorter("bytes", file.path.stat().st_size, place.byte)
        opened.seek(place.byte)
        pending, quoted = b"", file.format == "csv"
        while read := opened.read(_BLOCK_BYTES):
            pending += read
            block, lines, size = cut(pending, place.lines + 1, quoted=quoted, final=False)
            if not size and len(pending) > _LINE_BYTES:
                raise SourceError(f"line {place.lines + 1} is longer than {_LINE_BYTES} bytes")
            if size:
                place, pending = _Place(place.lines + lines, place.byte + size), pending[size:]
                # Known before the records are given: a hint may run ahead of what the caller keeps, never behind.
                self._places[file.stream] = place
                yield block, place
        if pending:
            # No hint here: were the last line continued later, reading would have to start at its beginning.
            block, lines, size = cut(pending, place.lines + 1, quoted=quoted, final=True)
            after = _Place(place.lines + lines, place.byte + size)
            yield (block if self._settled(file) else _after(block, after.lines)), after

    def _settled(self, file: _File) -> bool:
        return self._clock.now() - file.path.stat().st_mtime_ns // 1_000 >= _SETTLED_US

    def _batches(self, stream: str, parsed: Parsed) -> Iterator[SourceBatch]:
        given = np.sort(
            np.concatenate((parsed.numbers, np.array([bad.sequence for bad in parsed.malformed], np.int64)))
        )
        below = 0
        for start in range(0, len(given), self._batch_rows):
            through = int(given[min(start + self._batch_rows, len(given)) - 1])
            first, last = np.searchsorted(parsed.numbers, (below, through), side="right").tolist()
            malformed = tuple(bad for bad in parsed.malformed if below < bad.sequence <= through)
            records = _rows(parsed.records, first, last)
            yield SourceBatch(stream, parsed.numbers[first:last], records, Mark(through), malformed)
            below = through

    def _cursor_of(self, batch: SourceBatch) -> str:
        if not self._cursor:
            return f"{batch.stream}:{batch.through.sequence}"
        values, _ = raw_column(batch.records, self._cursor)
        return "" if values is None else _newest(values)


def _newest(values: pa.Array) -> str:
    """The greatest value as text; text that holds numbers is compared as numbers."""
    try:
        order = values.cast(pa.float64()) if pa.types.is_string(values.type) else values
    except pa.ArrowInvalid:
        order = values
    try:
        found = pc.index(order, pc.max(order)).as_py()
    except pa.ArrowNotImplementedError:  # lists and structs have no order
        return ""
    newest = values[found].as_py() if found >= 0 else None
    return "" if newest is None else str(newest)


def _rows(records: RawRecords, first: int, last: int) -> RawRecords:
    return records.slice(first, last - first) if isinstance(records, pa.Table) else records[first:last]


def _after(block: Block, line: int) -> Block:
    first = int(np.searchsorted(block.numbers, line, side="right"))
    return Block(block.data, block.starts[first:], block.ends[first:], block.numbers[first:])


def _groups_after(metadata: pyarrow.parquet.FileMetaData, done: int) -> tuple[list[int], int]:
    """The row groups that hold rows after ``done``, and the rows before the first of them."""
    before = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if before + rows > done:
            return list(range(group, metadata.num_row_groups)), before
        before += rows
    return [], before


def _header_lines(file: _File) -> int:
    return 1 if file.format == "csv" else 0


def _refuse_shorter(unit: str, found: int, before: int) -> None:
    if found < before:
        raise SourceError(f"has {found} {unit}, but {before} were read before: it was truncated or replaced")


def _unknown(path: Path) -> str:
    raise SourceError(f"files source: {path.name} does not end in one of {', '.join(_FORMATS)}; name its format")


def _fixed_part(pattern: Path) -> Path:
    """The folder above the first wildcard."""
    parts = pattern.parts
    wild = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:wild])


def _left_out(path: Path) -> bool:
    """Whether a file is hidden, or still being written: read under that name and its last one, it would count twice."""
    return path.suffix.lower() in _UNFINISHED or any(part.startswith((".", "_")) for part in path.parts)


def _text(config: Mapping[str, Setting], name: str) -> str:
    value = config.get(name)
    return value if isinstance(value, str) else ""
