"""Checks that a database has the schema that this version of the package needs. It does not load Alembic."""

from __future__ import annotations

from sqlalchemy import inspect, text

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.ledger.database.engine import Database

#: The newest migration. A test compares it with the migrations.
NEWEST = "0003"
#: The table has its own name, so that it does not collide with your own Alembic in the same database.
VERSION_TABLE = "waooaw_alembic_version"


def current_version(database: Database) -> str | None:
    """Return the version of a database's schema, or None if it has no ledger.

    Raises:
        AuditUnavailable: the database does not answer.
    """
    with database.begin("read the version of the ledger's schema") as connection:
        if not inspect(connection).has_table(VERSION_TABLE):
            return None
        version: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608
        return version


def check_version(database: Database) -> None:
    """Check that a database has the schema that this version of the package needs.

    Raises:
        ConfigurationError: it has another schema or none. The message names the command to run.
        AuditUnavailable: the database does not answer.
    """
    found = current_version(database)
    if found != NEWEST:
        raise ConfigurationError(
            f"the ledger's schema is {found or 'missing'}, and this version needs {NEWEST}: "
            "run `waooaw db upgrade` with the same waooaw_database_url"
        )
