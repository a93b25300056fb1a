"""The event bus: publishes events to topics, with one message for each subscriber, and manages subscriptions."""

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
from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority, RetentionPolicy
from waooaw_celery.messages.message import NO_RECIPIENT, Message
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.receipt import DeliveryReceipt, receipt_of
from waooaw_celery.messages.topics.attributes import EventAttributes
from waooaw_celery.messages.topics.filters import Filter
from waooaw_celery.messages.topics.patterns import check_pattern, check_topic
from waooaw_celery.messages.topics.schemas import SchemaCheck, select_schema
from waooaw_celery.messages.validation import JSON
from waooaw_celery.store.subscriptions import KnownSubscriptions, Subscription

#: Stands for the setting ``waooaw_event_ttl_seconds``, because None means that the messages never expire.
AS_SET: Any = object()


class EventBus:
    """Publishes and replays events, and manages subscriptions.

    Args:
        app: the application whose broker carries the events.

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
        """Publish an event to all subscriptions that match it.

        Each subscriber gets its own message in its agent's queue, where the message waits until a worker runs. A
        ledger also records the event itself, even if nobody has subscribed yet.

        Args:
            topic: what happened: words separated by dots, such as ``task.created``.
            event: the payload, any JSON value.
            from_agent: the publisher; None: the agent whose handler runs, or the setting ``waooaw_sender``.
            priority: priority of the messages.
            ttl_seconds: seconds until the event expires for a subscriber that has not begun it; None: it never
                does.
            retention: how long the ledger keeps it; None: the setting ``waooaw_retention``.
            correlation_id: id that related messages share.
            schema_version: version of the topic's schema that it follows; None: the newest, if there is one.
            event_id: unique id of the event. If you publish an event again with the same id, only the subscribers
                that did not get it get it. None: a new id.
            source: URI of where it happened, for an event of another system; None: the publisher.
            subject: what it happened to.
            time: when it happened, an aware datetime; None: now.
            wait: longest time in seconds that a publisher at its rate limit waits. An event counts as one message,
                for any number of subscribers.

        Returns:
            The id of the event, and the receipts of the messages by subscriber.

        Raises:
            InvalidMessage: the topic is invalid or has a wildcard, or another argument is invalid.
            SchemaViolation: the event does not match the schema of its topic.
            UnknownSender: no handler runs, and neither ``from_agent`` nor ``waooaw_sender`` is set.
            RateLimitExceeded: the publisher has reached its rate limit; nothing was published.
            BrokerUnavailable: the broker did not confirm all messages; it confirmed the error's ``message_ids``.
            StoreUnavailable: the store of subscriptions and receipts does not answer; nothing was published.
        """
        check_topic(topic)
        sender = from_agent or self.app.message_factory.sender_of(HandlerName("#", topic))
        id_ = str(uuid4()) if event_id is None else event_id
        known = self._known()
        schema = select_schema([*known.schemas, *self.app.schemas.all()], topic, schema_version)
        message = Message(
            from_agent=sender,
            to_agent=sender,  # replaced below: the record has no recipient
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
        record = completed.filled_in(to_agent=NO_RECIPIENT)
        subscribers = known.subscribers(topic, record.payload)
        earlier = {} if event_id is None else self._earlier_receipts(event_id, subscribers)
        batch = subscriber_messages(record, [each for each in subscribers if each.subscriber not in earlier])
        self.app.publisher.publish(batch, wait=wait, record=record)
        new = {target: receipt_of(message, target.handler) for target, message in batch}
        return Published(
            event_id=record.message_id,
            topic=topic,
            receipts={
                each.subscriber: earlier[each.subscriber] if each.subscriber in earlier else new[each.target]
                for each in subscribers
            },
        )

    def subscriptions(self) -> list[Subscription]:
        """Return all subscriptions, also the removed ones, sorted by subscriber.

        Raises:
            StoreUnavailable: the store does not answer.
        """
        return list(self.app.subscriptions.read().subscriptions)

    def unsubscribe(self, subscriber: str) -> Subscription:
        """Remove a subscription, also for later starts of its agent. Messages already sent are still handled.

        Args:
            subscriber: name of the subscription, ``<agent>.<name>``.

        Raises:
            UnknownSubscription: there is no such subscription.
            StoreUnavailable: the store does not answer.
        """
        return self.app.subscriptions.remove(subscriber)

    def resubscribe(self, subscriber: str) -> Subscription:
        """Restore a removed subscription. It gets the events that are published from now on.

        Args:
            subscriber: name of the subscription, ``<agent>.<name>``.

        Raises:
            UnknownSubscription, StoreUnavailable: as ``unsubscribe``.
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
        """Send recorded events that match a subscription to its subscriber again, the oldest first.

        They are new messages, with the same event attributes except that ``event.replay`` is true. Give ``since``
        or ``conversation``, or both.

        Args:
            subscriber: name of the subscription, ``<agent>.<name>``.
            since: only events that were published at this time or later.
            until: only events that were published before this time; None: before this call.
            conversation: only events of this conversation: the id of one of its messages, its correlation id or
                its conversation id.
            topic: only events on topics that match this pattern.
            where: only events whose payload matches this filter (see ``Filter``).
            per_second: number of events per second; None: from ``speed``.
            speed: factor by which the replay is faster than the events were published. If both are None, it is as
                fast as the broker.
            from_agent: the sender; None: as for ``publish``.
            priority: priority of the messages. With LOW, new events overtake them.
            dry_run: only count the events; send nothing.

        Returns:
            The number of events, and the ids of the messages.

        Raises:
            UnknownSubscription: there is no such subscription.
            InvalidMessage: ``since`` and ``conversation`` are both None, another argument is invalid, or the
                subscription was removed.
            UnknownMessage: the ledger has no such conversation.
            ConfigurationError: there is no ledger.
            StoreUnavailable, BrokerUnavailable: a server failed; the error's ``message_ids`` were sent.
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
        """Return the known subscriptions and schemas, after announcing this application's schemas once."""
        if not self._declared:
            self.app.subscriptions.declare([], self.app.schemas.all(), renew=False)
            self._declared = True
        return self.app.subscriptions.known()

    def _earlier_receipts(self, event_id: str, subscribers: list[Subscription]) -> dict[str, DeliveryReceipt]:
        """Return the receipts of the subscribers that already got an event, by subscriber."""
        receipts = {}
        for each in subscribers:
            try:
                receipt = self.app.receipts.get(delivery_id(event_id, each))
            except UnknownMessage:
                continue
            if receipt.status is not MessageStatus.PENDING:
                receipts[each.subscriber] = receipt
        return receipts
