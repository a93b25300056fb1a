"""The ledger's schema, brought up to date with Alembic."""

from __future__ import annotations

from alembic import command
from alembic.config import Config

from waooaw_celery.ledger.database import partitions
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.version import NEWEST

#: Seconds that it may take: a new index on a large table takes its time.
DEADLINE_SECONDS = 3600.0


def upgrade(database: Database) -> str:
    """Bring the schema up to date and return its version. Running it again changes nothing.

    Raises:
        AuditUnavailable: the database does not answer or refuses.
    """
    config = migrations()
    with database.begin("bring the ledger's schema up to date", DEADLINE_SECONDS) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if database.is_postgresql:
            partitions.make_ahead(connection, now_in(connection))
    return NEWEST


def migrations() -> Config:
    """Return Alembic's configuration for the migrations in this package."""
    config = Config()
    config.set_main_option("script_location", "waooaw_celery:ledger/database/migrations")
    config.set_main_option("path_separator", "os")
    return config
