"""The ledger's schema: brought up to date with Alembic, and checked before it is used."""

from __future__ import annotations

from datetime import UTC, datetime

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from waooaw_celery.audit import partitions
from waooaw_celery.audit.engine import Database
from waooaw_celery.errors import ConfigurationError

#: A table of our own, so that a project's own Alembic in the same database is left alone.
VERSION_TABLE = "waooaw_alembic_version"


def upgrade(database: Database) -> str:
    """Bring the schema up to date and return its revision. Running it again changes nothing.

    Raises:
        AuditUnavailable: the database does not answer or refuses.
    """
    config = _config()
    with database.begin("bring the ledger's schema up to date") as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if database.is_postgresql:
            partitions.make_ahead(connection, datetime.now(UTC))
    return newest()


def current(database: Database) -> str | None:
    """Return the revision of a database's schema, or None when it has none.

    Raises:
        AuditUnavailable: the database does not answer.
    """
    with database.begin("read the version of the ledger's schema") as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return context.get_current_revision()


def newest() -> str:
    """Return the revision that this version of the package works with."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None  # noqa: S101 - the package brings its migrations
    return head


def check(database: Database) -> None:
    """Check that the schema is the one that this version works with.

    Raises:
        ConfigurationError: it is not; the sentence says what to run.
        AuditUnavailable: the database does not answer.
    """
    found = current(database)
    if found != newest():
        raise ConfigurationError(
            f"the ledger's schema is {found or 'not there'}, and this version works with {newest()}: "
            "run `waooaw db upgrade` with the same waooaw_database_url"
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "waooaw_celery:audit/migrations")
    config.set_main_option("path_separator", "os")
    return config
