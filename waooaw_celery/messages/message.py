"""The message, its checks, and its envelope in the headers of a Celery message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Self

from waooaw_celery.errors import InvalidMessage
from waooaw_celery.messages.enums import MessageType, Priority, RetentionPolicy
from waooaw_celery.messages.json_form import JsonForm
from waooaw_celery.messages.references.reference import Reference
from waooaw_celery.messages.topics.attributes import EventAttributes
from waooaw_celery.messages.trace_context import TraceContext, check_trace, trace_of
from waooaw_celery.messages.validation import (
    JSON,
    LocalTime,
    NewId,
    check_agent_name,
    check_id,
    check_identity,
    check_optional_ids,
    check_ttl,
    json_copy,
    new_id,
)
from waooaw_celery.messages.values.frozen import quick_init, with_fields

#: The Celery header that carries the envelope. It is one header, so no name in it clashes with one of Celery's.
ENVELOPE_HEADER = "waooaw"
#: Increased when a reader of the old envelope would misunderstand the new one.
ENVELOPE_VERSION = 1
#: The envelope's field with the id of the ledger that records the message; left out: its sender has no ledger.
LEDGER_FIELD = "ledger"
#: Sender of a message without an envelope, which something other than an agent published.
FOREIGN_SENDER = "unknown"
#: Recipient of the record of an event. No agent can have this name.
NO_RECIPIENT = ""


#: Fields in which the sender may choose how the message is encoded.
_ENCODING_FIELDS = ("serializer", "compression")
#: Bounds of ``sent_at``; adding any time to live or retention to it stays within what can be represented.
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


#: Placeholder for the id of a message that is created without one; compared by identity.
_NEW_ID = new_id()


@quick_init
@dataclass(frozen=True, kw_only=True)
class Message(JsonForm):
    """One message. It is immutable, and each field is checked when it is created.

    Attributes:
        from_agent: name of the sender.
        to_agent: name of the recipient.
        message_type: COMMAND, QUERY or ACK for ``send``.
        payload: a JSON value, which may contain dates, UUIDs, Decimals and bytes. The message holds a copy of it.
        priority: the more urgent message is handled first.
        ttl_seconds: seconds until the message expires; an expired message is not handled. None: it never expires.
        message_id: unique id, which is also the id of the Celery task.
        correlation_id: id that related messages share; None: filled in when the message is sent.
        conversation_id: id of the first message of the conversation; None: filled in when the message is sent.
        causation_id: id of the message whose handler sent this one; None outside of handlers.
        retention: how long the ledger keeps the message; None: the setting ``waooaw_retention``.
        sent_at: aware UTC time of sending. Left out: now, corrected when it is sent if this computer's clock is
            wrong.
        serializer: name of the format, such as ``msgpack``; None: from the settings.
        compression: name of the codec, ``auto`` or ``none``; None: from the settings.
        event: attributes of the event that an EVENT delivers; None for other messages.
        identity: who the sender says it is, such as a DID or an e-mail address; None: from its agent. It is not
            verified.
        ledger: id of the ledger that records it, filled in when it is sent; None: its sender has no ledger.
        capability: the capability that the sender named as recipient, such as ``summarise@>=2``; None: it named
            the agent.
        trace: the trace context with which it is sent, such as ``{"traceparent": ...}``; None: it is filled in
            from the current span, or from the message whose handler sends this one.
        reference: where its payload is kept, when that is too large to travel and not loaded; None: the message
            has it. A handler gets its message with the payload, and without a reference.
        resent: how often the message was retried from the dead-letter queue, each time as a new message.
        has_new_id: whether the id was generated with this message, so that no earlier message can have it.

    Raises:
        InvalidMessage: a field is invalid; the error names it.

    Example:
        >>> Message(from_agent="orchestrator", to_agent="worker-1", payload={"task": 123}, priority=Priority.HIGH)
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
    ledger: str | None = None
    resent: int = 0
    identity: str | None = None
    capability: str | None = None
    trace: TraceContext | None = None
    reference: Reference | None = None
    has_new_id: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        facts = self.__dict__  # the dataclass is frozen
        check_agent_name(self.from_agent, "from_agent")
        check_agent_name(self.to_agent, "to_agent")
        # Most values need no conversion. To skip it saves a third of the time that a message takes.
        if type(self.message_type) is not MessageType:
            facts["message_type"] = _message_type(self.message_type)
        if type(self.priority) is not Priority:
            facts["priority"] = Priority.of(self.priority)
        facts["payload"] = json_copy(self.payload, "payload")
        if self.retention is not None:
            facts["retention"] = _retention(self.retention)
        check_ttl(self.ttl_seconds)
        if self.message_id is _NEW_ID:
            facts["message_id"] = new_id()
            facts["has_new_id"] = True
        elif type(self.message_id) is NewId:
            facts["message_id"] = str(self.message_id)
            facts["has_new_id"] = True
        else:
            check_id(self.message_id, "message_id")
        check_optional_ids(self)
        if self.serializer is not None or self.compression is not None:
            self._check_encoding()
        if type(self.sent_at) is not LocalTime:
            self._check_sent_at()
        if type(self.resent) is not int or self.resent < 0:
            raise InvalidMessage(f"resent must be a whole number from 0, not {self.resent!r:.80}")
        if self.identity is not None:
            check_identity(self.identity)
        if self.capability is not None:
            check_identity(self.capability, "capability")
        if self.trace is not None:
            facts["trace"] = check_trace(self.trace)
        if self.event is not None and self.message_type is not MessageType.EVENT:
            raise InvalidMessage(f"only an EVENT has event attributes, not a {self.message_type.name}")

    def _check_encoding(self) -> None:
        for name in _ENCODING_FIELDS:
            if getattr(self, name) is not None and not isinstance(getattr(self, name), str):
                raise InvalidMessage(f"{name} must be a name or None, not {getattr(self, name)!r:.80}")

    def _check_sent_at(self) -> None:
        if not isinstance(self.sent_at, datetime) or self.sent_at.tzinfo is None:
            raise InvalidMessage(
                f"sent_at must be an aware datetime, such as datetime.now(UTC), not {self.sent_at!r:.80}"
            )
        if not _EARLIEST < self.sent_at < _LATEST:
            raise InvalidMessage(
                f"sent_at must be in the years {_EARLIEST.year} to {_LATEST.year - 1}, not {self.sent_at!r:.80}"
            )

    def __hash__(self) -> int:
        return hash(self.message_id)

    @property
    def topic(self) -> str | None:
        """The topic of an EVENT, such as ``task.created``; None for other messages."""
        return self.event.topic if self.event is not None else None

    @property
    def expires_at(self) -> datetime | None:
        """The time at which the message expires, or None if it never does."""
        ttl = self.ttl_seconds
        return None if ttl is None else self.sent_at + _period(ttl)

    def check_in_time(self, now: datetime) -> None:
        """Check that the message has not expired.

        Args:
            now: the time by the clock that gave ``sent_at``.

        Raises:
            InvalidMessage: the message has expired.
        """
        expires_at = self.expires_at
        if expires_at is not None and expires_at <= now:
            raise InvalidMessage(
                f"message {self.message_id} expired before it was sent, at {expires_at.isoformat()}: "
                "set a later expiry"
            )

    def evolve(self, **changes: Any) -> Self:
        """Return a copy with some fields changed; the copy is checked.

        Raises:
            InvalidMessage: a field is invalid.
        """
        return replace(self, **changes)

    def filled_in(self, **facts: Any) -> Self:
        """Return a copy with some fields changed, without checking the new values: check them first."""
        return with_fields(type(self), self.__dict__ | facts)

    def to_envelope(self) -> dict[str, JSON]:
        """Return the value of the header ``waooaw``: the facts for which Celery has no header."""
        # The sender's choice of format and codec is included, so that a retry uses the same ones.
        chosen = {name: getattr(self, name) for name in _ENCODING_FIELDS if getattr(self, name) is not None}
        envelope: dict[str, JSON] = chosen | {
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
        if self.ledger is not None:
            envelope[LEDGER_FIELD] = self.ledger
        if self.resent:
            envelope["resent"] = self.resent
        if self.identity is not None:
            envelope["identity"] = self.identity
        if self.capability is not None:
            envelope["capability"] = self.capability
        return envelope if self.event is None else {**envelope, "event": self.event.to_envelope()}

    @classmethod
    def from_headers(cls, headers: Mapping[str, Any], to_agent: str, payload: JSON | Reference) -> Self:
        """Return the message that arrived with these Celery headers.

        A message without an envelope comes from a Celery application that does not use this package. Its sender is
        ``unknown``, and the fields that the headers do not give have defaults.

        Args:
            headers: Celery's message headers: ``id``, ``root_id``, ``parent_id``, the envelope, and the trace.
            to_agent: the recipient of a message without an envelope.
            payload: the payload; a Reference in its place means that it is not loaded yet.

        Raises:
            InvalidMessage: a newer version of this package wrote the envelope, or the envelope is damaged.
        """
        envelope = headers.get(ENVELOPE_HEADER) or {}
        if not isinstance(envelope, Mapping):
            raise InvalidMessage(f"the header {ENVELOPE_HEADER!r} must be a mapping, not {envelope!r:.80}")
        version = envelope.get("version", ENVELOPE_VERSION)
        if version != ENVELOPE_VERSION:
            raise InvalidMessage(
                f"this message has envelope version {version!r}, and this worker reads only {ENVELOPE_VERSION}: "
                "upgrade waooaw_celery on the worker first, then on the senders"
            )
        sent_at = envelope.get("sent_at")
        reference = payload if isinstance(payload, Reference) else None
        parent_id = headers.get("parent_id")
        return cls(
            from_agent=envelope.get("from", FOREIGN_SENDER),
            to_agent=envelope.get("to", to_agent),
            message_type=envelope.get("type", MessageType.COMMAND),
            payload=None if reference is not None else payload,
            priority=Priority.of(envelope.get("priority", Priority.NORMAL)),
            ttl_seconds=envelope.get("ttl_seconds"),
            message_id=headers["id"],
            correlation_id=envelope.get("correlation_id") or headers["id"],
            conversation_id=headers.get("root_id") or headers["id"],
            # In a retry that Celery publishes, the parent is the message itself.
            causation_id=parent_id if parent_id != headers["id"] else None,
            retention=envelope.get("retention"),
            sent_at=datetime.fromisoformat(sent_at) if sent_at else LocalTime.read(),
            event=EventAttributes.from_envelope(envelope.get("event")),
            ledger=envelope.get(LEDGER_FIELD),
            resent=envelope.get("resent", 0),
            identity=envelope.get("identity"),
            capability=envelope.get("capability"),
            trace=trace_of(headers),
            reference=reference,
            **{name: envelope[name] for name in _ENCODING_FIELDS if name in envelope},
        )


@lru_cache(maxsize=1024)
def _period(seconds: float) -> timedelta:
    """Return a time to live. Most messages have the same few, and to make one takes longer than to add it."""
    return timedelta(seconds=seconds)


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
