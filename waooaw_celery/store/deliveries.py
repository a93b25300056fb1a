"""Records deliveries in the steps in which a broker on the same Redis moves the messages."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime

from waooaw_celery.errors import StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.store.receipts import RedisReceipts

logger = get_logger(__name__)


class RecordedDeliveries:
    """Says to a channel's claims how they record in receipts that messages are delivered.

    Args:
        receipts: the receipts.
        slots: returns how many messages begin at once when they are claimed now.
    """

    def __init__(self, receipts: RedisReceipts, slots: Callable[[], int]) -> None:
        self._receipts, self._slots = receipts, slots
        self._fixed = receipts.keys.message(""), receipts.keep_seconds, receipts.keys.expiring

    def claim_args(self) -> tuple[int, str, int, str, str]:
        """Return the arguments of the claim script, as ``Deliveries`` of the broker describes them."""
        return self._slots(), *self._fixed, self._receipts.now().isoformat()

    def withdraw(self, raw: bytes) -> None:
        """Take back what a claim has recorded of a message that does not begin. An outage is logged.

        Args:
            raw: the message as it was claimed.
        """
        headers = json.loads(raw)["headers"]
        self.withdraw_id(headers["id"], headers.get("expires"))

    def withdraw_id(self, message_id: str, expires: str | None) -> None:
        """Take back what a claim has recorded of a message that does not begin. An outage is logged.

        Args:
            message_id: the message.
            expires: when it expires, as ISO 8601; None: it does not.
        """
        withdraw_delivery(self._receipts, message_id, datetime.fromisoformat(expires) if expires else None)


def withdraw_delivery(receipts: RedisReceipts, message_id: str, expires_at: datetime | None = None) -> None:
    """Take back that a message was delivered, because its handler does not begin. An outage is logged.

    Args:
        receipts: the receipts.
        message_id: the message.
        expires_at: when the sweep is to expire it; None: it does not expire, or has ended.
    """
    try:
        receipts.withdraw_delivery(message_id, expires_at)
    except StoreUnavailable as error:  # what follows, such as the record of its end, is worth more
        logger.warning(
            "the receipt of %s counts an attempt that did not begin: %s",
            message_id,
            error,
            extra={"action": "delivery_not_withdrawn", "message_id": message_id},
        )
