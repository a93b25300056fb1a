"""Which schema this version of the package works with, and whether a database has it. (Alembic makes it.)"""

from __future__ import annotations

from sqlalchemy import inspect, text

from waooaw_celery.errors import ConfigurationError
from waooaw_celery.ledger.database.engine import Database

#: The newest migration; a test compares.
NEWEST = "0001"
#: A table of our own, so that a project's own Alembic in the same database is left alone.
VERSION_TABLE = "waooaw_alembic_version"


def current_version(database: Database) -> str | None:
    """Return the version of a database's schema, or None when it has none.

    Raises:
        AuditUnavailable: the database does not answer.
    """
    with database.begin("read the version of the ledger's schema") as connection:
        if not inspect(connection).has_table(VERSION_TABLE):
            return None
        version: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608
        return version


def check_version(database: Database) -> None:
    """Check that the schema is the one that this version works with.

    Raises:
        ConfigurationError: it is not; the sentence says what to run.
        AuditUnavailable: the database does not answer.
    """
    found = current_version(database)
    if found != NEWEST:
        raise ConfigurationError(
            f"the ledger's schema is {found or 'not there'}, and this version works with {NEWEST}: "
            "run `waooaw db upgrade` with the same waooaw_database_url"
        )
