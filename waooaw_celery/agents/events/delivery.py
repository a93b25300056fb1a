"""Makes the messages that deliver an event to its subscribers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID, uuid5

from waooaw_celery.messages.message import Message
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.store.subscriptions import Subscription

_NAMESPACE = UUID("6f6d2d4a-5c0e-5b43-9a55-0f4f5a6f8d11")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A published event.

    Attributes:
        event_id: id of the event, which is also the id of its record in the ledger.
        topic: topic of the event.
        receipts: receipts of the messages, by subscriber (``<agent>.<name>``). Read the later status of a message
            with ``MessageBus.receipt``.
    """

    event_id: str
    topic: str
    receipts: dict[str, DeliveryReceipt]


def delivery_id(event_id: str, subscription: Subscription) -> str:
    """Return the id of the message that delivers an event to a subscriber. It depends on nothing else."""
    return str(uuid5(_NAMESPACE, f"{event_id} {subscription.subscriber}"))


def subscriber_messages(
    record: Message, subscriptions: Iterable[Subscription]
) -> list[tuple[HandlerName, Message]]:
    """Return the messages that deliver an event to subscribers, each with its handler.

    Args:
        record: the completed record of the event.
        subscriptions: the subscriptions that get it.
    """
    return [
        (
            each.target,
            record.filled_in(
                message_id=delivery_id(record.message_id, each),
                to_agent=each.agent,
                causation_id=record.message_id,
            ),
        )
        for each in subscriptions
    ]
