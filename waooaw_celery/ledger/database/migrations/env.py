"""How Alembic runs the migrations: in the transaction of whoever asked, with a version table of our own."""

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
