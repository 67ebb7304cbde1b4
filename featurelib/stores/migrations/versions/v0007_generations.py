"""A backfill goes on after a crash, and the build before it is kept to go back to."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_NAME = "ck_backfill_requests_state"
_STATES = (
    "state IN ('requested', 'running', 'switching', 'cancelling', 'cancelled', 'complete', 'failed',"
    " 'rolling_back', 'rolled_back')"
)
_COPY = (
    "INSERT INTO backfill_requests (sequence, id, pipeline, since, until, state, detail, submission_id, generation,"
    " rows, rows_expected, requested_by, correlation_id, created_at, updated_at)"
    " SELECT sequence, id, pipeline, since, until, state, detail, submission_id, generation, rows, rows_expected,"
    " requested_by, correlation_id, created_at, updated_at FROM backfill_requests_before"
)


def upgrade() -> None:
    """Add what a job that goes on must know, and two states."""
    if op.get_bind().dialect.name == "postgresql":
        for column in _columns():
            op.add_column("backfill_requests", column)
        op.drop_constraint(op.f(_NAME), "backfill_requests", type_="check")
        op.create_check_constraint(op.f(_NAME), "backfill_requests", _STATES)
        return
    # SQLite changes no constraint in place: the table is made anew and its rows are copied.
    op.rename_table("backfill_requests", "backfill_requests_before")
    _create()
    op.execute(_COPY)
    op.drop_table("backfill_requests_before")
    op.create_index(
        op.f("ix_backfill_requests_pipeline"), "backfill_requests", ["pipeline", "created_at"], unique=False
    )


def _create() -> None:
    op.create_table(
        "backfill_requests",
        sa.Column("sequence", sa.Integer(), autoincrement=True, nullable=False),
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
        *_columns(),
        sa.CheckConstraint(_STATES, name=op.f(_NAME)),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_backfill_requests")),
        sa.UniqueConstraint("id", name=op.f("uq_backfill_requests_id")),
    )


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("attempt", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("cut", sa.Text(), nullable=True),
        sa.Column("previous", sa.Integer(), nullable=True),
        sa.Column("kept_until", sa.BigInteger(), nullable=True),
    ]
