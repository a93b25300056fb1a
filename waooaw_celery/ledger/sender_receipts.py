"""Keeps the receipts of senders without a ledger, which are in Redis, equal to what the ledger records."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property

from waooaw_celery.errors import AuditUnavailable, StoreUnavailable
from waooaw_celery.messages.log.loggers import get_logger
from waooaw_celery.messages.message import FOREIGN_SENDER
from waooaw_celery.messages.receipt import DeliveryReceipt, MessageEvent, MessageFact
from waooaw_celery.store.receipts import RedisReceipts

logger = get_logger(__name__)

#: Facts that wait in a process while Redis does not answer; beyond that, the oldest are dropped.
MAX_PENDING = 10_000


class SenderReceipts:
    """The receipts in Redis of messages whose senders have no ledger.

    Only such messages cost a round trip to Redis, and messages that are not known to the process when they end:
    dead letters, and messages that an operator drops or cancels.

    Args:
        open_receipts: opens the receipts in Redis.
    """

    def __init__(self, open_receipts: Callable[[], RedisReceipts]) -> None:
        self._open_receipts = open_receipts
        self._pending: deque[MessageFact] = deque(maxlen=MAX_PENDING)

    @cached_property
    def _receipts(self) -> RedisReceipts:
        return self._open_receipts()

    def begin(self, fact: MessageFact) -> DeliveryReceipt | None:
        """Record in the sender's receipt that a worker begins a message.

        Args:
            fact: the fact, with the event DELIVERED.

        Returns:
            The receipt if it says that the message has ended: a worker without a ledger has handled it, or one
            whose ledger could not record that. None: the message is to be handled.

        Raises:
            AuditUnavailable: Redis does not answer.
        """
        if not _is_without_ledger(fact):
            return None
        self._note_pending()
        try:
            is_new = self._receipts.begin(fact, may_be_redelivered=True)
            return None if is_new else self._receipts.get(fact.message_id)
        except StoreUnavailable as error:
            raise AuditUnavailable(str(error)) from error

    def note(self, facts: Iterable[MessageFact]) -> None:
        """Record facts in the receipts of their senders. While Redis does not answer, they wait in this process.

        Args:
            facts: any facts; those of messages that are in a ledger are left out.
        """
        self._pending.extend(fact for fact in facts if fact.event.terminal and _may_be_without_ledger(fact))
        self._note_pending()

    def cancellations(self, agents: Sequence[str]) -> dict[str, bool]:
        """Return the cancellations that senders without a ledger have requested; see ``ReceiptStore``."""
        self._note_pending()
        try:
            return self._receipts.cancellations(agents)
        except StoreUnavailable as error:  # those of the ledger still hold, and the next heartbeat asks again
            logger.debug("the cancellations of senders without a ledger are not known: %s", error)
            return {}

    def forget(self) -> None:
        """Drop what waits, in a forked child: its parent records it."""
        self._pending.clear()

    def _note_pending(self) -> None:
        waiting = [self._pending.popleft() for _ in range(len(self._pending))]
        if not waiting:
            return
        try:
            unsure = self._receipts.known(fact.message_id for fact in waiting if fact.message is None)
            facts = [fact for fact in waiting if fact.message is not None or fact.message_id in unsure]
            if facts:
                self._receipts.note(*facts)
        except StoreUnavailable as error:
            self._pending.extendleft(reversed(waiting))
            logger.warning(
                "the receipts of senders without a ledger are not up to date; this is repeated: %s",
                error,
                extra={"action": "sender_receipts_wait"},
            )


def facts_of_end(fact: MessageFact, ended: DeliveryReceipt) -> tuple[MessageFact, MessageFact]:
    """Return what the ledger records when a message arrives that has ended: its end, and the duplicate.

    Args:
        fact: the fact that a worker was about to begin it.
        ended: the sender's receipt.
    """
    duplicate = replace(fact, event=MessageEvent.DUPLICATE, seconds=None)
    event, at = MessageEvent(ended.status.value), ended.finished_at or fact.at
    return replace(duplicate, event=event, at=at, error=ended.error), duplicate


def _is_without_ledger(fact: MessageFact) -> bool:
    """Whether the sender of a message is an agent without a ledger. Other programs have no receipts."""
    message = fact.message
    return message is not None and message.ledger is None and message.from_agent != FOREIGN_SENDER


def _may_be_without_ledger(fact: MessageFact) -> bool:
    is_unknown = fact.message is None and fact.event is not MessageEvent.PUBLISHED
    return is_unknown or _is_without_ledger(fact)
