"""Principals, the roles they hold, secrets, and whom a key belongs to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables, and add whose a key is and what it signs with."""
    _create_principals()
    _create_secrets()
    op.add_column("api_keys", sa.Column("principal", sa.String(length=36), nullable=True))
    op.add_column("api_keys", sa.Column("public_key", sa.Text(), nullable=True))


def _create_principals() -> None:
    op.create_table(
        "principals",
        sa.Column("sequence", _SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("about", sa.Text(), nullable=False),
        sa.Column("is_active", sa.Boolean(), nullable=False),
        sa.Column("creator", sa.String(length=36), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('user', 'service_account', 'group', 'workspace')", name=op.f("ck_principals_kind")
        ),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_principals")),
        sa.UniqueConstraint("id", name=op.f("uq_principals_id")),
        sa.UniqueConstraint("kind", "name", name=op.f("uq_principals_kind")),
    )
    op.create_table(
        "group_members",
        sa.Column("group_id", sa.String(length=36), nullable=False),
        sa.Column("member_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["principals.id"], name=op.f("fk_group_members_group_id")),
        sa.ForeignKeyConstraint(["member_id"], ["principals.id"], name=op.f("fk_group_members_member_id")),
        sa.PrimaryKeyConstraint("group_id", "member_id", name=op.f("pk_group_members")),
    )
    op.create_table(
        "role_assignments",
        sa.Column("principal", sa.String(length=36), nullable=False),
        sa.Column("resource_type", sa.String(length=16), nullable=False),
        sa.Column("resource_id", sa.String(length=128), nullable=False),
        sa.Column("role", sa.String(length=24), nullable=False),
        sa.CheckConstraint(
            "resource_type IN ('organization', 'workspace', 'secret_scope')",
            name=op.f("ck_role_assignments_resource_type"),
        ),
        sa.ForeignKeyConstraint(["principal"], ["principals.id"], name=op.f("fk_role_assignments_principal")),
        sa.PrimaryKeyConstraint("principal", "resource_type", "resource_id", "role", name=op.f("pk_role_assignments")),
    )
    op.create_index(
        op.f("ix_role_assignments_resource_type"), "role_assignments", ["resource_type", "resource_id"], unique=False
    )


def _create_secrets() -> None:
    op.create_table(
        "secret_scopes",
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_secret_scopes")),
    )
    op.create_table(
        "secret_values",
        sa.Column("scope", sa.String(length=128), nullable=False),
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("key_id", sa.String(length=16), nullable=False),
        sa.Column("sealed", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["scope"], ["secret_scopes.name"], name=op.f("fk_secret_values_scope")),
        sa.PrimaryKeyConstraint("scope", "key", name=op.f("pk_secret_values")),
    )
