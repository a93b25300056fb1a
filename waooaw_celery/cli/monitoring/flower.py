"""`flower`: Flower, the dashboard for Celery, with settings under which it shows little and changes nothing."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import secrets
from typing import Any

import click

from waooaw_celery.cli.base.command import Command
from waooaw_celery.cli.group import named_app
from waooaw_celery.cli.output import echo
from waooaw_celery.cli.output.colors import color_of_environment
from waooaw_celery.errors import ConfigurationError
from waooaw_celery.settings import LogFormat

#: The user whose password is generated.
USER = "operator"
#: Flower reads it: user and password, several separated by commas. A process list does not show it.
BASIC_AUTH_VARIABLE = "FLOWER_BASIC_AUTH"
#: Flower reads it: the e-mail addresses that may sign in with OAuth 2.
_OAUTH_VARIABLE = "FLOWER_AUTH"
#: Variables with which Flower would answer without a password, or find the results of requests.
_UNSAFE_VARIABLES = ("FLOWER_UNAUTHENTICATED_API", "CELERY_RESULT_BACKEND")


@click.command(cls=Command, examples=["waooaw flower", "waooaw -A my_agents.greeter flower --port 5556"])
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="Port.")
@click.option(
    "--basic-auth",
    metavar="USER:PASSWORD",
    multiple=True,
    envvar=BASIC_AUTH_VARIABLE,
    show_envvar=True,
    help="Who has access; may be repeated. The variable is better: others on this computer see the options.",
)
@click.option("--broker-api", metavar="URL", help="RabbitMQ's management API, for the lengths of its queues.")
@click.option("--operations", is_flag=True, help="Let users stop workers and send tasks. Default: read-only.")
@click.pass_context
def flower(
    ctx: click.Context,
    address: str,
    port: int,
    basic_auth: tuple[str, ...],
    broker_api: str | None,
    operations: bool,
) -> None:
    """Run Flower, the dashboard for Celery, with safe settings.

    It asks for a password, which is generated and printed if you give none, and is read-only. It shows neither
    arguments nor results. Beyond this computer it starts only with a password of yours. /metrics and /healthcheck
    never ask for one: they name workers and handlers.
    """
    if importlib.util.find_spec("flower") is None:
        raise ConfigurationError("Flower is not installed: run `pip install 'waooaw-celery[flower]'`")
    app = named_app(ctx)
    json_log = app.settings.log_format is LogFormat.JSON  # a wrong setting is an error before anything starts
    users = checked_users(basic_auth)
    if not users and not os.environ.get(_OAUTH_VARIABLE):
        check_loopback(address)
        users = [f"{USER}:{secrets.token_urlsafe(18)}"]
        password = users[0].partition(":")[2]
        echo(f"Flower's user is {USER}, the password {password}. It is not shown again.")
    echo("Everybody who reaches the port can read /metrics and /healthcheck, which name workers and handlers.")
    arguments = [
        f"--address={address}",
        f"--port={port}",
        f"--read_only={not operations}",
        "--persistent=False",
        f"--cookie_secret={secrets.token_urlsafe(48)}",
        f"--conf={os.devnull}",  # no file in the working directory changes this
        *([f"--basic_auth={','.join(users)}"] if users else []),
        *([f"--broker_api={broker_api}"] if broker_api else []),
    ]
    hide_results(app)
    if color_of_environment() is False:
        os.environ["TERM"] = "dumb"  # Flower's log asks the terminal whether it has colours, and reads no NO_COLOR
    if json_log:
        app.log.setup_logging_subsystem(loglevel="INFO")
    run(app, arguments)


def checked_users(given: tuple[str, ...]) -> list[str]:
    """Return the users and passwords that were given, separately.

    Args:
        given: options, or the variable, in which commas separate several.

    Raises:
        ConfigurationError: one of them is not USER:PASSWORD.
    """
    users = [each.strip() for one in given for each in one.split(",") if each.strip()]
    for each in users:
        user, _, password = each.partition(":")
        if not user or not password:
            raise ConfigurationError(
                f"--basic-auth, or {BASIC_AUTH_VARIABLE}, must be USER:PASSWORD, several separated by commas; a "
                "password has no comma"
            )
    return users


def check_loopback(address: str) -> None:
    """Check that an address can be reached from this computer only.

    Args:
        address: the address that Flower listens on; an empty one means all.

    Raises:
        ConfigurationError: others can reach it, and nobody has set a password.
    """
    try:
        is_loopback = address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ConfigurationError(
            f"Flower would be open to other computers at {address or 'all addresses'}: set {BASIC_AUTH_VARIABLE}"
            "=USER:PASSWORD, and put a proxy with TLS before it; or leave out --address"
        )


def hide_results(app: Any) -> None:
    """Let this process find no result of a request: Flower's API would return it to whoever asks.

    Args:
        app: the application, an AgentApp.
    """
    for name in _UNSAFE_VARIABLES:
        os.environ.pop(name, None)
    app.conf.update(result_backend="disabled")


def run(app: Any, arguments: list[str]) -> None:
    """Run Flower's own command until SIGTERM or Ctrl-C.

    Args:
        app: the application, an AgentApp.
        arguments: options of Flower.
    """
    from celery.bin.base import CLIContext
    from celery.bin.celery import celery
    from flower.command import flower as command  # type: ignore[import-untyped]

    parent = click.Context(celery, info_name="celery", obj=CLIContext(app=app, no_color=True, workdir=None))
    with command.make_context("flower", arguments, parent=parent) as context:
        command.invoke(context)
