"""``thyme discover``: look at a source, and write a module that declares it and features over it."""

from __future__ import annotations

import json
import keyword
import re
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

import featurelib
from featurelib.cli.options import AsJson
from featurelib.cli.progress import waiting
from featurelib.cli.tables import print_json
from featurelib.errors import InvalidRequest, MissingDriver

if TYPE_CHECKING:
    from featurelib.cli.drafting import Brief
    from featurelib.definitions import Commit, SourceDef

# Enough to tell a category from a name and a null from a value; more rows say little more.
_SAMPLE_ROWS = 1_000
_EVERY = "10s"


class SourceType(StrEnum):
    """What can be looked at."""

    ICEBERG = "iceberg"
    POSTGRES = "postgres"
    S3JSON = "s3json"
    KAFKA = "kafka"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


class Place(NamedTuple):
    """A source to look at.

    Attributes:
        connector: name of its class in ``featurelib``.
        settings: its arguments; the empty ones are left to its defaults.
        secrets: argument → environment variable that holds it when the platform reads.
        name: of the dataset, unless the user names it.
        cursor: the column that orders its rows; empty where there is none, or the source has its own order.
    """

    connector: str
    settings: Mapping[str, Any]
    secrets: Mapping[str, str]
    name: str
    cursor: str = ""


class Wanted(NamedTuple):
    """What the user says of the features."""

    dataset: str
    key: str
    timestamp: str
    windows: tuple[str, ...]
    use_case: str
    sample_n: int
    api_key: str


class Discovered(NamedTuple):
    """What was found, and the module that was drafted of it."""

    brief: Brief
    text: str
    commit: Commit


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("discover")(discover)


def discover(  # noqa: PLR0913, PLR0917  # one parameter per option
    source_type: Annotated[SourceType, typer.Option(help="What to look at.")] = SourceType.ICEBERG,
    use_case: Annotated[str, typer.Option("--use-case", "-u", help="What the features are for.")] = "",
    path: Annotated[str, typer.Option(help="jsonl, csv, parquet: a file, folder or glob.")] = "",
    catalog: Annotated[str, typer.Option(help="iceberg: the catalog.")] = "",
    database: Annotated[str, typer.Option(help="iceberg: the namespace.")] = "",
    table: Annotated[str, typer.Option(help="iceberg: the table.")] = "",
    pg_host: Annotated[str, typer.Option(help="postgres: the server.")] = "",
    pg_port: Annotated[int, typer.Option(help="postgres: its port.")] = 5432,
    pg_database: Annotated[str, typer.Option(help="postgres: the database.")] = "",
    pg_table: Annotated[str, typer.Option(help="postgres: the table.")] = "",
    pg_user: Annotated[str, typer.Option(help="postgres: the user.")] = "",
    pg_password: Annotated[str, typer.Option(envvar="POSTGRES_PASSWORD", help="postgres: the password.")] = "",
    pg_schema: Annotated[str, typer.Option(help="postgres: the schema.")] = "public",
    s3_bucket: Annotated[str, typer.Option(help="s3json: the bucket.")] = "",
    s3_prefix: Annotated[str, typer.Option(help="s3json: the keys' prefix.")] = "",
    s3_region: Annotated[str, typer.Option(help="s3json: the region.")] = "us-east-1",
    kafka_brokers: Annotated[str, typer.Option(help="kafka: the brokers.")] = "",
    kafka_topic: Annotated[str, typer.Option(help="kafka: the topic.")] = "",
    kafka_security_protocol: Annotated[str, typer.Option(help="kafka: how to connect.")] = "PLAINTEXT",
    kafka_format: Annotated[str, typer.Option(help="kafka: json, avro or protobuf.")] = "json",
    cursor: Annotated[str, typer.Option(help="postgres: the column that orders the rows; else one of instants.")] = "",
    entity_key: Annotated[str, typer.Option(help="The column of entities; left out, one that looks like it.")] = "",
    timestamp: Annotated[str, typer.Option(help="The column of event time; left out, one that looks like it.")] = "",
    windows: Annotated[str, typer.Option(help="Windows of the aggregates.")] = "1h,24h,7d",
    dataset_name: Annotated[str, typer.Option(help="The dataset; left out, named like the source.")] = "",
    sample_n: Annotated[int, typer.Option(min=0, help="Records that the drafter is shown.")] = 5,
    drafter: Annotated[str, typer.Option(help="Who writes: deterministic, or an installed package's.")] = (
        "deterministic"
    ),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the module to this file.")] = None,
    auto_commit: Annotated[bool, typer.Option("--auto-commit", help="Commit what was drafted.")] = False,
    as_json: AsJson = False,
    api_url: Annotated[str | None, typer.Option(envvar="THYME_API_URL", help="Commit URL.")] = None,
    api_key: Annotated[str, typer.Option(envvar="ANTHROPIC_API_KEY", help="For a drafter that asks a service.")] = "",
) -> None:
    """Look at the records of a source and draft a module of definitions over them."""
    given = locals()
    place = _PLACES[source_type](given)
    names = Wanted(read_name(dataset_name), entity_key, timestamp, read_windows(windows), use_case, sample_n, api_key)
    with waiting("looking at the source"):
        found = load(place, names, drafter)
    show(found, output, as_json=as_json)
    if auto_commit:
        _commit(found, api_url)


