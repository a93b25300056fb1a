"""The event bus: what happened, told to each subscriber in a message of its own, also while it is away."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import uuid4

from waooaw_celery.agents.events.delivery import Published, delivery_id, subscriber_messages
from waooaw_celery.agents.events.replay import EventReplayer, Pace, ReplayResult
from waooaw_celery.app.app import AgentApp
from waooaw_celery.broker.application import require_agent_app
from waooaw_celery.errors import UnknownMessage
from waooaw_celery.limits.waiting import Wait
from waooaw_celery.messages.message import (
    NOBODY,
    DeliveryReceipt,
    Message,
    MessageStatus,
    MessageType,
    Priority,
    RetentionPolicy,
    receipt_of,
)
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.topics.attributes import EventAttributes
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.messages.topics.patterns import check_pattern, check_topic
from waooaw_celery.messages.topics.schemas import SchemaCheck, select_schema
from waooaw_celery.messages.validation import JSON
from waooaw_celery.store.subscriptions import KnownSubscriptions, Subscription

#: Stands for the setting ``waooaw_event_ttl_seconds``, since None is a time to live of its own: for ever.
AS_SET: Any = object()


class EventBus:
    """Publishes events, and tells who subscribed.

    Args:
        app: the application whose broker carries them.

    Example:
        >>> EventBus(app).publish("task.created", {"task_id": "123"}, from_agent="orchestrator")
    """

    def __init__(self, app: AgentApp) -> None:
        self.app = require_agent_app(app, "EventBus")
        self._declared = False

    def publish(
        self,
        topic: str,
        event: JSON = None,
        *,
        from_agent: str | None = None,
        priority: Priority = Priority.NORMAL,
        ttl_seconds: float | None = AS_SET,
        retention: RetentionPolicy | None = None,
        correlation_id: str | None = None,
        schema_version: str | None = None,
        event_id: str | None = None,
        source: str | None = None,
        subject: str | None = None,
        time: datetime | None = None,
        wait: Wait = None,
    ) -> Published:
        """Tell everyone whose subscription wants it that something has happened.

        Each subscriber gets a message of its own into its agent's queue, where it waits while the agent is away.
        A ledger records the event itself as well, also when nobody wants it yet.

        Args:
            topic: what happened: words with dots between, such as ``task.created``.
            event: its payload, any JSON value.
            from_agent: who publishes; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            priority: of the messages.
            ttl_seconds: after so many seconds a subscriber that has not begun it does not handle it; None: never.
            retention: how long the ledger keeps it; None: the setting ``waooaw_retention``.
            correlation_id: threads it to other messages.
            schema_version: version of the topic's schema that it is of; None: the newest, if there is one.
            event_id: unique among all events. Given, publishing the same event again tells only those who were not
                told; None: a new one.
            source: where it happened, for a CloudEvent from elsewhere; None: at who publishes.
            subject: what it happened to.
            time: when it happened, an aware datetime; None: now.
            wait: seconds for which a publisher at its rate limit waits for its turn; an event counts as one
                message, however many subscribe.

        Raises:
            InvalidMessage: the topic is none or has a wildcard, or another argument breaks its rule.
            SchemaViolation: the event breaks the schema of its topic; the sentence says where.
            UnknownSender: no agent is speaking.
            RateLimitExceeded: the publisher has sent as much as it may for now; nothing was published.
            BrokerUnavailable: not confirmed by the broker; the error's ``message_ids`` were.
            StoreUnavailable: what keeps subscriptions and receipts does not answer; nothing was published.
        """
        check_topic(topic)
        sender = from_agent or self.app.message_factory.sender_of(HandlerName("#", topic))
        id_ = str(uuid4()) if event_id is None else event_id
        known = self._known()
        schema = select_schema([*known.schemas, *self.app.schemas.all()], topic, schema_version)
        message = Message(
            from_agent=sender,
            to_agent=sender,  # until it is known who wants it
            message_type=MessageType.EVENT,
            payload=event,
            priority=priority,
            ttl_seconds=self.app.settings.event_ttl_seconds if ttl_seconds is AS_SET else ttl_seconds,
            message_id=id_,
            correlation_id=correlation_id,
            retention=retention,
            event=EventAttributes(
                id=id_,
                topic=topic,
                source=sender if source is None else source,
                time=self.app.reference_clock.now() if time is None else time,
                subject=subject,
                schema_version=None if schema is None else schema.version,
            ),
        )
        if schema is not None and schema.check is SchemaCheck.PUBLISH:
            schema.validate(message.payload)
        completed = self.app.message_factory.complete(HandlerName("#", message.message_type.value), message)
        record = completed.filled_in(to_agent=NOBODY)
        subscribers = known.subscribers(topic, record.payload)
        told = {} if event_id is None else self._told(event_id, subscribers)
        batch = subscriber_messages(record, [each for each in subscribers if each.subscriber not in told])
        self.app.publisher.publish(batch, wait=wait, record=record)
        new = {target: receipt_of(message, target.handler) for target, message in batch}
        return Published(
            event_id=record.message_id,
            topic=topic,
            receipts={
                each.subscriber: told[each.subscriber] if each.subscriber in told else new[each.target]
                for each in subscribers
            },
        )

    def subscriptions(self) -> list[Subscription]:
        """Return all subscriptions that were ever declared, also those that were removed, by subscriber.

        Raises:
            StoreUnavailable: what keeps them does not answer.
        """
        return list(self.app.subscriptions.read().subscriptions)

    def unsubscribe(self, subscriber: str) -> Subscription:
        """Take a subscription off, also for when its agent starts again; what was sent to it is still handled.

        Args:
            subscriber: ``<agent>.<name>``, as ``subscriptions`` lists it.

        Raises:
            UnknownSubscription: there is none of this name.
            StoreUnavailable: what keeps them does not answer.
        """
        return self.app.subscriptions.remove(subscriber)

    def resubscribe(self, subscriber: str) -> Subscription:
        """Let a subscription that was removed stand again; it gets what is published from now on.

        Raises:
            As ``unsubscribe``.
        """
        return self.app.subscriptions.restore(subscriber)

    def replay(
        self,
        subscriber: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        conversation: str | None = None,
        topic: str = "#",
        where: Mapping[str, JSON] | None = None,
        per_second: float | None = None,
        speed: float | None = None,
        from_agent: str | None = None,
        priority: Priority = Priority.LOW,
        dry_run: bool = False,
    ) -> ReplayResult:
        """Tell one subscriber again of events in the ledger that it wants, the oldest first.

        They come as new messages whose ``event.replay`` is true and whose event is the same as it was.

        Args:
            subscriber: ``<agent>.<name>``, as ``subscriptions`` lists it.
            since: published at this moment or later.
            until: published before this moment; None: before this call.
            conversation: of this conversation: the id of a message, a thread or the conversation.
            topic: a pattern: only of these topics.
            where: only with such payloads: see ``topics.filters.Filter``.
            per_second: how many a second; None: as ``speed`` says.
            speed: times as fast as they were published; None too: as fast as the broker takes them.
            from_agent: who tells; None: as ``publish``.
            priority: of the messages: LOW lets what happens now overtake.
            dry_run: only tell how many it would be.

        Raises:
            UnknownSubscription: there is none of this name.
            InvalidMessage: neither a time nor a conversation, a bad pattern or filter, or it was removed.
            UnknownMessage: the ledger has no such conversation.
            ConfigurationError: there is no ledger.
            StoreUnavailable, BrokerUnavailable: a server failed; the error's ``message_ids`` were told.
        """
        sender = from_agent or self.app.message_factory.sender_of(HandlerName("#", "replay"))
        return EventReplayer(self.app).replay(
            self.app.subscriptions.read().get(subscriber),
            since=since,
            until=until,
            conversation=conversation,
            pattern=check_pattern(topic),
            where=None if where is None else Filter.of(where),
            pace=Pace(per_second=per_second, speed=speed),
            from_agent=sender,
            priority=priority,
            dry_run=dry_run,
        )

    def _known(self) -> KnownSubscriptions:
        """Return who wants what, having made the schemas of this code known once."""
        if not self._declared:
            self.app.subscriptions.declare([], self.app.schemas.all(), renew=False)
            self._declared = True
        return self.app.subscriptions.known()

    def _told(self, event_id: str, subscribers: list[Subscription]) -> dict[str, DeliveryReceipt]:
        """Return the receipts of those who were told of an event before."""
        told = {}
        for each in subscribers:
            try:
                receipt = self.app.receipts.get(delivery_id(event_id, each))
            except UnknownMessage:
                continue
            if receipt.status is not MessageStatus.PENDING:
                told[each.subscriber] = receipt
        return told
