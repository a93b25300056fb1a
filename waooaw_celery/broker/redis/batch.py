"""A batch of a producer: one command for all messages of a queue and priority, one round trip for all commands."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from kombu.exceptions import BatchPublishError  # type: ignore[attr-defined]  # its stubs are old
from kombu.transport import redis
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError

from waooaw_celery.broker.redis.scripts import RING, execute_together, reopen_if_closed
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.store.redis_refusals import is_refusal, remedy, takes_no_writes

logger = get_logger(__name__)

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
            BatchRefused: The server refused every command: it has none of the messages.
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
                push(self.channel, lists)
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

    def discard(self) -> None:
        """Drop the messages that were not published yet."""
        self._lists, self._commands = {}, []
        super().discard()


def push_now(channel: Any, lists: dict[tuple[str, str], list[str]]) -> None:
    """Publish messages in one round trip. Nothing whose outcome is unknown is repeated.

    Args:
        channel: The channel.
        lists: The messages as they travel, by the key of their list and the key of their queue's doorbell.

    Raises:
        BatchRefused: The server refused every command: it has none of the messages.
        BatchPublishError: It is unknown which messages the server has.
    """
    try:
        push(channel, lists)
    except BatchPublishError:
        raise
    except Exception as error:
        raise BatchPublishError("Redis publish batch failed; delivery is uncertain") from error


def push(channel: Any, lists: dict[tuple[str, str], list[str]]) -> None:
    """Push messages to their lists, and ring the doorbells, in one round trip.

    Args:
        channel, lists: As for ``push_now``.

    Raises:
        BatchPublishError: As ``push_now``. The rest as redis-py.
    """
    client = channel.scripts_client  # adds no prefix to keys: these have theirs
    commands: list[list[Any]] = []
    for (list_, bell), texts in lists.items():
        # LPUSH instead of the publish script: a script takes longer to receive so many arguments.
        commands += (["LPUSH", list_, *part] for part in _split(texts))
        commands.append(RING.command([bell], []))
    reopen_if_closed(client.connection)
    replies = execute_together(client.connection, commands)
    if any(isinstance(reply, NoScriptError) for reply in replies):
        for _, bell in lists:
            # The messages are in their lists. An error here would make the caller publish them again, and a
            # consumer that missed the bell looks every second anyway.
            with suppress(RedisError):
                RING(client, [bell], [])
    pushed = [reply for reply, command in zip(replies, commands, strict=True) if command[0] == "LPUSH"]
    if any(isinstance(reply, Exception) and takes_no_writes(reply) for reply in replies):
        # The name in the URL may lead to another server now.
        client.connection.disconnect()
    if pushed and all(isinstance(reply, Exception) and is_refusal(reply) for reply in pushed):
        raise batch_refused(pushed[0], list(lists))
    failed = next((reply for reply in pushed if isinstance(reply, Exception)), None)
    if failed is not None and len(pushed) > 1:
        # The server's error is no cause of this one: it would look like a refusal of every message.
        raise BatchPublishError(f"Redis refused some of the messages, and may have the others: {failed}")
    if failed is not None:
        raise failed
    for reply in replies:
        if isinstance(reply, Exception) and not isinstance(reply, NoScriptError):
            # As above: to raise it would publish the messages a second time.
            logger.warning("a doorbell was not rung: %s", reply, extra={"action": "bell_failed"})


def batch_refused(error: Exception, lists: list[tuple[str, str]]) -> BatchRefused:
    """Return the error of messages that the server refused, with its answer as the cause.

    Args:
        error: The server's answer.
        lists: The keys of the messages' lists, and of their queues' doorbells.
    """
    refused = BatchRefused(f"Redis refused LPUSH: {_reason(error, lists)}")
    refused.__cause__ = error
    return refused


def _reason(error: Exception, lists: list[tuple[str, str]]) -> str:
    """Return why the server refused the messages of these lists, and what to do."""
    if isinstance(error, OutOfMemoryError):
        return (
            f"it is at its memory limit. Raise maxmemory, or wait until workers have consumed messages ({error})"
        )
    return remedy(error, [list_ for list_, _ in lists]) or str(error)


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
