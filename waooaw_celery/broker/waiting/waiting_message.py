"""A waiting message, and the interface of what reads and takes waiting messages of a broker."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from waooaw_celery.messages.enums import Priority
from waooaw_celery.messages.message import ENVELOPE_HEADER, LEDGER_FIELD
from waooaw_celery.messages.queues import HandlerName, takes_message

#: Messages that are taken together.
BATCH_SIZE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingMessage:
    """A message that no worker holds.

    Attributes:
        message_id: its id; None if its headers cannot be read, like the next two.
        from_agent: the agent that sent it.
        ledger: id of the ledger that records it; None also if there is none.
        is_awaited: whether a caller waits for its answer.
        priority: its priority.
        raw: its bytes, in the form in which messages travel on Redis; empty for a message that was only read.
        tag: the delivery tag of a message that was taken; empty for one that was only read.
    """

    message_id: str | None
    from_agent: str | None
    ledger: str | None = None
    is_awaited: bool
    priority: Priority
    raw: bytes = b""
    tag: Any = ""


class WaitingMessages(ABC):
    """The waiting messages of a broker."""

    @abstractmethod
    def read(self, queue: str, limit: int) -> Iterator[WaitingMessage]:
        """Yield messages that wait in a queue, and leave them there.

        On RabbitMQ, they are out of their queue until the iteration ends.

        Args:
            queue: the queue's name.
            limit: the maximum.
        """

    @abstractmethod
    def take(self, queue: str, sender: str) -> Iterator[Sequence[WaitingMessage]]:
        """Take the messages of a sender out of a queue, in batches; the others keep their order.

        What is taken is held as a consumer holds it: if this process dies before it has called ``bury`` or
        ``forget``, the broker puts it back.

        Args:
            queue: the queue's name.
            sender: the agent that sent them.
        """

    @abstractmethod
    def bury(self, queue: str, batch: Sequence[WaitingMessage], reason: str) -> Sequence[WaitingMessage]:
        """Make dead letters of messages that were taken.

        Returns:
            Those that are dead letters now: not those that the broker has put back meanwhile.
        """

    @abstractmethod
    def forget(self, batch: Sequence[WaitingMessage]) -> None:
        """Delete messages that were taken."""


def parse_item(item: bytes, priority: Priority, tag: Any = "") -> WaitingMessage:
    """Return a message from the form in which it travels on Redis.

    Args:
        item: its bytes, which may be anything.
        priority: its priority.
        tag: its delivery tag, if it was taken.
    """
    try:
        headers = json.loads(item)["headers"]
    except (ValueError, TypeError, KeyError, RecursionError):
        headers = {}
    return of_headers(headers, priority, item if tag else b"", tag)


def of_headers(headers: Any, priority: Priority, raw: bytes = b"", tag: Any = "") -> WaitingMessage:
    """Return a message by its headers, which may be anything."""
    headers = headers if isinstance(headers, dict) else {}
    envelope, task = headers.get(ENVELOPE_HEADER), headers.get("task")
    target = HandlerName.parse(task) if isinstance(task, str) else None
    return WaitingMessage(
        message_id=_text(headers.get("id")),
        from_agent=_text(envelope.get("from")) if isinstance(envelope, dict) else None,
        ledger=_text(envelope.get(LEDGER_FIELD)) if isinstance(envelope, dict) else None,
        is_awaited=target is not None and not takes_message(target.handler) and not headers.get("ignore_result"),
        priority=priority,
        raw=raw,
        tag=tag,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
