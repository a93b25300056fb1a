"""What a Redis refuses, and what to do about it: a permission is missing, it takes no writes, its memory is full.

A refused command was not executed, so a refusal is a definite answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from redis.exceptions import (
    AuthenticationError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

_COMMAND = re.compile(r"User (\S+) has no permissions to run the '([^']+)' command")
#: How redis-py and ``RefusalClient`` begin the text of a failed command: its name, then its arguments.
_ANNOTATION = re.compile(r"Command(?: # \d+)? \((\w+) ?([^ )]*)")
_NO_WRITES = {
    "READONLY": (
        "it is a replica, which takes no writes. After a failover, its URL must lead to the new master; "
        "sentinel:// follows it"
    ),
    "MASTERDOWN": "it is a replica without a connection to its master. Check that the master runs",
    "MISCONF": "it takes no writes, because it cannot store them on its disk. Check that its disk has room",
    "NOREPLICAS": "it takes no writes, because it has too few replicas (min-replicas-to-write). Start them",
}


class RedisRefuses(RedisConnectionError):
    """The server answers, and refuses what every message needs. It is a lost connection for Kombu and Celery."""


class RefusalMixin:
    """Makes a redis-py client name the command and the key in the error of a missing permission."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command.

        Raises:
            NoPermissionError: the server's user lacks a permission; the text begins with the command and its key.
        """
        try:
            return super().execute_command(*args, **options)  # type: ignore[misc]
        except NoPermissionError as error:
            command = str(args[0])
            key = args[3:4] if command.startswith(("EVAL", "FCALL")) else args[1:2]
            about = " ".join(map(str, (command.partition(" ")[0], *key)))
            raise NoPermissionError(f"Command ({about}) caused error: {error}") from error


def lacks_permission(error: BaseException) -> bool:
    """Return whether the server's user may not use a command, a key or a channel."""
    return isinstance(error, ResponseError) and (
        isinstance(error, NoPermissionError) or "ACL failure in script" in str(error)
    )


def takes_no_writes(error: BaseException) -> bool:
    """Return whether the server takes no writes at all now, such as a replica."""
    return _no_writes_code(error) is not None


def is_refusal(error: BaseException) -> bool:
    """Return whether this is the server's answer that it has not executed a command, and will not."""
    if isinstance(error, NoPermissionError | OutOfMemoryError | RedisRefuses) or takes_no_writes(error):
        return True
    # A script may have done something before the command that it may not run. A publish begins with LPUSH.
    return lacks_permission(error) and "'lpush'" in str(error)


def refusal_in(error: BaseException | None) -> BaseException | None:
    """Return the refusal that an error, or one of its causes, is; None if one of them leaves the outcome open.

    Args:
        error: what a publish raised. Kombu puts the errors of redis-py into its own.
    """
    found: BaseException | None = None
    for each in _causes(error):
        if is_refusal(each):
            found = found or each
        elif isinstance(each, RedisError | OSError) and not isinstance(each, NoScriptError):
            return None  # an earlier attempt may have reached the server
    return found


def remedy(error: BaseException, names: Sequence[str] = ()) -> str | None:
    """Return why the server refused, and what to do: one or two sentences without the last full stop.

    Args:
        error: the refusal.
        names: the keys or channels that the command used, where the error does not say them.

    Returns:
        None if the error is no refusal that needs a remedy of its own.
    """
    if isinstance(error, RedisRefuses):
        return str(error)
    if lacks_permission(error):
        return _missing_permission(error, names)
    if isinstance(error, AuthenticationError):
        return f"it refuses the user ({_first_line(error)}). Check the user name and the password in its URL"
    code = _no_writes_code(error)
    return None if code is None else f"{_NO_WRITES[code]} ({code}: {_first_line(error)})"


def explained(error: BaseException) -> str:
    """Return the text of an error; for a refusal, why the server refused and what to do about it."""
    return remedy(refusal_in(error) or error) or str(error)


def _missing_permission(error: BaseException, names: Sequence[str]) -> str:
    text = _first_line(error)
    annotation, command = _ANNOTATION.search(text), _COMMAND.search(text)
    if command is not None:
        user, name = command.groups()
        return f"its user {user!r} may not run the command {name.upper()}. Grant it: ACL SETUSER {user} +{name}"
    if annotation is not None:
        names = names or annotation.groups()[1:]
    kind, sign = ("channel", "&") if "channel" in text else ("key", "~")
    used = f" with {annotation[1]}" if annotation is not None else ""
    listed = ", ".join(map(repr, names)) or "in question"
    grants = " ".join(f"{sign}{name}" for name in names) or f"{sign}<prefix>*"
    return (
        f"its user may not use the {kind} {listed}{used}. Grant it: ACL SETUSER <user> {grants}; or, if the user "
        "may use one prefix only, set broker_transport_options['global_keyprefix'] to that prefix"
    )


def _no_writes_code(error: BaseException) -> str | None:
    if isinstance(error, ReadOnlyError):
        return "READONLY"
    if isinstance(error, MasterDownError):
        return "MASTERDOWN"
    # redis-py has no classes for these.
    found = re.search(r"\b(MISCONF|NOREPLICAS)\b", str(error)) if isinstance(error, ResponseError) else None
    return found[1] if found else None


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].rstrip(".")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its causes and its contexts. A context may be an earlier attempt, also a suppressed one."""
    rest, seen = [error], set()
    while rest:
        each = rest.pop(0)
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            rest += [each.__cause__, each.__context__]
