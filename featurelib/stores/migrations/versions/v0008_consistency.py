"""What was served against what is true, and statistics of features."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "consistency_checks",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("target", sa.String(length=128), nullable=False),
        sa.Column("feature", sa.String(length=128), nullable=False),
        sa.Column("hour", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("compared", sa.BigInteger(), nullable=False),
        sa.Column("different", sa.BigInteger(), nullable=False),
        sa.Column("causes", sa.Text(), nullable=False),
        sa.Column("worst", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "target", "feature", "hour", name=op.f("pk_consistency_checks")),
        sa.CheckConstraint("kind IN ('dataset', 'featureset')", name=op.f("ck_consistency_checks_kind")),
    )
    op.create_index(op.f("ix_consistency_checks_hour"), "consistency_checks", ["hour"])
    op.create_table(
        "column_statistics",
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.String(length=160), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("day", sa.BigInteger(), nullable=False, autoincrement=False),
        sa.Column("definition", sa.String(length=64), nullable=False),
        sa.Column("rows", sa.BigInteger(), nullable=False),
        sa.Column("nulls", sa.BigInteger(), nullable=False),
        sa.Column("psi", sa.Float(precision=53), nullable=True),
        sa.Column("js", sa.Float(precision=53), nullable=True),
        sa.Column("reference_rows", sa.BigInteger(), nullable=True),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "subject", "name", "day", name=op.f("pk_column_statistics")),
        sa.CheckConstraint("kind IN ('dataset', 'featureset')", name=op.f("ck_column_statistics_kind")),
    )
    op.create_index(op.f("ix_column_statistics_day"), "column_statistics", ["day"])
    op.create_table(
        "monitor_marks",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_monitor_marks")),
    )
