"""The scripts that write receipts: one command for what would be many.

Each command of a pipeline costs redis-py about as much processor time as a whole call of a script.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from json.encoder import encode_basestring_ascii
from typing import Any

from waooaw_celery.messages.message import Message
from waooaw_celery.messages.receipt import MessageEvent, MessageFact
from waooaw_celery.store.connection import Client
from waooaw_celery.store.keys import StoreKeys

#: Messages of one command: the server does nothing else while a script runs.
MAX_MESSAGES = 200
#: What the script returns for a message of which there is no receipt.
_NO_RECEIPT = 2


class ReceiptScripts:
    """Writes receipts. Each method is one round trip for up to ``MAX_MESSAGES`` messages.

    Args:
        client: client of the Redis.
        keys: the names of the keys.
    """

    def __init__(self, client: Client, keys: StoreKeys) -> None:
        folder = files(__package__).joinpath("lua")
        self._record, self._sent, self._begin, self._begin_all, self._end, self._end_all = (
            client.register_script(folder.joinpath(f"{name}.lua").read_text(encoding="utf-8"))
            for name in ("record", "sent", "begin", "begin_all", "end", "end_all")
        )
        self._keys, self._prefix = keys, keys.message("")

    def record(self, messages: Sequence[tuple[Message, str]], removed_before: float, keep: int) -> set[str]:
        """Record messages before they are published, and return the ids of those that are new.

        Args:
            messages: the messages, each with the name of its handler.
            removed_before: ids of messages that were sent before this time, in seconds, are removed.
            keep: seconds until a receipt is removed, counted from the expiry of its message.
        """
        new: set[str] = set()
        for start in range(0, len(messages), MAX_MESSAGES):
            part = messages[start : start + MAX_MESSAGES]
            args: list[Any] = [self._prefix, removed_before]
            for message, handler in part:
                expires_at = message.expires_at.timestamp() if message.expires_at is not None else ""
                args += (message.message_id, message.sent_at.timestamp(), expires_at)
                args.append(keep + int(message.ttl_seconds or 0))
                args += facts_of(message, handler).values()
            flags = self._record(keys=[self._keys.messages, self._keys.expiring], args=args)
            new.update(message.message_id for (message, _), flag in zip(part, flags, strict=True) if flag)
        return new

    def sent(self, message_ids: Sequence[str]) -> None:
        """Record that the broker has messages."""
        for start in range(0, len(message_ids), MAX_MESSAGES):
            self._sent(args=[self._prefix, *message_ids[start : start + MAX_MESSAGES]])

    def begin(self, fact: MessageFact, at: datetime, keep: int) -> bool:
        """Record that a worker is about to begin a message, and return False if it has ended before.

        Args:
            fact: the delivery. It has the message if this package did not publish it.
            at: when, by the reference clock.
            keep: seconds until the receipt is removed.
        """
        args: list[Any] = [fact.message_id, at.isoformat(), keep]
        if fact.message is not None:
            args.append(fact.message.sent_at.timestamp())
            for item in facts_of(fact.message, fact.handler).items():
                args += item
        keys = [self._keys.message(fact.message_id), self._keys.expiring, self._keys.messages]
        return bool(self._begin(keys=keys, args=args))

    def begin_all(self, facts: Sequence[MessageFact], at: datetime, keep: int) -> list[bool]:
        """Record that a worker is about to begin messages, and return False for each that has ended before.

        Args:
            facts: the deliveries. Each has the message if this package did not publish it.
            at: when, by the reference clock.
            keep: seconds until the receipts are removed.
        """
        new: list[bool] = []
        keys = [self._keys.expiring]
        for start in range(0, len(facts), MAX_MESSAGES):
            part = facts[start : start + MAX_MESSAGES]
            ids = [fact.message_id for fact in part]
            flags = self._begin_all(keys=keys, args=[self._prefix, at.isoformat(), keep, *ids])
            new += [
                self.begin(fact, at, keep) if flag == _NO_RECEIPT else bool(flag)
                for fact, flag in zip(part, flags, strict=True)
            ]
        return new

    def end_all(self, message_ids: Sequence[str], event: MessageEvent, at: datetime, keep: int) -> None:
        """Record the same outcome of messages, without an error.

        Args:
            message_ids: the messages.
            event: how they ended.
            at: when, by the reference clock.
            keep: seconds until the receipts are removed.
        """
        outcome = outcome_text(event, at, None)
        for start in range(0, len(message_ids), MAX_MESSAGES):
            part = message_ids[start : start + MAX_MESSAGES]
            self._end_all(keys=[self._keys.expiring], args=[self._prefix, outcome, keep, *part])

    def end(self, fact: MessageFact, at: datetime, keep: int) -> None:
        """Record the outcome of a message.

        Args:
            fact: how it ended.
            at: when, by the reference clock.
            keep: seconds until the receipt is removed.
        """
        outcome = outcome_text(fact.event, at, fact.error)
        keys = [self._keys.message(fact.message_id), self._keys.expiring]
        self._end(keys=keys, args=[fact.message_id, outcome, keep])


def outcome_text(event: MessageEvent, at: datetime, error: str | None) -> str:
    """Return an outcome as a receipt stores it.

    Args:
        event: how the message ended.
        at: when, by the reference clock.
        error: why it failed; None: it did not.
    """
    reason = "null" if error is None else encode_basestring_ascii(error)
    return f'{{"status": "{event}", "at": "{at.isoformat()}", "error": {reason}}}'


def facts_of(message: Message, handler: str) -> dict[str, str]:
    """Return the fields of a message's receipt, in the order in which the script expects their values."""
    return {
        "from": message.from_agent,
        "to": message.to_agent,
        "handler": handler,
        "type": message.message_type.value,
        "priority": message.priority.name,
        "sent_at": message.sent_at.isoformat(),
        "correlation_id": message.correlation_id or message.message_id,
    }
