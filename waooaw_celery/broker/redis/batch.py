"""A batch of a producer: one command for all messages of a queue and priority, one round trip for all commands."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from kombu.exceptions import BatchPublishError  # type: ignore[attr-defined]  # its stubs are old
from kombu.transport import redis
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError

from waooaw_celery.broker.redis.scripts import RING

#: The most messages, and characters in them, of one command: the server does nothing else while it runs.
MAX_MESSAGES = 1000
MAX_CHARACTERS = 4 * 1024 * 1024


class BatchRefused(BatchPublishError):
    """The server refused every command of a batch: it has none of the messages."""


class RedisPublishBatch(redis.PublishBatch):
    """Collects messages by queue and priority, and publishes them together."""

    def __init__(self, channel: Any, max_size: int) -> None:
        super().__init__(channel, max_size)
        self._lists: dict[tuple[str, str], list[str]] = {}
        #: Kombu's own commands: for fanout exchanges, and for queues that expire.
        self._commands: list[tuple[str, tuple[Any, ...]]] = []

    def publish(self, message: Any, **kwargs: Any) -> Any:
        """Route one prepared message, and add it to the batch."""
        self._check_usable()
        self._collecting: Any = self._commands
        try:
            result = self.channel.basic_publish(message, _publish_batch=self, **kwargs)
        finally:
            self._collecting = None
        if self._buffered + len(self._commands) >= self.max_size:
            self.flush()
        return result

    def collect(self, list_: str, bell: str, text: str) -> None:
        """Add a message to those of its list.

        Args:
            list_: The key of the list.
            bell: The key of the queue's doorbell.
            text: The message as it travels.
        """
        self._lists.setdefault((list_, bell), []).append(text)
        self._buffered += 1

    def flush(self) -> None:
        """Publish the collected messages. Nothing whose outcome is unknown is repeated.

        Raises:
            BatchRefused: The server is at its memory limit, and has none of the messages.
            BatchPublishError: It is unknown which messages the server has.
        """
        self._check_usable()
        commands, self._commands = self._commands, []
        lists, self._lists = self._lists, {}
        self._buffered = 0
        if not lists and not commands:
            return
        try:
            if lists:
                self._push(lists)
            for name, args in commands:
                getattr(self.pipeline, name)(*args)
            self.pipeline.execute()
        except BaseException as error:
            self._failed = error
            self.pipeline.reset()
            if isinstance(error, BatchRefused):
                raise
            if isinstance(error, Exception):
                raise BatchPublishError("Redis publish batch failed; delivery is uncertain") from error
            raise

    def _push(self, lists: dict[tuple[str, str], list[str]]) -> None:
        client = self.channel.scripts_client  # adds no prefix to keys: these have theirs
        commands: list[str] = []
        with client.pipeline(transaction=False) as pipeline:
            for (list_, bell), texts in lists.items():
                for part in _split(texts):
                    # LPUSH instead of the publish script: a script takes longer to receive so many arguments.
                    pipeline.execute_command("LPUSH", list_, *part)
                    commands.append("LPUSH")
                pipeline.execute_command(*RING.command([bell], []))
                commands.append("RING")
            replies = pipeline.execute(raise_on_error=False)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            for _, bell in lists:
                # The messages are in their lists. An error here would make the caller publish them again, and a
                # consumer that missed the bell looks every second anyway.
                with suppress(RedisError):
                    RING(client, [bell], [])
        pushed = [reply for reply, command in zip(replies, commands, strict=True) if command == "LPUSH"]
        if pushed and all(isinstance(reply, OutOfMemoryError) for reply in pushed):
            raise BatchRefused(
                "Redis refused LPUSH because it is at its memory limit: raise maxmemory, or wait until workers "
                f"have consumed messages ({pushed[0]})"
            ) from pushed[0]
        for reply in replies:
            if isinstance(reply, Exception) and not isinstance(reply, NoScriptError):
                raise reply

    def discard(self) -> None:
        """Drop the messages that were not published yet."""
        self._lists, self._commands = {}, []
        super().discard()


def _split(texts: list[str]) -> list[list[str]]:
    """Split messages, in order, into parts that each fit into one command."""
    parts: list[list[str]] = [[]]
    size = 0
    for text in texts:
        if parts[-1] and (len(parts[-1]) >= MAX_MESSAGES or size + len(text) > MAX_CHARACTERS):
            parts.append([])
            size = 0
        parts[-1].append(text)
        size += len(text)
    return parts
