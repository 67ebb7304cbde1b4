"""Training sets that were asked for over HTTP."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "training_sets",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("featureset", sa.Text(), nullable=False),
        sa.Column("spine", sa.Text(), nullable=True),
        sa.Column("entity_column", sa.Text(), nullable=True),
        sa.Column("timestamp_column", sa.Text(), nullable=False),
        sa.Column("knowledge", sa.String(length=16), nullable=False),
        sa.Column("like_id", sa.String(length=36), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("submission_id", sa.Text(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=True),
        sa.Column("parts", sa.Integer(), nullable=True),
        sa.Column("parts_done", sa.Integer(), nullable=False),
        sa.Column("requested_by", sa.String(length=8), nullable=True),
        sa.Column("correlation_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "state IN ('requested', 'running', 'cancelling', 'cancelled', 'complete', 'failed')",
            name=op.f("ck_training_sets_state"),
        ),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_training_sets")),
        sa.UniqueConstraint("id", name=op.f("uq_training_sets_id")),
    )
    op.create_index(op.f("ix_training_sets_created_at"), "training_sets", ["created_at"], unique=False)
