"""What queries of the ledger return: records, pages and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.messages.topics.attributes import EventAttributes
from waooaw_celery.messages.validation import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """An event of a message, as recorded.

    Attributes:
        event: sent, delivered, retried, recovered, duplicate, handled, failed, expired, dead, cancel_requested,
            cancelled, resent or discarded.
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
class Refusal:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """A message in the ledger, with its events.

    Attributes:
        receipt: sender, recipient, status and times.
        payload: the payload; None if it was erased.
        payload_digest: the SHA-256 of the payload; an erasure keeps it.
        conversation_id: the id of the message that began the conversation.
        causation_id: the id of the message whose handler sent this one, or None.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of a query's result.

    Attributes:
        records: the messages, newest first. A page may be short, or empty, before the end of the result.
        after: the argument ``after`` of the query for the next page; None at the end.
    """

    records: list[AuditRecord]
    after: tuple[datetime, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Percentiles of durations, in seconds; None if nothing was measured."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
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
