"""The receipt and the events of a message, and the interface of the store that records them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from waooaw_celery.messages.enums import FINAL, MessageStatus, MessageType, Priority
from waooaw_celery.messages.json_form import JsonForm
from waooaw_celery.messages.message import Message
from waooaw_celery.messages.publish_options import PublishOptions
from waooaw_celery.messages.validation import LocalTime
from waooaw_celery.messages.values.frozen import with_fields

#: Seconds that a sweep waits after a message expired, because the note that a worker began it may arrive late.
SWEEP_GRACE = 5.0


@dataclass(frozen=True, kw_only=True, repr=False)
class DeliveryReceipt(JsonForm):
    """The newest known fact about one message.

    Attributes:
        message_id: id of the message.
        from_agent: name of the sender.
        to_agent: name of the recipient.
        handler: name of the handler, such as ``command`` or ``get_status``.
        message_type: type of the message.
        priority: priority of the message.
        status: status of the message.
        attempts: number of times that a worker began to handle it.
        sent_at: when it was sent, aware UTC.
        delivered_at: when a worker first began to handle it, or None.
        finished_at: when it reached its final status, or None.
        correlation_id: id that related messages share.
        error: why it failed, or None.
        cancel_requested_at: when its cancellation was first requested, or None.
    """

    message_id: str
    from_agent: str
    to_agent: str
    handler: str
    message_type: MessageType
    priority: Priority
    status: MessageStatus
    attempts: int
    sent_at: datetime
    delivered_at: datetime | None
    finished_at: datetime | None
    correlation_id: str
    error: str | None
    cancel_requested_at: datetime | None = None

    def __repr__(self) -> str:
        """Return what fits on a line: the id, the route and the status."""
        return f"<DeliveryReceipt {self.message_id}: {self.summary}>"

    @property
    def summary(self) -> str:
        """The route and the status, such as ``boss to worker-1.command, handled``."""
        target = f"{self.to_agent}.{self.handler}" if self.to_agent else f"topic {self.handler}"
        return f"{self.from_agent} to {target}, {self.status.value}"


def receipt_of(message: Message, handler: str, status: MessageStatus = MessageStatus.SENT) -> DeliveryReceipt:
    """Return the receipt of a message that was just sent, or just recorded (status PENDING)."""
    return with_fields(
        DeliveryReceipt,
        {
            "message_id": message.message_id,
            "from_agent": message.from_agent,
            "to_agent": message.to_agent,
            "handler": handler,
            "message_type": message.message_type,
            "priority": message.priority,
            "status": status,
            "attempts": 0,
            "sent_at": message.sent_at,
            "delivered_at": None,
            "finished_at": None,
            "correlation_id": message.correlation_id or message.message_id,
            "error": None,
            "cancel_requested_at": None,
        },
    )


class MessageEvent(StrEnum):
    """What can happen to a message. The value is what the store records."""

    SENT = "sent"  #: the broker has it
    DELIVERED = "delivered"  #: a worker began to handle it
    RETRIED = "retried"  #: its handler failed, or asked for a retry, and is tried again
    HANDLED = "handled"  #: its handler returned
    FAILED = "failed"  #: its handler failed and is not tried again
    EXPIRED = "expired"  #: it expired before a worker began to handle it
    DEAD = "dead"  #: it became a dead letter
    CANCEL_REQUESTED = "cancel_requested"  #: somebody asked to cancel it
    CANCELLED = "cancelled"  #: a cancellation dropped it or stopped its handler
    PUBLISHED = "published"  #: it is the record of an event
    ANSWERED = "answered"  #: it is the record of an answer
    RESENT = "resent"  #: its dead letter was retried, as a new message
    DISCARDED = "discarded"  #: its dead letter was removed
    RECOVERED = "recovered"  #: the broker had lost it, and it is published again
    LOGGED = "logged"  #: it was recorded with ``log_message``: no publisher and no worker of this package has it
    DUPLICATE = "duplicate"  #: it reached a worker again after it had ended, and was skipped

    @property
    def terminal(self) -> bool:
        """Whether the event ends the message; the first of several such events counts."""
        return self in _TERMINAL


_TERMINAL = frozenset({MessageEvent(status.value) for status in FINAL})
#: Events that are recorded without a change in the handling of the message.
NO_PROGRESS = (
    MessageEvent.SENT,
    MessageEvent.CANCEL_REQUESTED,
    MessageEvent.DUPLICATE,
    MessageEvent.RESENT,
    MessageEvent.DISCARDED,
    MessageEvent.LOGGED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFact:
    """One event of one message, with its time and circumstances.

    Attributes:
        message_id: id of the message.
        event: what happened.
        at: when it happened, aware UTC. Left out: now, corrected when it is recorded if this computer's clock is
            wrong.
        message: the message, or None if it is not known.
        handler: name of its handler; empty if the message is not known.
        worker: node name of the worker that reports the event, or None.
        attempt: number of the attempt, from 1; 0 for an event outside of an attempt.
        seconds: for DELIVERED, how long the message waited; for the end of an attempt, how long the handler ran.
        error: the reason, for RETRIED, FAILED, DEAD and RECOVERED; who did it, for CANCEL_REQUESTED, RESENT and
            DISCARDED.
        answer: for the end of a request, its answer, which a ledger records; None: there is none.
    """

    message_id: str
    event: MessageEvent
    at: datetime = field(default_factory=LocalTime.read)
    message: Message | None = None
    handler: str = ""
    worker: str | None = None
    attempt: int = 0
    seconds: float | None = None
    error: str | None = None
    answer: Message | None = None


class ReceiptStore(ABC):
    """The store of the messages' facts: a ledger, or Redis.

    Facts are only added. The first terminal one counts, because Celery reports some ends twice. Every method
    raises StoreUnavailable if the database or Redis does not answer.
    """

    @abstractmethod
    def begin_recording(
        self,
        messages: Sequence[tuple[Message, str]],
        record: Message | None = None,
        publish_options: Mapping[str, PublishOptions] | None = None,
        *,
        is_follow_up: bool = False,
        payload_texts: Mapping[str, str] | None = None,
    ) -> Callable[[], set[str]]:
        """Begin to record messages before they are published.

        Args:
            messages: the messages, each with the name of its handler.
            record: the record of the event that the messages deliver; only a ledger stores it.
            publish_options: their publish options, by message id; only a ledger stores them.
            is_follow_up: whether a finished handler sends them. A ledger does not refuse these while its database
                is down; it spools them on this computer.
            payload_texts: payloads that are encoded as JSON already, by message id; only a ledger stores them.

        Returns:
            A function to call before the publish. It waits until the messages are recorded, and returns the ids of
            those that are new. If it raises, do not publish them.
        """

    @abstractmethod
    def note(self, *facts: MessageFact) -> None:
        """Record facts about messages."""

    @abstractmethod
    def begin(self, fact: MessageFact, *, may_be_redelivered: bool) -> bool:
        """Record that a worker begins to handle a message; if the message has ended, record a duplicate instead.

        Args:
            fact: the fact, with the event DELIVERED.
            may_be_redelivered: whether the message may have been delivered before.

        Returns:
            False if the message is known to have ended and must not be handled; True otherwise.
        """

    def begin_all(self, deliveries: Sequence[tuple[MessageFact, bool]]) -> list[bool]:
        """Record that a worker begins to handle several messages, with as few writes as the store allows.

        Args:
            deliveries: for each message the arguments of ``begin``: the fact, and whether the message may have
                been delivered before.

        Returns:
            For each message what ``begin`` returns. If it raises, nothing or a part of it is recorded, and the
            call may be repeated.
        """
        return [self.begin(fact, may_be_redelivered=redelivered) for fact, redelivered in deliveries]

    def prepare_sent(self, messages: Sequence[Message]) -> Callable[[], None]:
        """Prepare to record that the broker has messages.

        Returns:
            A function to call once the broker has confirmed them.
        """
        facts = [
            MessageFact(message_id=message.message_id, event=MessageEvent.SENT, message=message)
            for message in messages
        ]

        def note() -> None:
            self.note(*facts)

        return note

    @abstractmethod
    def refused(self, agent: str, rule: str, count: int) -> None:
        """Record that a rule of an agent's rate limit refused messages.

        Args:
            agent: the sender.
            rule: the rule, such as ``10/second``.
            count: number of refused messages.
        """

    @abstractmethod
    def get(self, message_id: str) -> DeliveryReceipt:
        """Return the receipt of a message.

        Raises:
            UnknownMessage: the store has no receipt for this id.
            InvalidMessage: the id is invalid.
        """

    def is_erased(self, message_id: str) -> bool:
        """Return whether the payload of a message was erased. Only a ledger erases payloads."""
        return False

    @abstractmethod
    def recent(self, *, since: datetime | None = None, limit: int = 1000) -> list[DeliveryReceipt]:
        """Return the receipts of the newest messages, ordered from oldest to newest.

        Args:
            since: only messages that were sent at this time or later.
            limit: largest number of receipts.
        """

    @abstractmethod
    def sweep(self) -> list[str]:
        """Mark the messages that expired before a worker began them as EXPIRED, and return their ids.

        Two sweeps may run at once. A worker that receives such a message later drops it.
        """

    @abstractmethod
    def request_cancellation(self, receipt: DeliveryReceipt, running: bool, by: str) -> None:
        """Record a request to cancel a message, for all present and future workers of its agent.

        Args:
            receipt: receipt of the message.
            running: whether to stop the handler if it runs.
            by: who requests it.
        """

    @abstractmethod
    def cancellations(self, agents: Sequence[str]) -> dict[str, bool]:
        """Return the requested cancellations that workers of these agents may still need.

        Returns:
            By message id, whether to stop the handler if it runs.
        """

    @abstractmethod
    def start(self) -> None:
        """Start the background threads of a worker."""

    @abstractmethod
    def flush(self) -> None:
        """Block until all facts noted so far are recorded."""

    def finish(self) -> None:
        """Flush before the process ends."""
        self.flush()

    @abstractmethod
    def close(self) -> None:
        """Close the connections of this process."""
