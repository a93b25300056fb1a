"""What the ledger answers with: records of messages, pages of them, statistics."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from waooaw_celery.messages.receipt import DeliveryReceipt
from waooaw_celery.messages.topics.attributes import EventAttributes
from waooaw_celery.messages.validation import JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """Something that became of a message.

    Attributes:
        event: sent, delivered, retried, recovered, duplicate, handled, failed, expired, dead, cancel_requested,
            cancelled, resent or discarded.
        attempt: of which attempt, counted from 1; 0 for what happened before the first.
        at: when, aware UTC.
        worker: node name of the worker that told it, or None.
        seconds: how long it took to come to this: for delivered since it was sent, for handled, failed and retried
            since that attempt began; None where that is not known.
        error: why, for retried, recovered and failed; by whom, for cancel_requested, resent and discarded.
    """

    event: str
    attempt: int
    at: datetime
    worker: str | None
    seconds: float | None
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Messages that a rate limit refused.

    Attributes:
        agent: whose; ``*`` when more agents and rules were refused at once than are kept apart.
        rule: by which rule.
        minute: in which minute, aware UTC.
        count: how many.
    """

    agent: str
    rule: str
    minute: datetime
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """A message as the ledger has it.

    Attributes:
        receipt: who told whom, when, and the newest known fact.
        payload: what was said; None when it was erased.
        payload_digest: SHA-256 of the payload, which an erasure leaves.
        conversation_id: the message that began it all.
        causation_id: the message whose handler sent this one, or None.
        expires_at: when it expired or would have, or None.
        retain_until: when a purge may remove it.
        erased_at: when its payload was erased, or None.
        events: what became of it, in order.
        event: of an EVENT, the attributes of the event; None for every other message.
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
    """A part of an answer.

    Attributes:
        records: the messages, newest first; fewer than the limit, or none, do not mean that there are no more.
        after: what to give to ``query(after=…)`` for the next part, or None at the end.
    """

    records: list[AuditRecord]
    after: tuple[datetime, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """How long something took, in seconds: half of the messages took at most p50, and so on; None without any."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What was going on in a stretch of time.

    Attributes:
        total: messages sent.
        by_status: how many there are of each status.
        by_type: how many there are of each type.
        top_senders: the agents that sent most, with how many.
        top_receivers: the agents that got most, with how many.
        delivery: from sending to the beginning of the first attempt.
        handling: the attempt that handled it, from its beginning to its end.
        error_rate: share of those ended that failed or are dead letters, from 0 to 1; None when none has ended.
    """

    total: int
    by_status: dict[str, int]
    by_type: dict[str, int]
    top_senders: list[tuple[str, int]]
    top_receivers: list[tuple[str, int]]
    delivery: Durations
    handling: Durations
    error_rate: float | None
