"""What is said: a message, its type, its priority, and the receipt that tells what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Self
from uuid import uuid4

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.topics.attributes import EventAttributes
from waooaw_celery.messages.validation import JSON, LocalTime, check_agent_name, check_id, check_ttl, json_copy

#: The Celery header that carries the envelope; one key, so that no name of ours meets one of Celery's.
ENVELOPE_HEADER = "waooaw"
#: Raised when a reader of the old envelope would misunderstand the new one.
ENVELOPE_VERSION = 1
#: The sender of a message that was published without an envelope, by something that is no agent.
FOREIGN_SENDER = "unknown"


#: To whom the record of an event is addressed, which no agent's name can be.
NOBODY = ""


class MessageType(StrEnum):
    """What a message is for."""

    COMMAND = "command"  #: do this
    QUERY = "query"  #: tell me this
    EVENT = "event"  #: this has happened
    RESPONSE = "response"  #: the answer to a request
    ACK = "ack"  #: I have received it


#: The names of the types, which are also the names of their handlers.
TYPE_NAMES = frozenset(member.value for member in MessageType)
#: What a message says of how it travels.
_CHOICES = ("serializer", "compression")
#: The types that one agent sends to another; an EVENT is published, a RESPONSE is a handler's return value.
SENDABLE = (MessageType.COMMAND, MessageType.QUERY, MessageType.ACK)


class Priority(StrEnum):
    """How urgent a message is.

    A name and not a number, also where it travels as JSON: brokers disagree about the direction of numbers.
    """

    URGENT = "URGENT"
    HIGH = "HIGH"
    NORMAL = "NORMAL"
    LOW = "LOW"

    @property
    def rank(self) -> int:
        """0, 3, 6 or 9; the lowest rank is handled first."""
        return _RANKS[self]

    @classmethod
    def of_rank(cls, rank: int) -> Priority:
        """Return the priority of this rank."""
        return list(cls)[rank // 3]

    @classmethod
    def of(cls, value: Priority | str) -> Priority:
        """Return the priority of this name, in any case.

        Raises:
            InvalidMessage: for anything else; a bare number too, since brokers disagree about its direction.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str) and value.upper() in cls.__members__:
            return cls[value.upper()]
        raise InvalidMessage(f"priority must be one of {', '.join(cls.__members__)}, not {value!r}")


_RANKS = {priority: 3 * number for number, priority in enumerate(Priority)}


class RetentionPolicy(StrEnum):
    """How long the ledger keeps a message after it was sent."""

    DAYS_30 = "30 days"
    DAYS_90 = "90 days"
    DAYS_365 = "365 days"
    FOREVER = "forever"

    def until(self, sent_at: datetime) -> datetime:
        """Return the moment after which a message sent then may be purged; for FOREVER one that never comes."""
        if self is RetentionPolicy.FOREVER:
            return KEPT_FOREVER
        return sent_at + _KEPT[self]


_KEPT = {
    RetentionPolicy.DAYS_30: timedelta(days=30),
    RetentionPolicy.DAYS_90: timedelta(days=90),
    RetentionPolicy.DAYS_365: timedelta(days=365),
}
#: When what is kept for ever may be purged: the last day that every database and Python can write.
KEPT_FOREVER = datetime(9999, 12, 31, tzinfo=UTC)
#: Between them every moment of sending leaves room for every time to live and every retention.
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


class MessageStatus(StrEnum):
    """What is known of a message, from its first moment to its last."""

    PENDING = "pending"  #: recorded; that the broker has it is not confirmed
    SENT = "sent"  #: the broker has it
    DELIVERED = "delivered"  #: a worker has begun to handle it
    HANDLED = "handled"  #: its handler returned
    FAILED = "failed"  #: its handler gave up
    EXPIRED = "expired"  #: its time was over before a worker began; it is never handled
    DEAD = "dead"  #: a dead letter that nothing could be done with, or that ended its worker; the broker keeps it
    CANCELLED = "cancelled"  #: somebody cancelled it: it was never begun, or its handler was stopped
    PUBLISHED = "published"  #: the record of an event, which is no message to anyone: its subscribers get theirs

    @property
    def final(self) -> bool:
        """Whether nothing more can happen to the message."""
        return self in FINAL


FINAL = frozenset(MessageStatus) - {MessageStatus.PENDING, MessageStatus.SENT, MessageStatus.DELIVERED}


