"""The group of commands: which application they use, and how they report an error."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from waooaw_celery.errors import ConfigurationError, WaooawError

if TYPE_CHECKING:
    from waooaw_celery.app.app import AgentApp

#: Who speaks when a person does, unless the setting ``waooaw_sender`` names another.
OPERATOR = "operator"


class LazyCommand(NamedTuple):
    """A command whose module is imported when the command runs.

    Attributes:
        module: dotted path of the module that defines it.
        summary: its line in the list of commands.
    """

    module: str
    summary: str


class Group(click.Group):
    """Commands that are imported when they run; an error is one sentence on standard error, with exit code 1."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy_commands: dict[str, LazyCommand] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*super().list_commands(ctx), *self.lazy_commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command and return it, or None when there is no command of this name."""
        lazy = self.lazy_commands.get(cmd_name)
        if lazy is None:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module(lazy.module), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.lazy_commands[name].summary) for name in sorted(self.lazy_commands)])

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
    # Imported here, so that `waooaw --help` does not wait for Celery.
    from celery.bin.base import CLIContext

    from waooaw_celery.app.app import AgentApp, create_app

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
    from celery.app.utils import find_app

    try:
        return find_app(name)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"there is no application {name!r} that can be loaded ({what})") from error
