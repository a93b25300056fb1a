"""The scripts that run inside the Redis server. Each has its own file in ``lua/``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Self

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

#: Bytes of an argument from which its copies take longer than the calls that they save.
LARGE_BYTES = 64 * 1024


class Script:
    """A script that is called by its digest. A server that does not have it yet receives its text.

    Args:
        text: The script.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        self._call, self._first_call = packed("EVALSHA", self.digest), packed("EVAL", self.text)

    @classmethod
    def named(cls, name: str, *includes: str) -> Self:
        """Return a script from its own file.

        Args:
            name: The file's name without ``.lua``.
            includes: The names of the files that take the place of its line ``-- include``.
        """
        text = _read(name)
        if includes:
            text = text.replace("-- include\n", "".join(map(_read, includes)), 1)
        return cls(text)

    def __call__(self, client: Any, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run the script and return its reply.

        Args:
            client: The Redis client to use.
            keys: The script's KEYS.
            args: The script's ARGV.

        Raises:
            RedisError: The server cannot be reached or refuses the call.
        """
        try:
            return client.evalsha(self.digest, len(keys), *keys, *args)
        except NoScriptError:
            return client.eval(self.text, len(keys), *keys, *args)

    def packed(self, key_count: int, keys: bytes, args: Sequence[Any], *, is_loaded: bool = True) -> bytes:
        """Return the command that runs the script in the protocol of Redis.

        Args:
            key_count: The number of the script's KEYS.
            keys: The KEYS, as ``packed`` returns them.
            args: The script's ARGV.
            is_loaded: Whether the server already has the script.
        """
        script = self._call if is_loaded else self._first_call
        count = 3 + key_count + len(args)
        return b"".join([b"*%d\r\n" % count, script, packed(key_count), keys, packed(*args)])

    def command(self, keys: Sequence[str], args: Sequence[Any], *, is_loaded: bool = True) -> list[Any]:
        """Return the command that runs the script, for a connection or a pipeline.

        Args:
            keys: The script's KEYS.
            args: The script's ARGV.
            is_loaded: Whether the server already has the script.
        """
        script = ["EVALSHA", self.digest] if is_loaded else ["EVAL", self.text]
        return [*script, len(keys), *keys, *args]

    def run(self, connection: Any, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run the script over a connection that nobody else uses, without repeating it.

        Args:
            connection: redis-py's connection.
            keys: The script's KEYS.
            args: The script's ARGV.

        Raises:
            RedisError: As a call.
        """
        try:
            self._send(connection, keys, args, is_loaded=True)
            return connection.read_response()
        except NoScriptError:
            self._send(connection, keys, args, is_loaded=False)
            return connection.read_response()

    def _send(self, connection: Any, keys: Sequence[str], args: Sequence[Any], *, is_loaded: bool) -> None:
        if args and isinstance(args[-1], bytes) and len(args[-1]) > LARGE_BYTES:  # redis-py copies it less often
            connection.send_command(*self.command(keys, args, is_loaded=is_loaded))
        else:
            command = self.packed(len(keys), packed(*keys), args, is_loaded=is_loaded)
            connection.send_packed_command([command])


def _read(name: str) -> str:
    return files(__package__).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


def reopen_if_closed(connection: Any) -> None:
    """Disconnect a connection that the server closed while nobody used it: the next command opens a new one.

    A command that fails on such a connection may have been executed, so it must not be repeated. Nothing was sent
    over this one yet.

    Args:
        connection: redis-py's connection, which nobody else uses.
    """
    if not connection.is_connected:
        return
    try:
        is_usable = not connection.can_read()  # data would be the reply of another command
    except (RedisConnectionError, OSError):
        is_usable = False
    if not is_usable:
        connection.disconnect()


def execute_together(connection: Any, commands: Sequence[Sequence[Any]]) -> list[Any]:
    """Run commands in one round trip, without repeating any.

    Args:
        connection: redis-py's connection, which nobody else uses.
        commands: The commands with their arguments.

    Returns:
        The reply of each command. If the server refused it, that is the error.

    Raises:
        RedisError: The connection is lost, or the server does not answer in time.
    """
    connection.send_packed_command(connection.pack_commands(commands))
    replies: list[Any] = []
    for _ in commands:
        try:
            replies.append(connection.read_response())
        except ResponseError as error:
            replies.append(error)
    return replies


def packed(*parts: str | bytes | float) -> bytes:
    """Return parts of a command in the protocol of Redis.

    redis-py's own function costs several calls for each part, and a claim has more than thirty.

    Args:
        parts: The parts of the command.
    """
    if bytes not in set(map(type, parts)):
        text = "".join([f"${len(part)}\r\n{part}\r\n" for part in map(str, parts)])
        if text.isascii():  # or else the lengths in bytes are others
            return text.encode()
    encoded = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
    return b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in encoded])


PUBLISH = Script.named("publish")
RING = Script.named("ring")
CLAIM = Script.named("claim", "groups", "claim_begin")
CLAIM_GROUPS = Script.named("claim_groups", "groups", "claim_begin")
TOUCH = Script.named("touch")
OVERDUE = Script.named("overdue")
RESTORE = Script.named("restore", "groups")
SEND = Script.named("send")
DEAD_LETTER = Script.named("dead_letter", "groups")
TAKE = Script.named("take", "groups")
COUNT_SENDER = Script.named("count_sender", "groups")
UNGROUP = Script.named("ungroup", "groups")
