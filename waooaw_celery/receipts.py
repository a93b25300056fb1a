"""The newest known fact about every message: what is asked of whoever keeps it, and Redis as its keeper."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from waooaw_celery.errors import UnknownMessage
from waooaw_celery.message import DeliveryReceipt, Message, MessageStatus, MessageType, Priority
from waooaw_celery.store import Client, guarded
from waooaw_celery.values import check_id

_RECORD = "waooaw:message:"
_BY_TIME = "waooaw:messages"
_EXPIRING = "waooaw:expiring"
#: Seconds by which a worker may be late in writing down that it began a message just before it expired.
SWEEP_GRACE = 5.0


class Receipts(ABC):
    """What became of each message: written as it happens, asked for at any time.

    Facts are only added; the first terminal one wins, since Celery reports some ends twice. Every method raises
    StoreUnavailable when what keeps the facts does not answer.
    """

    @abstractmethod
    def pending(self, message: Message, handler: str) -> bool:
        """Write a message down and return whether it is new; it must not be published when this fails."""

    @abstractmethod
    def sent(self, message_id: str) -> None:
        """Write down that the broker has the message."""

    @abstractmethod
    def delivered(self, message: Message, handler: str, worker: str | None = None) -> None:
        """Write down that a worker has begun to handle the message."""

    @abstractmethod
    def retried(self, message_id: str, error: str, worker: str | None = None) -> None:
        """Write down that the handler asked for another attempt."""

    @abstractmethod
    def finished(
        self, message_id: str, status: MessageStatus, error: str | None = None, worker: str | None = None
    ) -> bool:
        """Write down how it ended, unless that is known already.

        Args:
            message_id: of which message.
            status: HANDLED, FAILED or EXPIRED.
            error: why it failed.
            worker: node name of the worker that tells it.

        Returns:
            Whether this was the first end reported.
        """

    @abstractmethod
    def get(self, message_id: str) -> DeliveryReceipt:
        """Return the receipt of a message.

        Raises:
            UnknownMessage: none is kept.
            InvalidMessage: this cannot be an id.
        """

    @abstractmethod
    def recent(self, *, since: datetime | None = None, limit: int = 1000) -> list[DeliveryReceipt]:
        """Return the receipts of the newest messages, the oldest of them first."""

    @abstractmethod
    def sweep(self) -> list[str]:
        """Mark as EXPIRED what is past its time and no worker ever began, and return the ids.

        Safe to run twice at once. A worker that meets such a message later drops it.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the connections of this process."""


class RedisReceipts(Receipts):
    """Receipts kept in Redis for a while: one hash a message, whose status is worked out when it is asked for.

    Args:
        client: connection to the store.
        keep_seconds: how long a receipt is kept.
    """

    def __init__(self, client: Client, keep_seconds: float) -> None:
        self._client = client
        self._keep = timedelta(seconds=keep_seconds)

    def pending(self, message: Message, handler: str) -> bool:
        key = _RECORD + message.message_id
        with guarded(f"record message {message.message_id}"), self._client.pipeline() as pipeline:
            pipeline.hsetnx(key, "from", message.from_agent)
            pipeline.hset(key, mapping=_facts(message, handler))
            pipeline.expire(key, self._keep + timedelta(seconds=message.ttl_seconds or 0))
            pipeline.zadd(_BY_TIME, {message.message_id: message.sent_at.timestamp()})
            if message.expires_at is not None:
                pipeline.zadd(_EXPIRING, {message.message_id: message.expires_at.timestamp()})
            forgotten = (datetime.now(UTC) - self._keep).timestamp()
            for index in (_BY_TIME, _EXPIRING):
                pipeline.zremrangebyscore(index, "-inf", forgotten)
            return bool(pipeline.execute()[0])

    def sent(self, message_id: str) -> None:
        with guarded(f"record that message {message_id} was sent"):
            self._client.hset(_RECORD + message_id, "published", "1")

    def delivered(self, message: Message, handler: str, worker: str | None = None) -> None:
        key = _RECORD + message.message_id
        with guarded(f"record the delivery of {message.message_id}"), self._client.pipeline() as pipeline:
            pipeline.hset(key, mapping=_facts(message, handler))  # again, for a message from outside
            pipeline.hsetnx(key, "delivered_at", datetime.now(UTC).isoformat())
            pipeline.hincrby(key, "attempts", 1)
            pipeline.expire(key, self._keep)
            pipeline.zadd(_BY_TIME, {message.message_id: message.sent_at.timestamp()}, nx=True)
            pipeline.zrem(_EXPIRING, message.message_id)
            pipeline.execute()

    def retried(self, message_id: str, error: str, worker: str | None = None) -> None:
        pass  # the next attempt is counted when it begins

    def finished(
        self, message_id: str, status: MessageStatus, error: str | None = None, worker: str | None = None
    ) -> bool:
        outcome = {"status": status, "at": datetime.now(UTC).isoformat(), "error": error}
        key = _RECORD + message_id
        with guarded(f"record that {message_id} is {status}"), self._client.pipeline() as pipeline:
            pipeline.hsetnx(key, "outcome", json.dumps(outcome))
            pipeline.expire(key, self._keep)
            pipeline.zrem(_EXPIRING, message_id)
            return bool(pipeline.execute()[0])

    def get(self, message_id: str) -> DeliveryReceipt:
        check_id(message_id, "message_id")
        with guarded(f"read the receipt of {message_id}"):
            fields = self._client.hgetall(_RECORD + message_id)
        if "from" not in fields:
            raise UnknownMessage(
                f"there is no receipt of message {message_id!r}: it was never sent, or is older than {self._keep}"
            )
        return _receipt(message_id, fields)

    def recent(self, *, since: datetime | None = None, limit: int = 1000) -> list[DeliveryReceipt]:
        lowest = since.timestamp() if since else "-inf"
        with guarded("read the receipts"), self._client.pipeline(transaction=False) as pipeline:
            newest = self._client.zrange(_BY_TIME, "+inf", lowest, desc=True, byscore=True, offset=0, num=limit)
            ids = newest[::-1]
            for message_id in ids:
                pipeline.hgetall(_RECORD + message_id)
            records = pipeline.execute()
        return [_receipt(id_, fields) for id_, fields in zip(ids, records, strict=True) if "from" in fields]

    def sweep(self) -> list[str]:
        now = datetime.now(UTC)
        with guarded("sweep expired messages"):
            ids = self._client.zrange(_EXPIRING, "-inf", now.timestamp() - SWEEP_GRACE, byscore=True)
            return [id_ for id_ in ids if self.finished(id_, MessageStatus.EXPIRED)]

    def close(self) -> None:
        self._client.close()


def _facts(message: Message, handler: str) -> dict[str, str]:
    return {
        "from": message.from_agent,
        "to": message.to_agent,
        "handler": handler,
        "type": message.message_type.value,
        "priority": message.priority.name,
        "sent_at": message.sent_at.isoformat(),
        "correlation_id": message.correlation_id or message.message_id,
    }


def _receipt(message_id: str, fields: Mapping[str, str]) -> DeliveryReceipt:
    outcome = json.loads(fields["outcome"]) if "outcome" in fields else {}
    if outcome:
        status = MessageStatus(outcome["status"])
    elif "delivered_at" in fields:
        status = MessageStatus.DELIVERED
    else:
        status = MessageStatus.SENT if "published" in fields else MessageStatus.PENDING
    return DeliveryReceipt(
        message_id=message_id,
        from_agent=fields["from"],
        to_agent=fields["to"],
        handler=fields["handler"],
        message_type=MessageType(fields["type"]),
        priority=Priority[fields["priority"]],
        status=status,
        attempts=int(fields.get("attempts", "0")),
        sent_at=datetime.fromisoformat(fields["sent_at"]),
        delivered_at=_time(fields.get("delivered_at")),
        finished_at=_time(outcome.get("at")),
        correlation_id=fields["correlation_id"],
        error=outcome.get("error"),
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
