"""How an event becomes a message to each of its subscribers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID, uuid5

from waooaw_celery.messages.message import DeliveryReceipt, Message
from waooaw_celery.messages.queues import HandlerName
from waooaw_celery.store.subscriptions import Subscription

_NAMESPACE = UUID("6f6d2d4a-5c0e-5b43-9a55-0f4f5a6f8d11")


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """An event that was published.

    Attributes:
        event_id: of the event; also the id of its record in the ledger, and in the envelope of each message.
        topic: of the event.
        receipts: of the messages to its subscribers, by subscriber (``<agent>.<name>``); ``bus.receipt`` tells
            later news.
    """

    event_id: str
    topic: str
    receipts: dict[str, DeliveryReceipt]


def delivery_id(event_id: str, subscription: Subscription) -> str:
    """Return the id of the message that tells a subscriber of an event: always the same one."""
    return str(uuid5(_NAMESPACE, f"{event_id} {subscription.subscriber}"))


def subscriber_messages(
    record: Message, subscriptions: Iterable[Subscription]
) -> list[tuple[HandlerName, Message]]:
    """Return the messages that tell subscribers of an event, whose record was checked and completed."""
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
