"""A producer's batch: all messages of one queue and priority with one command, all commands in one round trip."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from kombu.exceptions import BatchPublishError  # type: ignore[attr-defined]  # its stubs are old
from kombu.transport import redis
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError

from waooaw_celery.broker.redis.scripts import RING

#: Messages, and characters in them, of one command: it holds up the server.
MAX_MESSAGES = 1000
MAX_CHARACTERS = 4 * 1024 * 1024


class BatchRefused(BatchPublishError):
    """The server refused every command of a batch: it has none of the messages."""


class RedisPublishBatch(redis.PublishBatch):
    """Collects messages by queue and priority."""

    def __init__(self, channel: Any, max_size: int) -> None:
        super().__init__(channel, max_size)
        self._lists: dict[tuple[str, str], list[str]] = {}
        self._others: list[tuple[str, tuple[Any, ...]]] = []  # fanout, and what keeps queues that expire

    def publish(self, message: Any, **kwargs: Any) -> Any:
        """Route one prepared message, and collect it."""
        self._check_usable()
        self._collecting: Any = self._others
        try:
            result = self.channel.basic_publish(message, _publish_batch=self, **kwargs)
        finally:
            self._collecting = None
        if self._buffered + len(self._others) >= self.max_size:
            self.flush()
        return result

    def collect(self, list_: str, bell: str, text: str) -> None:
        """Add a message to those of its list."""
        self._lists.setdefault((list_, bell), []).append(text)
        self._buffered += 1

    def flush(self) -> None:
        """Hand over all that was collected, without repeating anything of which the outcome is not known.

        Raises:
            BatchRefused: the server is full, and has none of the messages.
            BatchPublishError: which messages the server has is not known.
        """
        self._check_usable()
        others, self._others = self._others, []
        lists, self._lists = self._lists, {}
        self._buffered = 0
        if not lists and not others:
            return
        try:
            if lists:
                self._push(lists)
            for name, args in others:
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
        client = self.channel.scripts_client  # whose keys are taken as they are: these have their prefix
        commands: list[str] = []
        with client.pipeline(transaction=False) as pipeline:
            for (list_, bell), texts in lists.items():
                for part in _parts(texts):
                    # Not by the script that publishes: it would take the server longer to hand it so many.
                    pipeline.execute_command("LPUSH", list_, *part)
                    commands.append("LPUSH")
                pipeline.execute_command(*RING.command([bell], []))
                commands.append("RING")
            answers = pipeline.execute(raise_on_error=False)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            for _, bell in lists:
                # The messages are there: to fail now would have them published once more. Who waits for them looks
                # every second anyway.
                with suppress(RedisError):
                    RING(client, [bell], [])
        pushed = [answer for answer, command in zip(answers, commands, strict=True) if command == "LPUSH"]
        if pushed and all(isinstance(answer, OutOfMemoryError) for answer in pushed):
            raise BatchRefused(
                "Redis refused LPUSH, since it is at its memory limit: raise maxmemory, or wait until workers "
                f"have consumed what is there ({pushed[0]})"
            ) from pushed[0]
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, NoScriptError):
                raise answer

    def discard(self) -> None:
        """Forget what was not handed over yet."""
        self._lists, self._others = {}, []
        super().discard()


def _parts(texts: list[str]) -> list[list[str]]:
    """Divide messages, in order, into what one command carries."""
    parts: list[list[str]] = [[]]
    size = 0
    for text in texts:
        if parts[-1] and (len(parts[-1]) >= MAX_MESSAGES or size + len(text) > MAX_CHARACTERS):
            parts.append([])
            size = 0
        parts[-1].append(text)
        size += len(text)
    return parts
