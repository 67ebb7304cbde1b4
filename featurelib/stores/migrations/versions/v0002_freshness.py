"""How fresh datasets and pipelines are, who works on them, and how many workers each pipeline shall have."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create them."""
    # One statement per column: what SQLite takes without copying the table.
    for name in ("rows_in", "rows_late", "rows_failed"):
        op.add_column("jobs", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("waiting_since_us", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("workers", sa.Text(), nullable=True))
    op.create_table(
        "dataset_statuses",
        sa.Column("dataset", sa.String(length=160), nullable=False),
        sa.Column("rows_out", sa.BigInteger(), nullable=False),
        sa.Column("rows_late", sa.BigInteger(), nullable=False),
        sa.Column("rows_dead", sa.BigInteger(), nullable=False),
        sa.Column("newest_us", sa.BigInteger(), nullable=True),
        sa.Column("accepted_us", sa.BigInteger(), nullable=True),
        sa.Column("waiting_since_us", sa.BigInteger(), nullable=True),
        sa.Column("lag", sa.BigInteger(), nullable=False),
        sa.Column("archive_lag", sa.BigInteger(), nullable=True),
        sa.Column("partitions", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", name=op.f("pk_dataset_statuses")),
    )
    op.create_table(
        "pipeline_partitions",
        sa.Column("pipeline", sa.String(length=160), nullable=False),
        sa.Column("partition_count", sa.Integer(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("partition_count BETWEEN 1 AND 64", name=op.f("ck_pipeline_partitions_partition_count")),
        sa.PrimaryKeyConstraint("pipeline", name=op.f("pk_pipeline_partitions")),
    )
