"""Stores receipts in Redis, for applications without a ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from waooaw_celery.store.keys import StoreKeys
from waooaw_celery.store.pipelined_writes import PipelinedWrites
from waooaw_celery.store.receipt_scripts import ReceiptScripts, facts_of, outcome_text
from waooaw_celery.store.reference_clock import ReferenceClock


class RedisReceipts(ReceiptStore):
    """Receipts in Redis, one hash for each message. The status is computed when a receipt is read.

    Args:
        client: client of the Redis.
        keep_seconds: seconds until a receipt is removed.
        clock: the reference clock; None: this computer's clock.
        prefix: what stands before every key.

    Attributes:
        keys: the names of the keys.
    """

    def __init__(
        self, client: Client, keep_seconds: float, clock: ReferenceClock | None = None, prefix: str = ""
    ) -> None:
        self._client = client
        self.keys = StoreKeys(prefix)
        self._clock = clock or ReferenceClock()
        self._keep = timedelta(seconds=keep_seconds)
        self._scripts = ReceiptScripts(client, self.keys)
        self._writes = PipelinedWrites(client, "record that messages were sent")

    def begin_recording(
        self,
        messages: Sequence[tuple[Message, str]],
        record: Message | None = None,
        publish_options: Mapping[str, PublishOptions] | None = None,
        *,
        is_follow_up: bool = False,
        payload_texts: Mapping[str, str] | None = None,
    ) -> Callable[[], set[str]]:
        if not messages:
            return set
        removed_before = (self._clock.now() - self._keep).timestamp()
        with store_errors(f"record message {messages[0][0].message_id}"):
            new_ids = self._scripts.record(messages, removed_before, self.keep_seconds)
        return lambda: new_ids

    @property
    def client(self) -> Client:
        """The client of the Redis."""
        return self._client

    def send_arguments(self, messages: Iterable[Message]) -> tuple[list[str], list[Any], list[tuple[Any, ...]]]:
        """Return what a script needs to record messages as sent, in place of ``begin_recording`` and ``note``.

        Args:
            messages: the messages.

        Returns:
            The first KEYS and ARGV of ``broker/redis/lua/send.lua``, and what it records of each message.
        """
        keep = self._keep.total_seconds()
        facts = []
        time, sent_at, sent_at_text = None, 0.0, ""
        for message in messages:
            if message.sent_at is not time:  # the messages of an event share it
                time = message.sent_at
                sent_at, sent_at_text = time.timestamp(), time.isoformat()
            ttl = message.ttl_seconds
            facts.append(
                (
                    message.message_id,
                    message.correlation_id or message.message_id,
                    sent_at_text,
                    sent_at,
                    None if ttl is None else sent_at + ttl,
                    int(keep + (ttl or 0)),
                )
            )
        removed_before = self._clock.now().timestamp() - keep
        return [self.keys.messages, self.keys.expiring], [self.keys.message(""), removed_before], facts

    def refused(self, agent: str, rule: str, count: int) -> None:
        """Do nothing: only a ledger records refusals."""

    def note(self, *facts: MessageFact) -> None:
        with store_errors("record facts about messages"):
            if all(fact.event is MessageEvent.SENT for fact in facts):
                self._scripts.sent([fact.message_id for fact in facts])
                return
            if len(facts) == 1 and facts[0].event.terminal:
                [fact] = facts
                self._scripts.end(fact, self._clock.corrected(fact.at), self.keep_seconds)
                return
            if all(fact.event.terminal and fact.error is None and fact.event is facts[0].event for fact in facts):
                ids, at = (
                    [fact.message_id for fact in facts],
                    max(self._clock.corrected(fact.at) for fact in facts),
                )
                self._scripts.end_all(ids, facts[0].event, at, self.keep_seconds)
                return
            with self._client.pipeline() as pipeline:
                for fact in facts:
                    self._add(pipeline, fact)
                pipeline.execute()

    def prepare_sent(self, messages: Sequence[Message]) -> Callable[[], None]:
        if len(messages) != 1:
            return super().prepare_sent(messages)
        key = self.keys.message(messages[0].message_id)

        def note() -> None:
            # SENT is information only: a sender does not wait for it.
            with store_errors("record facts about messages"):
                self._writes.send("HSET", key, "published", "1")

        return note

    def begin(self, fact: MessageFact, *, may_be_redelivered: bool) -> bool:
        with store_errors("record facts about messages"):
            at = self._clock.corrected(fact.at)
            return self._scripts.begin(fact, at, self.keep_seconds)

    def begin_all(self, deliveries: Sequence[tuple[MessageFact, bool]]) -> list[bool]:
        with store_errors("record facts about messages"):
            at = max(self._clock.corrected(fact.at) for fact, _ in deliveries)
            return self._scripts.begin_all([fact for fact, _ in deliveries], at, self.keep_seconds)

    @property
    def keep_seconds(self) -> int:
        """Seconds until a receipt is removed."""
        return int(self._keep.total_seconds())

    def now(self) -> datetime:
        """Return the time of the reference clock."""
        return self._clock.now()

    def outcome_commands(self, fact: MessageFact) -> tuple[tuple[str | int, ...], ...]:
        """Return the commands that record the outcome of a message. Executing them twice changes nothing.

        Args:
            fact: how the message ended.
        """
        key = self.keys.message(fact.message_id)
        outcome = outcome_text(fact.event, self._clock.corrected(fact.at), fact.error)
        return (
            ("HSETNX", key, "outcome", outcome),
            ("ZREM", self.keys.expiring, fact.message_id),
            ("EXPIRE", key, self.keep_seconds),
        )

    def withdraw_delivery(self, message_id: str, expires_at: datetime | None) -> None:
        """Take back that a message was delivered, because its handler does not begin.

        Args:
            message_id: the message.
            expires_at: when it expires; None: it does not.

        Raises:
            StoreUnavailable: Redis does not answer.
        """
        key = self.keys.message(message_id)
        with store_errors("record facts about messages"), self._client.pipeline() as pipeline:
            pipeline.hincrby(key, "attempts", -1)
            if expires_at is not None:  # so that the sweep sees it again
                pipeline.zadd(self.keys.expiring, {message_id: expires_at.timestamp()})
            if pipeline.execute()[0] <= 0:
                self._client.hdel(key, "delivered_at")

    def _add(self, pipeline: Any, fact: MessageFact) -> None:
        key = self.keys.message(fact.message_id)
        at = self._clock.corrected(fact.at).isoformat()
        if fact.event is MessageEvent.SENT:
            pipeline.hset(key, "published", "1")
        elif fact.event is MessageEvent.DELIVERED:
            if fact.message is not None:  # a message that this package did not publish is not recorded yet
                pipeline.hset(key, mapping=facts_of(fact.message, fact.handler))
                pipeline.zadd(self.keys.messages, {fact.message_id: fact.message.sent_at.timestamp()}, nx=True)
            pipeline.hsetnx(key, "delivered_at", at)
            pipeline.hincrby(key, "attempts", 1)
            pipeline.zrem(self.keys.expiring, fact.message_id)
            pipeline.expire(key, self._keep)
        elif fact.event.terminal:
            for command in self.outcome_commands(fact):
                pipeline.execute_command(*command)

    def get(self, message_id: str) -> DeliveryReceipt:
        check_id(message_id, "message_id")
        self._writes.settle()
        with store_errors(f"read the receipt of {message_id}"):
            fields = self._client.hgetall(self.keys.message(message_id))
        if "from" not in fields:
            raise UnknownMessage(
                f"no receipt of message {message_id!r}: it was never sent, or was sent more than {self._keep} ago"
            )
        return _receipt(message_id, fields)

    def known(self, message_ids: Iterable[str]) -> set[str]:
        """Return those of the ids that have a receipt."""
        ids = list(message_ids)
        if not ids:
            return set()
        with store_errors("look up receipts"), self._client.pipeline(transaction=False) as pipeline:
            for id_ in ids:
                pipeline.hexists(self.keys.message(id_), "from")
            return {id_ for id_, found in zip(ids, pipeline.execute(), strict=True) if found}

    def recent(self, *, since: datetime | None = None, limit: int = 1000) -> list[DeliveryReceipt]:
        self._writes.settle()
        lowest = since.timestamp() if since else "-inf"
        with store_errors("read the receipts"), self._client.pipeline(transaction=False) as pipeline:
            newest = self._client.zrange(
                self.keys.messages, "+inf", lowest, desc=True, byscore=True, offset=0, num=limit
            )
            ids = newest[::-1]
            for message_id in ids:
                pipeline.hgetall(self.keys.message(message_id))
            records = pipeline.execute()
        return [_receipt(id_, fields) for id_, fields in zip(ids, records, strict=True) if "from" in fields]

    def sweep(self) -> list[str]:
        with store_errors("sweep expired messages"):
            now = self._now()
            ids: list[str] = self._client.zrange(
                self.keys.expiring, "-inf", now.timestamp() - SWEEP_GRACE, byscore=True
            )
        for id_ in ids:
            self.note(MessageFact(message_id=id_, event=MessageEvent.EXPIRED))
        return ids

    def request_cancellation(self, receipt: DeliveryReceipt, running: bool, by: str) -> None:
        key = self.keys.message(receipt.message_id)
        with store_errors(f"record the cancellation of {receipt.message_id}"):
            now = self._now()
            # It is stored as long as the receipt: no worker begins the message after that.
            until = now + max(timedelta(seconds=self._client.ttl(key)), self._keep)
            with self._client.pipeline() as pipeline:
                pipeline.hsetnx(key, "cancel_requested_at", now.isoformat())
                pipeline.hsetnx(key, "cancel_requested_by", by)
                requests = self.keys.cancels(receipt.to_agent)
                pipeline.zadd(requests, {f"{receipt.message_id} {int(running)}": until.timestamp()})
                pipeline.zremrangebyscore(requests, "-inf", now.timestamp())
                pipeline.execute()

    def cancellations(self, agents: Sequence[str]) -> dict[str, bool]:
        found = dict[str, bool]()
        with store_errors("read the cancellations"):
            now = self._now().timestamp()
            for agent in agents:
                for request in self._client.zrange(self.keys.cancels(agent), now, "+inf", byscore=True):
                    message_id, _, running = request.rpartition(" ")
                    found[message_id] = found.get(message_id, False) or running == "1"
        return found

    def _now(self) -> datetime:
        """Return the time of Redis's clock, which all processes share."""
        return datetime.fromtimestamp(redis_time(self._client.time()), UTC)

    def start(self) -> None:
        pass  # it has no background threads

    def flush(self) -> None:
        self._writes.settle()

    def close(self) -> None:
        self._writes.close()
        self._client.close()


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
