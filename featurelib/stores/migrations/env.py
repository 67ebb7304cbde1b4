"""Alembic runs this file for every command; :func:`featurelib.stores.migrations.upgrade` hands it the connection."""

from __future__ import annotations

from alembic import context

from featurelib.stores.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
