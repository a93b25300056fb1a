"""`db`: the ledger's schema."""

from __future__ import annotations

import click

from waooaw_celery.cli.group import named_app
from waooaw_celery.ledger.database.version import check_version, current_version


@click.group()
def db() -> None:
    """The ledger's schema, in the database that waooaw_database_url names."""


@db.command()
@click.pass_context
def upgrade(ctx: click.Context) -> None:
    """Bring the schema up to date; running it again changes nothing."""
    from waooaw_celery.ledger.database.upgrade import upgrade as bring_up_to_date  # Alembic is slow to import

    click.echo(f"The ledger's schema is at {bring_up_to_date(named_app(ctx).database)}.")


@db.command()
@click.pass_context
def status(ctx: click.Context) -> None:
    """Tell whether the schema is the one that this version works with; exit code 1 when it is not."""
    database = named_app(ctx).database
    check_version(database)
    click.echo(f"The ledger's schema is at {current_version(database)}, as it should be.")
