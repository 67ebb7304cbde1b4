"""Revisions of definitions, metadata edited in place, orders to jobs, backfills on request, and what runs saw."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables, keep what is stored as first revisions, and add columns."""
    op.create_table(
        "definition_revisions",
        sa.Column("sequence", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("format", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("commit_sequence", _SEQUENCE, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["commit_sequence"], ["commits.sequence"], name=op.f("fk_definition_revisions_commit_sequence")
        ),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_definition_revisions")),
        sa.UniqueConstraint("kind", "name", "version", "revision", name=op.f("uq_definition_revisions_kind")),
    )
    op.execute(
        "INSERT INTO definition_revisions"
        " (kind, name, version, revision, format, digest, body, commit_sequence, created_at)"
        " SELECT kind, name, version, 1, format, digest, body, commit_sequence, updated_at FROM definitions"
        " ORDER BY commit_sequence, kind, name, version"
    )
    op.create_table(
        "metadata_edits",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("edit", sa.Text(), nullable=False),
        sa.Column("committed", sa.Text(), nullable=False),
        sa.Column("deprecated_at", sa.BigInteger(), nullable=True),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "name", name=op.f("pk_metadata_edits")),
    )
    op.create_table(
        "job_orders",
        sa.Column("pipeline", sa.String(length=160), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("restarts", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pipeline", name=op.f("pk_job_orders")),
    )
    op.create_table(
        "backfill_requests",
        sa.Column("sequence", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("pipeline", sa.String(length=160), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=True),
        sa.Column("until", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("submission_id", sa.Text(), nullable=True),
        sa.Column("generation", sa.Integer(), nullable=True),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("rows_expected", sa.BigInteger(), nullable=True),
        sa.Column("requested_by", sa.String(length=8), nullable=True),
        sa.Column("correlation_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state IN ('requested', 'running', 'switching', 'cancelling', 'cancelled', 'complete', 'failed')",
            name=op.f("ck_backfill_requests_state"),
        ),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_backfill_requests")),
        sa.UniqueConstraint("id", name=op.f("uq_backfill_requests_id")),
    )
    op.create_index(
        op.f("ix_backfill_requests_pipeline"), "backfill_requests", ["pipeline", "created_at"], unique=False
    )
    op.add_column("api_keys", sa.Column("rate_limit", sa.Integer(), nullable=True))
    op.add_column("query_runs", sa.Column("digests", sa.Text(), nullable=True))
    op.add_column("query_runs", sa.Column("read_at", sa.BigInteger(), nullable=True))
    op.add_column("query_runs", sa.Column("registry_version", sa.BigInteger(), nullable=True))
    op.create_index(
        op.f("ix_query_runs_api_key_fingerprint"),
        "query_runs",
        ["api_key_fingerprint", "created_at"],
        unique=False,
    )
