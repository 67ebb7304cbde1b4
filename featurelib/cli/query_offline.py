"""``thyme query-offline``: features of many entities, each at its own instant; what a model is trained on."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from featurelib.cli.completion import featureset_names
from featurelib.cli.options import ApiKey, AsJson, Module, QueryUrl, load_config, name_of, opened
from featurelib.cli.progress import tracked, waiting
from featurelib.cli.query import typed_inputs
from featurelib.cli.results import Form, Output, check_writable, show
from featurelib.cli.tables import Format
from featurelib.clock import check_zones
from featurelib.errors import InvalidRequest, MissingDriver

if TYPE_CHECKING:
    from featurelib.client import Config, ThymeClient
    from featurelib.result import ThymeResult

Rows = Sequence[Mapping[str, Any]]
_COLUMNS = ("entity_id", "timestamp")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("query-offline")(query_offline)


def query_offline(  # noqa: PLR0913, PLR0917  # one parameter per option
    ref: Annotated[str, typer.Argument(help="Featureset: Name or module:Name.", autocompletion=featureset_names)],
    file: Annotated[
        Path | None,
        typer.Option(
            "--input", "-i", help="Rows: .parquet .csv .tsv .arrow .jsonl .ndjson .json, Parquet folder, Delta."
        ),
    ] = None,
    entity: Annotated[list[str] | None, typer.Option("--entity", "-e", help="Id, instead of a file; repeat.")] = None,
    at: Annotated[list[str] | None, typer.Option("--at", help="Instant of the id of the same place.")] = None,
    entity_column: Annotated[str, typer.Option(help="Column of ids.")] = _COLUMNS[0],
    timestamp_column: Annotated[str, typer.Option(help="Column of instants.")] = _COLUMNS[1],
    labels: Annotated[bool, typer.Option("--labels", help="Keep the other columns of the file.")] = False,
    knowledge: Annotated[str | None, typer.Option(help="as_served: only what had been accepted by then.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of one call.")] = 5_000,
    manifest: Annotated[
        Path | None,
        typer.Option(help="Have all rows read together, as above 100,000 they are, and write the manifest here."),
    ] = None,
    form: Form = Format.TABLE,
    output: Output = None,
    limit: Annotated[int, typer.Option(help="Most rows of a table.")] = 20,
    as_json: AsJson = False,
    module: Module = None,  # noqa: ARG001  # names are unique on the platform
    query_url: QueryUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Features of many entities, each at its own instant, in the order asked."""
    for path, option in ((manifest, "--manifest"), (output, "--output")):
        if path is not None:
            check_writable(path, option)
    columns = (entity_column, timestamp_column)
    rows = given_rows(file, entity or [], at or [], columns)
    # Of all of them: a client is given some at a time.
    check_zones((row.get(timestamp_column) for row in rows), f"spine, {timestamp_column!r}")
    how = _How(*columns, batch_size, knowledge, labels)
    config = load_config(query_url=query_url, api_key=api_key)
    together = manifest is not None or is_large(rows)
    result = (make if together else ask)(name_of(ref), rows, how, config)
    if manifest is not None:
        manifest.write_text(json.dumps(result.metadata["manifest"], indent=2) + "\n", encoding="utf-8")
    show(result, Format.JSON if as_json else form, output, limit)


class _How(NamedTuple):
    """How rows are asked."""

    entity_column: str
    timestamp_column: str
    batch_size: int
    knowledge: str | None
    labels: bool


def ask(name: str, rows: Rows, how: _How, config: Config) -> ThymeResult:
    """All rows, a batch at a time."""
    from featurelib.result import joined

    with opened(config) as client:
        rows = _typed(rows, client, name)
        size = how.batch_size
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        shown = tracked(parts, map(len, parts), len(rows), "rows")
        read = [client.query_offline(name, some, **how._asdict(), training_set=False) for some in shown]
    return joined(read, {"featureset": name})


def is_large(rows: Rows) -> bool:
    """Whether rows are so many that they are read together."""
    from featurelib.client.reads import TRAINING_ROWS

    return len(rows) > TRAINING_ROWS


def make(name: str, rows: Rows, how: _How, config: Config) -> ThymeResult:
    """All rows together, as a training set of the platform's."""
    with opened(config) as client, waiting(f"making a training set of {len(rows)} rows"):
        return client.query_offline(name, _typed(rows, client, name), **how._asdict(), training_set=True)


def _typed(rows: Rows, client: ThymeClient, featureset: str) -> Rows:
    """The rows with requested features that a file has as text in their type."""
    if not any(len(row) > len(_COLUMNS) for row in rows):
        return rows
    types = client.input_types(featureset)
    return [
        {**row, **typed_inputs({each: row[each] for each in types if isinstance(row.get(each), str)}, types)}
        for row in rows
    ]


def given_rows(file: Path | None, ids: Sequence[str], instants: Sequence[str], columns: tuple[str, str]) -> Rows:
    """The rows of a file, or of pairs of options.

    Raises:
        BadParameter: both are given, or neither, or the pairs do not pair.
    """
    if (file is None) == (not ids and not instants):
        raise typer.BadParameter("give either --input or pairs of --entity and --at", param_hint="--input")
    if file is not None:
        return read_rows(file)
    if len(ids) != len(instants):
        raise typer.BadParameter(f"there are {len(ids)} ids and {len(instants)} instants", param_hint="--at")
    return [dict(zip(columns, pair, strict=True)) for pair in zip(ids, instants, strict=True)]


def read_rows(path: Path) -> Rows:
    """The rows of a file, by its ending.

    Raises:
        BadParameter: it cannot be read, or has another ending; lists those that are known.
    """
    reader = _stored if path.is_dir() else _READERS.get(path.suffix.lower())
    if reader is None:
        text = f"{path} has none of the endings {', '.join(_READERS)}"
        raise typer.BadParameter(text, param_hint="--input")
    try:
        return reader(path)
    except (OSError, ValueError, TypeError, InvalidRequest) as error:
        raise typer.BadParameter(f"{path}: {error}", param_hint="--input") from None


def _parquet(path: Path) -> Rows:
    try:
        from pyarrow import parquet
    except ImportError:
        raise MissingDriver("pyarrow", "engine") from None
    rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    return rows


def _stored(path: Path) -> Rows:
    """Of an Arrow file, a folder of Parquet files or a Delta table."""
    from featurelib.client.frames import spine_rows

    return spine_rows(path)


def _separated(path: Path, by: str) -> Rows:
    with path.open(encoding="utf-8", newline="") as file:
        # An empty cell is no value; CSV has no other form of one.
        return [
            {name: text or None for name, text in row.items() if name} for row in csv.DictReader(file, delimiter=by)
        ]


def _json_lines(path: Path) -> Rows:
    with path.open(encoding="utf-8") as file:
        return [dict(json.loads(line)) for line in file if line.strip()]


def _json(path: Path) -> Rows:
    return [dict(row) for row in json.loads(path.read_text(encoding="utf-8"))]


_READERS: Mapping[str, Callable[[Path], Rows]] = {
    ".parquet": _parquet,
    ".arrow": _stored,
    ".arrows": _stored,
    ".feather": _stored,
    ".ipc": _stored,
    ".csv": lambda path: _separated(path, ","),
    ".tsv": lambda path: _separated(path, "\t"),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
}
