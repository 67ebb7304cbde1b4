"""``@source`` and the connectors: which outside system feeds a dataset.

A connector here is a description. Reading it is the work of :mod:`featurelib.connectors`; a commit that
names a connector the platform cannot read is refused with ``unsupported_connector``.

Parameters of the connection (host, user, …) fall back to the environment variable
``THYME_<TYPE>_<FIELD>``; what belongs to the dataset (table, topic, …) never does.
"""

# ruff: noqa: RUF009  # _env and _secret give dataclass fields, not values

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from pydantic import ValidationError

from featurelib.clock import parse_duration
from featurelib.declarations import Declared, Site, attach, calling_site, catalog_metadata, refuse_here
from featurelib.definitions import ConnectorDef, SourceDef
from featurelib.errors import DeclarationTypeError, DeclarationValueError
from featurelib.secrets import SecretRef

C = TypeVar("C", bound=type)
_CDC = ("append", "debezium", "upsert")
STREAMING: frozenset[str] = frozenset({"kafka", "kinesis", "webhook"})
"""Connector types that push records; a cursor or a poll interval has no meaning for them."""
TABLES: frozenset[str] = frozenset({"bigquery", "postgres", "snowflake"})
"""Connector types that poll a table; only a cursor column tells what is new in it."""


@runtime_checkable
class Connector(Protocol):
    """What ``@source`` asks of a connector."""

    @property
    def connector_type(self) -> str:
        """The stored type name."""
        ...

    @property
    def is_streaming(self) -> bool:
        """Whether records are pushed rather than polled."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The settings; a credential is ``{"kind": …, "value": …}``."""
        ...


def _env(variable: str, default: Any = "", *, shown: bool = True) -> Any:
    """A connection parameter: given, else from the environment (empty counts as unset), else the default.

    ``shown=False``: it may hold a password, as a URL does.
    """
    return field(default_factory=lambda: type(default)(os.environ.get(variable) or default), repr=shown)


def _secret(variable: str) -> Any:
    """A credential, given or from the environment; stored as a tagged reference and never shown."""
    return field(default_factory=lambda: os.environ.get(variable) or "", repr=False, metadata={"secret": True})


def _extension(default: Any = "", variable: str = "", *, secret: bool = False) -> Any:
    """A setting the stock SDK does not have: stored only where it is set, so that the same module stays the same."""
    return field(
        default_factory=lambda: os.environ.get(variable) or default,
        repr=not secret,
        metadata={"extension": True, "unset": default, "secret": secret},
    )


@dataclass(frozen=True)
class _Described:
    """Shared by the connectors: keyword-only fields, checked and written out from one declaration."""

    _: KW_ONLY

    connector_type: ClassVar[str]
    is_streaming: ClassVar[bool] = False
    required: ClassVar[tuple[str, ...]] = ()
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __post_init__(self) -> None:
        for name in self.required:
            if not getattr(self, name):
                self._refuse(f"`{name}` is required", f"Write {type(self).__name__}({name}=…).")
        for name, allowed in self.choices.items():
            if getattr(self, name) not in allowed:
                known = ", ".join(filter(None, allowed))
                hint = f"Choose one, or leave it out for {type(self).__name__}'s default."
                self._refuse(f"`{name}` is {getattr(self, name)!r}; it must be one of {known}", hint)

    def _refuse(self, message: str, hint: str) -> None:
        refuse_here("invalid_connector", type(self).__name__, message, hint, DeclarationValueError)

    def to_dict(self) -> dict[str, Any]:
        """The settings by their stored names."""
        return {
            each.name: _tagged(getattr(self, each.name)) if each.metadata.get("secret") else getattr(self, each.name)
            for each in fields(self)
            if not each.metadata.get("extension") or getattr(self, each.name) != each.metadata["unset"]
        }


def _tagged(value: str | SecretRef) -> dict[str, str]:
    if isinstance(value, SecretRef):
        return {"kind": value.kind, "value": value.value.get_secret_value()}
    return {"kind": "literal", "value": value}