def load(place: Place, wanted: Wanted, drafter_name: str) -> Discovered:
    """Look, draft, and compile what was drafted.

    Raises:
        SourceError: the source cannot be read.
        InvalidRequest: it has no records, or no column can be the key or the event time.
        DefinitionError: the drafter wrote what does not compile.
    """
    from featurelib.cli.drafting import drafter

    write = drafter(drafter_name)
    brief = _brief(place, wanted)
    text = write(brief)
    return Discovered(brief, text, compiled(text))


def compiled(text: str) -> Commit:
    """The definitions of a module's text."""
    from featurelib.compile import compile_module

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "drafted_features.py"
        file.write_text(text, encoding="utf-8")
        return compile_module(str(file))


def show(found: Discovered, output: Path | None, *, as_json: bool) -> None:
    """The module on stdout or in a file."""
    if output is not None:
        try:
            output.write_text(found.text, encoding="utf-8")
        except OSError as error:
            raise typer.BadParameter(f"{output}: {error.strerror}", param_hint="--output") from None
        print(f"wrote {output}; look it over, then: thyme commit {output}", file=sys.stderr)
    if as_json:
        columns = [column._asdict() for column in found.brief.columns]
        chosen = {"key": found.brief.key.name, "timestamp": found.brief.timestamp.name}
        print_json({"dataset": found.brief.dataset, **chosen, "columns": columns, "module": found.text})
    elif output is None:
        print(found.text, end="")


def read_name(text: str) -> str:
    """The name of a dataset; empty where none is given.

    Raises:
        BadParameter: no class can be named so.
    """
    from featurelib.cli.drafting import is_name

    if text and not is_name(text):
        raise typer.BadParameter(f"{text!r} cannot name a class: letters, digits and _", param_hint="--dataset-name")
    return text


def read_windows(text: str) -> tuple[str, ...]:
    """Durations, separated by commas.

    Raises:
        BadParameter: one is none.
    """
    from featurelib.clock import parse_duration

    found = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    try:
        for part in found:
            parse_duration(part)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--windows") from None
    if not found:
        raise typer.BadParameter("names no window", param_hint="--windows")
    return found


def _brief(place: Place, wanted: Wanted) -> Brief:
    from featurelib.cli.drafting import Brief, choose_key, choose_timestamp, columns_of

    place = _with_cursor(place)
    records = sample(_source(place))
    if not records:
        raise InvalidRequest("the source has no records to look at")
    columns = columns_of(records, texts=place.settings.get("format") == "csv")
    streaming = place.connector == "KafkaSource"
    timestamp = choose_timestamp(columns, wanted.timestamp)
    others = [column for column in columns if column != timestamp]
    return Brief(
        dataset=wanted.dataset or class_name(place.name),
        source=_expression(place),
        imports=(place.connector, *(("Secret",) if place.secrets else ())),
        schedule="" if streaming else _schedule(place),
        columns=columns,
        key=choose_key(others, len(records), wanted.key),
        timestamp=timestamp,
        windows=wanted.windows,
        use_case=wanted.use_case,
        sample=tuple(records[: wanted.sample_n]),
        api_key=wanted.api_key,
    )


def sample(source: SourceDef) -> Sequence[Mapping[str, Any]]:
    """The first records of a source, as they came."""
    try:
        from featurelib.clock import SystemClock
        from featurelib.connectors import connect
    except ImportError as error:  # the SDK alone is installed
        raise MissingDriver(error.name or "the engine", "engine") from None
    reader = connect(source, _SAMPLE_ROWS, SystemClock())
    try:
        for batch in reader.poll({}):
            if len(batch.records):
                records: Any = batch.records
                return list(records if isinstance(records, list) else records.to_pylist())[:_SAMPLE_ROWS]
    finally:
        reader.close()
    return []


