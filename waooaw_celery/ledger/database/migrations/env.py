"""Alembic's environment: it runs the migrations in the caller's transaction, with a separate version table."""

from __future__ import annotations

from alembic import context

from waooaw_celery.ledger.database.models import Base
from waooaw_celery.ledger.database.version import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
context.run_migrations()