@dataclass(frozen=True)
class FileSource(_Described):
    """Files on a disk the platform reads: one file, a folder, or a glob pattern.

    ``path`` is taken from the folder of the module that declares it, unless it is absolute or a URL. ``format``
    is ``parquet``, ``csv`` or ``jsonl``; left out, the file's ending says it. ``null`` is CSV text that means null.
    """

    _: KW_ONLY
    path: str = ""
    format: str = ""
    null: str = ""

    connector_type: ClassVar[str] = "files"
    required: ClassVar[tuple[str, ...]] = ("path",)
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"format": ("", "parquet", "csv", "jsonl")}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path and "://" not in self.path:
            folder = Path(calling_site().file).resolve().parent
            object.__setattr__(self, "path", str(folder / Path(self.path).expanduser()))


@dataclass(frozen=True)
class PostgresSource(_Described):
    """A PostgreSQL table or view, polled by a cursor column.

    ``overlap`` is how far behind the newest cursor value each poll looks again for rows that were committed late:
    ``"5m"`` where the cursor is a timestamp, a number where it is one. ``sslrootcert`` is the file of the authorities
    that ``sslmode="verify-ca"`` and ``"verify-full"`` trust, on the machine that reads.
    """

    _: KW_ONLY
    table: str = ""
    host: str = _env("THYME_POSTGRES_HOST", "localhost")
    port: int = _env("THYME_POSTGRES_PORT", 5432)
    database: str = _env("THYME_POSTGRES_DATABASE")
    user: str = _env("THYME_POSTGRES_USER")
    password: str | SecretRef = _secret("THYME_POSTGRES_PASSWORD")
    schema: str = _env("THYME_POSTGRES_SCHEMA", "public")
    sslmode: str = _env("THYME_POSTGRES_SSLMODE", "prefer")
    sslrootcert: str = _extension()
    overlap: str | float = _extension()

    connector_type: ClassVar[str] = "postgres"
    required: ClassVar[tuple[str, ...]] = ("table",)
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
    }


@dataclass(frozen=True)
class KafkaSource(_Described):
    """A Kafka topic. Its place is kept with the records, so ``group_id`` is but a name shown to the brokers.

    ``ssl_ca_location`` is the file of the authority that signed the brokers' certificates, on the machine that reads.
    """

    _: KW_ONLY
    topic: str = ""
    brokers: str = _env("THYME_KAFKA_BROKERS")
    security_protocol: str = _env("THYME_KAFKA_SECURITY_PROTOCOL", "PLAINTEXT")
    sasl_mechanism: str = _env("THYME_KAFKA_SASL_MECHANISM")
    sasl_username: str = _env("THYME_KAFKA_SASL_USERNAME")
    sasl_password: str | SecretRef = _secret("THYME_KAFKA_SASL_PASSWORD")
    format: str = _env("THYME_KAFKA_FORMAT", "json")
    group_id: str = _env("THYME_KAFKA_GROUP_ID")
    schema_registry_url: str = _env("THYME_KAFKA_SCHEMA_REGISTRY_URL", shown=False)
    ssl_ca_location: str = _extension(variable="THYME_KAFKA_SSL_CA_LOCATION")

    connector_type: ClassVar[str] = "kafka"
    is_streaming: ClassVar[bool] = True
    required: ClassVar[tuple[str, ...]] = ("topic",)
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "security_protocol": ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
        "format": ("json", "avro", "protobuf"),
    }


@dataclass(frozen=True)
class KinesisSource(_Described):
    """A Kinesis stream; ``init_position`` is ``latest``, ``trim_horizon`` or an ISO 8601 instant.

    It says where the very first poll begins. ``role_arn`` is assumed with the credentials of the machine that reads;
    ``endpoint_url`` replaces Amazon's addresses.
    """

    _: KW_ONLY
    stream_arn: str = ""
    region: str = _env("THYME_KINESIS_REGION", "us-east-1")
    role_arn: str | SecretRef = _secret("THYME_KINESIS_ROLE_ARN")
    endpoint_url: str = _env("THYME_KINESIS_ENDPOINT_URL")
    init_position: str = "latest"
    format: str = "json"

    connector_type: ClassVar[str] = "kinesis"
    is_streaming: ClassVar[bool] = True
    required: ClassVar[tuple[str, ...]] = ("stream_arn",)
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"format": ("json",)}


