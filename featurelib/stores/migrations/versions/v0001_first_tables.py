"""The first tables: definitions and their commits, events, keys, display copies of jobs, query runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create them."""
    _definitions()
    _events_and_keys()
    _display_copies()
    _query_runs()


def _definitions() -> None:
    op.create_table(
        "registry_version",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_registry_version_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_registry_version")),
    )
    op.execute("INSERT INTO registry_version (id, version) VALUES (1, 0)")
    op.create_table(
        "commits",
        sa.Column("sequence", _SEQUENCE, nullable=False),
        sa.Column("commit_id", sa.String(length=64), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("committed_by", sa.Text(), nullable=True),
        sa.Column("receipt", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_commits")),
        sa.UniqueConstraint("version", name=op.f("uq_commits_version")),
    )
    op.create_index(op.f("ix_commits_commit_id"), "commits", ["commit_id"], unique=False)
    op.create_table(
        "definitions",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("format", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("commit_sequence", _SEQUENCE, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('dataset', 'pipeline', 'featureset', 'source')", name=op.f("ck_definitions_kind")),
        sa.ForeignKeyConstraint(["commit_sequence"], ["commits.sequence"], name=op.f("fk_definitions_commit_sequence")),
        sa.PrimaryKeyConstraint("kind", "name", "version", name=op.f("pk_definitions")),
    )


def _events_and_keys() -> None:
    op.create_table(
        "events",
        sa.Column("sequence", _SEQUENCE, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("severity", sa.String(length=8), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("severity IN ('info', 'warn', 'error')", name=op.f("ck_events_severity")),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_events")),
        sa.UniqueConstraint("id", name=op.f("uq_events_id")),
    )
    op.create_index(op.f("ix_events_created_at"), "events", ["created_at"], unique=False)
    op.create_index(op.f("ix_events_subject"), "events", ["subject", "created_at"], unique=False)
    op.create_table(
        "api_keys",
        sa.Column("sequence", _SEQUENCE, nullable=False),
        sa.Column("fingerprint", sa.String(length=8), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=8), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("role IN ('reader', 'writer', 'admin')", name=op.f("ck_api_keys_role")),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_api_keys_fingerprint")),
        sa.UniqueConstraint("sha256", name=op.f("uq_api_keys_sha256")),
    )


def _display_copies() -> None:
    op.create_table(
        "jobs",
        sa.Column("pipeline", sa.String(length=160), nullable=False),
        sa.Column("job_type", sa.String(length=16), nullable=False),
        sa.Column("partition_count", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("applied_us", sa.BigInteger(), nullable=True),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("lag", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("job_type IN ('pipeline', 'backfill')", name=op.f("ck_jobs_job_type")),
        sa.PrimaryKeyConstraint("pipeline", "job_type", name=op.f("pk_jobs")),
    )
    op.create_table(
        "source_statuses",
        sa.Column("dataset", sa.String(length=160), nullable=False),
        sa.Column("cursor_value", sa.Text(), nullable=True),
        sa.Column("rows_in", sa.BigInteger(), nullable=False),
        sa.Column("rows_dead", sa.BigInteger(), nullable=False),
        sa.Column("rows_late", sa.BigInteger(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", name=op.f("pk_source_statuses")),
    )
    op.create_table(
        "backfills",
        sa.Column("job_name", sa.Text(), nullable=False),
        sa.Column("source_dataset", sa.String(length=160), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("records_ingested", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_name", "source_dataset", name=op.f("pk_backfills")),
    )


def _query_runs() -> None:
    op.create_table(
        "query_runs",
        sa.Column("sequence", _SEQUENCE, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("featureset", sa.Text(), nullable=False),
        sa.Column("entity_ids", sa.Text(), nullable=False),
        sa.Column("entity_count", sa.Integer(), nullable=False),
        sa.Column("hit_count", sa.Integer(), nullable=False),
        sa.Column("requested_timestamp", sa.BigInteger(), nullable=True),
        sa.Column("latency_ms", sa.BigInteger(), nullable=False),
        sa.Column("api_key_fingerprint", sa.String(length=8), nullable=True),
        sa.Column("correlation_id", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("inputs", sa.Text(), nullable=True),
        sa.Column("definition", sa.String(length=64), nullable=True),
        sa.Column("positions", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("kind IN ('online', 'batch', 'offline', 'lookup')", name=op.f("ck_query_runs_kind")),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_query_runs")),
        sa.UniqueConstraint("id", name=op.f("uq_query_runs_id")),
    )
    op.create_index(op.f("ix_query_runs_created_at"), "query_runs", ["created_at"], unique=False)
    op.create_index(op.f("ix_query_runs_featureset"), "query_runs", ["featureset", "created_at"], unique=False)
