"""What queries of the ledger return: records, pages and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from waooaw_celery.errors import PayloadNotLoaded
from waooaw_celery.messages.json_form import JsonForm
from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.messages.references.reference import Reference
from waooaw_celery.messages.topics.attributes import EventAttributes
from waooaw_celery.messages.validation import JSON
from waooaw_celery.messages.wording import counted

#: In place of the payload of a record that is read without it.
NOT_LOADED: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent(JsonForm):
    """An event of a message, as recorded.

    Attributes:
        event: sent, delivered, retried, recovered, duplicate, handled, failed, expired, dead, cancel_requested,
            cancelled, published, resent, discarded or logged.
        attempt: the number of the attempt, from 1; 0 for an event before the first.
        at: when it happened, aware UTC.
        worker: the node name of the worker that recorded it, or None.
        seconds: for delivered, the time from send to delivery; for handled, failed and retried, the duration of
            the attempt; None if unknown.
        error: the error, for retried, recovered and failed; who did it, for cancel_requested, resent and
            discarded.
    """

    event: str
    attempt: int
    at: datetime
    worker: str | None
    seconds: float | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal(JsonForm):
    """Messages that a rate limit refused within one minute.

    Attributes:
        agent: the sender; ``*`` if too many agents and rules were refused at once to be counted apart.
        rule: the rule that refused them.
        minute: the minute, aware UTC.
        count: how many messages.
    """

    agent: str
    rule: str
    minute: datetime
    count: int


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class AuditRecord(JsonForm):
    """A message in the ledger, with its events.

    Attributes:
        receipt: sender, recipient, status and times.
        payload: the payload; None if it was erased. A record that was read without its payload
            (``payloads=False``) raises PayloadNotLoaded.
        payload_digest: the SHA-256 of the payload; an erasure keeps it.
        conversation_id: the id of the message that began the conversation.
        causation_id: the id of the message whose handler sent this one, or None.
        identity: who the sender said it is, such as a DID; None: it said nothing.
        capability: the capability that the sender named as recipient, such as ``summarise@>=2``; the recipient in
            the receipt is the agent that was chosen. None: the sender named the agent.
        trace_id: the id of the trace in which it was sent, 32 hexadecimal digits; None: it was not traced.
        reference: where the payload is, which is None here: ``trail.payload`` reads it. None: the record has it.
        expires_at: the expiry, or None.
        retain_until: the time from which a purge may remove the message.
        erased_at: when the payload was erased, or None.
        events: its events, in order.
        event: for an EVENT, the attributes of the event; None for every other message.
    """

    receipt: DeliveryReceipt
    payload: JSON
    payload_digest: str
    conversation_id: str
    causation_id: str | None
    expires_at: datetime | None
    retain_until: datetime
    erased_at: datetime | None
    events: tuple[AuditEvent, ...]
    event: EventAttributes | None = None
    identity: str | None = None
    capability: str | None = None
    trace_id: str | None = None
    reference: Reference | None = None

    def __post_init__(self) -> None:
        if self.payload is NOT_LOADED:
            object.__delattr__(self, "payload")  # so that it cannot be taken for a payload

    def __getattr__(self, name: str) -> Any:
        """Raise PayloadNotLoaded for a payload that was not loaded; Python asks only for what is missing."""
        if name == "payload":
            raise PayloadNotLoaded(
                f"the record of {self.receipt.message_id} was read without its payload: read it with "
                "trail.receipt(message_id), or query with payloads=True"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        """Return what fits on a line: the receipt's facts and the number of events, without the payload."""
        events = counted(len(self.events), "event")
        return f"<AuditRecord {self.receipt.message_id}: {self.receipt.summary}, {events}>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(JsonForm):
    """A page of a query's result.

    Attributes:
        records: the messages, newest first. A page may be short, or empty, before the end of the result.
        after: the argument ``after`` of the query for the next page; None at the end.
    """

    records: list[AuditRecord]
    after: tuple[datetime, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations(JsonForm):
    """Percentiles of durations, in seconds; None if nothing was measured."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics(JsonForm):
    """Statistics of the messages that were sent within a period.

    Attributes:
        total: how many messages were sent.
        by_status: how many messages have each status.
        by_type: how many messages have each type.
        top_senders: the agents that sent most messages, with the numbers.
        top_receivers: the agents that received most messages, with the numbers.
        delivery: the time from the send to the start of the first attempt.
        handling: the duration of the attempt that succeeded.
        error_rate: the share of ended messages that failed or are dead letters, 0 to 1; None if none has ended.
    """

    total: int
    by_status: dict[str, int]
    by_type: dict[str, int]
    top_senders: list[tuple[str, int]]
    top_receivers: list[tuple[str, int]]
    delivery: Durations
    handling: Durations
    error_rate: float | None
