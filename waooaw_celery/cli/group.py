"""The group of commands: which application they use, and how they report errors."""

from __future__ import annotations

import getpass
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from waooaw_celery.cli.base.command import CommandGroup
from waooaw_celery.cli.base.exit_codes import CommandError, exit_code, failed_server
from waooaw_celery.cli.output.colors import color_of_environment
from waooaw_celery.cli.output.times import UTC_KEY
from waooaw_celery.errors import ConfigurationError, WaooawError
from waooaw_celery.messages.log.escaping import escaped

if TYPE_CHECKING:
    from celery import Celery

    from waooaw_celery.app.app import AgentApp

#: The sender of messages that a person sends, unless the setting ``waooaw_sender`` names another.
OPERATOR = "operator"

by_option = click.option(
    "--by", metavar="NAME", help="Your name, for the record.  [default: waooaw_sender, or your login name]"
)


class LazyCommand(NamedTuple):
    """A command whose module is imported when the command runs.

    Attributes:
        module: dotted path of the module that defines it.
        summary: its line in ``waooaw --help``.
    """

    module: str
    summary: str


class Group(CommandGroup):
    """Commands that are imported when they run. An error is one sentence on standard error, with an exit code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy_commands: dict[str, LazyCommand] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*super().list_commands(ctx), *self.lazy_commands})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command and return it, or None if the name is unknown."""
        lazy = self.lazy_commands.get(cmd_name)
        if lazy is None:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module(lazy.module), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.lazy_commands[name].summary) for name in sorted(self.lazy_commands)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands and options that begin so, without importing a command."""
        names = [name for name in sorted(self.lazy_commands) if name.startswith(incomplete)]
        items = [CompletionItem(name, help=self.lazy_commands[name].summary) for name in names]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except WaooawError as error:
            raise CommandError(escaped(str(error)), exit_code(error)) from error
        except Exception as error:
            server = failed_server(error)
            if server is None:  # a defect, whose traceback is needed
                raise
            text = " ".join(
                str(getattr(error, "reply_text", None) or getattr(error, "orig", None) or error).split()
            )
            sentence = escaped(f"{server} failed: {text or type(error).__name__}")
            raise CommandError(sentence, exit_code(error)) from error


@click.group(
    cls=Group,
    examples=["waooaw agents", "waooaw -A my_agents.greeter --utc log --since 2h"],
)
@click.option(
    "-A",
    "--app",
    "app_name",
    envvar="WAOOAW_APP",
    help="Your application, such as my_agents.greeter.  [env: WAOOAW_APP]",
)
@click.option("-b", "--broker", help="URL of the broker, if you give no application.  [env: CELERY_BROKER_URL]")
@click.option("--utc", is_flag=True, envvar="WAOOAW_UTC", help="Show times in UTC.  [env: WAOOAW_UTC]")
@click.pass_context
def waooaw(ctx: click.Context, app_name: str | None, broker: str | None, utc: bool) -> None:
    """Send messages to agents over Celery, and see what became of them.

    You need no application: agents are addressed by name. Give the broker with -b or CELERY_BROKER_URL.
    """
    ctx.meta["waooaw.app_name"] = app_name
    ctx.meta["waooaw.broker"] = broker
    ctx.meta[UTC_KEY] = utc
    ctx.color = color_of_environment()


def current_app(ctx: click.Context) -> AgentApp:
    """Return the application that a command uses, with its settings checked.

    Raises:
        ConfigurationError: the named application was not made by ``create_app()``, or a setting is wrong.
    """
    app = named_app(ctx)
    app.check()
    return app


def named_app(ctx: click.Context) -> AgentApp:
    """Return the application that a command uses, without checking its settings.

    Raises:
        ConfigurationError: the named application was not made by ``create_app()``.
    """
    return application(ctx, ctx.meta["waooaw.app_name"], ctx.meta["waooaw.broker"])


def application(ctx: click.Context, name: str | None, broker: str | None) -> AgentApp:
    """Return the application of a module, or of ``celery -A``, or a new one.

    Args:
        ctx: the context of the command.
        name: the module, such as ``my_agents.greeter``; None: a new application.
        broker: URL of a new application's broker; None: that of the environment.

    Raises:
        ConfigurationError: the named application was not made by ``create_app()``.
    """
    # Imported here, so that `waooaw --help` does not wait for Celery.
    from waooaw_celery.app.app import AgentApp, create_app

    app = _given_app(ctx, name)
    if app is None:
        if broker:
            os.environ["CELERY_BROKER_URL"] = broker  # Celery prefers this variable to an argument
        app = create_app()
    if not isinstance(app, AgentApp):
        raise ConfigurationError(f"{app!r} was not made by waooaw_celery.create_app()")
    return app


def named_project(ctx: click.Context) -> Celery:
    """Return the application of ``-A``, which may be one of plain Celery.

    Raises:
        ConfigurationError: none is named, or it cannot be loaded.
    """
    app: Celery | None = _given_app(ctx, ctx.meta["waooaw.app_name"])
    if app is None:
        raise ConfigurationError("no application is named: waooaw -A shop doctor --project")
    return app


def _given_app(ctx: click.Context, name: str | None) -> Any:
    from celery.bin.base import CLIContext

    celery = ctx.find_object(CLIContext)
    if celery is not None:  # run as `celery -A app waooaw`
        return celery.app
    return None if name is None else _load(name)


def _load(name: str) -> Any:
    from celery.app.utils import find_app

    try:
        return find_app(name)
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise ConfigurationError(f"application {name!r} cannot be loaded ({cause})") from error


def requester(app: AgentApp, by: str | None) -> str:
    """Return who runs a command: what ``--by`` says, or else waooaw_sender, or else the login name."""
    if by or app.settings.sender:
        return by or str(app.settings.sender)
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # in a container, the user may have no name
        return OPERATOR
