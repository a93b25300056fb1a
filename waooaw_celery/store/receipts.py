"""Stores receipts in Redis, for applications without a ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from waooaw_celery.errors import UnknownMessage
from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.publish_options import PublishOptions
from waooaw_celery.messages.receipt import SWEEP_GRACE, DeliveryReceipt, MessageEvent, MessageFact, ReceiptStore
from waooaw_celery.messages.validation import check_id
from waooaw_celery.store.clock_reading import redis_time
from waooaw_celery.store.connection import Client, store_errors
from waooaw_celery.store.reference_clock import ReferenceClock

_RECORD = "waooaw:message:"
_BY_TIME = "waooaw:messages"
_EXPIRING = "waooaw:expiring"
_CANCELS = "waooaw:cancels:"


class RedisReceipts(ReceiptStore):
    """Receipts in Redis, one hash for each message. The status is computed when a receipt is read.

    Args:
        client: client of the Redis.
        keep_seconds: seconds until a receipt is removed.
        clock: the reference clock; None: this computer's clock.
    """

    def __init__(self, client: Client, keep_seconds: float, clock: ReferenceClock | None = None) -> None:
        self._client = client
        self._clock = clock or ReferenceClock()
        self._keep = timedelta(seconds=keep_seconds)

    def begin_recording(
        self,
        messages: Sequence[tuple[Message, str]],
        record: Message | None = None,
        publish_options: Mapping[str, PublishOptions] | None = None,
        *,
        is_follow_up: bool = False,
    ) -> Callable[[], set[str]]:
        if not messages:
            return set
        removed_before = (self._clock.now() - self._keep).timestamp()
        with store_errors(f"record message {messages[0][0].message_id}"), self._client.pipeline() as pipeline:
            for message, handler in messages:
                key = _RECORD + message.message_id
                pipeline.hset(key, mapping=_facts(message, handler))
                pipeline.expire(key, self._keep + timedelta(seconds=message.ttl_seconds or 0))
                if message.expires_at is not None:
                    pipeline.zadd(_EXPIRING, {message.message_id: message.expires_at.timestamp()})
            for index in (_BY_TIME, _EXPIRING):
                pipeline.zremrangebyscore(index, "-inf", removed_before)
            for message, _ in messages:
                pipeline.zadd(_BY_TIME, {message.message_id: message.sent_at.timestamp()}, nx=True)
            added = pipeline.execute()[-len(messages) :]
        new_ids = {message.message_id for (message, _), new in zip(messages, added, strict=True) if new}
        return lambda: new_ids

    def refused(self, agent: str, rule: str, count: int) -> None:
        """Do nothing: only a ledger records refusals."""

    def note(self, *facts: MessageFact) -> None:
        with store_errors("record facts about messages"), self._client.pipeline() as pipeline:
            for fact in facts:
                self._add(pipeline, fact)
            pipeline.execute()

    def begin(self, fact: MessageFact, *, may_be_redelivered: bool) -> bool:
        key = _RECORD + fact.message_id
        with store_errors("record facts about messages"), self._client.pipeline() as pipeline:
            pipeline.hexists(key, "outcome")
            self._add(pipeline, fact)
            ended = bool(pipeline.execute()[0])
            if ended:
                self._client.hincrby(key, "attempts", -1)  # a duplicate is not an attempt
        return not ended

    def _add(self, pipeline: Any, fact: MessageFact) -> None:
        key = _RECORD + fact.message_id
        at = self._clock.corrected(fact.at).isoformat()
        if fact.event is MessageEvent.SENT:
            pipeline.hset(key, "published", "1")
        elif fact.event is MessageEvent.DELIVERED:
            if fact.message is not None:  # a message that this package did not publish is not recorded yet
                pipeline.hset(key, mapping=_facts(fact.message, fact.handler))
                pipeline.zadd(_BY_TIME, {fact.message_id: fact.message.sent_at.timestamp()}, nx=True)
            pipeline.hsetnx(key, "delivered_at", at)
            pipeline.hincrby(key, "attempts", 1)
            pipeline.zrem(_EXPIRING, fact.message_id)
            pipeline.expire(key, self._keep)
        elif fact.event.terminal:
            outcome = {"status": fact.event.value, "at": at, "error": fact.error}
            pipeline.hsetnx(key, "outcome", json.dumps(outcome))
            pipeline.zrem(_EXPIRING, fact.message_id)
            pipeline.expire(key, self._keep)

    def get(self, message_id: str) -> DeliveryReceipt:
        check_id(message_id, "message_id")
        with store_errors(f"read the receipt of {message_id}"):
            fields = self._client.hgetall(_RECORD + message_id)
        if "from" not in fields:
            raise UnknownMessage(
                f"no receipt of message {message_id!r}: it was never sent, or was sent more than {self._keep} ago"
            )
        return _receipt(message_id, fields)

    def recent(self, *, since: datetime | None = None, limit: int = 1000) -> list[DeliveryReceipt]:
        lowest = since.timestamp() if since else "-inf"
        with store_errors("read the receipts"), self._client.pipeline(transaction=False) as pipeline:
            newest = self._client.zrange(_BY_TIME, "+inf", lowest, desc=True, byscore=True, offset=0, num=limit)
            ids = newest[::-1]
            for message_id in ids:
                pipeline.hgetall(_RECORD + message_id)
            records = pipeline.execute()
        return [_receipt(id_, fields) for id_, fields in zip(ids, records, strict=True) if "from" in fields]

    def sweep(self) -> list[str]:
        with store_errors("sweep expired messages"):
            now = self._now()
            ids: list[str] = self._client.zrange(_EXPIRING, "-inf", now.timestamp() - SWEEP_GRACE, byscore=True)
        for id_ in ids:
            self.note(MessageFact(message_id=id_, event=MessageEvent.EXPIRED))
        return ids

    def request_cancellation(self, receipt: DeliveryReceipt, running: bool, by: str) -> None:
        key = _RECORD + receipt.message_id
        with store_errors(f"record the cancellation of {receipt.message_id}"):
            now = self._now()
            # It is stored as long as the receipt: no worker begins the message after that.
            until = now + max(timedelta(seconds=self._client.ttl(key)), self._keep)
            with self._client.pipeline() as pipeline:
                pipeline.hsetnx(key, "cancel_requested_at", now.isoformat())
                pipeline.hsetnx(key, "cancel_requested_by", by)
                requests = _CANCELS + receipt.to_agent
                pipeline.zadd(requests, {f"{receipt.message_id} {int(running)}": until.timestamp()})
                pipeline.zremrangebyscore(requests, "-inf", now.timestamp())
                pipeline.execute()

    def cancellations(self, agents: Sequence[str]) -> dict[str, bool]:
        found = dict[str, bool]()
        with store_errors("read the cancellations"):
            now = self._now().timestamp()
            for agent in agents:
                for request in self._client.zrange(_CANCELS + agent, now, "+inf", byscore=True):
                    message_id, _, running = request.rpartition(" ")
                    found[message_id] = found.get(message_id, False) or running == "1"
        return found

    def _now(self) -> datetime:
        """Return the time of Redis's clock, which all processes share."""
        return datetime.fromtimestamp(redis_time(self._client.time()), UTC)

    def start(self) -> None:
        pass  # it has no background threads

    def flush(self) -> None:
        pass  # facts are recorded at once

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
