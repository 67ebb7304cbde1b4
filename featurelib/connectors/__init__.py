"""Connectors: how records come in from outside systems. One contract, one file per system."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import NamedTuple, cast

from featurelib.clock import Clock
from featurelib.connectors.contract import NO_SEQUENCE, Malformed, Position, Source, SourceBatch
from featurelib.definitions import SourceDef
from featurelib.engine.records import Mark
from featurelib.errors import SourceError

__all__ = ["NO_SEQUENCE", "Malformed", "Mark", "Position", "Source", "SourceBatch", "connect", "missing_driver"]


class _Connector(NamedTuple):
    """Where a connector is, and what must be installed for it: the extra, and the modules that come with it."""

    module: str
    name: str
    extra: str = ""
    drivers: tuple[str, ...] = ()


_CONNECTORS: Mapping[str, _Connector] = {
    "files": _Connector("files", "FilesSource"),
    "postgres": _Connector("postgres", "PostgresTable", "postgres", ("psycopg",)),
    "kafka": _Connector("kafka", "KafkaTopic", "kafka", ("confluent_kafka", "fastavro", "google.protobuf")),
    "kinesis": _Connector("kinesis", "KinesisStream", "kinesis", ("boto3",)),
    "s3_json": _Connector("s3", "S3Objects", "s3", ("obstore",)),
    "iceberg": _Connector("iceberg", "IcebergTable", "iceberg", ("pyiceberg",)),
    "snowflake": _Connector("snowflake", "SnowflakeTable", "snowflake", ("jwt", "cryptography")),
    "bigquery": _Connector("bigquery", "BigQueryTable", "bigquery", ("jwt", "cryptography")),
}


def connect(source: SourceDef, batch_rows: int, clock: Clock) -> Source:
    """The connector a source definition names; batches hold at most ``batch_rows`` records.

    Raises:
        SourceError: there is no connector of that type, its driver is missing, or its settings are wrong.
    """
    kind = source.connector.type
    known = _CONNECTORS.get(kind)
    if known is None:
        message = f"source of {source.dataset}: there is no connector of type {kind!r}; there are {_listed()}"
        raise SourceError(message)
    missing = missing_driver(kind)
    if missing:
        raise SourceError(f"source of {source.dataset}: {missing}")
    made = getattr(importlib.import_module(f"featurelib.connectors.{known.module}"), known.name)
    return cast("Source", made(source, batch_rows, clock))


def missing_driver(kind: str) -> str:
    """What to install before a connector of this type can be read; empty when nothing is missing."""
    known = _CONNECTORS.get(kind)
    absent = [name for name in known.drivers if not _is_installed(name)] if known is not None else []
    if known is None or not absent:
        return ""
    return f"{kind} needs {', '.join(absent)}: pip install 'thyme-on-ray[{known.extra}]'"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it is missing
        return False


def _listed() -> str:
    return ", ".join(sorted(_CONNECTORS))
