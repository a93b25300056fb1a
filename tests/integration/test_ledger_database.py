"""The ledger's database: its migrations, its URL, and its errors, on PostgreSQL and on SQLite."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from support import lone_database

from waooaw_celery.errors import AuditUnavailable, ConfigurationError
from waooaw_celery.ledger.database import upgrade as schema
from waooaw_celery.ledger.database.engine import Database, database_url
from waooaw_celery.ledger.database.models import Base
from waooaw_celery.ledger.database.version import NEWEST, VERSION_TABLE, check_version, current_version
from waooaw_celery.ledger.ledger import Ledger
from waooaw_celery.ledger.trail import MessageAuditTrail
from waooaw_celery.messages.enums import RetentionPolicy


def test_migrations_create_the_schema_of_the_models(database: Database) -> None:
    """After the upgrade, the database differs from the models only by its partitions."""
    with database.begin("compare") as connection:
        options = {"version_table": VERSION_TABLE, "include_name": _is_no_partition}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata) == []


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_ledger_of_each_older_version_is_upgraded(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A database that stopped at any version gets the rest, and ends with the schema of the models."""
    with ExitStack() as stack:
        url = f"sqlite:///{tmp_path / 'old.sqlite'}"
        if kind == "postgresql":
            url = stack.enter_context(lone_database(request.getfixturevalue("postgres_url")))
        database = Database(database_url(url))
        stack.callback(database.close)
        versions = [each.revision for each in ScriptDirectory.from_config(schema.migrations()).walk_revisions()]
        for version in reversed(versions):
            with database.begin("upgrade") as connection:
                config = schema.migrations()
                config.attributes["connection"] = connection
                command.upgrade(config, version)
        check_version(database)
        test_migrations_create_the_schema_of_the_models(database)
        with database.begin("downgrade") as connection:
            config = schema.migrations()
            config.attributes["connection"] = connection
            command.downgrade(config, versions[-1])
        assert current_version(database) == versions[-1]
        schema.upgrade(database)
        test_migrations_create_the_schema_of_the_models(database)


def test_the_required_version_is_the_newest_migration() -> None:
    """The version that is checked at start-up is the head of the migrations."""
    assert ScriptDirectory.from_config(schema.migrations()).get_current_head() == NEWEST


def _is_no_partition(name: str | None, kind: str, _: Any) -> bool:
    return kind != "table" or name in Base.metadata.tables


def test_a_missing_schema_is_an_error(tmp_path: Path) -> None:
    """Without the tables, the check and every query raise an error that names `waooaw db upgrade`."""
    database = Database(database_url(f"sqlite:///{tmp_path / 'empty.sqlite'}"))
    with pytest.raises(ConfigurationError, match=r"schema is missing.*waooaw db upgrade"):
        check_version(database)
    with pytest.raises(AuditUnavailable, match="waooaw db upgrade"):
        MessageAuditTrail(Ledger(database, RetentionPolicy.DAYS_90)).query()
    database.close()


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("no url", "must begin with a scheme"),
        ("mysql://h/d", "names mysql"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
    ],
)
def test_an_invalid_database_url_is_refused(url: str, error: str) -> None:
    """Only PostgreSQL and SQLite files are accepted."""
    with pytest.raises(ConfigurationError, match=error):
        database_url(url)


def test_a_postgresql_url_without_a_driver_uses_psycopg2() -> None:
    """SQLAlchemy 2.1 would use psycopg 3, which is not installed. A driver in the URL is kept."""
    assert database_url("postgresql://h/d").drivername == "postgresql+psycopg2"
    assert database_url("postgres://h/d").drivername == "postgresql+psycopg2"
    assert database_url("postgresql+psycopg://h/d").drivername == "postgresql+psycopg"


def test_a_database_that_is_down_raises_audit_unavailable() -> None:
    """The error names the setting to check."""
    database = Database(database_url("postgresql://nobody@127.0.0.1:1/none"))
    with pytest.raises(AuditUnavailable, match=r"Connection refused.*waooaw_database_url"):
        Ledger(database, RetentionPolicy.DAYS_30).get("x")
    database.close()
