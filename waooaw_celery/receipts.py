"""The newest known fact about every message: what is asked of whoever keeps it, and Redis as its keeper."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from waooaw_celery.errors import UnknownMessage
from waooaw_celery.message import FINAL, DeliveryReceipt, Message, MessageStatus, MessageType, Priority
from waooaw_celery.remembered import Remembered
from waooaw_celery.store import Client, guarded
from waooaw_celery.values import check_id

_RECORD = "waooaw:message:"
_BY_TIME = "waooaw:messages"
_EXPIRING = "waooaw:expiring"
_CANCELS = "waooaw:cancels:"
#: Seconds by which a worker may be late in writing down that it began a message just before it expired.
SWEEP_GRACE = 5.0


class Event(StrEnum):
    """What can become of a message; the value is what is kept."""

    SENT = "sent"  #: the broker has it
    DELIVERED = "delivered"  #: a worker began to handle it
    RETRIED = "retried"  #: the handler asked for another attempt
    HANDLED = "handled"  #: the handler returned
    FAILED = "failed"  #: the handler gave up
    EXPIRED = "expired"  #: its time was over before a worker began
    DEAD = "dead"  #: the broker keeps it as a dead letter
    CANCEL_REQUESTED = "cancel_requested"  #: somebody asked that it be neither begun nor tried again
    CANCELLED = "cancelled"  #: it was dropped, or its handler stopped, since somebody asked for that
    PUBLISHED = "published"  #: it is the record of an event
    RESENT = "resent"  #: somebody had its dead letter sent again, as a new message
    DISCARDED = "discarded"  #: somebody removed its dead letter
    RECOVERED = "recovered"  #: the broker no longer had it, so that it is published again
    DUPLICATE = "duplicate"  #: it came to a worker once more after its end, and was not handled

    @property
    def terminal(self) -> bool:
        """Whether nothing more can happen after it; of several such events the first counts."""
        return self in _TERMINAL


_TERMINAL = frozenset({Event(status.value) for status in FINAL})
#: What is told of a message without anything having become of it: its handler runs on, or its end stays its end.
NO_PROGRESS = (Event.SENT, Event.CANCEL_REQUESTED, Event.DUPLICATE, Event.RESENT, Event.DISCARDED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """Something that became of a message.

    Attributes:
        message_id: of which message.
        event: what.
        at: when, aware UTC.
        message: the message, where it is known.
        handler: name of its handler, where the message is known.
        worker: node name of the worker that tells it.
        attempt: of which attempt, counted from 1; 0 for what happened outside of one.
        seconds: how long it took to come to this: the wait until it was delivered, the run until it was handled.
        error: why, for RETRIED, FAILED, DEAD and RECOVERED; by whom, for CANCEL_REQUESTED, RESENT and DISCARDED.
    """

    message_id: str
    event: Event
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    message: Message | None = None
    handler: str = ""
    worker: str | None = None
    attempt: int = 0
    seconds: float | None = None
    error: str | None = None


class Receipts(ABC):
    """What became of each message: written as it happens, asked for at any time.

    Facts are only added; the first terminal one wins, since Celery reports some ends twice. Every method raises
    StoreUnavailable when what keeps the facts does not answer.
    """

    @abstractmethod
    def pending(
        self,
        messages: Sequence[tuple[Message, str]],
        record: Message | None = None,
        besides: Mapping[str, Remembered] | None = None,
    ) -> Callable[[], set[str]]:
        """Begin to write messages down, each with the name of its handler.

        Args:
            messages: which.
            record: the event that they tell their subscribers of, where that is kept as well: in a ledger.
            besides: what their publishes have besides, by id, where that is kept as well.

        Returns:
            What to call before they are published: it waits until they are written, and returns the ids of those
            that are new. It raises as every method does, and then they must not be published.
        """

    @abstractmethod
    def note(self, *facts: Fact) -> None:
        """Write down what became of messages."""

    @abstractmethod
    def begin(self, fact: Fact, *, doubtful: bool) -> bool:
        """Write down that a worker begins to handle a message, unless it has ended: then, that it is a duplicate.

        Args:
            fact: DELIVERED.
            doubtful: whether something says that the message may have come before.

        Returns:
            Whether it is to be handled; also when it is not known that it has ended.
        """

    def sent(self, messages: Sequence[Message]) -> Callable[[], None]:
        """Make ready to note that the broker has messages.

        Returns:
            What to call when it has. It raises as every method does.
        """
        facts = [Fact(message_id=message.message_id, event=Event.SENT, message=message) for message in messages]

        def note() -> None:
            self.note(*facts)

        return note

    @abstractmethod
    def refused(self, agent: str, rule: str, count: int) -> None:
        """Write down that so many messages of an agent were refused by a rule of its rate limit."""

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
    def request_cancel(self, receipt: DeliveryReceipt, running: bool, by: str) -> None:
        """Write down that somebody asks to cancel a message, for every worker of its agent, also a later one.

        Args:
            receipt: of the message.
            running: whether a handler that has begun is to be stopped too.
            by: who asks.
        """

    @abstractmethod
    def cancels(self, agents: Sequence[str]) -> dict[str, bool]:
        """Return the messages to these agents that somebody asked to cancel, as long as a worker may meet them.

        Returns:
            By id, whether a handler that has begun is to be stopped too.
        """

    @abstractmethod
    def start(self) -> None:
        """Begin what goes on in the background of a worker."""

    @abstractmethod
    def flush(self) -> None:
        """Return when everything noted so far is safe."""

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

    def pending(
        self,
        messages: Sequence[tuple[Message, str]],
        record: Message | None = None,
        besides: Mapping[str, Remembered] | None = None,
    ) -> Callable[[], set[str]]:
        if not messages:
            return set
        forgotten = (datetime.now(UTC) - self._keep).timestamp()
        with guarded(f"record message {messages[0][0].message_id}"), self._client.pipeline() as pipeline:
            for message, handler in messages:
                key = _RECORD + message.message_id
                pipeline.hset(key, mapping=_facts(message, handler))
                pipeline.expire(key, self._keep + timedelta(seconds=message.ttl_seconds or 0))
                if message.expires_at is not None:
                    pipeline.zadd(_EXPIRING, {message.message_id: message.expires_at.timestamp()})
            for index in (_BY_TIME, _EXPIRING):
                pipeline.zremrangebyscore(index, "-inf", forgotten)
            for message, _ in messages:
                pipeline.zadd(_BY_TIME, {message.message_id: message.sent_at.timestamp()}, nx=True)
            added = pipeline.execute()[-len(messages) :]
        fresh = {message.message_id for (message, _), new in zip(messages, added, strict=True) if new}
        return lambda: fresh

    def refused(self, agent: str, rule: str, count: int) -> None:
        """Do nothing: that is kept by a ledger only."""

    def note(self, *facts: Fact) -> None:
        with guarded("record what became of messages"), self._client.pipeline() as pipeline:
            for fact in facts:
                self._add(pipeline, fact)
            pipeline.execute()

    def begin(self, fact: Fact, *, doubtful: bool) -> bool:
        key = _RECORD + fact.message_id
        with guarded("record what became of messages"), self._client.pipeline() as pipeline:
            pipeline.hexists(key, "outcome")
            self._add(pipeline, fact)
            ended = bool(pipeline.execute()[0])
            if ended:
                self._client.hincrby(key, "attempts", -1)  # it was none
        return not ended

    def _add(self, pipeline: Any, fact: Fact) -> None:
        key = _RECORD + fact.message_id
        if fact.event is Event.SENT:
            pipeline.hset(key, "published", "1")
        elif fact.event is Event.DELIVERED:
            if fact.message is not None:  # again, for a message from outside
                pipeline.hset(key, mapping=_facts(fact.message, fact.handler))
                pipeline.zadd(_BY_TIME, {fact.message_id: fact.message.sent_at.timestamp()}, nx=True)
            pipeline.hsetnx(key, "delivered_at", fact.at.isoformat())
            pipeline.hincrby(key, "attempts", 1)
            pipeline.zrem(_EXPIRING, fact.message_id)
            pipeline.expire(key, self._keep)
        elif fact.event.terminal:
            outcome = {"status": fact.event.value, "at": fact.at.isoformat(), "error": fact.error}
            pipeline.hsetnx(key, "outcome", json.dumps(outcome))
            pipeline.zrem(_EXPIRING, fact.message_id)
            pipeline.expire(key, self._keep)

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
            ids: list[str] = self._client.zrange(_EXPIRING, "-inf", now.timestamp() - SWEEP_GRACE, byscore=True)
        for id_ in ids:
            self.note(Fact(message_id=id_, event=Event.EXPIRED))
        return ids

    def request_cancel(self, receipt: DeliveryReceipt, running: bool, by: str) -> None:
        key, now = _RECORD + receipt.message_id, datetime.now(UTC)
        with guarded(f"record that {receipt.message_id} is to be cancelled"):
            # Kept as long as the receipt: no worker begins a message later than that.
            until = now + max(timedelta(seconds=self._client.ttl(key)), self._keep)
            with self._client.pipeline() as pipeline:
                pipeline.hsetnx(key, "cancel_requested_at", now.isoformat())
                pipeline.hsetnx(key, "cancel_requested_by", by)
                requests = _CANCELS + receipt.to_agent
                pipeline.zadd(requests, {f"{receipt.message_id} {int(running)}": until.timestamp()})
                pipeline.zremrangebyscore(requests, "-inf", now.timestamp())
                pipeline.execute()

    def cancels(self, agents: Sequence[str]) -> dict[str, bool]:
        now, found = datetime.now(UTC).timestamp(), dict[str, bool]()
        with guarded("read what is to be cancelled"):
            for agent in agents:
                for request in self._client.zrange(_CANCELS + agent, now, "+inf", byscore=True):
                    message_id, _, running = request.rpartition(" ")
                    found[message_id] = found.get(message_id, False) or running == "1"
        return found

    def start(self) -> None:
        pass  # there is nothing

    def flush(self) -> None:
        pass  # nothing is kept back

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
        cancel_requested_at=_time(fields.get("cancel_requested_at")),
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
