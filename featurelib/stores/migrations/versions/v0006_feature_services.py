"""Feature services are definitions too."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_NAME = "ck_definitions_kind"
_KINDS = "kind IN ('dataset', 'pipeline', 'featureset', 'source', 'feature_service')"
_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Let a definition be a feature service."""
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint(op.f(_NAME), "definitions", type_="check")
        op.create_check_constraint(op.f(_NAME), "definitions", _KINDS)
        return
    # SQLite changes no constraint in place: the table is made anew and its rows are copied.
    op.rename_table("definitions", "definitions_before")
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
        sa.CheckConstraint(_KINDS, name=op.f(_NAME)),
        sa.ForeignKeyConstraint(["commit_sequence"], ["commits.sequence"], name=op.f("fk_definitions_commit_sequence")),
        sa.PrimaryKeyConstraint("kind", "name", "version", name=op.f("pk_definitions")),
    )
    op.execute("INSERT INTO definitions SELECT * FROM definitions_before")
    op.drop_table("definitions_before")