@dataclass(frozen=True)
class S3JsonSource(_Described):
    """JSON objects in an S3 bucket: ``.json`` holds one, ``.jsonl`` and ``.ndjson`` one per line, with ``.gz`` packed.

    Without ``access_key_id`` and ``secret_access_key`` the machine that reads uses its own; ``anonymous=True`` reads a
    public bucket. ``endpoint_url`` replaces Amazon's address.
    """

    _: KW_ONLY
    bucket: str = ""
    prefix: str = ""
    region: str = _env("THYME_S3_REGION", "us-east-1")
    endpoint_url: str = _extension(variable="THYME_S3_ENDPOINT_URL")
    access_key_id: str | SecretRef = _extension(variable="THYME_S3_ACCESS_KEY_ID", secret=True)
    secret_access_key: str | SecretRef = _extension(variable="THYME_S3_SECRET_ACCESS_KEY", secret=True)
    anonymous: bool = _extension(default=False)

    connector_type: ClassVar[str] = "s3_json"
    required: ClassVar[tuple[str, ...]] = ("bucket",)


@dataclass(frozen=True)
class IcebergSource(_Described):
    """An Iceberg table.

    ``catalog`` is the name of a catalog configured for pyiceberg on the machine that reads, or ``catalog_uri`` says
    where it is, with ``warehouse`` where it keeps its tables. ``database`` is the table's namespace.
    """

    _: KW_ONLY
    table: str = ""
    catalog: str = _env("THYME_ICEBERG_CATALOG")
    database: str = _env("THYME_ICEBERG_DATABASE")
    catalog_uri: str | SecretRef = _extension(variable="THYME_ICEBERG_CATALOG_URI", secret=True)
    warehouse: str = _extension(variable="THYME_ICEBERG_WAREHOUSE")

    connector_type: ClassVar[str] = "iceberg"
    required: ClassVar[tuple[str, ...]] = ("table",)


@dataclass(frozen=True)
class SnowflakeSource(_Described):
    """A Snowflake table or view, polled by a cursor column; ``overlap`` as for :class:`PostgresSource`.

    ``private_key`` is PEM text (PKCS#8) that belongs to ``user``. ``password`` is taken and not used.
    """

    _: KW_ONLY
    table: str = ""
    account: str = _env("THYME_SNOWFLAKE_ACCOUNT")
    database: str = _env("THYME_SNOWFLAKE_DATABASE")
    schema: str = _env("THYME_SNOWFLAKE_SCHEMA", "PUBLIC")
    warehouse: str = _env("THYME_SNOWFLAKE_WAREHOUSE")
    role: str = _env("THYME_SNOWFLAKE_ROLE")
    user: str = _env("THYME_SNOWFLAKE_USER")
    password: str | SecretRef = _secret("THYME_SNOWFLAKE_PASSWORD")
    private_key: str | SecretRef = _secret("THYME_SNOWFLAKE_PRIVATE_KEY")
    private_key_passphrase: str | SecretRef = _secret("THYME_SNOWFLAKE_PRIVATE_KEY_PASSPHRASE")
    endpoint_url: str = _env("THYME_SNOWFLAKE_ENDPOINT_URL")
    overlap: str | float = _extension()

    connector_type: ClassVar[str] = "snowflake"
    required: ClassVar[tuple[str, ...]] = ("table",)


@dataclass(frozen=True)
class BigQuerySource(_Described):
    """A BigQuery table or view, polled by a cursor column; ``overlap`` as for :class:`PostgresSource`.

    ``credentials_json`` is the key of a service account; empty means the credentials of the machine that reads.
    ``endpoint_url`` replaces Google's.
    """

    _: KW_ONLY
    dataset_id: str = ""
    table: str = ""
    project_id: str = _env("THYME_BIGQUERY_PROJECT_ID")
    credentials_json: str | SecretRef = _secret("THYME_BIGQUERY_CREDENTIALS_JSON")
    endpoint_url: str = _extension()
    overlap: str | float = _extension()

    connector_type: ClassVar[str] = "bigquery"
    required: ClassVar[tuple[str, ...]] = ("dataset_id", "table")


