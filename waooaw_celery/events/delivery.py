"""How an event becomes a message to each of its subscribers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

from waooaw_celery.app import AgentApp
from waooaw_celery.errors import WaooawError
from waooaw_celery.message import DeliveryReceipt, Message
from waooaw_celery.routing import HandlerName
from waooaw_celery.subscriptions import Subscription

#: Messages that go to the ledger and to the broker together.
MAX_BATCH = 1000
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


def messages_of(record: Message, subscriptions: Iterable[Subscription]) -> list[tuple[HandlerName, Message]]:
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


def hand_over(app: AgentApp, batch: Sequence[tuple[HandlerName, Message]], record: Message | None = None) -> None:
    """Send messages through the door, with the record of their event.

    Raises:
        StoreUnavailable, BrokerUnavailable: a server failed; the error's ``message_ids`` were published.
        InvalidMessage: one was sent already.
    """
    if not batch:
        app.receipts.pending([], record)()
    published: list[str] = []
    for start in range(0, len(batch), MAX_BATCH):
        part = batch[start : start + MAX_BATCH]
        try:
            app.send_messages(part, record=None if start else record)
        except WaooawError as error:
            error.message_ids = (*published, *error.message_ids)
            raise
        published += [message.message_id for _, message in part]
