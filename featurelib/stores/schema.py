"""The registry's tables: one schema for SQLite and PostgreSQL.

`migrations/versions` builds exactly this, and a test compares the two. Instants are BIGINT
microseconds, UTC. Text that users can influence goes through `Prose` and `JsonText`, so that no
value a request may carry (NUL, half a surrogate pair, NaN) can make one database refuse what the
other takes. Nothing here is read on the hot path.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

_NUL = "\x00"
_REPLACEMENT = "\ufffd"
_plain_json = msgspec.json.Encoder().encode
_as_json = json.JSONEncoder(separators=(",", ":")).encode  # `json.dumps` would make an encoder each time


class Prose(TypeDecorator[str]):
    """Free text. NUL, which PostgreSQL refuses, and lone surrogates, which UTF-8 has no form for, are replaced."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002  # fixed signature
        """The text as both databases can store it."""
        if value is None:
            return None
        return value.encode("utf-8", "replace").decode().replace(_NUL, _REPLACEMENT)


class JsonText(TypeDecorator[Any]):
    """JSON kept as text, so that both databases hold the same characters and neither judges them."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:  # noqa: ARG002  # fixed signature
        """SQL NULL for ``None``; ASCII JSON for the rest."""
        return None if value is None else _as_json(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002  # fixed signature
        """The value that was stored."""
        return None if value is None else json.loads(value)


class PlainJsonText(JsonText):
    """The same of what has no floats in it, several µs sooner: written with every query run."""

    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        """SQL NULL for ``None``; ASCII JSON for the rest."""
        if value is None:
            return None
        try:
            text = _plain_json(value).decode()
        except (OverflowError, TypeError, ValueError):  # more than 64 bits, or half a character
            return super().process_bind_param(value, dialect)
        return text if text.isascii() else super().process_bind_param(value, dialect)


# SQLite only numbers rows by itself in a column typed exactly INTEGER.
_SEQUENCE = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
    }
)

registry_version = Table(
    "registry_version",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="single"),
)

commits = Table(
    "commits",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True),
    Column("commit_id", String(64), nullable=False),
    Column("version", BigInteger, nullable=False, unique=True),
    Column("message", Prose, nullable=False),
    Column("committed_by", Prose),
    Column("receipt", JsonText, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Index(None, "commit_id"),
)

definitions = Table(
    "definitions",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("format", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("commit_sequence", _SEQUENCE, ForeignKey("commits.sequence"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    CheckConstraint("kind IN ('dataset', 'pipeline', 'featureset', 'source', 'feature_service')", name="kind"),
)

definition_revisions = Table(
    "definition_revisions",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("name", String(128), nullable=False),
    Column("version", Integer, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("format", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("commit_sequence", _SEQUENCE, ForeignKey("commits.sequence"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("kind", "name", "version", "revision"),
)

metadata_edits = Table(
    "metadata_edits",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("edit", JsonText, nullable=False),
    Column("committed", JsonText, nullable=False),
    Column("deprecated_at", BigInteger),
    Column("updated_at", BigInteger, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("event_type", Prose, nullable=False),
    Column("severity", String(8), nullable=False),
    Column("source", Prose, nullable=False),
    Column("subject", Prose, nullable=False),
    Column("message", Prose, nullable=False),
    Column("detail", JsonText),
    Column("created_at", BigInteger, nullable=False),
    CheckConstraint("severity IN ('info', 'warn', 'error')", name="severity"),
    Index(None, "created_at"),
    Index(None, "subject", "created_at"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True),
    Column("fingerprint", String(8), nullable=False, unique=True),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("role", String(8), nullable=False),
    Column("label", Prose, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("rate_limit", Integer),
    Column("principal", String(36)),
    Column("public_key", Text),
    CheckConstraint("role IN ('reader', 'writer', 'admin')", name="role"),
)

principals = Table(
    "principals",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("name", String(128), nullable=False),
    Column("about", JsonText, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("creator", String(36)),
    Column("created_at", BigInteger, nullable=False),
    CheckConstraint("kind IN ('user', 'service_account', 'group', 'workspace')", name="kind"),
    UniqueConstraint("kind", "name"),
)

group_members = Table(
    "group_members",
    metadata,
    Column("group_id", String(36), ForeignKey("principals.id"), primary_key=True),
    Column("member_id", String(36), ForeignKey("principals.id"), primary_key=True),
)

role_assignments = Table(
    "role_assignments",
    metadata,
    Column("principal", String(36), ForeignKey("principals.id"), primary_key=True),
    Column("resource_type", String(16), primary_key=True),
    Column("resource_id", String(128), primary_key=True),
    Column("role", String(24), primary_key=True),
    CheckConstraint("resource_type IN ('organization', 'workspace', 'secret_scope')", name="resource_type"),
    Index(None, "resource_type", "resource_id"),
)

secret_scopes = Table(
    "secret_scopes",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("created_at", BigInteger, nullable=False),
)

secret_values = Table(
    "secret_values",
    metadata,
    Column("scope", String(128), ForeignKey("secret_scopes.name"), primary_key=True),
    Column("key", String(128), primary_key=True),
    Column("key_id", String(16), nullable=False),
    Column("sealed", Text, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("pipeline", String(160), primary_key=True),
    Column("job_type", String(16), primary_key=True),
    Column("partition_count", Integer, nullable=False),
    Column("state", Prose, nullable=False),
    Column("detail", Prose, nullable=False),
    Column("applied_us", BigInteger),
    Column("rows", BigInteger, nullable=False),
    Column("lag", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("rows_in", BigInteger, server_default="0", nullable=False),
    Column("rows_late", BigInteger, server_default="0", nullable=False),
    Column("rows_failed", BigInteger, server_default="0", nullable=False),
    Column("waiting_since_us", BigInteger),
    Column("workers", JsonText),
    CheckConstraint("job_type IN ('pipeline', 'backfill')", name="job_type"),
)

pipeline_partitions = Table(
    "pipeline_partitions",
    metadata,
    Column("pipeline", String(160), primary_key=True),
    Column("partition_count", Integer, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    CheckConstraint("partition_count BETWEEN 1 AND 64", name="partition_count"),
)

job_orders = Table(
    "job_orders",
    metadata,
    Column("pipeline", String(160), primary_key=True),
    Column("paused", Boolean, nullable=False),
    Column("restarts", Integer, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

dataset_statuses = Table(
    "dataset_statuses",
    metadata,
    Column("dataset", String(160), primary_key=True),
    Column("rows_out", BigInteger, nullable=False),
    Column("rows_late", BigInteger, nullable=False),
    Column("rows_dead", BigInteger, nullable=False),
    Column("newest_us", BigInteger),
    Column("accepted_us", BigInteger),
    Column("waiting_since_us", BigInteger),
    Column("lag", BigInteger, nullable=False),
    Column("archive_lag", BigInteger),
    Column("partitions", JsonText, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

source_statuses = Table(
    "source_statuses",
    metadata,
    Column("dataset", String(160), primary_key=True),
    Column("cursor_value", Prose),
    Column("rows_in", BigInteger, nullable=False),
    Column("rows_dead", BigInteger, nullable=False),
    Column("rows_late", BigInteger, nullable=False),
    Column("last_error", Prose),
    Column("updated_at", BigInteger, nullable=False),
)

backfills = Table(
    "backfills",
    metadata,
    Column("job_name", Prose, primary_key=True),
    Column("source_dataset", String(160), primary_key=True),
    Column("status", Prose, nullable=False),
    Column("records_ingested", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

backfill_requests = Table(
    "backfill_requests",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("pipeline", String(160), nullable=False),
    Column("since", BigInteger),
    Column("until", BigInteger),
    Column("state", String(16), nullable=False),
    Column("detail", Prose, nullable=False),
    Column("submission_id", Prose),
    Column("generation", Integer),
    Column("rows", BigInteger, nullable=False),
    Column("rows_expected", BigInteger),
    Column("requested_by", String(8)),
    Column("correlation_id", Prose),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("cut", JsonText),
    Column("previous", Integer),
    Column("kept_until", BigInteger),
    CheckConstraint(
        "state IN ('requested', 'running', 'switching', 'cancelling', 'cancelled', 'complete', 'failed',"
        " 'rolling_back', 'rolled_back')",
        name="state",
    ),
    Index(None, "pipeline", "created_at"),
)

training_sets = Table(
    "training_sets",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("featureset", Prose, nullable=False),
    Column("spine", Prose),
    Column("entity_column", Prose),
    Column("timestamp_column", Prose, nullable=False),
    Column("knowledge", String(16), nullable=False),
    Column("like_id", String(36)),
    Column("state", String(16), nullable=False),
    Column("error", Prose),
    Column("detail", Prose, nullable=False),
    Column("submission_id", Prose),
    Column("attempt", Integer, nullable=False),
    Column("rows", BigInteger),
    Column("parts", Integer),
    Column("parts_done", Integer, nullable=False),
    Column("requested_by", String(8)),
    Column("correlation_id", Prose),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    CheckConstraint(
        "state IN ('requested', 'running', 'cancelling', 'cancelled', 'complete', 'failed')",
        name="state",
    ),
    Index(None, "created_at"),
)

erasures = Table(
    "erasures",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("dataset", String(128), nullable=False),
    Column("entities", Integer, nullable=False),
    Column("digests", JsonText, nullable=False),
    Column("tombstones", JsonText, nullable=False),
    Column("block", Boolean, nullable=False),
    Column("state", String(16), nullable=False),
    Column("progress", JsonText, nullable=False),
    Column("requested_by", String(8)),
    Column("created_at", BigInteger, nullable=False),
    Column("completed_at", BigInteger),
    CheckConstraint("state IN ('accepted', 'applied', 'archived', 'complete')", name="state"),
    Index(None, "created_at"),
)

query_runs = Table(
    "query_runs",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("kind", String(8), nullable=False),
    Column("featureset", Prose, nullable=False),
    Column("entity_ids", PlainJsonText, nullable=False),
    Column("entity_count", Integer, nullable=False),
    Column("hit_count", Integer, nullable=False),
    Column("requested_timestamp", BigInteger),
    Column("latency_ms", BigInteger, nullable=False),
    Column("api_key_fingerprint", String(8)),
    Column("correlation_id", Prose),
    Column("error", Prose),
    Column("inputs", JsonText),
    Column("definition", String(64)),
    Column("positions", PlainJsonText),
    Column("created_at", BigInteger, nullable=False),
    Column("digests", PlainJsonText),
    Column("read_at", BigInteger),
    Column("registry_version", BigInteger),
    CheckConstraint("kind IN ('online', 'batch', 'offline', 'lookup')", name="kind"),
    Index(None, "created_at"),
    Index(None, "featureset", "created_at"),
    Index(None, "api_key_fingerprint", "created_at"),
)

consistency_checks = Table(
    "consistency_checks",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("target", String(128), primary_key=True),
    Column("feature", String(128), primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("compared", BigInteger, nullable=False),
    Column("different", BigInteger, nullable=False),
    Column("causes", JsonText, nullable=False),
    Column("worst", JsonText, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    CheckConstraint("kind IN ('dataset', 'featureset')", name="kind"),
    Index(None, "hour"),
)

column_statistics = Table(
    "column_statistics",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("subject", String(160), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("day", BigInteger, primary_key=True, autoincrement=False),
    Column("definition", String(64), nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("nulls", BigInteger, nullable=False),
    Column("psi", Float(53)),
    Column("js", Float(53)),
    Column("reference_rows", BigInteger),
    Column("summary", JsonText, nullable=False),
    Column("made_at", BigInteger, nullable=False),
    CheckConstraint("kind IN ('dataset', 'featureset')", name="kind"),
    Index(None, "day"),
)

monitor_marks = Table(
    "monitor_marks",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)
