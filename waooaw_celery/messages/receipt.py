"""What can become of a message, and what is asked of whoever keeps it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from waooaw_celery.messages.message import FINAL, DeliveryReceipt, Message
from waooaw_celery.messages.publish_options import PublishOptions
from waooaw_celery.messages.validation import LocalTime

#: Seconds by which a worker may be late in writing down that it began a message just before it expired.
SWEEP_GRACE = 5.0


class MessageEvent(StrEnum):
    """What can become of a message; the value is what is kept."""

    SENT = "sent"  #: the broker has it
    DELIVERED = "delivered"  #: a worker began to handle it
    RETRIED = "retried"  #: the handler asked for another attempt
    HANDLED = "handled"  #: the handler returned
    FAILED = "failed"  #: the handler gave up
    EXPIRED = "expired"  #: its time was over before a worker began
    DEAD = "dead"  #: the broker keeps it as a dead letter
    CANCEL_REQUESTED = "cancel_requested"  #: somebody asked that it be neither begun nor tried again
    CANCELLED = "cancelled"  #: it was dropped, or its handler stopped, since somebody asked for that
    PUBLISHED = "published"  #: it is the record of an event
    RESENT = "resent"  #: somebody had its dead letter sent again, as a new message
    DISCARDED = "discarded"  #: somebody removed its dead letter
    RECOVERED = "recovered"  #: the broker no longer had it, so that it is published again
    DUPLICATE = "duplicate"  #: it came to a worker once more after its end, and was not handled

    @property
    def terminal(self) -> bool:
        """Whether nothing more can happen after it; of several such events the first counts."""
        return self in _TERMINAL


_TERMINAL = frozenset({MessageEvent(status.value) for status in FINAL})
#: What is told of a message without anything having become of it: its handler runs on, or its end stays its end.
NO_PROGRESS = (
    MessageEvent.SENT,
    MessageEvent.CANCEL_REQUESTED,
    MessageEvent.DUPLICATE,
    MessageEvent.RESENT,
    MessageEvent.DISCARDED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFact:
    """Something that became of a message.

    Attributes:
        message_id: of which message.
        event: what.
        at: when, aware UTC; left out, it is now: writing corrects it where this computer's clock is wrong.
        message: the message, where it is known.
        handler: name of its handler, where the message is known.
        worker: node name of the worker that tells it.
        attempt: of which attempt, counted from 1; 0 for what happened outside of one.
        seconds: how long it took to come to this: the wait until it was delivered, the run until it was handled.
        error: why, for RETRIED, FAILED, DEAD and RECOVERED; by whom, for CANCEL_REQUESTED, RESENT and DISCARDED.
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


class ReceiptStore(ABC):
    """What became of each message: written as it happens, asked for at any time.

    Facts are only added; the first terminal one wins, since Celery reports some ends twice. Every method raises
    StoreUnavailable when what keeps the facts does not answer.
    """

    @abstractmethod
    def pending(
        self,
        messages: Sequence[tuple[Message, str]],
        record: Message | None = None,
        besides: Mapping[str, PublishOptions] | None = None,
        *,
        follows: bool = False,
    ) -> Callable[[], set[str]]:
        """Begin to write messages down, each with the name of its handler.

        Args:
            messages: which.
            record: the event that they tell their subscribers of, where that is kept as well: in a ledger.
            besides: what their publishes have besides, by id, where that is kept as well.
            follows: whether they follow the end of a handler: they are not refused while a ledger's database is
                away, and wait on this computer.

        Returns:
            What to call before they are published: it waits until they are written, and returns the ids of those
            that are new. It raises as every method does, and then they must not be published.
        """

    @abstractmethod
    def note(self, *facts: MessageFact) -> None:
        """Write down what became of messages."""

    @abstractmethod
    def begin(self, fact: MessageFact, *, doubtful: bool) -> bool:
        """Write down that a worker begins to handle a message, unless it has ended: then, that it is a duplicate.

        Args:
            fact: DELIVERED.
            doubtful: whether something says that the message may have come before.

        Returns:
            Whether it is to be handled; also when it is not known that it has ended.
        """

    def sent(self, messages: Sequence[Message]) -> Callable[[], None]:
        """Make ready to note that the broker has messages.

        Returns:
            What to call when it has. It raises as every method does.
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
        """Write down that so many messages of an agent were refused by a rule of its rate limit."""

    @abstractmethod
    def get(self, message_id: str) -> DeliveryReceipt:
        """Return the receipt of a message.

        Raises:
            UnknownMessage: none is kept.
            InvalidMessage: this cannot be an id.
        """

    @abstractmethod
    def recent(self, *, since: datetime | None = None, limit: int = 1000) -> list[DeliveryReceipt]:
        """Return the receipts of the newest messages, the oldest of them first."""

    @abstractmethod
    def sweep(self) -> list[str]:
        """Mark as EXPIRED what is past its time and no worker ever began, and return the ids.

        Safe to run twice at once. A worker that meets such a message later drops it.
        """

    @abstractmethod
    def request_cancel(self, receipt: DeliveryReceipt, running: bool, by: str) -> None:
        """Write down that somebody asks to cancel a message, for every worker of its agent, also a later one.

        Args:
            receipt: of the message.
            running: whether a handler that has begun is to be stopped too.
            by: who asks.
        """

    @abstractmethod
    def cancellations(self, agents: Sequence[str]) -> dict[str, bool]:
        """Return the messages to these agents that somebody asked to cancel, as long as a worker may meet them.

        Returns:
            By id, whether a handler that has begun is to be stopped too.
        """

    @abstractmethod
    def start(self) -> None:
        """Begin what goes on in the background of a worker."""

    @abstractmethod
    def flush(self) -> None:
        """Return when everything noted so far is safe."""

    def finish(self) -> None:
        """Flush for the last time in this process."""
        self.flush()

    @abstractmethod
    def close(self) -> None:
        """Close the connections of this process."""
