"""``thyme log``: sends the records of a file to a dataset."""

from __future__ import annotations

import csv
import json
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import repeat, tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurelib.cli.completion import dataset_names
from featurelib.cli.options import ApiUrl, AsJson, load_config, name_of, opened
from featurelib.cli.progress import tracked
from featurelib.cli.tables import print_json, print_table
from featurelib.errors import MissingDriver, ThymeError

if TYPE_CHECKING:
    from featurelib.client import ThymeClient

_COLUMNS = ("row", "reason", "field", "message")
_COUNTS = {
    "events_sent": "accepted",
    "duplicates": "duplicates",
    "late": "late",
    "rejected": "rejected",
    "erased": "erased",
}
_STDIN = Path("-")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(log)


def log(
    dataset: Annotated[str, typer.Argument(help="Dataset: Name or module:Name.", autocompletion=dataset_names)],
    file: Annotated[Path, typer.Argument(help="Records: .ndjson .jsonl .json .csv .tsv .parquet .arrow; - for lines.")],
    key: Annotated[str, typer.Option("--idempotency-key", "-k", help="Names these records; made when left out.")] = "",
    as_json: AsJson = False,
    api_url: ApiUrl = None,
) -> None:
    """Send the records of a file to a dataset; those that do not fit become dead letters."""
    send = sender(file)
    named = key or uuid.uuid4().hex
    with opened(load_config(api_url=api_url)) as client:
        try:
            done = send(client, name_of(dataset), named)
        except ThymeError as error:
            error.add_note(f"sent again with --idempotency-key {named}, the file goes on from where it was")
            raise
    if as_json:
        print_json(done)
        return
    print(f"{done['records']} records: " + ", ".join(f"{done[name]} {said}" for name, said in _COUNTS.items()))
    if done["problems"]:
        print_table(_COLUMNS, [[str(problem[column]) for column in _COLUMNS] for problem in done["problems"]])


def sender(path: Path) -> Callable[[ThymeClient, str, str], dict[str, Any]]:
    """What sends a file, by its ending, to a dataset under a key.

    Raises:
        BadParameter: the file is not there, or has another ending; lists those that are known.
    """
    ending = ".ndjson" if path == _STDIN else path.suffix.lower()
    reader = _LINES.get(ending) or _TABLES.get(ending)
    if reader is None:
        text = f"{path} has none of the endings {', '.join([*_LINES, *_TABLES])}"
        raise typer.BadParameter(text, param_hint="FILE")
    if path != _STDIN and not path.is_file():
        raise typer.BadParameter(f"{path}: there is no such file", param_hint="FILE")
    is_table = ending in _TABLES

    def send(client: ThymeClient, dataset: str, key: str) -> dict[str, Any]:
        method = client.log_arrow if is_table else client.log_lines
        try:
            return method(dataset, reader(path), idempotency_key=key)
        except (OSError, ValueError) as error:
            raise typer.BadParameter(f"{path}: {error}", param_hint="FILE") from None

    return send


def _lines(path: Path) -> Iterator[bytes]:
    if path == _STDIN:
        yield from sys.stdin.buffer
        return
    with path.open("rb") as file:
        lines, measured = tee(file)
        yield from tracked(lines, map(len, measured), path.stat().st_size, "bytes")


def _listed(path: Path) -> Iterable[Mapping[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))
    records = found if isinstance(found, list) else [found]
    return tracked(records, repeat(1, len(records)), len(records), "records")


def _separated(path: Path, by: str) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        lines, measured = tee(file)
        shown = tracked(lines, (len(line.encode()) for line in measured), path.stat().st_size, "bytes")
        for row in csv.DictReader(shown, delimiter=by):
            # An empty cell is no value; CSV has no other form of one.
            yield {name: text or None for name, text in row.items() if name}


def _parquet(path: Path) -> Any:
    try:
        from pyarrow import RecordBatchReader, parquet
    except ImportError:
        raise MissingDriver("pyarrow", "engine") from None
    file = parquet.ParquetFile(path)
    batches, measured = tee(file.iter_batches())
    shown = tracked(batches, (batch.num_rows for batch in measured), file.metadata.num_rows, "rows")
    return RecordBatchReader.from_batches(file.schema_arrow, shown)


def _arrow(path: Path) -> Any:
    try:
        import pyarrow as pa
    except ImportError:
        raise MissingDriver("pyarrow", "engine") from None
    try:
        file = pa.ipc.open_file(str(path))
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(pa.OSFile(str(path)))
    count = file.num_record_batches
    batches = (file.get_batch(number) for number in range(count))
    return pa.RecordBatchReader.from_batches(file.schema, tracked(batches, repeat(1, count), count, "batches"))


_LINES: Mapping[str, Callable[[Path], Iterable[Any]]] = {
    ".ndjson": _lines,
    ".jsonl": _lines,
    ".json": _listed,
    ".csv": lambda path: _separated(path, ","),
    ".tsv": lambda path: _separated(path, "\t"),
}
_TABLES: Mapping[str, Callable[[Path], Any]] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".arrows": _arrow,
    ".ipc": _arrow,
}
