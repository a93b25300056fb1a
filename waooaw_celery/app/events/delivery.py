"""Makes the messages that deliver an event to its subscribers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha1
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


def replayed_id(replay_id: str, event_id: str) -> str:
    """Return the id of the message that delivers an event in a replay. It depends on nothing else."""
    return str(uuid5(_NAMESPACE, f"{replay_id} {event_id}"))


def subscriber_messages(
    record: Message, subscriptions: Iterable[Subscription]
) -> list[tuple[HandlerName, Message]]:
    """Return the messages that deliver an event to subscribers, each with its handler.

    Args:
        record: the completed record of the event.
        subscriptions: the subscriptions that get it.
    """
    delivery = record.filled_in(causation_id=record.message_id)
    ids = _DeliveryIds(record.message_id)
    return [
        (each.target, delivery.filled_in(message_id=ids.of(each), to_agent=each.agent)) for each in subscriptions
    ]


class _DeliveryIds:
    """The ids of the messages of one event: those of ``delivery_id``, at a fraction of its time.

    Args:
        event_id: id of the event.
    """

    def __init__(self, event_id: str) -> None:
        self._hash = sha1(_NAMESPACE.bytes + f"{event_id} ".encode(), usedforsecurity=False)

    def of(self, subscription: Subscription) -> str:
        """Return the id of the message to a subscriber."""
        hash_ = self._hash.copy()
        hash_.update(subscription.subscriber.encode())
        digest = hash_.hexdigest()
        variant = "89ab"[int(digest[16], 16) & 3]
        return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"
