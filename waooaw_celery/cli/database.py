"""`db`: create, upgrade and check the ledger's schema."""

from __future__ import annotations

import click

from waooaw_celery.cli.group import named_app
from waooaw_celery.cli.output import echo
from waooaw_celery.ledger.database.version import check_version, current_version


@click.group()
def db() -> None:
    """Manage the ledger's schema in the database that waooaw_database_url names."""


@db.command()
@click.pass_context
def upgrade(ctx: click.Context) -> None:
    """Create or upgrade the schema. If it is up to date, nothing changes."""
    from waooaw_celery.ledger.database.upgrade import upgrade as upgrade_schema  # Alembic is slow to import

    echo(f"The ledger's schema is at {upgrade_schema(named_app(ctx).database)}.")


@db.command()
@click.pass_context
def status(ctx: click.Context) -> None:
    """Check that the schema is the one this version needs. The exit code is 1 if it is not."""
    database = named_app(ctx).database
    check_version(database)
    echo(f"The ledger's schema is at {current_version(database)}, which is the version needed.")
