"""The exit codes of the commands, and the error that ends a command with one of them."""

from __future__ import annotations

import socket
from enum import IntEnum

import click

from waooaw_celery.errors import (
    BackendUnavailable,
    BrokerUnavailable,
    LedgerMismatch,
    NoAgentAvailable,
    StoreUnavailable,
    UnknownAgent,
    UnknownDeadLetter,
    UnknownMessage,
    UnknownReplay,
    UnknownSubscription,
    UnknownWorkflow,
)

#: What failed, by the package whose exception says so.
_SERVERS = {
    "amqp": "RabbitMQ",
    "kombu": "the broker",
    "redis": "Redis",
    "sqlalchemy": "the ledger's database",
    "psycopg2": "the ledger's database",
}
_AWAY = (BrokerUnavailable, StoreUnavailable, BackendUnavailable)
_UNKNOWN = (
    UnknownAgent,
    UnknownDeadLetter,
    UnknownMessage,
    UnknownReplay,
    UnknownSubscription,
    UnknownWorkflow,
)
#: Kinds of UnknownAgent in which the agents are known, but may not get the message.
_KNOWN = (LedgerMismatch, NoAgentAvailable)


class ExitCode(IntEnum):
    """The exit codes of the commands; docs/commands.md describes them."""

    #: It is done, or the answer is yes.
    DONE = 0
    #: It failed, or the answer is no.
    FAILED = 1
    #: An option or an argument is wrong. Click ends a command with it.
    USAGE = 2
    #: The broker, the store, the ledger or the result backend does not answer, or refuses.
    SERVER = 3
    #: What an argument names does not exist.
    NOT_FOUND = 4


class CommandError(click.ClickException):
    """An error that ends a command with a sentence on standard error.

    Args:
        message: the sentence, escaped.
        code: the exit code.

    Example:
        >>> raise CommandError("there is no hold on agent boss", ExitCode.NOT_FOUND)
    """

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # click sets it on the instance too


def exit_code(error: BaseException) -> ExitCode:
    """Return the exit code of a command that ends with an error.

    Args:
        error: the error.
    """
    if isinstance(error, _AWAY) or failed_server(error) is not None:
        return ExitCode.SERVER
    if isinstance(error, _UNKNOWN) and not isinstance(error, _KNOWN):
        return ExitCode.NOT_FOUND
    return ExitCode.FAILED


def failed_server(error: BaseException) -> str | None:
    """Return what failed, such as ``Redis``, if a client of a server raised the error; None otherwise."""
    name = type(error).__module__.partition(".")[0]
    return _SERVERS.get(name) or (_SERVERS["kombu"] if _is_of_network(error) else None)


def _is_of_network(error: BaseException) -> bool:
    """Return whether an error of the operating system comes from a connection, not from a file or the output."""
    is_own = type(error).__module__.startswith("waooaw_celery")  # such as RequestTimeout: it has its own meaning
    is_output = isinstance(error, BrokenPipeError)  # click ends a command whose output nobody reads any more
    is_of_network = isinstance(error, ConnectionError | TimeoutError | socket.gaierror)
    return is_of_network and not is_output and not is_own