#: Stands for the id that a message is given when nobody gave it one; compared by identity.
_NEW_ID = str(uuid4())


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Facts about one message, known when it was sent.

    Attributes:
        from_agent: name of the sender.
        to_agent: name of the recipient.
        message_type: COMMAND, QUERY or ACK for ``send``.
        payload: what is said, any value that can travel. A copy is kept: changing the original changes nothing.
        priority: URGENT and HIGH overtake NORMAL and LOW.
        ttl_seconds: after this many seconds a message that no worker has begun is never handled; None: never.
        message_id: unique; also the id of the Celery task.
        correlation_id: threads related messages; None: filled in when it is sent.
        conversation_id: id of the message that began it all; None: filled in when it is sent.
        causation_id: id of the message whose handler sent this one; None outside of handlers.
        retention: how long the ledger keeps it; None: the setting ``waooaw_retention``, when it is sent.
        sent_at: aware UTC time; left out, it is now: sending corrects it where this computer's clock is wrong.
        serializer: in which format it travels; None: as the settings say.
        compression: with which codec, ``auto`` or ``none``; None: as the settings say.
        event: of an EVENT, what all messages of the event share; None for every other message.
        resent: how often it was sent again from the dead letters, each time as a new message.
        has_new_id: whether its id was made with it, so that no message with this id can have been sent before.

    Raises:
        InvalidMessage: a field breaks its rule; the sentence names the field.
    """

    from_agent: str
    to_agent: str
    message_type: MessageType = MessageType.COMMAND
    payload: JSON = field(default_factory=dict)
    priority: Priority = Priority.NORMAL
    ttl_seconds: float | None = 300.0
    message_id: str = field(default_factory=lambda: _NEW_ID)
    correlation_id: str | None = None
    conversation_id: str | None = None
    causation_id: str | None = None
    retention: RetentionPolicy | None = None
    sent_at: datetime = field(default_factory=LocalTime.read)
    serializer: str | None = None
    compression: str | None = None
    event: EventAttributes | None = None
    resent: int = 0
    has_new_id: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__  # the one way to normalise a field of a frozen dataclass
        check_agent_name(self.from_agent, "from_agent")
        check_agent_name(self.to_agent, "to_agent")
        put(self, "message_type", _message_type(self.message_type))
        put(self, "priority", Priority.of(self.priority))
        put(self, "payload", json_copy(self.payload, "payload"))
        if self.retention is not None:
            put(self, "retention", _retention(self.retention))
        check_ttl(self.ttl_seconds)
        if self.message_id is _NEW_ID:
            put(self, "message_id", str(uuid4()))
            put(self, "has_new_id", True)
        check_id(self.message_id, "message_id")
        for name in ("correlation_id", "conversation_id", "causation_id"):
            if getattr(self, name) is not None:
                check_id(getattr(self, name), name)
        for name in _CHOICES:
            if getattr(self, name) is not None and not isinstance(getattr(self, name), str):
                raise InvalidMessage(f"{name} must be a name or None, not {getattr(self, name)!r:.80}")
        if not isinstance(self.sent_at, datetime) or self.sent_at.tzinfo is None:
            raise InvalidMessage("sent_at must be an aware datetime, such as datetime.now(UTC)")
        if not _EARLIEST < self.sent_at < _LATEST:
            raise InvalidMessage(f"sent_at must be in the years {_EARLIEST.year} to {_LATEST.year - 1}")
        if type(self.resent) is not int or self.resent < 0:
            raise InvalidMessage(f"resent must be a count, not {self.resent!r:.80}")
        if self.event is not None and self.message_type is not MessageType.EVENT:
            raise InvalidMessage(f"only an EVENT has the attributes of one, not a {self.message_type.name}")

    def __hash__(self) -> int:
        return hash(self.message_id)

    @property
    def topic(self) -> str | None:
        """The topic of an EVENT, such as ``task.created``; None for every other message."""
        return self.event.topic if self.event is not None else None

    @property
    def expires_at(self) -> datetime | None:
        """The moment after which no worker begins to handle the message, or None."""
        if self.ttl_seconds is None:
            return None
        return self.sent_at + timedelta(seconds=self.ttl_seconds)

    def check_in_time(self, now: datetime) -> None:
        """Check that the message may still be handled.

        Args:
            now: the time, by the clock that gave ``sent_at``.

        Raises:
            InvalidMessage: its time is over.
        """
        if self.expires_at is not None and self.expires_at <= now:
            raise InvalidMessage(f"the time of message {self.message_id} was over before it was sent")

    def evolve(self, **changes: Any) -> Self:
        """Return a copy with these fields changed."""
        return replace(self, **changes)

    def filled_in(self, **facts: Any) -> Self:
        """Return a copy with these fields changed to values that were checked before."""
        filled = object.__new__(type(self))
        for name in self.__slots__:
            object.__setattr__(filled, name, facts[name] if name in facts else getattr(self, name))
        return filled

    def to_envelope(self) -> dict[str, JSON]:
        """Return what travels in the header ``waooaw``: the facts that Celery has no header of its own for."""
        # How it travels is said when the sender chose it: a retry travels in the same way.
        chosen = {name: getattr(self, name) for name in _CHOICES if getattr(self, name) is not None}
        said: dict[str, JSON] = chosen | {
            "version": ENVELOPE_VERSION,
            "from": self.from_agent,
            "to": self.to_agent,
            "type": self.message_type.value,
            "priority": self.priority.name,
            "ttl_seconds": self.ttl_seconds,
            "correlation_id": self.correlation_id,
            "retention": self.retention.value if self.retention else None,
            "sent_at": self.sent_at.isoformat(),
        }
        if self.resent:
            said["resent"] = self.resent
        return said if self.event is None else {**said, "event": self.event.to_envelope()}

    @classmethod
    def from_headers(cls, headers: Mapping[str, Any], to_agent: str, payload: JSON) -> Self:
        """Return the message that arrived with these Celery headers.

        A message without an envelope, from a Celery application that does not use this package, is from
        ``unknown``, and is given what can be known of it.

        Args:
            headers: Celery's message headers: ``id``, ``root_id``, ``parent_id`` and the envelope.
            to_agent: who received it, for a message without an envelope.
            payload: what was said.

        Raises:
            InvalidMessage: the envelope was made by a newer version of this package, or is damaged.
        """
        envelope = headers.get(ENVELOPE_HEADER) or {}
        if not isinstance(envelope, Mapping):
            raise InvalidMessage(f"the header {ENVELOPE_HEADER!r} must be a mapping, not {envelope!r:.80}")
        version = envelope.get("version", ENVELOPE_VERSION)
        if version != ENVELOPE_VERSION:
            raise InvalidMessage(
                f"this message has envelope version {version!r} and this worker reads {ENVELOPE_VERSION}: "
                "upgrade waooaw_celery on the worker first, then on the senders"
            )
        sent_at = envelope.get("sent_at")
        parent_id = headers.get("parent_id")
        return cls(
            from_agent=envelope.get("from", FOREIGN_SENDER),
            to_agent=envelope.get("to", to_agent),
            message_type=envelope.get("type", MessageType.COMMAND),
            payload=payload,
            priority=Priority.of(envelope.get("priority", Priority.NORMAL)),
            ttl_seconds=envelope.get("ttl_seconds"),
            message_id=headers["id"],
            correlation_id=envelope.get("correlation_id") or headers["id"],
            conversation_id=headers.get("root_id") or headers["id"],
            # A retry that Celery publishes names the message itself as its parent.
            causation_id=parent_id if parent_id != headers["id"] else None,
            retention=envelope.get("retention"),
            sent_at=datetime.fromisoformat(sent_at) if sent_at else LocalTime.read(),
            event=EventAttributes.from_envelope(envelope.get("event")),
            resent=envelope.get("resent", 0),
            **{name: envelope[name] for name in _CHOICES if name in envelope},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryReceipt:
    """The newest known fact about one message.

    Attributes:
        message_id: of which message.
        from_agent: who sent it.
        to_agent: to whom.
        handler: name of the handler it is for, such as ``command`` or ``get_status``.
        message_type: its type.
        priority: its priority.
        status: what is known of it.
        attempts: how often a worker has begun to handle it.
        sent_at: when it was sent, aware UTC.
        delivered_at: when a worker first began to handle it, or None.
        finished_at: when its last fact was known, or None while something may still happen.
        correlation_id: the thread it belongs to.
        error: why it failed, or None.
        cancel_requested_at: when somebody first asked to cancel it, or None.
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


def receipt_of(message: Message, handler: str, status: MessageStatus = MessageStatus.SENT) -> DeliveryReceipt:
    """Return the receipt of a message that the broker has just taken, or that was only written down."""
    return DeliveryReceipt(
        message_id=message.message_id,
        from_agent=message.from_agent,
        to_agent=message.to_agent,
        handler=handler,
        message_type=message.message_type,
        priority=message.priority,
        status=status,
        attempts=0,
        sent_at=message.sent_at,
        delivered_at=None,
        finished_at=None,
        correlation_id=message.correlation_id or message.message_id,
        error=None,
    )


def _retention(value: Any) -> RetentionPolicy:
    try:
        return RetentionPolicy(value)
    except ValueError:
        names = ", ".join(member.name for member in RetentionPolicy)
        raise InvalidMessage(f"retention must be one of {names}, not {value!r}") from None


def _message_type(value: Any) -> MessageType:
    try:
        return MessageType(value.lower() if isinstance(value, str) else value)
    except ValueError:
        names = ", ".join(member.name for member in MessageType)
        raise InvalidMessage(f"message_type must be one of {names}, not {value!r}") from None
