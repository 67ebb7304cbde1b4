"""Rules for sources."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from featurelib.declarations import did_you_mean
from featurelib.definitions import Definitions, SourceDef
from featurelib.sources import STREAMING, TABLES
from featurelib.validation.findings import Finding


def check_source(source: SourceDef, world: Definitions, connectors: Collection[str]) -> Iterator[Finding]:
    """Every mistake of a source; ``connectors`` are the types the platform can read."""
    key, kind = f"source:{source.dataset}", source.connector.type
    if world.dataset(source.dataset) is None:
        hint = did_you_mean(source.dataset, [d.name for d in world.datasets], "The commit")
        text = f"the source feeds `{source.dataset}`, which is not a dataset"
        yield Finding("unknown_dataset", key, source.dataset, text, hint, source.dataset)
    if kind not in connectors:
        text = f"this platform cannot read the connector `{kind}` yet"
        yield Finding("unsupported_connector", key, source.dataset, text, f"It reads {', '.join(sorted(connectors))}.")
    if kind in STREAMING and (source.cursor or source.every_us):
        text = f"{kind} pushes its records; cursor and every have no meaning for it"
        yield Finding("cursor_on_stream", key, source.dataset, text, "Leave both out.")
    if kind in TABLES:
        yield from _check_table(source, key)


def _check_table(source: SourceDef, key: str) -> Iterator[Finding]:
    name = _NAMES[source.connector.type]
    if not source.cursor:
        text = f"a {name} table is polled by a cursor column: without one nothing tells which rows are new"
        hint = "Name a column that grows with every insert or update, such as cursor='updated_at'."
        yield Finding("missing_cursor", key, source.dataset, text, hint)
    if source.cdc == "debezium":
        text, hint = f"Debezium envelopes do not come from a {name} table", "Run Debezium and read its Kafka topic."
        yield Finding("invalid_cdc", key, source.dataset, text, hint)


_NAMES = {"bigquery": "BigQuery", "postgres": "PostgreSQL", "snowflake": "Snowflake"}
