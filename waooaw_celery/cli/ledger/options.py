"""The options of a period, which several commands have."""

from __future__ import annotations

import click

from waooaw_celery.cli.base.parameters import TimeParam

since_option = click.option("--since", type=TimeParam(), help="Sent at this time or later.")
until_option = click.option("--until", type=TimeParam(), help="Sent before this time.")
