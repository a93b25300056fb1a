"""`db`: create, upgrade and check the ledger's schema."""

from __future__ import annotations

import click

from waooaw_celery.cli.base.command import CommandGroup
from waooaw_celery.cli.group import named_app
from waooaw_celery.cli.output import json_option, report
from waooaw_celery.ledger.database.version import check_version, current_version


@click.group(cls=CommandGroup)
def db() -> None:
    """Manage the ledger's schema in the database that waooaw_database_url names."""


@db.command(examples=["waooaw db upgrade"])
@json_option
@click.pass_context
def upgrade(ctx: click.Context, as_json: bool) -> None:
    """Create or upgrade the schema. If it is up to date, nothing changes."""
    from waooaw_celery.ledger.database.upgrade import upgrade as upgrade_schema  # Alembic is slow to import

    version = upgrade_schema(named_app(ctx).database)
    report(f"The ledger's schema is at {version}.", {"version": version}, as_json)


@db.command(examples=["waooaw db status"])
@json_option
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Check that the schema is the one this version needs. The exit code is 1 if it is not."""
    database = named_app(ctx).database
    check_version(database)
    version = current_version(database)
    report(f"The ledger's schema is at {version}, which is the version needed.", {"version": version}, as_json)
