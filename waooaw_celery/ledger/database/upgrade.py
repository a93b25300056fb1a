"""Creates and upgrades the ledger's schema with Alembic."""

from __future__ import annotations

from alembic import command
from alembic.config import Config

from waooaw_celery.ledger.database import partitions
from waooaw_celery.ledger.database.clock import now_in
from waooaw_celery.ledger.database.engine import Database
from waooaw_celery.ledger.database.version import NEWEST

#: Seconds that an upgrade may take. A new index on a large table takes long.
DEADLINE_SECONDS = 3600.0


def upgrade(database: Database) -> str:
    """Upgrade the schema to the newest version. Running it again changes nothing.

    Returns:
        The version of the schema.

    Raises:
        AuditUnavailable: the database does not answer, or refuses a statement.
    """
    config = migrations()
    with database.begin("upgrade the ledger's schema", DEADLINE_SECONDS) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if database.is_postgresql:
            partitions.make_ahead(connection, now_in(connection))
    return NEWEST


def migrations() -> Config:
    """Return the Alembic configuration of this package's migrations."""
    config = Config()
    config.set_main_option("script_location", "waooaw_celery:ledger/database/migrations")
    config.set_main_option("path_separator", "os")
    return config