@dataclass(frozen=True)
class WebhookSource(_Described):
    """Records that another system pushes to ``POST /api/v1/webhooks/<dataset>``.

    With a ``secret`` a delivery must carry the HMAC-SHA256 of its body under it, in hex, in ``signature_header``;
    without one it needs a writer's key. ``path`` names the records inside the body: ``data.items``; left out, the body
    is a record or a list of them.
    """

    _: KW_ONLY
    secret: str | SecretRef = _secret("THYME_WEBHOOK_SECRET")
    signature_header: str = "X-Signature-256"
    path: str = ""

    connector_type: ClassVar[str] = "webhook"
    is_streaming: ClassVar[bool] = True
    required: ClassVar[tuple[str, ...]] = ("signature_header",)


def source(
    connector: Connector, cursor: str = "", every: str = "", max_lateness: str = "", cdc: str = "append", **catalog: Any
) -> Callable[[C], C]:
    """Feed a dataset from an outside system; stands above ``@dataset``.

    Args:
        connector: the outside system.
        cursor: a column that never decreases; each poll fetches what lies at or beyond the newest seen. SQL tables need
            one.
        every: poll interval, ``<int><d|h|m|s>``.
        max_lateness: how far an event may lie behind the newest one and still count; empty: nothing is late.
        cdc: ``append``, ``upsert`` or ``debezium``.
        **catalog: ``description, owner, tags, project, deprecated, deprecation_reason, replacement``.

    Raises:
        DeclarationTypeError: ``connector`` is not one.
        DeclarationValueError: an unknown ``cdc``, or ``cursor`` or ``every`` on a streaming connector.
    """
    site = calling_site()

    def decorate(cls: C) -> C:
        declared = attach(cls, site)
        declared.locations[f"source:{cls.__name__}"] = site.location
        try:
            settings = _settings(cls, connector, cursor, every, cdc)
            if settings is None:
                return cls
            definition = SourceDef(
                dataset=cls.__name__,
                connector=settings,
                cursor="" if settings.type in STREAMING else cursor,
                every_us=_duration(declared, "every", every, site),
                max_lateness_us=_duration(declared, "max_lateness", max_lateness, site),
                cdc=cdc if cdc in _CDC else "append",
                metadata=catalog_metadata(catalog),
            )
        except ValidationError as error:
            declared.invalid(error, cls.__name__, site)
        else:
            declared.definitions.append(definition)
        return cls

    return decorate


def _settings(cls: type, connector: Connector, cursor: str, every: str, cdc: str) -> ConnectorDef | None:
    """The connector's record, after the checks that are refused at once."""
    name = cls.__name__
    if not isinstance(connector, Connector) or isinstance(connector, type):
        text = f"source() takes a connector; found a {type(connector).__name__}"
        refuse_here("invalid_connector", name, text, "Write FileSource(path=…) or another.", DeclarationTypeError)
        return None
    if cdc not in _CDC:
        text = f"cdc is {cdc!r}; it must be one of {', '.join(_CDC)}"
        refuse_here("invalid_cdc", name, text, "Leave it out for append.", DeclarationValueError)
    if connector.is_streaming and (cursor or every):
        text = f"{connector.connector_type} pushes its records; cursor and every have no meaning for it"
        refuse_here("cursor_on_stream", name, text, "Leave both out.", DeclarationValueError)
    return ConnectorDef(type=stored_type(connector.connector_type), config=connector.to_dict())


def stored_type(connector_type: str) -> str:
    """The stored name of a connector type; the stock SDK writes ``s3json``."""
    return "s3_json" if connector_type == "s3json" else connector_type


def _duration(declared: Declared, name: str, text: str, site: Site) -> int | None:
    if not text:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        declared.problem("invalid_duration", declared.name, f"{name}: {error}", f"Write {name}='5m'.", site=site)
        return None
