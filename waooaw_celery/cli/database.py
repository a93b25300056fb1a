"""`db`: the ledger's schema."""

from __future__ import annotations

import click

from waooaw_celery.audit import schema
from waooaw_celery.cli.group import named_app


@click.group()
def db() -> None:
    """The ledger's schema, in the database that waooaw_database_url names."""


@db.command()
@click.pass_context
def upgrade(ctx: click.Context) -> None:
    """Bring the schema up to date; running it again changes nothing."""
    click.echo(f"The ledger's schema is at {schema.upgrade(named_app(ctx).database)}.")


@db.command()
@click.pass_context
def status(ctx: click.Context) -> None:
    """Tell whether the schema is the one that this version works with; exit code 1 when it is not."""
    database = named_app(ctx).database
    schema.check(database)
    click.echo(f"The ledger's schema is at {schema.current(database)}, as it should be.")
