"""The group of commands: which application they use, and how they report an error."""

from __future__ import annotations

import os
from typing import Any

import click
from celery.app.utils import find_app
from celery.bin.base import CLIContext

from waooaw_celery.app import AgentApp, create_app
from waooaw_celery.errors import ConfigurationError, WaooawError

#: Who speaks when a person does, unless the setting ``waooaw_sender`` names another.
OPERATOR = "operator"


class Group(click.Group):
    """Commands whose errors are one sentence on standard error, and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except WaooawError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Group)
@click.option("-A", "--app", "app_name", envvar="WAOOAW_APP", help="Application, such as workers.orchestrator.")
@click.option("-b", "--broker", help="URL of the broker, without an application. [env: CELERY_BROKER_URL]")
@click.pass_context
def waooaw(ctx: click.Context, app_name: str | None, broker: str | None) -> None:
    """Agents that talk to each other over Celery.

    Needs no application of yours: names are enough. Give -b or CELERY_BROKER_URL.
    """
    ctx.meta["waooaw.app_name"] = app_name
    ctx.meta["waooaw.broker"] = broker


def current_app(ctx: click.Context) -> AgentApp:
    """Return the application that a command works with, ready to be used.

    Raises:
        ConfigurationError: the one named is none of ours, or cannot work as it is set.
    """
    app = named_app(ctx)
    app.check()
    return app


def named_app(ctx: click.Context) -> AgentApp:
    """Return the application that a command works with, as it is.

    Raises:
        ConfigurationError: the one named is none of ours.
    """
    celery = ctx.find_object(CLIContext)
    name, broker = ctx.meta["waooaw.app_name"], ctx.meta["waooaw.broker"]
    if celery is not None:  # run as `celery -A app waooaw`
        app = celery.app
    elif name is not None:
        app = _load(name)
    else:
        if broker:
            os.environ["CELERY_BROKER_URL"] = broker  # which Celery would prefer to what it is told
        app = create_app()
    if not isinstance(app, AgentApp):
        raise ConfigurationError(f"{app!r} was not made with waooaw_celery.create_app()")
    return app


def _load(name: str) -> Any:
    try:
        return find_app(name)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"there is no application {name!r} that can be loaded ({what})") from error
