"""The types, priorities, retention policies and statuses of messages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum

from waooaw_celery.errors import InvalidMessage


class MessageType(StrEnum):
    """What a message is for."""

    COMMAND = "command"  #: asks the recipient to do something
    QUERY = "query"  #: asks the recipient for something
    EVENT = "event"  #: reports that something has happened
    RESPONSE = "response"  #: answers a request
    ACK = "ack"  #: confirms that something was received


#: Names of the types, which are also the names of their handlers.
TYPE_NAMES = frozenset(member.value for member in MessageType)
#: Types that one agent sends to another. An EVENT is published, and a RESPONSE is a method's return value.
SENDABLE = (MessageType.COMMAND, MessageType.QUERY, MessageType.ACK)


class Priority(StrEnum):
    """How urgent a message is.

    A priority is a name, not a number, in code and in JSON: some brokers serve low numbers first, others high
        ones.
    """

    URGENT = "URGENT"
    HIGH = "HIGH"
    NORMAL = "NORMAL"
    LOW = "LOW"

    @property
    def rank(self) -> int:
        """The number 0, 3, 6 or 9; the lowest rank is handled first."""
        return _RANKS[self]

    @classmethod
    def of_rank(cls, rank: int) -> Priority:
        """Return the priority with this rank: 0, 3, 6 or 9."""
        return list(cls)[rank // 3]

    @classmethod
    def of(cls, value: Priority | str) -> Priority:
        """Return the priority with this name, in upper or lower case.

        Raises:
            InvalidMessage: the value is anything else. A number is refused too, because brokers disagree on its
                order.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and value.upper() in cls.__members__:
            return cls[value.upper()]
        raise InvalidMessage(f"priority must be one of {', '.join(cls.__members__)}, not {value!r}")


_RANKS = {priority: 3 * number for number, priority in enumerate(Priority)}


class RetentionPolicy(StrEnum):
    """How long the ledger keeps a message, counted from when it was sent."""

    DAYS_30 = "30 days"
    DAYS_90 = "90 days"
    DAYS_365 = "365 days"
    FOREVER = "forever"

    def until(self, sent_at: datetime) -> datetime:
        """Return the time after which a message sent at ``sent_at`` may be purged; for FOREVER, the year 9999."""
        if self is RetentionPolicy.FOREVER:
            return KEPT_FOREVER
        return sent_at + _PERIODS[self]


_PERIODS = {
    RetentionPolicy.DAYS_30: timedelta(days=30),
    RetentionPolicy.DAYS_90: timedelta(days=90),
    RetentionPolicy.DAYS_365: timedelta(days=365),
}
#: When a message with FOREVER may be purged: the last day that Python and every database can represent.
KEPT_FOREVER = datetime(9999, 12, 31, tzinfo=UTC)


class MessageStatus(StrEnum):
    """The state of a message: PENDING, SENT, DELIVERED, then one final status."""

    PENDING = "pending"  #: it is recorded, and the broker has not confirmed that it has it
    SENT = "sent"  #: the broker has it
    DELIVERED = "delivered"  #: a worker has begun to handle it
    HANDLED = "handled"  #: its handler returned
    FAILED = "failed"  #: its handler failed and is not tried again
    EXPIRED = "expired"  #: it expired before a worker began to handle it, and is never handled
    DEAD = "dead"  #: it is a dead letter: it could not be read or handled, or it ended its workers
    CANCELLED = "cancelled"  #: it was cancelled: it was never begun, or its handler was stopped
    PUBLISHED = "published"  #: it is the record of an event; each subscriber gets a message of its own
    ANSWERED = "answered"  #: it is the record of an answer, which its caller reads from the result backend

    @property
    def final(self) -> bool:
        """Whether the status can no longer change."""
        return self in FINAL


FINAL = frozenset(MessageStatus) - {MessageStatus.PENDING, MessageStatus.SENT, MessageStatus.DELIVERED}
#: The statuses of records of the ledger that are no message on a queue, so that no handler gets them.
RECORDS = frozenset({MessageStatus.PUBLISHED, MessageStatus.ANSWERED})
