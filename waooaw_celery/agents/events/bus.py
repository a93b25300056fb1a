"""The event bus: publishes events to topics, with one message for each subscriber, and manages subscriptions."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import uuid4

from waooaw_celery.agents.events.replay_operations import ReplayOperations
from waooaw_celery.app.app import AgentApp
from waooaw_celery.app.events.delivery import Published, delivery_id, subscriber_messages
from waooaw_celery.errors import InvalidMessage, UnknownMessage
from waooaw_celery.limits.waiting import Wait
from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority, RetentionPolicy
from waooaw_celery.messages.message import NO_RECIPIENT, Message
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.receipt import DeliveryReceipt, receipt_of
from waooaw_celery.messages.topics.attributes import EventAttributes
from waooaw_celery.messages.topics.patterns import check_topic
from waooaw_celery.messages.topics.schemas import SchemaCheck, TopicSchema, select_schema
from waooaw_celery.messages.validation import JSON
from waooaw_celery.store.subscriptions import KnownSubscriptions, Subscription

#: Stands for the setting ``waooaw_event_ttl_seconds``, because None means that the messages never expire.
AS_SET: Any = object()


class EventBus(ReplayOperations):
    """Publishes and replays events, and manages subscriptions.

    Args:
        app: the application whose broker carries the events.

    Example:
        >>> EventBus(app).publish("task.created", {"task_id": "123"}, from_agent="orchestrator")
    """

    def __init__(self, app: AgentApp) -> None:
        super().__init__(app)
        self._declared: tuple[TopicSchema, ...] = ()

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
        identity: str | None = None,
        wait: Wait = None,
    ) -> Published:
        """Publish an event to all subscriptions that match it.

        Each subscriber gets its own message in its agent's queue, where the message waits until a worker runs. A
        ledger also records the event itself, even if it has no subscriber yet.

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
            identity: who the publisher is, for the ledger; None: the identity of its agent.
            wait: longest time in seconds that a publisher at its rate limit waits. An event counts as one message,
                for any number of subscribers.

        Returns:
            The id of the event, and the receipts of the messages by subscriber.

        Raises:
            InvalidMessage: the topic is invalid or has a wildcard, it has no schema and ``waooaw_require_schemas``
                is set, or another argument is invalid.
            SchemaViolation: the event does not match the schema of its topic.
            SchemaConflict: this application and another process have registered different schemas for one version
                of a topic; nothing was published.
            UnknownSender: no handler runs, and neither ``from_agent`` nor ``waooaw_sender`` is set.
            RateLimitExceeded: the publisher has reached its rate limit; nothing was published.
            BrokerUnavailable: the broker did not confirm all messages; it confirmed the error's ``message_ids``.
            StoreUnavailable: the store of subscriptions and receipts does not answer; nothing was published.
        """
        check_topic(topic)
        sender = from_agent or self.app.message_factory.sender_of(HandlerName("#", topic))
        id_ = str(uuid4()) if event_id is None else event_id
        known = self._known()
        schema = self._schema(known, topic, schema_version)
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
            identity=identity,
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
        is_new = event_id is None and completed.sent_at == message.sent_at
        record = completed.filled_in(to_agent=NO_RECIPIENT, has_new_id=is_new)
        subscribers = known.subscribers(topic, record.payload)
        earlier = {} if event_id is None else self._earlier_receipts(event_id, subscribers)
        batch = subscriber_messages(record, [each for each in subscribers if each.subscriber not in earlier])
        self.app.publisher.publish(batch, wait=wait, record=record)
        new = (receipt_of(message, target.handler) for target, message in batch)
        receipts = {name: earlier.get(name) or next(new) for name in (each.subscriber for each in subscribers)}
        return Published(event_id=record.message_id, topic=topic, receipts=receipts)

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

    def _known(self) -> KnownSubscriptions:
        """Return the known subscriptions and schemas, after announcing each of this application's schemas once."""
        schemas = self.app.schemas.all()
        if self._declared != schemas:
            self.app.subscriptions.declare([], schemas, renew=False)
            self._declared = schemas
        return self.app.subscriptions.known()

    def _schema(self, known: KnownSubscriptions, topic: str, version: str | None) -> TopicSchema | None:
        """Return the schema for an event, or None if its topic has none and needs none."""
        own = self.app.schemas.all()
        schema = select_schema([*known.schemas, *own], topic, version)
        if schema is None and self.app.settings.require_schemas:
            # Another process may have registered one since the cache was filled.
            schema = select_schema([*self.app.subscriptions.read().schemas, *own], topic, version)
            if schema is None:
                raise InvalidMessage(
                    f"{topic} has no schema, and waooaw_require_schemas is set: register one with "
                    "app.schemas.register()"
                )
        return schema

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
