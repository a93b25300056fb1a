"""Records of conversations as the ledger returns them, made by hand: for tests of pictures, without a ledger."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from waooaw_celery.ledger.read.records import NOT_LOADED, AuditEvent, AuditRecord
from waooaw_celery.messages.enums import MessageStatus, MessageType, Priority
from waooaw_celery.messages.receipt import DeliveryReceipt, MessageEvent

#: When the conversations begin.
BEGIN = datetime(2026, 11, 29, 9, 30, tzinfo=UTC)
WORKER = "worker@host"
#: What a hostile program may write into any text of the ledger.
HOSTILE = (
    "x\"'><script>alert(1)</script>&amp;]]>\n;#end end\r\u202e\x00\x1b[2J\ud800 %%{init}%% participant p9 style="
)


def at(seconds: float) -> datetime:
    """Return the time so many seconds after the beginning."""
    return BEGIN + timedelta(seconds=seconds)


def event(name: str, when: float, attempt: int = 0, **fields: Any) -> AuditEvent:
    """Return an event of a message."""
    given: dict[str, Any] = {"worker": WORKER if attempt else None, "seconds": None, "error": None}
    return AuditEvent(event=name, attempt=attempt, at=at(when), **(given | fields))


def handled(sent: float, waited: float = 0.02, ran: float = 0.1) -> tuple[AuditEvent, ...]:
    """Return the events of a message that was handled at its first attempt."""
    begin = sent + waited
    return (
        event("sent", sent + 0.001),
        event("delivered", begin, 1, seconds=waited),
        event("handled", begin + ran, 1, seconds=ran),
    )


def record(
    id_: str,
    sender: str = "boss",
    to: str = "worker",
    *,
    handler: str = "command",
    type_: MessageType = MessageType.COMMAND,
    sent: float = 0.0,
    events: tuple[AuditEvent, ...] = (),
    cause: str | None = None,
    conversation: str = "order-7",
    payload: Any = NOT_LOADED,
    **fields: Any,
) -> AuditRecord:
    """Return a record; its status follows from its events, as in the ledger."""
    final = next((each for each in events if MessageEvent(each.event).terminal), None)
    deliveries = [each for each in events if each.event == "delivered"]
    begun = MessageStatus.DELIVERED if deliveries else MessageStatus.SENT
    receipt = DeliveryReceipt(
        message_id=id_,
        from_agent=sender,
        to_agent=to,
        handler=handler,
        message_type=type_,
        priority=Priority.NORMAL,
        status=begun if final is None else MessageStatus(final.event),
        attempts=len(deliveries),
        sent_at=at(sent),
        delivered_at=deliveries[0].at if deliveries else None,
        finished_at=final and final.at,
        correlation_id=conversation,
        error=final and final.error,
        cancel_requested_at=next((each.at for each in events if each.event == "cancel_requested"), None),
    )
    given: dict[str, Any] = {"expires_at": None, "retain_until": at(86_400), "erased_at": None}
    return AuditRecord(
        receipt=receipt,
        payload=payload,
        payload_digest="0" * 64,
        conversation_id=conversation,
        causation_id=cause,
        events=events,
        **(given | fields),
    )


def every_kind(payload: Any = NOT_LOADED) -> list[AuditRecord]:
    """Return a conversation with a message of each kind and each end, in causal order."""
    query, fan_out, response = MessageType.QUERY, MessageType.EVENT, MessageType.RESPONSE
    retried = (
        event("sent", 0.2),
        event("delivered", 0.25, 1, seconds=0.05),
        event("retried", 0.5, 1, seconds=0.25, error="TimeoutError: the warehouse does not answer"),
        event("delivered", 1.5, 2),
        event("handled", 1.75, 2, seconds=0.25),
    )
    dead = (
        event("sent", 2.2),
        event("delivered", 2.3, 1),
        event("delivered", 2.6, 2),
        event("dead", 2.8, 2, error="WorkerLostError: two workers died"),
    )
    failed = (
        event("delivered", 2.0, 1, seconds=0.1),
        event("failed", 2.1, 1, seconds=0.1, error="ValueError: no"),
    )
    cancelled = (event("cancel_requested", 3.1, error="ada"), event("cancelled", 3.2))
    rows: list[tuple[str, str, str, str, MessageType, float, tuple[AuditEvent, ...], str | None]] = [
        ("order-7", "shop", "orders", "fulfil", query, 0.0, handled(0.0), None),
        ("ask", "orders", "stock", "reserve", query, 0.2, retried, "order-7"),
        ("answer", "stock", "orders", "response", response, 1.75, (event("answered", 1.75),), "ask"),
        ("failed", "orders", "support", "check", query, 1.9, failed, "order-7"),
        ("event", "orders", "", "order.shipped", fan_out, 2.0, (event("published", 2.0),), "order-7"),
        ("billed", "orders", "billing", "event.bill", fan_out, 2.0, handled(2.0), "event"),
        ("dead", "billing", "billing", "command", MessageType.COMMAND, 2.2, dead, "billed"),
        ("expired", "orders", "mailer", "event.mail", fan_out, 2.0, (event("expired", 3.0),), "event"),
        ("input", "ada", "orders", "workflow_input", query, 2.9, handled(2.9), None),
        ("cancelled", "orders", "mailer", "ack", MessageType.ACK, 3.0, cancelled, "order-7"),
        ("running", "orders", "courier", "command", MessageType.COMMAND, 3.3, handled(3.3)[:2], "order-7"),
        ("waiting", "orders", "courier", "command", MessageType.COMMAND, 3.4, (), "order-7"),
    ]
    return [
        record(
            id_, sender, to, handler=handler, type_=type_, sent=sent, events=events, cause=cause, payload=payload
        )
        for id_, sender, to, handler, type_, sent, events, cause in rows
    ]


@cache
def large(count: int, payload: Any = NOT_LOADED) -> tuple[AuditRecord, ...]:
    """Return a conversation of many messages between eleven agents; every 997th one failed."""
    records = []
    for number in range(count):
        sent = number * 0.01
        events = handled(sent)
        if number % 997 == 0:
            events = (*events[:2], event("failed", sent + 0.1, 1, error="ValueError: no"))
        sender, to = f"agent-{number % 7}", f"agent-{(number * 3 + 1) % 11}"
        cause = f"m{number // 3}" if number else None
        records.append(
            record(
                f"m{number}",
                sender,
                to,
                handler=f"h{number % 5}",
                sent=sent,
                events=events,
                cause=cause,
                payload=payload,
            )
        )
    return tuple(records)


def hostile() -> list[AuditRecord]:
    """Return a conversation with hostile text in each field that a program may fill."""
    error = event("failed", 0.3, 1, error=HOSTILE, worker=HOSTILE)
    events = (event("delivered", 0.1, 1, worker=HOSTILE), error)
    ids = {"conversation": HOSTILE, "identity": HOSTILE, "capability": HOSTILE, "trace_id": HOSTILE}
    topic = (event("published", 0.5),)
    return [
        record(
            HOSTILE, HOSTILE, f"to {HOSTILE}", handler=HOSTILE, events=events, payload={HOSTILE: HOSTILE}, **ids
        ),
        record(
            f"2 {HOSTILE}",
            HOSTILE,
            "",
            handler=f"topic {HOSTILE}",
            type_=MessageType.EVENT,
            sent=0.5,
            events=topic,
            cause=HOSTILE,
            payload=HOSTILE,
            **ids,
        ),
        record(f"3 {HOSTILE}", "end", "end", handler="end", sent=0.6, cause=HOSTILE, payload=["end"], **ids),
    ]