def class_name(text: str) -> str:
    """``ride-events.jsonl`` → ``RideEvents``."""
    words = re.findall(r"[A-Za-z0-9]+", text)
    name = "".join(word[0].upper() + word[1:] for word in words)
    taken = name in featurelib.__all__ or keyword.iskeyword(name)
    return f"Dataset{name}" if taken or not name[:1].isalpha() else name


def _source(place: Place) -> SourceDef:
    from featurelib import sources
    from featurelib.definitions import ConnectorDef, SourceDef

    described = getattr(sources, place.connector)(**{name: value for name, value in place.settings.items() if value})
    connector = ConnectorDef(type=sources.stored_type(described.connector_type), config=described.to_dict())
    return SourceDef(dataset=class_name(place.name), connector=connector, cursor=place.cursor)


def _with_cursor(place: Place) -> Place:
    """A SQL table with its cursor column: the given one, else the first that holds instants.

    Raises:
        InvalidRequest: no column can be one.
    """
    if place.connector != "PostgresSource" or place.cursor:
        return place
    from featurelib.connectors import missing_driver

    if missing_driver("postgres"):
        raise MissingDriver("psycopg", "postgres")
    from featurelib.connectors.postgres import cursor_columns

    able = cursor_columns(_source(place))
    if not able:
        message = f"{place.settings['table']} does not exist, or has no column that can order its rows"
        raise InvalidRequest(message)
    return place._replace(cursor=able[0])


def _expression(place: Place) -> str:
    """The connector as it is written; a secret by the variable that holds it, never by its value."""
    open_ = {name: value for name, value in place.settings.items() if value and name not in place.secrets}
    plain = [f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in open_.items()]
    secret = [f'{name}=Secret(env="{variable}")' for name, variable in place.secrets.items()]
    return f"{place.connector}({', '.join([*plain, *secret])})"


def _schedule(place: Place) -> str:
    cursor = f"cursor={json.dumps(place.cursor, ensure_ascii=False)}, " if place.cursor else ""
    return f'{cursor}every="{_EVERY}"'


def _commit(found: Discovered, api_url: str | None) -> None:
    from featurelib.cli import commit

    commit.show(commit.send(found.commit, api_url))


def _needed(given: Mapping[str, Any], option: str) -> str:
    value = str(given[option.removeprefix("--").replace("-", "_")])
    if not value:
        raise typer.BadParameter(f"goes with --source-type {given['source_type']}", param_hint=option)
    return value


def _files(given: Mapping[str, Any]) -> Place:
    path = Path(_needed(given, "--path")).expanduser().absolute()
    settings = {"path": str(path), "format": str(given["source_type"])}
    return Place("FileSource", settings, {}, path.stem if path.suffix else path.name)


def _iceberg(given: Mapping[str, Any]) -> Place:
    table = _needed(given, "--table")
    return Place("IcebergSource", {name: given[name] for name in ("catalog", "database", "table")}, {}, table)


def _postgres(given: Mapping[str, Any]) -> Place:
    names = ("host", "port", "database", "table", "user", "password", "schema")
    table = _needed(given, "--pg-table")
    secrets = {"password": "POSTGRES_PASSWORD"} if given["pg_password"] else {}
    return Place("PostgresSource", {name: given[f"pg_{name}"] for name in names}, secrets, table, given["cursor"])


def _s3(given: Mapping[str, Any]) -> Place:
    bucket = _needed(given, "--s3-bucket")
    settings = {name: given[f"s3_{name}"] for name in ("bucket", "prefix", "region")}
    return Place("S3JsonSource", settings, {}, str(given["s3_prefix"]).strip("/") or bucket)


def _kafka(given: Mapping[str, Any]) -> Place:
    topic = _needed(given, "--kafka-topic")
    names = ("brokers", "topic", "security_protocol", "format")
    return Place("KafkaSource", {name: given[f"kafka_{name}"] for name in names}, {}, topic)


_PLACES: Mapping[SourceType, Callable[[Mapping[str, Any]], Place]] = {
    SourceType.ICEBERG: _iceberg,
    SourceType.POSTGRES: _postgres,
    SourceType.S3JSON: _s3,
    SourceType.KAFKA: _kafka,
    SourceType.JSONL: _files,
    SourceType.CSV: _files,
    SourceType.PARQUET: _files,
}
